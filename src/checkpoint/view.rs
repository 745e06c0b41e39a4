//! A checkpoint re-indexed: the same files under other names, cut, joined and transposed without moving a byte.
//!
//! Every tensor is boxes of a grid. Taking rows clips the boxes, joining shifts their origins, transposing swaps their
//! dimensions and strides. What comes out as one run of bytes is one again.

use super::gather::Gather;
use super::{Checkpoint, Layout, Location, Tensor};
use crate::error::{Error, Result};
use ckptmerge_format::{FormatError, Piece, Pieces};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// A tensor made of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The name, within its part.
    pub name: String,
    /// Which part of the new [`Layout`] it belongs to.
    pub part: usize,
    /// Elements along each dimension; another shape of as many elements than theirs reads them in the same order.
    pub shape: Vec<u64>,
    /// What it is made of.
    pub elements: Elements,
}

/// The elements of a [`View`], by the names of the tensors that have them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Elements {
    /// All of a tensor.
    Whole(String),
    /// Some of a tensor's rows: a range along its first dimension.
    Rows(String, Range<u64>),
    /// Tensors one behind the other along their first dimension.
    Joined(Vec<String>),
    /// A matrix, its rows being the tensor's columns.
    Transposed(String),
}

impl Elements {
    /// The tensors they are in.
    #[must_use]
    pub fn names(&self) -> &[String] {
        match self {
            Self::Whole(name) | Self::Rows(name, _) | Self::Transposed(name) => std::slice::from_ref(name),
            Self::Joined(names) => names,
        }
    }

    /// The same elements by other names of the tensors.
    fn renamed(&self, name: impl Fn(&String) -> String) -> Self {
        match self {
            Self::Whole(of) => Self::Whole(name(of)),
            Self::Rows(of, rows) => Self::Rows(name(of), rows.clone()),
            Self::Transposed(of) => Self::Transposed(name(of)),
            Self::Joined(all) => Self::Joined(all.iter().map(name).collect()),
        }
    }
}

impl Checkpoint {
    /// The same files as other tensors: `views` of this checkpoint's own, in the parts of `layout`. Reads nothing.
    ///
    /// Tied tensors stay tied if they are viewed alike and in the same part.
    ///
    /// # Errors
    /// [`Error::Format`] naming the tensor whose elements cannot be viewed so; [`Error::Recipe`] if a view has no part,
    /// or two views have one name.
    pub fn mapped(self, layout: Layout, views: Vec<View>) -> Result<Self> {
        let lengths: Vec<u64> = self.files.iter().map(super::DataFile::length).collect();
        let mut tensors: Vec<Tensor> = Vec::with_capacity(views.len());
        let mut by_name = HashMap::with_capacity(views.len());
        let mut untied: HashMap<(&Elements, &[u64], usize), usize> = HashMap::new();
        for (index, view) in views.iter().enumerate() {
            let part = layout.parts.get(view.part).ok_or_else(|| {
                Error::Recipe(format!("the view `{}` is of part {}, which there is not", view.name, view.part))
            })?;
            let tensor = self.viewed(view, &part.prefix(), &lengths)?;
            if by_name.insert(tensor.name.clone(), index).is_some() {
                return Err(Error::Recipe(format!("two tensors would be called `{}`", tensor.name)));
            }
            if view.elements.names().iter().all(|name| self.target(name).is_none()) {
                untied.entry((&view.elements, &view.shape, view.part)).or_insert(index);
            }
            tensors.push(tensor);
        }
        for (index, view) in views.iter().enumerate() {
            let shared = view.elements.renamed(|name| self.target(name).unwrap_or(name).clone());
            if shared != view.elements
                && let Some(&target) = untied.get(&(&shared, &view.shape, view.part))
            {
                tensors[index].alias_of = Some(tensors[target].name.clone());
            }
        }
        Ok(Self { layout, tensors, by_name, ..self })
    }

