//! The root mean square of what two models changed, each brought to length 1, as long as their weighted sum:
//! `out = c + q·‖d‖/‖q‖` with `q = sign(d)·√((1−α)·(â)² + α·(b̂)²)`, `d = (1−α)·(a−c) + α·(b−c)`, and â, b̂ the changes divided
//! by their norms over the tensor.
//!
//! sd-meh 0.9.5's `euclidean_add_difference`. ‖q‖ is 1 unless a model changed nothing, whose part is then 0.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Allowed, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct EuclideanAddDifference;

const ABOUT: About = About {
    name: "euclidean-add-difference",
    what: "the base plus the root mean square of what two models changed in it",
    formula: "b + q·‖d‖/‖q‖, q = sign(d)·√((1−α)·e₁² + α·e₂²), eᵢ = (xᵢ−b)/‖xᵢ−b‖, d = (1−α)·(x₁−b) + α·(x₂−b)",
    source: "https://github.com/s1dlx/meh",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("alpha", 0.5, "how much of the second model's change, from 0 to 1")
        .within(Allowed::Between(0.0, 1.0))],
};

const DISTANT: &str = "
fn distant$(a: f32, b: f32, c: f32) -> f32 {
    // Squares of what is small are numbers that devices have only if it is made larger.
    let is_small = max(abs(number$(0u) * a), abs(number$(1u) * b)) < 1e-12;
    let up = select(1.0, 18446744073709551616.0, is_small);
    let p = number$(0u) * (a * up);
    let q = number$(1u) * (b * up);
    let size = sqrt(p * p + q * q) * (1.0 / up);
    let sign = rounded(number$(2u) * a) + rounded(number$(3u) * b);
    return c + select(size, -size, sign < 0.0);
}
";

impl Method for EuclideanAddDifference {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let alpha = terms.get("alpha");
        let gram = data.gram(true)?;
        let mix = [1.0 - alpha, alpha];
        let length = gram.length(&mix);
        // Σ q² is the sum of the parts that are there.
        let part = |model: usize| if gram.product(model, model) == 0.0 { 0.0 } else { mix[model] };
        let norm = (part(0) + part(1)).sqrt();
        if norm == 0.0 {
            return Ok(Solution::around_base(vec![0.0, 0.0]));
        }
        let factor = |model: usize| match part(model) {
            0.0 => 0.0,
            part => part / gram.product(model, model) * (length / norm).powi(2),
        };
        let (first, second) = (factor(0), factor(1));
        let mix = mix.map(|share| share as f32);
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            block.subtract_base();
            vector::map(out, block.first(), |[a, b, c]| {
                let square = |x: f32| f64::from(x) * f64::from(x);
                let size = (first * square(a) + second * square(b)).sqrt() as f32;
                c + size.copysign(mix[0] * a + mix[1] * b)
            });
        };
        let numbers = [first.sqrt() as f32, second.sqrt() as f32, mix[0], mix[1]];
        let shader =
            move || Shader::of("distant$(x[0] - x[BASE$], x[1] - x[BASE$], x[BASE$])").numbers(numbers).with(DISTANT);
        Ok(Solution::of(function, shader))
    }
}
