//! The "IQ" types of 1 to 3 bits: codes choose points of a lattice for 4 or 8 elements at once, in blocks of 256.
//!
//! | type | bytes in order | scale of a group, elements in it |
//! |---|---|---|
//! | IQ2_XXS | f16 `d`; per 32 elements 4 of points and u32 of four 7-bit signs and 4-bit `s` | `d·(½ + s)·¼`, 32 |
//! | IQ2_XS | f16 `d`; 32 of u16: 9-bit point, 7-bit sign; 8 of 4-bit `s` | `d·(½ + s)·¼`, 16 |
//! | IQ2_S | f16 `d`; 32 of points; 32 of signs; 8 of high 2 bits of points; 8 of 4-bit `s` | `d·(½ + s)·¼`, 16 |
//! | IQ3_XXS | f16 `d`; 64 of points; 8 of u32 of four 7-bit signs and 4-bit `s` | `d·(½ + s)·½`, 32 |
//! | IQ3_S | f16 `d`; 64 of points; 8 of ninth bits of points; 32 of signs; 4 of 4-bit `s` | `d·(1 + 2s)`, 32 |
//! | IQ1_S | f16 `d`; 32 of points; 8 of u16: four times high 3 bits of points, 3-bit `s`, 1-bit δ | `d·(2s + 1)`, 32 |
//! | IQ1_M | 32 of points; 16 of two 3-bit high bits and 1-bit δ; 4 of u16: four 3-bit `s`, ¼ of f16 `d` | `d·(2s + 1)`, 16 |
//!
//! The value is scale · point · sign; for IQ1, scale · (point + δ) with δ of ±⅛, set for negative. Points of IQ3 are
//! for 4 elements, others for 8. Fields of several parts begin with the lowest bits. A sign is negative where its bit
//! is set; of 7 bits of signs, the eighth makes the number of negative ones even. The points are in [`super::grids`].

use super::{Element, F16, field, grids, half};

/// Spells out points whose elements are `bits`-wide codes of `values`, element 0 in the lowest bits.
const fn expand<const POINTS: usize, const WIDTH: usize>(
    codes: &[u16; POINTS],
    bits: u32,
    values: &[i8],
) -> [[i8; WIDTH]; POINTS] {
    let mut points = [[0; WIDTH]; POINTS];
    let mut i = 0;
    while i < POINTS * WIDTH {
        let code = codes[i / WIDTH] >> (i % WIDTH * bits as usize) & ((1 << bits) - 1);
        points[i / WIDTH][i % WIDTH] = values[code as usize];
        i += 1;
    }
    points
}

const TWO: [i8; 3] = [8, 25, 43];
pub(super) static IQ1: [[i8; 8]; 2048] = expand(&grids::IQ1, 2, &[-1, 0, 1]);
pub(super) static IQ2_XXS: [[i8; 8]; 256] = expand(&grids::IQ2_XXS, 2, &TWO);
pub(super) static IQ2_XS: [[i8; 8]; 512] = expand(&grids::IQ2_XS, 2, &TWO);
pub(super) static IQ2_S: [[i8; 8]; 1024] = expand(&grids::IQ2_S, 2, &TWO);
pub(super) static IQ3_XXS: [[i8; 4]; 256] = expand(&grids::IQ3_XXS, 3, &[4, 12, 20, 28, 36, 44, 52, 62]);
pub(super) static IQ3_S: [[i8; 4]; 512] = expand(&grids::IQ3_S, 3, &[1, 3, 5, 7, 9, 11, 13, 15]);

/// Eight signs of seven bits: the eighth makes the number of set bits even.
#[inline(always)]
fn even(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// `scale · point · sign` of elements whose signs begin at bit `first` of `signs`.
#[inline(always)]
fn signed<const WIDTH: usize>(point: &[i8; WIDTH], scale: f32, signs: u8, first: usize, out: &mut [f32]) {
    for (i, (out, value)) in out.iter_mut().zip(point).enumerate() {
        let sign = if signs >> (first + i) & 1 == 1 { -1.0 } else { 1.0 };
        *out = scale * f32::from(*value) * sign;
    }
}

/// The two points of eight elements.
#[inline(always)]
fn signed_pair(points: [&[i8; 4]; 2], scale: f32, signs: u8, out: &mut [f32; 8]) {
    let (first, second) = out.split_at_mut(4);
    signed(points[0], scale, signs, 0, first);
    signed(points[1], scale, signs, 4, second);
}

/// 4-bit number `i` of bytes that hold two each.
#[inline(always)]
fn nibble(packed: &[u8], i: usize) -> u8 {
    packed[i / 2] >> (i % 2 * 4) & 15
}

#[inline(always)]
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half(block, 0);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let points = field::<4>(block, 2 + 8 * group);
        let rest = u32::from_le_bytes(*field(block, 6 + 8 * group));
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.25;
        for (i, (out, point)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
            signed(&IQ2_XXS[usize::from(*point)], scale, even(rest >> (7 * i)), 0, out);
        }
    }
}

