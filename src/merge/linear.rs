//! The weighted sum: `out = Σ wᵢ·xᵢ`, with `wᵢ / Σw` for `wᵢ` when normalized.
//!
//! Equal weights of 1/N are a model soup (Wortsman et al. 2022, <https://arxiv.org/abs/2203.05482>).

use super::{Blend, Method, Parameter, Terms};

/// See the module.
pub(super) struct Linear;

impl Method for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn about(&self) -> &'static str {
        "the weighted sum of the models"
    }

    fn formula(&self) -> &'static str {
        "Σ wᵢ·xᵢ"
    }

    fn source(&self) -> &'static str {
        "https://arxiv.org/abs/2203.05482"
    }

    fn needs_base(&self) -> bool {
        false
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }

    fn default_weight(&self, models: usize) -> f64 {
        1.0 / models as f64
    }

    fn solve(&self, terms: &Terms<'_>) -> Result<Blend, String> {
        Ok(Blend { from_base: false, coefficients: terms.normalized()? })
    }
}
