//! `ckptmerge finetune`

use super::data::{DataOption, prepared};
use super::report::{Report, count, significant};
use super::sample::{named_config, scheduler_of};
use super::{Common, Run, named, without_adapters};
use crate::checkpoint::{Checkpoint, TRAINING_STATE as STATE, read_small};
use crate::diffusion::Ddpm;
use crate::diffusion::schedulers::{Config as SchedulerConfig, Noising};
use crate::diffusion::unet::{Config, UNet2D};
use crate::error::{Bytes, Error};
use crate::os;
use crate::output::{FolderLock, StagedFile, is_temporary};
#[cfg(feature = "plot")]
use crate::plot::{ImageKind, Lines, Series, Theme, render};
use crate::stream::Control;
use crate::train::{
    self, AdamW, Course, Crop, Data, Memory, Method, MovingAverage, Network, Objective, Rate, Row, Source, Timesteps,
    Trainer, Training, WEIGHTINGS, Weighting,
};
use candle_core::Device;
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Train copies of a diffusion model on ranges of timesteps
///
/// BASE is a checkpoint of diffusers' UNet2DModel, as `sample` takes it. Each copy is trained on its own range of
/// timesteps, mostly (--p), to tell noise and to stay consistent with BASE (--consistency): Decouple-then-Merge's first stage (Ma et al.
/// 2025). Its folder holds the model with averaged weights, its configurations, the log as CSV and picture, and the state to go on
/// from (--resume). The same command gives the same bits with any number of threads, interrupted or not.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge finetune ddpm-cifar10-32/ --ranges 4 --p 0.4 --channel-projection --data cifar10/ -o copies/
  ckptmerge finetune base/ --timesteps 0..250 --data images.npy --steps 2000 --lr 2e-4 -o early/
  ckptmerge finetune base/ --consistency 0 --data images.npy -o plain/
  ckptmerge finetune --from-scratch config.json --data images.npy --steps 5000 -o base/
  ckptmerge merge copies/range-*/ --base base/ --weights 0.25,0.25,0.25,0.25 -o merged/")]
pub(super) struct Finetune {
    /// The model that copies begin as
    #[arg(value_name = "BASE", required_unless_present = "from_scratch", conflicts_with = "from_scratch")]
    base: Option<PathBuf>,
    /// Train a new model instead: a config.json, or cifar10, church or bedroom
    #[arg(long, value_name = "CONFIG")]
    from_scratch: Option<PathBuf>,
    /// The folder of the model; of several copies it holds range-0, range-1, …
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    data: DataOption,
    /// Train so many copies, each on its share of the timesteps, in parallel as threads allow
    #[arg(long, value_name = "N", conflicts_with = "timesteps", value_parser = clap::value_parser!(u32).range(1..=1000))]
    ranges: Option<u32>,
    /// Train one copy, on these timesteps: 0..250 is 0 to 249 [default: all]
    #[arg(long, value_name = "A..B", value_parser = timesteps)]
    timesteps: Option<Range<usize>>,
    /// How often a timestep is drawn from all instead of the copy's own
    #[arg(long, value_name = "P", default_value_t = 0.3, value_parser = share)]
    p: f64,
    /// Decide so for a whole batch at a time, as the authors' code does, not for each image
    #[arg(long)]
    p_by_batch: bool,
    /// Draw timesteps in pairs that lie mirrored in their range
    #[arg(long)]
    antithetic: bool,
    /// How much the difference from BASE counts beside the denoising loss [default: 1; 0 for a new model]
    #[arg(long, value_name = "C", value_parser = not_negative, conflicts_with = "from_scratch")]
    consistency: Option<f64>,
    /// Train channel-wise projections behind each block as well, which begin as the identity
    #[arg(long)]
    channel_projection: bool,
    /// How much the loss at each timestep counts
    #[arg(long, value_name = "NAME", default_value = "none", value_parser = PossibleValuesParser::new(WEIGHTINGS.iter().map(|weighting| weighting.name)), long_help = weightings())]
    weighting: String,
    /// The γ of min-snr and p2 [default: 5 and 1]
    #[arg(long, value_name = "G", value_parser = not_negative)]
    gamma: Option<f64>,
    #[command(flatten)]
    course: CourseOptions,
    #[command(flatten)]
    optimizer: OptimizerOptions,
    /// Where larger images are cut: center or random
    #[arg(long, value_name = "WHERE", default_value = "center", value_parser = named(&[("center", Crop::Center), ("random", Crop::Random)]))]
    crop: Crop,
    /// Mirror half of the images
    #[arg(long)]
    flip: bool,
    /// Rows and columns that images are resized and cut to, as 64 or 64x96 [default: as the network was trained]
    #[arg(long, value_name = "SIZE", value_parser = super::sample::size)]
    size: Option<(usize, usize)>,
    /// What network BASE is: a config.json, or cifar10, church or bedroom [default: the one beside it]
    #[arg(long, value_name = "CONFIG", conflicts_with = "from_scratch")]
    config: Option<PathBuf>,
    /// The noise: a scheduler_config.json [default: the one beside BASE, or DDPM's]
    #[arg(long, value_name = "FILE.json")]
    scheduler_config: Option<PathBuf>,
    /// What all random numbers follow from; copy i of --ranges has the seed N + i, so that what it learns of noise is its own
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Go on with a training that was interrupted, or whose --steps are more now
    #[arg(long)]
    resume: bool,
}

