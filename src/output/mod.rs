//! Output that appears under its name only when it is complete and on the disk.
//!
//! A file or folder is built beside its target as `.NAME.tmp-PID` and takes the target's place in one step. The
//! temporary is locked while its writer lives: what a killed run left behind is unlocked, and the next run removes it.

mod arrays;
mod folder;
mod lock;

pub use arrays::{Array, write_arrays, write_npz};
pub use folder::StagedFolder;
pub use lock::FolderLock;

use crate::error::{Bytes, Error, Result};
use crate::os;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file that is being written and is not yet there.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    temp: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl StagedFile {
    /// Begins a file of `length` bytes that is to appear as `target`, with its blocks set aside.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if it will not fit; [`Error::Io`] if it cannot be made there.
    pub fn create(target: &Path, length: u64) -> Result<Self> {
        let target = resolve(target)?;
        match std::fs::metadata(&target) {
            Ok(kind) if kind.is_dir() => {
                return Err(Error::output(&target, "this is a folder; name a file for the output"));
            }
            Ok(kind) if !kind.is_file() => {
                return Err(Error::output(&target, "this is no regular file and is not replaced; name another"));
            }
            _ => {}
        }
        remove_abandoned(parent(&target), &target);
        Self::begin(target, length)
    }

    /// As [`Self::create`], where nothing can have been left by others.
    fn begin(target: PathBuf, length: u64) -> Result<Self> {
        check_space(parent(&target), &target, length)?;
        let temp = temp_name(&target);
        let file = create_locked(&temp)?;
        let staged = Self { file, temp, target, committed: false };
        staged.allocate(length)?;
        if let Ok(old) = std::fs::metadata(&staged.target) {
            // The new file is as open to others as the old one was. Where that is refused, the default stands.
            let _ = staged.file.set_permissions(old.permissions());
        }
        Ok(staged)
    }

    fn allocate(&self, length: u64) -> Result<()> {
        os::allocate(&self.file, length).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
                path: self.target.clone(),
                needed: Bytes(length),
                available: Bytes(os::free_space(parent(&self.target)).unwrap_or(0)),
            },
            io::ErrorKind::FileTooLarge => {
                Error::output(&self.target, format!("files of {} are not allowed here (see ulimit -f)", Bytes(length)))
            }
            _ => Error::io("set space aside for", &self.target)(error),
        })
    }

    /// Writes `bytes` at `offset`; from any thread.
    ///
    /// # Errors
    /// [`Error::Io`], a full disk included.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(Error::io("write", &self.target))
    }

    /// Starts writing what has been written at `range` to the disk.
    pub fn start_write_back(&self, range: std::ops::Range<u64>) {
        os::start_write_back(&self.file, range);
    }

    /// Puts the file in its place. With `sync` it survives a power failure from here on.
    ///
    /// # Errors
    /// [`Error::Io`]; the old file, if there was one, is then still there.
    pub fn commit(mut self, sync: bool) -> Result<()> {
        if sync {
            self.file.sync_all().map_err(Error::io("write to disk", &self.target))?;
        }
        std::fs::rename(&self.temp, &self.target).map_err(Error::io("put in place", &self.target))?;
        self.committed = true;
        if sync { sync_folder(parent(&self.target)) } else { Ok(()) }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.committed {
            // If even this fails, the next run removes it: the lock goes with the file handle.
            let _ = std::fs::remove_file(&self.temp);
        }
    }
}

/// Where an output really goes: through a link, what it leads to is replaced and the link stays.
fn resolve(target: &Path) -> Result<PathBuf> {
    if let Ok(real) = std::fs::canonicalize(target) {
        return Ok(real);
    }
    if target.is_symlink() {
        return Err(Error::output(target, "this is a link that leads nowhere; remove it or name another"));
    }
    let folder = parent(target);
    if !folder.is_dir() {
        return Err(Error::output(target, format!("the folder {} does not exist; make it first", folder.display())));
    }
    Ok(target.to_owned())
}

/// The folder a path is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temp_prefix(target: &Path) -> OsString {
    /// Bytes of a name to which more can be added within the 255 that file systems allow.
    const LONG: usize = 200;
    let own = target.file_name().unwrap_or_default();
    let mut name = OsString::from(".");
    if own.len() > LONG {
        name.push(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(own.as_encoded_bytes())));
    } else {
        name.push(own);
    }
    name.push(".tmp-");
    name
}

/// Whether a file's name is that of an output that is not whole.
#[cfg(feature = "diffusion")]
pub(crate) fn is_temporary(name: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let Some(end) = name.iter().rposition(|byte| *byte == b'-') else { return false };
    let (stem, pid) = name.split_at(end + 1);
    stem.starts_with(b".") && stem.ends_with(b".tmp-") && !pid.is_empty() && pid.iter().all(u8::is_ascii_digit)
}

fn temp_name(target: &Path) -> PathBuf {
    let mut name = temp_prefix(target);
    name.push(std::process::id().to_string());
    target.with_file_name(name)
}

/// Makes a file that did not exist, locked for as long as the handle lives.
fn create_locked(path: &Path) -> Result<File> {
    loop {
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(Error::io("create", path))?;
        // A file system without locks loses only the cleaning up after killed runs.
        let _ = file.try_lock();
        // Before it was locked, another run's cleaning may have taken it for abandoned.
        if path.exists() {
            return Ok(file);
        }
    }
}

/// Removes temporaries of this target whose writer is gone.
fn remove_abandoned(parent: &Path, target: &Path) {
    let prefix = temp_prefix(target);
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = name
            .as_encoded_bytes()
            .strip_prefix(prefix.as_encoded_bytes())
            .is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit));
        if !is_ours {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {}
            // Unlocked, or on a file system without locks where only the process id can tell.
            Ok(()) => remove(&path),
            Err(TryLockError::Error(_)) => {
                let pid = &name.as_encoded_bytes()[prefix.len()..];
                let alive = std::str::from_utf8(pid).is_ok_and(|pid| Path::new("/proc").join(pid).exists());
                if !alive && Path::new("/proc/self").exists() {
                    remove(&path);
                }
            }
        }
    }
}

/// Removes a temporary; what cannot be removed stays for the next run.
fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}

fn check_space(parent: &Path, target: &Path, needed: u64) -> Result<()> {
    match os::free_space(parent) {
        Some(free) if free < needed => {
            Err(Error::NoSpace { path: target.to_owned(), needed: Bytes(needed), available: Bytes(free) })
        }
        _ => Ok(()),
    }
}

/// Makes the names in a folder survive a power failure.
fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("write to disk", folder))
}
