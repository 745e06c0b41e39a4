//! `--data` of commands that show networks images.

use super::Common;
use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::Error;
use crate::images::Set;
use clap::Args;
use std::path::PathBuf;

/// Images that networks are shown.
#[derive(Args)]
pub(super) struct DataOption {
    /// The images: a folder, or an array of them in .npy, .npz or any other format
    #[arg(long, value_name = "IMAGES")]
    data: PathBuf,
}

impl DataOption {
    /// Opens them.
    pub(super) fn open(&self, common: &Common) -> Result<Set, Error> {
        if self.data.is_dir() {
            return Set::of_folder(&self.data);
        }
        let checkpoint = Checkpoint::open_with(&self.data, &OpenOptions { select: None, ..common.open() })?;
        let Some(name) = Set::array_in(&checkpoint)?.map(str::to_owned) else {
            let message = "holds no images: those are N×height×width×channels bytes (U8), or a folder of image files";
            return Err(Error::model(&self.data, message));
        };
        Set::of_array(checkpoint, &name)
    }
}
