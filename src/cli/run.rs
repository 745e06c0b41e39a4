//! `ckptmerge run`

use super::device::Device;
use super::merge::{document, done, explained, would};
use super::report::{Report, count, print, say, shortened, table};
use super::{Common, remarks, said_of, shard_size};
use crate::error::{Bytes, Error};
use crate::recipe::{Options, Plan, RecipeFile, Target};
use crate::stream::{Control, Settings};
use clap::Args;
use globset::Glob;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Run merges that recipe files describe
///
/// A recipe is mergekit's YAML as it is: `merge_method`, `models`, `slices` or `modules`, `base_model`, `parameters` with
/// gradients and filters, `dtype`. Of a file with several documents, those with a `name:` are models for the others;
/// nothing in between is written. Paths are relative to the recipe's folder, or else to the current one. Keys of ours are
/// `seed`, `missing` (error, base or skip), `include` and `exclude` (patterns), and `block_presets`, a file of named values
/// for the blocks of a diffusion model.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge run recipe.yaml -o merged/
  ckptmerge run recipe.yaml --set parameters.t=0.3 --explain --dry-run
  ckptmerge run 'recipes/*.yaml' -o out/ --keep-going")]
pub(super) struct Run {
    /// Recipe files, or patterns of their names, such as 'recipes/*.yaml'
    #[arg(required = true, value_name = "RECIPE")]
    recipes: Vec<String>,
    /// The file or folder to write; of several recipes, the folder in which each has one of its name
    #[arg(short, long, value_name = "OUT", required_unless_present_any = ["dry_run", "explain"])]
    output: Option<PathBuf>,
    /// Put a value in place of what the recipe says, such as parameters.t=0.3 or models.0.parameters.weight=[0,1]
    ///
    /// A path of keys and numbers, counted from 0, and a value in YAML. In a file of several documents, paths begin with
    /// a document's name, or are of the document that is written. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Warn of keys that no recipe has, instead of refusing them
    #[arg(long)]
    lenient: bool,
    /// Go on with the next recipe when one fails
    #[arg(long)]
    keep_going: bool,
    /// Write folders of files with at most this much tensor data each, such as 5GB, and an index
    #[arg(long, value_name = "SIZE", value_parser = shard_size)]
    shard_size: Option<Bytes>,
    /// Show the effective formula of each group of tensors; without -o, only that
    #[arg(long)]
    explain: bool,
    /// Show what would be read, written and needed, and stop
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: Device,
    /// Do not wait until the output is on the disk
    #[arg(long)]
    no_sync: bool,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as key=value")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What a recipe came to.
struct Ran {
    output: String,
    tensors: usize,
    bytes: Bytes,
    seconds: Option<f64>,
    json: Value,
}

impl super::Run for Run {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let mut settings = common.settings();
        settings.sync = !self.no_sync;
        self.device.prepare(&mut settings)?;
        let recipes = expand(&self.recipes)?;
        let outputs = self.outputs(&recipes)?;
        let is_batch = recipes.len() > 1;
        if let Some(folder) = self.output.as_ref().filter(|_| is_batch && !self.dry_run) {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }

