//! The header of a new file, and where its tensors go.

use crate::{ALIGNMENT_KEY, MAGIC, MAX_DIMENSIONS, MAX_HEADER, MAX_NAME, SPLIT, VERSION, read, types, value};
use ckptmerge_format::{Fault, FormatError, Metadata, Segment, Shard, TensorSpec, WritePlan};
use std::collections::HashSet;

const ARCHITECTURE: &str = "general.architecture";
const GENERAL: &str = "general.";

/// A file that is the whole model.
pub(crate) fn plan(tensors: &[TensorSpec], metadata: &Metadata) -> Result<WritePlan, FormatError> {
    let pairs = metadata.iter().filter(|pair| !pair.0.starts_with(SPLIT));
    lay_out(tensors, pairs.collect(), read::alignment(metadata)?)
}

/// One of several files. Those behind the first have no metadata but what tells how to read them.
pub(crate) fn plan_shard(tensors: &[TensorSpec], metadata: &Metadata, shard: Shard) -> Result<WritePlan, FormatError> {
    let too_many = |what: &str| FormatError::new(Fault::Limit, format!("there are more {what} than GGUF can count"));
    let number = |number: usize| u16::try_from(number).map_err(|_| too_many("files").hint("allow larger ones"));
    let tensors_in_all = i32::try_from(shard.tensors).map_err(|_| too_many("tensors"))?;
    let own = Metadata::from([
        (format!("{SPLIT}no"), format!("gguf:u16:{}", number(shard.number)?)),
        (format!("{SPLIT}count"), format!("gguf:u16:{}", number(shard.count)?)),
        (format!("{SPLIT}tensors.count"), format!("gguf:i32:{tensors_in_all}")),
    ]);
    let of_model = metadata
        .iter()
        .filter(|(key, _)| !key.starts_with(SPLIT) && (shard.number == 0 || key.as_str() == ALIGNMENT_KEY));
    lay_out(tensors, of_model.chain(&own).collect(), read::alignment(metadata)?)
}

fn lay_out(
    tensors: &[TensorSpec],
    mut pairs: Vec<(&String, &String)>,
    alignment: u64,
) -> Result<WritePlan, FormatError> {
    pairs.sort_by_key(|(key, _)| (*key != ARCHITECTURE, !key.starts_with(GENERAL)));

    let mut header = Vec::from(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((pairs.len() as u64).to_le_bytes());
    for (key, text) in pairs {
        value::write_string(key.as_bytes(), &mut header);
        value::write(text, &mut header).map_err(|why| {
            FormatError::corrupt(format!("key `{key}`: {why}")).hint("text that begins with `gguf:` has a type")
        })?;
    }

    let mut names = HashSet::new();
    let mut end = 0u64;
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut gaps = Vec::new();
    for tensor in tensors {
        if !names.insert(tensor.name.as_str()) {
            return Err(FormatError::corrupt("two tensors would have this name").at(&tensor.name));
        }
        if tensor.alias_of.is_some() {
            let message = "GGUF has no way to tie it to another";
            return Err(FormatError::unsupported(message).at(&tensor.name).hint("store a copy of its elements"));
        }
        let length = entry(tensor, end, &mut header).map_err(|error| error.at(&tensor.name))?;
        offsets.push(Some(end));
        let too_long = || FormatError::new(Fault::Limit, "the file's length overflows 64 bits").at(&tensor.name);
        let stop = end.checked_add(length).ok_or_else(too_long)?;
        end = stop.checked_next_multiple_of(alignment).ok_or_else(too_long)?;
        gaps.push((stop, end - stop));
    }

    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    let start = header.len() as u64;
    if start > MAX_HEADER {
        let message = format!("the header would be {start} bytes; {MAX_HEADER} are read again");
        return Err(FormatError::new(Fault::Limit, message).hint("leave out metadata"));
    }
    let padding = gaps.iter().fold(0u64, |sum, gap| sum.saturating_add(gap.1));
    if padding > MAX_HEADER {
        let message =
            format!("an alignment of {alignment} bytes takes {padding} bytes of padding; {MAX_HEADER} are written");
        return Err(FormatError::new(Fault::Limit, message).hint(format!("give `{ALIGNMENT_KEY}` a smaller value")));
    }
    let length =
        start.checked_add(end).ok_or_else(|| FormatError::new(Fault::Limit, "the file's length overflows 64 bits"))?;
    offsets.iter_mut().flatten().for_each(|offset| *offset += start);
    let mut segments = vec![Segment { offset: 0, bytes: header }];
    let gaps = gaps.into_iter().filter(|gap| gap.1 > 0);
    segments.extend(gaps.map(|(at, bytes)| Segment { offset: start + at, bytes: vec![0; bytes as usize] }));
    Ok(WritePlan::new(length, segments, offsets))
}

/// Appends a tensor's entry, and gives the bytes of its elements.
fn entry(tensor: &TensorSpec, offset: u64, header: &mut Vec<u8>) -> Result<u64, FormatError> {
    let TensorSpec { name, dtype, shape, .. } = tensor;
    let limit = |message: String| FormatError::new(Fault::Limit, message);
    if name.len() > MAX_NAME {
        let message = format!("the name has {} bytes; GGUF allows {MAX_NAME}", name.len());
        return Err(limit(message).hint("rename it"));
    }
    if shape.len() > MAX_DIMENSIONS as usize {
        let message = format!("shape {shape:?} has {} dimensions; GGUF allows {MAX_DIMENSIONS}", shape.len());
        return Err(limit(message).hint("join some of them"));
    }
    let id = types::id(*dtype).ok_or_else(|| FormatError::unsupported(format!("GGUF has no type {dtype}")))?;
    let (&last, block) = (shape.last().unwrap_or(&1), dtype.block_elements());
    if !last.is_multiple_of(block) {
        let message = format!("its rows of {last} elements are not whole blocks of {block} {dtype}");
        return Err(FormatError::unsupported(message).hint("choose another type for it"));
    }
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let bytes =
        elements.and_then(|n| dtype.size_of(n)).ok_or_else(|| limit("its size overflows 64 bits".to_owned()))?;

    value::write_string(name.as_bytes(), header);
    let shape = if shape.is_empty() { &[1] } else { shape.as_slice() };
    header.extend((shape.len() as u32).to_le_bytes());
    shape.iter().rev().for_each(|n| header.extend(n.to_le_bytes()));
    header.extend(id.to_le_bytes());
    header.extend(offset.to_le_bytes());
    Ok(bytes)
}
