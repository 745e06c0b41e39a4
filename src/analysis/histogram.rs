//! How many elements of task vectors fall into each of some ranges of equal width.

use super::elements::Elements;
use super::place::natural;
use super::similarity::By;
use super::vectors::Vectors;
use crate::dtype::Simd;
use crate::error::{Bytes, Error, Result};
use crate::stream::{self, Control, Settings, TILE};

/// Bytes that the results of the tiles in work may take together.
const RESULTS: usize = 8 << 20;
/// Bytes that all counts may take.
const MOST: Bytes = Bytes(1 << 30);

/// How many elements of a model are in each range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Those from each edge to the next, the last edge's included. What is beyond the ends is in the first and the last.
    pub counts: Vec<u64>,
    /// How many of them are below the first edge.
    pub below: u64,
    /// How many are above the last.
    pub above: u64,
}

impl Counted {
    fn new(bins: usize) -> Self {
        Self { counts: vec![0; bins], below: 0, above: 0 }
    }

    fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.below += other.below;
        self.above += other.above;
    }

    /// Counts the elements that are finite.
    fn count(&mut self, values: &[f64], edges: &[f64]) {
        let [low, .., high] = *edges else { return };
        let (bins, scale) = (self.counts.len(), self.counts.len() as f64 / (high - low));
        for &x in values.iter().filter(|x| x.is_finite()) {
            // The edges decide; the product only says where to look.
            let mut bin = (((x - low) * scale).max(0.0) as usize).min(bins - 1);
            if x < edges[bin] {
                self.below += u64::from(bin == 0);
                bin = bin.saturating_sub(1);
            } else if x >= edges[bin + 1] {
                self.above += u64::from(x > high);
                bin = (bin + 1).min(bins - 1);
            }
            self.counts[bin] += 1;
        }
    }
}

/// The histograms of several models' task vectors.
#[derive(Clone, Debug)]
pub struct Histograms {
    /// Where ranges begin and end, in ascending order, one more than there are ranges.
    pub edges: Vec<f64>,
    /// Of each model over all tensors.
    pub total: Vec<Counted>,
    /// Over the parts that were asked for, in the natural order of their names.
    pub parts: Vec<(String, Vec<Counted>)>,
}

/// Counts elements in `bins` ranges of equal width from `−end` to `end`, in one pass.
///
/// # Errors
/// [`Error::Recipe`] if there are no ranges, or `end` is no positive number; else as [`stream::measure`].
pub fn histograms(
    vectors: &Vectors<'_>,
    by: By,
    (bins, end): (usize, f64),
    settings: &Settings,
    control: Control<'_>,
) -> Result<Histograms> {
    if bins == 0 || !end.is_finite() || end < f64::MIN_POSITIVE * bins as f64 {
        let message = format!("a histogram of {bins} bins from −{end} to {end} has no bins with a width");
        return Err(Error::Recipe(message));
    }
    let edge = |index: usize| end * ((2.0 * index as f64 - bins as f64) / bins as f64);
    let edges: Vec<f64> = (0..=bins).map(edge).collect();
    let models = vectors.models;
    let (names, part_of) = vectors.parts(by);
    let bytes = Bytes(8 * (bins * models * (names.len() + 1)) as u64);
    if bytes > MOST {
        let message =
            format!("the counts of {} parts would take {bytes}: ask for fewer bins or larger parts", names.len());
        return Err(Error::Recipe(message));
    }
    let mut total = vec![Counted::new(bins); models];
    let mut parts: Vec<(String, Vec<Counted>)> =
        names.into_iter().map(|name| (name.to_owned(), total.clone())).collect();
    let simd = Simd::detect();
    let window = (RESULTS / (8 * bins * models).max(1)).clamp(2 * settings.threads(), 256);
    stream::fold(
        &vectors.groups(),
        TILE,
        window,
        settings,
        control,
        |group, inputs| {
            let mut counted = vec![Counted::new(bins); models];
            let mut elements = Elements::of(simd, &vectors.tensors[group]);
            elements.each(inputs, |_| (), |model, values| counted[model].count(values, &edges));
            counted
        },
        |group, counted| {
            total.iter_mut().zip(&counted).for_each(|(sum, tile)| sum.add(tile));
            if let Some(part) = part_of[group] {
                parts[part].1.iter_mut().zip(&counted).for_each(|(sum, tile)| sum.add(tile));
            }
        },
    )?;
    parts.sort_by(|(a, _), (b, _)| natural(a, b));
    Ok(Histograms { edges, total, parts })
}

#[cfg(test)]
mod tests {
    use super::Counted;

    #[test]
    fn edges_belong_to_the_range_that_begins_there() {
        let edges = [-1.5, -0.5, 0.5, 1.5];
        let mut counted = Counted::new(3);
        counted.count(&[-1.5, -0.5, 0.5, 1.5, 0.0, -0.0, 0.49999999999999994, f64::NAN, f64::INFINITY], &edges);
        assert_eq!(counted, Counted { counts: vec![1, 4, 2], below: 0, above: 0 });
        counted.count(&[-1.6, f64::MIN, 1.500000001, f64::MAX, 5e-324], &edges);
        assert_eq!(counted, Counted { counts: vec![3, 5, 4], below: 2, above: 2 });
    }
}
