//! What to merge, and how: the form that the command line and recipe files have in common.
//!
//! A [`Recipe`] with open models makes a [`Plan`]: for each output tensor its sources, its formula and its type. All
//! that does not fit is reported together, before any tensor data is read. [`emit`](Plan::emit) carries the plan out.

mod beside;
mod blocks;
mod convert;
mod difference;
mod emit;
mod explain;
mod files;
mod fold;
mod levels;
mod pipelines;
mod place;
mod plan;
mod planner;
mod projections;
mod record;
mod rename;
mod selection;
mod storable;
mod supply;
mod survey;
mod tied;
mod tokens;
mod trial;
mod yaml;

pub use blocks::{Presets, value as block_value};
pub use convert::Conversion;
pub use difference::Difference;
pub use emit::{Prediction, Target};
pub use explain::Formula;
pub use fold::{Folded, Projection};
pub use place::{Anchors, Block, Filter, Layers, Setting, is_before_layers};
#[cfg(feature = "cli")]
pub(crate) use plan::scale_of;
pub use plan::{Kept, Operation, Plan, Planned};
pub use rename::{Rename, Renamed};
pub use selection::Selection;
pub use trial::Trial;
pub use yaml::{Options, RecipeFile, Sources};

use crate::adapter::{self, Adapters, Unplaced};
use crate::checkpoint::{Checkpoint, OpenOptions, Tensor, TensorView};
use crate::dtype::{self, DType};
use crate::error::{Error, Result};
use crate::merge::{self, ANY, About, Base, Input, Method, Parameter, Scope, Weight};
use levels::Settings;
use planner::Rules;
use regex::Regex;
use selection::matches_something;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What becomes of a tensor that some models have and others lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// The merge is refused.
    #[default]
    Error,
    /// The base (the first model where there is none) decides: its tensors are copied, others are left out.
    Base,
    /// It is left out.
    Skip,
}

impl Missing {
    /// The names on the command line.
    pub const NAMES: [(&str, Self); 3] = [("error", Self::Error), ("base", Self::Base), ("skip", Self::Skip)];
}

/// How to merge, whichever models are given.
#[derive(Clone)]
pub struct Recipe {
    /// The method.
    pub method: &'static dyn Method,
    /// One weight per model; the method's own if none are given.
    pub weights: Option<Vec<f64>>,
    /// Weights for tensors whose name matches; the first match counts.
    pub weights_for: Vec<(Regex, Vec<f64>)>,
    /// Values of the method's parameters that are not at their default: one for all models, or one for each.
    pub parameters: BTreeMap<String, Vec<Setting>>,
    /// Values for the blocks of a diffusion model, before those that hold for all of it.
    pub blocks: Vec<InBlocks>,
    /// Whether weights are divided by their sum; the method's own way if nothing is said.
    pub normalize: Option<bool>,
    /// What random numbers follow from.
    pub seed: u64,
    /// The type of the merged tensors; by default the smallest that holds all of the inputs'.
    pub dtype: Option<DType>,
    /// Only tensors that match one of these are merged; all if there are none.
    pub include: Vec<Regex>,
    /// Tensors that match one of these are not merged.
    pub exclude: Vec<Regex>,
    /// What becomes of tensors that are not in every model.
    pub missing: Missing,
    /// Whether channel-wise projections are multiplied into the weights before them, where that is exact.
    pub fold_projections: bool,
}

/// Values of a parameter, or of weights, for the blocks of a diffusion model.
#[derive(Clone, Debug)]
pub struct InBlocks {
    /// The parameter's name, or `weight`.
    pub parameter: String,
    /// The model that they are of, counted from 0; all if none is named.
    pub model: Option<usize>,
    /// A rule for each block.
    pub setting: Setting,
}

