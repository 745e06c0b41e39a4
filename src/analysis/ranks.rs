//! The elements of given ranks, exact, without holding all elements.
//!
//! Counts of [buckets](super::buckets) tell in which one the element of a rank is. The next pass keeps the elements of
//! that bucket, if they are few; if not, it counts them in finer buckets of their bits, and keeps those about where the
//! element should be if the bucket were evenly filled. That finds nearly all after two passes, however many elements there
//! are, and leaves the rest a range a thousand times smaller for the next.

use super::buckets::{BUCKETS, key, keys_of, number};
use super::moments::Moments;

/// Keys that are held at a time, of all models: 8 MiB.
const KEYS: usize = 1 << 20;
/// Finer buckets of a range: so many that each holds one number at the most where numbers are differences of F16. With very
/// many ranges they are fewer, so that all take 12 MiB.
const FINER: usize = 4096;
const FINER_LEAST: usize = 256;
const FINER_OF_ALL: usize = 1 << 19;

/// Looking for the element of a rank among one model's.
#[derive(Clone, Debug)]
pub(super) struct Search {
    model: usize,
    /// 0 is the least element's.
    rank: u64,
    found: Option<u64>,
    range: Range,
}

/// Keys that lie together, with the element looked for among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) low: u64,
    pub(super) high: u64,
    /// How many elements are below it, and in it.
    below: u64,
    pub(super) count: u64,
}

/// The ranks on both sides of each quantile, and how far it is from the first to the second: as numpy's `linear`, which
/// is type 7 of Hyndman and Fan (1996, <https://doi.org/10.1080/00031305.1996.10473566>), h = (n − 1)·q.
fn sides(count: u64, level: f64) -> ([u64; 2], f64) {
    let last = count.saturating_sub(1);
    let place = last as f64 * level;
    let rank = (place.floor() as u64).min(last);
    ([rank, (rank + 1).min(last)], place - place.floor())
}

/// Between two numbers, in numpy's steps, so that not a bit differs.
fn between(a: f64, b: f64, share: f64) -> f64 {
    let step = b - a;
    if !step.is_finite() {
        return a * (1.0 - share) + b * share;
    }
    if share >= 0.5 { b - step * (1.0 - share) } else { a + step * share }
}

/// The quantiles of numbers of which `at` tells the one of a rank; none of no numbers.
fn quantiles(count: u64, levels: &[f64], at: impl Fn(u64) -> f64) -> Vec<f64> {
    let quantile = |level: &f64| {
        let ([rank, next], share) = sides(count, *level);
        between(at(rank), at(next), share)
    };
    if count == 0 { Vec::new() } else { levels.iter().map(quantile).collect() }
}

/// The quantiles of some numbers, which are put in order.
pub(super) fn quantiles_of(values: &mut [f64], levels: &[f64]) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    quantiles(values.len() as u64, levels, |rank| values[rank as usize] + 0.0)
}

/// What has to be found for the quantiles of a model's elements, of which the buckets have these counts.
pub(super) fn searches(model: usize, levels: &[f64], counts: &[u64], moments: &Moments) -> Vec<Search> {
    let mut ranks: Vec<u64> = levels.iter().flat_map(|level| sides(moments.count, *level).0).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let zero = key(0.0);
    let ends = (key(moments.min), key(moments.max));
    let (mut buckets, mut below) = (counts.iter().enumerate(), 0);
    let mut current: Option<Range> = None;
    let mut search = |rank: u64| {
        let mut range = match current {
            Some(range) if rank < range.below + range.count => range,
            _ => loop {
                let Some((bucket, &count)) = buckets.next() else {
                    break Range { low: ends.1, high: ends.1, below, count: 0 };
                };
                if rank < below + count {
                    let (low, high) = keys_of(bucket, ends);
                    let range = Range { low, high, below, count };
                    below += count;
                    break range;
                }
                below += count;
            },
        };
        current = Some(range);
        if range.low <= zero && zero <= range.high && range.count == moments.zeros {
            (range.low, range.high) = (zero, zero);
        }
        Search { model, rank, found: (range.low == range.high).then_some(range.low), range }
    };
    if moments.count == 0 { Vec::new() } else { ranks.into_iter().map(&mut search).collect() }
}

