//! What a checkpoint format is to `ckptmerge`.
//!
//! A checkpoint file is a table of named tensors over bytes that are already where they are. A format maps a file's
//! bytes to that table ([`Format::index`]) and, for writing, a table to header bytes and offsets
//! ([`Format::plan_write`]). Both are pure functions: a format never opens a file, never moves tensor data and never
//! trusts a length it has read. The host maps the file, checks every range against it once more, and moves the data.
//!
//! A new format is a crate that implements [`Format`] and one line in the host's `FORMATS` table.

mod dtype;
mod error;
mod index;
mod reader;
mod write;
mod zip;

pub use dtype::{DType, Kind};
pub use error::{Fault, FormatError, printable};
pub use index::{Data, Extent, Index, Metadata, Piece, Pieces, Source, Subtree, TensorInfo};
pub use reader::Reader;
pub use write::{Segment, Shard, TensorSpec, WritePlan};
pub use zip::{ZipReader, check_zip_header, zip_directory};

/// A checkpoint format: how to find the tensors in a file's bytes, and how to lay out new ones.
pub trait Format: Sync {
    /// The name in listings and on the command line, such as `safetensors`.
    fn id(&self) -> &'static str;

    /// One line for people: what the format is and where it comes from.
    fn about(&self) -> &'static str;

    /// File name endings that mean this format *when writing*. Reading goes by content alone.
    fn extensions(&self) -> &'static [&'static str];

    /// What libraries call a folder's weights in this format: stem and ending of the file name.
    fn name_in_folder(&self) -> (&'static str, &'static str) {
        ("model", self.extensions()[0])
    }

    /// Whether a file of `len` bytes that begins with `head` is of this format.
    ///
    /// Cheap, and free of side effects: `head` is the first [`HEAD`] bytes, or the whole file if it is shorter.
    fn recognises(&self, head: &[u8], len: u64) -> bool;

    /// The table of tensors in `source`.
    ///
    /// # Errors
    /// [`FormatError`] if the file breaks the format's rules, exceeds its limits, or uses a part that is not supported.
    fn index(&self, source: &dyn Source) -> Result<Index, FormatError>;

    /// As [`Format::index`], told what the file does not say. Formats that leave nothing unsaid ignore it.
    ///
    /// # Errors
    /// As [`Format::index`].
    fn index_assuming(&self, source: &dyn Source, _assume: Option<DType>) -> Result<Index, FormatError> {
        self.index(source)
    }

    /// Whether one tensor's name can be tied to another's elements when writing. Else each has its own.
    fn can_tie(&self) -> bool {
        false
    }

    /// Whether this format has a place for elements of the type when writing.
    fn can_store(&self, dtype: DType) -> bool;

    /// What a file with elements of the type does not say of them, so that its readers have to be told.
    fn leaves_unsaid(&self, _dtype: DType) -> Option<String> {
        None
    }

    /// Where each of `tensors` goes in a new file, and the bytes around them.
    ///
    /// # Errors
    /// [`FormatError`] if the format has no way to store one of the names, types or shapes.
    fn plan_write(&self, tensors: &[TensorSpec], metadata: &Metadata) -> Result<WritePlan, FormatError>;

    /// Whether the files of a model in several say themselves which of them they are, so that no index stands beside them.
    fn numbers_shards(&self) -> bool {
        false
    }

    /// As [`Format::plan_write`], for one of several files.
    ///
    /// # Errors
    /// As [`Format::plan_write`].
    fn plan_shard(&self, tensors: &[TensorSpec], metadata: &Metadata, _: Shard) -> Result<WritePlan, FormatError> {
        self.plan_write(tensors, metadata)
    }

    /// The segments that hold the CRC-32 of each tensor's bytes, for a plan that [wants](WritePlan::wants_crc32) them.
    ///
    /// `tensors` and `metadata` are those of the plan; `crc32` has a value for each tensor, 0 for tied ones.
    ///
    /// # Errors
    /// As [`Format::plan_write`].
    fn finish_write(
        &self,
        _plan: &WritePlan,
        _tensors: &[TensorSpec],
        _metadata: &Metadata,
        _crc32: &[u32],
    ) -> Result<Vec<Segment>, FormatError> {
        Ok(Vec::new())
    }
}

/// How many of a file's first bytes [`Format::recognises`] is shown.
pub const HEAD: usize = 64;
