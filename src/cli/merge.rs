//! `ckptmerge merge`

use super::device::Device;
use super::report::{count, print, shortened};
use super::{Common, Run, dtype, named, remarks, shard_size};
use crate::adapter::Unplaced;
use crate::dtype::DType;
use crate::error::{Bytes, Error};
use crate::merge::Method;
use crate::recipe::{Formula, Missing, Models, Plan, Prediction, Presets, Projection, Recipe, Target, block_value};
use crate::stream::Control;
use clap::Args;
use regex::Regex;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Merge models into one
///
/// Reads every model once, in fixed memory, and writes the merged one whole or not at all. Elements are computed in
/// 32-bit floats (64-bit where an input or the output is F64) and rounded once. Tensors of integers and other types
/// that are not computed with must be equal in all models, and are copied.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge merge a.st b.st --weights 0.6,0.4 -o merged.safetensors
  ckptmerge merge --base base/ tuned-1/ tuned-2/ --weights 0.3,0.5 --dtype bf16 -o merged/
  ckptmerge merge a.st b.st --base c.st --method add-difference -p alpha=0.7 -o out.safetensors
  ckptmerge merge b.st --base a.st --blocks weight=GRAD_V --block-presets mbwpresets_master.txt -o out.safetensors
  ckptmerge merge a.st b.st --weights 0.5,0.5 --weights-for 'attn=0.2,0.8' --explain --dry-run")]
pub(super) struct Merge {
    /// The models, in the order of their weights; MODEL+ADAPTER is one with a LoRA, as is an ADAPTER beside --base
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// The file or folder to write: a file if it has a format's ending, else a folder if a model is one or it ends in /
    #[arg(short, long, value_name = "OUT", required_unless_present_any = ["dry_run", "explain"])]
    output: Option<PathBuf>,
    /// One weight per model, such as 0.6,0.4 [default: 1/N each for linear, 1 each for task-arithmetic]
    #[arg(short, long, value_name = "W,W,…", value_parser = weight_list, allow_hyphen_values = true)]
    weights: Option<Weights>,
    /// Weights for the tensors whose name matches; may be repeated, and the first match counts
    #[arg(long, value_name = "REGEX=W,W,…", value_parser = weights_for, allow_hyphen_values = true)]
    weights_for: Vec<(Regex, Vec<f64>)>,
    /// The model that the others were tuned from
    #[arg(short, long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// What accompanies a model, for methods that need it: once for each model, in their order
    ///
    /// For fisher, the diagonals of the models' Fisher information, under the names of the tensors.
    #[arg(long = "companion", value_name = "MODEL")]
    companions: Vec<PathBuf>,
    /// How to merge; `ckptmerge methods` lists them [default: linear, or task-arithmetic with --base]
    #[arg(short, long, value_name = "NAME")]
    method: Option<String>,
    /// A parameter of the method, such as density=0.5; may be repeated
    ///
    /// Where each model has its own, density=0.5,0.3 gives them in order. Where there is one, t=0,0.5,1 spreads values
    /// over the layers, first to last.
    #[arg(short, long = "parameter", value_name = "KEY=VALUE", value_parser = parameter)]
    parameters: Vec<(String, String)>,
    /// Values for the blocks of Stable Diffusion or Flux, of a parameter or `weight`: alpha=0,0.5,… or alpha=NAME
    ///
    /// A value for each block, in supermerger's order: 26 (BASE, IN00 to IN11, M00, OUT00 to OUT11), 20 for XL, 61 for Flux;
    /// or the name of a list in --block-presets. weight:2 and density:2 are the second model's, weight and density every
    /// model's. Tensors that --weights-for matches have those weights. May be repeated.
    #[arg(long, value_name = "KEY=LIST|NAME", value_parser = parameter, allow_hyphen_values = true)]
    blocks: Vec<(String, String)>,
    /// A file of lists for --blocks, such as supermerger's mbwpresets_master.txt
    #[arg(long, value_name = "FILE", requires = "blocks")]
    block_presets: Option<PathBuf>,
    /// The type of merged tensors: f32, bf16, f16, f64, f8_e4m3, f8_e5m2, q8_0, … [default: holds all inputs']
    ///
    /// Numbers too large for it become infinite; in f8_e4m3, which has no infinity, its largest. Quantized types leave
    /// tensors of fewer than two dimensions, such as norms, and rows that are no whole blocks in f32.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<DType>,
    /// What random choices follow from, for methods that make some
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Divide weights by their sum (the default of ties and other methods that average)
    #[arg(long, overrides_with = "no_normalize")]
    normalize: bool,
    /// Use weights as they are given (the default of most methods)
    #[arg(long)]
    no_normalize: bool,
    /// Merge only tensors whose name matches; others are copied from the base, or else the first model
    #[arg(long, value_name = "REGEX")]
    include: Vec<Regex>,
    /// Do not merge tensors whose name matches: copy them from the base, or else the first model
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<Regex>,
    /// What becomes of tensors that some models lack
    ///
    /// `error` refuses the merge; `base` copies what the base (or else the first model) has and leaves out the rest;
    /// `skip` leaves them out. With either of these, so are tensors of an adapter that its model has no place for.
    #[arg(long, value_name = "WHAT", default_value = "error", value_parser = named(&Missing::NAMES))]
    missing: Missing,
    /// Write a folder of files with at most this much tensor data each, such as 5GB, and an index
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    shard_size: Option<Bytes>,
    /// Show the effective formula of each group of tensors; without -o, only that
    #[arg(long)]
    explain: bool,
    /// Show what would be read, written and needed, and stop
    #[arg(long)]
    dry_run: bool,
    /// Multiply channel-wise projections (adapter_list.…) into the weights before them, where that is exact
    ///
    /// What the network computes stays the same up to rounding, with fewer layers. Projections of blocks whose output goes
    /// elsewhere as well, or ends with attention or a residual block without conv_shortcut, stay as they are.
    #[arg(long)]
    fold_projections: bool,
    #[command(flatten)]
    device: Device,
    /// Do not wait until the output is on the disk
    ///
    /// It then still appears only when it is complete, but a power failure shortly after may lose it.
    #[arg(long)]
    no_sync: bool,
}

