//! Merge methods: measure, solve, blend.
//!
//! A method is its mathematics: from the weights and parameters of one tensor (and, for methods that look at the
//! data, from a few numbers that one pass has measured) it solves for a [`Blend`], the coefficients of one fused
//! elementwise pass. Streaming, threads and memory are not its business. The two methods here need no measuring.
//!
//! A new method is one file and one line in [`METHODS`].

mod blend;
mod linear;
mod scale;
mod task_arithmetic;

pub use blend::{Blend, BlendKernel, CopyKernel};
pub use scale::ScaleKernel;

use crate::error::{Error, Result};

/// Every merge method.
pub static METHODS: &[&dyn Method] = &[&linear::Linear, &task_arithmetic::TaskArithmetic];

/// A way to make one tensor of several.
pub trait Method: Sync {
    /// The name on the command line and in recipes.
    fn name(&self) -> &'static str;

    /// One line on what it does.
    fn about(&self) -> &'static str;

    /// The formula: `x` for the models, `w` for the weights, `b` for the base.
    fn formula(&self) -> &'static str;

    /// Where it comes from.
    fn source(&self) -> &'static str;

    /// Whether it works on differences from a base model. One that does needs it; one that does not refuses it.
    fn needs_base(&self) -> bool;

    /// The parameters it takes beside weights.
    fn parameters(&self) -> &'static [Parameter];

    /// The weight of each of `models` models when none are given.
    fn default_weight(&self, models: usize) -> f64;

    /// The coefficients for one tensor.
    ///
    /// # Errors
    /// What is wrong with the weights or parameters.
    fn solve(&self, terms: &Terms<'_>) -> Result<Blend, String>;
}

/// A named number that a method takes.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// The name in `-p name=value`.
    pub name: &'static str,
    /// Its value when none is given.
    pub default: f64,
    /// What it does.
    pub about: &'static str,
}

/// What a method solves from, for one tensor.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// A weight for each model, as given.
    pub weights: &'a [f64],
    /// Whether weights are to be divided by their sum.
    pub normalize: bool,
    /// The values of [`Method::parameters`], in their order.
    pub parameters: &'a [f64],
}

impl Terms<'_> {
    /// The weights, divided by their sum if that was asked for.
    fn normalized(&self) -> Result<Vec<f64>, String> {
        if !self.normalize {
            return Ok(self.weights.to_vec());
        }
        let sum: f64 = self.weights.iter().sum();
        if sum == 0.0 {
            return Err("the weights add up to 0, so they cannot be normalized".to_owned());
        }
        Ok(self.weights.iter().map(|weight| weight / sum).collect())
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
        .find(|method| method.name() == wanted)
        .copied()
        .ok_or_else(|| Error::unknown("merge method", name, METHODS.iter().map(|method| method.name())))
}
