//! A rough order of numbers that costs little: buckets of a fixed relative width.
//!
//! A bucket holds the numbers of one sign whose F32 has the same exponent and the same leading bits of the mantissa.
//! Buckets are in the order of the numbers, and each holds a range of them, so that counting tells in which bucket the
//! element of a rank is. Numbers below the exponents that count share the bucket of
//! zero, and those above the outermost.

use super::elements::BLOCK;
use crate::dtype::vector::{self, Loop};

/// Leading bits of the mantissa that tell buckets apart.
const BITS: u32 = 8;
/// Powers of two that tell buckets apart, and the lowest of them: changes of weights are rarely smaller, and weights
/// rarely larger.
const OCTAVES: i32 = 63;
const LOWEST: i32 = -46;
/// Buckets of a sign.
const HALF: i32 = OCTAVES << BITS;
/// The bucket of zero.
const ZERO: i32 = HALF;
/// All buckets.
pub(super) const BUCKETS: usize = 2 * HALF as usize + 1;
const OFFSET: i32 = ((127 + LOWEST) << BITS) - 1;

#[inline(always)]
fn bucket(x: f64) -> u16 {
    bucket_of_narrow(x as f32)
}

#[inline(always)]
fn bucket_of_narrow(x: f32) -> u16 {
    let bits = x.to_bits().cast_signed();
    let sign = bits >> 31;
    let magnitude = bits & i32::MAX;
    // Zeros are in none of the two halves, and with them what is too small.
    let place = ((magnitude >> (23 - BITS)) - OFFSET).clamp(0, HALF);
    (ZERO + ((place ^ sign) - sign)) as u16
}

/// The buckets of some numbers.
pub(super) struct Places<'a> {
    pub(super) values: &'a [f64],
    pub(super) places: &'a mut [u16; BLOCK],
}

impl Loop for Places<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // One step after the other, so that registers hold as many numbers as they can.
        let mut narrow = [0.0f32; BLOCK];
        for (narrow, value) in narrow.iter_mut().zip(self.values) {
            *narrow = *value as f32;
        }
        for (place, narrow) in self.places.iter_mut().zip(&narrow[..self.values.len()]) {
            *place = bucket_of_narrow(*narrow);
        }
    }
}

/// One thing for each place that a u16 can say: no bounds have to be checked.
pub(super) type Table<T> = Box<[T; 1 << u16::BITS]>;

/// A table with nothing in it. Of what is behind [`BUCKETS`] no memory is touched.
pub(super) fn table<T: Copy + Default>() -> Table<T> {
    let things = vec![T::default(); 1 << u16::BITS];
    // It is as long as it should be.
    things.try_into().unwrap_or_else(|_| Box::new([T::default(); 1 << u16::BITS]))
}

/// Finds the numbers whose bucket is marked: writes where they are to `found`, and gives how many there are.
pub(super) fn find_marked(places: &[u16], marked: &Table<bool>, found: &mut [u16; BLOCK]) -> usize {
    let mut count = 0;
    for (index, place) in (0..BLOCK as u16).zip(places) {
        // Written in any case, as a branch would take longer.
        found[count % BLOCK] = index;
        count += usize::from(marked[usize::from(*place)]);
    }
    count
}

/// How many numbers each bucket has.
pub(super) struct Counts {
    counts: Table<u32>,
    all: u64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { counts: table(), all: 0 }
    }

    /// Whether so many more can be counted, wherever they are.
    pub(super) fn has_room(&self, elements: u64) -> bool {
        self.all + elements <= u64::from(u32::MAX)
    }

    /// Counts some numbers, a block of them at the most.
    pub(super) fn add(&mut self, values: &[f64], places: &mut [u16; BLOCK]) {
        vector::run(Places { values, places });
        for place in &places[..values.len()] {
            self.counts[usize::from(*place)] += 1;
        }
        self.all += values.len() as u64;
    }

    /// Moves the counts to `sums`.
    pub(super) fn drain_into(&mut self, sums: &mut [u64]) {
        for (sum, count) in sums.iter_mut().zip(&mut self.counts[..]) {
            *sum += u64::from(std::mem::take(count));
        }
        self.all = 0;
    }
}

/// A number as an integer, in the order of the numbers; 0 and −0 are the same.
#[inline(always)]
pub(super) fn key(x: f64) -> u64 {
    let bits = (x + 0.0).to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// The number of a [`key`].
pub(super) fn number(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 { key & !(1 << 63) } else { !key })
}

/// The bucket of a key.
pub(super) fn bucket_of(key: u64) -> usize {
    usize::from(bucket(number(key)))
}

/// The least and the greatest key of a bucket, within those that all numbers are between.
pub(super) fn keys_of(bucket: usize, (least, most): (u64, u64)) -> (u64, u64) {
    // The first key from `least` on whose bucket is `bucket` or behind it.
    let first = |bucket: usize| {
        let (mut low, mut high) = (least, most + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if bucket_of(middle) < bucket { low = middle + 1 } else { high = middle }
        }
        low
    };
    (first(bucket), first(bucket + 1) - 1)
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, ZERO, bucket, bucket_of, key, keys_of, number};

    /// Numbers in order, from all over f64.
    fn ladder() -> Vec<f64> {
        let mut numbers = vec![0.0, f64::MIN_POSITIVE, f64::MAX, 5e-324, 1e-46, 1e-45, 1e30, f64::from(f32::MAX)];
        for exponent in -340..330 {
            numbers.extend([1.0, 1.001, 1.004, 1.9999, 1.5].map(|x: f64| x * 2f64.powi(exponent)));
        }
        let mut numbers: Vec<f64> = numbers.iter().flat_map(|x| [*x, -x]).collect();
        numbers.sort_by(f64::total_cmp);
        numbers
    }

    #[test]
    fn keys_and_buckets_are_in_the_order_of_the_numbers() {
        for pair in ladder().windows(2) {
            assert!(bucket(pair[0]) <= bucket(pair[1]), "{pair:?}");
            assert_eq!(key(pair[0]).cmp(&key(pair[1])), pair[0].partial_cmp(&pair[1]).expect("numbers"), "{pair:?}");
            assert_eq!(number(key(pair[0])), pair[0]);
        }
        assert_eq!((bucket(0.0), bucket(-0.0)), (ZERO as u16, ZERO as u16));
        assert_eq!((bucket(f64::MIN), usize::from(bucket(f64::MAX))), (0, BUCKETS - 1));
        assert!(bucket(1e-13) > ZERO as u16 && bucket(-1e-13) < ZERO as u16);
        assert_ne!(bucket(1.0), bucket(1.01));
    }

    #[test]
    fn a_bucket_s_keys_are_those_of_its_numbers() {
        let all = (key(f64::MIN), key(f64::MAX));
        for x in ladder() {
            let (least, most) = keys_of(bucket_of(key(x)), all);
            assert!(least <= key(x) && key(x) <= most, "{x}");
            assert!(least == all.0 || bucket_of(least - 1) < bucket_of(least), "{x}");
            assert!(most == all.1 || bucket_of(most + 1) > bucket_of(most), "{x}");
        }
        assert_eq!(keys_of(bucket_of(key(1.0)), (key(1.0), key(1.001))), (key(1.0), key(1.001)));
    }
}
