//! Images to files: a folder of PNGs, one PNG of all, or an array.

use super::{Images, grid};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::output::{Array, StagedFile, StagedFolder, write_npz};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// What a set of images is written as, by the ending of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    Grid,
    Npz,
}

/// What [`write()`] makes of names, for help and errors.
pub const WRITTEN: &str =
    "NAME.png is one picture of all, NAME.npz an array `arr_0`, a name without an ending a folder of PNGs";

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        let Some(ending) = path.extension().filter(|_| !path.is_dir()) else { return Ok(Self::Folder) };
        match ending.to_string_lossy().to_lowercase().as_str() {
            "png" => Ok(Self::Grid),
            "npz" => Ok(Self::Npz),
            _ => Err(Error::Recipe(format!("{}: images are not written so; {WRITTEN}", path.display()))),
        }
    }
}

/// Writes images as the name says: with `.png` the [`grid`] of them, with `.npz` an array `arr_0` of
/// N×height×width×channels bytes as ADM's samplers write it, without an ending a folder of PNGs
/// numbered from `first`. Nothing
/// appears under the name before it is whole.
///
/// # Errors
/// [`Error::Recipe`] for another ending or no images; [`Error::Io`], [`Error::NoSpace`], and [`Error::Output`] if the
/// name is taken by something that must not be replaced.
pub fn write(path: &Path, images: &Images, first: usize) -> Result<()> {
    images.check()?;
    check_target(path, first, images.count)?;
    match Kind::of(path)? {
        Kind::Folder => folder(path, images, first),
        Kind::Grid => {
            let grid = grid(images)?;
            let bytes = png(path, &grid, &grid.samples)?;
            let file = StagedFile::create(path, bytes.len() as u64)?;
            file.write_at(0, &bytes)?;
            file.commit(true)
        }
        Kind::Npz => {
            let shape = [images.count, images.height, images.width, images.channels].map(|n| n as u64);
            let array = Array { name: "arr_0", dtype: DType::U8, shape: &shape, bytes: &images.samples };
            write_npz(path, &[array], &[])
        }
    }
}

/// That images `first..first + count` can be written under this name, to be known before they are made.
///
/// # Errors
/// [`Error::Recipe`] for an ending that says nothing; [`Error::Output`] for a folder that holds other files than
/// images of these numbers, which would be lost.
pub fn check_target(path: &Path, first: usize, count: usize) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::output(path, format!("the folder {} does not exist; make it first", folder.display())));
    }
    let is_folder = Kind::of(path)? == Kind::Folder;
    if path.exists() && (if is_folder { !path.is_dir() } else { !path.is_file() }) {
        let message = if is_folder { "this is not a folder; name another" } else { "this is not a file; name another" };
        return Err(Error::output(path, message));
    }
    if !is_folder || !path.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let number = name.strip_suffix(".png").and_then(|stem| stem.parse::<usize>().ok());
        if !is_file
            || !number.is_some_and(|number| *name == *file_name(number) && (first..first + count).contains(&number))
        {
            let message = format!("this folder holds `{name}`, which would be lost; name a new one");
            return Err(Error::output(path, message));
        }
    }
    Ok(())
}

/// What an image is called in a folder.
fn file_name(number: usize) -> String {
    format!("{number:05}.png")
}

fn folder(path: &Path, images: &Images, first: usize) -> Result<()> {
    let folder = StagedFolder::create(path, images.samples.len() as u64)?;
    images.samples.par_chunks_exact(images.stride()).enumerate().try_for_each(|(index, samples)| {
        folder.write(&PathBuf::from(file_name(first + index)), &png(path, images, samples)?)
    })?;
    folder.commit(true)
}

/// Samples of an image of the set's size as PNG.
fn png(path: &Path, images: &Images, samples: &[u8]) -> Result<Vec<u8>> {
    let colour = if images.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let wrong = |message: String| Error::output(path, message);
    let size =
        |pixels: usize| u32::try_from(pixels).map_err(|_| wrong(format!("{pixels} pixels are too many for a PNG")));
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(samples, size(images.width)?, size(images.height)?, colour)
        .map_err(|error| wrong(format!("the image cannot be encoded: {error}")))?;
    Ok(bytes)
}
