//! A method with its inputs, and what it becomes when it is solved.
//!
//! Inputs may be merges themselves: the tree is evaluated a block at a time, in f32 from leaf to root, so that nothing
//! in between is rounded to a file's type or written anywhere.

use super::data::{BLOCK, Block, Data};
use super::offload::Offload;
use super::select;
use super::{Blend, BlendKernel, Method, Offloaded, Solution, Terms};
use crate::checkpoint::TensorView;
use crate::dtype::{self, DType, Simd, vector};
use crate::error::Result;
use crate::stream::{Control, Group, Kernel, Offloading, Scan, Settings};
use std::sync::Arc;

/// Elements that are computed, not read: of a low-rank adapter, of rows put together.
pub trait Generator: Send + Sync {
    /// Fills `out` with the elements from number `start` on.
    ///
    /// # Errors
    /// If what they are computed from cannot be read.
    fn fill(&self, start: u64, out: &mut [f32]) -> Result<()>;

    /// What it reads, to be checked for changes and counted.
    fn reads(&self) -> Vec<TensorView<'_>>;

    /// Bytes that it holds while its tensor is in work.
    fn memory(&self) -> u64 {
        0
    }
}

/// What a merge is made of.
#[derive(Clone)]
pub enum Input<'a> {
    /// A tensor of a checkpoint.
    Tensor(TensorView<'a>),
    /// Computed elements.
    Generated(Arc<dyn Generator + 'a>),
    /// Another merge.
    Node(Box<Node<'a>>),
}

/// A method and what it is applied to.
#[derive(Clone)]
pub struct Node<'a> {
    /// The method.
    pub method: &'static dyn Method,
    /// Its weights and parameters here.
    pub terms: Terms,
    /// The inputs, of the same number of elements; the base last if there is one.
    pub inputs: Vec<Input<'a>>,
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("method", &self.method.about().name).field("terms", &self.terms).finish()
    }
}

