//! Writing: a zip archive as `torch.save` lays it out, with every storage aligned.
//!
//! Source: PKWARE's APPNOTE 6.3.9 for the records, `caffe2/serialize/inline_container.cc` for the rest. Entries are
//! stored; their bytes begin at multiples of 64, behind an extra field `FB` of padding in the local header.

use crate::archive::METADATA;
use crate::dtype::to_torch;
use crate::flatten::MAX_NAME;
use crate::pickle::{Item, state_dict};
use ckptmerge_format::{Fault, FormatError, Metadata, Segment, TensorSpec, WritePlan};
use std::collections::HashMap;

/// The folder in the archive.
const FOLDER: &str = "archive";
/// What the data of each entry is aligned to, in bytes.
const ALIGNMENT: u64 = 64;
/// A size or offset of 32 bits that stands for one of 64 bits elsewhere.
const SEE_ZIP64: u64 = 0xffff_ffff;
/// A number of entries of 16 bits that stands for one of 64 bits elsewhere.
const MANY_ENTRIES: u64 = 0xffff;
/// The first of January 1980, the earliest day there is: the same input gives the same bytes.
const DATE: u16 = 0x21;

/// An entry of the archive.
struct Entry {
    name: String,
    length: u64,
    crc32: u32,
    /// The bytes of an entry that holds no tensor.
    bytes: Option<Vec<u8>>,
}

/// The layout of a state dict; `crc32` has the sums of the tensors' bytes, if they are known.
pub(crate) fn plan(
    tensors: &[TensorSpec],
    metadata: &Metadata,
    crc32: Option<&[u32]>,
) -> Result<WritePlan, FormatError> {
    let (entries, tensor_entries) = entries(tensors, metadata, crc32)?;
    let mut segments = Vec::with_capacity(entries.len() + 1);
    let mut directory = Vec::new();
    let mut starts = Vec::with_capacity(entries.len());
    let mut end = 0u64;
    for entry in &entries {
        let header = local_header(entry, end);
        directory.extend(central_header(entry, end));
        let start = end + header.len() as u64;
        starts.push(start);
        let segment =
            Segment { offset: end, bytes: [&header[..], entry.bytes.as_deref().unwrap_or_default()].concat() };
        segments.push(segment);
        end =
            start.checked_add(entry.length).filter(|end| *end < u64::MAX / 2).ok_or_else(|| too_large(&entry.name))?;
    }
    let trailer = end_of_directory(entries.len() as u64, end, directory.len() as u64);
    directory.extend(trailer);
    let length = end + directory.len() as u64;
    segments.push(Segment { offset: end, bytes: directory });
    let offsets = tensor_entries.into_iter().map(|entry| entry.map(|entry| starts[entry])).collect();
    Ok(WritePlan::new(length, segments, offsets).with_crc32())
}

/// The entries in the order of the file, and which of them each tensor's elements are.
fn entries(
    tensors: &[TensorSpec],
    metadata: &Metadata,
    crc32: Option<&[u32]>,
) -> Result<(Vec<Entry>, Vec<Option<usize>>), FormatError> {
    let (items, keys) = items(tensors)?;
    let pickle = state_dict(&items);
    // torch makes it of names and sums, and only compares it.
    let id = format!("{:020}{:020}", tensors.len(), crc32fast::hash(&pickle));
    let mut entries = vec![small("data.pkl", pickle), small("byteorder", b"little".to_vec())];
    let first = entries.len();
    for (number, (tensor, item)) in tensors.iter().zip(&items).enumerate() {
        if keys[number].is_some() {
            let length = item.dtype.size_of(item.elements).ok_or_else(|| too_large(&tensor.name))?;
            let crc32 = crc32.and_then(|sums| sums.get(number)).copied().unwrap_or_default();
            entries.push(Entry { name: format!("{FOLDER}/data/{}", item.key), length, crc32, bytes: None });
        }
    }
    entries.push(small("version", b"3\n".to_vec()));
    entries.push(small(".data/serialization_id", id.into_bytes()));
    if !metadata.is_empty() {
        let json = serde_json::to_vec(metadata)
            .map_err(|error| FormatError::unsupported(format!("the metadata is not text: {error}")))?;
        entries.push(small(METADATA, json));
    }
    Ok((entries, keys.into_iter().map(|key| key.map(|key| first + key)).collect()))
}

fn small(name: &str, bytes: Vec<u8>) -> Entry {
    let (name, crc32) = (format!("{FOLDER}/{name}"), crc32fast::hash(&bytes));
    Entry { name, length: bytes.len() as u64, crc32, bytes: Some(bytes) }
}

fn too_large(name: &str) -> FormatError {
    FormatError::new(Fault::Limit, "its size overflows 64 bits").at(name)
}

