//! The Karcher mean: the point of the sphere from which the tangents to all models' directions add up to 0, at the
//! models' mean length. All models count the same, a base is one of them.
//!
//! H. Karcher, Riemannian center of mass and mollifier smoothing, 1977, <https://doi.org/10.1002/cpa.3160300502>; for
//! merging <https://arxiv.org/abs/2603.04972>. From the mean of the directions, `T = Σ (θᵢ/sin θᵢ)·(uᵢ − (u·uᵢ)·u) / N` is
//! the mean tangent and `u ← cos‖T‖·u + sin‖T‖·T/‖T‖` the next point, `max_iter` times or until `‖T‖ < tol`. Models of a
//! norm of at most `tol` have no direction, but count for the mean length. If the mean of directions is shorter than
//! `tol`, the first model's direction is the start.
//!
//! The iteration runs on coefficients of the models, by their inner products: no pass over the data but one.
//!
//! Deviation: a direction opposite to u has no tangent and is skipped; mergekit divides by the sine, whatever it is.

use crate::error::Result;
use crate::merge::{ANY, About, Allowed, Base, Blend, Data, Gram, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct Karcher;

const ABOUT: About = About {
    name: "karcher",
    what: "the mean of the models' directions along the sphere, at their mean length",
    formula: "u·Σ ‖xᵢ‖/N, u where Σ (θᵢ/sin θᵢ)·(uᵢ − (u·uᵢ)·u) = 0, uᵢ = xᵢ/‖xᵢ‖",
    source: "https://doi.org/10.1002/cpa.3160300502",
    base: Base::Counts,
    models: (1, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("max_iter", 10.0, "the most steps to take").within(Allowed::Whole(MAX_STEPS)),
        Parameter::shared("tol", 1e-5, "angles and norms below this count as 0").within(Allowed::AtLeast(0.0)),
    ],
};

/// Sines below this are those of opposite directions: smaller ones do not come out of inner products.
const OPPOSITE: f64 = 1e-6;

/// The mean's coefficients.
fn mean(gram: &Gram, steps: u64, tol: f64) -> Vec<f64> {
    let models = gram.size();
    let norms: Vec<f64> = (0..models).map(|i| gram.norm(i)).collect();
    let voters: Vec<usize> = (0..models).filter(|&i| norms[i] > tol).collect();
    let scale = norms.iter().sum::<f64>() / models as f64;
    let Some(&first) = voters.first() else { return vec![0.0 * scale; models] };
    let share = 1.0 / voters.len() as f64;
    let unit = |i: usize| {
        let mut unit = vec![0.0; models];
        unit[i] = 1.0 / norms[i];
        unit
    };

    let mut point = vec![0.0; models];
    voters.iter().for_each(|&i| point[i] = share / norms[i]);
    match gram.length(&point) {
        short if short < tol => point = unit(first),
        length => point.iter_mut().for_each(|c| *c /= length),
    }
    for _ in 0..steps {
        let mut tangent = vec![0.0; models];
        for &i in &voters {
            let cosine = gram.between(&point, &unit(i)).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle < tol || (angle.sin() < OPPOSITE && cosine < 0.0) {
                continue;
            }
            let factor = share * angle / angle.sin();
            tangent[i] += factor / norms[i];
            tangent.iter_mut().zip(&point).for_each(|(tangent, point)| *tangent -= factor * cosine * point);
        }
        let step = gram.length(&tangent);
        if step < tol || step == 0.0 {
            break;
        }
        let (sin, cos) = step.sin_cos();
        point.iter_mut().zip(&tangent).for_each(|(point, tangent)| *point = cos * *point + sin / step * tangent);
        let length = gram.length(&point);
        if length > tol {
            point.iter_mut().for_each(|c| *c /= length);
        }
    }
    point.iter().map(|c| scale * c).collect()
}

/// More steps than any merge needs would only keep one waiting.
const MAX_STEPS: u32 = 100_000;

impl Method for Karcher {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        (terms.models() == 1).then(|| Blend { from_base: false, coefficients: vec![1.0] })
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        if terms.models() == 1 {
            return Ok(Solution::sum(vec![1.0]));
        }
        let gram = data.gram(false)?;
        Ok(Solution::sum(mean(&gram, terms.get("max_iter") as u64, terms.get("tol"))))
    }
}
