//! Reinforced agent merging: `out = b + Σ aᵢ·(xᵢ − b) / max(1, Σ aᵢ)`, where aᵢ is 1 where `|xᵢ − b| > epsilon`, else 0.
//!
//! <https://arxiv.org/abs/2601.13572>. A change that one model alone made is taken whole; where several changed an
//! element, the mean of their changes. Changes of exactly `epsilon` are none.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{ANY, About, Allowed, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct Ram;

const ABOUT: About = About {
    name: "ram",
    what: "changes of one model whole, changes of several as their mean",
    formula: "b + Σ aᵢ·(xᵢ − b) / max(1, Σ aᵢ), aᵢ where |xᵢ − b| > epsilon",
    source: "https://arxiv.org/abs/2601.13572",
    base: Base::Required,
    models: (1, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[EPSILON],
};

pub(super) const EPSILON: Parameter =
    Parameter::shared("epsilon", 1e-5, "changes up to this size are none").within(Allowed::AtLeast(0.0));

/// How many models changed each element.
pub(super) fn active(changes: &[Vec<f32>], epsilon: f32) -> Vec<f32> {
    let mut active = vec![0.0; changes.first().map_or(0, Vec::len)];
    for change in changes {
        vector::update(&mut active, [change], |count, [x]| count + if x.abs() > epsilon { 1.0 } else { 0.0 });
    }
    active
}

/// A change, or 0 if it is none; NaN stays.
#[inline(always)]
pub(super) fn kept(change: f32, epsilon: f32) -> f32 {
    if change.abs() > epsilon { change } else { 0.0 * change }
}

/// [`kept`] and, as 1 or 0, whether it is; the first number is `epsilon`.
pub(super) const KEPT: &str = "
fn is_active$(change: f32) -> f32 { return select(0.0, 1.0, abs(change) > number$(0u)); }
fn kept$(change: f32) -> f32 { return select(zero() * change, change, abs(change) > number$(0u)); }
";

/// [`active`] of one element.
pub(super) fn active_shader(models: usize) -> String {
    Shader::total(models, |i| format!("is_active$(x[{i}] - x[BASE$])"))
}

impl Method for Ram {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        let epsilon = terms.get("epsilon") as f32;
        let models = terms.models();
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            block.subtract_base();
            let (changes, base) = block.split_base();
            let active = active(changes, epsilon);
            out.fill(0.0);
            for change in &*changes {
                vector::update(out, [change], |sum, [x]| sum + kept(x, epsilon));
            }
            vector::update(out, [base, &active], |sum, [b, count]| b + sum / count.max(1.0));
        };
        let shader = move || {
            let sum = Shader::sum_from_zero(models, |i| format!("kept$(x[{i}] - x[BASE$])"));
            let value = format!("x[BASE$] + {sum} / max({}, 1.0)", active_shader(models));
            Shader::of(value).numbers([epsilon]).with(KEPT)
        };
        Ok(Solution::of(function, shader))
    }
}
