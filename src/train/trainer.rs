//! One network in training, an optimizer's step at a time.

use super::loss::{Batch, Losses, Objective};
use super::network::Network;
use super::optimizer::{AdamW, MovingAverage};
use super::parameters::{Kept, Parameters};
use crate::diffusion::schedulers::Noising;
use crate::diffusion::unet::UNet2D;
use crate::error::{Error, Result};
use std::sync::Arc;

/// How a network is trained.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// What is minimised.
    pub objective: Objective,
    /// The optimizer.
    pub optimizer: AdamW,
    /// The norm of all gradients together that longer ones are cut to.
    pub clip: Option<f64>,
    /// The average that is kept of the weights.
    pub average: Option<MovingAverage>,
}

/// A network in training.
pub struct Trainer {
    unet: UNet2D,
    base: Option<Arc<UNet2D>>,
    noising: Noising,
    objective: Objective,
    parameters: Parameters,
}

impl Trainer {
    /// Of a network that begins as it is; `base` is what it stays consistent with.
    ///
    /// # Errors
    /// candle's.
    pub fn new(network: Network, base: Option<Arc<UNet2D>>, noising: Noising, method: Method) -> Result<Self> {
        let Method { objective, optimizer, clip, average } = method;
        let parameters = Parameters::new(network.weights, optimizer, clip, average)?;
        Ok(Self { unet: network.unet, base, noising, objective, parameters })
    }

    /// Steps that were taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.parameters.steps()
    }

    /// Adds the gradient of a batch's loss.
    ///
    /// # Errors
    /// [`Error::Network`] if the loss is not a number; candle's.
    pub fn accumulate(&mut self, batch: &Batch) -> Result<Losses> {
        let (loss, losses) = self.objective.of(&self.unet, self.base.as_deref(), &self.noising, batch)?;
        if !losses.total.is_finite() {
            let remedy = if self.steps() == 0 {
                "weights or configuration of the base are broken (`ckptmerge inspect BASE --stats` tells of NaN)"
            } else {
                "train with a lower --lr"
            };
            let message = format!("the loss of step {} is not a number: {remedy}", self.steps() + 1);
            return Err(Error::Network(message));
        }
        self.parameters.add(&loss)?;
        Ok(losses)
    }

    /// Takes a step along the mean gradient of the batches since the last one, at a learning rate. Returns the gradient's norm
    /// before it is cut.
    ///
    /// # Errors
    /// [`Error::Network`] if the gradient is not finite; candle's.
    pub fn step(&mut self, rate: f64) -> Result<f64> {
        self.parameters.step(rate)
    }

    /// All that must be kept to go on, in the order of the network.
    pub fn kept(&self) -> impl Iterator<Item = Kept<'_>> {
        self.parameters.kept()
    }

    /// Goes on from what was [kept](Self::kept) behind so many steps, as [`Parameters::restore`].
    ///
    /// # Errors
    /// Those of `read`; candle's.
    pub fn restore(&mut self, steps: u64, read: impl FnMut(&str, &str) -> Result<Vec<f32>>) -> Result<()> {
        self.parameters.restore(steps, read)
    }
}
