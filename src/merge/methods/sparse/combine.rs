//! Sums of changes that are left, with and without an election.

use super::sieve::Sieve;
use crate::dtype::vector::{self, Loop};
use crate::merge::{Block, Elementwise, MaskByRank, Shader};

/// `b + factor·Σ wᵢ·s(xᵢ − b)`
pub(super) struct Summed {
    pub(super) sieves: Vec<Sieve>,
    pub(super) weights: Vec<f32>,
    pub(super) factor: f32,
}

impl Elementwise for Summed {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        let start = block.start;
        let (changes, base) = block.split_base();
        out.fill(0.0);
        for ((change, sieve), weight) in changes.iter_mut().zip(&self.sieves).zip(&self.weights) {
            sieve.add(start, change, base, *weight, out);
        }
        let factor = self.factor;
        vector::update(out, [base], move |sum, [b]| b + factor * sum);
    }

    fn shader(&self) -> Option<Shader> {
        let mut kept = Kept::new(&self.sieves, &self.weights);
        let sum = Shader::sum_from_zero(kept.changes.len(), |i| kept.changes[i].clone());
        let factor = kept.number(self.factor);
        Some(kept.shader(format!("x[BASE$] + rounded({factor} * {sum})"), ""))
    }
}

/// The changes that sieves leave, as expressions of a shader.
struct Kept {
    weights: Vec<f32>,
    changes: Vec<String>,
    words: Vec<u32>,
    masks: Vec<MaskByRank>,
}

impl Kept {
    fn new(sieves: &[Sieve], weights: &[f32]) -> Self {
        let (mut words, mut masks) = (Vec::new(), Vec::new());
        let kept = |(i, (sieve, weight)): (usize, (&Sieve, &f32))| sieve.kept(i, *weight, &mut words, &mut masks);
        let changes = sieves.iter().zip(weights).enumerate().map(kept).collect();
        Self { weights: weights.to_vec(), changes, words, masks }
    }

    fn number(&mut self, number: f32) -> String {
        self.words.push(number.to_bits());
        format!("number$({}u)", self.words.len() - 1)
    }

    fn shader(self, value: String, items: &str) -> Shader {
        // Those that the text reads stand among the words; these are there to be looked at.
        Shader::of(value).with(items).words(self.words).weights(self.weights).masks(self.masks)
    }
}

/// The sum of what has the elected sign.
pub(super) struct Elected {
    pub(super) sieves: Vec<Sieve>,
    pub(super) weights: Vec<f32>,
    pub(super) lambda: f32,
    pub(super) normalize: bool,
    pub(super) by_count: bool,
}

impl Elementwise for Elected {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        let start = block.start;
        let (changes, base) = block.split_base();
        for ((change, sieve), weight) in changes.iter_mut().zip(&self.sieves).zip(&self.weights) {
            sieve.apply(start, change, base, *weight);
        }
        vector::run(Elect { elected: self, changes, base, out });
    }

    fn shader(&self) -> Option<Shader> {
        let mut kept = Kept::new(&self.sieves, &self.weights);
        let models = kept.changes.len();
        let mut text = "fn elected$(x: Values$, at: Place) -> f32 {\n".to_owned();
        for (i, change) in kept.changes.clone().iter().enumerate() {
            text += &format!("    let c{i} = {change};\n");
        }
        let vote = |i: usize| if self.by_count { format!("sign(c{i})") } else { format!("c{i}") };
        text += &format!("    let votes = {};\n", Shader::sum_from_zero(models, vote));
        for i in 0..models {
            text += &format!("    let a{i} = select((c{i} < 0.0), (c{i} > 0.0), votes >= 0.0);\n");
        }
        text += &format!(
            "    let sum = {};\n",
            Shader::sum_from_zero(models, |i| format!("select(zero() * c{i}, c{i}, a{i})"))
        );
        let lambda = kept.number(self.lambda);
        if self.normalize {
            let weights: Vec<String> = self.weights.iter().map(|weight| kept.number(*weight)).collect();
            let divisor = Shader::total(models, |i| format!("select(0.0, {}, a{i})", weights[i]));
            text += &format!("    let divisor = {divisor};\n");
            text += &format!(
                "    return x[BASE$] + rounded({lambda} * (sum / select(divisor, 1.0, divisor == 0.0)));\n}}\n"
            );
        } else {
            text += &format!("    return x[BASE$] + rounded({lambda} * sum);\n}}\n");
        }
        Some(kept.shader("elected$(x, at)".to_owned(), &text))
    }
}

/// Elements elected side by side.
const LANES: usize = 16;

struct Elect<'a> {
    elected: &'a Elected,
    changes: &'a [Vec<f32>],
    base: &'a [f32],
    out: &'a mut [f32],
}

impl Elect<'_> {
    /// As many elements as `out` has, of the changes in lanes of the same width with their weights.
    #[inline(always)]
    fn lanes<'c, const N: usize>(
        elected: &Elected,
        changes: impl Iterator<Item = (&'c [f32; N], f32)> + Clone,
        base: &[f32; N],
        out: &mut [f32; N],
    ) {
        let mut votes = [0.0; N];
        for (change, _) in changes.clone() {
            if elected.by_count {
                for i in 0..N {
                    votes[i] += if change[i] == 0.0 { 0.0 } else { 1f32.copysign(change[i]) };
                }
            } else {
                for i in 0..N {
                    votes[i] += change[i];
                }
            }
        }
        let sign = votes.map(|vote| if vote >= 0.0 { 1.0 } else { -1.0 });
        let (mut sum, mut divisor) = ([0.0; N], [0.0; N]);
        for (change, weight) in changes {
            for i in 0..N {
                let agrees = if change[i] * sign[i] > 0.0 { 1.0 } else { 0.0 };
                // What is not a number stays.
                sum[i] += change[i] * agrees;
                divisor[i] += weight * agrees;
            }
        }
        let lambda = elected.lambda;
        if elected.normalize {
            for i in 0..N {
                sum[i] /= if divisor[i] == 0.0 { 1.0 } else { divisor[i] };
            }
        }
        for i in 0..N {
            out[i] = base[i] + lambda * sum[i];
        }
    }
}

impl Loop for Elect<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { elected, changes, base, out } = self;
        let changes: Vec<_> = changes.iter().map(|change| change.as_chunks::<LANES>()).collect();
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let (base, base_rest) = base.as_chunks::<LANES>();
        let weights = || elected.weights.iter().copied();
        for (index, (base, out)) in base.iter().zip(chunks).enumerate() {
            let lanes = changes.iter().map(|(chunks, _)| &chunks[index]).zip(weights());
            Self::lanes(elected, lanes, base, out);
        }
        for (index, (base, out)) in base_rest.iter().zip(rest).enumerate() {
            let lanes = changes.iter().map(|(_, rest)| std::array::from_ref(&rest[index])).zip(weights());
            Self::lanes(elected, lanes, &[*base], std::array::from_mut(out));
        }
    }
}
