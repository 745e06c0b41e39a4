//! What candidates are judged by: the options of commands that try many, and the objective that they ask for.

#[cfg(feature = "diffusion")]
use super::data::{images_at, prepared};
#[cfg(feature = "diffusion")]
use super::fid::reference_at;
#[cfg(feature = "diffusion")]
use super::finetune::timesteps;
use super::report::Report;
#[cfg(feature = "diffusion")]
use super::report::check_kept;
#[cfg(feature = "diffusion")]
use super::sample::{named_config, scheduler_of, size};
use super::{Common, named};
use crate::analysis::Vectors;
#[cfg(feature = "diffusion")]
use crate::checkpoint::Checkpoint;
use crate::checkpoint::TensorView;
#[cfg(feature = "diffusion")]
use crate::diffusion::schedulers::{self, Noising};
#[cfg(feature = "diffusion")]
use crate::diffusion::{Ddpm, Model};
use crate::error::Error;
#[cfg(feature = "diffusion")]
use crate::eval::{self, Reference};
use crate::recipe::{Models, Selection};
use crate::search::{self, Objective};
#[cfg(feature = "diffusion")]
use crate::search::{Candidates, Distance, Loss, Samples};
#[cfg(feature = "diffusion")]
use crate::train::{Crop, Timesteps};
use clap::Args;
use serde_json::{Value, json};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What a candidate is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    #[cfg(feature = "diffusion")]
    Loss,
    #[cfg(feature = "diffusion")]
    Fid,
    Cmd,
}

impl Kind {
    const NAMES: &'static [(&'static str, Self)] = &[
        #[cfg(feature = "diffusion")]
        ("loss", Self::Loss),
        #[cfg(feature = "diffusion")]
        ("fid", Self::Fid),
        ("cmd", Self::Cmd),
    ];
}

/// What candidates are judged by.
#[derive(Args)]
#[command(next_help_heading = "What points are judged by")]
pub(super) struct ObjectiveOptions {
    /// What a model is judged by: its denoising loss, the FID of images that it makes, or a command of your own
    #[arg(long, value_name = "WHAT", default_value = Kind::NAMES[0].0, value_parser = named(Kind::NAMES))]
    objective: Kind,
    /// cmd: what sh is to run, with {model} for the model's path; the last number that it prints is the model's
    ///
    /// The path comes in quotes; smaller numbers are better, and `nan` is a model that has none. A command that fails ends the run. A
    /// journal knows a command by this line alone: name another journal if what it runs has changed.
    #[arg(long, value_name = "LINE", required_if_eq("objective", "cmd"))]
    command: Option<String>,
    /// cmd: how many run at a time
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: u32,
    #[cfg(feature = "diffusion")]
    #[command(flatten)]
    networks: Box<NetworkOptions>,
}

/// What candidates are judged by that are networks.
#[cfg(feature = "diffusion")]
#[derive(Args)]
struct NetworkOptions {
    /// loss: the images, a folder or an array of them in .npy, .npz or any other format
    #[arg(long, value_name = "IMAGES")]
    data: Option<PathBuf>,
    /// loss: how many noisy images, the same for all points
    #[arg(long, value_name = "N", default_value = "512", value_parser = clap::value_parser!(u32).range(2..))]
    samples: u32,
    /// loss: at these timesteps, 0..250 being 0 to 249; given several times, the loss in each [default: all]
    #[arg(long, value_name = "A..B", value_parser = timesteps)]
    timesteps: Vec<Range<usize>>,
    /// loss: in all timesteps, and in each of so many equal ranges
    #[arg(long, value_name = "N", conflicts_with = "timesteps", value_parser = clap::value_parser!(u32).range(1..=64))]
    ranges: Option<u32>,
    /// fid: what images are compared with: images, or .npz of statistics (`mu`, `sigma`)
    #[arg(long, value_name = "PATH")]
    reference: Option<PathBuf>,
    /// fid: what sees the images, as `ckptmerge fid --help` lists
    #[arg(long, value_name = "EXTRACTOR")]
    features: Option<String>,
    /// fid: how many images of each model, of the same noise for all
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(2..))]
    images: u32,
    /// fid: how to get from noise to images
    #[arg(long, value_name = "NAME", default_value = "ddim", value_parser = clap::builder::PossibleValuesParser::new(schedulers::SCHEDULERS.iter().map(|entry| entry.name)))]
    scheduler: String,
    /// fid: in how many steps
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Images at a time
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// What noise, timesteps and random directions follow from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Rows and columns of the images, as 64 or 64x96 [default: as the network was trained]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<(usize, usize)>,
    /// What network BASE is: a config.json, or cifar10, church or bedroom [default: the one beside it]
    #[arg(long, value_name = "CONFIG")]
    config: Option<PathBuf>,
    /// The noise: a scheduler_config.json [default: the one beside BASE, or DDPM's]
    #[arg(long, value_name = "FILE.json")]
    scheduler_config: Option<PathBuf>,
}

