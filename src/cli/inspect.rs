//! `ckptmerge inspect`

use super::report::{count, grouped, shape, table};
use super::{Common, Run, remarks, without_adapters};
use crate::analysis::{self, Stats};
use crate::checkpoint::{Checkpoint, OpenOptions, Tensor};
use crate::error::{Bytes, Error};
use clap::Args;
use globset::{Glob, GlobMatcher};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Show what is in a model
///
/// Format, tensors, types, sizes and metadata, and how it was made if ckptmerge merged it. Only headers are read,
/// unless --stats asks for the data.
#[derive(Args)]
#[command(after_help = "Example: ckptmerge inspect model.safetensors --tensors '*attn*' --stats")]
pub(super) struct Inspect {
    /// The model
    #[arg(required_unless_present = "tensors")]
    model: Option<PathBuf>,
    /// List the tensors, or those whose name matches a pattern with * and ?
    ///
    /// What follows is the pattern; write `--tensors=GLOB`, or put MODEL first.
    #[arg(long, value_name = "GLOB", num_args = 0..=1, default_missing_value = "*")]
    tensors: Option<String>,
    /// Read the data: min, max, mean, standard deviation, norm, zeros, NaN and infinities per tensor
    #[arg(long)]
    stats: bool,
    /// Group the tensors by their names' parts
    #[arg(long, conflicts_with = "tensors")]
    tree: bool,
}

impl Inspect {
    /// What is looked at, and the pattern of what is listed. An option that may have a value takes what follows it:
    /// `--tensors MODEL` is a model all of whose tensors are listed.
    fn model_and_tensors(&self) -> (PathBuf, Option<String>) {
        match (&self.model, &self.tensors) {
            (Some(model), tensors) => (model.clone(), tensors.clone()),
            (None, Some(model)) if Path::new(model).exists() => (model.into(), Some("*".to_owned())),
            (None, _) => {
                let kind = clap::error::ErrorKind::MissingRequiredArgument;
                super::command().error(kind, "inspect needs a MODEL, before or behind --tensors=GLOB").exit()
            }
        }
    }
}

impl Run for Inspect {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let (model, tensors) = self.model_and_tensors();
        let tensors =
            tensors.as_deref().map(Glob::new).transpose().map_err(|error| Error::Recipe(error.to_string()))?;
        without_adapters(&model)?;
        let model = Checkpoint::open_with(&model, &OpenOptions { headers_only: !self.stats, ..common.open() })?;
        common.check_selected([&model])?;
        report.about(&model);
        let matcher = tensors.as_ref().map(Glob::compile_matcher);
        let listed = listed(&model, matcher.as_ref(), self.stats)?;
        let stats = if self.stats {
            remarks::of_scales(&report, &model);
            let views: Vec<_> = listed.iter().map(|tensor| model.view(tensor)).collect();
            let bytes = listed.iter().map(|tensor| tensor.bytes).sum();
            report.watched(bytes, |control| analysis::stats(&views, &common.settings(), control))?
        } else {
            vec![None; listed.len()]
        };
        let text = || {
            let mut text = summary(&model);
            if self.tree {
                text += &format!("\n{}", tree(&model));
            }
            if !listed.is_empty() {
                text += &format!("\n{}", list(&listed, &stats, self.stats));
            }
            text
        };
        report.answer(text, || document(&model, &listed, &stats))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The tensors to list: those that match, or all if there are to be statistics of them.
fn listed<'a>(model: &'a Checkpoint, matcher: Option<&GlobMatcher>, stats: bool) -> Result<Vec<&'a Tensor>, Error> {
    let matches = |tensor: &&Tensor| matcher.map_or(stats, |matcher| matcher.is_match(&tensor.name));
    let listed: Vec<_> = model.tensors().iter().filter(matches).collect();
    match matcher {
        Some(matcher) if listed.is_empty() && !model.tensors().is_empty() => {
            let names = model.tensors().iter().map(|tensor| tensor.name.as_str());
            Err(Error::unknown("tensor that matches", matcher.glob().glob(), names))
        }
        _ => Ok(listed),
    }
}

