//! Other names for a model's tensors, on its way through a conversion: rules, and the maps of `names`.
//!
//! A map looks at the whole model, so what is left out is left out before it. Rules behind the last map apply to single
//! names, when the output is planned.

use super::plan::scale_of;
use super::{Conversion, matches_something};
use crate::checkpoint::{Checkpoint, Elements, Part, Tensor, View};
use crate::error::{Error, Mismatch, Result};
use crate::names::{self, NameMap};
use regex::Regex;
use std::collections::HashMap;

/// One way in which names change.
#[derive(Clone, Debug)]
pub enum Rename {
    /// Replacements, applied one after the other.
    Rules(Vec<(Regex, String)>),
    /// A map of [`names::NAME_MAPS`].
    Map(&'static dyn NameMap),
}

/// A model on its way through a [`Conversion`]: under the names that maps give, for [`Conversion::plan`].
#[derive(Debug)]
pub struct Renamed {
    model: Checkpoint,
    /// Tensors that are left out already, by the model's own names.
    pub(super) left_out: Vec<String>,
    /// Whether what is to be left out is.
    pub(super) is_filtered: bool,
    /// Rules for the names as they now are.
    pub(super) rules: Vec<(Regex, String)>,
    /// Rules that no name matches.
    unused: Vec<String>,
}

impl Renamed {
    /// The model as it is now.
    #[must_use]
    pub fn model(&self) -> &Checkpoint {
        &self.model
    }

    /// The patterns of rules that changed no name: slips, mostly.
    #[must_use]
    pub fn unused_rules(&self) -> &[String] {
        &self.unused
    }
}

impl Conversion {
    /// Takes the model through the name maps. Reads no data.
    ///
    /// # Errors
    /// [`Error::Names`] or [`Error::Format`] with what a map cannot name, [`Error::Unfit`] with what rules or a map
    /// make of it, [`Error::Recipe`] if a pattern matches nothing.
    pub fn rename(&self, model: Checkpoint) -> Result<Renamed> {
        self.check_patterns(&model)?;
        let last_map = self.rename.iter().rposition(|rename| matches!(rename, Rename::Map(_)));
        let (before, behind) = self.rename.split_at(last_map.map_or(0, |last| last + 1));
        let rules = behind.iter().flat_map(|rename| match rename {
            Rename::Rules(rules) => rules.clone(),
            Rename::Map(_) => Vec::new(),
        });
        let rules: Vec<(Regex, String)> = rules.collect();
        let mut unused = Vec::new();
        if before.is_empty() {
            note_unused(&rules, &model, |name| self.selection.takes(name), &mut unused);
            return Ok(Renamed { model, left_out: Vec::new(), is_filtered: false, rules, unused });
        }
        check_scales(&model, |name| self.selection.takes(name))?;
        let (kept, out): (Vec<_>, Vec<_>) =
            model.tensors().iter().partition(|tensor| self.selection.takes(&tensor.name));
        let mut left_out: Vec<String> = out.into_iter().map(|tensor| tensor.name.clone()).collect();
        if kept.is_empty() {
            return Err(super::nothing_left());
        }
        let kept: Vec<&str> = kept.into_iter().map(|tensor| tensor.name.as_str()).collect();
        let views = named(&model, &kept, |name| Ok(name.to_owned()))?;
        let layout = model.layout().clone();
        let mut model = model.mapped(layout, views)?;
        for rename in before {
            match rename {
                Rename::Map(map) => {
                    let (renamed, out) = names::apply(*map, model)?;
                    model = renamed;
                    left_out.extend(out);
                }
                Rename::Rules(rules) => {
                    note_unused(rules, &model, |_| true, &mut unused);
                    let all: Vec<&str> = model.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
                    let views = named(&model, &all, |name| replaced(rules, name))?;
                    check_distinct(&model, &views)?;
                    let layout = model.layout().clone();
                    model = model.mapped(layout, views)?;
                }
            }
        }
        note_unused(&rules, &model, |_| true, &mut unused);
        Ok(Renamed { model, left_out, is_filtered: true, rules, unused })
    }

