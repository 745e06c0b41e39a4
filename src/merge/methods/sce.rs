//! Select, calculate, erase: `out = b + Σ mᵢ·vᵢ·dᵢ / max(Σ mᵢ·vᵢ, 1e-6)` with `dᵢ = xᵢ − b` where it was selected, else 0.
//!
//! Wan et al. 2024 (FuseChat), <https://arxiv.org/abs/2408.07990>, per tensor as mergekit 0.1.5 computes it:
//!
//! - *select*, if `select_topk` is below 1: of the elements whose changes differ between the models, the share of those
//!   with the largest variance over the models (of the population); nothing of one model alone.
//! - *calculate*: `vᵢ = mean(dᵢ²) / Σⱼ mean(dⱼ²)`, over all elements; the same for all models where the sum is below 1e-6.
//! - *erase*: mᵢ is 1 where the sign of dᵢ is that of `Σ dⱼ` (positive where that is 0), else 0; zeros agree with neither.
//!
//! Elements whose variance equals the least that is selected are all selected, where mergekit's choice among them is the
//! sorting's. What is not finite in an input makes the weights, and so the tensor, NaN.

use crate::dtype::vector::{self, Loop};
use crate::error::Result;
use crate::merge::{
    ANY, About, Allowed, Base, Block, Data, Elementwise, Method, Parameter, Shader, Solution, Terms, Weight,
};

/// See the module.
pub(super) struct Sce;

const ABOUT: About = About {
    name: "sce",
    what: "changes that differ most between the models, weighted by their squares, where they agree in sign",
    formula: "b + Σ mᵢ·vᵢ·(xᵢ − b) / Σ mᵢ·vᵢ, vᵢ = ‖xᵢ − b‖²/Σ ‖xⱼ − b‖², mᵢ where selected and the sign is the elected one",
    source: "https://arxiv.org/abs/2408.07990",
    base: Base::Required,
    models: (1, ANY),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("select_topk", 1.0, "the share of elements that is selected, by variance")
            .within(Allowed::Between(0.0, 1.0)),
        Parameter::shared("int8_mask", 0.0, "has no effect; recipes carry it").within(Allowed::Switch),
    ],
};

/// Sums of mean squares below this weigh all models the same, and sums of weights below it count as it.
const SMALLEST: f64 = 1e-6;
/// Elements that are computed side by side.
const CHUNK: usize = 64;

/// The variance of several vectors' elements.
struct Variance<'a> {
    values: &'a [Vec<f32>],
    out: &'a mut [f32],
}

impl Loop for Variance<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Some(first) = self.values.first() else { return };
        let count = self.values.len() as f64;
        for (chunk, out) in self.out.chunks_mut(CHUNK).enumerate() {
            let part = chunk * CHUNK..chunk * CHUNK + out.len();
            let (mut mean, mut sum) = ([0.0; CHUNK], [0.0; CHUNK]);
            // Around the first, so that equal values have no variance at all.
            let first = &first[part.clone()];
            for values in self.values {
                for ((mean, x), first) in mean.iter_mut().zip(&values[part.clone()]).zip(first) {
                    *mean += (f64::from(*x) - f64::from(*first)) / count;
                }
            }
            for values in self.values {
                for (((sum, mean), x), first) in sum.iter_mut().zip(&mean).zip(&values[part.clone()]).zip(first) {
                    let distance = f64::from(*x) - f64::from(*first) - mean;
                    *sum += distance * distance;
                }
            }
            out.iter_mut().zip(&sum).for_each(|(out, sum)| *out = (sum / count) as f32);
        }
    }
}

/// Turns a block into the models' changes, and zeros where they are not selected: where the variance is below `least`.
fn select(block: &mut Block<'_>, least: Option<f32>) {
    block.subtract_base();
    let Some(least) = least else { return };
    let (changes, _) = block.split_base();
    let mut variance = vec![0.0; changes.first().map_or(0, Vec::len)];
    vector::run(Variance { values: changes, out: &mut variance });
    for change in changes {
        vector::update(change, [&variance], |x, [variance]| if variance < least { 0.0 * x } else { x });
    }
}

/// The least variance that is selected; none if nothing is.
fn least_variance(share: f64, data: &Data<'_>) -> Result<Option<f32>> {
    let variance = |block: &mut Block<'_>| {
        block.subtract_base();
        let mut variance = vec![0.0; block.length()];
        let (changes, _) = block.split_base();
        vector::run(Variance { values: changes, out: &mut variance });
        block.inputs[0].copy_from_slice(&variance);
    };
    let models = data.models();
    let differs = || Shader::of("select(1.0, 0.0, variance$(x) == 0.0)").with(&variance_shader(models));
    let differing = data.sums(1, differs, |block, sums| {
        variance(block);
        sums[0] += vector::sum([&block.inputs[0]], |[x]| if x == 0.0 { 0.0 } else { 1.0 });
    })?;
    let count = (differing[0] * share.max(0.0)) as u64;
    if count == 0 {
        return Ok(None);
    }
    let shader = || Shader::of("variance$(x)").with(&variance_shader(models));
    let found = data.select(&[vec![data.elements() - count]], shader, variance)?;
    Ok(found.into_iter().flatten().next())
}

