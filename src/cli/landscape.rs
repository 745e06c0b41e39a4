//! `ckptmerge landscape`

mod found;
mod outputs;

use super::objective::{Around, Judged, ObjectiveOptions};
use super::picture::Picture;
use super::report::{Report, check_beside, check_kept, check_places};
use super::tuned::{looked_at, names, vectors_of};
use super::{Common, Run, named};
use crate::analysis::{self, By, Plane, Products, Vectors};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::dtype;
use crate::error::Error;
use crate::plot::{Levels, MarkKind};
use crate::recipe::{Models, Selection};
use crate::search::{Job, Journal, Lattice, evaluate, key};
use clap::Args;
use found::{Found, Member};
use outputs::Outputs;
use regex::Regex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// After how long a coarse picture is worth drawing.
const EARLY: Duration = Duration::from_secs(5);
/// The version that wrote a journal's line.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Draw the loss over the plane through three models
///
/// The plane goes through BASE and two TUNED models. Its axes are orthonormal, x along the first model's task vector TUNED − BASE, so that
/// lengths in it are distances between weights (Garipov et al. 2018). At each point of a grid the model is formed in memory and
/// judged: by its denoising loss over noisy images that are the same at all points, in several ranges of timesteps at no extra cost; by
/// the FID of images that it makes; or by a command of your own, for models of any kind.
///
/// What was evaluated is kept in a journal beside the first output: the same command goes on where it was stopped, and draws again
/// without evaluating; a grid of twice as many steps takes over half of its rows and columns.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge landscape base/ a/ b/ --data images.npy --plot plane.svg
  ckptmerge landscape base/ a/ b/ --data images.npy --ranges 4 --mark merged/ --plot plane.svg --html plane.html
  ckptmerge landscape base/ a/ b/ c/ d/ --directions pca --data images.npy --npz plane.npz
  ckptmerge landscape model/ --directions random --data images.npy --plot random.svg
  ckptmerge landscape base.st a.st b.st --objective cmd --command 'python eval.py {model}' --plot plane.svg")]
pub(super) struct Landscape {
    /// The model at the origin
    base: PathBuf,
    /// The models that the plane goes through: two, or with --directions pca more
    tuned: Vec<PathBuf>,
    /// A model to be marked at the point of the plane that is nearest to it, such as a merge; may be repeated
    #[arg(long, value_name = "MODEL")]
    mark: Vec<PathBuf>,
    /// What spans the plane
    ///
    /// - tuned: the two task vectors
    /// - pca: of more task vectors the two directions that hold most of their energy, Σ‖τ‖²
    /// - random: two random directions around BASE alone, each filter's of the norm that its weights have (Li et al. 2018)
    #[arg(long, value_name = "WHAT", default_value = "tuned", value_parser = named(&Directions::NAMES))]
    directions: Directions,
    /// Points along the axes, as 21 or 41x21
    #[arg(long, value_name = "N", default_value = "21", value_parser = grid)]
    grid: Grid,
    /// How far the plane reaches beyond the models, as a share of their extent
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, value_parser = margin)]
    margin: f64,
    /// How far it reaches along random directions, which are as long as the model's own weights [default: 1]
    #[arg(long, value_name = "LENGTH", value_parser = length)]
    span: Option<f64>,
    /// Move only along tensors whose name matches; others stay BASE's
    #[arg(long, value_name = "REGEX")]
    include: Vec<Regex>,
    /// Do not move along tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<Regex>,
    /// Do not move along tensors that not all models have
    #[arg(long)]
    shared: bool,
    #[command(flatten)]
    objective: ObjectiveOptions,
    /// Where evaluations are kept [default: beside the first output, NAME.journal.jsonl]
    #[arg(long, value_name = "FILE.jsonl")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    picture: Picture,
    #[command(flatten)]
    contours: ContourOptions,
    #[command(flatten)]
    outputs: Outputs,
}

/// How the picture is drawn.
#[derive(Args)]
struct ContourOptions {
    /// How many bands of colour
    #[arg(long, value_name = "N", default_value = "12", value_parser = clap::value_parser!(u8).range(2..=64))]
    levels: u8,
    /// Space the bands evenly, not by powers above the lowest number
    #[arg(long)]
    linear: bool,
    /// Give numbers from here on the last colour [default: a high quantile, where the highest is far beyond it]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = finite)]
    most: Option<f64>,
}

