//! From a seed to images.
//!
//! Image `i` begins with the noise of `i` ([`Noise`]), and what it becomes depends on nothing else but the networks and
//! the scheduler: not on the batch, the threads, or how many others there are.
//!
//! Of N models that are experts of timesteps, model `⌊t·N/T⌋` is asked at timestep t (Ma et al. 2025, Eq. 7). Where
//! the samples of all images take less memory than the networks but one do, all images go through one expert's
//! timesteps before the next expert is read; else all experts stay in memory.

use super::Noise;
use super::schedulers::Scheduler;
use crate::error::{Error, Result};
use crate::images::Images;
use crate::stream::Control;
use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Samples that a scheduler may remember of each image, with the one it works on.
const REMEMBERED: u64 = 6;

/// A network, with all that it is told beside samples.
pub trait Denoiser {
    /// What it answers to samples (batch, channels, rows, columns) at a timestep: noise, or what else its scheduler expects.
    ///
    /// # Errors
    /// If the shapes do not agree.
    fn denoise(&self, samples: &Tensor, timestep: f32) -> candle_core::Result<Tensor>;
}

/// A model whose network may be read when its turn comes, and again.
pub trait Model: Sync {
    /// What it is called.
    fn name(&self) -> &str;

    /// Channels of samples.
    fn channels(&self) -> usize;

    /// Bytes that its network takes in memory.
    fn bytes(&self) -> u64;

    /// Its network.
    ///
    /// # Errors
    /// If it cannot be read, or the weights are another network's.
    fn network(&self, device: &Device) -> Result<Box<dyn Denoiser + '_>>;
}

/// What is to be sampled, and how.
pub struct Sampling<'a> {
    /// Makes the scheduler of a batch.
    pub scheduler: &'a (dyn Fn() -> Result<Box<dyn Scheduler>> + Sync),
    /// Timesteps that the networks were trained on.
    pub train_timesteps: u64,
    /// Where noise comes from.
    pub noise: Noise,
    /// What the images begin with instead, N(0, 1): (images, channels, rows, columns).
    pub start: Option<&'a Tensor>,
    /// Which images.
    pub images: Range<usize>,
    /// Rows and columns of a sample.
    pub size: (usize, usize),
    /// Images at a time.
    pub batch: usize,
    /// Where networks run.
    pub device: &'a Device,
}

/// The networks that are in memory.
struct Experts<'a> {
    models: &'a [&'a dyn Model],
    networks: Vec<Option<Box<dyn Denoiser + 'a>>>,
    keeps_all: bool,
    device: &'a Device,
}

impl Experts<'_> {
    fn network(&mut self, index: usize) -> Result<&dyn Denoiser> {
        if self.networks[index].is_none() && !self.keeps_all {
            self.networks.iter_mut().for_each(|network| *network = None);
        }
        let network = match self.networks[index].take() {
            Some(network) => network,
            None => self.models[index].network(self.device)?,
        };
        Ok(&**self.networks[index].insert(network))
    }
}

/// A batch on its way.
struct Batch {
    images: Range<usize>,
    scheduler: Box<dyn Scheduler>,
    sample: Tensor,
}

