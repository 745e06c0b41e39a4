//! The weighted geometric mean of two models, element by element: `out = Re(a^(1−α)·b^α)`.
//!
//! sd-mecha 1.1.8's `geometric_sum`. A negative number's power is complex; its real part is the product of magnitudes,
//! `|a|^(1−α)·|b|^α`, times cos(π(1−α)) where only a is negative, cos(πα) where only b is, and −1 where both are. So where the
//! signs differ the result passes through 0 between the models.
//!
//! Chattiori-Model-Merger's GEO is the real power, which is NaN wherever a number is negative and α is not whole: half of
//! a model. It is the same as this where both are positive, and is not offered beside it. Powers are computed in f64.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};
use std::f64::consts::PI;

/// See the module.
pub(super) struct Geometric;

const ABOUT: About = About {
    name: "geometric",
    what: "the weighted geometric mean of each two elements",
    formula: "Re(x₁^(1−α)·x₂^α)",
    source: "https://github.com/ljleb/sd-mecha",
    base: Base::None,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("alpha", 0.5, "the power of the second model")],
};

/// Which factor of three it is, and its sign, follow from the signs.
const MEAN: &str = "
fn mean$(a: f32, b: f32) -> f32 {
    let differ = (a < 0.0) != (b < 0.0);
    let which = select(0u, select(2u, 1u, a < 0.0), differ);
    let turned = select(number$(1u), number$(0u), a < 0.0);
    let sign = select(select(1.0, -1.0, a < 0.0), turned, differ);
    return sign * power_product(a, b, first$() + 2u + 6u * which, first$() + 20u);
}
";

impl Method for Geometric {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        let alpha = terms.get("alpha");
        let (a_negative, b_negative) = ((PI * (1.0 - alpha)).cos(), (PI * alpha).cos());
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            vector::map(out, block.first(), |[a, b]| {
                let size = f64::from(a.abs()).powf(1.0 - alpha) * f64::from(b.abs()).powf(alpha);
                let turn = match (a < 0.0, b < 0.0) {
                    (false, false) => 1.0,
                    (true, false) => a_negative,
                    (false, true) => b_negative,
                    (true, true) => -1.0,
                };
                (size * turn) as f32
            });
        };
        let signs = [a_negative, b_negative].map(|turn| if turn < 0.0 { -1.0 } else { 1.0 });
        let shader = move || {
            let shader = Shader::of("mean$(x[0], x[1])").with(MEAN).numbers(signs);
            shader.powers(1.0 - alpha, alpha, &[1.0, a_negative, b_negative])
        };
        Ok(Solution::of(function, shader))
    }
}
