//! Random numbers that are functions of where they are used, so that no order of work changes them.
//!
//! A [`Key`] is made of a seed, a tensor's name and a model's number; the number at an element is a mixing of the
//! element's index under that key: xorshifts and two multiplications of 32 bits with the constants of C. Wellons' search
//! (<https://nullprogram.com/blog/2018/07/31/>), with a second half of the key added between them. 32-bit integers
//! only, so that a GPU computes the same.

use crate::dtype::vector::{self, Loop};
use std::f64::consts::TAU;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Which sequence of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    low: u32,
    high: u32,
}

impl Key {
    /// The sequence of a tensor of a model.
    #[must_use]
    pub fn new(seed: u64, tensor: &str, model: usize) -> Self {
        let hash = xxh3_64_with_seed(tensor.as_bytes(), seed);
        let hash = xxh3_64_with_seed(&(model as u64).to_le_bytes(), hash);
        Self { low: hash as u32, high: (hash >> 32) as u32 }
    }

    /// The key's own words, of which a graphics processor makes the same numbers.
    #[must_use]
    pub fn words(self) -> [u32; 2] {
        [self.low, self.high]
    }

    /// Fills `out` with the numbers of elements `start..`, uniform over all 32-bit integers.
    pub fn fill(self, start: u64, out: &mut [u32]) {
        self.update(start, out, [], |_, [], number| number);
    }

    /// Fills `out` with numbers from N(0, 1): two of 32 bits make two normal ones (Box and Muller 1958).
    pub fn normals(self, out: &mut [f32]) {
        const UNIT: f64 = 1.0 / 4_294_967_296.0;
        let mut words = vec![0; out.len().next_multiple_of(2)];
        self.fill(0, &mut words);
        for (out, words) in out.chunks_mut(2).zip(words.chunks_exact(2)) {
            let radius = (-2.0 * ((f64::from(words[0]) + 0.5) * UNIT).ln()).sqrt();
            let (sin, cos) = (TAU * f64::from(words[1]) * UNIT).sin_cos();
            out.iter_mut().zip([radius * cos, radius * sin]).for_each(|(out, number)| *out = number as f32);
        }
    }

    /// `out[i] = each(out[i], [a[i], …], number of element start + i)`.
    ///
    /// # Panics
    /// If an input is shorter than `out`.
    pub fn update<T: Copy, const N: usize>(
        self,
        start: u64,
        out: &mut [T],
        inputs: [&[T]; N],
        each: impl Fn(T, [T; N], u32) -> T + Copy,
    ) {
        for (key, part) in self.parts(start, out.len()) {
            let inputs = inputs.map(|input| &input[part.clone()]);
            let start = (start + part.start as u64) as u32;
            vector::run(Update { key, start, out: &mut out[part], inputs, each });
        }
    }

    /// Two sums, as [`vector::two_sums`], of `each([a[i], …], number of element start + i)`.
    ///
    /// # Panics
    /// If the slices differ in length.
    pub fn two_sums<const N: usize>(
        self,
        start: u64,
        inputs: [&[f32]; N],
        each: impl Fn([f32; N], u32) -> [f32; 2] + Copy,
    ) -> [f64; 2] {
        let mut totals = [0.0; 2];
        for (key, part) in self.parts(start, inputs[0].len()) {
            let inputs = inputs.map(|input| &input[part.clone()]);
            let start = (start + part.start as u64) as u32;
            let number = move |i: u32| mix(start.wrapping_add(i) ^ key.low, key.high);
            let sums = vector::two_sums_by_index(inputs, move |i, values| each(values, number(i)));
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        totals
    }

    /// The parts of elements `start..` that have one key: an index has 32 bits, and those above change the key.
    fn parts(self, start: u64, length: usize) -> impl Iterator<Item = (Self, Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let at = start + done as u64;
            let room = usize::try_from((1 << 32) - (at & 0xffff_ffff)).unwrap_or(usize::MAX);
            let part = done..done + room.min(length - done);
            done = part.end;
            let upper = mix((at >> 32) as u32, 0x9e37_79b9);
            let key = Self { low: self.low ^ upper, high: self.high.wrapping_add(upper) };
            (!part.is_empty()).then_some((key, part))
        })
    }
}

