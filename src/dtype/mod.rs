//! Bytes to numbers and back: the only code that knows rounding.
//!
//! Elements are little-endian and need no alignment. Numbers are f32, or f64 where an input or the output is F64.
//! [`weighted_sum`] is the pass over memory that a linear merge consists of; other methods [`decode`] a tile, compute,
//! and [`encode`] it.
//!
//! # Rules
//!
//! Decoding is exact, but for I32, U32, I64, U64 and F64, which go to the nearest f32 (ties to even), and for Bool,
//! where any byte but 0 is 1. A NaN stays a NaN. Encoding:
//!
//! | type | rounding | too large | NaN |
//! |---|---|---|---|
//! | F64, F32, F16, BF16 | nearest, ties to even, subnormals too | ±infinity | `0x7ff8…`, `0x7fc00000`, `0x7e00`, `0x7fc0` |
//! | F8_E5M2 | the same | above or at 61440: ±infinity | `0x7f` |
//! | F8_E4M3 | the same | ±448, for infinity too | `0x7f` |
//! | I8 … U64 | toward zero | the nearest the type has | 0 |
//! | Bool | 0 if zero, else 1 | 1 | 1 |
//!
//! These are the casts of torch 2.15 (until [April 2026][e4m3] torch made NaN of an F8_E4M3 above 464), with three
//! differences. A NaN becomes one positive quiet NaN, whatever its sign and payload were: arithmetic does not say which
//! operand's payload survives, and bytes must not depend on the instruction set. From f64 every type is rounded to
//! once, where torch goes through f32 to the narrower ones. Integers saturate, where torch's result outside their range
//! depends on the machine.
//!
//! [e4m3]: https://github.com/pytorch/pytorch/pull/178817
//!
//! # Instruction sets
//!
//! Every [`Simd`] path gives the same bytes. Arithmetic is a multiplication and an addition, never fused. Subnormals
//! are kept: nothing here sets, or works under, flush-to-zero.

mod block;
pub mod gram;
mod lanes;
mod scalar;
mod sum;
pub mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use ckptmerge_format::{DType, Kind};

use lanes::{Isa, Kernel, Portable};
use scalar::{Bf16, Bool, E4m3, E5m2, Element, F16};

/// The instruction set that kernels use.
///
/// Asked for one that the CPU lacks, a function takes the best below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// Whatever the compiler makes of plain loops, on any CPU. It defines what the others compute.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and DQ, and all of [`Simd::Avx2`].
    Avx512,
}

impl Simd {
    /// The best this CPU can run. Cheap: the CPU is asked once.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if x86::Avx512::detect().is_some() {
                return Self::Avx512;
            }
            if x86::Avx2::detect().is_some() {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// All this CPU can run, [`Simd::Portable`] first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable, Self::Avx2, Self::Avx512];
        all.retain(|simd| *simd <= Self::detect());
        all
    }
}

/// The most elements that a quantized type stores together.
const BLOCK_MAX: usize = 256;

/// Runs `kernel` on the best instruction set up to `simd`.
fn dispatch<K: Kernel>(simd: Simd, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    {
        if simd == Simd::Avx512
            && let Some(isa) = x86::Avx512::detect()
        {
            return isa.run(kernel);
        }
        if simd >= Simd::Avx2
            && let Some(isa) = x86::Avx2::detect()
        {
            return isa.run(kernel);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = simd;
    Portable.run(kernel);
}

/// Calls `$function::<Element, its width>($arguments…)` for a [`DType`] that can be computed with.
macro_rules! by_element {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::Bool => $function::<Bool, 1>($($argument),*),
            DType::U8 => $function::<u8, 1>($($argument),*),
            DType::I8 => $function::<i8, 1>($($argument),*),
            DType::F8E5M2 => $function::<E5m2, 1>($($argument),*),
            DType::F8E4M3 => $function::<E4m3, 1>($($argument),*),
            DType::I16 => $function::<i16, 2>($($argument),*),
            DType::U16 => $function::<u16, 2>($($argument),*),
            DType::F16 => $function::<F16, 2>($($argument),*),
            DType::BF16 => $function::<Bf16, 2>($($argument),*),
            DType::I32 => $function::<i32, 4>($($argument),*),
            DType::U32 => $function::<u32, 4>($($argument),*),
            DType::F32 => $function::<f32, 4>($($argument),*),
            DType::F64 => $function::<f64, 8>($($argument),*),
            DType::I64 => $function::<i64, 8>($($argument),*),
            DType::U64 => $function::<u64, 8>($($argument),*),
            other => panic!("{other} elements are copied, never computed with"),
        }
    };
}

/// How many elements of a type that can be computed with `bytes` bytes hold.
fn elements_in(dtype: DType, bytes: usize) -> usize {
    bytes / dtype.block_bytes() as usize * dtype.block_elements() as usize
}

