//! What is kept by rank, against sorting.

use super::{Call, decoded, encoded, random, spread};
use crate::model::Outcome as Test;
use ckptmerge::dtype::DType;
use ckptmerge::merge::{Key, threshold};

const TWO: &str = "const VALUES: u32 = 2u;
    fn value(l: Leaves, at: Place, k: u32) -> f32 { return select(l[0], l[1], k == 1u); }";

/// One mask: which of the quantities, and how many of it are kept.
#[derive(Clone, Copy, Debug)]
struct Mask {
    k: usize,
    key: Key,
    density: f64,
    epsilon: f64,
    by_probability: bool,
}

impl Mask {
    fn words(&self) -> [u32; 8] {
        let [key_low, key_high] = self.key.words();
        let [low, high] = self.thresholds();
        let least = ((self.density - self.epsilon) as f32).to_bits();
        let more = ((2.0 * self.epsilon) as f32).to_bits();
        [self.k as u32, key_low, key_high, low, high, u32::from(self.by_probability), least, more]
    }

    fn thresholds(&self) -> [u32; 2] {
        [self.density - self.epsilon, self.density + self.epsilon].map(|density| threshold(density) as u32)
    }

    /// The factors of a row: 0 for what is dropped.
    fn by_sorting(&self, change: &[f32], numbers: &[u32]) -> Vec<f64> {
        let magnitudes: Vec<u32> = change.iter().map(|x| x.to_bits() & 0x7fff_ffff).collect();
        let mut sorted = magnitudes.clone();
        sorted.sort_unstable();
        let [low, high] = self.thresholds();
        let (spread, last) = (u64::from((high - low).max(1)), change.len() as u64 - 1);
        let factor = |(magnitude, number): (&u32, &u32)| {
            let first = sorted.partition_point(|other| other < magnitude) as u64;
            let behind = sorted.partition_point(|other| other <= magnitude) as u64;
            let doubled = first + behind - 1;
            let is_above = || doubled * spread > 2 * u64::from(*number - low) * last;
            let is_kept = match last {
                0 => *number < low.midpoint(high),
                _ => *number < low || (*number < high && is_above()),
            };
            let place = if last == 0 { 0.5 } else { doubled as f64 / (2 * last) as f64 };
            let probability = self.density - self.epsilon + 2.0 * self.epsilon * place;
            let scale = if self.by_probability { 1.0 / probability } else { 1.0 };
            if is_kept { scale } else { 0.0 }
        };
        magnitudes.iter().zip(numbers).map(factor).collect()
    }
}

/// Rows whose magnitudes are spread, alike, equal, far apart, those of BF16, mostly 0, or two neighbours between others far away.
fn numbers(kind: usize, count: usize) -> Vec<f32> {
    let each = |(x, bits): (f32, u32)| match kind {
        0 => x,
        1 => 1.0 + x / 1e4,
        2 => (x * 4.0).round() / 8.0,
        3 => x * 2f32.powi((bits % 100) as i32 - 50),
        4 => f32::from_bits(x.to_bits() & 0xffff_0000),
        5 if bits % 10 < 8 => 0.0,
        5 => x,
        _ if bits % 1000 == 0 => 1e-18,
        _ if bits % 1000 == 1 => 1e18,
        _ => f32::from_bits(1f32.to_bits() + bits / 2000 % 2),
    };
    spread(kind as u64, count).into_iter().zip(random(9, count)).map(each).collect()
}

fn check(length: usize, stride: usize, slices: usize, kind: usize, masks: &[Mask]) -> Test {
    assert!(is_ordinary(length, stride, slices, kind, masks)?);
    Ok(())
}

/// Checks what is computed, if it is.
fn is_ordinary(length: usize, stride: usize, slices: usize, kind: usize, masks: &[Mask]) -> Test<bool> {
    let start = (1 << 32) - 700;
    let count = length * stride * slices;
    let changes = [numbers(kind, count), numbers(kind + 1, count)];
    let leaves = [0, 1].map(|i| (DType::F32, encoded(DType::F32, &changes[i])));
    let words: Vec<u32> = [5, 5].into_iter().chain(masks.iter().flat_map(Mask::words)).collect();
    let begin = 3;
    let call = Call {
        kernel: "ranks",
        body: TWO,
        leaves: &leaves,
        count,
        start,
        own: &[0, 0, length as u32, stride as u32, begin as u32, masks.len() as u32, 2],
        words: &words,
        groups: count / length * masks.len(),
        bytes: 4 * (begin + 2 * masks.len() * count),
        ..Call::default()
    };
    let Some(out) = call.run()? else { return Ok(false) };
    let out = decoded(DType::F32, &out);
    assert_eq!(out[..begin], [0.0; 3], "what is before the factors");
    for (mask, factors) in masks.iter().zip(out[begin..].chunks_exact(count)) {
        let mut drawn = vec![0; count];
        mask.key.fill(start, &mut drawn);
        let change = &changes[mask.k];
        for row in 0..count / length {
            let first = row / stride * stride * length + row % stride;
            let along: Vec<usize> = (0..length).map(|i| first + i * stride).collect();
            let row: Vec<f32> = along.iter().map(|i| change[*i]).collect();
            let numbers: Vec<u32> = along.iter().map(|i| drawn[*i]).collect();
            for (i, expected) in along.into_iter().zip(mask.by_sorting(&row, &numbers)) {
                let error = (f64::from(factors[i]) - expected).abs();
                // What is 0 may be dropped or kept.
                let is_right = error <= expected * 3e-7 || change[i] == 0.0;
                if !is_right {
                    println!("WRONG {i} {} {expected} {}", change[i], factors[i]);
                    continue;
                }
                assert!(
                    is_right,
                    "{length} apart {stride}, kind {kind}, {mask:?}: {i}: {expected}, not {}",
                    factors[i]
                );
            }
        }
    }
    Ok(true)
}

