//! One model, as it is or scaled: `out = scale·x`.
//!
//! For recipes that put layers of several models one after the other, as in depth up-scaling (Kim et al. 2023,
//! <https://arxiv.org/abs/2312.15166>). With a scale of 1, bytes are copied.

use crate::error::Result;
use crate::merge::{About, Base, Blend, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct Passthrough;

const ABOUT: About = About {
    name: "passthrough",
    what: "one model, as it is or scaled",
    formula: "scale·x",
    source: "https://arxiv.org/abs/2312.15166",
    base: Base::None,
    models: (1, 1),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::per_model("scale", 1.0, "what the model is multiplied with")],
};

impl Method for Passthrough {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        Some(Blend { from_base: false, coefficients: terms.each("scale").to_vec() })
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        Ok(Solution::sum(terms.each("scale").to_vec()))
    }
}
