//! Plain loops over f32, compiled for the instruction set that the CPU has.
//!
//! The loops are over whole slices of the same length and have no order of their own, so every instruction set computes
//! the same numbers: operations round one by one, and sums keep 16 partial sums whatever the registers' width.

use super::lanes::{Isa, Kernel, MAGNITUDE, MAX_LANES};
use super::{Simd, dispatch};

/// Partial sums that a [`dot`] or [`sum`] keeps side by side.
const LANES: usize = 16;

/// A loop to be compiled for an instruction set: `run` must be `#[inline(always)]`, and so must what it calls.
pub trait Loop {
    /// What it computes.
    type Output: Default;

    /// Runs it.
    fn run(self) -> Self::Output;
}

/// Runs `body`, compiled for the best instruction set.
pub fn run<L: Loop>(body: L) -> L::Output {
    struct Compiled<'a, L: Loop>(L, &'a mut L::Output);
    impl<L: Loop> Kernel for Compiled<'_, L> {
        #[inline(always)]
        fn call<I: Isa>(self, _: I) {
            *self.1 = self.0.run();
        }
    }
    let mut output = L::Output::default();
    dispatch(Simd::detect(), Compiled(body, &mut output));
    output
}

/// `out[i] = each([a[i], b[i], …])`.
///
/// # Panics
/// If a slice is shorter than `out`.
pub fn map<const N: usize>(out: &mut [f32], inputs: [&[f32]; N], each: impl Fn([f32; N]) -> f32) {
    update(out, inputs, |_, values| each(values));
}

/// `out[i] = each(out[i], [a[i], b[i], …])`.
///
/// # Panics
/// If a slice is shorter than `out`.
pub fn update<const N: usize>(out: &mut [f32], inputs: [&[f32]; N], each: impl Fn(f32, [f32; N]) -> f32) {
    struct Update<'a, const N: usize, F>(&'a mut [f32], [&'a [f32]; N], F);
    impl<const N: usize, F: Fn(f32, [f32; N]) -> f32> Loop for Update<'_, N, F> {
        type Output = ();

        #[inline(always)]
        fn run(self) {
            let Self(out, inputs, each) = self;
            let inputs = inputs.map(|input| &input[..out.len()]);
            for i in 0..out.len() {
                let mut values = [0.0; N];
                for n in 0..N {
                    values[n] = inputs[n][i];
                }
                out[i] = each(out[i], values);
            }
        }
    }
    run(Update(out, inputs, each));
}

/// `Σ each([a[i], b[i], …])` in f64: partial sums by position, added in a fixed order.
///
/// # Panics
/// If the slices differ in length.
pub fn sum<const N: usize>(inputs: [&[f32]; N], each: impl Fn([f32; N]) -> f64) -> f64 {
    struct Sum<'a, const N: usize, F>([&'a [f32]; N], F);
    impl<const N: usize, F: Fn([f32; N]) -> f64> Loop for Sum<'_, N, F> {
        type Output = f64;

        #[inline(always)]
        fn run(self) -> f64 {
            let Self(inputs, each) = self;
            let length = inputs[0].len();
            let inputs = inputs.map(|input| &input[..length]);
            let mut lanes = [0.0f64; LANES];
            let whole = length / LANES * LANES;
            for start in (0..whole).step_by(LANES) {
                for (lane, sum) in lanes.iter_mut().enumerate() {
                    let mut values = [0.0; N];
                    for n in 0..N {
                        values[n] = inputs[n][start + lane];
                    }
                    *sum += each(values);
                }
            }
            for (i, sum) in (whole..length).zip(&mut lanes) {
                let mut values = [0.0; N];
                for n in 0..N {
                    values[n] = inputs[n][i];
                }
                *sum += each(values);
            }
            lanes.iter().sum()
        }
    }
    run(Sum(inputs, each))
}

/// `Σ a[i]·b[i]`, each product exact in f64.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum([a, b], |[a, b]| f64::from(a) * f64::from(b))
}

/// Two sums of what `each([a[i], b[i], …])` makes, numbers that are not negative: runs of elements are added in f32, the
/// runs in f64. The relative error is some 1e-7, and the cost a fraction of [`sum`]'s.
///
/// # Panics
/// If the slices differ in length.
pub fn two_sums<const N: usize>(inputs: [&[f32]; N], each: impl Fn([f32; N]) -> [f32; 2]) -> [f64; 2] {
    two_sums_by_index(inputs, move |_, values| each(values))
}

