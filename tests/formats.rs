//! Every fixture of every format, read by the host: tables, bytes by map and by `pread`, in whole and in part, against
//! what the libraries that wrote them say.

mod pieces;
mod ranks;
mod views;

use crate::model::{Outcome, decode, fixture, names_in, write};
use ckptmerge::checkpoint::{DataFile, TensorView};
use ckptmerge::dtype::DType;
use ckptmerge::{Checkpoint, Error, IoMode, OpenOptions};
use pytorch_reader::PytorchReader;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

const BOTH: [IoMode; 2] = [IoMode::Mmap, IoMode::Pread];

/// A tensor of a fixture, by the library that wrote it.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    digest: String,
}

/// What a file is to come to, opened with these options.
struct Case {
    path: PathBuf,
    select: Option<String>,
    assume: Option<DType>,
    /// The table, or what the refusal says: parts between `…`.
    expected: Result<Vec<Row>, String>,
    /// Whether the table's order is that of the file.
    ordered: bool,
    aliases: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
    /// How the elements are summed up.
    digest: fn(DType, &[u8]) -> String,
}

fn sha256(_: DType, bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// FNV-1a of 64 bits.
fn fnv(_: DType, bytes: &[u8]) -> String {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The same of the elements as a big-endian file has them.
fn fnv_big_endian(dtype: DType, bytes: &[u8]) -> String {
    let mut bytes = bytes.to_vec();
    bytes.chunks_exact_mut(dtype.block_bytes() as usize).for_each(<[u8]>::reverse);
    fnv(dtype, &bytes)
}

fn text_map(value: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(value.clone()).unwrap_or_default()
}

fn parsed(path: &str) -> Outcome<serde_json::Map<String, Value>> {
    match serde_json::from_str(&std::fs::read_to_string(fixture(path))?)? {
        Value::Object(map) => Ok(map),
        other => Err(format!("{path} is no object but {other}").into()),
    }
}

/// The visible files of a fixture folder that are no scripts, notes or expectations.
fn data_files(folder: &str) -> Vec<String> {
    let mut names = names_in(&fixture(folder));
    names.retain(|name| ![".py", ".json", ".md"].iter().any(|ending| name.ends_with(ending)));
    names
}

/// A whole, then in pieces: the bytes of the tensor, if all ways of reading them agree.
fn read_every_way(view: &TensorView<'_>) -> Result<Vec<u8>, String> {
    let error = |error: Error| error.to_string();
    let total = view.tensor.bytes;
    let mut buffer = vec![0xee; 3];
    let whole = view.read(0..total, &mut buffer).map_err(error)?.to_vec();
    if whole.len() as u64 != total {
        return Err(format!("{} bytes of {total} were read", whole.len()));
    }
    let unit = view.tensor.dtype.block_bytes();
    let count = total / unit;
    let check = |from: u64, to: u64| {
        let mut buffer = vec![0xdd; 5];
        let range = from * unit..to * unit;
        let bytes = view.read(range.clone(), &mut buffer).map_err(error)?;
        let is_same = bytes == &whole[range.start as usize..range.end as usize];
        is_same.then_some(()).ok_or_else(|| format!("elements {from}..{to} are others than in the whole"))
    };
    // One element at a time, backwards; of larger tensors some of them.
    (0..count).rev().step_by((count as usize / 64).max(1)).try_for_each(|at| check(at, at + 1))?;
    for step in [3, 7, count.max(3) / 2 + 1] {
        let starts = (0..count).step_by((step as usize).max(count as usize / 64));
        starts.into_iter().try_for_each(|at| check(at, (at + step).min(count)))?;
    }
    if count > 2 {
        check(1, count - 1)?;
    }
    view.files().try_for_each(DataFile::check_fault).map_err(error)?;
    Ok(whole)
}

impl Case {
    fn options(&self, io: IoMode) -> OpenOptions {
        OpenOptions { io, select: self.select.clone(), assume: self.assume, format: None, headers_only: false }
    }

    /// What is not as expected.
    fn problems(&self, io: IoMode) -> Vec<String> {
        let name = self.path.file_name().expect("it is a file").to_string_lossy();
        let labelled = |problem: String| format!("{name} (select {:?}, {io:?}): {problem}", self.select);
        let opened = Checkpoint::open_with(&self.path, &self.options(io));
        let (model, rows) = match (opened, &self.expected) {
            (Ok(model), Ok(rows)) => (model, rows),
            (Ok(_), Err(part)) => return vec![labelled(format!("it is read, and not refused as {part:?}"))],
            (Err(error), Ok(_)) => return vec![labelled(error.to_string())],
            (Err(error), Err(part)) => {
                let text = error.to_string();
                let says = part.split('…').all(|part| text.contains(part.trim()))
                    && text.contains(&self.path.display().to_string());
                return if says { vec![] } else { vec![labelled(format!("{text:?} lacks {part:?} or the path"))] };
            }
        };
        let mut problems = Vec::new();
        let mut found = Vec::new();
        for tensor in model.tensors() {
            let view = model.get(&tensor.name).expect("a listed tensor has its name");
            let digest = match read_every_way(&view) {
                Ok(bytes) => (self.digest)(tensor.dtype, &bytes),
                Err(problem) => {
                    problems.push(labelled(format!("{}: {problem}", tensor.name)));
                    continue;
                }
            };
            let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype.to_string(), tensor.shape.clone());
            found.push(Row { name, dtype, shape, digest });
        }
        let mut rows = rows.clone();
        if !self.ordered {
            rows.sort_by(|a, b| a.name.cmp(&b.name));
            found.sort_by(|a, b| a.name.cmp(&b.name));
        }
        if found != rows {
            problems.push(labelled(format!("{found:#?} instead of {rows:#?}")));
        }
        let ties = model.tensors().iter().filter_map(|tensor| Some((tensor.name.clone(), tensor.alias_of.clone()?)));
        let ties: BTreeMap<String, String> = ties.collect();
        if ties != self.aliases {
            problems.push(labelled(format!("ties {ties:?} instead of {:?}", self.aliases)));
        }
        if *model.metadata() != self.metadata {
            problems.push(labelled(format!("metadata {:?} instead of {:?}", model.metadata(), self.metadata)));
        }
        problems
    }
}

/// Every case, by map and by `pread`; the folder's files must be those of the cases.
#[track_caller]
fn conform(folder: &str, cases: &[Case], at_least: usize) {
    let seen: BTreeSet<String> =
        cases.iter().map(|case| case.path.file_name().expect("it is a file").to_string_lossy().into_owned()).collect();
    assert_eq!(data_files(folder), seen.into_iter().collect::<Vec<_>>(), "every file is looked at");
    assert!(cases.len() >= at_least, "only {} cases", cases.len());
    // Refusals come before any element is read, so that one way of reading is enough.
    let ways = |case: &Case| if case.expected.is_ok() { &BOTH[..] } else { &BOTH[..1] };
    let problems: Vec<String> =
        cases.iter().flat_map(|case| ways(case).iter().flat_map(|io| case.problems(*io))).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

fn pytorch_cases() -> Outcome<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, entry) in parsed("pytorch/expected.json")? {
        let case = |select: Option<&str>, expected, aliases| Case {
            path: fixture("pytorch").join(&name),
            select: select.map(str::to_owned),
            assume: None,
            expected,
            ordered: false,
            aliases,
            metadata: text_map(&entry["metadata"]),
            digest: sha256,
        };
        if let Some(error) = entry["error"].as_str() {
            // What has no `data.pkl` is no file of torch to the host, which asks what a file is first.
            let error = if name == "no-pickle.pt" { "this zip file is neither of PyTorch nor of NumPy" } else { error };
            cases.push(case(None, Err(error.to_owned()), BTreeMap::new()));
            continue;
        }
        let rows: Vec<Row> = entry["tensors"]
            .as_object()
            .ok_or("an object of tensors")?
            .iter()
            .map(|(name, row)| {
                let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
                let shape = serde_json::from_value(row["shape"].clone())?;
                Ok(Row { name: name.clone(), dtype: text("dtype"), shape, digest: text("sha256") })
            })
            .collect::<Outcome<_>>()?;
        let subtrees: Vec<String> = serde_json::from_value(entry["subtrees"].clone())?;
        let of = |subtree: &str| {
            let mut rows = rows.clone();
            rows.retain_mut(|row| {
                let short = row.name.strip_prefix(&format!("{subtree}.")).map(str::to_owned);
                short.map(|short| row.name = short).is_some()
            });
            rows
        };
        match entry["default"].as_str() {
            _ if subtrees.is_empty() => cases.push(case(None, Ok(rows.clone()), text_map(&entry["aliases"]))),
            Some(default) => cases.push(case(None, Ok(of(default)), BTreeMap::new())),
            None => cases.push(case(None, Err(format!("--select: {}", subtrees.join(", "))), BTreeMap::new())),
        }
        assert!(subtrees.is_empty() || entry["aliases"] == serde_json::json!({}), "{name}: ties of a part");
        for subtree in &subtrees {
            cases.push(case(Some(subtree), Ok(of(subtree)), BTreeMap::new()));
        }
    }
    Ok(cases)
}

