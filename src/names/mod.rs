//! Name maps: the same model under the names of another library.
//!
//! A map looks at the names and shapes of a model's tensors, and says which views of them are the model under other
//! names: renamed, cut, joined, transposed. It reads no data and no configuration. What it does not know is an error
//! and never left out, unless it is known to be no part of the model.
//!
//! A new map is one file and one line in [`NAME_MAPS`].

mod clip;
mod diffusers_attention;
mod diffusers_attention_old;
mod diffusers_to_sd;
mod sd_to_diffusers;
mod unet;
mod vae;

use crate::checkpoint::{Checkpoint, Elements, Layout, Part, View};
use crate::error::{Error, Mismatch, Result};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;

/// Every name map.
pub static NAME_MAPS: &[&dyn NameMap] = &[
    &diffusers_to_sd::DiffusersToSd,
    &sd_to_diffusers::SdToDiffusers,
    &diffusers_attention::DiffusersAttention,
    &diffusers_attention_old::DiffusersAttentionOld,
];

/// A way from one library's names to another's.
pub trait NameMap: Debug + Sync {
    /// The name on the command line.
    fn id(&self) -> &'static str;

    /// One line on what it does.
    fn about(&self) -> &'static str;

    /// What becomes of each tensor.
    ///
    /// # Errors
    /// Every tensor that it cannot name.
    fn map(&self, parts: &[PartNames<'_>]) -> Result<Mapping, Vec<Mismatch>>;
}

/// The tensors of one part of a model.
#[derive(Debug)]
pub struct PartNames<'a> {
    /// The part's folder; empty for a model that is no pipeline.
    pub folder: &'a str,
    /// The part's number in the model's layout.
    pub part: usize,
    /// Its tensors.
    pub tensors: Vec<TensorName<'a>>,
}

/// A tensor as a map sees it.
#[derive(Clone, Copy, Debug)]
pub struct TensorName<'a> {
    /// The name within its part.
    pub name: &'a str,
    /// The name in the whole model.
    pub full: &'a str,
    /// Elements along each dimension.
    pub shape: &'a [u64],
}

/// A model under other names.
#[derive(Debug, Default)]
pub struct Mapping {
    /// Its tensors.
    pub views: Vec<View>,
    /// Its parts, if they are other ones than before: folder and file name before the ending.
    pub parts: Option<Vec<(&'static str, &'static str)>>,
    /// The tensors that are no part of the model there, by their full names.
    pub left_out: Vec<String>,
    /// What is to be said about it.
    pub notes: Vec<String>,
}

/// The map of that name.
#[must_use]
pub fn name_map(id: &str) -> Option<&'static dyn NameMap> {
    NAME_MAPS.iter().find(|map| map.id() == id).copied()
}

/// The error for a name that is neither a map's nor a file's.
#[must_use]
pub fn unknown(id: &str) -> Error {
    Error::unknown("name map or file of rules", id, NAME_MAPS.iter().map(|map| map.id()))
}

/// The map that gives a model names of which another has most, if there is one.
#[must_use]
pub fn towards(model: &Checkpoint, other: &Checkpoint) -> Option<&'static str> {
    let fits = |map: &&&dyn NameMap| {
        let Ok(Mapping { views, parts, .. }) = mapping(**map, model) else { return false };
        let folders: Vec<&str> = match &parts {
            Some(parts) => parts.iter().map(|(folder, _)| *folder).collect(),
            None => model.layout().parts.iter().map(|part| part.folder.as_str()).collect(),
        };
        let has = |view: &&View| match folders.get(view.part) {
            Some(folder) if !folder.is_empty() => other.get(&format!("{folder}/{}", view.name)).is_some(),
            _ => other.get(&view.name).is_some(),
        };
        views.iter().filter(has).count() * 2 > other.tensors().len()
    };
    NAME_MAPS.iter().find(fits).map(|map| map.id())
}

