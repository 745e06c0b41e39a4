//! The elements of task vectors, decoded a block at a time: τ = tuned − base in f64, or the models' own numbers.

use super::vectors::Vector;
use crate::dtype::vector::{self, Loop};
use crate::dtype::{self, DType, Simd};

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
        let (Some(first), Some(bytes)) = (models.first(), inputs.first()) else { return };
        let all = bytes.len() / first.block_bytes() as usize * first.block_elements() as usize;
        for start in (0..all).step_by(BLOCK) {
            let count = BLOCK.min(all - start);
            let (wide, wide_base) = (&mut wide[..count], &mut wide_base[..count]);
            if let (Some(dtype), Some(bytes)) = (&*dtype, inputs.get(models.len())) {
                decode(*simd, *dtype, part(*dtype, bytes, start, count), &mut narrow[..count], None, wide_base);
                base(wide_base);
            }
            let minus = dtype.is_some().then_some(&*wide_base);
            for (model, (dtype, bytes)) in models.iter().zip(inputs).enumerate() {
                decode(*simd, *dtype, part(*dtype, bytes, start, count), &mut narrow[..count], minus, wide);
                take(model, wide);
            }
        }
    }
}

/// The bytes of `count` elements from `start` on.
fn part(dtype: DType, bytes: &[u8], start: usize, count: usize) -> &[u8] {
    let at = |element: usize| element / dtype.block_elements() as usize * dtype.block_bytes() as usize;
    &bytes[at(start)..at(start + count)]
}

/// Decodes elements, and takes those of `minus` from them.
fn decode(simd: Simd, dtype: DType, bytes: &[u8], narrow: &mut [f32], minus: Option<&[f64]>, wide: &mut [f64]) {
    match dtype {
        DType::F64 | DType::I64 | DType::U64 | DType::I32 | DType::U32 => {
            dtype::decode_f64(dtype, bytes, wide);
            if let Some(minus) = minus {
                wide.iter_mut().zip(minus).for_each(|(wide, minus)| *wide -= minus);
            }
        }
        _ => {
            dtype::decode(simd, dtype, bytes, narrow);
            match minus {
                None => vector::run(Widen { narrow, wide }),
                Some(minus) => vector::run(Subtract { narrow, minus, wide }),
            }
        }
    }
}

struct Widen<'a> {
    narrow: &'a [f32],
    wide: &'a mut [f64],
}

impl Loop for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (wide, narrow) in self.wide.iter_mut().zip(self.narrow) {
            *wide = f64::from(*narrow);
        }
    }
}

struct Subtract<'a> {
    narrow: &'a [f32],
    minus: &'a [f64],
    wide: &'a mut [f64],
}

impl Loop for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((wide, narrow), minus) in self.wide.iter_mut().zip(self.narrow).zip(self.minus) {
            *wide = f64::from(*narrow) - minus;
        }
    }
}
