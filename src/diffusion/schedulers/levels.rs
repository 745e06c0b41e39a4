//! Noise levels `σ = √((1−ᾱ)/ᾱ)` of a run, for schedulers that solve in σ or in `λ = −ln σ`.
//!
//! Between timesteps σ is interpolated. Karras et al. 2022 (<https://arxiv.org/abs/2206.00364>, formula 5) spread it evenly in
//! `σ^(1/7)` instead; timesteps are then those that have such a σ.

use super::config::Reader;
use super::schedule::{Schedule, Spacing};
use crate::error::{Error, Result};

/// Timesteps and their noise.
#[derive(Debug)]
pub(super) struct Levels {
    /// One a step.
    pub(super) timesteps: Vec<f32>,
    /// One a step, and that behind the last step.
    pub(super) sigmas: Vec<f64>,
}

/// What noise is left behind the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Zero,
    /// That of the first timestep.
    SigmaMin,
}

/// How σ is spread.
#[derive(Debug)]
pub(super) struct Spread {
    is_karras: bool,
    least: Option<f64>,
    most: Option<f64>,
}

/// What becomes of the timesteps of σ that Karras et al. spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rounding {
    /// They may lie between two.
    None,
    Nearest,
    Down,
}

impl Spread {
    pub(super) fn read(reader: &Reader) -> Result<Self> {
        reader.off(&["use_exponential_sigmas", "use_beta_sigmas"])?;
        let is_karras = reader.flag("use_karras_sigmas", false)?;
        let (least, most) = (reader.optional_number("sigma_min")?, reader.optional_number("sigma_max")?);
        for (key, bound) in [("sigma_min", least), ("sigma_max", most)] {
            if bound.is_some_and(|bound| bound <= 0.0) {
                return Err(reader.error(key, "it is more than 0"));
            }
        }
        Ok(Self { is_karras, least, most })
    }

    /// σ interpolated at timesteps, and spread anew between their own bounds.
    pub(super) fn between_steps(&self, schedule: &Schedule, timesteps: Vec<f64>) -> Result<Levels> {
        let all = sigmas(schedule);
        let sigmas: Vec<f64> = timesteps.iter().map(|&t| at(&all, t)).collect();
        let bounds = (sigmas.last().copied(), sigmas.first().copied());
        self.spread(&all, timesteps, sigmas, bounds, Rounding::None)
    }

    /// σ interpolated at timesteps, and spread anew between those of all timesteps.
    pub(super) fn over_all(&self, schedule: &Schedule, timesteps: Vec<f64>, rounding: Rounding) -> Result<Levels> {
        let all = sigmas(schedule);
        let sigmas = timesteps.iter().map(|&t| at(&all, t)).collect();
        let bounds = (all.first().map(|&sigma| f64::from(sigma)), all.last().map(|&sigma| f64::from(sigma)));
        self.spread(&all, timesteps, sigmas, bounds, rounding)
    }

    fn spread(
        &self,
        all: &[f32],
        mut timesteps: Vec<f64>,
        mut sigmas: Vec<f64>,
        bounds: (Option<f64>, Option<f64>),
        rounding: Rounding,
    ) -> Result<Levels> {
        if self.is_karras {
            let count = timesteps.len();
            let (Some(least), Some(most)) = (self.least.or(bounds.0), self.most.or(bounds.1)) else {
                return Err(Error::Recipe("there are no noise levels to spread".to_owned()));
            };
            sigmas = karras(least, most, count);
            let logarithms: Vec<f64> = all.iter().map(|sigma| f64::from(sigma.ln())).collect();
            let round = |t: f64| match rounding {
                Rounding::None => t,
                Rounding::Nearest => t.round_ties_even(),
                Rounding::Down => t.trunc(),
            };
            timesteps = sigmas.iter().map(|&sigma| round(timestep_of(sigma, &logarithms))).collect();
        }
        Ok(Levels {
            timesteps: timesteps.into_iter().map(|t| t as f32).collect(),
            sigmas: sigmas.into_iter().map(single).collect(),
        })
    }

    pub(super) fn is_karras(&self) -> bool {
        self.is_karras
    }
}

impl Levels {
    /// With the noise behind the last step.
    pub(super) fn ending(mut self, schedule: &Schedule, end: End) -> Self {
        let first = sigmas(schedule).first().copied().map_or(0.0, f64::from);
        self.sigmas.push(if end == End::Zero { 0.0 } else { first });
        self
    }

    /// With the noise of the last step behind it too.
    pub(super) fn staying(mut self) -> Self {
        self.sigmas.push(self.sigmas.last().copied().unwrap_or(0.0));
        self
    }

    /// σ, where a call has one.
    pub(super) fn sigma(&self, call: usize) -> candle_core::Result<f64> {
        let found = self.sigmas.get(call).copied();
        found.ok_or_else(|| candle_core::Error::msg(format!("there is no noise level {call}")))
    }

    /// The scale of N(0, 1) that samples not divided by α begin with.
    pub(super) fn initial_scale(&self, spacing: Spacing) -> f64 {
        let most = self.sigmas.iter().copied().fold(0.0, f64::max);
        if spacing == Spacing::Leading { most.hypot(1.0) } else { most }
    }
}

pub(super) fn read_end(reader: &Reader) -> Result<End> {
    reader.choice("final_sigmas_type", "zero", &[("zero", End::Zero), ("sigma_min", End::SigmaMin)])
}

/// `α` and `α·σ` of a sample whose variance is 1.
pub(super) fn scales(sigma: f64) -> (f64, f64) {
    let alpha = 1.0 / sigma.hypot(1.0);
    (alpha, sigma * alpha)
}

fn single(sigma: f64) -> f64 {
    f64::from(sigma as f32)
}

fn sigmas(schedule: &Schedule) -> Vec<f32> {
    schedule.alphas_cumprod.iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect()
}

/// Interpolated at a timestep.
fn at(sigmas: &[f32], timestep: f64) -> f64 {
    let of = |index: f64| sigmas.get(index as usize).copied().map_or(0.0, f64::from);
    let (below, above) = (of(timestep.floor()), of(timestep.ceil()));
    (above - below) * timestep.fract() + below
}

fn karras(least: f64, most: f64, count: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (least, most) = (least.powf(1.0 / RHO), most.powf(1.0 / RHO));
    let share = |i: usize| i as f64 / count.saturating_sub(1).max(1) as f64;
    (0..count).map(|i| (most + share(i) * (least - most)).powf(RHO)).collect()
}

/// The timestep that has a σ, between those of training by their logarithms.
fn timestep_of(sigma: f64, logarithms: &[f64]) -> f64 {
    let logarithm = sigma.max(1e-10).ln();
    let last = logarithms.len().saturating_sub(2);
    let low = logarithms.iter().rposition(|&other| other <= logarithm).unwrap_or(0).min(last);
    let (Some(&below), Some(&above)) = (logarithms.get(low), logarithms.get(low + 1)) else { return 0.0 };
    let share = ((below - logarithm) / (below - above)).clamp(0.0, 1.0);
    (1.0 - share) * low as f64 + share * (low + 1) as f64
}