impl Recipe {
    /// Merges by the method of that name, with its defaults.
    ///
    /// # Errors
    /// [`Error::Unknown`] with the nearest name.
    pub fn new(method: &str) -> Result<Self> {
        Ok(Self {
            method: merge::method(method)?,
            weights: None,
            weights_for: Vec::new(),
            parameters: BTreeMap::new(),
            blocks: Vec::new(),
            normalize: None,
            seed: 0,
            dtype: None,
            include: Vec::new(),
            exclude: Vec::new(),
            missing: Missing::Error,
            fold_projections: false,
        })
    }

    /// Sets one weight per model, in their order.
    #[must_use]
    pub fn weights(mut self, weights: &[f64]) -> Self {
        self.weights = Some(weights.to_vec());
        self
    }

    /// Sets a parameter of the method.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: f64) -> Self {
        self.parameters.insert(name.to_owned(), vec![Setting::constant(value)]);
        self
    }

    /// Sets a parameter from text, as on the command line: a number, a switch, or several numbers, which are one for each
    /// model where models have their own, and anchors of a gradient over the layers where the tensor has one.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the method has no such parameter, [`Error::Recipe`] if the text is no number.
    pub fn set(&mut self, name: &str, text: &str) -> Result<()> {
        let known = self.known(name)?;
        let numbers: Vec<f64> = text
            .split(',')
            .map(|part| number(part.trim()).ok_or_else(|| Error::Recipe(format!("`{part}` is not a number"))))
            .collect::<Result<_>>()?;
        let settings = match known.scope {
            Scope::PerModel => numbers.into_iter().map(Setting::constant).collect(),
            Scope::Shared => vec![Setting::gradient(numbers)],
        };
        self.parameters.insert(known.name.to_owned(), settings);
        Ok(())
    }

    /// Sets a parameter, or with the name `weight` the models' weights, for each block of a diffusion model, in the order
    /// of the blocks; of one model, counted from 0, or of all.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the method has no such parameter, [`Error::Recipe`] if it has one for all models, if it is
    /// set twice, or if no model has as many blocks.
    pub fn set_blocks(&mut self, name: &str, model: Option<usize>, values: &[f64]) -> Result<()> {
        let about = self.method.about();
        let parameter = if name == levels::WEIGHT && about.weight != Weight::Unused {
            name
        } else {
            let known = self.known(name)?;
            if known.scope == Scope::Shared && model.is_some() {
                let message = format!("{} has one {} for all models: name no model with it", about.name, known.name);
                return Err(Error::Recipe(message));
            }
            known.name
        };
        let same = |other: Option<usize>| other == model || other.is_none() || model.is_none();
        if self.blocks.iter().any(|given| given.parameter == parameter && same(given.model)) {
            return Err(Error::Recipe(format!("the blocks of {name} are given twice")));
        }
        let rules =
            blocks::rules(values).map_err(|problem| Error::Recipe(format!("the blocks of {name}: {problem}")))?;
        self.blocks.push(InBlocks { parameter: parameter.to_owned(), model, setting: Setting { rules } });
        Ok(())
    }

    /// The rules for blocks that a parameter has, of one model or of what all share.
    fn in_blocks(&self, parameter: &str, model: Option<usize>) -> Vec<(Filter, Anchors)> {
        let mine = |given: &&InBlocks| given.parameter == parameter && (given.model.is_none() || given.model == model);
        self.blocks.iter().filter(mine).flat_map(|given| given.setting.rules.iter().cloned()).collect()
    }

    /// The method's parameter of that name; `-` and `_` are the same.
    fn known(&self, name: &str) -> Result<&'static Parameter> {
        let parameters = self.method.about().parameters;
        let wanted = name.replace('-', "_");
        let known = parameters.iter().find(|parameter| parameter.name == wanted);
        known.ok_or_else(|| {
            Error::unknown("parameter of this method", name, parameters.iter().map(|parameter| parameter.name))
        })
    }

    /// The parameters of the input of this number.
    fn levels(&self, index: usize) -> Settings {
        let mut levels = Settings::new();
        let special = self.weights_for.iter().map(|(pattern, weights)| (Filter::Matches(pattern.clone()), weights));
        let own = |(filter, weights): (Filter, &Vec<f64>)| Some((filter, vec![*weights.get(index)?].into()));
        let mut rules: Vec<(Filter, Anchors)> = special.filter_map(own).collect();
        rules.extend(self.in_blocks(levels::WEIGHT, Some(index)));
        rules.extend(self.weights.iter().map(|weights| (Filter::Any, weights)).filter_map(own));
        levels.insert(levels::WEIGHT.to_owned(), Setting { rules });
        self.add_parameters(&mut levels, Some(index));
        levels
    }

    /// The parameters that all inputs share.
    fn shared_levels(&self) -> Settings {
        let mut levels = Settings::new();
        self.add_parameters(&mut levels, None);
        levels
    }

    /// Adds the parameters of an input, or those that all share.
    fn add_parameters(&self, levels: &mut Settings, index: Option<usize>) {
        for parameter in self.method.about().parameters {
            let mut rules = self.in_blocks(parameter.name, index);
            let settings = self.parameters.get(parameter.name);
            let setting = settings.and_then(|all| all.get(index.unwrap_or(0)).or(all.first()));
            rules.extend(setting.into_iter().flat_map(|setting| setting.rules.iter().cloned()));
            if !rules.is_empty() {
                levels.insert(parameter.name.to_owned(), Setting { rules });
            }
        }
    }

    /// What holds for all tensors.
    fn rules(&self) -> Rules {
        Rules {
            method: self.method,
            normalizes: self.normalize.unwrap_or(self.method.about().normalizes),
            strict: false,
            missing_option: "--missing",
            seed: self.seed,
            dtype: self.dtype,
            selection: Selection { include: self.include.clone(), exclude: self.exclude.clone() },
            missing: self.missing,
            group: 0,
        }
    }

    /// How many inputs the method takes for models: a base may count as one, and the last may be the base.
    fn count(&self, models: &Models) -> usize {
        let given = models.tuned.len();
        match (self.method.about().base, &models.base) {
            (Base::Counts, Some(_)) => given + 1,
            (Base::Last, None) => given.saturating_sub(1),
            _ => given,
        }
    }

    /// That the recipe is whole and fits the number of models.
    fn check(&self, models: &Models) -> Result<()> {
        let fail = |message: String| Err(Error::Recipe(message));
        let about = self.method.about();
        let name = about.name;
        match (about.base, &models.base) {
            (Base::Required, None) => return fail(format!("{name} needs a base model: give one with --base")),
            (Base::None, Some(_)) => {
                return fail(format!("{name} takes no base model: drop --base, or use --method task-arithmetic"));
            }
            _ => {}
        }
        let count = self.count(models);
        if let Some(problem) = miscount(about, count) {
            return fail(problem);
        }
        match (self.method.companions(), models.companions.len()) {
            (None, 0) => {}
            (None, _) => return fail(format!("{name} takes no companions: drop --companion")),
            (Some(what), given) if given != count => {
                return fail(format!(
                    "{name} needs {what} for each of {count} models with --companion, but there are {given}"
                ));
            }
            (Some(_), _) => {}
        }
        let lists = self
            .weights
            .iter()
            .map(|w| ("--weights", w))
            .chain(self.weights_for.iter().map(|(_, w)| ("--weights-for", w)));
        for (option, weights) in lists {
            if about.weight == Weight::Unused {
                return fail(format!(
                    "{name} takes no weights: drop {option}; `ckptmerge methods` lists its parameters"
                ));
            }
            if weights.len() != count {
                return fail(format!("{option} gives {} weights, but there are {count} models", weights.len()));
            }
            if let Some(weight) = weights.iter().find(|weight| !(**weight as f32).is_finite()) {
                return fail(format!("{option} gives the weight {weight:e}, which is not a finite number of 32 bits"));
            }
            let is_mean = self.normalize.unwrap_or(about.normalizes) && !about.needs_base();
            if is_mean && weights.iter().sum::<f64>() == 0.0 {
                return fail(format!("{option} gives weights that add up to 0, so they cannot be normalized"));
            }
        }
        for (name, settings) in &self.parameters {
            let known = self.known(name)?;
            if known.scope == Scope::PerModel && settings.len() > 1 && settings.len() != count {
                let given = settings.len();
                return fail(format!("the parameter {name} has {given} values, but there are {count} models"));
            }
            let mut values = settings.iter().flat_map(Setting::values);
            values.try_for_each(|value| known.check(about, value)).map_err(Error::Recipe)?;
        }
        for given in &self.blocks {
            if let Some(known) = about.parameters.iter().find(|known| known.name == given.parameter) {
                let mut values = given.setting.values();
                values.try_for_each(|value| known.check(about, value)).map_err(Error::Recipe)?;
            }
            if let Some(model) = given.model.filter(|model| *model >= count) {
                let (parameter, model) = (&given.parameter, model + 1);
                return fail(format!("--blocks gives {parameter} of model {model}, but there are {count} models"));
            }
        }
        let all_alike = self.blocks.iter().any(|given| given.parameter == levels::WEIGHT && given.model.is_none());
        if about.weight == Weight::Share && count > 1 && all_alike {
            let message = "--blocks weight=… gives all models the same weight: name one, as in weight:2=…, or merge one model into another by `--base A B --blocks weight=…`, which is A + w·(B − A)";
            return fail(message.to_owned());
        }
        let weighed = |model| {
            self.blocks
                .iter()
                .any(|given| given.parameter == levels::WEIGHT && (given.model.is_none() || given.model == Some(model)))
        };
        let some_weighed = (0..count).any(weighed);
        if about.weight == Weight::Share && self.weights.is_none() && some_weighed && !(0..count).all(weighed) {
            let message = "--blocks gives weights of some models only: give those of the others too, with --blocks or --weights; for two models whose weights add up to 1, `--base A B --blocks weight=…` is A + w·(B − A)";
            return fail(message.to_owned());
        }
        let special = self.weights_for.iter().map(|(pattern, _)| ("--weights-for", pattern));
        let include = self.include.iter().map(|pattern| ("--include", pattern));
        let exclude = self.exclude.iter().map(|pattern| ("--exclude", pattern));
        let names = || models.all().flat_map(Checkpoint::tensors).map(|tensor| tensor.name.as_str());
        matches_something(special.chain(include).chain(exclude), names)?;
        match self.dtype {
            Some(dtype) if !dtype.is_real() || !dtype::can_encode(dtype) => {
                fail(format!("models cannot be merged to {dtype}; choose a float type such as bf16"))
            }
            _ => Ok(()),
        }
    }
}

