//! Attention (Vaswani et al. 2017) over the pixels of an image.

use super::gemm::{Matrix, Tile};
use super::softmax::softmax;
use super::storage::{elements, is_ours, with_elements};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Weights of pixels for each other that are in memory together, at most: a quarter of a GiB.
pub const SCORES: usize = 1 << 26;
/// Rows of a product that one task computes: a size of its own, so that results do not depend on who computes them.
const ROWS: usize = 128;

/// `values · softmax(scale · queriesᵀ · keys)ᵀ`, all (batch, dimension, pixels): each pixel gets the mean of all
/// pixels' values, weighted by how its query fits their keys.
///
/// # Errors
/// If the shapes do not agree.
pub fn attention(queries: &Tensor, keys: &Tensor, values: &Tensor, scale: f64) -> Result<Tensor> {
    let (batch, _, pixels) = queries.dims3()?;
    let together = (SCORES / (batch * keys.dim(2)?).max(1)).max(1);
    if pixels <= together {
        return attend(queries, keys, values, scale);
    }
    let starts = (0..pixels).step_by(together);
    let parts =
        starts.map(|start| attend(&queries.narrow(2, start, together.min(pixels - start))?, keys, values, scale));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 2)
}

fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, scale: f64) -> Result<Tensor> {
    if is_ours(queries) {
        let weights = softmax(&multiply(queries, keys, [true, false])?, scale as f32)?;
        return multiply(values, &weights, [false, true]);
    }
    let weights = candle_nn::ops::softmax(&(queries.t()?.matmul(keys)? * scale)?, 2)?;
    values.matmul(&weights.t()?)
}

/// The product of each two matrices of a batch, of which the first, the second, or both are transposed first.
fn multiply(lhs: &Tensor, rhs: &Tensor, transposed: [bool; 2]) -> Result<Tensor> {
    lhs.contiguous()?.apply_op2(&rhs.contiguous()?, Multiply { transposed })
}

struct Multiply {
    transposed: [bool; 2],
}

/// Matrices of a batch, as they are or transposed.
#[derive(Clone, Copy)]
struct Batch<'a> {
    values: &'a [f32],
    count: usize,
    rows: usize,
    columns: usize,
    transposed: bool,
}

impl<'a> Batch<'a> {
    fn new(values: &'a [f32], shape: &Shape, transposed: bool) -> Result<Self> {
        let (count, rows, columns) = shape.dims3()?;
        Ok(Self { values, count, rows, columns, transposed })
    }

    fn transposed(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) }
    }

    fn matrix(&self, index: usize) -> Matrix<'a> {
        let size = self.rows * self.columns;
        let matrix = Matrix::of_rows(&self.values[index * size..][..size], self.rows, self.columns);
        if self.transposed { matrix.transposed() } else { matrix }
    }

    fn multiply(&self, rhs: &Batch<'_>) -> Result<(Vec<f32>, Shape)> {
        let ((rows, inner), (inner_of_rhs, columns)) = (self.shape(), rhs.shape());
        if self.count != rhs.count || inner != inner_of_rhs {
            bail!(
                "{} matrices of {:?} and {} of {:?} have no products",
                self.count,
                self.shape(),
                rhs.count,
                rhs.shape()
            );
        }
        let mut out = vec![0.0; self.count * rows * columns];
        let tasks = out.par_chunks_mut((rows * columns).max(1)).enumerate().flat_map(|(index, out)| {
            out.par_chunks_mut((ROWS * columns).max(1)).enumerate().map(move |(part, out)| (index, part * ROWS, out))
        });
        tasks.for_each(|(index, first, out)| {
            let left = self.matrix(index).transposed().columns(first..(first + ROWS).min(rows)).transposed();
            let height = out.len() / columns;
            Tile::cut(out, height, columns, columns).for_each(|mut tile| tile.multiply(left, rhs.matrix(index), false));
        });
        Ok((out, (self.count, rows, columns).into()))
    }
}

impl CustomOp2 for Multiply {
    fn name(&self) -> &'static str {
        "multiply"
    }

    fn cpu_fwd(
        &self,
        lhs: &CpuStorage,
        of_lhs: &Layout,
        rhs: &CpuStorage,
        of_rhs: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let lhs = Batch::new(elements(lhs, of_lhs)?, of_lhs.shape(), self.transposed[0])?;
        let rhs = Batch::new(elements(rhs, of_rhs)?, of_rhs.shape(), self.transposed[1])?;
        let (out, shape) = lhs.multiply(&rhs)?;
        Ok((CpuStorage::F32(out), shape))
    }

    /// `g·rhsᵀ` and `lhsᵀ·g`, of the transposed where they were.
    fn bwd(
        &self,
        lhs: &Tensor,
        rhs: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let of = |(values, shape): (Vec<f32>, Shape)| Tensor::from_vec(values, shape, gradient.device());
        let [transposed_lhs, transposed_rhs] = self.transposed;
        with_elements(gradient, |g| {
            let g = Batch::new(g, gradient.shape(), false)?;
            let of_lhs = with_elements(rhs, |values| {
                let rhs = Batch::new(values, rhs.shape(), transposed_rhs)?;
                if transposed_lhs { rhs.multiply(&g.transposed()) } else { g.multiply(&rhs.transposed()) }
            })?;
            let of_rhs = with_elements(lhs, |values| {
                let lhs = Batch::new(values, lhs.shape(), transposed_lhs)?;
                if transposed_rhs { g.transposed().multiply(&lhs) } else { lhs.transposed().multiply(&g) }
            })?;
            Ok((Some(of(of_lhs)?), Some(of(of_rhs)?)))
        })
    }
}