#[test]
fn every_file_of_torch_is_as_torch_says() -> Outcome {
    let cases = pytorch_cases()?;
    let selected = cases.iter().filter(|case| case.select.is_some()).count();
    assert!(selected > 20, "only {selected} cases with --select");
    conform("pytorch", &cases, 100);
    Ok(())
}

#[test]
fn every_file_of_numpy_is_as_numpy_says() -> Outcome {
    let expected = parsed("numpy/expected.json")?;
    let files = expected["files"].as_object().ok_or("an object of files")?;
    let mut cases = Vec::new();
    for (name, entry) in files {
        let rows = || {
            let tensors = entry["tensors"].as_array().ok_or("a list of tensors")?;
            tensors
                .iter()
                .map(|row| {
                    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
                    let shape = serde_json::from_value(row["shape"].clone())?;
                    Ok(Row { name: text("name"), dtype: text("dtype"), shape, digest: text("sha256") })
                })
                .collect::<Outcome<Vec<_>>>()
        };
        cases.push(Case {
            path: fixture("numpy").join(name),
            select: None,
            assume: entry["assume"].as_str().and_then(DType::parse),
            expected: match entry["error"].as_str() {
                Some(error) => Err(error.to_owned()),
                None => Ok(rows()?),
            },
            ordered: true,
            aliases: BTreeMap::new(),
            metadata: text_map(&entry["metadata"]),
            digest: sha256,
        });
    }
    assert!(cases.iter().filter(|case| case.assume.is_some()).count() > 5);
    conform("numpy", &cases, 100);
    Ok(())
}

