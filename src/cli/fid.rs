//! `ckptmerge fid`

use super::report::{Report, count, grouped, significant};
use super::{Common, Run, named};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::eval::{
    self, EXTRACTORS, Extractor, Features, INFINITY_POINTS, Infinity, KID_SUBSETS, Kid, NEIGHBOURS, PrecisionRecall,
    Reference, Resize, Statistics,
};
use crate::images::{ENDINGS, Set, instead_of_images};
use clap::Args;
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Tell how far apart two sets of images are
///
/// Images become features, and the Fréchet distance is that of two normal distributions with the features' means and
/// covariances. With pytorch-fid's Inception and its weights it is FID; with any other extractor it is called FD, and compares
/// only with distances of the same extractor.
///
/// A and B are each a folder of images (png, jpg, webp, bmp; folders in it are not read), an array of them (.npz or .npy, U8,
/// N×height×width×channels), an array of N×d features, or statistics (.npz with `mu` and `sigma`, as pytorch-fid writes them).
/// A is the reference, such as real images, and B what is judged by it; the distance itself is the same either way.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge fid real/ samples/ --features inception:pt_inception-2015-12-05-6726825d.pth
  ckptmerge fid real/ --features inception:weights.pth --save-stats real.npz
  ckptmerge fid real.npz samples.npz --features inception:weights.pth --infinity
  ckptmerge fid digits/ samples/ --features digits --kid --precision-recall")]
pub(super) struct Fid {
    /// The reference: images, features or statistics
    a: PathBuf,
    /// What is compared with it
    #[arg(required_unless_present = "save_stats")]
    b: Option<PathBuf>,
    /// What sees the images
    #[arg(long, value_name = "EXTRACTOR", long_help = extractors())]
    features: Option<String>,
    /// How images are brought to the network's size: pytorch, as pytorch-fid does, or clean, as clean-fid does
    ///
    /// Inception resizes as pytorch-fid unless asked; other extractors resize only if asked. Distances of different ways do
    /// not compare.
    #[arg(long, value_name = "HOW", value_parser = named(&Resize::NAMES))]
    resize: Option<Resize>,
    /// Also the kernel distance KID, with its standard deviation over 100 subsets of 1000
    #[arg(long, requires = "b")]
    kid: bool,
    /// Also the distance for infinitely many images of B (FID∞), by 15 subsets of it
    #[arg(long, requires = "b")]
    infinity: bool,
    /// Also precision and recall of B, by nearest neighbours in A and in B
    #[arg(long, requires = "b")]
    precision_recall: bool,
    /// Write the mean and covariance of A's features, to be given in its place; B may be left out then
    #[arg(long, value_name = "FILE.npz", value_parser = npz)]
    save_stats: Option<PathBuf>,
    /// Images that are decoded at a time
    #[arg(long, value_name = "N", default_value = "64", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// What the subsets of --kid and --infinity are drawn by
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// All that can see images, for the help.
fn extractors() -> String {
    let line = |kind: &&eval::Kind| match kind.argument {
        Some(argument) => format!("- {}:{argument}: {}", kind.name, kind.about),
        None => format!("- {}: {}", kind.name, kind.about),
    };
    let lines: Vec<String> = EXTRACTORS.iter().map(line).collect();
    format!("What sees the images\n\n{}", lines.join("\n"))
}

fn npz(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npz")) {
        Ok(path)
    } else {
        Err("statistics are written as .npz: let the name end so".to_owned())
    }
}

/// What is given for one of the two sets.
enum Given {
    Images(Set),
    Features(Features),
    Statistics(Statistics),
}

/// What is known of one of them in the end.
struct Side {
    path: PathBuf,
    kind: &'static str,
    features: Option<Features>,
    statistics: OnceCell<Statistics>,
}

impl Side {
    fn count(&self) -> Option<u64> {
        let of_features = self.features.as_ref().map(|features| features.count() as u64);
        of_features.or_else(|| self.statistics.get().and_then(|statistics| statistics.count))
    }

    fn dimension(&self) -> usize {
        let of_features = self.features.as_ref().map(|features| features.dimension);
        of_features.or_else(|| self.statistics.get().map(|statistics| statistics.dimension)).unwrap_or(0)
    }

    fn extractor(&self) -> Option<&str> {
        let of_features = self.features.as_ref().and_then(|features| features.extractor.as_deref());
        of_features.or_else(|| self.statistics.get().and_then(|statistics| statistics.extractor.as_deref()))
    }

    /// Its features, which a measure asked for.
    fn features(&self) -> Result<&Features, Error> {
        self.features.as_ref().ok_or_else(|| without_features(&self.path))
    }