/// The least number that is not kept when elements are kept with this probability: keep what is below it. Certainty is
/// a number of 33 bits, which none reaches.
#[must_use]
pub fn threshold(probability: f64) -> u64 {
    (probability.clamp(0.0, 1.0) * 4_294_967_296.0).round() as u64
}

#[inline(always)]
fn mix(index: u32, key: u32) -> u32 {
    let mut x = index;
    x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad).wrapping_add(key);
    x = (x ^ (x >> 15)).wrapping_mul(0x735a_2d97);
    x ^ (x >> 15)
}

struct Update<'a, T, const N: usize, F> {
    key: Key,
    start: u32,
    out: &'a mut [T],
    inputs: [&'a [T]; N],
    each: F,
}

impl<T: Copy, const N: usize, F: Fn(T, [T; N], u32) -> T> Loop for Update<'_, T, N, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { key, start, out, inputs, each } = self;
        let inputs = inputs.map(|input| &input[..out.len()]);
        for i in 0..out.len() {
            let number = mix(start.wrapping_add(i as u32) ^ key.low, key.high);
            let mut values = [out[i]; N];
            for n in 0..N {
                values[n] = inputs[n][i];
            }
            out[i] = each(out[i], values, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(key: Key, start: u64, count: usize) -> Vec<u32> {
        let mut out = vec![0; count];
        key.fill(start, &mut out);
        out
    }

    #[test]
    fn any_part_is_the_part_of_the_whole() {
        let key = Key::new(7, "layer.weight", 1);
        let start = (1 << 32) - 500;
        let whole = numbers(key, start, 1000);
        assert_eq!(whole[300..700], numbers(key, start + 300, 400));
        assert_eq!(whole[501], numbers(key, start + 501, 1)[0]);
        assert_ne!(whole[500..600], numbers(key, 0, 100), "indices do not wrap around");
    }

    #[test]
    fn keys_differ_in_each_of_their_parts() {
        let base = numbers(Key::new(0, "a", 0), 0, 64);
        for other in [Key::new(1, "a", 0), Key::new(0, "b", 0), Key::new(0, "a", 1)] {
            let same = numbers(other, 0, 64).iter().zip(&base).filter(|(a, b)| a == b).count();
            assert_eq!(same, 0);
        }
    }

    /// Each bit is fair, neighbours and two models' numbers are uncorrelated, all within five standard deviations.
    #[test]
    fn numbers_are_uniform_and_independent() {
        const N: usize = 1 << 20;
        let a = numbers(Key::new(3, "w", 0), 0, N);
        let b = numbers(Key::new(3, "w", 1), 0, N);
        let bound = 5.0 * (N as f64).sqrt() / 2.0;
        let off = |ones: u64| (ones as f64 - N as f64 / 2.0).abs();
        for bit in 0..32 {
            let count = |f: &dyn Fn(usize) -> u32| (0..N - 1).map(|i| u64::from(f(i) >> bit & 1)).sum::<u64>();
            assert!(off(count(&|i| a[i])) < bound, "bit {bit} of single numbers");
            assert!(off(count(&|i| a[i] ^ a[i + 1])) < bound, "bit {bit} of neighbours");
            assert!(off(count(&|i| a[i] ^ b[i])) < bound, "bit {bit} of two models");
        }
        for p in [0.01, 0.3, 0.9] {
            let kept = a.iter().filter(|&&x| u64::from(x) < threshold(p)).count() as f64;
            assert!((kept - p * N as f64).abs() < 5.0 * (N as f64 * p * (1.0 - p)).sqrt(), "density {p}");
        }
        assert_eq!(threshold(1.0), 1 << 32, "all are kept");
    }
}
