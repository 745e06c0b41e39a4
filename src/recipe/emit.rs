//! A plan carried out: files laid out, filled and put in place together.

use super::files::{Files, OutputFile, Slot};
use super::plan::scale_of;
use super::survey::Surveys;
use super::{Operation, Plan, Planned, tied};
use crate::checkpoint::{self, FORMATS, Layout, Part, TensorView, by_extension, is_weights};
use crate::dtype::DType;
use crate::error::{Bytes, Error, Result};
use crate::output::{StagedFile, StagedFolder};
use crate::stream::{self, Control, Settings};
use ckptmerge_format::Format;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What configurations call how their weights are quantized.
const QUANTIZATION: &str = "quantization_config";

/// Where the output goes and in which form.
#[derive(Clone)]
pub struct Target {
    /// The file or folder.
    pub path: PathBuf,
    /// The largest size of one file's tensors. With it, the output is a folder.
    pub shard_size: Option<Bytes>,
    /// The format; by default the one that the path's ending names, or safetensors.
    pub format: Option<&'static dyn Format>,
}

impl Target {
    /// The format to write.
    pub fn format(&self) -> &'static dyn Format {
        self.format.or_else(|| by_extension(&self.path)).unwrap_or(FORMATS[0])
    }

    fn names_folder(&self) -> bool {
        self.path.is_dir() || self.path.as_os_str().as_encoded_bytes().ends_with(b"/")
    }

    /// A file or folder without shards.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), shard_size: None, format: None }
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

