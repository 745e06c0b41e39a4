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

    /// What the file is called in its folder, for formats that spread a model over several and have to know which of
    /// them this is; none if it is not a file of a folder.
    fn name(&self) -> Option<&str> {
        None
    }

    /// Another file of the same folder, for formats that spread a model over several. `name` is a plain file name; what
    /// is indexed in the file is named in [`Index::files`].
    ///
    /// # Errors
    /// [`Fault::Read`](crate::Fault::Read) if there is none, or this source is not a file of a folder.
    fn sibling(&self, name: &str) -> Result<Box<dyn Source>, FormatError> {
        Err(FormatError::new(crate::Fault::Read, format!("the file {name} beside it is missing")))
    }
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
/// The host matches on this in one place (`checkpoint`), which says how such elements are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Data {
    /// One run of elements in row-major order. It may start at any byte.
    Dense(Extent),
    /// The elements of another tensor of the same checkpoint: the two are tied.
    Alias(String),
    /// Elements gathered from boxes: views with strides, shards of a distributed run, flat buckets of an optimizer.
    Pieces(Pieces),
    /// Elements in row-major order, compressed by the deflate algorithm (RFC 1951).
    Deflated {
        /// The compressed bytes.
        extent: Extent,
        /// How many decompressed bytes come before the first element.
        skip: u64,
    },
    /// Elements in row-major, little-endian order that are not in the file as such, such as decoded integers.
    Inline(Vec<u8>),
}

/// Boxes that together cover every element of a tensor exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// The shape in which the boxes are placed: the tensor's own, or another of as many elements, such as one
    /// dimension for flat pieces. Elements are numbered in row-major order in both.
    pub grid: Vec<u64>,
    /// The boxes.
    pub boxes: Vec<Piece>,
}

/// A box of elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which file it is in: an index into [`Index::files`]. 0 is the file that was indexed.
    pub file: usize,
    /// Where in that file its first element is, in bytes.
    pub offset: u64,
    /// Where in the grid its first element goes.
    pub origin: Vec<u64>,
    /// Its elements along each dimension of the grid.
    pub shape: Vec<u64>,
    /// How many elements of the file one step along each dimension is. 0 repeats elements.
    pub strides: Vec<u64>,
}

impl Pieces {
    /// A view with strides, in elements, of the file that is indexed.
    #[must_use]
    pub fn strided(offset: u64, shape: &[u64], strides: &[u64]) -> Self {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        let origin = vec![0; shape.len()];
        Self { grid: shape.clone(), boxes: vec![Piece { file: 0, offset, origin, shape, strides }] }
    }
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
    /// Whether each element's bytes come most significant first. Not for [`Data::Inline`].
    pub big_endian: bool,
}

impl TensorInfo {
    /// A little-endian tensor.
    #[must_use]
    pub fn new(name: impl Into<String>, dtype: DType, shape: Vec<u64>, data: Data) -> Self {
        Self { name: name.into(), dtype, shape, data, big_endian: false }
    }

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
    /// Names of further files in the same folder that [`Piece`]s lie in, from number 1 on.
    pub files: Vec<String>,
    /// Sets of tensors of which each could be the model, where the file holds more than a model: a training
    /// checkpoint's weights, their moving average, an optimizer's state. Empty if all tensors are the model.
    pub subtrees: Vec<Subtree>,
    /// What is odd about the file without being wrong.
    pub warnings: Vec<String>,
}

/// A set of tensors with a common prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// What `--select` calls it, such as `state_dict` or `ema`.
    pub name: String,
    /// What the names of its tensors begin with, and lose when it is selected.
    pub prefix: String,
    /// Whether it is taken without being asked for. At most one is.
    pub is_default: bool,
}
