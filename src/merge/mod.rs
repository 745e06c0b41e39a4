//! Merge methods: measure, solve, blend.
//!
//! A [`Method`] is its mathematics. For one tensor it is given weights, parameters and [`Data`], by which it measures in
//! streaming passes what it needs: inner products, order statistics, sums. It solves for a [`Solution`]: coefficients of
//! a weighted sum, or a function of single elements (or rows) of the inputs. Streaming, threads, memory and types are
//! not its business.
//!
//! A [`Node`] is a method with its inputs, which may be tensors, elements that are computed, and other nodes; solved, it
//! is a [`Program`] that the writing pass runs.
//!
//! Numbers are f32, sums over elements f64; weighted sums are f64 where an input or the output is F64.
//!
//! A new method is one file in `methods/` and one line in [`METHODS`].

mod blend;
mod data;
mod measure;
mod methods;
mod node;
mod offload;
mod random;
mod resident;
mod scale;
mod select;
mod shader;
mod terms;

pub use blend::{Blend, BlendKernel, CopyKernel};
pub use data::{Block, Data, Gram};
pub use methods::METHODS;
pub use node::{Generator, Input, Node, Program};
pub use offload::Offloaded;
pub use random::{Key, threshold};
pub use resident::{Resident, blend_rate};
pub use scale::ScaleKernel;
pub use select::select;
pub use shader::{MaskByRank, Shader};
pub use terms::{Allowed, Parameter, Scope, Terms};

use crate::error::{Error, Result};

/// What is known of a method without running it.
#[derive(Debug)]
pub struct About {
    /// The name on the command line and in recipes.
    pub name: &'static str,
    /// One line on what it does.
    pub what: &'static str,
    /// The formula: `x` for the models, `w` for the weights, `b` for the base.
    pub formula: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// What it does with a base model.
    pub base: Base,
    /// The fewest and the most models it merges, the base not counted unless it counts as a model.
    pub models: (usize, usize),
    /// The weight of a model when none is given.
    pub weight: Weight,
    /// Whether weights are divided by their sum when nothing is said.
    pub normalizes: bool,
    /// The parameters it takes beside weights.
    pub parameters: &'static [Parameter],
}

impl About {
    /// Whether it cannot do without a base model.
    #[must_use]
    pub fn needs_base(&self) -> bool {
        self.base == Base::Required
    }
}

/// Any number of models.
pub const ANY: usize = usize::MAX;

/// What a method does with a base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// It has no use for one, and refuses it.
    None,
    /// It needs one.
    Required,
    /// It works on differences from one if there is one, else on the models themselves.
    Optional,
    /// It takes one for the first of its models.
    Counts,
    /// It needs one, and takes the last of the models for it if none is given beside them. That model is then the base to
    /// the method only: the first model decides the order of tensors and what is copied.
    Last,
}

/// The weight of a model when none is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// The method knows no weights.
    Unused,
    /// 1.
    One,
    /// 1/N for N models.
    Share,
}

impl Weight {
    /// The number, for this many models.
    #[must_use]
    pub fn default(self, models: usize) -> f64 {
        match self {
            Self::Share => 1.0 / models as f64,
            Self::One | Self::Unused => 1.0,
        }
    }
}

/// A way to make one tensor of several.
pub trait Method: Sync {
    /// What it is.
    fn about(&self) -> &About;

    /// What is wrong with weights or parameters, before any data is read.
    ///
    /// # Errors
    /// A message for people.
    fn check(&self, _terms: &Terms) -> Result<(), String> {
        Ok(())
    }

