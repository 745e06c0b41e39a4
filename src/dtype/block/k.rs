//! The "K" types: super-blocks of 256 elements in groups of 16 or 32 that have small scales of their own.
//!
//! | type | groups of | bytes in order | value |
//! |---|---|---|---|
//! | Q2_K | 16 | 16 of scales (low half `s`, high half `t`); 64 of 2-bit codes; f16 `d`; f16 `m` | `(d·s)·q − (m·t)` |
//! | Q3_K | 16 | 32 of third bits; 64 of 2-bit codes; 12 of 6-bit scales; f16 `d` | `(d·(s − 32))·(q − 4)` |
//! | Q4_K | 32 | f16 `d`; f16 `m`; 12 of 6-bit scales; 128 of 4-bit codes | `(d·s)·q − (m·t)` |
//! | Q5_K | 32 | f16 `d`; f16 `m`; 12 of 6-bit scales; 32 of fifth bits; 128 of 4-bit codes | `(d·s)·q − (m·t)` |
//! | Q6_K | 16 | 128 of low 4 bits; 64 of high 2 bits; 16 of i8 scales; f16 `d` | `(d·s)·(q − 32)` |
//! | Q8_K | 256 | f32 `d`; 256 of i8; 16 of i16 sums, not needed | `d·q` |
//!
//! 2-bit fields: each 32 bytes hold 128 elements, in the bits 2k and 2k + 1 those from 32k on. 4-bit codes: each 32
//! bytes hold 64 elements, the first 32 in the low halves; in Q6_K each 64 bytes hold 128, the first 64 in the low
//! halves. Single bits: bit k of 32 bytes is of the elements from 32k on.

use super::{centred, field, half, unpack};

#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let scales = field::<16>(block, 0);
    let codes = field::<64>(block, 16).as_chunks::<32>().0;
    let (d, m) = (half(block, 80), half(block, 82));
    for (group, (out, scale)) in out.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
        let (scale, offset) = (d * f32::from(scale & 15), m * f32::from(scale >> 4));
        let codes = &codes[group / 8][group % 2 * 16..];
        unpack(codes, group / 2 % 4 * 2, 3, out, |code| scale * f32::from(code) - offset);
    }
}

#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let thirds = field::<32>(block, 0);
    let codes = field::<64>(block, 32).as_chunks::<32>().0;
    let scales = field::<12>(block, 96);
    let d = half(block, 108);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = d * centred(low | high << 4, 32);
        let half = group % 2 * 16;
        let (codes, thirds) = (&codes[group / 8][half..][..16], &thirds[half..][..16]);
        for ((out, code), third) in out.iter_mut().zip(codes).zip(thirds) {
            let low = code >> (group / 2 % 4 * 2) & 3;
            *out = scale * centred(low | (third >> (group / 2) & 1) << 2, 4);
        }
    }
}

/// The eight scales and the eight offsets of 6 bits each that Q4_K and Q5_K pack into 12 bytes.
///
/// The low 6 bits of bytes 0..4 are scales 0..4, those of bytes 4..8 offsets 0..4. Of the others bytes 8..12 have the
/// low 4 bits, scales in the low halves; the top two bits of bytes 0..4 and 4..8 are their high bits.
#[inline(always)]
pub(super) fn scales_and_offsets(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut offsets) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        offsets[i] = packed[4 + i] & 63;
        scales[4 + i] = packed[8 + i] & 15 | packed[i] >> 6 << 4;
        offsets[4 + i] = packed[8 + i] >> 4 | packed[4 + i] >> 6 << 4;
    }
    (scales, offsets)
}

#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (scales, offsets) = scales_and_offsets(field(block, 4));
    let codes = field::<128>(block, 16).as_chunks::<32>().0;
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = (d * f32::from(scales[group]), m * f32::from(offsets[group]));
        unpack(&codes[group / 2], group % 2 * 4, 15, out, |code| scale * f32::from(code) - offset);
    }
}

#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let (scales, offsets) = scales_and_offsets(field(block, 4));
    let fifths = field::<32>(block, 16);
    let codes = field::<128>(block, 48).as_chunks::<32>().0;
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, offset) = (d * f32::from(scales[group]), m * f32::from(offsets[group]));
        for ((out, code), fifth) in out.iter_mut().zip(&codes[group / 2]).zip(fifths) {
            let code = code >> (group % 2 * 4) & 15 | (fifth >> group & 1) << 4;
            *out = scale * f32::from(code) - offset;
        }
    }
}

#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let lows = field::<128>(block, 0).as_chunks::<32>().0;
    let highs = field::<64>(block, 128).as_chunks::<32>().0;
    let scales = field::<16>(block, 192);
    let d = half(block, 208);
    let mut codes = [0; 256];
    for (part, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, quarter) = (part / 4, part % 4);
        let (lows, highs) = (&lows[half * 2 + quarter % 2], &highs[half]);
        for ((code, low), high) in codes.iter_mut().zip(lows).zip(highs) {
            *code = low >> (quarter / 2 * 4) & 15 | (high >> (quarter * 2) & 3) << 4;
        }
    }
    for ((out, codes), scale) in out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<16>().0).zip(scales) {
        let scale = d * f32::from(*scale as i8);
        unpack(codes, 0, 63, out, |code| scale * centred(code, 32));
    }
}

#[inline(always)]
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes(*field(block, 0));
    unpack(field::<256>(block, 4), 0, 0xff, out, |code| d * f32::from(code as i8));
}