/// # Panics
/// If `bytes` are not those of `elements` elements.
#[track_caller]
fn check(dtype: DType, bytes: &[u8], elements: usize) {
    let wanted = elements / dtype.block_elements() as usize * dtype.block_bytes() as usize;
    let whole = elements.is_multiple_of(dtype.block_elements() as usize);
    assert!(
        bytes.len() == wanted && whole,
        "{elements} {dtype} elements take {wanted} bytes, not {}, and come in whole blocks",
        bytes.len()
    );
}

/// Whether elements of the type can be [decoded](decode).
#[must_use]
pub fn can_decode(dtype: DType) -> bool {
    match dtype.kind() {
        Kind::Float | Kind::Integer => true,
        Kind::Quantized => block::can_dequantize(dtype),
        Kind::Opaque => false,
    }
}

/// Whether elements of the type can be [encoded](encode).
#[must_use]
pub fn can_encode(dtype: DType) -> bool {
    match dtype.kind() {
        Kind::Float | Kind::Integer => true,
        Kind::Quantized => block::can_quantize(dtype),
        Kind::Opaque => false,
    }
}

/// Numbers of `bytes`, which hold elements of type `dtype`.
///
/// # Panics
/// If the lengths do not agree, or the type is not one that [`can_decode`].
pub fn decode(simd: Simd, dtype: DType, bytes: &[u8], out: &mut [f32]) {
    fn elements<E: Element<N>, const N: usize>(simd: Simd, bytes: &[u8], out: &mut [f32]) {
        dispatch(simd, Map { from: bytes.as_chunks().0, to: out, each: E::to_f32 });
    }
    check(dtype, bytes, out.len());
    dispatch(simd, AskBehind(bytes));
    match dtype {
        // The one conversion with an instruction of its own; the others are loops that compilers know how to widen.
        DType::F16 => dispatch(simd, DecodeF16 { bytes, out }),
        // AVX-512 makes some of the table look-ups slower, and none of the others faster.
        _ if dtype.kind() == Kind::Quantized => dispatch(simd.min(Simd::Avx2), Dequantize { dtype, bytes, out }),
        _ => by_element!(dtype, elements(simd, bytes, out)),
    }
}

/// [`decode`] to f64: exact, but for I64 and U64, which go to the nearest (ties to even).
///
/// # Panics
/// If the lengths do not agree, or the type is not one that [`can_decode`].
pub fn decode_f64(dtype: DType, bytes: &[u8], out: &mut [f64]) {
    fn elements<E: Element<N>, const N: usize>(bytes: &[u8], out: &mut [f64]) {
        dispatch(Simd::detect(), Map { from: bytes.as_chunks().0, to: out, each: E::to_f64 });
    }
    check(dtype, bytes, out.len());
    if dtype.kind() == Kind::Quantized {
        // Blocks of a few hundred at most, so that the scratch stays small.
        let mut scratch = [0.0; BLOCK_MAX];
        let block = dtype.block_elements() as usize;
        for (bytes, out) in bytes.chunks_exact(dtype.block_bytes() as usize).zip(out.chunks_exact_mut(block)) {
            block::dequantize(dtype, bytes, &mut scratch[..block]);
            out.iter_mut().zip(&scratch).for_each(|(out, value)| *out = f64::from(*value));
        }
        return;
    }
    by_element!(dtype, elements(bytes, out));
}

/// `values` as elements of type `dtype`, rounded by the rules of the [module](self).
///
/// # Panics
/// If the lengths do not agree, or the type is not one that [`can_encode`].
pub fn encode(simd: Simd, dtype: DType, values: &[f32], out: &mut [u8]) {
    fn elements<E: Element<N>, const N: usize>(simd: Simd, values: &[f32], out: &mut [u8]) {
        dispatch(simd, Map { from: values, to: out.as_chunks_mut().0, each: E::from_f32 });
    }
    check(dtype, out, values.len());
    match dtype {
        DType::F16 => dispatch(simd, EncodeF16 { values, out }),
        _ if dtype.kind() == Kind::Quantized => block::quantize(dtype, values, out),
        _ => by_element!(dtype, elements(simd, values, out)),
    }
}

/// Why a block of quantized elements would be all NaN when read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unstorable {
    /// A number in it is NaN or infinite.
    NotFinite,
    /// Its numbers are too large for the block's scale.
    TooLarge,
}

/// What is wrong with the first of the blocks that [`encode`] made whose scale is no number; none if all are good, or
/// the type has no blocks.
#[must_use]
pub fn unstorable(dtype: DType, bytes: &[u8]) -> Option<Unstorable> {
    block::unstorable(dtype, bytes)
}

/// [`encode`] from f64, rounded once.
///
/// # Panics
/// If the lengths do not agree, or the type is not one that [`can_encode`].
pub fn encode_f64(dtype: DType, values: &[f64], out: &mut [u8]) {
    fn elements<E: Element<N>, const N: usize>(values: &[f64], out: &mut [u8]) {
        dispatch(Simd::detect(), Map { from: values, to: out.as_chunks_mut().0, each: E::from_f64 });
    }
    check(dtype, out, values.len());
    if dtype.kind() == Kind::Quantized {
        let narrowed: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        return block::quantize(dtype, &narrowed, out);
    }
    by_element!(dtype, elements(values, out));
}

