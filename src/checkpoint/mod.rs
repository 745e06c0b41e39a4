//! A checkpoint: mapped files, and the table of tensors in them.
//!
//! Opening reads headers only. Every range is checked here, once; behind it a [`Tensor`] is trusted.

mod added;
mod deepspeed;
mod fault;
mod file;
mod fingerprint;
mod formats;
mod gather;
mod layout;
mod select;
mod small;
mod spill;
mod view;

pub use file::{DataFile, IoMode};
pub use formats::{FORMATS, by_extension, format};
#[cfg(feature = "diffusion")]
pub(crate) use layout::TRAINING_STATE;
pub use layout::{Layout, Part};
pub(crate) use layout::{SMALL_LIMIT, find_file, is_weights, read_json};
pub(crate) use small::{read_small, read_text};
pub use view::{Elements, View};

use crate::error::{Error, Result};
use ckptmerge_format::{DType, Data, FormatError, Index, Metadata, Pieces, TensorInfo};
use gather::Gather;
use spill::Spill;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A model that is open for reading.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    layout: Layout,
    format: &'static str,
    files: Vec<DataFile>,
    /// How many of these, the last, hold tensors that were added.
    added: usize,
    tensors: Vec<Tensor>,
    by_name: HashMap<String, usize>,
    metadata: Metadata,
    has_sets: bool,
    notes: Vec<String>,
    warnings: Vec<String>,
}

/// How to read a model, where its files leave a choice.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// How bytes are fetched.
    pub io: IoMode,
    /// Which set of tensors is the model, in files that hold several; files that hold one do not care.
    pub select: Option<String>,
    /// The type of elements of which a file says only the width, as NumPy's do of bfloat16.
    pub assume: Option<DType>,
    /// The id of the format the files are in, where their content does not tell.
    pub format: Option<&'static str>,
    /// Whether only the table is wanted: nothing that is compressed is unpacked, and reading such a tensor fails.
    pub headers_only: bool,
}

impl From<IoMode> for OpenOptions {
    fn from(io: IoMode) -> Self {
        Self { io, ..Self::default() }
    }
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
    location: Location,
    /// What [`Self::inputs`] says, if that is not the name.
    inputs: Vec<String>,
}

impl Tensor {
    /// The names in the model's files of the tensors that it is made of: its own, unless the checkpoint was
    /// [mapped](Checkpoint::mapped).
    #[must_use]
    pub fn inputs(&self) -> &[String] {
        if self.inputs.is_empty() { std::slice::from_ref(&self.name) } else { &self.inputs }
    }
}

/// Where a tensor's elements are, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Location {
    /// One run of bytes in a file.
    Dense { file: usize, offset: u64 },
    /// To be gathered.
    Gathered(Arc<Gather>),
    /// In the file, but not unpacked, as [`OpenOptions::headers_only`] asks.
    Packed { file: usize },
}

/// A tensor's elements.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// The table's row.
    pub tensor: &'a Tensor,
    /// The checkpoint it is in.
    pub checkpoint: &'a Checkpoint,
}

impl<'a> TensorView<'a> {
    /// Bytes `range` of the tensor as row-major, little-endian elements: straight from the map where they lie so, else
    /// put together in `buffer`.
    ///
    /// What comes from a map is to be trusted only after [`DataFile::check_fault`] has been asked behind its use.
    ///
    /// # Errors
    /// As [`DataFile::read`].
    pub fn read(&self, range: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match &self.tensor.location {
            Location::Dense { .. } => {
                let (file, range) = self.extent(range);
                file.read(range, buffer)
            }
            Location::Gathered(_) | Location::Packed { .. } if range.is_empty() => Ok(&[]),
            Location::Packed { file } => {
                let path = self.checkpoint.files[*file].path();
                Err(Error::model(path, format!("was opened for its table only; `{}` is packed", self.tensor.name)))
            }
            Location::Gathered(gather) => {
                // Whole elements, from which the range is cut.
                let (first, end) = (range.start / gather.width(), range.end.div_ceil(gather.width()));
                buffer.resize(((end - first) * gather.width()) as usize, 0);
                gather.read(&self.checkpoint.files, first, buffer)?;
                let skipped = (range.start - first * gather.width()) as usize;
                Ok(&buffer[skipped..skipped + (range.end - range.start) as usize])
            }
        }
    }

