//! Tensors that were flattened, put one behind another and cut into the partitions of many processes.

use crate::archive::Archive;
use crate::tensor::view;
use crate::value::Id;
use ckptmerge_format::{DType, Data, Extent, Fault, FormatError, Piece, Pieces, TensorInfo};
use std::collections::{HashMap, HashSet};

/// The most tensors, and the most pieces of all of them: a thousand tensors of a thousand processes have 2^20.
const MAX_TENSORS: usize = 1 << 19;
const MAX_PIECES: usize = 1 << 21;

/// A tensor of one dimension.
#[derive(Clone, Debug)]
pub(crate) struct Flat {
    dtype: DType,
    big_endian: bool,
    /// Where in the file the first element is, in bytes.
    offset: u64,
    /// How many elements from one to the next.
    stride: u64,
    /// In elements.
    pub(crate) length: u64,
}

impl Flat {
    /// The tensor that a value stands for.
    pub(crate) fn read(archive: &Archive, id: Id) -> Result<Self, FormatError> {
        let view = view(&archive.values, &archive.storages, id)?;
        let ([length], [stride]) = (&view.shape[..], &view.strides[..]) else {
            let message = format!("a partition has the shape {:?}, and is not flat", view.shape);
            return Err(FormatError::corrupt(message));
        };
        let big_endian = archive.storages.big_endian && view.dtype.block_bytes() > 1;
        Ok(Self { dtype: view.dtype, big_endian, offset: view.start(), stride: *stride, length: *length })
    }
}

/// Flat tensors one behind another.
#[derive(Default)]
pub(crate) struct Chain {
    /// Each with the number of its file and the place of its first element; none is empty.
    runs: Vec<(usize, u64, Flat)>,
    /// In elements.
    pub(crate) length: u64,
}

impl Chain {
    /// Adds a tensor of file number `file` behind the others.
    pub(crate) fn push(&mut self, file: usize, flat: Flat) -> Result<(), FormatError> {
        if flat.length == 0 {
            return Ok(());
        }
        let end = self.length.checked_add(flat.length);
        let end = end.ok_or_else(|| FormatError::corrupt("its partitions overflow 64 bits"))?;
        self.runs.push((file, self.length, flat));
        self.length = end;
        Ok(())
    }

    /// The tensors that elements `from..to` are in, with the part of each: its file, first element and length.
    fn cut(&self, from: u64, to: u64) -> impl Iterator<Item = (usize, u64, u64, &Flat)> {
        let first = self.runs.partition_point(|(_, start, flat)| start + flat.length <= from);
        let runs = self.runs.get(first..).unwrap_or_default().iter();
        runs.take_while(move |(_, start, _)| *start < to).map(move |(file, start, flat)| {
            let (begin, end) = (from.max(*start), to.min(start + flat.length));
            (*file, begin - start, end.saturating_sub(begin), flat)
        })
    }
}

/// The tensors of a model that lie in several files, as they are found.
#[derive(Default)]
pub(crate) struct Table {
    /// Each behind its place: the number of the file and the offset in it.
    rows: Vec<((usize, u64), TensorInfo)>,
    aliases: Vec<TensorInfo>,
    names: HashSet<String>,
    pieces: usize,
}

/// The product of a shape, if it and its bytes fit 64 bits.
pub(crate) fn elements(shape: &[u64]) -> Result<u64, FormatError> {
    let product = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    product.ok_or_else(|| FormatError::corrupt("its size overflows 64 bits"))
}

/// Checks that a model of so many tensors and pieces is allowed.
pub(crate) fn check_limits(tensors: usize, pieces: usize) -> Result<(), FormatError> {
    if tensors > MAX_TENSORS || pieces > MAX_PIECES {
        let message = format!("the model has more than {MAX_TENSORS} tensors, or {MAX_PIECES} pieces of them");
        return Err(FormatError::new(Fault::Limit, message));
    }
    Ok(())
}

