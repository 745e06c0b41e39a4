//! Which files a model is made of: a file, shards with an index, a Hugging Face folder, a diffusers pipeline, the files
//! of a training run's processes.
//!
//! Only files that an index names are read, and only from its own folder: an index is a file from the internet, and
//! a stray file beside it is not part of the model.

use super::deepspeed;
use super::small::read_small;
use crate::error::{Error, Result};
use ckptmerge_format_gguf::split_files;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The names under which libraries look for a folder's weights, in the order they do, safetensors first.
const NAMES: [(&str, &str); 6] = [
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "safetensors"),
    ("adapter_model", "safetensors"),
    ("pytorch_model", "bin"),
    ("diffusion_pytorch_model", "bin"),
    ("adapter_model", "bin"),
];
/// Endings of other files that a folder's only weights may be in, in the order they are looked for.
const ENDINGS: [&str; 8] = ["safetensors", "st", "bin", "gguf", "ckpt", "pth", "pt", "npz"];
/// The ending of a file that says which shard holds which tensor.
const INDEX: &str = ".index.json";
/// The folders of a diffusers pipeline's components that have weights. Where the pipeline's own file is missing, these
/// tell one from a folder of several models.
const COMPONENTS: [&str; 11] = [
    "controlnet",
    "image_encoder",
    "prior",
    "safety_checker",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "transformer",
    "transformer_2",
    "unet",
    "vae",
];
/// The file that makes a folder a diffusers pipeline.
const PIPELINE: &str = "model_index.json";
/// Endings of files that hold weights in one format or another, and so are never copied along.
const WEIGHT_ENDINGS: [&str; 17] = [
    "safetensors",
    "st",
    "sft",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "h5",
    "keras",
    "msgpack",
    "onnx",
    "npz",
    "tflite",
    "pdparams",
    "distcp",
];
/// Small files beside the weights are copied along up to this size, in bytes.
const COMPANION_LIMIT: u64 = 256 << 20;
/// How deep folders are searched for them.
const DEPTH: usize = 4;
/// What a training goes on from, beside the model that it gives in the end: `finetune`'s.
pub(crate) const TRAINING_STATE: &str = "training-state.safetensors";
/// The longest index, configuration or tokenizer that is read, in bytes.
pub(crate) const SMALL_LIMIT: u64 = 100 << 20;

/// The files of a model.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The file, or the folder.
    pub root: PathBuf,
    /// Whether the model is a folder, with more to it than weights.
    pub is_folder: bool,
    /// The weights: one part, or one for each sub-model of a pipeline.
    pub parts: Vec<Part>,
    /// Whether the small files beside the weights belong to the model in this form, and go along with it.
    pub carries_files: bool,
}

/// One set of weights of a model.
#[derive(Clone, Debug)]
pub struct Part {
    /// The folder within the model's, empty for the model's own. Also the prefix of tensor names, with a `/`.
    pub folder: String,
    /// The file name before its ending or `-00001-of-0000N` and its ending.
    pub stem: String,
    /// The files, each with the tensors that an index expects in it.
    pub files: Vec<(PathBuf, Option<BTreeSet<String>>)>,
}

impl Part {
    /// Whether the files are called as libraries call a folder's weights.
    pub(crate) fn has_usual_name(&self) -> bool {
        NAMES.iter().any(|(stem, _)| *stem == self.stem)
    }

    /// The prefix of this part's tensor names.
    #[must_use]
    pub fn prefix(&self) -> String {
        if self.folder.is_empty() { String::new() } else { format!("{}/", self.folder) }
    }
}

impl Layout {
    /// Finds the files of the model at `path`.
    ///
    /// # Errors
    /// [`Error::Model`] if there is none, more than one, or an index that is not to be trusted.
    pub fn resolve(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if kind.is_dir() {
            return Self::folder(path);
        }
        let name = file_name(path);
        if name.ends_with(".json") {
            let root = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            if name == PIPELINE {
                return Self::folder(root);
            }
            let part = Part { folder: String::new(), stem: stem_of_index(&name).to_owned(), files: shards(path)? };
            return Ok(Self { root: root.to_owned(), is_folder: true, parts: vec![part], carries_files: true });
        }
        let stem = stem_of_file(&name).to_owned();
        let files = split(path)?.into_iter().map(|file| (file, None)).collect();
        let part = Part { folder: String::new(), stem, files };
        Ok(Self { root: path.to_owned(), is_folder: false, parts: vec![part], carries_files: false })
    }

