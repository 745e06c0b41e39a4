//! Numbers about checkpoints, each from one streaming pass: what is in one, and how two differ.
//!
//! Products and sums are f64, taken in fixed tiles and a fixed order, so they do not depend on the number of threads.

mod diff;
mod place;
mod stats;

pub use diff::{Comparison, Difference, Tolerance, Values, diff};
pub use place::layer_and_block;
pub use stats::{Stats, stats};

use crate::dtype::{self, DType, Simd};

/// Elements that are decoded at a time, to stay in the first-level cache: 32 KiB of f64.
const SCRATCH: usize = 4096;

/// Elements of a type as f64, exactly but for 64-bit integers beyond 2⁵³.
fn decode_f64(simd: Simd, dtype: DType, bytes: &[u8], scratch: &mut [f32; SCRATCH], out: &mut [f64]) {
    match dtype {
        DType::F64 | DType::I64 | DType::U64 | DType::I32 | DType::U32 => dtype::decode_f64(dtype, bytes, out),
        _ => {
            let scratch = &mut scratch[..out.len()];
            dtype::decode(simd, dtype, bytes, scratch);
            for (out, value) in out.iter_mut().zip(scratch) {
                *out = f64::from(*value);
            }
        }
    }
}
