//! Products of matrices in slices, by the crate `gemm` on the calling thread.
//!
//! An element's products are added in an order that depends on the inner dimension alone, so how an output is cut into
//! tiles does not change its bits.
#![expect(unsafe_code, reason = "the crate takes pointers, and tiles of a row-major matrix are no slices")]

use gemm::Parallelism;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix in a slice: element (i, j) is at `i · strides.0 + j · strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    shape: (usize, usize),
    strides: (usize, usize),
}

impl<'a> Matrix<'a> {
    /// # Panics
    /// If the slice is too short.
    pub(super) fn new(values: &'a [f32], shape: (usize, usize), strides: (usize, usize)) -> Self {
        if shape.0 > 0 && shape.1 > 0 {
            let last = (shape.0 - 1) * strides.0 + (shape.1 - 1) * strides.1;
            assert!(last < values.len(), "a matrix of {shape:?} by {strides:?} does not fit {} values", values.len());
        }
        Self { values, shape, strides }
    }

    /// Rows one behind the other.
    pub(super) fn of_rows(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::new(values, (rows, columns), (columns, 1))
    }

    pub(super) fn transposed(self) -> Self {
        Self { shape: (self.shape.1, self.shape.0), strides: (self.strides.1, self.strides.0), ..self }
    }

    /// Some of the columns.
    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        assert!(columns.start <= columns.end && columns.end <= self.shape.1);
        let start = (columns.start * self.strides.1).min(self.values.len());
        Self { values: &self.values[start..], shape: (self.shape.0, columns.len()), ..self }
    }
}

/// Some columns of a matrix whose rows lie one behind the other: what one task writes.
pub(super) struct Tile<'a> {
    first: *mut f32,
    rows: usize,
    columns: Range<usize>,
    stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is the only access to its elements while it lives, as `&mut [f32]` would be.
unsafe impl Send for Tile<'_> {}

impl<'a> Tile<'a> {
    /// Cuts a matrix, which `values` are the rows of, into tiles of `width` columns; the last may be narrower.
    ///
    /// # Panics
    /// If the values are not `rows · columns`.
    pub(super) fn cut(
        values: &'a mut [f32],
        rows: usize,
        columns: usize,
        width: usize,
    ) -> impl Iterator<Item = Self> + 'a {
        assert_eq!(values.len(), rows * columns);
        let first = values.as_mut_ptr();
        (0..columns).step_by(width.max(1)).map(move |start| {
            let columns_of = start..(start + width.max(1)).min(columns);
            // SAFETY: `start` is below `columns`, so the pointer stays within `values`; tiles have no columns in common.
            let first = unsafe { first.add(start) };
            Self { first, rows, columns: columns_of, stride: columns, of: PhantomData }
        })
    }

    /// Which columns of the whole.
    pub(super) fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// A row's part.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the row is one of the matrix's, and the columns are this tile's own, which `&mut self` lends once.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.columns.len()) }
    }

    /// Makes the tile `lhs · rhs`, or adds that to it.
    ///
    /// # Panics
    /// If the shapes do not agree.
    pub(super) fn multiply(&mut self, lhs: Matrix<'_>, rhs: Matrix<'_>, add: bool) {
        let (rows, inner) = lhs.shape;
        assert_eq!((rows, inner, rhs.shape.1), (self.rows, rhs.shape.0, self.columns.len()));
        if rows == 0 || rhs.shape.1 == 0 {
            return;
        }
        // SAFETY: `Matrix::new` checked that the inputs' last elements are in their slices; the tile's are its own, and
        // slices that are borrowed shared do not overlap it.
        unsafe {
            gemm::gemm(
                rows,
                rhs.shape.1,
                inner,
                self.first,
                1,
                self.stride as isize,
                add,
                lhs.values.as_ptr(),
                lhs.strides.1 as isize,
                lhs.strides.0 as isize,
                rhs.values.as_ptr(),
                rhs.strides.1 as isize,
                rhs.strides.0 as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}
