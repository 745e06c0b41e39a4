//! The Fréchet distance of two normal distributions, which of Inception's features is FID (Heusel et al. 2017,
//! <https://arxiv.org/abs/1706.08500>; Dowson and Landau 1982):
//!
//! ```text
//! d² = ‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2·tr √(Σ₁Σ₂)
//! ```
//!
//! `Σ₁Σ₂` has the eigenvalues of the symmetric `LᵀΣ₂L` with `Σ₁ = L·Lᵀ`, so the last trace is the sum of their roots: no
//! root of a matrix is taken, nothing is imaginary, and a singular covariance needs nothing added to it. `L` is the
//! reference's, computed once. Of fewer features than numbers in one, `Σ₂ = Yᵀ·Y` with a row for each feature, and the
//! same eigenvalues are those of `Y·Σ₁·Yᵀ`, which is smaller.

use super::features::Features;
use super::matrix::{Shape, product, sum_of_roots};
use super::statistics::Statistics;
use crate::error::{Error, Result};
use crate::stream::decompose_in_one_order;
use faer::{Mat, MatRef, Side};
use std::sync::OnceLock;

/// An eigenvalue below this share of the largest one is no rounding, but the matrix no covariance.
const NEGATIVE: f64 = -1e-3;

/// The distribution that others are compared with; what is computed of it alone is computed once.
#[derive(Debug)]
pub struct Reference {
    statistics: Statistics,
    factor: OnceLock<Option<Factor>>,
}

/// `L` with `Σ = L·Lᵀ`: lower triangular, or of any form with fewer columns.
#[derive(Debug)]
struct Factor {
    matrix: Mat<f64>,
    is_lower: bool,
}

impl Reference {
    /// Of this distribution.
    #[must_use]
    pub fn new(statistics: Statistics) -> Self {
        Self { statistics, factor: OnceLock::new() }
    }

    /// The distribution.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// The distance of another distribution, on all threads of the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Recipe`] if it is of other features, or one of the two has no covariance.
    pub fn distance(&self, other: &Statistics) -> Result<f64> {
        self.statistics.of_what().check_same(other.of_what())?;
        let factor = self.factor()?;
        let (d, rank) = (other.dimension, factor.matrix.ncols());
        let (right, left) =
            if factor.is_lower { (Shape::RightLower, Shape::LowerLeftUpper) } else { (Shape::Full, Shape::Lower) };
        let mut half = vec![0.0; d * rank];
        product(&mut half, false, other.matrix(), factor.matrix.as_ref(), right);
        let half = MatRef::from_column_major_slice(&half, d, rank);
        let mut square = vec![0.0; rank * rank];
        product(&mut square, false, factor.matrix.transpose(), half, left);
        let most = other.count.map_or(usize::MAX, |count| usize::try_from(count - 1).unwrap_or(usize::MAX));
        let roots = self.roots(&square, rank, most, &other.origin)?;
        Ok(self.sum(&other.mean, other.trace(), roots))
    }

    /// The distance of features: their distribution's, but by the smaller of the two forms.
    ///
    /// # Errors
    /// As [`Self::distance`]; [`Error::Recipe`] if there are fewer than two.
    pub fn distance_of(&self, features: &Features) -> Result<f64> {
        let (n, d) = (features.count(), features.dimension);
        if n >= d || n < 2 {
            return self.distance(&Statistics::of(features)?);
        }
        self.statistics.of_what().check_same(features.of_what())?;
        let (mean, rows) = features.centred()?;
        let scale = ((n - 1) as f64).sqrt().recip();
        let rows: Vec<f64> = rows.into_iter().map(|value| scale * value).collect();
        let trace = rows.iter().map(|value| value * value).sum();
        // Row by row, so column by column the transpose.
        let transposed = MatRef::from_column_major_slice(&rows, d, n);
        let mut half = vec![0.0; d * n];
        product(&mut half, false, self.statistics.matrix(), transposed, Shape::Full);
        let half = MatRef::from_column_major_slice(&half, d, n);
        let mut square = vec![0.0; n * n];
        product(&mut square, false, transposed.transpose(), half, Shape::Lower);
        // The rows sum to zero.
        let roots = self.roots(&square, n, n - 1, &features.origin)?;
        Ok(self.sum(&mean, trace, roots))
    }

    /// The sum of the roots of eigenvalues, of which at most `rank` are not zero.
    fn roots(&self, square: &[f64], n: usize, rank: usize, origin: &str) -> Result<f64> {
        let own = &self.statistics;
        let known = own.count.map_or(usize::MAX, |count| usize::try_from(count - 1).unwrap_or(usize::MAX));
        let (sum, least) = sum_of_roots(square, n, rank.min(known)).ok_or_else(|| {
            Error::Recipe(format!("the eigenvalues of {} and {origin} together do not converge", own.origin))
        })?;
        if least < NEGATIVE { Err(no_covariance(origin)) } else { Ok(sum) }
    }

    /// The distance, of the parts of its formula. Rounding below zero is zero.
    fn sum(&self, mean: &[f64], trace: f64, roots: f64) -> f64 {
        let means: f64 = self.statistics.mean.iter().zip(mean).map(|(a, b)| (a - b) * (a - b)).sum();
        (means + self.statistics.trace() + trace - 2.0 * roots).max(0.0)
    }

    fn factor(&self) -> Result<&Factor> {
        let own = &self.statistics;
        self.factor.get_or_init(|| factor(own)).as_ref().ok_or_else(|| no_covariance(&own.origin))
    }
}

fn no_covariance(origin: &str) -> Error {
    Error::Recipe(format!(
        "the covariance of {origin} has negative eigenvalues, so it is none; compute the statistics again"
    ))
}

/// By Cholesky's factorisation, or of a covariance that is singular by its eigenvalues, without those that are zero.
fn factor(of: &Statistics) -> Option<Factor> {
    decompose_in_one_order();
    let (d, matrix) = (of.dimension, of.matrix());
    let zero = d as f64 * f64::EPSILON;
    let rank = of.count.map_or(d, |count| usize::try_from(count - 1).unwrap_or(d).min(d));
    if rank == d
        && let Ok(cholesky) = matrix.llt(Side::Lower)
    {
        let lower = cholesky.L();
        let squares = (0..d).map(|i| lower[(i, i)] * lower[(i, i)]);
        let (least, most) = squares.fold((f64::INFINITY, 0.0), |(least, most), x| (x.min(least), x.max(most)));
        if least > zero * most {
            return Some(Factor { matrix: lower.to_owned(), is_lower: true });
        }
    }
    let eigen = matrix.self_adjoint_eigen(Side::Lower).ok()?;
    let (values, vectors) = (eigen.S().column_vector(), eigen.U());
    // In ascending order.
    let most = values.iter().copied().fold(0.0, f64::max);
    if values.iter().any(|&value| value < NEGATIVE * most) {
        return None;
    }
    let kept: Vec<usize> = (d - rank..d).filter(|&i| values[i] > zero * most).collect();
    let matrix = Mat::from_fn(d, kept.len(), |row, column| {
        let index = kept[column];
        vectors[(row, index)] * values[index].sqrt()
    });
    Some(Factor { matrix, is_lower: false })
}
