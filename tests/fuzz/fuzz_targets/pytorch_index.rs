//! Arbitrary bytes as a checkpoint of torch, of any of its three layouts: what is accepted is sound, and written again
//! it reads as the same table and text.
//!
//! Most mutations leave the archive and its checksums right, and half of them the pickle's instructions whole.

#![no_main]

use ckptmerge_format::Format;
use ckptmerge_format_pytorch::PyTorch;
use ckptmerge_fuzz::{Memory, archive, assert_reads_back, assert_sound, members, mutate_pickle, storable};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|file: &[u8]| {
    PyTorch.recognises(&file[..file.len().min(ckptmerge_format::HEAD)], file.len() as u64);
    let index = match PyTorch.index(&Memory(file)) {
        Ok(index) => index,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_sound(&index, file.len() as u64);
    let specs = storable(&PyTorch, &index, |_| true);
    assert_reads_back(&PyTorch, &specs, &index.metadata, None, |spec| spec);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let file = &data[..size];
    let (kind, seed) = (seed % 8, seed >> 3);
    let changed = if kind == 0 {
        None
    } else if !file.starts_with(b"PK") {
        // The old layouts hold pickles between other things; their instructions are found from the first on.
        (kind > 3).then(|| mutate_pickle(file, seed))
    } else {
        members(file).filter(|members| !members.is_empty()).map(|mut members| {
            let count = members.len();
            let pickle = members.iter().position(|member| member.name.ends_with(b"data.pkl"));
            let number = pickle.filter(|_| kind > 1).unwrap_or(seed as usize % count);
            let member = &mut members[number];
            match kind {
                1 if seed >> 8 & 3 == 0 => member.name = mutated(&member.name),
                1 if seed >> 8 & 3 == 1 => drop(members.remove(number)),
                4.. => member.bytes = mutate_pickle(&member.bytes, seed),
                _ => member.bytes = mutated(&member.bytes),
            }
            archive(&members)
        })
    };
    match changed.filter(|changed| changed.len() <= max_size) {
        Some(changed) => {
            data[..changed.len()].copy_from_slice(&changed);
            changed.len()
        }
        None => fuzzer_mutate(data, size, max_size),
    }
});

/// Bytes that libFuzzer changed.
fn mutated(bytes: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed.resize(bytes.len() + 64, 0);
    let (length, room) = (bytes.len(), changed.len());
    let length = fuzzer_mutate(&mut changed, length, room);
    changed.truncate(length);
    changed
}
