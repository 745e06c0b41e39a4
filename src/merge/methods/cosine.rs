//! Two models by how alike their columns are: `out = k·a + (1−k)·b` with `k = clip(s − α, 0, 1)`, where s is how alike a and b
//! are. A column is the elements at one place of all dimensions but the first.
//!
//! supermerger's cosineA and cosineB. s is the mean of the cosine of the columns and the cosine of the tensors, brought to 0..1
//! by the least and the greatest cosine of all columns of all tensors that are merged, the most extreme hundredths aside.
//! For `cosine-a` columns are brought to length 1 before, so that the tensors' cosine is the mean of the columns', the
//! range is that of the columns' cosines alone, and the sign of α does not count; for `cosine-b` the range is that of the mean.
//!
//! `rescale` 0 is sd-mecha 1.1.8's `add_cosine_a` and `add_cosine_b`: s is the columns' cosine alone, or its mean with the
//! tensors', as it is. This takes no pass over the whole model before the first tensor is merged, and a tensor's result
//! hangs on no other tensor; but the cosines of two fine-tunes are all near 1, so that it is nearly a weighted sum. That is
//! why 1 is the default.
//!
//! Where all cosines are equal there is no range, and they are taken as they are (supermerger divides by 0). The survey holds a
//! number for each column of the model.

use super::nuslerp::{PRODUCT_SCALE, product_shader};
use crate::dtype::vector;
use crate::error::{Error, Result};
use crate::merge::{About, Allowed, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};

/// A row of the table.
#[derive(Debug)]
pub(super) struct Cosine {
    about: About,
    /// Whether the columns' cosine counts more than the tensors'.
    favours_columns: bool,
}

const fn row(name: &'static str, what: &'static str, formula: &'static str, favours_columns: bool) -> Cosine {
    const PARAMETERS: &[Parameter] = &[
        Parameter::shared("alpha", 0.0, "moves all toward the second model"),
        Parameter::shared("rescale", 1.0, "0 takes cosines as they are, not spread over 0 to 1 by the whole model's")
            .within(Allowed::Switch),
    ];
    let source = "https://github.com/hako-mikan/sd-webui-supermerger";
    let (base, weight) = (Base::None, Weight::Unused);
    let about =
        About { name, what, formula, source, base, models: (2, 2), weight, normalizes: false, parameters: PARAMETERS };
    Cosine { about, favours_columns }
}

pub(super) static COSINE_A: Cosine = row(
    "cosine-a",
    "the first model in columns that are alike in both, the second in others",
    "k·x₁ + (1−k)·x₂, k = clip(s − |α|, 0, 1), s from the cosines of columns of length 1",
    true,
);
pub(super) static COSINE_B: Cosine = row(
    "cosine-b",
    "the first model in columns and tensors that are alike in both, the second in others",
    "k·x₁ + (1−k)·x₂, k = clip(s − α, 0, 1), s from the mean cosine of columns and tensor",
    false,
);

/// Products of norms below this count as this, so that zeros are at right angles to all.
const SMALLEST_PRODUCT: f64 = 1e-8;
/// Norms below this count as this where columns are brought to length 1.
const SMALLEST_NORM: f64 = 1e-12;
/// Elements per tile, at least.
const TILE: u64 = 1 << 17;
/// Tiles that may be in work at a time, for what memory they take.
const IN_WORK: u64 = 64;

fn columns(terms: &Terms) -> u64 {
    terms.shape.iter().skip(1).product::<u64>().max(1)
}

/// Elements per tile: large against the sums that a tile makes.
fn tile(columns: u64) -> u64 {
    TILE.max(8 * columns)
}

/// `a·b`, `a·a` and `b·b` of each column.
struct Products {
    columns: usize,
    sums: Vec<f64>,
}

impl Products {
    fn new(columns: usize) -> Self {
        Self { columns, sums: vec![0.0; 3 * columns] }
    }

