//! Arcee fusion: the model's values where they matter, the base's elsewhere: `out = b + m·(x − b)`, m where
//! `s ≥ median(s) + 1.5·(Q₃(s) − Q₁(s))` for the scores `s = |x − b|·D`.
//!
//! As in mergekit, <https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md>. D is the divergence of Kullback
//! and Leibler of the softmax of a row of the model from that of the base, `Σ p·ln(p/q)` with 1e-8 added to p and q; a row
//! runs along the last dimension, and a vector is one. The quantile q is the element of rank `⌊q·(n−1)⌋`. With rows of one
//! element all divergences are 0, and the model is taken whole.
//!
//! Deviations: quantiles are exact, where mergekit takes those of 1,000,000 random elements from larger tensors; the
//! divergence is computed in f64 and rounded once, and is at least 0, below which only rounding brings it.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Base, Block, Data, Elementwise, Method, Shader, Solution, Terms, Weight};

/// See the module.
pub(super) struct ArceeFusion;

const ABOUT: About = About {
    name: "arcee-fusion",
    what: "the base, with the model's values where they differ most and change the row's softmax most",
    formula: "b + m·(x − b), m where s ≥ median(s) + 1.5·(Q₃(s) − Q₁(s)), s = |x − b|·KL(softmax x ‖ softmax b)",
    source: "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md",
    base: Base::Required,
    models: (1, 1),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[],
};

/// Is added to probabilities.
const EPSILON: f64 = 1e-8;
/// Elements per tile.
const TILE: u64 = 1 << 17;
/// The quantiles that the threshold is made of.
const QUANTILES: [f64; 3] = [0.25, 0.5, 0.75];

/// The divergence of the softmax of `x` from that of `b`; `p` and `q` are room for them.
fn divergence(x: &[f32], b: &[f32], p: &mut Vec<f64>, q: &mut Vec<f64>) -> f32 {
    let softmax = |values: &[f32], out: &mut Vec<f64>| {
        let most = values.iter().fold(f64::NEG_INFINITY, |most, x| most.max(f64::from(*x)));
        out.clear();
        out.extend(values.iter().map(|x| (f64::from(*x) - most).exp()));
        let sum: f64 = out.iter().sum();
        out.iter_mut().for_each(|p| *p = *p / sum + EPSILON);
    };
    softmax(x, p);
    softmax(b, q);
    let sum: f64 = p.iter().zip(&*q).map(|(p, q)| p * (p / q).ln()).sum();
    if sum < 0.0 { 0.0 } else { sum as f32 }
}

/// The rows' divergences, by which a score is found.
struct Scores {
    row: usize,
    divergences: Vec<f32>,
}

impl Scores {
    fn measure(data: &Data<'_>, row: usize) -> Result<Self> {
        let mut divergences = Vec::new();
        let visit = |part: &mut Vec<f32>, block: &mut Block<'_>| {
            let (mut p, mut q) = (Vec::with_capacity(row), Vec::with_capacity(row));
            let (models, base) = block.split_base();
            let rows = models[0].chunks(row).zip(base.chunks(row));
            part.extend(rows.map(|(x, b)| divergence(x, b, &mut p, &mut q)));
        };
        data.fold(TILE, Vec::new, visit, |part| divergences.extend(part))?;
        Ok(Self { row, divergences })
    }

    /// What the shader reads.
    fn table(&self, threshold: f32) -> impl Iterator<Item = f32> {
        [threshold].into_iter().chain(self.divergences.iter().copied())
    }

    /// Turns a block's change into scores.
    fn apply(&self, start: u64, change: &mut [f32]) {
        let first = (start / self.row as u64) as usize;
        for (row, change) in (first..).zip(change.chunks_mut(self.row)) {
            let divergence = self.divergences.get(row).copied().unwrap_or(f32::NAN);
            vector::update(change, [], |x, []| x.abs() * divergence);
        }
    }
}

/// The first number is the threshold, and the divergences of rows follow.
const SCORE: &str = "
fn score$(x: Values$, at: Place) -> f32 { return abs(x[0] - x[BASE$]) * number$(1u + row$(at)); }
";

impl Method for ArceeFusion {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn unit(&self, terms: &Terms) -> u64 {
        terms.row()
    }

    fn memory(&self, terms: &Terms) -> u64 {
        terms.shape.iter().product::<u64>() / terms.row() * size_of::<f32>() as u64
    }

    fn searches(&self, _terms: &Terms) -> usize {
        QUANTILES.len()
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let row = terms.row() as usize;
        if data.elements() == 0 || row == 1 {
            return Ok(Solution::around_base(vec![1.0]));
        }
        let scores = Scores::measure(data, row)?;
        let ranks = QUANTILES.map(|q| (q * (data.elements() - 1) as f64) as u64).to_vec();
        let found = data.select(
            &[ranks],
            || Shader::of("score$(x, at)").with(SCORE).rows(scores.row as u64).numbers(scores.table(0.0)),
            |block| {
                block.subtract_base();
                scores.apply(block.start, &mut block.inputs[0]);
            },
        )?;
        let threshold = match found.first().map(Vec::as_slice) {
            Some([first, median, third]) => median + 1.5 * (third - first),
            _ => f32::NAN,
        };
        Ok(Solution::elementwise(Fused { scores, threshold }))
    }
}

struct Fused {
    scores: Scores,
    threshold: f32,
}

impl Elementwise for Fused {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        block.subtract_base();
        let start = block.start;
        let (changes, base) = block.split_base();
        out.copy_from_slice(&changes[0]);
        self.scores.apply(start, out);
        let threshold = self.threshold;
        // What is not taken but NaN stays.
        let taken = |score: f32, x: f32| if score >= threshold { x } else { 0.0 * x };
        vector::update(out, [&changes[0], base], |score, [x, b]| b + taken(score, x));
    }

    fn shader(&self) -> Option<Shader> {
        let taken = "select(zero() * (x[0] - x[BASE$]), x[0] - x[BASE$], score$(x, at) >= number$(0u))";
        let shader = Shader::of(format!("x[BASE$] + {taken}")).with(SCORE).rows(self.scores.row as u64);
        Some(shader.numbers(self.scores.table(self.threshold)))
    }
}