/// The tensors as the pickle describes them, and for each the number of its storage if it is the one that fills it.
fn items(tensors: &[TensorSpec]) -> Result<(Vec<Item<'_>>, Vec<Option<usize>>), FormatError> {
    let mut numbers: HashMap<&str, usize> = HashMap::with_capacity(tensors.len());
    for (number, tensor) in tensors.iter().enumerate() {
        if numbers.insert(&tensor.name, number).is_some() {
            return Err(FormatError::corrupt("two tensors would have this name").at(&tensor.name));
        }
        if tensor.name.len() > MAX_NAME {
            let message = format!("its name has {} bytes; names of up to {MAX_NAME} are read again", tensor.name.len());
            return Err(FormatError::new(Fault::Limit, message)
                .at(&tensor.name)
                .hint("give it a shorter name, or write another format"));
        }
    }
    let mut storages = 0..;
    let keys: Vec<_> =
        tensors.iter().map(|tensor| if tensor.alias_of.is_none() { storages.next() } else { None }).collect();
    let item = |number: usize| {
        let tensor = &tensors[number];
        let torch = to_torch(tensor.dtype).ok_or_else(|| {
            FormatError::unsupported(format!("torch has no type {}", tensor.dtype))
                .at(&tensor.name)
                .hint("write another type with --dtype, or another format")
        })?;
        let kept = match &tensor.alias_of {
            None => number,
            Some(target) => *numbers.get(target.as_str()).ok_or_else(|| {
                FormatError::corrupt(format!("it is tied to `{target}`, which is not written")).at(&tensor.name)
            })?,
        };
        let elements = |of: &TensorSpec| of.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let count = elements(tensor).filter(|count| tensor.dtype.size_of(*count).is_some());
        let count = count.ok_or_else(|| too_large(&tensor.name))?;
        let same = tensors[kept].dtype == tensor.dtype && elements(&tensors[kept]) == Some(count);
        let key = keys[kept].filter(|_| same).ok_or_else(|| {
            FormatError::corrupt("the tensor it is tied to is tied itself, or of another type or size").at(&tensor.name)
        })?;
        Ok(Item { name: &tensor.name, torch, dtype: tensor.dtype, shape: &tensor.shape, key, elements: count })
    };
    let items: Result<Vec<_>, FormatError> = (0..tensors.len()).map(item).collect();
    Ok((items?, keys))
}

/// Numbers of a record, least significant byte first.
#[derive(Default)]
struct Record(Vec<u8>);

impl Record {
    fn u16(mut self, number: u16) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// A number of 32 bits, or what says that it is in a zip64 field.
    fn small(self, number: u64) -> Self {
        self.u32(number.min(SEE_ZIP64) as u32)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// What local and central headers have in common, from the version to the length of the name.
    fn common(self, entry: &Entry, zip64: bool) -> Self {
        self.u16(if zip64 { 45 } else { 20 })
            .u16(0)
            .u16(0)
            .u16(0)
            .u16(DATE)
            .u32(entry.crc32)
            .small(entry.length)
            .small(entry.length)
            .u16(entry.name.len() as u16)
    }
}

/// The header in front of an entry's bytes, if it begins at `offset`.
fn local_header(entry: &Entry, offset: u64) -> Vec<u8> {
    let zip64 = entry.length >= SEE_ZIP64;
    let sizes = if zip64 { Record::default().u16(1).u16(16).u64(entry.length).u64(entry.length).0 } else { Vec::new() };
    let unpadded = offset + 30 + (entry.name.len() + sizes.len() + 4) as u64;
    let padding = vec![b'Z'; (unpadded.next_multiple_of(ALIGNMENT) - unpadded) as usize];
    Record::default()
        .bytes(b"PK\x03\x04")
        .common(entry, zip64)
        .u16((sizes.len() + 4 + padding.len()) as u16)
        .bytes(entry.name.as_bytes())
        .bytes(&sizes)
        .bytes(b"FB")
        .u16(padding.len() as u16)
        .bytes(&padding)
        .0
}

/// The entry in the central directory, for one whose local header is at `offset`.
fn central_header(entry: &Entry, offset: u64) -> Vec<u8> {
    let mut wide = Vec::new();
    if entry.length >= SEE_ZIP64 {
        wide.extend([entry.length, entry.length]);
    }
    if offset >= SEE_ZIP64 {
        wide.push(offset);
    }
    let mut extra = Record::default();
    if !wide.is_empty() {
        extra = extra.u16(1).u16(8 * wide.len() as u16);
    }
    let extra = wide.iter().fold(extra, |record, number| record.u64(*number)).0;
    let zip64 = !wide.is_empty();
    Record::default()
        .bytes(b"PK\x01\x02")
        .u16(if zip64 { 45 } else { 20 })
        .common(entry, zip64)
        .u16(extra.len() as u16)
        .u16(0)
        .u16(0)
        .u16(0)
        .u32(0)
        .small(offset)
        .bytes(entry.name.as_bytes())
        .bytes(&extra)
        .0
}

/// What follows the central directory of `entries` entries in `length` bytes from `offset`.
fn end_of_directory(entries: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut record = Record::default();
    if entries >= MANY_ENTRIES || offset >= SEE_ZIP64 || length >= SEE_ZIP64 {
        record = record.bytes(b"PK\x06\x06").u64(44).u16(45).u16(45).u32(0).u32(0);
        record = record.u64(entries).u64(entries).u64(length).u64(offset);
        record = record.bytes(b"PK\x06\x07").u32(0).u64(offset + length).u32(1);
    }
    let count = entries.min(MANY_ENTRIES) as u16;
    record.bytes(b"PK\x05\x06").u16(0).u16(0).u16(count).u16(count).small(length).small(offset).u16(0).0
}
