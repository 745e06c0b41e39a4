//! Every folder of `fixtures/dcp` against what torch says about it; see `make.py` there.

use ckptmerge_format::{DType, Data, Fault, Format, FormatError, HEAD, Index, Pieces, Source, TensorInfo};
use ckptmerge_format_pytorch::PyTorch;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A folder in memory, as seen from one of its files.
#[derive(Clone)]
struct Folder {
    files: HashMap<String, Vec<u8>>,
    main: String,
}

impl Folder {
    fn read(path: &Path) -> Self {
        let mut files = HashMap::new();
        for entry in std::fs::read_dir(path.parent().expect("a file of a folder")).expect("it can be listed") {
            let entry = entry.expect("it can be listed");
            let name = entry.file_name().into_string().expect("names are ASCII");
            files.insert(name, std::fs::read(entry.path()).expect("it can be read"));
        }
        let main = path.file_name().and_then(|name| name.to_str()).expect("names are ASCII").to_owned();
        Self { files, main }
    }

    fn bytes(&self) -> &[u8] {
        &self.files[&self.main]
    }

    /// The elements of a tensor in row-major, little-endian order, put in their places one by one.
    fn elements(&self, index: &Index, tensor: &TensorInfo) -> Vec<u8> {
        let width = tensor.dtype.bytes().expect("torch packs nothing");
        let count: u64 = tensor.shape.iter().product();
        let pieces = match &tensor.data {
            Data::Pieces(pieces) => pieces,
            Data::Dense(extent) if extent.length == 0 && count == 0 => return Vec::new(),
            other => panic!("`{}` lies in other files than the first: {other:?}", tensor.name),
        };
        assert_eq!(pieces.grid, tensor.shape);
        let mut out = vec![0; count as usize * width];
        let mut filled = vec![false; count as usize];
        self.fill(index, pieces, width, &mut out, &mut filled);
        assert!(filled.into_iter().all(|filled| filled), "`{}` is complete", tensor.name);
        out
    }

    fn fill(&self, index: &Index, pieces: &Pieces, width: usize, out: &mut [u8], filled: &mut [bool]) {
        for piece in &pieces.boxes {
            let file = &self.files[&index.files[piece.file - 1]];
            for number in 0..piece.shape.iter().product::<u64>() {
                let (mut rest, mut from, mut to, mut row) = (number, 0, 0, 1);
                for dimension in (0..piece.shape.len()).rev() {
                    let at = rest % piece.shape[dimension];
                    rest /= piece.shape[dimension];
                    from += at * piece.strides[dimension];
                    to += (piece.origin[dimension] + at) * row;
                    row *= pieces.grid[dimension];
                }
                let (from, to) = (piece.offset as usize + from as usize * width, to as usize);
                out[to * width..][..width].copy_from_slice(&file[from..][..width]);
                assert!(!std::mem::replace(&mut filled[to], true), "an element is in two pieces");
            }
        }
    }
}

fn read_at(bytes: &[u8], offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
    let start = usize::try_from(offset).ok();
    let range = start.and_then(|start| bytes.get(start..start.checked_add(buffer.len())?));
    buffer.copy_from_slice(range.ok_or_else(|| FormatError::new(Fault::Read, "read outside the file"))?);
    Ok(())
}

impl Source for Folder {
    fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        read_at(self.bytes(), offset, buffer)
    }

    fn sibling(&self, name: &str) -> Result<Box<dyn Source>, FormatError> {
        assert!(!name.contains(['/', '\\']) && !name.is_empty() && name != "..", "{name:?} is followed");
        let missing = || FormatError::new(Fault::Read, format!("the file {name} beside it is missing"));
        self.files.get(name).map(|bytes| Box::new(Bytes(bytes.clone())) as Box<dyn Source>).ok_or_else(missing)
    }
}

struct Bytes(Vec<u8>);

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        read_at(&self.0, offset, buffer)
    }
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/dcp")
}

fn expected() -> Map<String, Value> {
    let text = std::fs::read_to_string(fixtures().join("expected.json")).expect("make.py writes it");
    match serde_json::from_str(&text).expect("make.py writes JSON") {
        Value::Object(files) => files,
        _ => panic!("expected.json is no object"),
    }
}

