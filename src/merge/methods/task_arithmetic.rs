//! Task arithmetic: `out = b + λ·Σ wᵢ·(xᵢ − b)`, with `wᵢ / Σw` for `wᵢ` when normalized.
//!
//! Ilharco et al. 2023, <https://arxiv.org/abs/2212.04089>; equation 8 of Decouple-then-Merge is the same sum.

use crate::error::Result;
use crate::merge::{ANY, About, Base, Blend, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct TaskArithmetic;

const ABOUT: About = About {
    name: "task-arithmetic",
    what: "the base plus the weighted sum of what each model changed in it",
    formula: "b + λ·Σ wᵢ·(xᵢ − b)",
    source: "https://arxiv.org/abs/2212.04089",
    base: Base::Required,
    models: (1, ANY),
    weight: Weight::One,
    normalizes: false,
    parameters: &[Parameter::shared("lambda", 1.0, "scales the sum of all changes")],
};

impl TaskArithmetic {
    fn coefficients(terms: &Terms) -> Vec<f64> {
        let lambda = terms.get("lambda");
        terms.normalized().into_iter().map(|weight| lambda * weight).collect()
    }
}

impl Method for TaskArithmetic {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        Some(Blend { from_base: true, coefficients: Self::coefficients(terms) })
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        Ok(Solution::around_base(Self::coefficients(terms)))
    }
}
