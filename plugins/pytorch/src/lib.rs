//! PyTorch checkpoints: what `torch.save` and `torch.jit.save` write, since torch 0.1, and `torch.distributed.checkpoint`
//! and DeepSpeed's ZeRO, which spread a model over the files of a folder.
//!
//! A checkpoint is a pickle of nested Python objects and the bytes of the storages that its tensors are views of. The
//! pickle is run by a machine that builds notes instead of objects (`machine`), so that no code in a file is ever
//! executed; names and views are read off the notes (`flatten`, `tensor`), and each view is checked against the real
//! length of its storage.
//!
//! Source: torch 2.15, `torch/serialization.py`, `torch/_utils.py` and `caffe2/serialize/inline_container.cc`.

use archive::Archive;
use ckptmerge_format::{DType, Format, FormatError, HEAD, Index, Metadata, Segment, Source, TensorSpec, WritePlan};

mod archive;
mod deepspeed;
mod distributed;
mod dtype;
mod flatten;
mod input;
mod legacy;
mod machine;
mod partition;
mod pickle;
mod table;
mod tar;
mod tensor;
mod value;
mod write;

/// The layouts of `torch.save`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PyTorch;

/// What every zip archive begins with, and the length of an entry's header up to its name.
const ZIP: &[u8] = b"PK\x03\x04";
const ZIP_HEADER: usize = 30;

impl Format for PyTorch {
    fn id(&self) -> &'static str {
        "pytorch"
    }

    fn about(&self) -> &'static str {
        "PyTorch checkpoints: state dicts, training checkpoints, whole modules, TorchScript, distributed and DeepSpeed folders, never executed"
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["ckpt", "pt", "pth", "bin"]
    }

    fn name_in_folder(&self) -> (&'static str, &'static str) {
        ("pytorch_model", "bin")
    }

    fn can_tie(&self) -> bool {
        true
    }

    fn recognises(&self, head: &[u8], _len: u64) -> bool {
        is_archive(head) || is_pickle(head) || tar::is_tar(head)
    }

    fn index(&self, source: &dyn Source) -> Result<Index, FormatError> {
        let head = head(source)?;
        if head.starts_with(ZIP) {
            archive::index(source)
        } else if tar::is_tar(&head) {
            tar::index(source)
        } else {
            legacy::index(source)
        }
    }

    fn can_store(&self, dtype: DType) -> bool {
        dtype::to_torch(dtype).is_some()
    }

    fn plan_write(&self, tensors: &[TensorSpec], metadata: &Metadata) -> Result<WritePlan, FormatError> {
        write::plan(tensors, metadata, None)
    }

    fn finish_write(
        &self,
        _plan: &WritePlan,
        tensors: &[TensorSpec],
        metadata: &Metadata,
        crc32: &[u32],
    ) -> Result<Vec<Segment>, FormatError> {
        write::plan(tensors, metadata, Some(crc32)).map(|plan| plan.segments)
    }
}

/// The file's first bytes.
fn head(source: &dyn Source) -> Result<Vec<u8>, FormatError> {
    let mut head = vec![0; source.len().min(HEAD as u64) as usize];
    source.read_at(0, &mut head)?;
    Ok(head)
}

/// What one call of `torch.save` wrote, in either layout since torch 0.1.10.
fn open(source: &dyn Source) -> Result<Archive, FormatError> {
    if head(source)?.starts_with(ZIP) { archive::open(source) } else { legacy::open(source) }
}

/// Whether the first entry of a zip archive lies in a folder, as all of torch's do, and is named as one of them.
///
/// Of a long folder name the rest is not in `head`; torch's own writer is then known by a flag that NumPy's lacks.
fn is_archive(head: &[u8]) -> bool {
    if !head.starts_with(ZIP) || head.len() < ZIP_HEADER {
        return false;
    }
    let length = usize::from(u16::from_le_bytes([head[26], head[27]]));
    let name = &head[ZIP_HEADER..head.len().min(ZIP_HEADER + length)];
    let complete = name.len() == length;
    let Some(slash) = name.iter().position(|byte| *byte == b'/') else { return !complete && head[6] & 8 != 0 };
    let rest = &name[slash + 1..];
    const NAMES: [&[u8]; 10] = [
        b"data.pkl",
        b"data/",
        b"version",
        b"byteorder",
        b"constants",
        b"code/",
        b".data/",
        b".format_version",
        b".storage_alignment",
        b"extra/",
    ];
    NAMES.iter().any(|known| rest.starts_with(known) || (!complete && known.starts_with(rest)))
}

/// Whether a pickle begins here. Others than torch's are claimed too, to be refused with a reason.
fn is_pickle(head: &[u8]) -> bool {
    // The length in front of a safetensors header can look like the start of a pickle.
    let is_safetensors = head.get(3..9).is_some_and(|bytes| bytes[1..] == *b"\0\0\0\0{");
    matches!(head, [0x80, 1..=5, ..]) && !is_safetensors
        || head.windows(legacy::MAGIC_BYTES.len()).any(|window| window == legacy::MAGIC_BYTES)
}
