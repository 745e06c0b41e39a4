//! Arbitrary bytes as a .npy or .npz file: what is accepted is sound, and written again it reads as the same table; the
//! zip crate finds every checksum right.
//!
//! Most mutations leave the header's length, the data's length and the archive right, or few would come past them.

#![no_main]

use ckptmerge_format::{DType, Format, HEAD, TensorInfo};
use ckptmerge_format_numpy::{Npy, Npz};
use ckptmerge_fuzz::{Memory, archive, assert_reads_back, assert_sound, members, storable};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use std::io::{Cursor, Read};

/// What raw bytes are assumed to be.
const ASSUMED: [Option<DType>; 4] = [None, Some(DType::BF16), Some(DType::F8E4M3), Some(DType::F32)];
/// The longest data, in bytes, that a mutation makes up for a header.
const DATA: u64 = 1024;
/// The longest name that an archive has room for, in bytes, with its ending.
const MAX_NAME: usize = u16::MAX as usize - 4;
/// The name that metadata takes, where there is some.
const METADATA: &str = "__metadata__";

fuzz_target!(|file: &[u8]| {
    let format: &dyn Format = if file.starts_with(b"\x93") { &Npy } else { &Npz };
    let recognised = format.recognises(&file[..file.len().min(HEAD)], file.len() as u64);
    for assume in ASSUMED {
        let index = match format.index_assuming(&Memory(file), assume) {
            Ok(index) => index,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        assert!(recognised || format.id() == "npz", "indexed, but not recognised");
        assert_sound(&index, file.len() as u64);
        // An array of bfloat16 is written as NumPy does, which does not say that it is one.
        let assume = Some(DType::BF16);
        let specs = storable(format, &index, |TensorInfo { name, .. }| {
            !name.contains('\0') && name.len() <= MAX_NAME && name != METADATA
        });
        if specs.is_empty() && format.id() == "npy" {
            continue;
        }
        let again = assert_reads_back(format, &specs, &index.metadata, assume, |spec| spec);
        if let Some(again) = again.filter(|_| format.id() == "npz") {
            let mut archive = zip::ZipArchive::new(Cursor::new(again)).expect("the zip crate refuses the archive");
            for number in 0..archive.len() {
                let mut member = archive.by_index(number).expect("the zip crate refuses a member");
                member.read_to_end(&mut Vec::new()).expect("the zip crate finds another checksum");
            }
        }
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let file = &data[..size];
    let changed = if seed.is_multiple_of(4) {
        None
    } else if file.starts_with(b"\x93NUMPY") {
        array(file, max_size, seed >> 2)
    } else {
        members(file).filter(|members| !members.is_empty()).map(|mut members| {
            let (number, seed) = ((seed >> 2) as usize % members.len(), seed >> 8);
            let member = &mut members[number];
            match seed % 16 {
                0 => member.deflated ^= true,
                1 | 2 => member.name = mutated(&member.name, member.name.len() + 16),
                3 => {
                    let member = members.swap_remove(number);
                    if seed >> 4 & 1 == 0 {
                        members.insert(0, member);
                    }
                }
                _ => {
                    let room = member.bytes.len() + 256;
                    let plain = |bytes: &[u8]| mutated(bytes, room);
                    member.bytes = array(&member.bytes, room, seed >> 4).unwrap_or_else(|| plain(&member.bytes));
                }
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
fn mutated(bytes: &[u8], room: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed.resize(room.max(bytes.len()).max(1), 0);
    let (length, room) = (bytes.len(), changed.len());
    let length = fuzzer_mutate(&mut changed, length, room);
    changed.truncate(length);
    changed
}

/// An array with a mutated header, of the length that it says, and mostly with as much data as it speaks of.
fn array(file: &[u8], room: usize, seed: u32) -> Option<Vec<u8>> {
    let wide = matches!(file.get(6), Some(2 | 3));
    let start = if wide { 12 } else { 10 };
    let length = match file.get(8..start)? {
        [a, b] => usize::from(u16::from_le_bytes([*a, *b])),
        bytes => usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()?,
    };
    let text = mutated(file.get(start..)?.get(..length)?, room.checked_sub(start)?);
    let mut elements = file[start + length..].to_vec();
    if !seed.is_multiple_of(8) {
        elements.resize(claimed(&text).min(DATA) as usize, 0x5a);
    }
    let length = (text.len() as u32).to_le_bytes();
    Some([&file[..8], &length[..start - 8], &text, &elements].concat())
}

/// About how many bytes of data a header speaks of.
fn claimed(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    let after = |word: &str| text.split_once(word).map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    let (shape, descr) = (after("shape"), after("descr"));
    let sizes = shape.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map_or("", |(sizes, _)| sizes);
    let sizes = sizes.split(',').filter_map(|size| size.trim().trim_end_matches('L').parse::<u64>().ok());
    let width = descr.split(['\'', '"']).nth(2).unwrap_or_default().trim_start_matches(|c: char| !c.is_ascii_digit());
    sizes.fold(width.parse().unwrap_or(1), u64::saturating_mul)
}
