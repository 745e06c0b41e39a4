//! What of a model's change is kept, and what makes up for the rest.

use super::ranked::Ranked;
use crate::dtype::vector;
use crate::merge::{Key, MaskByRank};

/// Which elements of one model's change are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mask {
    All,
    Nothing,
    /// Magnitudes from one to another, both included.
    Between(f32, f32),
    /// Those whose random number is not above the limit.
    Random(Key, u32),
    /// By rank in rows.
    Ranked(Ranked),
}

/// The mask of a model, with what its changes are multiplied with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sieve {
    pub(super) mask: Mask,
    /// Makes up for what is dropped, where that is one number.
    pub(super) scale: f32,
}

/// The bits of a number without its sign, which sort as magnitudes do; NaN is the largest.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// 1 for a magnitude between the bounds, as bits, in the order in which they were found; else 0.
#[inline(always)]
fn within(change: f32, low: u32, high: u32) -> f32 {
    if (magnitude(change) < low) | (magnitude(change) > high) { 0.0 } else { 1.0 }
}

/// 1 for a number that is not above the limit, else 0.
#[inline(always)]
fn below(number: u32, limit: u32) -> f32 {
    if number <= limit { 1.0 } else { 0.0 }
}

/// A number that a shader reads, by its place among them.
fn push(words: &mut Vec<u32>, word: u32) -> String {
    words.push(word);
    format!("word$({}u)", words.len() - 1)
}

impl Sieve {
    /// 1 where a change of model `i` is kept and 0 elsewhere, as an expression that reads `words`; the factors of ranks are
    /// those of a mask to be computed before.
    pub(super) fn factor(&self, i: usize, words: &mut Vec<u32>, masks: &mut Vec<MaskByRank>) -> String {
        match self.mask {
            Mask::All => "1.0".to_owned(),
            Mask::Nothing => "0.0".to_owned(),
            Mask::Between(low, high) => {
                let (low, high) = (push(words, low.to_bits()), push(words, high.to_bits()));
                format!("within(x[{i}] - x[BASE$], {low}, {high})")
            }
            Mask::Random(key, limit) => {
                let [low, high] = key.words();
                let (low, high, limit) = (push(words, low), push(words, high), push(words, limit));
                format!("below(random(at, {low}, {high}), {limit})")
            }
            Mask::Ranked(ranked) => {
                masks.push(ranked.mask(i));
                format!("factor$({}u, at)", masks.len() - 1)
            }
        }
    }

    /// What becomes of a change of model `i` with this weight, as an expression like [`Self::factor`].
    pub(super) fn kept(&self, i: usize, weight: f32, words: &mut Vec<u32>, masks: &mut Vec<MaskByRank>) -> String {
        let factor = self.factor(i, words, masks);
        let weight = push(words, weight.to_bits());
        if matches!(self.mask, Mask::All) {
            return format!("rounded((x[{i}] - x[BASE$]) * bitcast<f32>({weight}))");
        }
        let scale = push(words, self.scale.to_bits());
        format!("rounded((x[{i}] - x[BASE$]) * ({factor} * bitcast<f32>({scale})) * bitcast<f32>({weight}))")
    }

    /// Turns a model's elements into its weighted change from the base, less what is dropped.
    pub(super) fn apply(&self, start: u64, model: &mut [f32], base: &[f32], weight: f32) {
        let scale = self.scale;
        match self.mask {
            Mask::All => vector::update(model, [base], move |x, [b]| (x - b) * weight),
            Mask::Nothing => model.fill(0.0),
            Mask::Between(low, high) => {
                let (low, high) = (low.to_bits(), high.to_bits());
                vector::update(model, [base], move |x, [b]| (x - b) * (within(x - b, low, high) * scale) * weight);
            }
            Mask::Random(key, limit) => key
                .update(start, model, [base], move |x, [b], number| (x - b) * (below(number, limit) * scale) * weight),
            Mask::Ranked(ranked) => {
                vector::update(model, [base], |x, [b]| x - b);
                let factors = ranked.factors(start, model);
                vector::update(model, [&factors], move |x, [factor]| x * (factor * scale) * weight);
            }
        }
    }

    /// The L1 norms of a model's change from the base, before and after what is dropped.
    pub(super) fn norms(&self, start: u64, model: &mut [f32], base: &[f32]) -> [f64; 2] {
        match self.mask {
            Mask::All => vector::two_sums([model, base], |[x, b]| [(x - b).abs(); 2]),
            Mask::Nothing => vector::two_sums([model, base], |[x, b]| [(x - b).abs(), 0.0]),
            Mask::Between(low, high) => {
                let (low, high) = (low.to_bits(), high.to_bits());
                vector::two_sums([model, base], move |[x, b]| [(x - b).abs(), (x - b).abs() * within(x - b, low, high)])
            }
            Mask::Random(key, limit) => key.two_sums(start, [model, base], move |[x, b], number| {
                [(x - b).abs(), (x - b).abs() * below(number, limit)]
            }),
            Mask::Ranked(ranked) => {
                vector::update(model, [base], |x, [b]| x - b);
                let factors = ranked.factors(start, model);
                vector::two_sums([model, &factors], |[x, factor]| [x.abs(), x.abs() * factor])
            }
        }
    }

    /// Adds a model's weighted change from the base, less what is dropped.
    pub(super) fn add(&self, start: u64, model: &mut [f32], base: &[f32], weight: f32, sum: &mut [f32]) {
        let scale = self.scale;
        match self.mask {
            Mask::All => vector::update(sum, [model, base], move |sum, [x, b]| sum + (x - b) * weight),
            Mask::Nothing => {}
            Mask::Between(low, high) => {
                let (low, high) = (low.to_bits(), high.to_bits());
                vector::update(sum, [model, base], move |sum, [x, b]| {
                    sum + (x - b) * (within(x - b, low, high) * scale) * weight
                });
            }
            Mask::Random(key, limit) => key.update(start, sum, [model, base], move |sum, [x, b], number| {
                sum + (x - b) * (below(number, limit) * scale) * weight
            }),
            Mask::Ranked(_) => {
                self.apply(start, model, base, weight);
                vector::update(sum, [model], |sum, [x]| sum + x);
            }
        }
    }
}
