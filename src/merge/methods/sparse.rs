//! The family of sparse task arithmetic: a table of sparsifier × sign election × defaults.
//!
//! `out = b + λ·Σ mᵢ·wᵢ·s(xᵢ − b) / D`. First s drops a share of each model's change and, with `rescale`, makes up for it;
//! then, with an election, mᵢ keeps an element only where its sign is the elected one; with `normalize`, D is the sum of
//! the weights that are left. Each step as mergekit 0.1.5 computes it, per tensor:
//!
//! - *magnitude* (TIES, Yadav et al. 2023, <https://arxiv.org/abs/2306.01708>) keeps the largest `⌊density·n⌋`, at least one.
//! - *random* (DARE, Yu et al. 2024, <https://arxiv.org/abs/2311.03099>) keeps each with probability `density`.
//! - *outliers* (Model breadcrumbs, Davari & Belilovsky 2024, <https://arxiv.org/abs/2312.06795>) drops the largest
//!   `⌊gamma·n⌋` and keeps the next `⌊density·n⌋`.
//! - *rank* (DELLA, Deep et al. 2024, <https://arxiv.org/abs/2406.11617>) keeps with a probability that grows from
//!   `density − epsilon` for the smallest of a row to `density + epsilon` for the largest. Rows run along dimension 1, or
//!   are the tensor if it has one dimension.
//!
//! The elected sign is that of `Σ wᵢ·s(xᵢ − b)`, positive where that is 0. `rescale` 1 multiplies what is left by the
//! ratio of the L1 norms before and after; 2 divides by the probability with which it was kept, as the papers of DARE and
//! DELLA do. `elect` 2 elects by the count of signs. `global` 1 trims the whole model at one magnitude, as the paper of
//! TIES does.
//!
//! Elements that are equal to the smallest that is kept are all kept, where mergekit's choice among them is the
//! sorting's. Random numbers are ours.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{
    ANY, About, Base, Block, Data, Elementwise, Key, Method, Parameter, Solution, Terms, Weight, select, threshold,
};
use std::fmt::Debug;

/// A row of the table.
#[derive(Debug)]
pub(super) struct Sparse {
    about: About,
    sparsifier: Sparsifier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sparsifier {
    Magnitude,
    Random,
    Outliers,
    Rank,
}

const LAMBDA: Parameter = Parameter::shared("lambda", 1.0, "scales the sum of all changes");
const DENSITY: Parameter = Parameter::per_model("density", 1.0, "the share of each change that is kept");
const GAMMA: Parameter = Parameter::per_model("gamma", 0.01, "the share of the largest that is dropped");
const EPSILON: Parameter = Parameter::per_model("epsilon", 0.15, "how far probabilities spread around the density");
const GLOBAL: Parameter = Parameter::shared("global", 0.0, "1 trims the whole model at one magnitude");
const INT8_MASK: Parameter = Parameter::shared("int8_mask", 0.0, "has no effect; recipes carry it");

const fn rescale(default: f64) -> Parameter {
    Parameter::shared("rescale", default, "1 restores the L1 norm, 2 divides by the probability")
}

const fn elect(default: f64) -> Parameter {
    Parameter::shared("elect", default, "1 elects signs by their sum, 2 by their count, 0 not at all")
}

const fn row(
    name: &'static str,
    what: &'static str,
    formula: &'static str,
    source: &'static str,
    normalizes: bool,
    sparsifier: Sparsifier,
    parameters: &'static [Parameter],
) -> Sparse {
    let (base, weight) = (Base::Required, Weight::One);
    let about = About { name, what, formula, source, base, models: (1, ANY), weight, normalizes, parameters };
    Sparse { about, sparsifier }
}

const TIES_PAPER: &str = "https://arxiv.org/abs/2306.01708";
const DARE_PAPER: &str = "https://arxiv.org/abs/2311.03099";
const BREADCRUMBS_PAPER: &str = "https://arxiv.org/abs/2312.06795";
const DELLA_PAPER: &str = "https://arxiv.org/abs/2406.11617";
const ELECTED: &str = "b + λ·Σ mᵢ·wᵢ·s(xᵢ − b), mᵢ where the sign is the elected one";
const ELECTED_MEAN: &str = "b + λ·Σ mᵢ·wᵢ·s(xᵢ − b) / Σ mᵢ·wᵢ, mᵢ where the sign is the elected one";
const SUMMED: &str = "b + λ·Σ wᵢ·s(xᵢ − b)";

pub(super) static TIES: Sparse = row(
    "ties",
    "the largest changes, where they agree in sign",
    ELECTED_MEAN,
    TIES_PAPER,
    true,
    Sparsifier::Magnitude,
    &[LAMBDA, DENSITY, rescale(0.0), elect(1.0), GLOBAL, INT8_MASK],
);
pub(super) static DARE_TIES: Sparse = row(
    "dare-ties",
    "random changes, made larger for those dropped, where they agree in sign",
    ELECTED,
    DARE_PAPER,
    false,
    Sparsifier::Random,
    &[LAMBDA, DENSITY, rescale(1.0), elect(1.0), INT8_MASK],
);
pub(super) static DARE_LINEAR: Sparse = row(
    "dare-linear",
    "random changes, made larger for those dropped",
    SUMMED,
    DARE_PAPER,
    false,
    Sparsifier::Random,
    &[LAMBDA, DENSITY, rescale(1.0), elect(0.0), INT8_MASK],
);
pub(super) static BREADCRUMBS: Sparse = row(
    "breadcrumbs",
    "changes without the largest and the smallest",
    SUMMED,
    BREADCRUMBS_PAPER,
    false,
    Sparsifier::Outliers,
    &[LAMBDA, DENSITY, GAMMA, rescale(0.0), elect(0.0), INT8_MASK],
);
pub(super) static BREADCRUMBS_TIES: Sparse = row(
    "breadcrumbs-ties",
    "changes without the largest and the smallest, where they agree in sign",
    ELECTED,
    BREADCRUMBS_PAPER,
    false,
    Sparsifier::Outliers,
    &[LAMBDA, DENSITY, GAMMA, rescale(0.0), elect(1.0), INT8_MASK],
);
pub(super) static DELLA: Sparse = row(
    "della",
    "random changes, larger ones more likely, where they agree in sign",
    ELECTED_MEAN,
    DELLA_PAPER,
    true,
    Sparsifier::Rank,
    &[LAMBDA, DENSITY, EPSILON, rescale(1.0), elect(1.0), INT8_MASK],
);
pub(super) static DELLA_LINEAR: Sparse = row(
    "della-linear",
    "random changes, larger ones more likely",
    SUMMED,
    DELLA_PAPER,
    false,
    Sparsifier::Rank,
    &[LAMBDA, DENSITY, EPSILON, rescale(1.0), elect(0.0), INT8_MASK],
);

/// Which elements of one model's change are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask {
    All,
    Nothing,
    /// Magnitudes from one to another, both included.
    Between(f32, f32),
    /// Those whose random number is not above the limit.
    Random(Key, u32),
    /// By rank in rows: `epsilon` around `density`.
    Rank {
        key: Key,
        density: f64,
        epsilon: f64,
    },
}

