//! Spherical interpolation of two models, or of their changes: `out = (sin((1−t)θ)·x₁ + sin(tθ)·x₂) / sin θ` with
//! `t = w₂ / (w₁ + w₂)`; with a base, `b` plus the same of `xᵢ − b`.
//!
//! NuSLERP of mergekit. θ is the angle between the tensors, each as one vector; with `nuslerp_flatten` 0, between the
//! vectors along the last dimension, or along the first with `nuslerp_row_wise` 1 (which has no effect on flattened
//! tensors). Where `|w₁ + w₂| < 1e-6`, t is 0.5. Norms below 1e-7 count as 1e-7.
//!
//! Order of operations: differences in f32, inner products in f64, shares in f64, rounded to f32 for the sum.
//!
//! Deviation: directions count as one line, and the sum is `(1−t)·x₁ + t·x₂`, where `sin² θ ≤ 1e-12`; mergekit has 1e-16,
//! below what f32 can tell from 0, so that between opposite vectors its result hangs on rounding.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{
    About, Allowed, Base, Block, Data, Elementwise, Method, Parameter, Shader, Solution, Terms, Weight,
};

/// See the module.
pub(super) struct Nuslerp;

const ABOUT: About = About {
    name: "nuslerp",
    what: "two models, or their changes, on the arc between them, by their weights",
    formula: "(sin((1−t)θ)·x₁ + sin(tθ)·x₂) / sin θ, t = w₂/(w₁+w₂)",
    source: "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md",
    base: Base::Optional,
    models: (2, 2),
    weight: Weight::Share,
    normalizes: false,
    parameters: &[
        Parameter::shared("nuslerp_flatten", 1.0, "0 takes an angle for each vector instead of the tensor")
            .within(Allowed::Switch),
        Parameter::shared("nuslerp_row_wise", 0.0, "1 takes vectors along the first dimension instead of the last")
            .within(Allowed::Switch),
    ],
};

/// Norms below this count as this.
const SMALLEST_NORM: f64 = 1e-7;
/// Where sin² θ is at most this, the arc is a line.
const COLINEAR: f64 = 1e-12;
/// Weights whose sum is below this say nothing of where between the models to go.
const SMALLEST_SUM: f64 = 1e-6;
/// Elements per tile when sums of many vectors are taken at once.
const TILE: u64 = 1 << 16;
/// Shares are repeated until there are as many, so that loops over them are long.
const LONG: usize = 1024;

/// Which vectors have an angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vectors {
    Whole,
    /// Along the last dimension.
    Rows(usize),
    /// Along the first dimension: so many lie side by side.
    Columns(usize),
}

impl Vectors {
    fn of(terms: &Terms) -> Self {
        match terms.shape[..] {
            _ if terms.is_on("nuslerp_flatten") => Self::Whole,
            [] | [_] => Self::Whole,
            [_, ref rest @ ..] if terms.is_on("nuslerp_row_wise") => match rest.iter().product::<u64>() {
                0 | 1 => Self::Whole,
                columns => Self::Columns(columns as usize),
            },
            _ => Self::Rows(terms.row() as usize),
        }
    }
}

