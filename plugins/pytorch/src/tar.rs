//! The layout before torch 0.1.10: a tar archive of `sys_info`, `pickle`, `tensors` and `storages`.
//!
//! `storages` is the pickled number of storages; for each a pickled `(key, location, class)`, the number of elements in
//! 64 bits, and the elements; then a pickled list of parts of storages, `(key, whole, first element, elements)`.
//! `tensors` is the pickled number of tensors; for each a pickled `(key, storage, class)`, the number of dimensions in
//! 32 bits, 32 bits of nothing, sizes, strides and offset in 64 bits each. The object refers to both by key.
//! Source: `legacy_load` in torch 2.15's `torch/serialization.py`.

use crate::archive::MAX_PICKLE;
use crate::dtype::from_storage;
use crate::input::Input;
use crate::machine::unpickle;
use crate::table::table;
use crate::tensor::{MAX_DIMENSIONS, Storage, Storages, View};
use ckptmerge_format::{Extent, FormatError, Index, Source};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

/// The unit of a tar archive, in bytes.
const BLOCK: u64 = 512;
/// More entries than torch's four and what tar itself adds to them.
const MAX_ENTRIES: usize = 64;
/// What the first entry may be called; the second is tar's own, for times with fractions.
const NAMES: [&[u8]; 5] = [b"sys_info\0", b"././@PaxHeader\0", b"storages\0", b"tensors\0", b"pickle\0"];

/// Whether a tar archive begins here whose first entry could be torch's.
pub(crate) fn is_tar(head: &[u8]) -> bool {
    NAMES.iter().any(|name| head.starts_with(name))
}

/// The table of a file in this layout.
pub(crate) fn index(source: &dyn Source) -> Result<Index, FormatError> {
    let entries = entries(source)?;
    let entry = |name: &str, limit: u64| {
        let extent = entries.get(name).ok_or_else(|| {
            FormatError::unsupported(format!("a tar archive without the entry `{name}`, which torch never wrote"))
        })?;
        Ok::<_, FormatError>(Input::new(source, extent.offset, extent.offset + extent.length.min(limit)))
    };
    let mut storages = Storages::default();
    let held = read_storages(&mut entry("storages", u64::MAX)?)?;
    storages.tensors = read_tensors(&mut entry("tensors", MAX_PICKLE)?, &held)?;
    let (values, root) = unpickle(&mut entry("pickle", MAX_PICKLE)?)?;
    table(&values, &storages, root)
}

/// Where the entries' bytes are, by name.
fn entries(source: &dyn Source) -> Result<HashMap<String, Extent>, FormatError> {
    let mut entries = HashMap::new();
    let mut position = 0u64;
    while position.checked_add(BLOCK).is_some_and(|end| end <= source.len()) && entries.len() < MAX_ENTRIES {
        let mut header = [0; BLOCK as usize];
        source.read_at(position, &mut header)?;
        let text = |from: usize, to: usize| {
            let field = &header[from..to];
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            String::from_utf8_lossy(&field[..end]).into_owned()
        };
        let (name, size) = (text(0, 100), text(124, 136));
        if name.is_empty() {
            break;
        }
        let length = u64::from_str_radix(size.trim(), 8)
            .map_err(|_| FormatError::corrupt(format!("the size of the tar archive's `{name}` is no number")))?;
        let offset = position + BLOCK;
        let end = offset.checked_add(length).filter(|end| *end <= source.len());
        let end = end.ok_or_else(|| FormatError::corrupt(format!("the tar archive's `{name}` is cut short")))?;
        let is_torch = ["sys_info", "storages", "tensors", "pickle"].contains(&name.as_str());
        let message = format!("the tar archive has two entries `{name}`");
        if entries.insert(name, Extent { offset, length }).is_some() && is_torch {
            return Err(FormatError::corrupt(message));
        }
        position = end.next_multiple_of(BLOCK);
    }
    Ok(entries)
}

