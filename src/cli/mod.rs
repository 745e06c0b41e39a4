//! The command line. One file a subcommand, one line in `subcommands!` each.
//!
//! Exit codes: 0 done, 1 failed (for `diff`: different), 2 wrong usage. People's text and JSON go to stdout, progress
//! and warnings to stderr.

#[cfg(feature = "diffusion")]
mod activations;
mod completions;
mod convert;
#[cfg(feature = "diffusion")]
mod data;
#[cfg(all(feature = "diffusion", feature = "plot"))]
mod demo;
mod device;
mod devices;
mod diff;
#[cfg(feature = "plot")]
mod diff_map;
#[cfg(feature = "diffusion")]
mod fid;
#[cfg(feature = "diffusion")]
mod finetune;
mod formats;
#[cfg(feature = "diffusion")]
mod gradients;
mod inspect;
#[cfg(feature = "plot")]
mod landscape;
mod man;
mod merge;
mod methods;
#[cfg(feature = "diffusion")]
mod network_device;
#[cfg(feature = "diffusion")]
mod noisy_images;
#[cfg(feature = "plot")]
mod objective;
#[cfg(feature = "plot")]
mod picture;
mod remarks;
mod report;
mod run;
#[cfg(feature = "diffusion")]
mod sample;
mod similarity;
mod stats;
mod task_vector;
mod tuned;

use crate::adapter;
use crate::checkpoint::{Checkpoint, IoMode, OpenOptions};
use crate::dtype::{DType, can_encode};
use crate::error::{Bytes, Error};
use crate::os;
use crate::stream::{Settings, THREADS_MAX};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use report::Report;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;

/// What a subcommand does with its arguments.
trait Run {
    /// Runs to the end; the exit code is the command's own where it did not fail.
    fn run(self, common: &Common) -> anyhow::Result<ExitCode>;
}