    /// Its distribution, computed if it is not known.
    fn statistics(&self) -> Result<&Statistics, Error> {
        if self.statistics.get().is_none() {
            let _ = self.statistics.set(Statistics::of(self.features()?)?);
        }
        self.statistics.get().ok_or_else(|| Error::model(&self.path, "has no statistics"))
    }

    fn document(&self) -> Value {
        json!({"path": self.path.display().to_string(), "kind": self.kind, "count": self.count()})
    }
}

impl Run for Fid {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        if common.memory.is_some() {
            report.warn("--memory bounds how arrays are read, not what networks and covariances take");
        }
        self.check_output()?;
        // Everything is opened before anything is computed.
        let a = given(&self.a, self.kid || self.precision_recall, common, &report)?;
        let needs_features = self.kid || self.precision_recall || self.infinity;
        let b = self.b.as_ref().map(|b| given(b, needs_features, common, &report)).transpose()?;
        // Before hours go into the other set.
        for given in std::iter::once(&a).chain(&b) {
            if let Given::Images(set) = given {
                eval::check_count(set.len() as u64, &set.path().display().to_string())?;
            }
        }
        let has_images = matches!(a, Given::Images(_)) || matches!(b, Some(Given::Images(_)));
        let extractor = match &self.features {
            Some(text) if has_images => Some(eval::extractor(text, self.resize)?),
            Some(_) => {
                report.remark("--features has nothing to do: no images were given");
                None
            }
            None if has_images => return Err(without_extractor().into()),
            None => None,
        };
        let extractor = extractor.as_deref();
        for given in std::iter::once(&a).chain(&b) {
            if let (Given::Statistics(statistics), Some(extractor)) = (given, extractor) {
                check_extractor(statistics, extractor)?;
            }
        }
        let pool = common.settings().pool()?;
        pool.install(|| {
            let a = self.side(&self.a, a, self.kid || self.precision_recall, extractor, &report)?;
            if let Some(path) = &self.save_stats {
                a.statistics()?.write(path)?;
                report.wrote(path);
            }
            let (Some(path), Some(b)) = (&self.b, b) else { return said_of_statistics(&a, &report) };
            let b = self.side(path, b, needs_features, extractor, &report)?;
            self.compare(a, b, &report)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn without_extractor() -> Error {
    let choices = "inception:PATH, digits, pixels, or the FILE of a classifier";
    Error::Recipe(format!("--features must say what sees the images: {choices}"))
}

fn without_features(path: &Path) -> Error {
    let message = "has only a mean and a covariance, but --kid, --infinity and --precision-recall take features";
    Error::model(path, format!("{message}: give the images, or an array of features"))
}

/// That statistics are of the extractor that sees the images they are compared with, or at least do not say otherwise.
fn check_extractor(statistics: &Statistics, extractor: &dyn Extractor) -> Result<(), Error> {
    let Statistics { origin, extractor: known, .. } = statistics;
    let Some(known) = known else { return Ok(()) };
    // The size of pixels is known with the first image.
    if known.strip_prefix(&extractor.id()).is_some_and(|rest| rest.is_empty() || rest.starts_with(" of ")) {
        return Ok(());
    }
    let message = format!("{origin} has statistics of {known}, but the images are to be seen by {}", extractor.id());
    Err(Error::Recipe(format!(
        "{message}; compute the statistics again, or give the --features and --resize they are of"
    )))
}

/// Images of which no features are kept in memory, if they are more and nothing asks for them.
const KEPT: usize = 2048;
/// Below so many images FID is known to be biased.
const FEW: u64 = 2048;

impl Fid {
    /// That the statistics can be written, and over none of the inputs.
    fn check_output(&self) -> Result<(), Error> {
        let Some(path) = &self.save_stats else { return Ok(()) };
        let real = |path: &Path| path.canonicalize().ok();
        if let Some(output) = real(path)
            && std::iter::once(&self.a).chain(&self.b).any(|input| real(input).as_ref() == Some(&output))
        {
            return Err(Error::output(path, "is one of the inputs, which would be lost: give the output another name"));
        }
        let of_extractor = self.features.as_deref().map(|text| text.strip_prefix("inception:").unwrap_or(text));
        if real(path).is_some() && of_extractor.and_then(|text| real(Path::new(text))) == real(path) {
            return Err(Error::output(path, "holds the extractor's weights, which would be lost: give another name"));
        }
        if path.is_dir() {
            return Err(Error::output(path, "is a folder; give the name of a file"));
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if folder.is_dir() {
            return Ok(());
        }
        Err(Error::output(path, format!("the folder {} does not exist; make it first", folder.display())))
    }

    /// Computes what is needed of a set.
    fn side(
        &self,
        path: &Path,
        given: Given,
        needs_features: bool,
        extractor: Option<&dyn Extractor>,
        report: &Report,
    ) -> Result<Side, Error> {
        let path = path.to_owned();
        let known = |kind, features, statistics: Option<Statistics>| Side {
            path: path.clone(),
            kind,
            features,
            statistics: statistics.map(OnceCell::from).unwrap_or_default(),
        };
        match (given, extractor) {
            (Given::Features(features), _) => Ok(known("features", Some(features), None)),
            (Given::Statistics(statistics), _) => Ok(known("statistics", None, Some(statistics))),
            (Given::Images(set), Some(extractor)) => {
                let (total, origin) = (set.len(), path.display().to_string());
                let batches = set.batches(self.batch as usize);
                let keeps = needs_features || total <= KEPT;
                let (features, statistics) = report.watched_count(total as u64, "images", |control| {
                    if keeps {
                        Ok((Some(eval::features(extractor, batches, &origin, control)?), None))
                    } else {
                        Ok((None, Some(eval::statistics(extractor, batches, &origin, control)?)))
                    }
                })?;
                Ok(known("images", features, statistics))
            }
            (Given::Images(_), None) => Err(without_extractor()),
        }
    }

    fn compare(&self, a: Side, b: Side, report: &Report) -> anyhow::Result<()> {
        let reference = Reference::new(a.statistics()?.clone());
        let value = match &b.features {
            Some(features) => reference.distance_of(features)?,
            None => reference.distance(b.statistics()?)?,
        };
        if !value.is_finite() {
            let message = "the distance is infinite: features or statistics hold numbers whose squares are";
            return Err(Error::model(&b.path, message).into());
        }
        let kid =
            if self.kid {
                let (a, b) = (a.features()?, b.features()?);
                Some(report.watched_count(KID_SUBSETS as u64, "subsets for KID", |control| {
                    eval::kid(a, b, self.seed, control)
                })?)
            } else {
                None
            };
        let infinity = if self.infinity {
            let b = b.features()?;
            let work = |control: crate::stream::Control<'_>| eval::infinity(&reference, b, self.seed, control);
            Some(report.watched_count(INFINITY_POINTS as u64, "subsets for FID∞", work)?)
        } else {
            None
        };
        let shares = if self.precision_recall {
            let (a, b) = (a.features()?, b.features()?);
            let total = 2 * (a.count() + b.count()) as u64;
            let work = |control: crate::stream::Control<'_>| eval::precision_recall(a, b, control);
            Some(report.watched_count(total, "neighbourhoods", work)?)
        } else {
            None
        };
        let extractor = b.extractor().or(a.extractor());
        let is_fid = extractor.is_some_and(eval::is_fid);
        for (side, other) in [(&a, &b), (&b, &a)] {
            if let (None, Some(name)) = (side.extractor(), other.extractor()) {
                let path = side.path.display();
                report.remark(&format!("{path} does not say what its numbers are of; they are taken to be of {name}"));
            }
        }
        // What is usual for FID; below a covariance's own size no distance means much.
        let least = if is_fid { FEW.max(a.dimension() as u64) } else { a.dimension() as u64 };
        let few: Vec<String> = [&a, &b]
            .iter()
            .filter_map(|side| Some((side, side.count()?)))
            .filter(|(_, images)| *images < least)
            .map(|(side, images)| format!("{} has {}", side.path.display(), grouped(images)))
            .collect();
        if !few.is_empty() {
            report.warn(&format!(
                "{}, fewer than {}: the distance is biased upward, so compare it only with those of as many; KID (--kid) is not",
                few.join(" and "),
                grouped(least)
            ));
        }
        let smallest = b.features.as_ref().map_or(usize::MAX, |features| features.count() / 10);
        if infinity.is_some() && smallest < b.dimension() {
            report.warn(&format!(
                "the smallest subset for the distance at infinity has {}, fewer than the {} numbers of a feature: take it for a rough one",
                count(smallest as u64, "image"),
                b.dimension()
            ));
        }
        let shown = Shown { a: &a, b: &b, value, is_fid, extractor, kid, infinity, shares };
        report.answer(|| shown.text(), || shown.document())
    }
}

/// Finds out what a path holds.
fn given(path: &Path, needs_features: bool, common: &Common, report: &Report) -> Result<Given, Error> {
    if path.is_dir() {
        return Ok(Given::Images(Set::of_folder(path)?));
    }
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if path.is_file() && ENDINGS.iter().any(|(known, _)| *known == ending) {
        return Err(Error::model(path, "is a single image: name a folder of them"));
    }
    let checkpoint = Checkpoint::open_with(path, &common.open())?;
    report.about(&checkpoint);
    let images = Set::array_in(&checkpoint)?.map(str::to_owned);
    if Statistics::are_in(&checkpoint) && !(needs_features && images.is_some()) {
        if needs_features {
            return Err(without_features(path));
        }
        if images.is_some() {
            report.remark(&format!("{} holds images as well; its statistics are taken", path.display()));
        }
        return Ok(Given::Statistics(Statistics::read(&checkpoint)?));
    }
    if let Some(name) = images {
        return Ok(Given::Images(Set::of_array(checkpoint, &name)?));
    }
    if let Some(name) = Features::array_in(&checkpoint)?.map(str::to_owned) {
        return Ok(Given::Features(Features::read(&checkpoint, &name)?));
    }
    let kinds = "images (U8, N×height×width×channels), features (floats, N×d) nor statistics (`mu` and `sigma`)";
    Err(Error::model(path, format!("holds neither {kinds}; {}", instead_of_images(&checkpoint))))
}

/// The distribution that images are to be compared with: a file's, or that of images, seen by the extractor.
pub(super) fn reference_at(
    path: &Path,
    extractor: &dyn Extractor,
    common: &Common,
    report: &Report,
) -> anyhow::Result<Statistics> {
    /// Images that are decoded at a time.
    const BATCH: usize = 64;
    match given(path, false, common, report)? {
        Given::Statistics(statistics) => {
            check_extractor(&statistics, extractor)?;
            Ok(statistics)
        }
        Given::Features(features) => Ok(Statistics::of(&features)?),
        Given::Images(set) => {
            eval::check_count(set.len() as u64, &path.display().to_string())?;
            let (total, origin) = (set.len() as u64, path.display().to_string());
            let pool = common.settings().pool()?;
            Ok(report.watched_count(total, "images", |control| {
                pool.install(|| eval::statistics(extractor, set.batches(BATCH), &origin, control))
            })?)
        }
    }
}

/// What is said where only statistics were asked for.
fn said_of_statistics(a: &Side, report: &Report) -> anyhow::Result<()> {
    let images = a.count().map_or_else(String::new, |images| format!(" of {}", count(images, "image")));
    let text = || format!("mean and covariance of features of {} numbers{images}\n", a.dimension());
    report.answer(text, || json!({"a": a.document(), "dimension": a.dimension(), "extractor": a.extractor()}))
}

/// The answer.
struct Shown<'a> {
    a: &'a Side,
    b: &'a Side,
    value: f64,
    is_fid: bool,
    extractor: Option<&'a str>,
    kid: Option<Kid>,
    infinity: Option<Infinity>,
    shares: Option<PrecisionRecall>,
}

impl Shown<'_> {
    fn text(&self) -> String {
        let name = if self.is_fid { "FID" } else { "FD (not FID)" };
        let by = self.extractor.unwrap_or("an extractor that is not known");
        let mut text =
            format!("{name} {} between {} and {}, by {by}\n", significant(self.value, 7), of(self.a), of(self.b));
        if let Some(kid) = self.kid {
            let (mean, deviation) = (significant(kid.mean, 5), significant(kid.deviation, 2));
            text +=
                &format!("KID {mean} ± {deviation}, over {} subsets of {}\n", kid.subsets, grouped(kid.size as u64));
        }
        if let Some(infinity) = &self.infinity {
            let name = if self.is_fid { "FID∞" } else { "FD∞" };
            let least = infinity.points.first().map_or(0, |(n, _)| *n) as u64;
            let most = infinity.points.last().map_or(0, |(n, _)| *n) as u64;
            let points = infinity.points.len();
            let range = format!("{points} subsets of {} to {} images", grouped(least), grouped(most));
            text += &format!("{name} {}, extrapolated from {range}\n", significant(infinity.value, 7));
        }
        if let Some(shares) = self.shares {
            let (precision, recall) = (shares.precision, shares.recall);
            text += &format!("precision {precision:.4}, recall {recall:.4}, by {NEIGHBOURS} neighbours\n");
        }
        text
    }

    fn document(&self) -> Value {
        json!({
            "metric": if self.is_fid { "FID" } else { "FD" },
            "value": self.value,
            "extractor": self.extractor,
            "a": self.a.document(),
            "b": self.b.document(),
            "dimension": self.b.dimension(),
            "kid": self.kid.map(|kid| json!({
                "mean": kid.mean, "deviation": kid.deviation, "subsets": kid.subsets, "size": kid.size,
            })),
            "infinity": self.infinity.as_ref().map(|infinity| json!({
                "value": infinity.value, "slope": infinity.slope, "points": infinity.points,
            })),
            "precision": self.shares.map(|shares| shares.precision),
            "recall": self.shares.map(|shares| shares.recall),
        })
    }
}

/// A set, for people.
fn of(side: &Side) -> String {
    let thing = if side.kind == "features" { "feature" } else { "image" };
    let images = side.count().map_or_else(|| "statistics".to_owned(), |images| count(images, thing));
    format!("{} ({images})", side.path.display())
}
