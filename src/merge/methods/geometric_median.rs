//! The geometric median: the point with the least sum of distances to the models, each tensor as one vector.
//!
//! By Weiszfeld's iteration (E. Weiszfeld 1937; as in Pillutla et al. 2022, <https://arxiv.org/abs/1912.13445>), which begins
//! at the mean and takes the mean of the models weighted by one over their distances, again and again. What it comes to is
//! always a weighted mean of the models, so distances follow from the models' inner products, and one pass over the data
//! is enough for any number of iterations.
//!
//! As in sd-mecha 1.1.8 a distance counts as at least `eps`, and it ends after `maxiter` iterations or when one changes the
//! sum of distances by at most `ftol` of it: with the default, when f64 can tell no difference. Inner products are of the
//! differences from the first model, so that what the models have in common costs no precision.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{ANY, About, Allowed, Base, Block, Data, Gram, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct GeometricMedian;

const ABOUT: About = About {
    name: "geometric-median",
    what: "the point with the least sum of distances to the models",
    formula: "Σ wᵢ·xᵢ / Σ wᵢ, wᵢ = 1/‖xᵢ − out‖",
    source: "https://arxiv.org/abs/1912.13445",
    base: Base::None,
    models: (1, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("eps", 1e-6, "the least that a distance counts as").within(Allowed::Above(0.0)),
        Parameter::shared("maxiter", 100.0, "the most iterations").within(Allowed::Whole(MAX_ITERATIONS)),
        Parameter::shared("ftol", 1e-20, "ends when the sum of distances changes by no more than this share of it")
            .within(Allowed::AtLeast(0.0)),
    ],
};

/// Distances of each vector from the combination of all by these coefficients, which add up to 1.
fn distances(gram: &Gram, coefficients: &[f64]) -> Vec<f64> {
    let distance = |index: usize| {
        let mut difference = coefficients.to_vec();
        difference[index] -= 1.0;
        gram.length(&difference)
    };
    (0..gram.size()).map(distance).collect()
}

/// The distance, or the smallest that counts; NaN stays, so that it shows.
fn at_least(distance: f64, smallest: f64) -> f64 {
    if distance < smallest { smallest } else { distance }
}

/// The coefficients of the median.
fn median(gram: &Gram, smallest: f64, iterations: u64, tolerance: f64) -> Vec<f64> {
    let mut coefficients = vec![1.0 / gram.size() as f64; gram.size()];
    let mut distance = distances(gram, &coefficients);
    for _ in 0..iterations {
        let before: f64 = distance.iter().sum();
        let weights: Vec<f64> = distance.iter().map(|distance| 1.0 / at_least(*distance, smallest)).collect();
        let total: f64 = weights.iter().sum();
        coefficients = weights.iter().map(|weight| weight / total).collect();
        distance = distances(gram, &coefficients);
        let after: f64 = distance.iter().sum();
        if (before - after).abs() <= tolerance * after {
            break;
        }
    }
    coefficients
}

/// More than any merge needs would only keep one waiting.
const MAX_ITERATIONS: u32 = 100_000;

impl Method for GeometricMedian {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let models = data.models();
        let apart = || {
            let vectors = (0..models).map(|i| if i == 0 { "0.0".to_owned() } else { format!("x[{i}] - x[0]") });
            Shader::each(vectors.collect::<Vec<_>>())
        };
        let gram = data.gram_of(models, apart, |block: &mut Block<'_>| {
            if let Some((first, others)) = block.inputs.split_first_mut() {
                others.iter_mut().for_each(|other| vector::update(other, [first], |x, [first]| x - first));
                first.fill(0.0);
            }
        })?;
        Ok(Solution::sum(median(&gram, terms.get("eps"), terms.get("maxiter") as u64, terms.get("ftol"))))
    }
}