fn is_number(path: &std::path::Path) -> bool {
    path.to_str().is_some_and(|text| text.parse::<f64>().is_ok())
}

/// One weight per model.
#[derive(Clone)]
struct Weights(Vec<f64>);

fn weight_list(text: &str) -> Result<Weights, String> {
    let number = |part: &str| {
        let wrong = || format!("`{part}` is not a number; write weights as 0.6,0.4");
        part.trim().parse::<f64>().map_err(|_| wrong())
    };
    text.split(',').map(number).collect::<Result<_, _>>().map(Weights)
}

fn weights_for(text: &str) -> Result<(Regex, Vec<f64>), String> {
    let (pattern, weights) = text.rsplit_once('=').ok_or("write it as REGEX=weight,weight,…")?;
    let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
    Ok((pattern, weight_list(weights)?.0))
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Merge {
    fn recipe(&self) -> Result<Recipe, Error> {
        let method = self.method.as_deref().unwrap_or(if self.base.is_some() { "task-arithmetic" } else { "linear" });
        let mut recipe = Recipe {
            weights: self.weights.clone().map(|weights| weights.0),
            weights_for: self.weights_for.clone(),
            normalize: (self.normalize || self.no_normalize).then_some(self.normalize),
            seed: self.seed,
            dtype: self.dtype,
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            missing: self.missing,
            fold_projections: self.fold_projections,
            ..Recipe::new(method)?
        };
        for (name, value) in &self.parameters {
            recipe.set(name, value)?;
        }
        let presets = self.block_presets.as_deref().map(Presets::read).transpose()?;
        for (target, text) in &self.blocks {
            let fail = |message: String| Error::Recipe(format!("--blocks {target}: {message}"));
            let (name, model) = match target.split_once(':') {
                None => (target.as_str(), None),
                Some((name, place)) => {
                    let place = place.parse::<usize>().ok().and_then(|place| place.checked_sub(1));
                    let wrong = || fail("a model is called by its place, counted from 1, as in weight:2".to_owned());
                    (name, Some(place.ok_or_else(wrong)?))
                }
            };
            let values = match &presets {
                _ if text.contains(',') => text.split(',').map(block_value).collect::<Result<_, _>>().map_err(fail)?,
                Some(presets) => presets.get(text)?,
                None => {
                    let message =
                        format!("`{text}` is the name of a list: give the file it is in with --block-presets");
                    return Err(fail(message));
                }
            };
            recipe.set_blocks(name, model, &values)?;
        }
        Ok(recipe)
    }
}

impl Run for Merge {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let mut settings = common.settings();
        settings.sync = !self.no_sync;
        self.device.prepare(&mut settings)?;
        let recipe = self.recipe()?;
        if let Some(number) = self.models.iter().find(|path| is_number(path) && !path.exists()) {
            let message = format!("{} is no model; separate weights by commas only, as in 0.6,0.4", number.display());
            return Err(Error::Recipe(message).into());
        }
        let unplaced = if self.missing == Missing::Error { Unplaced::Error } else { Unplaced::LeaveOut };
        let base = self.base.as_deref();
        let models = Models::open_with(&self.models, &self.companions, base, &common.open(), unplaced)?;
        common.check_selected(models.all())?;
        models.all().for_each(|model| report.about(model));
        models.warnings().for_each(|warning| report.warn(warning));
        models.remarks().for_each(|remark| report.remark(remark));
        let plan = report.watched(0, |control| Plan::new(&recipe, &models, &settings, control));
        let plan = plan.inspect_err(|error| {
            if matches!(error, Error::Mismatch(_)) {
                remarks::of_names(&report, &models);
            }
        })?;
        plan.notes.iter().for_each(|note| report.warn(note));
        if !plan.left_out.is_empty() {
            let names = shortened(&plan.left_out);
            report.warn(&format!("the output leaves out {}: {names}", count(plan.left_out.len() as u64, "tensor")));
        }
        if self.fold_projections && plan.projections.is_empty() {
            report
                .warn("there is nothing to fold: the models have no channel-wise projections (adapter_list.….weight)");
        }
        for large in models.frame().layout().companions()?.1 {
            report.warn(&format!("{} is too large for a small file and is not copied along", large.display()));
        }

        let formulas = plan.formulas();
        report.note(|| explained(&formulas));
        if self.explain && !common.json && !common.quiet {
            print(&explained(&formulas))?;
        }
        // A plan without a place to go is laid out as if it went beside the models, to be measured.
        let path = self.output.clone().unwrap_or_else(|| {
            PathBuf::from(if models.frame().layout().is_folder { "merged" } else { "merged.safetensors" })
        });
        let target = Target { path, shard_size: self.shard_size, format: None };
        let predicted = plan.predict(&target, &settings)?;
        remarks::of_output(&report, &plan, &target)?;
        remarks::of_merge(&report, &plan, &target, predicted, &settings);
        if self.dry_run || self.output.is_none() {
            let text = || if self.dry_run { would(&plan, recipe.method, &target, predicted) } else { String::new() };
            report.answer(text, || document(&plan, recipe.method, &target, predicted, &formulas, None))?;
            return Ok(ExitCode::SUCCESS);
        }

        let start = Instant::now();
        let choose = |control: Control<'_>| self.device.choose(&plan, &target, &settings, &report, control);
        let settings = report.watched(0, choose)?;
        let written = report.watched(predicted.written.0, |control| plan.emit(&target, &settings, control))?;
        let seconds = start.elapsed().as_secs_f64();
        let device = Device::computed_by(&settings, &report);
        report.answer(
            || done(&plan, &target, written, seconds, device.as_deref()),
            || {
                let mut json = document(&plan, recipe.method, &target, written, &formulas, Some(seconds));
                json["device"] = device.as_deref().unwrap_or("cpu").into();
                json
            },
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn explained(formulas: &[Formula]) -> String {
    let mut text = String::new();
    for formula in formulas {
        let mut inputs = formula.inputs.clone();
        inputs.dedup();
        let inputs = inputs.iter().map(|dtype| dtype.name()).collect::<Vec<_>>().join(", ");
        text += &format!(
            "{}\n    {} ({inputs} → {}): {}\n",
            formula.text,
            count(formula.tensors.len() as u64, "tensor"),
            formula.output,
            shortened(&formula.tensors)
        );
    }
    text
}

pub(super) fn would(plan: &Plan<'_>, method: &dyn Method, target: &Target, predicted: Prediction) -> String {
    let Prediction { read, written, memory, files } = predicted;
    folded(plan)
        + &format!(
            "{} would have {} in {} ({written})\n  method   {}: {}\n  reads    {read}\n  memory   {memory} at its peak, beside pages of mapped inputs\n",
            target.path.display(),
            count(plan.tensors.len() as u64, "tensor"),
            count(files as u64, "file"),
            method.about().name,
            method.about().formula,
        )
}

pub(super) fn done(
    plan: &Plan<'_>,
    target: &Target,
    written: Prediction,
    seconds: f64,
    device: Option<&str>,
) -> String {
    let rate = (written.read.0 + written.written.0) as f64 / seconds.max(1e-9);
    let by = device.map_or(String::new(), |device| format!(" by {device}"));
    folded(plan)
        + &format!(
            "{}: {}, {} in {seconds:.2} s ({}/s read and written){by}\n",
            target.path.display(),
            count(plan.tensors.len() as u64, "tensor"),
            written.written,
            Bytes(rate as u64),
        )
}

/// What became of each projection, in words.
fn folded(plan: &Plan<'_>) -> String {
    let line = |projection: &Projection| match &projection.folded {
        Ok(targets) => format!("folded {} into {}\n", projection.name, targets.join(", ")),
        Err(why) => format!("kept {}: {why}\n", projection.name),
    };
    plan.projections.iter().map(line).collect()
}

fn fate(projection: &Projection) -> Value {
    match &projection.folded {
        Ok(targets) => json!({"name": projection.name, "folded_into": targets}),
        Err(why) => json!({"name": projection.name, "kept_because": why}),
    }
}

pub(super) fn document(
    plan: &Plan<'_>,
    method: &dyn Method,
    target: &Target,
    cost: Prediction,
    formulas: &[Formula],
    seconds: Option<f64>,
) -> Value {
    let formulas: Vec<Value> = formulas
        .iter()
        .map(|formula| {
            json!({
                "formula": formula.text,
                "inputs": formula.inputs.iter().map(|dtype| dtype.name()).collect::<Vec<_>>(),
                "output": formula.output.name(),
                "tensors": formula.tensors,
            })
        })
        .collect();
    json!({
        "output": target.path.display().to_string(),
        "method": method.about().name,
        "written": seconds.is_some(),
        "seconds": seconds,
        "tensors": plan.tensors.len(),
        "files": cost.files,
        "bytes_read": cost.read.0,
        "bytes_written": cost.written.0,
        "peak_memory": cost.memory.0,
        "left_out": plan.left_out,
        "projections": plan.projections.iter().map(fate).collect::<Vec<_>>(),
        "formulas": formulas,
    })
}
