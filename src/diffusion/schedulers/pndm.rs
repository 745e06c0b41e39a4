//! PNDM: a linear multistep method on DDIM's manifold (Liu et al. 2022, <https://arxiv.org/abs/2202.09778>).
//!
//! A step goes by formula 9, `x' = √(ᾱ'/ᾱ)·x − (ᾱ'−ᾱ)·ε/(ᾱ·√(1−ᾱ') + √(ᾱ·(1−ᾱ)·ᾱ'))`, with ε a sum of what the model answered at
//! this timestep and before: `(55ε₀ − 59ε₁ + 37ε₂ − 9ε₃)/24`. The first three steps are Runge and Kutta's, of four calls
//! each; with `skip_prk_steps` (PLMS) they are of lower order, and the second timestep is asked at twice.

use super::answer::{Prediction, check_shapes};
use super::config::{Config, Reader};
use super::schedule::{Defaults, Schedule, Terminal};
use super::{Entry, Scheduler, Steps, sum};
use crate::error::Error;
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

pub(super) const ENTRY: Entry = Entry {
    name: "pndm",
    class: "PNDMScheduler",
    about: "linear multistep of order 4 on DDIM's manifold; with skip_prk_steps, PLMS (Liu et al. 2022)",
    build,
};

/// Answers that a step is made of.
const ORDER: usize = 4;

/// What is done with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Call 0 to 3 of a Runge-Kutta step.
    RungeKutta(usize),
    /// A multistep.
    Multistep,
    /// A multistep taken a second time, from the same sample, with the mean of both answers.
    Again,
}

/// One call: what is done, and from which timestep to which.
#[derive(Clone, Copy, Debug)]
struct Call {
    part: Part,
    from: i64,
    to: i64,
}

#[derive(Debug)]
struct Pndm {
    schedule: Schedule,
    prediction: Prediction,
    /// ᾱ behind the last step.
    last: f64,
    timesteps: Vec<f32>,
    calls: Vec<Call>,
    /// The latest first.
    answers: VecDeque<Tensor>,
    /// Of the Runge-Kutta step: what its answers add up to.
    gathered: Option<Tensor>,
    /// Where the step began.
    start: Option<Tensor>,
    steps: Steps,
}

fn build(config: &Config, steps: usize) -> crate::Result<Box<dyn Scheduler>> {
    let reader = Reader::new(config, ENTRY)?;
    reader.no_eta()?;
    let defaults = Defaults { betas: (0.0001, 0.02), spacing: "leading", terminal: Terminal::AsIs };
    let schedule = Schedule::read(&reader, &defaults)?;
    let choices: Vec<_> =
        Prediction::ALL.into_iter().filter(|(_, prediction)| *prediction != Prediction::Sample).collect();
    let prediction = reader.choice("prediction_type", "epsilon", &choices)?;
    let skips_runge_kutta = reader.flag("skip_prk_steps", false)?;
    let ends_at_one = reader.flag("set_alpha_to_one", false)?;
    reader.finish()?;
    let whole: Vec<i64> = schedule.whole(steps)?.into_iter().map(|t| t as i64).collect();
    let stride = (schedule.len() / steps) as i64;
    let (timesteps, calls) = if skips_runge_kutta {
        plms(&whole, stride)
    } else if steps < ORDER {
        return Err(Error::Recipe(format!(
            "{steps} steps are too few for `pndm`, whose first three are Runge-Kutta's; take {ORDER} or more"
        )));
    } else {
        runge_kutta(&whole, stride)
    };
    let known = |call: &Call| call.from < schedule.len() as i64 && call.to < schedule.len() as i64;
    if !calls.iter().all(known) {
        return Err(Error::Recipe(format!(
            "`pndm` with {steps} steps would begin at a timestep the model does not know"
        )));
    }
    let timesteps = timesteps.into_iter().map(|t| t as f32).collect();
    let last = if ends_at_one { Some(1.0) } else { schedule.alpha_cumprod(0, 1.0) }.unwrap_or(1.0);
    let (answers, steps) = (VecDeque::new(), Steps::default());
    Ok(Box::new(Pndm { schedule, prediction, last, timesteps, calls, answers, gathered: None, start: None, steps }))
}