#[inline(always)]
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let scales = field::<8>(block, 66);
    let points = field::<64>(block, 2).as_chunks::<2>().0;
    for (i, (out, point)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
        let scale = d * (0.5 + f32::from(nibble(scales, i / 2))) * 0.25;
        let point = u16::from_le_bytes(*point);
        signed(&IQ2_XS[usize::from(point & 511)], scale, even(u32::from(point >> 9)), 0, out);
    }
}

#[inline(always)]
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let (points, signs) = (field::<32>(block, 2), field::<32>(block, 34));
    let (highs, scales) = (field::<8>(block, 66), field::<8>(block, 74));
    for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = d * (0.5 + f32::from(nibble(scales, i / 2))) * 0.25;
        let high = highs[i / 4] >> (i % 4 * 2) & 3;
        let point = usize::from(points[i]) | usize::from(high) << 8;
        signed(&IQ2_S[point], scale, signs[i], 0, out);
    }
}

#[inline(always)]
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let points = field::<64>(block, 2).as_chunks::<2>().0;
    for (i, (out, pair)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
        let rest = u32::from_le_bytes(*field(block, 66 + i / 4 * 4));
        let scale = d * (0.5 + (rest >> 28) as f32) * 0.5;
        signed_pair(pair.map(|point| &IQ3_XXS[usize::from(point)]), scale, even(rest >> (i % 4 * 7)), out);
    }
}

#[inline(always)]
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let points = field::<64>(block, 2).as_chunks::<2>().0;
    let (ninths, signs, scales) = (field::<8>(block, 66), field::<32>(block, 74), field::<4>(block, 106));
    for (i, (out, pair)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
        let scale = d * f32::from(1 + 2 * nibble(scales, i / 4));
        let ninth = ninths[i / 4] >> (i % 4 * 2);
        let first = usize::from(pair[0]) | usize::from(ninth & 1) << 8;
        let second = usize::from(pair[1]) | usize::from(ninth >> 1 & 1) << 8;
        signed_pair([&IQ3_S[first], &IQ3_S[second]], scale, signs[i], out);
    }
}

/// `scale · (point + δ)`.
#[inline(always)]
fn shifted(point: &[i8; 8], scale: f32, negative: bool, out: &mut [f32; 8]) {
    let delta = if negative { -0.125 } else { 0.125 };
    for (out, value) in out.iter_mut().zip(point) {
        *out = scale * (f32::from(*value) + delta);
    }
}

#[inline(always)]
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let points = field::<32>(block, 2);
    for (i, (out, point)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
        let rest = u16::from_le_bytes(*field(block, 34 + i / 4 * 2));
        let scale = d * f32::from(2 * (rest >> 12 & 7) + 1);
        let point = usize::from(*point) | usize::from(rest >> (i % 4 * 3) & 7) << 8;
        shifted(&IQ1[point], scale, rest >> 15 == 1, out);
    }
}

#[inline(always)]
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let (points, rest) = (field::<32>(block, 0), field::<16>(block, 32));
    let scales: [u16; 4] = std::array::from_fn(|i| u16::from_le_bytes(*field(block, 48 + 2 * i)));
    let quarters = scales.iter().rev().fold(0, |bits, scale| bits << 4 | scale >> 12);
    let d = F16::to_f32(quarters.to_le_bytes());
    for (i, (out, point)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points).enumerate() {
        let scale = d * f32::from(2 * (scales[i / 8] >> (i / 2 % 4 * 3) & 7) + 1);
        let rest = nibble(rest, i);
        let point = usize::from(*point) | usize::from(rest & 7) << 8;
        shifted(&IQ1[point], scale, rest & 8 != 0, out);
    }
}
