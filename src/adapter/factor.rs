//! The best product of two thin matrices for a change: a truncated singular value decomposition by random projection.
//!
//! N. Halko, P. G. Martinsson and J. A. Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
//! <https://arxiv.org/abs/0909.4061>: Q is a basis of the range of `τᵀ·Ω`, Ω of independent normal numbers, and of its powers
//! `(τᵀ·τ)^k·τᵀ·Ω`; then `τ ≈ (τ·Q)·Qᵀ`, and what is left to decompose is small. The powers before are kept, not only the
//! last (a block Krylov space: C. Musco and C. Musco 2015, <https://arxiv.org/abs/1504.05477>), since singular values of
//! fine-tuning fall off slowly; powers are added until the energy stands still. A wide τ is taken the other way round, so
//! that Q is of the smaller side; where it spans all of that, the decomposition is exact.
//!
//! τ is computed as often as it is used and never held: its rows come in tiles, which are multiplied in f32 and added up in
//! f64, in a fixed order, on all threads. What is held are the thin factors.

use crate::dtype::vector::{self, Loop};
use crate::error::{Error, Result};
use crate::merge::{Data, Key};
use faer::{Mat, Side};
use rayon::prelude::*;

/// How a change is factored.
#[derive(Clone, Copy, Debug)]
pub struct Sketch {
    /// The rank of the product.
    pub rank: u64,
    /// Columns of the projection beyond the rank.
    pub oversample: u64,
    /// The highest power of `τᵀ·τ`; fewer are taken where the energy stands still before.
    pub power: u32,
    /// What Ω follows from.
    pub seed: u64,
}

impl Sketch {
    /// Of this rank: ten columns more, as the paper advises, and as many powers as even noise needs.
    #[must_use]
    pub fn new(rank: u64) -> Self {
        Self { rank, oversample: 10, power: 20, seed: 0 }
    }
}

/// `left·right` and how much of the change it is.
pub(super) struct Factored {
    /// Rows × rank, each column times the root of its singular value.
    pub(super) left: Vec<f32>,
    /// Rank × columns, as well.
    pub(super) right: Vec<f32>,
    /// `Σ σ²` of the singular values kept: `‖left·right‖²`.
    pub(super) captured: f64,
}

/// The energy stands still when a power adds less than this share of it. Of noise, whose singular values fall off
/// slowest, about half as much is then still to be found.
const STILL: f64 = 3e-4;
/// Powers that are kept at a time: then the best vectors of all stand for them.
const BLOCKS: usize = 8;
/// A column of which less than this share is beyond a space is in it.
const NOTHING: f64 = 1e-9;
/// Elements per tile.
const TILE: u64 = 1 << 17;
/// Columns of a thin matrix that are computed together, in registers.
const LANES: usize = 16;
/// Rows that are computed together.
const GROUP: usize = 4;
/// Products that are added up in f32 before they are in f64.
const RUN: usize = 512;

/// A tall matrix, its rows padded to whole [`LANES`].
struct Thin {
    rows: usize,
    width: usize,
    stride: usize,
    values: Vec<f64>,
}

impl Thin {
    fn zeros(rows: usize, width: usize) -> Self {
        let stride = width.next_multiple_of(LANES);
        Self { rows, width, stride, values: vec![0.0; rows * stride] }
    }

    fn of(matrix: &Mat<f64>) -> Self {
        let mut thin = Self::zeros(matrix.nrows(), matrix.ncols());
        for (i, row) in thin.values.chunks_exact_mut(thin.stride).enumerate() {
            for (j, value) in row.iter_mut().take(matrix.ncols()).enumerate() {
                *value = matrix[(i, j)];
            }
        }
        thin
    }

    fn dense(&self) -> Mat<f64> {
        Mat::from_fn(self.rows, self.width, |i, j| self.values[i * self.stride + j])
    }

    fn rounded(&self) -> Vec<f32> {
        self.values.iter().map(|value| *value as f32).collect()
    }
}

