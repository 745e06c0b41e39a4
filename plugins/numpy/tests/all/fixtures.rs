//! Every file in `fixtures/numpy` holds what NumPy says is in it, or is refused for the reason that `make.py` gives.

use crate::folder;
use crate::gather::{Bytes, elements, format};
use ckptmerge_format::{DType, Metadata};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

fn check(file: &Bytes, expected: &Value) -> Result<(), String> {
    let format = format(file).ok_or("no format recognises it")?;
    let assume = expected["assume"].as_str().map(|name| DType::from_name(name).expect("a type"));
    let index = match (format.index_assuming(file, assume), expected["error"].as_str()) {
        (Ok(index), None) => index,
        (Ok(_), Some(error)) => return Err(format!("it is read, and not refused as {error:?}")),
        (Err(error), None) => return Err(error.to_string()),
        (Err(error), Some(part)) if error.to_string().contains(part) => return Ok(()),
        (Err(error), Some(part)) => return Err(format!("{error} (expected {part:?})")),
    };
    let mut tensors = Vec::new();
    for tensor in &index.tensors {
        let digest: String = Sha256::digest(elements(file, tensor)).iter().map(|byte| format!("{byte:02x}")).collect();
        tensors
            .push(json!({"name": tensor.name, "dtype": tensor.dtype.name(), "shape": tensor.shape, "sha256": digest}));
    }
    if tensors != *expected["tensors"].as_array().ok_or("nothing is expected of it")? {
        return Err(format!("{tensors:#?}"));
    }
    let text: Metadata = serde_json::from_value(expected["metadata"].clone()).unwrap_or_default();
    if index.metadata != text {
        return Err(format!("{:?}", index.metadata));
    }
    if index.warnings.len() as u64 != expected["warnings"].as_u64().unwrap_or_default() {
        return Err(format!("{:?}", index.warnings));
    }
    Ok(())
}

#[test]
fn every_file_is_as_numpy_says() {
    let expected = std::fs::read_to_string(folder().join("expected.json")).expect("make.py writes it");
    let expected: Value = serde_json::from_str(&expected).expect("it is JSON");
    let expected = expected["files"].as_object().expect("an object of files");
    let present: BTreeSet<String> = std::fs::read_dir(folder())
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be listed").file_name().into_string().expect("names are UTF-8"))
        .filter(|name| name.ends_with(".npy") || name.ends_with(".npz"))
        .collect();
    assert_eq!(present, expected.keys().cloned().collect(), "make.py made other files than there are");
    assert!(present.len() > 100, "only {} files were found", present.len());
    let wrong: Vec<String> = expected
        .iter()
        .filter_map(|(name, expected)| {
            let file = Bytes(std::fs::read(folder().join(name)).expect("it can be read"));
            check(&file, expected).err().map(|error| format!("{name}: {error}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn other_files_are_not_recognised() {
    // PyTorch's writer: a data descriptor, and `NAME/data.pkl`, of which a long NAME leaves nothing to see.
    let mut torch = b"PK\x03\x04\0\0\x08\x08".to_vec();
    torch.resize(26, 0);
    torch.extend([50, 0, 48, 0]);
    torch.extend(b"pytorch_model-00001-of-00002-abcdefghijk/data.pklFB");
    let mut short = torch.clone();
    short[26] = 13;
    short.splice(30.., *b"abcd/data.pklFB,\0ZZZZZ");
    for other in [torch, short, b"PK\x03\x04".to_vec(), b"\x93NUMP".to_vec(), Vec::new()] {
        assert!(format(&Bytes(other.clone())).is_none(), "{}", other.escape_ascii());
    }
}
