//! The models of a command that looks at what fine-tuning changed.

use super::report::{Report, count, shortened};
use super::{Common, remarks};
use crate::analysis::Vectors;
use crate::checkpoint::{Checkpoint, by_extension};
use crate::error::Error;
use crate::recipe::{Models, Selection};
use clap::Args;
use regex::Regex;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A base and models that were tuned from it.
#[derive(Args)]
pub(super) struct Tuned {
    /// The model before
    base: PathBuf,
    /// The models after
    tuned: Vec<PathBuf>,
    /// Take the models as they are, the first like the others, not their changes
    #[arg(long)]
    base_less: bool,
    /// Take only tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    include: Vec<Regex>,
    /// Leave out tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<Regex>,
    /// Leave out tensors that not all models have
    #[arg(long)]
    shared: bool,
}

impl Tuned {
    /// The one model that is not compared with others, and which of its tensors are taken.
    ///
    /// # Errors
    /// [`Error::Recipe`] if there are others, or something is said of them; `option` asked for one alone.
    #[cfg(feature = "diffusion")]
    pub(super) fn alone(&self, option: &str) -> Result<(&Path, Selection), Error> {
        let of_others =
            [(!self.tuned.is_empty(), "other models"), (self.base_less, "--base-less"), (self.shared, "--shared")];
        if let Some((_, what)) = of_others.iter().find(|(is_given, _)| *is_given) {
            return Err(Error::Recipe(format!("{option} is of one model alone: leave {what} out")));
        }
        Ok((&self.base, Selection { include: self.include.clone(), exclude: self.exclude.clone() }))
    }

    /// Opens the models.
    pub(super) fn open(&self, common: &Common, report: &Report) -> anyhow::Result<Models> {
        if self.tuned.is_empty() && !self.base_less {
            let message = "a TUNED model is required behind the base; --base-less takes models as they are";
            return Err(Error::Recipe(message.to_owned()).into());
        }
        let options = common.open();
        let models = if self.base_less {
            let all: Vec<PathBuf> = std::iter::once(&self.base).chain(&self.tuned).cloned().collect();
            Models::open(&all, None, &options)?
        } else {
            Models::open(&self.tuned, Some(&self.base), &options)?
        };
        looked_at(&models, common, report)?;
        Ok(models)
    }

    /// The models' tensors that are numbers.
    pub(super) fn vectors<'m>(&self, models: &'m Models, report: &Report) -> anyhow::Result<Vectors<'m>> {
        let selection = Selection { include: self.include.clone(), exclude: self.exclude.clone() };
        vectors_of(models, &selection, self.shared, report)
    }
}

/// What is said of models whose files are looked at as they are: that none has an adapter, and what is odd.
pub(super) fn looked_at(models: &Models, common: &Common, report: &Report) -> anyhow::Result<()> {
    common.check_selected(models.all())?;
    if let Some(index) = (0..models.labels().len()).find(|&index| !models.adapters(index).is_empty()) {
        let label = &models.labels()[index];
        let message =
            format!("{label} is a model with an adapter: write it with `ckptmerge convert {label} OUT` first");
        return Err(Error::Recipe(message).into());
    }
    for model in models.all() {
        report.about(model);
        remarks::of_scales(report, model);
    }
    models.remarks().for_each(|remark| report.remark(remark));
    Ok(())
}

/// The tensors that are numbers of models, and of a base.
pub(super) fn vectors_of<'m>(
    models: &'m Models,
    selection: &Selection,
    shared: bool,
    report: &Report,
) -> anyhow::Result<Vectors<'m>> {
    selection.check(models.all())?;
    let tuned: Vec<&Checkpoint> = models.tuned.iter().collect();
    let takes = |name: &str| selection.takes(name);
    let vectors = Vectors::of(&tuned, models.base.as_ref(), models.labels(), &takes, shared)?;
    if !vectors.left_out.is_empty() {
        let (tensors, names) = (count(vectors.left_out.len() as u64, "tensor"), shortened(&vectors.left_out));
        let why = if shared { "not in all models, or no real numbers" } else { "no real numbers" };
        report.remark(&format!("left out {tensors}, {why}: {names}"));
    }
    Ok(vectors)
}

