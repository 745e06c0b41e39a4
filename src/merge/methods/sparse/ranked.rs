//! Which elements of a change are kept by their rank in a row.

use crate::dtype::vector::{self, Loop};
use crate::merge::{Key, MaskByRank, threshold};

/// Rows along dimension 1, of which neighbours are how far apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rows {
    length: usize,
    stride: usize,
}

impl Rows {
    /// Of a tensor; one of one dimension is a row.
    pub(super) fn of(shape: &[u64]) -> Self {
        match shape {
            [] => Self { length: 1, stride: 1 },
            [n] => Self { length: *n as usize, stride: 1 },
            [_, n, inner @ ..] => Self { length: *n as usize, stride: inner.iter().product::<u64>() as usize },
        }
    }

    /// Elements that a slice along the first dimension has.
    pub(super) fn unit(self) -> usize {
        (self.length * self.stride).max(1)
    }
}

/// Keeps an element with a probability that grows with its rank, by `epsilon` around `density`. Of elements that are
/// equal in magnitude each has the mean rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ranked {
    pub(super) key: Key,
    pub(super) density: f64,
    pub(super) epsilon: f64,
    pub(super) rows: Rows,
    /// Whether what is kept is divided by its probability.
    pub(super) by_probability: bool,
}

impl Ranked {
    /// The same for devices.
    pub(super) fn mask(&self, model: usize) -> MaskByRank {
        let Self { key, density, epsilon, rows, by_probability } = *self;
        let limits = (threshold(density - epsilon) as u32, threshold(density + epsilon) as u32);
        let by_probability = by_probability.then_some((density, epsilon));
        MaskByRank { model, key, limits, by_probability, rows: (rows.length as u64, rows.stride as u64) }
    }

    /// What each element of a change, whole slices of it, is multiplied with: 0 for what is dropped.
    pub(super) fn factors(&self, start: u64, change: &[f32]) -> Vec<f32> {
        let Rows { stride, .. } = self.rows;
        let mut numbers = vec![0u32; change.len()];
        self.key.fill(start, &mut numbers);
        let mut factors = vec![0.0; change.len()];
        let mut row = Row::default();
        // A row whose elements are apart, put together.
        let (mut values, mut drawn, mut along) = (Vec::new(), Vec::new(), Vec::new());
        let slices = change.chunks(self.rows.unit()).zip(numbers.chunks(self.rows.unit()));
        for ((change, numbers), factors) in slices.zip(factors.chunks_mut(self.rows.unit())) {
            if stride == 1 {
                self.row(&mut row, change, numbers, factors);
                continue;
            }
            along.resize(self.rows.length, 0.0);
            for offset in 0..stride {
                values.clear();
                drawn.clear();
                values.extend(change[offset..].iter().step_by(stride));
                drawn.extend(numbers[offset..].iter().step_by(stride));
                self.row(&mut row, &values, &drawn, &mut along);
                factors[offset..].iter_mut().step_by(stride).zip(&along).for_each(|(to, from)| *to = *from);
            }
        }
        factors
    }

    fn row(&self, row: &mut Row, change: &[f32], numbers: &[u32], factors: &mut [f32]) {
        let (density, epsilon) = (self.density, self.epsilon);
        // Densities with their spread are below 1, so that limits have 32 bits.
        let (low, high) = (threshold(density - epsilon) as u32, threshold(density + epsilon) as u32);
        let length = change.len();
        let probability = |place: f64| density - epsilon + 2.0 * epsilon * place;
        if length == 1 {
            // An only element is in the middle.
            let scale = if self.by_probability { (1.0 / probability(0.5)) as f32 } else { 1.0 };
            factors[0] = if numbers[0] < low.midpoint(high) { scale } else { 0.0 };
            return;
        }
        vector::run(Decide { row, change, numbers, low, high, factors });
        row.settle(numbers, low, high, factors);
        if self.by_probability {
            row.rank(&mut row.magnitudes.clone());
            for (factor, magnitude) in factors.iter_mut().zip(&row.magnitudes) {
                let rank = row.doubled_rank(*magnitude) as f64 / 2.0;
                *factor *= (1.0 / probability(rank / (length - 1) as f64)) as f32;
            }
        }
    }
}