/// How long and how fast.
#[derive(Args)]
struct CourseOptions {
    /// Steps of the optimizer
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    steps: u64,
    /// Images of a batch
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Batches whose gradients make a step
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: u32,
    /// The learning rate [default: 5e-5; 2e-4 for a new model]
    #[arg(long, value_name = "RATE", value_parser = not_negative)]
    lr: Option<f64>,
    /// How it changes: constant, or cosine, down to zero at the last step
    #[arg(long, value_name = "NAME", default_value = "constant", value_parser = named(&[("constant", Course::Constant), ("cosine", Course::Cosine)]))]
    lr_schedule: Course,
    /// Steps in which it rises from zero
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: u64,
    /// Steps from one save of the state to the next
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    save_every: u64,
}

/// AdamW, and the average of the weights.
#[derive(Args)]
struct OptimizerOptions {
    /// AdamW's β₁
    #[arg(long, value_name = "B", default_value_t = 0.95, value_parser = below_one)]
    beta1: f64,
    /// AdamW's β₂
    #[arg(long, value_name = "B", default_value_t = 0.999, value_parser = below_one)]
    beta2: f64,
    /// AdamW's weight decay
    #[arg(long, value_name = "D", default_value_t = 1e-6, value_parser = not_negative)]
    weight_decay: f64,
    /// The norm that longer gradients are cut to; 0 for any
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = not_negative)]
    clip: f64,
    /// The decay of the moving average of the weights, which is what is written; 0 writes the weights themselves
    #[arg(long, value_name = "D", default_value_t = 0.9999, value_parser = below_one)]
    ema: f64,
    /// How fast that decay grows, as 1 − (1 + steps)^−POWER
    #[arg(long, value_name = "POWER", default_value_t = 0.75, value_parser = not_negative)]
    ema_power: f64,
}

/// All weightings, for the help.
fn weightings() -> String {
    let line = |weighting: &Weighting| format!("- {}: {}", weighting.name, weighting.about);
    let lines: Vec<String> = WEIGHTINGS.iter().map(line).collect();
    let heading = "How much the loss at each timestep counts: the weight of the loss of the image, which that of noise is divided by SNR for";
    format!("{heading}\n\n{}", lines.join("\n"))
}

fn number(text: &str, holds: impl Fn(f64) -> bool, what: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&number| holds(number)).ok_or_else(|| format!("it is a number {what}"))
}

fn share(text: &str) -> Result<f64, String> {
    number(text, |number| (0.0..=1.0).contains(&number), "from 0 to 1")
}