    /// Gives the tensors of the only part another prefix than that of its folder, as another model of the same network has
    /// it: one that is alone, or in another folder of its pipeline.
    pub(crate) fn set_prefix(&mut self, prefix: &str) {
        let [part] = &self.layout.parts[..] else { return };
        let before = part.prefix();
        let renamed = |name: &str| format!("{prefix}{}", name.strip_prefix(&before).unwrap_or(name));
        for tensor in &mut self.tensors {
            let name = renamed(&tensor.name);
            let old = std::mem::replace(&mut tensor.name, name);
            if tensor.inputs.is_empty() {
                tensor.inputs = vec![old];
            }
            tensor.alias_of = tensor.alias_of.as_deref().map(renamed);
        }
        self.by_name = self.tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
    }

    /// What the tensor of this name is tied to.
    fn target(&self, name: &str) -> Option<&String> {
        self.get(name)?.tensor.alias_of.as_ref()
    }

    fn viewed(&self, view: &View, prefix: &str, lengths: &[u64]) -> Result<Tensor> {
        let names = view.elements.names();
        let mut of = Vec::with_capacity(names.len());
        for name in names {
            let found = self.get(name).ok_or_else(|| {
                Error::unknown("tensor", name, self.tensors.iter().map(|tensor| tensor.name.as_str()))
            })?;
            of.push(found.tensor);
        }
        let Some(first) = of.first() else {
            return Err(Error::Recipe(format!("the view `{}` is made of nothing", view.name)));
        };
        let path = self.view(first).files().next().map(|file| file.path().to_owned()).unwrap_or_default();
        let error = |source: FormatError| {
            let source = if source.tensor.is_some() { source } else { source.at(&first.name) };
            Error::Format { path: path.clone(), source }
        };
        let unfit = |message: &str| error(FormatError::unsupported(message));
        let dtype = first.dtype;
        if of.iter().any(|tensor| tensor.dtype != dtype) {
            return Err(unfit("has another type than what it would be joined with"));
        }
        let elements = view.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let sizes = elements.and_then(|elements| Some((elements, dtype.size_of(elements)?)));
        let whole_blocks = view.shape.last().is_none_or(|last| last.is_multiple_of(dtype.block_elements()));
        let (elements, bytes) = sizes.filter(|_| whole_blocks || dtype.block_elements() == 1).ok_or_else(|| {
            let message = format!("is {dtype}, whose blocks do not fit into rows of the shape {:?}", view.shape);
            error(FormatError::unsupported(message).hint("convert it to another type first, with --dtype"))
        })?;
        let location = match &view.elements {
            Elements::Whole(_) if first.elements == elements => first.location.clone(),
            Elements::Whole(_) => return Err(unfit("has another number of elements than its view")),
            other => {
                let boxes = of.iter().map(|tensor| Boxes::of(tensor)).collect::<Result<Vec<_>, _>>().map_err(error)?;
                let boxes = match other {
                    Elements::Rows(_, rows) => {
                        boxes.into_iter().map(|boxes| boxes.rows(rows, first)).collect::<Result<Vec<_>, _>>()
                    }
                    Elements::Transposed(_) => {
                        boxes.into_iter().map(|boxes| boxes.transposed(first)).collect::<Result<Vec<_>, _>>()
                    }
                    _ => Ok(boxes),
                };
                let boxes = Boxes::joined(boxes.map_err(error)?).map_err(error)?;
                boxes.location(bytes, lengths).map_err(error)?
            }
        };
        Ok(Tensor {
            name: format!("{prefix}{}", view.name),
            dtype,
            shape: view.shape.clone(),
            elements,
            bytes,
            alias_of: None,
            part: view.part,
            location,
            inputs: of.iter().flat_map(|tensor| tensor.inputs()).cloned().collect(),
        })
    }
}

/// A tensor's elements, or blocks of them, as boxes in a grid of the tensor's own dimensions.
struct Boxes {
    pieces: Pieces,
    /// Bytes of an element or block.
    width: u64,
    /// Elements in a block.
    block: u64,
    big_endian: bool,
}

