//! What candidates are judged by.

mod command;
#[cfg(feature = "diffusion")]
mod distance;
#[cfg(feature = "diffusion")]
mod loss;
#[cfg(feature = "diffusion")]
mod network;

pub use command::Command;
#[cfg(feature = "diffusion")]
pub use distance::{Distance, Images};
#[cfg(feature = "diffusion")]
pub use loss::{Loss, Samples};

use crate::error::Result;
use crate::stream::Control;

/// Something that gives numbers to candidates, smaller ones to better ones.
pub trait Objective: Sync {
    /// What the numbers of a candidate are.
    fn labels(&self) -> &[String];

    /// How many candidates are worth evaluating side by side, each with its share of so many threads.
    fn side_by_side(&self, threads: usize) -> usize;

    /// What evaluates one candidate after another, with all that it needs of its own.
    ///
    /// # Errors
    /// If what it needs cannot be read.
    fn evaluator(&self) -> Result<Box<dyn Evaluator + '_>>;
}

/// Evaluates one candidate after another.
pub trait Evaluator: Send {
    /// The numbers of the candidate of these weights, one for each label; NaN where the candidate is so broken that it has none. They
    /// depend on the weights alone. Runs on the current rayon pool.
    ///
    /// # Errors
    /// What stops all evaluations; [`Error::Interrupted`](crate::Error::Interrupted).
    fn evaluate(&mut self, weights: &[f64], control: Control<'_>) -> Result<Vec<f64>>;
}
