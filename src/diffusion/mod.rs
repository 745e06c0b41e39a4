//! Diffusion models on candle: denoising networks, schedulers, and the sampler that makes images with them.
//!
//! Weights come from a [`crate::Checkpoint`] of any format ([`Weights`]). Random numbers are functions of a seed, an
//! image and a draw ([`Noise`]), so images depend on neither the batch nor the threads.

mod activations;
mod ddpm;
mod layers;
pub mod nn;
mod noise;
mod sampler;
pub mod schedulers;
pub mod stable_diffusion;
pub mod unet;
mod weights;

pub use activations::{Change, Comparison};
pub use ddpm::{Ddpm, read_config};
pub use noise::Noise;

pub use sampler::{Denoiser, Model, Sampling, expert, sample, to_images};
pub use weights::Weights;