/// The names that whole tensors of a model have in other libraries, each with the folder that it is in there and the
/// tensor's own name, for as many maps as know the model.
#[must_use]
pub fn other_names(model: &Checkpoint) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for map in NAME_MAPS {
        let Ok(Mapping { views, parts, .. }) = mapping(*map, model) else { continue };
        let folders: Vec<String> = match parts {
            Some(parts) => parts.into_iter().map(|(folder, _)| folder.to_owned()).collect(),
            None => model.layout().parts.iter().map(|part| part.folder.clone()).collect(),
        };
        for view in views {
            let Elements::Whole(own) = view.elements else { continue };
            let name = match folders.get(view.part).map(String::as_str) {
                Some("") | None => view.name,
                Some(folder) => format!("{folder}/{}", view.name),
            };
            if name != own {
                all.push((name, own));
            }
        }
    }
    all
}

/// What a map makes of a model.
fn mapping(map: &dyn NameMap, model: &Checkpoint) -> Result<Mapping, Vec<Mismatch>> {
    let layout = model.layout();
    let prefixes: Vec<String> = layout.parts.iter().map(Part::prefix).collect();
    let parts: Vec<PartNames<'_>> = (0..)
        .zip(layout.parts.iter().zip(&prefixes))
        .map(|(part, (Part { folder, .. }, prefix))| {
            let within = model.tensors().iter().filter(|tensor| tensor.part == part);
            let name = |full: &'_ str| -> usize { if full.starts_with(prefix.as_str()) { prefix.len() } else { 0 } };
            let tensors = within.map(|tensor| TensorName {
                name: &tensor.name[name(&tensor.name)..],
                full: &tensor.name,
                shape: &tensor.shape,
            });
            PartNames { folder, part, tensors: tensors.collect() }
        })
        .collect();
    map.map(&parts)
}

/// The model under the map's names, and the names of the tensors that are left out.
///
/// # Errors
/// [`Error::Names`] with every tensor that the map cannot name, [`Error::Format`] if elements cannot be viewed so.
pub fn apply(map: &dyn NameMap, model: Checkpoint) -> Result<(Checkpoint, Vec<String>)> {
    let inputs = |full: &str| model.get(full).map_or_else(|| full.to_owned(), |view| view.tensor.inputs().join("`, `"));
    let error = |mut tensors: Vec<Mismatch>| {
        tensors.iter_mut().for_each(|mismatch| mismatch.tensor = inputs(&mismatch.tensor));
        Error::Names { map: map.id(), model: model.name().to_owned(), tensors }
    };
    let Mapping { views, parts, left_out, notes } = mapping(map, &model).map_err(error)?;
    let layout = model.layout();
    let mut seen: HashMap<(usize, &str), &View> = HashMap::new();
    let mut twice = Vec::new();
    for view in &views {
        if let Some(other) = seen.insert((view.part, &view.name), view) {
            let name = |view: &View| view.elements.names().first().cloned().unwrap_or_default();
            let problem = format!("and `{}` would both be called `{}`", inputs(&name(other)), view.name);
            twice.push(Mismatch { tensor: name(view), problem });
        }
    }
    if !twice.is_empty() {
        return Err(error(twice));
    }
    let left_out_inputs = left_out.iter().map(|full| inputs(full)).collect();
    let layout = match parts {
        None => layout.clone(),
        Some(parts) => {
            let is_folder = parts.iter().any(|(folder, _)| !folder.is_empty());
            let part =
                |(folder, stem): (&str, &str)| Part { folder: folder.to_owned(), stem: stem.to_owned(), files: vec![] };
            // What lies beside the weights belongs to the other form of the model.
            let parts = parts.into_iter().map(part).collect();
            Layout { root: layout.root.clone(), is_folder, parts, carries_files: false }
        }
    };
    let mut model = model.mapped(layout, views)?;
    model.add_notes(notes);
    Ok((model, left_out_inputs))
}

/// `1 tensor`, `2 tensors`.
fn counted(number: usize) -> String {
    format!("{number} tensor{}", if number == 1 { "" } else { "s" })
}

/// The names of some tensors, to be asked by their beginnings.
struct Names<'a>(BTreeSet<&'a str>);

