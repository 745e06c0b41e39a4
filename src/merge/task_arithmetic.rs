//! Task arithmetic: `out = b + λ·Σ wᵢ·(xᵢ − b)`, with `wᵢ / Σw` for `wᵢ` when normalized.
//!
//! Ilharco et al. 2023, <https://arxiv.org/abs/2212.04089>; equation 8 of Decouple-then-Merge is the same sum.

use super::{Blend, Method, Parameter, Terms};

/// See the module.
pub(super) struct TaskArithmetic;

impl Method for TaskArithmetic {
    fn name(&self) -> &'static str {
        "task-arithmetic"
    }

    fn about(&self) -> &'static str {
        "the base plus the weighted sum of what each model changed in it"
    }

    fn formula(&self) -> &'static str {
        "b + λ·Σ wᵢ·(xᵢ − b)"
    }

    fn source(&self) -> &'static str {
        "https://arxiv.org/abs/2212.04089"
    }

    fn needs_base(&self) -> bool {
        true
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter { name: "lambda", default: 1.0, about: "scales the sum of all changes" }]
    }

    fn default_weight(&self, _models: usize) -> f64 {
        1.0
    }

    fn solve(&self, terms: &Terms<'_>) -> Result<Blend, String> {
        let lambda = terms.parameters[0];
        let coefficients = terms.normalized()?.into_iter().map(|weight| lambda * weight).collect();
        Ok(Blend { from_base: true, coefficients })
    }
}
