//! Types whose 4-bit codes choose one of 16 values that are not evenly spaced.
//!
//! | type | elements | bytes in order | scale |
//! |---|---|---|---|
//! | IQ4_NL | 32 | f16 `d`; 16 of codes | `d` |
//! | IQ4_XS | 256 | f16 `d`; u16 of high 2 bits; 4 of low 4 bits; 128 of codes | `d·(s − 32)` per 32 elements |
//! | MXFP4 | 32 | E8M0 scale; 16 of codes | a power of two |
//! | NVFP4 | 64 | 4 of E4M3 scales; 32 of codes | E4M3 per 16 elements |
//!
//! In each group that has a scale, low halves of the bytes come before high halves. The values of the last two are
//! those of OCP's E2M1, doubled, so that the scale is halved.

use super::{centred, field, half, unpack};

/// IQ4_NL's values: spaced as the quantiles of a bell curve.
const BELL: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Twice the values of E2M1. Its negative zero counts as zero.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

#[inline(always)]
fn look_up(packed: &[u8], scale: f32, values: &[f32; 16], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(packed.len());
    unpack(packed, 0, 15, low, |code| scale * values[usize::from(code)]);
    unpack(packed, 4, 15, high, |code| scale * values[usize::from(code)]);
}

#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    look_up(field::<16>(block, 2), half(block, 0), &BELL, out);
}

#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half(block, 0);
    let highs = u16::from_le_bytes(*field(block, 2));
    let lows = field::<4>(block, 4);
    let codes = field::<128>(block, 8).as_chunks::<16>().0;
    for (group, (out, codes)) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes).enumerate() {
        let low = lows[group / 2] >> (group % 2 * 4) & 15;
        let high = (highs >> (group * 2) & 3) as u8;
        look_up(codes, d * centred(low | high << 4, 32), &BELL, out);
    }
}

#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    look_up(field::<16>(block, 1), half_e8m0(block[0]), &E2M1_DOUBLED, out);
}

#[inline(always)]
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let codes = field::<32>(block, 4).as_chunks::<8>().0;
    for ((out, codes), scale) in out.as_chunks_mut::<16>().0.iter_mut().zip(codes).zip(&block[..4]) {
        look_up(codes, half_e4m3(*scale), &E2M1_DOUBLED, out);
    }
}

/// Half of `2^(code − 127)`. The code 255, which OCP has for NaN, is a power of two like any other here.
#[inline(always)]
fn half_e8m0(code: u8) -> f32 {
    let code = u32::from(code);
    // Below 2 the half is subnormal.
    f32::from_bits(if code < 2 { 0x0020_0000 << code } else { (code - 1) << 23 })
}

/// Half of the E4M3 number, its sign ignored. NaN is 0, but only without a sign.
#[inline(always)]
fn half_e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(code >> 3 & 15), f32::from(code & 7));
    // 2^(exponent − 7 − 1), or 2^(−6 − 1) for subnormals, which have no leading one.
    let power = f32::from_bits((exponent.max(1) + 119) << 23);
    let leading = if exponent == 0 { 0.0 } else { 1.0 };
    if code == 0x7f { 0.0 } else { (leading + mantissa / 8.0) * power }
}
