//! How alike the gradients of the denoising loss are at different timesteps: what tells that denoising is many tasks (Ma et
//! al. 2025, Fig. 1a).
//!
//! At each timestep the gradient is that of the mean loss over the same images with the same noise, by all weights together:
//! `cos(t, s) = ⟨g_t, g_s⟩ / (‖g_t‖·‖g_s‖)`. Gradients are kept in f32 and multiplied in f64, in fixed lanes.

use super::loss::{Batch, Objective};
use super::network::Network;
use super::weighting::Weighting;
use crate::diffusion::schedulers::Noising;
use crate::error::{Bytes, Error, Result};
use crate::os;
use crate::stream::Control;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// Products that are added side by side.
const LANES: usize = 16;

/// Whose gradients, at which timesteps, over how many images.
pub struct Gradients<'a> {
    /// The network.
    pub network: &'a Network,
    /// How noise is put over images, and what should be answered.
    pub noising: &'a Noising,
    /// At which timesteps.
    pub timesteps: &'a [usize],
    /// Over how many images.
    pub images: usize,
    /// Images at a time.
    pub batch: usize,
    /// The memory that gradients may take, in bytes; what is free without.
    pub memory: Option<u64>,
}

/// What was found, by timestep.
#[derive(Clone, Debug, PartialEq)]
pub struct Alike {
    /// The mean loss.
    pub losses: Vec<f64>,
    /// The gradient's norm.
    pub norms: Vec<f64>,
    /// The cosine of the angle between every two gradients; none where one is zero.
    pub cosines: Vec<Vec<Option<f64>>>,
    /// How many weights there are.
    pub parameters: usize,
}

impl Gradients<'_> {
    /// Takes the gradients by the weights that `takes` says; `batch` gives some of the images and their noise. Progress is counted
    /// in images at a timestep.
    ///
    /// # Errors
    /// [`Error::Recipe`] if there is not enough memory for the gradients, or no weight; those of `batch` and the network;
    /// [`Error::Network`] if a gradient is not finite; [`Error::Interrupted`].
    pub fn compare(
        &self,
        takes: impl Fn(&str) -> bool,
        batch: impl Fn(Range<usize>) -> Result<(Tensor, Tensor)>,
        control: Control<'_>,
    ) -> Result<Alike> {
        let weights: Vec<_> = self.network.weights.iter().filter(|(name, _)| takes(name)).collect();
        let parameters: usize = weights.iter().map(|(_, var)| var.elem_count()).sum();
        if parameters == 0 {
            return Err(Error::Recipe("no tensor is left to take gradients by".to_owned()));
        }
        self.check_memory(parameters)?;
        let objective = Objective { weighting: Weighting::by_name("none")?, gamma: 0.0, consistency: 0.0 };
        let points = self.timesteps.len();
        let (mut gradients, mut losses) = (vec![vec![0.0f32; parameters]; points], vec![0.0; points]);
        for start in (0..self.images).step_by(self.batch.max(1)) {
            let range = start..self.images.min(start + self.batch.max(1));
            let count = range.len();
            let share = count as f64 / self.images as f64;
            let (images, noise) = batch(range)?;
            for ((&timestep, sums), sum) in self.timesteps.iter().zip(&mut gradients).zip(&mut losses) {
                if control.cancel.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                let batch = Batch { images: images.clone(), noise: noise.clone(), timesteps: vec![timestep; count] };
                let (loss, found) = objective.of(&self.network.unet, None, self.noising, &batch)?;
                *sum += share * found.total;
                let found = loss.backward()?;
                let mut rest = &mut sums[..];
                for (name, var) in &weights {
                    let (own, behind) = rest.split_at_mut(var.elem_count());
                    rest = behind;
                    let gradient = found
                        .get(var)
                        .ok_or_else(|| Error::Network(format!("the loss does not depend on the tensor `{name}`")))?;
                    let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
                    own.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += share as f32 * value);
                }
                (control.progress)(count as u64);
            }
        }
        let pairs: Vec<(usize, usize)> = (0..points).flat_map(|i| (i..points).map(move |j| (i, j))).collect();
        let products: Vec<f64> = pairs.par_iter().map(|&(i, j)| product(&gradients[i], &gradients[j])).collect();
        let mut matrix = vec![vec![0.0; points]; points];
        for ((i, j), product) in pairs.into_iter().zip(products) {
            (matrix[i][j], matrix[j][i]) = (product, product);
        }
        let norms: Vec<f64> = matrix.iter().enumerate().map(|(index, row)| row[index].sqrt()).collect();
        if let Some((timestep, _)) = self.timesteps.iter().zip(&norms).find(|(_, norm)| !norm.is_finite()) {
            let message = "is not finite: its weights are broken, or not those of its configuration";
            return Err(Error::Network(format!("the network's gradient at timestep {timestep} {message}")));
        }
        let cosine = |i: usize, j: usize| {
            let lengths = norms[i] * norms[j];
            (lengths > 0.0).then(|| if i == j { 1.0 } else { (matrix[i][j] / lengths).clamp(-1.0, 1.0) })
        };
        let cosines = (0..points).map(|i| (0..points).map(|j| cosine(i, j)).collect()).collect();
        Ok(Alike { losses, norms, cosines, parameters })
    }

    /// That there is room for the gradients of all timesteps, and of one more while it is taken.
    fn check_memory(&self, parameters: usize) -> Result<()> {
        let points = self.timesteps.len();
        let needed = (points as u64 + 1) * parameters as u64 * size_of::<f32>() as u64;
        let (room, what) = match (self.memory, os::available_memory()) {
            (Some(bound), _) => (bound, "may be taken (--memory)"),
            (None, Some(free)) => (free, "are free"),
            (None, None) => return Ok(()),
        };
        if needed <= room {
            return Ok(());
        }
        Err(Error::Recipe(format!(
            "the gradients by {parameters} weights at {points} timesteps take {}, but only {} {what}: ask for fewer --points, or fewer tensors (--include)",
            Bytes(needed),
            Bytes(room)
        )))
    }
}

/// The inner product.
fn product(a: &[f32], b: &[f32]) -> f64 {
    let (of_a, rest_a) = a.as_chunks::<LANES>();
    let (of_b, rest_b) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in of_a.iter().zip(of_b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f64::from(*a) * f64::from(*b);
        }
    }
    let rest = rest_a.iter().zip(rest_b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    lanes.into_iter().sum::<f64>() + rest
}
