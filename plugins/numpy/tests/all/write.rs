//! Files of our own, read back. `fixtures/numpy/check_writer.py` reads the same files with NumPy.

use crate::gather::{Bytes, elements, format};
use ckptmerge_format::{DType, Data, Fault, Format, FormatError, Metadata, Source, TensorSpec, WritePlan};
use ckptmerge_format_numpy::{Npy, Npz};
use serde_json::{Map, Value, json};
use std::io::Cursor;
use std::path::PathBuf;
use zip::ZipArchive;

fn spec(name: &str, dtype: DType, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec(), alias_of: None }
}

fn size(tensor: &TensorSpec) -> usize {
    tensor.dtype.size_of(tensor.shape.iter().product()).expect("it is small") as usize
}

/// What the host does with a plan, each byte at most once.
fn write(format: &dyn Format, tensors: &[(TensorSpec, Vec<u8>)], metadata: &Metadata) -> Vec<u8> {
    let specs: Vec<TensorSpec> = tensors.iter().map(|tensor| tensor.0.clone()).collect();
    let plan = format.plan_write(&specs, metadata).expect("it can be written");
    let mut segments = plan.segments.clone();
    if plan.wants_crc32 {
        let crc32: Vec<u32> = tensors.iter().map(|tensor| crc32fast::hash(&tensor.1)).collect();
        let finished = format.finish_write(&plan, &specs, metadata, &crc32).expect("it can be finished");
        let places = |segments: &[ckptmerge_format::Segment]| -> Vec<_> {
            segments.iter().map(|segment| (segment.offset, segment.bytes.len())).collect()
        };
        assert_eq!(places(&segments), places(&finished), "the checksums move nothing");
        segments = finished;
    }
    let mut file = vec![None; plan.length as usize];
    let data = plan.offsets.iter().zip(tensors).map(|(offset, tensor)| (offset.expect("nothing is tied"), &tensor.1));
    for (offset, bytes) in segments.iter().map(|segment| (segment.offset, &segment.bytes)).chain(data) {
        assert!(bytes.is_empty() || offset < plan.length);
        for (place, &byte) in file[offset as usize..].iter_mut().zip(bytes) {
            assert_eq!(place.replace(byte), None, "a byte is written twice");
        }
    }
    file.into_iter().map(|byte| byte.expect("every byte is written")).collect()
}

fn storable(format: &dyn Format) -> Vec<DType> {
    DType::all().filter(|&dtype| format.can_store(dtype)).collect()
}

/// A tensor of each type, and some of odd names and shapes.
fn zoo() -> Vec<(TensorSpec, Vec<u8>)> {
    let mut specs: Vec<_> =
        storable(&Npz).into_iter().map(|dtype| spec(&format!("of.{dtype}"), dtype, &[3, 5])).collect();
    specs.extend([
        spec("scalar", DType::F32, &[]),
        spec("empty", DType::F64, &[2, 0]),
        spec("vector", DType::I16, &[7]),
        spec("größe", DType::U8, &[1, 1, 3]),
        spec("blocks/1/scale", DType::F16, &[9]),
        spec("", DType::U8, &[1]),
    ]);
    // Names of every length up to one alignment need every length of padding.
    specs.extend((1..=64).map(|length| spec(&"n".repeat(length), DType::U8, &[length as u64])));
    specs
        .into_iter()
        .enumerate()
        .map(|(number, spec)| {
            let modulus = if spec.dtype == DType::Bool { 2 } else { 251 };
            let bytes = (0..size(&spec)).map(|i| ((i * 7 + number) % modulus) as u8).collect();
            (spec, bytes)
        })
        .collect()
}

fn read_back(file: Vec<u8>, tensors: &[(TensorSpec, Vec<u8>)], metadata: &Metadata) {
    let file = Bytes(file);
    let index = format(&file).expect("it is recognised").index_assuming(&file, Some(DType::BF16)).expect("it is valid");
    assert_eq!(index.warnings, Vec::<String>::new());
    assert_eq!(&index.metadata, metadata);
    assert_eq!(index.tensors.len(), tensors.len());
    for (read, (spec, bytes)) in index.tensors.iter().zip(tensors) {
        assert_eq!((&read.name, read.dtype, &read.shape), (&spec.name, spec.dtype, &spec.shape));
        let Data::Dense(extent) = &read.data else { panic!("{:?}", read.data) };
        assert_eq!(extent.offset % 64, 0, "{} is not aligned", spec.name);
        assert_eq!(&elements(&file, read), bytes, "{}", spec.name);
    }
    if file.0.starts_with(b"PK") {
        every_checksum_holds(file.0);
    }
}