fn below_one(text: &str) -> Result<f64, String> {
    number(text, |number| (0.0..1.0).contains(&number), "from 0 to below 1")
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, |number| number >= 0.0 && number.is_finite(), "of 0 or more")
}

/// A range of timesteps.
pub(super) fn timesteps(text: &str) -> Result<Range<usize>, String> {
    let range = text.split_once("..").and_then(|(start, end)| Some(start.parse().ok()?..end.parse().ok()?));
    range
        .filter(|range: &Range<usize>| !range.is_empty())
        .ok_or_else(|| "it is a range of timesteps as 0..250, from the first one to the one behind the last".to_owned())
}

/// The names of what a copy's folder holds.
const MODEL: &str = "diffusion_pytorch_model.safetensors";
const CONFIG: &str = "config.json";
const SCHEDULER: &str = "scheduler_config.json";
const LOG: &str = "log.csv";
#[cfg(feature = "plot")]
const PICTURE: &str = "log.svg";

/// The memory of the program itself and what its threads' allocators keep, in bytes.
const PROGRAM: u64 = 48 << 20;

/// What copies begin as.
struct Begin {
    fingerprint: Option<String>,
    source: Source,
    config: Config,
    scheduler: SchedulerConfig,
    /// What they stay consistent with.
    base: Option<Arc<UNet2D>>,
}

/// What the copies have in common.
struct Shared<'a> {
    /// What the model is known by that copies begin as.
    fingerprint: Option<String>,
    /// What the images are known by.
    images: String,
    source: Source,
    config: Config,
    scheduler: SchedulerConfig,
    noising: Noising,
    base: Option<Arc<UNet2D>>,
    method: Method,
    data: &'a Data,
    rate: Rate,
}

impl Shared<'_> {
    /// The files that say what network each copy is.
    fn configurations(&self) -> [(&'static str, String); 2] {
        [(CONFIG, self.config.to_json()), (SCHEDULER, self.scheduler.to_json())]
            .map(|(name, document)| (name, format!("{document:#}\n")))
    }
}

/// A copy to be trained.
struct Copy {
    folder: PathBuf,
    timesteps: Timesteps,
    seed: u64,
}

/// A copy that was trained.
struct Trained {
    folder: PathBuf,
    range: Range<usize>,
    steps: u64,
    rows: Vec<Row>,
    parameters: usize,
}

