//! What is written down of each step.

use super::loss::Losses;
use crate::error::{Error, Result};

/// The columns of a log.
pub const COLUMNS: [&str; 6] = ["step", "loss", "denoising", "consistency", "gradient_norm", "learning_rate"];

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Its number, from 1.
    pub step: u64,
    /// The mean losses of its batches.
    pub losses: Losses,
    /// The norm of its gradient before it was cut.
    pub gradient_norm: f64,
    /// The learning rate.
    pub rate: f64,
}

impl Row {
    /// In the order of [`COLUMNS`].
    #[must_use]
    pub fn numbers(&self) -> [f64; COLUMNS.len()] {
        let Losses { total, denoising, consistency } = self.losses;
        [self.step as f64, total, denoising, consistency, self.gradient_norm, self.rate]
    }

    /// Rows of the numbers of several.
    pub(super) fn of_numbers(numbers: &[f64]) -> Result<Vec<Self>> {
        let rows = numbers.chunks(COLUMNS.len()).map(|row| match *row {
            [step, total, denoising, consistency, gradient_norm, rate] => {
                Ok(Self { step: step as u64, losses: Losses { denoising, consistency, total }, gradient_norm, rate })
            }
            _ => Err(Error::Recipe("the log in the training's state is cut off".to_owned())),
        });
        rows.collect()
    }

    /// A log as comma-separated values; numbers have as many digits as tell them among those of 32 bits, which networks compute in.
    #[must_use]
    pub fn csv(rows: &[Self]) -> String {
        let mut text = COLUMNS.join(",") + "\n";
        for row in rows {
            let [step, rest @ ..] = row.numbers();
            text += &format!("{step}");
            rest.iter().for_each(|&number| text += &format!(",{:e}", number as f32));
            text.push('\n');
        }
        text
    }
}
