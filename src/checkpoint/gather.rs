//! Elements that are not where a plain array would have them: views with strides, shards, other byte orders.
//!
//! Whatever the layout, a range of the tensor's elements comes out in row-major, little-endian order.

use super::file::DataFile;
use crate::error::Result;
use ckptmerge_format::{FormatError, Piece, Pieces};
use std::collections::HashMap;
use std::ops::Range;

/// Strided elements of a file that is not mapped are read together when they span no more bytes than this.
const SPAN: u64 = 1 << 20;

/// The most corners of boxes that are counted to see that they cover a tensor, beyond three dimensions that are cut.
const CORNERS: u64 = 1 << 22;
/// The most boxes of which each is compared with each where there would be more corners.
const PAIRS: usize = 1 << 12;
/// Boxes in a leaf of the index.
const LEAF: usize = 4;

/// Where the elements of a tensor are, checked against the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gather {
    /// The boxes, none of them empty, in a grid of as few dimensions as they allow, in the order of `index`.
    pieces: Pieces,
    /// A tree over the boxes, its root first; empty if there are none.
    index: Vec<Node>,
    /// The files they are in, each once.
    files: Vec<usize>,
    /// Bytes per element.
    width: u64,
    big_endian: bool,
}

/// Neighbouring boxes, and the space that they are in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    low: Vec<u64>,
    high: Vec<u64>,
    boxes: Range<usize>,
    /// The two halves of the boxes.
    halves: Option<[usize; 2]>,
}

impl Gather {
    /// Boxes of elements of `width` bytes, their `file`s being indices into the checkpoint's own files, whose lengths
    /// are `lengths`.
    pub(super) fn new(
        pieces: Pieces,
        elements: u64,
        width: u64,
        big_endian: bool,
        lengths: &[u64],
    ) -> Result<Self, FormatError> {
        let Pieces { grid, mut boxes } = pieces;
        let wrong = |message: &str| Err(FormatError::corrupt(message));
        if count(&grid) != Some(elements) {
            return wrong("its pieces are laid out for another number of elements");
        }
        let mut covered = 0u64;
        for piece in &boxes {
            let Piece { file, offset, origin, shape, strides } = piece;
            if [origin.len(), shape.len(), strides.len()] != [grid.len(); 3] {
                return wrong("a piece has another number of dimensions");
            }
            let inside = |((o, s), g): ((&u64, &u64), &u64)| o.checked_add(*s).is_some_and(|end| end <= *g);
            if !origin.iter().zip(shape).zip(&grid).all(inside) {
                return wrong("a piece reaches out of the tensor");
            }
            let Some(elements) = count(shape) else { return wrong("a piece's size overflows") };
            // The last element is the farthest, as no stride is negative.
            let last = shape
                .iter()
                .zip(strides)
                .try_fold(0u64, |at, (&n, &stride)| at.checked_add(n.saturating_sub(1).checked_mul(stride)?));
            let end = last.and_then(|last| last.checked_add(1)?.checked_mul(width)?.checked_add(*offset));
            let length = lengths.get(*file).copied().unwrap_or(0);
            if elements > 0 && end.is_none_or(|end| end > length) {
                return wrong("its bytes reach past the end of the file");
            }
            covered = covered.saturating_add(elements);
        }
        let mut files: Vec<usize> = boxes.iter().map(|piece| piece.file).collect();
        files.sort_unstable();
        files.dedup();
        boxes.retain(|piece| !piece.shape.contains(&0));
        if covered != elements || !cover_once(&grid, &boxes)? {
            return wrong("its pieces do not cover it exactly once");
        }
        let mut pieces = coalesced(grid, boxes);
        let mut index = Vec::new();
        if !pieces.boxes.is_empty() {
            add_node(&mut index, &mut pieces.boxes, 0);
        }
        Ok(Self { pieces, index, files, width, big_endian })
    }

    /// The boxes, of which neighbouring dimensions may have been joined, and none of which is empty.
    pub(super) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// Whether each element's bytes come most significant first.
    pub(super) fn is_big_endian(&self) -> bool {
        self.big_endian
    }

    /// Bytes per element.
    pub(super) fn width(&self) -> u64 {
        self.width
    }

    /// The files that elements are in, by number, each once.
    pub(super) fn files(&self) -> impl Iterator<Item = usize> {
        self.files.iter().copied()
    }

    /// Fills `out` with the elements from number `start` on.
    pub(super) fn read(&self, files: &[DataFile], start: u64, out: &mut [u8]) -> Result<()> {
        let grid = &self.pieces.grid;
        let columns = grid.last().copied().unwrap_or(1);
        let outer = &grid[..grid.len().saturating_sub(1)];
        let end = start + out.len() as u64 / self.width;
        let mut at = start;
        let mut row = if out.is_empty() { Vec::new() } else { unravel(start / columns, outer) };
        while at < end {
            let column = at % columns;
            let run = column..columns.min(column + (end - at));
            let begin = ((at - start) * self.width) as usize;
            let row_out = &mut out[begin..begin + ((run.end - run.start) * self.width) as usize];
            self.read_row(files, 0, &row, &run, row_out)?;
            at += run.end - run.start;
            advance(&mut row, outer);
        }
        if self.big_endian {
            out.chunks_exact_mut(self.width as usize).for_each(<[u8]>::reverse);
        }
        Ok(())
    }

