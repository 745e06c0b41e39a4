//! The GGUF format of llama.cpp and ggml: typed metadata, a table of tensors, and their data.
//!
//! Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, and the reader and writer of the PyPI package
//! `gguf` 0.19.0. Layout, in little-endian order unless the version shows the file to be big-endian (its low 16 bits
//! are zero then):
//!
//! | part | content |
//! |---|---|
//! | head | `GGUF`, u32 version, u64 number of tensors, u64 number of keys |
//! | each key | string; u32 type of value; value |
//! | each tensor | string, its name; u32 number of dimensions; u64 each, the innermost first; u32 type; u64 offset |
//! | data | at the next multiple of the alignment; offsets count from here and are multiples of it too |
//!
//! A string is a u64 length and as many bytes; an array is a u32 type, a u64 length and as many values. The alignment
//! is the value of `general.alignment`, or 32.
//!
//! *Reading*: versions 2 and 3, in both byte orders; blocks of quantized elements only in little-endian order. A file
//! of a [split](split_files) model is read as what it is, a file with some of the tensors.
//!
//! *Writing*: version 3, little-endian, tensors in the order given, each padded to the alignment, as ggml demands. The
//! key `general.architecture` comes first, then those that begin with `general.`, then all others; those that begin
//! with `split.` are of the files that were read, and left out. Of a model in several files the first has the
//! metadata, and all have the keys `split.no`, `split.count` and `split.tensors.count`, by which llama.cpp finds the
//! others. No other key is added, though llama.cpp needs some. A scalar becomes
//! a tensor of one dimension and one element, as ggml has no scalars. Tensors cannot be tied.
//!
//! *Metadata*: strings are plain text; values of other types are text that begins with `gguf:` and a type, such as
//! `gguf:u32:32000` or `gguf:arr[str]:["a","b"]`. Writing turns them back into what they were, bit for bit.

mod read;
mod split;
mod types;
mod value;
mod write;

#[cfg(test)]
mod tests;

pub use split::split_files;

use ckptmerge_format::{DType, Format, FormatError, Index, Metadata, Shard, Source, TensorSpec, WritePlan};

/// What files begin with.
const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;
/// The longest header that is read, in bytes. The longest in use are token lists of some ten million bytes.
const MAX_HEADER: u64 = 100_000_000;
/// The most dimensions of a tensor: ggml's `GGML_MAX_DIMS`.
const MAX_DIMENSIONS: u32 = 4;
/// The longest name that is written, in bytes: ggml's `GGML_MAX_NAME` is 64 with a zero at the end.
const MAX_NAME: usize = 63;
/// Where tensors start at multiples of, unless [`ALIGNMENT_KEY`] says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The key for the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";
/// What keys begin with that say which part of a split model a file is.
const SPLIT: &str = "split.";

/// The GGUF format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gguf;

impl Format for Gguf {
    fn id(&self) -> &'static str {
        "gguf"
    }

    fn about(&self) -> &'static str {
        "GGUF of llama.cpp and ggml, versions 2 and 3, with all of ggml's quantized types"
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["gguf"]
    }

    fn recognises(&self, head: &[u8], _len: u64) -> bool {
        head.starts_with(&MAGIC)
    }

    fn index(&self, source: &dyn Source) -> Result<Index, FormatError> {
        read::index(source)
    }

    fn can_store(&self, dtype: DType) -> bool {
        types::id(dtype).is_some()
    }

    fn plan_write(&self, tensors: &[TensorSpec], metadata: &Metadata) -> Result<WritePlan, FormatError> {
        write::plan(tensors, metadata)
    }

    fn numbers_shards(&self) -> bool {
        true
    }

    fn plan_shard(&self, tensors: &[TensorSpec], metadata: &Metadata, shard: Shard) -> Result<WritePlan, FormatError> {
        write::plan_shard(tensors, metadata, shard)
    }
}