/// Bits of a magnitude below those that name its bucket: 32 buckets to an octave.
const SHIFT: u32 = 18;
/// Buckets, 8 octaves of them: what is below the lowest is in it, too.
const BUCKETS: usize = 256;
/// Sets of counts, so that equal neighbours do not wait for each other.
const SETS: usize = 4;
/// Elements that are looked at together for any that are not decided.
const CHUNK: usize = 16;
/// Of more magnitudes than this the ranks are cheaper by sorting than by counting.
const COUNTED: usize = 128;

/// The work on a row.
#[derive(Default)]
struct Row {
    magnitudes: Vec<u32>,
    buckets: Vec<u32>,
    /// The elements that their bucket does not decide.
    undecided: Vec<usize>,
    /// Magnitudes in ascending order, with how many elements are less, and equal.
    ranks: Vec<(u32, u32, u32)>,
    sorted: Vec<u32>,
}

impl Row {
    /// Ranks these magnitudes of the row.
    fn rank(&mut self, wanted: &mut Vec<u32>) {
        wanted.sort_unstable();
        wanted.dedup();
        self.ranks.clear();
        if wanted.len() <= COUNTED {
            for magnitude in wanted.iter().copied() {
                let (less, equal) = vector::run(Count { magnitudes: &self.magnitudes, magnitude });
                self.ranks.push((magnitude, less, equal));
            }
            return;
        }
        self.sorted.clone_from(&self.magnitudes);
        self.sorted.sort_unstable();
        let mut less = 0;
        for run in self.sorted.chunk_by(|a, b| a == b) {
            self.ranks.push((run[0], less, run.len() as u32));
            less += run.len() as u32;
        }
    }

    /// Twice the mean rank, from 0, of the elements of a magnitude that is ranked.
    fn doubled_rank(&self, magnitude: u32) -> u64 {
        let index = self.ranks.partition_point(|(other, ..)| *other < magnitude);
        let (_, less, equal) = self.ranks[index];
        2 * u64::from(less) + u64::from(equal) - 1
    }

    /// Decides what is undecided: an element is kept if its rank is above the place of its number. Both are compared as
    /// integers, so that whatever computes it decides alike.
    fn settle(&mut self, numbers: &[u32], low: u32, high: u32, factors: &mut [f32]) {
        if self.undecided.is_empty() {
            return;
        }
        let mut wanted: Vec<u32> = self.undecided.iter().map(|i| self.magnitudes[*i]).collect();
        self.rank(&mut wanted);
        let (spread, last) = (u64::from((high - low).max(1)), self.magnitudes.len() as u64 - 1);
        for &i in &self.undecided {
            let rank = self.doubled_rank(self.magnitudes[i]);
            let is_above = rank * spread > 2 * u64::from(numbers[i] - low) * last;
            factors[i] = if is_above { 1.0 } else { 0.0 };
        }
    }
}

/// How many magnitudes are less and equal.
struct Count<'a> {
    magnitudes: &'a [u32],
    magnitude: u32,
}

impl Loop for Count<'_> {
    type Output = (u32, u32);

    #[inline(always)]
    fn run(self) -> (u32, u32) {
        let (mut less, mut equal) = (0u32, 0u32);
        for other in self.magnitudes {
            less += u32::from(*other < self.magnitude);
            equal += u32::from(*other == self.magnitude);
        }
        (less, equal)
    }
}

/// Decides by their buckets which elements of a row are kept, but for a few.
///
/// Ranks in a bucket lie between the number of elements below it and that of those up to it. So numbers below the place
/// of the first are kept, and those from the place of the second on dropped.
struct Decide<'a> {
    row: &'a mut Row,
    change: &'a [f32],
    numbers: &'a [u32],
    low: u32,
    high: u32,
    factors: &'a mut [f32],
}

