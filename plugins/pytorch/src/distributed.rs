//! Distributed checkpoints: what `torch.distributed.checkpoint.save` writes into a folder.
//!
//! The file `.metadata` is a pickle that says for each tensor its type, its shape and the boxes it was cut into
//! (`chunks`), and for each box the file, the offset and the length of what was saved (`storage_data`). That is one
//! whole archive of `torch.save` at any byte of a file of many (`NAME.distcp`), indexed through a window on the file.
//! Python objects are saved in the same way and listed among the tensors.
//!
//! Source: torch 2.15, `torch/distributed/checkpoint/metadata.py` and `filesystem.py`.

use crate::archive;
use crate::dtype::from_torch;
use crate::flatten::MAX_NAME;
use crate::table::{MAX_SCALARS, scalar, subtrees};
use crate::tensor::{numbers, view};
use crate::value::{Id, Value, Values};
use ckptmerge_format::{
    DType, Data, Extent, Fault, FormatError, Index, Metadata, Piece, Pieces, Source, Subtree, TensorInfo,
};
use std::collections::{HashMap, HashSet};

/// The most chunks of a tensor: each is compared with its neighbours. One per process is usual.
const MAX_CHUNKS: usize = 1 << 14;
/// The most chunks of all tensors.
const MAX_ALL_CHUNKS: usize = 1 << 21;
/// The longest archive of a Python object that is looked at, in bytes. A number takes 1,300.
const MAX_OBJECT: u64 = 1 << 16;

/// The most attributes of an object, each of which may be looked for often. Torch's have five at most.
const MAX_ATTRIBUTES: usize = 64;
/// The longest name of a file, in bytes: what file systems allow.
const MAX_FILE_NAME: usize = 255;

/// Whether a pickle's root is a distributed checkpoint's metadata. Before torch 2.0 the module was a private one.
pub(crate) fn is_metadata(values: &Values, root: Id) -> bool {
    is_a(values, root, "Metadata")
}

/// Whether an object is of that class of torch's module for such metadata.
fn is_a(values: &Values, id: Id, class: &str) -> bool {
    let Some((_, Some(global), _)) = values.call(id) else { return false };
    global.name == class
        && global.module.starts_with("torch.distributed.")
        && global.module.ends_with("checkpoint.metadata")
}

/// An attribute of an object; none if it is not there, or `None`.
fn attribute(values: &Values, id: Id, name: &str) -> Option<Id> {
    let state = values.call(id)?.0.state?;
    let is_small = values.entries(state).is_some_and(|entries| entries.len() <= MAX_ATTRIBUTES);
    let value = if is_small { values.entry(state, name)? } else { return None };
    (!matches!(values.get(value), Value::None)).then_some(value)
}

/// A text that may be a tensor's name.
fn short_text(values: &Values, id: Id) -> Option<&str> {
    values.text(id).filter(|text| text.len() <= MAX_NAME)
}

/// A tensor, as the metadata describe it.
struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<u64>,
    elements: u64,
    /// Where its first box is: the number of the file and the offset in it.
    first: Option<(usize, u64)>,
    boxes: Vec<Piece>,
    big_endian: bool,
}

/// A box of a tensor.
struct Chunk {
    origin: Vec<u64>,
    shape: Vec<u64>,
}

/// Where something was saved.
#[derive(Clone, Copy)]
struct Place<'v> {
    file: &'v str,
    offset: u64,
    length: u64,
}

/// A chunk that is to be looked up in its file.
struct Task<'v> {
    place: Place<'v>,
    /// The tensor's number.
    tensor: usize,
    chunk: Chunk,
}

