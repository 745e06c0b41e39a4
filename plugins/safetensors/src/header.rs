//! The JSON header, read with duplicates kept and every fault named.

use crate::{METADATA, crate_dtype};
use ckptmerge_format::{DType, Fault, FormatError, Metadata};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::fmt;

/// One tensor of the header; `start..end` are relative to the data.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The longest description of one tensor that is read, in bytes. Honest ones take a hundred or so.
const MAX_ENTRY: usize = 64 << 10;

/// A JSON object with every key it was written with, repeated ones too, its values as they stand in the text.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Pairs<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs<'de>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// The tensors sorted by offset, and the text.
pub(crate) fn parse(json: &[u8]) -> Result<(Vec<Entry>, Metadata), FormatError> {
    if json.first() != Some(&b'{') {
        return Err(FormatError::corrupt("the header does not begin with `{`"));
    }
    let Pairs(pairs) = serde_json::from_slice(json)
        .map_err(|error| FormatError::corrupt(format!("the header is not valid JSON: {error}")))?;
    let mut metadata = None;
    let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        if name == METADATA {
            if metadata.replace(text(value.get())?).is_some() {
                return Err(FormatError::corrupt("`__metadata__` stands twice in the header"));
            }
        } else {
            entries.push(entry(name, value.get())?);
        }
    }
    let mut seen = std::collections::HashSet::with_capacity(entries.len());
    if let Some(twice) = entries.iter().find(|entry| !seen.insert(entry.name.as_str())) {
        return Err(FormatError::corrupt("the name stands twice in the header").at(&twice.name));
    }
    entries.sort_by_key(|entry| (entry.start, entry.end));
    Ok((entries, metadata.unwrap_or_default()))
}

fn text(json: &str) -> Result<Metadata, FormatError> {
    let Pairs(pairs) =
        serde_json::from_str(json).map_err(|_| FormatError::corrupt("`__metadata__` is not an object"))?;
    pairs
        .into_iter()
        .map(|(key, value)| match serde_json::from_str(value.get()) {
            Ok(text) => Ok((key, text)),
            Err(_) => {
                Err(FormatError::corrupt(format!("`__metadata__` may hold only text, but `{key}` is {}", value.get())))
            }
        })
        .collect()
}

fn entry(name: String, json: &str) -> Result<Entry, FormatError> {
    if json.len() > MAX_ENTRY {
        let message = format!("its description takes {} bytes; {MAX_ENTRY} are read", json.len());
        return Err(FormatError::new(Fault::Limit, message).at(&name));
    }
    // The text was found valid as a whole.
    let value: Value = serde_json::from_str(json)
        .map_err(|error| FormatError::corrupt(format!("its description is not valid JSON: {error}")).at(&name))?;
    let parts = || {
        let fields = value.as_object().ok_or("the entry is not an object")?;
        let dtype = field(fields, "dtype")?.as_str().ok_or("`dtype` is not text")?;
        let shape = numbers(field(fields, "shape")?).ok_or("`shape` is not a list of sizes")?;
        let offsets = numbers(field(fields, "data_offsets")?).ok_or("`data_offsets` is not a pair of offsets")?;
        let [start, end] = offsets[..] else {
            return Err("`data_offsets` is not a pair of offsets");
        };
        if end < start {
            return Err("`data_offsets` end before they start");
        }
        Ok((dtype, shape, start, end))
    };
    let (dtype, shape, start, end) = parts().map_err(|message| FormatError::corrupt(message).at(&name))?;
    let dtype = DType::from_name(dtype).filter(|&dtype| crate_dtype(dtype).is_ok()).ok_or_else(|| {
        FormatError::unsupported(format!("the type {dtype:?} is not one of safetensors 0.8's")).at(&name)
    })?;
    Ok(Entry { name, dtype, shape, start, end })
}

fn field<'a>(fields: &'a Map<String, Value>, name: &'static str) -> Result<&'a Value, &'static str> {
    fields.get(name).ok_or(match name {
        "dtype" => "`dtype` is missing",
        "shape" => "`shape` is missing",
        _ => "`data_offsets` is missing",
    })
}

fn numbers(value: &Value) -> Option<Vec<u64>> {
    value.as_array()?.iter().map(Value::as_u64).collect()
}

/// Checks that the tensors fill `available` bytes of data with neither gap nor overlap.
pub(crate) fn validate(json: &[u8], entries: &[Entry], available: u64) -> Result<(), FormatError> {
    let mut end = 0;
    for entry in entries {
        let wrong = |message: String| Err(FormatError::corrupt(message).at(&entry.name));
        if entry.start != end {
            let what = if entry.start < end { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return wrong(format!("its data starts at byte {}, which {what} (expected {end})", entry.start));
        }
        let bytes = entry.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).and_then(|n| entry.dtype.size_of(n));
        match bytes {
            None => {
                return wrong(format!("{} of shape {:?} has no size in whole bytes", entry.dtype, entry.shape));
            }
            Some(bytes) if bytes != entry.end - entry.start => {
                return wrong(format!(
                    "{} of shape {:?} takes {bytes} bytes, but {} are given",
                    entry.dtype,
                    entry.shape,
                    entry.end - entry.start
                ));
            }
            Some(_) => end = entry.end,
        }
    }
    if end > available {
        return Err(FormatError::corrupt(format!(
            "the tensors take {end} bytes, but only {available} follow the header: the file is cut short"
        ))
        .hint("download or copy it again"));
    }
    if end < available {
        return Err(FormatError::corrupt(format!("{} bytes follow the last tensor", available - end)));
    }
    judged_by_the_crate(json)
}

/// The reference implementation's own verdict on the same bytes, so that we never accept what it refuses.
fn judged_by_the_crate(json: &[u8]) -> Result<(), FormatError> {
    serde_json::from_slice::<safetensors::tensor::Metadata>(json)
        .map(drop)
        .map_err(|error| FormatError::corrupt(format!("the header is not valid: {error}")))
}