impl Loop for Decide<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { row, change, numbers, low, high, factors } = self;
        let length = change.len();
        row.magnitudes.resize(length, 0);
        row.buckets.resize(length, 0);
        row.undecided.clear();
        let mut most = 0;
        for (magnitude, value) in row.magnitudes.iter_mut().zip(change) {
            *magnitude = value.to_bits() & 0x7fff_ffff;
            most = if *magnitude > most { *magnitude } else { most };
        }
        let top = most >> SHIFT;
        for (bucket, magnitude) in row.buckets.iter_mut().zip(&row.magnitudes) {
            *bucket = (BUCKETS as u32 - 1).saturating_sub(top - (magnitude >> SHIFT));
        }
        let mut counts = [[0u32; BUCKETS]; SETS];
        let (whole, rest) = row.buckets.as_chunks::<SETS>();
        for buckets in whole {
            for set in 0..SETS {
                counts[set][buckets[set] as usize % BUCKETS] += 1;
            }
        }
        for bucket in rest {
            counts[0][*bucket as usize % BUCKETS] += 1;
        }
        let mut ends = [0u32; BUCKETS];
        let mut end = 0;
        for bucket in 0..BUCKETS {
            end += counts[0][bucket] + counts[1][bucket] + counts[2][bucket] + counts[3][bucket];
            ends[bucket] = end;
        }
        // Rounding moves a limit by less than a number; one more on each side is left undecided.
        let step = f64::from((high - low).max(1)) / (length - 1) as f64;
        let (mut kept, mut dropped) = ([low; BUCKETS], [high; BUCKETS]);
        for bucket in 0..BUCKETS {
            let start = f64::from(if bucket == 0 { 0 } else { ends[bucket - 1] });
            let last = f64::from(ends[bucket]) - 1.0;
            let (first, behind) = (f64::from(low) + start * step - 1.0, f64::from(low) + last * step + 2.0);
            kept[bucket] = (first.max(f64::from(low)) as u32).min(high);
            dropped[bucket] = (behind.max(f64::from(low)) as u32).min(high);
        }
        let limits = Limits { kept: &kept, dropped: &dropped };
        let (buckets, buckets_rest) = row.buckets.as_chunks::<CHUNK>();
        let (whole, rest) = numbers.as_chunks::<CHUNK>();
        let (factors, factors_rest) = factors.as_chunks_mut::<CHUNK>();
        for (index, ((buckets, numbers), factors)) in buckets.iter().zip(whole).zip(factors).enumerate() {
            if limits.decide(buckets, numbers, factors) {
                limits.note(buckets, numbers, index * CHUNK, &mut row.undecided);
            }
        }
        // The largest numbers are dropped.
        let (mut last, mut last_numbers, mut last_factors) = ([0; CHUNK], [u32::MAX; CHUNK], [0.0; CHUNK]);
        last[..rest.len()].copy_from_slice(buckets_rest);
        last_numbers[..rest.len()].copy_from_slice(rest);
        if limits.decide(&last, &last_numbers, &mut last_factors) {
            limits.note(&last, &last_numbers, length - rest.len(), &mut row.undecided);
        }
        factors_rest.copy_from_slice(&last_factors[..rest.len()]);
        // What is zero is so in any case.
        row.undecided.retain(|i| row.magnitudes[*i] != 0);
    }
}

/// By bucket, the number from which on elements may be dropped, and that from which on they are.
struct Limits<'a> {
    kept: &'a [u32; BUCKETS],
    dropped: &'a [u32; BUCKETS],
}