/// Rows along dimension 1, which elements of the same row are how far apart.
#[derive(Clone, Copy, Debug)]
struct Rows {
    length: usize,
    stride: usize,
}

impl Rows {
    fn of(shape: &[u64]) -> Self {
        match shape {
            [] => Self { length: 1, stride: 1 },
            [n] => Self { length: *n as usize, stride: 1 },
            [_, n, inner @ ..] => Self { length: *n as usize, stride: inner.iter().product::<u64>() as usize },
        }
    }

    /// Elements that a slice along the first dimension has.
    fn unit(self) -> usize {
        (self.length * self.stride).max(1)
    }
}

/// The mask of a model, with what its changes are multiplied with.
#[derive(Clone, Copy, Debug)]
struct Sieve {
    mask: Mask,
    /// Makes up for what is dropped, where that is one number.
    scale: f32,
    /// Whether each element is divided by its own probability.
    by_probability: bool,
    rows: Rows,
}

impl Sieve {
    /// Drops elements of a block's change.
    fn apply(&self, start: u64, change: &mut [f32]) {
        let scale = self.scale;
        match self.mask {
            Mask::All => {}
            Mask::Nothing => change.fill(0.0),
            Mask::Between(low, high) => vector::update(change, [], |x, []| {
                // What cannot be compared, NaN, is kept.
                let dropped = (x.abs() < low) | (x.abs() > high);
                if dropped { 0.0 } else { x * scale }
            }),
            Mask::Random(key, limit) => {
                let mut random = vec![0u32; change.len()];
                key.fill(start, &mut random);
                vector::run(Drop { change, random: &random, limit, scale });
            }
            Mask::Rank { key, density, epsilon } => self.by_rank(start, change, key, density, epsilon),
        }
    }

