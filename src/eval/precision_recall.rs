//! Precision and recall of generated images (Kynkäänniemi et al. 2019, <https://arxiv.org/abs/1904.06991>).
//!
//! A set's manifold is the union of balls about its features, each reaching to the k-th nearest other feature of the
//! set, k = 3. Precision is the share of generated features within the real ones' manifold, recall the share of real
//! features within the generated ones'.
//!
//! Squared distances are `‖x‖² + ‖y‖² − 2·x·y` in f64, a product of matrices, where cancellation leaves an error of
//! about 1e-15 of the norms. A comparison closer than that is decided by `Σ(xᵢ − yᵢ)²` itself, so that features that
//! occur several times, at distances of exactly 0, are told right.

use super::features::Features;
use super::matrix::{Shape, product};
use crate::error::{Error, Result};
use crate::stream::Control;
use faer::MatRef;
use rayon::prelude::*;

/// The neighbour that a ball reaches to.
pub const NEIGHBOURS: usize = 3;
/// Features whose distances to all others are held at a time.
const BLOCK: usize = 256;
/// What the product form may be wrong by, relative to the norms.
const ERROR: f64 = 1e-12;

/// The two shares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PrecisionRecall {
    /// Of the generated features, how many are like real ones.
    pub precision: f64,
    /// Of the real features, how many the generated ones reach.
    pub recall: f64,
}

/// Precision and recall of `generated` with respect to `real`, on all threads of the current rayon pool. Progress
/// counts features, four times in all: twice those of each set.
///
/// # Errors
/// [`Error::Recipe`] if they are not of one extractor, fewer than four or not finite; [`Error::Interrupted`] on request.
pub fn precision_recall(real: &Features, generated: &Features, control: Control<'_>) -> Result<PrecisionRecall> {
    real.of_what().check_same(generated.of_what())?;
    let (real, generated) = (Points::new(real)?, Points::new(generated)?);
    let (real_radii, generated_radii) = (real.radii(control)?, generated.radii(control)?);
    let precision = generated.share_within(&real, &real_radii, control)?;
    let recall = real.share_within(&generated, &generated_radii, control)?;
    Ok(PrecisionRecall { precision, recall })
}

/// Features with their squared norms.
struct Points<'a> {
    features: &'a Features,
    norms: Vec<f64>,
}

impl<'a> Points<'a> {
    fn new(features: &'a Features) -> Result<Self> {
        features.check_finite()?;
        if features.count() <= NEIGHBOURS {
            let least = NEIGHBOURS + 1;
            let message = format!("{} has {} images, but precision and recall take", features.origin, features.count());
            return Err(Error::Recipe(format!("{message} {least} at least; give more")));
        }
        let norm = |row: &[f32]| row.iter().map(|&value| f64::from(value).powi(2)).sum();
        let norms = features.values.chunks_exact(features.dimension).map(norm).collect();
        Ok(Self { features, norms })
    }

    fn count(&self) -> usize {
        self.norms.len()
    }

    /// `Σ(xᵢ − yᵢ)²` of a feature of each.
    fn exactly(&self, index: usize, other: &Self, of_other: usize) -> f64 {
        let pairs = self.features.row(index).iter().zip(other.features.row(of_other));
        pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
    }

    /// Asks `each` about every feature, with its squared distances to all of `others` and what each may be wrong by.
    fn each_of<T: Send>(
        &self,
        others: &Self,
        control: Control<'_>,
        each: impl Fn(usize, &[(f64, f64)]) -> T + Sync,
    ) -> Result<Vec<T>> {
        let (d, all) = (self.features.dimension, others.count());
        let block = |start: usize| {
            control.check()?;
            let rows: Vec<usize> = (start..self.count().min(start + BLOCK)).collect();
            let own = self.features.rows(&rows);
            let own = MatRef::from_row_major_slice(&own, rows.len(), d);
            // Column by column those of a feature.
            let mut products = vec![0.0; all * rows.len()];
            for first in (0..all).step_by(BLOCK) {
                let numbers: Vec<usize> = (first..all.min(first + BLOCK)).collect();
                let theirs = others.features.rows(&numbers);
                let theirs = MatRef::from_row_major_slice(&theirs, numbers.len(), d);
                let mut part = vec![0.0; numbers.len() * rows.len()];
                product(&mut part, false, theirs, own.transpose(), Shape::Full);
                for (column, part) in products.chunks_exact_mut(all).zip(part.chunks_exact(numbers.len())) {
                    column.iter_mut().skip(first).zip(part).for_each(|(place, value)| *place = *value);
                }
            }
            let results = rows.iter().zip(products.chunks_exact(all)).map(|(&row, products)| {
                let norm = self.norms.get(row).copied().unwrap_or_default();
                let distance =
                    |(product, other): (&f64, &f64)| ((norm + other - 2.0 * product).max(0.0), ERROR * (norm + other));
                each(row, &products.iter().zip(&others.norms).map(distance).collect::<Vec<_>>())
            });
            let results: Vec<T> = results.collect();
            (control.progress)(rows.len() as u64);
            Ok(results)
        };
        let starts: Vec<usize> = (0..self.count()).step_by(BLOCK).collect();
        let blocks: Vec<Vec<T>> = starts.into_par_iter().map(block).collect::<Result<_>>()?;
        Ok(blocks.into_iter().flatten().collect())
    }

    /// The squared distance of each feature's k-th nearest other one.
    fn radii(&self, control: Control<'_>) -> Result<Vec<f64>> {
        self.each_of(self, control, |index, distances| {
            let mut others: Vec<(usize, (f64, f64))> =
                distances.iter().copied().enumerate().filter(|(other, _)| *other != index).collect();
            others.select_nth_unstable_by(NEIGHBOURS - 1, |(_, a), (_, b)| a.0.total_cmp(&b.0));
            let (kth, error) = others.get(NEIGHBOURS - 1).map_or((0.0, 0.0), |(_, distance)| *distance);
            // All that could be among the nearest, measured again.
            let near = others.iter().filter(|(_, (distance, own))| *distance <= kth + error + own);
            let mut exact: Vec<f64> = near.map(|(other, _)| self.exactly(index, self, *other)).collect();
            exact.sort_by(f64::total_cmp);
            exact.get(NEIGHBOURS - 1).copied().unwrap_or(kth)
        })
    }

    /// Which share of these features lies within a ball about one of `centres`.
    fn share_within(&self, centres: &Self, radii: &[f64], control: Control<'_>) -> Result<f64> {
        let within = self.each_of(centres, control, |index, distances| {
            let mut balls = distances.iter().zip(radii).enumerate();
            balls.any(|(centre, (&(distance, error), &radius))| {
                distance + error < radius
                    || distance - error <= radius && self.exactly(index, centres, centre) <= radius
            })
        })?;
        Ok(within.iter().filter(|&&within| within).count() as f64 / self.count() as f64)
    }
}