/// Reads every member of an archive to its end, where the `zip` crate compares checksums.
fn every_checksum_holds(file: Vec<u8>) {
    let mut archive = ZipArchive::new(Cursor::new(file)).expect("it is a zip archive");
    archive.validate_header_consistency().expect("both headers of each member agree");
    for number in 0..archive.len() {
        let mut member = archive.by_index(number).expect("it is stored");
        std::io::copy(&mut member, &mut std::io::sink()).expect("its checksum holds");
    }
}

#[test]
fn what_is_written_is_read_back() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_PKG_NAME"));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let text = Metadata::from([("format".to_owned(), "pt".to_owned()), ("recipe".to_owned(), "a \"ü\"\n".to_owned())]);
    let none = Metadata::new();
    let mut written = Map::new();
    let mut keep = |name: String, format: &dyn Format, tensors: &[(TensorSpec, Vec<u8>)], metadata: &Metadata| {
        let file = write(format, tensors, metadata);
        std::fs::write(folder.join(&name), &file).expect("it can be written");
        read_back(file, tensors, metadata);
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let tensors = tensors.iter().map(|(spec, bytes)| {
            json!({"name": spec.name, "dtype": spec.dtype.name(), "shape": spec.shape, "bytes": hexadecimal(bytes)})
        });
        written.insert(name, json!({"tensors": Vec::<Value>::from_iter(tensors), "metadata": metadata}));
    };
    keep("zoo.npz".to_owned(), &Npz, &zoo(), &text);
    keep("zoo-without-metadata.npz".to_owned(), &Npz, &zoo(), &none);
    keep("empty.npz".to_owned(), &Npz, &[], &none);
    keep("metadata-alone.npz".to_owned(), &Npz, &[], &text);
    for (mut spec, bytes) in zoo().into_iter().take(storable(&Npy).len() + 3) {
        let name = format!("{}.npy", spec.name);
        spec.name = "array".to_owned();
        keep(name, &Npy, &[(spec, bytes)], &none);
    }
    std::fs::write(folder.join("written.json"), Value::Object(written).to_string()).expect("it can be written");
}

/// An archive of which only the headers are there; the elements are 0.
struct Sparse(WritePlan);

impl Source for Sparse {
    fn len(&self) -> u64 {
        self.0.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        assert!(offset + buffer.len() as u64 <= self.len());
        buffer.fill(0);
        for segment in &self.0.segments {
            for (at, &byte) in (segment.offset..).zip(&segment.bytes) {
                if let Some(place) = at.checked_sub(offset).and_then(|i| buffer.get_mut(usize::try_from(i).ok()?)) {
                    *place = byte;
                }
            }
        }
        Ok(())
    }
}