/// Models' labels for people: without the endings of their formats, if they can be told apart so.
pub(super) fn names(labels: &[String]) -> Vec<String> {
    let stem = |label: &String| {
        let path = Path::new(label);
        let known = by_extension(path).and(path.extension()).and_then(|ending| ending.to_str());
        let stem = known.and_then(|ending| label.strip_suffix(ending)?.strip_suffix('.'));
        stem.filter(|stem| !stem.is_empty() && !stem.ends_with('/')).unwrap_or(label).to_owned()
    };
    let names: Vec<String> = labels.iter().map(stem).collect();
    let distinct = |names: &[String]| names.iter().collect::<HashSet<_>>().len();
    let names = if distinct(&names) == distinct(labels) { names } else { labels.to_vec() };
    without_what_all_share(names)
}

/// Names without what all begin and end with, where they are long: that is where they would be cut, and be the same.
pub(super) fn without_what_all_share(names: Vec<String>) -> Vec<String> {
    const LONG: usize = 24;
    let Some(first) = names.first().filter(|_| names.iter().any(|name| name.chars().count() > LONG)) else {
        return names;
    };
    let ends = |c: char| matches!(c, '.' | '-' | '_' | '/');
    let shared = |all: &dyn Fn(&str, &str) -> bool, cuts: Vec<&str>| {
        cuts.into_iter()
            .find(|cut| names.iter().all(|name| name.len() > cut.len() && all(name, cut)))
            .map_or(0, str::len)
    };
    // From the longest, ending and beginning where a part of a name does.
    let before = first.rmatch_indices(ends).map(|(at, found)| &first[..at + found.len()]).collect();
    let before = shared(&|name, cut| name.starts_with(cut), before);
    let behind = first.match_indices(ends).map(|(at, _)| &first[at..]).collect();
    let behind = shared(&|name, cut| name.ends_with(cut), behind);
    let short = |name: &String| {
        let middle = name.get(before..name.len().saturating_sub(behind)).filter(|middle| !middle.is_empty());
        let dots = |cut: usize| if cut > 0 { "…" } else { "" };
        middle.map_or_else(|| name.clone(), |middle| format!("{}{middle}{}", dots(before), dots(behind)))
    };
    names.iter().map(short).collect()
}

#[cfg(test)]
mod tests {
    use super::{names, without_what_all_share};

    #[test]
    fn endings_go_where_names_stay_apart() {
        let of = |labels: &[&str]| names(&labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["a.safetensors", "x/b.pt", "t.5", "c"]), ["a", "x/b", "t.5", "c"]);
        assert_eq!(of(&["a.safetensors", "a.pt"]), ["a.safetensors", "a.pt"]);
        assert_eq!(of(&["a.pt", "a.pt", ".npz"]), ["a", "a", ".npz"]);
    }

    #[test]
    fn long_names_lose_what_they_share() {
        let of = |names: &[&str]| without_what_all_share(names.iter().map(|name| (*name).to_owned()).collect());
        let long = ["finetune-of-the-model-run1-lr1e-5", "finetune-of-the-model-run12-lr1e-5"];
        assert_eq!(of(&long), ["…run1…", "…run12…"]);
        assert_eq!(of(&["a-1", "a-2"]), ["a-1", "a-2"]);
        assert_eq!(of(&[long[0], long[0]]), [long[0], long[0]]);
        assert_eq!(
            of(&["model.diffusion_model.input_blocks.0", "model.diffusion_model.middle_block"]),
            ["…input_blocks.0", "…middle_block"]
        );
        assert!(of(&[]).is_empty());
    }
}