/// `variance$(x)` of the models' changes. Scaled by powers of two, so that squares are numbers that devices have; what is
/// beyond those makes the tile the CPU's. In pairs of f32, rounded to one at last, as the CPU's f64 is.
fn variance_shader(models: usize) -> String {
    let mut text = PAIRS.to_owned();
    text += "fn variance$(x: Values$) -> f32 {\n";
    for i in 0..models {
        text += &format!("    let d{i} = distance$(x[{i}] - x[BASE$], x[0] - x[BASE$]);\n");
    }
    let sum = |terms: String| format!("divided$({terms}, {models}.0)");
    let added = |term: &dyn Fn(usize) -> String| {
        (0..models).map(term).reduce(|sum, term| format!("add_pairs({sum}, {term})")).unwrap_or_default()
    };
    text += &format!("    let mean = {};\n", sum(added(&|i| format!("d{i}"))));
    text += &format!("    let sum = {};\n", sum(added(&|i| format!("squared$(add_pairs(d{i}, -mean))"))));
    text + "    return (sum.x + sum.y) * 8.271806125530277e-25;\n}\n"
}

/// Arithmetic of pairs, of distances times 2⁴⁰; squares are divided by 2⁸⁰ at last.
const PAIRS: &str = "
fn distance$(a: f32, b: f32) -> vec2<f32> {
    let distance = two_sum(a, -b) * 1099511627776.0;
    strange = strange || (distance.x != 0.0 && (abs(distance.x) < 1e-6 || abs(distance.x) > 1e18));
    return distance;
}
fn divided$(a: vec2<f32>, by: f32) -> vec2<f32> {
    let quotient = a.x / by;
    let product = two_product(quotient, by);
    return vec2(quotient, ((a.x - product.x) - product.y + a.y) / by);
}
fn squared$(a: vec2<f32>) -> vec2<f32> {
    let square = two_product(a.x, a.x);
    return vec2(square.x, square.y + 2.0 * a.x * a.y);
}
";

/// A shader that may use `selected$(x, change)`: 0 where the variance is below `least`.
fn selecting(shader: Shader, models: usize, least: Option<f32>) -> Shader {
    match least {
        None => shader.with("fn selected$(x: Values$, change: f32) -> f32 { return change; }"),
        Some(least) => {
            let selected = "fn selected$(x: Values$, change: f32) -> f32 { return select(change, zero() * change, variance$(x) < number$(0u)); }";
            shader.with(&variance_shader(models)).with(selected).numbers([least])
        }
    }
}

impl Method for Sce {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn searches(&self, _terms: &Terms) -> usize {
        1
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let models = terms.models();
        let share = terms.get("select_topk");
        let mut least = None;
        if share < 1.0 {
            least = least_variance(share, data)?;
            if least.is_none() {
                return Ok(Solution::around_base(vec![0.0; models]));
            }
        }
        let square = || {
            let square = |i: usize| format!("selected$(x, x[{i}] - x[BASE$]) * selected$(x, x[{i}] - x[BASE$])");
            selecting(Shader::each((0..models).map(square)), models, least)
        };
        let squares = data.sums(models, square, |block, sums| {
            select(block, least);
            for (sum, change) in sums.iter_mut().zip(&*block.inputs) {
                *sum += vector::dot(change, change);
            }
        })?;
        let total = squares.iter().sum::<f64>() / data.elements().max(1) as f64;
        let weight = |square: &f64| match total {
            small if small < SMALLEST => 1.0 / models as f64,
            total => square / data.elements().max(1) as f64 / total,
        };
        Ok(Solution::elementwise(Erased {
            least,
            weights: squares.iter().map(|square| weight(square) as f32).collect(),
        }))
    }
}

/// The weighted mean of what has the elected sign.
struct Erased {
    least: Option<f32>,
    weights: Vec<f32>,
}

impl Elementwise for Erased {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        select(block, self.least);
        let (changes, base) = block.split_base();
        let mut votes = vec![0.0; out.len()];
        for change in &*changes {
            vector::update(&mut votes, [change], |votes, [x]| votes + x);
        }
        let mut divisor = vec![0.0; out.len()];
        out.fill(0.0);
        for (change, &weight) in changes.iter().zip(&self.weights) {
            let agrees = |x: f32, votes: f32| if votes >= 0.0 { x > 0.0 } else { x < 0.0 };
            let weight = |x: f32, votes: f32| if agrees(x, votes) { weight } else { 0.0 * weight };
            vector::update(out, [change, &votes], |sum, [x, votes]| sum + x * weight(x, votes));
            vector::update(&mut divisor, [change, &votes], |sum, [x, votes]| sum + weight(x, votes));
        }
        vector::update(out, [base, &divisor], |sum, [b, divisor]| b + sum / divisor.max(SMALLEST as f32));
    }

    fn shader(&self) -> Option<Shader> {
        let models = self.weights.len();
        let first = usize::from(self.least.is_some());
        let mut text = "fn erased$(x: Values$) -> f32 {\n".to_owned();
        for i in 0..models {
            text += &format!("    let c{i} = selected$(x, x[{i}] - x[BASE$]);\n");
        }
        text += &format!("    let votes = {};\n", Shader::total(models, |i| format!("c{i}")));
        for i in 0..models {
            let agrees = format!("select((c{i} < 0.0), (c{i} > 0.0), votes >= 0.0)");
            let weight = format!("number$({}u)", first + i);
            text += &format!("    let w{i} = select(zero() * {weight}, {weight}, {agrees});\n");
        }
        let (sum, divisor) = (
            Shader::sum_from_zero(models, |i| format!("rounded(c{i} * w{i})")),
            Shader::total(models, |i| format!("w{i}")),
        );
        text += &format!("    return x[BASE$] + {sum} / max({divisor}, {:e}f);\n}}\n", SMALLEST as f32);
        let shader = selecting(Shader::of("erased$(x)"), models, self.least).with(&text);
        Some(shader.numbers(self.weights.iter().copied()))
    }
}