    /// That every pattern matches a name of the model.
    fn check_patterns(&self, model: &Checkpoint) -> Result<()> {
        let special = self.dtype_for.iter().map(|(pattern, _)| ("--dtype-for", pattern));
        let include = self.selection.include.iter().map(|pattern| ("--include", pattern));
        let exclude = self.selection.exclude.iter().map(|pattern| ("--exclude", pattern));
        let names = || model.tensors().iter().map(|tensor| tensor.name.as_str());
        matches_something(special.chain(include).chain(exclude), names)
    }
}

/// The longest name that rules may make, in bytes: what a safetensors header may say of a tensor.
const MAX_NAME: usize = 64 << 10;

/// A name after all replacements.
///
/// # Errors
/// If the rules make it longer than [`MAX_NAME`].
pub(super) fn replaced(rules: &[(Regex, String)], name: &str) -> Result<String, String> {
    rules.iter().try_fold(name.to_owned(), |name, (from, to)| replaced_once(from, to, name))
}

/// As [`Regex::replace_all`], which would finish a name however long it becomes.
fn replaced_once(from: &Regex, to: &str, name: String) -> Result<String, String> {
    let (mut new, mut done) = (String::new(), 0);
    for found in from.captures_iter(&name) {
        let Some(whole) = found.get(0) else { continue };
        new += name.get(done..whole.start()).unwrap_or_default();
        found.expand(to, &mut new);
        done = whole.end();
        if new.len() > MAX_NAME {
            return Err(format!(
                "would get a name of more than {MAX_NAME} bytes by the rule `{from} -> {to}`: rules that repeat what they find make names grow"
            ));
        }
    }
    new += name.get(done..).unwrap_or_default();
    Ok(new)
}

/// Adds the rules that match none of the names that they are applied to.
fn note_unused(rules: &[(Regex, String)], model: &Checkpoint, keeps: impl Fn(&str) -> bool, unused: &mut Vec<String>) {
    let kept = model.tensors().iter().filter(|tensor| keeps(&tensor.name));
    let mut used = vec![false; rules.len()];
    for tensor in kept {
        let mut name = within(model, tensor).to_owned();
        for ((from, to), used) in rules.iter().zip(&mut used) {
            if from.is_match(&name) {
                *used = true;
                // What becomes too long is an error where it is used.
                let Ok(new) = replaced_once(from, to, name) else { break };
                name = new;
            }
        }
    }
    unused.extend(rules.iter().zip(used).filter(|(_, used)| !used).map(|((from, _), _)| from.as_str().to_owned()));
}

/// Views of tensors as they are, by names that `rename` makes of those within their parts.
fn named(model: &Checkpoint, names: &[&str], rename: impl Fn(&str) -> Result<String, String>) -> Result<Vec<View>> {
    let tensors = names.iter().filter_map(|name| model.get(name)).map(|view| view.tensor);
    let view = |tensor: &Tensor| {
        let wrong = |problem| Error::Unfit(vec![Mismatch { tensor: tensor.inputs().join("`, `"), problem }]);
        Ok(View {
            name: rename(within(model, tensor)).map_err(wrong)?,
            part: tensor.part,
            shape: tensor.shape.clone(),
            elements: Elements::Whole(tensor.name.clone()),
        })
    };
    tensors.map(view).collect()
}

/// A tensor's name within its part.
pub(super) fn within<'a>(model: &Checkpoint, tensor: &'a Tensor) -> &'a str {
    let prefix = model.layout().parts.get(tensor.part).map(Part::prefix).unwrap_or_default();
    tensor.name.strip_prefix(&prefix).unwrap_or(&tensor.name)
}

fn check_distinct(model: &Checkpoint, views: &[View]) -> Result<()> {
    let inputs = |view: &View| {
        let name = view.elements.names().first().map(String::as_str).unwrap_or_default();
        model.get(name).map_or_else(|| name.to_owned(), |view| view.tensor.inputs().join("`, `"))
    };
    let mut seen: HashMap<(usize, &str), &View> = HashMap::new();
    let mut twice = Vec::new();
    for view in views {
        if let Some(other) = seen.insert((view.part, &view.name), view) {
            let problem = format!("and `{}` would both be called `{}`", inputs(other), view.name);
            twice.push(Mismatch { tensor: inputs(view), problem });
        }
    }
    if twice.is_empty() { Ok(()) } else { Err(Error::Unfit(twice)) }
}

/// That no tensor that is kept has a scale, which maps do not know and so would part from it.
fn check_scales(model: &Checkpoint, keeps: impl Fn(&str) -> bool) -> Result<()> {
    let scaled = model.tensors().iter().filter(|tensor| keeps(&tensor.name));
    let problems: Vec<Mismatch> = scaled
        .filter_map(|tensor| {
            let scale = scale_of(tensor, model)?;
            let problem = format!(
                "is {} with a scale in `{scale}`, which name maps do not carry along: convert the model to bf16 first, without --rename",
                tensor.dtype
            );
            Some(Mismatch { tensor: tensor.name.clone(), problem })
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Error::Unfit(problems)) }
}
