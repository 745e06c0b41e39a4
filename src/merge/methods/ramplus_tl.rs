//! Reinforced agent merging that makes up for what sharing dilutes: as `ram`, with the changes that model i alone made
//! multiplied by `λᵢ = 1 + r·min(alpha, shared / max(unique, epsilon))`.
//!
//! <https://arxiv.org/abs/2601.13572>, the form that is local to a tensor: `shared` and `unique` are how many elements of
//! this tensor the model changed together with others and alone.

use super::ram::{EPSILON, KEPT, active, active_shader, kept};
use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{ANY, About, Allowed, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct RamPlus;

const ABOUT: About = About {
    name: "ramplus-tl",
    what: "changes of one model, made larger where it shares many others; changes of several as their mean",
    formula: "b + Σ aᵢ·(xᵢ − b)·(λᵢ if alone, else 1/Σ aᵢ), λᵢ = 1 + r·min(alpha, sharedᵢ/uniqueᵢ)",
    source: "https://arxiv.org/abs/2601.13572",
    base: Base::Required,
    models: (1, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("r", 0.1, "how much changes of one model grow by the share of others"),
        Parameter::shared("alpha", 0.2, "the most that shared/unique counts for").within(Allowed::AtLeast(0.0)),
        EPSILON,
    ],
};

impl Method for RamPlus {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let (r, alpha, smallest) = (terms.get("r"), terms.get("alpha"), terms.get("epsilon"));
        let epsilon = smallest as f32;
        let models = terms.models();
        let count_shader = move || {
            let active = active_shader(models);
            let count = |i: usize, wanted: &str| {
                format!("is_active$(x[{i}] - x[BASE$]) * select(0.0, 1.0, {active} {wanted} 1.0)")
            };
            let counts = (0..models).flat_map(|i| [count(i, ">"), count(i, "==")]);
            Shader::each(counts.collect::<Vec<_>>()).numbers([epsilon]).with(KEPT)
        };
        let counts = data.sums(2 * models, count_shader, |block, sums| {
            block.subtract_base();
            let (changes, _) = block.split_base();
            let active = active(changes, epsilon);
            for (change, sums) in changes.iter().zip(sums.chunks_mut(2)) {
                let count = |wanted: fn(f32) -> bool| {
                    let counts = |x: f32, active: f32| x.abs() > epsilon && wanted(active);
                    vector::sum([change, &active], |[x, active]| if counts(x, active) { 1.0 } else { 0.0 })
                };
                sums[0] += count(|active| active > 1.0);
                sums[1] += count(|active| active == 1.0);
            }
        })?;
        let factor = |counts: &[f64]| {
            let ratio = counts[0] / counts[1].max(smallest).max(f64::MIN_POSITIVE);
            (1.0 + r * ratio.max(0.0).min(alpha)) as f32
        };
        let factors: Vec<f32> = counts.chunks(2).map(factor).collect();
        let numbers: Vec<f32> = [epsilon].into_iter().chain(factors.iter().copied()).collect();
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            block.subtract_base();
            let (changes, base) = block.split_base();
            let active = active(changes, epsilon);
            out.fill(0.0);
            for (change, &factor) in changes.iter().zip(&factors) {
                vector::update(out, [change, &active], |sum, [x, active]| {
                    let x = kept(x, epsilon);
                    sum + if active > 1.0 { x / active } else { x * factor }
                });
            }
            vector::update(out, [base], |sum, [b]| b + sum);
        };
        let shader = move || {
            let term = |i: usize| {
                let kept = format!("kept$(x[{i}] - x[BASE$])");
                format!("select(rounded({kept} * number$({}u)), {kept} / sharing, sharing > 1.0)", i + 1)
            };
            let (active, sum) = (active_shader(models), Shader::sum_from_zero(models, term));
            let body = format!("fn scaled$(x: Values$) -> f32 {{ let sharing = {active}; return x[BASE$] + {sum}; }}");
            Shader::of("scaled$(x)").with(KEPT).with(&body).numbers(numbers.iter().copied())
        };
        Ok(Solution::of(function, shader))
    }
}