/// What is wrong with the number of models, if the method does not take that many.
fn miscount(about: &About, count: usize) -> Option<String> {
    let (least, most) = about.models;
    let wanted = match (least, most) {
        (least, most) if (least..=most).contains(&count) => return None,
        (1, 1) => "one model".to_owned(),
        (least, most) if least == most => format!("{least} models"),
        (least, ANY) => format!("at least {least} models"),
        (least, most) => format!("{least} to {most} models"),
    };
    let base = match about.base {
        Base::Required => " beside the base",
        Base::Counts => ", of which a base is one",
        Base::Last => " and a base, which is the last model where --base names none",
        _ => "",
    };
    Some(format!("{} takes {wanted}{base}, but there are {count}", about.name))
}

/// A number, or a switch's word for one.
fn number(text: &str) -> Option<f64> {
    match text {
        "true" | "True" | "on" | "yes" => Some(1.0),
        "false" | "False" | "off" | "no" => Some(0.0),
        _ => text.parse().ok(),
    }
}

fn nothing_left() -> Error {
    Error::Recipe("nothing is left to write: no tensor is kept".to_owned())
}

/// The models of a merge, open.
///
/// A model is a checkpoint, perhaps with adapters over it; [`Self::input`] is a tensor as a merge is to read it.
#[derive(Debug)]
pub struct Models {
    /// The models to merge, in the order of their weights.
    pub tuned: Vec<Checkpoint>,
    /// The model they were tuned from, for methods that need it.
    pub base: Option<Checkpoint>,
    /// What accompanies the models, in their order, for methods that need it.
    pub companions: Vec<Checkpoint>,
    /// What lies over each of [`Self::all`].
    adapters: Vec<Adapters>,
    /// What stands for tensors that models lack.
    completed: Vec<String>,
    /// How messages and the output's metadata call them: enough of each path to tell them apart; the base last.
    labels: Vec<String>,
    /// The same for the companions.
    companion_labels: Vec<String>,
}

