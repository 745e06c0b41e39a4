//! What one model changed in an ancestor, added to another model: `out = a + α·(b − c)`.
//!
//! The "Add difference" of AUTOMATIC1111's checkpoint merger, of sd-meh 0.9.5 and of sd-mecha 1.1.8, with their `alpha`. It is
//! task arithmetic of weights 1 and α. `clamp_to_ab` is sd-mecha's; sd-meh has it as `weights_clip`.
//! Unlike theirs it lets an infinite element of the ancestor through, which would be a number of a model otherwise.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Allowed, Base, Blend, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct AddDifference;

const ABOUT: About = About {
    name: "add-difference",
    what: "the first model plus what the second changed in their ancestor",
    formula: "x₁ + α·(x₂ − b)",
    source: "https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#checkpoint-merger",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alpha", 1.0, "scales the difference"),
        Parameter::shared("clamp_to_ab", 0.0, "1 keeps each element between those of the two models")
            .within(Allowed::Switch),
    ],
};

const CLAMPED: &str = "
fn clamped$(x: f32, a: f32, b: f32) -> f32 {
    let low = select(b, a, a < b);
    let high = select(a, b, a < b);
    return select(select(x, high, x > high), low, x < low);
}
";

impl Method for AddDifference {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        let coefficients = vec![1.0, terms.get("alpha")];
        (!terms.is_on("clamp_to_ab")).then_some(Blend { from_base: true, coefficients })
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        if let Some(blend) = self.fixed(terms) {
            return Ok(Solution::Sum(blend));
        }
        let alpha = terms.get("alpha") as f32;
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            vector::map(out, block.first(), |[a, b, c]| {
                let x = a + alpha * (b - c);
                if c.is_finite() { clamp(x, a, b) } else { x }
            });
        };
        let sum = "x[0] + rounded(number$(0u) * (x[1] - x[2]))";
        let shader = move || Shader::of(format!("clamped$({sum}, x[0], x[1])")).numbers([alpha]).with(CLAMPED);
        Ok(Solution::of(function, shader))
    }
}

/// The number between two others that is nearest to x; NaN where x is.
#[inline(always)]
fn clamp(x: f32, a: f32, b: f32) -> f32 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}
