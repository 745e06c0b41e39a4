//! Which files a model is made of: a file, shards with an index, a Hugging Face folder, a diffusers pipeline.
//!
//! Only files that an index names are read, and only from its own folder: an index is a file from the internet, and
//! a stray file beside it is not part of the model.

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The names under which libraries look for a folder's weights, in the order they do.
const STEMS: [&str; 3] = ["model", "diffusion_pytorch_model", "adapter_model"];
/// The ending of a file that says which shard holds which tensor.
const INDEX: &str = ".safetensors.index.json";
const WEIGHTS: &str = ".safetensors";
/// The file that makes a folder a diffusers pipeline.
const PIPELINE: &str = "model_index.json";
/// Endings of files that hold weights in one format or another, and so are never copied along.
const WEIGHT_ENDINGS: [&str; 16] = [
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
];
/// Small files beside the weights are copied along up to this size, in bytes.
const COMPANION_LIMIT: u64 = 256 << 20;
/// How deep folders are searched for them.
const DEPTH: usize = 4;
/// The longest index file that is read, in bytes.
const INDEX_LIMIT: u64 = 100 << 20;

/// The files of a model.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The file, or the folder.
    pub root: PathBuf,
    /// Whether the model is a folder, with more to it than weights.
    pub is_folder: bool,
    /// The weights: one part, or one for each sub-model of a pipeline.
    pub parts: Vec<Part>,
}

/// One set of weights of a model.
#[derive(Clone, Debug)]
pub struct Part {
    /// The folder within the model's, empty for the model's own. Also the prefix of tensor names, with a `/`.
    pub folder: String,
    /// The file name before `.safetensors` or `-00001-of-0000N.safetensors`.
    pub stem: String,
    /// The files, each with the tensors that an index expects in it.
    pub files: Vec<(PathBuf, Option<BTreeSet<String>>)>,
}

impl Part {
    /// Whether the files are called as libraries call a folder's weights.
    pub(crate) fn has_usual_name(&self) -> bool {
        STEMS.contains(&self.stem.as_str())
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
            let stem = name.strip_suffix(INDEX).unwrap_or_else(|| name.trim_end_matches(".json"));
            let part = Part { folder: String::new(), stem: stem.to_owned(), files: shards(path)? };
            return Ok(Self { root: root.to_owned(), is_folder: true, parts: vec![part] });
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let part = Part { folder: String::new(), stem, files: vec![(path.to_owned(), None)] };
        Ok(Self { root: path.to_owned(), is_folder: false, parts: vec![part] })
    }

    fn folder(root: &Path) -> Result<Self> {
        let parts = if root.join(PIPELINE).is_file() {
            pipeline(root)?
        } else {
            vec![part(root, "")?.ok_or_else(|| {
                Error::model(root, "the folder holds no safetensors weights (model.safetensors or an index of shards)")
            })?]
        };
        Ok(Self { root: root.to_owned(), is_folder: true, parts })
    }

    /// Configuration, tokenizer and other small files of a folder, relative to it, and those left out for their size.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed.
    pub fn companions(&self) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        let (mut small, mut large) = (Vec::new(), Vec::new());
        if self.is_folder {
            walk(&self.root, Path::new(""), DEPTH, &mut |relative, size| {
                if !is_weights(relative) {
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

/// Calls `visit` with every file below `root`, hidden ones and links included, relative to it.
pub(crate) fn walk_all(root: &Path, visit: &mut impl FnMut(&Path)) -> Result<()> {
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let folder = root.join(&below);
        for entry in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let relative = below.join(entry.file_name());
            // A linked folder is not followed: it is one thing that would be lost.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(relative),
                _ => visit(&relative),
            }
        }
    }
    Ok(())
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
        if named && base_name(name) && root.join(name).is_dir() {
            parts.extend(part(&root.join(name), name)?);
        }
    }
    if parts.is_empty() {
        return Err(Error::model(root, "none of the pipeline's components has safetensors weights"));
    }
    Ok(parts)
}

/// The weights in one folder: by the libraries' own names first, then by whatever single candidate is there.
fn part(folder: &Path, name: &str) -> Result<Option<Part>> {
    let make = |stem: &str, files| Some(Part { folder: name.to_owned(), stem: stem.to_owned(), files });
    for stem in STEMS {
        let index = folder.join(format!("{stem}{INDEX}"));
        if index.is_file() {
            return Ok(make(stem, shards(&index)?));
        }
        let single = folder.join(format!("{stem}{WEIGHTS}"));
        if single.is_file() {
            return Ok(make(stem, vec![(single, None)]));
        }
    }
    let entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let names: BTreeSet<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let indices: Vec<_> = names.iter().filter(|name| name.ends_with(INDEX)).collect();
    let singles: Vec<_> = names.iter().filter(|name| name.ends_with(WEIGHTS)).collect();
    match (&indices[..], &singles[..]) {
        ([], []) => Ok(None),
        ([index], _) => {
            let stem = index.trim_end_matches(INDEX);
            Ok(make(stem, shards(&folder.join(index))?))
        }
        ([], [single]) => {
            let stem = single.trim_end_matches(WEIGHTS);
            Ok(make(stem, vec![(folder.join(single), None)]))
        }
        (many @ [_, _, ..], _) | ([], many) => Err(Error::model(
            folder,
            format!(
                "several files could be the model; name one of them: {}",
                many.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
            ),
        )),
    }
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
        let file = file.as_str().filter(|file| base_name(file)).ok_or_else(|| {
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
fn base_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
    if !kind.is_file() {
        return Err(Error::model(path, "is not a regular file"));
    }
    let size = kind.len();
    if size > INDEX_LIMIT {
        return Err(Error::model(path, format!("has {size} bytes, more than the {INDEX_LIMIT} read of such a file")));
    }
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|error| Error::model(path, format!("is not valid JSON: {error}")))
}
