//! Damaged folders of `fixtures/deepspeed`: no cut and no flipped byte panics, and what is accepted is sound. That whole
//! ones are as DeepSpeed joins them is a test of the program, which opens all the files.

use ckptmerge_format::{Data, Fault, Format, FormatError, Index, Source};
use ckptmerge_format_pytorch::PyTorch;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;

/// The files of a folder in memory.
type Files = BTreeMap<String, Rc<[u8]>>;

/// A file of a folder.
struct Part {
    files: Rc<Files>,
    name: String,
}

impl Source for Part {
    fn len(&self) -> u64 {
        self.files[&self.name].len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| self.files[&self.name].get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(range.ok_or_else(|| FormatError::new(Fault::Read, "read outside the file"))?);
        Ok(())
    }

    fn name(&self) -> Option<&str> {
        Some(&self.name)
    }

    fn sibling(&self, name: &str) -> Result<Box<dyn Source>, FormatError> {
        assert!(!name.contains(['/', '\\']) && !name.is_empty() && name != "..", "{name:?} is followed");
        if !self.files.contains_key(name) {
            return Err(FormatError::new(Fault::Read, format!("the file {name} beside it is missing")));
        }
        Ok(Box::new(Self { files: Rc::clone(&self.files), name: name.to_owned() }))
    }
}

/// The step of a golden folder.
fn golden(name: &str) -> Files {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/deepspeed").join(name).join("global_step3");
    let entries = std::fs::read_dir(path).expect("the folder is part of the repository");
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.expect("it can be listed");
        let name = entry.file_name().into_string().expect("names are ASCII");
        (name, std::fs::read(entry.path()).expect("it can be read").into())
    };
    entries.map(file).collect()
}

fn index(files: &Files, name: &str) -> Result<Index, FormatError> {
    PyTorch.index(&Part { files: Rc::new(files.clone()), name: name.to_owned() })
}

/// Holds an index against what the host takes for granted.
fn assert_sound(files: &Files, main: &str, index: &Index) {
    let length = |file: usize| match file.checked_sub(1) {
        None => files[main].len() as u64,
        Some(other) => files[&index.files[other]].len() as u64,
    };
    assert_eq!(index.files.iter().collect::<HashSet<_>>().len(), index.files.len(), "a file is named twice");
    let names: HashSet<_> = index.tensors.iter().map(|tensor| &tensor.name).collect();
    assert_eq!(names.len(), index.tensors.len(), "a name stands twice");
    for tensor in &index.tensors {
        let elements = tensor.elements().expect("the number of elements fits");
        let bytes = tensor.dtype.size_of(elements).expect("the size fits");
        let width = tensor.dtype.bytes().expect("torch packs nothing") as u64;
        match &tensor.data {
            Data::Dense(extent) => {
                assert_eq!(extent.length, bytes, "{tensor:?}");
                assert!(extent.offset + extent.length <= length(0), "{tensor:?}");
            }
            Data::Pieces(pieces) => {
                assert_eq!(pieces.grid.iter().product::<u64>(), elements, "{tensor:?}");
                let held: u64 = pieces.boxes.iter().map(|piece| piece.shape.iter().product::<u64>()).sum();
                assert_eq!(held, elements, "{tensor:?}");
                for piece in &pieces.boxes {
                    let steps = piece.shape.iter().zip(&piece.strides).map(|(n, stride)| (n - 1) * stride);
                    assert!(piece.offset + (steps.sum::<u64>() + 1) * width <= length(piece.file), "{tensor:?}");
                }
            }
            Data::Alias(target) => assert!(names.contains(target), "{tensor:?}"),
            other => panic!("`{}` is {other:?}", tensor.name),
        }
    }
}

#[test]
fn any_rank_stands_for_the_model() {
    for (folder, ranks) in [("zero2-three-ranks", 3), ("zero3-three-ranks", 3)] {
        let files = golden(folder);
        let mut tables = Vec::new();
        for rank in 0..ranks {
            let name = format!("bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt");
            let index = index(&files, &name).expect("it is in order");
            assert_sound(&files, &name, &index);
            assert!(!index.files.contains(&name), "the file itself is number 0");
            let mut table: Vec<_> = index.tensors.into_iter().map(|t| (t.name, t.dtype, t.shape)).collect();
            table.sort_by(|a, b| a.0.cmp(&b.0));
            tables.push(table);
        }
        assert!(tables[0].len() > 8 && tables.windows(2).all(|pair| pair[0] == pair[1]), "{folder}: {tables:?}");
    }
}

#[test]
fn a_rank_that_is_not_called_so_is_refused() {
    let mut files = golden("zero2-bf16");
    let name = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt";
    let bytes = Rc::clone(&files[name]);
    for other in ["optim.pt", "zero_pp_rank_x_mp_rank_00_optim_states.pt", "zero_pp_rank_0_mp_rank_01_optim_states.pt"]
    {
        files.insert(other.to_owned(), Rc::clone(&bytes));
        let error = index(&files, other).expect_err("which rank it is is not known").to_string();
        assert!(error.contains("not called zero_pp_rank_N_mp_rank_00_optim_states.pt"), "{error}");
    }
    let high = "bf16_zero_pp_rank_7_mp_rank_00_optim_states.pt";
    files.insert(high.to_owned(), bytes);
    let error = index(&files, high).expect_err("there are two ranks").to_string();
    assert!(error.contains("rank 7 of a run of 2"), "{error}");
}

/// The same archive without the sum that guards its pickle, as torch writes it when told to, and where the pickle is.
fn unguarded(bytes: &[u8]) -> (Vec<u8>, std::ops::Range<usize>) {
    let mut bytes = bytes.to_vec();
    let find = |bytes: &[u8], from: usize, what: &[u8]| {
        bytes[from..].windows(what.len()).position(|window| window == what).map(|place| place + from)
    };
    let first = find(&bytes, 0, b"/data.pkl").expect("it is in the first header");
    let start = find(&bytes, first, b"\x80\x02").expect("a pickle begins so");
    let end = find(&bytes, start, b"PK").expect("another header follows");
    let directory = find(&bytes, end, b"PK\x01\x02").expect("there is a directory");
    let record = find(&bytes, directory, b"/data.pkl").expect("the first entry is the pickle");
    assert!(record < directory + 100, "it is the first");
    bytes[directory + 16..directory + 20].fill(0);
    (bytes, start..end)
}

#[test]
fn no_cut_and_no_flipped_byte_panics() {
    for folder in ["zero2-bf16", "zero3-bf16"] {
        let whole = golden(folder);
        let main = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt";
        let (mut accepted, mut refused) = (0, 0);
        let mut check = |files: &Files| match index(files, main) {
            Ok(index) => {
                assert_sound(files, main, &index);
                accepted += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        };
        for (name, bytes) in &whole {
            let mut files = whole.clone();
            for kept in (0..bytes.len()).step_by(211) {
                files.insert(name.clone(), bytes[..kept].into());
                check(&files);
            }
            let (bytes, pickle) = unguarded(bytes);
            files.insert(name.clone(), bytes.clone().into());
            assert!(index(&files, main).is_ok(), "{name} is in order without its sum");
            for place in pickle.step_by(7) {
                let mut flipped = bytes.clone();
                flipped[place] ^= 1 << (place % 8);
                files.insert(name.clone(), flipped.into());
                check(&files);
            }
        }
        assert!(accepted > 100 && refused > 200, "{folder}: {accepted} accepted, {refused} refused");
    }
}
