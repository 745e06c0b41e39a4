//! The memory that training takes, told before it begins.
//!
//! Beside weights, gradients, moments and averages these are what the gradient needs of a batch: what each layer gave. That is
//! counted in the graph of one small image, at two sizes, so that it is known how each grows with the number of pixels: not at all,
//! with it, or with its square, as the scores of attention do.

use super::network::Network;
use crate::diffusion::nn::SCORES;
use crate::error::Result;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// Bytes of a number.
const NUMBER: u64 = 4;
/// Numbers of each weight: itself in the network and in the optimizer, its gradient in a batch and over batches, two moments.
const OF_A_WEIGHT: u64 = 6;
/// What else the gradient of a layer needs while it is taken, in numbers for each that the largest of them gave: measured.
const AT_A_TIME: f64 = 3.0;
/// What allocators do not give back at once: measured on a network with attention, at sides of 8 to 128 pixels and 1 to 64 images.
const ALLOWANCE: f64 = 1.1;

/// What one training takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The network, what the optimizer keeps of it, and the average.
    pub weights: u64,
    /// A batch, in the network and on its way back.
    pub batch: u64,
}

impl Memory {
    /// Of training a network, with an average of the weights or without, on batches of `batch` images of so many channels, rows and
    /// columns, whose sides can be halved by the network.
    ///
    /// # Errors
    /// candle's.
    pub fn of(
        network: &Network,
        with_average: bool,
        batch: usize,
        (channels, rows, columns): (usize, usize, usize),
    ) -> Result<Self> {
        let weights: usize = network.weights.iter().map(|(_, var)| var.elem_count()).sum();
        let side = 1 << network.unet.halvings();
        let [small, large] = [side, 2 * side].map(|side| kept(network, (channels, side, side)));
        let pixels = (rows * columns) as f64 / (4 * side * side) as f64;
        let (mut all, mut most) = (0.0, 0.0f64);
        for (small, large) in small?.into_iter().zip(large?) {
            let power = ((large as f64 / small.max(1) as f64).ln() / 4f64.ln()).round();
            let numbers = batch as f64 * large as f64 * pixels.powf(power);
            all += numbers;
            most = most.max(if power > 1.0 { numbers.min(SCORES as f64) } else { numbers });
        }
        Ok(Self {
            weights: NUMBER * (OF_A_WEIGHT + u64::from(with_average)) * weights as u64,
            batch: (NUMBER as f64 * ALLOWANCE * (all + AT_A_TIME * most)) as u64,
        })
    }
}

/// The numbers in each piece of memory that the gradient of an image's answer holds on to, in the order of the graph.
fn kept(network: &Network, (channels, rows, columns): (usize, usize, usize)) -> Result<Vec<usize>> {
    let image = Tensor::zeros((1, channels, rows, columns), DType::F32, &Device::Cpu)?;
    let answer = network.unet.forward(&image, &Tensor::zeros(1, DType::F32, &Device::Cpu)?)?;
    let place = |tensor: &Tensor| std::ptr::from_ref(&*tensor.storage_and_layout().0) as usize;
    // Of each piece of memory: when it was seen first, and its largest tensor.
    let weights = network.weights.iter().map(|(_, var)| (place(var), (usize::MAX, 0)));
    let mut found: BTreeMap<usize, (usize, usize)> = weights.collect();
    for (number, tensor) in answer.sorted_nodes().into_iter().enumerate() {
        let (_, numbers) = found.entry(place(tensor)).or_insert((number, 0));
        *numbers = tensor.elem_count().max(*numbers);
    }
    let mut found: Vec<(usize, usize)> = found.into_values().filter(|(number, _)| *number != usize::MAX).collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, numbers)| numbers).collect())
}
