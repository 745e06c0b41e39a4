//! What holds for every format: the contract of an index, and that what is planned is a file that reads back.

use crate::{Memory, Table, alias, table};
use ckptmerge_format::{DType, Data, Format, Index, Metadata, Pieces, Segment, TensorInfo, TensorSpec};

/// A byte of deflated data stands for at most this many.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Holds an index of a file of `length` bytes against what the host takes for granted.
pub fn assert_sound(index: &Index, length: u64) {
    let tensors = table(index);
    assert_eq!(tensors.len(), index.tensors.len(), "a name stands twice");
    let mut last = 0;
    for tensor in &index.tensors {
        let elements = tensor.elements().expect("the number of elements overflows");
        let bytes = tensor.dtype.size_of(elements).expect("the shape is not whole blocks, or overflows");
        match &tensor.data {
            Data::Dense(extent) => {
                assert!(extent.offset.checked_add(extent.length).expect("it ends in 64 bits") <= length);
                assert_eq!(extent.length, bytes, "the extent is not the shape's size");
            }
            Data::Alias(target) => {
                let expected = (tensor.dtype, tensor.shape.clone(), None);
                assert_eq!(tensors.get(target), Some(&expected), "tied to nothing, to a tie, or to another shape");
            }
            Data::Pieces(pieces) => assert_covers(tensor, pieces, elements, length, index.files.len()),
            Data::Deflated { extent, skip } => {
                assert!(extent.offset.checked_add(extent.length).expect("it ends in 64 bits") <= length);
                let most = extent.length.saturating_mul(MAX_DEFLATE_RATIO);
                assert!(skip.checked_add(bytes).expect("it ends in 64 bits") <= most, "it cannot be so long");
            }
            Data::Inline(inline) => {
                assert_eq!((inline.len() as u64, tensor.big_endian), (bytes, false));
            }
            _ => panic!("a layout that is not tested"),
        }
        let start = match &tensor.data {
            Data::Dense(extent) | Data::Deflated { extent, .. } => extent.offset,
            Data::Pieces(pieces) => pieces.boxes.first().map_or(last, |piece| piece.offset),
            Data::Alias(_) => u64::MAX,
            _ => last,
        };
        assert!(start >= last, "neither in the order of the bytes nor aliases last");
        last = start;
    }

    let names: std::collections::BTreeSet<_> = index.subtrees.iter().map(|subtree| &subtree.name).collect();
    assert_eq!(names.len(), index.subtrees.len(), "two subtrees have one name");
    assert!(index.subtrees.iter().filter(|subtree| subtree.is_default).count() <= 1, "two defaults");
    for subtree in &index.subtrees {
        assert!(tensors.keys().any(|name| name.starts_with(&subtree.prefix)), "a subtree without tensors");
    }
    assert!(index.warnings.iter().all(|warning| !warning.is_empty()));
}

/// The boxes fill the grid, once, and reach no further than their file.
fn assert_covers(tensor: &TensorInfo, pieces: &Pieces, elements: u64, length: u64, files: usize) {
    let width = tensor.dtype.bytes().expect("boxes of packed elements") as u64;
    let volume = |shape: &[u64]| shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).expect("the volume overflows");
    assert_eq!(volume(&pieces.grid), elements, "the grid has another number of elements");
    let mut covered = 0;
    for (number, piece) in pieces.boxes.iter().enumerate() {
        let rank = pieces.grid.len();
        assert_eq!((piece.origin.len(), piece.shape.len(), piece.strides.len()), (rank, rank, rank));
        for ((&origin, &size), &limit) in piece.origin.iter().zip(&piece.shape).zip(&pieces.grid) {
            assert!(origin.checked_add(size).expect("it ends in 64 bits") <= limit, "a box outside the grid");
        }
        let held = volume(&piece.shape);
        covered += held;
        assert!(piece.file <= files, "a box in no file");
        if held > 0 && piece.file == 0 {
            let reach = piece
                .shape
                .iter()
                .zip(&piece.strides)
                .try_fold(0u64, |reach, (&size, &stride)| reach.checked_add((size - 1).checked_mul(stride)?));
            let end = reach.and_then(|reach| (reach + 1).checked_mul(width)?.checked_add(piece.offset));
            assert!(end.expect("it ends in 64 bits") <= length, "a box reaches out of the file");
        }
        let meets = |other: &&ckptmerge_format::Piece| {
            let spans = |p: &ckptmerge_format::Piece| -> Vec<_> {
                p.origin.iter().zip(&p.shape).map(|(&from, &size)| (from, from + size)).collect()
            };
            held > 0 && spans(piece).iter().zip(spans(other)).all(|(a, b)| a.0 < b.1 && b.0 < a.1)
        };
        assert!(pieces.boxes[..number].iter().find(meets).is_none(), "boxes overlap");
    }
    assert_eq!(covered, elements, "the boxes leave a gap");
}

