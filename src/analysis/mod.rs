//! Numbers about checkpoints, each from a streaming pass or two: what is in one, how two differ, how alike the changes of
//! many are, and how they are distributed.
//!
//! Products and sums are f64, taken in fixed tiles and a fixed order, so they do not depend on the number of threads.

mod buckets;
mod diff;
mod distribution;
mod elements;
mod histogram;
mod look;
mod moments;
mod place;
mod plane;
mod ranks;
mod similarity;
mod stats;
mod vectors;

pub use diff::{Comparison, Difference, Tolerance, Values, diff};
pub use distribution::{Distribution, Distributions, LEVELS, distributions};
pub use histogram::{Counted, Histograms, histograms};
pub use moments::Moments;
pub use place::{layer_and_block, layers_and_blocks, natural};
pub use plane::{Place, Plane};
pub use similarity::{By, Products, Similarity, similarity};
pub use stats::{Stats, stats};
pub use vectors::{Vector, Vectors};

use crate::dtype::vector::{self, Loop};
use crate::dtype::{self, DType, Simd};

/// Elements that are decoded at a time, to stay in the first-level cache: 32 KiB of f64.
const SCRATCH: usize = 4096;

/// Elements of a type as f64, exactly but for 64-bit integers beyond 2⁵³; `scratch` has room for as many.
fn decode_f64(simd: Simd, dtype: DType, bytes: &[u8], scratch: &mut [f32], out: &mut [f64]) {
    match dtype {
        DType::F64 | DType::I64 | DType::U64 | DType::I32 | DType::U32 => dtype::decode_f64(dtype, bytes, out),
        _ => {
            let scratch = &mut scratch[..out.len()];
            dtype::decode(simd, dtype, bytes, scratch);
            vector::run(Widen { narrow: scratch, wide: out });
        }
    }
}

/// `wide[i] = narrow[i]`
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
