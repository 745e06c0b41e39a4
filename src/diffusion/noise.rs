//! Gaussian noise that is a function of where it is used.
//!
//! The number at an element of an image in a draw depends on the seed and on these three alone, not on the batch that
//! the image is in, the order of work, or the threads.

use crate::merge::Key;
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Noise of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
}

impl Noise {
    /// Of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Independent numbers from N(0, 1) for an image, of a draw: `start` is what a sampler begins with, any other
    /// name is another sequence.
    pub fn fill(&self, draw: &str, image: usize, out: &mut [f32]) {
        Key::new(self.seed, draw, image).normals(out);
    }

    /// The noise of several images: (images, channels, rows, columns).
    ///
    /// # Errors
    /// candle's.
    pub fn tensor(
        &self,
        draw: &str,
        images: Range<usize>,
        (channels, rows, columns): (usize, usize, usize),
        device: &Device,
    ) -> Result<Tensor> {
        let size = channels * rows * columns;
        let mut numbers = vec![0.0; images.len() * size];
        numbers.par_chunks_mut(size.max(1)).zip(images.clone()).for_each(|(out, image)| self.fill(draw, image, out));
        Tensor::from_vec(numbers, (images.len(), channels, rows, columns), device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean, variance, skewness and kurtosis, all within five standard deviations.
    #[test]
    fn numbers_are_normal() {
        const N: usize = 1 << 20;
        let mut numbers = vec![0.0; N];
        Noise::new(1).fill("start", 3, &mut numbers);
        let moment = |power| numbers.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / N as f64;
        let bound = |variance: f64| 5.0 * (variance / N as f64).sqrt();
        assert!(moment(1).abs() < bound(1.0));
        assert!((moment(2) - 1.0).abs() < bound(2.0));
        assert!(moment(3).abs() < bound(15.0));
        assert!((moment(4) - 3.0).abs() < bound(96.0));
        let neighbours = numbers.windows(2).map(|pair| f64::from(pair[0] * pair[1])).sum::<f64>() / N as f64;
        assert!(neighbours.abs() < bound(1.0));
    }

    #[test]
    fn an_image_has_the_same_noise_in_any_length_and_another_in_each_draw() {
        let (mut long, mut short, mut other) = ([0.0; 9], [0.0; 4], [0.0; 9]);
        Noise::new(0).fill("start", 2, &mut long);
        Noise::new(0).fill("start", 2, &mut short);
        assert_eq!(long[..4], short);
        for (seed, draw, image) in [(1, "start", 2), (0, "7", 2), (0, "start", 3)] {
            Noise::new(seed).fill(draw, image, &mut other);
            assert!(long.iter().zip(&other).all(|(a, b)| a != b));
        }
    }
}
