//! One file of a checkpoint: its bytes, by map or by `pread`.

use super::fault::Guard;
use super::layout::is_base_name;
use crate::error::{Error, Result};
use crate::os;
use ckptmerge_format::{Fault, FormatError, Source};
use memmap2::{Advice, Mmap, UncheckedAdvice};
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How a file's bytes are fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoMode {
    /// Map local files, `pread` those on network file systems, where faults are slow and a lost server is a crash.
    /// Callers that bound memory use `pread` as well: mapped pages count.
    #[default]
    Auto,
    /// Map always.
    Mmap,
    /// `pread` always.
    Pread,
}

impl IoMode {
    /// The names on the command line.
    pub const NAMES: [(&str, Self); 3] = [("auto", Self::Auto), ("mmap", Self::Mmap), ("pread", Self::Pread)];
}

/// An open file whose content must not change while it is open, and is checked not to have.
#[derive(Debug)]
pub struct DataFile {
    // The guard before the map: fields drop in order, and the guard must not outlive what it guards.
    guard: Option<Guard>,
    map: Option<Mmap>,
    file: File,
    path: PathBuf,
    stamp: Stamp,
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self { length: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl DataFile {
    /// Opens the file for reading.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be opened; [`Error::Model`] if it is not a regular file.
    pub fn open(path: &Path, mode: IoMode) -> Result<Self> {
        // Looked at before it is opened: opening a pipe or a device could wait for ever.
        let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if !kind.is_file() {
            return Err(Error::model(path, "is not a regular file; copy it to one first"));
        }
        Self::of(File::open(path).map_err(Error::io("open", path))?, path, mode)
    }

    /// An open file, which messages call `path`.
    pub(super) fn of(file: File, path: &Path, mode: IoMode) -> Result<Self> {
        let stamp = Stamp::of(&file.metadata().map_err(Error::io("look at", path))?);
        let wants_map = match mode {
            IoMode::Mmap => true,
            IoMode::Pread => false,
            IoMode::Auto => !os::is_network(&file),
        };
        let (guard, map) = if wants_map && stamp.length > 0 { Self::map(&file) } else { (None, None) };
        Ok(Self { guard, map, file, path: path.to_owned(), stamp })
    }

    /// A guarded map; none if the system has no room for it or the guards are used up: `pread` serves as well.
    fn map(file: &File) -> (Option<Guard>, Option<Mmap>) {
        #[expect(unsafe_code, reason = "a map is a promise about the file that only its owner can make")]
        // SAFETY: the map is read-only. That nobody changes the file meanwhile is the caller's risk, as with every
        // map; a change is noticed by `check_unchanged`, and a shrunken file by the guard.
        let Ok(map) = (unsafe { Mmap::map(file) }) else { return (None, None) };
        match Guard::new(map.as_ptr(), map.len()) {
            Some(guard) => (Some(guard), Some(map)),
            None => (None, None),
        }
    }

    /// Where it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The length in bytes when it was opened.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.stamp.length
    }

    /// Whether the bytes come from a map rather than by `pread`.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    /// The bytes of `range`, straight from the map or read into `buffer`.
    ///
    /// What comes from a map is to be trusted only after [`Self::check_fault`] has been asked behind its use.
    ///
    /// # Errors
    /// [`Error::Changed`] if the file no longer has the range; [`Error::Io`] if the system would not read it.
    pub fn read<'a>(&'a self, range: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        let changed = || Error::Changed { path: self.path.clone() };
        if let Some(map) = &self.map {
            return map.get(range.start as usize..range.end as usize).ok_or_else(changed);
        }
        buffer.resize((range.end - range.start) as usize, 0);
        self.file.read_exact_at(buffer, range.start).map_err(|error| self.read_error(error))?;
        Ok(buffer)
    }

