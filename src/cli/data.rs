//! `--data` of commands that show networks images.

use super::Common;
use super::report::check_kept;
use super::sample::check_size;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::diffusion::unet::Config;
use crate::error::Error;
use crate::images::{Set, instead_of_images};
use crate::train::{Crop, Data};
use clap::Args;
use std::path::{Path, PathBuf};

/// Images that networks are shown.
#[derive(Args)]
pub(super) struct DataOption {
    /// The images: a folder, or an array of them in .npy, .npz or any other format
    #[arg(long, value_name = "IMAGES")]
    data: PathBuf,
}

impl DataOption {
    /// Opens them, which none of the outputs is.
    pub(super) fn open(&self, outputs: &[Option<&Path>], common: &Common) -> Result<Set, Error> {
        check_kept(outputs, &[Some(&self.data)])?;
        images_at(&self.data, common)
    }
}

/// The images of a folder or an array.
pub(super) fn images_at(path: &Path, common: &Common) -> Result<Set, Error> {
    if path.is_dir() {
        return Set::of_folder(path);
    }
    let checkpoint = Checkpoint::open_with(path, &OpenOptions { select: None, ..common.open() })?;
    let Some(name) = Set::array_in(&checkpoint)?.map(str::to_owned) else {
        let instead = instead_of_images(&checkpoint);
        let wanted = "those are N×height×width×channels bytes (U8) of 1 or 3 channels, N×height×width of grey images, or a folder of image files";
        return Err(Error::model(path, format!("holds no images: {wanted}; {instead}")));
    };
    Set::of_array(checkpoint, &name)
}

/// Images as a network takes them: of the size that was asked for, or that it was trained on.
pub(super) fn prepared(
    set: Set,
    config: &Config,
    size: Option<(usize, usize)>,
    crop: Crop,
    flip: bool,
) -> Result<Data, Error> {
    let size = size.or(config.sample_size).ok_or_else(|| {
        Error::Recipe("the network's configuration does not say how large its images are: give --size".to_owned())
    })?;
    check_size(size, config)?;
    if config.in_channels != config.out_channels || !matches!(config.in_channels, 1 | 3) {
        let (inner, outer) = (config.in_channels, config.out_channels);
        let message = format!("the network is from {inner} to {outer} channels; images have 1 or 3, and noise as many");
        return Err(Error::Recipe(message));
    }
    Ok(Data::new(set, config.in_channels, size, crop, flip))
}