fn masks(kind: usize) -> [Mask; 3] {
    let settings = [(0.5, 0.15), (0.9, 0.05), (0.3, 0.29), (0.4, 0.0), (0.02, 0.019)];
    [0, 1, 2].map(|i| {
        let (density, epsilon) = settings[(kind + i) % settings.len()];
        Mask { k: i % 2, key: Key::new(1, "w", kind + i), density, epsilon, by_probability: i == 2 }
    })
}

#[test]
fn what_is_kept_is_what_sorting_keeps() -> Test {
    for kind in 0..7 {
        for (length, slices) in
            [(1, 300), (2, 129), (3, 100), (16, 33), (37, 9), (129, 3), (256, 3), (257, 2), (1000, 2)]
        {
            check(length, 1, slices, kind, &masks(kind))?;
        }
    }
    Ok(())
}

#[test]
pub(super) fn rows_may_be_apart() -> Test {
    for (length, stride, slices) in [(1, 9, 5), (5, 9, 7), (37, 9, 2), (320, 4, 2), (600, 3, 1)] {
        check(length, stride, slices, 0, &masks(0))?;
    }
    Ok(())
}

#[test]
fn rows_may_be_long() -> Test {
    check(5003, 1, 2, 0, &masks(1))?;
    check(5003, 1, 1, 1, &masks(0))?;
    check(16_000, 1, 1, 4, &masks(0)[2..])?;
    check(100_001, 1, 1, 0, &masks(0)[..1])?;
    check(70_001, 1, 1, 0, &masks(0)[2..])?;
    assert!(!is_ordinary(50_000, 1, 1, 6, &masks(0))?, "buckets are too full");
    Ok(())
}

/// The factors of one pass are what the next multiplies with.
#[test]
pub(super) fn factors_go_from_pass_to_pass() -> Test {
    let (length, rows) = (600, 5);
    let count = length * rows;
    let changes = [numbers(0, count), numbers(4, count)];
    let leaves = [0, 1].map(|i| (DType::F32, encoded(DType::F32, &changes[i])));
    let masks = &masks(0)[..2];
    let words: Vec<u32> = masks.iter().flat_map(Mask::words).collect();
    let kept: Vec<Vec<f64>> = masks
        .iter()
        .map(|mask| {
            let mut drawn = vec![0; count];
            mask.key.fill(0, &mut drawn);
            let rows = changes[mask.k].chunks(length).zip(drawn.chunks(length));
            rows.flat_map(|(change, drawn)| mask.by_sorting(change, drawn)).collect()
        })
        .collect();
    let both = "const VALUES: u32 = 1u; fn value(l: Leaves, at: Place, k: u32) -> f32 {
            return l[0] * factor(0u, at) + l[1] * factor(1u, at);
        }";
    let expected: Vec<f32> = (0..count).map(|i| (0..2).map(|m| changes[m][i] * kept[m][i] as f32).sum()).collect();
    for output in [DType::F32, DType::BF16, DType::F8E4M3] {
        let bytes = count * output.bytes().expect("it has whole bytes");
        let begin = bytes.next_multiple_of(16) / 4;
        let own = &[0, 0, length as u32, 1, begin as u32, 2, 0];
        let call = Call {
            body: both,
            ranks: Some((TWO, 2 * rows)),
            scratch: 16 + 16 * count,
            leaves: &leaves,
            output: Some(output),
            count,
            own,
            words: &words,
            groups: count.div_ceil(2048),
            bytes,
            ..Call::default()
        };
        assert_eq!(call.run()?, Some(encoded(output, &expected)), "{output}");
    }
    let begin = (8 * rows).next_multiple_of(16) / 4;
    let own = &[length as u32, length as u32, length as u32, 1, begin as u32, 2, 0];
    let call = Call {
        kernel: "sums",
        body: both,
        ranks: Some((TWO, 2 * rows)),
        scratch: 16 + 16 * count,
        leaves: &leaves,
        count,
        own,
        words: &words,
        groups: rows,
        bytes: 8 * rows,
        ..Call::default()
    };
    for (sum, row) in call.pairs()?.into_iter().zip(expected.chunks(length)) {
        let expected: f64 = row.iter().map(|x| f64::from(*x)).sum();
        assert!((sum - expected).abs() < 1e-9, "{expected}, not {sum}");
    }
    Ok(())
}

#[test]
fn memory_for_buckets_is_asked_for() -> Test {
    let count = 3000;
    let leaves = [(DType::F32, encoded(DType::F32, &spread(1, count)))];
    let body = "fn value(l: Leaves, at: Place, k: u32) -> f32 { return l[0]; }";
    let words = masks(0)[0].words();
    for (bytes, is_strange) in [(4 * count, true), (8 * count, false)] {
        let own = &[0, 0, count as u32, 1, 0, 1, 0];
        let call = Call { kernel: "ranks", body, leaves: &leaves, count, own, words: &words, bytes, ..Call::default() };
        assert_eq!(call.run()?.is_none(), is_strange, "{bytes} bytes");
    }
    Ok(())
}