    fn by_rank(&self, start: u64, change: &mut [f32], key: Key, density: f64, epsilon: f64) {
        let Rows { length, stride } = self.rows;
        let mut random = vec![0u32; change.len()];
        key.fill(start, &mut random);
        let last = length.saturating_sub(1) as f64;
        let mut order: Vec<(u32, u32)> = Vec::with_capacity(length);
        for (slice, random) in change.chunks_mut(self.rows.unit()).zip(random.chunks(self.rows.unit())) {
            for offset in 0..stride {
                order.clear();
                let magnitude = |i: usize| slice[offset + i * stride].to_bits() & 0x7fff_ffff;
                order.extend((0..length).map(|i| (magnitude(i), i as u32)));
                order.sort_unstable();
                for (rank, (_, i)) in order.iter().enumerate() {
                    let at = offset + *i as usize * stride;
                    // A row of one element has no order: it is kept as the middle of a row is.
                    let place = if last > 0.0 { rank as f64 / last } else { 0.5 };
                    let probability = density - epsilon + 2.0 * epsilon * place;
                    let factor = if self.by_probability { (1.0 / probability) as f32 } else { self.scale };
                    let kept = u64::from(random[at]) < threshold(probability);
                    slice[at] = if kept { slice[at] * factor } else { 0.0 };
                }
            }
        }
    }
}

struct Drop<'a> {
    change: &'a mut [f32],
    random: &'a [u32],
    limit: u32,
    scale: f32,
}

impl vector::Loop for Drop<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, random) in self.change.iter_mut().zip(self.random) {
            *x = if *random <= self.limit { *x * self.scale } else { 0.0 };
        }
    }
}

impl Sparse {
    fn mask(&self, terms: &Terms, model: usize, bounds: Option<(f32, f32)>) -> Mask {
        let density = terms.each("density")[model];
        let key = Key::new(terms.seed, &terms.tensor, model);
        match (self.sparsifier, bounds) {
            _ if density >= 1.0 => Mask::All,
            (Sparsifier::Magnitude | Sparsifier::Outliers, Some((low, high))) => Mask::Between(low, high),
            (Sparsifier::Random, _) if density > 0.0 => {
                threshold(density).checked_sub(1).map_or(Mask::Nothing, |limit| Mask::Random(key, limit as u32))
            }
            (Sparsifier::Rank, _) if density > 0.0 => {
                Mask::Rank { key, density, epsilon: terms.each("epsilon")[model] }
            }
            _ => Mask::Nothing,
        }
    }

    /// The ranks, in ascending order of magnitude, of the least and the most that is kept of `n` elements.
    fn ranks(&self, terms: &Terms, model: usize, n: u64) -> Option<(u64, u64)> {
        let density = terms.each("density")[model];
        if density >= 1.0 || n == 0 {
            return None;
        }
        let kept = (density.max(0.0) * n as f64) as u64;
        match self.sparsifier {
            Sparsifier::Magnitude if density > 0.0 => Some((n - kept.max(1), n - 1)),
            Sparsifier::Outliers if kept > 0 => {
                let top = (terms.each("gamma")[model] * n as f64) as u64;
                let first = n.saturating_sub(kept).saturating_sub(top);
                Some((first, first + kept - 1))
            }
            _ => None,
        }
    }

    /// The least and the greatest magnitude that is kept of each model.
    fn bounds(&self, terms: &Terms, tensors: &[Data<'_>]) -> Result<Vec<Option<(f32, f32)>>> {
        let n = tensors.iter().map(Data::elements).sum();
        let ranks: Vec<_> = (0..terms.models()).map(|model| self.ranks(terms, model, n)).collect();
        let wanted: Vec<Vec<u64>> = ranks
            .iter()
            .map(|ranks| match (self.sparsifier, ranks) {
                (Sparsifier::Outliers, Some((low, high))) => vec![*low, *high],
                (_, Some((low, _))) => vec![*low],
                (_, None) => Vec::new(),
            })
            .collect();
        let found = select(tensors, &wanted, |block| block.subtract_base())?;
        Ok(found
            .iter()
            .map(|found| found.first().map(|low| (*low, found.get(1).copied().unwrap_or(f32::INFINITY))))
            .collect())
    }
}

impl Method for Sparse {
    fn about(&self) -> &About {
        &self.about
    }

    fn check(&self, terms: &Terms) -> Result<(), String> {
        if self.sparsifier == Sparsifier::Rank {
            for (density, epsilon) in terms.each("density").iter().zip(terms.each("epsilon")) {
                if *density > 0.0 && *density < 1.0 && (density + epsilon >= 1.0 || density - epsilon <= 0.0) {
                    return Err(format!(
                        "{} needs density − epsilon above 0 and density + epsilon below 1, not {density} and {epsilon}",
                        self.about.name
                    ));
                }
            }
        }
        Ok(())
    }

    fn unit(&self, terms: &Terms) -> u64 {
        if self.sparsifier == Sparsifier::Rank { Rows::of(&terms.shape).unit() as u64 } else { 1 }
    }

    fn surveys(&self, terms: &Terms) -> bool {
        terms.is_on("global")
    }