    fn measure(terms: &Terms, data: &Data<'_>) -> Result<Self> {
        let columns = columns(terms);
        let start = || Self::new(columns as usize);
        let mut total = start();
        let add = |part: Self| total.sums.iter_mut().zip(part.sums).for_each(|(total, part)| *total += part);
        let shader = || product_shader(|model| format!("x[{model}]"));
        let read = |sums: &[f64]| {
            let each = |which: usize| {
                sums.chunks_exact(6).map(move |sums| (sums[2 * which] + sums[2 * which + 1]) / PRODUCT_SCALE)
            };
            Self { columns: columns as usize, sums: [1, 0, 2].into_iter().flat_map(each).collect() }
        };
        data.columns(columns, 6, shader, tile(columns), start, |sums, block| sums.add(block), read, add)?;
        Ok(total)
    }

    fn add(&mut self, block: &Block<'_>) {
        let [a, b] = block.first();
        let (dot, norms) = self.sums.split_at_mut(self.columns);
        let (aa, bb) = norms.split_at_mut(self.columns);
        if self.columns == 1 {
            dot[0] += vector::dot(a, b);
            aa[0] += vector::dot(a, a);
            bb[0] += vector::dot(b, b);
            return;
        }
        for (column, range) in runs(self.columns, block.start, a.len()) {
            let of = column..column + range.len();
            let (dot, aa, bb) = (&mut dot[of.clone()], &mut aa[of.clone()], &mut bb[of]);
            vector::run(Accumulate { a: &a[range.clone()], b: &b[range], dot, aa, bb });
        }
    }

    fn each(&self) -> impl Iterator<Item = [f64; 3]> {
        let n = self.columns;
        (0..n).map(move |i| [self.sums[i], self.sums[n + i], self.sums[2 * n + i]])
    }

    fn total(&self) -> [f64; 3] {
        self.each().fold([0.0; 3], |total, sums| [total[0] + sums[0], total[1] + sums[1], total[2] + sums[2]])
    }
}

struct Accumulate<'a> {
    a: &'a [f32],
    b: &'a [f32],
    dot: &'a mut [f64],
    aa: &'a mut [f64],
    bb: &'a mut [f64],
}

impl vector::Loop for Accumulate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let products = self.dot.iter_mut().zip(self.aa).zip(self.bb);
        for ((a, b), ((dot, aa), bb)) in self.a.iter().zip(self.b).zip(products) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            *dot += a * b;
            *aa += a * a;
            *bb += b * b;
        }
    }
}

/// The elements `start..start + length` of a tensor, cut where rows end: each piece's first column, and where it is.
fn runs(columns: usize, start: u64, length: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let mut column = (start % columns as u64) as usize;
    let mut at = 0;
    std::iter::from_fn(move || {
        let run = (columns - column).min(length - at);
        let item = (run > 0).then(|| (column, at..at + run));
        (column, at) = (0, at + run);
        item
    })
}

fn cosine([dot, aa, bb]: [f64; 3]) -> f64 {
    dot / (aa.sqrt() * bb.sqrt()).max(SMALLEST_PRODUCT)
}

/// How alike columns are: in themselves, and with how alike the tensors are taken into account.
struct Likeness {
    along: Vec<f64>,
    mean: Vec<f64>,
}

impl Cosine {
    fn likeness(&self, terms: &Terms, data: &Data<'_>) -> Result<Likeness> {
        let products = Products::measure(terms, data)?;
        let scales = |square: f64| square.sqrt().max(SMALLEST_NORM);
        let unit = |[dot, aa, bb]: [f64; 3]| {
            let (a, b) = (scales(aa), scales(bb));
            [dot / (a * b), aa / (a * a), bb / (b * b)]
        };
        let (along, whole): (Vec<f64>, f64) = if self.favours_columns && terms.is_on("rescale") {
            let whole = products.each().map(unit).fold([0.0; 3], |sum, part| std::array::from_fn(|i| sum[i] + part[i]));
            (products.each().map(|sums| cosine(unit(sums))).collect(), cosine(whole))
        } else {
            (products.each().map(cosine).collect(), cosine(products.total()))
        };
        let mean = along.iter().map(|along| (along + whole) / 2.0).collect();
        Ok(Likeness { along, mean })
    }
}

/// The value between those nearest to a share of the way through a sorted list.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or(f64::NAN);
    (at(place.floor()) + at(place.ceil())) / 2.0
}

