//! From named tensors to the table: which of them are the model, which share elements, what text came along.

use crate::flatten::{Found, Step, flatten, step_text};
use crate::tensor::{Storages, View};
use crate::value::{Id, Value, Values};
use ckptmerge_format::{Data, FormatError, Index, Metadata, Subtree, TensorInfo};
use std::collections::{HashMap, HashSet};

/// The most top-level scalars that become metadata, and the longest of them, in bytes.
const MAX_SCALARS: usize = 64;
const MAX_SCALAR: usize = 1024;

/// What a part of a training checkpoint is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Weights of a model under a name that trainers use.
    Weights,
    /// A moving average of the weights.
    Average,
    /// What only training needs.
    Training,
    /// A name that says nothing.
    Unknown,
}

/// Names of weights, in lower case; with `_state_dict`, `_state`, `_dict` or `s` behind them too.
const WEIGHTS: &[&str] = &[
    "state_dict", "state", "model", "module", "net", "network", "weight", "param", "generator", "discriminator", "g",
    "d", "netg", "netd", "gen", "disc", "student", "critic", "actor", "unet", "vae",
];
/// Words of which one, alone between underscores or dots, makes an average.
const AVERAGE: &[&str] = &["ema", "shadow", "averaged", "average", "avg", "swa", "teacher"];
/// Parts of names that only training needs.
const TRAINING: &[&str] = &[
    "optim", "sched", "scaler", "callback", "loop", "rng", "random", "hyper", "hparam", "config", "args", "loss",
    "metric", "history", "grad",
];

fn role(name: &str) -> Role {
    let name = name.to_lowercase();
    let words = || name.split(['_', '.', '-']);
    if TRAINING.iter().any(|part| name.contains(part)) {
        return Role::Training;
    }
    if words().any(|word| AVERAGE.contains(&word)) {
        return Role::Average;
    }
    let stem = ["_state_dict", "_state", "_dict", "s"].iter().find_map(|end| name.strip_suffix(end));
    if WEIGHTS.contains(&name.as_str()) || stem.is_some_and(|stem| WEIGHTS.contains(&stem)) {
        return Role::Weights;
    }
    Role::Unknown
}

/// The table of the tensors under `root`.
pub(crate) fn table(values: &Values, storages: &Storages, root: Id) -> Result<Index, FormatError> {
    let (found, mut warnings) = flatten(values, storages, root)?;
    if found.is_empty() {
        explain_nothing(values, root)?;
    }
    let mut seen = HashSet::with_capacity(found.len());
    if let Some(twice) = found.iter().find(|found| !seen.insert(found.name.as_str())) {
        return Err(FormatError::unsupported("two paths give this name").at(&twice.name));
    }
    let mut subtrees = subtrees(values, &found)?;
    let found = without_refused(found, &mut subtrees, &mut warnings)?;
    Ok(Index {
        tensors: tensors(found, storages.big_endian),
        metadata: scalars(values, root),
        subtrees: subtrees.into_iter().map(|(_, subtree)| subtree).collect(),
        warnings,
        ..Index::default()
    })
}

/// An empty dictionary is an empty checkpoint; anything else without tensors is no checkpoint.
fn explain_nothing(values: &Values, root: Id) -> Result<(), FormatError> {
    let mut names: Vec<String> = Vec::new();
    for value in values.iter() {
        let Value::Call(call) = value else { continue };
        let name = values.global(call.callable).map(ToString::to_string);
        if let Some(name) = name.filter(|name| name != "collections.OrderedDict" && !names.contains(name)) {
            names.push(name);
            if names.len() == 3 {
                break;
            }
        }
    }
    if names.is_empty() && values.entries(root).is_some_and(<[_]>::is_empty) {
        return Ok(());
    }
    let calls = if names.is_empty() {
        String::new()
    } else {
        format!(", but calls of {}, none of which was made", names.join(", "))
    };
    let error = FormatError::unsupported(format!("the pickle holds no tensors{calls}"));
    Err(if names.iter().any(|name| name.starts_with("numpy")) {
        error.hint("NumPy arrays in pickles are not read: save them with torch.save as tensors, or with numpy.savez")
    } else {
        error
    })
}

