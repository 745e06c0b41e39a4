//! Which of a file's tensors are the model, where it holds more: a training checkpoint's weights, their moving average,
//! an optimizer's state.

use crate::error::{Error, Result};
use ckptmerge_format::{Data, FormatError, Index, Subtree};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// The name under which a moving average is asked for, whatever a file calls it.
const EMA: &str = "ema";
/// What CompVis' `LitEma` puts before its names, and the two of them that are no weights.
const LIT_EMA: &str = "model_ema.";
const LIT_EMA_STATE: [&str; 2] = ["decay", "num_updates"];
/// What the names of the weights begin with that it averages.
const LIT_MODEL: &str = "model.";
/// The most places that an error lists.
const MAX_PLACES: usize = 5;

/// Keeps the tensors of one subtree, without its prefix; says which, if there was a choice.
pub(super) fn apply(path: &Path, index: &mut Index, wanted: Option<&str>) -> Result<Option<String>> {
    let names = || index.subtrees.iter().map(|subtree| subtree.name.as_str());
    let default = || index.subtrees.iter().find(|subtree| subtree.is_default).cloned();
    let chosen = match wanted {
        Some(wanted) => match subtree(index, wanted) {
            Some(found) => found,
            None if wanted == EMA && has_lit_ema(index, default().as_ref()) => {
                if let Some(default) = default() {
                    keep(index, &default.prefix);
                }
                return averaged(path, index).map(Some);
            }
            None if index.subtrees.is_empty() => return Ok(None),
            None => return Err(not_there(index, wanted)),
        },
        None if index.subtrees.is_empty() => return Ok(None),
        None => default().ok_or_else(|| {
            let list = names().collect::<Vec<_>>().join(", ");
            Error::model(
                path,
                format!(
                    "holds several sets of tensors, any of which could be the model; choose one with --select: {list}"
                ),
            )
        })?,
    };
    let Subtree { name, prefix, .. } = chosen;
    let others: Vec<_> = names().filter(|other| *other != name).collect();
    let note = (!others.is_empty()).then(|| {
        format!("{}: the model is `{name}`; beside it are {} (see --select)", path.display(), others.join(", "))
    });
    keep(index, &prefix);
    Ok(note)
}

/// The set of that name, or the tensors below that path in a file that holds several sets.
fn subtree(index: &Index, wanted: &str) -> Option<Subtree> {
    let named = index.subtrees.iter().find(|subtree| subtree.name == wanted).cloned();
    let below = || {
        let prefix = format!("{wanted}.");
        let is_below = !index.subtrees.is_empty() && index.tensors.iter().any(|t| t.name.starts_with(&prefix));
        is_below.then(|| Subtree { name: wanted.to_owned(), prefix, is_default: false })
    };
    named.or_else(below)
}

/// The error for a set that is not there, with the places whose names have the word in them.
fn not_there(index: &Index, wanted: &str) -> Error {
    let word = wanted.to_lowercase();
    let place = |name: &str| -> Option<String> {
        let parts: Vec<&str> = name.split('.').collect();
        let (_, above) = parts.split_last()?;
        let last = above.iter().rposition(|part| part.to_lowercase().contains(&word))?;
        Some(parts.get(..=last)?.join("."))
    };
    let places: BTreeSet<String> = index.tensors.iter().filter_map(|tensor| place(&tensor.name)).collect();
    let what = "set of tensors to select";
    if places.is_empty() {
        return Error::unknown(what, wanted, index.subtrees.iter().map(|subtree| subtree.name.as_str()));
    }
    let more = if places.len() > MAX_PLACES { ", …" } else { "" };
    let listed: Vec<String> = places.into_iter().take(MAX_PLACES).collect();
    let suggestion = format!("`{wanted}` is in these, which can be selected: {}{more}", listed.join(", "));
    Error::Unknown { what, name: wanted.to_owned(), suggestion }
}

/// Drops all tensors whose name does not begin so, and the prefix from the others.
fn keep(index: &mut Index, prefix: &str) {
    // A tie to a tensor outside is one to the first of the kept that shares it, which takes the elements over.
    let mut moved = HashMap::new();
    let all: HashMap<String, Data> =
        index.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.data.clone())).collect();
    index.tensors.retain_mut(|tensor| {
        let Some(short) = tensor.name.strip_prefix(prefix) else { return false };
        tensor.name = short.to_owned();
        if let Data::Alias(target) = &tensor.data {
            tensor.data = match (target.strip_prefix(prefix), moved.get(target), all.get(target)) {
                (Some(target), ..) => Data::Alias(target.to_owned()),
                (None, Some(first), _) => Data::Alias(String::clone(first)),
                (None, None, Some(data)) => {
                    moved.insert(target.clone(), tensor.name.clone());
                    data.clone()
                }
                (None, None, None) => return true,
            };
        }
        true
    });
}

/// Whether the model has moving averages beside its weights, as CompVis' checkpoints of latent diffusion do.
fn has_lit_ema(index: &Index, default: Option<&Subtree>) -> bool {
    let prefix = default.map_or("", |default| default.prefix.as_str());
    index.tensors.iter().any(|t| t.name.strip_prefix(prefix).is_some_and(|name| name.starts_with(LIT_EMA)))
}

/// Puts moving averages in the place of the weights they are of. Their names are those of the weights without dots, as
/// a module's buffers cannot have any.
fn averaged(path: &Path, index: &mut Index) -> Result<String> {
    let error = |name: &str, message: &str| Error::Format {
        path: path.to_owned(),
        source: FormatError::unsupported(message).at(name),
    };
    let all: HashMap<String, Data> =
        index.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.data.clone())).collect();
    // The elements themselves, also of what is tied.
    let elements = |data: &Data| match data {
        Data::Alias(target) => all.get(target).cloned(),
        own => Some(own.clone()),
    };
    let mut weights: HashMap<String, usize> = HashMap::new();
    for (place, tensor) in index.tensors.iter().enumerate() {
        let Some(name) = tensor.name.strip_prefix(LIT_MODEL) else { continue };
        if weights.insert(name.replace('.', ""), place).is_some() {
            return Err(error(
                &tensor.name,
                "another weight has the same name but for dots, so its average is not known",
            ));
        }
    }
    let averages: Vec<_> = index.tensors.iter().filter(|tensor| tensor.name.starts_with(LIT_EMA)).cloned().collect();
    let mut count = 0;
    for average in averages {
        let short = average.name.strip_prefix(LIT_EMA).unwrap_or_default();
        if LIT_EMA_STATE.contains(&short) {
            continue;
        }
        let weight = weights.get(short).and_then(|place| index.tensors.get_mut(*place));
        let weight = weight.ok_or_else(|| error(&average.name, "it is a moving average, but of no weight there is"))?;
        if weight.shape != average.shape {
            return Err(error(&average.name, "it has another shape than the weight whose moving average it is"));
        }
        let data = elements(&average.data).ok_or_else(|| error(&average.name, "it is tied to nothing"))?;
        (weight.dtype, weight.big_endian, weight.data) = (average.dtype, average.big_endian, data);
        count += 1;
    }
    index.tensors.retain_mut(|tensor| {
        if let Data::Alias(target) = &tensor.data
            && target.starts_with(LIT_EMA)
            && let Some(data) = all.get(target)
        {
            tensor.data = data.clone();
        }
        !tensor.name.starts_with(LIT_EMA)
    });
    let others = index.tensors.len().saturating_sub(count);
    Ok(format!(
        "{}: the weights of the model are their moving averages, `{LIT_EMA}…` ({count} tensors, and {others} others as saved)",
        path.display()
    ))
}
