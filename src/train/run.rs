//! A training from its first step to its last.

use super::data::{Data, Order};
use super::log::Row;
use super::loss::{Batch, Losses};
use super::rate::Rate;
use super::timesteps::Timesteps;
use super::trainer::Trainer;
use crate::diffusion::Noise;
use crate::error::{Error, Result};
use crate::stream::Control;
use candle_core::Device;
use std::sync::atomic::Ordering;

/// What a training goes through.
#[derive(Debug)]
pub struct Training<'a> {
    /// The images.
    pub data: &'a Data,
    /// At which timesteps.
    pub timesteps: Timesteps,
    /// Images whose gradient is taken at a time.
    pub batch: usize,
    /// Batches of a step.
    pub accumulation: u32,
    /// The learning rate.
    pub rate: Rate,
    /// Steps in all.
    pub steps: u64,
    /// What all random numbers follow from.
    pub seed: u64,
    /// Steps from one save to the next.
    pub save_every: u64,
}

/// Trains from the step that the trainer is at to the last one. `save` is called every so many steps, at the end, and where the training
/// is interrupted. Progress counts steps.
///
/// # Errors
/// Those of the data, the network and `save`; [`Error::Interrupted`].
pub fn train(
    trainer: &mut Trainer,
    rows: &mut Vec<Row>,
    training: &Training<'_>,
    control: Control<'_>,
    mut save: impl FnMut(&Trainer, &[Row]) -> Result<()>,
) -> Result<()> {
    let noise = Noise::new(training.seed);
    let mut order = Order::default();
    let of_step = u64::from(training.accumulation) * training.batch as u64;
    while trainer.steps() < training.steps {
        if control.cancel.load(Ordering::Relaxed) {
            save(trainer, rows)?;
            return Err(Error::Interrupted);
        }
        let step = trainer.steps();
        let mut losses = Losses::default();
        for part in 0..training.accumulation {
            let first = step * of_step + u64::from(part) * training.batch as u64;
            let numbers = first as usize..first as usize + training.batch;
            let batch = Batch {
                images: training.data.batch(&mut order, training.seed, first, training.batch)?,
                noise: noise.tensor("training noise", numbers, training.data.shape(), &Device::Cpu)?,
                timesteps: training.timesteps.draw(training.seed, first, training.batch),
            };
            losses.add(trainer.accumulate(&batch)?, 1.0 / f64::from(training.accumulation));
        }
        let rate = training.rate.at(step, training.steps);
        let gradient_norm = trainer.step(rate)?;
        rows.push(Row { step: trainer.steps(), losses, gradient_norm, rate });
        (control.progress)(1);
        if trainer.steps().is_multiple_of(training.save_every.max(1)) && trainer.steps() < training.steps {
            save(trainer, rows)?;
        }
    }
    save(trainer, rows)
}
