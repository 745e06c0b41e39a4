//! One element at a time: the definition of every conversion.
//!
//! The small floats share one formula. With `E` exponent and `M` mantissa bits, a code's magnitude `m` (sign removed)
//! placed at the top of an f32's mantissa is `m << (23 − M)`, and
//!
//! * normal: add the difference of the two biases, `127 − (2^(E−1) − 1)`, to the exponent;
//! * subnormal: add it and one more, then subtract the power of two that this has put in front;
//! * back: add half a unit less one, plus the last kept bit, and shift (nearest, ties to even); for subnormals, add
//!   the power of two whose last place is the target's smallest subnormal, and let f32's own rounding do it.
//!
//! Every function is free of branches on data, so loops over them become vector code for whatever instruction set
//! their caller was compiled for.

/// The one NaN that is ever written as F32.
pub(super) const NAN_F32: f32 = f32::from_bits(0x7fc0_0000);
/// The one NaN that is ever written as F64.
const NAN_F64: f64 = f64::from_bits(0x7ff8_0000_0000_0000);

/// An element type of `N` bytes, little-endian.
pub(super) trait Element<const N: usize> {
    /// Exact where f32 can hold the value, else nearest, ties to even.
    fn to_f32(bytes: [u8; N]) -> f32;
    /// Exact where f64 can hold the value, else nearest, ties to even.
    fn to_f64(bytes: [u8; N]) -> f64;
    /// Rounded by the rules in the table of [`super`].
    fn from_f32(value: f32) -> [u8; N];
    /// The same, rounded once from f64.
    fn from_f64(value: f64) -> [u8; N];
}

/// IEEE binary16.
pub(super) struct F16;
/// The upper half of an f32.
pub(super) struct Bf16;
/// OCP E4M3, the finite-only ("fn") variant: no infinity, NaN is S.1111.111.
pub(super) struct E4m3;
/// OCP E5M2, which is the upper byte of an [`F16`].
pub(super) struct E5m2;
/// A byte that is zero or not.
pub(super) struct Bool;

/// `value`, or the canonical NaN for any NaN.
///
/// Arithmetic on NaNs keeps the payload of whichever operand the compiler put first, so payloads cannot be promised.
#[inline(always)]
pub(super) fn canonical(value: f32) -> f32 {
    if value.is_nan() { NAN_F32 } else { value }
}

/// What to add to the exponent of a small float to make it an f32's.
const fn bias_gap(exponent: u32) -> u32 {
    127 - ((1 << (exponent - 1)) - 1)
}

/// The value of a magnitude of `E` exponent and `M` mantissa bits, as f32 bits, its top exponent taken as a number.
#[inline(always)]
fn widen<const E: u32, const M: u32>(magnitude: u32) -> u32 {
    let placed = magnitude << (23 - M);
    let gap = bias_gap(E) << 23;
    let first_normal = gap + (1 << 23);
    let subnormal = (f32::from_bits(placed + first_normal) - f32::from_bits(first_normal)).to_bits();
    if magnitude < 1 << M { subnormal } else { placed + gap }
}

/// The inverse of [`widen`], rounded: for `magnitude`s (f32 bits) below twice the largest exponent's power.
#[inline(always)]
fn narrow<const E: u32, const M: u32>(magnitude: u32) -> u32 {
    let shift = 23 - M;
    let gap = bias_gap(E) << 23;
    let first_normal = gap + (1 << 23);
    let last_place = first_normal + (shift << 23);
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(last_place)).to_bits().wrapping_sub(last_place);
    let odd = (magnitude >> shift) & 1;
    let normal = magnitude.wrapping_sub(gap).wrapping_add((1 << (shift - 1)) - 1 + odd) >> shift;
    if magnitude < first_normal { subnormal } else { normal }
}

/// The f32 next below in magnitude (or `value` itself), with its last bit set if that lost anything ("round to odd").
///
/// The last bit then says "and a little more", so rounding the result to any format at least two bits narrower gives
/// what one rounding of `value` would have.
#[inline(always)]
fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    let truncated = nearest.to_bits().wrapping_sub(u32::from(back.abs() > value.abs()));
    // NaN compares unequal too: its last bit may be set, for it stays a NaN.
    f32::from_bits(truncated | u32::from(back != value))
}