/// What the first and the second vector are multiplied with, from their inner products `a·a`, `a·b`, `b·b`.
fn shares(t: f64, [aa, ab, bb]: [f64; 3]) -> [f64; 2] {
    let cosine = (ab / aa.sqrt().max(SMALLEST_NORM) / bb.sqrt().max(SMALLEST_NORM)).clamp(-1.0, 1.0);
    if 1.0 - cosine * cosine <= COLINEAR {
        return [1.0 - t, t];
    }
    let angle = cosine.acos();
    [((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()]
}

impl Method for Nuslerp {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn unit(&self, terms: &Terms) -> u64 {
        match Vectors::of(terms) {
            Vectors::Rows(row) => row as u64,
            Vectors::Whole | Vectors::Columns(_) => 1,
        }
    }

    fn memory(&self, terms: &Terms) -> u64 {
        match Vectors::of(terms) {
            Vectors::Columns(columns) => (columns * (size_of::<[f64; 3]>() + size_of::<[f32; 2]>())) as u64,
            Vectors::Whole | Vectors::Rows(_) => 0,
        }
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let t = match terms.weights[..] {
            [first, second] if (first + second).abs() >= SMALLEST_SUM => second / (first + second),
            _ => 0.5,
        };
        Ok(match Vectors::of(terms) {
            Vectors::Whole => {
                let gram = data.gram(terms.has_base)?;
                let shares = shares(t, [gram.product(0, 0), gram.product(0, 1), gram.product(1, 1)]).to_vec();
                if terms.has_base { Solution::around_base(shares) } else { Solution::sum(shares) }
            }
            Vectors::Rows(row) => {
                let has_base = terms.has_base;
                let shader = || Shader::each((0..2).map(|i| vector_shader(i, has_base)));
                match data.row_grams(row as u64, 2, shader, |block| block.subtract_base())? {
                    Some(products) => {
                        let shares = products.chunks_exact(3).flat_map(|p| shares(t, [p[0], p[1], p[2]]));
                        let shares = shares.map(|share| share as f32).collect();
                        Solution::elementwise(ByRow { row, shares, has_base })
                    }
                    None => Solution::elementwise(Rows { t, row }),
                }
            }
            Vectors::Columns(columns) => {
                let mut of_columns = [Vec::new(), Vec::new()];
                for products in products_of_columns(data, columns, terms.has_base)? {
                    let shares = shares(t, products);
                    of_columns.iter_mut().zip(shares).for_each(|(list, share)| list.push(share as f32));
                }
                let times = LONG.div_ceil(columns);
                let shares = of_columns.map(|list| list.repeat(times));
                Solution::elementwise(Columns { shares, has_base: terms.has_base })
            }
        })
    }
}

/// Each row by its own angle.
struct Rows {
    t: f64,
    row: usize,
}

impl Elementwise for Rows {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        block.subtract_base();
        let (first, second) = (&block.inputs[0], &block.inputs[1]);
        let rows = first.chunks(self.row).zip(second.chunks(self.row));
        for ((a, b), out) in rows.zip(out.chunks_mut(self.row)) {
            let products = [vector::dot(a, a), vector::dot(a, b), vector::dot(b, b)];
            let [p, q] = shares(self.t, products).map(|share| share as f32);
            vector::map(out, [a, b], |[a, b]| p * a + q * b);
        }
        add_base(block, out);
    }

    /// What is not solved yet is not a function of elements.
    fn shader(&self) -> Option<Shader> {
        None
    }
}

/// The vector of a model, with a base its difference from that.
fn vector_shader(model: usize, has_base: bool) -> String {
    if has_base { format!("(x[{model}] - x[BASE$])") } else { format!("x[{model}]") }
}

/// The two vectors times shares, plus the base if there is one.
fn sum_shader([p, q]: [&str; 2], has_base: bool) -> Shader {
    let term = |share: &str, model: usize| format!("rounded({share} * {})", vector_shader(model, has_base));
    let sum = format!("{} + {}", term(p, 0), term(q, 1));
    Shader::of(if has_base { format!("x[BASE$] + ({sum})") } else { sum })
}

/// The sum of rows by the shares of each, one after the other.
struct ByRow {
    row: usize,
    shares: Vec<f32>,
    has_base: bool,
}

impl Elementwise for ByRow {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        block.subtract_base();
        let first = (block.start / self.row as u64) as usize;
        let rows = block.inputs[0].chunks(self.row).zip(block.inputs[1].chunks(self.row));
        let shares = self.shares[2 * first..].chunks_exact(2);
        for (((a, b), out), share) in rows.zip(out.chunks_mut(self.row)).zip(shares) {
            let (p, q) = (share[0], share[1]);
            vector::map(out, [a, b], |[a, b]| p * a + q * b);
        }
        add_base(block, out);
    }

    fn shader(&self) -> Option<Shader> {
        let shares = ["number$(2u * row$(at))", "number$(2u * row$(at) + 1u)"];
        Some(sum_shader(shares, self.has_base).rows(self.row as u64).numbers(self.shares.iter().copied()))
    }
}

