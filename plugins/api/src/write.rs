//! Writing: the layout a format makes for new tensors.

use crate::DType;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name.
    pub name: String,
    /// The type of the elements.
    pub dtype: DType,
    /// Elements along each dimension, outermost first.
    pub shape: Vec<u64>,
    /// The tensor this one is tied to, if it has no elements of its own.
    pub alias_of: Option<String>,
}

/// Bytes of a file that are known before any tensor data is: headers, tables, padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where they go.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Where everything goes in a new file.
///
/// A format whose tables hold digests of the data will add the digests it wants here and receive them in a second
/// call; the host writes the data in one pass either way.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WritePlan {
    /// The length of the finished file.
    pub length: u64,
    /// Headers and the like.
    pub segments: Vec<Segment>,
    /// For each tensor, in the order given, where its elements go; `None` for one that is tied to another.
    pub offsets: Vec<Option<u64>>,
}

impl WritePlan {
    /// A plan; see the fields.
    #[must_use]
    pub fn new(length: u64, segments: Vec<Segment>, offsets: Vec<Option<u64>>) -> Self {
        Self { length, segments, offsets }
    }
}
