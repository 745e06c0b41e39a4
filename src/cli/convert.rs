//! `ckptmerge convert`

use super::report::count;
use super::{Common, Run, dtype, remarks, shard_size};
use crate::adapter::{self, Adapters, Unplaced};
use crate::checkpoint::{Checkpoint, OpenOptions, format, read_text};
use crate::dtype::DType;
use crate::error::{Bytes, Error};
use crate::names::{self, NAME_MAPS};
use crate::recipe::{Conversion, Rename, Selection, Target};
use ckptmerge_format::Format;
use clap::Args;
use regex::Regex;
use serde_json::json;
use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Write a model in another format, type or layout
///
/// Any format that is read becomes any that is written, told by the ending of OUT or by --to. Tensors whose type does
/// not change are copied bit for bit.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge convert model.ckpt model.safetensors --dtype bf16
  ckptmerge convert model/ out/ --shard-size 5GB
  ckptmerge convert training.ckpt ema.safetensors --select ema --exclude '^optimizer'
  ckptmerge convert pipeline/ model.safetensors --rename diffusers-to-sd")]
pub(super) struct Convert {
    /// The model; MODEL+ADAPTER writes it with a LoRA in its tensors
    input: PathBuf,
    /// The file or folder to write
    output: PathBuf,
    /// The format of IN, where its content does not tell
    #[arg(long, value_name = "FORMAT", value_parser = format_named)]
    from: Option<Named>,
    /// The format of OUT [default: by its ending, or safetensors]
    #[arg(long, value_name = "FORMAT", value_parser = format_named)]
    to: Option<Named>,
    /// The type of real numbers: f32, bf16, f16, f8_e4m3, q8_0, … [default: as they are]
    ///
    /// Quantized types leave tensors of fewer than two dimensions, such as norms, and rows that are no whole blocks in
    /// f32.
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    dtype: Option<DType>,
    /// The type of the tensors whose name matches; may be repeated, and the first match counts
    #[arg(long, value_name = "REGEX=DTYPE", value_parser = dtype_for)]
    dtype_for: Vec<(Regex, DType)>,
    /// Write a folder of files with at most this much tensor data each, such as 5GB, and an index
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    shard_size: Option<Bytes>,
    /// Keep only tensors whose name in IN matches
    #[arg(long, value_name = "REGEX")]
    include: Vec<Regex>,
    /// Leave out tensors whose name in IN matches
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<Regex>,
    /// Other names: by a name map, or by a file of lines `REGEX -> REPLACEMENT`; may be repeated
    #[arg(long, value_name = "MAP|FILE", long_help = rename_help())]
    rename: Vec<PathBuf>,
    /// Text to go with the tensors
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Show what would be read and written, and stop
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until the output is on the disk
    #[arg(long)]
    no_sync: bool,
}

/// A format of the table.
#[derive(Clone, Copy)]
struct Named(&'static dyn Format);

fn format_named(text: &str) -> Result<Named, Error> {
    format(text).map(Named)
}

fn dtype_for(text: &str) -> Result<(Regex, DType), String> {
    let (pattern, name) = text.rsplit_once('=').ok_or("write it as REGEX=DTYPE")?;
    let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
    Ok((pattern, dtype(name).map_err(|error| error.to_string())?))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// The name maps, and what a file of rules is.
fn rename_help() -> String {
    let mut help = "Other names for tensors; may be repeated, and is applied in that order\n\n\
        A file of lines `REGEX -> REPLACEMENT`, each applied to every name in their order, or one of \
        these maps, which also cut, join, transpose and reshape tensors where the names' owners store them otherwise:\n"
        .to_owned();
    for map in NAME_MAPS {
        help += &format!("\n  {}\n      {}", map.id(), map.about());
    }
    help += "\n\nIn a REPLACEMENT, $1 is what the first group of the REGEX matched and $name that of a named one. Write \
        ${1} where a letter, digit or _ follows: $1x is the group called `1x`, which there is not, and so nothing.";
    help
}

/// The map of that name, or the rules of the file.
fn rename(text: &std::path::Path) -> Result<Rename, Error> {
    if let Some(map) = text.to_str().and_then(names::name_map) {
        return Ok(Rename::Map(map));
    }
    if !text.exists() {
        return Err(names::unknown(&text.display().to_string()));
    }
    rules(text).map(Rename::Rules)
}

/// The longest file of rules that is read, and the longest replacement in it, in bytes.
const RULES_LIMIT: u64 = 16 << 20;
const REPLACEMENT_LIMIT: usize = 1000;

/// The rules of a file of `REGEX -> REPLACEMENT` lines; empty lines and those that begin with `#` are none.
fn rules(path: &std::path::Path) -> Result<Vec<(Regex, String)>, Error> {
    let text = read_text(path, RULES_LIMIT)?;
    let wrong = |line: usize, message: String| Error::Recipe(format!("{}:{line}: {message}", path.display()));
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            let (from, to) = line
                .split_once("->")
                .ok_or_else(|| wrong(number, "write a rule as `REGEX -> REPLACEMENT`".to_owned()))?;
            let from = Regex::new(from.trim()).map_err(|error| wrong(number, error.to_string()))?;
            if to.len() > REPLACEMENT_LIMIT {
                return Err(wrong(number, format!("the replacement has more than {REPLACEMENT_LIMIT} bytes")));
            }
            Ok((from, to.trim().to_owned()))
        })
        .collect()
}

