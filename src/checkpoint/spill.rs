//! Elements that are nowhere in the file as they are: compressed, or decoded by the format.
//!
//! They are written once to a temporary file that has no name, and read from there like any other. A file can claim a
//! thousand times its length, so nothing is written unless there is room for all that it claims.

use super::file::{DataFile, IoMode};
use crate::error::{Bytes, Error, Result};
use crate::os;
use ckptmerge_format::{Data, Extent, FormatError, Index, Reader};
use flate2::read::DeflateDecoder;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The temporary file of one input file.
#[derive(Debug)]
pub(super) struct Spill {
    writer: BufWriter<File>,
    length: u64,
}

impl Spill {
    /// A file with room for what `index`, which is of the file `path`, has for it.
    pub(super) fn new(path: &Path, index: &Index) -> Result<Self> {
        let spilled = index.tensors.iter().filter(|info| matches!(info.data, Data::Deflated { .. } | Data::Inline(_)));
        let sizes = spilled.map(|info| info.elements().and_then(|elements| info.dtype.size_of(elements)));
        let needed = sizes.fold(0u64, |sum, size| sum.saturating_add(size.unwrap_or(u64::MAX)));
        let folder = std::env::temp_dir();
        match os::free_space(&folder) {
            Some(free) if free < needed => {
                let (needed, free, folder) = (Bytes(needed), Bytes(free), folder.display());
                let message =
                    format!("takes {needed} unpacked, but only {free} are free in {folder}, where it would be");
                return Err(Error::model(path, format!("{message}; set TMPDIR to a folder with more room")));
            }
            _ => {}
        }
        let file = tempfile::tempfile().map_err(Error::io("make a temporary file for", path))?;
        Ok(Self { writer: BufWriter::with_capacity(1 << 20, file), length: 0 })
    }

    /// Adds bytes and says where they are.
    pub(super) fn inline(&mut self, path: &Path, bytes: &[u8]) -> Result<u64> {
        let offset = self.length;
        self.writer.write_all(bytes).map_err(|cause| no_room(path, &cause))?;
        self.length += bytes.len() as u64;
        Ok(offset)
    }

    /// Adds `length` bytes of a compressed stream, after its first `skip`, and says where they are.
    pub(super) fn inflate(&mut self, file: &DataFile, extent: Extent, skip: u64, length: u64) -> Result<u64> {
        let error =
            |message: String| Error::Format { path: file.path().to_owned(), source: FormatError::corrupt(message) };
        let mut reader = Reader::new(file);
        reader.seek(SeekFrom::Start(extent.offset)).map_err(Error::io("read", file.path()))?;
        let mut decoder = DeflateDecoder::new(BufReader::with_capacity(1 << 18, reader.take(extent.length)));
        let damaged = |cause: std::io::Error| error(format!("the compressed data is damaged: {cause}"));
        let skipped = std::io::copy(&mut decoder.by_ref().take(skip), &mut std::io::sink()).map_err(damaged)?;
        let offset = self.length;
        let mut copied = 0;
        let mut buffer = vec![0; 1 << 16];
        while copied < length {
            let wanted = (length - copied).min(buffer.len() as u64) as usize;
            let part = &mut buffer[..wanted];
            let count = decoder.read(part).map_err(damaged)?;
            if count == 0 {
                break;
            }
            self.writer.write_all(&part[..count]).map_err(|cause| no_room(file.path(), &cause))?;
            copied += count as u64;
        }
        let more = decoder.read(&mut [0]).map_err(damaged)?;
        if skipped != skip || copied != length || more != 0 {
            return Err(error("the compressed data has another length than its header says".to_owned()));
        }
        self.length += length;
        Ok(offset)
    }

    /// The file, for reading. Errors name the input it was made from.
    pub(super) fn finish(self, path: &Path, mode: IoMode) -> Result<DataFile> {
        let file = self.writer.into_inner().map_err(|error| no_room(path, error.error()))?;
        DataFile::of(file, path, mode)
    }
}

/// That the temporary file could not be written, which is no fault of the file that is unpacked.
fn no_room(path: &Path, cause: &std::io::Error) -> Error {
    let folder = std::env::temp_dir();
    let remedy = "make room there, set TMPDIR to another folder, or raise the limit on file sizes (ulimit -f)";
    Error::model(path, format!("cannot be unpacked to a temporary file in {}: {cause}; {remedy}", folder.display()))
}