macro_rules! subcommands {
    ($($(#[$condition:meta])? $name:ident in $module:ident),* $(,)?) => {
        #[derive(Subcommand)]
        enum Subcommands {
            $($(#[$condition])? $name($module::$name),)*
        }

        impl Run for Subcommands {
            fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
                match self {
                    $($(#[$condition])? Self::$name(command) => command.run(common),)*
                }
            }
        }
    };
}

subcommands! {
    Merge in merge,
    Run in run,
    Convert in convert,
    Inspect in inspect,
    Diff in diff,
    TaskVector in task_vector,
    Similarity in similarity,
    Stats in stats,
    #[cfg(feature = "plot")]
    Landscape in landscape,
    #[cfg(feature = "diffusion")]
    Activations in activations,
    #[cfg(feature = "diffusion")]
    Sample in sample,
    #[cfg(feature = "diffusion")]
    Fid in fid,
    #[cfg(feature = "diffusion")]
    Finetune in finetune,
    #[cfg(all(feature = "diffusion", feature = "plot"))]
    Demo in demo,
    Methods in methods,
    Formats in formats,
    Devices in devices,
    Completions in completions,
    Man in man,
}

/// Merges, converts, inspects and compares model checkpoints.
///
/// A MODEL is a file in any format that `ckptmerge formats` lists, an index of shards (….index.json), a Hugging Face
/// folder, a diffusers pipeline or a folder of torch.distributed.checkpoint. What it is is told by its content, not by
/// its name.
#[derive(Parser)]
#[command(name = "ckptmerge", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Example: ckptmerge merge a.st b.st --weights 0.6,0.4 -o merged.safetensors")]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
    #[command(flatten)]
    common: Common,
}

/// Options of every subcommand.
#[derive(Args)]
#[command(next_help_heading = "Common options")]
struct Common {
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more about what is done
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Threads, at most 256 [default: all cores]
    #[arg(short = 'j', long, global = true, value_name = "N", value_parser = threads)]
    threads: Option<NonZeroUsize>,
    /// Keep the memory that tensor data takes, mapped pages included, below this
    ///
    /// 256M, 64MiB, … At least 32M are needed. The table of tensors comes on top: about 2 kB for each tensor, which
    /// counts in files of hundreds of thousands of them. What a merge method needs at once, whole rows or tensors, may be
    /// more: a warning says so. Without it, pages of inputs that are mapped stay until the system
    /// wants them back, unless the inputs exceed half of the memory that is free.
    #[arg(long, global = true, value_name = "SIZE", value_parser = memory)]
    memory: Option<Bytes>,
    /// How inputs are read: auto, mmap or pread
    ///
    /// `auto` maps local files and reads those on network file systems; with --memory it reads all of them, as
    /// mapped pages count.
    #[arg(long, global = true, value_name = "MODE", default_value = "auto", value_parser = named(&IoMode::NAMES))]
    io: IoMode,
    /// Which set of tensors is the model, in files that hold several, such as state_dict or ema
    ///
    /// Also a path to one, such as callbacks.EMA.ema_state_dict. In CompVis' checkpoints of latent diffusion, `ema` is the
    /// model with the averages (`model_ema.…`) in the place of its weights.
    #[arg(long, global = true, value_name = "NAME")]
    select: Option<String>,
    /// The type of elements of which a file says only the width, as NumPy's do of bf16
    #[arg(long, global = true, value_name = "DTYPE", value_parser = dtype)]
    assume: Option<DType>,
    /// Where what is said is kept, if another subcommand asks.
    #[arg(skip)]
    kept: Option<report::Kept>,
}

impl Common {
    fn settings(&self) -> Settings {
        Settings { threads: self.threads, memory: self.memory.map(|bytes| bytes.0), sync: true, device: None }
    }

    /// How inputs are read: mapped pages count as resident memory, so that a bound on it means `pread`.
    fn open(&self) -> OpenOptions {
        let io = if self.io == IoMode::Auto && self.memory.is_some() { IoMode::Pread } else { self.io };
        OpenOptions { io, select: self.select.clone(), assume: self.assume, format: None, headers_only: false }
    }

    /// That `--select` had something to select from.
    fn check_selected<'a>(&self, models: impl IntoIterator<Item = &'a Checkpoint>) -> Result<(), Error> {
        let mut models = models.into_iter().peekable();
        let (Some(select), Some(first)) = (&self.select, models.peek()) else { return Ok(()) };
        let name = first.name().to_owned();
        if models.any(Checkpoint::has_sets) {
            return Ok(());
        }
        let message = format!("there is nothing to select `{select}` from: {name} holds one set of tensors");
        Err(Error::Recipe(format!("{message}; leave --select out")))
    }

    fn report(&self) -> Report {
        Report::new(self.json, self.quiet, self.verbose, self.kept.clone())
    }
}

/// Below this there is no room for the program and its buffers.
const MEMORY_MIN: Bytes = Bytes(32_000_000);

fn memory(text: &str) -> Result<Bytes, Error> {
    let bytes = Bytes::parse(text)?;
    if bytes < MEMORY_MIN {
        return Err(Error::Recipe(format!("{text} is too little; at least 32M are needed")));
    }
    Ok(bytes)
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse::<NonZeroUsize>().map_err(|error| error.to_string())?;
    if number.get() > THREADS_MAX { Err(format!("at most {THREADS_MAX} are started")) } else { Ok(number) }
}

fn shard_size(text: &str) -> Result<Bytes, Error> {
    let bytes = Bytes::parse(text)?;
    if bytes.0 == 0 { Err(Error::Recipe("a shard has at least one byte".to_owned())) } else { Ok(bytes) }
}

fn dtype(text: &str) -> Result<DType, Error> {
    if let Some(dtype) = DType::parse(text) {
        return Ok(dtype);
    }
    // Of a name that says only part of it, such as `fp8` or `q4`.
    let plain = text.to_lowercase().replace("float", "f").replace("fp", "f");
    let writable = || DType::all().filter(|dtype| dtype.is_real() && can_encode(*dtype));
    let names = writable().map(|dtype| dtype.name().to_lowercase());
    let longer: Vec<String> = names.filter(|name| !plain.is_empty() && name.starts_with(&plain)).collect();
    match &longer[..] {
        [] => Err(Error::unknown("type", text, DType::all().map(DType::name))),
        _ => {
            let suggestion = format!("there are {}", longer.join(", "));
            Err(Error::Unknown { what: "type", name: text.to_owned(), suggestion })
        }
    }
}

/// A parser for the names of a table of values, which help and errors list.
fn named<T: Copy + Send + Sync + 'static>(
    names: &'static [(&'static str, T)],
) -> impl clap::builder::TypedValueParser<Value = T> {
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(names.iter().map(|(name, _)| *name)).map(move |text: String| {
        // The parser has let only names of the table through; the first stands for none.
        names.iter().find(|(name, _)| *name == text).map_or(names[0].1, |(_, value)| *value)
    })
}

