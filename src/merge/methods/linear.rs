//! The weighted sum: `out = Σ wᵢ·xᵢ`, with `wᵢ / Σw` for `wᵢ` when normalized.
//!
//! Equal weights of 1/N are a model soup (Wortsman et al. 2022, <https://arxiv.org/abs/2203.05482>).

use crate::error::Result;
use crate::merge::{ANY, About, Base, Blend, Data, Method, Solution, Terms, Weight};

/// See the module.
pub(super) struct Linear;

const ABOUT: About = About {
    name: "linear",
    what: "the weighted sum of the models",
    formula: "Σ wᵢ·xᵢ",
    source: "https://arxiv.org/abs/2203.05482",
    base: Base::None,
    models: (1, ANY),
    weight: Weight::Share,
    normalizes: false,
    parameters: &[],
};

impl Method for Linear {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        Some(Blend { from_base: false, coefficients: terms.normalized() })
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        Ok(Solution::sum(terms.normalized()))
    }
}