    /// The file and the range in it of bytes `range`, for hints: nothing of gathered tensors.
    #[must_use]
    pub fn extent(&self, range: Range<u64>) -> (&'a DataFile, Range<u64>) {
        match &self.tensor.location {
            Location::Dense { file, offset } => {
                (&self.checkpoint.files[*file], offset + range.start..offset + range.end)
            }
            Location::Gathered(gather) => (&self.checkpoint.files[gather.files().next().unwrap_or(0)], 0..0),
            Location::Packed { file } => (&self.checkpoint.files[*file], 0..0),
        }
    }

    /// The files that the elements are in.
    pub fn files(&self) -> impl Iterator<Item = &'a DataFile> {
        let (dense, gathered) = match &self.tensor.location {
            Location::Dense { file, .. } | Location::Packed { file } => (Some(*file), None),
            Location::Gathered(gather) => (None, Some(gather.files())),
        };
        let files = &self.checkpoint.files;
        dense.into_iter().chain(gathered.into_iter().flatten()).map(|file| &files[file])
    }

    /// Whether the bytes are handed out where they lie, without a buffer.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(self.tensor.location, Location::Dense { .. }) && self.files().all(DataFile::is_mapped)
    }
}

impl Checkpoint {
    /// Opens a model: a file, a folder, or an index of shards. The format is told by content.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Model`] or [`Error::Format`], naming the file, and the tensor if it is one's fault.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// As [`Self::open`], with choices made.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Unknown`] if the file holds several sets of tensors and none is called
    /// [`OpenOptions::select`], or if there is no format [`OpenOptions::format`].
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self> {
        let path = path.as_ref();
        let layout = Layout::resolve(path)?;
        let mut checkpoint = Self {
            name: display_name(path),
            format: "",
            files: Vec::new(),
            added: 0,
            tensors: Vec::new(),
            by_name: HashMap::new(),
            metadata: Metadata::new(),
            has_sets: false,
            notes: Vec::new(),
            warnings: Vec::new(),
            layout,
        };
        for (part, Part { files, .. }) in checkpoint.layout.parts.clone().iter().enumerate() {
            for (path, expected) in files {
                let file = DataFile::open(path, options.io)?;
                let format = match options.format {
                    Some(id) => formats::expect(&file, format(id)?)?,
                    None => formats::detect(&file)?,
                };
                checkpoint.format = format.id();
                let mut index = formats::index(format, &file, options.assume)?;
                let has_subtrees = !index.subtrees.is_empty();
                let choice = select::apply(path, &mut index, options.select.as_deref())?;
                checkpoint.has_sets |= has_subtrees || choice.is_some();
                checkpoint.notes.extend(choice);
                checkpoint.warnings.extend(index.warnings.drain(..).map(|text| format!("{}: {text}", path.display())));
                let held: HashSet<&str> = index.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
                if let Some(missing) = expected.iter().flatten().find(|name| !held.contains(name.as_str())) {
                    let message = "the index says that this shard holds it, but it does not";
                    let source = FormatError::corrupt(message).at(missing);
                    return Err(Error::Format { path: path.clone(), source });
                }
                if expected.is_some() {
                    checkpoint.warn_of_extra(part, path, &index);
                }
                checkpoint.add(part, file, index, options)?;
            }
        }
        Ok(checkpoint)
    }

    fn warn_of_extra(&mut self, part: usize, path: &Path, index: &Index) {
        let expected = self.layout.parts[part].files.iter().filter_map(|(_, names)| names.as_ref());
        let is_extra = |t: &&TensorInfo| !expected.clone().any(|names| names.contains(&t.name));
        let extra: Vec<_> = index.tensors.iter().filter(is_extra).collect();
        if let Some(first) = extra.first() {
            self.warnings.push(format!(
                "{}: {} tensors are not in the index, such as `{}`; they are taken as part of the model",
                path.display(),
                extra.len(),
                first.name
            ));
        }
    }

