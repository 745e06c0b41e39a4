//! Between which numbers bands lie, and what stands beside the colour bar.

use crate::error::{Error, Result};
use crate::plot::Theme;
use crate::plot::colour::{Rgb, Scale, of_share};
use crate::plot::number::{magnitude, without};

/// How levels are spaced between the lowest and the highest number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Levels {
    /// Each step above the lowest number is as many times the one before, so that the basin is resolved.
    #[default]
    Log,
    /// By equal steps.
    Linear,
}

impl Levels {
    /// The spacings by name.
    pub const NAMES: [(&'static str, Self); 2] = [("log", Self::Log), ("linear", Self::Linear)];
}

/// Bands of numbers, each with a colour.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bands {
    /// The lowest number.
    pub(super) low: f64,
    /// The highest number, or where the last band begins if that is open.
    pub(super) high: f64,
    /// Where one band ends and the next begins, rising.
    pub(super) thresholds: Vec<f64>,
    /// Whether the last band has no upper end.
    pub(super) open: bool,
}

/// A highest number this many times farther from the lowest than the quantile is cut off there.
const FAR: f64 = 3.0;
const QUANTILE: f64 = 0.95;
/// The share of numbers that the lowest band of [`Levels::Log`] should have, and how narrow it may be.
const BASIN: f64 = 0.03;
const NARROWEST: f64 = 1e-6;

impl Bands {
    /// `count` bands over numbers, of which there is at least one.
    ///
    /// # Errors
    /// [`Error::Recipe`] if none of the numbers is below `most`.
    pub(super) fn new(numbers: &mut [f64], levels: Levels, count: usize, most: Option<f64>) -> Result<Self> {
        numbers.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| numbers.get((share * (numbers.len().saturating_sub(1)) as f64).round() as usize);
        let quantile = |share: f64| at(share).copied().unwrap_or_default();
        let (low, highest) = (quantile(0.0), quantile(1.0));
        let high = match most {
            Some(most) if most <= low => {
                let why = format!("all its numbers are {most} or more; the lowest is {low}");
                return Err(Error::Recipe(format!("the plane cannot be drawn with that end: {why}")));
            }
            Some(most) => most.min(highest),
            None if (highest - low) / FAR > quantile(QUANTILE) - low && quantile(QUANTILE) > low => quantile(QUANTILE),
            None => highest,
        };
        let open = high < highest;
        let range = high - low;
        if !range.is_normal() {
            return Ok(Self { low, high: highest, thresholds: Vec::new(), open: false });
        }
        let closed = count - usize::from(open);
        // Of few numbers only the lowest itself may be that near.
        let first =
            if quantile(BASIN) > low { Some(quantile(BASIN)) } else { numbers.iter().copied().find(|n| *n > low) };
        let share = ((first.unwrap_or(high) - low) / range).clamp(NARROWEST, 1.0 / closed as f64);
        let ratio = share.powf(1.0 / closed.saturating_sub(1).max(1) as f64);
        let level = |step: usize| match levels {
            _ if step == closed => high,
            Levels::Log => low + range * ratio.powi((closed - step) as i32),
            Levels::Linear => low + range * (step as f64 / closed as f64),
        };
        let mut thresholds: Vec<f64> = (1..count).map(level).filter(|level| low < *level && *level <= high).collect();
        thresholds.dedup();
        Ok(Self { low, high, thresholds, open })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.thresholds.len() + 1
    }

    /// The colour of one of them.
    pub(super) fn colour(&self, band: usize, theme: Theme) -> Rgb {
        let share = band as f64 / (self.len() - 1).max(1) as f64;
        of_share(share, Scale::Sequential, theme)
    }

