//! `ckptmerge sample`

use super::network_device::NetworkDevice;
use super::report::{Report, check_beside, count, significant};
use super::{Common, Run, without_adapters};
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::diffusion::schedulers::{self, Config as SchedulerConfig, Entry, SCHEDULERS};
use crate::diffusion::stable_diffusion::{Prompt, Prompted, StableDiffusion};
use crate::diffusion::unet::{Config, NAMED};
use crate::diffusion::{self, Ddpm, Model, Noise, Sampling};
use crate::error::Error;
use crate::images::{self, Images};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The sampler of models that were trained as DDPM, whose own takes a thousand steps: the same images in fifty.
const FAST: &str = "ddim";

/// Make images with a diffusion model
///
/// MODEL is a checkpoint of diffusers' UNet2DModel, the network of DDPM, in any format, with its config.json beside it or in
/// its folder; or a pipeline folder that holds one in unet/; or the folder of a Stable Diffusion 1.x pipeline, which makes images of
/// a --prompt. Image i is made of noise that follows from --seed and i alone: it is the same in any --batch, with any number of
/// threads, and in a run for it alone (--first i -n 1).
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge sample ddpm-cifar10-32/ -n 64 -o grid.png
  ckptmerge sample merged.safetensors --config cifar10 -n 5000 -o samples/
  ckptmerge sample t0/ t1/ t2/ t3/ --ensemble -n 64 --steps 50 -o before-merge.png
  ckptmerge sample ddpm-cifar10-32/ --scheduler dpm++ --steps 20 -n 64 -o fast.npz
  ckptmerge sample stable-diffusion-v1-5/ --prompt 'a house by the sea' -n 4 --batch 1 -o house.png")]
pub(super) struct Sample {
    /// The model, or with --ensemble several, the first for the smallest timesteps
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Where images go: NAME.png is one picture of all, NAME.npz an array, a name without an ending a folder of PNGs
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// How many images
    #[arg(short = 'n', long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// The number of the first image
    #[arg(long, value_name = "I", default_value_t = 0)]
    first: u32,
    /// Images at a time
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// How to get from noise to images [default: the model's own, but ddim in the place of ddpm]
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(SCHEDULERS.iter().map(|entry| entry.name)))]
    scheduler: Option<String>,
    /// What noise the model was trained on: a scheduler_config.json [default: the model's own]
    #[arg(long, value_name = "FILE.json")]
    scheduler_config: Option<PathBuf>,
    /// Steps from noise to an image
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Fresh noise in each step of ddim, for the noise that ddpm adds: 0 is none, 1 as much
    #[arg(long, value_name = "ETA", default_value_t = 0.0, value_parser = eta)]
    eta: f64,
    /// Draw each pixel of a picture of all as so many by as many
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=64))]
    zoom: u32,
    /// What noise follows from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Begin with these numbers instead: one tensor of images × channels × rows × columns, in any format
    ///
    /// They are from N(0, 1), of Stable Diffusion in the shape of its latents; a scheduler that begins with stronger noise multiplies
    /// them. Of more images than -n says the first are taken.
    #[arg(long, value_name = "FILE", conflicts_with = "first")]
    noise: Option<PathBuf>,
    /// Ask each of N models at its own timesteps: model i from i·T/N on (DeMe, before the merge)
    #[arg(long)]
    ensemble: bool,
    /// What network it is: a config.json, or cifar10, church or bedroom [default: the one beside the model]
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// Rows and columns of the images, as 64 or 64x96 [default: as the network was trained]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<(usize, usize)>,
    #[command(flatten)]
    text: Text,
    #[command(flatten)]
    device: NetworkDevice,
}

/// What images should show, for models that are told.
#[derive(Args)]
struct Text {
    /// What images should show, for Stable Diffusion
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// What they should not show
    #[arg(long, value_name = "TEXT", default_value = "", requires = "prompt", hide_default_value = true)]
    negative_prompt: String,
    /// How far to go from the negative prompt to the prompt: 1 goes by the prompt alone, which is twice as fast
    #[arg(long, value_name = "G", default_value_t = 7.5, requires = "prompt")]
    guidance: f64,
}

/// The models that were opened, by kind.
#[derive(Default)]
struct Opened {
    plain: Vec<Ddpm>,
    of_text: Vec<StableDiffusion>,
}

