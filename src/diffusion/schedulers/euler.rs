//! Euler's method for the ODE in σ (Karras et al. 2022, <https://arxiv.org/abs/2206.00364>, algorithm 2 without churn).
//!
//! Samples are `x₀ + σ·ε`; the model is given `x/√(σ²+1)`, and `x' = x + (x − x₀)/σ·(σ' − σ)`.

use super::answer::{Prediction, Range, check_shapes};
use super::config::{Config, Reader};
use super::levels::{Levels, Spread, read_end, scales};
use super::schedule::{Defaults, Schedule, Spacing, Terminal};
use super::{Entry, Scheduler, Steps, sum};
use candle_core::{Result, Tensor};

pub(super) const ENTRY: Entry = Entry {
    name: "euler",
    class: "EulerDiscreteScheduler",
    about: "Euler's method in sigma (Karras et al. 2022)",
    build,
};

#[derive(Debug)]
struct Euler {
    prediction: Prediction,
    spacing: Spacing,
    levels: Levels,
    steps: Steps,
}

fn build(config: &Config, steps: usize) -> crate::Result<Box<dyn Scheduler>> {
    let reader = Reader::new(config, ENTRY)?;
    reader.no_eta()?;
    let defaults = Defaults { betas: (0.0001, 0.02), spacing: "linspace", terminal: Terminal::Tiny };
    let schedule = Schedule::read(&reader, &defaults)?;
    let prediction = Prediction::read(&reader)?;
    let spread = Spread::read(&reader)?;
    let end = read_end(&reader)?;
    reader.choice("interpolation_type", "linear", &[("linear", ())])?;
    reader.choice("timestep_type", "discrete", &[("discrete", ())])?;
    reader.finish()?;
    let timesteps = schedule.fractional(steps)?;
    let levels = spread.between_steps(&schedule, timesteps)?.ending(&schedule, end);
    Ok(Box::new(Euler { prediction, spacing: schedule.spacing, levels, steps: Steps::default() }))
}

/// `(x − x₀)/σ` of a sample `x₀ + σ·ε`.
pub(super) fn slope(
    prediction: Prediction,
    range: Range,
    sigma: f64,
    output: &Tensor,
    sample: &Tensor,
) -> Result<Tensor> {
    let image = match prediction {
        Prediction::Epsilon if range == Range::Free => return Ok(output.clone()),
        Prediction::Epsilon => sum(1.0, sample, -sigma, output)?,
        Prediction::Sample => output.clone(),
        Prediction::V => {
            let (alpha, scaled) = scales(sigma);
            sum(alpha * alpha, sample, -scaled, output)?
        }
    };
    sum(1.0 / sigma, sample, -1.0 / sigma, &range.keep(image)?)
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f32] {
        &self.levels.timesteps
    }

    fn initial_scale(&self) -> f64 {
        self.levels.initial_scale(self.spacing)
    }

    fn scale_input(&self, call: usize, sample: &Tensor) -> Result<Tensor> {
        sample.affine(scales(self.levels.sigma(call)?).0, 0.0)
    }

    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        self.steps.take(call, self.levels.timesteps.len())?;
        let output = check_shapes(output, sample)?;
        let (sigma, next) = (self.levels.sigma(call)?, self.levels.sigma(call + 1)?);
        let slope = slope(self.prediction, Range::Free, sigma, &output, sample)?;
        sum(1.0, sample, next - sigma, &slope)
    }
}
