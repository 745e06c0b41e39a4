//! What is minimised in training.
//!
//! ```text
//! L = mean over images of w(t)·mean (a − a_θ(x_t, t))²  +  c · mean (a_base(x_t, t) − a_θ(x_t, t))²
//! ```
//!
//! with what a network should answer, `a`, such as the noise; the second term is Decouple-then-Merge's consistency with the
//! model that it began as (Ma et al. 2025, Eq. 4 and 5).

use super::weighting::Weighting;
use crate::diffusion::schedulers::Noising;
use crate::diffusion::unet::UNet2D;
use candle_core::{Result, Tensor};

/// Images with the noise that is put over them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// (batch, channels, rows, columns), −1..1.
    pub images: Tensor,
    /// N(0, 1), of the same shape.
    pub noise: Tensor,
    /// One an image.
    pub timesteps: Vec<usize>,
}

/// A loss.
#[derive(Clone, Copy, Debug)]
pub struct Objective {
    /// How much the loss at a timestep counts.
    pub weighting: &'static Weighting,
    /// Its γ, if it has one.
    pub gamma: f64,
    /// c, how much consistency counts.
    pub consistency: f64,
}

/// A loss in parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// The weighted loss against what should be answered.
    pub denoising: f64,
    /// The loss against the model that training began with; zero where that is not asked.
    pub consistency: f64,
    /// Both together, the second times c.
    pub total: f64,
}

impl Losses {
    /// Adds a share of others.
    pub(super) fn add(&mut self, others: Self, share: f64) {
        self.denoising += share * others.denoising;
        self.consistency += share * others.consistency;
        self.total += share * others.total;
    }
}

impl Objective {
    /// The loss as a tensor without dimensions, for its gradient, and as numbers.
    ///
    /// # Errors
    /// If shapes do not agree, or a timestep is none.
    pub fn of(
        &self,
        network: &UNet2D,
        base: Option<&UNet2D>,
        noising: &Noising,
        batch: &Batch,
    ) -> Result<(Tensor, Losses)> {
        let Batch { images, noise, timesteps } = batch;
        let noisy = noising.noisy(images, noise, timesteps)?;
        let target = noising.target(images, noise, timesteps)?;
        let times: Vec<f32> = timesteps.iter().map(|&timestep| timestep as f32).collect();
        let times = Tensor::new(times, images.device())?;
        let answer = network.forward(&noisy, &times)?;
        let weights = timesteps.iter().map(|&t| self.weighting.weight(noising, t, self.gamma) as f32);
        let weights = Tensor::new(weights.collect::<Vec<_>>(), images.device())?;
        let each = (&answer - target)?.sqr()?.flatten_from(1)?.mean(1)?;
        let denoising = (each * weights)?.mean_all()?;
        let mut losses = Losses { denoising: f64::from(denoising.to_scalar::<f32>()?), ..Losses::default() };
        let mut total = denoising;
        if let Some(base) = base.filter(|_| self.consistency > 0.0) {
            let should = base.forward(&noisy, &times)?.detach();
            let consistency = (&answer - should)?.sqr()?.mean_all()?;
            losses.consistency = f64::from(consistency.to_scalar::<f32>()?);
            total = (total + (consistency * self.consistency)?)?;
        }
        losses.total = f64::from(total.to_scalar::<f32>()?);
        Ok((total, losses))
    }
}
