//! A network whose weights are to be trained.
//!
//! Weights are a checkpoint's, or new ones: of convolutions and linear layers as torch draws them, U(−1/√n, 1/√n) with n inputs,
//! biases too; normalisations begin as the identity, and so do channel-wise projections (Ma et al. 2025).

use crate::diffusion::Weights;
use crate::diffusion::unet::{Config, PROJECTIONS, UNet2D};
use crate::error::Result;
use crate::merge::Key;
use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Where weights come from.
#[derive(Clone)]
pub enum Source {
    /// A checkpoint.
    Checkpoint(Weights),
    /// A seed.
    Seed(u64),
}

/// A network and its weights by name, in the order of the network.
pub struct Network {
    /// The network.
    pub unet: UNet2D,
    /// Its weights, which share their memory with it.
    pub weights: Vec<(String, Var)>,
}

impl Network {
    /// The network that a configuration describes, on the CPU; with projections behind each block if it is to have them or the
    /// checkpoint has.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) and [`Error::Network`](crate::Error::Network) naming the tensor that is missing, of
    /// another shape, or not the network's.
    pub fn new(config: &Config, source: &Source, projections: bool) -> Result<Self> {
        let backend = Backend { source: source.clone(), projections, made: Arc::default() };
        let builder = VarBuilder::from_backend(Box::new(backend.clone()), DType::F32, Device::Cpu);
        let unet = UNet2D::new(config, &builder)?;
        if let Source::Checkpoint(weights) = source {
            weights.check_used(|_| false)?;
        }
        let weights = std::mem::take(&mut backend.made().weights);
        Ok(Self { unet, weights })
    }
}

/// Gives a network its weights and keeps hold of them.
#[derive(Clone)]
struct Backend {
    source: Source,
    /// Whether there are projections where the source has none.
    projections: bool,
    made: Arc<Mutex<Made>>,
}

#[derive(Default)]
struct Made {
    weights: Vec<(String, Var)>,
    /// Inputs of each layer whose weights were asked for.
    inputs: HashMap<String, usize>,
}

impl Backend {
    fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a tensor is a projection that the source has not.
    fn is_added(&self, name: &str) -> bool {
        let is_projection = name.strip_prefix(PROJECTIONS).is_some_and(|rest| rest.starts_with('.'));
        let is_there = matches!(&self.source, Source::Checkpoint(weights) if weights.contains(name));
        is_projection && self.projections && !is_there
    }

    /// The first values of a tensor.
    fn values(&self, shape: &Shape, name: &str) -> candle_core::Result<Tensor> {
        if self.is_added(name) {
            let channels = shape.dims().first().copied().unwrap_or_default();
            return Tensor::eye(channels, DType::F32, &Device::Cpu)?.reshape(shape);
        }
        match &self.source {
            Source::Checkpoint(weights) => {
                weights.get(shape.clone(), name, candle_nn::Init::Const(0.0), DType::F32, &Device::Cpu)
            }
            Source::Seed(seed) => Tensor::from_vec(self.drawn(*seed, shape, name), shape, &Device::Cpu),
        }
    }

    fn drawn(&self, seed: u64, shape: &Shape, name: &str) -> Vec<f32> {
        let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer).to_owned();
        let inputs = match shape.dims() {
            [_, inner @ ..] if !inner.is_empty() => {
                let inputs = inner.iter().product();
                self.made().inputs.insert(layer, inputs);
                Some(inputs)
            }
            _ => self.made().inputs.get(&layer).copied(),
        };
        let Some(inputs) = inputs else {
            // A normalisation's scale and shift.
            let value = if name.ends_with(".weight") { 1.0 } else { 0.0 };
            return vec![value; shape.elem_count()];
        };
        drawn(seed, name, inputs, shape.elem_count())
    }
}

/// The first values of a tensor of a convolution or linear layer, whose outputs have so many inputs each: U(−1/√n, 1/√n), as torch
/// draws them.
#[must_use]
pub fn drawn(seed: u64, name: &str, inputs: usize, count: usize) -> Vec<f32> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let mut words = vec![0; count];
    Key::new(seed, name, 0).fill(0, &mut words);
    words.into_iter().map(|word| (bound * ((f64::from(word) + 0.5) / 2_147_483_648.0 - 1.0)) as f32).collect()
}

impl SimpleBackend for Backend {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let var = Var::from_tensor(&self.values(&shape, name)?)?;
        let tensor = var.as_tensor().clone();
        self.made().weights.push((name.to_owned(), var));
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("`{name}` was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.is_added(name)
            || match &self.source {
                Source::Checkpoint(weights) => weights.contains(name),
                // What has two names is made under the new one.
                Source::Seed(_) => !name.ends_with("query.weight") && !name.starts_with(PROJECTIONS),
            }
    }
}