/// Each column by its own angle.
struct Columns {
    /// A whole number of times as many as there are columns.
    shares: [Vec<f32>; 2],
    has_base: bool,
}

impl Elementwise for Columns {
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        block.subtract_base();
        let [p, q] = &self.shares;
        let mut column = (block.start % p.len() as u64) as usize;
        let mut at = 0;
        while at < out.len() {
            let length = (p.len() - column).min(out.len() - at);
            let (here, there) = (at..at + length, column..column + length);
            let (a, b) = (&block.inputs[0][here.clone()], &block.inputs[1][here.clone()]);
            vector::map(&mut out[here], [a, b, &p[there.clone()], &q[there]], |[a, b, p, q]| p * a + q * b);
            at += length;
            column = 0;
        }
        add_base(block, out);
    }

    fn shader(&self) -> Option<Shader> {
        let length = self.shares[0].len();
        let shares = ["number$(1u + column$(at))", "number$(1u + word$(0u) + column$(at))"];
        let shader = sum_shader(shares, self.has_base).rows(length as u64);
        Some(shader.words([length as u32]).numbers(self.shares.iter().flatten().copied()))
    }
}

fn add_base(block: &mut Block<'_>, out: &mut [f32]) {
    if block.has_base {
        let (_, base) = block.split_base();
        vector::update(out, [base], |sum, [b]| b + sum);
    }
}

/// The sums of a tile, for the columns that it has elements of.
#[derive(Default)]
struct Part {
    start: Option<u64>,
    sums: Vec<[f64; 3]>,
}

/// `a·a`, `a·b` and `b·b` of each column of the two inputs.
fn products_of_columns(data: &Data<'_>, columns: usize, has_base: bool) -> Result<Vec<[f64; 3]>> {
    let mut total = vec![[0.0; 3]; columns];
    let visit = |part: &mut Part, block: &mut Block<'_>| {
        block.subtract_base();
        let offset = (block.start - *part.start.get_or_insert(block.start)) as usize;
        let reached = columns.min(offset + block.length());
        part.sums.resize(reached.max(part.sums.len()), [0.0; 3]);
        let mut column = offset % columns;
        for (a, b) in block.inputs[0].iter().zip(&block.inputs[1]) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let sums = &mut part.sums[column];
            sums[0] += a * a;
            sums[1] += a * b;
            sums[2] += b * b;
            column = if column + 1 == columns { 0 } else { column + 1 };
        }
    };
    let combine = |part: Part| {
        let first = (part.start.unwrap_or(0) % columns as u64) as usize;
        for (index, sums) in part.sums.iter().enumerate() {
            let total = &mut total[(first + index) % columns];
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    };
    let shader = || product_shader(|model| vector_shader(model, has_base));
    let read = |sums: &[f64]| {
        let of_column = |sums: &[f64]| std::array::from_fn(|i| (sums[2 * i] + sums[2 * i + 1]) / PRODUCT_SCALE);
        Part { start: None, sums: sums.chunks_exact(6).map(of_column).collect() }
    };
    data.columns(columns as u64, 6, shader, TILE, Part::default, visit, read, combine)?;
    Ok(total)
}

/// What [`product_shader`] multiplies products with, so that those of small numbers are numbers that devices have.
pub(super) const PRODUCT_SCALE: f64 = (1u128 << 80) as f64;

/// `a·a`, `a·b` and `b·b` of two vectors, each with what rounding takes from it, times [`PRODUCT_SCALE`].
pub(super) fn product_shader(vector: impl Fn(usize) -> String) -> Shader {
    let scaled = |model: usize| format!("({} * {:e})", vector(model), PRODUCT_SCALE.sqrt());
    let (a, b) = (scaled(0), scaled(1));
    let product = |a: &str, b: &str| [format!("rounded({a} * {b})"), format!("fma({a}, {b}, -rounded({a} * {b}))")];
    Shader::each([product(&a, &a), product(&a, &b), product(&b, &b)].into_iter().flatten())
}