#[test]
fn metadata_is_an_array_of_bytes() {
    let text = Metadata::from([("key".to_owned(), "value".to_owned())]);
    let file = write(&Npz, &[(spec("a", DType::U8, &[1]), vec![7])], &text);
    let mut archive = ZipArchive::new(Cursor::new(file)).expect("it is a zip archive");
    let names: Vec<String> = archive.file_names().map(|name| name.expect("it is text").into_owned()).collect();
    assert_eq!(names, ["a.npy", "__metadata__.npy"], "numpy.load makes an array of each member");
    let mut member = Vec::new();
    let mut stored = archive.by_name("__metadata__.npy").expect("it is there");
    std::io::Read::read_to_end(&mut stored, &mut member).expect("it is stored");
    let member = Bytes(member);
    let index = Npy.index(&member).expect("it is an array");
    assert_eq!((index.tensors[0].dtype, &index.tensors[0].shape), (DType::U8, &vec![15]));
    assert_eq!(elements(&member, &index.tensors[0]), br#"{"key":"value"}"#);
}

#[test]
fn archives_beyond_32_bits_are_read_back() {
    let just = u64::from(u32::MAX);
    for sizes in [vec![1 << 33, 5], vec![1 << 31, 1 << 31, 3], vec![just - 129, 1], vec![just - 128], vec![just]] {
        let specs: Vec<_> =
            sizes.iter().enumerate().map(|(i, &size)| spec(&i.to_string(), DType::U8, &[size])).collect();
        let plan = Npz.plan_write(&specs, &Metadata::new()).expect("it can be written");
        let offsets = plan.offsets.clone();
        let index = Npz.index(&Sparse(plan)).expect("it is valid");
        for ((read, spec), offset) in index.tensors.iter().zip(&specs).zip(offsets) {
            assert_eq!((&read.name, &read.shape), (&spec.name, &spec.shape));
            let Data::Dense(extent) = &read.data else { panic!("{:?}", read.data) };
            assert_eq!((Some(extent.offset), extent.length), (offset, spec.shape[0]));
        }
    }
    let many: Vec<_> = (0..70_000).map(|i| (spec(&i.to_string(), DType::U8, &[]), vec![0])).collect();
    read_back(write(&Npz, &many, &Metadata::new()), &many, &Metadata::new());
}

#[test]
fn what_has_no_place_is_refused() {
    let refused = |format: &dyn Format, tensors: &[TensorSpec], fault: Fault, part: &str| {
        let error = format.plan_write(tensors, &Metadata::new()).expect_err(part);
        assert!(error.fault == fault && error.to_string().contains(part), "{error:?}");
    };
    let plain = spec("a", DType::F32, &[2]);
    let tied = TensorSpec { alias_of: Some("a".to_owned()), ..spec("b", DType::F32, &[2]) };
    refused(&Npz, &[plain.clone(), tied], Fault::Unsupported, "tensor `b`: NumPy's files cannot tie two tensors");
    refused(&Npz, &[plain.clone(), plain.clone()], Fault::Corrupt, "tensor `a`: two tensors would have this name");
    refused(&Npz, &[spec("a\0b", DType::F32, &[])], Fault::Unsupported, "zero byte");
    refused(&Npz, &[spec(&"n".repeat(65_532), DType::F32, &[])], Fault::Limit, "65535 bytes");
    refused(
        &Npz,
        &[spec("a", DType::U8, &[1 << 63]), spec("b", DType::U8, &[1 << 63])],
        Fault::Limit,
        "overflows 64 bits",
    );
    refused(&Npy, &[], Fault::Unsupported, "exactly one tensor, and there are 0");
    refused(&Npy, &[plain.clone(), plain.clone()], Fault::Unsupported, "exactly one tensor, and there are 2");
    for format in [&Npy as &dyn Format, &Npz] {
        refused(format, &[spec("a", DType::F8E4M3, &[])], Fault::Unsupported, "NumPy has no type F8_E4M3");
        refused(format, &[spec("a", DType::F32, &[1 << 62])], Fault::Limit, "overflows 64 bits");
        refused(format, &[spec("a", DType::F32, &[1; 65])], Fault::Limit, "64 dimensions");
        for dtype in DType::all() {
            let stored = format.plan_write(&[spec("a", dtype, &[256])], &Metadata::new()).is_ok();
            assert_eq!(stored, format.can_store(dtype), "{dtype}");
        }
    }
    let text = Metadata::from([("key".to_owned(), "value".to_owned())]);
    let taken = spec("__metadata__", DType::F32, &[2]);
    let error = Npz.plan_write(std::slice::from_ref(&taken), &text).expect_err("the name is taken").to_string();
    assert!(error.contains("the name is that of the archive's metadata"), "{error}");
    read_back(
        write(&Npz, &[(taken, vec![1; 8])], &Metadata::new()),
        &[(spec("__metadata__", DType::F32, &[2]), vec![1; 8])],
        &Metadata::new(),
    );
    let error = Npy.plan_write(&[plain], &text).expect_err("there is no place for it").to_string();
    assert!(error.contains("no place for metadata"), "{error}");
}
