//! Order statistics, exact, in a few passes and little memory.
//!
//! A sample says in which range of magnitudes the wanted element lies. A pass counts what is below the range and puts
//! what is in it into buckets; the bucket that holds the wanted rank is the next range, until all its elements are equal.
//! Magnitudes are compared as the bits of an f32 without its sign, so NaN is the largest.

use super::data::{Block, Data};
use crate::dtype::vector::{self, Loop};
use crate::error::Result;

/// Elements in the sample.
const SAMPLE: u64 = 1 << 16;
/// Ranks to each side of the sample's guess that the first range takes in, beyond what chance explains: elements that
/// are near each other are alike.
const MARGIN: f64 = 0.012;
/// Buckets of a range.
const BUCKETS: usize = 4096;
/// Elements per tile: large against the buckets that a tile fills.
const TILE: u64 = 1 << 20;
/// All bits but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Elements that are looked at together for any in the range.
const CHUNK: usize = 32;

/// Looking for the element of one rank of one quantity.
struct Search {
    quantity: usize,
    rank: u64,
    low: u32,
    high: u32,
    found: Option<u32>,
}

/// What a tile has in a search's range.
struct Counts {
    below: u64,
    buckets: Vec<Bucket>,
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

    /// Takes a pass's counts in.
    fn narrow(&mut self, counts: &Counts) {
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

struct Count<'a> {
    values: &'a [f32],
    low: u32,
    high: u32,
    shift: u32,
    counts: &'a mut Counts,
}

impl Loop for Count<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { values, low, high, shift, counts } = self;
        let width = high - low;
        for chunk in values.chunks(CHUNK) {
            let mut below = 0u32;
            let mut inside = 0u32;
            for value in chunk {
                let bits = value.to_bits() & MAGNITUDE;
                below += u32::from(bits < low);
                inside += u32::from(bits.wrapping_sub(low) <= width);
            }
            counts.below += u64::from(below);
            if inside > 0 {
                for value in chunk {
                    let bits = value.to_bits() & MAGNITUDE;
                    let offset = bits.wrapping_sub(low);
                    if offset <= width {
                        let bucket = &mut counts.buckets[(offset >> shift) as usize];
                        bucket.count += 1;
                        bucket.least = bucket.least.min(bits);
                        bucket.most = bucket.most.max(bits);
                    }
                }
            }
        }
    }
}

impl Data<'_> {
    /// As [`select`], of this tensor alone.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn select(&self, ranks: &[Vec<u64>], values: impl Fn(&mut Block<'_>) + Sync) -> Result<Vec<Vec<f32>>> {
        select(std::slice::from_ref(self), ranks, values)
    }
}

/// The magnitudes at given ranks among the elements of some tensors, 0 being the least: `ranks[q]` are those of the
/// quantity that `values` leaves in input `q` of a block. Ranks beyond the last element are the last's; those among no
/// elements at all are NaN's.
///
/// # Errors
/// As [`Data::fold`].
pub fn select(
    tensors: &[Data<'_>],
    ranks: &[Vec<u64>],
    values: impl Fn(&mut Block<'_>) + Sync,
) -> Result<Vec<Vec<f32>>> {
    let elements: u64 = tensors.iter().map(Data::elements).sum();
    let Some(last) = elements.checked_sub(1) else {
        return Ok(ranks.iter().map(|ranks| vec![f32::NAN; ranks.len()]).collect());
    };
    let mut searches: Vec<Search> = Vec::new();
    for (quantity, ranks) in ranks.iter().enumerate() {
        let search = |&rank: &u64| Search { quantity, rank: rank.min(last), low: 0, high: MAGNITUDE, found: None };
        searches.extend(ranks.iter().map(search));
    }
    if elements > 4 * SAMPLE && !searches.is_empty() {
        guess(tensors, &mut searches, ranks.len(), &values)?;
    }
    loop {
        let open: Vec<usize> = (0..searches.len()).filter(|&i| searches[i].found.is_none()).collect();
        if open.is_empty() {
            break;
        }
        let start =
            || -> Vec<Counts> { open.iter().map(|_| Counts { below: 0, buckets: vec![EMPTY; BUCKETS] }).collect() };
        let visit = |counts: &mut Vec<Counts>, block: &mut Block<'_>| {
            values(block);
            for (&index, counts) in open.iter().zip(counts) {
                let search = &searches[index];
                let (low, high, shift) = (search.low, search.high, search.shift());
                vector::run(Count { values: &block.inputs[search.quantity], low, high, shift, counts });
            }
        };
        let mut total = start();
        let mut combine = |tile: Vec<Counts>| {
            for (total, tile) in total.iter_mut().zip(tile) {
                total.below += tile.below;
                for (total, bucket) in total.buckets.iter_mut().zip(tile.buckets) {
                    total.count += bucket.count;
                    total.least = total.least.min(bucket.least);
                    total.most = total.most.max(bucket.most);
                }
            }
        };
        for tensor in tensors {
            tensor.fold(TILE, start, visit, &mut combine)?;
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
    values: &impl Fn(&mut Block<'_>),
) -> Result<()> {
    let elements: u64 = tensors.iter().map(Data::elements).sum();
    let mut samples: Vec<Vec<u32>> = vec![Vec::new(); quantities];
    for tensor in tensors {
        // Each tensor has its share of the sample.
        let share = (SAMPLE as f64 * tensor.elements() as f64 / elements as f64).ceil() as u64;
        tensor.sample(share, |block| {
            values(block);
            for (sample, values) in samples.iter_mut().zip(block.inputs.iter()) {
                sample.extend(values.iter().map(|value| value.to_bits() & MAGNITUDE));
            }
        })?;
    }
    samples.iter_mut().for_each(|sample| sample.sort_unstable());
    for search in searches {
        let sample = &samples[search.quantity];
        let size = sample.len() as f64;
        let share = search.rank as f64 / elements as f64;
        let margin = size * MARGIN + 4.0 * (size * share * (1.0 - share)).sqrt();
        let at = share * size;
        let value = |position: f64| sample.get(position as usize).copied();
        search.low = if at < margin { 0 } else { value(at - margin).unwrap_or(0) };
        search.high = value(at + margin).unwrap_or(MAGNITUDE);
    }
    Ok(())
}