impl Boxes {
    fn of(tensor: &Tensor) -> Result<Self, FormatError> {
        let (block, width) = (tensor.dtype.block_elements(), tensor.dtype.block_bytes());
        let mut shape = tensor.shape.clone();
        if let Some(last) = shape.last_mut() {
            if !last.is_multiple_of(block) {
                return Err(unfit(tensor, "its blocks of elements reach over its rows"));
            }
            *last /= block;
        }
        let big_endian = matches!(&tensor.location, Location::Gathered(gather) if gather.is_big_endian());
        let pieces = match &tensor.location {
            _ if tensor.elements == 0 => Pieces { grid: shape, boxes: Vec::new() },
            Location::Dense { file, offset } => {
                let mut pieces = Pieces::strided(*offset, &shape, &contiguous(&shape));
                pieces.boxes.iter_mut().for_each(|piece| piece.file = *file);
                pieces
            }
            Location::Gathered(gather) => laid_out(gather.pieces(), gather.width(), &shape)
                .ok_or_else(|| unfit(tensor, "its pieces are laid out in a shape that cannot be taken apart"))?,
            Location::Packed { .. } => return Err(unfit(tensor, "it was not unpacked")),
        };
        Ok(Self { pieces, width, block, big_endian })
    }

    /// A range along the first dimension.
    fn rows(mut self, rows: &Range<u64>, tensor: &Tensor) -> Result<Self, FormatError> {
        let Some(&height) = tensor.shape.first() else { return Err(unfit(tensor, "has no dimensions and so no rows")) };
        if rows.start > rows.end || rows.end > height {
            return Err(unfit(
                tensor,
                &format!("has {height} rows, and not those from {} to {}", rows.start, rows.end),
            ));
        }
        // Of a vector the rows are elements, and blocks are not cut.
        let step = if tensor.shape.len() == 1 { self.block } else { 1 };
        if ![rows.start, rows.end].iter().all(|end| end.is_multiple_of(step)) {
            return Err(unfit(tensor, "its blocks of elements would be cut"));
        }
        let rows = rows.start / step..rows.end / step;
        let Pieces { grid, boxes } = &mut self.pieces;
        grid[0] = rows.end - rows.start;
        boxes.retain_mut(|piece| {
            let from = piece.origin[0].max(rows.start);
            let to = (piece.origin[0] + piece.shape[0]).min(rows.end);
            if from >= to {
                return false;
            }
            piece.offset += (from - piece.origin[0]) * piece.strides[0] * self.width;
            (piece.origin[0], piece.shape[0]) = (from - rows.start, to - from);
            true
        });
        Ok(self)
    }

    /// The two dimensions in each other's place.
    fn transposed(mut self, tensor: &Tensor) -> Result<Self, FormatError> {
        if self.block > 1 {
            let message = format!("is {}, whose blocks lie along its rows and cannot be transposed", tensor.dtype);
            return Err(unfit(tensor, &message).hint("convert it to another type first, with --dtype"));
        }
        if tensor.shape.len() != 2 {
            return Err(unfit(tensor, &format!("has the shape {:?}, but only matrices are transposed", tensor.shape)));
        }
        self.pieces.grid.reverse();
        for piece in &mut self.pieces.boxes {
            [&mut piece.origin, &mut piece.shape, &mut piece.strides].into_iter().for_each(|part| part.reverse());
        }
        Ok(self)
    }

    /// One behind the other along the first dimension.
    fn joined(all: Vec<Self>) -> Result<Self, FormatError> {
        let mut all = all.into_iter();
        let wrong = |message: &str| FormatError::unsupported(message);
        let Some(mut joined) = all.next() else { return Err(wrong("nothing cannot be joined")) };
        for next in all {
            if joined.pieces.grid.is_empty() || joined.pieces.grid.get(1..) != next.pieces.grid.get(1..) {
                return Err(wrong("cannot be joined with what has other dimensions"));
            }
            if joined.big_endian != next.big_endian {
                return Err(wrong("has another byte order than what it would be joined with"));
            }
            let height = joined.pieces.grid[0];
            joined.pieces.grid[0] =
                height.checked_add(next.pieces.grid[0]).ok_or_else(|| wrong("its size overflows"))?;
            joined.pieces.boxes.extend(next.pieces.boxes.into_iter().map(|mut piece| {
                piece.origin[0] += height;
                piece
            }));
        }
        Ok(joined)
    }

