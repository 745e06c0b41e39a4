//! Block weights: a value for each block of a diffusion model, as "merge block weighted" and supermerger have them.
//!
//! Values stand in the order of the blocks: `BASE`, `IN00`…, `M00`, `OUT00`… for the UNets of Stable Diffusion (26 of 1.x
//! and 2.x, 20 of XL), `CLIP`, `T5`, `IN`, `D00`…, `S00`…, `OUT` for Flux (61). Their number tells which of these is meant.
//! They become rules of a [`Setting`], one for each block; which tensors a block has is told from the models.
//! <https://github.com/hako-mikan/sd-webui-supermerger>

mod model;
mod presets;

pub(super) use model::ModelBlocks;
pub use presets::Presets;

use super::{Anchors, Block, Filter, Setting};
use std::collections::HashSet;
use std::sync::Arc;

/// A model whose blocks are listed.
struct Architecture {
    /// What people call it.
    name: &'static str,
    /// Its blocks, each with how many there are; one without a number if none is given.
    blocks: &'static [(&'static str, Option<usize>)],
}

/// Stable Diffusion 1.x and 2.x.
const SD: Architecture = Architecture {
    name: "Stable Diffusion 1.x and 2.x",
    blocks: &[("BASE", None), ("IN", Some(12)), ("M", Some(1)), ("OUT", Some(12))],
};
const SDXL: Architecture = Architecture {
    name: "Stable Diffusion XL",
    blocks: &[("BASE", None), ("IN", Some(9)), ("M", Some(1)), ("OUT", Some(9))],
};
const FLUX: Architecture = Architecture {
    name: "Flux",
    blocks: &[("CLIP", None), ("T5", None), ("IN", None), ("D", Some(19)), ("S", Some(38)), ("OUT", None)],
};
/// The models whose lists of values are known by their length.
const ARCHITECTURES: [Architecture; 3] = [SD, SDXL, FLUX];

impl Architecture {
    fn names(&self) -> Vec<String> {
        names(self.blocks)
    }
}

/// The names of blocks in their order.
fn names(blocks: &[(&str, Option<usize>)]) -> Vec<String> {
    let of = |(stem, count): &(&str, Option<usize>)| match count {
        None => vec![(*stem).to_owned()],
        Some(count) => (0..*count).map(|number| numbered(stem, number)).collect(),
    };
    blocks.iter().flat_map(of).collect()
}

fn numbered(stem: &str, number: usize) -> String {
    format!("{stem}{number:02}")
}

/// The rules for a value of each block, by the number of values.
///
/// # Errors
/// A message if no architecture has that many.
pub(super) fn rules(values: &[f64]) -> Result<Vec<(Filter, Anchors)>, String> {
    let Some(names) = ARCHITECTURES.iter().map(Architecture::names).find(|names| names.len() == values.len()) else {
        let known = ARCHITECTURES.map(|known| format!("{} for {}", known.names().len(), known.name));
        let hint = match values.len() {
            19 | 25 | 60 => "; the first is that of BASE, which may be lacking here",
            _ => "",
        };
        let given = values.len();
        return Err(format!("{given} values are no list of blocks, which has {}{hint}", known.join(", ")));
    };
    Ok(names.into_iter().zip(values).map(|(name, value)| rule(name, vec![*value].into())).collect())
}

/// The rule for one block.
pub(super) fn rule(name: String, value: Anchors) -> (Filter, Anchors) {
    (Filter::Block(Block { name, tensors: Arc::default() }), value)
}

/// A number of a list; supermerger's letters for random ones are none.
///
/// # Errors
/// A message for people.
pub fn value(text: &str) -> Result<f64, String> {
    let text = text.trim();
    match text.parse::<f64>() {
        Ok(value) if (value as f32).is_finite() => Ok(value),
        Ok(value) => Err(format!("{value:e} is not a finite number of 32 bits")),
        Err(_) if matches!(text, "R" | "U" | "X") => Err(format!(
            "`{text}` is supermerger's letter for a random number, of which there are none here: write a number"
        )),
        Err(_) => Err(format!("`{text}` is not a number")),
    }
}

impl Setting {
    /// The blocks that it has values for.
    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.rules.iter().filter_map(|(filter, _)| match filter {
            Filter::Block(block) => Some(block),
            _ => None,
        })
    }

    /// Whether it has values for blocks.
    pub(super) fn has_blocks(&self) -> bool {
        self.blocks().next().is_some()
    }
}

