//! From images to noise: what networks see in training, and what they should answer.
//!
//! `x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε`, and the answer is ε, x₀, or `v = √ᾱ_t·ε − √(1−ᾱ_t)·x₀` (Ho et al. 2020; Salimans and Ho 2022).

use super::answer::Prediction;
use super::config::{Config, Reader};
use super::ddpm;
use super::schedule::{Defaults, Schedule, Terminal};
use crate::error;
use candle_core::{Result, Tensor};

/// The noise that a model is trained on.
#[derive(Clone, Debug)]
pub struct Noising {
    alphas_cumprod: Vec<f32>,
    prediction: Prediction,
}

impl Noising {
    /// What a scheduler's configuration says of noise.
    ///
    /// # Errors
    /// [`error::Error::Model`] or [`error::Error::Recipe`] naming the key that is wrong.
    pub fn new(config: &Config) -> error::Result<Self> {
        let reader = Reader::new(config, ddpm::ENTRY)?;
        let defaults = Defaults { betas: (0.0001, 0.02), spacing: "leading", terminal: Terminal::Zero };
        let schedule = Schedule::read(&reader, &defaults)?;
        Ok(Self { alphas_cumprod: schedule.alphas_cumprod, prediction: Prediction::read(&reader)? })
    }

    /// How many timesteps there are.
    #[must_use]
    pub fn timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// `ᾱ_t / (1 − ᾱ_t)`, how much more image than noise there is at a timestep; the last one's behind it.
    #[must_use]
    pub fn signal_to_noise(&self, timestep: usize) -> f64 {
        let alpha = self.alphas_cumprod.get(timestep).or(self.alphas_cumprod.last()).copied().unwrap_or(1.0);
        f64::from(alpha) / (1.0 - f64::from(alpha))
    }

    /// By what a loss of the network's answer is divided to be that of the image: SNR for noise, SNR + 1 for velocity.
    #[must_use]
    pub fn loss_over_that_of_image(&self, timestep: usize) -> f64 {
        let ratio = self.signal_to_noise(timestep);
        match self.prediction {
            Prediction::Epsilon => ratio,
            Prediction::Sample => 1.0,
            Prediction::V => ratio + 1.0,
        }
    }

    /// Images (batch, channels, rows, columns) with noise of the same shape, each at its timestep.
    ///
    /// # Errors
    /// If the shapes do not agree, or a timestep is none.
    pub fn noisy(&self, images: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<Tensor> {
        let (alpha, sigma) = self.shares(timesteps, images)?;
        images.broadcast_mul(&alpha)? + noise.broadcast_mul(&sigma)?
    }

    /// What the network should answer to [`noisy`](Self::noisy) images.
    ///
    /// # Errors
    /// As [`noisy`](Self::noisy).
    pub fn target(&self, images: &Tensor, noise: &Tensor, timesteps: &[usize]) -> Result<Tensor> {
        match self.prediction {
            Prediction::Epsilon => Ok(noise.clone()),
            Prediction::Sample => Ok(images.clone()),
            Prediction::V => {
                let (alpha, sigma) = self.shares(timesteps, images)?;
                noise.broadcast_mul(&alpha)? - images.broadcast_mul(&sigma)?
            }
        }
    }

    /// √ᾱ and √(1−ᾱ) by image: (batch, 1, 1, 1).
    fn shares(&self, timesteps: &[usize], images: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut shares = [Vec::new(), Vec::new()];
        for &timestep in timesteps {
            let Some(&alpha) = self.alphas_cumprod.get(timestep) else {
                candle_core::bail!("timestep {timestep} of {} was asked for", self.alphas_cumprod.len())
            };
            shares[0].push(alpha.sqrt());
            shares[1].push((1.0 - alpha).sqrt());
        }
        let tensor = |values| Tensor::from_vec(values, (timesteps.len(), 1, 1, 1), images.device());
        let [alpha, sigma] = shares;
        Ok((tensor(alpha)?, tensor(sigma)?))
    }
}
