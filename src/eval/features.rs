//! Features of images: what evaluators compare instead of pixels.

use super::extractors::Extractor;
use super::statistics::{Accumulator, OfWhat, Statistics};
use crate::checkpoint::{Checkpoint, DataFile};
use crate::dtype::{self, DType, Simd};
use crate::error::{Error, Result};
use crate::images::{Image, array_in};
use crate::stream::Control;

/// The most numbers of a feature: a covariance has their square, and takes eight bytes for each.
pub(crate) const MOST_NUMBERS: usize = 16_384;

/// That features are not so long that their covariance would take all memory.
///
/// # Errors
/// [`Error::Recipe`] naming where they are from.
fn check_dimension(dimension: usize, origin: &dyn std::fmt::Display) -> Result<()> {
    if (1..=MOST_NUMBERS).contains(&dimension) {
        return Ok(());
    }
    let message = format!("{origin} has features of {dimension} numbers, but 1 to {MOST_NUMBERS} can be compared");
    Err(Error::Recipe(format!("{message}; are they features, N×d?")))
}

/// Features in memory.
#[derive(Clone, Debug)]
pub struct Features {
    /// Where they are from, for messages.
    pub origin: String,
    /// Numbers of a feature.
    pub dimension: usize,
    /// The extractor, where that is known: see [`Extractor::id`].
    pub extractor: Option<String>,
    /// A feature after another; f32, as networks compute them.
    pub values: Vec<f32>,
}

impl Features {
    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.values.len().checked_div(self.dimension).unwrap_or(0)
    }

    /// The name of a checkpoint's array of features, if it has one: N×d floats, `arr_0` of several.
    ///
    /// # Errors
    /// [`Error::Model`] if there are several, and none is called so.
    pub fn array_in(checkpoint: &Checkpoint) -> Result<Option<&str>> {
        array_in(checkpoint, "features", |tensor| {
            let is_float = matches!(tensor.dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
            tensor.shape.len() == 2 && is_float && !tensor.shape.contains(&0)
        })
    }

    /// The features in an array of N×d floats, by the name of its tensor in a checkpoint.
    ///
    /// # Errors
    /// [`Error::Model`] if there is none of that name; else as [`Checkpoint::open`].
    pub fn read(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        let path = &checkpoint.layout().root;
        let wrong = |message: String| Error::model(path, message);
        let view = checkpoint.get(name).ok_or_else(|| wrong(format!("there is no array `{name}`")))?;
        let Some(dimension) = view.tensor.shape.get(1).and_then(|&n| usize::try_from(n).ok()) else {
            return Err(wrong(format!("the array `{name}` holds no features: those are N×d floats")));
        };
        check_dimension(dimension, &path.display())?;
        let mut buffer = Vec::new();
        let bytes = view.read(0..view.tensor.bytes, &mut buffer)?;
        let width = view.tensor.dtype.bytes().unwrap_or(4);
        let mut values = vec![0.0; bytes.len() / width];
        dtype::decode(Simd::detect(), view.tensor.dtype, bytes, &mut values);
        view.files().try_for_each(DataFile::check_fault)?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let (row, column) = (index / dimension, index % dimension);
            return Err(wrong(format!(
                "`{name}` has {} in row {row}, column {column}; compute it again",
                values[index]
            )));
        }
        Ok(Self { origin: path.display().to_string(), dimension, extractor: None, values })
    }

    /// What they are.
    pub(crate) fn of_what(&self) -> OfWhat<'_> {
        OfWhat { origin: &self.origin, dimension: self.dimension, extractor: self.extractor.as_deref() }
    }

    /// A feature.
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        self.values.get(index * self.dimension..(index + 1) * self.dimension).unwrap_or_default()
    }

    /// So many of them, by their numbers, as f64.
    pub(crate) fn rows(&self, numbers: &[usize]) -> Vec<f64> {
        numbers.iter().flat_map(|&index| self.row(index)).map(|&value| f64::from(value)).collect()
    }

    /// Only those of these numbers.
    pub(crate) fn chosen(&self, numbers: &[usize]) -> Self {
        let values = numbers.iter().flat_map(|&index| self.row(index)).copied().collect();
        Self { origin: self.origin.clone(), dimension: self.dimension, extractor: self.extractor.clone(), values }
    }

    /// The mean, and what is left of each feature without it.
    ///
    /// # Errors
    /// [`Error::Recipe`] if some are not finite.
    pub(crate) fn centred(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut mean = vec![0.0; self.dimension];
        for row in self.values.chunks_exact(self.dimension) {
            mean.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        let n = self.count() as f64;
        mean.iter_mut().for_each(|value| *value /= n);
        self.check_finite()?;
        let rows = self.values.chunks_exact(self.dimension);
        let centred =
            rows.flat_map(|row| row.iter().zip(&mean).map(|(&value, mean)| f64::from(value) - mean)).collect();
        Ok((mean, centred))
    }

    /// That all are numbers.
    ///
    /// # Errors
    /// [`Error::Recipe`] if not.
    pub(crate) fn check_finite(&self) -> Result<()> {
        if self.values.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        let message = format!("features of {} are not finite, so no distance is defined", self.origin);
        Err(Error::Recipe(format!("{message}; do the extractor's weights hold NaN?")))
    }
}

