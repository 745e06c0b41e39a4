//! How much the loss at each timestep counts: baselines that Decouple-then-Merge is compared with.
//!
//! A weighting is a function of `SNR = ᾱ/(1−ᾱ)` on the loss of the image; on that of noise it is divided by SNR, on that of
//! velocity by SNR + 1. Sources: Salimans and Ho 2022 (SNR+1, truncated SNR), <https://arxiv.org/abs/2202.00512>; Hang et al. 2023
//! (Min-SNR-γ), <https://arxiv.org/abs/2303.09556>; Choi et al. 2022 (P2), <https://arxiv.org/abs/2204.00227>.

use crate::diffusion::schedulers::Noising;
use crate::error::{Error, Result};

/// A weighting that can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Weighting {
    /// The name on the command line.
    pub name: &'static str,
    /// Its formula.
    pub about: &'static str,
    /// What γ is by default, where it has one.
    pub gamma: Option<f64>,
    /// The weight of the image's loss, by SNR and γ. None counts each timestep's own loss once.
    of_image: Option<fn(f64, f64) -> f64>,
}

/// All weightings.
pub const WEIGHTINGS: &[Weighting] = &[
    Weighting { name: "none", about: "the network's own loss, everywhere the same", gamma: None, of_image: None },
    Weighting { name: "snr+1", about: "SNR + 1", gamma: None, of_image: Some(|ratio, _| ratio + 1.0) },
    Weighting { name: "trunc-snr", about: "max(SNR, 1)", gamma: None, of_image: Some(|ratio, _| ratio.max(1.0)) },
    Weighting { name: "min-snr", about: "min(SNR, γ)", gamma: Some(5.0), of_image: Some(f64::min) },
    Weighting {
        name: "p2",
        about: "SNR / (1 + SNR)^γ",
        gamma: Some(1.0),
        of_image: Some(|ratio, gamma| ratio / (1.0 + ratio).powf(gamma)),
    },
];

impl Weighting {
    /// That of a name.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn by_name(name: &str) -> Result<&'static Self> {
        let found = WEIGHTINGS.iter().find(|weighting| weighting.name == name);
        found.ok_or_else(|| Error::unknown("weighting", name, WEIGHTINGS.iter().map(|weighting| weighting.name)))
    }

    /// By what the loss of a network's answer at a timestep is multiplied.
    #[must_use]
    pub fn weight(&self, noising: &Noising, timestep: usize, gamma: f64) -> f64 {
        let ratio = noising.signal_to_noise(timestep);
        self.of_image.map_or(1.0, |weight| weight(ratio, gamma) / noising.loss_over_that_of_image(timestep))
    }
}
