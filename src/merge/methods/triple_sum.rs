//! The weighted sum of three models: `out = (1−α−β)·a + α·b + β·c`.
//!
//! supermerger's and sd-meh's "triple sum". The third model is the last, or the base.

use crate::error::Result;
use crate::merge::{About, Base, Blend, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct TripleSum;

const ABOUT: About = About {
    name: "triple-sum",
    what: "the weighted sum of three models",
    formula: "(1−α−β)·x₁ + α·x₂ + β·b",
    source: "https://github.com/hako-mikan/sd-webui-supermerger",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alpha", 1.0 / 3.0, "the weight of the second model"),
        Parameter::shared("beta", 1.0 / 3.0, "the weight of the third model"),
    ],
};

impl TripleSum {
    fn blend(terms: &Terms) -> Blend {
        let (alpha, beta) = (terms.get("alpha"), terms.get("beta"));
        Blend { from_base: false, coefficients: vec![1.0 - alpha - beta, alpha, beta] }
    }
}

impl Method for TripleSum {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        Some(Self::blend(terms))
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        Ok(Solution::Sum(Self::blend(terms)))
    }
}
