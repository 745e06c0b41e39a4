//! What methods compute, as WGSL: the second form of each function of elements, for graphics processors.
//!
//! A method writes a [`Shader`] beside its Rust function: expressions in WGSL, and the numbers they read. Here they are put
//! together with what the inputs are, which may be other nodes, into the text that the kernels of `shaders/` call.
//! In the text `$` stands for the node's number, so that functions of several nodes do not collide. It may use
//!
//! - `x[i]`: the inputs, the base last (`BASE$` is the last index);
//! - `number$(i)`, `word$(i)`: what was given by [`Shader::numbers`] and [`Shader::words`], in order; for the prelude they are
//!   `number(first$() + i)` and `word(first$() + i)`;
//! - `at`: the element; `row$(at)` and `column$(at)` of [`Shader::rows`];
//! - `factor$(m, at)`: what mask `m` of [`Shader::masks`] multiplies an element with;
//! - `rounded(a * b)`, wherever a product is added to something;
//! - everything in `shaders/prelude.wgsl`.

use super::node::{Solved, Source};
use super::{Blend, Generator, Key, Solution};
use crate::gpu;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

/// Words of each node's head: where its numbers begin, its row's length, and the row and column of the tile's start.
const HEAD: usize = 4;

/// A product that is rounded before anything is added to it, as the CPU does: drivers may fuse what they see to be a product
/// and a sum. So what is chosen by a sum's sign is chosen alike. One that is infinite is the CPU's, even if it is not chosen at
/// last. And a 0 of which drivers do not know that it is one, as 0 + x is not x where that is −0.
const ROUNDED: &str = "
fn rounded(product: f32) -> f32 { return bitcast<f32>(finite(opaque(product), true)); }
fn zero() -> f32 { return bitcast<f32>(params[11]); }
";

/// Weights below this, but for 0, make products that devices flush to 0.
const LEAST_WEIGHT: f32 = 1.0 / (1 << 20) as f32;

/// A function of the elements of a tensor's inputs, in WGSL.
#[derive(Clone, Debug, Default)]
pub struct Shader {
    /// Functions, constants: what expressions need beside the prelude.
    items: String,
    /// One expression for each of the quantities that it computes.
    values: Vec<String>,
    words: Vec<u32>,
    row: Option<u64>,
    masks: Vec<MaskByRank>,
    /// Whether a number is none that devices compute with.
    is_strange: bool,
}

/// Which elements of a change are kept by their rank among those of their row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskByRank {
    /// Whose change it is.
    pub model: usize,
    /// The sequence of random numbers.
    pub key: Key,
    /// Random numbers below this keep any element, and at or above that none.
    pub limits: (u32, u32),
    /// If what is kept is divided by its probability: the density and how far probabilities spread around it.
    pub by_probability: Option<(f64, f64)>,
    /// Elements of a row, and how far neighbours are apart.
    pub rows: (u64, u64),
}

impl Shader {
    /// One that computes `value`, an expression of `x`.
    #[must_use]
    pub fn of(value: impl Into<String>) -> Self {
        Self::each([value])
    }