    /// Where the elements, `bytes` in all, are: one run if they are that.
    fn location(self, bytes: u64, lengths: &[u64]) -> Result<Location, FormatError> {
        let count = bytes / self.width;
        if self.pieces.grid.iter().try_fold(1u64, |product, &n| product.checked_mul(n)) != Some(count) {
            return Err(FormatError::unsupported("has another number of elements than its view"));
        }
        if count == 0 {
            return Ok(Location::Dense { file: 0, offset: 0 });
        }
        if let [piece] = &self.pieces.boxes[..] {
            let runs = piece.strides.iter().zip(contiguous(&piece.shape)).zip(&piece.shape);
            if (!self.big_endian || self.width == 1) && runs.into_iter().all(|((a, b), &n)| n == 1 || *a == b) {
                return Ok(Location::Dense { file: piece.file, offset: piece.offset });
            }
        }
        Gather::new(self.pieces, count, self.width, self.big_endian, lengths)
            .map(|gather| Location::Gathered(Arc::new(gather)))
    }
}

fn unfit(tensor: &Tensor, message: &str) -> FormatError {
    FormatError::unsupported(message).at(&tensor.name)
}

/// The strides of elements in row-major order without gaps. Sizes are those of tensors, which fit.
fn contiguous(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    strides
}

/// The boxes in a grid of `shape`, each dimension of their own grid being the product of some of its. None if it is not.
fn laid_out(pieces: &Pieces, width: u64, shape: &[u64]) -> Option<Pieces> {
    // Which dimensions of the shape each dimension of the grid is made of.
    let mut groups: Vec<Range<usize>> = Vec::with_capacity(pieces.grid.len());
    let mut next = 0;
    for &size in &pieces.grid {
        let (first, mut product) = (next, 1u64);
        while product < size {
            product = product.checked_mul(*shape.get(next)?)?;
            next += 1;
        }
        if product != size {
            return None;
        }
        groups.push(first..next);
    }
    if shape[next..].iter().any(|&n| n != 1) {
        return None;
    }
    let mut boxes = Vec::with_capacity(pieces.boxes.len());
    for piece in &pieces.boxes {
        let origin = vec![0; shape.len()];
        let mut parts = vec![Piece { origin, shape: vec![1; shape.len()], strides: vec![0; shape.len()], ..*piece }];
        for (d, group) in groups.iter().enumerate() {
            let (start, stride) = (piece.origin[d], piece.strides[d]);
            let steps = contiguous(&shape[group.clone()]);
            let runs = cut(start, start + piece.shape[d], &shape[group.clone()]);
            parts = runs
                .iter()
                .flat_map(|run| {
                    let first: u64 = run.iter().zip(&steps).map(|((origin, _), step)| origin * step).sum();
                    let (steps, group) = (&steps, group.clone());
                    parts.iter().cloned().map(move |mut part| {
                        part.offset += (first - start) * stride * width;
                        for ((&(origin, size), step), d) in run.iter().zip(steps).zip(group.clone()) {
                            // Of a dimension of one element a stride means nothing, and may be of any size.
                            (part.origin[d], part.shape[d], part.strides[d]) =
                                (origin, size, step.saturating_mul(stride));
                        }
                        part
                    })
                })
                .collect();
        }
        boxes.extend(parts);
    }
    Some(Pieces { grid: shape.to_vec(), boxes })
}

/// The elements from `start` to `end` of a row-major array as boxes: origin and size along each dimension.
fn cut(start: u64, end: u64, shape: &[u64]) -> Vec<Vec<(u64, u64)>> {
    let [_, rest @ ..] = shape else { return vec![Vec::new()] };
    let inner: u64 = rest.iter().product();
    let mut boxes = Vec::new();
    let mut add = |origin: u64, size: u64, below: Vec<Vec<(u64, u64)>>| {
        boxes.extend(below.into_iter().map(|below| [vec![(origin, size)], below].concat()));
    };
    let (mut row, last) = (start / inner, end / inner);
    let (before, after) = (start % inner, end % inner);
    if row == last {
        add(row, 1, cut(before, after, rest));
        return boxes;
    }
    if before > 0 {
        add(row, 1, cut(before, inner, rest));
        row += 1;
    }
    if row < last {
        add(row, last - row, vec![rest.iter().map(|&n| (0, n)).collect()]);
    }
    if after > 0 {
        add(last, 1, cut(0, after, rest));
    }
    boxes
}