/// Subcommands that open no model, and the common options that mean nothing to them.
const WITHOUT_MODELS: [&str; 5] = ["methods", "formats", "devices", "completions", "man"];
const OF_MODELS: [&str; 5] = ["threads", "memory", "io", "select", "assume"];

/// The whole command line, for parsing, help, completions and manual pages.
fn command() -> clap::Command {
    let command = Cli::command();
    let of_models = command.get_arguments().filter(|arg| OF_MODELS.contains(&arg.get_id().as_str()));
    let hidden: Vec<_> = of_models.map(|arg| arg.clone().hide(true)).collect();
    // A subcommand that has an option of its own is not given the common one.
    WITHOUT_MODELS
        .iter()
        .fold(command, |command, name| command.mut_subcommand(name, |subcommand| subcommand.args(&hidden)))
}

/// Runs a command line, without the program's name, as if it had been typed, with the threads, the memory and the silence of `common`.
/// Returns what was said.
#[cfg(all(feature = "diffusion", feature = "plot"))]
fn run_typed(words: &[std::ffi::OsString], common: &Common) -> anyhow::Result<report::Said> {
    let program = std::ffi::OsString::from("ckptmerge");
    let matches = command().try_get_matches_from(std::iter::once(&program).chain(words))?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let kept = report::Kept::default();
    let Common { quiet, threads, memory, io, .. } = *common;
    cli.common = Common { quiet, threads, memory, io, kept: Some(kept.clone()), ..cli.common };
    cli.command.run(&cli.common)?;
    let said = kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(said.clone())
}

/// Parses the command line, runs it, and reports an error.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    os::survive_file_size_limits();
    #[cfg(feature = "gpu")]
    os::ask_no_desktop_for_devices();
    #[cfg(feature = "diffusion")]
    os::give_candle_no_threads();
    match cli.command.run(&cli.common) {
        Ok(code) => code,
        Err(error) => {
            report::say(&format!("error: {}", said_of(&error)));
            match error.downcast_ref::<Error>() {
                Some(Error::Recipe(_) | Error::Unknown { .. }) => ExitCode::from(2),
                // As shells report a program that SIGINT ended.
                Some(Error::Interrupted | Error::Paused(_)) => ExitCode::from(130),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// That a path is not `MODEL+ADAPTER`, for commands that look at files as they are.
fn without_adapters(path: &Path) -> Result<(), Error> {
    let parts = adapter::split_path(path);
    let has_adapters = parts.len() > 1 && parts.first().is_some_and(|model| model.exists());
    if path.exists() || !has_adapters {
        return Ok(());
    }
    let message = "adapters are applied by merge, run, convert and task-vector only: write the model with its adapters first, by `ckptmerge convert MODEL+ADAPTER OUT`";
    Err(Error::model(path, message))
}

/// An error's message, with its causes.
fn said_of(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Error>() {
        // Our messages have their causes in them.
        Some(error) => error.to_string(),
        None => format!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_help_with_an_example() {
        for subcommand in super::command().get_subcommands() {
            let name = subcommand.get_name();
            assert!(subcommand.get_about().is_some(), "{name} has no help");
            let example = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(example.contains(&format!("ckptmerge {name}")), "{name}'s help has no example");
        }
    }
}