/// What spans a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directions {
    Tuned,
    Pca,
    Random,
}

impl Directions {
    const NAMES: [(&'static str, Self); 3] = [("tuned", Self::Tuned), ("pca", Self::Pca), ("random", Self::Random)];
}

/// Points along x and y.
#[derive(Clone, Copy, Debug)]
struct Grid([usize; 2]);

fn grid(text: &str) -> Result<Grid, String> {
    let side = |text: &str| text.parse().ok().filter(|side| (2..=1001).contains(side));
    let (x, y) = text.split_once('x').unwrap_or((text, text));
    let sides = side(x).zip(side(y)).ok_or("it is a number of points from 2 to 1001, or two as 41x21")?;
    Ok(Grid([sides.0, sides.1]))
}

fn finite(text: &str) -> Result<f64, String> {
    let wrong = || "it is a finite number".to_owned();
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(wrong)
}

fn margin(text: &str) -> Result<f64, String> {
    let wrong = || "it is a share from 0 to 100".to_owned();
    text.parse().ok().filter(|share| (0.0..=100.0).contains(share)).ok_or_else(wrong)
}

fn length(text: &str) -> Result<f64, String> {
    let wrong = || "it is a number above 0, at most 1000".to_owned();
    text.parse().ok().filter(|length| *length > 0.0 && *length <= 1000.0).ok_or_else(wrong)
}

/// A plane, with the models that it is about.
struct Setting {
    plane: Plane,
    members: Vec<Member>,
    lattice: Lattice,
    /// What the axes are.
    axes: [String; 2],
    /// Models that have weights, and their names.
    weighted: Vec<String>,
    /// What a journal knows the models and directions by.
    setup: Value,
}

impl Run for Landscape {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        self.objective.check()?;
        self.check()?;
        if self.directions == Directions::Random {
            self.random(common, &report)?;
        } else {
            self.tuned(common, &report)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Landscape {
    /// That the models and the directions fit.
    fn check(&self) -> Result<(), Error> {
        let wrong = |message: &str| Err(Error::Recipe(message.to_owned()));
        match (self.directions, self.tuned.len()) {
            (Directions::Tuned, 0 | 1) => {
                wrong("a plane goes through BASE and two TUNED models: give both, or --directions random")
            }
            (Directions::Tuned, 3..) => {
                wrong("a plane goes through BASE and two models: name the others by --mark, or take --directions pca")
            }
            (Directions::Pca, 0 | 1) => wrong("--directions pca takes two TUNED models at least"),
            (Directions::Random, 1..) => wrong("random directions are around BASE alone: leave other models out"),
            (Directions::Tuned | Directions::Pca, _) if self.span.is_some() => {
                wrong("--span is of random directions: how far other planes reach --margin says")
            }
            (Directions::Random, 0) if !self.mark.is_empty() => {
                wrong("no model lies near a plane of random directions: leave --mark out")
            }
            _ => Ok(()),
        }
    }

    fn selection(&self) -> Selection {
        Selection { include: self.include.clone(), exclude: self.exclude.clone() }
    }

    /// All files that are to be written.
    fn paths(&self) -> Vec<&Path> {
        self.picture.path().into_iter().chain(self.outputs.paths()).collect()
    }

    /// The journal's path, if one is kept.
    fn journal_path(&self) -> Option<PathBuf> {
        self.journal.clone().or_else(|| Some(self.paths().first()?.with_extension("journal.jsonl")))
    }

    /// All files that are to be written, which can be and are nothing that was given.
    fn files<'a>(&'a self, journal: Option<&'a Path>) -> Result<Vec<Option<&'a Path>>, Error> {
        let files: Vec<Option<&Path>> = self.paths().into_iter().map(Some).chain([journal]).collect();
        check_places(&files)?;
        let given: Vec<Option<&Path>> =
            std::iter::once(&self.base).chain(&self.tuned).chain(&self.mark).map(|path| Some(path.as_path())).collect();
        check_kept(&files, &given)?;
        Ok(files)
    }

    /// The plane of task vectors.
    fn tuned(&self, common: &Common, report: &Report) -> anyhow::Result<()> {
        let paths: Vec<PathBuf> = self.tuned.iter().chain(&self.mark).cloned().collect();
        let models = Models::open(&paths, Some(&self.base), &common.open())?;
        looked_at(&models, common, report)?;
        let journal = self.journal_path();
        let files = self.files(journal.as_deref())?;
        check_beside(&files, models.all())?;
        let selection = self.selection();
        let vectors = vectors_of(&models, &selection, self.shared, report)?;
        let products = self.products(&vectors, models.labels(), common, report)?;
        let setting = self.setting(&models, &products)?;
        let around = Around::Tuned { models: &models, paths: &paths, vectors: &vectors, selection: &selection };
        self.judge(setting, &around, &files, common, report)
    }

    fn products(
        &self,
        vectors: &Vectors<'_>,
        labels: &[String],
        common: &Common,
        report: &Report,
    ) -> anyhow::Result<Products> {
        let settings = common.settings();
        let found =
            report.watched(vectors.bytes(), |control| analysis::similarity(vectors, By::Model, &settings, control))?;
        if found.total.left_out() > 0 {
            let broken = (0..vectors.models).find(|&index| found.total.not_finite(index) > 0);
            let label = broken.and_then(|index| labels.get(index)).map_or("a model", String::as_str);
            let message = "has elements that are not finite, so there is no plane through it";
            return Err(Error::Recipe(format!(
                "{label} {message}: `ckptmerge inspect {label} --stats` tells which; --exclude leaves tensors out"
            ))
            .into());
        }
        Ok(found.total)
    }

    /// The plane, where the models lie in it, and its points.
    fn setting(&self, models: &Models, products: &Products) -> anyhow::Result<Setting> {
        let (labels, people) = (models.labels(), names(models.labels()));
        let count = self.tuned.len();
        let label = |index: usize| labels[index].clone();
        let plane = match self.directions {
            Directions::Pca => Plane::principal(products, count)?,
            _ => Plane::through(products, [0, 1], &label)?,
        };
        let member = |index: usize| {
            let place = plane.place(products, index);
            let kind = if index < count { MarkKind::Model } else { MarkKind::Merge };
            let weights = (0..products.vectors()).map(|i| if i == index { 1.0 } else { 0.0 }).collect();
            let mark = (index >= count).then(|| models.tuned[index].fingerprint()).transpose()?;
            Ok(Member {
                name: people[index].clone(),
                label: label(index),
                kind,
                place,
                weights,
                values: Vec::new(),
                mark,
            })
        };
        let mut members: Vec<Member> = (0..products.vectors()).map(member).collect::<Result<_, Error>>()?;
        let last = people.len() - 1;
        members.insert(0, Member::origin(people[last].clone(), label(last), products.vectors()));
        let ends = |axis: usize| {
            let places = members.iter().map(|member| member.place.at[axis]);
            let (low, high) = places.fold((0.0f64, 0.0f64), |(low, high), at| (low.min(at), high.max(at)));
            let beyond = self.margin * (high - low);
            (low - beyond, high + beyond)
        };
        let lattice = Lattice::new(self.grid.0, [ends(0), ends(1)]);
        let axes = match self.directions {
            Directions::Pca => ["first principal direction".to_owned(), "second principal direction".to_owned()],
            _ => [format!("along {} − {}", people[0], people[last]), format!("towards {}", people[1])],
        };
        let setup = json!({
            "models": models.base.iter().chain(&models.tuned[..count]).map(Checkpoint::fingerprint).collect::<Result<Vec<_>, _>>()?,
            "include": self.include.iter().map(Regex::as_str).collect::<Vec<_>>(),
            "exclude": self.exclude.iter().map(Regex::as_str).collect::<Vec<_>>(),
            "shared": self.shared,
        });
        Ok(Setting { plane, members, lattice, axes, weighted: people[..count].to_vec(), setup })
    }

    /// The plane of random directions.
    fn random(&self, common: &Common, report: &Report) -> anyhow::Result<()> {
        super::without_adapters(&self.base)?;
        let checkpoint = Checkpoint::open_with(&self.base, &common.open())?;
        common.check_selected([&checkpoint])?;
        report.about(&checkpoint);
        let journal = self.journal_path();
        let files = self.files(journal.as_deref())?;
        check_beside(&files, std::iter::once(&checkpoint))?;
        let selection = self.selection();
        selection.check(std::iter::once(&checkpoint))?;
        let moves = |view: &TensorView<'_>| {
            let tensor = view.tensor;
            let is_number = tensor.dtype.is_real() && dtype::can_decode(tensor.dtype);
            is_number && tensor.alias_of.is_none() && selection.takes(&tensor.name)
        };
        let views = checkpoint.tensors().iter().filter_map(|tensor| checkpoint.get(&tensor.name));
        let views: Vec<TensorView<'_>> = views.filter(moves).collect();
        let setup = json!({
            "models": [checkpoint.fingerprint()?],
            "include": self.include.iter().map(Regex::as_str).collect::<Vec<_>>(),
            "exclude": self.exclude.iter().map(Regex::as_str).collect::<Vec<_>>(),
            "random": self.objective.seed(),
        });
        let name = checkpoint.name().to_owned();
        let members = vec![Member::origin(names(std::slice::from_ref(&name)).concat(), name, 2)];
        let axes = ["first random direction".to_owned(), "second random direction".to_owned()];
        let span = self.span.unwrap_or(1.0);
        let lattice = Lattice::new(self.grid.0, [(-span, span); 2]);
        let setting = Setting { plane: Plane::spanned(), members, lattice, axes, weighted: Vec::new(), setup };
        self.judge(setting, &Around::Random(&views), &files, common, report)
    }

    /// Judges all points and tells of them.
    fn judge(
        &self,
        setting: Setting,
        around: &Around<'_>,
        files: &[Option<&Path>],
        common: &Common,
        report: &Report,
    ) -> anyhow::Result<()> {
        let journal = self.journal_path();
        self.objective.with((&self.base, around), files, common, report, |judged| {
            let mut setup = setting.setup.clone();
            setup["judged"] = judged.setup.clone();
            let journal = journal.as_deref().map(|path| Journal::open(path, &setup)).transpose()?;
            let found = self.evaluated(setting, judged, journal, common, report)?;
            report.answer(|| found.text(), || found.document())?;
            self.outputs.write(&found, &self.contours(&found), report)?;
            if self.picture.is_wanted() {
                self.picture.draw(report, &self.contours(&found))?;
            }
            Ok(())
        })
    }

    /// Evaluates the models themselves, and then the points that no line of the journal has, the coarse ones first.
    fn evaluated(
        &self,
        setting: Setting,
        judged: &Judged<'_>,
        journal: Option<(Journal, Vec<Value>)>,
        common: &Common,
        report: &Report,
    ) -> anyhow::Result<Found> {
        let (journal, lines) = journal.unzip();
        let mut journal = journal;
        let count = judged.objective.labels().len();
        let mut known: HashMap<String, Vec<f64>> = HashMap::new();
        for line in lines.unwrap_or_default() {
            let (name, values) = of_line(&line).filter(|(_, values)| values.len() == count).ok_or_else(|| {
                let path = self.journal_path().unwrap_or_default();
                Error::model(&path, format!("has a line that is no evaluation of this plane ({line}): remove it"))
            })?;
            known.insert(name, values);
        }
        let Setting { plane, members, lattice, axes, weighted, .. } = setting;
        let point = |[column, row]: [usize; 2]| {
            let weights = plane.weights([lattice.xs[column], lattice.ys[row]]);
            Candidate { own: self.own(&weights), weights, mark: None }
        };
        let member = |member: &Member| Candidate {
            own: self.own(&member.weights),
            weights: member.weights.clone(),
            mark: member.mark.clone(),
        };
        let levels = lattice.levels();
        let mut stages: Vec<Vec<Candidate>> = vec![members.iter().map(member).collect()];
        stages.extend(levels.iter().map(|level| level.iter().map(|place| point(*place)).collect()));
        let total: usize = stages.iter().map(Vec::len).sum();
        let known_before = stages.iter().flatten().filter(|candidate| known.contains_key(&candidate.name())).count();
        let mut found = Found {
            plane: plane.clone(),
            members,
            lattice: lattice.clone(),
            axes,
            weighted,
            unit: judged.unit.clone(),
            titles: judged.titles.clone(),
            labels: judged.objective.labels().to_vec(),
            facts: judged.setup.clone(),
            values: vec![vec![None; lattice.xs.len()]; lattice.ys.len()],
            known_before,
            energy: (self.directions == Directions::Pca).then_some(plane.energy),
        };
        let (started, threads) = (Instant::now(), common.settings().threads());
        let evaluations = |control: crate::stream::Control<'_>| -> crate::Result<()> {
            for (stage, candidates) in stages.iter().enumerate() {
                let is_new = |(_, candidate): &(usize, &Candidate)| !known.contains_key(&candidate.name());
                let new = candidates.iter().enumerate().filter(is_new);
                let jobs: Vec<Job> =
                    new.map(|(number, candidate)| Job { number, weights: candidate.weights.clone() }).collect();
                (control.progress)((candidates.len() - jobs.len()) as u64);
                evaluate(judged.objective, &jobs, threads, control, |number, values, took| {
                    let candidate = &candidates[number];
                    if let Some(journal) = &mut journal {
                        journal.append(&candidate.line(&values, took))?;
                    }
                    known.insert(candidate.name(), values);
                    Ok(())
                })?;
                let of = |candidate: &Candidate| known.get(&candidate.name()).cloned();
                if stage == 0 {
                    for (member, candidate) in found.members.iter_mut().zip(candidates) {
                        member.values = of(candidate).unwrap_or_default();
                    }
                    found.check_origin()?;
                    continue;
                }
                for ([column, row], candidate) in levels[stage - 1].iter().zip(candidates) {
                    found.values[*row][*column] = of(candidate);
                }
                let is_last = stage == levels.len();
                if !is_last && !jobs.is_empty() && started.elapsed() > EARLY && self.picture.is_wanted() {
                    let drawn = self.picture.draw(report, &self.contours(&found.known_so_far()));
                    drawn.unwrap_or_else(|error| report.warn(&format!("no coarse picture was drawn: {error}")));
                }
            }
            Ok(())
        };
        let result = report.watched_count(total as u64, "points", evaluations);
        match (result, self.journal_path()) {
            (Err(Error::Interrupted), Some(path)) => {
                let message = format!("the same command goes on from {}", path.display());
                Err(Error::Paused(message).into())
            }
            (result, _) => {
                result?;
                Ok(found)
            }
        }
    }

    /// The weights of the models that span the plane.
    fn own(&self, weights: &[f64]) -> Vec<f64> {
        let count = if self.directions == Directions::Random { weights.len() } else { self.tuned.len() };
        weights.iter().take(count).copied().collect()
    }

    fn contours(&self, found: &Found) -> crate::plot::Contours {
        let levels = if self.contours.linear { Levels::Linear } else { Levels::Log };
        crate::plot::Contours {
            levels,
            count: usize::from(self.contours.levels),
            most: self.contours.most,
            ..found.contours()
        }
    }
}

/// A model to be judged, and what a journal knows it by.
struct Candidate {
    /// Of all models, marks too.
    weights: Vec<f64>,
    /// Of those that span the plane.
    own: Vec<f64>,
    /// The fingerprint of a mark.
    mark: Option<String>,
}

impl Candidate {
    fn name(&self) -> String {
        self.mark.clone().unwrap_or_else(|| key(&self.own))
    }

    /// A line of a journal.
    fn line(&self, values: &[f64], took: Duration) -> Value {
        let values: Vec<Option<f64>> = values.iter().map(|value| value.is_finite().then_some(*value)).collect();
        let seconds = took.as_secs_f64();
        match &self.mark {
            Some(mark) => json!({"model": mark, "values": values, "seconds": seconds, "version": VERSION}),
            None => json!({"weights": self.own, "values": values, "seconds": seconds, "version": VERSION}),
        }
    }
}

/// What a line says.
fn of_line(line: &Value) -> Option<(String, Vec<f64>)> {
    let name = match line["model"].as_str() {
        Some(mark) => mark.to_owned(),
        None => key(&line["weights"].as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()?),
    };
    let value = |value: &Value| if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
    Some((name, line["values"].as_array()?.iter().map(value).collect::<Option<_>>()?))
}