impl Run for Convert {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let mut keys = HashSet::new();
        if let Some((key, _)) = self.metadata.iter().find(|(key, _)| !keys.insert(key)) {
            return Err(Error::Recipe(format!("--metadata gives `{key}` twice; which value is meant?")).into());
        }
        let mut settings = common.settings();
        settings.sync = !self.no_sync;
        let conversion = Conversion {
            dtype: self.dtype,
            dtype_for: self.dtype_for.clone(),
            selection: Selection { include: self.include.clone(), exclude: self.exclude.clone() },
            rename: self.rename.iter().map(|name| rename(name)).collect::<Result<_, _>>()?,
            metadata: self.metadata.clone(),
        };
        let format = self.from.map(|named| named.0.id());
        let open = OpenOptions { format, ..common.open() };
        let parts = adapter::split_path(&self.input);
        let model = Checkpoint::open_with(&parts[0], &open)?;
        let adapters = match &parts[1..] {
            [] => None,
            over => Some(Adapters::open(over, &model, &common.open(), Unplaced::Error)?),
        };
        let renamed = conversion.rename(model)?;
        common.check_selected([renamed.model()])?;
        report.about(renamed.model());
        adapters.iter().flat_map(Adapters::warnings).for_each(|warning| report.warn(warning));
        for rule in renamed.unused_rules() {
            report.warn(&format!("--rename: no tensor's name matches `{rule}`"));
        }
        let plan = conversion.plan_with(&renamed, adapters.as_ref())?;
        let target =
            Target { path: self.output.clone(), shard_size: self.shard_size, format: self.to.map(|named| named.0) };
        let predicted = plan.predict(&target, &settings)?;
        remarks::of_output(&report, &plan, &target)?;
        remarks::of_conversion(&report, &plan, &target);
        let start = Instant::now();
        if !self.dry_run {
            report.watched(predicted.written.0, |control| plan.emit(&target, &settings, control))?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let tensors = count(plan.tensors.len() as u64, "tensor");
        let left = plan.left_out.len() as u64;
        report.answer(
            || {
                let path = target.path.display();
                let without = if left > 0 { format!(", without {}", count(left, "tensor")) } else { String::new() };
                if self.dry_run {
                    format!(
                        "{path} would have {tensors}{without}, {}; {} would be read\n",
                        predicted.written, predicted.read
                    )
                } else {
                    let rate = Bytes(((predicted.read.0 + predicted.written.0) as f64 / seconds.max(1e-9)) as u64);
                    format!(
                        "{path}: {tensors}{without}, {} in {seconds:.2} s ({rate}/s read and written)\n",
                        predicted.written
                    )
                }
            },
            || {
                json!({
                    "output": target.path.display().to_string(),
                    "format": target.format().id(),
                    "written": !self.dry_run,
                    "tensors": plan.tensors.len(),
                    "left_out": plan.left_out,
                    "files": predicted.files,
                    "bytes_read": predicted.read.0,
                    "bytes_written": predicted.written.0,
                })
            },
        )?;
        Ok(ExitCode::SUCCESS)
    }
}
