//! Files by the PyPI package `gguf`, the same written anew, and files made by hand to do harm.

use super::*;
use ckptmerge_format::{Data, Extent, Fault, TensorInfo};
use serde_json::Value;
use std::path::{Path, PathBuf};

struct Bytes(Vec<u8>);

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

/// The given bytes, and zeros up to a length that no machine has memory for.
struct Endless(Vec<u8>);

impl Source for Endless {
    fn len(&self) -> u64 {
        1 << 60
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        for (i, byte) in (offset as usize..).zip(buffer) {
            *byte = self.0.get(i).copied().unwrap_or(0);
        }
        Ok(())
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf/files")
}

fn read(name: &str) -> Bytes {
    Bytes(std::fs::read(folder().join(name)).expect("the fixture is there"))
}

fn expected() -> serde_json::Map<String, Value> {
    let text = std::fs::read_to_string(folder().join("expected.json")).expect("the fixture is there");
    let Value::Object(mut files) = serde_json::from_str(&text).expect("it is JSON") else { panic!("it is an object") };
    files.remove("versions");
    files
}

/// FNV-1a of 64 bits.
fn fnv(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

fn dense(info: &TensorInfo) -> Extent {
    let Data::Dense(extent) = info.data else { panic!("{} is not dense", info.name) };
    extent
}

fn bytes<'a>(file: &'a Bytes, info: &TensorInfo) -> &'a [u8] {
    let Extent { offset, length } = dense(info);
    &file.0[offset as usize..][..length as usize]
}

