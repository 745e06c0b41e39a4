//! Small files that are read whole: configurations, tokenizers, recipes, rules.

use crate::error::{Bytes, Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// All bytes of a regular file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Io`], or [`Error::Model`] if the file is not a regular one or is longer.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // Looked at before it is opened: opening a pipe or a device could wait for ever.
    let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !kind.is_file() {
        return Err(Error::model(path, "is not a regular file; copy it to one first"));
    }
    let too_long = |size: u64| {
        let (size, limit) = (Bytes(size), Bytes(limit));
        Err(Error::model(path, format!("has {size}, more than the {limit} that are read of such a file")))
    };
    if kind.len() > limit {
        return too_long(kind.len());
    }
    let mut bytes = Vec::with_capacity(kind.len() as usize);
    let file = File::open(path).map_err(Error::io("open", path))?;
    // Files of `/proc` say that they are empty, and any file can grow.
    let length = file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if length as u64 > limit { too_long(length as u64) } else { Ok(bytes) }
}

/// As [`read_small`], of text.
///
/// # Errors
/// As [`read_small`]; [`Error::Model`] if it is not UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    let wrong = |error: std::string::FromUtf8Error| Error::model(path, format!("is not UTF-8 text: {error}"));
    String::from_utf8(read_small(path, limit)?).map_err(wrong)
}
