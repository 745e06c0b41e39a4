//! The models of the demo: where they are, and what must be there.

use crate::checkpoint::{Checkpoint, read_small};
use crate::diffusion::Ddpm;
use crate::error::Error;
use crate::train::Timesteps;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Where the models lie in the repository.
const PLACE: [&str; 2] = ["fixtures", "digits"];
/// Real images, the statistics of them, and the weights of merges.
const IMAGES: &str = "images.npy";
const REFERENCE: &str = "reference.npz";
const WEIGHTS: &str = "weights.json";
/// The longest list of weights that is read, in bytes.
const WEIGHTS_LIMIT: u64 = 1 << 16;

/// A base and what was tuned from it.
pub(super) struct Models {
    /// Where they are.
    pub(super) folder: PathBuf,
    /// The model that all began as.
    pub(super) base: PathBuf,
    /// One for each range of timesteps, the smallest first.
    pub(super) experts: Vec<PathBuf>,
    /// What was tuned as long on all timesteps, if it is there.
    pub(super) control: Option<PathBuf>,
    /// Real images.
    pub(super) images: PathBuf,
    /// Mean and covariance of real images' features.
    pub(super) reference: PathBuf,
    /// Merges: what each is called, and the experts' weights in it.
    pub(super) merges: Vec<(String, Vec<f64>)>,
    /// Timesteps of all ranges together.
    pub(super) timesteps: u64,
}

impl Models {
    /// Finds them in `folder`, or else where the repository is.
    pub(super) fn find(folder: Option<&Path>) -> Result<Self, Error> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => in_repository().ok_or_else(|| {
                let place = Path::new(PLACE[0]).join(PLACE[1]);
                Error::Recipe(format!(
                    "the demo's models, {}, are neither here, in a folder above, nor above the program: go to a checkout of the repository, or name their folder with --models",
                    place.display()
                ))
            })?,
        };
        // What begins like an option is none.
        let folder = if folder.to_string_lossy().starts_with('-') { Path::new(".").join(folder) } else { folder };
        let needed = |name: &str| {
            let path = folder.join(name);
            let message = format!("has no {name}, which the demo needs: its models are those of fixtures/digits");
            if path.exists() { Ok(path) } else { Err(Error::model(&folder, message)) }
        };
        let base = needed("base")?;
        let mut experts = vec![needed("range-0")?];
        experts.extend((1..).map(|index| folder.join(format!("range-{index}"))).take_while(|path| path.exists()));
        let (images, reference) = (needed(IMAGES)?, needed(REFERENCE)?);
        let merges = read_weights(&needed(WEIGHTS)?, experts.len())?;
        let control = Some(folder.join("control")).filter(|path| path.exists());
        let model = Ddpm::open(Checkpoint::open(&base)?, None)?;
        let without =
            || Error::model(&base, "comes with no scheduler_config.json, which says how many timesteps there are");
        let timesteps = model.scheduler().ok_or_else(without)?.train_timesteps();
        Ok(Self { base, experts, control, images, reference, merges, timesteps, folder })
    }

    /// The timesteps of an expert: from, and to but for the last.
    pub(super) fn range(&self, index: usize) -> (u64, u64) {
        let range = Timesteps::range(index, self.experts.len(), self.timesteps as usize);
        (range.start as u64, range.end as u64)
    }
}

/// The repository's models: here, in a folder above, or above the program.
fn in_repository() -> Option<PathBuf> {
    let place: PathBuf = PLACE.iter().collect();
    let here = std::env::current_dir().ok()?;
    let above = here.ancestors().position(|folder| folder.join(&place).is_dir());
    if let Some(levels) = above {
        // As one would type it.
        return Some(std::iter::repeat_n("..", levels).collect::<PathBuf>().join(place));
    }
    let program = std::env::current_exe().ok()?;
    program.ancestors().map(|folder| folder.join(&place)).find(|folder| folder.is_dir())
}

/// `{"equal": [0.25, …], …}`: lists of weights, one for each expert, by names.
fn read_weights(path: &Path, experts: usize) -> Result<Vec<(String, Vec<f64>)>, Error> {
    let document: Value = serde_json::from_slice(&read_small(path, WEIGHTS_LIMIT)?)
        .map_err(|error| Error::model(path, format!("is not JSON: {error}")))?;
    let entries = document.as_object().filter(|entries| !entries.is_empty());
    let entries = entries.ok_or_else(|| Error::model(path, "has no lists of weights by names"))?;
    let merge = |(name, list): (&String, &Value)| {
        // They become names of folders.
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
            return Err(Error::model(
                path,
                format!("has weights called `{name}`; names are of small letters, digits and -"),
            ));
        }
        let numbers: Option<Vec<f64>> = list.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        let numbers = numbers.ok_or_else(|| Error::model(path, format!("has no list of numbers under `{name}`")))?;
        if numbers.len() == experts {
            return Ok((name.clone(), numbers));
        }
        Err(Error::model(path, format!("has {} weights under `{name}` for {experts} experts", numbers.len())))
    };
    entries.iter().map(merge).collect()
}
