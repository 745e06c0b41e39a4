//! The layout before torch 1.6, and since then of `_use_new_zipfile_serialization=False`: five pickles, then storages.
//!
//! The pickles are a magic number, the version 1001, facts about the writing machine, the object, and the sorted keys
//! of the storages. For each key follow the number of elements, in 64 bits, and the elements: both little-endian on
//! every machine, whatever the facts say.
//!
//! The main file of a distributed checkpoint is a single pickle, and handed on (`distributed`).

use crate::archive::{Archive, MAX_PICKLE};
use crate::distributed;
use crate::input::Input;
use crate::machine::unpickle;
use crate::tensor::Storages;
use crate::value::{Id, Value, Values};
use ckptmerge_format::{DType, Extent, FormatError, Index, Source};
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The number that such a file begins with.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// The only version there is.
const VERSION: i128 = 1001;

/// The magic number as it stands in the file, behind the opcodes that begin a pickle.
pub(crate) const MAGIC_BYTES: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The table of a file in this layout.
pub(crate) fn index(source: &dyn Source) -> Result<Index, FormatError> {
    let mut input = Input::new(source, 0, MAX_PICKLE);
    let (values, root) = unpickle(&mut input)?;
    if distributed::is_metadata(&values, root) {
        return distributed::index(source, &values, root);
    }
    open_behind(source, input, &values, root)?.table(source)
}

/// What one call of `torch.save` wrote in this layout.
pub(crate) fn open(source: &dyn Source) -> Result<Archive, FormatError> {
    let mut input = Input::new(source, 0, MAX_PICKLE);
    let (values, root) = unpickle(&mut input)?;
    open_behind(source, input, &values, root)
}

/// As [`open`], behind the first pickle, which is to be the magic number.
fn open_behind(source: &dyn Source, mut input: Input<'_>, values: &Values, root: Id) -> Result<Archive, FormatError> {
    let number = |values: &Values, root| match values.get(root) {
        Value::Int(int) => Some(*int),
        _ => None,
    };
    if number(values, root) != Some(MAGIC) {
        return Err(FormatError::unsupported("a Python pickle that torch.save did not write")
            .hint("load it where it was made and save its tensors with torch.save or safetensors"));
    }
    let (values, root) = unpickle(&mut input)?;
    if number(&values, root) != Some(VERSION) {
        return Err(FormatError::unsupported(format!("a version of torch's old layout other than {VERSION}")));
    }
    unpickle(&mut input)?;
    let (values, root) = unpickle(&mut input)?;
    let (keys, list) = unpickle(&mut input)?;
    let keys = keys.sequence(list).and_then(|list| list.iter().map(|key| keys.key(*key)).collect::<Option<Vec<_>>>());
    let keys = keys.ok_or_else(|| FormatError::corrupt("the file has no list of its storages' keys"))?;

    let claims = claims(&values)?;
    let mut storages = Storages::default();
    let mut position = input.position();
    for key in keys {
        let short = || FormatError::corrupt(format!("the file ends before or in storage `{key}`: it is cut short"));
        let dtype = claims.get(&*key).copied().unwrap_or(DType::U8);
        let offset = position.checked_add(8).filter(|offset| *offset <= source.len()).ok_or_else(short)?;
        let mut elements = [0; 8];
        source.read_at(position, &mut elements)?;
        let length = dtype.size_of(u64::from_le_bytes(elements)).ok_or_else(short)?;
        position = offset.checked_add(length).filter(|end| *end <= source.len()).ok_or_else(short)?;
        if storages.extents.insert((&*key).into(), Extent { offset, length }).is_some() {
            return Err(FormatError::corrupt(format!("storage `{key}` stands twice in the list of storages")));
        }
    }
    Ok(Archive::new(values, root, storages))
}

/// The element type of each storage that the object mentions. The size of an unknown one would be unknown.
fn claims(values: &Values) -> Result<HashMap<Cow<'_, str>, DType>, FormatError> {
    let mut claims = HashMap::new();
    for (_, value) in values.iter() {
        let Value::Persistent(id) = value else { continue };
        let Some((key, dtype, _)) = Storages::claim(values, *id)? else { continue };
        match claims.entry(key) {
            Entry::Vacant(entry) => drop(entry.insert(dtype)),
            Entry::Occupied(entry) if *entry.get() == dtype => {}
            Entry::Occupied(entry) => {
                return Err(FormatError::corrupt(format!("storage `{}` has two types", entry.key())));
            }
        }
    }
    Ok(claims)
}
