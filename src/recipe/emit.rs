//! A plan carried out: files laid out, filled and put in place together.

use super::{Operation, Plan, Planned, Recipe};
use crate::checkpoint::{self, FORMATS, Layout, Part, by_extension, is_weights};
use crate::error::{Bytes, Error, Result};
use crate::merge::CopyKernel;
use crate::output::{StagedFile, StagedFolder};
use crate::stream::{self, Control, Item, Kernel, Settings};
use ckptmerge_format::{Metadata, TensorSpec, WritePlan};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where the output goes and in which form.
#[derive(Clone, Debug)]
pub struct Target {
    /// The file or folder.
    pub path: PathBuf,
    /// The largest size of one file's tensors. With it, the output is a folder.
    pub shard_size: Option<Bytes>,
}

impl Target {
    fn names_folder(&self) -> bool {
        self.path.is_dir() || self.path.as_os_str().as_encoded_bytes().ends_with(b"/")
    }

    /// A file or folder without shards.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), shard_size: None }
    }
}

/// What a run will cost, known before any data is read.
#[derive(Clone, Copy, Debug)]
pub struct Prediction {
    /// Bytes read from the inputs.
    pub read: Bytes,
    /// Bytes written.
    pub written: Bytes,
    /// Memory of the run's own at its peak, pages of mapped inputs not counted.
    pub memory: Bytes,
    /// Files with weights.
    pub files: usize,
}

/// One file with weights.
struct OutputFile<'a, 'p> {
    relative: PathBuf,
    tensors: Vec<&'p Planned<'a>>,
    plan: WritePlan,
}

/// A folder's index of shards.
struct IndexFile {
    relative: PathBuf,
    json: Value,
}

struct Files<'a, 'p> {
    weights: Vec<OutputFile<'a, 'p>>,
    indices: Vec<IndexFile>,
}

