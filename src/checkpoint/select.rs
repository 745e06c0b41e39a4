//! Which of a file's tensors are the model, where it holds more: a training checkpoint's weights, their moving average,
//! an optimizer's state.

use crate::error::{Error, Result};
use ckptmerge_format::{Data, Index, Subtree};
use std::path::Path;

/// Keeps the tensors of one subtree, without its prefix; says which, if there was a choice.
pub(super) fn apply(path: &Path, index: &mut Index, wanted: Option<&str>) -> Result<Option<String>> {
    let names = || index.subtrees.iter().map(|subtree| subtree.name.as_str());
    let chosen: &Subtree = match (&index.subtrees[..], wanted) {
        ([], _) => return Ok(None),
        (subtrees, Some(wanted)) => subtrees
            .iter()
            .find(|subtree| subtree.name == wanted)
            .ok_or_else(|| Error::unknown("set of tensors to select", wanted, names()))?,
        (subtrees, None) => subtrees.iter().find(|subtree| subtree.is_default).ok_or_else(|| {
            let list = names().collect::<Vec<_>>().join(", ");
            Error::model(
                path,
                format!(
                    "holds several sets of tensors, any of which could be the model; choose one with --select: {list}"
                ),
            )
        })?,
    };
    let Subtree { name, prefix, .. } = chosen.clone();
    let others: Vec<_> = names().filter(|other| *other != name).collect();
    let note = (!others.is_empty()).then(|| {
        format!("{}: the model is `{name}`; beside it are {} (see --select)", path.display(), others.join(", "))
    });

    // A tie to a tensor outside is one to the first of the kept that shares it, which takes the elements over.
    let mut moved = std::collections::HashMap::new();
    let all: std::collections::HashMap<String, Data> =
        index.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.data.clone())).collect();
    index.tensors.retain_mut(|tensor| {
        let Some(short) = tensor.name.strip_prefix(&prefix) else { return false };
        tensor.name = short.to_owned();
        if let Data::Alias(target) = &tensor.data {
            tensor.data = match (target.strip_prefix(&prefix), moved.get(target), all.get(target)) {
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
    Ok(note)
}
