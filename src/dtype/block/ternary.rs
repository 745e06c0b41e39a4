//! Types for weights that are −1, 0 or 1 times one scale, in blocks of 256.
//!
//! | type | bytes in order |
//! |---|---|
//! | TQ1_0 | 48 of five trits each; 4 of four trits each; f16 `d` |
//! | TQ2_0 | 64 of 2-bit codes; f16 `d` |
//!
//! A byte `b` of trits is a fraction `b/256` whose digits to base 3 they are, rounded up: multiplied by 3ᵏ modulo 256,
//! it has digit k in front, which is `⌊3·b/256⌋`. Digit k of 32 bytes is of 32 elements that follow each other, those
//! of digit k + 1 next; likewise for the 16 and the 4 bytes after them. 2-bit codes lie as in [`super::k`].

use super::{centred, field, half, unpack};

#[inline(always)]
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = half(block, 52);
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    trits(field::<32>(block, 0), d, first);
    trits(field::<16>(block, 32), d, second);
    trits(field::<4>(block, 48), d, third);
}

/// Digit by digit, the trits of all bytes.
#[inline(always)]
fn trits<const BYTES: usize>(packed: &[u8; BYTES], d: f32, out: &mut [f32]) {
    let mut power = 1u8;
    for out in out.as_chunks_mut::<BYTES>().0 {
        for (out, byte) in out.iter_mut().zip(packed) {
            let trit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
            *out = d * centred(trit as u8, 1);
        }
        power = power.wrapping_mul(3);
    }
}

#[inline(always)]
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = half(block, 64);
    let codes = field::<64>(block, 0).as_chunks::<32>().0;
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        unpack(&codes[group / 4], group % 4 * 2, 3, out, |code| d * centred(code, 1));
    }
}