/// The root's children that hold tensors, if the root is a training checkpoint and not a model.
fn subtrees(values: &Values, found: &[Found]) -> Result<Vec<(Step, Subtree)>, FormatError> {
    let mut parts: Vec<(Step, Subtree, Role)> = Vec::new();
    for step in found.iter().filter(|found| found.nested).filter_map(|found| found.first) {
        // Tensors of a part follow each other.
        if parts.last().is_none_or(|(last, ..)| *last != step) {
            let name = step_text(values, step)?;
            let role = role(&name);
            let prefix = format!("{name}.");
            parts.push((step, Subtree { name, prefix, is_default: false }, role));
        }
    }
    let only = parts.len() == 1 && found.iter().all(|found| found.nested);
    if !only && parts.iter().all(|(_, _, role)| *role == Role::Unknown) {
        return Ok(Vec::new());
    }
    let candidates = |wanted: &[Role]| {
        let mut matching = (0..parts.len()).filter(|&part| wanted.contains(&parts[part].2));
        matching.next().map(|first| (first, matching.next().is_none()))
    };
    let chosen = candidates(&[Role::Weights, Role::Unknown]).or_else(|| candidates(&[Role::Average]));
    if let Some((part, true)) = chosen {
        parts[part].1.is_default = true;
    }
    Ok(parts.into_iter().map(|(step, subtree, _)| (step, subtree)).collect())
}

/// Fails at a tensor that cannot be read, unless it is in a part that is not the default: such a part is left out whole.
fn without_refused(
    found: Vec<Found>,
    subtrees: &mut Vec<(Step, Subtree)>,
    warnings: &mut Vec<String>,
) -> Result<Vec<(Option<Step>, String, View)>, FormatError> {
    let mut dropped: Vec<Step> = Vec::new();
    for found in &found {
        let Err(error) = &found.view else { continue };
        let part = subtrees.iter().position(|(step, part)| Some(*step) == found.first && !part.is_default);
        let has_default = subtrees.iter().any(|(_, part)| part.is_default);
        match part {
            Some(part) if has_default => {
                let (step, part) = subtrees.remove(part);
                warnings.push(format!("`{}` is left out: {error}", part.name));
                dropped.push(step);
            }
            _ if found.first.is_some_and(|step| dropped.contains(&step)) => {}
            _ => return Err(error.clone()),
        }
    }
    let kept = found.into_iter().filter(|found| !found.first.is_some_and(|step| dropped.contains(&step)));
    // Sets of tensors are told apart only where there are such.
    let group = |found: &Found| found.first.filter(|step| subtrees.iter().any(|(part, _)| part == step));
    kept.map(|found| Ok((group(&found), found.name, found.view?))).collect()
}

/// Rows in the order of their bytes, the later of two equal views of a storage as an alias of the earlier.
///
/// Tensors of different parts of a checkpoint are not tied to each other, so that each part can be taken alone.
fn tensors(found: Vec<(Option<Step>, String, View)>, big_endian: bool) -> Vec<TensorInfo> {
    let mut groups: Vec<Option<Step>> = Vec::new();
    let mut firsts: HashMap<(usize, View), String> = HashMap::with_capacity(found.len());
    let mut rows: Vec<(u64, TensorInfo)> = Vec::with_capacity(found.len());
    for (group, name, view) in found {
        let group = groups.iter().position(|known| *known == group).unwrap_or_else(|| {
            groups.push(group);
            groups.len() - 1
        });
        let (start, data) = (view.start(), view.data());
        let (dtype, shape) = (view.dtype, view.shape.clone());
        let tied = firsts.get(&(group, view.clone())).cloned();
        let (order, data) = match tied {
            Some(first) => (u64::MAX, Data::Alias(first)),
            None => {
                firsts.insert((group, view), name.clone());
                (start, data)
            }
        };
        let mut row = TensorInfo::new(name, dtype, shape, data);
        row.big_endian = big_endian && dtype.block_bytes() > 1;
        rows.push((order, row));
    }
    rows.sort_by_key(|(order, _)| *order);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Top-level text and numbers, such as the epoch.
fn scalars(values: &Values, root: Id) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in values.entries(root).unwrap_or_default() {
        let Some(key) = values.text(*key).filter(|key| key.len() <= MAX_SCALAR) else { continue };
        let text = match values.get(*value) {
            Value::Text(text) if text.len() <= MAX_SCALAR => text.to_string(),
            Value::Int(int) => int.to_string(),
            Value::Float(float) => float.to_string(),
            Value::Bool(bool) => bool.to_string(),
            _ => continue,
        };
        metadata.insert(key.to_owned(), text);
        if metadata.len() == MAX_SCALARS {
            break;
        }
    }
    metadata
}
