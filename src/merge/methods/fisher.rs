//! The average weighted by Fisher information: `out = Σ wᵢ·Fᵢ·xᵢ / Σ wᵢ·Fᵢ`, element by element.
//!
//! Matena & Raffel 2022, <https://arxiv.org/abs/2111.09832>. Fᵢ is the diagonal of model i's Fisher information, the mean
//! square of its gradients, from a file of the same names and shapes: the inputs are the models and then, in the same
//! order, these. An element of which no model is sure, where `Σ wᵢ·Fᵢ` is below `epsilon`, is the plain weighted mean
//! `Σ wᵢ·xᵢ / Σ wᵢ`.
//!
//! A mean of squares is not negative: a tensor with a negative element in its diagonal is an error. What is not finite in
//! a diagonal makes the element NaN.

use crate::dtype::vector;
use crate::error::{Error, Mismatch, Result};
use crate::merge::{ANY, About, Allowed, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct Fisher;

const ABOUT: About = About {
    name: "fisher",
    what: "the average of the models, each element weighted by how sure each model is of it",
    formula: "Σ wᵢ·Fᵢ·xᵢ / Σ wᵢ·Fᵢ, F the diagonals given with --companion",
    source: "https://arxiv.org/abs/2111.09832",
    base: Base::None,
    models: (1, ANY),
    weight: Weight::One,
    normalizes: false,
    parameters: &[Parameter::shared("epsilon", 1e-20, "where Σ wᵢ·Fᵢ is below this, the models are averaged plainly")
        .within(Allowed::Above(0.0))],
};

impl Method for Fisher {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn companions(&self) -> Option<&'static str> {
        Some("the diagonal of its Fisher information")
    }

    fn check(&self, terms: &Terms) -> Result<(), String> {
        let weights = &terms.weights;
        if weights.iter().any(|weight| *weight < 0.0) || weights.iter().sum::<f64>() <= 0.0 {
            return Err("fisher needs weights that are not negative, and one above 0".to_owned());
        }
        Ok(())
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let models = terms.models();
        let is_negative = || Shader::each((0..models).map(|i| format!("select(0.0, 1.0, x[{}] < 0.0)", models + i)));
        let negative = data.sums(models, is_negative, |block, sums| {
            for (sum, fisher) in sums.iter_mut().zip(&block.inputs[models..]) {
                *sum += vector::sum([fisher], |[x]| if x < 0.0 { 1.0 } else { 0.0 });
            }
        })?;
        if let Some((model, count)) = negative.iter().enumerate().find(|(_, count)| **count > 0.0) {
            let problem = format!(
                "has {count} negative elements in companion {}, which is then no diagonal of a Fisher information",
                model + 1
            );
            return Err(Error::Mismatch(vec![Mismatch { tensor: terms.tensor.clone(), problem }]));
        }
        // Weights that add up to a half: their sum with any importances is a number of F32 as these are.
        let epsilon = ((terms.get("epsilon") / 2.0) as f32).max(f32::MIN_POSITIVE);
        let sum: f64 = terms.weights.iter().sum();
        let weights: Vec<f32> = terms.weights.iter().map(|weight| (weight / sum / 2.0) as f32).collect();
        let numbers: Vec<f32> = [epsilon].into_iter().chain(weights.iter().copied()).collect();
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            let (values, fishers) = block.inputs.split_at(models);
            let (mut mean, mut total) = (vec![0.0; out.len()], vec![0.0; out.len()]);
            for ((x, fisher), &weight) in values.iter().zip(fishers).zip(&weights) {
                vector::update(&mut total, [fisher], |sum, [f]| sum + weight * f);
                vector::update(&mut mean, [x], |sum, [x]| sum + 2.0 * weight * x);
            }
            // Divided before it is multiplied, as products of large importances would be too large.
            out.fill(0.0);
            for ((x, fisher), &weight) in values.iter().zip(fishers).zip(&weights) {
                vector::update(out, [x, fisher, &total], |sum, [x, f, total]| sum + weight * f / total * x);
            }
            vector::update(out, [&total, &mean], |sum, [total, mean]| if total < epsilon { mean } else { sum });
        };
        let weight = |i: usize| format!("number$({}u)", i + 1);
        let shader = move || {
            let total = Shader::sum_from_zero(models, |i| format!("rounded({} * x[{}])", weight(i), models + i));
            let mean = Shader::sum_from_zero(models, |i| format!("rounded(2.0 * {} * x[{i}])", weight(i)));
            let sum = Shader::sum_from_zero(models, |i| {
                format!("rounded({} * x[{}] / total * x[{i}])", weight(i), models + i)
            });
            let body = format!(
                "fn weighed$(x: Values$) -> f32 {{ let total = {total}; return select({sum}, {mean}, total < number$(0u)); }}"
            );
            Shader::of("weighed$(x)").with(&body).numbers(numbers.iter().copied())
        };
        Ok(Solution::of(function, shader))
    }
}
