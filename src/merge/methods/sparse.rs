//! The family of sparse task arithmetic: a table of sparsifier × sign election × defaults.
//!
//! `out = b + λ·Σ mᵢ·wᵢ·s(xᵢ − b) / D`. First s drops a share of each model's change and, with `rescale`, makes up for it;
//! then, with an election, mᵢ keeps an element only where its sign is the elected one; with `normalize`, D is the sum of
//! the weights that are left. Each step as mergekit 0.1.5 computes it, per tensor:
//!
//! - *magnitude* (TIES, Yadav et al. 2023, <https://arxiv.org/abs/2306.01708>) keeps the largest `⌊density·n⌋`, at least one.
//! - *random* (DARE, Yu et al. 2024, <https://arxiv.org/abs/2311.03099>) keeps each with probability `density`.
//! - *outliers* (Model breadcrumbs, Davari & Belilovsky 2024, <https://arxiv.org/abs/2312.06795>) drops the largest
//!   `⌊gamma·n⌋` and keeps the next `⌊density·n⌋`.
//! - *rank* (DELLA, Deep et al. 2024, <https://arxiv.org/abs/2406.11617>) keeps with a probability that grows from
//!   `density − epsilon` for the smallest of a row to `density + epsilon` for the largest. Rows run along dimension 1, or
//!   are the tensor if it has one dimension.
//!
//! The elected sign is that of `Σ wᵢ·s(xᵢ − b)`, positive where that is 0. `rescale` 1 multiplies what is left by the
//! ratio of the L1 norms before and after; 2 divides by the probability with which it was kept, as the papers of DARE and
//! DELLA do. `elect` 2 elects by the count of signs. `global` 1 trims the whole model at one magnitude, as the paper of
//! TIES does.
//!
//! Order of operations: the change in f32, what is dropped, `rescale`, the weight, the election, the sum, `normalize`,
//! λ, the base. A density of 1 or more keeps everything, outliers too, and is not rescaled; one of 0 or less keeps nothing.
//! `density + gamma` above 1 drops fewer outliers, so that the density holds. Zeros agree with neither sign; a D of 0,
//! without an election one below 1e-8, counts as 1. L1 norms below 1e-7 are not rescaled.
//!
//! What is not finite stays where it is, also where it is dropped, if anything of its model is kept; a tensor with such
//! elements is not rescaled.
//!
//! Deviations from mergekit, whose choice among elements that are equal in magnitude is the sorting's: those equal to the
//! smallest that is kept (or the largest) are all kept, as by the authors of TIES, and *rank* gives those of a row the mean
//! of their ranks, and so the same probability. Random numbers are ours. *rank* keeps rows of one element, and a tensor
//! without dimensions, with probability `density`, the middle of a row's; mergekit fails on them.
//! A negative density is refused by *random* only, as there; a negative `gamma` is refused.

use crate::dtype::vector::{self, Loop};
use crate::error::Result;
use crate::merge::{
    ANY, About, Base, Block, Data, Elementwise, Key, Method, Parameter, Solution, Terms, Weight, select, threshold,
};