    /// Fills `out` from `offset`: as [`Self::read`], where the bytes must be the caller's own.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn copy(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        match &self.map {
            Some(_) => out.copy_from_slice(self.read(offset..offset + out.len() as u64, &mut Vec::new())?),
            None => self.file.read_exact_at(out, offset).map_err(|error| self.read_error(error))?,
        }
        Ok(())
    }

    /// A file that ends too early is one that changed.
    fn read_error(&self, error: std::io::Error) -> Error {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::Changed { path: self.path.clone() },
            _ => Error::io("read", &self.path)(error),
        }
    }

    /// Whether the map has lost pages since it was made. Costs an atomic load.
    ///
    /// # Errors
    /// [`Error::Changed`] if so.
    pub fn check_fault(&self) -> Result<()> {
        match &self.guard {
            Some(guard) if guard.faulted() => Err(Error::Changed { path: self.path.clone() }),
            _ => Ok(()),
        }
    }

    /// Whether the file is as it was when it was opened, as far as its length and modification time tell.
    ///
    /// # Errors
    /// [`Error::Changed`] if not.
    pub fn check_unchanged(&self) -> Result<()> {
        self.check_fault()?;
        let now = Stamp::of(&self.file.metadata().map_err(Error::io("look at", &self.path))?);
        (now == self.stamp).then_some(()).ok_or_else(|| Error::Changed { path: self.path.clone() })
    }

    /// Starts reading `range` into the page cache, without waiting.
    pub fn will_need(&self, range: Range<u64>) {
        let range = range.start..range.end.min(self.stamp.length);
        // Advice may fail; then the read itself waits, which is only slower.
        match &self.map {
            Some(map) if !range.is_empty() => {
                drop(map.advise_range(Advice::WillNeed, range.start as usize, (range.end - range.start) as usize));
            }
            _ => os::will_need(&self.file, range),
        }
    }

    /// Maps the pages of `range` that are in memory in one call, which is cheaper than a fault for every few of them.
    pub fn populate(&self, range: Range<u64>) {
        if let Some(map) = &self.map {
            // Where it fails, for an old kernel or a file that shrank, each page faults on its own.
            #[cfg(target_os = "linux")]
            drop(map.advise_range(Advice::PopulateRead, range.start as usize, (range.end - range.start) as usize));
            #[cfg(not(target_os = "linux"))]
            let _ = (map, range);
        }
    }

    /// Lets go of the mapped pages that lie wholly in `range`: they leave this process, not the page cache.
    pub fn let_go(&self, range: Range<u64>) {
        let page = rustix::param::page_size() as u64;
        let (start, end) = (range.start.next_multiple_of(page), range.end.min(self.stamp.length) / page * page);
        if let Some(map) = &self.map
            && start < end
        {
            #[expect(unsafe_code, reason = "memmap2 calls DontNeed unsafe because it loses changes of private maps")]
            // SAFETY: the map is shared and read-only, so a page that is let go is read from the file again.
            let result = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, start as usize, (end - start) as usize)
            };
            drop(result);
        }
    }

    /// The share of the file that is in the page cache, from a few probes; 1 for files that are not mapped.
    #[must_use]
    pub fn resident(&self) -> f64 {
        self.map.as_ref().map_or(1.0, |map| os::resident(map))
    }
}

impl Source for DataFile {
    fn len(&self) -> u64 {
        self.stamp.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            FormatError::new(Fault::Read, format!("cannot read {} bytes at {offset}: {error}", buffer.len()))
        })
    }

    fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    fn sibling(&self, name: &str) -> Result<Box<dyn Source>, FormatError> {
        let read = |message: String| FormatError::new(Fault::Read, message);
        if !is_base_name(name) {
            return Err(read(format!("{name:?} is no plain file name; not followed")));
        }
        let file = Self::open(&self.path.with_file_name(name), IoMode::Pread);
        file.map(|file| Box::new(file) as Box<dyn Source>).map_err(|error| read(error.to_string()))
    }
}
