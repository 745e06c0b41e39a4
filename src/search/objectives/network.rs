//! A network in memory whose weights are a candidate's.

use crate::diffusion::unet::{Config, PROJECTIONS, UNet2D};
use crate::diffusion::{Denoiser, Model, Weights};
use crate::error::{Error, Result};
use crate::search::Candidates;
use crate::train::{Network, Source};
use candle_core::{Device, Tensor};

/// What candidates are made of: the network, the base's weights, and the vectors.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) candidates: &'a Candidates,
    pub(super) config: &'a Config,
    pub(super) base: &'a Weights,
}

/// One of them.
pub(super) struct Candidate<'a> {
    parts: Parts<'a>,
    network: Network,
}

impl<'a> Parts<'a> {
    /// A network that is the base.
    pub(super) fn candidate(self) -> Result<Candidate<'a>> {
        // Where models have projections, the base's are the identity.
        let projections = self.base.full_name(PROJECTIONS);
        let has_projections = self.candidates.names().any(|name| name.starts_with(&projections));
        let network = Network::new(self.config, &Source::Checkpoint(self.base.clone()), has_projections)?;
        let is_used = |name: &str| network.weights.iter().any(|(own, _)| self.base.full_name(own) == name);
        if let Some(name) = self.candidates.names().find(|name| !is_used(name)) {
            return Err(Error::Network(format!("the models' tensor `{name}` is none of the network's: --exclude it")));
        }
        Ok(Candidate { parts: self, network })
    }

    /// How many are worth having in memory, for so many threads: threads of one network wait for each other, which counts where
    /// it is small.
    pub(super) fn side_by_side(self, threads: usize) -> usize {
        const BYTES: u64 = 256 << 20;
        threads.min((BYTES / self.candidates.bytes().max(1)) as usize).max(1)
    }
}

impl Candidate<'_> {
    /// Gives the network the weights of a candidate.
    pub(super) fn become_sum(&mut self, weights: &[f64]) -> Result<&UNet2D> {
        for (name, var) in &self.network.weights {
            let name = self.parts.base.full_name(name);
            if let Some(values) = self.parts.candidates.tensor(&name, weights) {
                var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
            }
        }
        Ok(&self.network.unet)
    }
}

/// A network that is in memory, for the sampler.
pub(super) struct InMemory<'a> {
    pub(super) unet: &'a UNet2D,
    pub(super) config: &'a Config,
}

impl Model for InMemory<'_> {
    fn name(&self) -> &'static str {
        "the candidate"
    }

    fn channels(&self) -> usize {
        self.config.in_channels
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn network(&self, _: &Device) -> Result<Box<dyn Denoiser + '_>> {
        Ok(Box::new(self.unet))
    }
}

impl Denoiser for &UNet2D {
    fn denoise(&self, samples: &Tensor, timestep: f32) -> candle_core::Result<Tensor> {
        (*self).denoise(samples, timestep)
    }
}