/// A row of the table.
#[derive(Debug)]
pub(super) struct Sparse {
    about: About,
    sparsifier: Sparsifier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sparsifier {
    Magnitude,
    Random,
    Outliers,
    Rank,
}

const LAMBDA: Parameter = Parameter::shared("lambda", 1.0, "scales the sum of all changes");
const DENSITY: Parameter = Parameter::per_model("density", 1.0, "the share of each change that is kept");
const GAMMA: Parameter = Parameter::per_model("gamma", 0.01, "the share of the largest that is dropped");
const EPSILON: Parameter = Parameter::per_model("epsilon", 0.15, "how far probabilities spread around the density");
const GLOBAL: Parameter = Parameter::shared("global", 0.0, "1 trims the whole model at one magnitude");
const INT8_MASK: Parameter = Parameter::shared("int8_mask", 0.0, "has no effect; recipes carry it");

const fn rescale(default: f64) -> Parameter {
    Parameter::shared("rescale", default, "1 restores the L1 norm, 2 divides by the probability")
}

const fn elect(default: f64) -> Parameter {
    Parameter::shared("elect", default, "1 elects signs by their sum, 2 by their count, 0 not at all")
}

const fn row(
    name: &'static str,
    what: &'static str,
    formula: &'static str,
    source: &'static str,
    normalizes: bool,
    sparsifier: Sparsifier,
    parameters: &'static [Parameter],
) -> Sparse {
    let (base, weight) = (Base::Required, Weight::One);
    let about = About { name, what, formula, source, base, models: (1, ANY), weight, normalizes, parameters };
    Sparse { about, sparsifier }
}

const TIES_PAPER: &str = "https://arxiv.org/abs/2306.01708";
const DARE_PAPER: &str = "https://arxiv.org/abs/2311.03099";
const BREADCRUMBS_PAPER: &str = "https://arxiv.org/abs/2312.06795";
const DELLA_PAPER: &str = "https://arxiv.org/abs/2406.11617";
const ELECTED: &str = "b + λ·Σ mᵢ·wᵢ·s(xᵢ − b), mᵢ where the sign is the elected one";
const ELECTED_MEAN: &str = "b + λ·Σ mᵢ·wᵢ·s(xᵢ − b) / Σ mᵢ·wᵢ, mᵢ where the sign is the elected one";
const SUMMED: &str = "b + λ·Σ wᵢ·s(xᵢ − b)";

pub(super) static TIES: Sparse = row(
    "ties",
    "the largest changes, where they agree in sign",
    ELECTED_MEAN,
    TIES_PAPER,
    true,
    Sparsifier::Magnitude,
    &[LAMBDA, DENSITY, rescale(0.0), elect(1.0), GLOBAL, INT8_MASK],
);
pub(super) static DARE_TIES: Sparse = row(
    "dare-ties",
    "random changes, made larger for those dropped, where they agree in sign",
    ELECTED,
    DARE_PAPER,
    false,
    Sparsifier::Random,
    &[LAMBDA, DENSITY, rescale(1.0), elect(1.0), INT8_MASK],
);
pub(super) static DARE_LINEAR: Sparse = row(
    "dare-linear",
    "random changes, made larger for those dropped",
    SUMMED,
    DARE_PAPER,
    false,
    Sparsifier::Random,
    &[LAMBDA, DENSITY, rescale(1.0), elect(0.0), INT8_MASK],
);
pub(super) static BREADCRUMBS: Sparse = row(
    "breadcrumbs",
    "changes without the largest and the smallest",
    SUMMED,
    BREADCRUMBS_PAPER,
    false,
    Sparsifier::Outliers,
    &[LAMBDA, DENSITY, GAMMA, rescale(0.0), elect(0.0), INT8_MASK],
);
pub(super) static BREADCRUMBS_TIES: Sparse = row(
    "breadcrumbs-ties",
    "changes without the largest and the smallest, where they agree in sign",
    ELECTED,
    BREADCRUMBS_PAPER,
    false,
    Sparsifier::Outliers,
    &[LAMBDA, DENSITY, GAMMA, rescale(0.0), elect(1.0), INT8_MASK],
);
pub(super) static DELLA: Sparse = row(
    "della",
    "random changes, larger ones more likely, where they agree in sign",
    ELECTED_MEAN,
    DELLA_PAPER,
    true,
    Sparsifier::Rank,
    &[LAMBDA, DENSITY, EPSILON, rescale(1.0), elect(1.0), INT8_MASK],
);
pub(super) static DELLA_LINEAR: Sparse = row(
    "della-linear",
    "random changes, larger ones more likely",
    SUMMED,
    DELLA_PAPER,
    false,
    Sparsifier::Rank,
    &[LAMBDA, DENSITY, EPSILON, rescale(1.0), elect(0.0), INT8_MASK],
);

/// Which elements of one model's change are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mask {
    All,
    Nothing,
    /// Magnitudes from one to another, both included.
    Between(f32, f32),
    /// Those whose random number is not above the limit.
    Random(Key, u32),
    /// By rank in rows: `epsilon` around `density`.
    Rank {
        key: Key,
        density: f64,
        epsilon: f64,
    },
}

/// Rows along dimension 1, which elements of the same row are how far apart.
#[derive(Clone, Copy, Debug)]
struct Rows {
    length: usize,
    stride: usize,
}

impl Rows {
    fn of(shape: &[u64]) -> Self {
        match shape {
            [] => Self { length: 1, stride: 1 },
            [n] => Self { length: *n as usize, stride: 1 },
            [_, n, inner @ ..] => Self { length: *n as usize, stride: inner.iter().product::<u64>() as usize },
        }
    }

    /// Elements that a slice along the first dimension has.
    fn unit(self) -> usize {
        (self.length * self.stride).max(1)
    }
}