impl Plan<'_> {
    /// Whether `target` becomes a folder: if it is to have shards, or is named as one, or a model is a folder and the
    /// target's name is not that of a file.
    fn makes_folder(&self, target: &Target) -> Result<bool> {
        let names_file = by_extension(&target.path).is_some() && !target.names_folder();
        let several_parts = self.models.reference().layout().parts.len() > 1;
        match (names_file, target.shard_size.is_some(), several_parts) {
            (true, true, _) => {
                Err(Error::output(&target.path, "shards come in a folder: give the output a name without an ending"))
            }
            (true, _, true) => Err(Error::output(
                &target.path,
                "the model is a pipeline of several files: give the output a name without an ending, for a folder",
            )),
            (true, false, false) => Ok(false),
            (false, true, _) => Ok(true),
            (false, false, _) => Ok(self.models.frame().layout().is_folder || target.names_folder()),
        }
    }

    /// What carrying the plan out will cost.
    ///
    /// # Errors
    /// As [`Self::emit`], so far as it can be told without reading data.
    pub fn predict(&self, target: &Target, settings: &Settings) -> Result<Prediction> {
        let files = self.lay_out(target, &self.metadata()?)?;
        let items: Vec<_> = files.weights.iter().flat_map(|file| file.items()).collect();
        Ok(Prediction {
            read: Bytes(items.iter().flat_map(|item| &item.inputs).map(|input| input.tensor.bytes).sum()),
            written: Bytes(files.weights.iter().map(|file| file.plan.length).sum()),
            memory: Bytes(stream::buffer_bytes(&items, settings)),
            files: files.weights.len(),
        })
    }

    /// Writes the output, which appears under its name when it is complete.
    ///
    /// # Errors
    /// [`Error::Changed`] if an input changes meanwhile, [`Error::NoSpace`], [`Error::Io`], [`Error::Interrupted`].
    /// Whatever was there before is then untouched.
    pub fn emit(&self, target: &Target, settings: &Settings, control: Control<'_>) -> Result<Prediction> {
        let prediction = self.predict(target, settings)?;
        let files = self.lay_out(target, &self.metadata()?)?;
        if self.makes_folder(target)? {
            self.emit_folder(target, files, settings, control)?;
        } else {
            for file in &files.weights {
                let staged = StagedFile::create(&target.path, file.plan.length)?;
                file.fill(&staged, settings, control)?;
                stream::check_unchanged(self.models.all())?;
                staged.commit(settings.sync)?;
            }
        }
        Ok(prediction)
    }

    fn emit_folder(
        &self,
        target: &Target,
        files: Files<'_, '_>,
        settings: &Settings,
        control: Control<'_>,
    ) -> Result<()> {
        let frame = self.models.frame().layout();
        let companions = frame.companions()?.0;
        let written = files.weights.iter().map(|file| file.relative.clone());
        let indices = files.indices.iter().map(|index| index.relative.clone());
        check_replaceable(&target.path, &written.chain(indices).chain(companions.iter().cloned()).collect())?;

        let total = files.weights.iter().map(|file| file.plan.length).sum();
        let folder = StagedFolder::create(&target.path, total)?;
        for relative in &companions {
            let source = frame.root.join(relative);
            match self.config_of_merged(&source, relative) {
                Some(config) => folder.write(relative, config.as_bytes())?,
                None => folder.copy(&source, relative)?,
            }
        }
        for file in &files.weights {
            let staged = folder.file(&file.relative, file.plan.length)?;
            file.fill(&staged, settings, control)?;
            staged.commit(settings.sync)?;
        }
        for index in &files.indices {
            folder.write(&index.relative, format!("{:#}\n", index.json).as_bytes())?;
        }
        stream::check_unchanged(self.models.all())?;
        folder.commit(settings.sync)
    }

    /// A model's `config.json` with the type that its tensors now have, if it names one and that is another.
    fn config_of_merged(&self, source: &Path, relative: &Path) -> Option<String> {
        if relative.file_name()? != "config.json" {
            return None;
        }
        let parts = &self.models.reference().layout().parts;
        let part = parts.iter().position(|part| Some(Path::new(&part.folder)) == relative.parent())?;
        let blended = |t: &&Planned<'_>| t.part == part && matches!(t.operation, Operation::Blend(..));
        let mut dtypes = self.tensors.iter().filter(blended).map(|tensor| tensor.dtype);
        let dtype = dtypes.next()?;
        if dtypes.any(|other| other != dtype) {
            return None;
        }
        // A configuration that cannot be read is copied as it is.
        let mut config = checkpoint::read_json(source).ok()?;
        let mut changed = false;
        for key in ["torch_dtype", "dtype"] {
            if let Some(Value::String(name)) = config.get_mut(key)
                && name != dtype.torch_name()?
            {
                *name = dtype.torch_name()?.to_owned();
                changed = true;
            }
        }
        changed.then(|| format!("{config:#}\n"))
    }

    /// Which tensor goes into which file, and where.
    fn lay_out(&self, target: &Target, metadata: &Metadata) -> Result<Files<'_, '_>> {
        let is_folder = self.makes_folder(target)?;
        let format = by_extension(&target.path).unwrap_or(FORMATS[0]);
        let mut files = Files { weights: Vec::new(), indices: Vec::new() };
        let layout = self.models.reference().layout();
        for (index, part) in layout.parts.iter().enumerate() {
            let tensors: Vec<&Planned<'_>> = self.tensors.iter().filter(|tensor| tensor.part == index).collect();
            let shards = cut_shards(&tensors, target.shard_size);
            let prefix = part.prefix();
            // A single file's tensors become a folder's under the name that libraries look for.
            let stem = if layout.is_folder { part.stem.as_str() } else { "model" };
            let ending = format.extensions()[0];
            let mut map = Map::new();
            let count = shards.len();
            for (number, tensors) in shards.into_iter().enumerate() {
                let name = match (is_folder, count) {
                    (false, _) => target.path.display().to_string(),
                    (true, 1) => format!("{stem}.{ending}"),
                    (true, _) => format!("{stem}-{:05}-of-{count:05}.{ending}", number + 1),
                };
                let specs: Vec<TensorSpec> = tensors.iter().map(|tensor| spec(tensor, &prefix)).collect();
                map.extend(specs.iter().map(|spec| (spec.name.clone(), Value::from(name.as_str()))));
                let plan = format
                    .plan_write(&specs, metadata)
                    .map_err(|source| Error::Format { path: target.path.clone(), source })?;
                files.weights.push(OutputFile { relative: Path::new(&part.folder).join(name), tensors, plan });
            }
            if count > 1 {
                let total: u64 = tensors.iter().map(|tensor| stored_bytes(tensor)).sum();
                map.sort_keys();
                let json = json!({"metadata": {"total_size": total}, "weight_map": map});
                let relative = Path::new(&part.folder).join(format!("{stem}.{ending}.index.json"));
                files.indices.push(IndexFile { relative, json });
            }
        }
        Ok(files)
    }

    /// The text of the output: what all inputs agree on, the recipe and the inputs' fingerprints.
    fn metadata(&self) -> Result<Metadata> {
        let mut metadata = self.models.reference().metadata().clone();
        metadata.retain(|key, value| {
            !key.starts_with("ckptmerge.") && self.models.all().all(|model| model.metadata().get(key) == Some(value))
        });
        let mut inputs = Vec::new();
        for (model, label) in self.models.all().zip(self.models.labels()) {
            inputs.push(json!({"name": label, "fingerprint": model.fingerprint()?}));
        }
        metadata.insert("ckptmerge.recipe".to_owned(), self.recipe.to_json(self.models.labels()).to_string());
        metadata.insert("ckptmerge.inputs".to_owned(), Value::from(inputs).to_string());
        Ok(metadata)
    }
}

