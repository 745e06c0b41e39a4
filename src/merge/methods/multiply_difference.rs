//! The geometric mean of what two models changed: `out = c + sign(d)·|a − c|^(1−α)·|b − c|^α`, where d is the weighted sum
//! `(1−β)·(a − c) + β·(b − c)`.
//!
//! sd-meh 0.9.5's `multiply_difference`. An element that one model left as it was stays as it was, unless the other's power
//! is 0. Powers are computed in f64.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct MultiplyDifference;

const ABOUT: About = About {
    name: "multiply-difference",
    what: "the base plus the geometric mean of what two models changed in it",
    formula: "b + sign((1−β)·(x₁−b) + β·(x₂−b))·|x₁−b|^(1−α)·|x₂−b|^α",
    source: "https://github.com/s1dlx/meh",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alpha", 0.5, "the power of the second model's change"),
        Parameter::shared("beta", 0.5, "how much the second model counts for the sign"),
    ],
};

const MULTIPLIED: &str = "
fn multiplied$(a: f32, b: f32, c: f32) -> f32 {
    let size = power_product(a, b, first$() + 2u, first$() + 8u);
    let sign = rounded(number$(0u) * a) + rounded(number$(1u) * b);
    return c + select(size, -size, sign < 0.0);
}
";

impl Method for MultiplyDifference {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        let (alpha, beta) = (terms.get("alpha"), terms.get("beta") as f32);
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            block.subtract_base();
            vector::map(out, block.first(), |[a, b, c]| {
                let size = f64::from(a.abs()).powf(1.0 - alpha) * f64::from(b.abs()).powf(alpha);
                let sign = (1.0 - beta) * a + beta * b;
                c + if sign.is_nan() { sign } else { (size as f32).copysign(sign) }
            });
        };
        let shader = move || {
            let changes = "multiplied$(x[0] - x[BASE$], x[1] - x[BASE$], x[BASE$])";
            let shader = Shader::of(changes).with(MULTIPLIED).numbers([1.0 - beta, beta]);
            shader.powers(1.0 - alpha, alpha, &[1.0])
        };
        Ok(Solution::of(function, shader))
    }
}
