//! The linear combination of saved checkpoints of one run: `out = Σ wᵢ·xᵢ` with `Σ wᵢ = 1`.
//!
//! Liu et al. 2024, <https://arxiv.org/abs/2404.02241>. Weights add up to 1 but may be negative or above 1, which an
//! exponential moving average's cannot; the paper finds them by evolutionary search, here they are given. Equal weights are
//! the mean of the checkpoints.
//!
//! Computed around the last checkpoint, `xₙ + Σ wᵢ·(xᵢ − xₙ)`: with large weights of both signs the checkpoints themselves
//! would cancel, and the rounding of each would not. So the last weight is what is left of 1, and weights that add up to
//! something else are refused unless they are to be normalized.

use crate::error::Result;
use crate::merge::{ANY, About, Base, Blend, Data, Method, Solution, Terms, Weight};

/// See the module.
pub(super) struct Lcsc;

const ABOUT: About = About {
    name: "lcsc",
    what: "checkpoints of one run by weights of any sign that add up to 1",
    formula: "xₙ + Σ wᵢ·(xᵢ − xₙ), Σ wᵢ = 1",
    source: "https://arxiv.org/abs/2404.02241",
    base: Base::None,
    models: (2, ANY),
    weight: Weight::Share,
    normalizes: false,
    parameters: &[],
};

/// How far from 1 the weights' sum may be: what decimals of four digits, rounded one by one, add up to.
const TOLERANCE: f64 = 1e-3;

impl Lcsc {
    fn blend(terms: &Terms) -> Blend {
        let mut coefficients = terms.normalized();
        coefficients.pop();
        Blend { from_base: true, coefficients }
    }
}

impl Method for Lcsc {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn check(&self, terms: &Terms) -> Result<(), String> {
        let sum: f64 = terms.normalized().iter().sum();
        if (sum - 1.0).abs() <= TOLERANCE {
            return Ok(());
        }
        Err(format!(
            "lcsc needs weights that add up to 1, not {sum}: change them, or give --normalize to divide by that"
        ))
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        Some(Self::blend(terms))
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        Ok(Solution::Sum(Self::blend(terms)))
    }
}