        let (mut rows, mut documents, mut failed) = (Vec::new(), Vec::new(), 0);
        for (path, output) in recipes.iter().zip(outputs) {
            let name = path.display().to_string();
            match self.one(path, output, common, &settings, &report) {
                Ok(ran) => {
                    let result = if ran.seconds.is_some() { "written" } else { "planned" };
                    let seconds = ran.seconds.map_or(String::new(), |seconds| format!("{seconds:.2} s"));
                    let row =
                        [name, result.to_owned(), ran.tensors.to_string(), ran.bytes.to_string(), seconds, ran.output];
                    rows.push(row.to_vec());
                    documents.push(ran.json);
                }
                // One recipe's failure is the command's own; so is a stop that was asked for.
                Err(error) if !is_batch || matches!(error.downcast_ref(), Some(Error::Interrupted)) => {
                    return Err(error);
                }
                Err(error) => {
                    let message = said_of(&error);
                    let whose = if names(&message, &name) { String::new() } else { format!("{name}: ") };
                    say(&format!("error: {whose}{message}"));
                    failed += 1;
                    rows.push(vec![name.clone(), "failed".to_owned()]);
                    documents.push(json!({"recipe": name, "error": message}));
                    if !self.keep_going {
                        break;
                    }
                }
            }
        }
        let left = recipes.len() - rows.len();
        if common.json {
            print(&format!("{:#}\n", json!({"recipes": documents, "failed": failed, "not_run": left})))?;
        } else if is_batch && !common.quiet {
            let headings = ["recipe", "result", "tensors", "size", "time", "output"];
            rows.iter_mut().for_each(|row| row.resize(headings.len(), String::new()));
            print(&format!("\n{}", table(&headings, &headings[2..5], rows)))?;
        }
        if left > 0 {
            say(&format!("{} not run; --keep-going goes on behind a failure", count(left as u64, "recipe")));
        }
        Ok(if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

impl Run {
    /// Where each recipe's output goes, without an ending if it has the recipe's name.
    fn outputs(&self, recipes: &[PathBuf]) -> Result<Vec<Output>, Error> {
        if let [_] = recipes {
            return Ok(vec![self.output.clone().map_or(Output::Nowhere, Output::Here)]);
        }
        let mut by_stem: BTreeMap<String, &Path> = BTreeMap::new();
        let mut outputs = Vec::new();
        for path in recipes {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(other) = by_stem.insert(stem.clone(), path) {
                let message = format!(
                    "{} and {} would be written to the same place: run them one by one",
                    other.display(),
                    path.display()
                );
                return Err(Error::Recipe(message));
            }
            outputs.push(self.output.as_ref().map_or(Output::Nowhere, |folder| Output::In(folder.join(stem))));
        }
        Ok(outputs)
    }

    fn one(
        &self,
        path: &Path,
        output: Output,
        common: &Common,
        settings: &Settings,
        report: &Report,
    ) -> anyhow::Result<Ran> {
        let file = RecipeFile::read(path, &Options { lenient: self.lenient, set: self.set.clone() })?;
        file.warnings().iter().for_each(|warning| report.warn(warning));
        let sources = file.open(&common.open())?;
        common.check_selected(sources.checkpoints())?;
        sources.checkpoints().for_each(|model| report.about(model));
        sources.warnings().for_each(|warning| report.warn(warning));
        sources.remarks().for_each(|remark| report.remark(remark));
        let plan = report.watched(0, |control| Plan::of_file(&file, &sources, settings, control))?;
        plan.notes.iter().for_each(|note| report.warn(note));
        if !plan.left_out.is_empty() {
            let names = shortened(&plan.left_out);
            report.warn(&format!("the output leaves out {}: {names}", count(plan.left_out.len() as u64, "tensor")));
        }
        for large in plan.left_beside()? {
            report.warn(&format!("{} is too large for a small file and is not copied along", large.display()));
        }

        let formulas = plan.formulas();
        report.note(|| explained(&formulas));
        if self.explain && !common.json && !common.quiet {
            print(&explained(&formulas))?;
        }
        // A plan without a place to go is laid out as if it went beside the models, to be measured.
        let path_of = |path: PathBuf| {
            let mut path = path.into_os_string();
            if !plan.is_of_folder() {
                path.push(".safetensors");
            }
            PathBuf::from(path)
        };
        let (path_out, writes) = match output {
            Output::Here(path) => (path, !self.dry_run),
            Output::In(path) => (path_of(path), !self.dry_run),
            Output::Nowhere => (path_of("merged".into()), false),
        };
        let target = Target { path: path_out, shard_size: self.shard_size, format: None };
        let predicted = plan.predict(&target, settings)?;
        remarks::of_output(report, &plan, &target)?;
        remarks::of_merge(report, &plan, &target, predicted, settings);
        let (mut cost, mut seconds, mut device) = (predicted, None, None);
        if writes {
            let start = Instant::now();
            let choose = |control: Control<'_>| self.device.choose(&plan, &target, settings, report, control);
            let settings = report.watched(0, choose)?;
            cost = report.watched(predicted.written.0, |control| plan.emit(&target, &settings, control))?;
            seconds = Some(start.elapsed().as_secs_f64());
            device = Device::computed_by(&settings, report);
        }
        let text = match seconds {
            Some(seconds) => done(&plan, &target, cost, seconds, device.as_deref()),
            None if self.dry_run => would(&plan, file.method(), &target, cost),
            None => String::new(),
        };
        if !common.json && !common.quiet {
            print(&text)?;
        }
        let mut json = document(&plan, file.method(), &target, cost, &formulas, seconds);
        if seconds.is_some() {
            json["device"] = device.as_deref().unwrap_or("cpu").into();
        }
        json["recipe"] = path.display().to_string().into();
        Ok(Ran {
            output: target.path.display().to_string(),
            tensors: plan.tensors.len(),
            bytes: cost.written,
            seconds,
            json,
        })
    }
}

/// Whether a message names a file itself: at its begin, at that of a line, or as a word.
fn names(message: &str, file: &str) -> bool {
    let at_begin = |text: &str| text.strip_prefix(file).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
    message.lines().any(|line| at_begin(line.trim_start())) || message.split_whitespace().any(at_begin)
}

/// Where an output goes.
enum Output {
    /// To the path that was given.
    Here(PathBuf),
    /// To a folder's entry of the recipe's name, which gets an ending if it is a file.
    In(PathBuf),
    /// It is not written.
    Nowhere,
}

/// The files that are meant: what exists as it stands, or else what matches it as a pattern.
fn expand(arguments: &[String]) -> Result<Vec<PathBuf>, Error> {
    let mut all = Vec::new();
    for text in arguments {
        let path = Path::new(text);
        if path.exists() || !text.contains(['*', '?', '[', '{']) {
            all.push(path.to_owned());
            continue;
        }
        let found = matching(path)?;
        if found.is_empty() {
            return Err(Error::Recipe(format!("no file matches `{text}`")));
        }
        all.extend(found);
    }
    Ok(all)
}

/// The files whose paths match a pattern, part by part, sorted.
fn matching(pattern: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy();
        if !text.contains(['*', '?', '[', '{']) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let glob = Glob::new(&text).map_err(|error| Error::Recipe(format!("`{text}` is no pattern: {error}")))?;
        let matcher = glob.compile_matcher();
        let mut next = Vec::new();
        for folder in &found {
            let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let Ok(entries) = std::fs::read_dir(listed) else { continue };
            let names = entries.flatten().map(|entry| entry.file_name());
            let names = names.filter(|name| !name.as_encoded_bytes().starts_with(b".") && matcher.is_match(name));
            next.extend(names.map(|name| folder.join(name)));
        }
        next.sort();
        found = next;
    }
    found.retain(|path| path.is_file());
    Ok(found)
}