#[test]
fn every_file_of_ggml_is_as_its_package_says() -> Outcome {
    let mut expected = parsed("gguf/files/expected.json")?;
    expected.remove("versions");
    let rows = |entry: &Value| -> Outcome<Vec<Row>> {
        let list: Vec<(String, String, Vec<u64>, String)> = serde_json::from_value(entry["tensors"].clone())?;
        Ok(list.into_iter().map(|(name, dtype, shape, digest)| Row { name, dtype, shape, digest }).collect())
    };
    // Any part of a split model stands for the whole.
    let parts: Vec<&Value> = (1..=3).map(|n| &expected[&format!("split-0000{n}-of-00003.gguf")]).collect();
    let mut whole = Vec::new();
    let mut text = BTreeMap::new();
    for part in parts {
        whole.extend(rows(part)?);
        text_map(&part["metadata"]).into_iter().for_each(|(key, value)| {
            text.entry(key).or_insert(value);
        });
    }
    let mut cases = Vec::new();
    for (name, entry) in &expected {
        let is_part = name.starts_with("split-");
        cases.push(Case {
            path: fixture("gguf/files").join(name),
            select: None,
            assume: None,
            expected: Ok(if is_part { whole.clone() } else { rows(entry)? }),
            ordered: true,
            aliases: BTreeMap::new(),
            metadata: if is_part { text.clone() } else { text_map(&entry["metadata"]) },
            digest: if name == "big-endian.gguf" { fnv_big_endian } else { fnv },
        });
    }
    conform("gguf/files", &cases, 8);
    Ok(())
}

