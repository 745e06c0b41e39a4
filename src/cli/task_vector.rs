//! `ckptmerge task-vector`

use super::report::{count, grouped, shape, shortened, table};
use super::{Common, Run, dtype, remarks, shard_size};
use crate::adapter::{EMBEDDINGS, Extracted, Extraction, Sketch};
use crate::checkpoint::{by_extension, is_weights};
use crate::dtype::{self as numbers, DType};
use crate::error::{Bytes, Error};
use crate::recipe::{Difference, Models, Selection, Target};
use clap::Args;
use regex::Regex;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Write what fine-tuning changed: TUNED − BASE
///
/// Adding it back is `merge BASE OUT --weights 1,1`. With --rank the change is written as a LoRA that PEFT loads: a folder
/// with adapter_model.safetensors and adapter_config.json, by a truncated singular value decomposition of each weight.
/// How much of each change its product has, ‖τ_R‖²/‖τ‖², is shown as its energy.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge task-vector base.st tuned.st -o change.safetensors
  ckptmerge task-vector base/ tuned/ --density 0.2 --dtype bf16 -o change/
  ckptmerge task-vector base/ tuned/ --rank 32 -o lora/")]
pub(super) struct TaskVector {
    /// The model before
    base: PathBuf,
    /// The model after
    tuned: PathBuf,
    /// The file or folder to write; with --rank a folder
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// The type of the change: f32, bf16, f16, …
    #[arg(long, value_name = "DTYPE", value_parser = dtype, default_value = "f32")]
    dtype: DType,
    /// Keep only this share of each tensor's changes, the largest; others are 0
    #[arg(long, value_name = "SHARE", conflicts_with = "rank")]
    density: Option<f64>,
    /// Write a LoRA of this rank
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    rank: Option<u64>,
    /// Columns of the random projection beyond the rank
    #[arg(long, value_name = "N", default_value_t = 10, requires = "rank")]
    oversample: u64,
    /// How often the projection is sharpened at most; it ends where the energy stands still. 0 is fastest
    #[arg(long, value_name = "N", default_value_t = 20, requires = "rank")]
    power: u32,
    /// What the random projection follows from
    #[arg(long, value_name = "N", default_value_t = 0, requires = "rank")]
    seed: u64,
    /// Which matrices are an embedding's; others are a linear layer's [default: the usual names]
    #[arg(long, value_name = "REGEX", requires = "rank")]
    embeddings: Option<Regex>,
    /// The model stores matrices as inputs × outputs, as GPT-2 does
    #[arg(long, requires = "rank")]
    fan_in_fan_out: bool,
    /// Take only tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    include: Vec<Regex>,
    /// Leave out tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<Regex>,
    /// Write a folder of files with at most this much tensor data each, such as 5GB, and an index
    #[arg(long, value_name = "SIZE", value_parser = shard_size, conflicts_with = "rank")]
    shard_size: Option<Bytes>,
    /// Do not wait until the output is on the disk
    #[arg(long)]
    no_sync: bool,
}

