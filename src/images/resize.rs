//! Images as planes of numbers of another size, as evaluators of images resize them.
//!
//! What is done here is part of a metric: FID moves by whole points with the kernel (Parmar et al. 2022,
//! <https://arxiv.org/abs/2104.11222>). So each function follows one library, step by step and rounding by rounding.

use super::Image;

/// A sample of a row or column between two samples of the image.
struct Between {
    low: usize,
    high: usize,
    /// The share of `high`; the rest is `low`'s.
    share: f32,
}

/// Where samples lie that cut `from` into `to`, with pixel centres at halves, in f32 as torch computes it.
fn between(from: usize, to: usize) -> Vec<Between> {
    let scale = from as f32 / to as f32;
    let place = |index: usize| {
        let place = (scale * (index as f32 + 0.5) - 0.5).max(0.0);
        let low = (place as usize).min(from - 1);
        Between { low, high: (low + 1).min(from - 1), share: (place - low as f32).clamp(0.0, 1.0) }
    };
    (0..to).map(place).collect()
}

/// Planes of red, green and blue in 0..=1, `3·height·width` numbers: `torch.nn.functional.interpolate(…,
/// mode="bilinear", align_corners=False)` of samples divided by 255, without antialiasing, as pytorch-fid 0.3.0 does.
/// `channels` is 1 for one plane; of a grey image all planes are the same.
///
/// An image without pixels gives nothing.
#[must_use]
pub fn bilinear(image: &Image, channels: usize, height: usize, width: usize) -> Vec<f32> {
    if image.height == 0 || image.width == 0 {
        return Vec::new();
    }
    let (rows, columns) = (between(image.height, height), between(image.width, width));
    let mut out = Vec::with_capacity(channels * height * width);
    for channel in 0..channels {
        let plane: Vec<f32> = image.plane(channel).map(|sample| f32::from(sample) / 255.0).collect();
        let row = |index: usize| plane.get(index * image.width..(index + 1) * image.width).unwrap_or_default();
        for vertical in &rows {
            bilinear_row(row(vertical.low), row(vertical.high), vertical.share, &columns, &mut out);
        }
    }
    out
}

fn bilinear_row(upper: &[f32], lower: &[f32], share: f32, columns: &[Between], out: &mut Vec<f32>) {
    let mix = |row: &[f32], at: &Between| {
        let sample = |index: usize| row.get(index).copied().unwrap_or_default();
        (1.0 - at.share) * sample(at.low) + at.share * sample(at.high)
    };
    out.extend(columns.iter().map(|at| (1.0 - share) * mix(upper, at) + share * mix(lower, at)));
}

/// The samples that one of the output is made of: the first, and the weights from there on.
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

/// Keys' cubic kernel with a = −1/2 (R. Keys 1981), as Pillow's.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// The taps of Pillow's `ImagingResample`: the kernel is stretched where the image shrinks, and weights sum to one.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    const SUPPORT: f64 = 2.0;
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = SUPPORT * stretch;
    let of = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weight = |sample: usize| cubic((sample as f64 - centre + 0.5) * (1.0 / stretch));
        let mut weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        Taps { first, weights }
    };
    (0..to).map(of).collect()
}

/// Planes of red, green and blue in 0..=255, `3·height·width` numbers: each channel through Pillow's
/// `resize(…, BICUBIC)` in mode `F` (rows before columns, sums in f64, results in f32), then clipped, as clean-fid
/// does in its mode `clean`. `channels` is 1 for one plane; of a grey image all planes are the same.
#[must_use]
pub fn bicubic(image: &Image, channels: usize, height: usize, width: usize) -> Vec<f32> {
    if image.height == 0 || image.width == 0 {
        return Vec::new();
    }
    let (rows, columns) = (taps(image.height, height), taps(image.width, width));
    let mut out = Vec::with_capacity(channels * height * width);
    for channel in 0..channels {
        let plane: Vec<f32> = image.plane(channel).map(f32::from).collect();
        // A pass that would change nothing is left out, as there.
        let across = if image.width == width {
            plane
        } else {
            plane.chunks_exact(image.width).flat_map(|row| columns.iter().map(|taps| along(row, taps))).collect()
        };
        let start = out.len();
        if image.height == height {
            out.extend(across);
        } else {
            rows.iter().for_each(|taps| down(&across, width, taps, &mut out));
        }
        out.iter_mut().skip(start).for_each(|sample| *sample = sample.clamp(0.0, 255.0));
    }
    out
}

fn along(row: &[f32], taps: &Taps) -> f32 {
    let samples = row.iter().skip(taps.first).zip(&taps.weights);
    samples.fold(0.0, |sum, (sample, weight)| sum + f64::from(*sample) * weight) as f32
}

fn down(plane: &[f32], width: usize, taps: &Taps, out: &mut Vec<f32>) {
    let mut sums = vec![0.0; width];
    for (row, weight) in plane.chunks_exact(width).skip(taps.first).zip(&taps.weights) {
        sums.iter_mut().zip(row).for_each(|(sum, sample)| *sum += f64::from(*sample) * weight);
    }
    out.extend(sums.into_iter().map(|sum| sum as f32));
}
