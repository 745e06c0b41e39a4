//! UniPC: a predictor and a corrector that costs no call (Zhao et al. 2023, <https://arxiv.org/abs/2302.04867>).
//!
//! In `λ = −ln σ`, for predicted images m, `x' = σ'/σ·x − α'(e^{−h}−1)·m₀ − α'B(h)·Σ ρ·D`, where each D is the change of m on
//! the way to an earlier timestep (or, correcting, to the one arrived at) and ρ solves that orders match; `B(h)` is −h
//! (bh1) or `e^{−h}−1` (bh2). In predicted noise α and σ change places and h its sign.

use super::answer::{Prediction, Range, check_shapes};
use super::config::{Config, Reader};
use super::levels::{End, Levels, Rounding, Spread, read_end, scales};
use super::schedule::{Defaults, Schedule, Terminal};
use super::{Entry, Scheduler, Steps, sum};
use candle_core::{Result, Tensor};

pub(super) const ENTRY: Entry = Entry {
    name: "unipc",
    class: "UniPCMultistepScheduler",
    about: "predictor and corrector of order 2 in log-SNR (Zhao et al. 2023)",
    build,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Solver {
    Bh1,
    Bh2,
}

#[derive(Debug)]
struct UniPc {
    prediction: Prediction,
    range: Range,
    predicts_image: bool,
    order: usize,
    solver: Solver,
    lower_order_final: bool,
    uncorrected: Vec<u64>,
    levels: Levels,
    /// What was predicted, the latest first; two at most.
    outputs: Vec<Tensor>,
    /// Where the last step began, and its order.
    start: Option<(Tensor, usize)>,
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
    // What other classes call their solvers stands for diffusers' default here, as there.
    let (bh1, bh2) = (Solver::Bh1, Solver::Bh2);
    let solvers = [("bh1", bh1), ("bh2", bh2), ("midpoint", bh2), ("heun", bh2), ("logrho", bh2)];
    let solver = reader.choice("solver_type", "bh2", &solvers)?;
    let predicts_image = reader.flag("predict_x0", true)?;
    let lower_order_final = reader.flag("lower_order_final", true)?;
    let uncorrected = reader.counts("disable_corrector")?;
    let end = read_end(&reader)?;
    let spread = Spread::read(&reader)?;
    reader.off(&["use_flow_sigmas", "use_dynamic_shifting"])?;
    reader.pass(&["flow_shift", "time_shift_type"]);
    reader.absent("solver_p")?;
    reader.absent("shift_terminal")?;
    if !predicts_image && range != Range::Free {
        return Err(reader.error("thresholding", "it needs `predict_x0`"));
    }
    if end == End::Zero && !predicts_image {
        return Err(reader.error("final_sigmas_type", "without `predict_x0` only `sigma_min` has a last step"));
    }
    if end == End::Zero && order > 1 && !lower_order_final {
        return Err(reader.error("final_sigmas_type", "without `lower_order_final` only `sigma_min` has a last step"));
    }
    reader.finish()?;
    let timesteps = schedule.without_end(steps, schedule.len())?;
    let levels = spread.over_all(&schedule, timesteps, Rounding::Nearest)?;
    let stays = spread.is_karras() && end == End::SigmaMin;
    let levels = if stays { levels.staying() } else { levels.ending(&schedule, end) };
    Ok(Box::new(UniPc {
        prediction,
        range,
        predicts_image,
        order,
        solver,
        lower_order_final,
        uncorrected,
        levels,
        outputs: Vec::new(),
        start: None,
        steps: Steps::default(),
    }))
}

impl UniPc {
    fn converted(&self, call: usize, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let scales = scales(self.levels.sigma(call)?);
        if self.predicts_image {
            self.range.keep(self.prediction.image(scales, output, sample)?)
        } else {
            self.prediction.noise(scales, output, sample)
        }
    }

    /// From level `to − 1` to `to`, of what was predicted before; `arrived` is what was predicted at `to`.
    fn update(&self, sample: &Tensor, to: usize, order: usize, arrived: Option<&Tensor>) -> Result<Tensor> {
        let (sigma, next) = (self.levels.sigma(to.saturating_sub(1))?, self.levels.sigma(to)?);
        let (now, then) = (scales(sigma), scales(next));
        let h = (sigma / next).ln();
        let Some(latest) = self.outputs.first() else { candle_core::bail!("a step without an answer") };
        if h == 0.0 {
            return Ok(sample.clone());
        }
        let (keep, scale, signed) =
            if self.predicts_image { (then.1 / now.1, then.0, -h) } else { (then.0 / now.0, then.1, h) };
        let phi = signed.exp_m1();
        let b = if self.solver == Solver::Bh1 { signed } else { phi };
        let mut result = sum(keep, sample, -scale * phi, latest)?;
        // Where orders 1 and 2 match: of the earlier answer, and of the one arrived at.
        let (phi_2, mut corrected) = (phi / signed - 1.0, 0.5);
        if let (2, Some(earlier)) = (order, self.outputs.get(1)) {
            let ratio = (sigma / self.levels.sigma(to.saturating_sub(2))?).ln() / h;
            let mut predicted = 0.5;
            if arrived.is_some() {
                let (first, second) = (phi_2 / b, 2.0 * (phi_2 / signed - 0.5) / b);
                predicted = (first - second) / (1.0 - ratio);
                corrected = first - predicted;
            }
            if ratio != 0.0 {
                result = (result + (earlier - latest)?.affine(-scale * b * predicted / ratio, 0.0)?)?;
            }
        }
        match arrived {
            Some(arrived) => result + (arrived - latest)?.affine(-scale * b * corrected, 0.0)?,
            None => Ok(result),
        }
    }
}

impl Scheduler for UniPc {
    fn timesteps(&self) -> &[f32] {
        &self.levels.timesteps
    }

    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        let calls = self.levels.timesteps.len();
        self.steps.take(call, calls)?;
        let output = check_shapes(output, sample)?;
        let output = self.converted(call, &output, sample)?;
        let is_corrected = !call.checked_sub(1).is_some_and(|before| self.uncorrected.contains(&(before as u64)));
        let sample = match self.start.take() {
            Some((start, order)) if is_corrected => self.update(&start, call, order, Some(&output))?,
            _ => sample.clone(),
        };
        self.outputs.insert(0, output);
        self.outputs.truncate(2);
        let left = if self.lower_order_final { calls - call } else { self.order };
        let order = self.order.min(left).min(call + 1);
        let next = self.update(&sample, call + 1, order, None)?;
        self.start = Some((sample, order));
        Ok(next)
    }
}
