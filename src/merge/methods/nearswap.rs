//! Interpolation that is strong where the models are near: `out = s·x + (1−s)·b` with `s = t / |x − b|`, kept in 0..1.
//!
//! Alchemonaut 2024, <https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001>. Values nearer than `t` are swapped;
//! others move by `t` toward the model. Distances below 1e-6 count as 1e-6. An infinite element gives NaN.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Allowed, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct Nearswap;

const ABOUT: About = About {
    name: "nearswap",
    what: "the base, with the model's values where they are near",
    formula: "s·x + (1−s)·b, s = t/|x − b| in 0..1",
    source: "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    base: Base::Required,
    models: (1, 1),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("t", 0.0001, "how near is near, and how far others move").within(Allowed::AtLeast(0.0))
    ],
};

/// Distances below this count as this.
const SMALLEST: f32 = 1e-6;

const NEAR: &str = "
fn near$(x: f32, b: f32) -> f32 {
    let share = clamp(number$(0u) / max(abs(b - x), number$(1u)), 0.0, 1.0);
    return rounded(share * x) + rounded((1.0 - share) * b);
}
";

impl Method for Nearswap {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        let t = terms.get("t") as f32;
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            let (models, base) = block.split_base();
            vector::map(out, [&models[0], base], |[x, b]| {
                let share = (t / (b - x).abs().max(SMALLEST)).clamp(0.0, 1.0);
                share * x + (1.0 - share) * b
            });
        };
        let shader = move || Shader::of("near$(x[0], x[1])").numbers([t, SMALLEST]).with(NEAR);
        Ok(Solution::of(function, shader))
    }
}
