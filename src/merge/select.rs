//! Order statistics, exact, in a few passes and little memory.
//!
//! A sample says in which range of magnitudes the wanted element lies. A pass counts what is below the range and puts
//! what is in it into buckets; the bucket that holds the wanted rank is the next range, until all its elements are equal.
//! Where the sample has one magnitude many times, as in differences of 16-bit floats, the pass only counts what is below
//! and at such magnitudes, which is faster, and is enough if one of them is the answer.
//!
//! Magnitudes are compared as the bits of an f32 without its sign, so NaN is the largest.

use super::data::{Block, Data};
use super::shader::Shader;
use crate::dtype::vector::{self, Loop};
use crate::error::Result;
use rayon::prelude::*;

/// Elements in the sample.
const SAMPLE: u64 = 1 << 16;
/// Ranks to each side of the sample's guess that the first range takes in, beyond what chance explains: elements that
/// are near each other are alike.
const MARGIN: f64 = 0.003;
/// Buckets of a range.
const BUCKETS: usize = 1024;
/// Elements per tile: large against the buckets that a tile fills.
const TILE: u64 = 1 << 17;
/// Tiles in work at a time, for each thread.
const WINDOW: usize = 8;
/// Words that a device makes for a search: how many are below, and the buckets.
const COUNTS: usize = 1 + BUCKETS;
/// All bits but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// A magnitude is common that as many elements of the sample's range have.
const COMMON: usize = 64;
/// With more common magnitudes than this, buckets are cheaper.
const COMMON_MOST: usize = 6;

/// Memory that looking for so many elements at a time takes in each thread.
pub(super) fn memory(searches: usize) -> u64 {
    (WINDOW * BUCKETS * size_of::<Bucket>() * searches) as u64
}

/// Looking for the element of one rank of one quantity.
struct Search {
    quantity: usize,
    rank: u64,
    low: u32,
    high: u32,
    /// Magnitudes in the range that many elements have, in ascending order: guesses that cost little to check.
    common: Vec<u32>,
    found: Option<u32>,
}

/// What a tile has in a search's range.
struct Counts {
    below: u64,
    buckets: Vec<Bucket>,
    /// How many elements are below and at each common magnitude.
    common: Vec<(u64, u64)>,
}

#[derive(Clone, Copy)]
struct Bucket {
    count: u64,
    least: u32,
    most: u32,
}

const EMPTY: Bucket = Bucket { count: 0, least: u32::MAX, most: 0 };

impl Search {
    fn shift(&self) -> u32 {
        let width = u64::from(self.high - self.low) + 1;
        let bits = 64 - (width - 1).leading_zeros();
        bits.saturating_sub(BUCKETS.trailing_zeros())
    }

    fn counts(&self) -> Counts {
        let buckets = if self.common.is_empty() { BUCKETS } else { 0 };
        Counts { below: 0, buckets: vec![EMPTY; buckets], common: vec![(0, 0); self.common.len()] }
    }

    /// Takes the counts of a pass over common magnitudes in.
    fn check(&mut self, counts: &Counts) {
        for (magnitude, (below, equal)) in std::mem::take(&mut self.common).into_iter().zip(&counts.common) {
            if self.rank < *below {
                self.high = magnitude - 1;
                break;
            }
            if self.rank < below + equal {
                self.found = Some(magnitude);
                break;
            }
            self.low = magnitude.saturating_add(1).min(MAGNITUDE);
        }
        // What lies outside of the sample's range is not known to be wrong yet: the next pass tells.
        self.high = self.high.max(self.low);
    }

    /// Takes a pass's counts in.
    fn narrow(&mut self, counts: &Counts) {
        if !self.common.is_empty() {
            return self.check(counts);
        }
        let mut below = counts.below;
        if self.rank < below {
            (self.low, self.high) = (0, self.low.saturating_sub(1));
            return;
        }
        for bucket in counts.buckets.iter().filter(|bucket| bucket.count > 0) {
            if self.rank < below + bucket.count {
                (self.low, self.high) = (bucket.least, bucket.most);
                self.found = (self.low == self.high).then_some(self.low);
                return;
            }
            below += bucket.count;
        }
        (self.low, self.high) = ((self.high + 1).min(MAGNITUDE), MAGNITUDE);
    }
}

/// Counts what is below and at a few magnitudes.
struct CountCommon<'a> {
    values: &'a [f32],
    common: &'a [u32],
    counts: &'a mut [(u64, u64)],
}