#[test]
fn files_of_the_package_are_read() {
    let expected = expected();
    let mut found: Vec<String> = std::fs::read_dir(folder())
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").file_name().into_string().expect("names are plain"))
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    found.sort();
    let mut listed: Vec<&String> = expected.keys().collect();
    listed.sort();
    assert_eq!(found.iter().collect::<Vec<_>>(), listed);

    for (name, entry) in &expected {
        let file = read(name);
        assert!(Gguf.recognises(&file.0[..64], file.len()));
        let index = Gguf.index(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        let text: Metadata = serde_json::from_value(entry["metadata"].clone()).expect("it is text");
        assert_eq!(index.metadata, text, "{name}");
        let tensors: Vec<Value> = index
            .tensors
            .iter()
            .map(|info| serde_json::json!([info.name, info.dtype.name(), info.shape, fnv(bytes(&file, info))]))
            .collect();
        assert_eq!(Value::from(tensors), entry["tensors"], "{name}");
        assert!(index.tensors.iter().all(|info| info.big_endian == (name == "big-endian.gguf")), "{name}");
    }
}

/// The file that a plan and the tensors' bytes make.
fn written(tensors: &[TensorSpec], metadata: &Metadata, bytes: &[&[u8]]) -> Bytes {
    let plan = Gguf.plan_write(tensors, metadata).expect("it can be written");
    let mut file = vec![0xee; plan.length as usize];
    for segment in &plan.segments {
        file[segment.offset as usize..][..segment.bytes.len()].copy_from_slice(&segment.bytes);
    }
    for (offset, bytes) in plan.offsets.iter().zip(bytes) {
        if let Some(offset) = offset {
            file[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    Bytes(file)
}

fn spec(name: &str, dtype: DType, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec(), alias_of: None }
}

#[test]
fn rewritten_files_are_the_same() {
    for name in expected().keys() {
        let file = read(name);
        let index = Gguf.index(&file).expect("it is valid");
        let tensors: Vec<_> = index.tensors.iter().map(|info| spec(&info.name, info.dtype, &info.shape)).collect();
        let data: Vec<Vec<u8>> = index
            .tensors
            .iter()
            .map(|info| {
                let mut bytes = bytes(&file, info).to_vec();
                if info.big_endian {
                    bytes.chunks_exact_mut(info.dtype.block_bytes() as usize).for_each(<[u8]>::reverse);
                }
                bytes
            })
            .collect();
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let again = written(&tensors, &index.metadata, &data);
        let second = Gguf.index(&again).expect("what is written can be read");

        let kept: Metadata = index.metadata.clone().into_iter().filter(|(key, _)| !key.starts_with("split.")).collect();
        assert_eq!(second.metadata, kept, "{name}");
        assert_eq!(second.tensors.len(), index.tensors.len(), "{name}");
        for ((one, two), data) in index.tensors.iter().zip(&second.tensors).zip(data) {
            assert_eq!((&one.name, one.dtype, &one.shape), (&two.name, two.dtype, &two.shape), "{name}");
            assert_eq!(bytes(&again, two), data, "{name}");
            assert!(!two.big_endian);
        }
        // What fixtures/gguf/check_writer.py looks at.
        if let Some(folder) = std::env::var_os("GGUF_DUMP") {
            std::fs::write(Path::new(&folder).join(name), &again.0).expect("the folder can be written to");
        }
    }
}

#[test]
fn every_type_with_a_number_is_stored() {
    for dtype in DType::all() {
        let tensor = spec("t", dtype, &[2, 256]);
        let plan = Gguf.plan_write(std::slice::from_ref(&tensor), &Metadata::new());
        assert_eq!(plan.is_ok(), Gguf.can_store(dtype), "{dtype}");
        let Ok(plan) = plan else { continue };
        let length = dtype.size_of(512).expect("512 elements are whole blocks of any type");
        let file = written(&[tensor], &Metadata::new(), &[&vec![7; length as usize]]);
        let index = Gguf.index(&file).expect("what is written can be read");
        assert_eq!(index.tensors[0].dtype, dtype);
        assert_eq!(dense(&index.tensors[0]), Extent { offset: plan.offsets[0].expect("it is stored"), length });
        assert_eq!(plan.length, (length + plan.offsets[0].expect("it is stored")).next_multiple_of(32));
    }
    let is_quantized = |dtype: &DType| dtype.kind() == ckptmerge_format::Kind::Quantized;
    assert!(DType::all().filter(is_quantized).all(|dtype| Gguf.can_store(dtype)));
}

#[test]
fn scalars_and_foreign_keys_are_written() {
    let tensors = [spec("a", DType::F16, &[]), spec("b", DType::F32, &[2])];
    let metadata: Metadata = [
        ("general.architecture", "llama"),
        ("general.a", "x"),
        ("a", "gguf:u32:1"),
        ("format", "pt"),
        ("split.count", "gguf:u16:2"),
        ("general.alignment", "gguf:u32:64"),
    ]
    .map(|(key, text)| (key.to_owned(), text.to_owned()))
    .into();
    let file = written(&tensors, &metadata, &[&[1, 2], &[1, 2, 3, 4, 5, 6, 7, 8]]);
    let first = 24 + 8;
    assert_eq!(&file.0[first..][..20], b"general.architecture");

    let index = Gguf.index(&file).expect("what is written can be read");
    assert_eq!(index.metadata.len(), 5);
    assert_eq!(index.metadata["format"], "pt");
    assert_eq!(index.tensors[0].shape, [1]);
    assert_eq!(dense(&index.tensors[0]).offset + 64, dense(&index.tensors[1]).offset);
}

#[test]
fn what_gguf_cannot_hold_is_refused() {
    let refused = |tensor: &TensorSpec, message: &str| {
        let error = Gguf.plan_write(std::slice::from_ref(tensor), &Metadata::new()).expect_err(message);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.tensor.as_ref(), Some(&tensor.name));
    };
    refused(&spec(&"n".repeat(64), DType::F32, &[1]), "the name has 64 bytes; GGUF allows 63");
    refused(&spec("t", DType::F32, &[1; 5]), "has 5 dimensions; GGUF allows 4");
    refused(&TensorSpec { alias_of: Some("u".to_owned()), ..spec("t", DType::F32, &[1]) }, "no way to tie it");
    refused(&spec("t", DType::U8, &[1]), "GGUF has no type U8");
    refused(&spec("t", DType::Q4_K, &[256, 128]), "rows of 128 elements are not whole blocks of 256 Q4_K");
    refused(&spec("t", DType::F32, &[1 << 62, 4]), "overflows");
    refused(&spec("t", DType::F32, &[u64::MAX / 4]), "overflows");
    assert!(Gguf.plan_write(&[spec(&"n".repeat(63), DType::F32, &[1; 4])], &Metadata::new()).is_ok());
    let long = Metadata::from([("key".to_owned(), "x".repeat(MAX_HEADER as usize))]);
    assert_eq!(Gguf.plan_write(&[], &long).expect_err("it is too long").fault, Fault::Limit);
    let twice = [spec("t", DType::F32, &[1]), spec("t", DType::F32, &[1])];
    assert!(Gguf.plan_write(&twice, &Metadata::new()).is_err());
}

#[test]
fn text_of_every_value_is_read_back() {
    let values = [
        "gguf:f32:\"nan\"",
        "gguf:f32:\"nan:ffc00001\"",
        "gguf:f32:-0.0",
        "gguf:f32:3.4028235e38",
        "gguf:f32:16777216.0",
        "gguf:f64:\"nan:7ff0000000000001\"",
        "gguf:f64:5e-324",
        "gguf:arr[u32]:[]",
        "gguf:arr[arr]:[{\"str\":[]},{\"arr\":[]}]",
        "gguf:arr[f32]:[0.1,1e-45,\"-inf\"]",
        "gguf:str:\"gguf:\"",
        "gguf",
        "",
    ];
    for text in values {
        let metadata = Metadata::from([("key".to_owned(), text.to_owned())]);
        let index = Gguf.index(&written(&[], &metadata, &[])).expect("what is written can be read");
        assert_eq!(index.metadata["key"], text);
    }
    // Each f32 of a sample of all of them.
    let items: Vec<String> = (0..=u32::MAX)
        .step_by(1_299_709)
        .map(f32::from_bits)
        .filter(|value| value.is_finite())
        .map(|value| format!("{:?}", f64::from(value)))
        .collect();
    let metadata = Metadata::from([("key".to_owned(), format!("gguf:arr[f32]:[{}]", items.join(",")))]);
    let first = written(&[], &metadata, &[]);
    let second = written(&[], &Gguf.index(&first).expect("it can be read").metadata, &[]);
    assert_eq!(first.0, second.0);

    for text in [
        "gguf:",
        "gguf:u8",
        "gguf:u8:256",
        "gguf:u8:-1",
        "gguf:u8:1.5",
        "gguf:u9:1",
        "gguf:bool:1",
        "gguf:arr:[]",
        "gguf:arr[u8]:1",
        "gguf:arr[arr]:[[1]]",
        "gguf:bytes:\"f\"",
        "gguf:bytes:\"zz\"",
        "gguf:f32:\"x\"",
        "gguf:u8:1 2",
        "gguf:arr[arr]:[{}]",
        "gguf:bytes:\"é\"",
    ] {
        let metadata = Metadata::from([("key".to_owned(), text.to_owned())]);
        let error = Gguf.plan_write(&[], &metadata).expect_err(text);
        assert!(error.to_string().contains("key `key`"), "{error}");
    }
}

#[test]
fn parts_of_split_models_are_named() {
    let names = split_files("m-x-00002-of-00003.gguf").expect("it is a part");
    assert_eq!(names, ["m-x-00001-of-00003.gguf", "m-x-00002-of-00003.gguf", "m-x-00003-of-00003.gguf"]);
    for name in ["m.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-1-of-3.gguf", "m-0000+-of-00003.gguf"] {
        assert_eq!(split_files(name), None, "{name}");
    }
}

/// A header by hand: version 3, the numbers of tensors and keys, and what follows.
fn header(tensors: u64, pairs: u64, rest: &[&[u8]]) -> Vec<u8> {
    [b"GGUF".as_slice(), &3u32.to_le_bytes(), &tensors.to_le_bytes(), &pairs.to_le_bytes(), &rest.concat()].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(name), kind.to_le_bytes().as_slice(), value].concat()
}

fn tensor(name: &str, shape: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let shape_bytes: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
    let dimensions = (shape.len() as u32).to_le_bytes();
    [&string(name), dimensions.as_slice(), &shape_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn with_byte(mut file: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    file[at] = byte;
    file
}

/// A file with these tensors and 256 bytes of data.
fn with_data(tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut file = header(tensors.len() as u64, 0, &tensors.iter().map(Vec::as_slice).collect::<Vec<_>>());
    file.resize(file.len().next_multiple_of(32) + 256, 0);
    file
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for name in ["version-2.gguf", "big-endian.gguf", "types.gguf"] {
        let whole = read(name);
        let index = Gguf.index(&whole).expect("it is valid");
        let last = dense(index.tensors.last().expect("it has tensors"));
        for length in 0..last.offset + last.length {
            let error = Gguf.index(&Bytes(whole.0[..length as usize].to_vec())).expect_err("it is cut");
            assert_eq!(error.fault, Fault::Corrupt, "{name} at {length}: {error}");
        }
    }
}

#[test]
fn a_file_with_any_byte_changed_does_not_panic() {
    for name in ["values.gguf", "big-endian.gguf"] {
        let mut file = read(name);
        for at in 0..file.0.len() {
            for value in [0, 1, 9, 0x7f, 0x80, 0xff] {
                let was = std::mem::replace(&mut file.0[at], value);
                let _ = Gguf.index(&file);
                file.0[at] = was;
            }
        }
    }
}

#[test]
fn hostile_files_are_errors() {
    const MAX: u64 = u64::MAX;
    let array = |kind: u32, count: u64| [kind.to_le_bytes().as_slice(), &count.to_le_bytes()].concat();
    let nested = |depth| key("k", 9, &array(9, 1).repeat(depth));
    let bad_alignment = |kind, value: u32| header(0, 1, &[&key("general.alignment", kind, &value.to_le_bytes())]);
    let cases = [
        (header(MAX, 0, &[]), Fault::Corrupt, "a table of 18446744073709551615 tensors"),
        (header(0, MAX / 13 + 1, &[]), Fault::Corrupt, "keys from byte 24 on is cut short"),
        (header(1 << 40, 0, &[]), Fault::Corrupt, "cut short"),
        (header(0, 1, &[&MAX.to_le_bytes(), &[0; 9]]), Fault::Corrupt, "a string of 18446744073709551615 bytes"),
        (header(0, 1, &[&key("k", 8, &(1u64 << 40).to_le_bytes())]), Fault::Corrupt, "a string of 1099511627776 bytes"),
        (header(0, 1, &[&key("k", 9, &array(4, MAX / 4 + 1))]), Fault::Corrupt, "key `k`: the file ends"),
        (header(0, 1, &[&key("k", 9, &array(8, 1 << 40))]), Fault::Corrupt, "an array of 1099511627776 values"),
        (header(0, 1, &[&key("k", 9, &array(13, 0))]), Fault::Corrupt, "there is no type 13 of values"),
        (header(0, 1, &[&key("k", 77, &[0])]), Fault::Corrupt, "there is no type 77 of values"),
        (header(0, 1, &[&nested(100)]), Fault::Limit, "nested 8 deep"),
        (
            header(0, 1, &[&with_byte(key("k", 0, &[0]), 8, 0xff)]),
            Fault::Corrupt,
            "a key of 1 bytes is not UTF-8: `\\xff`",
        ),
        (header(0, 2, &[&key("k", 0, &[0]).repeat(2)]), Fault::Corrupt, "the key `k` stands twice"),
        (bad_alignment(4, 0), Fault::Corrupt, "is not a u32 that is a power of two"),
        (bad_alignment(4, 48), Fault::Corrupt, "`gguf:u32:48` is not"),
        (bad_alignment(4, 1 << 21), Fault::Corrupt, "at most 1048576"),
        (bad_alignment(5, 32), Fault::Corrupt, "is not a u32"),
        (with_data(&[tensor("t", &[1; 5], 0, 0)]), Fault::Limit, "tensor `t`: it has 5 dimensions"),
        (with_data(&[tensor("t", &[1], 4, 0)]), Fault::Unsupported, "tensor `t`: its type 4 (Q4_2) was removed"),
        (with_data(&[tensor("t", &[1], 99, 0)]), Fault::Unsupported, "tensor `t`: ggml had no type 99"),
        (with_data(&[tensor("t", &[1], 0, 4)]), Fault::Corrupt, "which is no multiple of 32"),
        (with_data(&[tensor("t", &[65], 0, 0)]), Fault::Corrupt, "are not in the file"),
        (with_data(&[tensor("t", &[1], 0, MAX - 31)]), Fault::Corrupt, "are not in the file"),
        (with_data(&[tensor("t", &[1 << 32, 1 << 32], 0, 0)]), Fault::Corrupt, "overflows 64 bits"),
        (with_data(&[tensor("t", &[MAX], 0, 0)]), Fault::Corrupt, "overflows 64 bits"),
        (with_data(&[tensor("t", &[16, 2], 2, 0)]), Fault::Corrupt, "are not whole blocks of 32 Q4_0"),
        (with_data(&[tensor("t", &[1], 0, 0), tensor("t", &[1], 0, 32)]), Fault::Corrupt, "the name stands twice"),
        (with_data(&[tensor("t", &[9], 0, 0), tensor("u", &[1], 0, 32)]), Fault::Corrupt, "tensor `u`: its data"),
        (with_data(&[tensor("u", &[1], 0, 0), tensor("t", &[1], 0, 0)]), Fault::Corrupt, "overlaps the tensor"),
        (with_byte(header(0, 0, &[]), 4, 1), Fault::Unsupported, "version 1 of GGUF"),
        (with_byte(header(0, 0, &[]), 4, 4), Fault::Unsupported, "version 4 of GGUF"),
        (with_byte(header(0, 0, &[]), 4, 0), Fault::Unsupported, "version 0 of GGUF"),
        (with_byte(header(0, 0, &[]), 0, b'X'), Fault::Corrupt, "does not begin with `GGUF`"),
    ];
    for (file, fault, message) in cases {
        let error = Gguf.index(&Bytes(file)).expect_err(message);
        assert!(error.to_string().contains(message), "{error}, not {message}");
        assert_eq!(error.fault, fault, "{error}");
    }
}

#[test]
fn a_header_may_not_be_endless() {
    let cases = [
        header(1 << 50, 0, &[]),
        header(0, 1 << 50, &[]),
        header(0, 1, &[&(1u64 << 50).to_le_bytes()]),
        header(0, 1, &[&key("k", 9, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])]),
    ];
    for file in cases {
        let error = Gguf.index(&Endless(file)).expect_err("it is too long");
        assert_eq!(error.fault, Fault::Limit, "{error}");
    }
}

#[test]
fn big_endian_blocks_are_refused() {
    let mut file = [b"GGUF".as_slice(), &[0, 0, 0, 3], &1u64.to_be_bytes(), &0u64.to_be_bytes()].concat();
    file.extend(1u64.to_be_bytes());
    file.extend(b"t");
    file.extend(1u32.to_be_bytes());
    file.extend(32u64.to_be_bytes());
    file.extend(8u32.to_be_bytes());
    file.extend([0; 80]);
    let error = Gguf.index(&Bytes(file)).expect_err("its blocks are big-endian");
    assert_eq!(error.fault, Fault::Unsupported);
    assert!(error.to_string().starts_with("tensor `t`: its type is Q8_0"), "{error}");
}

#[test]
fn padding_may_not_be_endless() {
    let tensors: Vec<_> = (0..200).map(|i| spec(&format!("t{i}"), DType::I8, &[1])).collect();
    let metadata = Metadata::from([("general.alignment".to_owned(), "gguf:u32:1048576".to_owned())]);
    let error = Gguf.plan_write(&tensors, &metadata).expect_err("200 MB of nothing");
    assert!(error.to_string().contains("an alignment of 1048576 bytes takes 209715000 bytes of padding"), "{error}");
    assert!(Gguf.plan_write(&tensors[..50], &metadata).is_ok());
}