/// The table of a distributed checkpoint whose metadata are `root`.
pub(crate) fn index(source: &dyn Source, values: &Values, root: Id) -> Result<Index, FormatError> {
    let listed = attribute(values, root, "state_dict_metadata").and_then(|dict| values.entries(dict));
    let listed = listed.ok_or_else(|| FormatError::corrupt("the metadata have no list of tensors"))?;
    let places = Places::new(values, root)?;
    let paths = paths(values, root);

    let (mut tensors, mut tasks, mut objects) = (Vec::new(), Vec::new(), Vec::new());
    let mut seen = HashSet::with_capacity(listed.len());
    let mut left = MAX_ALL_CHUNKS;
    for (key, entry) in listed {
        let name = short_text(values, *key)
            .ok_or_else(|| FormatError::corrupt(format!("a tensor's name is no text of up to {MAX_NAME} bytes")))?;
        if !seen.insert(name) {
            return Err(FormatError::corrupt("the metadata list it twice").at(name));
        }
        if is_a(values, *entry, "BytesStorageMetadata") {
            objects.push(name);
            continue;
        }
        let mut read = || {
            let (tensor, chunks) = describe(values, *entry, name, &mut left)?;
            let tasks: Result<Vec<_>, FormatError> = chunks
                .into_iter()
                .map(|chunk| Ok(Task { place: places.of(name, &chunk.origin)?, tensor: tensors.len(), chunk }))
                .collect();
            Ok((tensor, tasks?))
        };
        let (tensor, mut own) = read().map_err(|error: FormatError| error.at(name))?;
        tensors.push(tensor);
        tasks.append(&mut own);
    }

    let subtrees = subtrees_of(&tensors, &paths);
    let (metadata, warnings) = texts(source, &places, &objects, &subtrees, &paths);
    let files = locate(source, &mut tensors, tasks)?;
    tensors.sort_by_key(|tensor| tensor.first);
    let tensors = tensors.into_iter().map(Tensor::row).collect();
    Ok(Index { tensors, metadata, files, subtrees, warnings })
}

/// A tensor, and its chunks that have elements, which together are all of it.
fn describe(values: &Values, id: Id, name: &str, left: &mut usize) -> Result<(Tensor, Vec<Chunk>), FormatError> {
    if !is_a(values, id, "TensorStorageMetadata") {
        return Err(FormatError::unsupported("it is neither a tensor nor a Python object"));
    }
    let state = attribute(values, id, "properties").and_then(|properties| values.call(properties)?.0.state);
    let dtype = state.and_then(|state| values.global(*values.sequence(state)?.first()?));
    let dtype = dtype.ok_or_else(|| FormatError::corrupt("its type is described in a way that torch never does"))?;
    let dtype = from_torch(&dtype.name)
        .filter(|_| dtype.module == "torch")
        .ok_or_else(|| FormatError::unsupported(format!("the type {dtype} is not supported")))?;
    let shape = attribute(values, id, "size").and_then(|size| numbers(values, size));
    let shape = shape.ok_or_else(|| FormatError::corrupt("its shape is no list of sizes"))?;
    let elements = shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
    let elements = elements
        .filter(|elements| dtype.size_of(*elements).is_some())
        .ok_or_else(|| FormatError::corrupt("its size overflows 64 bits"))?;

    let list = attribute(values, id, "chunks").and_then(|chunks| values.sequence(chunks));
    let list = list.ok_or_else(|| FormatError::corrupt("it has no list of chunks"))?;
    if list.len() > MAX_CHUNKS.min(*left) {
        let message = format!("it has {} chunks; {MAX_CHUNKS} are allowed, {MAX_ALL_CHUNKS} in all", list.len());
        return Err(FormatError::new(Fault::Limit, message));
    }
    *left -= list.len();
    let part = |chunk: Id, name| attribute(values, chunk, name).and_then(|part| numbers(values, part));
    let mut chunks = Vec::new();
    for chunk in list {
        let (Some(origin), Some(shape)) = (part(*chunk, "offsets"), part(*chunk, "sizes")) else {
            return Err(FormatError::corrupt("a chunk of it is described in a way that torch never does"));
        };
        // A process that got no rows may have saved its empty chunk.
        if elements > 0 && !shape.contains(&0) {
            chunks.push(Chunk { origin, shape });
        }
    }
    check_cover(&shape, elements, &mut chunks)?;
    let name = name.to_owned();
    Ok((Tensor { name, dtype, shape, elements, first: None, boxes: Vec::new(), big_endian: false }, chunks))
}

