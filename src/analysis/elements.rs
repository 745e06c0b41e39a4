//! The elements of task vectors, decoded a block at a time: τ = tuned − base in f64, or the models' own numbers.

use super::decode_f64;
use super::vectors::Vector;
use crate::dtype::vector::{self, Loop};
use crate::dtype::{DType, Simd};

/// The most elements that are decoded at a time: a multiple of every type's block, and few enough that a base's, a
/// difference's and what is made of them stay in the first-level cache.
pub(super) const BLOCK: usize = 1024;

/// The types of a tensor's elements, and room for a block of them.
pub(super) struct Elements {
    simd: Simd,
    models: Vec<DType>,
    base: Option<DType>,
    narrow: [f32; BLOCK],
    wide: [f64; BLOCK],
    wide_base: [f64; BLOCK],
}

impl Elements {
    pub(super) fn of(simd: Simd, vector: &Vector<'_>) -> Self {
        let dtype = |view: &crate::checkpoint::TensorView<'_>| view.tensor.dtype;
        Self {
            simd,
            models: vector.models.iter().map(dtype).collect(),
            base: vector.base.as_ref().map(dtype),
            narrow: [0.0; BLOCK],
            wide: [0.0; BLOCK],
            wide_base: [0.0; BLOCK],
        }
    }

    /// Hands the base's elements to `base` and those of each model, with its number, to `take`, block by block and in a
    /// block model by model.
    pub(super) fn each(
        &mut self,
        inputs: &[&[u8]],
        mut base: impl FnMut(&[f64]),
        mut take: impl FnMut(usize, &mut [f64]),
    ) {
        let Self { simd, models, base: dtype, narrow, wide, wide_base } = self;
        let has_base = dtype.is_some();
        let (Some(first), Some(bytes)) = (models.first(), inputs.first()) else { return };
        let all = count(*first, bytes);
        for start in (0..all).step_by(BLOCK) {
            let count = BLOCK.min(all - start);
            let (wide, wide_base) = (&mut wide[..count], &mut wide_base[..count]);
            if let (Some(dtype), Some(bytes)) = (&*dtype, inputs.get(models.len())) {
                decode_f64(*simd, *dtype, part(*dtype, bytes, start, count), narrow, wide_base);
                base(wide_base);
            }
            for (model, (dtype, bytes)) in models.iter().zip(inputs).enumerate() {
                decode_f64(*simd, *dtype, part(*dtype, bytes, start, count), narrow, wide);
                if has_base {
                    vector::run(Subtract { minus: wide_base, wide });
                }
                take(model, wide);
            }
        }
    }
}

/// How many elements there are in some bytes.
pub(super) fn count(dtype: DType, bytes: &[u8]) -> usize {
    bytes.len() / dtype.block_bytes() as usize * dtype.block_elements() as usize
}

/// The bytes of `count` elements from `start` on.
pub(super) fn part(dtype: DType, bytes: &[u8], start: usize, count: usize) -> &[u8] {
    let at = |element: usize| element / dtype.block_elements() as usize * dtype.block_bytes() as usize;
    &bytes[at(start)..at(start + count)]
}

/// `wide[i] −= minus[i]`
struct Subtract<'a> {
    minus: &'a [f64],
    wide: &'a mut [f64],
}

impl Loop for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (wide, minus) in self.wide.iter_mut().zip(self.minus) {
            *wide -= minus;
        }
    }
}
