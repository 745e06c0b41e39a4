//! The table of formats. A new one is a crate under `plugins/` and a line here.

use super::file::DataFile;
use crate::error::{Error, Result};
use ckptmerge_format::{DType, Data, Format, FormatError, HEAD, Index, Source};
use ckptmerge_format_gguf::Gguf;
use ckptmerge_format_numpy::{Npy, Npz};
use ckptmerge_format_pytorch::PyTorch;
use ckptmerge_format_safetensors::Safetensors;
use std::path::Path;

/// Every format that is built in, most specific first.
pub static FORMATS: &[&dyn Format] = &[&Safetensors, &Gguf, &Npz, &PyTorch, &Npy];

/// The first bytes of a file, by which formats recognise it.
fn head(file: &DataFile) -> Result<Vec<u8>> {
    let mut head = vec![0; HEAD.min(file.length() as usize)];
    file.read_at(0, &mut head).map_err(|source| Error::Format { path: file.path().to_owned(), source })?;
    Ok(head)
}

/// The format that somebody says an open file is in, unless its content tells of another.
///
/// # Errors
/// [`Error::Model`] naming the other.
pub(super) fn expect(file: &DataFile, format: &'static dyn Format) -> Result<&'static dyn Format> {
    let head = head(file)?;
    let recognises = |format: &&&'static dyn Format| format.recognises(&head, file.length());
    match FORMATS.iter().find(recognises) {
        Some(other) if !format.recognises(&head, file.length()) => {
            Err(Error::model(file.path(), format!("is in the format {}, not {}", other.id(), format.id())))
        }
        _ => Ok(format),
    }
}

/// A byte of deflated data stands for at most this many: runs of 258 bytes take two bits.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// The format of an open file, told by its content.
///
/// # Errors
/// [`Error::Model`] if no format recognises it.
pub(super) fn detect(file: &DataFile) -> Result<&'static dyn Format> {
    let head = &head(file)?[..];
    FORMATS.iter().find(|format| format.recognises(head, file.length())).copied().ok_or_else(|| {
        let what = match head {
            [] => "the file is empty".to_owned(),
            [b'P', b'K', 3, 4, ..] => "this zip file is neither of PyTorch nor of NumPy".to_owned(),
            _ if head.starts_with(b"version https://git-lfs") => {
                "this is a Git LFS pointer and not the file it stands for: fetch it with `git lfs pull`".to_owned()
            }
            _ if head.trim_ascii_start().starts_with(b"<") => {
                "this is a web page, as a download that was refused leaves".to_owned()
            }
            _ => "its content is of no known format".to_owned(),
        };
        let known: Vec<_> = FORMATS.iter().map(|format| format.id()).collect();
        Error::model(file.path(), format!("{what}; known formats: {}", known.join(", ")))
    })
}

/// The tensors of an open file, every range checked against its length.
///
/// # Errors
/// [`Error::Format`] as the format says, or if it names bytes that are not there.
pub(super) fn index(format: &dyn Format, file: &DataFile, assume: Option<DType>) -> Result<Index> {
    let error = |source| Error::Format { path: file.path().to_owned(), source };
    let index = format.index_assuming(file, assume).map_err(error)?;
    let mut names = std::collections::HashSet::with_capacity(index.tensors.len());
    for tensor in &index.tensors {
        let wrong = |message: &str| Err(error(FormatError::corrupt(message).at(&tensor.name)));
        if !names.insert(tensor.name.as_str()) {
            return wrong("the name stands twice in the file");
        }
        let Some(size) = tensor.elements().and_then(|elements| tensor.dtype.size_of(elements)) else {
            return wrong("its size overflows");
        };
        let extent = match &tensor.data {
            Data::Dense(extent) if extent.length != size => return wrong("its bytes do not match its type and shape"),
            Data::Inline(bytes) if bytes.len() as u64 != size => {
                return wrong("its bytes do not match its type and shape");
            }
            Data::Deflated { extent, skip }
                if size.saturating_add(*skip) > extent.length.saturating_mul(MAX_DEFLATE_RATIO) =>
            {
                return wrong("it claims more than its compressed bytes can hold");
            }
            Data::Dense(extent) | Data::Deflated { extent, .. } => *extent,
            _ => continue,
        };
        if extent.offset.checked_add(extent.length).is_none_or(|end| end > file.length()) {
            return wrong("its bytes reach past the end of the file");
        }
    }
    Ok(index)
}

/// The format that `path`'s ending names for writing.
#[must_use]
pub fn by_extension(path: &Path) -> Option<&'static dyn Format> {
    let ending = path.extension()?.to_str()?;
    FORMATS.iter().find(|format| format.extensions().iter().any(|known| known.eq_ignore_ascii_case(ending))).copied()
}

/// The format of that name.
///
/// # Errors
/// [`Error::Unknown`] with the nearest name.
pub fn format(id: &str) -> Result<&'static dyn Format> {
    let found = FORMATS.iter().find(|format| format.id().eq_ignore_ascii_case(id)).copied();
    found.ok_or_else(|| Error::unknown("format", id, FORMATS.iter().map(|format| format.id())))
}