/// The second timestep is asked at twice: first a step is taken to it, then once more with what it answered.
fn plms(whole: &[i64], stride: i64) -> (Vec<i64>, Vec<Call>) {
    let mut timesteps = whole.to_vec();
    if let Some(&second) = whole.get(1) {
        timesteps.insert(1, second);
    }
    let call = |(at, &t): (usize, &i64)| match at {
        1 => Call { part: Part::Again, from: t + stride, to: t },
        _ => Call { part: Part::Multistep, from: t, to: t - stride },
    };
    let calls = timesteps.iter().enumerate().map(call).collect();
    (timesteps, calls)
}

/// Three steps of four calls: at the timestep, twice half way to the next, and there.
fn runge_kutta(whole: &[i64], stride: i64) -> (Vec<i64>, Vec<Call>) {
    let half = stride / 2;
    let mut timesteps = Vec::new();
    let mut calls = Vec::new();
    for pair in whole.windows(2).take(ORDER - 1) {
        let &[this, next] = pair else { continue };
        for (part, t) in [this, next + half, next + half, next].into_iter().enumerate() {
            timesteps.push(t);
            let down = if part % 2 == 0 { half } else { 0 };
            calls.push(Call { part: Part::RungeKutta(part), from: this, to: t - down });
        }
    }
    for &t in whole.iter().skip(ORDER - 1) {
        timesteps.push(t);
        calls.push(Call { part: Part::Multistep, from: t, to: t - stride });
    }
    (timesteps, calls)
}

impl Pndm {
    /// Formula 9.
    fn advance(&self, call: Call, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let of = |timestep| self.schedule.alpha_cumprod(timestep, self.last);
        let Some((now, next)) = of(call.from).zip(of(call.to)) else {
            candle_core::bail!("a timestep that the model does not know");
        };
        let epsilon = self.prediction.noise((now.sqrt(), (1.0 - now).sqrt()), output, sample)?;
        let denominator = now * (1.0 - next).sqrt() + (now * (1.0 - now) * next).sqrt();
        sum((next / now).sqrt(), sample, -(next - now) / denominator, &epsilon)
    }

    fn remember(&mut self, answer: Tensor) {
        self.answers.push_front(answer);
        self.answers.truncate(ORDER);
    }

    /// What the latest answers say together.
    fn combined(&self) -> Result<Tensor> {
        let weights: &[f64] = match self.answers.len() {
            0 | 1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let mut terms = self.answers.iter().zip(weights).map(|(answer, &weight)| answer.affine(weight, 0.0));
        let first = terms.next().unwrap_or_else(|| Err(candle_core::Error::msg("a step without an answer")))?;
        terms.try_fold(first, |total, term| total + term?)
    }

    fn runge_kutta(&mut self, part: usize, call: Call, output: Tensor, sample: &Tensor) -> Result<Tensor> {
        if part == 0 {
            self.start = Some(sample.clone());
            self.remember(output.clone());
        }
        let weight = if part == 0 || part == 3 { 1.0 / 6.0 } else { 1.0 / 3.0 };
        let weighted = output.affine(weight, 0.0)?;
        let gathered = match self.gathered.take() {
            Some(gathered) => (gathered + weighted)?,
            None => weighted,
        };
        let start = self.start.clone().unwrap_or_else(|| sample.clone());
        if part == 3 {
            return self.advance(call, &gathered, &start);
        }
        self.gathered = Some(gathered);
        self.advance(call, &output, &start)
    }
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn step(&mut self, call: usize, output: &Tensor, sample: &Tensor, _noise: Option<&Tensor>) -> Result<Tensor> {
        self.steps.take(call, self.calls.len())?;
        let output = check_shapes(output, sample)?;
        let Some(&todo) = self.calls.get(call) else { candle_core::bail!("there is no call {call}") };
        match todo.part {
            Part::RungeKutta(part) => self.runge_kutta(part, todo, output, sample),
            Part::Again => {
                let (Some(before), Some(start)) = (self.answers.front(), self.start.take()) else {
                    candle_core::bail!("a step is taken again that was not taken");
                };
                let mean = sum(0.5, &output, 0.5, before)?;
                self.advance(todo, &mean, &start)
            }
            Part::Multistep => {
                if call == 0 {
                    self.start = Some(sample.clone());
                }
                self.remember(output);
                self.advance(todo, &self.combined()?, sample)
            }
        }
    }
}
