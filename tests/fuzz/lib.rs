//! What the fuzz targets share: a file in memory, and what an index and a plan have to be true to.

mod archive;
mod contract;
mod pickle;

pub use archive::{Member, archive, members};
pub use contract::{assert_reads_back, assert_sound, planned, storable};
pub use pickle::mutate as mutate_pickle;

use ckptmerge_format::{
    DType, Data, Fault, Format, FormatError, HEAD, Index, Metadata, Source, TensorInfo, TensorSpec, WritePlan,
};
use ckptmerge_format_safetensors::Safetensors;
use safetensors::SafeTensors;
use std::collections::BTreeMap;

/// A file in memory.
pub struct Memory<'a>(pub &'a [u8]);

impl Source for Memory<'_> {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        let outside = || FormatError::new(Fault::Read, "the range is not in the file");
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = start.checked_add(buffer.len()).ok_or_else(outside)?;
        buffer.copy_from_slice(self.0.get(start..end).ok_or_else(outside)?);
        Ok(())
    }
}

/// The table of an index or of a list of specifications, without offsets and order: type, shape and tie by name.
pub type Table = BTreeMap<String, (DType, Vec<u64>, Option<String>)>;

/// The table of an index.
pub fn table(index: &Index) -> Table {
    index.tensors.iter().map(|t| (t.name.clone(), (t.dtype, t.shape.clone(), alias(t)))).collect()
}

fn alias(tensor: &TensorInfo) -> Option<String> {
    match &tensor.data {
        Data::Alias(target) => Some(target.clone()),
        _ => None,
    }
}

/// What `plan_write` has to be given to write the tensors of an index.
pub fn specs(index: &Index) -> Vec<TensorSpec> {
    let spec = |t: &TensorInfo| TensorSpec {
        name: t.name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        alias_of: alias(t),
    };
    index.tensors.iter().map(spec).collect()
}

/// The index of `file`, held against the official crate's reading of the same bytes.
pub fn checked_index(file: &[u8]) -> Result<Index, FormatError> {
    let recognised = Safetensors.recognises(&file[..file.len().min(HEAD)], file.len() as u64);
    let index = Safetensors.index(&Memory(file)).inspect_err(|error| assert!(!error.to_string().is_empty()))?;
    assert!(recognised, "indexed, but not recognised");

    let official = SafeTensors::deserialize(file).expect("the official crate refuses what we accept");
    let (_, header) = SafeTensors::read_metadata(file).expect("read a line above");
    let (mut dense, mut end, mut text) = (0, 0, index.metadata.clone());
    for tensor in &index.tensors {
        match &tensor.data {
            Data::Dense(extent) => {
                let theirs = official.tensor(&tensor.name).expect("the official crate lacks this tensor");
                assert_eq!(tensor.dtype.name(), theirs.dtype().to_string());
                assert!(tensor.shape.iter().eq(theirs.shape().iter().map(|&n| n as u64).collect::<Vec<_>>().iter()));
                let ours = &file[extent.offset as usize..(extent.offset + extent.length) as usize];
                assert!(std::ptr::eq(ours, theirs.data()) || (ours.is_empty() && theirs.data().is_empty()));
                assert!(extent.offset >= end, "not in the order of the bytes");
                assert_eq!(text.len(), index.metadata.len(), "an alias stands before a tensor");
                end = extent.offset + extent.length;
                dense += 1;
            }
            Data::Alias(target) => {
                let target = index.tensors.iter().find(|t| t.name == *target).expect("tied to nothing");
                assert_eq!((target.dtype, &target.shape, alias(target)), (tensor.dtype, &tensor.shape, None));
                assert!(text.insert(tensor.name.clone(), target.name.clone()).is_none(), "both text and tensor");
            }
            _ => panic!("safetensors has no such layout"),
        }
    }
    assert_eq!(dense, official.len(), "the official crate finds more tensors");
    assert_sound(&index, file.len() as u64);
    let theirs: Metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    assert_eq!(text, theirs, "text and ties are what `__metadata__` holds");
    Ok(index)
}

/// Holds a plan against the contract; the file it describes, with data of zeros, unless that is longer than `limit`.
pub fn written(plan: &WritePlan, specs: &[TensorSpec], limit: u64) -> Option<Vec<u8>> {
    let [segment] = &plan.segments[..] else { panic!("safetensors has one header") };
    assert_eq!((segment.offset, segment.bytes.len() % 8), (0, 0), "the data is aligned");
    assert_eq!(plan.offsets.len(), specs.len());
    let mut extents = Vec::new();
    for (spec, offset) in specs.iter().zip(&plan.offsets) {
        assert_eq!(offset.is_none(), spec.alias_of.is_some());
        if let Some(offset) = *offset {
            let elements = spec.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).expect("planned: has a size");
            let length = spec.dtype.size_of(elements).expect("planned: has a size");
            extents.push((offset, offset.checked_add(length).expect("planned: ends within 64 bits")));
            let width = spec.dtype.bytes().unwrap_or(1) as u64;
            assert!(length == 0 || offset.is_multiple_of(width), "aligned to its element");
        }
    }
    extents.sort_unstable();
    let end = extents.into_iter().fold(segment.bytes.len() as u64, |expected, (start, end)| {
        assert_eq!(start, expected, "neither gap nor overlap");
        end
    });
    assert_eq!(end, plan.length);

    let header: safetensors::tensor::Metadata =
        serde_json::from_slice(&segment.bytes[8..]).expect("the official crate refuses the planned header");
    assert_eq!((header.data_len() + segment.bytes.len()) as u64, plan.length);
    (plan.length <= limit).then(|| {
        let mut file = segment.bytes.clone();
        file.resize(plan.length as usize, 0);
        file
    })
}