/// A change as a matrix of `rows` × `columns`: what is left in input 0 of the data's blocks when the base is subtracted.
pub(super) struct Change<'d, 'a> {
    pub(super) data: &'d Data<'a>,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Change<'_, '_> {
    /// Hands out runs of whole rows, in order, with the number of the first.
    fn rows(&self, mut visit: impl FnMut(usize, &[f32])) -> Result<()> {
        let mut pending: Vec<f32> = Vec::new();
        let mut first = 0;
        self.data.fold(
            TILE,
            Vec::new,
            |part: &mut Vec<f32>, block| {
                block.subtract_base();
                part.extend_from_slice(&block.inputs[0]);
            },
            |part| {
                pending.extend(part);
                let whole = pending.len() / self.columns;
                visit(first, &pending[..whole * self.columns]);
                pending.drain(..whole * self.columns);
                first += whole;
            },
        )
    }

    /// `τ·w`
    fn times(&self, w: &Thin) -> Result<Thin> {
        let mut out = Thin::zeros(self.rows, w.width);
        let (stride, w) = (out.stride, w.rounded());
        self.rows(|first, rows| {
            let count = rows.len() / self.columns;
            let out = &mut out.values[first * stride..(first + count) * stride];
            let groups = out.par_chunks_mut(GROUP * stride).zip(rows.par_chunks(GROUP * self.columns));
            groups.for_each(|(out, rows)| {
                vector::run(Multiply { p: rows, steps: (self.columns, 1), w: &w, stride, inner: self.columns, out });
            });
        })?;
        Ok(out)
    }

    /// `τᵀ·w`
    fn transposed_times(&self, w: &Thin) -> Result<Thin> {
        let mut out = Thin::zeros(self.columns, w.width);
        let (stride, w) = (out.stride, w.rounded());
        self.rows(|first, rows| {
            let count = rows.len() / self.columns;
            let w = &w[first * stride..(first + count) * stride];
            out.values.par_chunks_mut(GROUP * stride).enumerate().with_min_len(16).for_each(|(group, out)| {
                if let Some(p) = rows.get(group * GROUP..) {
                    vector::run(Multiply { p, steps: (1, self.columns), w, stride, inner: count, out });
                }
            });
        })?;
        Ok(out)
    }

    /// The product of the sketch's rank that is nearest to the change, all but surely.
    ///
    /// # Errors
    /// As the passes over the data.
    pub(super) fn factor(&self, name: &str, sketch: &Sketch) -> Result<Factored> {
        let (smaller, larger) = (self.rows.min(self.columns), self.rows.max(self.columns));
        let tall = self.rows >= self.columns;
        let wanted = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let rank = wanted(sketch.rank).min(smaller);
        let width = wanted(sketch.rank.saturating_add(sketch.oversample)).min(smaller);
        // Into the space of the smaller side, of which the basis is, and back.
        let there = |w: &Thin| if tall { self.transposed_times(w) } else { self.times(w) };
        let back = |w: &Thin| if tall { self.times(w) } else { self.transposed_times(w) };
        let mut block = if width == smaller {
            Mat::identity(smaller, smaller)
        } else {
            there(&normal(Key::new(sketch.seed, name, 0), larger, width))?.dense().qr().compute_thin_Q()
        };
        let mut space = Space { basis: Mat::zeros(smaller, 0), image: Mat::zeros(larger, 0), gram: Mat::zeros(0, 0) };
        let mut captured = 0.0;
        for round in 0.. {
            let fresh = back(&Thin::of(&block))?;
            space.extend(&block, &fresh.dense());
            let ritz = space.ritz().ok_or_else(|| {
                Error::Recipe(format!("the singular values of the change of `{name}` cannot be found: --exclude it"))
            })?;
            let energy = ritz.energy(rank);
            let stands_still = round > 0 && energy - captured <= STILL * energy;
            captured = energy;
            if width < smaller && round < sketch.power && !stands_still {
                let next = there(&fresh)?.dense();
                if space.basis.ncols() + width > BLOCKS * width {
                    space = space.turned(&ritz, width);
                }
                block = space.orthogonal(next);
                if block.ncols() > 0 {
                    continue;
                }
            }
            // What is captured: τ·Q·V·(Q·V)ᵀ, in whichever direction τ is tall.
            let Space { basis, image, .. } = space.turned(&ritz, rank);
            let roots: Vec<f64> = ritz.values.iter().take(rank).map(|value| value.max(0.0).sqrt().sqrt()).collect();
            let root = |k: usize| if roots[k] > 0.0 { roots[k] } else { 1.0 };
            let (small, large) = (|i, k| (basis[(i, k)] * root(k)) as f32, |i, k| (image[(i, k)] / root(k)) as f32);
            let left = (0..self.rows).flat_map(|i| (0..rank).map(move |k| (i, k)));
            let right = (0..rank).flat_map(|k| (0..self.columns).map(move |j| (j, k)));
            let (left, right) = if tall {
                (left.map(|(i, k)| large(i, k)).collect(), right.map(|(j, k)| small(j, k)).collect())
            } else {
                (left.map(|(i, k)| small(i, k)).collect(), right.map(|(j, k)| large(j, k)).collect())
            };
            return Ok(Factored { left, right, captured });
        }
        Ok(Factored { left: Vec::new(), right: Vec::new(), captured })
    }
}

/// An orthonormal basis, what τ makes of it, and the inner products of that.
struct Space {
    basis: Mat<f64>,
    image: Mat<f64>,
    gram: Mat<f64>,
}

/// The eigenvalues of a [`Space`]'s inner products, which are squared singular values, and vectors; largest first.
struct Ritz {
    values: Vec<f64>,
    vectors: Mat<f64>,
}

impl Ritz {
    fn energy(&self, rank: usize) -> f64 {
        self.values.iter().take(rank).map(|value| value.max(0.0)).sum()
    }
}

impl Space {
    fn extend(&mut self, block: &Mat<f64>, fresh: &Mat<f64>) {
        let cross = self.image.transpose() * fresh;
        let own = fresh.transpose() * fresh;
        let (old, all) = (self.gram.nrows(), self.gram.nrows() + own.nrows());
        self.gram = Mat::from_fn(all, all, |i, j| match (i < old, j < old) {
            (true, true) => self.gram[(i, j)],
            (true, false) => cross[(i, j - old)],
            (false, true) => cross[(j, i - old)],
            (false, false) => own[(i - old, j - old)],
        });
        self.basis = beside(&self.basis, block);
        self.image = beside(&self.image, fresh);
    }

