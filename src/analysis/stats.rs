//! Minimum, maximum, mean, deviation, norm and oddities of each tensor.
//!
//! Mean and deviation are over the finite elements; tiles' moments are combined by Chan, Golub and LeVeque's formula
//! (1979), which loses nothing to cancellation. The deviation is the population's: √(Σ(x − mean)² / n).

use super::{SCRATCH, decode_f64};
use crate::checkpoint::TensorView;
use crate::dtype::{self, DType, Simd};
use crate::error::Result;
use crate::stream::{self, Control, Group, Settings};

/// What is in a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stats {
    /// The smallest finite element; infinity if there is none.
    pub min: f64,
    /// The largest finite element; minus infinity if there is none.
    pub max: f64,
    /// The mean of the finite elements.
    pub mean: f64,
    /// The Euclidean norm of the finite elements.
    pub norm: f64,
    /// How many are zero.
    pub zeros: u64,
    /// How many are not a number.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
    /// How many are finite.
    pub finite: u64,
    /// Σ(x − mean)² over the finite ones.
    squares: f64,
}

impl Default for Stats {
    fn default() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { min, max, mean: 0.0, norm: 0.0, zeros: 0, nan: 0, infinite: 0, finite: 0, squares: 0.0 }
    }
}

impl Stats {
    /// The standard deviation of the finite elements.
    #[must_use]
    pub fn std(&self) -> f64 {
        if self.finite == 0 { 0.0 } else { (self.squares / self.finite as f64).sqrt() }
    }

    fn of(values: &[f64]) -> Self {
        let mut stats = Self::default();
        let mut sum = 0.0;
        let mut norm = 0.0;
        for &value in values {
            if value.is_finite() {
                stats.finite += 1;
                stats.min = stats.min.min(value);
                stats.max = stats.max.max(value);
                stats.zeros += u64::from(value == 0.0);
                sum += value;
                norm += value * value;
            } else if value.is_nan() {
                stats.nan += 1;
            } else {
                stats.infinite += 1;
            }
        }
        if stats.finite > 0 {
            stats.mean = sum / stats.finite as f64;
            stats.norm = norm.sqrt();
            let deviation = |value: &f64| (value - stats.mean).powi(2);
            stats.squares = values.iter().filter(|value| value.is_finite()).map(deviation).sum();
        }
        stats
    }

    /// The statistics of both together.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (n, m) = (self.finite as f64, other.finite as f64);
        let step = other.mean - self.mean;
        let share = if n + m > 0.0 { m / (n + m) } else { 0.0 };
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            mean: self.mean + step * share,
            norm: self.norm.hypot(other.norm),
            zeros: self.zeros + other.zeros,
            nan: self.nan + other.nan,
            infinite: self.infinite + other.infinite,
            finite: self.finite + other.finite,
            squares: self.squares + other.squares + step * step * n * share,
        }
    }
}

/// The statistics of each tensor; none for those of a type that is not computed with.
///
/// # Errors
/// As [`stream::measure`].
pub fn stats(tensors: &[TensorView<'_>], settings: &Settings, control: Control<'_>) -> Result<Vec<Option<Stats>>> {
    let known: Vec<DType> = tensors.iter().map(|view| view.tensor.dtype).collect();
    let groups: Vec<Group<'_>> = tensors
        .iter()
        .map(|view| Group::numbers(if dtype::can_decode(view.tensor.dtype) { vec![*view] } else { Vec::new() }))
        .collect();
    let simd = Simd::detect();
    let tiles = stream::measure(&groups, settings, control, |group, inputs| {
        let dtype = known[group];
        let block = (dtype.block_bytes() as usize, dtype.block_elements() as usize);
        let (mut scratch, mut values) = ([0.0; SCRATCH], [0.0; SCRATCH]);
        inputs[0].chunks(SCRATCH / block.1 * block.0).fold(Stats::default(), |total, bytes| {
            let values = &mut values[..bytes.len() / block.0 * block.1];
            decode_f64(simd, dtype, bytes, &mut scratch, values);
            total.and(&Stats::of(values))
        })
    })?;
    let total = |tiles: Vec<Stats>| tiles.iter().fold(Stats::default(), |total, tile| total.and(tile));
    let computed = |view: &TensorView<'_>| dtype::can_decode(view.tensor.dtype);
    Ok(tensors.iter().zip(tiles).map(|(view, tiles)| computed(view).then(|| total(tiles))).collect())
}
