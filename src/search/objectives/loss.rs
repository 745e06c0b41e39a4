//! The denoising loss, over images with noise at timesteps that are the same for all candidates.
//!
//! `L = mean over (x₀, ε, t) of mean (a(x₀, ε, t) − a_w(x_t, t))²`, with what the network should answer, `a`, such as ε. Timesteps
//! are stratified and antithetic: of M samples over timesteps of total length L one lies in each M-th of it, at a random place, and
//! the samples of the other half mirror those of the first. One evaluation gives the mean over each of several ranges of timesteps.

use super::network::{Candidate, Parts};
use super::{Evaluator, Objective};
use crate::diffusion::schedulers::Noising;
use crate::diffusion::unet::Config;
use crate::diffusion::{Noise, Weights};
use crate::error::{Error, Result};
use crate::merge::Key;
use crate::search::Candidates;
use crate::stream::Control;
use crate::train::Data;
use candle_core::{Device, Tensor};
use std::ops::Range;

/// The draw of the samples' noise.
const NOISE: &str = "noise of samples";

/// Noisy images, and what a network should answer to them.
pub struct Samples {
    batches: Vec<Batch>,
    timesteps: Vec<usize>,
    ranges: Vec<Range<usize>>,
}

struct Batch {
    noisy: Tensor,
    target: Tensor,
    times: Tensor,
}

impl Samples {
    /// So many samples over ranges of timesteps, which may lie in each other; `batch` of them go through a network at a time.
    /// The images are taken in their order, again and again if they are fewer.
    ///
    /// # Errors
    /// [`Error::Recipe`] if a range is none of the model's, or no sample falls into it; as reading images.
    pub fn new(
        data: &Data,
        noising: &Noising,
        ranges: &[Range<usize>],
        count: usize,
        batch: usize,
        seed: u64,
    ) -> Result<Self> {
        let all = noising.timesteps();
        if let Some(wrong) = ranges.iter().find(|range| range.is_empty() || range.end > all) {
            let message =
                format!("timesteps {}..{} are none of the model's, which are 0..{all}", wrong.start, wrong.end);
            return Err(Error::Recipe(message));
        }
        let timesteps = stratified(&union(ranges), count, seed);
        if let Some(empty) = ranges.iter().find(|range| !timesteps.iter().any(|t| range.contains(t))) {
            let (start, end) = (empty.start, empty.end);
            let message = format!("none of {count} samples is in timesteps {start}..{end}: take more --samples");
            return Err(Error::Recipe(message));
        }
        let noise = Noise::new(seed);
        let of_batch = |start: usize| {
            let numbers = start..count.min(start + batch.max(1));
            let images = images(data, numbers.clone())?;
            let noise = noise.tensor(NOISE, numbers.clone(), data.shape(), &Device::Cpu)?;
            let timesteps = timesteps.get(numbers).unwrap_or_default();
            let times: Vec<f32> = timesteps.iter().map(|&timestep| timestep as f32).collect();
            Ok(Batch {
                noisy: noising.noisy(&images, &noise, timesteps)?,
                target: noising.target(&images, &noise, timesteps)?,
                times: Tensor::new(times, &Device::Cpu)?,
            })
        };
        let batches = (0..count).step_by(batch.max(1)).map(of_batch).collect::<Result<_>>()?;
        Ok(Self { batches, timesteps, ranges: ranges.to_vec() })
    }

    /// At which timestep each sample is.
    #[must_use]
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// The mean of the samples' losses in each range.
    fn means(&self, losses: &[f64]) -> Vec<f64> {
        let mean = |range: &Range<usize>| {
            let own = || losses.iter().zip(&self.timesteps).filter(|(_, timestep)| range.contains(timestep));
            let mean = own().map(|(loss, _)| loss).sum::<f64>() / own().count() as f64;
            if mean.is_finite() { mean } else { f64::NAN }
        };
        self.ranges.iter().map(mean).collect()
    }
}

/// Images by number, from the first again behind the last.
fn images(data: &Data, numbers: Range<usize>) -> Result<Tensor> {
    let (mut parts, mut next) = (Vec::new(), numbers.start);
    while next < numbers.end {
        let first = next % data.len().max(1);
        let count = (numbers.end - next).min(data.len() - first).max(1);
        parts.push(data.images(first..first + count)?);
        next += count;
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// The timesteps of all ranges, as ranges in order that do not meet.
fn union(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| range.start);
    let mut union: Vec<Range<usize>> = Vec::new();
    for range in sorted {
        match union.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => union.push(range),
        }
    }
    union
}

