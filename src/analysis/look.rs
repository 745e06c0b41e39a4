//! Picks the elements out of tiles that lie in ranges of numbers: few of many.

use super::buckets::{Places, Table, bucket_of, find_marked, key};
use super::elements::BLOCK;
use super::ranks::Range;
use crate::dtype::vector;

/// Elements that were met in a range that is looked at.
pub(super) struct Hit {
    pub(super) range: u32,
    pub(super) count: u32,
    pub(super) key: u64,
}

/// Where a pass looks: the ranges of a part or of all of it.
pub(super) type Ranges = Vec<(usize, Range)>;

/// Looks for elements in ranges.
pub(super) struct Look<'a> {
    /// The ranges of each model with their numbers.
    ranges: Vec<Vec<(u32, &'a Range)>>,
    /// Which buckets of each model have one of the ranges in them.
    buckets: Vec<Table<bool>>,
    /// The last hit in each range.
    last: Vec<usize>,
    hits: Vec<Hit>,
}

impl<'a> Look<'a> {
    /// In the ranges of a part, and behind them in those of the total, with a table for each model that has nothing in it.
    pub(super) fn new(part: &'a Ranges, total: &'a Ranges, tables: Vec<Table<bool>>) -> Self {
        let mut ranges = vec![Vec::new(); tables.len()];
        for (number, (model, range)) in part.iter().chain(total).enumerate() {
            ranges[*model].push((number as u32, range));
        }
        let last = vec![usize::MAX; part.len() + total.len()];
        let mut look = Self { ranges, buckets: tables, last, hits: Vec::new() };
        look.mark(true);
        look
    }

    fn mark(&mut self, is_sought: bool) {
        for (ranges, buckets) in self.ranges.iter().zip(&mut self.buckets) {
            for (_, range) in ranges {
                buckets[bucket_of(range.low)..=bucket_of(range.high)].fill(is_sought);
            }
        }
    }

    /// What was met, and the tables, to be used again.
    pub(super) fn finish(mut self) -> (Vec<Hit>, Vec<Table<bool>>) {
        self.mark(false);
        (self.hits, self.buckets)
    }

    /// Takes the next elements of a model in.
    pub(super) fn at(&mut self, model: usize, values: &[f64]) {
        let (ranges, buckets) = (&self.ranges[model], &self.buckets[model]);
        if ranges.is_empty() {
            return;
        }
        let mut places = [0; BLOCK];
        vector::run(Places { values, places: &mut places });
        let mut marked = [0; BLOCK];
        let count = find_marked(&places[..values.len()], buckets, &mut marked);
        for value in marked[..count].iter().map(|index| &values[usize::from(*index)]).filter(|value| value.is_finite())
        {
            let key = key(*value);
            for (number, _) in ranges.iter().filter(|(_, range)| range.low <= key && key <= range.high) {
                let last = &mut self.last[*number as usize];
                match self.hits.get_mut(*last) {
                    Some(hit) if hit.key == key => hit.count += 1,
                    _ => {
                        *last = self.hits.len();
                        self.hits.push(Hit { range: *number, count: 1, key });
                    }
                }
            }
        }
    }
}