/// The mask of a model, with what its changes are multiplied with.
#[derive(Clone, Copy, Debug)]
struct Sieve {
    mask: Mask,
    /// Makes up for what is dropped, where that is one number.
    scale: f32,
    /// Whether each element is divided by its own probability.
    by_probability: bool,
    rows: Rows,
}

impl Sieve {
    /// Turns a model's elements into its weighted change from the base, less what is dropped.
    fn apply(&self, start: u64, model: &mut [f32], base: &[f32], weight: f32) {
        let scale = self.scale;
        match self.mask {
            Mask::All => vector::update(model, [base], move |x, [b]| (x - b) * weight),
            Mask::Nothing => model.fill(0.0),
            Mask::Between(low, high) => {
                // As bits, in the order in which the bounds were found.
                let (low, high) = (low.to_bits(), high.to_bits());
                vector::update(model, [base], move |x, [b]| {
                    let change = x - b;
                    let dropped = (magnitude(change) < low) | (magnitude(change) > high);
                    change * if dropped { 0.0 } else { scale } * weight
                });
            }
            Mask::Random(key, limit) => key.update(start, model, [base], |x, [b], number| {
                (x - b) * if number <= limit { scale } else { 0.0 } * weight
            }),
            Mask::Rank { key, density, epsilon } => {
                vector::update(model, [base], |x, [b]| x - b);
                self.by_rank(start, model, key, density, epsilon);
                vector::update(model, [], move |x, []| x * weight);
            }
        }
    }

    /// Keeps each element of a row with a probability by its rank. Of elements that are equal each has the mean rank.
    fn by_rank(&self, start: u64, change: &mut [f32], key: Key, density: f64, epsilon: f64) {
        let Rows { length, stride } = self.rows;
        let mut random = vec![0u32; change.len()];
        key.fill(start, &mut random);
        let mut row = Row::default();
        for (slice, random) in change.chunks_mut(self.rows.unit()).zip(random.chunks(self.rows.unit())) {
            for offset in 0..stride {
                row.values.clear();
                row.numbers.clear();
                row.values.extend(slice[offset..].iter().step_by(stride));
                row.numbers.extend(random[offset..].iter().step_by(stride));
                vector::run(Keep { row: &mut row, density, epsilon, scale: self.scale });
                if self.by_probability {
                    for i in 0..length {
                        let probability = density - epsilon + 2.0 * epsilon * row.place(row.magnitudes[i]);
                        row.values[i] *= (1.0 / probability) as f32;
                    }
                }
                slice[offset..].iter_mut().step_by(stride).zip(&row.values).for_each(|(x, kept)| *x = *kept);
            }
        }
    }
}

/// The bits of a number without its sign, which sort as magnitudes do; NaN is the largest.
#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// A row's elements with their random numbers, and their order so far as it is asked for.
#[derive(Default)]
struct Row {
    values: Vec<f32>,
    numbers: Vec<u32>,
    magnitudes: Vec<u32>,
    /// All bits of what is kept, none of what is dropped.
    masks: Vec<u32>,
    /// The magnitudes by bucket.
    sorted: Vec<u32>,
    /// Where each bucket begins; one more for the end.
    starts: Vec<u32>,
    /// The largest magnitude without the bits below those that name a bucket.
    top: u32,
    undecided: Vec<u32>,
}

impl Row {
    /// Bits of a magnitude below those that name its bucket: 32 buckets to an octave.
    const SHIFT: u32 = 18;
    /// Buckets, 16 octaves of them: what is below the lowest is in it, too.
    const BUCKETS: u32 = 512;

    /// Buckets ascend with magnitudes.
    #[inline(always)]
    fn bucket(&self, magnitude: u32) -> usize {
        let below = self.top - (magnitude >> Self::SHIFT);
        (Self::BUCKETS - 1).saturating_sub(below) as usize
    }

    /// Sorts the magnitudes into buckets.
    #[inline(always)]
    fn sort(&mut self) {
        let length = self.values.len();
        self.magnitudes.resize(length, 0);
        let mut most = 0;
        for (magnitude, value) in self.magnitudes.iter_mut().zip(&self.values) {
            *magnitude = self::magnitude(*value);
            most = if *magnitude > most { *magnitude } else { most };
        }
        self.top = most >> Self::SHIFT;
        self.sorted.resize(length, 0);
        // Two sets of counts, so that equal neighbours do not wait for each other.
        let mut counts = [[0u32; Self::BUCKETS as usize + 1]; 2];
        for pair in self.magnitudes.chunks(2) {
            for (counts, magnitude) in counts.iter_mut().zip(pair) {
                counts[self.bucket(*magnitude)] += 1;
            }
        }
        self.starts.clear();
        let mut end = 0;
        self.starts.extend(counts[0].iter().zip(&counts[1]).map(|(a, b)| {
            end += a + b;
            end
        }));
        // Each bucket is filled from its end, so that its end becomes its start.
        for i in 0..length {
            let magnitude = self.magnitudes[i];
            let bucket = self.bucket(magnitude);
            let start = &mut self.starts[bucket];
            *start -= 1;
            self.sorted[*start as usize] = magnitude;
        }
    }

