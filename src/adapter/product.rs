//! The product of two thin matrices, a part at a time: `τ = s·B·A`, never held whole.
//!
//! Both factors are decoded to f32 when their tensor is first reached, and let go when later tensors need the room. Each
//! element is a sum over the rank in its order, multiplied and added apart, so no part depends on how it was cut.

use crate::checkpoint::{DataFile, TensorView};
use crate::dtype::vector::{self, Loop};
use crate::dtype::{self, Simd};
use crate::error::Result;
use crate::merge::Generator;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Bytes of decoded factors that an adapter keeps: those of a few tensors in work.
const KEPT: u64 = 16 << 20;
/// Factors that are kept whatever their size: a unit of output may end one tensor and begin the next.
const KEPT_LEAST: usize = 3;
/// Elements of a row that are summed together, in registers.
const LANES: usize = 64;

/// How factors lie in their tensors, seen from the tensor they change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `B·A`: B is rows × rank, A is rank × columns.
    Plain,
    /// `(B·A)ᵀ`: B is columns × rank, A is rank × rows. Embeddings, and layers that store their weight so.
    Transposed,
}

/// What is added to one tensor: the tensors it is made of are numbers of an adapter's own.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) down: usize,
    pub(super) up: usize,
    /// Tucker's core, between the two: `τ = s·up·(core·down)`.
    pub(super) core: Option<usize>,
    pub(super) layout: Layout,
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) rank: u64,
    /// alpha / rank, as the adapter has it.
    pub(super) scale: f64,
    slot: Arc<RwLock<Option<Arc<Factors>>>>,
}

/// Which tensors and sizes a product has.
pub(super) struct Shape {
    pub(super) layout: Layout,
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) rank: u64,
}

impl Product {
    pub(super) fn new(down: usize, up: usize, core: Option<usize>, shape: Shape, scale: f64) -> Self {
        let Shape { layout, rows, columns, rank } = shape;
        Self { down, up, core, layout, rows, columns, rank, scale, slot: Arc::default() }
    }

    fn factor_bytes(&self) -> u64 {
        (self.rows + self.columns) * self.rank * size_of::<f32>() as u64
    }
}

/// Factors as numbers, the scale multiplied in: `left` is rows × rank; `right` is cut into stripes of [`LANES`] columns, one
/// behind the other, so that what is multiplied together lies together. As a matrix, rows of 2ⁿ columns would share
/// their places in the cache.
#[derive(Debug)]
struct Factors {
    left: Vec<f32>,
    right: Vec<f32>,
}

/// The factors that are decoded, oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<VecDeque<(u64, Slot)>>);

type Slot = Arc<RwLock<Option<Arc<Factors>>>>;

impl Kept {
    /// Takes note of a slot that was filled, and empties the oldest that there is no room for.
    fn note(&self, bytes: u64, slot: Slot) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((bytes, slot));
        let mut total: u64 = kept.iter().map(|(bytes, _)| bytes).sum();
        while total > KEPT && kept.len() > KEPT_LEAST {
            let Some((bytes, oldest)) = kept.pop_front() else { break };
            total -= bytes;
            *oldest.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// A [`Product`] over the tensors of its adapter, ready to be computed.
pub(super) struct Low<'a> {
    pub(super) product: &'a Product,
    pub(super) down: TensorView<'a>,
    pub(super) up: TensorView<'a>,
    pub(super) core: Option<TensorView<'a>>,
    pub(super) kept: &'a Kept,
}

impl Low<'_> {
    fn factors(&self) -> Result<Arc<Factors>> {
        let slot = &self.product.slot;
        if let Some(factors) = &*slot.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Arc::clone(factors));
        }
        let mut place = slot.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(factors) = &*place {
            return Ok(Arc::clone(factors));
        }
        let factors = Arc::new(self.decode()?);
        *place = Some(Arc::clone(&factors));
        drop(place);
        self.kept.note(self.product.factor_bytes(), Arc::clone(slot));
        Ok(factors)
    }

    fn decode(&self) -> Result<Factors> {
        let Product { layout, rows, columns, rank, scale, .. } = *self.product;
        let (up, mut down) = (numbers(&self.up)?, numbers(&self.down)?);
        if let Some(core) = &self.core {
            down = through_core(&numbers(core)?, &down, rank as usize, columns as usize);
        }
        let (mut left, right) = match layout {
            Layout::Plain => (up, down),
            Layout::Transposed => {
                (transposed(&down, rank as usize, rows as usize), transposed(&up, columns as usize, rank as usize))
            }
        };
        let scale = scale as f32;
        vector::update(&mut left, [], |left, []| left * scale);
        Ok(Factors { left, right: striped(&right, rank as usize, columns as usize) })
    }
}