/// The storages and their parts, by key.
fn read_storages(input: &mut Input<'_>) -> Result<HashMap<Rc<str>, Storage>, FormatError> {
    let malformed = || FormatError::corrupt("a storage is described in a way that torch never did");
    let mut storages: HashMap<Rc<str>, Storage> = HashMap::new();
    for _ in 0..count(input)? {
        let (values, root) = unpickle(input)?;
        let Some([key, _location, class]) = values.sequence(root) else { return Err(malformed()) };
        let (key, class) = (values.key(*key).ok_or_else(malformed)?, values.global(*class).ok_or_else(malformed)?);
        let dtype = from_storage(&class.name)
            .ok_or_else(|| FormatError::unsupported(format!("storages of {class} are not supported")))?;
        let length = dtype.size_of(u64::from_le_bytes(input.array()?)).ok_or_else(malformed)?;
        let key: Rc<str> = key.into();
        let storage = Storage { key: Rc::clone(&key), dtype, offset: input.position(), length };
        insert(&mut storages, key, storage)?;
        input.skip(length)?;
    }
    let (values, root) = unpickle(input)?;
    for part in values.sequence(root).ok_or_else(malformed)? {
        let Some([key, whole, first, elements]) = values.sequence(*part) else { return Err(malformed()) };
        let whole = values.key(*whole).and_then(|whole| storages.get(&*whole)).ok_or_else(malformed)?;
        let bytes = |id| values.unsigned(id).and_then(|elements| whole.dtype.size_of(elements));
        let (first, length) = bytes(*first).zip(bytes(*elements)).ok_or_else(malformed)?;
        if first.checked_add(length).is_none_or(|end| end > whole.length) {
            return Err(FormatError::corrupt(format!("a part of storage `{}` is not in it", whole.key)));
        }
        let key: Rc<str> = values.key(*key).ok_or_else(malformed)?.into();
        let part = Storage { key: Rc::clone(&key), dtype: whole.dtype, offset: whole.offset + first, length };
        insert(&mut storages, key, part)?;
    }
    Ok(storages)
}

/// The tensors, by key.
fn read_tensors(
    input: &mut Input<'_>,
    storages: &HashMap<Rc<str>, Storage>,
) -> Result<HashMap<String, View>, FormatError> {
    let malformed = || FormatError::corrupt("a tensor is described in a way that torch never did");
    let mut tensors = HashMap::new();
    for _ in 0..count(input)? {
        let (values, root) = unpickle(input)?;
        let Some([key, storage, _class]) = values.sequence(root) else { return Err(malformed()) };
        let key = values.key(*key).ok_or_else(malformed)?;
        let storage = values.key(*storage).and_then(|storage| storages.get(&*storage)).ok_or_else(malformed)?.clone();
        let dimensions = u64::from(u32::from_le_bytes(input.array()?));
        if dimensions > MAX_DIMENSIONS as u64 {
            let message = format!("it has {dimensions} dimensions; {MAX_DIMENSIONS} are allowed");
            return Err(FormatError::corrupt(message).at(format!("number {key}")));
        }
        input.skip(4)?;
        let mut number = || Ok::<_, FormatError>(u64::from_le_bytes(input.array()?));
        let mut numbers = || (0..dimensions).map(|_| number()).collect::<Result<Vec<_>, _>>();
        let (shape, strides) = (numbers()?, numbers()?);
        let offset = u64::from_le_bytes(input.array()?);
        let view = View { dtype: storage.dtype, storage, offset, shape, strides };
        view.check().map_err(|error| error.at(format!("number {key}")))?;
        if tensors.insert(key.to_string(), view).is_some() {
            return Err(FormatError::corrupt(format!("tensor number {key} stands twice in the archive")));
        }
    }
    Ok(tensors)
}

/// Adds a storage under a key that no other has.
fn insert(storages: &mut HashMap<Rc<str>, Storage>, key: Rc<str>, storage: Storage) -> Result<(), FormatError> {
    match storages.entry(key) {
        Entry::Vacant(entry) => drop(entry.insert(storage)),
        Entry::Occupied(entry) => {
            return Err(FormatError::corrupt(format!("storage `{}` stands twice in the archive", entry.key())));
        }
    }
    Ok(())
}

/// A pickled number of things.
fn count(input: &mut Input<'_>) -> Result<u64, FormatError> {
    let (values, root) = unpickle(input)?;
    values.unsigned(root).ok_or_else(|| FormatError::corrupt("the number of storages or tensors is no number"))
}
