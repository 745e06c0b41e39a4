//! Model stock: from the base toward the models' average, as far as the angle between their changes warrants.
//!
//! `out = t·mean(xᵢ) + (1−t)·b` with `t = N·c / (1 + (N−1)·c)`, where c is the mean cosine of all pairs of changes; t is 0
//! where the denominator is. Jang et al. 2024, <https://arxiv.org/abs/2403.19522>. The paper does this per layer's tensor,
//! `filter_wise` per row. sd-mecha 1.1.8 takes the mean over neighbours in the list of models only, per row: `neighbours` 1
//! with `filter_wise` 1.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{
    ANY, About, Allowed, Base, Block, Data, Elementwise, Gram, Method, Parameter, Shader, Solution, Terms, Weight,
};

/// See the module.
pub(super) struct ModelStock;

const ABOUT: About = About {
    name: "model-stock",
    what: "from the base toward the average, by the angle between the models' changes",
    formula: "t·Σ xᵢ/N + (1−t)·b, t = N·c/(1+(N−1)·c), c the mean cosine of pairs (xᵢ−b, xⱼ−b)",
    source: "https://arxiv.org/abs/2403.19522",
    base: Base::Required,
    models: (2, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("filter_wise", 0.0, "1 takes an angle for each row instead of the tensor")
            .within(Allowed::Switch),
        Parameter::shared("neighbours", 0.0, "1 takes angles between neighbours in the list instead of all pairs")
            .within(Allowed::Switch),
    ],
};

/// Products of norms below this count as this.
const SMALLEST_PRODUCT: f64 = 1e-6;

/// How far to go, from the inner products of the changes.
fn ratio(models: usize, neighbours: bool, product: impl Fn(usize, usize) -> f64) -> f64 {
    let last = |i: usize| if neighbours { models.min(i + 2) } else { models };
    let pairs: Vec<_> = (0..models).flat_map(|i| (i + 1..last(i)).map(move |j| (i, j))).collect();
    let cosine = |(i, j)| {
        let norms = product(i, i).sqrt() * product(j, j).sqrt();
        (product(i, j) / norms.max(SMALLEST_PRODUCT)).clamp(-1.0, 1.0)
    };
    let count = models as f64;
    let mean = pairs.iter().copied().map(cosine).sum::<f64>() / pairs.len() as f64;
    let denominator = 1.0 + (count - 1.0) * mean;
    if denominator.abs() < 1e-6 { 0.0 } else { count * mean / denominator }
}

impl Method for ModelStock {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn unit(&self, terms: &Terms) -> u64 {
        if terms.is_on("filter_wise") { terms.row() } else { 1 }
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let models = data.models();
        let neighbours = terms.is_on("neighbours");
        if !terms.is_on("filter_wise") {
            let gram = data.gram(true)?;
            let share = ratio(models, neighbours, |i, j| gram.product(i, j)) / models as f64;
            return Ok(Solution::around_base(vec![share; models]));
        }
        let row = terms.row();
        let changes = || Shader::each((0..models).map(|i| format!("x[{i}] - x[BASE$]")));
        if let Some(products) = data.row_grams(row, models, changes, |block| block.subtract_base())? {
            let shares = products.chunks(models * (models + 1) / 2).map(|upper| {
                let gram = Gram::new(models, upper);
                (ratio(models, neighbours, |i, j| gram.product(i, j)) / models as f64) as f32
            });
            return Ok(Solution::elementwise(ByRow { row, models, shares: shares.collect() }));
        }
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            block.subtract_base();
            let (changes, base) = block.split_base();
            for (start, out) in (0..).step_by(row as usize).zip(out.chunks_mut(row as usize)) {
                let part = |i: usize| &changes[i][start..start + row as usize];
                let share = (ratio(models, neighbours, |i, j| vector::dot(part(i), part(j))) / models as f64) as f32;
                out.copy_from_slice(&base[start..start + row as usize]);
                for i in 0..models {
                    vector::update(out, [part(i)], |out, [change]| out + share * change);
                }
            }
        };
        Ok(Solution::of_whole(function))
    }
}

/// Every change times its row's share.
struct ByRow {
    row: u64,
    models: usize,
    shares: Vec<f32>,
}

impl Elementwise for ByRow {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        block.subtract_base();
        let first = (block.start / self.row) as usize;
        let (changes, base) = block.split_base();
        out.copy_from_slice(base);
        for (share, start) in self.shares[first..].iter().zip((0..out.len()).step_by(self.row as usize)) {
            let row = start..start + self.row as usize;
            for change in &*changes {
                vector::update(&mut out[row.clone()], [&change[row.clone()]], |out, [change]| out + share * change);
            }
        }
    }

    fn shader(&self) -> Option<Shader> {
        let add = |sum: String, i: usize| format!("({sum} + rounded(number$(row$(at)) * (x[{i}] - x[BASE$])))");
        let value = (0..self.models).fold("x[BASE$]".to_owned(), add);
        Some(Shader::of(value).rows(self.row).numbers(self.shares.iter().copied()))
    }
}
