//! Options of commands that look at what networks make of noisy images.

use super::data::prepared;
use super::report::{Report, check_beside, check_kept};
use super::sample::{named_config, scheduler_of, size};
use super::{Common, without_adapters};
use crate::checkpoint::Checkpoint;
use crate::diffusion::schedulers::Noising;
use crate::diffusion::unet::Config;
use crate::diffusion::{Ddpm, Noise};
use crate::error::Error;
use crate::images::Set;
use crate::recipe::Selection;
use crate::train::{Crop, Data};
use candle_core::{Device, Tensor};
use clap::Args;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Which noise, over images of which size.
#[derive(Args)]
pub(super) struct NoisyImages {
    /// Images at a time [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,
    /// What the noise follows from [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Rows and columns that images are resized and cut to, as 64 or 64x96 [default: as the network was trained]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<(usize, usize)>,
    /// What network it is: a config.json, or cifar10, church or bedroom [default: the one beside the model]
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// The noise: a scheduler_config.json [default: the one beside the model, or DDPM's]
    #[arg(long, value_name = "FILE.json")]
    scheduler_config: Option<PathBuf>,
}

impl NoisyImages {
    /// Whether one of the options was given.
    pub(super) fn is_given(&self) -> bool {
        let Self { batch, seed, size, config, scheduler_config } = self;
        batch.is_some() || seed.is_some() || size.is_some() || config.is_some() || scheduler_config.is_some()
    }

    /// Images at a time.
    pub(super) fn batch(&self) -> usize {
        self.batch.unwrap_or(16) as usize
    }

    /// What the noise follows from.
    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// Opens a model, which none of the outputs is, and whose tensors the patterns of a selection match.
    pub(super) fn model(
        &self,
        path: &Path,
        outputs: &[Option<&Path>],
        selection: Option<&Selection>,
        common: &Common,
        report: &Report,
    ) -> anyhow::Result<Ddpm> {
        without_adapters(path)?;
        let checkpoint = Checkpoint::open_with(path, &common.open())?;
        common.check_selected([&checkpoint])?;
        check_beside(outputs, std::iter::once(&checkpoint))?;
        check_kept(outputs, &[Some(path), self.config.as_deref(), self.scheduler_config.as_deref()])?;
        selection.map_or(Ok(()), |selection| selection.check(std::iter::once(&checkpoint)))?;
        report.about(&checkpoint);
        Ok(Ddpm::open(checkpoint, self.config.as_deref().map(named_config).transpose()?)?)
    }

    /// The noise that models were trained on.
    pub(super) fn noising(&self, model: &Ddpm, report: &Report) -> Result<Noising, Error> {
        Noising::new(&scheduler_of(model, self.scheduler_config.as_deref(), report)?)
    }

    /// Whether the noise is said, whatever models come with.
    pub(super) fn has_noise(&self) -> bool {
        self.scheduler_config.is_some()
    }

    /// The images, as the network takes them.
    pub(super) fn data(&self, set: Set, config: &Config) -> Result<Data, Error> {
        prepared(set, config, self.size, Crop::Center, false)
    }

    /// Some images with their noise, on the CPU.
    pub(super) fn pairs(&self, data: &Data, range: Range<usize>) -> Result<(Tensor, Tensor), Error> {
        let noise = Noise::new(self.seed()).tensor("noise over images", range.clone(), data.shape(), &Device::Cpu)?;
        Ok((data.images(range)?, noise))
    }
}

/// How many of a set's images are taken: those that were asked for, which must be there, or at most `most`.
pub(super) fn taken(asked: Option<u32>, most: usize, data: &Data) -> Result<usize, Error> {
    let all = data.len();
    match asked.map(|asked| asked as usize) {
        Some(asked) if asked > all => Err(Error::Recipe(format!("there are {all} images, not {asked}"))),
        Some(asked) => Ok(asked),
        None => Ok(all.min(most)),
    }
}

/// So many timesteps of all, evenly spaced: the middles of as many equal ranges.
pub(super) fn evenly_spaced(count: usize, all: usize) -> Vec<usize> {
    (0..count).map(|index| (2 * index + 1) * all / (2 * count.max(1))).collect()
}

#[cfg(test)]
mod tests {
    use super::evenly_spaced;

    #[test]
    fn timesteps_lie_in_the_middles_of_equal_ranges() {
        assert_eq!(evenly_spaced(4, 1000), [125, 375, 625, 875]);
        assert_eq!(evenly_spaced(1, 1000), [500]);
        assert_eq!(evenly_spaced(20, 1000)[..3], [25, 75, 125]);
        assert_eq!(evenly_spaced(3, 3), [0, 1, 2]);
    }
}
