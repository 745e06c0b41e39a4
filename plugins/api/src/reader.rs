//! A [`Source`] as the standard library's readers want it.

use crate::Source;
use std::io::{self, Read, Seek, SeekFrom};

/// Reads a [`Source`] from front to back, or from wherever it is told to.
///
/// Each read is one call of [`Source::read_at`]; wrap it in a `BufReader` for small ones.
pub struct Reader<'a> {
    source: &'a dyn Source,
    position: u64,
}

impl<'a> Reader<'a> {
    /// Begins at the first byte.
    #[must_use]
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, position: 0 }
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.position);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if count == 0 {
            return Ok(0);
        }
        self.source.read_at(self.position, &mut buffer[..count]).map_err(io::Error::other)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(step) => self.position.checked_add_signed(step),
            SeekFrom::End(step) => self.source.len().checked_add_signed(step),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
