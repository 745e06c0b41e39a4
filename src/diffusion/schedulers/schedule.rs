//! How much noise there is at each timestep of training, and which timesteps are asked of it.
//!
//! A sample at timestep `t` is `√ᾱ_t·x₀ + √(1−ᾱ_t)·ε` with `ᾱ_t = ∏(1−β_s)`. Betas are f32, and products are rounded to f32 one
//! by one, as torch does it.
//! Sources: Ho et al. 2020, <https://arxiv.org/abs/2006.11239>; Nichol and Dhariwal 2021 (cosine),
//! <https://arxiv.org/abs/2102.09672>; Lin et al. 2023 (spacings, zero terminal SNR), <https://arxiv.org/abs/2305.08891>.

use super::config::Reader;
use crate::error::{Error, Result};
use std::f64::consts::FRAC_PI_2;

/// Betas from the first one, the last one, and how many there are.
type Curve = fn(f64, f64, usize) -> Vec<f32>;

/// More timesteps than any model was trained with.
const MOST_TIMESTEPS: usize = 1_000_000;

/// How timesteps lie in those of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    /// Every `T/n`-th from the first.
    Leading,
    /// Every `T/n`-th from the last.
    Trailing,
    /// Evenly from the first to the last.
    Linspace,
}

/// What `rescale_betas_zero_snr` makes of the last timestep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminal {
    /// The scheduler has no such key.
    AsIs,
    /// ᾱ = 0.
    Zero,
    /// ᾱ = 2⁻²⁴, for schedulers that divide by it.
    Tiny,
}

/// Where schedulers' defaults differ.
pub(super) struct Defaults {
    pub(super) betas: (f64, f64),
    pub(super) spacing: &'static str,
    pub(super) terminal: Terminal,
}

/// The noise of a training.
#[derive(Debug)]
pub(super) struct Schedule {
    /// ᾱ by timestep.
    pub(super) alphas_cumprod: Vec<f32>,
    pub(super) spacing: Spacing,
    steps_offset: usize,
    pub(super) is_cosine: bool,
}

