//! The kernel distance KID (Bińkowski et al. 2018, <https://arxiv.org/abs/1801.01401>): the squared maximum mean
//! discrepancy under the kernel `k(x, y) = (x·y/d + 1)³`, estimated without bias on random subsets of m features of
//! each set and averaged:
//!
//! ```text
//! Σ_{i≠j} k(xᵢ,xⱼ)/(m(m−1)) + Σ_{i≠j} k(yᵢ,yⱼ)/(m(m−1)) − 2·Σ_{ij} k(xᵢ,yⱼ)/m²
//! ```
//!
//! That is clean-fid's `kernel_distance` and torch-fidelity's `polynomial_mmd`, both with 100 subsets of 1000; like
//! clean-fid's, subsets are no larger than the smaller set. Which features are in a subset is a function of the seed.

use super::features::Features;
use super::matrix::{Shape, product};
use super::random::sample;
use crate::error::{Error, Result};
use crate::stream::Control;
use faer::MatRef;
use rayon::prelude::*;

/// Subsets.
pub const KID_SUBSETS: usize = 100;
/// The most features of one.
const SIZE: usize = 1000;

/// The distance over all subsets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kid {
    /// The mean.
    pub mean: f64,
    /// The population's standard deviation, as torch-fidelity has it.
    pub deviation: f64,
    /// How many subsets.
    pub subsets: usize,
    /// Features in each.
    pub size: usize,
}

/// The kernel distance of two sets of features, on all threads of the current rayon pool. Progress counts subsets.
///
/// # Errors
/// [`Error::Recipe`] if they are not of one extractor, fewer than two or not finite; [`Error::Interrupted`] on request.
pub fn kid(a: &Features, b: &Features, seed: u64, control: Control<'_>) -> Result<Kid> {
    a.of_what().check_same(b.of_what())?;
    a.check_finite()?;
    b.check_finite()?;
    let size = SIZE.min(a.count()).min(b.count());
    if size < 2 {
        let least = if a.count() < b.count() { a } else { b };
        return Err(Error::Recipe(format!("{} has fewer than the two images that KID takes; give more", least.origin)));
    }
    let subset = |draw: usize| {
        control.check()?;
        let chosen = |name: &str, features: &Features| features.rows(&sample(seed, name, draw, features.count(), size));
        let distance = discrepancy(&chosen("kid a", a), &chosen("kid b", b), a.dimension);
        (control.progress)(1);
        Ok(distance)
    };
    let distances: Vec<f64> = (0..KID_SUBSETS).into_par_iter().map(subset).collect::<Result<_>>()?;
    let mean = distances.iter().sum::<f64>() / KID_SUBSETS as f64;
    let variance = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / KID_SUBSETS as f64;
    Ok(Kid { mean, deviation: variance.sqrt(), subsets: KID_SUBSETS, size })
}

/// The unbiased estimate of two sets of equally many rows of `d` numbers.
fn discrepancy(a: &[f64], b: &[f64], d: usize) -> f64 {
    let m = a.len() / d;
    let (a, b) = (MatRef::from_row_major_slice(a, m, d), MatRef::from_row_major_slice(b, m, d));
    let mut square = vec![0.0; m * m];
    let kernel = |product: f64| {
        let value = product / d as f64 + 1.0;
        value * value * value
    };
    // Of a symmetric matrix without its diagonal, twice what is below it.
    let mut within = |rows: MatRef<'_, f64>| {
        product(&mut square, false, rows, rows.transpose(), Shape::Lower);
        let columns = square.chunks_exact(m).enumerate();
        2.0 * columns.map(|(i, column)| column.iter().skip(i + 1).copied().map(kernel).sum::<f64>()).sum::<f64>()
    };
    let own = within(a) + within(b);
    product(&mut square, false, a, b.transpose(), Shape::Full);
    let between: f64 = square.chunks_exact(m).map(|column| column.iter().copied().map(kernel).sum::<f64>()).sum();
    let m = m as f64;
    own / (m * (m - 1.0)) - 2.0 * between / (m * m)
}
