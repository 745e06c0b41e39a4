//! Images from a folder of files, or from an array of bytes in any format that holds tensors.
//!
//! Of a folder its own files are read, sorted by name, not those of folders in it, as pytorch-fid does. Arrays are
//! N×height×width×channels, or N×height×width of grey images; in an archive of several the one that is so, `arr_0`
//! before others, as `numpy.savez` and ADM's samplers name it.
//!
//! All formats decode to the samples that Pillow gives, but JPEG, of which the standard leaves the last bits to decoders: there
//! single samples differ by up to 6 of 255, the mean by less than 0.4. Sets that are compared should be decoded by one program.

use super::Image;
use crate::checkpoint::{Checkpoint, DataFile, Tensor, read_small};
use crate::dtype::DType;
use crate::error::{Error, Result};
use image::{DynamicImage, ImageFormat, ImageReader};
use rayon::prelude::*;
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Endings of files that are images, in any case, with how they are decoded.
pub const ENDINGS: [(&str, ImageFormat); 5] = [
    ("png", ImageFormat::Png),
    ("jpg", ImageFormat::Jpeg),
    ("jpeg", ImageFormat::Jpeg),
    ("webp", ImageFormat::WebP),
    ("bmp", ImageFormat::Bmp),
];
/// Endings of images that pytorch-fid reads and this does not.
const FOREIGN: [&str; 5] = ["pgm", "ppm", "tif", "tiff", "gif"];
/// The longest image file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 30;

/// Images that are read as they are needed, and may differ in size.
#[derive(Debug)]
pub struct Set {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Files(Vec<PathBuf>),
    Array { checkpoint: Box<Checkpoint>, index: usize, shape: [usize; 4] },
}

impl Set {
    /// The images of a folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Model`] if there is none in it, or one in a format that is not read.
    pub fn of_folder(path: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(path).map_err(Error::io("list", path))?;
        let mut files = Vec::new();
        let mut folders = 0;
        for entry in entries {
            let file = entry.map_err(Error::io("list", path))?.path();
            // Hidden files are not pictures: `._NAME.jpg` is what macOS keeps beside one.
            if file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
                continue;
            }
            let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if FOREIGN.contains(&ending.as_str()) && file.is_file() {
                let known = ENDINGS.map(|(ending, _)| ending).join(", ");
                let message = format!("is an image that is not read; convert it to one of {known}, or move it away");
                return Err(Error::model(&file, message));
            }
            if ENDINGS.iter().any(|(known, _)| *known == ending) {
                if !std::fs::metadata(&file).map_err(Error::io("open", &file))?.is_file() {
                    return Err(Error::model(&file, "is called an image, but is no file; move it away"));
                }
                files.push(file);
            } else if file.is_dir() {
                folders += 1;
            }
        }
        files.sort();
        if files.is_empty() {
            let known = ENDINGS.map(|(ending, _)| ending).join(", ");
            let below = match folders {
                0 => String::new(),
                _ => {
                    "; images in folders below it are not read: name one of these, or put all images in one".to_owned()
                }
            };
            return Err(Error::model(path, format!("this folder holds no images ({known}){below}")));
        }
        Ok(Self { path: path.to_owned(), source: Source::Files(files) })
    }

    /// The images of an array, by the name of its tensor in a checkpoint.
    ///
    /// # Errors
    /// [`Error::Model`] if there is none of that name or it holds no images.
    pub fn of_array(checkpoint: Checkpoint, name: &str) -> Result<Self> {
        let path = checkpoint.layout().root.clone();
        let index = checkpoint.tensors().iter().position(|tensor| tensor.name == name);
        let missing = || Error::model(&path, format!("there is no array `{name}`"));
        let index = index.ok_or_else(missing)?;
        let shape = checkpoint.tensors().get(index).and_then(shape).ok_or_else(|| {
            let wanted = "N×height×width×channels bytes (U8) of 1 or 3 channels, or N×height×width of grey images";
            Error::model(&path, format!("the array `{name}` holds no images: those are {wanted}"))
        })?;
        Ok(Self { path, source: Source::Array { checkpoint: Box::new(checkpoint), index, shape } })
    }

    /// The name of a checkpoint's array of images, if it has one: `arr_0` of several.
    ///
    /// # Errors
    /// [`Error::Model`] if there are several, and none is called so.
    pub fn array_in(checkpoint: &Checkpoint) -> Result<Option<&str>> {
        array_in(checkpoint, "images", |tensor| shape(tensor).is_some())
    }

    /// Where they are from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.source {
            Source::Files(files) => files.len(),
            Source::Array { shape, .. } => shape[0],
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they are known by: the bytes of an array's file, as far as a fingerprint takes them, or the names and sizes of files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn fingerprint(&self) -> Result<String> {
        match &self.source {
            Source::Array { checkpoint, .. } => checkpoint.fingerprint(),
            Source::Files(files) => {
                let mut text = Vec::new();
                for file in files {
                    let length = std::fs::metadata(file).map_err(Error::io("look at", file))?.len();
                    text.extend(file.file_name().unwrap_or_default().as_encoded_bytes());
                    text.extend(length.to_le_bytes());
                }
                Ok(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&text)))
            }
        }
    }

    /// All images in order, so many at a time; those of a batch are decoded on all threads of the current rayon pool.
    ///
    /// # Errors
    /// Each batch: [`Error::Io`], or [`Error::Model`] naming an image that cannot be decoded.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Result<Vec<Image>>> + '_ {
        let size = size.max(1);
        let starts = (0..self.len()).step_by(size);
        starts.map(move |start| self.read(start..self.len().min(start + size)))
    }

    /// An image by its number.
    ///
    /// # Errors
    /// As [`batches`](Self::batches); [`Error::Model`] if there are not so many.
    pub fn image(&self, index: usize) -> Result<Image> {
        let missing = || Error::model(&self.path, format!("has {} images, and none of number {index}", self.len()));
        let range = if index < self.len() { index..index + 1 } else { return Err(missing()) };
        self.read(range)?.pop().ok_or_else(missing)
    }

    fn read(&self, range: Range<usize>) -> Result<Vec<Image>> {
        match &self.source {
            Source::Files(files) => files.get(range).unwrap_or_default().par_iter().map(|file| decode(file)).collect(),
            Source::Array { checkpoint, index, shape: [_, height, width, channels] } => {
                let Some(tensor) = checkpoint.tensors().get(*index) else { return Ok(Vec::new()) };
                let view = checkpoint.view(tensor);
                let stride = height * width * channels;
                let one = |image: usize| {
                    let mut buffer = Vec::new();
                    let bytes = view.read((image * stride) as u64..((image + 1) * stride) as u64, &mut buffer)?;
                    let samples = bytes.to_vec();
                    view.files().try_for_each(DataFile::check_fault)?;
                    Ok(Image {
                        origin: format!("{}, image {image}", self.path.display()),
                        height: *height,
                        width: *width,
                        channels: *channels,
                        samples,
                    })
                };
                range.into_par_iter().map(one).collect()
            }
        }
    }
}