#[test]
fn a_set_that_is_not_there_names_the_nearest() {
    let options = OpenOptions { select: Some("state_dct".to_owned()), ..OpenOptions::default() };
    let error = Checkpoint::open_with(fixture("pytorch/training.pt"), &options).expect_err("there is no such set");
    assert!(matches!(&error, Error::Unknown { .. }) && error.to_string().contains("`state_dict`"), "{error}");
    // A file that holds one model does not care.
    Checkpoint::open_with(fixture("pytorch/plain.pt"), &options).expect("it has no sets to select from");
}

#[test]
fn what_is_left_beside_the_choice_is_said() {
    let model = Checkpoint::open(fixture("pytorch/training.pt")).expect("it is read");
    let [note] = model.notes() else { panic!("{:?}", model.notes()) };
    assert!(note.contains("`state_dict`") && note.contains("ema, optimizer") && note.contains("--select"), "{note}");
    assert!(Checkpoint::open(fixture("pytorch/plain.pt")).expect("it is read").notes().is_empty());
}

#[test]
fn empty_tensors_of_any_byte_order_are_read() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path().join("empty.npy");
    let mut header = b"\x93NUMPY\x01\0\x76\0{'descr': '>f4', 'fortran_order': True, 'shape': (3, 0, 2), }".to_vec();
    header.resize(127, b' ');
    header.push(b'\n');
    write(&path, header)?;
    for io in BOTH {
        let model = Checkpoint::open_with(&path, &io.into())?;
        let view = model.get("array").ok_or("it is called so")?;
        assert_eq!((view.tensor.shape.as_slice(), view.tensor.bytes), (&[3, 0, 2][..], 0));
        let mut buffer = vec![1; 3];
        assert!(view.read(0..0, &mut buffer)?.is_empty());
    }
    Ok(())
}

/// Tensors by name: type, shape and bytes.
type Read = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

/// Tensors as the host reads them, those of every set under the names they have in the file.
fn host(path: &Path) -> Outcome<Read> {
    let expected = parsed("pytorch/expected.json")?;
    let name = path.file_name().ok_or("it is a file")?.to_string_lossy();
    let subtrees: Vec<String> = serde_json::from_value(expected[&*name]["subtrees"].clone())?;
    let mut choices: Vec<(Option<String>, String)> =
        subtrees.into_iter().map(|subtree| (Some(subtree.clone()), format!("{subtree}."))).collect();
    if choices.is_empty() {
        choices.push((None, String::new()));
    }
    let mut all = BTreeMap::new();
    for (select, prefix) in choices {
        let model = Checkpoint::open_with(path, &OpenOptions { select, ..OpenOptions::default() })?;
        for tensor in model.tensors() {
            let mut buffer = Vec::new();
            let bytes = model.view(tensor).read(0..tensor.bytes, &mut buffer)?.to_vec();
            let row = (tensor.dtype.to_string(), tensor.shape.clone(), bytes);
            all.insert(format!("{prefix}{}", tensor.name), row);
        }
    }
    Ok(all)
}

/// A tensor's bytes with the other reader.
fn others(path: &Path) -> Outcome<Read> {
    let reader = PytorchReader::new(path)?;
    let rows = reader.tensors().iter().map(|(name, tensor)| {
        let shape = tensor.shape().iter().map(|&n| n as u64).collect();
        let dtype = format!("{:?}", tensor.dtype()).to_uppercase();
        Ok((name.clone(), (dtype, shape, tensor.read()?)))
    });
    rows.collect()
}

/// Files of which `pytorch-reader` 0.22.1 says something else than torch and we do, and what.
const DISAGREEMENTS: &[(&str, &str)] = &[
    ("a-name-of-21-letters_.pt", "refused: zip archive error"),
    ("bare.pt", "refused: invalid PyTorch file format: Expected a dictionary"),
    ("big-endian.pt", "refused: invalid PyTorch file format: Big-endian"),
    ("both.pth", "lost: params_ema.bias, params_ema.weight"),
    ("dtypes.pt", "refused: pickle: unsupported Python type 'torch.ComplexFloatStorage'"),
    ("keys.pt", "refused: pickle: invalid data in pickle file: dict key must be a str or int"),
    ("legacy-module.pt", "refused: pickle: invalid data in pickle file: storage persistent id"),
    ("list.pt", "refused: invalid PyTorch file format: Expected a dictionary"),
    ("namedtuple.pt", "refused: pickle: unsupported Python type '__main__.Batch'"),
    ("old-script.pt", "refused: pickle: unsupported Python type '__torch__"),
    ("script.pt", "refused: pickle: unsupported Python type '__torch__"),
    ("sparse-optimizer.pt", "refused: pickle: unsupported Python type 'torch._utils._rebuild_sparse_tensor'"),
    ("tuple-root.pt", "refused: invalid PyTorch file format: Expected a dictionary"),
];

