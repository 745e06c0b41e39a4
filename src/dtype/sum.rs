//! Weighted sums: `Σᵢ wᵢ·xᵢ`, or `b + Σᵢ wᵢ·(xᵢ − b)` around a base.
//!
//! [`Fused`] is for inputs of one fast type: each is decoded in registers, multiplied, added and the sum encoded, so
//! memory is passed over once. All other mixtures go by [`tiled`], an f32 tile at a time.
//!
//! Products and sums round apart, in the order of the terms; the first term starts the sum as its plain product.

use std::marker::PhantomData;
use std::ops::Range;

use super::lanes::{AHEAD, Bf16Halves, Codec, Isa, Kernel, MAX_LANES};
use super::scalar::{Bf16, F16};
use super::{DType, Simd, Term, Term64, decode, decode_f64, dispatch, elements_in, encode, encode_f64};

/// Elements per tile: three f32 tiles are 24 KiB, which stay in a 32 KiB first-level cache. A multiple of every block.
const TILE: usize = 2048;

/// Pairs of registers summed side by side: enough independent sums to hide the latency of an addition.
const PAIRS: usize = 2;

/// Bytes of a pair of the widest registers.
const PAIR_BYTES: usize = 2 * MAX_LANES * 4;

/// A base and terms of one type `In`, at least one of them, and an output of type `Out`; `BASE` says if a base counts.
struct Fused<'a, In, Out, const BASE: bool> {
    base: &'a [u8],
    terms: &'a [Term<'a>],
    out: &'a mut [u8],
    codecs: PhantomData<(In, Out)>,
}

impl<In: Codec, Out: Codec, const BASE: bool> Kernel for Fused<'_, In, Out, BASE> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let Self { base, terms, out, .. } = self;
        let pair = 2 * I::LANES;
        let elements = out.len() / Out::BYTES;
        let mut at = 0;
        let mut blocks = out.chunks_exact_mut(PAIRS * pair * Out::BYTES);
        for block in &mut blocks {
            let sums: [_; PAIRS] = sum::<I, In, BASE, PAIRS>(isa, base, terms, at..at + PAIRS * pair, In::load);
            for (sum, out) in sums.into_iter().zip(block.chunks_exact_mut(pair * Out::BYTES)) {
                Out::store(isa, sum, out);
            }
            at += PAIRS * pair;
        }
        for rest in blocks.into_remainder().chunks_mut(pair * Out::BYTES) {
            let [sum] = sum::<I, In, BASE, 1>(isa, base, terms, at..elements, load_padded::<I, In>);
            let mut padded = [0; PAIR_BYTES];
            Out::store(isa, sum, &mut padded);
            rest.copy_from_slice(&padded[..rest.len()]);
            at += pair;
        }
    }
}

/// [`Codec::load`] of what may be less than a pair; the missing elements are zeros.
#[inline(always)]
fn load_padded<I: Isa, C: Codec>(isa: I, bytes: &[u8]) -> [I::V; 2] {
    let mut padded = [0; PAIR_BYTES];
    let there = bytes.len().min(2 * I::LANES * C::BYTES);
    padded[..there].copy_from_slice(&bytes[..there]);
    C::load(isa, &padded)
}

/// The sum over the first `P` pairs of registers of the given elements, in registers.
#[inline(always)]
fn sum<I: Isa, In: Codec, const BASE: bool, const P: usize>(
    isa: I,
    base: &[u8],
    terms: &[Term<'_>],
    elements: Range<usize>,
    load: impl Fn(I, &[u8]) -> [I::V; 2],
) -> [[I::V; 2]; P] {
    // One check of each input's length per block: the compiler sees through those of the loads after it.
    let bytes = elements.start * In::BYTES..elements.end * In::BYTES;
    let pair_bytes = 2 * I::LANES * In::BYTES;
    let mut bases = [[isa.splat(0.0); 2]; P];
    if BASE {
        let base = &base[bytes.clone()];
        isa.prefetch(base, AHEAD, P * pair_bytes);
        for p in 0..P {
            bases[p] = load(isa, &base[p * pair_bytes..]);
        }
    }
    let mut sums = [[isa.splat(0.0); 2]; P];
    for (i, term) in terms.iter().enumerate() {
        let weight = isa.splat(term.weight);
        let input = &term.bytes[bytes.clone()];
        isa.prefetch(input, AHEAD, P * pair_bytes);
        for p in 0..P {
            let x = load(isa, &input[p * pair_bytes..]);
            for half in 0..2 {
                let value = if BASE { isa.sub(x[half], bases[p][half]) } else { x[half] };
                let product = isa.mul(weight, value);
                sums[p][half] = if i == 0 { product } else { isa.add(sums[p][half], product) };
            }
        }
    }
    if BASE {
        for p in 0..P {
            for half in 0..2 {
                sums[p][half] = isa.add(bases[p][half], sums[p][half]);
            }
        }
    }
    sums
}

/// [`super::weighted_sum`], lengths checked, terms not empty.
pub(super) fn weighted_sum(simd: Simd, base: Option<(DType, &[u8])>, terms: &[Term<'_>], dtype: DType, out: &mut [u8]) {
    let input = terms[0].dtype;
    let same = terms.iter().all(|term| term.dtype == input) && base.is_none_or(|base| base.0 == input);
    let base_bytes = base.map(|base| base.1);
    match (input, dtype) {
        _ if !same => tiled(simd, base, terms, dtype, out),
        (DType::F32, DType::F32) => fused::<f32, f32>(simd, base_bytes, terms, out),
        (DType::F32, DType::F16) => fused::<f32, F16>(simd, base_bytes, terms, out),
        (DType::F32, DType::BF16) => fused::<f32, Bf16>(simd, base_bytes, terms, out),
        (DType::F16, DType::F32) => fused::<F16, f32>(simd, base_bytes, terms, out),
        (DType::F16, DType::F16) => fused::<F16, F16>(simd, base_bytes, terms, out),
        (DType::F16, DType::BF16) => fused::<F16, Bf16>(simd, base_bytes, terms, out),
        (DType::BF16, DType::F32) => fused::<Bf16, f32>(simd, base_bytes, terms, out),
        (DType::BF16, DType::F16) => fused::<Bf16, F16>(simd, base_bytes, terms, out),
        (DType::BF16, DType::BF16) => fused::<Bf16Halves, Bf16Halves>(simd, base_bytes, terms, out),
        _ => tiled(simd, base, terms, dtype, out),
    }
}

fn fused<In: Codec, Out: Codec>(simd: Simd, base: Option<&[u8]>, terms: &[Term<'_>], out: &mut [u8]) {
    let codecs = PhantomData::<(In, Out)>;
    match base {
        None => dispatch(simd, Fused::<_, _, false> { base: &[], terms, out, codecs }),
        Some(base) => dispatch(simd, Fused::<_, _, true> { base, terms, out, codecs }),
    }
}

/// `sum = w·x`, or `sum = sum + w·x` after the first, where `x` is a tile of numbers.
struct Accumulate<'a> {
    first: bool,
    weight: f32,
    x: &'a [f32],
    sum: &'a mut [f32],
}

impl Kernel for Accumulate<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        if self.first {
            for (sum, x) in self.sum.iter_mut().zip(self.x) {
                *sum = self.weight * x;
            }
        } else {
            for (sum, x) in self.sum.iter_mut().zip(self.x) {
                *sum += self.weight * x;
            }
        }
    }
}

