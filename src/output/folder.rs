//! A folder that appears whole.

use super::{StagedFile, check_space, parent, remove, remove_abandoned, resolve, sync_folder, temp_name};
use crate::error::{Error, Result};
use crate::os;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// A folder that is being filled and is not yet there.
#[derive(Debug)]
pub struct StagedFolder {
    /// Held for its lock: see the module above.
    _lock: File,
    temp: PathBuf,
    target: PathBuf,
}

impl StagedFolder {
    /// Begins a folder that is to appear as `target`, to hold about `length` bytes.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`], or [`Error::Output`] if `target` is a file.
    pub fn create(target: &Path, length: u64) -> Result<Self> {
        // Without a slash at its end, which hides what a path is.
        let target = resolve(&target.components().collect::<PathBuf>())?;
        if target.exists() && !target.is_dir() {
            return Err(Error::output(
                &target,
                "this is a file, but the output is a folder; remove it or name another",
            ));
        }
        if std::env::current_dir().is_ok_and(|current| current.starts_with(&target)) {
            return Err(Error::output(
                &target,
                "this is the folder you are in, which cannot be replaced; name another",
            ));
        }
        if target.file_name().is_none() {
            return Err(Error::output(&target, "this cannot be an output folder; name a new one"));
        }
        remove_abandoned(parent(&target), &target);
        check_space(parent(&target), &target, length)?;
        let temp = temp_name(&target);
        Ok(Self { _lock: create_locked(&temp)?, temp, target })
    }

    /// Begins a file of `length` bytes in the folder.
    ///
    /// # Errors
    /// As [`StagedFile::create`].
    pub fn file(&self, relative: &Path, length: u64) -> Result<StagedFile> {
        StagedFile::begin(self.path(relative)?, length)
    }

    /// Copies a small file into the folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn copy(&self, source: &Path, relative: &Path) -> Result<()> {
        let to = self.path(relative)?;
        std::fs::copy(source, &to).map(drop).map_err(Error::io("copy", source))
    }

    /// Writes a small file into the folder.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, relative: &Path, bytes: &[u8]) -> Result<()> {
        let to = self.path(relative)?;
        std::fs::write(&to, bytes).map_err(Error::io("write", &to))
    }

    /// The place of a file in the unfinished folder, with its own folder made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn path(&self, relative: &Path) -> Result<PathBuf> {
        let path = self.temp.join(relative);
        let folder = parent(&path);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(path)
    }

    /// Puts the folder in its place, where an older one is replaced whole.
    ///
    /// # Errors
    /// [`Error::Io`]; the old folder, if there was one, is then still there.
    pub fn commit(self, sync: bool) -> Result<()> {
        if sync {
            sync_tree(&self.temp)?;
        }
        if self.target.exists() {
            // In one step where the system has one. Else a killed run can leave the old folder under a temporary
            // name, but never half of either.
            if os::exchange(&self.temp, &self.target).is_err() {
                let aside = self.temp.with_extension("old");
                std::fs::rename(&self.target, &aside).map_err(Error::io("put aside", &self.target))?;
                if let Err(error) = std::fs::rename(&self.temp, &self.target) {
                    let _ = std::fs::rename(&aside, &self.target);
                    return Err(Error::io("put in place", &self.target)(error));
                }
                remove(&aside);
            }
        } else {
            std::fs::rename(&self.temp, &self.target).map_err(Error::io("put in place", &self.target))?;
        }
        // What is now under the temporary name is the old folder, which `drop` removes.
        if sync { sync_folder(parent(&self.target)) } else { Ok(()) }
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        remove(&self.temp);
    }
}

/// Makes a folder that did not exist, locked for as long as the handle lives.
fn create_locked(path: &Path) -> Result<File> {
    let mut tries = 100;
    loop {
        std::fs::create_dir(path).map_err(Error::io("create", path))?;
        let lock = File::open(path).map_err(Error::io("open", path))?;
        // Before it was locked, another run's cleaning may have taken it for abandoned. A file system without locks
        // loses only the cleaning up after killed runs.
        let is_taken = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
        while is_taken && path.exists() && tries > 0 {
            tries -= 1;
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        if path.exists() {
            return Ok(lock);
        }
    }
}

/// Writes every file and folder below to the disk.
fn sync_tree(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    for entry in entries {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("write to disk", &path))?;
        }
    }
    sync_folder(folder)
}