/// What of a run depends on the kind of model.
struct Task<'a> {
    models: Vec<&'a dyn Model>,
    scheduler: SchedulerConfig,
    /// Rows and columns of samples.
    size: (usize, usize),
    /// Makes images of them.
    images: &'a (dyn Fn(Tensor) -> Result<Images, Error> + Sync),
}

fn eta(text: &str) -> Result<f64, String> {
    let eta: f64 = text.parse().map_err(|_| "it is a number".to_owned())?;
    if (0.0..=1.0).contains(&eta) { Ok(eta) } else { Err("it is from 0 to 1".to_owned()) }
}

pub(super) fn size(text: &str) -> Result<(usize, usize), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (1..=16_384).contains(side));
    let (rows, columns) = text.split_once('x').unwrap_or((text, text));
    side(rows).zip(side(columns)).ok_or_else(|| "it is a number of pixels, or rows and columns as 64x96".to_owned())
}

impl Run for Sample {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        images::check_target(&self.output, self.first as usize, self.count as usize)?;
        if self.zoom > 1 && self.output.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("png")) {
            let message = "--zoom is for a picture of all, NAME.png; other images are kept as they are";
            return Err(Error::Recipe(message.to_owned()).into());
        }
        if self.models.len() > 1 && !self.ensemble {
            let message =
                "several models are sampled from together only with --ensemble; run one after the other otherwise";
            return Err(Error::Recipe(message.to_owned()).into());
        }
        let device = self.device.open()?;
        let opened = self.open(&device, common, &report)?;
        match (&opened.plain[..], &opened.of_text[..]) {
            (models @ [first, ..], []) => self.plain(first, models, &device, common, &report)?,
            ([], models @ [first, ..]) => self.of_text(first, models, &device, common, &report)?,
            _ => return Err(Error::Recipe("the models of an ensemble are all of one kind".to_owned()).into()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// That the network's levels halve evenly.
pub(super) fn check_size(size: (usize, usize), config: &Config) -> Result<(), Error> {
    let unit = 1usize << (config.block_out_channels.len() - 1).min(20);
    if size.0.is_multiple_of(unit) && size.1.is_multiple_of(unit) {
        return Ok(());
    }
    Err(Error::Recipe(format!(
        "images of {}×{} pixels cannot be halved as often as the network does: their sides must be multiples of {unit}",
        size.1, size.0
    )))
}

impl Sample {
    /// Opens the models.
    fn open(&self, device: &Device, common: &Common, report: &Report) -> anyhow::Result<Opened> {
        let config = self.config.as_deref().map(named_config).transpose()?;
        let mut opened = Opened::default();
        for path in &self.models {
            without_adapters(path)?;
            let checkpoint = Checkpoint::open_with(path, &common.open())?;
            common.check_selected([&checkpoint])?;
            check_beside(&[Some(&self.output)], std::iter::once(&checkpoint))?;
            report.about(&checkpoint);
            if checkpoint.layout().parts.iter().any(|part| part.folder == "text_encoder") {
                opened.of_text.push(StableDiffusion::open(checkpoint, DType::F32, device)?);
                continue;
            }
            let model = Ddpm::open(checkpoint, config.clone())?;
            if let Some(path) = model.config_path() {
                report.note(|| format!("{} is the network of {}", model.name(), path.display()));
            }
            opened.plain.push(model);
        }
        Ok(opened)
    }

    /// Samples from models that are told nothing.
    fn plain(
        &self,
        first: &Ddpm,
        models: &[Ddpm],
        device: &Device,
        common: &Common,
        report: &Report,
    ) -> anyhow::Result<()> {
        if self.text.prompt.is_some() {
            let message = format!("{} makes images without being told of what: leave --prompt out", first.name());
            return Err(Error::Recipe(message).into());
        }
        if let Some(other) = models.iter().find(|model| model.config() != first.config()) {
            let (first, other) = (first.name(), other.name());
            let message = format!("{first} and {other} are different networks; an ensemble's are all the same");
            return Err(Error::Recipe(message).into());
        }
        if let Some(other) = models.iter().find(|model| model.scheduler() != first.scheduler())
            && self.scheduler_config.is_none()
        {
            let (first, other) = (first.name(), other.name());
            let message =
                format!("{first} and {other} come with different noise schedules; --scheduler-config says which it is");
            return Err(Error::Recipe(message).into());
        }
        if !matches!(first.config().in_channels, 1 | 3) {
            let (name, channels) = (first.name(), first.config().in_channels);
            let message = format!("{name} makes samples of {channels} channels; images have 1 or 3");
            return Err(Error::Recipe(message).into());
        }
        let scheduler = scheduler_of(first, self.scheduler_config.as_deref(), report)?;
        let size = self.size.or(first.config().sample_size).ok_or_else(|| {
            Error::Recipe("the network's configuration does not say how large its images are: give --size".to_owned())
        })?;
        check_size(size, first.config())?;
        let models = models.iter().map(|model| model as &dyn Model).collect();
        self.sample(
            &Task { models, scheduler, size, images: &|samples| diffusion::to_images(&samples) },
            device,
            common,
            report,
        )
    }

    /// Samples from models that are told of what.
    fn of_text(
        &self,
        first: &StableDiffusion,
        models: &[StableDiffusion],
        device: &Device,
        common: &Common,
        report: &Report,
    ) -> anyhow::Result<()> {
        let Some(text) = self.text.prompt.clone() else {
            return Err(Error::Recipe("this model makes images of a text: give --prompt".to_owned()).into());
        };
        if self.config.is_some() {
            let message = "--config is for networks that are told nothing; a pipeline's folder says what it is";
            return Err(Error::Recipe(message.to_owned()).into());
        }
        let (negative, guidance) = (self.text.negative_prompt.clone(), self.text.guidance);
        let (height, width) = (self.size.map(|size| size.0), self.size.map(|size| size.1));
        let prompt = Prompt { text, negative, guidance, height, width };
        if prompt.guidance <= 1.0 && !prompt.negative.is_empty() {
            report.warn("a --guidance of 1 and less goes by the prompt alone: the negative prompt has no effect");
        }
        let scheduler = match &self.scheduler_config {
            Some(path) => SchedulerConfig::read(path)?,
            None => first.scheduler_config()?,
        };
        first.remarks(&prompt)?.iter().for_each(|remark| report.warn(remark));
        let prompted = models.iter().map(|model| model.prompted(&prompt)).collect::<Result<Vec<_>, _>>()?;
        let size = prompted.first().map(Prompted::latent_size).unwrap_or_default();
        let models = prompted.iter().map(|model| model as &dyn Model).collect();
        let images = |latents: Tensor| diffusion::to_images(&first.decode(&latents)?);
        self.sample(&Task { models, scheduler, size, images: &images }, device, common, report)
    }

    /// Makes the images, writes them, and says so.
    fn sample(&self, task: &Task<'_>, device: &Device, common: &Common, report: &Report) -> anyhow::Result<()> {
        let config = task.scheduler.clone().with_eta(self.eta);
        let entry = self.entry(&config)?;
        let channels = task.models.first().map_or(0, |model| model.channels());
        let start = self.start(channels, task.size, common)?;
        let steps = self.steps as usize;
        let scheduler = || config.build(Some(entry), steps);
        let calls = scheduler()?.timesteps().len() as u64;
        let sampling = Sampling {
            scheduler: &scheduler,
            train_timesteps: config.train_timesteps(),
            noise: Noise::new(self.seed),
            start: start.as_ref(),
            images: self.first as usize..self.first as usize + self.count as usize,
            size: task.size,
            batch: self.batch as usize,
            device,
        };
        let mut made: Option<Images> = None;
        let started = std::time::Instant::now();
        let pool = common.settings().pool()?;
        report.watched_count(calls * u64::from(self.count), "denoisings", |control| {
            pool.install(|| {
                diffusion::sample(&task.models, &sampling, control, |samples| {
                    let images = (task.images)(samples)?;
                    match &mut made {
                        Some(made) => made.append(images),
                        None => made = Some(images),
                    }
                    Ok(())
                })
            })
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let images = made.ok_or_else(|| Error::Recipe("no images were asked for".to_owned()))?;
        let size = (images.height, images.width);
        let images = if self.zoom > 1 { images.zoomed(self.zoom as usize) } else { images };
        pool.install(|| images::write(&self.output, &images, self.first as usize))?;
        let text = || {
            let (name, images) = (self.output.display(), count(u64::from(self.count), "image"));
            let (rows, columns, seed) = (size.0, size.1, self.seed);
            let (steps, calls) = (count(u64::from(self.steps), "step"), count(calls, "denoising"));
            let rate = format!("{calls} each, {} s an image", significant(seconds / f64::from(self.count), 2));
            format!("{name}: {images} of {rows}×{columns} by {}, {steps}, seed {seed}; {rate}\n", entry.name)
        };
        report.answer(text, || self.document(entry, size, calls, seconds))
    }

    /// The scheduler that was asked for, or the model's own.
    fn entry(&self, config: &SchedulerConfig) -> Result<&'static Entry, Error> {
        let entry = match &self.scheduler {
            Some(name) => schedulers::by_name(name)?,
            None => match config.entry()? {
                entry if entry.name == "ddpm" => schedulers::by_name(FAST)?,
                entry => entry,
            },
        };
        Ok(entry)
    }

    /// The noise of `--noise`.
    fn start(&self, channels: usize, size: (usize, usize), common: &Common) -> anyhow::Result<Option<Tensor>> {
        let Some(path) = &self.noise else { return Ok(None) };
        let options = OpenOptions { select: None, ..common.open() };
        let checkpoint = Checkpoint::open_with(path, &options)?;
        check_beside(&[Some(&self.output)], std::iter::once(&checkpoint))?;
        let [tensor] = checkpoint.tensors() else {
            let message = format!("holds {} tensors; noise is one", checkpoint.tensors().len());
            return Err(Error::model(path, message).into());
        };
        let wanted = [channels as u64, size.0 as u64, size.1 as u64];
        let fits =
            matches!(&tensor.shape[..], [images, inner @ ..] if *images >= u64::from(self.count) && *inner == wanted);
        if !fits {
            let (shape, count) = (&tensor.shape, self.count);
            let message = format!("holds noise of {shape:?}; {count} images of {wanted:?} are needed");
            return Err(Error::model(path, message).into());
        }
        let name = tensor.name.clone();
        let noise = diffusion::Weights::new(checkpoint, "").tensor(&name, &Device::Cpu)?;
        let noise = noise.narrow(0, 0, self.count as usize)?;
        if noise.flatten_all()?.to_vec1::<f32>()?.iter().any(|number| !number.is_finite()) {
            return Err(Error::model(path, "holds noise that is not finite").into());
        }
        Ok(Some(noise))
    }

    fn document(&self, entry: &Entry, size: (usize, usize), calls: u64, seconds: f64) -> Value {
        json!({
            "output": self.output.display().to_string(),
            "models": self.models.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
            "images": self.count,
            "first": self.first,
            "height": size.0,
            "width": size.1,
            "scheduler": entry.name,
            "steps": self.steps,
            "eta": self.eta,
            "prompt": self.text.prompt,
            "negative_prompt": self.text.prompt.as_ref().map(|_| &self.text.negative_prompt),
            "guidance": self.text.prompt.as_ref().map(|_| self.text.guidance),
            "batch": self.batch,
            "seed": self.seed,
            "noise": self.noise.as_ref().map(|path| path.display().to_string()),
            "denoisings_an_image": calls,
            "seconds": seconds,
        })
    }
}

/// The noise that a model was trained on: what is given, or else what it comes with, or else DDPM's.
pub(super) fn scheduler_of(model: &Ddpm, given: Option<&Path>, report: &Report) -> Result<SchedulerConfig, Error> {
    if let Some(path) = given {
        return SchedulerConfig::read(path);
    }
    Ok(model.scheduler().cloned().unwrap_or_else(|| {
        let message =
            "no scheduler_config.json; its noise is taken for that of DDPM (--scheduler-config tells otherwise)";
        report.warn(&format!("{} comes with {message}", model.name()));
        SchedulerConfig::ddpm()
    }))
}

/// A published configuration by its name, or a file's.
pub(super) fn named_config(path: &Path) -> Result<Config, Error> {
    match NAMED.iter().find(|(name, _)| path.as_os_str() == *name) {
        Some((_, config)) => Ok(config()),
        None if path.is_file() => diffusion::read_config(path),
        None if path.join("config.json").is_file() => diffusion::read_config(&path.join("config.json")),
        None => {
            let names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
            let message = format!(
                "there is no file {}; configurations that have a name are: {}",
                path.display(),
                names.join(", ")
            );
            Err(Error::Recipe(message))
        }
    }
}