/// [`two_sums`] of `each(i, [a[i], b[i], …])`, of at most 2³² elements.
///
/// # Panics
/// If the slices differ in length.
pub fn two_sums_by_index<const N: usize>(inputs: [&[f32]; N], each: impl Fn(u32, [f32; N]) -> [f32; 2]) -> [f64; 2] {
    struct Sums<'a, const N: usize, F>([&'a [f32]; N], F);
    impl<const N: usize, F: Fn(u32, [f32; N]) -> [f32; 2]> Loop for Sums<'_, N, F> {
        type Output = [f64; 2];

        #[inline(always)]
        fn run(self) -> [f64; 2] {
            const RUN: usize = LANES * LANES;
            let Self(inputs, each) = self;
            let length = inputs[0].len();
            let inputs = inputs.map(|input| &input[..length]);
            // Not an array of arrays, of which compilers take one for the other's lanes.
            let (mut first, mut second) = ([0.0f64; LANES], [0.0f64; LANES]);
            let mut at = 0;
            while at < length {
                let end = length.min(at + RUN);
                let (mut a, mut b) = ([0.0f32; LANES], [0.0f32; LANES]);
                while at + LANES <= end {
                    let mut side = [[0.0f32; LANES]; N];
                    for n in 0..N {
                        side[n].copy_from_slice(&inputs[n][at..at + LANES]);
                    }
                    for lane in 0..LANES {
                        let mut values = [0.0; N];
                        for n in 0..N {
                            values[n] = side[n][lane];
                        }
                        let parts = each(at as u32 + lane as u32, values);
                        a[lane] += parts[0];
                        b[lane] += parts[1];
                    }
                    at += LANES;
                }
                for (lane, i) in (at..end).enumerate() {
                    let mut values = [0.0; N];
                    for n in 0..N {
                        values[n] = inputs[n][i];
                    }
                    let parts = each(i as u32, values);
                    a[lane] += parts[0];
                    b[lane] += parts[1];
                }
                at = end;
                for lane in 0..LANES {
                    first[lane] += f64::from(a[lane]);
                    second[lane] += f64::from(b[lane]);
                }
            }
            [first.iter().sum(), second.iter().sum()]
        }
    }
    run(Sums(inputs, each))
}

/// Calls `visit` with the magnitude of each number whose magnitude, as bits without the sign, is from `low` to `high`, in
/// order; returns how many magnitudes are below `low`.
pub fn visit_magnitudes(values: &[f32], low: u32, high: u32, visit: impl FnMut(u32)) -> u64 {
    struct Visit<'a, F>(&'a [f32], u32, u32, F, &'a mut u64);
    impl<F: FnMut(u32)> Kernel for Visit<'_, F> {
        #[inline(always)]
        fn call<I: Isa>(self, isa: I) {
            let Self(values, low, high, mut visit, total) = self;
            let width = high - low;
            for lanes in values.chunks(I::LANES) {
                let mut padded = [f32::NAN; MAX_LANES];
                let (mut below, mut within) = if lanes.len() == I::LANES {
                    isa.compare_magnitudes(lanes, low, width)
                } else {
                    padded[..lanes.len()].copy_from_slice(lanes);
                    isa.compare_magnitudes(&padded, low, width)
                };
                let real = u32::MAX >> (u32::BITS as usize - lanes.len());
                (below, within) = (below & real, within & real);
                *total += u64::from(below.count_ones());
                while within != 0 {
                    visit(lanes[within.trailing_zeros() as usize].to_bits() & MAGNITUDE);
                    within &= within - 1;
                }
            }
        }
    }
    let mut below = 0;
    dispatch(Simd::detect(), Visit(values, low, high, visit, &mut below));
    below
}

