//! Between add-difference and a weighted sum, by how alike single elements are:
//! `out = (1−s)·(a + α·(b − c)) + s·((1 − α/2)·a + (α/2)·b)` with `s = β/2·(1 + a·b / max(|a|, |b|)²)`, β where both are 0.
//!
//! s is β where a and b are equal, β/2 where one is 0, and 0 where they are opposite. As in sd-meh 0.9.5 and supermerger.
//! Chattiori-Model-Merger's SIM also moves mean and deviation of the tensor half way to those of a, which is not done here.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct SimilarityAddDifference;

const ABOUT: About = About {
    name: "similarity-add-difference",
    what: "a weighted sum where elements of two models are alike, add-difference where they are not",
    formula: "(1−s)·(x₁ + α·(x₂ − b)) + s·((1 − α/2)·x₁ + (α/2)·x₂), s = β/2·(1 + x₁·x₂/max(|x₁|, |x₂|)²)",
    source: "https://github.com/s1dlx/meh",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alpha", 1.0, "how much of the second model"),
        Parameter::shared("beta", 1.0, "how much likeness counts; 0 is add-difference"),
    ],
};

const MIXED: &str = "
fn mixed$(a: f32, b: f32, c: f32) -> f32 {
    let alpha = number$(0u);
    let is_less = abs(a) < abs(b);
    let small = select(b, a, is_less);
    let large = select(a, b, is_less);
    let likeness = select(small / large, 1.0, large == 0.0);
    let s = 0.5 * number$(1u) * (1.0 + likeness);
    let sum = rounded((1.0 - 0.5 * alpha) * a) + rounded(0.5 * alpha * b);
    return rounded((1.0 - s) * (a + rounded(alpha * (b - c)))) + rounded(s * sum);
}
";

impl Method for SimilarityAddDifference {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        let (alpha, beta) = (terms.get("alpha") as f32, terms.get("beta") as f32);
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            vector::map(out, block.first(), |[a, b, c]| {
                let (small, large) = if a.abs() < b.abs() { (a, b) } else { (b, a) };
                // a·b / max² is the quotient of the two, without the squares that could leave the range of a float.
                let likeness = if large == 0.0 && small == 0.0 { 1.0 } else { small / large };
                let s = 0.5 * beta * (1.0 + likeness);
                let sum = (1.0 - 0.5 * alpha) * a + 0.5 * alpha * b;
                (1.0 - s) * (a + alpha * (b - c)) + s * sum
            });
        };
        let shader = move || Shader::of("mixed$(x[0], x[1], x[2])").numbers([alpha, beta]).with(MIXED);
        Ok(Solution::of(function, shader))
    }
}
