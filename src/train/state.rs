//! A training that can be gone on with: weights, moments, averages and the log, in one safetensors file.

use super::log::{COLUMNS, Row};
use super::parameters::Kept;
use super::trainer::Trainer;
use crate::checkpoint::{Checkpoint, format};
use crate::diffusion::Weights;
use crate::dtype::{DType, decode_f64};
use crate::error::{Error, Result};
use crate::output::{Array, write_arrays};
use candle_core::Device;
use serde_json::Value;
use std::path::Path;

/// The tensor of the log.
const LOG: &str = "log";
/// Metadata: how the training was set up, and how many steps are done.
const SETTINGS: &str = "settings";
const STEPS: &str = "steps";

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Writes the state of a training, with what it must be set up with to go on.
///
/// # Errors
/// Those of writing.
pub fn save(path: &Path, trainer: &Trainer, rows: &[Row], settings: &Value) -> Result<()> {
    let mut parts: Vec<(String, DType, Vec<u64>, Vec<u8>)> = Vec::new();
    for kept in trainer.kept() {
        let shape: Vec<u64> = kept.shape.iter().map(|&n| n as u64).collect();
        let [first, second] = kept.moments;
        let kinds = [("weights", Some(kept.weights)), ("first", Some(first)), ("second", Some(second))];
        for (kind, values) in kinds.into_iter().chain([("average", kept.average)]) {
            let Some(values) = values else { continue };
            parts.push((format!("{kind}/{}", kept.name), DType::F32, shape.clone(), bytes(values)));
        }
    }
    let log = rows.iter().flat_map(Row::numbers).flat_map(f64::to_le_bytes).collect();
    parts.push((LOG.to_owned(), DType::F64, vec![rows.len() as u64, COLUMNS.len() as u64], log));
    let arrays: Vec<Array<'_>> =
        parts.iter().map(|(name, dtype, shape, bytes)| Array { name, dtype: *dtype, shape, bytes }).collect();
    let metadata = [(SETTINGS, settings.to_string()), (STEPS, trainer.steps().to_string())];
    write_arrays(path, format("safetensors")?, &arrays, &metadata)
}

/// Goes on from a state that was saved; returns its log.
///
/// # Errors
/// [`Error::Model`] if the file is no such state; [`Error::Recipe`] naming what was set up differently.
pub fn restore(path: &Path, trainer: &mut Trainer, settings: &Value) -> Result<Vec<Row>> {
    let checkpoint = Checkpoint::open(path)?;
    let wrong = |message: &str| Error::model(path, message);
    let text = |key: &str| {
        let value = checkpoint.metadata().get(key).cloned();
        value.ok_or_else(|| wrong("is no state of a training; begin anew in another folder"))
    };
    let before: Value = serde_json::from_str(&text(SETTINGS)?).map_err(|_| wrong("has settings that are no JSON"))?;
    if let Some(difference) = difference(&before, settings) {
        let message = format!("was trained with another {difference}; give the same, or begin anew in another folder");
        return Err(wrong(&message));
    }
    let steps: u64 = text(STEPS)?.parse().map_err(|_| wrong("does not say how many steps were done"))?;
    let view = checkpoint.get(LOG).filter(|view| view.tensor.dtype == DType::F64);
    let view = view.ok_or_else(|| wrong("holds no log"))?;
    let mut buffer = Vec::new();
    let log = view.read(0..view.tensor.bytes, &mut buffer)?;
    let mut numbers = vec![0.0; log.len() / 8];
    decode_f64(DType::F64, log, &mut numbers);
    let rows = Row::of_numbers(&numbers)?;
    let weights = Weights::new(checkpoint, "");
    trainer.restore(steps, |kind, name| {
        let tensor = weights.tensor(&format!("{kind}/{name}"), &Device::Cpu)?;
        Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
    })?;
    Ok(rows)
}

/// The first entry that is not the same in both, with its values.
fn difference(before: &Value, now: &Value) -> Option<String> {
    let (Value::Object(before), Value::Object(now)) = (before, now) else { return Some("setup".to_owned()) };
    let keys = before.keys().chain(now.keys());
    let value = |entries: &serde_json::Map<String, Value>, key: &str| entries.get(key).cloned().unwrap_or(Value::Null);
    let different = keys.map(|key| (key, value(before, key), value(now, key))).find(|(_, a, b)| a != b);
    different.map(|(key, a, b)| format!("{key}: {a}, not {b}"))
}

/// Writes the weights as a model's: the moving averages, where they are kept.
///
/// # Errors
/// Those of writing.
pub fn write_model<'a>(
    path: &Path,
    tensors: impl Iterator<Item = Kept<'a>>,
    metadata: &[(&str, String)],
) -> Result<()> {
    let parts: Vec<(&str, Vec<u64>, Vec<u8>)> = tensors
        .map(|kept| {
            let shape = kept.shape.iter().map(|&n| n as u64).collect();
            (kept.name, shape, bytes(kept.average.unwrap_or(kept.weights)))
        })
        .collect();
    let arrays: Vec<Array<'_>> =
        parts.iter().map(|(name, shape, bytes)| Array { name, dtype: DType::F32, shape, bytes }).collect();
    write_arrays(path, format("safetensors")?, &arrays, metadata)
}