/// What a checkpoint has instead of images, for messages: the array that is most like some, if there is any.
pub(crate) fn instead_of_images(checkpoint: &Checkpoint) -> String {
    let tensors = checkpoint.tensors();
    let like_images = tensors.iter().find(|tensor| matches!(tensor.shape.len(), 3 | 4));
    let Some(tensor) = like_images.or(tensors.first()) else { return "it is empty".to_owned() };
    let shape = tensor.shape.iter().map(u64::to_string).collect::<Vec<_>>().join("×");
    let remedy = match (like_images, tensor.dtype) {
        (Some(_), DType::U8) | (None, _) => "",
        _ => "; convert it to bytes, 0 for black and 255 for white",
    };
    format!("the array `{}` is {} of {shape}{remedy}", tensor.name, tensor.dtype)
}

/// The name of the array of a checkpoint that is what is looked for: the only one, or `arr_0` of several.
///
/// # Errors
/// [`Error::Model`] if there are several, and none is called so; or if it repeats its elements, so that reading it could
/// take any amount of memory.
pub(crate) fn array_in<'a>(
    checkpoint: &'a Checkpoint,
    what: &str,
    is_it: impl Fn(&Tensor) -> bool,
) -> Result<Option<&'a str>> {
    let wrong = |message: String| Err(Error::model(&checkpoint.layout().root, message));
    let found: Vec<&Tensor> = checkpoint.tensors().iter().filter(|tensor| is_it(tensor)).collect();
    let chosen = match found[..] {
        [] => return Ok(None),
        [only] => only,
        [first, second, ..] => match found.iter().find(|tensor| tensor.name == "arr_0") {
            Some(chosen) => chosen,
            None => {
                let several = format!("`{}`, `{}`", first.name, second.name);
                return wrong(format!(
                    "has several arrays of {what} ({several}, …): save one alone, or call it `arr_0`"
                ));
            }
        },
    };
    if chosen.bytes > checkpoint.file_bytes() {
        return wrong(format!("the array `{}` repeats its elements; save it whole", chosen.name));
    }
    Ok(Some(chosen.name.as_str()))
}

/// N, height, width and channels of a tensor that holds images.
fn shape(tensor: &Tensor) -> Option<[usize; 4]> {
    let shape: Vec<usize> = tensor.shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<_>>()?;
    let shape = match shape[..] {
        [n, height, width] => [n, height, width, 1],
        [n, height, width, channels @ (1 | 3)] => [n, height, width, channels],
        _ => return None,
    };
    (tensor.dtype == DType::U8 && !shape.contains(&0)).then_some(shape)
}

/// Decodes a file: grey stays grey, all else becomes RGB; alpha is dropped as Pillow's `convert("RGB")` drops it.
fn decode(path: &Path) -> Result<Image> {
    let bytes = read_small(path, FILE_LIMIT)?;
    let wrong = |message: String| Error::model(path, message);
    let named = |error: &dyn std::fmt::Display| {
        wrong(format!("cannot be decoded as an image: {error}; replace it or move it away"))
    };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| named(&error))?;
    let image = reader.decode().map_err(|error| named(&error))?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (channels, samples) = match image {
        DynamicImage::ImageLuma8(grey) => (1, grey.into_raw()),
        DynamicImage::ImageLumaA8(grey) => {
            (1, grey.into_raw().chunks_exact(2).filter_map(|p| p.first().copied()).collect())
        }
        DynamicImage::ImageRgb8(rgb) => (3, rgb.into_raw()),
        DynamicImage::ImageRgba8(rgb) => {
            (3, rgb.into_raw().chunks_exact(4).flat_map(|pixel| pixel.iter().take(3).copied()).collect())
        }
        _ => {
            return Err(wrong(
                "has more than 8 bits a sample, which libraries reduce in different ways; convert it to 8 bits"
                    .to_owned(),
            ));
        }
    };
    if width == 0 || height == 0 {
        return Err(wrong("is an image without pixels; move it away".to_owned()));
    }
    Ok(Image { origin: path.display().to_string(), height, width, channels, samples })
}
