//! A folder that one run at a time writes into.

use crate::error::{Error, Result};
use std::fs::{File, TryLockError};
use std::path::Path;

/// Keeps other runs that ask for it out of a folder, for as long as it lives.
///
/// A file system without locks keeps none out.
#[derive(Debug)]
pub struct FolderLock {
    _lock: File,
}

impl FolderLock {
    /// Of a folder that is there.
    ///
    /// # Errors
    /// [`Error::Output`] naming the folder if another run has it; [`Error::Io`].
    pub fn new(folder: &Path) -> Result<Self> {
        let lock = File::open(folder).map_err(Error::io("open", folder))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(Error::output(folder, "another run writes into this folder: wait for its end, or name another"))
            }
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { _lock: lock }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_runs_at_a_time() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a folder")))?;
        let first = FolderLock::new(folder.path())?;
        let second = FolderLock::new(folder.path()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(second.contains("another run") && second.contains(&folder.path().display().to_string()), "{second}");
        drop(first);
        FolderLock::new(folder.path()).map(drop)
    }
}