    fn ritz(&self) -> Option<Ritz> {
        let eigen = self.gram.self_adjoint_eigen(Side::Lower).ok()?;
        let (values, vectors) = (eigen.S().column_vector(), eigen.U());
        let last = self.gram.nrows().checked_sub(1)?;
        Some(Ritz {
            values: (0..=last).map(|k| values[last - k]).collect(),
            vectors: Mat::from_fn(last + 1, last + 1, |i, k| vectors[(i, last - k)]),
        })
    }

    /// The space of the `width` largest vectors.
    fn turned(&self, ritz: &Ritz, width: usize) -> Self {
        let vectors = ritz.vectors.subcols(0, width);
        let gram = Mat::from_fn(width, width, |i, j| if i == j { ritz.values[i] } else { 0.0 });
        Self { basis: &self.basis * vectors, image: &self.image * vectors, gram }
    }

    /// An orthonormal basis of what some columns have beyond the space; those that have nothing are dropped.
    fn orthogonal(&self, columns: Mat<f64>) -> Mat<f64> {
        let beyond = |columns: &Mat<f64>| columns - &self.basis * (self.basis.transpose() * columns);
        let rest = beyond(&columns);
        let own: Vec<usize> = (0..columns.ncols())
            .filter(|&j| rest.col(j).norm_l2() > NOTHING * columns.col(j).norm_l2())
            .take(self.basis.nrows() - self.basis.ncols())
            .collect();
        let rest = Mat::from_fn(rest.nrows(), own.len(), |i, j| rest[(i, own[j])]);
        if own.is_empty() {
            return rest;
        }
        // Again, as the first time takes away most of the digits of what is nearly in the space.
        beyond(&rest.qr().compute_thin_Q()).qr().compute_thin_Q()
    }
}

fn beside(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(b.nrows(), a.ncols() + b.ncols(), |i, j| if j < a.ncols() { a[(i, j)] } else { b[(i, j - a.ncols())] })
}

/// Independent normal numbers, by Box and Muller's method (1958).
fn normal(key: Key, rows: usize, width: usize) -> Thin {
    let mut thin = Thin::zeros(rows, width);
    let mut draws = vec![0; 2 * width];
    for (i, row) in thin.values.chunks_exact_mut(thin.stride).enumerate() {
        key.fill((i * draws.len()) as u64, &mut draws);
        for (value, pair) in row.iter_mut().zip(draws.as_chunks().0) {
            // In (0, 1], so that there is a logarithm.
            let [u, v] = pair.map(|draw: u32| (f64::from(draw) + 1.0) / 4_294_967_296.0);
            *value = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        }
    }
    thin
}

/// `out[i] += Σ_k p[i·a + k·b]·w[k]` for the rows of `out`, which are at most [`GROUP`] of `stride` numbers; (a, b) are the
/// steps.
struct Multiply<'a> {
    p: &'a [f32],
    steps: (usize, usize),
    w: &'a [f32],
    stride: usize,
    inner: usize,
    out: &'a mut [f64],
}

