//! What a method solves from beside the data: weights, parameters, and which tensor it is.

use super::About;
use std::fmt;

/// A named number that a method takes.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// The name in `-p name=value` and in recipes.
    pub name: &'static str,
    /// Its value when none is given.
    pub default: f64,
    /// Whether every model may have its own.
    pub scope: Scope,
    /// Which values make sense.
    pub allowed: Allowed,
    /// What it does.
    pub about: &'static str,
}

/// The values that a parameter may have, all of them finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowed {
    /// All.
    Any,
    /// 0 or 1.
    Switch,
    /// Whole numbers from 0 to this.
    Whole(u32),
    /// These and what is between them.
    Between(f64, f64),
    /// This and what is greater.
    AtLeast(f64),
    /// What is greater.
    Above(f64),
}

impl Allowed {
    /// Whether a value is one of them.
    #[must_use]
    pub fn has(self, value: f64) -> bool {
        (value as f32).is_finite()
            && match self {
                Self::Any => true,
                Self::Switch => value == 0.0 || value == 1.0,
                Self::Whole(most) => value.fract() == 0.0 && (0.0..=f64::from(most)).contains(&value),
                Self::Between(least, most) => (least..=most).contains(&value),
                Self::AtLeast(least) => value >= least,
                Self::Above(bound) => value > bound,
            }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("a finite number of 32 bits"),
            Self::Switch => f.write_str("0 or 1"),
            Self::Whole(most) => write!(f, "a whole number from 0 to {most}"),
            Self::Between(least, most) => write!(f, "from {least} to {most}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::Above(bound) => write!(f, "above {bound}"),
        }
    }
}

/// Whose a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One value for the tensor.
    Shared,
    /// A value for each model.
    PerModel,
}

impl Parameter {
    /// One for the tensor.
    #[must_use]
    pub const fn shared(name: &'static str, default: f64, about: &'static str) -> Self {
        Self { name, default, scope: Scope::Shared, allowed: Allowed::Any, about }
    }

    /// One for each model.
    #[must_use]
    pub const fn per_model(name: &'static str, default: f64, about: &'static str) -> Self {
        Self { name, default, scope: Scope::PerModel, allowed: Allowed::Any, about }
    }

    /// The same, but with such values only.
    #[must_use]
    pub const fn within(self, allowed: Allowed) -> Self {
        Self { allowed, ..self }
    }

    /// What is wrong with a value for a method, if anything is.
    ///
    /// # Errors
    /// A message that names method, parameter, value and what is allowed.
    pub fn check(&self, method: &About, value: f64) -> Result<(), String> {
        if self.allowed.has(value) {
            return Ok(());
        }
        let article = if self.name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        Err(format!("{} takes {article} {} that is {}, not {value}", method.name, self.name, self.allowed))
    }
}

/// What a method solves from, for one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// The tensor's name.
    pub tensor: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Whether there is a base, which is then the last input.
    pub has_base: bool,
    /// A weight for each model, as given.
    pub weights: Vec<f64>,
    /// Whether weights are to be divided by their sum.
    pub normalize: bool,
    /// The values of [`About::parameters`], in their order: one, or one for each model.
    pub parameters: Vec<(&'static str, Vec<f64>)>,
    /// What random numbers follow from, beside the tensor's name.
    pub seed: u64,
    /// Which merge of a run it is part of: what is surveyed is surveyed for each.
    pub group: usize,
    /// What [`Method::survey`](super::Method::survey) has found.
    pub survey: Vec<f64>,
}

impl Terms {
    /// Terms with every parameter at its default.
    #[must_use]
    pub fn new(about: &About, tensor: &str, shape: &[u64], models: usize, has_base: bool) -> Self {
        let values = |p: &Parameter| match p.scope {
            Scope::Shared => vec![p.default],
            Scope::PerModel => vec![p.default; models],
        };
        Self {
            tensor: tensor.to_owned(),
            shape: shape.to_vec(),
            has_base,
            weights: vec![about.weight.default(models); models],
            normalize: about.normalizes,
            parameters: about.parameters.iter().map(|p| (p.name, values(p))).collect(),
            seed: 0,
            group: 0,
            survey: Vec::new(),
        }
    }

    /// The number of models, without the base.
    #[must_use]
    pub fn models(&self) -> usize {
        self.weights.len()
    }

    /// The values of a parameter that each model has its own of.
    #[must_use]
    pub fn each(&self, name: &str) -> &[f64] {
        let found = self.parameters.iter().find(|(known, _)| *known == name);
        found.map_or(&[], |(_, values)| values)
    }

    /// The value of a parameter of the tensor; NaN if the method has none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> f64 {
        self.each(name).first().copied().unwrap_or(f64::NAN)
    }

    /// Whether a parameter that is a switch is on; never, if the method has none of that name.
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        self.each(name).first().is_some_and(|value| *value != 0.0)
    }

    /// The weights, divided by their sum if that was asked for and is possible.
    #[must_use]
    pub fn normalized(&self) -> Vec<f64> {
        let sum: f64 = self.weights.iter().sum();
        let divisor = if self.normalize && sum != 0.0 { sum } else { 1.0 };
        self.weights.iter().map(|weight| weight / divisor).collect()
    }

    /// Elements of a row: of the last dimension.
    #[must_use]
    pub fn row(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1).max(1)
    }
}