    /// Takes a file's tensors in: opens the files beside it that they lie in, and resolves the tied ones.
    fn add(&mut self, part: usize, file: DataFile, index: Index, options: &OpenOptions) -> Result<()> {
        let io = options.io;
        let prefix = self.layout.parts[part].prefix();
        let path = file.path().to_owned();
        let main = self.files.len();
        self.files.push(file);
        for name in &index.files {
            if !layout::is_base_name(name) {
                return Err(Error::model(&path, format!("names {name:?}, which is no plain file name; not followed")));
            }
            self.files.push(DataFile::open(&path.with_file_name(name), io)?);
        }
        let lengths: Vec<u64> = self.files.iter().map(DataFile::length).collect();
        // The spilled file comes last, once it is known what is in it.
        let spilled = self.files.len();
        let mut spill: Option<Spill> = None;

        let mut locations: HashMap<&str, Location> = HashMap::with_capacity(index.tensors.len());
        for info in &index.tensors {
            let error = |message: FormatError| Error::Format { path: path.clone(), source: message.at(&info.name) };
            let corrupt = |message: &str| error(FormatError::corrupt(message));
            let elements = info.elements().ok_or_else(|| corrupt("its size overflows"))?;
            let bytes = info.dtype.size_of(elements).ok_or_else(|| corrupt("its size overflows"))?;
            let gathered = |pieces: Pieces, lengths: &[u64]| {
                let width = info.dtype.bytes().ok_or_else(|| corrupt("packed elements cannot be rearranged"))? as u64;
                let gather = Gather::new(pieces, elements, width, info.big_endian, lengths).map_err(error)?;
                Ok::<_, Error>(Location::Gathered(Arc::new(gather)))
            };
            let location = match &info.data {
                Data::Dense(extent) if info.big_endian && info.dtype.bytes() != Some(1) => {
                    let mut pieces = Pieces::strided(extent.offset, &[elements], &[1]);
                    pieces.boxes[0].file = main;
                    gathered(pieces, &lengths)?
                }
                Data::Dense(extent) => Location::Dense { file: main, offset: extent.offset },
                Data::Pieces(pieces) => {
                    let mut pieces = pieces.clone();
                    for piece in &mut pieces.boxes {
                        if piece.file > index.files.len() {
                            return Err(corrupt("a piece is in a file that is not named"));
                        }
                        piece.file += main;
                    }
                    gathered(pieces, &lengths)?
                }
                Data::Deflated { .. } | Data::Inline(_) if options.headers_only => Location::Packed { file: main },
                Data::Deflated { extent, skip } => {
                    let offset =
                        Self::spill(&mut spill, &path, &index)?.inflate(&self.files[main], *extent, *skip, bytes)?;
                    if info.big_endian && info.dtype.bytes() != Some(1) {
                        let mut pieces = Pieces::strided(offset, &[elements], &[1]);
                        pieces.boxes[0].file = spilled;
                        gathered(pieces, &[&lengths[..], &[offset + bytes]].concat())?
                    } else {
                        Location::Dense { file: spilled, offset }
                    }
                }
                Data::Inline(values) => Location::Dense {
                    file: spilled,
                    offset: Self::spill(&mut spill, &path, &index)?.inline(&path, values)?,
                },
                Data::Alias(target) => {
                    let target = locations.get(target.as_str());
                    target.ok_or_else(|| corrupt("it is tied to a tensor that is not there"))?.clone()
                }
                _ => return Err(corrupt("its layout cannot be read by this version")),
            };
            locations.insert(&info.name, location.clone());
            let tensor = Tensor {
                name: format!("{prefix}{}", info.name),
                dtype: info.dtype,
                shape: info.shape.clone(),
                elements,
                bytes,
                alias_of: match &info.data {
                    Data::Alias(target) => Some(format!("{prefix}{target}")),
                    _ => None,
                },
                part,
                location,
                inputs: Vec::new(),
            };
            if self.by_name.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(corrupt("another shard of the model holds a tensor of the same name"));
            }
            self.tensors.push(tensor);
        }
        if let Some(spill) = spill {
            self.files.push(spill.finish(&path, io)?);
        }
        for (key, value) in index.metadata {
            // Of shards that disagree, the first one counts; they repeat each other in practice.
            self.metadata.entry(key).or_insert(value);
        }
        Ok(())
    }

    fn spill<'a>(spill: &'a mut Option<Spill>, path: &Path, index: &Index) -> Result<&'a mut Spill> {
        if spill.is_none() {
            *spill = Some(Spill::new(path, index)?);
        }
        // It was just made if there was none.
        spill.as_mut().ok_or_else(|| Error::model(path, "has no temporary file"))
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

    /// Whether a file of it holds several sets of tensors, of which [`OpenOptions::select`] selects one.
    #[must_use]
    pub fn has_sets(&self) -> bool {
        self.has_sets
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

    /// What was chosen where the files left a choice.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds to what was chosen.
    pub(crate) fn add_notes(&mut self, notes: impl IntoIterator<Item = String>) {
        self.notes.extend(notes);
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
        TensorView { tensor, checkpoint: self }
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
        fingerprint::of(&self.files[..self.files.len() - self.added])
    }
}

/// The last part of the path as it was given, or the whole for paths like `..`.
fn display_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
