//! DDIM: deterministic, or with a share η of DDPM's noise (Song et al. 2021, <https://arxiv.org/abs/2010.02502>, formula 12).
//!
//! `x' = √ᾱ'·x₀ + √(1−ᾱ'−s²)·ε + s·z` with `s = η·√((1−ᾱ')/(1−ᾱ)·(1−ᾱ/ᾱ'))`. The noise ε stays as predicted where x₀ is clipped.
//! A step goes `T/n` timesteps down whatever the spacing, as it does in diffusers.

use super::answer::{Prediction, Range, check_shapes};
use super::config::{Config, Reader};
use super::schedule::{Defaults, Schedule, Terminal};
use super::{Entry, Scheduler, Steps, given, sum};
use candle_core::{Result, Tensor};

pub(super) const ENTRY: Entry = Entry {
    name: "ddim",
    class: "DDIMScheduler",
    about: "deterministic, or with a share eta of noise (Song et al. 2021)",
    build,
};

#[derive(Debug)]
struct Ddim {
    schedule: Schedule,
    prediction: Prediction,
    range: Range,
    eta: f64,
    /// ᾱ behind the last step.
    last: f64,
    stride: i64,
    timesteps: Vec<f32>,
    steps: Steps,
}

fn build(config: &Config, steps: usize) -> crate::Result<Box<dyn Scheduler>> {
    let reader = Reader::new(config, ENTRY)?;
    let defaults = Defaults { betas: (0.0001, 0.02), spacing: "leading", terminal: Terminal::Zero };
    let schedule = Schedule::read(&reader, &defaults)?;
    let prediction = Prediction::read(&reader)?;
    let range = Range::read(&reader, Some(true), true)?;
    let eta = reader.eta()?;
    let ends_at_one = reader.flag("set_alpha_to_one", true)?;
    let timesteps = schedule.whole(steps)?;
    prediction.check(&reader, &schedule, &timesteps)?;
    reader.finish()?;
    let timesteps = timesteps.into_iter().map(|t| t as f32).collect();
    let last = if ends_at_one { Some(1.0) } else { schedule.alpha_cumprod(0, 1.0) }.unwrap_or(1.0);
    let stride = (schedule.len() / steps) as i64;
    Ok(Box::new(Ddim { schedule, prediction, range, eta, last, stride, timesteps, steps: Steps::default() }))
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn needs_noise(&self, _call: usize) -> bool {
        self.eta > 0.0
    }

    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        self.steps.take(call, self.timesteps.len())?;
        let output = check_shapes(output, sample)?;
        let timestep = self.timesteps.get(call).map_or(-1, |&t| t as i64);
        let of = |timestep| self.schedule.alpha_cumprod(timestep, self.last);
        let Some((now, next)) = of(timestep).zip(of(timestep - self.stride)) else {
            candle_core::bail!("a timestep that the model does not know");
        };
        let scales = (now.sqrt(), (1.0 - now).sqrt());
        let image = self.range.keep(self.prediction.image(scales, &output, sample)?)?;
        let epsilon = self.prediction.noise(scales, &output, sample)?;
        let fresh = self.eta * ((1.0 - next) / (1.0 - now) * (1.0 - now / next)).max(0.0).sqrt();
        let mean = sum(next.sqrt(), &image, (1.0 - next - fresh * fresh).max(0.0).sqrt(), &epsilon)?;
        if self.eta > 0.0 { sum(1.0, &mean, fresh, given(noise)?) } else { Ok(mean) }
    }
}