impl Recipe {
    /// The recipe as it is kept in the output; the base's label, if there is one, is last.
    fn to_json(&self, labels: &[String]) -> Value {
        let (models, base) = labels.split_at(labels.len() - usize::from(self.method.needs_base()));
        let weights =
            self.weights.clone().unwrap_or_else(|| vec![self.method.default_weight(models.len()); models.len()]);
        let patterns = |patterns: &[regex::Regex]| patterns.iter().map(|p| Value::from(p.as_str())).collect::<Vec<_>>();
        let mut json = json!({
            "ckptmerge": env!("CARGO_PKG_VERSION"),
            "method": self.method.name(),
            "formula": self.method.formula(),
            "models": models,
            "weights": weights,
            "normalize": self.normalize,
        });
        let mut add = |key: &str, value: Value| {
            let empty = match &value {
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                other => other.is_null(),
            };
            if !empty {
                json[key] = value;
            }
        };
        add("base", base.first().map_or(Value::Null, |label| Value::from(label.as_str())));
        let parameters = self.method.parameters().iter().zip(self.parameter_values());
        add(
            "parameters",
            parameters.map(|(p, value)| (p.name.to_owned(), Value::from(value))).collect::<Map<_, _>>().into(),
        );
        let special = self.weights_for.iter().map(|(p, weights)| json!({"pattern": p.as_str(), "weights": weights}));
        add("weights_for", special.collect::<Vec<_>>().into());
        add("dtype", self.dtype.map_or(Value::Null, |dtype| dtype.name().into()));
        add("include", patterns(&self.include).into());
        add("exclude", patterns(&self.exclude).into());
        if self.missing != super::Missing::Error {
            add("missing", if self.missing == super::Missing::Base { "base" } else { "skip" }.into());
        }
        json
    }
}

/// Bytes of elements that a tensor has of its own.
fn stored_bytes(tensor: &Planned<'_>) -> u64 {
    let elements: u64 = tensor.shape.iter().product();
    match tensor.operation {
        Operation::Alias(_) => 0,
        // The plan was made from tensors whose size is known to fit.
        _ => tensor.dtype.size_of(elements).unwrap_or(0),
    }
}