impl Limits<'_> {
    /// Sets the factors of elements that are decided, and says whether any is not.
    #[inline(always)]
    fn decide(&self, buckets: &[u32; CHUNK], numbers: &[u32; CHUNK], factors: &mut [f32; CHUNK]) -> bool {
        let mut any = 0;
        for i in 0..CHUNK {
            let bucket = buckets[i] as usize % BUCKETS;
            let (kept, dropped) = (self.kept[bucket], self.dropped[bucket]);
            factors[i] = if numbers[i] < kept { 1.0 } else { 0.0 };
            any |= u32::from(numbers[i] >= kept) & u32::from(numbers[i] < dropped);
        }
        any != 0
    }

    /// Notes elements that are not decided.
    #[inline(always)]
    fn note(&self, buckets: &[u32; CHUNK], numbers: &[u32; CHUNK], start: usize, undecided: &mut Vec<usize>) {
        for i in 0..CHUNK {
            let bucket = buckets[i] as usize % BUCKETS;
            if (self.kept[bucket]..self.dropped[bucket]).contains(&numbers[i]) {
                undecided.push(start + i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept, by sorting.
    fn by_sorting(ranked: &Ranked, change: &[f32], numbers: &[u32]) -> Vec<bool> {
        let magnitudes: Vec<u32> = change.iter().map(|x| x.to_bits() & 0x7fff_ffff).collect();
        let mut sorted = magnitudes.clone();
        sorted.sort_unstable();
        let low = threshold(ranked.density - ranked.epsilon) as u32;
        let high = threshold(ranked.density + ranked.epsilon) as u32;
        let (spread, last) = (u64::from((high - low).max(1)), change.len() as u64 - 1);
        let is_kept = |(magnitude, number): (&u32, &u32)| {
            let first = sorted.partition_point(|other| other < magnitude) as u64;
            let behind = sorted.partition_point(|other| other <= magnitude) as u64;
            let is_above = || (first + behind - 1) * spread > 2 * u64::from(*number - low) * last;
            *number < low || (*number < high && is_above())
        };
        magnitudes.iter().zip(numbers).map(is_kept).collect()
    }

    /// Rows whose magnitudes are spread, alike, equal, far apart, or not numbers.
    fn row(kind: usize, length: usize) -> Vec<f32> {
        let mut bits = vec![0u32; length];
        Key::new(kind as u64, "row", length).fill(0, &mut bits);
        let number = |bits: u32| (bits >> 8) as f32 / 8_388_608.0 - 1.0;
        let each = |bits: u32| match kind {
            0 => number(bits),
            1 => 1.0 + number(bits) / 1e4,
            2 => (number(bits) * 4.0).round() / 8.0,
            3 => number(bits) * 2f32.powi((bits % 200) as i32 - 100),
            4 if bits.is_multiple_of(50) => f32::NAN,
            4 => number(bits),
            _ => f32::from_bits(number(bits).to_bits() & 0xffff_0000),
        };
        bits.into_iter().map(each).collect()
    }

    #[test]
    fn what_is_kept_is_what_sorting_keeps() {
        for kind in 0..6 {
            for length in [2, 3, 15, 16, 17, 100, 1000, 5003] {
                for (density, epsilon) in [(0.5, 0.15), (0.9, 0.05), (0.3, 0.29), (0.4, 0.0), (0.02, 0.019)] {
                    let change = row(kind, length);
                    let rows = Rows { length, stride: 1 };
                    let key = Key::new(1, "w", kind);
                    let ranked = Ranked { key, density, epsilon, rows, by_probability: false };
                    let mut numbers = vec![0; length];
                    key.fill(7, &mut numbers);
                    let factors = ranked.factors(7, &change);
                    let expected = by_sorting(&ranked, &change, &numbers);
                    for (index, (factor, expected)) in factors.iter().zip(expected).enumerate() {
                        // What is zero may be dropped or kept.
                        let is_kept = if change[index] == 0.0 { expected } else { *factor == 1.0 };
                        assert_eq!(is_kept, expected, "kind {kind}, {length}, {density}, {epsilon}: {index}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_along_dimension_one_are_apart() {
        let (length, stride) = (37, 9);
        let key = Key::new(2, "conv", 0);
        let rows = Rows::of(&[2, length as u64, 3, 3]);
        assert_eq!((rows, rows.unit()), (Rows { length, stride }, length * stride));
        let ranked = Ranked { key, density: 0.5, epsilon: 0.3, rows, by_probability: false };
        let change = row(0, 2 * rows.unit());
        let mut numbers = vec![0; change.len()];
        key.fill(0, &mut numbers);
        let factors = ranked.factors(0, &change);
        for first in (0..2).flat_map(|slice| (0..stride).map(move |offset| slice * length * stride + offset)) {
            let along: Vec<usize> = (0..length).map(|i| first + i * stride).collect();
            let change: Vec<f32> = along.iter().map(|i| change[*i]).collect();
            let numbers: Vec<u32> = along.iter().map(|i| numbers[*i]).collect();
            let kept: Vec<bool> = along.iter().map(|i| factors[*i] == 1.0).collect();
            assert_eq!(kept, by_sorting(&ranked, &change, &numbers), "the row at {first}");
        }
    }
}