impl<'a> Node<'a> {
    /// All tensors it reads element by element, each as often as it is used.
    #[must_use]
    pub fn leaves(&self) -> Vec<TensorView<'a>> {
        let mut leaves = Vec::new();
        self.collect(&mut leaves);
        leaves
    }

    fn collect(&self, leaves: &mut Vec<TensorView<'a>>) {
        for input in &self.inputs {
            match input {
                Input::Tensor(view) => leaves.push(*view),
                Input::Generated(_) => {}
                Input::Node(node) => node.collect(leaves),
            }
        }
    }

    /// Bytes that are read to compute what is not read element by element.
    #[must_use]
    pub fn generated_bytes(&self) -> u64 {
        let below = self.inputs.iter().map(|input| match input {
            Input::Tensor(_) => 0,
            Input::Generated(generator) => generator.reads().iter().map(|view| view.tensor.bytes).sum(),
            Input::Node(node) => node.generated_bytes(),
        });
        below.sum()
    }

    /// The weighted sum of tensors that it comes to, if it needs no look at the data.
    #[must_use]
    pub fn fixed(&self) -> Option<(Blend, Vec<TensorView<'a>>)> {
        let views = self.inputs.iter().map(|input| match input {
            Input::Tensor(view) => Some(*view),
            _ => None,
        });
        Some((self.method.fixed(&self.terms)?, views.collect::<Option<_>>()?))
    }

    /// Measures and solves, leaves first.
    ///
    /// # Errors
    /// As [`Method::solve`].
    pub fn solve(&self, output: DType, settings: &Settings, control: Control<'a>) -> Result<Program<'a>> {
        let leaves = self.leaves();
        let passes = Passes { elements: self.elements(), settings, control };
        let mut next = 0;
        let root = self.solve_below(&leaves, &mut next, passes)?;
        let unit = self.unit(output);
        Ok(Program { root, leaves, output, unit })
    }

    /// This node and all below it, lowest first.
    pub fn visit<'n>(&'n self, visit: &mut impl FnMut(&'n Self)) {
        for input in &self.inputs {
            if let Input::Node(node) = input {
                node.visit(visit);
            }
        }
        visit(self);
    }

    /// As [`Self::visit`], to change them.
    pub fn visit_mut(&mut self, visit: &mut impl FnMut(&mut Self)) {
        for input in &mut self.inputs {
            if let Input::Node(node) = input {
                node.visit_mut(visit);
            }
        }
        visit(self);
    }

    /// How many elements must come together to be computed and written as `output`.
    #[must_use]
    pub fn unit(&self, output: DType) -> u64 {
        whole_unit(self.own_unit(), &self.leaves(), output, self.elements())
    }

    fn own_unit(&self) -> u64 {
        let below = self.inputs.iter().map(|input| match input {
            Input::Node(node) => node.own_unit(),
            _ => 1,
        });
        below.fold(self.method.unit(&self.terms), common_multiple)
    }

    fn elements(&self) -> u64 {
        self.terms.shape.iter().product()
    }

    /// Memory that a thread takes to compute, and that a solution holds meanwhile, in bytes.
    #[must_use]
    pub fn memory(&self, output: DType) -> (u64, u64) {
        let buffers = (self.buffers() + 2) * step(self.unit(output)) * size_of::<f32>() as u64;
        (buffers + select::memory(self.searches()), self.held())
    }

    /// The most order statistics that are looked for at a time.
    fn searches(&self) -> usize {
        let below = |input: &Input<'_>| match input {
            Input::Node(node) => node.searches(),
            _ => 0,
        };
        let below = self.inputs.iter().map(below).max().unwrap_or(0);
        below.max(self.method.searches(&self.terms))
    }

    /// The most buffers in use at a time.
    fn buffers(&self) -> u64 {
        let below = |input: &Input<'_>| match input {
            Input::Node(node) => node.buffers(),
            _ => 0,
        };
        self.inputs.len() as u64 + self.inputs.iter().map(below).max().unwrap_or(0)
    }

    fn held(&self) -> u64 {
        let below = |input: &Input<'_>| match input {
            Input::Node(node) => node.held(),
            Input::Generated(generator) => generator.memory(),
            Input::Tensor(_) => 0,
        };
        self.method.memory(&self.terms) + self.inputs.iter().map(below).sum::<u64>()
    }

    /// The data of this node, for what is measured over several.
    ///
    /// # Errors
    /// As [`Self::solve`].
    pub fn data(&self, settings: &Settings, control: Control<'a>) -> Result<Data<'a>> {
        let leaves = self.leaves();
        let passes = Passes { elements: self.elements(), settings, control };
        let sources = self.sources(&leaves, &mut 0, passes)?;
        Ok(passes.data(&leaves, sources, self))
    }

    fn sources(&self, leaves: &[TensorView<'a>], next: &mut usize, passes: Passes<'a, '_>) -> Result<Vec<Source<'a>>> {
        let source = |input: &Input<'a>| {
            Ok(match input {
                Input::Tensor(_) => {
                    *next += 1;
                    Source::Leaf(*next - 1)
                }
                Input::Generated(generator) => Source::Generated(Arc::clone(generator)),
                Input::Node(node) => Source::Solved(Box::new(node.solve_below(leaves, next, passes)?)),
            })
        };
        self.inputs.iter().map(source).collect()
    }

    fn solve_below(&self, leaves: &[TensorView<'a>], next: &mut usize, passes: Passes<'a, '_>) -> Result<Solved<'a>> {
        let sources = self.sources(leaves, next, passes)?;
        let (has_base, unit) = (self.terms.has_base, self.method.unit(&self.terms));
        if let Some(blend) = self.method.fixed(&self.terms) {
            return Ok(Solved { solution: Solution::Sum(blend), sources, unit: 1, has_base, is_known: false });
        }
        let data = passes.data(leaves, sources, self);
        let solution = self.method.solve(&self.terms, &data)?;
        let is_known = data.is_known();
        Ok(Solved { solution, sources: data.into_sources(), unit, has_base, is_known })
    }
}

/// What passes over a node's data need.
#[derive(Clone, Copy)]
struct Passes<'a, 's> {
    elements: u64,
    settings: &'s Settings,
    control: Control<'a>,
}

impl<'a> Passes<'a, '_> {
    fn data(self, leaves: &[TensorView<'a>], sources: Vec<Source<'a>>, node: &Node<'_>) -> Data<'a> {
        let (unit, terms) = (node.method.unit(&node.terms), &node.terms);
        let block = leaves.iter().map(|view| view.tensor.dtype.block_elements()).max().unwrap_or(1);
        let group = Group { inputs: leaves.to_vec(), elements: self.elements / block, block };
        let scan = Scan::new(group, self.settings, self.control);
        let device = self.settings.device.clone();
        Data::new(scan, leaves.to_vec(), sources, block, self.elements, unit, terms.has_base, device)
    }
}

/// Where the numbers of an input come from.
pub(super) enum Source<'a> {
    /// One of the tensors that are read.
    Leaf(usize),
    Generated(Arc<dyn Generator + 'a>),
    Solved(Box<Solved<'a>>),
}

/// A node that is solved.
pub(super) struct Solved<'a> {
    solution: Solution,
    sources: Vec<Source<'a>>,
    unit: u64,
    has_base: bool,
    /// Whether all leaves were passed over to solve it.
    is_known: bool,
}

/// The smallest number that both divide.
pub(super) fn common_multiple(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a.max(1), b.max(1));
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a.max(1) / x * b.max(1)
}

impl Source<'_> {
    /// How many elements must come together.
    pub(super) fn unit(&self) -> u64 {
        match self {
            Self::Solved(solved) => solved.unit(),
            _ => 1,
        }
    }

    /// Fills `out` with the elements from number `start` on, of which `inputs` are the leaves' bytes.
    pub(super) fn fill(
        &self,
        leaves: &[TensorView<'_>],
        start: u64,
        inputs: &[&[u8]],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<()> {
        match self {
            Self::Leaf(index) => {
                dtype::decode(Simd::detect(), leaves[*index].tensor.dtype, inputs[*index], out);
                Ok(())
            }
            Self::Generated(generator) => generator.fill(start, out),
            Self::Solved(solved) => solved.evaluate(leaves, start, inputs, scratch, out),
        }
    }
}

/// Buffers that are used again, a set for each node in work.
#[derive(Default)]
pub(super) struct Scratch(Vec<Vec<Vec<f32>>>);

impl Scratch {
    pub(super) fn take(&mut self, count: usize, length: usize) -> Vec<Vec<f32>> {
        let mut set = self.0.pop().unwrap_or_default();
        set.resize_with(count, Vec::new);
        set.iter_mut().for_each(|buffer| buffer.resize(length, 0.0));
        set
    }

    pub(super) fn give_back(&mut self, set: Vec<Vec<f32>>) {
        self.0.push(set);
    }
}

impl<'a> Solved<'a> {
    pub(super) fn solution(&self) -> &Solution {
        &self.solution
    }

    pub(super) fn sources(&self) -> &[Source<'a>] {
        &self.sources
    }
}

impl Solved<'_> {
    fn is_known(&self) -> bool {
        let below = |source: &Source<'_>| matches!(source, Source::Solved(solved) if solved.is_known());
        self.is_known || self.sources.iter().any(below)
    }

    fn unit(&self) -> u64 {
        self.sources.iter().map(Source::unit).fold(self.unit, common_multiple)
    }

    fn evaluate(
        &self,
        leaves: &[TensorView<'_>],
        start: u64,
        inputs: &[&[u8]],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<()> {
        let mut values = scratch.take(self.sources.len(), out.len());
        for (source, values) in self.sources.iter().zip(&mut values) {
            source.fill(leaves, start, inputs, scratch, values)?;
        }
        match &self.solution {
            Solution::Sum(blend) => sum(blend, &values, out),
            Solution::Elementwise(function) => {
                function.apply(&mut Block { start, inputs: &mut values, has_base: self.has_base }, out);
            }
        }
        scratch.give_back(values);
        Ok(())
    }
}

/// A weighted sum of numbers, every operation rounded, in the order of the terms, as [`BlendKernel`] has it.
fn sum(blend: &Blend, values: &[Vec<f32>], out: &mut [f32]) {
    let models = blend.coefficients.len();
    let base = blend.from_base.then(|| &values[models]);
    out.fill(0.0);
    for (index, (values, coefficient)) in values.iter().zip(&blend.coefficients).enumerate() {
        let c = *coefficient as f32;
        match base {
            // The first product starts the sum, so that −0 stays.
            Some(base) if index == 0 => vector::map(out, [values, base], |[x, b]| c * (x - b)),
            Some(base) => vector::update(out, [values, base], |out, [x, b]| out + c * (x - b)),
            None if index == 0 => vector::map(out, [values], |[x]| c * x),
            None => vector::update(out, [values], |out, [x]| out + c * x),
        }
    }
    if let Some(base) = base {
        vector::update(out, [base], |sum, [b]| b + sum);
    }
}

/// A solved tree, ready to run on its leaves' bytes.
pub struct Program<'a> {
    root: Solved<'a>,
    leaves: Vec<TensorView<'a>>,
    output: DType,
    unit: u64,
}

impl<'a> Program<'a> {
    /// The tensors it reads element by element.
    #[must_use]
    pub fn leaves(&self) -> &[TensorView<'a>] {
        &self.leaves
    }

    /// How many elements must come together: what the stream is to count.
    #[must_use]
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// Whether all of its leaves were passed over to solve it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.root.is_known()
    }

    /// The same on a device; `None` if it is the CPU's.
    #[must_use]
    pub fn offloaded(&self, offloading: &Offloading) -> Option<Offloaded<'_, 'a>> {
        let shader = self.root.shader()?;
        let tensors = self.leaves.iter().map(|view| view.tensor.dtype).collect();
        let output = Some(self.output);
        let offload = Offload::new(offloading, "blend", output, tensors, self.root.sources(), &shader)?;
        Some(Offloaded::new(self, offload, self.output, self.unit))
    }

    /// The faster kernel for a weighted sum of tensors, if that is what it is.
    #[must_use]
    pub fn as_sum(&self) -> Option<BlendKernel> {
        let in_order =
            self.root.sources.iter().enumerate().all(|(i, source)| matches!(source, Source::Leaf(j) if i == *j));
        match &self.root.solution {
            Solution::Sum(blend) if in_order => Some(BlendKernel {
                blend: blend.clone(),
                inputs: self.leaves.iter().map(|view| view.tensor.dtype).collect(),
                output: self.output,
                simd: Simd::detect(),
            }),
            _ => None,
        }
    }
}

/// How many elements must come together: whole blocks of every type, and what the methods need.
fn whole_unit(methods: u64, leaves: &[TensorView<'_>], output: DType, elements: u64) -> u64 {
    let blocks = leaves.iter().map(|view| view.tensor.dtype.block_elements());
    let unit = blocks.chain([output.block_elements()]).fold(methods, common_multiple);
    // Blocks and rows divide the tensor one by one; together they may not, and then it is one unit.
    if elements.is_multiple_of(unit) { unit } else { elements.max(1) }
}

/// Elements in work at a time.
fn step(unit: u64) -> u64 {
    unit * (BLOCK / unit).max(1)
}

impl Kernel for Program<'_> {
    fn run(&self, start: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<()> {
        let step = step(self.unit) as usize;
        let count = out.len() / self.output.block_bytes() as usize * self.output.block_elements() as usize;
        let mut scratch = Scratch::default();
        let mut values = vec![0.0; step.min(count)];
        let mut part: Vec<&[u8]> = Vec::with_capacity(inputs.len());
        let bytes =
            |dtype: DType, elements: usize| elements / dtype.block_elements() as usize * dtype.block_bytes() as usize;
        for at in (0..count).step_by(step) {
            let length = step.min(count - at);
            part.clear();
            part.extend(inputs.iter().zip(&self.leaves).map(|(input, view)| {
                let dtype = view.tensor.dtype;
                &input[bytes(dtype, at)..bytes(dtype, at + length)]
            }));
            let values = &mut values[..length];
            self.root.evaluate(&self.leaves, start * self.unit + at as u64, &part, &mut scratch, values)?;
            let out = &mut out[bytes(self.output, at)..bytes(self.output, at + length)];
            dtype::encode(Simd::detect(), self.output, values, out);
        }
        Ok(())
    }
}
