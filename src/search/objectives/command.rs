//! A command of the user's own: what it prints last is a candidate's number.

use super::{Evaluator, Objective};
use crate::checkpoint::by_extension;
use crate::error::{Error, Result};
use crate::recipe::{Models, Plan, Recipe, Selection, Target};
use crate::stream::{Control, Settings};
use regex::Regex;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What stands in a template for the candidate's path.
const MODEL: &str = "{model}";
/// What Ctrl-C sends.
const SIGINT: i32 = 2;
/// How long to wait between looks at a command.
const LOOK: Duration = Duration::from_millis(20);
/// How long to read on behind a command's end, where something else holds its output open.
const PATIENCE: Duration = Duration::from_millis(500);
/// The last bytes of what a command prints that are kept.
const KEPT: usize = 1 << 16;

static NUMBER: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|\bnan\b|[-+]?\binf(?:inity)?\b").ok());

/// A command that is run for each candidate, by `sh`.
pub struct Command<'a> {
    template: String,
    models: &'a Models,
    /// The base's own file and the models': a candidate that is one of them is not written again.
    base: PathBuf,
    paths: Vec<PathBuf>,
    selection: Selection,
    folder: &'a Path,
    jobs: usize,
    settings: Settings,
    labels: Vec<String>,
    next: AtomicUsize,
}

impl<'a> Command<'a> {
    /// Of models with their base, whose files are at these paths; candidates are written into `folder`, and `jobs` commands run at a time.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the template has no `{model}`.
    pub fn new(
        template: &str,
        models: &'a Models,
        (base, paths): (&Path, &[PathBuf]),
        selection: &Selection,
        folder: &'a Path,
        jobs: usize,
    ) -> Result<Self> {
        if !template.contains(MODEL) {
            let message = format!("the command `{template}` has no {MODEL}, in whose place the candidate's path goes");
            return Err(Error::Recipe(message));
        }
        let is_quoted = |quote: char| template.contains(&format!("{quote}{MODEL}{quote}"));
        if is_quoted('"') || is_quoted('\'') {
            let message = format!("leave the quotes around {MODEL} out: the path comes in quotes");
            return Err(Error::Recipe(message));
        }
        Ok(Self {
            template: template.to_owned(),
            models,
            base: base.to_owned(),
            paths: paths.to_vec(),
            selection: selection.clone(),
            folder,
            jobs,
            settings: Settings { sync: false, ..Settings::default() },
            labels: vec!["the command's number".to_owned()],
            next: AtomicUsize::new(0),
        })
    }

    /// The candidate's path, and whether it was written for this.
    fn candidate(&self, weights: &[f64], number: usize, control: Control<'_>) -> Result<(PathBuf, bool)> {
        let is_one = |index: usize| weights.iter().enumerate().all(|(i, w)| *w == if i == index { 1.0 } else { 0.0 });
        // What a selection leaves out is the base's in a candidate.
        let is_whole = self.selection.include.is_empty() && self.selection.exclude.is_empty();
        let model = (0..weights.len()).find(|index| is_whole && is_one(*index)).and_then(|index| self.paths.get(index));
        let base = weights.iter().all(|weight| *weight == 0.0).then_some(&self.base);
        if let Some(path) = model.or(base) {
            return Ok((path.clone(), false));
        }
        let Selection { include, exclude } = self.selection.clone();
        let recipe = Recipe { include, exclude, ..Recipe::new("task-arithmetic")?.weights(weights) };
        let unwatched = Control { progress: &|_| {}, ..control };
        let plan = Plan::new(&recipe, self.models, &self.settings, unwatched)?;
        // In the base's own format, where it can be written.
        let own = by_extension(&self.base).and(self.base.extension());
        let mut path = self.folder.join(format!("candidate-{number}"));
        if !self.models.frame().layout().is_folder {
            path.set_extension(own.unwrap_or(OsStr::new("safetensors")));
        }
        plan.emit(&Target::new(&path), &self.settings, unwatched)?;
        Ok((path, true))
    }

    fn number(&self, model: &Path, control: Control<'_>) -> Result<f64> {
        let path = model.to_str().ok_or_else(|| Error::model(model, "has a path that is no UTF-8; move it"))?;
        // A name with a dash first would be an option.
        let path = if path.starts_with('-') { format!("./{path}") } else { path.to_owned() };
        let quoted = format!("'{}'", path.replace('\'', r"'\''"));
        let line = self.template.replace(MODEL, &quoted);
        let fail = |message: String| Error::Recipe(format!("the command `{line}` {message}"));
        let mut child = std::process::Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| fail(format!("cannot be run: {error}")))?;
        let (out, errors) = (Tail::of(child.stdout.take()), Tail::of(child.stderr.take()));
        let status = wait(&mut child, control)?;
        let (out, errors) = (out.text(), errors.text());
        // A terminal sends the signal to both.
        control.check()?;
        if status.signal() == Some(SIGINT) {
            return Err(Error::Interrupted);
        }
        if !status.success() {
            let last = errors.trim_end().lines().rev().take(5).collect::<Vec<_>>();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
            return Err(fail(format!("failed ({status}):\n{last}")));
        }
        let number = NUMBER.as_ref().and_then(|number| number.find_iter(&out).last());
        let number = number.and_then(|found| found.as_str().parse::<f64>().ok());
        let number = number.ok_or_else(|| fail("printed no number on its standard output".to_owned()))?;
        Ok(if number.is_finite() { number } else { f64::NAN })
    }
}

/// Waits for a command, which is killed if the run is to stop.
fn wait(child: &mut Child, control: Control<'_>) -> Result<std::process::ExitStatus> {
    loop {
        let look = child.try_wait().map_err(|error| Error::Recipe(format!("a command was lost: {error}")))?;
        if let Some(status) = look {
            return Ok(status);
        }
        if let Err(interrupted) = control.check() {
            // If it has just ended, there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            return Err(interrupted);
        }
        std::thread::sleep(LOOK);
    }
}

/// The last of what a pipe gives, read by a thread of its own.
struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Tail {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&kept);
        let reader = std::thread::spawn(move || {
            let (Some(mut pipe), mut buffer) = (pipe, [0; 4096]) else { return };
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(buffer.get(..read).unwrap_or_default());
                let surplus = kept.len().saturating_sub(KEPT);
                kept.drain(..surplus);
            }
        });
        Self { kept, reader }
    }

    /// What there is when the command has ended. What it left running may hold the pipe open: that is not waited for.
    fn text(self) -> String {
        let ended = Instant::now();
        while !self.reader.is_finished() && ended.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        String::from_utf8_lossy(&self.kept.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Objective for Command<'_> {
    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn side_by_side(&self, threads: usize) -> usize {
        self.jobs.min(threads)
    }

    fn evaluator(&self) -> Result<Box<dyn Evaluator + '_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(OfOne { command: self, number }))
    }
}

struct OfOne<'a> {
    command: &'a Command<'a>,
    number: usize,
}

impl Evaluator for OfOne<'_> {
    fn evaluate(&mut self, weights: &[f64], control: Control<'_>) -> Result<Vec<f64>> {
        let (path, is_ours) = self.command.candidate(weights, self.number, control)?;
        let number = self.command.number(&path, control);
        if is_ours {
            // The folder is removed in the end, with whatever is in it.
            let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        }
        Ok(vec![number?])
    }
}