    /// Copies what the boxes below a node have of the columns `run` of a row.
    fn read_row(&self, files: &[DataFile], node: usize, row: &[u64], run: &Range<u64>, out: &mut [u8]) -> Result<()> {
        let Some(node) = self.index.get(node) else { return Ok(()) };
        let is_there = row.iter().zip(node.low.iter().zip(&node.high)).all(|(i, (low, high))| low <= i && i < high);
        let meets = |(low, high): (&u64, &u64)| *low < run.end && run.start < *high;
        if !is_there || !node.low.get(row.len()).zip(node.high.get(row.len())).is_none_or(meets) {
            return Ok(());
        }
        match node.halves {
            Some(halves) => halves.iter().try_for_each(|&half| self.read_row(files, half, row, run, out)),
            None => self.pieces.boxes[node.boxes.clone()]
                .iter()
                .try_for_each(|piece| self.read_run(files, piece, row, run.clone(), out)),
        }
    }

    /// Copies what `piece` has of the columns `run` of a row.
    fn read_run(&self, files: &[DataFile], piece: &Piece, row: &[u64], run: Range<u64>, out: &mut [u8]) -> Result<()> {
        let mut element = 0;
        for (dimension, &index) in row.iter().enumerate() {
            let Some(within) = index.checked_sub(piece.origin[dimension]).filter(|&i| i < piece.shape[dimension])
            else {
                return Ok(());
            };
            element += within * piece.strides[dimension];
        }
        // Without dimensions there is one column, at the start of the piece.
        let last = row.len();
        let (origin, columns, stride) = match piece.shape.get(last) {
            Some(&columns) => (piece.origin[last], columns, piece.strides[last]),
            None => (0, 1, 1),
        };
        let (from, to) = (run.start.max(origin), run.end.min(origin + columns));
        if from >= to {
            return Ok(());
        }
        element += (from - origin) * stride;
        let width = self.width as usize;
        let out = &mut out[(from - run.start) as usize * width..(to - run.start) as usize * width];
        let offset = piece.offset + element * self.width;
        let file = &files[piece.file];
        let count = to - from;
        if stride == 1 || count == 1 {
            return file.copy(offset, out);
        }
        let span = ((count - 1) * stride + 1) * self.width;
        if !file.is_mapped() && span > SPAN {
            return out
                .chunks_exact_mut(width)
                .zip(0..)
                .try_for_each(|(out, i)| file.copy(offset + i * stride * self.width, out));
        }
        let mut buffer = Vec::new();
        let bytes = file.read(offset..offset + span, &mut buffer)?;
        for (out, element) in out.chunks_exact_mut(width).zip(bytes.chunks((stride as usize * width).max(width))) {
            out.copy_from_slice(&element[..width]);
        }
        if stride == 0 {
            let (first, rest) = out.split_at_mut(width);
            rest.chunks_exact_mut(width).for_each(|out| out.copy_from_slice(first));
        }
        Ok(())
    }
}

/// The number of elements of a shape.
fn count(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))
}

/// Whether boxes that lie in the grid, hold as many elements as it and are not empty have no element in common.
///
/// The sum of all boxes' indicator functions is the grid's own exactly if their mixed differences are equal, and those
/// are the boxes' corners with alternating signs. So the corners of all boxes must cancel each other but for the grid's.
fn cover_once(grid: &[u64], boxes: &[Piece]) -> Result<bool, FormatError> {
    // Dimensions that no box cuts add nothing.
    let is_cut = |&d: &usize| boxes.iter().any(|piece| piece.shape[d] != grid[d]);
    let cut: Vec<usize> = (0..grid.len()).filter(is_cut).collect();
    let corners = 1u64.checked_shl(cut.len() as u32).and_then(|each| each.checked_mul(boxes.len() as u64));
    if cut.len() > 3 && corners.is_none_or(|corners| corners > CORNERS) {
        if boxes.len() > PAIRS {
            let message = format!("it is cut along {} dimensions into {} pieces", cut.len(), boxes.len());
            return Err(FormatError::unsupported(message).hint("write it again in fewer pieces"));
        }
        return Ok(!boxes.iter().enumerate().any(|(i, a)| boxes[..i].iter().any(|b| overlap(a, b))));
    }
    let mut sums: HashMap<u128, i64> = HashMap::with_capacity(boxes.len());
    let mut add = |origin: &dyn Fn(usize) -> u64, shape: &dyn Fn(usize) -> u64, sign: i64| {
        for corner in 0..1u64 << cut.len() {
            // Coordinates reach to the size of each dimension; their number in all is far below 128 bits.
            let place = cut.iter().enumerate().fold(0, |place, (bit, &d)| {
                let at = origin(d) + if corner >> bit & 1 == 1 { shape(d) } else { 0 };
                place * (u128::from(grid[d]) + 1) + u128::from(at)
            });
            let sum = sums.entry(place).or_insert(0);
            *sum += if corner.count_ones() % 2 == 0 { sign } else { -sign };
            if *sum == 0 {
                sums.remove(&place);
            }
        }
    };
    if !grid.contains(&0) {
        add(&|_| 0, &|d| grid[d], -1);
    }
    for piece in boxes {
        add(&|d| piece.origin[d], &|d| piece.shape[d], 1);
    }
    Ok(sums.is_empty())
}

