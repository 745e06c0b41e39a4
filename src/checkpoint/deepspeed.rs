//! Where in a folder of DeepSpeed's the weights are: which file stands for all that the run's processes (ranks) wrote.
//!
//! A checkpoint's root holds `latest`, a text that names the folder of the last step. The names of that folder's files
//! say how the model was cut; one that was cut in other ways than by ZeRO is refused here.

use super::layout::is_base_name;
use super::small::read_text;
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The file that names the last step's folder, and the longest text in it that is taken for a name, in bytes.
const LATEST: &str = "latest";
const LONGEST_TAG: u64 = 1024;
/// What DeepSpeed puts beside it.
const SCRIPTS: [&str; 2] = ["zero_to_fp32.py", "zero_to_torch.py"];
/// How the files of the ranks and of the model end, and what the first rank's are called behind an optional prefix.
const OPTIMIZER_END: &str = "_optim_states.pt";
const MODEL_END: &str = "model_states.pt";
const FIRST: &str = "zero_pp_rank_0_mp_rank_00_optim_states.pt";

const MODEL: &str = "mp_rank_00_model_states.pt";

/// Whether the file is a rank's part of a model.
pub(super) fn is_rank(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(OPTIMIZER_END))
}

/// Whether a file of a checkpoint's root, relative to it, says something of the other files only.
pub(super) fn is_about_files(relative: &Path) -> bool {
    relative.to_str().is_some_and(|name| name == LATEST || SCRIPTS.contains(&name))
}

/// Whether a file's name is one of DeepSpeed's.
fn is_state(name: &str) -> bool {
    (name.ends_with(OPTIMIZER_END) || name.ends_with(MODEL_END))
        && (name.contains("mp_rank_") || name.starts_with("layer_"))
}

/// The file that stands for the model of a checkpoint's root or of one step's folder; none if the folder is neither.
pub(super) fn find(folder: &Path) -> Result<Option<PathBuf>> {
    let names = names(folder)?;
    if names.iter().any(|name| is_state(name)) {
        return first(folder, &names).map(Some);
    }
    // Others call a file or a link to one so, too.
    let is_certain = names.contains(SCRIPTS[0]);
    let Some(tag) = tag(&folder.join(LATEST)) else { return Ok(None) };
    if !is_base_name(&tag) {
        let message = format!("its file `{LATEST}` names {tag:?}, which is no plain name of a folder; not followed");
        return if is_certain { Err(Error::model(folder, message)) } else { Ok(None) };
    }
    let step = folder.join(&tag);
    if step.is_dir() {
        return first(&step, &self::names(&step)?).map(Some);
    }
    let message = format!("its file `{LATEST}` names the folder {tag:?}, which is missing");
    if is_certain { Err(Error::model(folder, message)) } else { Ok(None) }
}

/// What the file `latest` names.
fn tag(path: &Path) -> Option<String> {
    Some(read_text(path, LONGEST_TAG).ok()?.trim().to_owned())
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// The first rank's file in the folder of a step.
fn first(step: &Path, names: &BTreeSet<String>) -> Result<PathBuf> {
    let refuse = |message: String| Err(Error::model(step, message));
    let find = |wanted: &dyn Fn(&str) -> bool| names.iter().find(|name| wanted(name));
    let save = "join it with the library that trained it, and save the whole model";
    if let Some(name) = find(&|name| is_state(name) && (name.contains("expert_") || name.starts_with("expp_rank_"))) {
        return refuse(format!(
            "a DeepSpeed checkpoint with the experts of its layers in files, such as {name}; {save}"
        ));
    }
    if let Some(name) = find(&|name| is_state(name) && name.starts_with("layer_")) {
        let message = "a DeepSpeed checkpoint of pipeline parallelism, with layers in files, such as";
        return refuse(format!("{message} {name}; {save}"));
    }
    if let Some(name) = find(&|name| is_state(name) && name.contains("mp_rank_") && !name.contains("mp_rank_00_")) {
        let message = "a DeepSpeed checkpoint of tensor parallelism, with parts of tensors in files, such as";
        return refuse(format!("{message} {name}; {save}"));
    }
    let firsts: Vec<&String> = names.iter().filter(|name| name.ends_with(FIRST)).collect();
    let universal = step.file_name().is_some_and(|name| name.to_string_lossy().ends_with("_universal"));
    match firsts[..] {
        [name] => Ok(step.join(name)),
        [one, other, ..] => {
            refuse(format!("holds {one} and {other}, which are of two runs; move the files of the older one elsewhere"))
        }
        [] if universal || step.join("zero").is_dir() => {
            let message = "a universal checkpoint of DeepSpeed, which is not read";
            refuse(format!("{message}; name the folder that it was made from"))
        }
        [] => {
            if let Some(name) = find(&|name| name.ends_with(OPTIMIZER_END)) {
                return refuse(format!("holds {name} but no {FIRST}: all ranks' files are needed"));
            }
            // A run without ZeRO keeps no weights elsewhere, and gets no script to join them.
            if names.contains(MODEL) && !step.join("..").join(SCRIPTS[0]).is_file() {
                return Ok(step.join(MODEL));
            }
            let model = find(&|name| name.ends_with(MODEL_END)).map_or("its model's file", String::as_str);
            refuse(format!(
                "a DeepSpeed checkpoint without {FIRST}, where ZeRO keeps the weights; name {model} itself if what it \
                 holds is enough"
            ))
        }
    }
}