/// `[a·a, a·b, b·b]`, each as [`dot`] computes it.
///
/// # Panics
/// If `b` is shorter than `a`.
#[must_use]
pub fn gram_of_two(a: &[f32], b: &[f32]) -> [f64; 3] {
    struct Products<'a>(&'a [f32], &'a [f32]);
    impl Loop for Products<'_> {
        type Output = [f64; 3];

        #[inline(always)]
        fn run(self) -> [f64; 3] {
            let Self(a, b) = self;
            let b = &b[..a.len()];
            let (mut aa, mut ab, mut bb) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
            let (a, a_rest) = a.as_chunks::<LANES>();
            let (b, b_rest) = b.as_chunks::<LANES>();
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    let (x, y) = (f64::from(a[lane]), f64::from(b[lane]));
                    aa[lane] += x * x;
                    ab[lane] += x * y;
                    bb[lane] += y * y;
                }
            }
            for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
                let (x, y) = (f64::from(*a), f64::from(*b));
                aa[lane] += x * x;
                ab[lane] += x * y;
                bb[lane] += y * y;
            }
            [aa, ab, bb].map(|lanes| lanes.iter().sum())
        }
    }
    run(Products(a, b))
}

/// `[a·a, a·b, a·c]`, each as [`dot`] computes it.
///
/// # Panics
/// If `b` or `c` is shorter than `a`.
#[must_use]
pub fn three_dots(a: &[f32], b: &[f32], c: &[f32]) -> [f64; 3] {
    struct Products<'a>(&'a [f32], &'a [f32], &'a [f32]);
    impl Loop for Products<'_> {
        type Output = [f64; 3];

        #[inline(always)]
        fn run(self) -> [f64; 3] {
            let Self(a, b, c) = self;
            let (b, c) = (&b[..a.len()], &c[..a.len()]);
            let (mut aa, mut ab, mut ac) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
            let (a, a_rest) = a.as_chunks::<LANES>();
            let ((b, b_rest), (c, c_rest)) = (b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
            for ((a, b), c) in a.iter().zip(b).zip(c) {
                for lane in 0..LANES {
                    let (x, y, z) = (f64::from(a[lane]), f64::from(b[lane]), f64::from(c[lane]));
                    aa[lane] += x * x;
                    ab[lane] += x * y;
                    ac[lane] += x * z;
                }
            }
            for (lane, ((a, b), c)) in a_rest.iter().zip(b_rest).zip(c_rest).enumerate() {
                let (x, y, z) = (f64::from(*a), f64::from(*b), f64::from(*c));
                aa[lane] += x * x;
                ab[lane] += x * y;
                ac[lane] += x * z;
            }
            [aa, ab, ac].map(|lanes| lanes.iter().sum())
        }
    }
    run(Products(a, b, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_reach_every_element() {
        for length in [0, 1, 15, 16, 17, 100, 255, 256, 257, 600] {
            let a: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let mut out = vec![0.0; length];
            map(&mut out, [&a, &a], |[x, y]| x + 2.0 * y);
            assert!(out.iter().zip(&a).all(|(out, a)| *out == 3.0 * a), "{length}");
            update(&mut out, [&a], |out, [a]| out - a);
            assert!(out.iter().zip(&a).all(|(out, a)| *out == 2.0 * a), "{length}");
            let expected: f64 = a.iter().map(|a| f64::from(*a).powi(2)).sum();
            assert_eq!(dot(&a, &a), expected, "{length}");
            let wide: Vec<f64> = a.iter().copied().map(f64::from).collect();
            let b: Vec<f32> = a.iter().rev().map(|a| a / 3.0).collect();
            assert_eq!(gram_of_two(&a, &b), [expected, dot(&a, &b), dot(&b, &b)], "{length}");
            assert_eq!(three_dots(&b, &a, &out), [dot(&b, &b), dot(&a, &b), dot(&b, &out)], "{length}");
            let mut seen = Vec::new();
            let below = visit_magnitudes(&b, 10f32.to_bits(), 50f32.to_bits(), |bits| seen.push(f32::from_bits(bits)));
            assert_eq!(below, b.iter().filter(|b| **b < 10.0).count() as u64, "{length}");
            assert!(seen.iter().eq(b.iter().filter(|b| (10.0..=50.0).contains(*b))), "{length}");
            let [sum, counted] = two_sums_by_index([&a, &a], |i, [a, b]| [a + b, (i % 2) as f32]);
            assert_eq!(sum, 2.0 * wide.iter().sum::<f64>(), "{length}");
            assert_eq!(counted, (length / 2) as f64, "{length}");
        }
    }
}