/// What candidates are made of.
pub(super) enum Around<'a> {
    /// A base and task vectors of models.
    Tuned { models: &'a Models, paths: &'a [PathBuf], vectors: &'a Vectors<'a>, selection: &'a Selection },
    /// A model and random directions.
    Random(&'a [TensorView<'a>]),
}

/// An objective, and what a journal knows it by.
pub(super) struct Judged<'a> {
    pub(super) objective: &'a dyn Objective,
    pub(super) setup: Value,
    /// What the numbers are, for a colour bar.
    pub(super) unit: String,
    /// What each of them is, for people.
    pub(super) titles: Vec<String>,
}

impl ObjectiveOptions {
    /// The seed, of random directions too.
    pub(super) fn seed(&self) -> u64 {
        #[cfg(feature = "diffusion")]
        let seed = self.networks.seed;
        #[cfg(not(feature = "diffusion"))]
        let seed = 0;
        seed
    }

    /// Opens what is asked for and hands it to `work`. `base` is the base's path; no output is one of the inputs; a command's
    /// candidates are written beside the first.
    pub(super) fn with<T>(
        &self,
        (base, around): (&Path, &Around<'_>),
        outputs: &[Option<&Path>],
        common: &Common,
        report: &Report,
        work: impl FnOnce(&Judged<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        #[cfg(feature = "diffusion")]
        if self.objective != Kind::Cmd {
            return self.networks.with(self.objective, (base, around), outputs, common, report, work);
        }
        // Only networks are told of these.
        let _ = (common, report);
        let Around::Tuned { models, paths, selection, .. } = around else {
            let message =
                "random directions are of models in memory, which a command does not see: judge them by loss or fid";
            return Err(Error::Recipe(message.to_owned()).into());
        };
        let line = self.command.as_deref().unwrap_or_default();
        let beside = outputs.iter().flatten().next().and_then(|path| path.parent());
        let beside = beside.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = tempfile::Builder::new().prefix(".ckptmerge-").tempdir_in(beside);
        let folder = folder.map_err(Error::io("create a temporary folder in", beside))?;
        let jobs = self.jobs as usize;
        let objective = search::Command::new(line, models, (base, paths), selection, folder.path(), jobs)?;
        let setup = json!({"objective": "cmd", "command": line});
        let unit = "the command's number".to_owned();
        work(&Judged { objective: &objective, setup, unit, titles: vec![String::new()] })
    }

    /// That nothing is said of other objectives.
    pub(super) fn check(&self) -> Result<(), Error> {
        let given = [(self.command.is_some() || self.jobs > 1, Kind::Cmd, "--command and --jobs")];
        #[cfg(feature = "diffusion")]
        let given = {
            let NetworkOptions { data, timesteps, ranges, reference, features, .. } = &*self.networks;
            let of_loss = data.is_some() || !timesteps.is_empty() || ranges.is_some();
            let of_fid = reference.is_some() || features.is_some();
            let [of_command] = given;
            [
                of_command,
                (of_loss, Kind::Loss, "--data, --timesteps and --ranges"),
                (of_fid, Kind::Fid, "--reference and --features"),
            ]
        };
        let wrong = given.into_iter().find(|(is_given, kind, _)| *is_given && *kind != self.objective);
        wrong.map_or(Ok(()), |(_, kind, options)| {
            let name = Kind::NAMES.iter().find(|(_, known)| *known == kind).map_or("", |(name, _)| *name);
            Err(Error::Recipe(format!("{options} are of --objective {name}: ask for that, or leave them out")))
        })
    }
}

#[cfg(feature = "diffusion")]
impl NetworkOptions {
    fn with<T>(
        &self,
        kind: Kind,
        (base, around): (&Path, &Around<'_>),
        outputs: &[Option<&Path>],
        common: &Common,
        report: &Report,
        work: impl FnOnce(&Judged<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let inputs = [&self.data, &self.reference, &self.config, &self.scheduler_config];
        check_kept(outputs, &inputs.map(|path| path.as_deref()))?;
        let checkpoint = Checkpoint::open_with(base, &common.open())?;
        let model = Ddpm::open(checkpoint, self.config.as_deref().map(named_config).transpose()?)?;
        check_kept(outputs, &[model.config_path()])?;
        let (name, config) = (model.name().to_owned(), model.config().clone());
        let scheduler = scheduler_of(&model, self.scheduler_config.as_deref(), report)?;
        let weights = model.into_weights();
        let memory = common.settings().memory;
        let pool = common.settings().pool()?;
        let candidates = || match around {
            Around::Tuned { vectors, .. } => Candidates::read(vectors, memory),
            Around::Random(views) => Candidates::around(views, self.seed, memory),
        };
        let of_network = json!({"config": config.to_json(), "scheduler": scheduler.to_json(), "seed": self.seed});
        if kind == Kind::Loss {
            let path = asked(self.data.as_deref(), "loss", "--data IMAGES")?;
            let set = images_at(path, common)?;
            let images = set.fingerprint()?;
            let data = prepared(set, &config, self.size, Crop::Center, false)?;
            let noising = Noising::new(&scheduler)?;
            let ranges = self.of_timesteps(noising.timesteps());
            let (count, batch) = (self.samples as usize, self.batch as usize);
            let samples = pool.install(|| Samples::new(&data, &noising, &ranges, count, batch, self.seed))?;
            let candidates = pool.install(candidates)?;
            let objective = Loss::new(&candidates, &config, &weights, &samples);
            let setup = json!({
                "objective": "loss", "network": of_network, "images": images, "size": data.shape(), "samples": count,
                "timesteps": ranges.iter().map(|range| [range.start, range.end]).collect::<Vec<_>>(),
            });
            let title = |range: &Range<usize>| match *range == (0..noising.timesteps()) {
                true => "all timesteps".to_owned(),
                false => format!("timesteps {} to {}", range.start, range.end - 1),
            };
            let titles = ranges.iter().map(title).collect();
            return work(&Judged { objective: &objective, setup, unit: "denoising loss".to_owned(), titles });
        }
        let extractor = eval::extractor(asked(self.features.as_deref(), "fid", "--features EXTRACTOR")?, None)?;
        let path = asked(self.reference.as_deref(), "fid", "--reference PATH")?;
        let statistics = reference_at(path, &*extractor, common, report)?;
        let known = statistics.fingerprint();
        let size = self.size.or(config.sample_size).ok_or_else(|| {
            Error::Recipe(format!("{name}'s configuration does not say how large its images are: give --size"))
        })?;
        super::sample::check_size(size, &config)?;
        let images = search::Images {
            count: self.images as usize,
            batch: self.batch as usize,
            size,
            seed: self.seed,
            scheduler,
            entry: schedulers::by_name(&self.scheduler)?,
            steps: self.steps as usize,
        };
        let candidates = pool.install(candidates)?;
        let reference = Reference::new(statistics);
        let objective = Distance::new((&candidates, &config, &weights), &images, &*extractor, &reference);
        let setup = json!({
            "objective": "fid", "network": of_network, "reference": known, "features": extractor.id(), "images": self.images,
            "size": size, "sampler": self.scheduler, "steps": self.steps,
        });
        let unit = objective.labels().concat();
        work(&Judged { objective: &objective, setup, unit, titles: vec![String::new()] })
    }

    /// The ranges of timesteps that are asked for, of so many.
    fn of_timesteps(&self, all: usize) -> Vec<Range<usize>> {
        match (self.ranges.map(|ranges| ranges as usize), &self.timesteps[..]) {
            (None | Some(1), []) => std::iter::once(0..all).collect(),
            (Some(ranges), _) => {
                let each = (0..ranges).map(|index| Timesteps::range(index, ranges, all));
                std::iter::once(0..all).chain(each).collect()
            }
            (None, timesteps) => timesteps.to_vec(),
        }
    }
}

/// What an objective cannot do without.
#[cfg(feature = "diffusion")]
fn asked<'a, T: ?Sized>(given: Option<&'a T>, objective: &str, option: &str) -> Result<&'a T, Error> {
    given.ok_or_else(|| {
        Error::Recipe(format!("--objective {objective} needs {option}; --objective cmd judges any model"))
    })
}
