//! Blocks of quantized elements to numbers and back, for every type that ggml stores in files.
//!
//! A block holds a fixed number of elements in a fixed number of bytes: small codes, and the scales that all of them
//! share. Layouts, little-endian throughout, stand at the functions; they are those of ggml's `ggml-common.h` as of
//! 2026. [`dequantize`] gives, bit for bit, what the PyPI package `gguf` 0.19.0 does for each type that it knows, so
//! the order of operations in the formulas matters; Q1_0, Q2_0, Q8_1 and Q8_K, which it does not know, follow ggml.
//!
//! | type | value of an element with code `q` | bits each |
//! |---|---|---|
//! | Q4_0, Q5_0, Q8_0, Q8_1, Q8_K | `d·q`, `q` signed | 4.5, 5.5, 8.5, 9, 9.125 |
//! | Q4_1, Q5_1 | `d·q + m` | 5, 6 |
//! | Q2_K, Q4_K, Q5_K | `(d·s)·q − (m·t)`, `s` and `t` of its group of 16 or 32 | 2.625, 4.5, 5.5 |
//! | Q3_K, Q6_K | `(d·s)·q`, `s` of its group of 16 | 3.4375, 6.5625 |
//! | Q1_0, Q2_0, TQ1_0, TQ2_0 | `d·q` with `q` of ±1; −1 to 2; −1, 0, 1 | 1.125, 2.25, 1.6875, 2.0625 |
//! | IQ4_NL, IQ4_XS, MXFP4, NVFP4 | `d·v(q)`, `v` one of 16 values | 4.5, 4.25, 4.25, 4.5 |
//! | IQ1 to IQ3 | `d·s·v(q)`, `v` a point of a lattice of 4 or 8 dimensions, with signs | 1.5625 to 3.4375 |
//!
//! [`quantize`] to Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 gives the package's bytes; to Q4_K and Q6_K, which it has no
//! quantizer for, it minimises the squared error (see `fit`). In all of them:
//!
//! * a block with a NaN or an infinity among its values gets a NaN for scale and is all NaN when read back;
//! * a scale above 65504 becomes infinity, as binary16 has it, and the block infinities and NaNs.
//!
//! Loops have no branches on data, so the compiler makes vector code for whatever instruction set the caller was
//! compiled for; [`dequantize`] is inlined into it for that.

mod codebook;
mod fit;
mod grids;
mod k;
mod lattice;
mod linear;
mod round;
mod ternary;

#[cfg(test)]
mod tests;

use super::Unstorable;
use super::scalar::{Element, F16};
use ckptmerge_format::{DType, Kind};

/// Whether elements of the type can be read as numbers by [`dequantize`].
pub(super) fn can_dequantize(dtype: DType) -> bool {
    dtype.kind() == Kind::Quantized
}

/// Whether numbers can be written as elements of the type by [`quantize`].
pub(super) fn can_quantize(dtype: DType) -> bool {
    use DType as D;
    matches!(dtype, D::Q4_0 | D::Q4_1 | D::Q5_0 | D::Q5_1 | D::Q8_0 | D::Q4_K | D::Q6_K)
}

/// Decodes block after block. A macro, for a call through `Fn` is not always inlined.
macro_rules! each_block {
    ($bytes:expr, $out:expr, $decode:path) => {
        for (block, out) in $bytes.as_chunks().0.iter().zip($out.as_chunks_mut().0) {
            $decode(&{ *block }, out);
        }
    };
}

/// Encodes block after block. One with a value that is not finite is all ones, which is a NaN in any scale.
macro_rules! each_finite {
    ($values:expr, $out:expr, $encode:path) => {
        for (values, block) in $values.as_chunks().0.iter().zip($out.as_chunks_mut().0) {
            if values.iter().all(|value| value.is_finite()) {
                $encode(values, block);
            } else {
                block.fill(0xff);
            }
        }
    };
}

