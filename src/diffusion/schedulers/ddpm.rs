//! DDPM: ancestral sampling, noise in every step but the last (Ho et al. 2020, <https://arxiv.org/abs/2006.11239>).
//!
//! `x' = √ᾱ'·β/(1−ᾱ)·x₀ + √α·(1−ᾱ')/(1−ᾱ)·x + √v·z`, where α, β are those of the way from one timestep to the next and
//! `v` is `β·(1−ᾱ')/(1−ᾱ)` (`fixed_small`) or β (`fixed_large`).

use super::answer::{Prediction, Range, check_shapes};
use super::config::{Config, Reader};
use super::schedule::{Defaults, Schedule, Terminal};
use super::{Entry, Scheduler, Steps, given, sum};
use candle_core::{Result, Tensor};

pub(super) const ENTRY: Entry = Entry {
    name: "ddpm",
    class: "DDPMScheduler",
    about: "ancestral sampling with fresh noise in each step (Ho et al. 2020)",
    build,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variance {
    Small,
    Large,
}

#[derive(Debug)]
struct Ddpm {
    schedule: Schedule,
    prediction: Prediction,
    range: Range,
    variance: Variance,
    timesteps: Vec<f32>,
    steps: Steps,
}

fn build(config: &Config, steps: usize) -> crate::Result<Box<dyn Scheduler>> {
    let reader = Reader::new(config, ENTRY)?;
    reader.no_eta()?;
    let defaults = Defaults { betas: (0.0001, 0.02), spacing: "leading", terminal: Terminal::Zero };
    let schedule = Schedule::read(&reader, &defaults)?;
    let prediction = Prediction::read(&reader)?;
    let range = Range::read(&reader, Some(true), true)?;
    // The logarithm of `fixed_large_log` is never undone in diffusers, so that it has no meaning there.
    let variances =
        [("fixed_small", Variance::Small), ("fixed_small_log", Variance::Small), ("fixed_large", Variance::Large)];
    let variance = reader.optional_choice("variance_type", "fixed_small", &variances)?;
    let timesteps = schedule.whole(steps)?;
    prediction.check(&reader, &schedule, &timesteps)?;
    reader.finish()?;
    let timesteps = timesteps.into_iter().map(|t| t as f32).collect();
    Ok(Box::new(Ddpm { schedule, prediction, range, variance, timesteps, steps: Steps::default() }))
}

impl Ddpm {
    /// ᾱ of a call and of the next one.
    fn alphas(&self, call: usize) -> Result<(f64, f64)> {
        let at = |call: usize| self.timesteps.get(call).map_or(-1, |&t| t as i64);
        let of = |timestep| self.schedule.alpha_cumprod(timestep, 1.0);
        let both = of(at(call)).zip(of(at(call + 1)));
        both.ok_or_else(|| candle_core::Error::msg("a timestep that the model does not know"))
    }
}

impl Scheduler for Ddpm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn needs_noise(&self, call: usize) -> bool {
        self.timesteps.get(call).is_some_and(|&t| t > 0.0)
    }

    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        self.steps.take(call, self.timesteps.len())?;
        let output = check_shapes(output, sample)?;
        let (now, next) = self.alphas(call)?;
        // β is what f32 leaves of 1 − α, by which diffusers' images differ from those of f64.
        let alpha = now as f32 / next as f32;
        let (alpha, beta) = (f64::from(alpha), f64::from(1.0 - alpha));
        let image = self.prediction.image((now.sqrt(), (1.0 - now).sqrt()), &output, sample)?;
        let image = self.range.keep(image)?;
        let mean = sum(next.sqrt() * beta / (1.0 - now), &image, alpha.sqrt() * (1.0 - next) / (1.0 - now), sample)?;
        if !self.needs_noise(call) {
            return Ok(mean);
        }
        let variance = match self.variance {
            Variance::Small => ((1.0 - next) / (1.0 - now) * beta).max(1e-20),
            Variance::Large => beta,
        };
        sum(1.0, &mean, variance.sqrt(), given(noise)?)
    }
}
