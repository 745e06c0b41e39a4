//! Reading: the table a format makes of a file.

use crate::{DType, FormatError};
use std::collections::BTreeMap;

/// Free-form text pairs that travel with a checkpoint.
pub type Metadata = BTreeMap<String, String>;

/// A file's bytes, as a format sees them.
pub trait Source {
    /// The length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`Fault::Read`](crate::Fault::Read) if the range is not in the file or the system would not read it.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError>;
}

/// A run of bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where the first byte is.
    pub offset: u64,
    /// How many bytes there are.
    pub length: u64,
}

/// Where a tensor's elements are.
///
/// Tensors made of several pieces, strided, compressed or block-quantised become further variants; the host matches
/// on this type in one place (`checkpoint`), which then has to say how such elements are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Data {
    /// One run of little-endian elements in row-major order. It may start at any byte.
    Dense(Extent),
    /// The elements of another tensor of the same checkpoint: the two are tied.
    Alias(String),
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, unique in its file.
    pub name: String,
    /// The type of the elements.
    pub dtype: DType,
    /// Elements along each dimension, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Where the elements are.
    pub data: Data,
}

impl TensorInfo {
    /// The number of elements; `None` if it overflows 64 bits.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))
    }
}

/// What a format found in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The tensors, in the order of their bytes in the file, aliases last.
    pub tensors: Vec<TensorInfo>,
    /// Text that came with them.
    pub metadata: Metadata,
}
