//! The safetensors format: `u64` header length N, N bytes of JSON, then the elements, with no gaps.
//!
//! Source: <https://github.com/huggingface/safetensors#format>, format as of release 0.8. The `safetensors` crate has
//! the last word on what is valid; this one first says which tensor is wrong and why, which the crate does not.
//!
//! Tied tensors follow the convention of `safetensors.torch.save_model`: the dropped name is a key of `__metadata__`
//! whose value is the name of the tensor that was kept.

use ckptmerge_format::{
    DType, Data, Extent, Fault, Format, FormatError, Index, Metadata, Segment, Source, TensorInfo, TensorSpec,
    WritePlan,
};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

mod header;

use header::Entry;

/// The longest header the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the length in front of the header; the header is padded so that the data is aligned to it.
const LENGTH: u64 = 8;
/// The key of free-form text among the tensor names.
const METADATA: &str = "__metadata__";
/// The key by which PyTorch's distributed checkpoints mark files whose tensors are slices of larger ones.
const DCP_SHARDING_INFO: &str = "DCP_SHARDING_INFO";

/// The safetensors format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Safetensors;

impl Format for Safetensors {
    fn id(&self) -> &'static str {
        "safetensors"
    }

    fn about(&self) -> &'static str {
        "Hugging Face safetensors: single files, shards with an index, model folders and pipelines"
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["safetensors", "st", "sft"]
    }

    fn recognises(&self, head: &[u8], len: u64) -> bool {
        // A length that fits, and an object behind it. A file cut inside its header is still recognised when the
        // length is plausible, so that it is reported as damaged rather than as unknown.
        let Some((length, rest)) = head.split_first_chunk::<8>() else {
            return false;
        };
        let length = u64::from_le_bytes(*length);
        let plausible = length <= len.max(MAX_HEADER);
        plausible && rest.first().map_or(len == LENGTH, |&byte| byte == b'{')
    }

    fn index(&self, source: &dyn Source) -> Result<Index, FormatError> {
        let json = read_header(source)?;
        let (entries, metadata) = header::parse(&json)?;
        let data_start = LENGTH + json.len() as u64;
        if metadata.contains_key(DCP_SHARDING_INFO) {
            return Err(FormatError::unsupported(
                "this file holds slices of tensors, written by torch.distributed.checkpoint's HuggingFaceStorageWriter",
            )
            .hint("join the shards first with torch.distributed.checkpoint's consolidate_safetensors_files"));
        }
        header::validate(&json, &entries, source.len() - data_start)?;

        let by_name: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        let (aliases, metadata): (Metadata, Metadata) = metadata.into_iter().partition(|(key, target)| {
            key != METADATA && by_name.contains_key(target.as_str()) && !by_name.contains_key(key.as_str())
        });
        let mut tensors: Vec<TensorInfo> = Vec::with_capacity(entries.len() + aliases.len());
        tensors.extend(entries.iter().map(|entry| {
            let extent = Extent { offset: data_start + entry.start, length: entry.end - entry.start };
            TensorInfo::new(&entry.name, entry.dtype, entry.shape.clone(), Data::Dense(extent))
        }));
        for (name, target) in aliases {
            let entry = by_name[target.as_str()];
            tensors.push(TensorInfo::new(name, entry.dtype, entry.shape.clone(), Data::Alias(target)));
        }
        Ok(Index { tensors, metadata, ..Index::default() })
    }

    fn can_tie(&self) -> bool {
        true
    }

    fn can_store(&self, dtype: DType) -> bool {
        crate_dtype(dtype).is_ok()
    }

    fn plan_write(&self, tensors: &[TensorSpec], metadata: &Metadata) -> Result<WritePlan, FormatError> {
        let mut offsets = vec![None; tensors.len()];
        // Wider elements first, so that every tensor is aligned to its element; otherwise in the order given.
        let mut order: Vec<usize> = (0..tensors.len()).filter(|&i| tensors[i].alias_of.is_none()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.bytes().unwrap_or(0)));

        let dense: HashMap<&str, &TensorSpec> =
            order.iter().map(|&i| (tensors[i].name.as_str(), &tensors[i])).collect();
        let mut text = Map::new();
        for (key, value) in metadata {
            if key == DCP_SHARDING_INFO
                || key != METADATA && dense.contains_key(value.as_str()) && !dense.contains_key(key.as_str())
            {
                return Err(FormatError::unsupported(format!("the text `{key}` would be read as more than text"))
                    .hint("leave it out or rename it"));
            }
            text.insert(key.clone(), Value::from(value.as_str()));
        }
        for tensor in tensors {
            if tensor.name == METADATA {
                return Err(FormatError::unsupported("safetensors reserves this name")
                    .at(&tensor.name)
                    .hint("rename it"));
            }
            if let Some(target) = &tensor.alias_of {
                if dense.get(target.as_str()).is_none_or(|t| (t.dtype, &t.shape) != (tensor.dtype, &tensor.shape)) {
                    let message =
                        format!("it is tied to `{target}`, which is not written with the same type and shape");
                    return Err(FormatError::unsupported(message).at(&tensor.name));
                }
                let twice = text.insert(tensor.name.clone(), Value::from(target.as_str())).is_some();
                if twice || dense.contains_key(tensor.name.as_str()) || tensor.name == DCP_SHARDING_INFO {
                    return Err(FormatError::unsupported(
                        "the name of a tied tensor is taken by another tensor or text",
                    )
                    .at(&tensor.name)
                    .hint("rename it"));
                }
            }
        }

        let mut header = Map::new();
        if !text.is_empty() {
            header.insert(METADATA.to_owned(), Value::Object(text));
        }
        let mut end = 0u64;
        for i in order {
            let tensor = &tensors[i];
            let too_large = || FormatError::new(Fault::Limit, "the tensor's size overflows 64 bits").at(&tensor.name);
            crate_dtype(tensor.dtype).map_err(|error| error.at(&tensor.name))?;
            let elements = tensor.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(too_large)?;
            let length = tensor.dtype.size_of(elements).ok_or_else(too_large)?;
            // The reference implementation counts bits.
            length.checked_mul(8).ok_or_else(too_large)?;
            let start = end;
            end = start.checked_add(length).ok_or_else(too_large)?;
            offsets[i] = Some(start);
            let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]});
            if header.insert(tensor.name.clone(), entry).is_some() {
                return Err(FormatError::corrupt("two tensors would have this name").at(&tensor.name));
            }
        }

        let mut bytes = Value::Object(header).to_string().into_bytes();
        bytes.resize(bytes.len().next_multiple_of(LENGTH as usize), b' ');
        let length = bytes.len() as u64;
        if length > MAX_HEADER {
            return Err(FormatError::new(
                Fault::Limit,
                format!("the header would be {length} bytes; {MAX_HEADER} are allowed"),
            )
            .hint("write shards with --shard-size"));
        }
        bytes.splice(0..0, length.to_le_bytes());
        let data_start = bytes.len() as u64;
        let length = data_start
            .checked_add(end)
            .ok_or_else(|| FormatError::new(Fault::Limit, "the tensors together take more than 64 bits can count"))?;
        for offset in offsets.iter_mut().flatten() {
            *offset += data_start;
        }
        Ok(WritePlan::new(length, vec![Segment { offset: 0, bytes }], offsets))
    }
}

/// The header's JSON.
fn read_header(source: &dyn Source) -> Result<Vec<u8>, FormatError> {
    let available = source.len().checked_sub(LENGTH).ok_or_else(|| {
        FormatError::corrupt(format!("the file has {} bytes; the header's length alone takes {LENGTH}", source.len()))
    })?;
    let mut length = [0; LENGTH as usize];
    source.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        let message = format!("the header claims {length} bytes; the format allows {MAX_HEADER}");
        return Err(FormatError::new(Fault::Limit, message));
    }
    if length > available {
        return Err(FormatError::corrupt(format!(
            "the header claims {length} bytes, but only {available} follow: the file is cut short"
        )));
    }
    let mut json = vec![0; length as usize];
    source.read_at(LENGTH, &mut json)?;
    Ok(json)
}

/// The type of the same name in the `safetensors` crate; an error for those it lacks.
fn crate_dtype(dtype: DType) -> Result<safetensors::Dtype, FormatError> {
    serde_json::from_value(Value::from(dtype.name()))
        .map_err(|_| FormatError::unsupported(format!("safetensors has no type {dtype}")))
}