impl ModelBlocks {
    /// The setting for this model: with the tensors of each block. What is to be said about it is added to `notes`, where
    /// `model` and `parameter` are what people call these.
    ///
    /// # Errors
    /// A message if its blocks are not the model's, or if tensors of `merged` are in none of a whole list's.
    pub(super) fn place<'n>(
        &self,
        setting: &Setting,
        (parameter, model): (&str, &str),
        merged: impl Iterator<Item = &'n str>,
        notes: &mut Vec<String>,
    ) -> Result<Setting, String> {
        let given: Vec<&str> = setting.blocks().map(|block| block.name.as_str()).collect();
        if given.is_empty() {
            return Ok(setting.clone());
        }
        let distinct: HashSet<&str> = given.iter().copied().collect();
        let own: HashSet<&str> = self.names.iter().map(String::as_str).collect();
        let is = |architecture: &Architecture, blocks: &HashSet<&str>| {
            let names = architecture.names();
            names.len() == blocks.len() && names.iter().all(|name| blocks.contains(name.as_str()))
        };
        let listed = ARCHITECTURES.iter().find(|architecture| is(architecture, &distinct));
        match listed {
            Some(_) if distinct == own => {}
            Some(listed) if is(&SD, &distinct) && is(&SDXL, &own) => {
                let dropped: Vec<String> =
                    listed.names().into_iter().filter(|name| !own.contains(name.as_str())).collect();
                let note = format!(
                    "`{parameter}` has the 26 values of {}, of which the 20 that {}'s blocks have are used; those of {} are not",
                    SD.name,
                    SDXL.name,
                    in_runs(&dropped)
                );
                if !notes.contains(&note) {
                    notes.push(note);
                }
            }
            Some(listed) => {
                return Err(format!(
                    "`{parameter}` has the {} values of {}, but {model} has {} blocks{}: {}; give a value for each of these",
                    distinct.len(),
                    listed.name,
                    own.len(),
                    ARCHITECTURES
                        .iter()
                        .find(|known| is(known, &own))
                        .map_or(String::new(), |own| format!(" of {}", own.name)),
                    in_runs(&self.names),
                ));
            }
            None => {
                if let Some(unknown) = given.iter().find(|name| !own.contains(*name)) {
                    let names = in_runs(&self.names);
                    return Err(format!("`{parameter}` has a value for the block {unknown}, but {model} has {names}"));
                }
            }
        }
        let has_rest = setting.rules.iter().any(|(filter, _)| matches!(filter, Filter::Any));
        if listed.is_some() && !has_rest {
            let outside: Vec<&str> = merged.filter(|name| !self.has(name)).collect();
            if let Some(first) = outside.first() {
                return Err(format!(
                    "`{parameter}` has values for {model}'s blocks, but {} of its tensors are in none, such as `{first}`: exclude them, or give them a value too (`otherwise` in a recipe; -p or --weights beside --blocks)",
                    outside.len(),
                ));
            }
        }
        let placed = setting.rules.iter().map(|(filter, anchors)| match filter {
            Filter::Block(block) => (Filter::Block(self.block(&block.name)), anchors.clone()),
            _ => (filter.clone(), anchors.clone()),
        });
        Ok(Setting { rules: placed.collect() })
    }
}

/// Names in their order, with what stands between the first and the last of a row left out.
fn in_runs(names: &[String]) -> String {
    let stem = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let mut runs: Vec<(&str, &str, String)> = Vec::new();
    for name in names {
        match runs.last_mut() {
            Some((_, last, of)) if *of == stem(name) && of.len() < name.len() => *last = name,
            _ => runs.push((name, name, stem(name))),
        }
    }
    let text = |(first, last, _): (&str, &str, String)| {
        if first == last { first.to_owned() } else { format!("{first}–{last}") }
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_known_by_their_length() {
        assert_eq!(ARCHITECTURES.map(|architecture| architecture.names().len()), [26, 20, 61]);
        assert_eq!(in_runs(&SDXL.names()), "BASE, IN00–IN08, M00, OUT00–OUT08");
        assert_eq!(in_runs(&FLUX.names()), "CLIP, T5, IN, D00–D18, S00–S37, OUT");
        assert!(rules(&[0.5; 12]).expect_err("no model has 12").contains("26 for Stable Diffusion 1.x"));
        assert!(rules(&[0.5; 25]).expect_err("no model has 25").contains("BASE"));
    }

    #[test]
    fn letters_are_no_numbers() {
        assert!(value("R").expect_err("random").contains("random"));
        assert!(value("x").is_err() && value("inf").is_err() && value("1e60").is_err());
        assert_eq!(value(" 1. "), Ok(1.0));
    }
}