impl Table {
    /// Whether there is a tensor of that name.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Adds a tensor whose elements, in row-major order, are those of the ranges of the chains.
    pub(crate) fn add_flat<'a>(
        &mut self,
        name: &str,
        shape: Vec<u64>,
        ranges: impl Iterator<Item = (&'a Chain, u64, u64)>,
    ) -> Result<(), FormatError> {
        let count = elements(&shape)?;
        let mut kind: Option<(DType, bool)> = None;
        let mut boxes = Vec::new();
        let mut filled = 0;
        for (chain, from, to) in ranges {
            for (file, first, length, flat) in chain.cut(from, to) {
                if *kind.get_or_insert((flat.dtype, flat.big_endian)) != (flat.dtype, flat.big_endian) {
                    return Err(FormatError::corrupt("its partitions differ in type or byte order"));
                }
                let skipped = first.checked_mul(flat.stride).and_then(|first| flat.dtype.size_of(first));
                let offset = skipped.and_then(|skipped| skipped.checked_add(flat.offset));
                let offset = offset.ok_or_else(|| FormatError::corrupt("its size overflows 64 bits"))?;
                let (origin, shape, strides) = (vec![filled], vec![length], vec![flat.stride]);
                boxes.push(Piece { file, offset, origin, shape, strides });
                filled += length;
            }
        }
        if filled != count {
            return Err(FormatError::corrupt(format!("its partitions hold {filled} of its {count} elements")));
        }
        // Without elements it is of no partition; ZeRO's are of this type.
        let (dtype, big_endian) = kind.unwrap_or((DType::F32, false));
        self.add(name, dtype, shape, big_endian, Pieces { grid: vec![count], boxes })
    }

    /// Adds a tensor that lies in one file.
    pub(crate) fn add_whole(&mut self, name: &str, archive: &Archive, id: Id, file: usize) -> Result<(), FormatError> {
        let view = view(&archive.values, &archive.storages, id)?;
        let big_endian = archive.storages.big_endian && view.dtype.block_bytes() > 1;
        let mut pieces = Pieces::strided(view.start(), &view.shape, &view.strides);
        pieces.boxes.iter_mut().for_each(|piece| piece.file = file);
        self.add(name, view.dtype, view.shape, big_endian, pieces)
    }

    fn add(
        &mut self,
        name: &str,
        dtype: DType,
        shape: Vec<u64>,
        big_endian: bool,
        pieces: Pieces,
    ) -> Result<(), FormatError> {
        if !self.names.insert(name.to_owned()) {
            return Err(FormatError::corrupt("it is listed twice"));
        }
        self.pieces += pieces.boxes.len();
        check_limits(self.names.len(), self.pieces)?;
        let length = dtype.size_of(elements(&shape)?);
        let length = length.ok_or_else(|| FormatError::corrupt("its size overflows 64 bits"))?;
        let first = pieces.boxes.first().map_or((0, 0), |piece| (piece.file, piece.offset));
        let data = match &pieces.boxes[..] {
            _ if length == 0 => Data::Dense(Extent { offset: 0, length: 0 }),
            // In the file that is indexed, so that nothing has to be put together.
            [Piece { file: 0, offset, strides, .. }] if matches!(strides[..], [1]) => {
                Data::Dense(Extent { offset: *offset, length })
            }
            _ => Data::Pieces(pieces),
        };
        self.rows.push((first, TensorInfo { name: name.to_owned(), dtype, shape, data, big_endian }));
        Ok(())
    }

    /// Adds names that stand for other tensors, each with the name of that: those that there are.
    pub(crate) fn tie<'v>(&mut self, pairs: impl Iterator<Item = (&'v str, &'v str)>) -> Result<(), FormatError> {
        let rows: HashMap<&str, &TensorInfo> = self.rows.iter().map(|(_, row)| (row.name.as_str(), row)).collect();
        for (name, target) in pairs {
            let Some(target) = rows.get(target) else { continue };
            if rows.get(name).is_some_and(|own| own.elements() == Some(0)) {
                // Tensors without elements are all at the same address, and so look tied.
                continue;
            }
            if !self.names.insert(name.to_owned()) {
                let message = format!("it is tied to `{}`, but has elements of its own", target.name);
                return Err(FormatError::corrupt(message).at(name));
            }
            check_limits(self.names.len(), self.pieces)?;
            let data = Data::Alias(target.name.clone());
            let (dtype, shape, big_endian) = (target.dtype, target.shape.clone(), target.big_endian);
            self.aliases.push(TensorInfo { name: name.to_owned(), dtype, shape, data, big_endian });
        }
        Ok(())
    }

    /// All tensors in the order of their bytes, aliases last.
    pub(crate) fn finish(mut self) -> Vec<TensorInfo> {
        self.rows.sort_by_key(|(place, _)| *place);
        let mut tensors: Vec<_> = self.rows.into_iter().map(|(_, row)| row).collect();
        tensors.append(&mut self.aliases);
        tensors
    }
}