    /// The mean rank, from 0, of the elements of this magnitude, which is one of the row's.
    #[inline(always)]
    fn rank(&self, magnitude: u32) -> f64 {
        let bucket = self.bucket(magnitude);
        let (start, end) = (self.starts[bucket], self.starts[bucket + 1]);
        let (mut less, mut equal) = (0u32, 0u32);
        for other in &self.sorted[start as usize..end as usize] {
            less += u32::from(*other < magnitude);
            equal += u32::from(*other == magnitude);
        }
        f64::from(start + less) + (f64::from(equal) - 1.0) / 2.0
    }

    /// The rank on a scale from 0, the least, to 1; an only element is in the middle.
    fn place(&self, magnitude: u32) -> f64 {
        match self.values.len() {
            0 | 1 => 0.5,
            length => self.rank(magnitude) / (length - 1) as f64,
        }
    }
}

/// Decides which elements of a row are kept.
struct Keep<'a> {
    row: &'a mut Row,
    density: f64,
    epsilon: f64,
    scale: f32,
}

impl Loop for Keep<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { row, density, epsilon, scale } = self;
        let length = row.values.len();
        row.sort();
        // Whatever their rank, elements are kept below the first limit and dropped from the second one on. Densities
        // with their spread are below 1, so that limits have 32 bits.
        let (low, high) = (threshold(density - epsilon) as u32, threshold(density + epsilon) as u32);
        row.masks.resize(length, 0);
        row.undecided.resize(length, 0);
        let mut undecided = 0;
        for (i, (mask, number)) in row.masks.iter_mut().zip(&row.numbers).enumerate() {
            *mask = if *number < low { u32::MAX } else { 0 };
            // Without a branch, which could not be foretold.
            row.undecided[undecided] = i as u32;
            undecided += usize::from(number.wrapping_sub(low) < high.wrapping_sub(low));
        }
        if length == 1 {
            row.masks[0] = if row.numbers[0] < low.midpoint(high) { u32::MAX } else { 0 };
            undecided = 0;
        }
        // An element is kept if its rank is above this place for its number.
        let step = length.saturating_sub(1) as f64 / f64::from((high - low).max(1));
        for index in 0..undecided {
            let i = row.undecided[index] as usize;
            let (magnitude, place) = (row.magnitudes[i], f64::from(row.numbers[i] - low) * step);
            let bucket = row.bucket(magnitude);
            let (start, end) = (f64::from(row.starts[bucket]), f64::from(row.starts[bucket + 1]));
            let is_within = (place >= start) & (place <= end - 1.0);
            let is_kept = if is_within { row.rank(magnitude) > place } else { place < start };
            row.masks[i] = u32::from(is_kept).wrapping_neg();
        }
        for (value, mask) in row.values.iter_mut().zip(&row.masks) {
            // What is not a number stays.
            *value *= f32::from_bits(scale.to_bits() & mask);
        }
    }
}

impl Sparse {
    fn mask(&self, terms: &Terms, model: usize, bounds: Option<(f32, f32)>) -> Mask {
        let density = terms.each("density")[model];
        let key = Key::new(terms.seed, &terms.tensor, model);
        match (self.sparsifier, bounds) {
            _ if density >= 1.0 => Mask::All,
            (Sparsifier::Magnitude | Sparsifier::Outliers, Some((low, high))) => Mask::Between(low, high),
            (Sparsifier::Random, _) if density > 0.0 => {
                threshold(density).checked_sub(1).map_or(Mask::Nothing, |limit| Mask::Random(key, limit as u32))
            }
            (Sparsifier::Rank, _) if density > 0.0 => {
                Mask::Rank { key, density, epsilon: terms.each("epsilon")[model] }
            }
            _ => Mask::Nothing,
        }
    }