impl Loop for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.out.len() == GROUP * self.stride {
            self.group::<GROUP>(0);
        } else {
            let rows = self.out.len() / self.stride;
            let Self { p, steps, w, stride, inner, out } = self;
            for row in 0..rows {
                let out = &mut out[row * stride..(row + 1) * stride];
                Multiply { p, steps, w, stride, inner, out }.group::<1>(row);
            }
        }
    }
}

impl Multiply<'_> {
    /// `N` rows, of which the first is number `first` of `p`.
    #[inline(always)]
    fn group<const N: usize>(self, first: usize) {
        let Self { p, steps: (a, b), w, stride, inner, out } = self;
        for from in (0..inner).step_by(RUN) {
            let to = inner.min(from + RUN);
            for lane in (0..stride).step_by(LANES) {
                let mut sums = [[0.0f32; LANES]; N];
                for k in from..to {
                    let w = &w[k * stride + lane..][..LANES];
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let p = p[(first + i) * a + k * b];
                        for (sum, w) in sums.iter_mut().zip(w) {
                            *sum += p * w;
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate() {
                    let out = &mut out[i * stride + lane..][..LANES];
                    for (out, sum) in out.iter_mut().zip(sums) {
                        *out += f64::from(*sum);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_products() {
        for (rows, inner, stride) in [(4, 700, 32), (3, 5, 16), (1, 1, 16)] {
            let p: Vec<f32> = (0..rows * inner).map(|i| (i as f32 * 0.37).sin()).collect();
            let w: Vec<f32> = (0..inner * stride).map(|i| (i as f32 * 0.11).cos()).collect();
            for turned in [false, true] {
                let steps = if turned { (1, rows) } else { (inner, 1) };
                let mut out = vec![1.0; rows * stride];
                vector::run(Multiply { p: &p, steps, w: &w, stride, inner, out: &mut out });
                for (i, out) in out.iter().enumerate() {
                    let (row, lane) = (i / stride, i % stride);
                    let at = |k: usize| f64::from(p[row * steps.0 + k * steps.1]) * f64::from(w[k * stride + lane]);
                    let expected = 1.0 + (0..inner).map(at).sum::<f64>();
                    assert!((out - expected).abs() < 1e-4, "{rows} {inner} {turned} {i}: {out} against {expected}");
                }
            }
        }
    }

    #[test]
    fn normal_numbers_are_normal() {
        let thin = normal(Key::new(1, "w", 0), 400, 50);
        let values: Vec<f64> = thin.values.chunks(thin.stride).flat_map(|row| &row[..50]).copied().collect();
        let n = values.len() as f64;
        let moment = |power: i32| values.iter().map(|value| value.powi(power)).sum::<f64>() / n;
        // Five standard deviations of each moment's estimate.
        assert!(moment(1).abs() < 5.0 / n.sqrt() && (moment(2) - 1.0).abs() < 5.0 * (2.0 / n).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * (96.0 / n).sqrt());
    }
}