#[test]
fn the_other_reader_of_torch_files_agrees() -> Outcome {
    let known: BTreeMap<&str, &str> = DISAGREEMENTS.iter().copied().collect();
    let (mut agreed, mut disagreed) = (0, BTreeMap::new());
    for (name, entry) in parsed("pytorch/expected.json")? {
        if entry["error"].is_string() {
            continue;
        }
        let path = fixture("pytorch").join(&name);
        let mut ours = host(&path)?;
        let theirs = match others(&path) {
            Ok(theirs) => theirs,
            Err(error) => {
                disagreed.insert(name, format!("refused: {error}"));
                continue;
            }
        };
        let missing: Vec<_> = ours.keys().filter(|name| !theirs.contains_key(*name)).cloned().collect();
        if !missing.is_empty() {
            disagreed.insert(name.clone(), format!("lost: {}", missing.join(", ")));
        }
        // Tensors in none of the sets cannot be selected.
        ours.retain(|name, _| theirs.contains_key(name));
        for (tensor, ours) in &ours {
            assert_eq!(ours, &theirs[tensor], "{name}: {tensor}");
            agreed += 1;
        }
    }
    assert!(agreed > 150, "only {agreed} tensors were compared");
    for (name, what) in &disagreed {
        assert!(known.get(name.as_str()).is_some_and(|known| what.contains(known)), "{name}: {what}");
    }
    assert_eq!(disagreed.len(), known.len(), "one that was known is gone: {disagreed:#?}");
    Ok(())
}

#[test]
fn negated_views_are_refused_where_the_other_reader_has_the_wrong_sign() -> Outcome {
    let path = fixture("pytorch/neg.pt");
    let error = Checkpoint::open(&path).expect_err("its bytes are those of the positive numbers");
    assert!(error.to_string().contains("tensor `b`: its neg bit"), "{error}");
    let theirs = others(&path)?;
    assert_eq!(decode(DType::F32, &theirs["b"].2), [1.0, 3.0], "to torch they are -1 and -3: mended there");
    Ok(())
}

#[test]
fn a_dict_under_two_names_has_both() -> Outcome {
    let path = fixture("convert/shared-dict.pt");
    let theirs = others(&path)?;
    assert_eq!(theirs.len(), 1, "mended there: {:?}", theirs.keys());
    let model = Checkpoint::open(&path)?;
    let rows: Vec<_> = model.tensors().iter().map(|tensor| (tensor.name.as_str(), &tensor.alias_of)).collect();
    assert_eq!(rows, [("a.weight", &None), ("b.weight", &Some("a.weight".to_owned()))]);
    for tensor in model.tensors() {
        let mut buffer = Vec::new();
        let expected: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        assert_eq!(model.view(tensor).read(0..24, &mut buffer)?, expected);
    }
    Ok(())
}

#[test]
fn eight_bit_floats_are_read_where_the_other_reader_refuses_the_file() -> Outcome {
    let path = fixture("convert/fp8.pt");
    assert!(others(&path).is_err(), "mended there");
    let model = Checkpoint::open(&path)?;
    let view = model.get("w").ok_or("it is there")?;
    assert_eq!((view.tensor.dtype, &view.tensor.shape[..]), (DType::F8E4M3, &[4, 4][..]));
    let mut buffer = Vec::new();
    let numbers = decode(DType::F8E4M3, view.read(0..16, &mut buffer)?);
    assert_eq!(numbers, (0..16).map(f64::from).collect::<Vec<_>>());
    Ok(())
}
