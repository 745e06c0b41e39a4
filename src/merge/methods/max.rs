//! The greatest of each element: `out = max(x₁, x₂, …)`, with its sign, so that 0.1 wins over −0.5.
//!
//! Chattiori-Model-Merger's MAX, for any number of models. A NaN in any model stays.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{ANY, About, Base, Block, Data, Method, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct Max;

const ABOUT: About = About {
    name: "max",
    what: "the greatest of each element, by its sign and not by its magnitude",
    formula: "max xᵢ",
    source: "https://github.com/Faildes/Chattiori-Model-Merger",
    base: Base::None,
    models: (1, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[],
};

impl Method for Max {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        let models = terms.models();
        let function = |block: &mut Block<'_>, out: &mut [f32]| {
            if let Some((first, others)) = block.inputs.split_first() {
                out.copy_from_slice(first);
                for other in others {
                    vector::update(out, [other], |most, [x]| if most >= x || most.is_nan() { most } else { x });
                }
            }
        };
        let shader = move || {
            let most = (1..models).fold("x[0]".to_owned(), |most, i| format!("greater$({most}, x[{i}])"));
            Shader::of(most).with("fn greater$(a: f32, b: f32) -> f32 { return select(b, a, a >= b); }")
        };
        Ok(Solution::of(function, shader))
    }
}