/// Checks that the chunks, which have elements each, cover a tensor exactly once.
fn check_cover(shape: &[u64], elements: u64, chunks: &mut [Chunk]) -> Result<(), FormatError> {
    let mut covered = 0u64;
    for chunk in &*chunks {
        if chunk.origin.len() != shape.len() || chunk.shape.len() != shape.len() {
            return Err(FormatError::corrupt("a chunk of it has another number of dimensions"));
        }
        let mut sides = chunk.origin.iter().zip(&chunk.shape).zip(shape);
        if !sides.all(|((start, n), size)| start.checked_add(*n).is_some_and(|end| end <= *size)) {
            return Err(FormatError::corrupt(format!("its chunk at {:?} reaches outside it", chunk.origin)));
        }
        // Inside the tensor, whose size is known not to overflow.
        covered = covered.saturating_add(chunk.shape.iter().product());
    }
    if covered != elements {
        return Err(FormatError::corrupt(format!("its chunks cover {covered} of its {elements} elements"))
            .hint("a checkpoint that was saved completely has all of them"));
    }
    chunks.sort_by(|a, b| a.origin.cmp(&b.origin));
    let apart = |a: &Chunk, b: &Chunk, i: usize| {
        a.origin[i] + a.shape[i] <= b.origin[i] || b.origin[i] + b.shape[i] <= a.origin[i]
    };
    for (number, chunk) in chunks.iter().enumerate() {
        // Those that begin behind its end in the first dimension are behind it for good.
        let near = chunks[number + 1..].iter().take_while(|other| !shape.is_empty() && !apart(chunk, other, 0));
        for other in near {
            if !(1..shape.len()).any(|i| apart(chunk, other, i)) {
                let (one, two) = (&chunk.origin, &other.origin);
                return Err(FormatError::corrupt(format!("its chunks at {one:?} and {two:?} overlap")));
            }
        }
    }
    Ok(())
}

/// Where everything was saved: by name and, for the chunk of a tensor, its origin.
struct Places<'v> {
    values: &'v Values,
    infos: HashMap<(&'v str, Option<Vec<u64>>), Id>,
}

impl<'v> Places<'v> {
    fn new(values: &'v Values, root: Id) -> Result<Self, FormatError> {
        let entries = attribute(values, root, "storage_data").and_then(|dict| values.entries(dict));
        let entries = entries.ok_or_else(|| FormatError::corrupt("the metadata do not say where its tensors are"))?;
        let mut infos = HashMap::with_capacity(entries.len());
        for (key, info) in entries {
            let Some(name) = attribute(values, *key, "fqn").and_then(|name| short_text(values, name)) else { continue };
            let origin = attribute(values, *key, "offset").and_then(|offset| numbers(values, offset));
            infos.insert((name, origin), *info);
        }
        Ok(Self { values, infos })
    }