/// The least and the greatest, without the lowest hundredth and then the highest hundredth of what is left.
fn trimmed_range(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.retain(|value| !value.is_nan());
    values.sort_unstable_by(f64::total_cmp);
    let low = percentile(&values, 0.01);
    let kept = values.split_off(values.partition_point(|value| *value < low));
    let high = percentile(&kept, 0.99);
    let kept = &kept[..kept.partition_point(|value| *value <= high)];
    Some((*kept.first()?, *kept.last()?))
}

impl Method for Cosine {
    fn about(&self) -> &About {
        &self.about
    }

    fn memory(&self, terms: &Terms) -> u64 {
        let columns = columns(terms);
        let tiles = terms.shape.iter().product::<u64>().div_ceil(tile(columns)).min(IN_WORK);
        let sums = 3 * size_of::<f64>() as u64 * columns * (tiles + 1);
        sums + columns * (2 * size_of::<f64>() + size_of::<f32>()) as u64
    }

    fn surveys(&self, terms: &Terms) -> bool {
        terms.is_on("rescale")
    }

    fn survey(&self, terms: &[Terms], tensors: &[Data<'_>]) -> Result<Vec<f64>> {
        let mut values = Vec::new();
        for (terms, data) in terms.iter().zip(tensors).filter(|(terms, _)| terms.is_on("rescale")) {
            let Likeness { along, mean } = self.likeness(terms, data)?;
            values.extend(if self.favours_columns { along } else { mean });
        }
        Ok(trimmed_range(values).map_or(vec![f64::NAN; 2], |(low, high)| vec![low, high]))
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let alpha = terms.get("alpha");
        let likeness = self.likeness(terms, data)?;
        let shares: Vec<f32> = if terms.is_on("rescale") {
            let [low, high] = terms.survey[..] else {
                let message = format!("{} with rescale 1 needs numbers of the whole model", self.about.name);
                return Err(Error::Recipe(message));
            };
            let (low, range) = if high > low { (low, high - low) } else { (0.0, 1.0) };
            let alpha = if self.favours_columns { alpha.abs() } else { alpha };
            likeness.mean.iter().map(|mean| ((mean - low) / range - alpha).clamp(0.0, 1.0) as f32).collect()
        } else {
            let alike = if self.favours_columns { &likeness.along } else { &likeness.mean };
            alike.iter().map(|alike| (alike - alpha).clamp(0.0, 1.0) as f32).collect()
        };
        if let [share] = shares[..] {
            return Ok(Solution::sum(vec![f64::from(share), f64::from(1.0 - share)]));
        }
        let table = shares.clone();
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            for (column, range) in runs(shares.len(), block.start, out.len()) {
                out[range.clone()].copy_from_slice(&shares[column..column + range.len()]);
            }
            vector::update(out, block.first(), |k, [a, b]| k * a + (1.0 - k) * b);
        };
        let shader = move || {
            let value = "rounded(number$(column$(at)) * x[0]) + rounded((1.0 - number$(column$(at))) * x[1])";
            Shader::of(value).rows(table.len() as u64).numbers(table.iter().copied())
        };
        Ok(Solution::of(function, shader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extremes_are_trimmed_one_after_the_other() {
        let values: Vec<f64> = (0..1000).rev().map(f64::from).collect();
        // Of 0..=999 the first percentile is between 9 and 10; of the 990 left, the 99th is between 989 and 990.
        assert_eq!(trimmed_range(values), Some((10.0, 989.0)));
        assert_eq!(trimmed_range(vec![3.0]), Some((3.0, 3.0)));
        assert_eq!(trimmed_range(vec![f64::NAN, 1.0, 1.0]), Some((1.0, 1.0)));
        assert_eq!(trimmed_range(vec![f64::NAN]), None);
    }

    #[test]
    fn pieces_end_with_rows() {
        let pieces: Vec<_> = runs(5, 8, 9).collect();
        assert_eq!(pieces, [(3, 0..2), (0, 2..7), (0, 7..9)]);
        assert_eq!(runs(1, 7, 0).count(), 0);
    }
}
