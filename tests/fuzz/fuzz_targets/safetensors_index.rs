//! Arbitrary bytes as a file: whatever is accepted, the official crate accepts with the same content, and it can be
//! planned and read again.
//!
//! Most mutations leave the header's length right, or random bytes would never come past it.

#![no_main]

use ckptmerge_format::Format;
use ckptmerge_format_safetensors::Safetensors;
use ckptmerge_fuzz::{checked_index, specs, table, written};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// The longest data, in bytes, that a mutation makes up for a header.
const DATA: u64 = 1024;

fuzz_target!(|file: &[u8]| {
    let Ok(index) = checked_index(file) else { return };
    let specs = specs(&index);
    let plan = match Safetensors.plan_write(&specs, &index.metadata) {
        Ok(plan) => plan,
        Err(error) => panic!("what was read cannot be written: {error}"),
    };
    let again = written(&plan, &specs, u64::MAX).expect("no limit was set");
    let again = checked_index(&again).expect("what was planned cannot be read");
    assert_eq!((table(&again), again.metadata), (table(&index), index.metadata));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let header = data[..size].split_first_chunk().and_then(|(length, rest)| {
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        Some((rest.get(..length)?.to_vec(), rest[length..].to_vec()))
    });
    let Some((mut json, mut elements)) = header.filter(|_| seed % 4 != 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    let (length, room) = (json.len(), max_size.saturating_sub(8 + elements.len()));
    if room == 0 || room < length {
        return fuzzer_mutate(data, size, max_size);
    }
    json.resize(room, 0);
    let length = fuzzer_mutate(&mut json, length, room);
    json.truncate(length);
    if seed % 4 > 1 {
        elements.resize(claimed(&json).min(DATA).min((max_size - 8 - json.len()) as u64) as usize, 0);
    }
    let file = [&(json.len() as u64).to_le_bytes()[..], &json, &elements].concat();
    data[..file.len()].copy_from_slice(&file);
    file.len()
});

/// How many bytes of data a header speaks of.
fn claimed(json: &[u8]) -> u64 {
    let Ok(serde_json::Value::Object(entries)) = serde_json::from_slice(json) else { return 0 };
    entries.values().filter_map(|entry| entry.get("data_offsets")?.get(1)?.as_u64()).max().unwrap_or(0)
}