impl Run for TaskVector {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let difference = Difference {
            dtype: self.dtype,
            density: self.density.unwrap_or(1.0),
            selection: Selection { include: self.include.clone(), exclude: self.exclude.clone() },
        };
        let models = Models::open(std::slice::from_ref(&self.tuned), Some(&self.base), &common.open())?;
        common.check_selected(models.all())?;
        models.all().for_each(|model| report.about(model));
        models.warnings().for_each(|warning| report.warn(warning));
        models.remarks().for_each(|remark| report.remark(remark));
        if let Some(rank) = self.rank {
            if models.remarks().next().is_some() {
                report.warn("a LoRA changes what there is: the one of these projections fits models that have them only; --exclude adapter_list leaves them out");
            }
            return self.low_rank(common, &difference, &models, rank);
        }
        let mut settings = common.settings();
        settings.sync = !self.no_sync;
        let plan = report.watched(0, |control| difference.plan(&models, &settings, control))?;
        if !plan.left_out.is_empty() {
            let names = shortened(&plan.left_out);
            report.warn(&format!("the output leaves out {}: {names}", count(plan.left_out.len() as u64, "tensor")));
        }
        let target = Target { path: self.output.clone(), shard_size: self.shard_size, format: None };
        let predicted = plan.predict(&target, &settings)?;
        remarks::of_output(&report, &plan, &target)?;
        let start = Instant::now();
        let written = report.watched(predicted.written.0, |control| plan.emit(&target, &settings, control))?;
        let seconds = start.elapsed().as_secs_f64();
        let tensors = plan.tensors.len() as u64;
        report.answer(
            || {
                let (path, size) = (target.path.display(), written.written);
                format!("{path}: {}, {size} in {seconds:.2} s\n", count(tensors, "tensor"))
            },
            || {
                json!({
                    "output": target.path.display().to_string(),
                    "density": difference.density,
                    "dtype": difference.dtype.name(),
                    "tensors": tensors,
                    "left_out": plan.left_out,
                    "bytes_written": written.written.0,
                    "seconds": seconds,
                })
            },
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

impl TaskVector {
    fn low_rank(
        &self,
        common: &Common,
        difference: &Difference,
        models: &Models,
        rank: u64,
    ) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let mut settings = common.settings();
        settings.sync = !self.no_sync;
        if by_extension(&self.output).is_some() || is_weights(&self.output) {
            let message =
                "a LoRA is a folder, of its weights and its configuration: give the output a name without an ending";
            return Err(Error::output(&self.output, message).into());
        }
        if self.dtype.bytes().is_none() || !self.dtype.is_real() || !numbers::can_encode(self.dtype) {
            return Err(
                Error::Recipe(format!("a LoRA cannot be of {}; choose a float type such as f32", self.dtype)).into()
            );
        }
        let embeddings = match &self.embeddings {
            Some(pattern) => pattern.clone(),
            None => Regex::new(EMBEDDINGS)?,
        };
        let sketch = Sketch { rank, oversample: self.oversample, power: self.power, seed: self.seed };
        let extraction = Extraction { sketch, dtype: self.dtype, embeddings, fan_in_fan_out: self.fan_in_fan_out };
        let start = Instant::now();
        let changed = report.watched(0, |control| difference.changed(models, &settings, control))?;
        let bytes = changed.iter().map(|tensor| 4 * tensor.shape.iter().product::<u64>()).sum();
        let sources: Vec<_> = models.all().collect();
        let extracted =
            report.watched(bytes, |control| extraction.write(&changed, &sources, &self.output, &settings, control))?;
        let seconds = start.elapsed().as_secs_f64();
        let lower: Vec<String> = extracted
            .layers
            .iter()
            .filter(|layer| layer.rank < rank)
            .map(|layer| format!("{} ({})", layer.tensor, layer.rank))
            .collect();
        if !lower.is_empty() {
            let names = shortened(&lower);
            report.warn(&format!("{} no larger rank than their smaller side: {names}", has(lower.len())));
        }
        if !extracted.left_out.is_empty() {
            let left_out = count(extracted.left_out.len() as u64, "tensor");
            let names = shortened(&extracted.left_out);
            report.warn(&format!("{left_out} changed, but PEFT has no place for them: they are left out: {names}"));
        }
        report
            .answer(|| text(&self.output, &extracted, seconds), || document(&self.output, rank, &extracted, seconds))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn has(number: usize) -> String {
    let verb = if number == 1 { "has" } else { "have" };
    format!("{} {verb}", count(number as u64, "tensor"))
}

fn text(path: &Path, extracted: &Extracted, seconds: f64) -> String {
    let rows = extracted.layers.iter().map(|layer| {
        vec![
            layer.tensor.clone(),
            shape(&layer.shape),
            grouped(layer.rank),
            format!("{:.4e}", layer.norm),
            format!("{:.2} %", 100.0 * layer.energy),
        ]
    });
    let mut text = table(&["tensor", "shape", "rank", "norm", "energy"], &["rank", "norm", "energy"], rows);
    text += &format!("all layers: {:.2} % of the energy\n", 100.0 * extracted.energy());
    if !extracted.whole.is_empty() {
        text += &format!("saved whole: {}\n", shortened(&extracted.whole));
    }
    if extracted.unchanged > 0 {
        text += &format!("unchanged, so not written: {}\n", count(extracted.unchanged, "tensor"));
    }
    let layers = count(extracted.layers.len() as u64, "layer");
    text + &format!("{}: {layers}, {} in {seconds:.2} s\n", path.display(), Bytes(extracted.bytes))
}

fn document(path: &Path, rank: u64, extracted: &Extracted, seconds: f64) -> Value {
    let layers: Vec<Value> = extracted
        .layers
        .iter()
        .map(|layer| {
            json!({
                "tensor": layer.tensor,
                "shape": layer.shape,
                "rank": layer.rank,
                "norm": layer.norm,
                "energy": layer.energy,
            })
        })
        .collect();
    json!({
        "output": path.display().to_string(),
        "rank": rank,
        "energy": extracted.energy(),
        "layers": layers,
        "whole": extracted.whole,
        "left_out": extracted.left_out,
        "unchanged": extracted.unchanged,
        "bytes_written": extracted.bytes,
        "seconds": seconds,
    })
}