/// All elements of a tensor, as numbers.
pub(super) fn numbers(view: &TensorView<'_>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; view.tensor.elements as usize];
    let mut buffer = Vec::new();
    let bytes = view.read(0..view.tensor.bytes, &mut buffer)?;
    dtype::decode(Simd::detect(), view.tensor.dtype, bytes, &mut values);
    view.files().try_for_each(DataFile::check_fault)?;
    Ok(values)
}

/// A matrix of `rows` × `columns`, the other way round.
fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| matrix[row * columns + column])).collect()
}

/// A matrix of `rows` × `columns` in stripes, the last filled up with zeros.
fn striped(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut stripes = vec![0.0; columns.next_multiple_of(LANES) * rows];
    for (index, stripe) in stripes.chunks_exact_mut((LANES * rows).max(1)).enumerate() {
        let from = index * LANES;
        let width = LANES.min(columns - from);
        for (row, place) in stripe.chunks_exact_mut(LANES).enumerate() {
            place[..width].copy_from_slice(&matrix[row * columns + from..][..width]);
        }
    }
    stripes
}

/// `Σ_q core[p, q, h, w]·down[q, i]` as rank × (inputs·h·w).
fn through_core(core: &[f32], down: &[f32], rank: usize, columns: usize) -> Vec<f32> {
    let inner = rank.max(1);
    let inputs = down.len() / inner;
    let area = columns / inputs.max(1);
    let mut out = vec![0.0; rank * columns];
    for (p, row) in out.chunks_exact_mut(columns.max(1)).enumerate() {
        for q in 0..inner {
            let core = &core[(p * inner + q) * area..][..area];
            for (place, d) in row.chunks_exact_mut(area.max(1)).zip(&down[q * inputs..]) {
                vector::update(place, [core], |sum, [c]| sum + c * d);
            }
        }
    }
    out
}

impl Generator for Low<'_> {
    fn fill(&self, start: u64, out: &mut [f32]) -> Result<()> {
        let factors = self.factors()?;
        let (columns, rank) = ((self.product.columns as usize).max(1), self.product.rank as usize);
        vector::run(Fill { left: &factors.left, right: &factors.right, columns, rank, start: start as usize, out });
        Ok(())
    }

    fn reads(&self) -> Vec<TensorView<'_>> {
        [Some(self.down), self.core, Some(self.up)].into_iter().flatten().collect()
    }

    fn memory(&self) -> u64 {
        self.product.factor_bytes()
    }
}

/// Elements from number `start` on of the product of `left` and the stripes of `right`.
struct Fill<'a> {
    left: &'a [f32],
    right: &'a [f32],
    columns: usize,
    rank: usize,
    start: usize,
    out: &'a mut [f32],
}

impl Loop for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { left, right, columns, rank, start, out } = self;
        let (mut row, mut column) = (start / columns, start % columns);
        let mut rest = out;
        while !rest.is_empty() {
            let (stripe, first) = (column / LANES, column % LANES);
            let count = (LANES - first).min(columns - column).min(rest.len());
            let (now, after) = rest.split_at_mut(count);
            let coefficients = &left[row * rank..][..rank];
            let (factors, _) = right[stripe * rank * LANES..][..rank * LANES].as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for (c, factor) in coefficients.iter().zip(factors) {
                for lane in 0..LANES {
                    sums[lane] += c * factor[lane];
                }
            }
            now.copy_from_slice(&sums[first..first + count]);
            column += count;
            if column == columns {
                (row, column) = (row + 1, 0);
            }
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(left: &[f32], right: &[f32], rank: usize, start: usize, length: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; length];
        let columns = right.len() / rank;
        vector::run(Fill { left, right: &striped(right, rank, columns), columns, rank, start, out: &mut out });
        out
    }

    #[test]
    fn any_part_is_the_part_of_the_whole() {
        let (rows, columns, rank) = (7, 150, 3);
        let left: Vec<f32> = (0..rows * rank).map(|i| (i as f32 * 0.7).sin()).collect();
        let right: Vec<f32> = (0..rank * columns).map(|i| (i as f32 * 0.3).cos()).collect();
        let whole = fill(&left, &right, rank, 0, rows * columns);
        for (index, value) in whole.iter().enumerate() {
            let (i, j) = (index / columns, index % columns);
            let expected: f64 =
                (0..rank).map(|k| f64::from(left[i * rank + k]) * f64::from(right[k * columns + j])).sum();
            assert!((f64::from(*value) - expected).abs() < 1e-6, "{index}: {value} against {expected}");
        }
        for (start, length) in [(0, 1), (149, 2), (1, 300), (64, 64), (700, 350), (33, 0)] {
            assert_eq!(fill(&left, &right, rank, start, length), whole[start..start + length], "{start} {length}");
        }
    }

    #[test]
    fn a_core_is_multiplied_in() {
        // rank 2, one input, two places: out[p, w] = Σ_q core[p, q, w]·down[q].
        let core = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(through_core(&core, &[10.0, 1.0], 2, 2), [13.0, 24.0, 57.0, 68.0]);
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