    fn folder(root: &Path) -> Result<Self> {
        let parts = if root.join(PIPELINE).is_file() {
            pipeline(root)?
        } else if let Some(part) = spread(root)? {
            vec![part]
        } else if let Some(part) = part(root, "")? {
            vec![part]
        } else {
            let parts = components(root)?;
            if parts.is_empty() {
                let message = "the folder holds no weights (model.safetensors, an index of shards, …)";
                return Err(Error::model(root, message));
            }
            parts
        };
        Ok(Self { root: root.to_owned(), is_folder: true, parts, carries_files: true })
    }

    /// Configuration, tokenizer and other small files of a folder, relative to it, and those left out for their size.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed.
    pub fn companions(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut small, mut large) = (Vec::new(), Vec::new());
        if self.carries_files {
            let is_spread = self.parts.iter().flat_map(|part| &part.files).any(|(file, _)| deepspeed::is_rank(file));
            let is_left = |path: &Path| is_weights(path) || (is_spread && deepspeed::is_about_files(path));
            walk(&self.root, Path::new(""), DEPTH, &mut |relative, size| {
                if !is_left(relative) {
                    if size <= COMPANION_LIMIT {
                        small.push(relative.to_owned())
                    } else {
                        large.push(relative.to_owned())
                    }
                }
            })?;
        }
        Ok((small, large))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether a file belongs to the weights, which are written anew, by its name.
pub(crate) fn is_weights(path: &Path) -> bool {
    let name = file_name(path);
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
    name.ends_with(".index.json") || WEIGHT_ENDINGS.contains(&ending.as_str())
}

/// The first file below `root`, hidden ones and links included, that `wanted` wants, relative to `root`.
pub(crate) fn find_file(root: &Path, wanted: &mut impl FnMut(&Path) -> bool) -> Result<Option<PathBuf>> {
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let folder = root.join(&below);
        for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let relative = below.join(entry.file_name());
            // A linked folder is not followed: it is one thing that would be lost.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(relative),
                _ if wanted(&relative) => return Ok(Some(relative)),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Calls `visit` with each visible file below `root`, relative to it, and its size; in the order of their names.
fn walk(root: &Path, below: &Path, depth: usize, visit: &mut impl FnMut(&Path, u64)) -> Result<()> {
    let folder = root.join(below);
    let entries = std::fs::read_dir(&folder).map_err(Error::io("list", &folder))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(Error::io("list", &folder))?;
    names.sort();
    for name in names {
        let relative = below.join(&name);
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        // A dangling link is no file of the model.
        let Ok(kind) = std::fs::metadata(root.join(&relative)) else { continue };
        if kind.is_file() {
            visit(&relative, kind.len());
        } else if kind.is_dir() && depth > 1 {
            walk(root, &relative, depth - 1, visit)?;
        }
    }
    Ok(())
}

/// The sub-models that `model_index.json` names and that have weights.
fn pipeline(root: &Path) -> Result<Vec<Part>> {
    let path = root.join(PIPELINE);
    let Value::Object(components) = read_json(&path)? else {
        return Err(Error::model(&path, "is not a JSON object"));
    };
    let mut parts = Vec::new();
    for (name, value) in &components {
        // A component is a pair [library, class]; entries like `_class_name` are not.
        let named = value.as_array().is_some_and(|pair| pair.len() == 2 && pair.iter().all(Value::is_string));
        if named && is_base_name(name) && root.join(name).is_dir() {
            parts.extend(part(&root.join(name), name)?);
        }
    }
    if parts.is_empty() {
        // The first pipelines, as google/ddpm-cifar10-32 is one, have their only network in the folder itself.
        parts.extend(part(root, "")?);
    }
    if parts.is_empty() {
        return Err(Error::model(root, "none of the pipeline's components has weights"));
    }
    Ok(parts)
}

/// The components of a pipeline whose `model_index.json` is missing, under the names that libraries give them.
fn components(root: &Path) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for name in COMPONENTS.iter().filter(|name| root.join(name).is_dir()) {
        parts.extend(part(&root.join(name), name)?.filter(Part::has_usual_name));
    }
    Ok(parts)
}

/// The weights in one folder: by the libraries' own names first, then by whatever single candidate is there.
fn part(folder: &Path, name: &str) -> Result<Option<Part>> {
    let make = |stem: &str, files| Some(Part { folder: name.to_owned(), stem: stem.to_owned(), files });
    for (stem, ending) in NAMES {
        let index = folder.join(format!("{stem}.{ending}{INDEX}"));
        if index.is_file() {
            return Ok(make(stem, shards(&index)?));
        }
        let single = folder.join(format!("{stem}.{ending}"));
        if single.is_file() {
            return Ok(make(stem, vec![(single, None)]));
        }
    }
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut names: BTreeSet<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let is_unfinished = names.remove(TRAINING_STATE);
    let several = |many: &[&String]| {
        let list = many.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        Err(Error::model(folder, format!("several files could be the model; name one of them: {list}")))
    };
    let indices: Vec<&String> = names.iter().filter(|name| name.ends_with(INDEX) && !name.starts_with('.')).collect();
    match indices[..] {
        [] => {}
        [index] => return Ok(make(stem_of_index(index), shards(&folder.join(index))?)),
        _ => return several(&indices),
    }
    for ending in ENDINGS {
        let has_ending =
            |name: &&String| name.rsplit_once('.').is_some_and(|(stem, end)| end == ending && !stem.is_empty());
        // Of a file in numbered parts the first stands for all.
        let is_later = |name: &String| split_files(name).is_some_and(|parts| parts.first() != Some(name));
        let singles: Vec<&String> = names.iter().filter(has_ending).filter(|name| !is_later(name)).collect();
        match singles[..] {
            [] => {}
            [single] => {
                let files = split(&folder.join(single))?.into_iter().map(|file| (file, None)).collect();
                return Ok(make(stem_of_file(single), files));
            }
            _ => return several(&singles),
        }
    }
    if is_unfinished {
        let message =
            "holds a training that is not finished, and no model yet: the command that began it goes on with --resume";
        return Err(Error::model(folder, message));
    }
    Ok(None)
}

/// The file name that an index's shards derive from: `model` of `model.safetensors.index.json`.
fn stem_of_index(name: &str) -> &str {
    let file = name.strip_suffix(INDEX).unwrap_or_else(|| name.trim_end_matches(".json"));
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

/// A file's name before its ending, and before its number if it is one of several.
fn stem_of_file(name: &str) -> &str {
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str()).unwrap_or(name);
    match split_files(name) {
        Some(_) => stem.rsplit_once("-of-").and_then(|(rest, _)| rest.rsplit_once('-')).map_or(stem, |(stem, _)| stem),
        None => stem,
    }
}

/// All parts of the file at `path`, if it is one of several.
fn split(path: &Path) -> Result<Vec<PathBuf>> {
    let Some(names) = split_files(&file_name(path)) else { return Ok(vec![path.to_owned()]) };
    let parts: Vec<PathBuf> = names.iter().map(|name| path.with_file_name(name)).collect();
    match parts.iter().find(|part| !part.is_file()) {
        Some(missing) => {
            Err(Error::model(path, format!("its part {} is missing; download it as well", file_name(missing))))
        }
        None => Ok(parts),
    }
}

/// The weights in a folder that the processes of a training run wrote together, unless they were joined under a usual
/// name beside it: one file from which the format finds the others.
fn spread(folder: &Path) -> Result<Option<Part>> {
    let is_joined = NAMES.iter().any(|(stem, ending)| {
        let single = folder.join(format!("{stem}.{ending}"));
        single.is_file() || folder.join(format!("{stem}.{ending}{INDEX}")).is_file()
    });
    if is_joined {
        return Ok(None);
    }
    // All data files of `torch.distributed.checkpoint` are named in its one file of metadata.
    let metadata = folder.join(".metadata");
    let file = if metadata.is_file() { Some(metadata) } else { deepspeed::find(folder)? };
    Ok(file.map(|file| Part { folder: String::new(), stem: "model".to_owned(), files: vec![(file, None)] }))
}

/// The shards that an index names, each with the tensors it is said to hold.
fn shards(index: &Path) -> Result<Vec<(PathBuf, Option<BTreeSet<String>>)>> {
    let value = read_json(index)?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::model(index, "is not an index of shards: it has no `weight_map`"))?;
    let mut files: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_base_name(file)).ok_or_else(|| {
            Error::model(
                index,
                format!("tensor `{tensor}` is said to be in {file}, which is no plain file name; not followed"),
            )
        })?;
        files.entry(file).or_default().insert(tensor.clone());
    }
    let folder = index.parent().unwrap_or(Path::new(""));
    files
        .into_iter()
        .map(|(file, tensors)| {
            let path = folder.join(file);
            if path.is_file() {
                Ok((path, Some(tensors)))
            } else {
                Err(Error::model(index, format!("the shard {file} is missing beside it; download it as well")))
            }
        })
        .collect()
}

/// Whether a name from a file is a plain name in the same folder.
pub(super) fn is_base_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read_small(path, SMALL_LIMIT)?)
        .map_err(|error| Error::model(path, format!("is not valid JSON: {error}")))
}
