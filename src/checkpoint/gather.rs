//! Elements that are not where a plain array would have them: views with strides, shards, other byte orders.
//!
//! Whatever the layout, a range of the tensor's elements comes out in row-major, little-endian order.

use super::file::DataFile;
use crate::error::Result;
use ckptmerge_format::{FormatError, Piece, Pieces};
use std::ops::Range;

/// Strided elements of a file that is not mapped are read together when they span no more bytes than this.
const SPAN: u64 = 1 << 20;

/// Where the elements of a tensor are, checked against the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gather {
    grid: Vec<u64>,
    boxes: Vec<Piece>,
    /// Bytes per element.
    width: u64,
    big_endian: bool,
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
        let Pieces { grid, boxes } = pieces;
        let wrong = |message: &str| Err(FormatError::corrupt(message));
        let count = |shape: &[u64]| shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
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
        if covered != elements || overlap(&boxes) {
            return wrong("its pieces do not cover it exactly once");
        }
        Ok(Self { grid, boxes, width, big_endian }.coalesced())
    }

    /// A single piece with neighbouring dimensions joined where they are contiguous, so that rows are long.
    fn coalesced(mut self) -> Self {
        if let [piece] = &mut self.boxes[..] {
            let mut dims: Vec<(u64, u64)> = Vec::new();
            for (&n, &stride) in piece.shape.iter().zip(&piece.strides).filter(|(n, _)| **n != 1) {
                match dims.last_mut() {
                    Some((size, outer)) if n.checked_mul(stride) == Some(*outer) => {
                        *size *= n;
                        *outer = stride;
                    }
                    _ => dims.push((n, stride)),
                }
            }
            piece.shape = dims.iter().map(|dim| dim.0).collect();
            piece.strides = dims.iter().map(|dim| dim.1).collect();
            piece.origin = vec![0; dims.len()];
            self.grid = piece.shape.clone();
        }
        self
    }

    /// The files that elements are in, by number.
    pub(super) fn files(&self) -> impl Iterator<Item = usize> {
        self.boxes.iter().map(|piece| piece.file)
    }

    /// Fills `out` with the elements from number `start` on.
    pub(super) fn read(&self, files: &[DataFile], start: u64, out: &mut [u8]) -> Result<()> {
        let columns = self.grid.last().copied().unwrap_or(1);
        let outer = &self.grid[..self.grid.len().saturating_sub(1)];
        let end = start + out.len() as u64 / self.width;
        let mut at = start;
        while at < end {
            let (row, column) = (at / columns, at % columns);
            let run = column..columns.min(column + (end - at));
            let begin = ((at - start) * self.width) as usize;
            let row_out = &mut out[begin..begin + ((run.end - run.start) * self.width) as usize];
            let index = unravel(row, outer);
            for piece in &self.boxes {
                self.read_run(files, piece, &index, run.clone(), row_out)?;
            }
            at += run.end - run.start;
        }
        if self.big_endian {
            out.chunks_exact_mut(self.width as usize).for_each(<[u8]>::reverse);
        }
        Ok(())
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

/// Whether two of the boxes, which lie in the grid, have an element in common.
fn overlap(boxes: &[Piece]) -> bool {
    let end = |piece: &Piece, i: usize| piece.origin[i] + piece.shape[i];
    if boxes.iter().all(|piece| piece.shape.len() == 1) {
        // A run of thousands of processes leaves as many, too many to compare each with all others.
        let mut ranges: Vec<_> = boxes.iter().map(|piece| (piece.origin[0], end(piece, 0))).collect();
        ranges.sort_unstable();
        return ranges.windows(2).any(|pair| pair[1].0 < pair[0].1);
    }
    let apart = |a: &Piece, b: &Piece| (0..a.shape.len()).any(|i| end(a, i) <= b.origin[i] || end(b, i) <= a.origin[i]);
    boxes.iter().enumerate().any(|(i, a)| boxes[..i].iter().any(|b| !apart(a, b)))
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