/// Numbers of `bytes`, which hold blocks of type `dtype`. NaN and infinite scales give NaN and infinite numbers.
///
/// # Panics
/// If `out` is not whole blocks of that type, `bytes` is not as many, or the type is not one of blocks.
#[inline(always)]
pub(super) fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    check(dtype, bytes.len(), out.len());
    match dtype {
        DType::Q1_0 => each_block!(bytes, out, linear::q1_0),
        DType::Q2_0 => each_block!(bytes, out, linear::q2_0),
        DType::Q4_0 => each_block!(bytes, out, linear::q4_0),
        DType::Q4_1 => each_block!(bytes, out, linear::q4_1),
        DType::Q5_0 => each_block!(bytes, out, linear::q5_0),
        DType::Q5_1 => each_block!(bytes, out, linear::q5_1),
        DType::Q8_0 => each_block!(bytes, out, linear::q8_0),
        DType::Q8_1 => each_block!(bytes, out, linear::q8_1),
        DType::Q2_K => each_block!(bytes, out, k::q2_k),
        DType::Q3_K => each_block!(bytes, out, k::q3_k),
        DType::Q4_K => each_block!(bytes, out, k::q4_k),
        DType::Q5_K => each_block!(bytes, out, k::q5_k),
        DType::Q6_K => each_block!(bytes, out, k::q6_k),
        DType::Q8_K => each_block!(bytes, out, k::q8_k),
        DType::TQ1_0 => each_block!(bytes, out, ternary::tq1_0),
        DType::TQ2_0 => each_block!(bytes, out, ternary::tq2_0),
        DType::IQ4_NL => each_block!(bytes, out, codebook::iq4_nl),
        DType::IQ4_XS => each_block!(bytes, out, codebook::iq4_xs),
        DType::MXFP4 => each_block!(bytes, out, codebook::mxfp4),
        DType::NVFP4 => each_block!(bytes, out, codebook::nvfp4),
        DType::IQ1_S => each_block!(bytes, out, lattice::iq1_s),
        DType::IQ1_M => each_block!(bytes, out, lattice::iq1_m),
        DType::IQ2_XXS => each_block!(bytes, out, lattice::iq2_xxs),
        DType::IQ2_XS => each_block!(bytes, out, lattice::iq2_xs),
        DType::IQ2_S => each_block!(bytes, out, lattice::iq2_s),
        DType::IQ3_XXS => each_block!(bytes, out, lattice::iq3_xxs),
        DType::IQ3_S => each_block!(bytes, out, lattice::iq3_s),
        other => panic!("{other} is not a type of blocks"),
    }
}

/// `values` as blocks of type `dtype`, rounded by the rules of the [module](self).
///
/// # Panics
/// If `values` is not whole blocks of that type, `out` is not as many, or the type is one that is only read.
#[inline(always)]
pub(super) fn quantize(dtype: DType, values: &[f32], out: &mut [u8]) {
    check(dtype, out.len(), values.len());
    match dtype {
        DType::Q4_0 => each_finite!(values, out, round::q4_0),
        DType::Q4_1 => each_finite!(values, out, round::q4_1),
        DType::Q5_0 => each_finite!(values, out, round::q5_0),
        DType::Q5_1 => each_finite!(values, out, round::q5_1),
        DType::Q8_0 => each_finite!(values, out, round::q8_0),
        DType::Q4_K => each_finite!(values, out, fit::q4_k),
        DType::Q6_K => each_finite!(values, out, fit::q6_k),
        other => panic!("{other} is read, but not written"),
    }
}

/// See [`super::unstorable`].
pub(super) fn unstorable(dtype: DType, bytes: &[u8]) -> Option<Unstorable> {
    // Where the scales are, by the layouts.
    let scales: &[usize] = match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K => &[0, 2],
        DType::Q6_K => &[208],
        _ => return None,
    };
    let is_lost = |block: &&[u8]| scales.iter().any(|&at| !half(block, at).is_finite());
    let block = bytes.chunks_exact(dtype.block_bytes() as usize).find(is_lost)?;
    Some(if block.iter().all(|byte| *byte == 0xff) { Unstorable::NotFinite } else { Unstorable::TooLarge })
}

/// # Panics
/// If `bytes` bytes are not those of `elements` elements.
#[track_caller]
fn check(dtype: DType, bytes: usize, elements: usize) {
    let wanted = dtype.size_of(elements as u64);
    assert!(wanted == Some(bytes as u64), "{elements} {dtype} elements do not take {bytes} bytes, but {wanted:?}");
}

/// The `N` bytes of a block from byte `at` on.
#[inline(always)]
fn field<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block[at..].first_chunk().expect("the fields of a layout lie inside its blocks")
}

/// The binary16 number at byte `at` of a block.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    F16::to_f32(*field(block, at))
}

/// `out[i]` is the value of the bits of `packed[i]` from `shift` on that `mask` covers.
#[inline(always)]
fn unpack(packed: &[u8], shift: usize, mask: u8, out: &mut [f32], value: impl Fn(u8) -> f32) {
    for (out, byte) in out.iter_mut().zip(packed) {
        *out = value((byte >> shift) & mask);
    }
}

/// The value of a code whose zero is `zero`.
#[inline(always)]
fn centred(code: u8, zero: i32) -> f32 {
    (i32::from(code) - zero) as f32
}
