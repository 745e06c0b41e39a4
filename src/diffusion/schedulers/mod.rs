//! From noise to images: which timesteps a model is asked at, and what is made of its answers.
//!
//! A [`Config`] is a diffusers `scheduler_config.json`. Any scheduler can be built from any of them, as diffusers'
//! `Scheduler.from_config(other.config)` does: what the file says of keys that both know is kept, what it does not say
//! is the default of the scheduler that is built. Defaults and numbers are those of diffusers 0.42.
//!
//! A new scheduler is one file here and one line in [`SCHEDULERS`].

mod answer;
mod config;
mod ddim;
mod ddpm;
mod dpm;
mod euler;
mod heun;
mod levels;
mod noising;
mod pndm;
mod schedule;
mod unipc;

pub use config::Config;
pub use noising::Noising;

use crate::error::Error;
use candle_core::{Result, Tensor};

/// One way from noise to images, at the timesteps of one sampling run.
///
/// The model is asked [`timesteps`](Self::timesteps)`.len()` times. Call `i` is given
/// [`scale_input`](Self::scale_input)`(i, x)` and `timesteps()[i]`; [`step`](Self::step) makes the next `x` of its
/// answer. Steps are taken in order, each once: solvers of higher order remember what came before.
pub trait Scheduler {
    /// The timesteps at which the model is asked, one a call.
    fn timesteps(&self) -> &[f32];

    /// By what the first noise, N(0, 1), is multiplied.
    fn initial_scale(&self) -> f64 {
        1.0
    }

    /// What the model is given of a sample.
    ///
    /// # Errors
    /// candle's.
    fn scale_input(&self, _call: usize, sample: &Tensor) -> Result<Tensor> {
        Ok(sample.clone())
    }

    /// Whether the step of this call needs noise of its own.
    fn needs_noise(&self, _call: usize) -> bool {
        false
    }

    /// The next sample, of the model's answer to `sample` (not scaled): batch first, any number of dimensions behind.
    ///
    /// `noise` has the sample's shape, and is there where [`needs_noise`](Self::needs_noise) says so.
    ///
    /// # Errors
    /// candle's, and where steps are not taken in order or noise is missing.
    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<Tensor>;
}

/// A scheduler that can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The name on the command line.
    pub name: &'static str,
    /// diffusers' class, by which configurations name it.
    pub class: &'static str,
    /// One line on what it is, with its paper.
    pub about: &'static str,
    /// Builds it for a number of steps.
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Recipe`] naming the key whose value it does not implement, and for numbers of
    /// steps that it cannot take.
    pub build: fn(&Config, usize) -> crate::Result<Box<dyn Scheduler>>,
}

/// All schedulers, the oldest first.
pub const SCHEDULERS: &[Entry] =
    &[ddpm::ENTRY, ddim::ENTRY, pndm::ENTRY, dpm::ENTRY, euler::ENTRY, heun::ENTRY, unipc::ENTRY];

/// The scheduler of a name.
///
/// # Errors
/// [`Error::Unknown`].
pub fn by_name(name: &str) -> crate::Result<&'static Entry> {
    let found = SCHEDULERS.iter().find(|entry| entry.name == name);
    found.ok_or_else(|| Error::unknown("scheduler", name, SCHEDULERS.iter().map(|entry| entry.name)))
}

/// Counts the steps that were taken, and refuses those that are not the next one.
#[derive(Debug, Default)]
struct Steps(usize);

impl Steps {
    fn take(&mut self, call: usize, calls: usize) -> Result<()> {
        if call >= calls {
            candle_core::bail!("step {call} was asked of a scheduler that has {calls}");
        }
        if call != self.0 {
            candle_core::bail!("step {call} was asked of a scheduler whose next one is {}", self.0);
        }
        self.0 += 1;
        Ok(())
    }
}

/// `a·x + b·y`.
fn sum(a: f64, x: &Tensor, b: f64, y: &Tensor) -> Result<Tensor> {
    x.affine(a, 0.0)? + y.affine(b, 0.0)?
}

/// The noise of a step that needs it.
fn given(noise: Option<&Tensor>) -> Result<&Tensor> {
    noise.ok_or_else(|| candle_core::Error::msg("a step that needs noise was given none"))
}
