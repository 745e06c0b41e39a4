//! Rounding to the types with one scale: the largest magnitude, or the range, decides it.
//!
//! | type | scale `d` | offset `m` | code |
//! |---|---|---|---|
//! | Q4_0, Q5_0 | `x / −8`, `x / −16` of the largest magnitude, the first of several | | `⌊x/d + 8½⌋`, `⌊x/d + 16½⌋` |
//! | Q4_1, Q5_1 | `(max − min) / 15`, `/ 31` | `min` | `⌊(x − min)/d + ½⌋` |
//! | Q8_0 | `max abs(x) / 127` | | `x/d` to nearest, ties away from zero |
//!
//! Division by `d` is multiplication by its reciprocal, 0 for a `d` of 0, and uses `d` before it is rounded to f16.
//! Layouts are in [`super::linear`]; a scale's sign lets the largest magnitude have the code that has no counterpart.

use super::{Element, F16};

#[inline(always)]
fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value farthest from 0, the first of several.
#[inline(always)]
fn farthest(values: &[f32; 32]) -> f32 {
    values.iter().fold(values[0], |far, &value| if value.abs() > far.abs() { value } else { far })
}

/// The least and the greatest value; of zeros of either sign the first, where `min` and `max` promise neither.
#[inline(always)]
fn range(values: &[f32; 32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &value| {
        (if value < low { value } else { low }, if value > high { value } else { high })
    })
}

/// The codes' low four bits, two to a byte.
#[inline(always)]
fn pack(codes: &[u8; 32], out: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
        *out = low & 15 | high << 4;
    }
}

/// The codes' fifth bits, and then as [`pack`].
#[inline(always)]
fn pack_fives(codes: &[u8; 32], out: &mut [u8]) {
    let fifths = codes.iter().rev().fold(0u32, |bits, code| bits << 1 | u32::from(code >> 4));
    out[..4].copy_from_slice(&fifths.to_le_bytes());
    pack(codes, &mut out[4..]);
}

/// Scale and codes of types with codes from 0 to `2·zero − 1`.
#[inline(always)]
fn around(zero: u8, values: &[f32; 32]) -> ([u8; 2], [u8; 32]) {
    let d = farthest(values) / -f32::from(zero);
    let (inverse, shift, most) = (reciprocal(d), f32::from(zero) + 0.5, 2 * zero - 1);
    (F16::from_f32(d), values.map(|value| ((value * inverse + shift) as u8).min(most)))
}

/// Scale, offset and codes of types with codes from 0 to `most`.
#[inline(always)]
fn between(most: u8, values: &[f32; 32]) -> ([u8; 2], [u8; 2], [u8; 32]) {
    let (low, high) = range(values);
    let d = (high - low) / f32::from(most);
    let inverse = reciprocal(d);
    let codes = values.map(|value| (((value - low) * inverse + 0.5) as u8).min(most));
    (F16::from_f32(d), F16::from_f32(low), codes)
}

#[inline(always)]
pub(super) fn q4_0(values: &[f32; 32], out: &mut [u8; 18]) {
    let (d, codes) = around(8, values);
    out[..2].copy_from_slice(&d);
    pack(&codes, &mut out[2..]);
}

#[inline(always)]
pub(super) fn q4_1(values: &[f32; 32], out: &mut [u8; 20]) {
    let (d, m, codes) = between(15, values);
    out[..2].copy_from_slice(&d);
    out[2..4].copy_from_slice(&m);
    pack(&codes, &mut out[4..]);
}

#[inline(always)]
pub(super) fn q5_0(values: &[f32; 32], out: &mut [u8; 22]) {
    let (d, codes) = around(16, values);
    out[..2].copy_from_slice(&d);
    pack_fives(&codes, &mut out[2..]);
}

#[inline(always)]
pub(super) fn q5_1(values: &[f32; 32], out: &mut [u8; 24]) {
    let (d, m, codes) = between(31, values);
    out[..2].copy_from_slice(&d);
    out[2..4].copy_from_slice(&m);
    pack_fives(&codes, &mut out[4..]);
}

#[inline(always)]
pub(super) fn q8_0(values: &[f32; 32], out: &mut [u8; 34]) {
    let d = farthest(values).abs() / 127.0;
    let inverse = reciprocal(d);
    out[..2].copy_from_slice(&F16::from_f32(d));
    for (out, value) in out[2..].iter_mut().zip(values) {
        let scaled = value * inverse;
        let whole = (scaled as i32) as f32;
        // Exact: the fraction is what is left of a number whose whole part is taken away.
        let fraction = scaled - whole;
        let away = if fraction.abs() >= 0.5 { 1f32.copysign(scaled) } else { 0.0 };
        *out = ((whole + away) as i32 as i8) as u8;
    }
}