impl<'a> Names<'a> {
    fn of(tensors: &[TensorName<'a>]) -> Self {
        Self(tensors.iter().map(|tensor| tensor.name).collect())
    }

    /// Whether a name begins so.
    fn begin(&self, prefix: &str) -> bool {
        self.0.range(prefix..).next().is_some_and(|name| name.starts_with(prefix))
    }

    /// How many numbers from 0 on there are names of.
    fn count(&self, prefix: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|&number| self.begin(&prefix(number))).count()
    }
}

/// A mapping in the making.
#[derive(Default)]
struct Draft {
    views: Vec<View>,
    left_out: Vec<String>,
    mismatches: Vec<Mismatch>,
}

impl Draft {
    /// A tensor as it is.
    fn whole(&mut self, tensor: &TensorName<'_>, part: usize, name: String) {
        self.shaped(tensor, part, name, tensor.shape.to_vec());
    }

    /// A tensor in another shape of as many elements.
    fn shaped(&mut self, tensor: &TensorName<'_>, part: usize, name: String, shape: Vec<u64>) {
        self.views.push(View { name, part, shape, elements: Elements::Whole(tensor.full.to_owned()) });
    }

    fn leave_out(&mut self, tensor: &TensorName<'_>) {
        self.left_out.push(tensor.full.to_owned());
    }

    fn problem(&mut self, tensor: &TensorName<'_>, problem: impl Into<String>) {
        self.mismatches.push(Mismatch { tensor: tensor.full.to_owned(), problem: problem.into() });
    }

    /// The mapping, if every tensor has a name.
    fn finish(
        self,
        parts: Option<Vec<(&'static str, &'static str)>>,
        notes: Vec<String>,
    ) -> Result<Mapping, Vec<Mismatch>> {
        if !self.mismatches.is_empty() {
            return Err(self.mismatches);
        }
        Ok(Mapping { views: self.views, parts, left_out: self.left_out, notes })
    }
}

/// Which way a table of pairs, diffusers' name and Stable Diffusion's own, is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToSd,
    ToDiffusers,
}

/// The names of modules in one library by those in another.
struct Modules {
    direction: Direction,
    /// Modules with a weight and a bias.
    layers: HashMap<String, String>,
    /// Modules that are named alike inside.
    blocks: HashMap<String, String>,
}

impl Modules {
    fn new(direction: Direction) -> Self {
        Self { direction, layers: HashMap::new(), blocks: HashMap::new() }
    }

    fn pair(&self, diffusers: String, sd: String) -> (String, String) {
        if self.direction == Direction::ToSd { (diffusers, sd) } else { (sd, diffusers) }
    }

    /// A module with a weight and a bias.
    fn layer(&mut self, diffusers: impl Into<String>, sd: impl Into<String>) {
        let (from, to) = self.pair(diffusers.into(), sd.into());
        self.layers.insert(from, to);
    }

    /// Such modules within another.
    fn layers(&mut self, diffusers: &str, sd: &str, within: &[(&str, &str)]) {
        for (in_diffusers, in_sd) in within {
            self.layer(format!("{diffusers}.{in_diffusers}"), format!("{sd}.{in_sd}"));
        }
    }

    /// A module that is named alike inside.
    fn block(&mut self, diffusers: String, sd: String) {
        let (from, to) = self.pair(diffusers, sd);
        self.blocks.insert(from, to);
    }

    /// The new name of a module's tensor; inside blocks only names that `known` knows have one.
    fn renamed(&self, name: &str, known: impl Fn(&str) -> bool) -> Option<String> {
        let (module, leaf) = name.rsplit_once('.').filter(|(_, leaf)| ["weight", "bias"].contains(leaf))?;
        if let Some(to) = self.layers.get(module) {
            return Some(format!("{to}.{leaf}"));
        }
        let mut dots = module.match_indices('.');
        dots.find_map(|(dot, _)| {
            let to = self.blocks.get(&module[..dot])?;
            known(&module[dot + 1..]).then(|| format!("{to}{}", &name[dot..]))
        })
    }
}