/// Everything that is not as expected, in words.
fn differences(name: &str, wanted: &Value) -> Vec<String> {
    let folder = Folder::read(&fixtures().join(name));
    let mut wrong = Vec::new();
    let mut check = |right: bool, message: String| {
        if !right {
            wrong.push(format!("{name}: {message}"));
        }
    };
    let head = &folder.bytes()[..folder.bytes().len().min(HEAD)];
    check(PyTorch.recognises(head, folder.len()), "is not recognised".to_owned());
    let index = PyTorch.index(&folder);
    if let Some(error) = wanted.get("error") {
        let error = error.as_str().expect("errors are text");
        let message = index.map_or_else(|error| error.to_string(), |index| format!("no error but {index:?}"));
        check(
            error.split('…').all(|part| message.contains(part.trim())),
            format!("expected {error:?}, got: {message}"),
        );
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
        let elements = folder.elements(&index, tensor);
        let hash: String = Sha256::digest(elements).iter().map(|byte| format!("{byte:02x}")).collect();
        check(wanted["sha256"] == hash, format!("`{}` has other elements: {:?}", tensor.name, tensor.data));
    }
    let subtrees: Vec<_> = index.subtrees.iter().map(|part| part.name.as_str()).collect();
    check(wanted["subtrees"] == Value::from(subtrees.clone()), format!("subtrees {subtrees:?}"));
    let default = index.subtrees.iter().find(|part| part.is_default).map(|part| part.name.as_str());
    check(wanted["default"] == Value::from(default), format!("default {default:?}"));
    let metadata = Value::Object(index.metadata.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect());
    check(wanted["metadata"] == metadata, format!("metadata {metadata}"));
    let warnings = index.warnings.join("; ");
    match wanted["warning"].as_str() {
        Some(warning) => check(warnings.contains(warning), format!("warnings {warnings:?}")),
        None => check(warnings.is_empty(), format!("warnings {warnings:?}")),
    }
    wrong
}

#[test]
fn every_folder_is_as_torch_says() {
    let expected = expected();
    let mut found = 0;
    for folder in std::fs::read_dir(fixtures()).expect("the folder is part of the repository") {
        let folder = folder.expect("it can be listed").path();
        for file in std::fs::read_dir(&folder).into_iter().flatten() {
            let file = file.expect("it can be listed").path();
            let name = file.strip_prefix(fixtures()).expect("it lies there").to_str().expect("names are ASCII");
            if name.ends_with("metadata") {
                assert!(expected.contains_key(name), "{name} has no line in expected.json");
                found += 1;
            }
        }
    }
    assert!(found == expected.len() && found > 40, "{found} files, {} lines", expected.len());
    let wrong: Vec<String> = expected.iter().flat_map(|(name, wanted)| differences(name, wanted)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn tensors_of_a_run_are_spread_over_files() {
    let index = PyTorch.index(&Folder::read(&fixtures().join("mesh/.metadata"))).expect("it is in order");
    assert_eq!(index.files, ["__0_0.distcp", "__1_0.distcp", "__2_0.distcp", "__3_0.distcp"]);
    let pieces = index.tensors.iter().map(|tensor| match &tensor.data {
        Data::Pieces(pieces) => (tensor.name.as_str(), pieces.boxes.len()),
        other => panic!("`{}` is {other:?}", tensor.name),
    });
    assert!(pieces.collect::<Vec<_>>().contains(&("both", 4)));
}

#[test]
fn a_file_without_a_folder_is_refused() {
    let whole = Folder::read(&fixtures().join("plain/.metadata"));
    let error = PyTorch.index(&Bytes(whole.bytes().to_vec())).expect_err("its data are not there");
    assert!(error.to_string().contains("__0_0.distcp"), "{error}");
}

#[test]
fn a_data_file_alone_is_refused() {
    for name in ["plain", "threads", "mesh"] {
        let error =
            PyTorch.index(&Folder::read(&fixtures().join(name).join("__0_0.distcp"))).expect_err("it is a part");
        assert!(error.to_string().contains("name its folder"), "{name}: {error}");
    }
}

#[test]
fn no_cut_and_no_flipped_byte_panics() {
    let whole = Folder::read(&fixtures().join("sharded/.metadata"));
    let check = |folder: &Folder| {
        let Ok(index) = PyTorch.index(folder) else { return };
        for tensor in index.tensors.iter().filter(|tensor| tensor.elements().is_some_and(|n| n < 1 << 20)) {
            folder.elements(&index, tensor);
        }
    };
    for name in [".metadata", "__0_0.distcp"] {
        let length = whole.files[name].len();
        let mut folder = whole.clone();
        for kept in (0..length).step_by(13) {
            folder.files.insert(name.to_owned(), whole.files[name][..kept].to_vec());
            check(&folder);
        }
        for place in (0..length).step_by(3) {
            let mut flipped = whole.files[name].clone();
            flipped[place] ^= 1 << (place % 8);
            folder.files.insert(name.to_owned(), flipped);
            check(&folder);
        }
    }
}
