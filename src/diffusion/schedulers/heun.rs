//! Heun's method for the ODE in σ (Karras et al. 2022, <https://arxiv.org/abs/2206.00364>, algorithm 1).
//!
//! As Euler's, but each step is taken a second time with the mean of the slopes at its two ends. So the model is asked
//! twice a step, and once in the last, which ends at σ = 0.

use super::answer::{Prediction, Range, check_shapes};
use super::config::{Config, Reader};
use super::euler::slope;
use super::levels::{End, Levels, Spread, scales};
use super::schedule::{Defaults, Schedule, Spacing, Terminal};
use super::{Entry, Scheduler, Steps, sum};
use candle_core::{Result, Tensor};

pub(super) const ENTRY: Entry = Entry {
    name: "heun",
    class: "HeunDiscreteScheduler",
    about: "Heun's method in sigma: two calls a step (Karras et al. 2022)",
    build,
};

#[derive(Debug)]
struct Heun {
    prediction: Prediction,
    range: Range,
    spacing: Spacing,
    levels: Levels,
    /// One a call.
    timesteps: Vec<f32>,
    /// Where a step began, and its slope there.
    start: Option<(Tensor, Tensor)>,
    steps: Steps,
}

fn build(config: &Config, steps: usize) -> crate::Result<Box<dyn Scheduler>> {
    let reader = Reader::new(config, ENTRY)?;
    reader.no_eta()?;
    let defaults = Defaults { betas: (0.00085, 0.012), spacing: "linspace", terminal: Terminal::AsIs };
    let schedule = Schedule::read(&reader, &defaults)?;
    let prediction = Prediction::read(&reader)?;
    let range = Range::read(&reader, Some(false), false)?;
    let spread = Spread::read(&reader)?;
    reader.finish()?;
    let timesteps = schedule.fractional(steps)?;
    let levels = spread.between_steps(&schedule, timesteps)?.ending(&schedule, End::Zero);
    // Call 2i−1 and call 2i are both at timestep i: the end of a step, and the beginning of the next.
    let timesteps = levels.timesteps.iter().flat_map(|&t| [t, t]).skip(1).collect();
    let (spacing, steps) = (schedule.spacing, Steps::default());
    Ok(Box::new(Heun { prediction, range, spacing, levels, timesteps, start: None, steps }))
}

impl Scheduler for Heun {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn initial_scale(&self) -> f64 {
        self.levels.initial_scale(self.spacing)
    }

    fn scale_input(&self, call: usize, sample: &Tensor) -> Result<Tensor> {
        sample.affine(scales(self.levels.sigma(call.div_ceil(2))?).0, 0.0)
    }

    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        self.steps.take(call, self.timesteps.len())?;
        let output = check_shapes(output, sample)?;
        let sigma = self.levels.sigma(call.div_ceil(2))?;
        let slope = slope(self.prediction, self.range, sigma, &output, sample)?;
        if let Some((start, first)) = self.start.take() {
            let step = (sigma - self.levels.sigma(call / 2)?) / 2.0;
            return sum(1.0, &start, step, &(first + slope)?);
        }
        let step = self.levels.sigma(call / 2 + 1)? - sigma;
        let end = sum(1.0, sample, step, &slope)?;
        self.start = Some((sample.clone(), slope));
        Ok(end)
    }
}
