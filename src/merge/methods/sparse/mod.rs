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
//! Order of operations: the change in f32, what is dropped, `rescale`, the weight, the election, the sum, `normalize`,
//! λ, the base. A density of 1 or more keeps everything, outliers too, and is not rescaled; one of 0 or less keeps nothing.
//! `density + gamma` above 1 drops fewer outliers, so that the density holds. Zeros agree with neither sign; a D of 0,
//! without an election one below 1e-8, counts as 1. L1 norms below 1e-7 are not rescaled.
//!
//! What is not finite stays where it is, also where it is dropped, if anything of its model is kept; a tensor with such
//! elements is not rescaled.
//!
//! Deviations from mergekit, whose choice among elements that are equal in magnitude is the sorting's: those equal to the
//! smallest that is kept (or the largest) are all kept, as by the authors of TIES, and *rank* gives those of a row the mean
//! of their ranks, and so the same probability. Random numbers are ours. *rank* keeps rows of one element, and a tensor
//! without dimensions, with probability `density`, the middle of a row's; mergekit fails on them.
//! A negative density is refused by *random* only, as there; a negative `gamma` is refused.

mod combine;
mod ranked;
mod sieve;

use crate::error::Result;
use crate::merge::{
    ANY, About, Allowed, Base, Data, Key, Method, Parameter, Shader, Solution, Terms, Weight, select, threshold,
};
use combine::{Elected, Summed};
use ranked::{Ranked, Rows};
use sieve::{Mask, Sieve};

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
const DENSITY: Parameter =
    Parameter::per_model("density", 1.0, "the share of each change that is kept").within(Allowed::Between(0.0, 1.0));
const GAMMA: Parameter =
    Parameter::per_model("gamma", 0.01, "the share of the largest that is dropped").within(Allowed::Between(0.0, 1.0));
const EPSILON: Parameter = Parameter::per_model("epsilon", 0.15, "how far probabilities spread around the density")
    .within(Allowed::Between(0.0, 1.0));
const GLOBAL: Parameter =
    Parameter::shared("global", 0.0, "1 trims the whole model at one magnitude").within(Allowed::Switch);
const INT8_MASK: Parameter =
    Parameter::shared("int8_mask", 0.0, "has no effect; recipes carry it").within(Allowed::Switch);

const fn rescale(default: f64) -> Parameter {
    Parameter::shared("rescale", default, "1 restores the L1 norm, 2 divides by the probability")
        .within(Allowed::Whole(2))
}

const fn elect(default: f64) -> Parameter {
    Parameter::shared("elect", default, "1 elects signs by their sum, 2 by their count, 0 not at all")
        .within(Allowed::Whole(2))
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
                let (epsilon, rows) = (terms.each("epsilon")[model], Rows::of(&terms.shape));
                let by_probability = terms.get("rescale") == 2.0;
                Mask::Ranked(Ranked { key, density, epsilon, rows, by_probability })
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
        let changes = || Shader::each((0..terms.models()).map(|i| format!("x[{i}] - x[BASE$]")));
        let found = select(tensors, &wanted, changes, |block| block.subtract_base())?;
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

    fn searches(&self, terms: &Terms) -> usize {
        match self.sparsifier {
            Sparsifier::Magnitude => terms.models(),
            Sparsifier::Outliers => 2 * terms.models(),
            Sparsifier::Random | Sparsifier::Rank => 0,
        }
    }

    fn surveys(&self, terms: &Terms) -> bool {
        terms.is_on("global")
    }

    fn survey(&self, terms: &[Terms], tensors: &[Data<'_>]) -> Result<Vec<f64>> {
        let Some(terms) = terms.first() else { return Ok(Vec::new()) };
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
        let mut sieves: Vec<Sieve> =
            (0..models).map(|model| Sieve { mask: self.mask(terms, model, bounds[model]), scale: 1.0 }).collect();
        if terms.get("rescale") == 2.0 {
            // Where the probability is another for each element, it is divided by when it is known.
            let even = sieves.iter_mut().zip(terms.each("density"));
            for (sieve, density) in even.filter(|(sieve, _)| !matches!(sieve.mask, Mask::Ranked(_))) {
                sieve.scale = (1.0 / density) as f32;
            }
        } else if terms.is_on("rescale") && sieves.iter().any(|sieve| sieve.mask != Mask::All) {
            let shader = || {
                let (mut words, mut masks) = (Vec::new(), Vec::new());
                let norms = |(i, sieve): (usize, &Sieve)| {
                    let change = format!("abs(x[{i}] - x[BASE$])");
                    let kept = format!("{change} * {}", sieve.factor(i, &mut words, &mut masks));
                    [change, kept]
                };
                let norms: Vec<String> = sieves.iter().enumerate().flat_map(norms).collect();
                Shader::each(norms).words(words).masks(masks)
            };
            let norms = data.sums(2 * models, shader, |block, sums| {
                let start = block.start;
                let (changes, base) = block.split_base();
                for (i, sieve) in sieves.iter().enumerate() {
                    let norms = sieve.norms(start, &mut changes[i], base);
                    sums[2 * i] += norms[0];
                    sums[2 * i + 1] += norms[1];
                }
            })?;
            for (sieve, norms) in sieves.iter_mut().zip(norms.chunks(2)) {
                let ratio = norms[0] / norms[1];
                if norms[0] >= SMALLEST_NORM && norms[1] >= SMALLEST_NORM && ratio.is_finite() {
                    sieve.scale = ratio as f32;
                }
            }
        }
        let lambda = terms.get("lambda") as f32;
        let weights: Vec<f32> = terms.weights.iter().map(|weight| *weight as f32).collect();
        let total: f32 = weights.iter().sum();
        let divisor = if terms.normalize && total.abs() >= 1e-8 { total } else { 1.0 };
        Ok(match terms.get("elect") {
            0.0 => Solution::elementwise(Summed { sieves, weights, factor: lambda / divisor }),
            elect => Solution::elementwise(Elected {
                sieves,
                weights,
                lambda,
                normalize: terms.normalize,
                by_count: elect == 2.0,
            }),
        })
    }
}

/// L1 norms below this are left as they are.
const SMALLEST_NORM: f64 = 1e-7;
