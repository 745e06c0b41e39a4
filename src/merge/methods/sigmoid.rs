//! Two sums weighed by the logistic function: `out = σ(4α)·(a + b) − σ(α)·a`.
//!
//! Chattiori-Model-Merger's SIG. It is no interpolation: at α = 0 it is b/2, and for large α it is b.

use crate::error::Result;
use crate::merge::{About, Base, Blend, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct Sigmoid;

const ABOUT: About = About {
    name: "sigmoid",
    what: "two models weighed by the logistic function of alpha",
    formula: "σ(4α)·(x₁ + x₂) − σ(α)·x₁, σ(z) = 1/(1 + e⁻ᶻ)",
    source: "https://github.com/Faildes/Chattiori-Model-Merger",
    base: Base::None,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("alpha", 0.5, "what the weights follow from")],
};

impl Sigmoid {
    fn blend(terms: &Terms) -> Blend {
        let logistic = |z: f64| 1.0 / (1.0 + (-z).exp());
        let (sum, less) = (logistic(4.0 * terms.get("alpha")), logistic(terms.get("alpha")));
        Blend { from_base: false, coefficients: vec![sum - less, sum] }
    }
}

impl Method for Sigmoid {
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