/// The quantiles that these searches of one model's were for.
pub(super) fn found(searches: &[Search], model: usize, levels: &[f64], count: u64) -> Vec<f64> {
    let of_model: Vec<&Search> = searches.iter().filter(|search| search.model == model).collect();
    quantiles(count, levels, |rank| {
        let at = of_model.binary_search_by_key(&rank, |search| search.rank);
        at.ok().and_then(|at| of_model[at].found).map_or(f64::NAN, number)
    })
}

/// Whether there is nothing left to find.
pub(super) fn is_done(searches: &[Search]) -> bool {
    searches.iter().all(|search| search.found.is_some())
}

/// The ranges that a pass has to look at, each once, with the model it belongs to.
pub(super) fn ranges(searches: &[Search]) -> Vec<(usize, Range)> {
    let open = searches.iter().filter(|search| search.found.is_none());
    let mut ranges: Vec<(usize, Range)> = open.map(|search| (search.model, search.range)).collect();
    ranges.dedup();
    ranges
}

/// What a pass finds in some ranges.
pub(super) struct Finds(Vec<Find>);

/// What a pass finds in a range.
struct Find {
    model: usize,
    range: Range,
    /// Of the keys from the first to the second, those that were met; none if they were too many.
    kept: (u64, u64),
    keys: Option<Vec<u64>>,
    most: usize,
    shift: u32,
    finer: Vec<Finer>,
}

#[derive(Clone, Copy)]
struct Finer {
    count: u64,
    least: u64,
    most: u64,
}

impl Finds {
    /// Nothing yet, for [`ranges`] of the same searches.
    pub(super) fn new(searches: &[Search]) -> Self {
        let ranges = ranges(searches);
        let most = KEYS / ranges.len().max(1);
        let buckets = (FINER_OF_ALL / ranges.len().max(1)).clamp(FINER_LEAST, FINER);
        let buckets = 1usize << buckets.ilog2();
        let find = |&(model, range): &(usize, Range)| {
            let few = range.count <= most as u64;
            let width = range.high - range.low;
            let kept = if few {
                (range.low, range.high)
            } else {
                let sought = searches.iter().find(|search| search.model == model && search.range == range);
                let place = sought.map_or(0.0, |search| (search.rank - range.below) as f64 / range.count as f64);
                // So wide that about half of what may be kept is expected.
                let half = most as f64 / 4.0 / range.count as f64;
                let at = |share: f64| range.low + (share.clamp(0.0, 1.0) * width as f64) as u64;
                (at(place - half), at(place + half).min(range.high))
            };
            let bits = u64::BITS - width.leading_zeros();
            let shift = bits.saturating_sub(buckets.trailing_zeros());
            let finer = vec![Finer { count: 0, least: u64::MAX, most: 0 }; if few { 0 } else { buckets }];
            Find { model, range, kept, keys: Some(Vec::new()), most, shift, finer }
        };
        Self(ranges.iter().map(find).collect())
    }

    /// That `count` elements of a range have a key.
    pub(super) fn add(&mut self, range: usize, key: u64, count: u32) {
        let find = &mut self.0[range];
        if find.kept.0 <= key && key <= find.kept.1 {
            let more = count as usize;
            match &mut find.keys {
                Some(keys) if keys.len() + more <= find.most => keys.extend(std::iter::repeat_n(key, more)),
                keys => *keys = None,
            }
        }
        if let Some(finer) = find.finer.get_mut(((key - find.range.low) >> find.shift) as usize) {
            finer.count += u64::from(count);
            finer.least = finer.least.min(key);
            finer.most = finer.most.max(key);
        }
    }

    /// Takes what was found in.
    pub(super) fn narrow(mut self, searches: &mut [Search]) {
        self.0.iter_mut().filter_map(|find| find.keys.as_mut()).for_each(|keys| keys.sort_unstable());
        for search in searches.iter_mut().filter(|search| search.found.is_none()) {
            let is_its = |find: &&Find| find.model == search.model && find.range == search.range;
            if let Some(find) = self.0.iter().find(is_its) {
                find.narrow(search);
            }
        }
    }
}

