//! Arrays in memory to a file that appears whole.

use super::StagedFile;
use crate::dtype::DType;
use crate::error::{Error, Result};
use ckptmerge_format::{Format, FormatError, Metadata, TensorSpec};
use ckptmerge_format_numpy::Npz;
use std::path::Path;

/// An array to be written.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a> {
    /// The name, in an archive without `.npy`.
    pub name: &'a str,
    /// The type of the elements.
    pub dtype: DType,
    /// Elements along each dimension, outermost first.
    pub shape: &'a [u64],
    /// The elements, row-major and little-endian.
    pub bytes: &'a [u8],
}

/// Writes arrays, and text beside them, as `numpy.savez` does. NumPy finds the text as an array `__metadata__`.
///
/// # Errors
/// As [`write_arrays`].
pub fn write_npz(path: &Path, arrays: &[Array<'_>], text: &[(&str, String)]) -> Result<()> {
    write_arrays(path, &Npz, arrays, text)
}

/// Writes arrays, and text beside them as metadata, in a format.
///
/// # Errors
/// [`Error::Io`], [`Error::NoSpace`], or [`Error::Format`] for names that the format cannot hold.
pub fn write_arrays(path: &Path, format: &dyn Format, arrays: &[Array<'_>], text: &[(&str, String)]) -> Result<()> {
    let error = |source: FormatError| Error::Format { path: path.to_owned(), source };
    let spec = |array: &Array<'_>| TensorSpec {
        name: array.name.to_owned(),
        dtype: array.dtype,
        shape: array.shape.to_vec(),
        alias_of: None,
    };
    let specs: Vec<TensorSpec> = arrays.iter().map(spec).collect();
    let metadata: Metadata = text.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let plan = format.plan_write(&specs, &metadata).map_err(error)?;
    let file = StagedFile::create(path, plan.length)?;
    let mut checksums = Vec::new();
    for (array, offset) in arrays.iter().zip(&plan.offsets) {
        if plan.wants_crc32 {
            checksums.push(crc32fast::hash(array.bytes));
        }
        file.write_at(offset.unwrap_or_default(), array.bytes)?;
    }
    let last = format.finish_write(&plan, &specs, &metadata, &checksums).map_err(error)?;
    for segment in plan.segments.iter().chain(&last) {
        file.write_at(segment.offset, &segment.bytes)?;
    }
    file.commit(true)
}