impl Run for Finetune {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let set = self.data.open(&[], common)?;
        let images = set.fingerprint()?;
        let Begin { fingerprint, source, config, scheduler, base } = self.begin(common, &report)?;
        let noising = Noising::new(&scheduler)?;
        let data = prepared(set, &config, self.size, self.crop, self.flip)?;
        let copies = self.copies(noising.timesteps())?;
        let shared = Shared {
            fingerprint,
            images,
            source,
            config,
            scheduler,
            noising,
            base,
            method: self.method()?,
            data: &data,
            rate: self.rate(),
        };
        copies.iter().try_for_each(|copy| self.check_folder(&copy.folder, &shared))?;
        let started = std::time::Instant::now();
        let total = copies.len() as u64 * self.course.steps;
        let threads = common.settings().threads();
        let jobs = self.jobs(copies.len().min(threads), &shared, common, &report)?;
        let _locks: Vec<FolderLock> =
            copies.iter().map(|copy| self.begin_folder(&copy.folder, &shared)).collect::<Result<_, _>>()?;
        let trained = report
            .watched_count(total, "steps", |control| self.all(&copies, &shared, (jobs, threads), control, &report))
            .map_err(|error| match error {
                Error::Interrupted => Error::Paused(format!("the same command with --resume goes on from {STATE}")),
                error => error,
            })?;
        let seconds = started.elapsed().as_secs_f64();
        let text = || {
            trained.iter().map(Trained::text).collect::<String>() + &format!("{} s in all\n", significant(seconds, 3))
        };
        let copies = || trained.iter().map(Trained::document).collect::<Vec<_>>();
        report.answer(text, || json!({"copies": copies(), "seconds": seconds}))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Finetune {
    /// Where weights begin, the configurations, and what copies stay consistent with.
    fn begin(&self, common: &Common, report: &Report) -> anyhow::Result<Begin> {
        if let Some(config) = &self.from_scratch {
            let config = named_config(config)?;
            // A new network is of the size that it is trained on.
            let config = Config { sample_size: self.size.or(config.sample_size), ..config };
            let scheduler =
                self.scheduler_config.as_deref().map_or_else(|| Ok(SchedulerConfig::ddpm()), SchedulerConfig::read)?;
            return Ok(Begin { fingerprint: None, source: Source::Seed(self.seed), config, scheduler, base: None });
        }
        let path = self.base.as_deref().ok_or_else(|| Error::Recipe("there is no model to train".to_owned()))?;
        without_adapters(path)?;
        let checkpoint = Checkpoint::open_with(path, &common.open())?;
        common.check_selected([&checkpoint])?;
        report.about(&checkpoint);
        let fingerprint = Some(checkpoint.fingerprint()?);
        let model = Ddpm::open(checkpoint, self.config.as_deref().map(named_config).transpose()?)?;
        let scheduler = scheduler_of(&model, self.scheduler_config.as_deref(), report)?;
        let base = if self.consistency() > 0.0 { Some(Arc::new(model.unet(&Device::Cpu)?)) } else { None };
        let config = model.config().clone();
        Ok(Begin { fingerprint, source: Source::Checkpoint(model.into_weights()), config, scheduler, base })
    }

    fn consistency(&self) -> f64 {
        self.consistency.unwrap_or(if self.from_scratch.is_some() { 0.0 } else { 1.0 })
    }

    /// The copies, by their timesteps.
    fn copies(&self, all: usize) -> Result<Vec<Copy>, Error> {
        let copy = |folder: PathBuf, own: Range<usize>, index: usize| {
            if own.is_empty() || own.end > all {
                let message =
                    format!("timesteps {}..{} are none of the model's, which are 0..{all}", own.start, own.end);
                return Err(Error::Recipe(message));
            }
            let (by_batch, antithetic) = (self.p_by_batch, self.antithetic);
            let timesteps = Timesteps { own, all, share_of_all: self.p, by_batch, antithetic };
            Ok(Copy { folder, timesteps, seed: self.seed.wrapping_add(index as u64) })
        };
        match (self.ranges.map(|ranges| ranges as usize), &self.timesteps) {
            (Some(ranges), _) => {
                let folder = |index: usize| self.output.join(format!("range-{index}"));
                (0..ranges).map(|index| copy(folder(index), Timesteps::range(index, ranges, all), index)).collect()
            }
            (None, Some(range)) => Ok(vec![copy(self.output.clone(), range.clone(), 0)?]),
            (None, None) => Ok(vec![copy(self.output.clone(), 0..all, 0)?]),
        }
    }

    /// Makes a copy's folder and keeps other runs out of it.
    fn begin_folder(&self, folder: &Path, shared: &Shared<'_>) -> Result<FolderLock, Error> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let lock = FolderLock::new(folder)?;
        // Another run may have come before the lock.
        self.check_folder(folder, shared)?;
        Ok(lock)
    }

    /// That nobody's files are in a folder, or a training that is to go on.
    fn check_folder(&self, folder: &Path, shared: &Shared<'_>) -> Result<(), Error> {
        if folder.is_file() {
            return Err(Error::output(folder, "is a file, but a copy is a folder; name another"));
        }
        // A run that was stopped before it saved anything leaves the configurations, and files that were not whole.
        let configurations = shared.configurations();
        let is_left = |entry: &std::fs::DirEntry| {
            let name = entry.file_name();
            let is_configuration = |(config, text): &(&str, String)| {
                name == *config
                    && read_small(&entry.path(), text.len() as u64).is_ok_and(|found| found == text.as_bytes())
            };
            configurations.iter().any(is_configuration) || is_temporary(&name)
        };
        let is_empty = std::fs::read_dir(folder).map_or(true, |entries| entries.flatten().all(|entry| is_left(&entry)));
        let has_state = folder.join(STATE).is_file();
        match (self.resume, is_empty) {
            (_, true) => Ok(()),
            (true, false) if has_state => Ok(()),
            (true, false) => Err(Error::output(folder, format!("holds no {STATE} to go on from; name another folder"))),
            (false, false) if has_state => {
                Err(Error::output(folder, "holds a training: go on with it by --resume, or name another folder"))
            }
            (false, false) => Err(Error::output(folder, "is not empty; name a new folder")),
        }
    }

    fn method(&self) -> Result<Method, Error> {
        let weighting = Weighting::by_name(&self.weighting)?;
        if self.gamma.is_some() && weighting.gamma.is_none() {
            let message = format!("--gamma is for min-snr and p2; --weighting {} has none", weighting.name);
            return Err(Error::Recipe(message));
        }
        if weighting.name == "min-snr" && self.gamma == Some(0.0) {
            let message = "--gamma 0 of min-snr counts every loss 0 times, so that nothing is trained: give more than 0 (5 is its paper's)";
            return Err(Error::Recipe(message.to_owned()));
        }
        let OptimizerOptions { beta1, beta2, weight_decay, clip, ema, ema_power } = self.optimizer;
        let average = MovingAverage { decay: ema, power: ema_power, ..MovingAverage::default() };
        Ok(Method {
            objective: Objective {
                weighting,
                gamma: self.gamma.or(weighting.gamma).unwrap_or_default(),
                consistency: self.consistency(),
            },
            optimizer: AdamW { betas: [beta1, beta2], decay: weight_decay, ..AdamW::default() },
            clip: (clip > 0.0).then_some(clip),
            average: (ema > 0.0).then_some(average),
        })
    }

    fn rate(&self) -> Rate {
        let most = self.course.lr.unwrap_or(if self.from_scratch.is_some() { 2e-4 } else { 5e-5 });
        Rate { most, course: self.course.lr_schedule, warmup: self.course.warmup }
    }

    /// All that must be the same for a training to go on to the same weights.
    fn settings(&self, copy: &Copy, shared: &Shared<'_>) -> Value {
        let Method { objective, optimizer, clip, average } = &shared.method;
        let Timesteps { own, all, share_of_all, by_batch, antithetic } = &copy.timesteps;
        let (channels, rows, columns) = shared.data.shape();
        let course = &self.course;
        json!({
            "accumulate": course.accumulate,
            "antithetic": antithetic,
            "base": shared.fingerprint,
            "batch": course.batch,
            "betas": optimizer.betas,
            "channel-projection": self.channel_projection,
            "clip": clip,
            "config": shared.config.to_json(),
            "consistency": objective.consistency,
            "crop": if self.crop == Crop::Random { "random" } else { "center" },
            "ema": average.map(|average| [average.decay, average.power]),
            "flip": self.flip,
            "gamma": objective.gamma,
            "images": [shared.data.len(), shared.images],
            "lr": shared.rate.most,
            "lr-schedule": if shared.rate.course == Course::Cosine { "cosine" } else { "constant" },
            "p": share_of_all,
            "p-by-batch": by_batch,
            "scheduler": shared.scheduler.to_json(),
            "seed": copy.seed,
            "shape": [channels, rows, columns],
            // Of a cosine the steps change the rate of each.
            "steps": (shared.rate.course == Course::Cosine).then_some(course.steps),
            "timesteps": [own.start, own.end, *all],
            "warmup": shared.rate.warmup,
            "weight-decay": optimizer.decay,
            "weighting": objective.weighting.name,
        })
    }

    /// How many copies are trained at a time: so many, if there is memory for them.
    fn jobs(&self, wanted: usize, shared: &Shared<'_>, common: &Common, report: &Report) -> Result<usize, Error> {
        let size = shared.data.shape();
        let network = Network::new(&shared.config, &shared.source, self.channel_projection)?;
        let needed = Memory::of(&network, shared.method.average.is_some(), self.course.batch as usize, size)?;
        let parameters: usize = network.weights.iter().map(|(_, var)| var.elem_count()).sum();
        drop(network);
        let (room, what) = match (common.memory, os::available_memory()) {
            (Some(bound), _) => (bound.0, "may be taken (--memory)"),
            (None, Some(free)) => (free, "are free"),
            (None, None) => return Ok(wanted.max(1)),
        };
        let each = needed.weights + needed.batch;
        // Of what is free the base took its part already.
        let base = if common.memory.is_some() && shared.base.is_some() { 4 * parameters as u64 } else { 0 };
        let beside = PROGRAM + base;
        report.note(|| format!("a copy takes {}, the rest {}; {} {what}", Bytes(each), Bytes(beside), Bytes(room)));
        let room_of_copies = room.saturating_sub(beside);
        let fits = usize::try_from(room_of_copies / each.max(1)).unwrap_or(usize::MAX);
        if fits > 0 {
            return Ok(wanted.clamp(1, fits));
        }
        let (batch, accumulate) = (u64::from(self.course.batch), u64::from(self.course.accumulate));
        let smaller = room_of_copies.saturating_sub(needed.weights) / (needed.batch / batch).max(1);
        let remedy = match smaller {
            0 => "train on smaller images (--size)".to_owned(),
            _ => format!("--batch {smaller} --accumulate {} fits", (batch * accumulate).div_ceil(smaller)),
        };
        let (_, rows, columns) = size;
        Err(Error::Recipe(format!(
            "training takes {}: {} for weights and what is kept of each, {} for a batch of {batch} × {columns}×{rows} pixels; but only {} {what}: {remedy}",
            Bytes(beside + each),
            Bytes(needed.weights),
            Bytes(needed.batch),
            Bytes(room)
        )))
    }

    /// Trains all copies, so many at a time, on so many threads.
    fn all(
        &self,
        copies: &[Copy],
        shared: &Shared<'_>,
        (jobs, threads): (usize, usize),
        control: Control<'_>,
        report: &Report,
    ) -> Result<Vec<Trained>, Error> {
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = |job: usize| -> Result<(), Error> {
            // Threads that do not share evenly go to the first jobs.
            let threads = NonZeroUsize::new(threads / jobs + usize::from(job < threads % jobs));
            let pool = crate::stream::Settings { threads, ..Default::default() }.pool()?;
            while let Some(copy) = copies.get(next.fetch_add(1, Ordering::Relaxed)) {
                let trained = pool.install(|| self.one(copy, shared, control, report)).inspect_err(|_| {
                    // No further copy is begun.
                    next.store(copies.len(), Ordering::Relaxed);
                })?;
                done.lock().unwrap_or_else(PoisonError::into_inner).push(trained);
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let work = &work;
            let running: Vec<_> = (0..jobs).map(|job| scope.spawn(move || work(job))).collect();
            let results: Vec<Result<(), Error>> = running
                .into_iter()
                .map(|job| job.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            results.into_iter().collect::<Result<(), Error>>()
        })?;
        let mut trained = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        trained.sort_by_key(|copy| copy.range.start);
        Ok(trained)
    }

    /// Trains a copy and writes its folder.
    fn one(&self, copy: &Copy, shared: &Shared<'_>, control: Control<'_>, report: &Report) -> Result<Trained, Error> {
        let network = Network::new(&shared.config, &shared.source, self.channel_projection)?;
        let mut trainer = Trainer::new(network, shared.base.clone(), shared.noising.clone(), shared.method)?;
        let settings = self.settings(copy, shared);
        let folder = &copy.folder;
        let state = folder.join(STATE);
        let mut rows = Vec::new();
        if self.resume && state.is_file() {
            rows = train::restore(&state, &mut trainer, &settings)?;
            if trainer.steps() > self.course.steps {
                let (steps, wanted) = (trainer.steps(), self.course.steps);
                let message = format!("{steps} steps are done already, more than --steps {wanted}; give more");
                return Err(Error::output(folder, message));
            }
            (control.progress)(trainer.steps());
        }
        shared.configurations().into_iter().try_for_each(|(name, text)| write_small(&folder.join(name), text))?;
        let training = Training {
            data: shared.data,
            timesteps: copy.timesteps.clone(),
            batch: self.course.batch as usize,
            accumulation: self.course.accumulate,
            rate: shared.rate,
            steps: self.course.steps,
            seed: copy.seed,
            save_every: self.course.save_every,
        };
        train::train(&mut trainer, &mut rows, &training, control, |trainer, rows| {
            report.note(|| {
                let (steps, loss) = (count(trainer.steps(), "step"), significant(last_loss(rows), 4));
                format!("{}: {steps} of {}, loss {loss}", folder.display(), self.course.steps)
            });
            train::save(&state, trainer, rows, &settings)
        })?;
        let metadata = [("format", "pt".to_owned()), ("ckptmerge_training", settings.to_string())];
        write_small(&folder.join(LOG), Row::csv(&rows))?;
        train::write_model(&folder.join(MODEL), trainer.kept(), &metadata)?;
        #[cfg(feature = "plot")]
        if let Err(error) = write_picture(&folder.join(PICTURE), &rows, &copy.timesteps.own) {
            report.warn(&format!("{} was not drawn: {error}", folder.join(PICTURE).display()));
        }
        let parameters = trainer.kept().map(|kept| kept.weights.len()).sum();
        let range = copy.timesteps.own.clone();
        Ok(Trained { folder: folder.clone(), range, steps: trainer.steps(), rows, parameters })
    }
}

/// Writes a small file whole.
fn write_small(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), Error> {
    let file = StagedFile::create(path, bytes.as_ref().len() as u64)?;
    file.write_at(0, bytes.as_ref())?;
    file.commit(false)
}

/// Draws the losses over the steps: the means of some thousand parts of a long training, and their average.
#[cfg(feature = "plot")]
fn write_picture(path: &Path, rows: &[Row], range: &Range<usize>) -> Result<(), Error> {
    const POINTS: usize = 1000;
    const SMOOTHING: f64 = 0.95;
    let part = rows.len().div_ceil(POINTS).max(1);
    let series = |name: &str, loss: fn(&Row) -> f64| {
        let mean = |rows: &[Row]| {
            let step = rows.last().map_or(0.0, |row| row.step as f64);
            (step, rows.iter().map(loss).sum::<f64>() / rows.len() as f64)
        };
        Series { name: name.to_owned(), points: rows.chunks(part).map(mean).collect() }
    };
    let mut lines = Lines {
        title: format!("Loss at timesteps {} to {}", range.start, range.end - 1),
        x_label: "step".to_owned(),
        y_label: "loss".to_owned(),
        series: vec![series("denoising", |row| row.losses.denoising)],
        log_y: true,
        smoothing: Some(SMOOTHING),
    };
    if rows.iter().any(|row| row.losses.consistency > 0.0) {
        lines.series.push(series("consistency", |row| row.losses.consistency));
    }
    write_small(path, render(&lines, ImageKind::Svg, Theme::Light)?)
}

/// The mean loss of the last hundredth of the steps.
fn last_loss(rows: &[Row]) -> f64 {
    let last = (rows.len() / 100).max(1);
    rows.iter().rev().take(last).map(|row| row.losses.total).sum::<f64>() / last as f64
}

impl Trained {
    fn text(&self) -> String {
        let Range { start, end } = self.range;
        let (folder, steps) = (self.folder.display(), count(self.steps, "step"));
        let (parameters, loss) = (count(self.parameters as u64, "parameter"), significant(last_loss(&self.rows), 4));
        format!("{folder}: timesteps {start}..{end}, {steps}, {parameters}, loss {loss} in the end\n")
    }

    fn document(&self) -> Value {
        json!({
            "folder": self.folder.display().to_string(),
            "timesteps": [self.range.start, self.range.end],
            "steps": self.steps,
            "parameters": self.parameters,
            "loss": last_loss(&self.rows),
        })
    }
}
