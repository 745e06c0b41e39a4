//! Every file of `fixtures/pytorch` against what torch says about it; see `make.py` there.

use ckptmerge_format::{DType, Data, Fault, Format, FormatError, HEAD, Index, Piece, Source, TensorInfo};
use ckptmerge_format_pytorch::PyTorch;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// A file in memory.
struct Bytes(Vec<u8>);

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| self.0.get(start..start.checked_add(buffer.len())?));
        let range = range.ok_or_else(|| FormatError::new(Fault::Read, "read outside the file"))?;
        buffer.copy_from_slice(range);
        Ok(())
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/pytorch")
}

fn expected() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(folder().join("expected.json")).expect("make.py writes it");
    match serde_json::from_str(&text).expect("make.py writes JSON") {
        Value::Object(files) => files,
        _ => panic!("expected.json is no object"),
    }
}

fn open(name: &str) -> Bytes {
    Bytes(std::fs::read(folder().join(name)).expect("expected.json names only files that are there"))
}

/// The elements of a tensor in row-major, little-endian order, gathered one by one.
fn elements(file: &Bytes, index: &Index, tensor: &TensorInfo) -> Vec<u8> {
    let width = tensor.dtype.bytes().expect("torch packs nothing");
    let mut bytes = match &tensor.data {
        Data::Dense(extent) => file.0[extent.offset as usize..][..extent.length as usize].to_vec(),
        Data::Alias(target) => {
            let target = index.tensors.iter().find(|other| other.name == *target).expect("an alias has a target");
            assert_eq!((target.dtype, &target.shape), (tensor.dtype, &tensor.shape));
            return elements(file, index, target);
        }
        Data::Pieces(pieces) => {
            assert_eq!(pieces.grid, tensor.shape);
            let [piece] = &pieces.boxes[..] else { panic!("a view is one box") };
            gather(file, piece, width)
        }
        other => panic!("torch's files have no {other:?}"),
    };
    if tensor.big_endian {
        bytes.chunks_mut(width).for_each(<[u8]>::reverse);
    }
    bytes
}

fn gather(file: &Bytes, piece: &Piece, width: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut place = vec![0; piece.shape.len()];
    for _ in 0..piece.shape.iter().product::<u64>() {
        let step: u64 = place.iter().zip(&piece.strides).map(|(at, stride)| at * stride).sum();
        bytes.extend(&file.0[(piece.offset + step * width as u64) as usize..][..width]);
        for dimension in (0..place.len()).rev() {
            place[dimension] += 1;
            if place[dimension] < piece.shape[dimension] {
                break;
            }
            place[dimension] = 0;
        }
    }
    bytes
}

/// Everything that is not as expected, in words.
fn differences(name: &str, wanted: &Value) -> Vec<String> {
    let file = open(name);
    let head = &file.0[..file.0.len().min(HEAD)];
    let mut wrong = Vec::new();
    let mut check = |right: bool, message: String| {
        if !right {
            wrong.push(format!("{name}: {message}"));
        }
    };
    check(name == "no-pickle.pt" || PyTorch.recognises(head, file.len()), "is not recognised".to_owned());
    let index = PyTorch.index(&file);
    if let Some(error) = wanted.get("error") {
        let error = error.as_str().expect("errors are text");
        let message = index.map_or_else(|error| error.to_string(), |index| format!("no error but {index:?}"));
        check(message.contains(error), format!("expected {error:?}, got: {message}"));
        return wrong;
    }
    let index = match index {
        Ok(index) => index,
        Err(error) => {
            check(false, error.to_string());
            return wrong;
        }
    };
    let tensors = wanted["tensors"].as_object().expect("an object of tensors");
    let mut names: Vec<_> = index.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut wanted_names: Vec<_> = tensors.keys().map(String::as_str).collect();
    names.sort_unstable();
    wanted_names.sort_unstable();
    check(names == wanted_names, format!("tensors {names:?}, but torch has {wanted_names:?}"));
    for tensor in &index.tensors {
        let Some(wanted) = tensors.get(&tensor.name) else { continue };
        let shape: Vec<u64> = serde_json::from_value(wanted["shape"].clone()).expect("a shape");
        let dtype = DType::from_name(wanted["dtype"].as_str().expect("a type")).expect("a known type");
        check(tensor.dtype == dtype, format!("`{}` is {}, not {dtype}", tensor.name, tensor.dtype));
        check(tensor.shape == shape, format!("`{}` is {:?}, not {shape:?}", tensor.name, tensor.shape));
        let hash: String =
            Sha256::digest(elements(&file, &index, tensor)).iter().map(|byte| format!("{byte:02x}")).collect();
        check(wanted["sha256"] == hash, format!("`{}` has other elements: {:?}", tensor.name, tensor.data));
    }
    let subtrees: Vec<_> = index.subtrees.iter().map(|part| part.name.as_str()).collect();
    check(wanted["subtrees"] == Value::from(subtrees.clone()), format!("subtrees {subtrees:?}"));
    let default = index.subtrees.iter().find(|part| part.is_default).map(|part| part.name.as_str());
    check(wanted["default"] == Value::from(default), format!("default {default:?}"));
    let aliases = index.tensors.iter().filter_map(|tensor| match &tensor.data {
        Data::Alias(target) => Some((tensor.name.clone(), Value::from(target.as_str()))),
        _ => None,
    });
    let aliases = Value::Object(aliases.collect());
    check(wanted["aliases"] == aliases, format!("aliases {aliases}"));
    let metadata = Value::Object(index.metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect());
    let same = wanted["metadata"].as_object().is_some_and(|wanted| {
        wanted.len() == index.metadata.len() && wanted.iter().all(|(key, value)| metadata.get(key) == Some(value))
    });
    check(same, format!("metadata {metadata}"));
    let warnings = index.warnings.join("; ");
    match wanted["warning"].as_str() {
        Some(warning) => check(warnings.contains(warning), format!("warnings {warnings:?}")),
        None => check(warnings.is_empty(), format!("warnings {warnings:?}")),
    }
    wrong
}

