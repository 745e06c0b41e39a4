//! Types with one scale, and at most one offset, for all elements of a block.
//!
//! | type | elements | bytes in order | value |
//! |---|---|---|---|
//! | Q1_0 | 128 | f16 `d`; 16 of signs | `d` where the bit is set, else `−d` |
//! | Q2_0 | 64 | f16 `d`; 16 of codes | `d·(q − 1)` |
//! | Q4_0 | 32 | f16 `d`; 16 of codes | `d·(q − 8)` |
//! | Q4_1 | 32 | f16 `d`; f16 `m`; 16 of codes | `d·q + m` |
//! | Q5_0 | 32 | f16 `d`; u32 of fifth bits; 16 of codes | `d·(q − 16)` |
//! | Q5_1 | 32 | f16 `d`; f16 `m`; u32 of fifth bits; 16 of codes | `d·q + m` |
//! | Q8_0 | 32 | f16 `d`; 32 of i8 | `d·q` |
//! | Q8_1 | 32 | f16 `d`; f16 `d·Σq`, not needed; 32 of i8 | `d·q` |
//!
//! Q1_0 and Q2_0 fill a byte from its low bits with elements that follow each other. In the 4 and 5 bit types byte `i`
//! holds element `i` in its low and element `16 + i` in its high half; bit `i` of the u32 is element `i`'s.

use super::{centred, field, half, unpack};

#[inline(always)]
pub(super) fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = half(block, 0);
    for (out, byte) in out.as_chunks_mut::<8>().0.iter_mut().zip(field::<16>(block, 2)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = if byte >> i & 1 == 1 { d } else { -d };
        }
    }
}

#[inline(always)]
pub(super) fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = half(block, 0);
    for (out, byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(field::<16>(block, 2)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * centred(byte >> (2 * i) & 3, 1);
        }
    }
}

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let codes = nibbles(field(block, 2));
    unpack(&codes, 0, 15, out, |code| d * centred(code, 8));
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let codes = nibbles(field(block, 4));
    unpack(&codes, 0, 15, out, |code| d * f32::from(code) + m);
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half(block, 0);
    let codes = fives(field(block, 6), field(block, 2));
    unpack(&codes, 0, 31, out, |code| d * centred(code, 16));
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let codes = fives(field(block, 8), field(block, 4));
    unpack(&codes, 0, 31, out, |code| d * f32::from(code) + m);
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half(block, 0);
    unpack(field::<32>(block, 2), 0, 0xff, out, |code| d * f32::from(code as i8));
}

#[inline(always)]
pub(super) fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let d = half(block, 0);
    unpack(field::<32>(block, 4), 0, 0xff, out, |code| d * f32::from(code as i8));
}

/// One code a byte: low halves first, then high halves.
#[inline(always)]
fn nibbles(packed: &[u8; 16]) -> [u8; 32] {
    let mut codes = [0; 32];
    let (low, high) = codes.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(packed) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
    codes
}

/// The same with a fifth bit each.
#[inline(always)]
fn fives(packed: &[u8; 16], fifths: &[u8; 4]) -> [u8; 32] {
    let mut codes = nibbles(packed);
    for (codes, fifths) in codes.as_chunks_mut::<8>().0.iter_mut().zip(fifths) {
        for (i, code) in codes.iter_mut().enumerate() {
            *code |= if fifths & 1 << i != 0 { 16 } else { 0 };
        }
    }
    codes
}
