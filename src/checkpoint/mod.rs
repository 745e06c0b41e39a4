//! A checkpoint: mapped files, and the table of tensors in them.
//!
//! Opening reads headers only. Every range is checked here, once; behind it a [`Tensor`] is trusted.

mod fault;
mod file;
mod fingerprint;
mod formats;
mod layout;

pub use file::{DataFile, IoMode};
pub use formats::{FORMATS, by_extension};
pub use layout::{Layout, Part};
pub(crate) use layout::{is_weights, read_json, walk_all};

use crate::error::{Error, Result};
use ckptmerge_format::{DType, Data, FormatError, Index, Metadata};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// A model that is open for reading.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    layout: Layout,
    format: &'static str,
    files: Vec<DataFile>,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    metadata: Metadata,
    warnings: Vec<String>,
}

/// A tensor of a checkpoint: where its elements are, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The name, unique in the checkpoint.
    pub name: String,
    /// The type of the elements.
    pub dtype: DType,
    /// Elements along each dimension, outermost first.
    pub shape: Vec<u64>,
    /// The product of the shape.
    pub elements: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// The tensor it is tied to, whose bytes it shares.
    pub alias_of: Option<String>,
    /// Which part of the [`Layout`] it belongs to.
    pub part: usize,
    file: usize,
    offset: u64,
}

/// A tensor's elements: a file, and where in it they begin.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The table's row.
    pub tensor: &'a Tensor,
    /// The file.
    pub file: &'a DataFile,
}

impl TensorView<'_> {
    /// The position in the file of bytes `range` of the tensor.
    #[must_use]
    pub fn file_range(&self, range: Range<u64>) -> Range<u64> {
        self.tensor.offset + range.start..self.tensor.offset + range.end
    }
}

impl Checkpoint {
    /// Opens a model: a file, a folder, or an index of shards. The format is told by content.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Model`] or [`Error::Format`], naming the file, and the tensor if it is one's fault.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, IoMode::Auto)
    }

    /// As [`Self::open`], with the way to read given.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(path: impl AsRef<Path>, mode: IoMode) -> Result<Self> {
        let path = path.as_ref();
        let layout = Layout::resolve(path)?;
        let mut checkpoint = Self {
            name: display_name(path),
            format: "",
            files: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            metadata: Metadata::new(),
            warnings: Vec::new(),
            layout,
        };
        for (part, Part { files, .. }) in checkpoint.layout.parts.clone().iter().enumerate() {
            for (path, expected) in files {
                let file = DataFile::open(path, mode)?;
                let format = formats::detect(&file)?;
                checkpoint.format = format.id();
                let index = formats::index(format, &file)?;
                let held: HashSet<&str> = index.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
                if let Some(missing) = expected.iter().flatten().find(|name| !held.contains(name.as_str())) {
                    let message = "the index says that this shard holds it, but it does not";
                    let source = FormatError::corrupt(message).at(missing);
                    return Err(Error::Format { path: path.clone(), source });
                }
                checkpoint.add(part, file, index, expected.is_some())?;
            }
        }
        Ok(checkpoint)
    }

    /// Takes a file's tensors in, resolving the tied ones.
    fn add(&mut self, part: usize, file: DataFile, index: Index, is_shard: bool) -> Result<()> {
        let prefix = self.layout.parts[part].prefix();
        let id = self.files.len();
        let dense: HashMap<&str, u64> = index
            .tensors
            .iter()
            .filter_map(|info| match &info.data {
                Data::Dense(extent) => Some((info.name.as_str(), extent.offset)),
                _ => None,
            })
            .collect();
        for info in &index.tensors {
            let error = |message: &str| Error::Format {
                path: file.path().to_owned(),
                source: FormatError::corrupt(message).at(&info.name),
            };
            let (offset, alias_of) = match &info.data {
                Data::Dense(extent) => (extent.offset, None),
                Data::Alias(target) => {
                    let offset =
                        dense.get(target.as_str()).ok_or_else(|| error("it is tied to a tensor that is not there"))?;
                    (*offset, Some(format!("{prefix}{target}")))
                }
                _ => return Err(error("its layout cannot be read by this version")),
            };
            let elements = info.elements().ok_or_else(|| error("its size overflows"))?;
            let tensor = Tensor {
                name: format!("{prefix}{}", info.name),
                dtype: info.dtype,
                shape: info.shape.clone(),
                elements,
                bytes: info.dtype.size_of(elements).ok_or_else(|| error("its size overflows"))?,
                alias_of,
                part,
                file: id,
                offset,
            };
            if self.by_name.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(error("another shard of the model holds a tensor of the same name"));
            }
            self.tensors.push(tensor);
        }
        if is_shard {
            let expected = self.layout.parts[part].files.iter().filter_map(|(_, names)| names.as_ref());
            let extra: Vec<_> =
                index.tensors.iter().filter(|t| !expected.clone().any(|names| names.contains(&t.name))).collect();
            if let Some(first) = extra.first() {
                self.warnings.push(format!(
                    "{}: {} tensors are not in the index, such as `{}`; they are taken as part of the model",
                    file.path().display(),
                    extra.len(),
                    first.name
                ));
            }
        }
        for (key, value) in index.metadata {
            // Of shards that disagree, the first one counts; they repeat each other in practice.
            self.metadata.entry(key).or_insert(value);
        }
        self.files.push(file);
        Ok(())
    }

    /// A short name for messages: the file or folder name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files it is made of.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The id of the format its weights are in.
    #[must_use]
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The open files.
    #[must_use]
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// All tensors, in the order of their bytes.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The text that came with the tensors.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What is odd about the model without being wrong.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The tensor of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&index| self.view(&self.tensors[index]))
    }

    /// The elements of one of this checkpoint's own tensors.
    #[must_use]
    pub fn view<'a>(&'a self, tensor: &'a Tensor) -> TensorView<'a> {
        TensorView { tensor, file: &self.files[tensor.file] }
    }

    /// Bytes of all files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(DataFile::length).sum()
    }

    /// A digest that tells two checkpoints apart: xxh3-128 over each file's length and 256 evenly spaced
    /// blocks of 4 KiB. It is not a digest of every byte, so that taking it costs no pass over the files.
    ///
    /// # Errors
    /// [`Error::Changed`] if a file no longer has a block, [`Error::Io`] if the system would not read it.
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint::of(&self.files)
    }
}

/// The last part of the path as it was given, or the whole for paths like `..`.
fn display_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
