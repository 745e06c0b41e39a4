//! Add-difference where each element moves as far as it is from both ends: `out = a + 1.8·α·r·(b − c)` with
//! `r = |b − a| / (|b − a| + |b − c|)`, 0 where both are 0.
//!
//! supermerger's "Train difference", meant to teach a what b was trained on, without teaching it twice: r is 0 where a is
//! at b already. sd-mecha 1.1.8 has r with its factor as `train_difference_mask`. The factor 1.8 is theirs.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct TrainDifference;

const ABOUT: About = About {
    name: "train-difference",
    what: "the first model trained on what the second learned, less where it is there already",
    formula: "x₁ + 1.8·α·r·(x₂ − b), r = |x₂ − x₁|/(|x₂ − x₁| + |x₂ − b|)",
    source: "https://github.com/hako-mikan/sd-webui-supermerger",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("alpha", 1.0, "scales the difference")],
};

/// What the tools multiply alpha with.
const FACTOR: f64 = 1.8;

const TRAINED: &str = "
fn trained$(a: f32, b: f32, c: f32) -> f32 {
    let to_a = abs(b - a);
    let sum = to_a + abs(b - c);
    let share = select(to_a / sum, 0.0, sum == 0.0);
    return a + rounded(number$(0u) * share * (b - c));
}
";

impl Method for TrainDifference {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        let factor = (FACTOR * terms.get("alpha")) as f32;
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            vector::map(out, block.first(), |[a, b, c]| {
                let (to_a, to_c) = ((b - a).abs(), (b - c).abs());
                let sum = to_a + to_c;
                let share = if sum == 0.0 { 0.0 } else { to_a / sum };
                a + factor * share * (b - c)
            });
        };
        let shader = move || Shader::of("trained$(x[0], x[1], x[2])").numbers([factor]).with(TRAINED);
        Ok(Solution::of(function, shader))
    }
}
