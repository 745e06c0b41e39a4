//! DPM-Solver++, multistep (Lu et al. 2022, <https://arxiv.org/abs/2211.01095>, algorithm 2).
//!
//! In `λ = −ln σ`, with `h = λ'−λ` and the predicted images `D₀`, and `D₁` the change of them by `h`:
//! `x' = σ'/σ·x − α'(e⁻ʰ−1)·D₀ − α'(e⁻ʰ−1)/2·D₁` (midpoint) or `… + α'((e⁻ʰ−1)/h+1)·D₁` (heun).

use super::answer::{Prediction, Range, check_shapes};
use super::config::{Config, Reader};
use super::levels::{End, Levels, Rounding, Spread, read_end, scales};
use super::schedule::{Defaults, Schedule, Terminal};
use super::{Entry, Scheduler, Steps, sum};
use candle_core::{Result, Tensor};

pub(super) const ENTRY: Entry = Entry {
    name: "dpm++",
    class: "DPMSolverMultistepScheduler",
    about: "DPM-Solver++, multistep of order 2 in log-SNR (Lu et al. 2022)",
    build,
};

/// Runs shorter than this end with a step of first order.
const SHORT: usize = 15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Solver {
    Midpoint,
    Heun,
}

#[derive(Debug)]
struct Dpm {
    prediction: Prediction,
    range: Range,
    order: usize,
    solver: Solver,
    /// Whether the last step is of first order.
    ends_low: bool,
    levels: Levels,
    /// The image that was predicted before.
    before: Option<Tensor>,
    steps: Steps,
}

fn build(config: &Config, steps: usize) -> crate::Result<Box<dyn Scheduler>> {
    let reader = Reader::new(config, ENTRY)?;
    reader.no_eta()?;
    let defaults = Defaults { betas: (0.0001, 0.02), spacing: "linspace", terminal: Terminal::Tiny };
    let schedule = Schedule::read(&reader, &defaults)?;
    let prediction = Prediction::read(&reader)?;
    let range = Range::read(&reader, None, true)?;
    let order = reader.count("solver_order", 2)?;
    if !(1..=2).contains(&order) {
        return Err(reader.error("solver_order", "1 and 2 are implemented"));
    }
    reader.choice("algorithm_type", "dpmsolver++", &[("dpmsolver++", ())])?;
    // What other classes call their solvers stands for diffusers' default here, as there.
    let (midpoint, heun) = (Solver::Midpoint, Solver::Heun);
    let solvers = [("midpoint", midpoint), ("heun", heun), ("logrho", midpoint), ("bh1", midpoint), ("bh2", midpoint)];
    let solver = reader.choice("solver_type", "midpoint", &solvers)?;
    let lower_order_final = reader.flag("lower_order_final", true)?;
    let euler_at_final = reader.flag("euler_at_final", false)?;
    let end = read_end(&reader)?;
    let least_lambda = reader.number_or_minus_infinity("lambda_min_clipped")?;
    let spread = Spread::read(&reader)?;
    reader.off(&["use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting"])?;
    reader.pass(&["flow_shift", "time_shift_type"]);
    // DDPM's; only models that learned their variance answer with it.
    let fixed = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"].map(|name| (name, ()));
    reader.optional_choice("variance_type", "fixed_small", &fixed)?;
    reader.finish()?;

    // Log-SNR falls with the timestep: those below the bound are the last ones.
    let lambda = |alpha: &f32| alpha.sqrt().ln() - (1.0 - alpha).sqrt().ln();
    let known = schedule.alphas_cumprod.iter().filter(|alpha| f64::from(lambda(alpha)) >= least_lambda).count();
    let timesteps = schedule.without_end(steps, known)?;
    let rounding = if schedule.is_cosine { Rounding::Down } else { Rounding::Nearest };
    let levels = spread.over_all(&schedule, timesteps, rounding)?.ending(&schedule, end);
    let count = levels.timesteps.len();
    let ends_low = euler_at_final || (lower_order_final && count < SHORT) || end == End::Zero;
    let steps = Steps::default();
    Ok(Box::new(Dpm { prediction, range, order, solver, ends_low, levels, before: None, steps }))
}

impl Scheduler for Dpm {
    fn timesteps(&self) -> &[f32] {
        &self.levels.timesteps
    }

    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let calls = self.levels.timesteps.len();
        self.steps.take(call, calls)?;
        let output = check_shapes(output, sample)?;
        let (sigma, next) = (self.levels.sigma(call)?, self.levels.sigma(call + 1)?);
        let (now, then) = (scales(sigma), scales(next));
        let image = self.range.keep(self.prediction.image(now, &output, sample)?)?;
        let before = self.before.replace(image.clone());
        // e⁻ʰ − 1.
        let shrink = next / sigma - 1.0;
        if shrink == 0.0 {
            return Ok(sample.clone());
        }
        let first = sum(then.1 / now.1, sample, -then.0 * shrink, &image)?;
        let is_low = self.order == 1 || (call + 1 == calls && self.ends_low);
        let Some(before) = before.filter(|_| !is_low) else { return Ok(first) };
        let h = (sigma / next).ln();
        let h_before = (self.levels.sigma(call.saturating_sub(1))? / sigma).ln();
        if h_before == 0.0 {
            return Ok(first);
        }
        let weight = then.0
            * match self.solver {
                Solver::Midpoint => -0.5 * shrink,
                Solver::Heun => shrink / h + 1.0,
            };
        let change = (image - before)?.affine(weight * h / h_before, 0.0)?;
        first + change
    }
}