/// Runs images through an extractor, a batch at a time, and hands their features to `take` in order. Progress counts
/// images. The bits of a feature depend on its image alone.
///
/// # Errors
/// Those of the images and of the extractor; [`Error::Interrupted`] on request.
pub fn extract(
    extractor: &dyn Extractor,
    batches: impl Iterator<Item = Result<Vec<Image>>>,
    control: Control<'_>,
    mut take: impl FnMut(&[f32], usize),
) -> Result<()> {
    let mut dimension = None;
    // Parts of a batch, so that all threads have something to do, but a run can be watched and stopped between them.
    let part = 4 * rayon::current_num_threads();
    for batch in batches {
        for images in batch?.chunks(part) {
            control.check()?;
            let Some(first) = images.first() else { continue };
            let rows = extractor.features(images)?;
            let here = rows.len() / images.len();
            if *dimension.get_or_insert(here) != here {
                return Err(Error::Recipe(format!("{} is of another size than the images before it", first.origin)));
            }
            check_dimension(here, &extractor.name())?;
            take(&rows, here);
            (control.progress)(images.len() as u64);
        }
    }
    Ok(())
}

/// The features of images that are in memory, or come from anywhere: nothing is written to the disk.
///
/// # Errors
/// As [`extract`]; [`Error::Recipe`] if there are no images.
pub fn features(
    extractor: &dyn Extractor,
    batches: impl Iterator<Item = Result<Vec<Image>>>,
    origin: &str,
    control: Control<'_>,
) -> Result<Features> {
    let (mut values, mut dimension) = (Vec::new(), 0);
    extract(extractor, batches, control, |rows, width| {
        dimension = width;
        values.extend_from_slice(rows);
    })?;
    if values.is_empty() {
        return Err(Error::Recipe(format!("{origin} has no images")));
    }
    Ok(Features { origin: origin.to_owned(), dimension, extractor: Some(extractor.id()), values })
}

/// Mean and covariance of the features of images, in memory that does not grow with their number.
///
/// # Errors
/// As [`features`]; [`Error::Recipe`] if there are fewer than two images.
pub fn statistics(
    extractor: &dyn Extractor,
    batches: impl Iterator<Item = Result<Vec<Image>>>,
    origin: &str,
    control: Control<'_>,
) -> Result<Statistics> {
    let mut accumulator = None;
    extract(extractor, batches, control, |rows, width| {
        accumulator.get_or_insert_with(|| Accumulator::new(width)).push(rows);
    })?;
    let accumulator = accumulator.ok_or_else(|| Error::Recipe(format!("{origin} has no images")))?;
    let mut statistics = accumulator.finish(origin)?;
    statistics.extractor = Some(extractor.id());
    Ok(statistics)
}