/// What `format` has to be given to write the tensors of an index: those that it can store and `keep` lets pass.
pub fn storable(format: &dyn Format, index: &Index, keep: impl Fn(&TensorInfo) -> bool) -> Vec<TensorSpec> {
    let kept: Vec<_> = index.tensors.iter().filter(|tensor| format.can_store(tensor.dtype) && keep(tensor)).collect();
    let is_kept = |target: &String| kept.iter().any(|tensor| tensor.name == *target);
    let spec = |tensor: &&TensorInfo| TensorSpec {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        alias_of: alias(tensor).filter(|target| format.can_tie() && is_kept(target)),
    };
    kept.iter().map(spec).collect()
}

/// The file that `format` plans for the tensors, with data of a pattern; none if it would be longer than `limit`.
pub fn planned(format: &dyn Format, specs: &[TensorSpec], metadata: &Metadata, limit: u64) -> Option<Vec<u8>> {
    let plan = format.plan_write(specs, metadata);
    let plan = plan.unwrap_or_else(|error| panic!("what was read cannot be written: {error}"));
    assert_eq!(plan.offsets.len(), specs.len());
    if plan.length > limit {
        return None;
    }
    let mut file = vec![0; plan.length as usize];
    let mut ranges = Vec::new();
    let mut crc32 = vec![0; specs.len()];
    for (number, (spec, offset)) in specs.iter().zip(&plan.offsets).enumerate() {
        assert_eq!(offset.is_none(), spec.alias_of.is_some());
        let Some(offset) = *offset else { continue };
        let elements = spec.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).expect("planned: has a size");
        let length = spec.dtype.size_of(elements).expect("planned: has a size");
        let end = offset.checked_add(length).expect("planned: ends within 64 bits");
        let data = file.get_mut(offset as usize..end as usize).expect("planned outside the file");
        data.iter_mut().enumerate().for_each(|(place, byte)| *byte = (place * 7 + number) as u8);
        crc32[number] = crc32fast::hash(data);
        ranges.push((offset, end));
    }
    let mut put = |segments: &[Segment]| -> Vec<_> {
        let range = |segment: &Segment| {
            let (start, end) = (segment.offset as usize, segment.offset as usize + segment.bytes.len());
            file.get_mut(start..end).expect("a segment outside the file").copy_from_slice(&segment.bytes);
            (start as u64, end as u64)
        };
        segments.iter().map(range).collect()
    };
    let written = put(&plan.segments);
    if plan.wants_crc32 {
        let finished = format.finish_write(&plan, specs, metadata, &crc32).expect("planned: can be finished");
        assert!(put(&finished).iter().all(|range| written.contains(range)), "the last segments lie elsewhere");
    }
    ranges.extend(written);
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    let end = ranges.into_iter().fold(0, |expected, (start, end)| {
        assert_eq!(start, expected, "neither gap nor overlap");
        end
    });
    assert_eq!(end, plan.length);
    Some(file)
}

/// Asserts that `format` plans a file for the tensors that it reads as them; `expected` may change a specification.
pub fn assert_reads_back(
    format: &dyn Format,
    specs: &[TensorSpec],
    metadata: &Metadata,
    assume: Option<DType>,
    expected: impl Fn(TensorSpec) -> TensorSpec,
) -> Option<Vec<u8>> {
    let file = planned(format, specs, metadata, 1 << 20)?;
    assert!(format.recognises(&file[..file.len().min(ckptmerge_format::HEAD)], file.len() as u64));
    let index = match format.index_assuming(&Memory(&file), assume) {
        Ok(index) => index,
        Err(error) => panic!("what was planned cannot be read: {error}"),
    };
    assert_sound(&index, file.len() as u64);
    let wanted: Table = specs.iter().cloned().map(expected).map(|s| (s.name, (s.dtype, s.shape, s.alias_of))).collect();
    assert_eq!((table(&index), &index.metadata), (wanted, metadata));
    Some(file)
}