fn spec(tensor: &Planned<'_>, prefix: &str) -> TensorSpec {
    let within = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
    TensorSpec {
        name: within(&tensor.name),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        alias_of: match &tensor.operation {
            Operation::Alias(target) => Some(within(target)),
            _ => None,
        },
    }
}

/// Cuts tensors into shards of at most `size` bytes, or one tensor; tied tensors stay with what they are tied to.
fn cut_shards<'a, 'p>(tensors: &[&'p Planned<'a>], size: Option<Bytes>) -> Vec<Vec<&'p Planned<'a>>> {
    let mut shards: Vec<(u64, Vec<&Planned<'_>>)> = Vec::new();
    let (tied, stored): (Vec<_>, Vec<_>) =
        tensors.iter().copied().partition(|tensor| matches!(tensor.operation, Operation::Alias(_)));
    for tensor in stored {
        let bytes = stored_bytes(tensor);
        match shards.last_mut() {
            Some((total, shard)) if size.is_none_or(|size| *total + bytes <= size.0) => {
                *total += bytes;
                shard.push(tensor);
            }
            _ => shards.push((bytes, vec![tensor])),
        }
    }
    let mut shards: Vec<_> = shards.into_iter().map(|(_, shard)| shard).collect();
    for tensor in tied {
        let Operation::Alias(target) = &tensor.operation else { continue };
        if let Some(shard) = shards.iter_mut().find(|shard| shard.iter().any(|other| other.name == *target)) {
            shard.push(tensor);
        }
    }
    shards
}

impl OutputFile<'_, '_> {
    /// The tensors as the stream wants them, in the order of their bytes.
    fn items(&self) -> Vec<Item<'_>> {
        let mut items: Vec<Item<'_>> = self
            .tensors
            .iter()
            .zip(&self.plan.offsets)
            .filter_map(|(tensor, offset)| {
                let offset = (*offset)?;
                let (inputs, kernel, elements): (_, &dyn Kernel, _) = match &tensor.operation {
                    Operation::Alias(_) => return None,
                    Operation::Copy(view) => (vec![*view], &CopyKernel, view.tensor.bytes),
                    Operation::Blend(kernel, views) => (views.clone(), kernel, tensor.shape.iter().product()),
                };
                let element_bytes = stored_bytes(tensor).checked_div(elements).unwrap_or(0);
                Some(Item { offset, elements, element_bytes, inputs, kernel })
            })
            .collect();
        items.sort_by_key(|item| item.offset);
        items
    }

    fn fill(&self, staged: &StagedFile, settings: &Settings, control: Control<'_>) -> Result<()> {
        for segment in &self.plan.segments {
            staged.write_at(segment.offset, &segment.bytes)?;
        }
        stream::write(staged, &self.items(), settings, control)
    }
}

/// That nothing would be lost if the folder were replaced: all in it is written anew, or is weights of the model it
/// holds under the names that libraries give them.
fn check_replaceable(folder: &Path, written: &BTreeSet<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let known: BTreeSet<PathBuf> = Layout::resolve(folder)
        .map(|layout| {
            let usual = layout.parts.into_iter().filter(Part::has_usual_name);
            usual.flat_map(|part| part.files).map(|(file, _)| file).collect()
        })
        .unwrap_or_default();
    let mut strangers = Vec::new();
    checkpoint::walk_all(folder, &mut |relative| {
        let is_old_index = is_weights(relative) && relative.extension().is_some_and(|ending| ending == "json");
        if !written.contains(relative) && !known.contains(&folder.join(relative)) && !is_old_index {
            strangers.push(relative.display().to_string());
        }
    })?;
    if strangers.is_empty() {
        return Ok(());
    }
    let shown = strangers.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if strangers.len() > 5 { ", …" } else { "" };
    Err(Error::output(
        folder,
        format!(
            "the folder would be replaced as a whole, but holds files that the new output does not: {shown}{more}; move them or name another folder"
        ),
    ))
}