#[test]
fn every_file_is_as_torch_says() {
    let expected = expected();
    let files = std::fs::read_dir(folder()).expect("the folder is part of the repository");
    let mut found = 0;
    for file in files {
        let name = file.expect("the folder can be listed").file_name().into_string().expect("names are ASCII");
        if !name.ends_with(".py") && !name.ends_with(".json") && !name.ends_with(".md") {
            assert!(expected.contains_key(&name), "{name} has no line in expected.json");
            found += 1;
        }
    }
    assert!(found == expected.len() && found > 90, "{found} files, {} lines", expected.len());
    let wrong: Vec<String> = expected.iter().flat_map(|(name, wanted)| differences(name, wanted)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_cut_and_no_flipped_byte_panics() {
    for name in ["training.pt", "legacy-views.pt", "tar.pt", "protocol5.pt", "module.pt"] {
        let mut whole = open(name).0;
        // Without sums, damage reaches the pickle machine.
        for place in 0..whole.len() - 20 {
            if whole[place..].starts_with(b"PK\x01\x02") {
                whole[place + 16..place + 20].fill(0);
            }
        }
        for length in (0..whole.len()).step_by(7) {
            let _ = PyTorch.index(&Bytes(whole[..length].to_vec()));
        }
        for place in (0..whole.len()).step_by(5) {
            let mut flipped = whole.clone();
            flipped[place] ^= 1 << (place % 8);
            if let Ok(index) = PyTorch.index(&Bytes(flipped.clone())) {
                let file = Bytes(flipped);
                // A flipped bit can make an expanded view of very many elements.
                for tensor in index.tensors.iter().filter(|tensor| tensor.elements().is_some_and(|n| n < 1 << 20)) {
                    elements(&file, &index, tensor);
                }
            }
        }
    }
}

#[test]
fn other_formats_are_not_recognised() {
    let safetensors = |length: u64| [&length.to_le_bytes()[..], b"{\"w\":{\"dtype\":\"F32\"}}"].concat();
    assert!(!PyTorch.recognises(&safetensors(0x0280), 1000), "a header whose length looks like a pickle");
    assert!(!PyTorch.recognises(&safetensors(0x05_0580), 1 << 20));
    let zip = |name: &str, flags: u8| {
        let mut head = vec![b'P', b'K', 3, 4, 20, 0, flags];
        head.resize(26, 0);
        head.extend([name.len() as u8, 0, 0, 0]);
        head.extend(name.bytes());
        head.truncate(HEAD);
        head
    };
    for other in
        ["weight.npy", "layer/weight.npy", "metadata.json", "layers/very/long/name/of/a/numpy/array/weight.npy"]
    {
        assert!(!PyTorch.recognises(&zip(other, 0), 1000), "{other}");
    }
    for own in ["archive/data.pkl", "a-name-that-reaches-up-to-the-edge/data.pkl", "m/code/__torch__.py", "m/data/0"] {
        assert!(PyTorch.recognises(&zip(own, 8), 1000), "{own}");
    }
    for other in [&b""[..], b"PK", b"GGUF\x03\0\0\0", b"\x93NUMPY", b"\x89HDF\r\n\x1a\n", b"\x80"] {
        assert!(!PyTorch.recognises(other, 1000));
    }
}