impl Find {
    fn narrow(&self, search: &mut Search) {
        let mut range = self.range;
        if !self.finer.is_empty() {
            let (mut below, mut holds) = (range.below, None);
            for finer in self.finer.iter().filter(|finer| finer.count > 0) {
                if search.rank < below + finer.count {
                    holds = Some(Range { low: finer.least, high: finer.most, below, count: finer.count });
                    break;
                }
                below += finer.count;
            }
            range = holds.unwrap_or(range);
        }
        search.range = range;
        if range.low == range.high {
            search.found = Some(range.low);
        } else if let Some(keys) = &self.keys
            && self.kept.0 <= range.low
            && range.high <= self.kept.1
        {
            let first = keys.partition_point(|key| *key < range.low);
            search.found = keys.get(first + (search.rank - range.below) as usize).copied();
        }
    }
}

/// Room for the counts of all buckets.
pub(super) fn no_counts() -> Vec<u64> {
    vec![0; BUCKETS]
}

#[cfg(test)]
mod tests {
    use super::{Finds, Moments, found, is_done, no_counts, quantiles_of, ranges, searches};
    use crate::analysis::buckets::Counts;
    use crate::analysis::elements::BLOCK;

    const LEVELS: [f64; 9] = [0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0];

    /// The quantiles as passes find them, and how many passes there were.
    fn by_passes(values: &[f64]) -> (Vec<f64>, usize) {
        let (mut counts, mut sums, mut moments) = (Counts::new(), no_counts(), Moments::default());
        for block in values.chunks(BLOCK) {
            counts.add(block, &mut [0; BLOCK]);
            moments = moments.and(&Moments::of(&mut block.to_vec()).0);
        }
        counts.drain_into(&mut sums);
        let mut sought = searches(0, &LEVELS, &sums, &moments);
        let mut passes = 1;
        while !is_done(&sought) {
            let (open, mut finds) = (ranges(&sought), Finds::new(&sought));
            for key in values.iter().map(|x| super::key(*x)) {
                for (index, (_, range)) in open.iter().enumerate() {
                    if range.low <= key && key <= range.high {
                        finds.add(index, key, 1);
                    }
                }
            }
            finds.narrow(&mut sought);
            passes += 1;
            assert!(passes < 9, "the search goes on for ever");
        }
        (found(&sought, 0, &LEVELS, moments.count), passes)
    }

    /// Numbers without an order, from 0 to 1.
    fn noise(count: u64) -> impl Iterator<Item = f64> {
        (1..=count).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64)
    }

    #[test]
    fn passes_find_what_sorting_does() {
        let normal = |x: f64| (x - 0.5).powi(3) * 1e-3;
        let cases: [(&str, Vec<f64>, usize); 8] = [
            ("even", noise(50_000).collect(), 2),
            ("dense about zero", noise(50_000).map(normal).collect(), 2),
            ("beside a large mean", noise(2_000_000).map(|x| 1000.0 + x * 1e-3).collect(), 3),
            ("few values", noise(50_000).map(|x| (x * 5.0).floor()).collect(), 2),
            ("mostly zero", noise(50_000).map(|x| if x < 0.999 { -0.0 } else { x }).collect(), 2),
            ("constant", vec![0.1; 3000], 1),
            ("all sizes", noise(3_000_000).map(|x| 1e-300 * 10f64.powf(x * 250.0)).collect(), 3),
            ("ends", [-1e300, 1e300, f64::MAX, f64::MIN, 5e-324].into_iter().cycle().take(3000).collect(), 2),
        ];
        for (name, mut values, most) in cases {
            let (quantiles, passes) = by_passes(&values);
            assert_eq!(quantiles, quantiles_of(&mut values, &LEVELS), "{name}");
            assert!(passes <= most, "{name} took {passes} passes");
        }
        assert_eq!(by_passes(&[]).0, Vec::<f64>::new());
        assert_eq!(by_passes(&[2.5]).0, [2.5; 9]);
    }
}