impl Models {
    /// Opens them. A path may be `MODEL+ADAPTER+…`, and an adapter alone is one over the base.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] and [`Adapters::open`], or [`Error::Recipe`] if there are none.
    pub fn open(paths: &[PathBuf], base: Option<&Path>, options: &OpenOptions) -> Result<Self> {
        Self::open_with(paths, &[], base, options, Unplaced::Error)
    }

    /// As [`Self::open`], with what accompanies them, and saying what becomes of adapters' tensors that their model has
    /// no place for.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        paths: &[PathBuf],
        companions: &[PathBuf],
        base: Option<&Path>,
        options: &OpenOptions,
        unplaced: Unplaced,
    ) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::Recipe("there is no model to merge".to_owned()));
        }
        let base_parts = base.map(adapter::split_path);
        let (mut checkpoints, mut adapters, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for path in paths.iter().map(PathBuf::as_path).chain(base) {
            let mut parts = adapter::split_path(path);
            let mut first = Checkpoint::open_with(&parts[0], options)?;
            let mut over: Vec<Checkpoint> =
                parts[1..].iter().map(|path| Checkpoint::open_with(path, options)).collect::<Result<_>>()?;
            names.push(joined(&parts));
            if adapter::is_adapter(&first) {
                let Some(base) = base_parts.as_ref().filter(|base| **base != parts) else {
                    let message =
                        "is an adapter, not a model: name its model before it, as in MODEL+ADAPTER, or with --base";
                    return Err(Error::model(&parts[0], message));
                };
                over.insert(0, std::mem::replace(&mut first, Checkpoint::open_with(&base[0], options)?));
                let below = base[1..].iter().map(|path| Checkpoint::open_with(path, options));
                over.splice(0..0, below.collect::<Result<Vec<_>>>()?);
                parts.splice(0..0, base.iter().cloned());
            }
            adapters.push(Adapters::new(over, &first, unplaced)?);
            checkpoints.push(first);
        }
        let accompanying: Vec<Checkpoint> =
            companions.iter().map(|path| Checkpoint::open_with(path, options)).collect::<Result<_>>()?;
        let names: Vec<&Path> = names.iter().chain(companions).map(PathBuf::as_path).collect();
        let mut labels = labels(&names);
        let companion_labels = labels.split_off(names.len() - companions.len());
        pipelines::align(&mut checkpoints, &adapters, base.is_some());
        let mut named: Vec<_> = checkpoints.iter_mut().zip(labels.iter().map(String::as_str)).collect();
        let completed = projections::complete(&mut named, options.io)?;
        let base = base.and_then(|_| checkpoints.pop());
        Ok(Self { tuned: checkpoints, base, companions: accompanying, adapters, completed, labels, companion_labels })
    }

    /// The adapters over the model of this number in [`Self::all`].
    #[must_use]
    pub fn adapters(&self, index: usize) -> &Adapters {
        &self.adapters[index]
    }

    /// A tensor of the model of this number in [`Self::all`], with what adapters make of it.
    #[must_use]
    pub fn input<'a>(&'a self, index: usize, view: TensorView<'a>) -> Input<'a> {
        self.adapters[index].over(view)
    }

    /// Whether an adapter tells a tensor from the one it is tied to.
    #[must_use]
    pub fn unties(&self, tensor: &Tensor) -> bool {
        self.adapters.iter().any(|adapters| adapters.unties(tensor))
    }

    /// What is odd about the adapters without being wrong.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().flat_map(Adapters::warnings).map(String::as_str)
    }

    /// What was put in place of tensors that some of the models lack.
    pub fn remarks(&self) -> impl Iterator<Item = &str> {
        self.completed.iter().map(String::as_str)
    }

    /// Every checkpoint that is read, and what messages call it.
    fn sources(&self) -> Vec<(&Checkpoint, String)> {
        let over = self.adapters.iter().flat_map(Adapters::sources);
        let named = self.all().zip(self.labels.iter().cloned());
        let over = over.map(|source| (source, source.name().to_owned()));
        named.chain(over).chain(self.accompanied().map(|(model, label)| (model, label.to_owned()))).collect()
    }

    /// All of them, the base last.
    pub fn all(&self) -> impl Iterator<Item = &Checkpoint> + Clone {
        self.tuned.iter().chain(&self.base)
    }

    /// The one that decides the order of tensors and the files beside them: the base, or the first.
    #[must_use]
    pub fn reference(&self) -> &Checkpoint {
        self.base.as_ref().unwrap_or(&self.tuned[0])
    }

    /// The one whose configuration and other small files the output gets: the first that is a folder, if one is.
    #[must_use]
    pub fn frame(&self) -> &Checkpoint {
        let mut candidates = self.base.iter().chain(&self.tuned);
        candidates.find(|model| model.layout().is_folder).unwrap_or(self.reference())
    }

    /// The companions, and what messages call them.
    pub fn accompanied(&self) -> impl Iterator<Item = (&Checkpoint, &str)> {
        self.companions.iter().zip(self.companion_labels.iter().map(String::as_str))
    }

    /// What messages call each of [`Self::all`].
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }
}