    /// What each model must be accompanied by, if anything: tensors of the same names and shapes, which are inputs behind
    /// those of the models, in the same order.
    fn companions(&self) -> Option<&'static str> {
        None
    }

    /// How many elements must come together, such as a row; a divisor of the tensor's number of elements.
    fn unit(&self, _terms: &Terms) -> u64 {
        1
    }

    /// Bytes that a solution holds, beside a few numbers.
    fn memory(&self, _terms: &Terms) -> u64 {
        0
    }

    /// How many order statistics it looks for at a time, which each thread counts in buckets of its own.
    fn searches(&self, _terms: &Terms) -> usize {
        0
    }

    /// The weighted sum that it comes to, if that takes no look at the data.
    fn fixed(&self, _terms: &Terms) -> Option<Blend> {
        None
    }

    /// Whether something is to be measured over all tensors before any of them is solved, by [`Self::survey`].
    fn surveys(&self, _terms: &Terms) -> bool {
        false
    }

    /// What to measure over all tensors of the merge before any of them is solved: numbers that [`Terms::survey`] then
    /// holds. `terms[i]` are those of `tensors[i]`.
    ///
    /// # Errors
    /// As the passes over the data.
    fn survey(&self, _terms: &[Terms], _tensors: &[Data<'_>]) -> Result<Vec<f64>> {
        Ok(Vec::new())
    }

    /// What becomes of one tensor.
    ///
    /// # Errors
    /// As the passes over the data; [`Error::Mismatch`] if the tensor cannot be merged so.
    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution>;
}

/// What a method has solved for.
pub enum Solution {
    /// A weighted sum.
    Sum(Blend),
    /// A function of the inputs' elements.
    Elementwise(Box<dyn Elementwise>),
}

impl Solution {
    /// A function of elements whose two forms share what they were solved for.
    pub fn elementwise(function: impl Elementwise + 'static) -> Self {
        Self::Elementwise(Box::new(function))
    }

    /// A function of elements, and the same for devices.
    pub fn of(
        function: impl Fn(&mut Block<'_>, &mut [f32]) + Send + Sync + 'static,
        shader: impl Fn() -> Shader + Send + Sync + 'static,
    ) -> Self {
        Self::Elementwise(Box::new(Twin { function, shader: Some(shader) }))
    }

    /// A function of elements that the CPU alone computes, as it takes what is made of whole tensors.
    pub fn of_whole(function: impl Fn(&mut Block<'_>, &mut [f32]) + Send + Sync + 'static) -> Self {
        Self::Elementwise(Box::new(Twin { function, shader: None::<fn() -> Shader> }))
    }

    /// `Σ cᵢ·xᵢ`.
    #[must_use]
    pub fn sum(coefficients: Vec<f64>) -> Self {
        Self::Sum(Blend { from_base: false, coefficients })
    }

    /// `b + Σ cᵢ·(xᵢ − b)`.
    #[must_use]
    pub fn around_base(coefficients: Vec<f64>) -> Self {
        Self::Sum(Blend { from_base: true, coefficients })
    }
}

/// A function of the elements of a tensor's inputs.
pub trait Elementwise: Send + Sync {
    /// Computes `out` from a block, whose inputs it may overwrite.
    ///
    /// A block is always a whole number of [`Method::unit`]s; nothing may depend on how many.
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]);

    /// The same for devices; `None` if it takes more than a function of elements.
    fn shader(&self) -> Option<Shader>;
}

/// A function in both of its forms.
struct Twin<F, S> {
    function: F,
    shader: Option<S>,
}

impl<F, S> Elementwise for Twin<F, S>
where
    F: Fn(&mut Block<'_>, &mut [f32]) + Send + Sync,
    S: Fn() -> Shader + Send + Sync,
{
    fn apply(&self, block: &mut Block<'_>, out: &mut [f32]) {
        (self.function)(block, out);
    }

    fn shader(&self) -> Option<Shader> {
        self.shader.as_ref().map(|shader| shader())
    }
}

/// The method of that name; `_` and `-` are the same, so that mergekit's spelling works.
///
/// # Errors
/// [`Error::Unknown`] with the nearest name.
pub fn method(name: &str) -> Result<&'static dyn Method> {
    let wanted = name.to_lowercase().replace('_', "-");
    METHODS
        .iter()
        .find(|method| method.about().name == wanted)
        .copied()
        .ok_or_else(|| Error::unknown("merge method", name, METHODS.iter().map(|method| method.about().name)))
}