    /// The ranks, in ascending order of magnitude, of the least and the most that is kept of `n` elements.
    fn ranks(&self, terms: &Terms, model: usize, n: u64) -> Option<(u64, u64)> {
        let density = terms.each("density")[model];
        if density >= 1.0 || n == 0 {
            return None;
        }
        let kept = (density.max(0.0) * n as f64) as u64;
        match self.sparsifier {
            Sparsifier::Magnitude if density > 0.0 => Some((n - kept.max(1), n - 1)),
            Sparsifier::Outliers if kept > 0 => {
                let top = (terms.each("gamma")[model] * n as f64) as u64;
                let first = n.saturating_sub(kept).saturating_sub(top);
                Some((first, first + kept - 1))
            }
            _ => None,
        }
    }

    /// The least and the greatest magnitude that is kept of each model.
    fn bounds(&self, terms: &Terms, tensors: &[Data<'_>]) -> Result<Vec<Option<(f32, f32)>>> {
        let n = tensors.iter().map(Data::elements).sum();
        let ranks: Vec<_> = (0..terms.models()).map(|model| self.ranks(terms, model, n)).collect();
        let wanted: Vec<Vec<u64>> = ranks
            .iter()
            .map(|ranks| match (self.sparsifier, ranks) {
                (Sparsifier::Outliers, Some((low, high))) => vec![*low, *high],
                (_, Some((low, _))) => vec![*low],
                (_, None) => Vec::new(),
            })
            .collect();
        let found = select(tensors, &wanted, |block| block.subtract_base())?;
        Ok(found
            .iter()
            .map(|found| found.first().map(|low| (*low, found.get(1).copied().unwrap_or(f32::INFINITY))))
            .collect())
    }
}

impl Method for Sparse {
    fn about(&self) -> &About {
        &self.about
    }

    fn check(&self, terms: &Terms) -> Result<(), String> {
        for (name, most) in [("rescale", 2.0), ("elect", 2.0), ("global", 1.0)] {
            if let Some(value) =
                terms.each(name).iter().find(|value| value.fract() != 0.0 || **value < 0.0 || **value > most)
            {
                return Err(format!("{} needs a {name} of whole 0 to {most}, not {value}", self.about.name));
            }
        }
        let negative = |name: &str| terms.each(name).iter().copied().find(|value| *value < 0.0);
        let refused = match self.sparsifier {
            Sparsifier::Random => "density",
            Sparsifier::Outliers => "gamma",
            Sparsifier::Magnitude | Sparsifier::Rank => "",
        };
        if let Some(value) = negative(refused) {
            return Err(format!("{} needs a {refused} of at least 0, not {value}", self.about.name));
        }
        if self.sparsifier == Sparsifier::Rank {
            for (density, epsilon) in terms.each("density").iter().zip(terms.each("epsilon")) {
                if *density > 0.0 && *density < 1.0 && (density + epsilon >= 1.0 || density - epsilon <= 0.0) {
                    return Err(format!(
                        "{} needs density − epsilon above 0 and density + epsilon below 1, not {density} and {epsilon}",
                        self.about.name
                    ));
                }
            }
        }
        Ok(())
    }

    fn unit(&self, terms: &Terms) -> u64 {
        if self.sparsifier == Sparsifier::Rank { Rows::of(&terms.shape).unit() as u64 } else { 1 }
    }

    fn surveys(&self, terms: &Terms) -> bool {
        terms.is_on("global")
    }