    /// Where the chunk of a tensor is.
    fn of(&self, name: &'v str, origin: &[u64]) -> Result<Place<'v>, FormatError> {
        self.get(name, Some(origin.to_vec()))
            .unwrap_or_else(|| Err(FormatError::corrupt(format!("no file is said to hold its chunk at {origin:?}"))))
    }

    fn get(&self, name: &'v str, origin: Option<Vec<u64>>) -> Option<Result<Place<'v>, FormatError>> {
        self.infos.get(&(name, origin)).map(|info| self.place(*info))
    }

    fn place(&self, info: Id) -> Result<Place<'v>, FormatError> {
        let part = |name| attribute(self.values, info, name);
        let number = |name| part(name).and_then(|id| self.values.unsigned(id));
        let file = part("relative_path").and_then(|id| self.values.text(id));
        let (Some(file), Some(offset), Some(length)) = (file, number("offset"), number("length")) else {
            return Err(FormatError::corrupt("where it is stored is described in a way that torch never does"));
        };
        let is_plain = !file.is_empty() && file.len() <= MAX_FILE_NAME && !file.contains(['/', '\\', '\0']);
        if !is_plain || file == "." || file == ".." {
            let message = format!("it is said to be in {file:?}, which is no plain file name; not followed");
            return Err(FormatError::corrupt(message));
        }
        let transforms = part("transform_descriptors");
        if transforms.is_some_and(|list| self.values.sequence(list).is_none_or(|list| !list.is_empty())) {
            return Err(FormatError::unsupported("it is compressed or otherwise transformed by an extension")
                .hint("load it with torch and save it without extensions"));
        }
        Ok(Place { file, offset, length })
    }
}

/// What is saved at one place of a file.
struct Window<'a> {
    file: &'a dyn Source,
    offset: u64,
    length: u64,
}

impl<'a> Window<'a> {
    /// Checks that the place is in the file.
    fn new(file: &'a dyn Source, place: Place<'_>) -> Result<Self, FormatError> {
        let Place { file: name, offset, length } = place;
        if offset.checked_add(length).is_none_or(|end| end > file.len()) {
            let held = file.len();
            return Err(FormatError::corrupt(format!(
                "its {length} bytes at {offset} reach past the end of {name}, which has {held}: it is cut short"
            )));
        }
        Ok(Self { file, offset, length })
    }
}

impl Source for Window<'_> {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.length) {
            return Err(FormatError::new(Fault::Read, "read outside what was saved"));
        }
        self.file.read_at(self.offset + offset, buffer)
    }
}

/// The files beside the metadata, of which one is open at a time: a run of many processes leaves as many.
struct Files<'a> {
    source: &'a dyn Source,
    open: Option<(&'a str, Box<dyn Source>)>,
}

impl<'a> Files<'a> {
    fn get(&mut self, name: &'a str) -> Result<&dyn Source, FormatError> {
        let (_, file) = match self.open.take().filter(|(open, _)| *open == name) {
            Some(open) => self.open.insert(open),
            None => self.open.insert((name, self.source.sibling(name)?)),
        };
        Ok(&**file)
    }
}

/// Adds its boxes to each tensor; the names of the files they are in.
fn locate(source: &dyn Source, tensors: &mut [Tensor], mut tasks: Vec<Task<'_>>) -> Result<Vec<String>, FormatError> {
    tasks.sort_by(|a, b| (a.place.file, a.place.offset).cmp(&(b.place.file, b.place.offset)));
    let mut files = Files { source, open: None };
    let mut names: Vec<String> = Vec::new();
    let mut end = 0;
    for Task { place, tensor, chunk } in tasks {
        let tensor = &mut tensors[tensor];
        if names.last().is_none_or(|name| name != place.file) {
            names.push(place.file.to_owned());
            end = 0;
        }
        let piece = files.get(place.file).and_then(|file| {
            let window = Window::new(file, place)?;
            // Also what bounds the work: every archive has bytes of its own.
            if place.offset < end {
                return Err(FormatError::corrupt(format!("its bytes in {} overlap those of another", place.file)));
            }
            tensor.locate(&window, names.len(), chunk)
        });
        piece.map_err(|error| error.at(&tensor.name))?;
        end = place.offset + place.length;
    }
    Ok(names)
}

