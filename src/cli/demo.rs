//! `ckptmerge demo`

mod models;
mod page;
mod steps;
mod story;

use super::{Common, Run};
use crate::error::Error;
use crate::output::StagedFolder;
use clap::Args;
use models::Models;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use steps::STEPS;
use story::Story;

/// The report, and the numbers with the list of what was written.
const REPORT: &str = "report.html";
const NUMBERS: &str = "numbers.json";
/// What the numbers say of who wrote them.
const AUTHOR: &str = "ckptmerge demo";
/// The longest list of files that is read, in bytes.
const NUMBERS_LIMIT: u64 = 16 << 20;

/// Show Decouple-then-Merge on small models of digits
///
/// Looks at a diffusion model of handwritten digits and at copies of it that were fine-tuned on a range of timesteps each, merges
/// them into one, samples from all, and tells how far the images are from real ones. What is done is done by ckptmerge's own
/// subcommands, which are shown as one would type them. The folder that is written holds their outputs, the numbers, and report.html
/// with everything in it.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge demo
  ckptmerge demo -o /tmp/digits --images 1000 --steps 50")]
pub(super) struct Demo {
    /// The folder to write; only one that the demo wrote is replaced
    #[arg(short, long, value_name = "DIR", default_value = "ckptmerge-demo")]
    output: PathBuf,
    /// The models [default: fixtures/digits, here or in a folder above, or above the program]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Images of each model whose distance from real ones is told
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    images: u32,
    /// Steps from noise to an image
    #[arg(long, value_name = "N", default_value = "25", value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// What noise follows from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl Run for Demo {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let models = Models::find(self.models.as_deref())?;
        check_own(&self.output)?;
        let started = Instant::now();
        let folder = StagedFolder::create(&self.output, 0)?;
        let mut story = Story::new(&models, &self, common, &report, &folder)?;
        for step in STEPS {
            story.begin(step.name, step.title)?;
            (step.tell)(&mut story)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let page = page::html(&story)?;
        folder.write(Path::new(REPORT), page.as_bytes())?;
        let mut files = files_in(&folder.path(Path::new(""))?)?;
        files.insert(NUMBERS.to_owned());
        let numbers = self.document(&models, &story, seconds, &files);
        folder.write(Path::new(NUMBERS), format!("{numbers:#}\n").as_bytes())?;
        folder.commit(true)?;
        let place = self.output.join(REPORT);
        let text = || format!("\nAll of it, with pictures, is in {} ({seconds:.0} s).\n", place.display());
        report.answer(text, || numbers)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Demo {
    fn document(&self, models: &Models, story: &Story<'_>, seconds: f64, files: &BTreeSet<String>) -> Value {
        json!({
            "made_by": AUTHOR,
            "output": self.output.display().to_string(),
            "models": models.folder.display().to_string(),
            "images": self.images,
            "steps": self.steps,
            "seed": self.seed,
            "seconds": seconds,
            "sections": story.sections.iter().map(story::Section::document).collect::<Vec<_>>(),
            "files": files,
        })
    }
}

/// The files below a folder, by their paths within.
fn files_in(folder: &Path) -> Result<BTreeSet<String>, Error> {
    let (mut files, mut folders) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).map_err(Error::io("list", &next))? {
            let entry = entry.map_err(Error::io("list", &next))?;
            let path = entry.path();
            // Not through links: what they lead to is not in the folder.
            if entry.file_type().map_err(Error::io("look at", &path))?.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned());
            }
        }
    }
    Ok(files)
}

/// That a folder, if it is there, holds nothing but what a demo wrote.
fn check_own(folder: &Path) -> Result<(), Error> {
    if !folder.is_dir() {
        return Ok(());
    }
    let found = files_in(folder)?;
    if found.is_empty() {
        return Ok(());
    }
    let path = folder.join(NUMBERS);
    let numbers = if path.is_file() { crate::checkpoint::read_small(&path, NUMBERS_LIMIT)? } else { Vec::new() };
    let numbers: Value = serde_json::from_slice(&numbers).unwrap_or_default();
    if numbers["made_by"] != AUTHOR {
        return Err(Error::output(folder, "this folder was not written by a demo; name another with -o"));
    }
    let written: BTreeSet<&str> = numbers["files"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match found.iter().find(|file| !written.contains(file.as_str())) {
        Some(file) => {
            let message =
                format!("this folder holds `{file}`, which no demo wrote and which would be lost; name another");
            Err(Error::output(folder, message))
        }
        None => Ok(()),
    }
}