/// Asks for what comes behind some bytes, as much again: those who decode a part at a time need it next.
struct AskBehind<'a>(&'a [u8]);

impl AskBehind<'_> {
    /// More would push out what is in work.
    const MOST: usize = 4096;
}

impl Kernel for AskBehind<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        isa.prefetch(self.0, self.0.len(), self.0.len().min(Self::MOST));
    }
}

/// `to[i] = each(from[i])`: a plain loop, which the compiler turns into vector code for the instruction set.
struct Map<'a, A, B, F> {
    from: &'a [A],
    to: &'a mut [B],
    each: F,
}

impl<A: Copy, B, F: Fn(A) -> B> Kernel for Map<'_, A, B, F> {
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = (self.each)(*from);
        }
    }
}

/// [`decode`] of blocks.
struct Dequantize<'a> {
    dtype: DType,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Dequantize<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        block::dequantize(self.dtype, self.bytes, self.out);
    }
}

/// [`decode`] by the registers' own conversion.
struct DecodeF16<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for DecodeF16<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let mut bytes = self.bytes.chunks_exact(2 * I::LANES);
        let mut out = self.out.chunks_exact_mut(I::LANES);
        for (out, bytes) in out.by_ref().zip(bytes.by_ref()) {
            isa.write(isa.load_f16(bytes), out);
        }
        Map { from: bytes.remainder().as_chunks().0, to: out.into_remainder(), each: F16::to_f32 }.call(isa);
    }
}

/// [`encode`] by the registers' own conversion.
struct EncodeF16<'a> {
    values: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for EncodeF16<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let mut values = self.values.chunks_exact(I::LANES);
        let mut out = self.out.chunks_exact_mut(2 * I::LANES);
        for (out, values) in out.by_ref().zip(values.by_ref()) {
            isa.store_f16(isa.read(values), out);
        }
        Map { from: values.remainder(), to: out.into_remainder().as_chunks_mut().0, each: F16::from_f32 }.call(isa);
    }
}

/// One term of a [`weighted_sum`]: an input, of as many elements as the output, and what it is multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Type of the elements.
    pub dtype: DType,
    /// The elements `xᵢ`.
    pub bytes: &'a [u8],
    /// The factor `wᵢ`.
    pub weight: f32,
}

/// One term of a [`weighted_sum_f64`].
#[derive(Clone, Copy, Debug)]
pub struct Term64<'a> {
    /// Type of the elements.
    pub dtype: DType,
    /// The elements `xᵢ`.
    pub bytes: &'a [u8],
    /// The factor `wᵢ`.
    pub weight: f64,
}

/// `out = Σᵢ wᵢ·xᵢ`, or with a base `b`, `out = b + Σᵢ wᵢ·(xᵢ − b)`, in one pass over memory.
///
/// Computed in f32 with every operation rounded, in the order of the terms, then encoded as `dtype`. Without terms
/// the result is `b`, or 0. Inputs may be of different types; a single one of F32, F16 or BF16 for all of them, and
/// again one of these for the output, is the fast case.
///
/// # Panics
/// If the lengths do not agree, or a type is [`Kind::Opaque`].
pub fn weighted_sum(simd: Simd, base: Option<(DType, &[u8])>, terms: &[Term<'_>], dtype: DType, out: &mut [u8]) {
    let elements = elements_in(dtype, out.len());
    check(dtype, out, elements);
    base.iter().for_each(|(dtype, bytes)| check(*dtype, bytes, elements));
    terms.iter().for_each(|term| check(term.dtype, term.bytes, elements));
    match base {
        None if terms.is_empty() => out.fill(0),
        // 1·b is b.
        Some((input, bytes)) if terms.is_empty() => {
            sum::weighted_sum(simd, None, &[Term { dtype: input, bytes, weight: 1.0 }], dtype, out);
        }
        _ => sum::weighted_sum(simd, base, terms, dtype, out),
    }
}

/// [`weighted_sum`] computed in f64: for merges in which an input or the output is F64.
///
/// # Panics
/// If the lengths do not agree, or a type is [`Kind::Opaque`].
pub fn weighted_sum_f64(base: Option<(DType, &[u8])>, terms: &[Term64<'_>], dtype: DType, out: &mut [u8]) {
    let elements = elements_in(dtype, out.len());
    check(dtype, out, elements);
    base.iter().for_each(|(dtype, bytes)| check(*dtype, bytes, elements));
    terms.iter().for_each(|term| check(term.dtype, term.bytes, elements));
    match base {
        None if terms.is_empty() => out.fill(0),
        Some((input, bytes)) if terms.is_empty() => {
            sum::weighted_sum_f64(None, &[Term64 { dtype: input, bytes, weight: 1.0 }], dtype, out);
        }
        _ => sum::weighted_sum_f64(base, terms, dtype, out),
    }
}
