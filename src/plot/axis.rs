//! An axis of numbers: where they are on it, its ticks and its unit.

use super::colour::Palette;
use super::font::{fitted, text_width, widest};
use super::heading::{GAP, LABEL};
use super::number::{power_of_ten, tick_labels, ticks, uneven_tick_labels, unit_with};
use super::scene::{Scene, Side};
use crate::error::{Error, Result};

/// From a lowest to a highest number, evenly or by powers of ten.
#[derive(Clone, Debug)]
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<(f64, String)>,
    unit: String,
}

/// The length of a tick.
const TICK: f64 = 4.0;

impl Axis {
    /// An even axis with at most `most` ticks.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the numbers are too large to be subtracted or none.
    pub fn linear(low: f64, high: f64, most: usize, unit: &str) -> Result<Self> {
        let (low, high) = if low < high {
            (low, high)
        } else {
            let around = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low - around, low + around)
        };
        if !(high - low).is_finite() {
            return Err(Error::Recipe(format!("no axis reaches from {low:e} to {high:e}")));
        }
        let places = ticks(low, high, most);
        let (labels, power) = tick_labels(&places);
        let ticks = places.into_iter().zip(labels).collect();
        Ok(Self { low, high, log: false, ticks, unit: unit_with(unit, power) })
    }

    /// An axis by powers of ten, with about `most` ticks.
    ///
    /// # Errors
    /// [`Error::Recipe`] unless the numbers are positive.
    pub fn log(low: f64, high: f64, most: usize, unit: &str) -> Result<Self> {
        if !(low > 0.0 && high >= low && high.is_finite()) {
            return Err(Error::Recipe(format!("no axis by powers of ten reaches from {low:e} to {high:e}")));
        }
        let (low, high) = if low < high { (low, high) } else { (low * 0.5, high * 2.0) };
        let (first, last) = (low.log10(), high.log10());
        let decades = (last + 1e-9).floor() - (first - 1e-9).ceil();
        let (ticks, unit) = if decades >= 2.0 {
            let apart = (decades / most.saturating_sub(1).max(1) as f64).ceil().max(1.0) as i32;
            let powers = ((first - 1e-9).ceil() as i32..=(last + 1e-9).floor() as i32).step_by(apart as usize);
            (powers.map(|power| (f64::from(power), power_of_ten(power))).collect(), unit.to_owned())
        } else {
            // Too few powers of ten: 1, 2 and 5 times each, or where even these are too few, even steps.
            let powers = first.floor() as i32..=last.floor() as i32;
            let times = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|times| times * 10f64.powi(power)));
            let mut places: Vec<f64> = times.filter(|place| (low..=high).contains(place)).collect();
            let (labels, power) = if places.len() < 3 {
                places = ticks(low, high, most).into_iter().filter(|place| *place > 0.0).collect();
                tick_labels(&places)
            } else {
                uneven_tick_labels(&places)
            };
            (places.iter().map(|place| place.log10()).zip(labels).collect(), unit_with(unit, power))
        };
        Ok(Self { low: first, high: last, log: true, ticks, unit })
    }

    /// How far along the axis a number is, 0 to 1; what is beyond its ends is at them.
    #[must_use]
    pub fn share(&self, number: f64) -> f64 {
        // The logarithm of what is not positive is NaN or −∞: at the lower end.
        let place = if self.log { number.max(0.0).log10() } else { number };
        let share = (place - self.low) / (self.high - self.low);
        if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
    }

    /// Where ticks are, 0 to 1, and what stands at them.
    pub(super) fn places(&self) -> impl Iterator<Item = (f64, &String)> {
        let range = self.high - self.low;
        self.ticks.iter().map(move |(place, label)| (((place - self.low) / range).clamp(0.0, 1.0), label))
    }

    /// The unit, with the power of ten that is left out of the numbers.
    pub(super) fn unit(&self) -> &str {
        &self.unit
    }

    /// The width that labels and unit take beside an upright axis.
    #[must_use]
    pub fn room_beside(&self) -> f64 {
        let unit = if self.unit.is_empty() { 0.0 } else { LABEL * 1.4 };
        TICK + 4.0 + widest(self.ticks.iter().map(|(_, label)| label), LABEL) + unit + 4.0
    }

    /// The height that labels and unit take below a level axis.
    #[must_use]
    pub fn room_below(&self) -> f64 {
        TICK + 2.0 * LABEL * 1.4
    }

    /// Draws it at the left of a field, with lines across.
    pub fn draw_left(&self, scene: &mut Scene, palette: &Palette, from: (f64, f64), to: (f64, f64)) {
        let height = to.1 - from.1;
        for (share, label) in self.places() {
            let y = to.1 - share * height;
            scene.rectangle((from.0, y - 0.5), (to.0, y + 0.5), palette.faint);
            self.draw_tick(scene, palette, (from.0 - TICK, y - 0.5), (from.0, y + 0.5));
            scene.text(label.clone(), (from.0 - TICK - 4.0, y), LABEL, Side::End, palette.ink);
        }
        self.draw_tick(scene, palette, (from.0 - 0.5, from.1), (from.0 + 0.5, to.1));
        let unit = fitted(&self.unit, LABEL, height + 2.0 * GAP);
        let x = from.0 - self.room_beside() + LABEL * 0.7;
        scene.turned_text(unit, (x, (from.1 + to.1) / 2.0), LABEL, Side::Middle, palette.ink);
    }

    /// Draws it at the right of a colour bar.
    pub(super) fn draw_right(&self, scene: &mut Scene, palette: &Palette, from: (f64, f64), to: (f64, f64)) {
        for (share, label) in self.places() {
            let y = to.1 - share * (to.1 - from.1);
            self.draw_tick(scene, palette, (to.0, y - 0.5), (to.0 + TICK, y + 0.5));
            scene.text(label.clone(), (to.0 + TICK + 4.0, y), LABEL, Side::Start, palette.ink);
        }
        let unit = fitted(&self.unit, LABEL, to.1 - from.1 + 2.0 * GAP);
        let x = to.0 + self.room_beside() - LABEL * 0.7;
        scene.turned_text(unit, (x, (from.1 + to.1) / 2.0), LABEL, Side::Middle, palette.ink);
    }

    /// How far labels below a level axis reach beyond its ends.
    #[must_use]
    pub fn room_aside(&self) -> f64 {
        widest(self.ticks.iter().map(|(_, label)| label), LABEL) / 2.0
    }

    /// Draws it below a field.
    pub fn draw_below(&self, scene: &mut Scene, palette: &Palette, from: (f64, f64), to: (f64, f64)) {
        let width = to.0 - from.0;
        for (share, label) in self.places() {
            let x = from.0 + share * width;
            self.draw_tick(scene, palette, (x - 0.5, to.1), (x + 0.5, to.1 + TICK));
            scene.text(label.clone(), (x, to.1 + TICK + LABEL * 0.7), LABEL, Side::Middle, palette.ink);
        }
        self.draw_tick(scene, palette, (from.0, to.1 - 0.5), (to.0, to.1 + 0.5));
        let unit = fitted(&self.unit, LABEL, width);
        let y = to.1 + TICK + LABEL * 2.1;
        scene.text(unit, ((from.0 + to.0) / 2.0, y), LABEL, Side::Middle, palette.ink);
    }

    fn draw_tick(&self, scene: &mut Scene, palette: &Palette, from: (f64, f64), to: (f64, f64)) {
        scene.rectangle(from, to, palette.muted);
    }

    /// The length an upright axis must have for its unit.
    pub(super) fn unit_length(&self) -> f64 {
        text_width(&self.unit, LABEL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn ticks_lie_on_the_axis() -> Result<()> {
        let axis = Axis::linear(-1.0, 3.0, 6, "unit")?;
        assert_eq!(labels(&axis), ["−1", "0", "1", "2", "3"]);
        assert_eq!([axis.share(-1.0), axis.share(1.0), axis.share(9.0), axis.share(f64::NAN)], [0.0, 0.5, 1.0, 0.0]);
        let axis = Axis::log(1e-6, 1.0, 8, "unit")?;
        assert_eq!(labels(&axis), ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]);
        assert_eq!([axis.share(1e-3), axis.share(0.0), axis.share(-1.0)], [0.5, 0.0, 0.0]);
        assert_eq!(labels(&Axis::log(0.4, 25.0, 6, "")?), ["0.5", "1", "2", "5", "10", "20"]);
        let axis = Axis::log(2e-7, 4e-6, 6, "unit")?;
        assert_eq!((labels(&axis), axis.unit.as_str()), (vec!["0.2", "0.5", "1", "2"], "unit  (× 10⁻⁶)"));
        assert_eq!(labels(&Axis::log(3.0, 4.0, 6, "")?), ["3.0", "3.2", "3.4", "3.6", "3.8", "4.0"]);
        assert_eq!(labels(&Axis::log(1e-30, 1e30, 8, "")?).len(), 7);
        assert!(Axis::linear(-f64::MAX, f64::MAX, 6, "").is_err() && Axis::linear(f64::NAN, 1.0, 6, "").is_err());
        assert!(Axis::log(0.0, 1.0, 6, "").is_err() && Axis::log(1.0, f64::INFINITY, 6, "").is_err());
        for (low, high) in [(5.0, 5.0), (0.0, 0.0), (-2.0, -2.0), (1.0, 1.0 + 1e-15), (0.0, 5e-324), (0.0, 1e308)] {
            let axis = Axis::linear(low, high, 6, "")?;
            assert!(axis.places().all(|(share, _)| (0.0..=1.0).contains(&share)), "{low} {high}");
        }
        Ok(())
    }
}