    /// Where bands end, from the lowest number on, as texts that differ, and the power of ten that is left out of them. What stands at
    /// the open band's beginning says so.
    pub(super) fn labels(&self) -> (Vec<String>, i32) {
        let mut ends = vec![self.low];
        ends.extend(&self.thresholds);
        if !self.open && self.high > self.low {
            ends.push(self.high);
        }
        // Over many powers of ten each number has its own.
        let largest = self.low.abs().max(self.high.abs());
        let few = self.low == 0.0 || (1e-3..1e3).contains(&(self.low / self.high).abs());
        let power = if (-2..5).contains(&magnitude(largest)) || !few { 0 } else { magnitude(largest) };
        ends.iter_mut().for_each(|end| *end = without(*end, power));
        let mut labels = distinct(&ends);
        if let Some(last) = labels.last_mut().filter(|_| self.open) {
            last.insert_str(0, "≥ ");
        }
        (labels, power)
    }
}

/// Numbers that rise, with so many digits that neighbours differ.
fn distinct(numbers: &[f64]) -> Vec<String> {
    let texts = |digits| numbers.iter().map(|number| significant(*number, digits)).collect::<Vec<_>>();
    let differ = |texts: &Vec<String>| texts.windows(2).all(|pair| pair.first() != pair.get(1));
    (3..=15).map(texts).find(differ).unwrap_or_else(|| texts(17))
}

/// A number with so many digits that count.
pub(in crate::plot) fn significant(number: f64, digits: usize) -> String {
    let behind = digits.saturating_sub(1);
    // Rounding may add a digit before the point, so the power of ten is that of the rounded number.
    let raised = format!("{number:.behind$e}");
    let power = raised.split_once('e').and_then(|(_, power)| power.parse::<i32>().ok()).unwrap_or_default();
    let text = match power {
        _ if number == 0.0 => "0".to_owned(),
        -4..6 => format!("{number:.*}", (behind as i32 - power).max(0) as usize),
        _ => raised,
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_levels_grow_by_one_ratio() -> Result<()> {
        let mut numbers: Vec<f64> = (0..=1000).map(|step| 2.0 + (f64::from(step) / 1000.0).powi(2)).collect();
        let bands = Bands::new(&mut numbers, Levels::Log, 12, None)?;
        assert!(!bands.open && bands.len() == 12);
        let steps: Vec<f64> = bands.thresholds.iter().chain([&bands.high]).map(|level| level - bands.low).collect();
        let ratio = steps[1] / steps[0];
        assert!(
            ratio > 1.1 && steps.windows(2).all(|pair| (pair[1] / pair[0] / ratio - 1.0).abs() < 1e-9),
            "{steps:?}"
        );
        // The lowest band has the 3 % of the numbers that are nearest to the lowest.
        let within = numbers.iter().filter(|number| **number < bands.thresholds[0]).count();
        assert!((29..=31).contains(&within), "{within}");
        let linear = Bands::new(&mut numbers, Levels::Linear, 4, None)?;
        assert_eq!(linear.thresholds, [2.25, 2.5, 2.75]);
        assert_eq!(linear.labels().0, ["2.00", "2.25", "2.50", "2.75", "3.00"]);
        Ok(())
    }

    #[test]
    fn what_is_far_above_is_cut_off() -> Result<()> {
        let mut numbers: Vec<f64> = (0..100).map(f64::from).collect();
        assert!(!Bands::new(&mut numbers, Levels::Log, 8, None)?.open);
        numbers.extend([1e6; 3]);
        let bands = Bands::new(&mut numbers, Levels::Log, 8, None)?;
        assert!(bands.open && bands.high < 100.0 && bands.len() == 8 && bands.thresholds.last() == Some(&bands.high));
        assert_eq!(bands.labels().0.last().map(String::as_str), Some("≥ 97.0"));
        let bands = Bands::new(&mut numbers, Levels::Linear, 6, Some(50.0))?;
        assert_eq!((bands.open, bands.thresholds), (true, vec![10.0, 20.0, 30.0, 40.0, 50.0]));
        assert!(Bands::new(&mut numbers, Levels::Linear, 6, Some(0.0)).is_err());
        assert_eq!(Bands::new(&mut [3.0; 9], Levels::Log, 6, None)?.labels().0, ["3.00"]);
        let small = Bands::new(&mut [2e-7, 4e-7, 5e-7], Levels::Linear, 2, None)?;
        assert_eq!(small.labels(), (["2.00", "3.50", "5.00"].map(str::to_owned).to_vec(), -7));
        // Four numbers give no quantile: the bands begin with the second lowest.
        let four = Bands::new(&mut [1.0, 1.1, 3.0, 2.0], Levels::Log, 4, None)?;
        assert!((four.thresholds[0] - 1.1).abs() < 1e-12, "{four:?}");
        Ok(())
    }

    #[test]
    fn labels_differ_from_their_neighbours() {
        assert_eq!(distinct(&[0.071_2, 0.071_25, 0.08]), ["0.07120", "0.07125", "0.08000"]);
        let shown =
            [(0.0, "0"), (-0.256, "−0.256"), (99.99, "100"), (1234.0, "1234"), (1.5e9, "1.50e9"), (2e-7, "2.00e−7")];
        for (number, text) in shown {
            assert_eq!(significant(number, 3), text);
        }
    }
}
