//! Select, calculate, erase: `out = b + Σ mᵢ·vᵢ·dᵢ / max(Σ mᵢ·vᵢ, 1e-6)` with `dᵢ = xᵢ − b` where it was selected, else 0.
//!
//! Wan et al. 2024 (FuseChat), <https://arxiv.org/abs/2408.07990>, per tensor as mergekit 0.1.5 computes it:
//!
//! - *select*, if `select_topk` is below 1: of the elements whose changes differ between the models, the share of those
//!   with the largest variance over the models (of the population); nothing of one model alone.
//! - *calculate*: `vᵢ = mean(dᵢ²) / Σⱼ mean(dⱼ²)`, over all elements; the same for all models where the sum is below 1e-6.
//! - *erase*: mᵢ is 1 where the sign of dᵢ is that of `Σ dⱼ` (positive where that is 0), else 0; zeros agree with neither.
//!
//! Elements whose variance equals the least that is selected are all selected, where mergekit's choice among them is the
//! sorting's. What is not finite in an input makes the weights, and so the tensor, NaN.

use crate::dtype::vector::{self, Loop};
use crate::error::Result;
use crate::merge::{ANY, About, Allowed, Base, Block, Data, Elementwise, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct Sce;

const ABOUT: About = About {
    name: "sce",
    what: "changes that differ most between the models, weighted by their squares, where they agree in sign",
    formula: "b + Σ mᵢ·vᵢ·(xᵢ − b) / Σ mᵢ·vᵢ, vᵢ = ‖xᵢ − b‖²/Σ ‖xⱼ − b‖², mᵢ where selected and the sign is the elected one",
    source: "https://arxiv.org/abs/2408.07990",
    base: Base::Required,
    models: (1, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("select_topk", 1.0, "the share of elements that is selected, by variance")
            .within(Allowed::Between(0.0, 1.0)),
        Parameter::shared("int8_mask", 0.0, "has no effect; recipes carry it").within(Allowed::Switch),
    ],
};

/// Sums of mean squares below this weigh all models the same, and sums of weights below it count as it.
const SMALLEST: f64 = 1e-6;
/// Elements that are computed side by side.
const CHUNK: usize = 64;

/// The variance of several vectors' elements.
struct Variance<'a> {
    values: &'a [Vec<f32>],
    out: &'a mut [f32],
}

impl Loop for Variance<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Some(first) = self.values.first() else { return };
        let count = self.values.len() as f64;
        for (chunk, out) in self.out.chunks_mut(CHUNK).enumerate() {
            let part = chunk * CHUNK..chunk * CHUNK + out.len();
            let (mut mean, mut sum) = ([0.0; CHUNK], [0.0; CHUNK]);
            // Around the first, so that equal values have no variance at all.
            let first = &first[part.clone()];
            for values in self.values {
                for ((mean, x), first) in mean.iter_mut().zip(&values[part.clone()]).zip(first) {
                    *mean += (f64::from(*x) - f64::from(*first)) / count;
                }
            }
            for values in self.values {
                for (((sum, mean), x), first) in sum.iter_mut().zip(&mean).zip(&values[part.clone()]).zip(first) {
                    let distance = f64::from(*x) - f64::from(*first) - mean;
                    *sum += distance * distance;
                }
            }
            out.iter_mut().zip(&sum).for_each(|(out, sum)| *out = (sum / count) as f32);
        }
    }
}

/// Turns a block into the models' changes, and zeros where they are not selected: where the variance is below `least`.
fn select(block: &mut Block<'_>, least: Option<f32>) {
    block.subtract_base();
    let Some(least) = least else { return };
    let (changes, _) = block.split_base();
    let mut variance = vec![0.0; changes.first().map_or(0, Vec::len)];
    vector::run(Variance { values: changes, out: &mut variance });
    for change in changes {
        vector::update(change, [&variance], |x, [variance]| if variance < least { 0.0 * x } else { x });
    }
}

/// The least variance that is selected; none if nothing is.
fn least_variance(share: f64, data: &Data<'_>) -> Result<Option<f32>> {
    let variance = |block: &mut Block<'_>| {
        block.subtract_base();
        let mut variance = vec![0.0; block.length()];
        let (changes, _) = block.split_base();
        vector::run(Variance { values: changes, out: &mut variance });
        block.inputs[0].copy_from_slice(&variance);
    };
    let differing = data.sums(1, |block, sums| {
        variance(block);
        sums[0] += vector::sum([&block.inputs[0]], |[x]| if x == 0.0 { 0.0 } else { 1.0 });
    })?;
    let count = (differing[0] * share.max(0.0)) as u64;
    if count == 0 {
        return Ok(None);
    }
    let found = data.select(&[vec![data.elements() - count]], variance)?;
    Ok(found.into_iter().flatten().next())
}

impl Method for Sce {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn searches(&self, _terms: &Terms) -> usize {
        1
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let models = terms.models();
        let share = terms.get("select_topk");
        let mut least = None;
        if share < 1.0 {
            least = least_variance(share, data)?;
            if least.is_none() {
                return Ok(Solution::around_base(vec![0.0; models]));
            }
        }
        let squares = data.sums(models, |block, sums| {
            select(block, least);
            for (sum, change) in sums.iter_mut().zip(&*block.inputs) {
                *sum += vector::dot(change, change);
            }
        })?;
        let total = squares.iter().sum::<f64>() / data.elements().max(1) as f64;
        let weight = |square: &f64| match total {
            small if small < SMALLEST => 1.0 / models as f64,
            total => square / data.elements().max(1) as f64 / total,
        };
        Ok(Solution::of(Erased { least, weights: squares.iter().map(|square| weight(square) as f32).collect() }))
    }
}

/// The weighted mean of what has the elected sign.
struct Erased {
    least: Option<f32>,
    weights: Vec<f32>,
}

impl Elementwise for Erased {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        select(block, self.least);
        let (changes, base) = block.split_base();
        let mut votes = vec![0.0; out.len()];
        for change in &*changes {
            vector::update(&mut votes, [change], |votes, [x]| votes + x);
        }
        let mut divisor = vec![0.0; out.len()];
        out.fill(0.0);
        for (change, &weight) in changes.iter().zip(&self.weights) {
            let agrees = |x: f32, votes: f32| if votes >= 0.0 { x > 0.0 } else { x < 0.0 };
            let weight = |x: f32, votes: f32| if agrees(x, votes) { weight } else { 0.0 * weight };
            vector::update(out, [change, &votes], |sum, [x, votes]| sum + x * weight(x, votes));
            vector::update(&mut divisor, [change, &votes], |sum, [x, votes]| sum + weight(x, votes));
        }
        vector::update(out, [base, &divisor], |sum, [b, divisor]| b + sum / divisor.max(SMALLEST as f32));
    }
}
