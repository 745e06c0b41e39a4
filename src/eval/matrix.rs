//! Products of matrices of f64 on all threads of the current rayon pool.
//!
//! A product is cut into panels of a fixed number of columns, each computed by one thread, so that its bits do not
//! depend on how many there are. Matrices are slices, column by column.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Columns of a panel.
const PANEL: usize = 128;
/// Parts that a matrix is cut into where its eigenvalues are taken: bits depend on how many, so it is no number of threads. The work
/// waits for memory more than for arithmetic.
const PARTS: usize = 2;

/// Which part of a product is wanted, and of its factors is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All of it.
    Full,
    /// All of it, where the right factor is zero above its diagonal.
    RightLower,
    /// On and below the diagonal only; a panel's rectangle above it is left as it was.
    Lower,
    /// As [`Shape::Lower`], where the left factor is zero below its diagonal.
    LowerLeftUpper,
}

/// `out += left · right`, or `=` where `adds` is false; `out` has as many rows as `left`.
pub(crate) fn product(out: &mut [f64], adds: bool, left: MatRef<'_, f64>, right: MatRef<'_, f64>, shape: Shape) {
    let (rows, inner) = (left.nrows(), left.ncols());
    let accumulate = if adds { Accum::Add } else { Accum::Replace };
    out.par_chunks_mut((rows * PANEL).max(1)).enumerate().for_each(|(panel, out)| {
        let (first, columns) = (panel * PANEL, out.len() / rows);
        let top = if matches!(shape, Shape::Lower | Shape::LowerLeftUpper) { first.min(rows) } else { 0 };
        let from = if matches!(shape, Shape::RightLower | Shape::LowerLeftUpper) { first.min(inner) } else { 0 };
        let out = MatMut::from_column_major_slice_mut(out, rows, columns).subrows_mut(top, rows - top);
        let left = left.submatrix(top, from, rows - top, inner - from);
        let right = right.submatrix(from, first, inner - from, columns);
        matmul(out, accumulate, left, right, 1.0, Par::Seq);
    });
}

/// Puts what is below the diagonal of a square matrix above it as well.
pub(crate) fn mirror(square: &mut [f64], n: usize) {
    for column in 1..n {
        // Columns to the left hold the row of this one.
        let (left, right) = square.split_at_mut(column * n);
        for (other, value) in right.iter_mut().take(column).enumerate() {
            *value = left.get(other * n + column).copied().unwrap_or_default();
        }
    }
}

/// The sum of the square roots of a symmetric matrix's eigenvalues, of which the lower half is read: of the largest
/// `rank` ones only, where it is known that the others are zero. The second number is the least eigenvalue over the
/// largest. None if the eigenvalues do not converge.
pub(crate) fn sum_of_roots(square: &[f64], n: usize, rank: usize) -> Option<(f64, f64)> {
    if n == 0 {
        return Some((0.0, 0.0));
    }
    let matrix = MatRef::from_column_major_slice(square, n, n);
    let parts = Par::rayon(PARTS);
    let scratch = evd::self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::No, parts, Default::default());
    let mut diagonal = Diag::zeros(n);
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    evd::self_adjoint_evd(matrix, diagonal.as_mut(), None, parts, stack, Default::default()).ok()?;
    let mut values: Vec<f64> = diagonal.column_vector().iter().copied().collect();
    values.sort_by(|a, b| b.total_cmp(a));
    let (largest, least) = (values.first().copied()?, values.last().copied()?);
    let sum = values.iter().take(rank).map(|value| value.max(0.0).sqrt()).sum();
    Some((sum, if largest > 0.0 { least / largest } else { 0.0 }))
}
