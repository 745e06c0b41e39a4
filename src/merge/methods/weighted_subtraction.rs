//! A model less a share of another, scaled so that the weights add up to 1: `out = (a − α·β·b) / (1 − α·β)`.
//!
//! sd-meh 0.9.5's `weighted_subtraction`: what undoes a weighted sum that had b at weight α·β. That product may not be 1.

use crate::error::Result;
use crate::merge::{About, Base, Blend, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct WeightedSubtraction;

const ABOUT: About = About {
    name: "weighted-subtraction",
    what: "the first model without the share of the second that a weighted sum gave it",
    formula: "(x₁ − α·β·x₂) / (1 − α·β)",
    source: "https://github.com/s1dlx/meh",
    base: Base::None,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alpha", 0.5, "how much of the second model to take away"),
        Parameter::shared("beta", 1.0, "multiplies alpha"),
    ],
};

impl WeightedSubtraction {
    fn blend(terms: &Terms) -> Blend {
        let share = terms.get("alpha") * terms.get("beta");
        Blend { from_base: false, coefficients: vec![1.0 / (1.0 - share), -share / (1.0 - share)] }
    }
}

impl Method for WeightedSubtraction {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn check(&self, terms: &Terms) -> Result<(), String> {
        let finite = Self::blend(terms).coefficients.iter().all(|coefficient| (*coefficient as f32).is_finite());
        let (alpha, beta) = (terms.get("alpha"), terms.get("beta"));
        let problem =
            || format!("weighted-subtraction divides by 1 − alpha·beta, which alpha {alpha} and beta {beta} make 0");
        finite.then_some(()).ok_or_else(problem)
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        Some(Self::blend(terms))
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        Ok(Solution::Sum(Self::blend(terms)))
    }
}
