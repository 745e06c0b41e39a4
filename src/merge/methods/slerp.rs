//! Spherical linear interpolation of two models: `out = (sin((1−t)θ)·a + sin(tθ)·b) / sin θ`, where θ is the angle between
//! the tensors, each as one vector.
//!
//! K. Shoemake, Animating rotation with quaternion curves, 1985, <https://dl.acm.org/doi/10.1145/325165.325242>. `t = 0` is
//! the first model, or the base. Where |cos θ| > 0.9995 it is the straight line `(1−t)·a + t·b`, as in mergekit.

use crate::error::Result;
use crate::merge::{About, Base, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct Slerp;

const ABOUT: About = About {
    name: "slerp",
    what: "two models on the arc between them; t = 0 is the first, or the base",
    formula: "(sin((1−t)θ)·x₁ + sin(tθ)·x₂) / sin θ",
    source: "https://dl.acm.org/doi/10.1145/325165.325242",
    base: Base::Counts,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("t", 0.5, "how far to go from the first model to the second")],
};

/// Above this |cos θ|, the arc is a line.
const PARALLEL: f64 = 0.9995;
/// Norms up to this count as 1.
const SMALLEST_NORM: f64 = 1e-8;

impl Method for Slerp {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let gram = data.gram(false)?;
        let t = terms.get("t");
        let norm = |i: usize| Some(gram.norm(i)).filter(|norm| *norm > SMALLEST_NORM).unwrap_or(1.0);
        let cosine = (gram.product(0, 1) / norm(0) / norm(1)).clamp(-1.0, 1.0);
        if cosine.abs() > PARALLEL {
            return Ok(Solution::sum(vec![1.0 - t, t]));
        }
        let angle = cosine.acos();
        Ok(Solution::sum(vec![((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]))
    }
}
