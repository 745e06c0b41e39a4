//! Fitting the "K" types: scales that make the squared error small, found by trying and solving.
//!
//! A group of elements `x` is to be `a·q − b` with codes `q` from 0 to 15 and `b` not negative (Q4_K), or `a·q` with
//! codes from −32 to 31 (Q6_K). Given the codes, the best `a` and `b` solve a linear least-squares problem; given `a`
//! and `b`, the best codes are the nearest. So: for a row of steps about the one that spans the group's range, round,
//! solve, and keep what leaves the smallest error `Σ(a·q − b − x)²`. This is the search of ggml's `make_qkx2_quants`
//! and `make_qx_quants`, but with equal weights. Then a block's scales are rounded to their own few bits, the codes
//! are chosen anew for the rounded ones, and last the scale of all scales is solved for once more and the codes with
//! it, if that helps.

use super::k::scales_and_offsets;
use super::{Element, F16};

/// Steps that are tried to each side of the one that spans the range, and how far apart they are, in codes.
const TRIES: i32 = 10;
const APART: f32 = 0.1;

/// `Σ aᵢ·bᵢ` in eight sums, added up in order: fast, and the same on every CPU.
#[inline(always)]
fn dot<const N: usize>(a: &[f32; N], b: &[f32; N]) -> f32 {
    let mut sums = [0f32; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// The nearest whole number, ties to even, for magnitudes below 2²²: above it f32 has no fractions left to keep.
#[inline(always)]
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5·2²³
    (value + SHIFT) - SHIFT
}

/// The nearest code from `least` to `most`.
#[inline(always)]
fn code(value: f32, least: f32, most: f32) -> f32 {
    nearest(value.max(least).min(most))
}

/// `1/step`, or 0 for a step of 0 or one so small that f32 cannot say.
#[inline(always)]
fn inverse(step: f32) -> f32 {
    let inverse = 1.0 / step;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// `a` and `b` of a group for Q4_K.
#[inline(always)]
fn scale_and_offset(x: &[f32; 32]) -> (f32, f32) {
    let low = x.iter().fold(0.0, |low, &x| if x < low { x } else { low });
    let high = x.iter().fold(low, |high, &x| if x > high { x } else { high });
    let (ones, sum_x) = ([1.0; 32], dot(x, &[1.0; 32]));
    let flat = x.map(|x| x - low);
    let mut best = (dot(&flat, &flat), 0.0, low.abs());
    for step in -TRIES..=TRIES {
        let per_code = (15.0 + APART * step as f32) * inverse(high - low);
        let codes = x.map(|x| code((x - low) * per_code, 0.0, 15.0));
        let (sum, squares, products) = (dot(&codes, &ones), dot(&codes, &codes), dot(&codes, x));
        let determinant = 32.0 * squares - sum * sum;
        let mut a = (32.0 * products - sum_x * sum) / determinant;
        let mut b = (sum * products - squares * sum_x) / determinant;
        // It is 0 if all codes are the same.
        if determinant <= 0.0 || b < 0.0 {
            (a, b) = (products * inverse(squares), 0.0);
        }
        let errors: [f32; 32] = std::array::from_fn(|i| a * codes[i] - b - x[i]);
        let error = dot(&errors, &errors);
        if error < best.0 {
            best = (error, a, b);
        }
    }
    (best.1, best.2)
}

/// `a` of a group for Q6_K; its sign is that of the farthest value, turned, which may have the code −32.
#[inline(always)]
fn scale(x: &[f32; 16]) -> f32 {
    let far = x.iter().fold(0.0, |far, &x| if x.abs() > f32::abs(far) { x } else { far });
    let mut best = (0.0, 0.0);
    for step in -TRIES..=TRIES {
        let per_code = -(32.0 + APART * step as f32) * inverse(far);
        let codes = x.map(|x| code(x * per_code, -32.0, 31.0));
        let (squares, products) = (dot(&codes, &codes), dot(&codes, x));
        // The error is Σx² less this.
        let explained = products * products * inverse(squares);
        if explained > best.0 {
            best = (explained, products / squares);
        }
    }
    best.1
}

/// Rounded to the nearest binary16, and what that is.
#[inline(always)]
fn rounded(value: f32) -> ([u8; 2], f32) {
    let bytes = F16::from_f32(value);
    (bytes, F16::to_f32(bytes))
}

/// Rounded away from zero, so that a quotient by it is not larger than one by `value`.
///
/// Scales of scales are often below 2⁻¹⁴, where binary16 has few bits left.
#[inline(always)]
fn rounded_away(value: f32) -> ([u8; 2], f32) {
    let (bytes, near) = rounded(value);
    let away = u16::from_le_bytes(bytes) + u16::from(near.abs() < value.abs());
    (away.to_le_bytes(), F16::to_f32(away.to_le_bytes()))
}

/// The largest magnitude that Q4_K has: the largest binary16, times the largest scale of a group, times the largest code.
const Q4_K_MOST: f32 = 65504.0 * 63.0 * 15.0;

pub(super) fn q4_k(x: &[f32; 256], out: &mut [u8; 144]) {
    // Squares of what is far beyond would be infinite, and no fit the best.
    if x.iter().any(|value| value.abs() > Q4_K_MOST) {
        out.fill(0);
        out[..2].copy_from_slice(&F16::from_f32(f32::INFINITY));
        return;
    }
    let groups = x.as_chunks::<32>().0;
    let mut wanted = [(0.0, 0.0); 8];
    for (wanted, group) in wanted.iter_mut().zip(groups) {
        *wanted = scale_and_offset(group);
    }
    let most = |of: fn(&(f32, f32)) -> f32| wanted.iter().map(of).fold(0.0, f32::max);
    let (most_a, most_b) = (most(|w| w.0), most(|w| w.1));
    let (mut d, mut m) = (rounded_away(most_a / 63.0), rounded_away(most_b / 63.0));
    let (per_a, per_b) = (inverse(d.1), inverse(m.1));
    let small = wanted.map(|(a, b)| (code(a * per_a, 0.0, 63.0), code(b * per_b, 0.0, 63.0)));

    let mut codes = codes_4(groups, &small, d.1, m.1);
    // x ≈ d·(s·q) − m·t once more, for all groups at once and with the codes as they are.
    let (mut uu, mut uv, mut vv, mut ux, mut vx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for ((group, codes), (s, t)) in groups.iter().zip(&codes).zip(small) {
        let (ones, sum) = ([1.0; 32], dot(codes, &[1.0; 32]));
        uu += s * s * dot(codes, codes);
        uv += s * t * sum;
        vv += t * t * 32.0;
        ux += s * dot(codes, group);
        vx += t * dot(group, &ones);
    }
    let by_determinant = inverse(uu * vv - uv * uv);
    let again = (rounded((vv * ux - uv * vx) * by_determinant), rounded((uv * ux - uu * vx) * by_determinant));
    if again.0.1 > 0.0 && again.1.1 >= 0.0 {
        let other = codes_4(groups, &small, again.0.1, again.1.1);
        if error_4(groups, &other, &small, again.0.1, again.1.1) < error_4(groups, &codes, &small, d.1, m.1) {
            ((d, m), codes) = (again, other);
        }
    }

    out[..2].copy_from_slice(&d.0);
    out[2..4].copy_from_slice(&m.0);
    let small = small.map(|(s, t)| (s as u8, t as u8));
    for i in 0..4 {
        let ((s, t), (high_s, high_t)) = (small[i], small[4 + i]);
        out[4 + i] = s | high_s >> 4 << 6;
        out[8 + i] = t | high_t >> 4 << 6;
        out[12 + i] = high_s & 15 | (high_t & 15) << 4;
    }
    debug_assert_eq!(scales_and_offsets(super::field(out, 4)), (small.map(|p| p.0), small.map(|p| p.1)));
    for (out, pair) in out[16..].as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<2>().0) {
        for (out, (low, high)) in out.iter_mut().zip(pair[0].iter().zip(&pair[1])) {
            *out = *low as u8 | (*high as u8) << 4;
        }
    }
}

/// The nearest codes under the block's scales.
#[inline(always)]
fn codes_4(groups: &[[f32; 32]], small: &[(f32, f32); 8], d: f32, m: f32) -> [[f32; 32]; 8] {
    std::array::from_fn(|i| {
        let (per_code, offset) = (inverse(d * small[i].0), m * small[i].1);
        groups[i].map(|x| code((x + offset) * per_code, 0.0, 15.0))
    })
}

/// `Σ(d·s·q − m·t − x)²`.
#[inline(always)]
fn error_4(groups: &[[f32; 32]], codes: &[[f32; 32]; 8], small: &[(f32, f32); 8], d: f32, m: f32) -> f32 {
    let mut error = 0.0;
    for ((x, codes), (s, t)) in groups.iter().zip(codes).zip(small) {
        let errors: [f32; 32] = std::array::from_fn(|i| d * s * codes[i] - m * t - x[i]);
        error += dot(&errors, &errors);
    }
    error
}

pub(super) fn q6_k(x: &[f32; 256], out: &mut [u8; 210]) {
    let groups = x.as_chunks::<16>().0;
    let mut wanted = [0.0; 16];
    for (wanted, group) in wanted.iter_mut().zip(groups) {
        *wanted = scale(group);
    }
    let far = wanted.iter().fold(0.0, |far, &a| if a.abs() > f32::abs(far) { a } else { far });
    // Of nothing but zeros the scale is 0, not −0.
    let mut d = rounded_away(far / -128.0 + 0.0);
    let per_scale = inverse(d.1);
    let small = wanted.map(|a| code(a * per_scale, -128.0, 127.0));

    let mut codes = codes_6(groups, &small, d.1);
    let (mut uu, mut ux) = (0.0, 0.0);
    for ((group, codes), s) in groups.iter().zip(&codes).zip(small) {
        uu += s * s * dot(codes, codes);
        ux += s * dot(codes, group);
    }
    let again = rounded(ux * inverse(uu));
    let other = codes_6(groups, &small, again.1);
    if error_6(groups, &other, &small, again.1) < error_6(groups, &codes, &small, d.1) {
        (d, codes) = (again, other);
    }

    for (i, code) in codes.as_flattened().iter().enumerate() {
        let code = (*code + 32.0) as u8;
        // 128 elements in 64 and 32 bytes; see the layout in `k`.
        let (half, quarter, at) = (i / 128, i / 32 % 4, i % 32);
        let low = &mut out[half * 64 + quarter % 2 * 32 + at];
        *low = if quarter < 2 { code & 15 } else { *low | (code & 15) << 4 };
        let high = &mut out[128 + half * 32 + at];
        *high = if quarter == 0 { code >> 4 } else { *high | code >> 4 << (quarter * 2) };
    }
    for (out, scale) in out[192..208].iter_mut().zip(small) {
        *out = (scale as i8) as u8;
    }
    out[208..].copy_from_slice(&d.0);
}

#[inline(always)]
fn codes_6(groups: &[[f32; 16]], small: &[f32; 16], d: f32) -> [[f32; 16]; 16] {
    std::array::from_fn(|i| {
        let per_code = inverse(d * small[i]);
        groups[i].map(|x| code(x * per_code, -32.0, 31.0))
    })
}

/// `Σ(d·s·q − x)²`.
#[inline(always)]
fn error_6(groups: &[[f32; 16]], codes: &[[f32; 16]; 16], small: &[f32; 16], d: f32) -> f32 {
    let mut error = 0.0;
    for ((x, codes), s) in groups.iter().zip(codes).zip(small) {
        let errors: [f32; 16] = std::array::from_fn(|i| d * s * codes[i] - x[i]);
        error += dot(&errors, &errors);
    }
    error
}