impl Tensor {
    /// Adds the box for a chunk, whose archive is `window` in file number `file`.
    fn locate(&mut self, window: &Window<'_>, file: usize, chunk: Chunk) -> Result<(), FormatError> {
        let archive = archive::open(window)?;
        let view = view(&archive.values, &archive.storages, archive.root)?;
        let Chunk { origin, shape } = chunk;
        if view.dtype != self.dtype {
            let message = format!("its chunk at {origin:?} holds {}, not {}", view.dtype, self.dtype);
            return Err(FormatError::corrupt(message));
        }
        if view.shape != shape {
            let message = format!("its chunk at {origin:?} has the shape {:?}, not {shape:?}", view.shape);
            return Err(FormatError::corrupt(message));
        }
        let big_endian = archive.storages.big_endian && self.dtype.block_bytes() > 1;
        if !self.boxes.is_empty() && self.big_endian != big_endian {
            return Err(FormatError::unsupported("its chunks differ in their byte order"));
        }
        self.big_endian = big_endian;
        // In the window, and so in the file.
        let offset = window.offset + view.start();
        self.first.get_or_insert((file, offset));
        self.boxes.push(Piece { file, offset, origin, shape, strides: view.strides });
        Ok(())
    }

    fn row(self) -> TensorInfo {
        let data = if self.elements == 0 {
            Data::Dense(Extent { offset: 0, length: 0 })
        } else {
            Data::Pieces(Pieces { grid: self.shape.clone(), boxes: self.boxes })
        };
        TensorInfo { name: self.name, dtype: self.dtype, shape: self.shape, data, big_endian: self.big_endian }
    }
}

/// The first component of the path of each name that has several, if the saved state was nested.
fn paths(values: &Values, root: Id) -> HashMap<&str, &str> {
    let entries = attribute(values, root, "planner_data").and_then(|dict| values.entries(dict)).unwrap_or_default();
    let first = |(name, path): &(Id, Id)| {
        let name = short_text(values, *name)?;
        let [first, _, ..] = values.sequence(*path)? else { return None };
        let first = values.text(*first)?;
        name.strip_prefix(first)?.starts_with('.').then_some((name, first))
    };
    entries.iter().filter_map(first).collect()
}

/// The parts of a training checkpoint that hold tensors.
fn subtrees_of(tensors: &[Tensor], paths: &HashMap<&str, &str>) -> Vec<Subtree> {
    let mut seen = HashSet::new();
    let firsts = tensors.iter().filter_map(|tensor| paths.get(tensor.name.as_str()));
    let names = firsts.filter(|first| seen.insert(**first)).map(|first| (*first).to_owned()).collect();
    subtrees(names, tensors.iter().all(|tensor| paths.contains_key(tensor.name.as_str())))
}

/// Text and numbers that were saved by themselves, such as the epoch, and a warning of other objects, unless they are
/// of a part that is not taken anyway.
fn texts<'v>(
    source: &dyn Source,
    places: &Places<'v>,
    objects: &[&'v str],
    subtrees: &[Subtree],
    paths: &HashMap<&'v str, &'v str>,
) -> (Metadata, Vec<String>) {
    let mut files = Files { source, open: None };
    let mut metadata = Metadata::new();
    let mut lost: Vec<&str> = Vec::new();
    let mut tried = 0;
    for name in objects {
        let part = paths.get(name);
        let mut read = || {
            let place = places.get(name, None)?.ok()?;
            if part.is_some() || place.length > MAX_OBJECT || tried == MAX_SCALARS {
                return None;
            }
            tried += 1;
            let window = Window::new(files.get(place.file).ok()?, place).ok()?;
            let archive = archive::open(&window).ok()?;
            scalar(&archive.values, archive.root)
        };
        match read() {
            Some(text) => drop(metadata.insert((*name).to_owned(), text)),
            None => {
                let of_other = |subtree: &Subtree| !subtree.is_default && Some(&subtree.name.as_str()) == part;
                if !subtrees.iter().any(of_other) {
                    lost.push(name);
                }
            }
        }
    }
    let warning = lost.first().map(|first| {
        let count = lost.len();
        format!("{count} Python objects are left out, the first of them `{first}`: only tensors are read")
    });
    (metadata, warning.into_iter().collect())
}