/// Any types: every input is decoded to a tile, the tiles are summed up, the sum is encoded.
fn tiled(simd: Simd, base: Option<(DType, &[u8])>, terms: &[Term<'_>], dtype: DType, out: &mut [u8]) {
    let (mut x, mut b, mut sum) = ([0.0; TILE], [0.0; TILE], [0.0; TILE]);
    for (i, out) in out.chunks_mut(bytes_of(dtype, TILE)).enumerate() {
        let len = elements_in(dtype, out.len());
        let (x, b, sum) = (&mut x[..len], &mut b[..len], &mut sum[..len]);
        let tile = |dtype, bytes| tile::<TILE>(dtype, bytes, i, len);
        if let Some((dtype, bytes)) = base {
            decode(simd, dtype, tile(dtype, bytes), b);
        }
        for (i, term) in terms.iter().enumerate() {
            decode(simd, term.dtype, tile(term.dtype, term.bytes), x);
            if base.is_some() {
                x.iter_mut().zip(&*b).for_each(|(x, b)| *x -= b);
            }
            dispatch(simd, Accumulate { first: i == 0, weight: term.weight, x, sum });
        }
        if base.is_some() {
            sum.iter_mut().zip(&*b).for_each(|(sum, b)| *sum += b);
        }
        encode(simd, dtype, sum, out);
    }
}

/// The same in f64, with smaller tiles for the larger numbers.
pub(super) fn weighted_sum_f64(base: Option<(DType, &[u8])>, terms: &[Term64<'_>], dtype: DType, out: &mut [u8]) {
    const HALF: usize = TILE / 2;
    let (mut x, mut b, mut sum) = ([0.0; HALF], [0.0; HALF], [0.0; HALF]);
    for (i, out) in out.chunks_mut(bytes_of(dtype, HALF)).enumerate() {
        let len = elements_in(dtype, out.len());
        let (x, b, sum) = (&mut x[..len], &mut b[..len], &mut sum[..len]);
        let tile = |dtype, bytes| tile::<HALF>(dtype, bytes, i, len);
        if let Some((dtype, bytes)) = base {
            decode_f64(dtype, tile(dtype, bytes), b);
        }
        for (i, term) in terms.iter().enumerate() {
            decode_f64(term.dtype, tile(term.dtype, term.bytes), x);
            for ((sum, x), b) in sum.iter_mut().zip(&*x).zip(&*b) {
                let product = term.weight * if base.is_some() { x - b } else { *x };
                *sum = if i == 0 { product } else { *sum + product };
            }
        }
        if base.is_some() {
            sum.iter_mut().zip(&*b).for_each(|(sum, b)| *sum += b);
        }
        encode_f64(dtype, sum, out);
    }
}

/// The bytes of the `i`th tile of `SIZE` elements, or the `len` that are left of it.
fn tile<const SIZE: usize>(dtype: DType, bytes: &[u8], i: usize, len: usize) -> &[u8] {
    &bytes[i * bytes_of(dtype, SIZE)..][..bytes_of(dtype, len)]
}

/// Bytes of `elements`, which are whole blocks.
fn bytes_of(dtype: DType, elements: usize) -> usize {
    elements / dtype.block_elements() as usize * dtype.block_bytes() as usize
}
