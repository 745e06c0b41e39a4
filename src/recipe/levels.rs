//! Parameters at several levels: a model's own, its slice's, its module's, those of the whole recipe. The nearest level
//! that has a value for a tensor counts.

use super::Setting;
use crate::merge::{Method, Scope, Terms, Weight};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Values of parameters by name, `weight` and `normalize` among them.
pub(super) type Settings = BTreeMap<String, Setting>;

/// What a recipe calls the models' weights.
pub(super) const WEIGHT: &str = "weight";
/// What a recipe calls the switch that divides weights by their sum.
pub(super) const NORMALIZE: &str = "normalize";

/// The parameters of some inputs.
#[derive(Clone, Debug, Default)]
pub(super) struct Levels {
    /// Of each input, its own.
    pub(super) inputs: Vec<Rc<Settings>>,
    /// Of all of them, the nearest level first.
    pub(super) shared: Vec<Rc<Settings>>,
}

/// A tensor for which parameters are looked up.
pub(super) struct Where<'n> {
    /// The output's name.
    pub(super) output: &'n str,
    /// The names of the inputs, in their order.
    pub(super) inputs: &'n [String],
    /// How deep in the model it is, from 0 to 1.
    pub(super) place: f64,
}

/// A parameter that must be given and is not.
pub(super) struct Lacking {
    pub(super) parameter: &'static str,
    /// Whose it is, if each input has its own.
    pub(super) input: Option<usize>,
}

impl Levels {
    /// Puts other settings in place of those that have values for blocks.
    ///
    /// # Errors
    /// The first of `place`.
    pub(super) fn place_blocks(
        &mut self,
        mut place: impl FnMut(&str, &Setting) -> Result<Setting, String>,
    ) -> Result<(), String> {
        for level in self.inputs.iter_mut().chain(&mut self.shared) {
            if !has_blocks(level) {
                continue;
            }
            let placed = level.iter().map(|(name, setting)| Ok((name.clone(), place(name, setting)?)));
            *level = Rc::new(placed.collect::<Result<_, String>>()?);
        }
        Ok(())
    }

    /// Whether any of them has values for blocks.
    pub(super) fn have_blocks(&self) -> bool {
        self.inputs.iter().chain(&self.shared).any(|level| has_blocks(level))
    }

    /// The gradients that a tensor of this name has, each with its first value.
    pub(super) fn gradients<'l>(&'l self, name: &'l str) -> impl Iterator<Item = (&'l str, f64)> {
        let settings = self.inputs.iter().chain(&self.shared).flat_map(|level| level.iter());
        settings.filter_map(move |(parameter, setting)| {
            let values = setting.anchors(name)?.values.as_slice();
            let (first, rest) = values.split_first()?;
            rest.iter().any(|value| value != first).then_some((parameter.as_str(), *first))
        })
    }

    fn of_input(&self, parameter: &str, input: usize, at: &Where<'_>) -> Option<f64> {
        let name = at.inputs.get(input).map_or(at.output, String::as_str);
        let own = self.inputs.get(input).into_iter().chain(&self.shared);
        own.filter_map(|level| level.get(parameter)).find_map(|setting| setting.at(name, at.place))
    }

    fn of_tensor(&self, parameter: &str, at: &Where<'_>) -> Option<f64> {
        let found = self.shared.iter().filter_map(|level| level.get(parameter));
        found.into_iter().find_map(|setting| setting.at(at.output, at.place))
    }

    /// Fills the terms of a tensor with what is given. With `strict`, what mergekit has no default for must be.
    ///
    /// # Errors
    /// The first parameter that is lacking.
    pub(super) fn fill(
        &self,
        method: &dyn Method,
        terms: &mut Terms,
        at: &Where<'_>,
        strict: bool,
    ) -> Result<(), Lacking> {
        let about = method.about();
        if about.weight != Weight::Unused {
            for (index, weight) in terms.weights.iter_mut().enumerate() {
                match self.of_input(WEIGHT, index, at) {
                    Some(given) => *weight = given,
                    None if strict => return Err(Lacking { parameter: WEIGHT, input: Some(index) }),
                    None => {}
                }
            }
            if let Some(given) = self.of_tensor(NORMALIZE, at) {
                terms.normalize = given != 0.0;
            }
        }
        for (parameter, (_, values)) in about.parameters.iter().zip(&mut terms.parameters) {
            for (index, value) in values.iter_mut().enumerate() {
                let given = match parameter.scope {
                    Scope::PerModel => self.of_input(parameter.name, index, at),
                    Scope::Shared => self.of_tensor(parameter.name, at),
                };
                match given {
                    Some(given) => *value = given,
                    // How far to go between models is for the recipe to say.
                    None if strict && parameter.name == "t" => {
                        return Err(Lacking { parameter: parameter.name, input: None });
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }
}

fn has_blocks(level: &Settings) -> bool {
    level.values().any(Setting::has_blocks)
}
