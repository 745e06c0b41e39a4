//! A weighted sum of two models, and one of that with a third: `out = (1−β)·((1−α)·a + α·b) + β·c`.
//!
//! supermerger's and sd-meh's "sum twice". The third model is the last, or the base.

use crate::error::Result;
use crate::merge::{About, Base, Blend, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct SumTwice;

const ABOUT: About = About {
    name: "sum-twice",
    what: "the weighted sum of two models, then that of the sum and a third",
    formula: "(1−β)·((1−α)·x₁ + α·x₂) + β·b",
    source: "https://github.com/hako-mikan/sd-webui-supermerger",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alpha", 0.5, "the weight of the second model in the first sum"),
        Parameter::shared("beta", 0.5, "the weight of the third model in the second sum"),
    ],
};

impl SumTwice {
    fn blend(terms: &Terms) -> Blend {
        let (alpha, beta) = (terms.get("alpha"), terms.get("beta"));
        Blend { from_base: false, coefficients: vec![(1.0 - beta) * (1.0 - alpha), (1.0 - beta) * alpha, beta] }
    }
}

impl Method for SumTwice {
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