impl Plan<'_> {
    /// Whether `target` becomes a folder: if it is to have shards, or is named as one, or a model is a folder and the
    /// target's name is not that of a file.
    ///
    /// # Errors
    /// [`Error::Output`] if the model cannot be written under that name.
    pub fn makes_folder(&self, target: &Target) -> Result<bool> {
        let ending = target.path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if target.format.is_none() && by_extension(&target.path).is_none() && is_weights(&target.path) {
            let message = format!("`.{ending}` files cannot be written yet; `ckptmerge formats` lists what can");
            return Err(Error::output(&target.path, message));
        }
        let names_file = by_extension(&target.path).is_some() && !target.names_folder();
        let several_parts = self.reference.layout().parts.len() > 1;
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
            (false, false, _) => Ok(self.frame.layout().is_folder || target.names_folder()),
        }
    }

    /// Whether the small files beside the weights are a folder's, so that the output is best one as well.
    #[must_use]
    pub fn is_of_folder(&self) -> bool {
        self.frame.layout().is_folder
    }

    /// Files beside the weights that are too large to come along.
    ///
    /// # Errors
    /// [`Error::Io`] if their folder cannot be listed.
    pub fn left_beside(&self) -> Result<Vec<PathBuf>> {
        Ok(self.frame.layout().companions()?.1)
    }

    /// The configurations, relative to the folder, that no longer say how weights are quantized, as theirs no longer are.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be listed.
    pub fn dequantized_configs(&self) -> Result<Vec<PathBuf>> {
        let frame = self.frame.layout();
        let mut companions = frame.companions()?.0;
        companions.retain(|relative| {
            let says_so = |config: Value| config.get(QUANTIZATION).is_some();
            self.part_of_config(relative).is_some_and(|part| self.is_dequantized(part))
                && checkpoint::read_json(&frame.root.join(relative)).is_ok_and(says_so)
        });
        Ok(companions)
    }

    /// Whether 8-bit floats of a part were multiplied by their scales, and none are left that have some.
    fn is_dequantized(&self, part: usize) -> bool {
        let scaled = |view: &TensorView<'_>| scale_of(view.tensor, view.checkpoint).is_some();
        let operations = || self.tensors.iter().filter(|tensor| tensor.part == part).map(|tensor| &tensor.operation);
        operations().any(|operation| matches!(operation, Operation::Scale(..)))
            && !operations().any(|operation| matches!(operation, Operation::Copy(view) if scaled(view)))
    }

    /// The part whose `config.json` a file is.
    fn part_of_config(&self, relative: &Path) -> Option<usize> {
        if relative.file_name()? != "config.json" {
            return None;
        }
        let parts = &self.reference.layout().parts;
        parts.iter().position(|part| Some(Path::new(&part.folder)) == relative.parent())
    }

    /// Whether a file that is read would be replaced.
    #[must_use]
    pub fn replaces_input(&self, target: &Target) -> bool {
        let Ok(output) = target.path.canonicalize() else { return false };
        let mut files = self.sources.iter().flat_map(|(source, _)| source.files());
        files.any(|file| file.path().canonicalize().is_ok_and(|path| path.starts_with(&output)))
    }

    /// What the output will not say of its tensors, so that its readers have to be told.
    #[must_use]
    pub fn left_unsaid(&self, target: &Target) -> Vec<String> {
        let format = target.format();
        let unsaid: BTreeSet<_> =
            self.tensors.iter().filter_map(|planned| format.leaves_unsaid(planned.dtype)).collect();
        unsaid.into_iter().collect()
    }

    /// What carrying the plan out will cost.
    ///
    /// # Errors
    /// As [`Self::emit`], so far as it can be told without reading data.
    pub fn predict(&self, target: &Target, settings: &Settings) -> Result<Prediction> {
        Ok(self.prepare(target, settings)?.1)
    }

    /// The files laid out, what they cost, and whether they are in a folder; nothing that is there would be lost.
    fn prepare(&self, target: &Target, settings: &Settings) -> Result<(Files<'_, '_>, Prediction, bool)> {
        let is_folder = self.makes_folder(target)?;
        if !is_folder && self.beside.needs_folder() {
            let message = "the recipe makes a tokenizer or chat template, which stands beside the weights: give the output a name without an ending, for a folder";
            return Err(Error::output(&target.path, message));
        }
        let files = Files::new(self, target, is_folder)?;
        if is_folder {
            self.check_replaceable(target, &files)?;
        }
        let slots: Vec<_> = files.weights.iter().flat_map(OutputFile::slots).collect();
        let (loads, held): (Vec<_>, Vec<u64>) = slots.iter().map(Slot::load).unzip();
        let on_the_way = settings.device.as_ref().map_or(0, |device| device.memory(settings.threads()));
        let prediction = Prediction {
            read: Bytes(slots.iter().map(Slot::read_bytes).sum()),
            written: Bytes(files.weights.iter().map(|file| file.plan.length).sum()),
            memory: Bytes(stream::buffer_bytes(&loads, settings) + held.into_iter().max().unwrap_or(0) + on_the_way),
            files: files.weights.len(),
        };
        drop(loads);
        drop(slots);
        Ok((files, prediction, is_folder))
    }

    /// Writes the output, which appears under its name when it is complete.
    ///
    /// # Errors
    /// [`Error::Changed`] if an input changes meanwhile, [`Error::NoSpace`], [`Error::Io`], [`Error::Interrupted`].
    /// Whatever was there before is then untouched.
    pub fn emit(&self, target: &Target, settings: &Settings, control: Control<'_>) -> Result<Prediction> {
        let (files, prediction, is_folder) = self.prepare(target, settings)?;
        let surveys = self.survey(settings, control)?;
        if is_folder {
            self.emit_folder(target, files, &surveys, settings, control)?;
        } else {
            for file in &files.weights {
                let staged = StagedFile::create(&target.path, file.plan.length)?;
                file.fill(&staged, &surveys, settings, control)?;
                stream::check_unchanged(self.sources.iter().map(|(source, _)| *source))?;
                staged.commit(settings.sync)?;
            }
        }
        Ok(prediction)
    }

    fn emit_folder(
        &self,
        target: &Target,
        files: Files<'_, '_>,
        surveys: &Surveys,
        settings: &Settings,
        control: Control<'_>,
    ) -> Result<()> {
        let frame = self.frame.layout();
        let mut companions = frame.companions()?.0;
        let beside = self.beside.files(&target.path);
        companions.retain(|relative| !beside.contains_key(relative) && !self.beside.dropped.contains(relative));

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
            file.fill(&staged, surveys, settings, control)?;
            staged.commit(settings.sync)?;
        }
        for (relative, text) in &beside {
            folder.write(relative, text)?;
        }
        for index in &files.indices {
            folder.write(&index.relative, format!("{:#}\n", index.json).as_bytes())?;
        }
        stream::check_unchanged(self.sources.iter().map(|(source, _)| *source))?;
        folder.commit(settings.sync)
    }

    /// A model's `config.json` with what is now another: the type of its tensors, if it names one, how many layers and
    /// tokens there are, whether weights are quantized, and whether the head is tied.
    fn config_of_merged(&self, source: &Path, relative: &Path) -> Option<String> {
        let part = self.part_of_config(relative)?;
        let blended =
            |t: &&Planned<'_>| t.part == part && !matches!(t.operation, Operation::Copy(_) | Operation::Alias(_));
        let mut dtypes = self.tensors.iter().filter(blended).map(|tensor| tensor.dtype);
        let dtype = dtypes.next().filter(|dtype| dtypes.all(|other| other == *dtype)).and_then(DType::torch_name);
        // A configuration that cannot be read is copied as it is.
        let mut config = checkpoint::read_json(source).ok()?;
        let mut changed = self.beside.update(&mut config);
        let own = self.tensors.iter().filter(|t| t.part == part && !matches!(t.operation, Operation::Alias(_)));
        if tied::unties(own.map(|tensor| tensor.name.as_str()), self.frame) {
            changed |= tied::untie(&mut config);
        }
        if self.is_dequantized(part)
            && let Value::Object(entries) = &mut config
        {
            changed |= entries.shift_remove(QUANTIZATION).is_some();
        }
        for key in ["torch_dtype", "dtype"] {
            if let (Some(Value::String(name)), Some(dtype)) = (config.get_mut(key), dtype)
                && name != dtype
            {
                *name = dtype.to_owned();
                changed = true;
            }
        }
        changed.then(|| format!("{config:#}\n"))
    }

    /// That nothing would be lost if the folder were replaced: all in it is written anew, or is weights of the model it
    /// holds under the names that libraries give them.
    fn check_replaceable(&self, target: &Target, files: &Files<'_, '_>) -> Result<()> {
        let folder = &target.path;
        if !folder.is_dir() {
            return Ok(());
        }
        self.beside.check_card(folder)?;
        let mut companions = self.frame.layout().companions()?.0;
        companions.extend(self.beside.files(folder).into_keys());
        let weights = files.weights.iter().map(|file| &file.relative);
        let written: BTreeSet<&PathBuf> =
            weights.chain(files.indices.iter().map(|index| &index.relative)).chain(&companions).collect();
        let known: BTreeSet<PathBuf> = Layout::resolve(folder)
            .map(|layout| {
                let usual = layout.parts.into_iter().filter(Part::has_usual_name);
                usual.flat_map(|part| part.files).map(|(file, _)| file).collect()
            })
            .unwrap_or_default();
        let stranger = checkpoint::find_file(folder, &mut |relative| {
            let is_old_index = is_weights(relative) && relative.extension().is_some_and(|ending| ending == "json");
            !written.contains(&relative.to_owned()) && !known.contains(&folder.join(relative)) && !is_old_index
        })?;
        stranger.map_or(Ok(()), |stranger| {
            let message = format!(
                "the folder would be replaced as a whole, but holds {}, which the new output does not: move it or name another folder",
                stranger.display()
            );
            Err(Error::output(folder, message))
        })
    }
}
