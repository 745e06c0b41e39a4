//! The weighted mean of directions on the sphere, at the models' mean length: `out = m/‖m‖ · cos(eps) · Σ wᵢ‖xᵢ‖` with
//! `m = Σ wᵢ·xᵢ/(‖xᵢ‖ + eps)`; with a base, `b` plus the same of `xᵢ − b`.
//!
//! C. Goddard, <https://goddard.blog/posts/multislerp-wow-what-a-cool-idea>. There, the directions are projected to the
//! tangent space at m/‖m‖, summed by the same weights and mapped back. That sum is `m − (m·m̂)·m̂`, which is 0 for every
//! input, so that the map back leaves m̂ but for the cosine of the `eps` that the sum's norm is kept above.
//!
//! One model is returned as it is. Where the directions cancel, two models give `Σ wᵢ·xᵢ`, and more are an error. All is
//! solved from inner products.
//!
//! Deviation: directions cancel where `‖m‖` is below `eps` or 1e-7; mergekit has `eps` alone, by default 1e-8, below what
//! inner products can tell from 0.

use crate::error::{Error, Mismatch, Result};
use crate::merge::{ANY, About, Allowed, Base, Blend, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct Multislerp;

const ABOUT: About = About {
    name: "multislerp",
    what: "the mean of the models' directions, or of their changes', at their mean length",
    formula: "m/‖m‖·Σ wᵢ‖xᵢ‖, m = Σ wᵢ·xᵢ/‖xᵢ‖",
    source: "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    base: Base::Optional,
    models: (1, ANY),
    weight: Weight::Share,
    normalizes: true,
    parameters: &[Parameter::shared("eps", 1e-8, "is added to norms, so that none is 0").within(Allowed::AtLeast(0.0))],
};

/// Means of directions shorter than this have no direction.
const SMALLEST_MEAN: f64 = 1e-7;

impl Method for Multislerp {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        (terms.models() == 1).then(|| Blend { from_base: false, coefficients: vec![1.0] })
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let solution = |coefficients| {
            if terms.has_base { Solution::around_base(coefficients) } else { Solution::sum(coefficients) }
        };
        let models = terms.models();
        if models == 1 {
            return Ok(Solution::sum(vec![1.0]));
        }
        let gram = data.gram(terms.has_base)?;
        let (weights, eps) = (terms.normalized(), terms.get("eps"));
        let mean: Vec<f64> = (0..models).map(|i| weights[i] / (gram.norm(i) + eps).max(f64::MIN_POSITIVE)).collect();
        let length = gram.length(&mean);
        // Tensors of zeros are their own mean.
        let cancels = length < SMALLEST_MEAN.max(eps) && (0..models).any(|i| gram.product(i, i) > 0.0);
        if cancels && models > 2 {
            let problem = "cannot be merged by multislerp: the weighted directions of the models cancel out; \
                           choose other weights, or --exclude it";
            return Err(Error::Mismatch(vec![Mismatch { tensor: terms.tensor.clone(), problem: problem.to_owned() }]));
        }
        if length < SMALLEST_MEAN.max(eps) {
            return Ok(solution(weights));
        }
        let mean_norm: f64 = (0..models).map(|i| weights[i] * gram.norm(i)).sum();
        Ok(solution(mean.iter().map(|share| share / length * eps.cos() * mean_norm).collect()))
    }
}