/// So many timesteps of some ranges: one in each equal part of them, mirrored in the middle, and in an order that has nothing to do
/// with them.
fn stratified(ranges: &[Range<usize>], count: usize, seed: u64) -> Vec<usize> {
    let length: usize = ranges.iter().map(Range::len).sum();
    let mut words = vec![0u32; 2 * count];
    Key::new(seed, "timesteps of samples", 0).fill(0, &mut words);
    let (jitter, order) = words.split_at(count);
    let place = |part: usize| {
        let mirrored = count - 1 - part;
        let own = part.min(mirrored);
        let share = (jitter.get(own).map_or(0.0, |&word| f64::from(word)) + 0.5) / 4_294_967_296.0;
        let place = (((own as f64 + share) * length as f64 / count as f64) as usize).min(length.saturating_sub(1));
        if part <= mirrored { place } else { length - 1 - place }
    };
    let timestep = |mut place: usize| {
        for range in ranges {
            if place < range.len() {
                return range.start + place;
            }
            place -= range.len();
        }
        0
    };
    let mut parts: Vec<usize> = (0..count).collect();
    parts.sort_by_key(|&part| (order.get(part).copied(), part));
    parts.into_iter().map(|part| timestep(place(part))).collect()
}

/// The loss of candidates.
pub struct Loss<'a> {
    parts: Parts<'a>,
    samples: &'a Samples,
    labels: Vec<String>,
}

impl<'a> Loss<'a> {
    /// Of networks of a configuration whose weights are the base's but where candidates differ.
    #[must_use]
    pub fn new(candidates: &'a Candidates, config: &'a Config, base: &'a Weights, samples: &'a Samples) -> Self {
        let label = |range: &Range<usize>| format!("loss at timesteps {}..{}", range.start, range.end);
        let labels = samples.ranges.iter().map(label).collect();
        Self { parts: Parts { candidates, config, base }, samples, labels }
    }
}

impl Objective for Loss<'_> {
    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn side_by_side(&self, threads: usize) -> usize {
        self.parts.side_by_side(threads)
    }

    fn evaluator(&self) -> Result<Box<dyn Evaluator + '_>> {
        Ok(Box::new(OfOne { candidate: self.parts.candidate()?, samples: self.samples }))
    }
}

struct OfOne<'a> {
    candidate: Candidate<'a>,
    samples: &'a Samples,
}

impl Evaluator for OfOne<'_> {
    fn evaluate(&mut self, weights: &[f64], control: Control<'_>) -> Result<Vec<f64>> {
        let unet = self.candidate.become_sum(weights)?;
        let mut losses = Vec::with_capacity(self.samples.timesteps.len());
        for Batch { noisy, target, times } in &self.samples.batches {
            control.check()?;
            let answer = unet.forward(noisy, times)?;
            let each = (answer - target)?.sqr()?.flatten_from(1)?.mean(1)?;
            losses.extend(each.to_vec1::<f32>()?.into_iter().map(f64::from));
        }
        Ok(self.samples.means(&losses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_timestep_lies_in_each_part_and_has_its_mirror_image() {
        let all: Vec<Range<usize>> = std::iter::once(0..1000).collect();
        let few: Vec<Range<usize>> = std::iter::once(3..8).collect();
        for (ranges, count) in [(all.clone(), 512), (vec![0..250, 700..1000], 64), (few, 16), (all.clone(), 7)] {
            let length: usize = ranges.iter().map(Range::len).sum();
            let place = |timestep: usize| {
                let mut before = 0;
                for range in &ranges {
                    if range.contains(&timestep) {
                        return before + timestep - range.start;
                    }
                    before += range.len();
                }
                panic!("{timestep} is in none of {ranges:?}");
            };
            let drawn = stratified(&ranges, count, 5);
            let mut places: Vec<usize> = drawn.iter().map(|&timestep| place(timestep)).collect();
            assert!(!places.is_sorted(), "their order has nothing to do with them");
            places.sort_unstable();
            for (part, place) in places.iter().enumerate() {
                let (from, to) = (part * length / count, ((part + 1) * length).div_ceil(count));
                assert!((from..=to).contains(place), "{place} of {count} is not in {from}..{to}");
                let is_middle = 2 * part + 1 == count;
                assert!(is_middle || place + places[count - 1 - part] == length - 1, "{ranges:?} {count}");
            }
        }
        assert_ne!(stratified(&all, 64, 1), stratified(&all, 64, 2));
    }

    #[test]
    fn a_union_joins_what_meets() {
        assert_eq!(union(&[500..750, 0..250, 100..300, 750..800]), [0..300, 500..800]);
        assert_eq!(union(&[0..1000, 0..250]).len(), 1);
    }
}