    /// One that computes several quantities.
    #[must_use]
    pub fn each(values: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { values: values.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// With functions or constants that the expressions use.
    #[must_use]
    pub fn with(mut self, items: &str) -> Self {
        self.items.push_str(items);
        self
    }

    /// With numbers behind those it has. If one is neither 0 nor normal, the function is the CPU's.
    #[must_use]
    pub fn numbers(mut self, numbers: impl IntoIterator<Item = f32>) -> Self {
        for number in numbers {
            self.is_strange |= !(number == 0.0 || number.is_normal());
            self.words.push(number.to_bits());
        }
        self
    }

    /// With numbers that elements are multiplied with. If one is neither 0 nor large enough for products that devices have,
    /// the function is the CPU's.
    #[must_use]
    pub fn weights(mut self, weights: impl IntoIterator<Item = f32> + Clone) -> Self {
        self.is_strange |= weights.clone().into_iter().any(|weight| weight != 0.0 && weight.abs() < LEAST_WEIGHT);
        self.numbers(weights)
    }

    /// With integers behind the numbers it has.
    #[must_use]
    pub fn words(mut self, words: impl IntoIterator<Item = u32>) -> Self {
        self.words.extend(words);
        self
    }

    /// With rows of so many elements.
    #[must_use]
    pub fn rows(mut self, length: u64) -> Self {
        self.row = Some(length);
        self
    }

    /// With masks that are computed before.
    #[must_use]
    pub fn masks(mut self, masks: Vec<MaskByRank>) -> Self {
        self.masks = masks;
        self
    }

    /// With the words of [`gpu::power_words`] for each of some exponents and factors, and the table that `power_product` needs
    /// behind them. What its numbers do not hold makes the function the CPU's.
    #[must_use]
    pub fn powers(mut self, p: f64, q: f64, factors: &[f64]) -> Self {
        for factor in factors {
            match gpu::power_words(p, q, *factor) {
                Some(words) => self.words.extend(words),
                None => self.is_strange = true,
            }
        }
        self.words(gpu::power_table())
    }

    /// How many quantities it computes.
    #[must_use]
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// A weighted sum of the models.
    pub(super) fn sum(blend: &Blend) -> Self {
        let sum = Self::total(blend.coefficients.len(), |i| {
            let vector = if blend.from_base { format!("(x[{i}] - x[BASE$])") } else { format!("x[{i}]") };
            format!("rounded(number$({i}u) * {vector})")
        });
        let value = if blend.from_base { format!("x[BASE$] + {sum}") } else { sum };
        Self::of(value).weights(blend.coefficients.iter().map(|c| *c as f32))
    }

    /// The same as [`Self::total`], but added to 0.
    #[must_use]
    pub fn sum_from_zero(count: usize, term: impl Fn(usize) -> String) -> String {
        Self::total(count + 1, |i| i.checked_sub(1).map_or_else(|| "zero()".to_owned(), &term))
    }

    /// The sum of what `term` makes of each of some numbers, in their order.
    #[must_use]
    pub fn total(count: usize, term: impl Fn(usize) -> String) -> String {
        (0..count).map(term).reduce(|sum, term| format!("({sum} + {term})")).unwrap_or_else(|| "0.0".to_owned())
    }
}

/// Where the numbers of a leaf come from.
pub(super) enum Leaf<'a> {
    /// A tensor that is read.
    Tensor(usize),
    /// Computed elements.
    Generated(Arc<dyn Generator + 'a>),
}

/// Numbers that depend on where a tile starts.
struct Rows {
    /// The word that holds the row; the column's is the next.
    word: usize,
    length: u64,
}

/// A mask to be computed before: the node it belongs to.
pub(super) struct Mask {
    pub(super) node: usize,
    pub(super) mask: MaskByRank,
}

/// The text of a tree of nodes.
pub(super) struct Text<'a> {
    pub(super) leaves: Vec<Leaf<'a>>,
    /// The functions of all nodes, without `value`.
    items: String,
    words: Vec<u32>,
    rows: Vec<Rows>,
    pub(super) masks: Vec<Mask>,
    values: usize,
    nodes: usize,
    root_words: Range<usize>,
}

impl<'a> Text<'a> {
    /// Of what `root` computes from `sources`. `None` if there is something in it that
    /// has no shader.
    pub(super) fn new(tensors: usize, sources: &[Source<'a>], root: &Shader) -> Option<Self> {
        let (rows, masks) = (Vec::new(), Vec::new());
        let leaves = (0..tensors).map(Leaf::Tensor).collect();
        let nodes = sources.iter().map(Source::nodes).sum::<usize>() + 1;
        let words = vec![0; HEAD * nodes];
        let root_words = words.len()..words.len() + root.words.len();
        let items = String::new();
        let mut text = Self { leaves, items, words, rows, masks, values: root.count(), nodes: 0, root_words };
        text.add(sources, root)?;
        Some(text)
    }

    /// Adds a node and those below it; returns its number.
    fn add(&mut self, sources: &[Source<'a>], shader: &Shader) -> Option<usize> {
        if shader.is_strange {
            return None;
        }
        let node = self.nodes;
        self.nodes += 1;
        let head = HEAD * node;
        self.words[head] = self.words.len() as u32;
        self.words.extend(&shader.words);
        if let Some(length) = shader.row {
            self.words[head + 1] = u32::try_from(length).ok()?;
            self.rows.push(Rows { word: head + 2, length });
        }
        let first_mask = self.masks.len();
        self.masks.extend(shader.masks.iter().map(|&mask| Mask { node, mask }));
        let inputs = sources.iter().map(|source| {
            Some(match source {
                Source::Leaf(index) => format!("l[{index}]"),
                Source::Generated(generator) => {
                    self.leaves.push(Leaf::Generated(Arc::clone(generator)));
                    format!("l[{}]", self.leaves.len() - 1)
                }
                Source::Solved(solved) => {
                    let child = self.add(solved.sources(), &solved.shader()?)?;
                    format!("value{child}(l, at, 0u)")
                }
            })
        });
        let inputs = inputs.collect::<Option<Vec<_>>>()?;
        // Ranks of what hangs on other ranks would take their factors first.
        if !shader.masks.is_empty() && self.masks.len() > first_mask + shader.masks.len() {
            return None;
        }
        let (count, base) = (inputs.len(), inputs.len().saturating_sub(1));
        let mut own = String::new();
        if node == 0 {
            own.push_str(ROUNDED);
        }
        let _ = writeln!(own, "alias Values$ = array<f32, {count}>;\nfn values$(l: Leaves, at: Place) -> Values$ {{");
        let _ = writeln!(own, "    return Values$({});\n}}", inputs.join(", "));
        // Where the root's begin is known; those of others lie behind tables, whose length is not the text's business.
        let first = if node == 0 { format!("{}u", self.words[head]) } else { format!("word({head}u)") };
        let _ = writeln!(own, "fn first$() -> u32 {{ return {first}; }}");
        let _ = writeln!(own, "fn word$(i: u32) -> u32 {{ return word({first} + i); }}");
        let _ = writeln!(own, "fn number$(i: u32) -> f32 {{ return number({first} + i); }}");
        if shader.row.is_some() {
            let column = format!("word({}u) + at.local", head + 3);
            let _ = writeln!(
                own,
                "fn row$(at: Place) -> u32 {{ return word({}u) + ({column}) / word({}u); }}",
                head + 2,
                head + 1
            );
            let _ = writeln!(own, "fn column$(at: Place) -> u32 {{ return ({column}) % word({}u); }}", head + 1);
        }
        if !shader.masks.is_empty() {
            let _ = writeln!(own, "fn factor$(m: u32, at: Place) -> f32 {{ return factor({first_mask}u + m, at); }}");
        }
        let _ = writeln!(own, "const BASE$: u32 = {base}u;");
        own.push_str(&shader.items);
        let _ = writeln!(own, "\nfn value$(l: Leaves, at: Place, k: u32) -> f32 {{\n    let x = values$(l, at);");
        match &shader.values[..] {
            [value] => {
                let _ = writeln!(own, "    return {value};\n}}");
            }
            values => {
                let _ = writeln!(own, "    switch k {{");
                for (k, value) in values.iter().enumerate() {
                    let _ = writeln!(own, "        case {k}u: {{ return {value}; }}");
                }
                let _ = writeln!(own, "        default: {{ return 0.0; }}\n    }}\n}}");
            }
        }
        self.items.push_str(&own.replace('$', &node.to_string()));
        Some(node)
    }

    /// The text of the functions and of `value`, for the kernel that computes the root.
    pub(super) fn root(&self) -> String {
        self.value_of(self.values, "value0(l, at, k)")
    }

    /// The same for the changes whose ranks decide: quantity `m` is that of mask `m`.
    pub(super) fn changes(&self) -> String {
        let change = |Mask { node, mask: MaskByRank { model, .. } }: &Mask| {
            format!("values{node}(l, at)[{model}] - values{node}(l, at)[BASE{node}]")
        };
        let changes = self.masks.iter().map(change).enumerate();
        let choice = changes.fold("0.0".to_owned(), |rest, (m, change)| format!("select({rest}, {change}, k == {m}u)"));
        self.value_of(self.masks.len(), &choice)
    }

    fn value_of(&self, values: usize, value: &str) -> String {
        let mut text = self.items.clone();
        let _ = writeln!(text, "const VALUES: u32 = {values}u;");
        let _ = writeln!(text, "fn value(l: Leaves, at: Place, k: u32) -> f32 {{ return {value}; }}");
        text
    }

    /// Where the root's numbers stand among them.
    pub(super) fn root_words(&self) -> Range<usize> {
        self.root_words.clone()
    }

    /// How many numbers it reads.
    pub(super) fn word_count(&self) -> usize {
        self.words.len()
    }

    /// The numbers that it reads, in a tile that starts at this element; `None` if a row's number is too large.
    pub(super) fn words(&self, start: u64) -> Option<Vec<u32>> {
        let mut words = self.words.clone();
        for rows in &self.rows {
            words[rows.word] = u32::try_from(start / rows.length).ok()?;
            words[rows.word + 1] = (start % rows.length) as u32;
        }
        Some(words)
    }
}

impl<'a> Source<'a> {
    /// How many nodes there are in it.
    fn nodes(&self) -> usize {
        match self {
            Self::Solved(solved) => 1 + solved.sources().iter().map(Source::nodes).sum::<usize>(),
            _ => 0,
        }
    }
}

impl<'a> Solved<'a> {
    /// What it computes; `None` if it has no shader.
    pub(super) fn shader(&self) -> Option<Shader> {
        match self.solution() {
            Solution::Sum(blend) => Some(Shader::sum(blend)),
            Solution::Elementwise(function) => function.shader(),
        }
    }
}
