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

/// Which of a model's files one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its number, from 0.
    pub number: usize,
    /// How many files there are.
    pub count: usize,
    /// How many tensors are in all of them.
    pub tensors: usize,
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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WritePlan {
    /// The length of the finished file.
    pub length: u64,
    /// Headers and the like.
    pub segments: Vec<Segment>,
    /// For each tensor, in the order given, where its elements go; `None` for one that is tied to another.
    pub offsets: Vec<Option<u64>>,
    /// Whether the file holds a CRC-32 of each tensor's bytes. The host then computes them as it writes, and asks
    /// [`Format::finish_write`](crate::Format::finish_write) for the segments that hold them.
    pub wants_crc32: bool,
}

impl WritePlan {
    /// A plan without checksums; see the fields.
    #[must_use]
    pub fn new(length: u64, segments: Vec<Segment>, offsets: Vec<Option<u64>>) -> Self {
        Self { length, segments, offsets, wants_crc32: false }
    }

    /// The same plan, for a file with a CRC-32 of each tensor.
    #[must_use]
    pub fn with_crc32(mut self) -> Self {
        self.wants_crc32 = true;
        self
    }
}