    fn survey(&self, terms: &Terms, tensors: &[Data<'_>]) -> Result<Vec<f64>> {
        // NaN stands for a model of which everything is kept, or nothing.
        let bounds = self.bounds(terms, tensors)?;
        Ok(bounds.into_iter().map(|bounds| bounds.map_or(f64::NAN, |(low, _)| f64::from(low))).collect())
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let models = terms.models();
        let bounds = if terms.survey.is_empty() {
            self.bounds(terms, std::slice::from_ref(data))?
        } else {
            let bound = |low: &f64| (!low.is_nan()).then_some((*low as f32, f32::INFINITY));
            terms.survey.iter().map(bound).collect()
        };
        let rows = Rows::of(&terms.shape);
        let by_probability = terms.get("rescale") == 2.0;
        let mut sieves: Vec<Sieve> = (0..models)
            .map(|model| Sieve { mask: self.mask(terms, model, bounds[model]), scale: 1.0, by_probability, rows })
            .collect();
        if by_probability {
            for (sieve, density) in sieves.iter_mut().zip(terms.each("density")) {
                sieve.scale = (1.0 / density) as f32;
            }
        } else if terms.is_on("rescale") && sieves.iter().any(|sieve| sieve.mask != Mask::All) {
            let norms = data.sums(2 * models, |block, sums| {
                block.subtract_base();
                let start = block.start;
                for (i, sieve) in sieves.iter().enumerate() {
                    let change = &mut block.inputs[i];
                    let l1 = |change: &[f32]| vector::sum([change], |[x]| f64::from(x.abs()));
                    sums[2 * i] += l1(change);
                    sieve.apply(start, change);
                    sums[2 * i + 1] += l1(change);
                }
            })?;
            for (sieve, norms) in sieves.iter_mut().zip(norms.chunks(2)) {
                if norms[0] >= SMALLEST_NORM && norms[1] >= SMALLEST_NORM {
                    sieve.scale = (norms[0] / norms[1]) as f32;
                }
            }
        }
        let lambda = terms.get("lambda") as f32;
        let weights: Vec<f32> = terms.weights.iter().map(|weight| *weight as f32).collect();
        let total: f32 = weights.iter().sum();
        let divisor = if terms.normalize && total.abs() >= 1e-8 { total } else { 1.0 };
        Ok(match terms.get("elect") {
            0.0 => Solution::of(Summed { sieves, weights, factor: lambda / divisor }),
            elect => {
                Solution::of(Elected { sieves, weights, lambda, normalize: terms.normalize, by_count: elect == 2.0 })
            }
        })
    }
}

/// L1 norms below this are left as they are.
const SMALLEST_NORM: f64 = 1e-7;

/// `b + factor·Σ wᵢ·s(xᵢ − b)`
struct Summed {
    sieves: Vec<Sieve>,
    weights: Vec<f32>,
    factor: f32,
}

impl Elementwise for Summed {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        block.subtract_base();
        let start = block.start;
        let (changes, base) = block.split_base();
        out.fill(0.0);
        for ((change, sieve), weight) in changes.iter_mut().zip(&self.sieves).zip(&self.weights) {
            sieve.apply(start, change);
            vector::update(out, [change], |sum, [x]| sum + weight * x);
        }
        let factor = self.factor;
        vector::update(out, [base], |sum, [b]| b + factor * sum);
    }
}

/// The sum of what has the elected sign.
struct Elected {
    sieves: Vec<Sieve>,
    weights: Vec<f32>,
    lambda: f32,
    normalize: bool,
    by_count: bool,
}

impl Elementwise for Elected {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        block.subtract_base();
        let start = block.start;
        let (changes, base) = block.split_base();
        let mut votes = vec![0.0; out.len()];
        for ((change, sieve), &weight) in changes.iter_mut().zip(&self.sieves).zip(&self.weights) {
            sieve.apply(start, change);
            vector::update(change, [], |x, []| weight * x);
            if self.by_count {
                vector::update(&mut votes, [change], |votes, [x]| votes + sign(x));
            } else {
                vector::update(&mut votes, [change], |votes, [x]| votes + x);
            }
        }
        let (lambda, normalize) = (self.lambda, self.normalize);
        let mut divisor = vec![0.0; out.len()];
        out.fill(0.0);
        for (change, &weight) in changes.iter().zip(&self.weights) {
            let agrees = |x: f32, votes: f32| if votes >= 0.0 { x > 0.0 } else { x < 0.0 };
            // A NaN is in the votes, and stays.
            let elected = |x: f32, votes: f32| if agrees(x, votes) { x } else { 0.0 * votes };
            vector::update(out, [change, &votes], |sum, [x, v]| sum + elected(x, v));
            if normalize {
                vector::update(&mut divisor, [change, &votes], |d, [x, v]| d + if agrees(x, v) { weight } else { 0.0 });
            }
        }
        if normalize {
            vector::update(out, [&divisor], |sum, [d]| if d == 0.0 { sum } else { sum / d });
        }
        vector::update(out, [base], |sum, [b]| b + lambda * sum);
    }
}

#[inline(always)]
fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}