/// Tensors, elements and bytes of each type, the tied ones not counted again.
fn dtypes(model: &Checkpoint) -> BTreeMap<&'static str, (u64, u64, u64)> {
    let mut dtypes = BTreeMap::new();
    for tensor in model.tensors().iter().filter(|tensor| tensor.alias_of.is_none()) {
        let (tensors, elements, bytes) = dtypes.entry(tensor.dtype.name()).or_insert((0, 0, 0));
        *tensors += 1;
        *elements += tensor.elements;
        *bytes += tensor.bytes;
    }
    dtypes
}

fn summary(model: &Checkpoint) -> String {
    let line = |key: &str, value: &str| format!("  {key:<11} {value}\n");
    let files = count(model.files().len() as u64, "file");
    let mut text = format!("{}\n", model.name());
    text += &line("format", &format!("{} ({files}, {})", model.format(), Bytes(model.file_bytes())));
    text += &line("tensors", &grouped(model.tensors().len() as u64));
    let dtypes = dtypes(model);
    text += &line("parameters", &grouped(dtypes.values().map(|(_, elements, _)| elements).sum()));
    for (dtype, (tensors, elements, bytes)) in dtypes {
        let value = format!("{}, {} elements, {}", count(tensors, "tensor"), grouped(elements), Bytes(bytes));
        text += &line(dtype, &value);
    }
    for tied in model.tensors().iter().filter_map(|t| Some((&t.name, t.alias_of.as_ref()?))) {
        text += &line("tied", &format!("{} = {}", tied.0, tied.1));
    }
    for (key, value) in model.metadata().iter().filter(|(key, _)| !key.starts_with("ckptmerge.")) {
        let shown: String = value.chars().take(200).collect();
        let more = if shown.len() < value.len() { "…" } else { "" };
        text += &line("metadata", &format!("{key} = {shown}{more}"));
    }
    text + &made_by(model)
}

/// How the model was made, if its metadata says so.
fn made_by(model: &Checkpoint) -> String {
    let read = |key: &str| model.metadata().get(key).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(recipe) = read("ckptmerge.recipe") else { return String::new() };
    let inputs = read("ckptmerge.inputs").unwrap_or_default();
    let word = |key: &str| recipe[key].as_str().unwrap_or("?").to_owned();
    let mut text = format!("  merged by   ckptmerge {}: {}  {}\n", word("ckptmerge"), word("method"), word("formula"));
    let weights = recipe["weights"].as_array().into_iter().flatten().map(Some).chain(std::iter::repeat(None));
    for (input, weight) in inputs.as_array().into_iter().flatten().zip(weights) {
        // A recipe file's models have no one weight.
        let role = if recipe["yaml"].is_string() { "" } else { "base" };
        let weight = weight.map_or(role.to_owned(), Value::to_string);
        let (name, print) = (input["name"].as_str().unwrap_or("?"), input["fingerprint"].as_str().unwrap_or("?"));
        text += &format!("              {weight:>8}  {name}  {print}\n");
    }
    for (key, value) in recipe.as_object().into_iter().flatten() {
        let shown = ["ckptmerge", "method", "formula", "models", "weights", "base", "yaml"].contains(&key.as_str());
        if !shown && *value != Value::Bool(false) {
            text += &format!("              {key}: {value}\n");
        }
    }
    let lines = recipe["yaml"].as_str().into_iter().flat_map(str::lines);
    lines.for_each(|line| text += &format!("              {line}\n"));
    text
}