impl Loop for CountCommon<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (&magnitude, counts) in self.common.iter().zip(self.counts) {
            let (mut below, mut equal) = (0u32, 0u32);
            for value in self.values {
                let bits = value.to_bits() & MAGNITUDE;
                below += u32::from(bits < magnitude);
                equal += u32::from(bits == magnitude);
            }
            counts.0 += u64::from(below);
            counts.1 += u64::from(equal);
        }
    }
}

impl Counts {
    /// Those that a device has counted: below the range, then in each bucket, of whose elements the bounds are known.
    fn of_device(counts: &[u8], (low, high, shift): (u32, u32, u32)) -> Self {
        let (counts, _) = counts.as_chunks::<{ size_of::<u32>() }>();
        let mut counts = counts.iter().map(|count| u64::from(u32::from_le_bytes(*count)));
        let below = counts.next().unwrap_or(0);
        let bucket = |(index, count): (usize, u64)| {
            let first = u64::from(low) + ((index as u64) << shift);
            let last = (first + (1 << shift) - 1).min(u64::from(high));
            if count == 0 { EMPTY } else { Bucket { count, least: first as u32, most: last as u32 } }
        };
        Self { below, buckets: counts.enumerate().map(bucket).collect(), common: Vec::new() }
    }

    /// Counts what is below the range and puts what is in it into buckets.
    fn count(&mut self, values: &[f32], low: u32, high: u32, shift: u32) {
        let buckets = &mut self.buckets;
        self.below += vector::visit_magnitudes(values, low, high, |magnitude| {
            let bucket = &mut buckets[((magnitude - low) >> shift) as usize];
            bucket.count += 1;
            bucket.least = bucket.least.min(magnitude);
            bucket.most = bucket.most.max(magnitude);
        });
    }
}

impl Data<'_> {
    /// As [`select`], of this tensor alone.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn select(
        &self,
        ranks: &[Vec<u64>],
        shader: impl Fn() -> Shader,
        values: impl Fn(&mut Block<'_>) + Sync,
    ) -> Result<Vec<Vec<f32>>> {
        select(std::slice::from_ref(self), ranks, shader, values)
    }
}