impl Schedule {
    pub(super) fn read(reader: &Reader, defaults: &Defaults) -> Result<Self> {
        let spacings =
            [("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];
        let spacing = reader.choice("timestep_spacing", defaults.spacing, &spacings)?;
        let steps_offset = reader.count("steps_offset", 0)?;
        let count = reader.count("num_train_timesteps", 1000)?;
        if !(2..=MOST_TIMESTEPS).contains(&count) {
            return Err(reader.error("num_train_timesteps", &format!("it is from 2 to {MOST_TIMESTEPS}")));
        }

        let start = reader.number("beta_start", defaults.betas.0)?;
        let end = reader.number("beta_end", defaults.betas.1)?;
        let curves: [(&str, Curve); 3] =
            [("linear", linspace_f32), ("scaled_linear", scaled_linear), ("squaredcos_cap_v2", |_, _, n| cosine(n))];
        let curve = reader.choice("beta_schedule", "linear", &curves);
        let is_cosine =
            reader.choice("beta_schedule", "linear", &curves.map(|(name, _)| (name, name == "squaredcos_cap_v2")));
        let (mut betas, from) = match reader.optional_numbers("trained_betas")? {
            Some(trained) => (trained.iter().map(|&beta| beta as f32).collect(), "trained_betas"),
            None => (curve?(start, end, count), "beta_end"),
        };
        if betas.len() != count {
            return Err(reader.error(from, &format!("there are {} for {count} timesteps", betas.len())));
        }
        if !betas.iter().all(|beta| *beta > 0.0 && *beta < 1.0) {
            return Err(reader.error(from, "betas lie between 0 and 1"));
        }
        let rescales = defaults.terminal != Terminal::AsIs && reader.flag("rescale_betas_zero_snr", false)?;
        if rescales {
            rescale_to_zero_terminal_snr(&mut betas);
        }
        let mut alphas_cumprod = cumulative_products(&betas);
        if let (true, Terminal::Tiny, Some(last)) = (rescales, defaults.terminal, alphas_cumprod.last_mut()) {
            *last = 2f32.powi(-24);
        }
        Ok(Self { alphas_cumprod, spacing, steps_offset, is_cosine: is_cosine.unwrap_or(false) })
    }

    /// Timesteps of training.
    pub(super) fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// That a number of steps can be taken.
    pub(super) fn check_steps(&self, steps: usize) -> Result<()> {
        let most = self.len();
        if (1..=most).contains(&steps) {
            return Ok(());
        }
        Err(Error::Recipe(format!("{steps} steps cannot be taken: the model knows {most} timesteps, so 1 to {most}")))
    }

    /// ᾱ at a timestep; before the first, `before`.
    pub(super) fn alpha_cumprod(&self, timestep: i64, before: f64) -> Option<f64> {
        if timestep < 0 {
            return Some(before);
        }
        self.alphas_cumprod.get(usize::try_from(timestep).ok()?).map(|&alpha| f64::from(alpha))
    }

    /// Whole timesteps, falling: what DDPM, DDIM and PNDM ask for.
    pub(super) fn whole(&self, steps: usize) -> Result<Vec<f64>> {
        self.check_steps(steps)?;
        let timesteps = match self.spacing {
            Spacing::Linspace => self.even(self.len() - 1, steps).map(f64::round_ties_even).collect(),
            _ => self.strided(steps),
        };
        self.checked(timesteps, steps)
    }

    /// Timesteps that may lie between two of training, falling: what Euler and Heun ask for.
    pub(super) fn fractional(&self, steps: usize) -> Result<Vec<f64>> {
        self.check_steps(steps)?;
        let timesteps = match self.spacing {
            Spacing::Linspace => self.even(self.len() - 1, steps).map(|t| f64::from(t as f32)).collect(),
            _ => self.strided(steps),
        };
        self.checked(timesteps, steps)
    }

    /// Whole timesteps, falling, of the first `known`, without that which the last step ends at: what solvers in log-SNR
    /// ask for.
    pub(super) fn without_end(&self, steps: usize, known: usize) -> Result<Vec<f64>> {
        self.check_steps(steps)?;
        let offset = self.steps_offset as f64;
        let timesteps = match self.spacing {
            Spacing::Linspace => {
                self.even(known.saturating_sub(1), steps + 1).take(steps).map(f64::round_ties_even).collect()
            }
            Spacing::Leading => {
                let stride = known / (steps + 1);
                (1..=steps).rev().map(|i| (i * stride) as f64 + offset).collect()
            }
            Spacing::Trailing => self.trailing(known, steps),
        };
        self.checked(timesteps, steps)
    }

    /// `count` numbers from `last` down to 0.
    fn even(&self, last: usize, count: usize) -> impl Iterator<Item = f64> + use<> {
        let step = last as f64 / (count - 1).max(1) as f64;
        (0..count).rev().map(move |i| if count > 1 && i == count - 1 { last as f64 } else { i as f64 * step })
    }

    fn strided(&self, steps: usize) -> Vec<f64> {
        if self.spacing == Spacing::Trailing {
            return self.trailing(self.len(), steps);
        }
        let stride = self.len() / steps;
        (0..steps).rev().map(|i| (i * stride + self.steps_offset) as f64).collect()
    }

    /// From `known − 1` by `T/n`. Where `T/n` is rounded down, numpy's range has one more, −1, which is no timestep.
    fn trailing(&self, known: usize, steps: usize) -> Vec<f64> {
        let (start, stride) = (known as f64, self.len() as f64 / steps as f64);
        let step = (start - stride) - start;
        let count = (start / stride).ceil() as usize;
        (0..count.min(steps)).map(|i| (start + i as f64 * step).round_ties_even() - 1.0).collect()
    }

    fn checked(&self, timesteps: Vec<f64>, steps: usize) -> Result<Vec<f64>> {
        let last = (self.len() - 1) as f64;
        if let Some(beyond) = timesteps.iter().find(|t| !(0.0..=last).contains(*t)) {
            return Err(Error::Recipe(format!(
                "{steps} steps with `steps_offset` {} begin at timestep {beyond}, but the model knows 0 to {last}; take fewer \
                 steps",
                self.steps_offset
            )));
        }
        if timesteps.is_empty() || timesteps.windows(2).any(|pair| pair[0] <= pair[1]) {
            return Err(Error::Recipe(format!(
                "{steps} steps cannot be spread over the model's timesteps, as two of them would be one; take fewer"
            )));
        }
        Ok(timesteps)
    }
}

/// As torch computes it: from both ends to the middle, each product added with one rounding.
fn linspace_f32(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / count.saturating_sub(1).max(1) as f32;
    let at = |i: usize| {
        if i < count / 2 { step.mul_add(i as f32, start) } else { (-step).mul_add((count - 1 - i) as f32, end) }
    };
    (0..count).map(at).collect()
}

fn scaled_linear(start: f64, end: f64, count: usize) -> Vec<f32> {
    linspace_f32(start.sqrt(), end.sqrt(), count).into_iter().map(|root| root * root).collect()
}

/// `ᾱ(t) = cos²((t + 0.008)/1.008·π/2)`, with betas of at most 0.999.
fn cosine(count: usize) -> Vec<f32> {
    let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    let n = count as f64;
    (0..count).map(|i| (1.0 - alpha_bar((i + 1) as f64 / n) / alpha_bar(i as f64 / n)).min(0.999) as f32).collect()
}

fn cumulative_products(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0f64;
    let next = |beta: &f32| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(next).collect()
}

/// Moves √ᾱ so that the last is 0 and the first stays (Lin et al. 2023, algorithm 1).
fn rescale_to_zero_terminal_snr(betas: &mut [f32]) {
    let roots: Vec<f32> = cumulative_products(betas).into_iter().map(f32::sqrt).collect();
    let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return };
    let scale = first / (first - last);
    let mut before = 1.0;
    for (beta, root) in betas.iter_mut().zip(roots) {
        let root = (root - last) * scale;
        let alpha_cumprod = root * root;
        *beta = 1.0 - alpha_cumprod / before;
        before = alpha_cumprod;
    }
}