    fn survey(&self, terms: &[Terms], tensors: &[Data<'_>]) -> Result<Vec<f64>> {
        let Some(terms) = terms.first() else { return Ok(Vec::new()) };
        // NaN stands for a model of which everything is kept, or nothing.
        let bounds = self.bounds(terms, tensors)?;
        Ok(bounds.into_iter().map(|bounds| bounds.map_or(f64::NAN, |(low, _)| f64::from(low))).collect())
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let models = terms.models();
        let bounds = if terms.survey.is_empty() {
            self.bounds(terms, std::slice::from_ref(data))?
        } else {
            let bound = |low: &f64| (!low.is_nan()).then_some((*low as f32, f32::INFINITY));
            terms.survey.iter().map(bound).collect()
        };
        let rows = Rows::of(&terms.shape);
        let by_probability = terms.get("rescale") == 2.0;
        let mut sieves: Vec<Sieve> = (0..models)
            .map(|model| Sieve { mask: self.mask(terms, model, bounds[model]), scale: 1.0, by_probability, rows })
            .collect();
        if by_probability {
            // Where the probability is another for each element, it is divided by when it is known.
            let even = sieves.iter_mut().zip(terms.each("density"));
            for (sieve, density) in even.filter(|(sieve, _)| !matches!(sieve.mask, Mask::Rank { .. })) {
                sieve.scale = (1.0 / density) as f32;
            }
        } else if terms.is_on("rescale") && sieves.iter().any(|sieve| sieve.mask != Mask::All) {
            let norms = data.sums(2 * models, |block, sums| {
                let start = block.start;
                let (changes, base) = block.split_base();
                for (i, sieve) in sieves.iter().enumerate() {
                    let change = &mut changes[i];
                    sums[2 * i] += vector::sum_fast([change, base], |[x, b]| (x - b).abs());
                    sieve.apply(start, change, base, 1.0);
                    sums[2 * i + 1] += vector::sum_fast([change], |[x]| x.abs());
                }
            })?;
            for (sieve, norms) in sieves.iter_mut().zip(norms.chunks(2)) {
                let ratio = norms[0] / norms[1];
                if norms[0] >= SMALLEST_NORM && norms[1] >= SMALLEST_NORM && ratio.is_finite() {
                    sieve.scale = ratio as f32;
                }
            }
        }
        let lambda = terms.get("lambda") as f32;
        let weights: Vec<f32> = terms.weights.iter().map(|weight| *weight as f32).collect();
        let total: f32 = weights.iter().sum();
        let divisor = if terms.normalize && total.abs() >= 1e-8 { total } else { 1.0 };
        Ok(match terms.get("elect") {
            0.0 => Solution::of(Summed { sieves, weights, factor: lambda / divisor }),
            elect => {
                Solution::of(Elected { sieves, weights, lambda, normalize: terms.normalize, by_count: elect == 2.0 })
            }
        })
    }
}

/// L1 norms below this are left as they are.
const SMALLEST_NORM: f64 = 1e-7;

/// `b + factor·Σ wᵢ·s(xᵢ − b)`
struct Summed {
    sieves: Vec<Sieve>,
    weights: Vec<f32>,
    factor: f32,
}

impl Elementwise for Summed {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        let start = block.start;
        let (changes, base) = block.split_base();
        out.fill(0.0);
        for ((change, sieve), weight) in changes.iter_mut().zip(&self.sieves).zip(&self.weights) {
            sieve.apply(start, change, base, *weight);
            vector::update(out, [change], |sum, [x]| sum + x);
        }
        let factor = self.factor;
        vector::update(out, [base], move |sum, [b]| b + factor * sum);
    }
}

/// The sum of what has the elected sign.
struct Elected {
    sieves: Vec<Sieve>,
    weights: Vec<f32>,
    lambda: f32,
    normalize: bool,
    by_count: bool,
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
    /// The elements `at..`, as many as `out` has, all of them in lanes of the same width.
    #[inline(always)]
    fn lanes<const N: usize>(elected: &Elected, changes: &[Vec<f32>], at: usize, base: &[f32; N], out: &mut [f32; N]) {
        let lane = |change: &Vec<f32>| *change[at..].first_chunk::<N>().unwrap_or(&[0.0; N]);
        let mut votes = [0.0; N];
        for change in changes {
            let change = lane(change);
            for i in 0..N {
                let vote = if change[i] == 0.0 { 0.0 } else { 1f32.copysign(change[i]) };
                votes[i] += if elected.by_count { vote } else { change[i] };
            }
        }
        let (mut sum, mut divisor) = ([0.0; N], [0.0; N]);
        for (change, weight) in changes.iter().zip(&elected.weights) {
            let change = lane(change);
            for i in 0..N {
                let agrees = if votes[i] >= 0.0 { change[i] > 0.0 } else { change[i] < 0.0 };
                // What is not a number stays.
                sum[i] += change[i] * if agrees { 1.0 } else { 0.0 };
                divisor[i] += if agrees { *weight } else { 0.0 };
            }
        }
        for i in 0..N {
            let divisor = if divisor[i] == 0.0 || !elected.normalize { 1.0 } else { divisor[i] };
            out[i] = base[i] + elected.lambda * (sum[i] / divisor);
        }
    }
}

impl Loop for Elect<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { elected, changes, base, out } = self;
        let whole = out.len() / LANES * LANES;
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let (base, base_rest) = base.as_chunks::<LANES>();
        for (index, (base, out)) in base.iter().zip(chunks).enumerate() {
            Self::lanes(elected, changes, index * LANES, base, out);
        }
        for (index, (base, out)) in base_rest.iter().zip(rest).enumerate() {
            let mut one = [0.0];
            Self::lanes(elected, changes, whole + index, &[*base], &mut one);
            *out = one[0];
        }
    }
}
