//! Arbitrary bytes as a GGUF file: what is accepted is sound, and written again it reads as the same table and text.

#![no_main]

use ckptmerge_format::{Format, HEAD, Metadata, TensorSpec};
use ckptmerge_format_gguf::Gguf;
use ckptmerge_fuzz::{Memory, assert_reads_back, assert_sound, storable};
use libfuzzer_sys::fuzz_target;

/// The longest name that is written, in bytes; longer ones are read.
const MAX_NAME: usize = 63;

fuzz_target!(|file: &[u8]| {
    let recognised = Gguf.recognises(&file[..file.len().min(HEAD)], file.len() as u64);
    let index = match Gguf.index(&Memory(file)) {
        Ok(index) => index,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(recognised, "indexed, but not recognised");
    assert_sound(&index, file.len() as u64);

    let specs = storable(&Gguf, &index, |tensor| tensor.name.len() <= MAX_NAME);
    // One file is written, so that it does not say which part of several it is; and ggml has no scalars.
    let metadata: Metadata = index.metadata.into_iter().filter(|(key, _)| !key.starts_with("split.")).collect();
    let scalar_as_one = |spec: TensorSpec| match spec.shape[..] {
        [] => TensorSpec { shape: vec![1], ..spec },
        _ => spec,
    };
    assert_reads_back(&Gguf, &specs, &metadata, None, scalar_as_one);
});
