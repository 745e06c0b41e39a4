//! The Fréchet distance for infinitely many images (Chong and Forsyth 2020, <https://arxiv.org/abs/1911.07023>).
//!
//! The distance of N images is too large by about c/N, with a c that depends on the model, so that distances of few
//! images may rank models wrongly. Of 15 evenly spaced N up to all images, that many are drawn at random, and a line
//! through the distances over 1/N, by least squares, is read off at 0. The paper draws 5000 to 50,000 images; the
//! least N is a tenth of the images here, and 5000 at the most.

use super::features::Features;
use super::frechet::Reference;
use super::random::sample;
use crate::error::{Error, Result};
use crate::stream::Control;

/// Distances that the line goes through.
pub const INFINITY_POINTS: usize = 15;
/// The least number of images at which one is taken, and the share of all that it is of fewer than the paper's.
const LEAST: usize = 5000;
const SHARE: usize = 10;

/// The line.
#[derive(Clone, Debug, PartialEq)]
pub struct Infinity {
    /// The distance at 1/N = 0. It may be below zero, as the line is only fitted.
    pub value: f64,
    /// By how much N times the distance of N images is too large: the line's slope.
    pub slope: f64,
    /// N and the distance of N images.
    pub points: Vec<(usize, f64)>,
}

/// Extrapolates the distance of features from a reference. Progress counts distances.
///
/// # Errors
/// As [`Reference::distance_of`]; [`Error::Recipe`] if there are fewer than 30 features; [`Error::Interrupted`] on
/// request.
pub fn infinity(reference: &Reference, features: &Features, seed: u64, control: Control<'_>) -> Result<Infinity> {
    let n = features.count();
    if n < 2 * INFINITY_POINTS {
        let message =
            format!("{} has {n} images, too few to draw a line through {INFINITY_POINTS} subsets", features.origin);
        return Err(Error::Recipe(format!("{message}; give {} at least", 2 * INFINITY_POINTS)));
    }
    let least = LEAST.min(n / SHARE).max(2);
    let mut points = Vec::with_capacity(INFINITY_POINTS);
    for point in 0..INFINITY_POINTS {
        control.check()?;
        let taken = least + (n - least) * point / (INFINITY_POINTS - 1);
        let chosen = features.chosen(&sample(seed, "infinity", point, n, taken));
        points.push((taken, reference.distance_of(&chosen)?));
        (control.progress)(1);
    }
    let (value, slope) = line(&points);
    Ok(Infinity { value, slope, points })
}

/// Where the line of least squares through the distances over 1/N meets 0, and its slope.
fn line(points: &[(usize, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let x = |n: usize| 1.0 / n as f64;
    let mean_x = points.iter().map(|&(n, _)| x(n)).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, distance)| distance).sum::<f64>() / count;
    let products = points.iter().map(|&(n, distance)| (x(n) - mean_x) * (distance - mean_y)).sum::<f64>();
    let squares = points.iter().map(|&(n, _)| (x(n) - mean_x).powi(2)).sum::<f64>();
    let slope = products / squares;
    (mean_y - slope * mean_x, slope)
}

#[cfg(test)]
mod tests {
    use super::line;
    use serde_json::Value;

    #[test]
    fn the_line_is_scikit_learns() {
        let golden: Value =
            serde_json::from_str(include_str!("../../fixtures/eval/distances.json")).expect("it is JSON");
        let golden = &golden["line"];
        let numbers = |name: &str| -> Vec<f64> {
            golden[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
        };
        let points: Vec<(usize, f64)> =
            numbers("numbers").iter().zip(numbers("values")).map(|(&n, value)| (n as usize, value)).collect();
        assert_eq!(points.len(), 15);
        let (value, slope) = line(&points);
        assert!((value - golden["at_infinity"].as_f64().expect("a number")).abs() < 1e-12, "{value}");
        assert!((slope - golden["slope"].as_f64().expect("a number")).abs() < 1e-9, "{slope}");
    }
}