impl Element<2> for Bf16 {
    #[inline(always)]
    fn to_f32(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }
    #[inline(always)]
    fn to_f64(bytes: [u8; 2]) -> f64 {
        f64::from(Self::to_f32(bytes))
    }
    #[inline(always)]
    fn from_f32(value: f32) -> [u8; 2] {
        let bits = canonical(value).to_bits();
        (((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16).to_le_bytes()
    }
    #[inline(always)]
    fn from_f64(value: f64) -> [u8; 2] {
        Self::from_f32(to_odd(value))
    }
}

impl Element<2> for F16 {
    #[inline(always)]
    fn to_f32(bytes: [u8; 2]) -> f32 {
        let code = u32::from(u16::from_le_bytes(bytes));
        let magnitude = code & 0x7fff;
        let number = widen::<5, 10>(magnitude);
        // Exponent 31 is infinity and NaN, which hardware makes quiet.
        let special = (magnitude << 13) | 0x7f80_0000 | (u32::from(magnitude > 0x7c00) << 22);
        let bits = if magnitude < 0x7c00 { number } else { special };
        f32::from_bits(bits | ((code & 0x8000) << 16))
    }
    #[inline(always)]
    fn to_f64(bytes: [u8; 2]) -> f64 {
        f64::from(Self::to_f32(bytes))
    }
    #[inline(always)]
    fn from_f32(value: f32) -> [u8; 2] {
        let bits = canonical(value).to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
        // 2^16: one that rounds up to it from below becomes 0x7c00 by itself.
        let code = if magnitude < 0x4780_0000 { narrow::<5, 10>(magnitude) } else { special };
        ((code | ((bits >> 16) & 0x8000)) as u16).to_le_bytes()
    }
    #[inline(always)]
    fn from_f64(value: f64) -> [u8; 2] {
        Self::from_f32(to_odd(value))
    }
}

impl Element<1> for E5m2 {
    #[inline(always)]
    fn to_f32(bytes: [u8; 1]) -> f32 {
        F16::to_f32([0, bytes[0]])
    }
    #[inline(always)]
    fn to_f64(bytes: [u8; 1]) -> f64 {
        f64::from(Self::to_f32(bytes))
    }
    #[inline(always)]
    fn from_f32(value: f32) -> [u8; 1] {
        let bits = canonical(value).to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let special = if magnitude > 0x7f80_0000 { 0x7f } else { 0x7c };
        let code = if magnitude < 0x4780_0000 { narrow::<5, 2>(magnitude) } else { special };
        [(code | ((bits >> 24) & 0x80)) as u8]
    }
    #[inline(always)]
    fn from_f64(value: f64) -> [u8; 1] {
        Self::from_f32(to_odd(value))
    }
}

impl Element<1> for E4m3 {
    #[inline(always)]
    fn to_f32(bytes: [u8; 1]) -> f32 {
        let code = u32::from(bytes[0]);
        let magnitude = code & 0x7f;
        let bits = if magnitude == 0x7f { NAN_F32.to_bits() } else { widen::<4, 3>(magnitude) };
        f32::from_bits(bits | ((code & 0x80) << 24))
    }
    #[inline(always)]
    fn to_f64(bytes: [u8; 1]) -> f64 {
        f64::from(Self::to_f32(bytes))
    }
    #[inline(always)]
    fn from_f32(value: f32) -> [u8; 1] {
        let bits = canonical(value).to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let special = if magnitude > 0x7f80_0000 { 0x7f } else { 0x7e };
        // From 480 on all is too large; what rounds up to 480 would become 0x7f, the NaN, and saturates as well.
        let code = if magnitude < 0x43f0_0000 { narrow::<4, 3>(magnitude).min(0x7e) } else { special };
        [(code | ((bits >> 24) & 0x80)) as u8]
    }
    #[inline(always)]
    fn from_f64(value: f64) -> [u8; 1] {
        Self::from_f32(to_odd(value))
    }
}

impl Element<1> for Bool {
    #[inline(always)]
    fn to_f32(bytes: [u8; 1]) -> f32 {
        f32::from(u8::from(bytes[0] != 0))
    }
    #[inline(always)]
    fn to_f64(bytes: [u8; 1]) -> f64 {
        f64::from(u8::from(bytes[0] != 0))
    }
    #[inline(always)]
    fn from_f32(value: f32) -> [u8; 1] {
        [u8::from(value != 0.0)]
    }
    #[inline(always)]
    fn from_f64(value: f64) -> [u8; 1] {
        [u8::from(value != 0.0)]
    }
}

impl Element<4> for f32 {
    #[inline(always)]
    fn to_f32(bytes: [u8; 4]) -> f32 {
        Self::from_le_bytes(bytes)
    }
    #[inline(always)]
    fn to_f64(bytes: [u8; 4]) -> f64 {
        f64::from(Self::from_le_bytes(bytes))
    }
    #[inline(always)]
    fn from_f32(value: f32) -> [u8; 4] {
        canonical(value).to_le_bytes()
    }
    #[inline(always)]
    fn from_f64(value: f64) -> [u8; 4] {
        canonical(value as Self).to_le_bytes()
    }
}

impl Element<8> for f64 {
    #[inline(always)]
    fn to_f32(bytes: [u8; 8]) -> f32 {
        canonical(Self::from_le_bytes(bytes) as f32)
    }
    #[inline(always)]
    fn to_f64(bytes: [u8; 8]) -> f64 {
        Self::from_le_bytes(bytes)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> [u8; 8] {
        Self::from_f64(Self::from(value))
    }
    #[inline(always)]
    fn from_f64(value: f64) -> [u8; 8] {
        if value.is_nan() { NAN_F64.to_le_bytes() } else { value.to_le_bytes() }
    }
}

/// Rust's `as` is the rule itself: to f32 and f64 nearest, ties to even; back toward zero, saturating, NaN to 0.
macro_rules! integers {
    ($($integer:ty, $bytes:literal;)*) => {$(
        impl Element<$bytes> for $integer {
            #[inline(always)]
            fn to_f32(bytes: [u8; $bytes]) -> f32 {
                Self::from_le_bytes(bytes) as f32
            }
            #[inline(always)]
            fn to_f64(bytes: [u8; $bytes]) -> f64 {
                Self::from_le_bytes(bytes) as f64
            }
            #[inline(always)]
            fn from_f32(value: f32) -> [u8; $bytes] {
                (value as Self).to_le_bytes()
            }
            #[inline(always)]
            fn from_f64(value: f64) -> [u8; $bytes] {
                (value as Self).to_le_bytes()
            }
        }
    )*};
}

integers! {
    i8, 1; u8, 1;
    i16, 2; u16, 2;
    i32, 4; u32, 4;
    i64, 8; u64, 8;
}
