//! Tensors in training: their gradients, an optimizer's steps, and their average.

use super::optimizer::{AdamW, MovingAverage};
use crate::error::{Error, Result};
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;

/// What a gradient's norm may be more than what it is cut to, as in torch.
const CLIP_EPSILON: f64 = 1e-6;

/// A tensor in training.
struct Parameter {
    name: String,
    var: Var,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    moments: [Vec<f32>; 2],
    /// Empty without a moving average.
    average: Vec<f32>,
}

/// What of a parameter must be kept to go on with its training.
pub struct Kept<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// Its elements along each dimension.
    pub shape: &'a [usize],
    /// The weights.
    pub weights: &'a [f32],
    /// The optimizer's first and second moments.
    pub moments: [&'a [f32]; 2],
    /// The moving average, if one is kept.
    pub average: Option<&'a [f32]>,
}

/// The tensors of a network in training.
pub struct Parameters {
    optimizer: AdamW,
    clip: Option<f64>,
    average: Option<MovingAverage>,
    parameters: Vec<Parameter>,
    /// Losses whose gradients were added since the last step.
    losses: u32,
    steps: u64,
}

impl Parameters {
    /// Weights by name, in f32 on the CPU, that begin as they are. `clip` is the norm of all gradients together that longer ones are
    /// cut to, `average` the average that is kept of the weights.
    ///
    /// # Errors
    /// candle's.
    pub fn new(
        weights: Vec<(String, Var)>,
        optimizer: AdamW,
        clip: Option<f64>,
        average: Option<MovingAverage>,
    ) -> Result<Self> {
        let mut parameters = Vec::with_capacity(weights.len());
        for (name, var) in weights {
            let weights = var.flatten_all()?.to_vec1::<f32>()?;
            let zeros = || vec![0.0; weights.len()];
            let average = if average.is_some() { weights.clone() } else { Vec::new() };
            parameters.push(Parameter { name, var, gradient: zeros(), moments: [zeros(), zeros()], average, weights });
        }
        Ok(Self { optimizer, clip, average, parameters, losses: 0, steps: 0 })
    }

    /// Steps that were taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Adds the gradient of a loss.
    ///
    /// # Errors
    /// [`Error::Network`] if it does not depend on a tensor; candle's.
    pub fn add(&mut self, loss: &Tensor) -> Result<()> {
        let gradients = loss.backward()?;
        for parameter in &mut self.parameters {
            let gradient = gradients.get(&parameter.var).ok_or_else(|| {
                Error::Network(format!("the loss does not depend on the tensor `{}`", parameter.name))
            })?;
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            parameter.gradient.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
        }
        self.losses += 1;
        Ok(())
    }

    /// Takes a step along the mean gradient of the losses since the last one, at a learning rate. Returns the gradient's norm
    /// before it is cut.
    ///
    /// # Errors
    /// [`Error::Network`] if the gradient is not finite; candle's.
    pub fn step(&mut self, rate: f64) -> Result<f64> {
        let share = 1.0 / self.losses.max(1) as f32;
        let squares = |parameter: &Parameter| -> f64 {
            parameter.gradient.iter().map(|&value| f64::from(value * share).powi(2)).sum()
        };
        let norm = self.parameters.iter().map(squares).sum::<f64>().sqrt();
        if !norm.is_finite() {
            let message = format!("the gradient of step {} is not finite: train with a lower --lr", self.steps + 1);
            return Err(Error::Network(message));
        }
        let cut = self.clip.map_or(1.0, |most| (most / (norm + CLIP_EPSILON)).min(1.0));
        let scale = share * cut as f32;
        let (number, optimizer, moving) = (self.steps + 1, &self.optimizer, &self.average);
        self.parameters.par_iter_mut().try_for_each(|parameter| {
            let Parameter { var, weights, gradient, moments: [first, second], average, .. } = parameter;
            gradient.iter_mut().for_each(|value| *value *= scale);
            optimizer.step(rate, number, weights, gradient, [first, second]);
            if let Some(moving) = moving {
                moving.update(number - 1, average, weights);
            }
            gradient.fill(0.0);
            var.set(&Tensor::from_slice(weights, var.shape(), &Device::Cpu)?)
        })?;
        (self.losses, self.steps) = (0, number);
        Ok(norm)
    }

    /// All that must be kept to go on, in the order that they were given in.
    pub fn kept(&self) -> impl Iterator<Item = Kept<'_>> {
        self.parameters.iter().map(|parameter| Kept {
            name: &parameter.name,
            shape: parameter.var.dims(),
            weights: &parameter.weights,
            moments: [&parameter.moments[0], &parameter.moments[1]],
            average: self.average.map(|_| &parameter.average[..]),
        })
    }

    /// Goes on from what was [kept](Self::kept) behind so many steps: `read` gives weights, first and second moments and the average
    /// (`weights`, `first`, `second`, `average`) of a tensor by its name.
    ///
    /// # Errors
    /// Those of `read`; candle's.
    pub fn restore(&mut self, steps: u64, mut read: impl FnMut(&str, &str) -> Result<Vec<f32>>) -> Result<()> {
        for parameter in &mut self.parameters {
            let Parameter { name, var, weights, moments: [first, second], average, .. } = parameter;
            let kinds = [("weights", weights), ("first", first), ("second", second), ("average", average)];
            for (kind, values) in kinds.into_iter().filter(|(_, values)| !values.is_empty()) {
                let found = read(kind, name)?;
                if found.len() != values.len() {
                    let message = format!("the state has {} {kind} of `{name}`, not {}", found.len(), values.len());
                    return Err(Error::Recipe(message));
                }
                if found.iter().any(|value| !value.is_finite()) {
                    return Err(Error::Recipe(format!(
                        "the state's {kind} of `{name}` are not all numbers; begin anew"
                    )));
                }
                *values = found;
            }
            var.set(&Tensor::from_slice(&parameter.weights, var.shape(), &Device::Cpu)?)?;
        }
        self.steps = steps;
        Ok(())
    }
}