/// Samples images and calls `done` with each batch's samples, in order: f32, (images, channels, rows, columns).
///
/// Progress is counted in calls of networks, one an image.
///
/// # Errors
/// Those of schedulers and networks; [`Error::Network`] if images are not numbers, as those of broken networks are not;
/// [`Error::Interrupted`].
pub fn sample(
    models: &[&dyn Model],
    sampling: &Sampling<'_>,
    control: Control<'_>,
    mut done: impl FnMut(Tensor) -> Result<()>,
) -> Result<()> {
    let first = models.first().ok_or_else(|| Error::Recipe("there is no model to sample from".to_owned()))?;
    let channels = first.channels();
    if let Some(other) = models.iter().find(|model| model.channels() != channels) {
        let (name, of) = (other.name(), other.channels());
        return Err(Error::Recipe(format!("{name} samples {of} channels, but {} {channels}", first.name())));
    }
    let shape = (channels, sampling.size.0, sampling.size.1);
    let scheduler = (sampling.scheduler)()?;
    let calls = scheduler.timesteps().len();
    let expert = |call: usize| expert(scheduler.timesteps()[call], models.len(), sampling.train_timesteps);
    let samples = (sampling.images.len() * channels * shape.1 * shape.2) as u64 * 4 * REMEMBERED;
    let others: u64 = models.iter().skip(1).map(|model| model.bytes()).sum();
    let keeps_all = samples >= others;
    let networks = models.iter().map(|_| None).collect();
    let mut experts = Experts { models, networks, keeps_all, device: sampling.device };

    let starts = sampling.images.clone().step_by(sampling.batch.max(1));
    let ranges = starts.map(|start| start..(start + sampling.batch.max(1)).min(sampling.images.end));
    let batch = |images: Range<usize>| -> Result<Batch> {
        let scheduler = (sampling.scheduler)()?;
        let start = match sampling.start {
            Some(start) => {
                start.narrow(0, images.start - sampling.images.start, images.len())?.to_device(sampling.device)?
            }
            None => sampling.noise.tensor("start", images.clone(), shape, sampling.device)?,
        };
        Ok(Batch { images, sample: (start * scheduler.initial_scale())?, scheduler })
    };
    let mut advance = |batch: &mut Batch, calls: Range<usize>| -> Result<()> {
        for call in calls {
            if control.cancel.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let timestep = batch.scheduler.timesteps()[call];
            let input = batch.scheduler.scale_input(call, &batch.sample)?;
            let output = experts.network(expert(call))?.denoise(&input, timestep)?;
            let noise = if batch.scheduler.needs_noise(call) {
                Some(sampling.noise.tensor(&format!("step {call}"), batch.images.clone(), shape, sampling.device)?)
            } else {
                None
            };
            batch.sample = batch.scheduler.step(call, &output, &batch.sample, noise.as_ref())?;
            // Behind the last timestep of each model, so that it is known whose answers are broken.
            let is_last = call + 1 == batch.scheduler.timesteps().len() || expert(call + 1) != expert(call);
            if is_last && !batch.sample.sum_all()?.to_scalar::<f32>()?.is_finite() {
                let (images, name) =
                    (&batch.images, models.get(expert(call)).map_or("the model", |model| model.name()));
                return Err(not_numbers(&format!("images {} to {} of {name}", images.start, images.end - 1)));
            }
            (control.progress)(batch.images.len() as u64);
        }
        Ok(())
    };
    if keeps_all {
        for images in ranges {
            let mut batch = batch(images)?;
            advance(&mut batch, 0..calls)?;
            done(batch.sample)?;
        }
        return Ok(());
    }
    let mut batches = ranges.map(batch).collect::<Result<Vec<_>>>()?;
    let mut call = 0;
    while call < calls {
        let end = (call..calls).find(|&later| expert(later) != expert(call)).unwrap_or(calls);
        for batch in &mut batches {
            advance(batch, call..end)?;
        }
        call = end;
    }
    batches.into_iter().try_for_each(|batch| done(batch.sample))
}

/// Which of so many models is asked at a timestep of so many: `⌊t·N/T⌋`.
#[must_use]
pub fn expert(timestep: f32, models: usize, all: u64) -> usize {
    // Multiplied first: a timestep at the edge of a range is then exactly there.
    let reached = f64::from(timestep) * models as f64;
    ((reached / all as f64) as usize).min(models.saturating_sub(1))
}

/// What became NaN or infinite.
fn not_numbers(what: &str) -> Error {
    let why = "weights that hold NaN (`ckptmerge inspect MODEL --stats` tells), or a configuration that is not theirs";
    Error::NotNumbers(format!("{what} are not numbers: the answers of a network are broken, by {why}"))
}

/// Images of samples: −1..1 to 0..255, rounded to even as torch and numpy do; what is beyond is clipped.
///
/// # Errors
/// If there are not four dimensions, or some are no numbers.
pub fn to_images(samples: &Tensor) -> Result<Images> {
    let (count, channels, height, width) = samples.dims4()?;
    let values = samples.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1::<f32>()?;
    if values.iter().any(|value| !value.is_finite()) {
        return Err(not_numbers("the images"));
    }
    let samples = values.into_iter().map(|x| ((x / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
    Ok(Images { count, height, width, channels, samples: samples.collect() })
}

#[cfg(test)]
mod tests {
    use super::expert;

    /// Also where `(t/T)·N` would round to less: 29/100·100 is 28.999….
    #[test]
    fn a_timestep_at_an_edge_belongs_to_the_range_that_it_begins() {
        for (models, all) in [(1, 1000), (3, 1000), (4, 1000), (7, 1000), (3, 999), (50, 100), (100, 100), (1000, 1000)]
        {
            for timestep in 0..all {
                let expected = timestep * models / all;
                assert_eq!(expert(timestep as f32, models as usize, all), expected as usize, "{timestep} of {models}");
            }
        }
        assert_eq!([332.5, 333.5, 1000.0].map(|timestep| expert(timestep, 3, 1000)), [0, 1, 2]);
    }
}
