//! What is written: read back here, and by torch with `fixtures/pytorch/check_writer.py` from the same files.

use ckptmerge_format::{DType, Data, Fault, Format, FormatError, Metadata, Segment, Source, TensorSpec, WritePlan};
use ckptmerge_format_pytorch::PyTorch;
use std::path::PathBuf;

/// A file of which only the segments are not zero.
struct Sparse {
    length: u64,
    segments: Vec<Segment>,
}

impl Source for Sparse {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.length) {
            return Err(FormatError::new(Fault::Read, "read outside the file"));
        }
        buffer.fill(0);
        for segment in &self.segments {
            let (start, end) = (segment.offset, segment.offset + segment.bytes.len() as u64);
            let (from, to) = (start.max(offset), end.min(offset + buffer.len() as u64));
            if from < to {
                let bytes = &segment.bytes[(from - start) as usize..(to - start) as usize];
                buffer[(from - offset) as usize..(to - offset) as usize].copy_from_slice(bytes);
            }
        }
        Ok(())
    }
}

fn spec(name: &str, dtype: DType, shape: &[u64], alias_of: Option<&str>) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec(), alias_of: alias_of.map(str::to_owned) }
}

fn storable() -> Vec<DType> {
    DType::all().filter(|dtype| PyTorch.can_store(*dtype)).collect()
}

/// Bytes 1, 2, 3… for each tensor: 1 for booleans.
fn elements(spec: &TensorSpec) -> Vec<u8> {
    let length = spec.dtype.size_of(spec.shape.iter().product()).expect("small sizes");
    (0..length).map(|byte| if spec.dtype == DType::Bool { 1 } else { (byte as u8).wrapping_add(1) }).collect()
}

/// The whole file, with the sums in place.
fn write(specs: &[TensorSpec], metadata: &Metadata) -> Vec<u8> {
    let plan = PyTorch.plan_write(specs, metadata).expect("torch has these types");
    assert!(plan.wants_crc32);
    let mut file = vec![0; plan.length as usize];
    let mut put = |segment: &Segment| {
        file[segment.offset as usize..][..segment.bytes.len()].copy_from_slice(&segment.bytes);
    };
    plan.segments.iter().for_each(&mut put);
    let mut sums = Vec::new();
    for (spec, offset) in specs.iter().zip(&plan.offsets) {
        assert_eq!(offset.is_none(), spec.alias_of.is_some());
        let Some(offset) = *offset else {
            sums.push(0);
            continue;
        };
        assert_eq!(offset % 64, 0, "{} is not aligned", spec.name);
        let bytes = elements(spec);
        sums.push(crc32fast::hash(&bytes));
        put(&Segment { offset, bytes });
    }
    let finished = PyTorch.finish_write(&plan, specs, metadata, &sums).expect("the plan was made of the same");
    finished.iter().for_each(&mut put);
    file
}

fn source(file: &[u8]) -> Sparse {
    Sparse { length: file.len() as u64, segments: vec![Segment { offset: 0, bytes: file.to_vec() }] }
}

fn keep(name: &str, file: &[u8]) {
    std::fs::write(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name), file).expect("the target folder is writable");
}

#[test]
fn every_type_is_read_back() {
    let mut specs: Vec<_> =
        storable().into_iter().map(|dtype| spec(&format!("t.{}", dtype.name()), dtype, &[2, 3], None)).collect();
    assert!(specs.len() > 15, "{} types", specs.len());
    specs.push(spec("scalar", DType::F32, &[], None));
    specs.push(spec("empty", DType::F16, &[2, 0], None));
    specs.push(spec("tied", DType::BF16, &[2, 3], Some("t.BF16")));
    specs.push(spec("reshaped", DType::BF16, &[6], Some("t.BF16")));
    specs.push(spec("naïve.名前", DType::U8, &[70_000], None));
    let metadata = Metadata::from([("recipe".to_owned(), "a: 1\n\"b\"".to_owned())]);
    let file = write(&specs, &metadata);
    keep("written.pt", &file);
    let index = PyTorch.index(&source(&file)).expect("it was just written");
    assert_eq!(index.metadata, metadata);
    assert!(index.subtrees.is_empty() && index.warnings.is_empty());
    assert_eq!(index.tensors.len(), specs.len());
    for spec in &specs {
        let tensor = index.tensors.iter().find(|tensor| tensor.name == spec.name).expect("every name is there");
        assert_eq!((tensor.dtype, &tensor.shape), (spec.dtype, &spec.shape));
        match &tensor.data {
            Data::Alias(target) => assert_eq!((spec.name.as_str(), target.as_str()), ("tied", "t.BF16")),
            Data::Dense(extent) => {
                let bytes = &file[extent.offset as usize..][..extent.length as usize];
                assert_eq!(bytes, elements(spec), "{}", spec.name);
            }
            other => panic!("{} became {other:?}", spec.name),
        }
    }
}

#[test]
fn nothing_is_a_checkpoint_too() {
    let file = write(&[], &Metadata::new());
    keep("nothing.pt", &file);
    assert!(PyTorch.index(&source(&file)).expect("an empty state dict").tensors.is_empty());
}

#[test]
fn many_and_large_tensors_need_zip64() {
    let many: Vec<_> = (0..70_000).map(|number| spec(&format!("w{number}"), DType::U8, &[1], None)).collect();
    let file = write(&many, &Metadata::new());
    keep("many.pt", &file);
    assert_eq!(PyTorch.index(&source(&file)).expect("many entries").tensors.len(), many.len());

    let shape = [3 << 30];
    let large = [
        spec("before", DType::F32, &[2], None),
        spec("large", DType::F16, &shape, None),
        spec("after", DType::F32, &[2], None),
        spec("small", DType::U8, &[3], None),
    ];
    let plan = PyTorch.plan_write(&large, &Metadata::new()).expect("torch has no limit here");
    let WritePlan { length, segments, offsets, .. } = plan;
    let index = PyTorch.index(&Sparse { length, segments }).expect("large entries");
    for (spec, offset) in large.iter().zip(offsets) {
        let tensor = index.tensors.iter().find(|tensor| tensor.name == spec.name).expect("every name is there");
        let Data::Dense(extent) = tensor.data else { panic!("{:?}", tensor.data) };
        assert_eq!(Some(extent.offset), offset);
        assert_eq!(Some(extent.length), spec.dtype.size_of(spec.shape[0]));
    }
}

#[test]
fn what_torch_has_no_place_for_is_refused() {
    let message = |specs: &[TensorSpec]| {
        PyTorch.plan_write(specs, &Metadata::new()).expect_err("it cannot be written").to_string()
    };
    assert!(message(&[spec("q", DType::Q4_K, &[256], None)]).contains("tensor `q`: torch has no type Q4_K"));
    let twice = [spec("a", DType::F32, &[1], None), spec("a", DType::F32, &[1], None)];
    assert!(message(&twice).contains("tensor `a`: two tensors"));
    assert!(message(&[spec("b", DType::F32, &[1], Some("a"))]).contains("tensor `b`: it is tied to `a`"));
    let other = [spec("a", DType::F32, &[1], None), spec("b", DType::F32, &[2], Some("a"))];
    assert!(message(&other).contains("tensor `b`: the tensor it is tied to"));
    assert!(message(&[spec("h", DType::F32, &[1 << 40, 1 << 40], None)]).contains("tensor `h`: its size"));
}