/// The path by which a model with adapters is called: the model's, with the adapters' names at its end.
fn joined(parts: &[PathBuf]) -> PathBuf {
    let mut name = parts[0].clone().into_os_string();
    for adapter in &parts[1..] {
        let plain = adapter.file_stem().is_some_and(|stem| stem == "adapter_model");
        let called = if plain { adapter.parent().and_then(Path::file_name) } else { adapter.file_name() };
        name.push("+");
        name.push(called.unwrap_or(adapter.as_os_str()));
    }
    name.into()
}

/// The fewest last parts of each path that tell them all apart.
fn labels(paths: &[&Path]) -> Vec<String> {
    let tail = |path: &Path, parts: usize| {
        let all: Vec<_> = path.components().collect();
        let tail: PathBuf = all[all.len().saturating_sub(parts)..].iter().collect();
        tail.display().to_string()
    };
    let distinct: BTreeSet<&Path> = paths.iter().copied().collect();
    let longest = paths.iter().map(|path| path.components().count()).max().unwrap_or(1);
    let parts = (1..longest)
        .find(|&parts| distinct.iter().map(|path| tail(path, parts)).collect::<BTreeSet<_>>().len() == distinct.len())
        .unwrap_or(longest);
    paths.iter().map(|path| tail(path, parts)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_as_short_as_they_can_be() {
        let of = |paths: &[&str]| labels(&paths.iter().map(Path::new).collect::<Vec<_>>());
        assert_eq!(of(&["/x/a.st", "y/b.st"]), ["a.st", "b.st"]);
        assert_eq!(of(&["a/model.st", "b/model.st"]), ["a/model.st", "b/model.st"]);
        assert_eq!(of(&["a.st", "a.st"]), ["a.st", "a.st"], "the same file twice needs no telling apart");
    }
}
