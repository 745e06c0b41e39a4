//! Where two networks answer differently to the same noisy images: the mean of `|Δ activation|` by channel and by pixel
//! (Ma et al. 2025, Fig. 2).
//!
//! Seen at the output of each block, behind its channel-wise projection, and of the network. Sums are taken in f64, image by
//! image in their order, so that nothing depends on threads.

use super::schedulers::Noising;
use super::unet::UNet2D;
use crate::error::{Error, Result};
use crate::stream::Control;
use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Two networks and what they are shown.
pub struct Comparison<'a> {
    /// The networks, of the same configuration.
    pub networks: [&'a UNet2D; 2],
    /// What they are called, for errors.
    pub names: [&'a str; 2],
    /// How noise is put over images.
    pub noising: &'a Noising,
    /// At which timesteps.
    pub timesteps: &'a [usize],
    /// How many images.
    pub images: usize,
    /// Images at a time.
    pub batch: usize,
    /// Which of [`UNet2D::blocks`] are looked at.
    pub blocks: &'a [usize],
    /// Where the networks are.
    pub device: &'a Device,
}

/// How far apart two networks are at the output of a block: means of `|Δ|` over all images and timesteps, and all places
/// that are not named.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Which of [`UNet2D::blocks`] it is.
    pub block: usize,
    /// Channels, rows and columns.
    pub shape: (usize, usize, usize),
    /// By channel.
    pub by_channel: Vec<f64>,
    /// By pixel, row by row.
    pub by_pixel: Vec<f64>,
    /// By timestep.
    pub by_timestep: Vec<f64>,
    /// The mean of `|activation|` of the first network.
    pub size: f64,
}

impl Change {
    /// The mean of `|Δ|` over everything.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.by_channel.iter().sum::<f64>() / self.by_channel.len().max(1) as f64
    }

    /// Adds a batch's activations; those of the first network come first.
    fn add(&mut self, [first, second]: [&Tensor; 2], timestep: usize) -> candle_core::Result<()> {
        let (_, channels, rows, columns) = first.dims4()?;
        if self.by_channel.is_empty() {
            self.shape = (channels, rows, columns);
            (self.by_channel, self.by_pixel) = (vec![0.0; channels], vec![0.0; rows * columns]);
        }
        let sum = |tensor: Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (differences, sizes) = (sum((first - second)?.abs()?)?, sum(first.abs()?)?);
        for image in differences.chunks_exact((channels * rows * columns).max(1)) {
            for (channel, plane) in self.by_channel.iter_mut().zip(image.chunks_exact((rows * columns).max(1))) {
                let mut of_plane = 0.0;
                for (pixel, &difference) in self.by_pixel.iter_mut().zip(plane) {
                    *pixel += f64::from(difference);
                    of_plane += f64::from(difference);
                }
                *channel += of_plane;
                if let Some(of_timestep) = self.by_timestep.get_mut(timestep) {
                    *of_timestep += of_plane;
                }
            }
        }
        self.size += sizes.into_iter().map(f64::from).sum::<f64>();
        Ok(())
    }

    /// Makes means of the sums over so many images at each timestep.
    fn divide(&mut self, images: usize) {
        let (channels, rows, columns) = self.shape;
        let (images, timesteps) = (images as f64, self.by_timestep.len() as f64);
        let (channels, pixels) = (channels as f64, (rows * columns) as f64);
        self.by_channel.iter_mut().for_each(|sum| *sum /= images * timesteps * pixels);
        self.by_pixel.iter_mut().for_each(|sum| *sum /= images * timesteps * channels);
        self.by_timestep.iter_mut().for_each(|sum| *sum /= images * channels * pixels);
        self.size /= images * timesteps * channels * pixels;
    }
}

impl Comparison<'_> {
    /// Compares; `batch` gives some of the images and the noise that is put over them, which is the same at all timesteps.
    /// Progress is counted in images at a timestep.
    ///
    /// # Errors
    /// Those of `batch` and the networks; [`Error::Network`] naming a network whose activations are not numbers; [`Error::Interrupted`].
    pub fn run(
        &self,
        batch: impl Fn(Range<usize>) -> Result<(Tensor, Tensor)>,
        control: Control<'_>,
    ) -> Result<Vec<Change>> {
        let empty = |&block| Change { block, by_timestep: vec![0.0; self.timesteps.len()], ..Change::default() };
        let mut changes: Vec<Change> = self.blocks.iter().map(empty).collect();
        for start in (0..self.images).step_by(self.batch.max(1)) {
            let range = start..self.images.min(start + self.batch.max(1));
            let (images, noise) = batch(range.clone())?;
            let (images, noise) = (images.to_device(self.device)?, noise.to_device(self.device)?);
            for (index, &timestep) in self.timesteps.iter().enumerate() {
                if control.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let noisy = self.noising.noisy(&images, &noise, &vec![timestep; range.len()])?;
                let times = Tensor::full(timestep as f32, range.len(), self.device)?;
                let mut seen: Vec<Option<Tensor>> = vec![None; self.blocks.len()];
                let [first, second] = self.networks;
                let place = |number: usize| self.blocks.iter().position(|block| *block == number);
                first.forward_seen(&noisy, &times, &mut |number, activation| {
                    if let Some(kept) = place(number).and_then(|place| seen.get_mut(place)) {
                        *kept = Some(activation.clone());
                    }
                    Ok(())
                })?;
                second.forward_seen(&noisy, &times, &mut |number, activation| {
                    let Some(place) = place(number) else { return Ok(()) };
                    match (seen.get_mut(place).and_then(Option::take), changes.get_mut(place)) {
                        (Some(of_first), Some(change)) => change.add([&of_first, activation], index),
                        _ => Ok(()),
                    }
                })?;
                (control.progress)(range.len() as u64);
            }
        }
        changes.iter_mut().for_each(|change| change.divide(self.images));
        if let Some(change) = changes.iter().find(|change| !change.mean().is_finite() || !change.size.is_finite()) {
            let blocks = self.networks[0].blocks();
            let name = blocks.get(change.block).map_or("", String::as_str);
            // Sizes are the first one's.
            let [first, second] = self.names;
            let broken = if change.size.is_finite() { second } else { first };
            let message = "are not numbers: its weights are broken, or not those of its configuration";
            return Err(Error::Network(format!("the activations of {broken} at `{name}` {message}")));
        }
        Ok(changes)
    }
}
