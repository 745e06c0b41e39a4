//! A window of a file, read from front to back in small blocks: what a pickle is unpickled from.
//!
//! Every length is compared with what is left of the window before anything is allocated for it.

use ckptmerge_format::{FormatError, Source};

/// Bytes that are fetched at once.
const BLOCK: u64 = 1 << 16;

/// A position in a window of a file.
pub(crate) struct Input<'a> {
    source: &'a dyn Source,
    /// Bytes fetched, of which those before `used` are consumed.
    block: Vec<u8>,
    used: usize,
    /// Where in the file the first byte behind `block` is.
    next: u64,
    end: u64,
}

impl<'a> Input<'a> {
    /// Begins at `start` and ends in front of `end`, or of the file's end if that comes first.
    pub(crate) fn new(source: &'a dyn Source, start: u64, end: u64) -> Self {
        Self { source, block: Vec::new(), used: 0, next: start, end: end.min(source.len()) }
    }

    /// Where in the file the next byte is.
    pub(crate) fn position(&self) -> u64 {
        self.next - (self.block.len() - self.used) as u64
    }

    /// Bytes that are left.
    pub(crate) fn left(&self) -> u64 {
        self.end.saturating_sub(self.position())
    }

    /// Checks that `count` bytes follow.
    pub(crate) fn expect(&self, count: u64) -> Result<(), FormatError> {
        let (left, position) = (self.left(), self.position());
        if count > left {
            return Err(FormatError::corrupt(format!(
                "{count} bytes are claimed at byte {position}, but only {left} follow: the file is cut short or damaged"
            )));
        }
        Ok(())
    }

    /// The next byte.
    pub(crate) fn byte(&mut self) -> Result<u8, FormatError> {
        if self.used == self.block.len() {
            self.expect(1)?;
            self.block.resize(self.left().min(BLOCK) as usize, 0);
            self.used = 0;
            self.source.read_at(self.next, &mut self.block)?;
            self.next += self.block.len() as u64;
        }
        self.used += 1;
        Ok(self.block[self.used - 1])
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        self.expect(N as u64)?;
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte()?;
        }
        Ok(array)
    }

    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: u64) -> Result<Vec<u8>, FormatError> {
        self.expect(count)?;
        let mut bytes = Vec::with_capacity(count as usize);
        for _ in 0..count {
            bytes.push(self.byte()?);
        }
        Ok(bytes)
    }

    /// Passes over `count` bytes.
    pub(crate) fn skip(&mut self, count: u64) -> Result<(), FormatError> {
        self.expect(count)?;
        if count <= (self.block.len() - self.used) as u64 {
            self.used += count as usize;
        } else {
            self.next = self.position() + count;
            self.block.clear();
            self.used = 0;
        }
        Ok(())
    }

    /// The bytes in front of the next line feed, which is consumed too.
    pub(crate) fn line(&mut self, limit: usize) -> Result<Vec<u8>, FormatError> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(line),
                _ if line.len() == limit => {
                    return Err(FormatError::corrupt(format!("a line of more than {limit} bytes")));
                }
                byte => line.push(byte),
            }
        }
    }
}
