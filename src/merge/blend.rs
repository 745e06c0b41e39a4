//! The blend: one fused elementwise pass from the sources' bytes to the output's.
//!
//! `out = Σ cᵢ·xᵢ`, or `out = b + Σ cᵢ·(xᵢ − b)` with a base. Computed in f32 and rounded once, in f64 where a source
//! or the output is F64. Coefficients are rounded to the type that is computed in.

use crate::dtype::{self, DType, Simd, Term, Term64};
use crate::error::Result;
use crate::stream::Kernel;

/// What a method has solved for.
#[derive(Clone, Debug, PartialEq)]
pub struct Blend {
    /// Whether the coefficients apply to differences from the base, which is then the last source.
    pub from_base: bool,
    /// One for each model.
    pub coefficients: Vec<f64>,
}

/// A [`Blend`] of sources of known types, ready to run on their bytes. With a base, it is the last input.
#[derive(Clone, Debug)]
pub struct BlendKernel {
    /// What to compute.
    pub blend: Blend,
    /// The types of the sources.
    pub inputs: Vec<DType>,
    /// The type of the output.
    pub output: DType,
    /// The instructions to use.
    pub simd: Simd,
}

impl Kernel for BlendKernel {
    fn run(&self, _start: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<()> {
        let models = self.blend.coefficients.len();
        let base = self.blend.from_base.then(|| (self.inputs[models], inputs[models]));
        let terms = self.inputs.iter().zip(inputs).zip(&self.blend.coefficients);
        if self.inputs.contains(&DType::F64) || self.output == DType::F64 {
            let terms: Vec<_> = terms.map(|((&dtype, bytes), &weight)| Term64 { dtype, bytes, weight }).collect();
            dtype::weighted_sum_f64(base, &terms, self.output, out);
        } else {
            let terms: Vec<_> =
                terms.map(|((&dtype, bytes), &weight)| Term { dtype, bytes, weight: weight as f32 }).collect();
            dtype::weighted_sum(self.simd, base, &terms, self.output, out);
        }
        Ok(())
    }
}

/// The bytes of the one source, unchanged.
#[derive(Clone, Copy, Debug)]
pub struct CopyKernel;

impl Kernel for CopyKernel {
    fn run(&self, _start: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(inputs[0]);
        Ok(())
    }
}
