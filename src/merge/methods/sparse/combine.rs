//! Sums of changes that are left, with and without an election.

use super::sieve::Sieve;
use crate::dtype::vector::{self, Loop};
use crate::merge::{Block, Elementwise};

/// `b + factor·Σ wᵢ·s(xᵢ − b)`
pub(super) struct Summed {
    pub(super) sieves: Vec<Sieve>,
    pub(super) weights: Vec<f32>,
    pub(super) factor: f32,
}

impl Elementwise for Summed {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        let start = block.start;
        let (changes, base) = block.split_base();
        out.fill(0.0);
        for ((change, sieve), weight) in changes.iter_mut().zip(&self.sieves).zip(&self.weights) {
            sieve.add(start, change, base, *weight, out);
        }
        let factor = self.factor;
        vector::update(out, [base], move |sum, [b]| b + factor * sum);
    }
}

/// The sum of what has the elected sign.
pub(super) struct Elected {
    pub(super) sieves: Vec<Sieve>,
    pub(super) weights: Vec<f32>,
    pub(super) lambda: f32,
    pub(super) normalize: bool,
    pub(super) by_count: bool,
}

impl Elementwise for Elected {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        let start = block.start;
        let (changes, base) = block.split_base();
        for ((change, sieve), weight) in changes.iter_mut().zip(&self.sieves).zip(&self.weights) {
            sieve.apply(start, change, base, *weight);
        }
        vector::run(Elect { elected: self, changes, base, out });
    }
}

/// Elements elected side by side.
const LANES: usize = 16;

struct Elect<'a> {
    elected: &'a Elected,
    changes: &'a [Vec<f32>],
    base: &'a [f32],
    out: &'a mut [f32],
}

impl Elect<'_> {
    /// As many elements as `out` has, of the changes in lanes of the same width with their weights.
    #[inline(always)]
    fn lanes<'c, const N: usize>(
        elected: &Elected,
        changes: impl Iterator<Item = (&'c [f32; N], f32)> + Clone,
        base: &[f32; N],
        out: &mut [f32; N],
    ) {
        let mut votes = [0.0; N];
        for (change, _) in changes.clone() {
            if elected.by_count {
                for i in 0..N {
                    votes[i] += if change[i] == 0.0 { 0.0 } else { 1f32.copysign(change[i]) };
                }
            } else {
                for i in 0..N {
                    votes[i] += change[i];
                }
            }
        }
        let sign = votes.map(|vote| if vote >= 0.0 { 1.0 } else { -1.0 });
        let (mut sum, mut divisor) = ([0.0; N], [0.0; N]);
        for (change, weight) in changes {
            for i in 0..N {
                let agrees = if change[i] * sign[i] > 0.0 { 1.0 } else { 0.0 };
                // What is not a number stays.
                sum[i] += change[i] * agrees;
                divisor[i] += weight * agrees;
            }
        }
        let lambda = elected.lambda;
        if elected.normalize {
            for i in 0..N {
                sum[i] /= if divisor[i] == 0.0 { 1.0 } else { divisor[i] };
            }
        }
        for i in 0..N {
            out[i] = base[i] + lambda * sum[i];
        }
    }
}

impl Loop for Elect<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { elected, changes, base, out } = self;
        let changes: Vec<_> = changes.iter().map(|change| change.as_chunks::<LANES>()).collect();
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let (base, base_rest) = base.as_chunks::<LANES>();
        let weights = || elected.weights.iter().copied();
        for (index, (base, out)) in base.iter().zip(chunks).enumerate() {
            let lanes = changes.iter().map(|(chunks, _)| &chunks[index]).zip(weights());
            Self::lanes(elected, lanes, base, out);
        }
        for (index, (base, out)) in base_rest.iter().zip(rest).enumerate() {
            let lanes = changes.iter().map(|(_, rest)| std::array::from_ref(&rest[index])).zip(weights());
            Self::lanes(elected, lanes, &[*base], std::array::from_mut(out));
        }
    }
}