/// The magnitudes at given ranks among the elements of some tensors, 0 being the least: `ranks[q]` are those of the
/// quantity that `values` leaves in input `q` of a block, and that `shader` computes. Ranks beyond the last element are the last's; those among no
/// elements at all are NaN's.
///
/// # Errors
/// As [`Data::fold`].
pub fn select(
    tensors: &[Data<'_>],
    ranks: &[Vec<u64>],
    shader: impl Fn() -> Shader,
    values: impl Fn(&mut Block<'_>) + Sync,
) -> Result<Vec<Vec<f32>>> {
    let elements: u64 = tensors.iter().map(Data::elements).sum();
    let Some(last) = elements.checked_sub(1) else {
        return Ok(ranks.iter().map(|ranks| vec![f32::NAN; ranks.len()]).collect());
    };
    let mut searches: Vec<Search> = Vec::new();
    for (quantity, ranks) in ranks.iter().enumerate() {
        searches.extend(ranks.iter().map(|&rank| Search {
            quantity,
            rank: rank.min(last),
            low: 0,
            high: MAGNITUDE,
            common: Vec::new(),
            found: None,
        }));
    }
    if elements > 4 * SAMPLE && !searches.is_empty() {
        guess(tensors, &mut searches, ranks.len(), &values)?;
    }
    if tensors.iter().any(|tensor| tensor.device().is_some()) {
        // Devices count in buckets only.
        searches.iter_mut().for_each(|search| search.common.clear());
    }
    loop {
        let open: Vec<usize> = (0..searches.len()).filter(|&i| searches[i].found.is_none()).collect();
        if open.is_empty() {
            break;
        }
        let start = || -> Vec<Counts> { open.iter().map(|&index| searches[index].counts()).collect() };
        let visit = |counts: &mut Vec<Counts>, block: &mut Block<'_>| {
            values(block);
            for (&index, counts) in open.iter().zip(counts) {
                let search = &searches[index];
                let values = &block.inputs[search.quantity][..];
                let (low, high, shift) = (search.low, search.high, search.shift());
                if search.common.is_empty() && low == high {
                    let mut at = [(0, 0)];
                    vector::run(CountCommon { values, common: &[low], counts: &mut at });
                    counts.below += at[0].0;
                    counts.buckets[0].count += at[0].1;
                    (counts.buckets[0].least, counts.buckets[0].most) = (low, low);
                } else if search.common.is_empty() {
                    counts.count(values, low, high, shift);
                } else {
                    vector::run(CountCommon { values, common: &search.common, counts: &mut counts.common });
                }
            }
        };
        let mut total = start();
        let mut combine = |tile: Vec<Counts>| {
            for (total, tile) in total.iter_mut().zip(tile) {
                total.below += tile.below;
                for (total, tile) in total.common.iter_mut().zip(tile.common) {
                    *total = (total.0 + tile.0, total.1 + tile.1);
                }
                for (total, bucket) in total.buckets.iter_mut().zip(tile.buckets) {
                    total.count += bucket.count;
                    total.least = total.least.min(bucket.least);
                    total.most = total.most.max(bucket.most);
                }
            }
        };
        let ranges: Vec<(u32, u32, u32)> =
            open.iter().map(|&i| (searches[i].low, searches[i].high, searches[i].shift())).collect();
        let table = || {
            let search = |(&index, &(low, high, shift)): (&usize, &(u32, u32, u32))| {
                [searches[index].quantity as u32, low, high, shift]
            };
            open.iter().zip(&ranges).flat_map(search).collect::<Vec<_>>()
        };
        let read = |out: &[u8]| -> Vec<Counts> {
            let counts = out.chunks(COUNTS * size_of::<u32>());
            counts.zip(&ranges).map(|(counts, range)| Counts::of_device(counts, *range)).collect()
        };
        for tensor in tensors {
            let device = tensor.counts(|| shader().words(table()), open.len() as u64, COUNTS as u64, read);
            tensor.fold_on(device, TILE, WINDOW, start, visit, &mut combine)?;
        }
        for (&index, counts) in open.iter().zip(&total) {
            searches[index].narrow(counts);
        }
    }
    let mut found: Vec<Vec<f32>> = vec![Vec::new(); ranks.len()];
    for search in &searches {
        found[search.quantity].push(f32::from_bits(search.found.unwrap_or(0)));
    }
    Ok(found)
}

/// Narrows the searches to what a sample makes likely.
fn guess(
    tensors: &[Data<'_>],
    searches: &mut [Search],
    quantities: usize,
    values: &(impl Fn(&mut Block<'_>) + Sync),
) -> Result<()> {
    let elements: u64 = tensors.iter().map(Data::elements).sum();
    let mut samples: Vec<Vec<u32>> = vec![Vec::new(); quantities];
    for tensor in tensors {
        // Each tensor has its share of the sample.
        let share = (SAMPLE as f64 * tensor.elements() as f64 / elements as f64).ceil() as u64;
        let parts = tensor.sample(share, |block| {
            values(block);
            let magnitudes =
                |values: &Vec<f32>| -> Vec<u32> { values.iter().map(|x| x.to_bits() & MAGNITUDE).collect() };
            block.inputs[..quantities].iter().map(magnitudes).collect::<Vec<_>>()
        })?;
        for part in parts {
            samples.iter_mut().zip(part).for_each(|(sample, part)| sample.extend(part));
        }
    }
    searches.par_iter_mut().for_each(|search| search.guess(samples[search.quantity].clone(), elements));
    Ok(())
}

impl Search {
    /// Narrows the search to what the magnitudes of a sample of all `elements` make likely.
    fn guess(&mut self, mut sample: Vec<u32>, elements: u64) {
        let size = sample.len() as f64;
        let share = self.rank as f64 / elements as f64;
        let margin = size * MARGIN + 3.0 * (size * share * (1.0 - share)).sqrt();
        let at = share * size;
        let first = (at - margin).max(0.0) as usize;
        let behind = ((at + margin) as usize + 1).min(sample.len());
        if first >= behind {
            return;
        }
        // Only what lies between the two is put in order.
        sample.select_nth_unstable(first);
        let range = &mut sample[first..];
        if behind - first < range.len() {
            range.select_nth_unstable(behind - first);
        }
        let range = &mut range[..behind - first];
        range.sort_unstable();
        self.low = if at < margin { 0 } else { range[0] };
        self.high = if at + margin < size { range[range.len() - 1] } else { MAGNITUDE };
        let common = range.chunk_by(|a, b| a == b).filter(|run| run.len() >= COMMON).map(|run| run[0]);
        self.common = common.take(COMMON_MOST + 1).collect();
        if self.common.len() > COMMON_MOST {
            self.common.clear();
        }
    }
}
