//! Training of diffusion models: Decouple-then-Merge's first stage (Ma et al. 2025). [`Parameters`] are tensors of any network.
//!
//! A copy of a model is trained on a range of timesteps ([`Timesteps`]), to answer with the noise and to stay consistent with the
//! model that it began as ([`Objective`]). Every random number is a function of the seed and the number of an image in the whole
//! training, so that a training that was interrupted goes on to the same bits, with any number of threads.

mod data;
mod gradients;
mod log;
mod loss;
mod memory;
mod network;
mod optimizer;
mod parameters;
mod rate;
mod run;
mod state;
mod timesteps;
mod trainer;
mod weighting;

pub use data::{Crop, Data};
pub use gradients::{Alike, Gradients};
pub use log::{COLUMNS, Row};
pub use loss::{Batch, Losses, Objective};
pub use memory::Memory;
pub use network::{Network, Source, drawn};
pub use optimizer::{AdamW, MovingAverage};
pub use parameters::{Kept, Parameters};
pub use rate::{Course, Rate};
pub use run::{Training, train};
pub use state::{restore, save, write_model};
pub use timesteps::Timesteps;
pub use trainer::{Method, Trainer};
pub use weighting::{WEIGHTINGS, Weighting};
