//! What is checked of a zip archive before a library for such archives reads it.
//!
//! A library has to find the end record of any archive, so it searches the whole file for one that fits and believes
//! the number of entries that it says: a file of a terabyte of nothing takes hours, or memory that no machine has.
//! Archives of tensors end with their records, and have nothing between them and the directory. Source: APPNOTE.TXT
//! 6.3.10, sections 4.3.12 to 4.3.16.

use crate::{Fault, FormatError, Reader, Source};
use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// The most entries of an archive. The largest models have some thousands.
const MAX_ENTRIES: u64 = 1 << 20;
/// The longest directory, in bytes.
const MAX_DIRECTORY: u64 = 1 << 27;
/// The fewest bytes of an entry of the directory.
const MIN_ENTRY: u64 = 46;
/// The bytes of an entry's own header, in front of its name.
const HEADER: usize = 30;
/// The bytes of an end record and of the longest comment behind it.
const END: usize = 22;
const MAX_COMMENT: usize = 65_535;
/// The bytes of zip64's end record, as far as it is read, and of what says where that is.
const END_64: usize = 56;
const LOCATOR: usize = 20;
/// What these begin with.
const END_MAGIC: &[u8] = b"PK\x05\x06";
const END_64_MAGIC: &[u8] = b"PK\x06\x06";
const LOCATOR_MAGIC: &[u8] = b"PK\x06\x07";
/// Bytes that are searched at once.
const BLOCK: usize = 1 << 16;

/// Where the directory of an archive begins. Memory for as many entries as are claimed is in proportion to it.
///
/// # Errors
/// [`Fault::Corrupt`] if the end of the file is not that of an archive, [`Fault::Unsupported`] if something stands in
/// front of the archive, [`Fault::Limit`] for more entries than any model has.
pub fn zip_directory(source: &dyn Source) -> Result<u64, FormatError> {
    let cut = |what: &str| FormatError::corrupt(format!("the zip archive is damaged or cut short: {what}"));
    let tail = source.len().min((END + MAX_COMMENT) as u64);
    let base = source.len() - tail;
    let mut bytes = vec![0; tail as usize];
    source.read_at(base, &mut bytes)?;
    let at = bytes.windows(END).rposition(|window| window.starts_with(END_MAGIC));
    let (at, end) = at
        .and_then(|at| Some((at, bytes.get(at..)?.first_chunk::<END>()?)))
        .ok_or_else(|| cut("it has no end record"))?;
    if at + END + usize::from(u16::from_le_bytes([end[20], end[21]])) > bytes.len() {
        return Err(cut("its comment is not all there"));
    }
    let short = |from: usize| u64::from(end[from]) | u64::from(end[from + 1]) << 8;
    let long = |from: usize| short(from) | short(from + 2) << 16;
    let (mut entries, mut length, mut start) = (short(10), long(12), long(16));
    let mut records = base + at as u64;

    // Zip64's two records stand in front of this one, if there are any.
    let mut claimed = records;
    if let Some(position) = records.checked_sub((END_64 + LOCATOR) as u64) {
        let mut both = [0; END_64 + LOCATOR];
        source.read_at(position, &mut both)?;
        let (end, locator) = both.split_at(END_64);
        if locator.starts_with(LOCATOR_MAGIC) {
            let number = |bytes: &[u8], at: usize| {
                (0..8).rev().fold(0, |number, i| number << 8 | bytes.get(at + i).map_or(0, |byte| u64::from(*byte)))
            };
            if !end.starts_with(END_64_MAGIC) {
                return Err(cut("its zip64 end record is not in front of what locates it"));
            }
            (records, claimed) = (position, number(locator, 8));
            (entries, length, start) = (number(end, 24).max(number(end, 32)), number(end, 40), number(end, 48));
        }
    }
    let directory = records.checked_sub(length).ok_or_else(|| cut("its directory is longer than the file"))?;
    if start > directory || claimed > records {
        return Err(cut("its directory is not where it is said to be"));
    }
    if start < directory || claimed < records {
        return Err(FormatError::unsupported(
            "the file holds several archives one behind another, or something else in front of one",
        ));
    }
    if entries > MAX_ENTRIES || length > MAX_DIRECTORY {
        let message = format!(
            "the zip archive claims {entries} entries in {length} bytes; {MAX_ENTRIES} in {MAX_DIRECTORY} are read"
        );
        return Err(FormatError::new(Fault::Limit, message));
    }
    if entries.saturating_mul(MIN_ENTRY) > length {
        return Err(cut(&format!("it claims {entries} entries in {length} bytes")));
    }
    refuse_second_end(source, directory)?;
    Ok(directory)
}

/// Refuses an entry of `length` bytes in the archive whose own header, at `at`, says other than the directory:
/// libraries disagree on what it is.
///
/// # Errors
/// [`Fault::Corrupt`] if they differ.
pub fn check_zip_header(source: &dyn Source, at: u64, name: &[u8], length: u64) -> Result<(), FormatError> {
    let mut header = [0; HEADER];
    source.read_at(at, &mut header)?;
    let mut own = vec![0; usize::from(u16::from_le_bytes([header[26], header[27]]))];
    source.read_at(at + HEADER as u64, &mut own)?;
    // The size is elsewhere if it follows the bytes, or takes 64 bits.
    let size = u32::from_le_bytes([header[18], header[19], header[20], header[21]]);
    let is_elsewhere = header[6] & 8 != 0 || size == u32::MAX;
    if own != name || !(is_elsewhere || u64::from(size) == length) {
        let name = String::from_utf8_lossy(name);
        return Err(FormatError::corrupt(format!("the header of the entry `{name}` is not what the directory says")));
    }
    Ok(())
}

/// Refuses a second zip64 end record behind `start`, which a library may prefer and believe.
fn refuse_second_end(source: &dyn Source, start: u64) -> Result<(), FormatError> {
    let mut found = 0;
    let mut block = vec![0; BLOCK];
    let mut position = start;
    while position < source.len() {
        let bytes = &mut block[..(source.len() - position).min(BLOCK as u64) as usize];
        source.read_at(position, bytes)?;
        found += bytes.windows(END_64_MAGIC.len()).filter(|window| *window == END_64_MAGIC).count();
        // A record that straddles two blocks is found in the second.
        let step = if bytes.len() == BLOCK { BLOCK - (END_64_MAGIC.len() - 1) } else { BLOCK };
        position += step as u64;
    }
    if found > 1 {
        return Err(FormatError::corrupt("the zip archive has two end records"));
    }
    Ok(())
}

/// Reads a [`Source`] for a library for zip archives, at first with zeros in front of the directory.
pub struct ZipReader<'a> {
    reader: Reader<'a>,
    position: u64,
    floor: Rc<Cell<u64>>,
}

impl<'a> ZipReader<'a> {
    /// Begins at the first byte. What stands before `floor` is zeros, and nothing a block before it, until that is 0:
    /// while the library searches.
    #[must_use]
    pub fn new(source: &'a dyn Source, floor: Rc<Cell<u64>>) -> Self {
        Self { reader: Reader::new(source), position: 0, floor }
    }
}

impl Read for ZipReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let hidden = self.floor.get().saturating_sub(self.position);
        if hidden > BLOCK as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = self.reader.read(buffer)?;
        let zeros = count.min(hidden as usize);
        buffer[..zeros].fill(0);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for ZipReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = self.reader.seek(to)?;
        Ok(self.position)
    }
}