fn overlap(a: &Piece, b: &Piece) -> bool {
    let apart = |i: usize| a.origin[i] + a.shape[i] <= b.origin[i] || b.origin[i] + b.shape[i] <= a.origin[i];
    !(0..a.shape.len()).any(apart)
}

/// The boxes with neighbouring dimensions joined where all of them are contiguous, so that rows are long.
fn coalesced(grid: Vec<u64>, boxes: Vec<Piece>) -> Pieces {
    /// A dimension of the grid, and of each box its origin, size and stride.
    struct Dimension {
        size: u64,
        of: Vec<(u64, u64, u64)>,
    }
    if grid.contains(&0) {
        return Pieces { grid: vec![0], boxes: Vec::new() };
    }
    // From the innermost on.
    let mut dimensions: Vec<Dimension> = Vec::new();
    for (d, &size) in grid.iter().enumerate().rev().filter(|(_, size)| **size != 1) {
        let of: Vec<_> = boxes.iter().map(|piece| (piece.origin[d], piece.shape[d], piece.strides[d])).collect();
        let joins = |inner: &Dimension| {
            inner.of.iter().zip(&of).all(|(&(_, whole, step), &(_, n, stride))| {
                whole == inner.size && (n == 1 || whole.checked_mul(step) == Some(stride))
            })
        };
        match dimensions.last_mut() {
            Some(inner) if joins(inner) => {
                for (inner, outer) in inner.of.iter_mut().zip(of) {
                    let whole = inner.1;
                    *inner = (outer.0 * whole, outer.1 * whole, inner.2);
                }
                inner.size *= size;
            }
            _ => dimensions.push(Dimension { size, of }),
        }
    }
    dimensions.reverse();
    let each =
        |index: usize, part: fn(&(u64, u64, u64)) -> u64| dimensions.iter().map(|d| part(&d.of[index])).collect();
    let boxes = boxes.into_iter().enumerate().map(|(index, piece)| Piece {
        origin: each(index, |part| part.0),
        shape: each(index, |part| part.1),
        strides: each(index, |part| part.2),
        ..piece
    });
    Pieces { boxes: boxes.collect(), grid: dimensions.iter().map(|dimension| dimension.size).collect() }
}

/// Adds the node of these boxes, which are the ones from number `first` on, and those below it; sorts them by it.
fn add_node(index: &mut Vec<Node>, boxes: &mut [Piece], first: usize) -> usize {
    let dimensions = boxes.first().map_or(0, |piece| piece.origin.len());
    let over = |bound: fn(&Piece, usize) -> u64, best: fn(u64, u64) -> u64| -> Vec<u64> {
        (0..dimensions).map(|d| boxes.iter().map(|piece| bound(piece, d)).reduce(best).unwrap_or(0)).collect()
    };
    let low = over(|piece, d| piece.origin[d], u64::min);
    let high = over(|piece, d| piece.origin[d] + piece.shape[d], u64::max);
    let number = index.len();
    // Across the dimension along which the most boxes lie behind each other.
    let behind = |d: &usize| {
        let sizes: u128 = boxes.iter().map(|piece| u128::from(piece.shape[*d])).sum();
        u128::from(high[*d] - low[*d]) * boxes.len() as u128 / sizes.max(1)
    };
    let across = (0..dimensions).max_by_key(behind).filter(|_| boxes.len() > LEAF);
    index.push(Node { low, high, boxes: first..first + boxes.len(), halves: None });
    if let Some(across) = across {
        boxes.sort_unstable_by_key(|piece| piece.origin[across]);
        let middle = boxes.len() / 2;
        let (left, right) = boxes.split_at_mut(middle);
        let halves = [add_node(index, left, first), add_node(index, right, first + middle)];
        index[number].halves = Some(halves);
    }
    number
}

/// The position of element `index` along each dimension of `shape`.
fn unravel(mut index: u64, shape: &[u64]) -> Vec<u64> {
    let mut position = vec![0; shape.len()];
    for (position, &n) in position.iter_mut().zip(shape).rev() {
        *position = index % n;
        index /= n;
    }
    position
}

/// Steps to the next position in `shape`.
fn advance(position: &mut [u64], shape: &[u64]) {
    for (position, &n) in position.iter_mut().zip(shape).rev() {
        *position += 1;
        if *position < n {
            return;
        }
        *position = 0;
    }
}
