//! Numbers as people write them: in a few characters, in steps of 1, 2 or 5, with a minus sign that is one.

/// A number in six characters or so: three digits that count.
pub(super) fn short(number: f64) -> String {
    let text = match number.abs() {
        0.0 => "0".to_owned(),
        size if size.is_nan() => "–".to_owned(),
        size if size.is_infinite() => if number > 0.0 { "∞" } else { "−∞" }.to_owned(),
        0.000_999_5..999.5 => {
            let digits = (2 - number.abs().log10().floor() as i32).max(0) as usize;
            format!("{number:.digits$}")
        }
        _ => format!("{number:.1e}"),
    };
    text.replace('-', "−")
}

/// A number with so many digits behind the point.
pub(super) fn fixed(number: f64, digits: usize) -> String {
    if !number.is_finite() {
        return short(number);
    }
    let text = format!("{number:.digits$}");
    let is_zero = text.bytes().all(|byte| matches!(byte, b'-' | b'0' | b'.'));
    if is_zero { text.replace('-', "") } else { text.replace('-', "−") }
}

/// Multiples of 1, 2 or 5 times a power of ten from `low` to `high`: at most `most`, and about so many.
#[cfg(feature = "plot")]
pub(super) fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let raw = (high - low) / most.saturating_sub(1).max(1) as f64;
    let power = 10f64.powf(raw.log10().floor());
    if !raw.is_normal() || raw < 0.0 || !power.is_normal() {
        return if low.is_finite() { vec![low] } else { Vec::new() };
    }
    // Rounding must not make a step of 2 of 1.0000001.
    let step = power * [1.0, 2.0, 5.0].into_iter().find(|times| times * 1.000_001 >= raw / power).unwrap_or(10.0);
    let first = (low / step - 1e-6).ceil();
    let count = ((high / step + 1e-6).floor() - first).clamp(0.0, most as f64) as usize;
    (0..=count).map(|index| (first + index as f64) * step).collect()
}

/// What stands at some ticks evenly apart, and the power of ten that is left out of all of them.
#[cfg(feature = "plot")]
pub(super) fn tick_labels(ticks: &[f64]) -> (Vec<String>, i32) {
    let power = common_power(ticks);
    let step = match ticks {
        [first, second, ..] => (second - first).abs(),
        [one] => one.abs(),
        [] => 0.0,
    };
    let digits = digits_of(without(step, power));
    (ticks.iter().map(|tick| fixed(without(*tick, power), digits)).collect(), power)
}

/// Likewise of ticks that are 1, 2 or 5 times a power of ten: with as many digits as each takes.
#[cfg(feature = "plot")]
pub(super) fn uneven_tick_labels(ticks: &[f64]) -> (Vec<String>, i32) {
    let power = common_power(ticks);
    let label = |tick: f64| fixed(tick, digits_of(tick));
    (ticks.iter().map(|tick| label(without(*tick, power))).collect(), power)
}

/// The power of ten to leave out of numbers that are large or small.
#[cfg(feature = "plot")]
fn common_power(ticks: &[f64]) -> i32 {
    let magnitude = magnitude(ticks.iter().map(|tick| tick.abs()).fold(0.0, f64::max));
    if (-3..5).contains(&magnitude) { 0 } else { magnitude }
}

/// The power of ten of a number's first digit.
pub(super) fn magnitude(number: f64) -> i32 {
    if number.is_normal() { (number.abs().log10() + 1e-9).floor() as i32 } else { 0 }
}

/// In two steps: the power alone may be too large or too small for a number.
pub(super) fn without(number: f64, power: i32) -> f64 {
    number / 10f64.powi(power / 2) / 10f64.powi(power - power / 2)
}

/// Digits behind the point down to the first that counts.
#[cfg(feature = "plot")]
fn digits_of(number: f64) -> usize {
    (-magnitude(number)).clamp(0, 8) as usize
}

/// `10⁻³`
pub(super) fn power_of_ten(power: i32) -> String {
    let raised = |digit: char| match digit {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit => digit.to_digit(10).and_then(|digit| char::from_u32(0x2070 + digit)).unwrap_or(digit),
    };
    format!("10{}", power.to_string().chars().map(raised).collect::<String>())
}

/// A unit of numbers of which a power of ten is left out.
#[cfg(feature = "plot")]
pub(super) fn unit_with(unit: &str, power: i32) -> String {
    match (unit, power) {
        (unit, 0) => unit.to_owned(),
        ("", power) => format!("× {}", power_of_ten(power)),
        (unit, power) => format!("{unit}  (× {})", power_of_ten(power)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.1234, "0.123"),
            (12.345, "12.3"),
            (123.4, "123"),
            (-123.4, "−123"),
            (999.9, "1.0e3"),
            (1e-5, "1.0e−5"),
            (2e4, "2.0e4"),
            (f64::NEG_INFINITY, "−∞"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(short(number), text);
        }
        for (number, text) in [(-0.001, "0.00"), (-0.256, "−0.26"), (1.0, "1.00"), (f64::INFINITY, "∞")] {
            assert_eq!(fixed(number, 2), text);
        }
    }

    #[cfg(feature = "plot")]
    #[test]
    fn ticks_are_neat_and_few() {
        let of = |low, high| tick_labels(&ticks(low, high, 6));
        assert_eq!(of(-1.0, 1.0), (["−1.0", "−0.5", "0.0", "0.5", "1.0"].map(str::to_owned).to_vec(), 0));
        assert_eq!(of(0.0, 0.37), (["0.0", "0.1", "0.2", "0.3"].map(str::to_owned).to_vec(), 0));
        assert_eq!(of(0.0, 3e-6), (["0", "1", "2", "3"].map(str::to_owned).to_vec(), -6));
        assert_eq!(of(0.0, 2.5e9).1, 9);
        assert_eq!(unit_with("count", -12), "count  (× 10⁻¹²)");
        assert_eq!(unit_with("", 30), "× 10³⁰");
        let odd = [0.0, -1.0, 1.0, 1e308, -1e308, 5e-324, -5e-324, 1.0 + 1e-15, f64::NAN, f64::INFINITY, 1e-300];
        for low in odd {
            for high in odd {
                for most in [0, 1, 2, 6, 8] {
                    let ticks = ticks(low, high, most);
                    assert!(ticks.len() <= most.max(2) + 1, "{low} {high} {most}: {ticks:?}");
                    tick_labels(&ticks);
                }
            }
        }
        for exponent in -30..30 {
            for mantissa in [1.0, 1.3, 2.0, 4.9, 7.7] {
                let ticks = ticks(0.0, mantissa * 10f64.powi(exponent), 6);
                assert!((3..=7).contains(&ticks.len()), "{mantissa}e{exponent}: {ticks:?}");
            }
        }
    }
}
