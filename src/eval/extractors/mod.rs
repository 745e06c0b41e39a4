//! What turns images into features: one file an extractor, one line in [`EXTRACTORS`] each.

mod classifier;
mod digits;
mod inception;
mod pixels;

pub use classifier::Classifier;

use crate::error::{Error, Result};
use crate::images::Image;
use candle_core::Tensor;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// A network, or anything else that sees images.
pub trait Extractor: Send + Sync {
    /// What it is, for people.
    fn name(&self) -> &str;

    /// What tells it from all others, with its weights and how it resizes images: features compare only under one.
    fn id(&self) -> String;

    /// Whether Fréchet distances of its features are FID: whether it is Inception, with the weights that FID is
    /// defined by.
    fn is_fid(&self) -> bool {
        false
    }

    /// The features of images, one after another, in f32. An image's are the same bits in any batch.
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Recipe`] naming an image that it does not take; candle's.
    fn features(&self, images: &[Image]) -> Result<Vec<f32>>;
}

/// How images are brought to the size that a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// As pytorch-fid: bilinear without antialiasing.
    Pytorch,
    /// As clean-fid: bicubic with antialiasing, and `(x − 128)/128` where the other is `2·x/255 − 1`.
    Clean,
}

impl Resize {
    /// The names on the command line.
    pub const NAMES: [(&str, Self); 2] = [("pytorch", Self::Pytorch), ("clean", Self::Clean)];

    /// Its name there.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pytorch => "pytorch",
            Self::Clean => "clean",
        }
    }
}

/// A kind of extractor.
pub struct Kind {
    /// The name on the command line.
    pub name: &'static str,
    /// What stands behind the name and a colon, if anything does.
    pub argument: Option<&'static str>,
    /// What it is.
    pub about: &'static str,
    /// Opens one, by what stands behind the colon.
    open: Open,
}

type Open = fn(argument: &Path, resize: Option<Resize>) -> Result<Box<dyn Extractor>>;

/// All kinds of extractors.
pub static EXTRACTORS: [&Kind; 4] = [&inception::KIND, &pixels::KIND, &digits::KIND, &classifier::KIND];

/// The extractor that `NAME`, `NAME:ARGUMENT` or a classifier's `FILE` means. Without a `resize` each resizes as is
/// usual for it, or does not.
///
/// # Errors
/// [`Error::Unknown`] if there is none of that name, [`Error::Recipe`] if an argument is missing or too much, and what
/// opening it gives.
pub fn extractor(text: &str, resize: Option<Resize>) -> Result<Box<dyn Extractor>> {
    let (name, argument) = match text.split_once(':') {
        Some((name, argument)) => (name, Some(argument)),
        None => (text, None),
    };
    if let Some(kind) = EXTRACTORS.iter().find(|kind| kind.name == name) {
        return match (kind.argument, argument) {
            (Some(_), Some(argument)) if !argument.is_empty() => (kind.open)(Path::new(argument), resize),
            (None, None) => (kind.open)(Path::new(""), resize),
            (Some(wanted), _) => Err(Error::Recipe(format!("`{name}` needs its weights: --features {name}:{wanted}"))),
            (None, Some(argument)) => {
                Err(Error::Recipe(format!("`{name}` takes nothing behind it; leave `:{argument}` out")))
            }
        };
    }
    let file = PathBuf::from(text);
    if file.exists() {
        return (classifier::KIND.open)(&file, resize);
    }
    Err(Error::unknown("feature extractor or file", text, EXTRACTORS.iter().map(|kind| kind.name)))
}

/// Whether an [`Extractor::id`] is that of an extractor whose Fréchet distances are FID.
#[must_use]
pub fn is_fid(id: &str) -> bool {
    [Resize::Pytorch, Resize::Clean].into_iter().any(|resize| id == inception::id(inception::FID, resize))
}

/// The outputs of a network that is run on every image alone, on all threads of the current rayon pool: so neither the
/// batch nor the threads can change a bit.
fn each_alone(
    images: &[Image],
    input: impl Fn(&Image) -> Result<Tensor> + Sync,
    network: impl Fn(&Tensor) -> candle_core::Result<Tensor> + Sync,
) -> Result<Vec<f32>> {
    let one = |image: &Image| Ok(network(&input(image)?)?.flatten_all()?.to_vec1::<f32>()?);
    let rows: Vec<Vec<f32>> = images.par_iter().map(one).collect::<Result<_>>()?;
    Ok(rows.concat())
}
