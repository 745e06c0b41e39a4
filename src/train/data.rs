//! Images as a network is trained on them.
//!
//! An image is brought to the network's size: resized (bicubic, antialiased, as Pillow does) so that it is covered, and cropped, in the middle
//! or anywhere; then it may be mirrored. Samples 0..255 become −1..1. Each epoch has all images once, in an order of its own.

use crate::error::{Error, Result};
use crate::images::resize::bicubic;
use crate::images::{Image, Set};
use crate::merge::Key;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Where an image that is not of the network's shape is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// In its middle.
    Center,
    /// Anywhere, each time anew.
    Random,
}

/// Images to train on, read when they are needed.
#[derive(Debug)]
pub struct Data {
    set: Set,
    channels: usize,
    size: (usize, usize),
    crop: Crop,
    flip: bool,
}

/// The order of an epoch.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    epoch: Option<u64>,
    images: Vec<u32>,
}

impl Data {
    /// Images for a network of so many channels, rows and columns; `flip` mirrors half of them, left to right.
    #[must_use]
    pub fn new(set: Set, channels: usize, size: (usize, usize), crop: Crop, flip: bool) -> Self {
        Self { set, channels, size, crop, flip }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Channels, rows and columns of a prepared image.
    #[must_use]
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.channels, self.size.0, self.size.1)
    }

    /// Some images in the set's order, cut in their middles: (images, channels, rows, columns).
    ///
    /// # Errors
    /// As [`Set::batches`]; [`Error::Model`] if an image has another number of channels.
    pub fn images(&self, range: Range<usize>) -> Result<Tensor> {
        self.tensor(range, |image| Ok(self.prepared(&self.set.image(image)?, None)))
    }

    /// A batch of training: the `count` images from number `first` of the whole training on.
    ///
    /// # Errors
    /// As [`images`](Self::images).
    pub(super) fn batch(&self, order: &mut Order, seed: u64, first: u64, count: usize) -> Result<Tensor> {
        let epoch = self.len() as u64;
        let mut indices = Vec::with_capacity(count);
        for number in first..first + count as u64 {
            order.begin(seed, number / epoch, self.len());
            indices.push((number, order.images.get((number % epoch) as usize).copied().unwrap_or_default() as usize));
        }
        self.tensor(indices, |(number, image)| {
            let mut words = [0; 3];
            Key::new(seed, "training images", number as usize).fill(0, &mut words);
            Ok(self.prepared(&self.set.image(image)?, Some(words)))
        })
    }

    /// Images, prepared on all threads of the current pool.
    fn tensor<I: Send>(
        &self,
        which: impl IntoParallelIterator<Item = I, Iter: IndexedParallelIterator>,
        prepare: impl Fn(I) -> Result<Result<Vec<f32>>> + Sync,
    ) -> Result<Tensor> {
        let images: Vec<Vec<f32>> = which.into_par_iter().map(|image| prepare(image)?).collect::<Result<_>>()?;
        let (channels, rows, columns) = self.shape();
        Ok(Tensor::from_vec(images.concat(), (images.len(), channels, rows, columns), &Device::Cpu)?)
    }

    /// An image's planes, cut and mirrored by random words, if there are some.
    fn prepared(&self, image: &Image, words: Option<[u32; 3]>) -> Result<Vec<f32>> {
        let (channels, rows, columns) = self.shape();
        if channels == 1 && image.channels != 1 {
            let message = format!("is {}, but the network is of grey images; convert it", image.size());
            return Err(Error::model(image.origin.as_ref(), message));
        }
        let scale = (rows as f64 / image.height as f64).max(columns as f64 / image.width as f64);
        let cover = |side: usize, least: usize| ((side as f64 * scale).round() as usize).max(least);
        let (height, width) = (cover(image.height, rows), cover(image.width, columns));
        let planes: Vec<f32> = if (height, width) == (image.height, image.width) {
            (0..channels).flat_map(|channel| image.plane(channel).map(f32::from)).collect()
        } else {
            bicubic(image, channels, height, width)
        };
        let place = |spare: usize, word: usize| match (self.crop, words) {
            (Crop::Random, Some(words)) => ((u64::from(words[word]) * (spare as u64 + 1)) >> 32) as usize,
            _ => spare / 2,
        };
        let (top, left) = (place(height - rows, 0), place(width - columns, 1));
        let mirrors = self.flip && words.is_some_and(|words| words[2] & 1 == 1);
        let mut out = Vec::with_capacity(channels * rows * columns);
        for plane in planes.chunks_exact(height * width) {
            for row in plane.chunks_exact(width).skip(top).take(rows) {
                let row = row.get(left..left + columns).unwrap_or_default();
                let value = |sample: &f32| (sample / 127.5 - 1.0).clamp(-1.0, 1.0);
                if mirrors {
                    out.extend(row.iter().rev().map(value));
                } else {
                    out.extend(row.iter().map(value));
                }
            }
        }
        Ok(out)
    }
}

impl Order {
    /// Makes it the order of an epoch.
    fn begin(&mut self, seed: u64, epoch: u64, count: usize) {
        if self.epoch == Some(epoch) {
            return;
        }
        let mut words = vec![0; count];
        Key::new(seed, "order of images", epoch as usize).fill(0, &mut words);
        self.images = (0..count as u32).collect();
        self.images.sort_by_key(|&image| (words.get(image as usize).copied(), image));
        self.epoch = Some(epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_each_image_once_in_an_order_of_its_own() {
        let (mut order, mut orders) = (Order::default(), Vec::new());
        for epoch in 0..2 {
            order.begin(1, epoch, 100);
            let mut sorted = order.images.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..100));
            orders.push(order.images.clone());
        }
        assert_ne!(orders[0], orders[1]);
    }
}