fn list(tensors: &[&Tensor], stats: &[Option<Stats>], with_stats: bool) -> String {
    let columns = if with_stats { 12 } else { 4 };
    let headings = ["tensor", "dtype", "shape", "bytes", "min", "max", "mean", "std", "norm", "zeros", "NaN", "inf"];
    let rows = tensors.iter().zip(stats).map(|(tensor, stats)| {
        let mut row = vec![tensor.name.clone(), tensor.dtype.to_string(), shape(&tensor.shape), grouped(tensor.bytes)];
        if let Some(s) = stats {
            let numbers = if s.finite > 0 { vec![s.min, s.max, s.mean, s.std(), s.norm] } else { vec![] };
            row.extend(numbers.iter().map(|number| format!("{number:.4e}")));
            row.resize(9, String::new());
            row.extend([s.zeros, s.nan, s.infinite].map(grouped));
        }
        row.resize(columns, String::new());
        row
    });
    table(&headings[..columns], &headings[3..columns], rows)
}

/// A level of the tree: how much is below a prefix.
#[derive(Default)]
struct Node {
    tensors: u64,
    elements: u64,
    bytes: u64,
    children: BTreeMap<Part, Node>,
}

/// A part of a name; numbers sort as numbers.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64, String),
    Word(String),
}

impl Part {
    fn of(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Word(text.to_owned()), |number| Self::Number(number, text.to_owned()))
    }

    fn text(&self) -> &str {
        let (Self::Number(_, text) | Self::Word(text)) = self;
        text
    }
}

fn tree(model: &Checkpoint) -> String {
    let mut root = Node::default();
    for tensor in model.tensors() {
        let mut node = &mut root;
        for part in tensor.name.split(['.', '/']) {
            node = node.children.entry(Part::of(part)).or_default();
            node.tensors += 1;
            node.elements += tensor.elements;
            node.bytes += tensor.bytes;
        }
    }
    let mut rows = Vec::new();
    branch(&root, 0, &mut rows);
    let headings = ["name", "tensors", "elements", "bytes"];
    table(&headings, &headings[1..], rows)
}

fn branch(node: &Node, depth: usize, rows: &mut Vec<Vec<String>>) {
    for (part, child) in &node.children {
        // A chain of single children is one line.
        let (mut name, mut last) = (part.text().to_owned(), child);
        while let Some((part, only)) = last.children.first_key_value().filter(|_| last.children.len() == 1) {
            name = format!("{name}.{}", part.text());
            last = only;
        }
        let indent = "  ".repeat(depth);
        let numbers = [last.tensors, last.elements].map(grouped);
        rows.push([vec![format!("{indent}{name}")], numbers.to_vec(), vec![Bytes(last.bytes).to_string()]].concat());
        branch(last, depth + 1, rows);
    }
}

fn document(model: &Checkpoint, tensors: &[&Tensor], stats: &[Option<Stats>]) -> Value {
    let dtypes: Map<String, Value> = dtypes(model)
        .into_iter()
        .map(|(dtype, (tensors, elements, bytes))| {
            (dtype.to_owned(), json!({"tensors": tensors, "elements": elements, "bytes": bytes}))
        })
        .collect();
    let describe = |(tensor, stats): (&&Tensor, &Option<Stats>)| {
        let mut json = json!({
            "name": tensor.name,
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "bytes": tensor.bytes,
        });
        if let Some(target) = &tensor.alias_of {
            json["alias_of"] = json!(target);
        }
        if let Some(s) = stats {
            let number = |value: f64| if s.finite > 0 { json!(value) } else { Value::Null };
            json["stats"] = json!({
                "min": number(s.min), "max": number(s.max), "mean": number(s.mean), "std": number(s.std()),
                "norm": number(s.norm), "zeros": s.zeros, "nan": s.nan, "inf": s.infinite,
            });
        }
        json
    };
    json!({
        "name": model.name(),
        "format": model.format(),
        "files": model.files().iter().map(|file| file.path().display().to_string()).collect::<Vec<_>>(),
        "bytes": model.file_bytes(),
        "tensor_count": model.tensors().len(),
        "dtypes": dtypes,
        "metadata": model.metadata(),
        "tensors": tensors.iter().zip(stats).map(describe).collect::<Vec<_>>(),
    })
}
