//! The zip layout, since torch 1.6: `NAME/data.pkl` and one stored entry `NAME/data/KEY` for each storage.
//!
//! TorchScript archives have the same entries and code next to them, which is not looked at. Sizes and places come from
//! the central directory; entries that are compressed, encrypted, outside the file or on top of each other are refused.

use crate::deepspeed;
use crate::input::Input;
use crate::machine::unpickle;
use crate::table::table;
use crate::tensor::Storages;
use crate::value::{Id, Values};
use ckptmerge_format::{
    Extent, Fault, FormatError, Index, Metadata, Source, ZipReader, check_zip_header, zip_directory,
};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::BufReader;
use std::rc::Rc;
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// The longest pickle that is read, in bytes. A thousand tensors take 0.1 MB.
pub(crate) const MAX_PICKLE: u64 = 512 << 20;
/// The longest of our own metadata, in bytes.
const MAX_METADATA: u64 = 100_000_000;
/// Bytes that are summed at once.
const BLOCK: u64 = 1 << 16;
/// The entry that holds metadata, which torch has no place for; torch ignores entries that it does not know.
pub(crate) const METADATA: &str = "ckptmerge_metadata.json";

/// An entry of the archive.
struct Entry {
    name: String,
    /// The name's bytes.
    raw: Box<[u8]>,
    /// Where its local header is.
    header: u64,
    extent: Extent,
    /// The sum of its bytes; 0 where torch was told to leave it out.
    crc32: u32,
    /// Why its bytes cannot be used as they are.
    unusable: Option<String>,
}

/// What one call of `torch.save` wrote.
pub(crate) struct Archive {
    pub(crate) values: Values,
    pub(crate) root: Id,
    pub(crate) storages: Storages,
    /// Where our own metadata is.
    metadata: Option<Extent>,
}

impl Archive {
    /// What an old layout holds.
    pub(crate) fn new(values: Values, root: Id, storages: Storages) -> Self {
        Self { values, root, storages, metadata: None }
    }

    /// The table of what was saved, and of what was saved beside it if that is one model.
    pub(crate) fn table(&self, source: &dyn Source) -> Result<Index, FormatError> {
        let Self { values, root, storages, .. } = self;
        if deepspeed::is_rank(values, *root) {
            deepspeed::index(source, self)
        } else if deepspeed::is_model(values, *root) {
            deepspeed::model(values, storages, *root)
        } else {
            table(values, storages, *root)
        }
    }
}

/// The table of a zip archive.
pub(crate) fn index(source: &dyn Source) -> Result<Index, FormatError> {
    let archive = open(source)?;
    let mut index = archive.table(source)?;
    if let Some(extent) = archive.metadata {
        let json = read(source, extent, MAX_METADATA)?;
        let own: Metadata = serde_json::from_slice(&json)
            .map_err(|error| FormatError::corrupt(format!("`{METADATA}` is not text pairs in JSON: {error}")))?;
        index.metadata.extend(own);
    }
    Ok(index)
}

/// Runs the pickle of a zip archive and finds its storages.
pub(crate) fn open(source: &dyn Source) -> Result<Archive, FormatError> {
    let entries = entries(source)?;
    let mut pickles = entries.iter().filter_map(|entry| {
        let folder = entry.name.strip_suffix("/data.pkl")?;
        (!folder.contains('/')).then_some(folder)
    });
    let folder = pickles.next().ok_or_else(|| {
        FormatError::unsupported("a zip archive without `data.pkl`, which is no checkpoint that torch.save writes")
    })?;
    if pickles.next().is_some() {
        return Err(FormatError::corrupt("the archive holds more than one `data.pkl`"));
    }
    let prefix = format!("{folder}/");
    let named: HashMap<&str, &Entry> =
        entries.iter().filter_map(|entry| Some((entry.name.strip_prefix(&prefix)?, entry))).collect();
    let usable = |name: &str| {
        named.get(name).map(|entry| match &entry.unusable {
            None => Ok(entry.extent),
            Some(reason) => Err(FormatError::unsupported(format!("the entry `{}` {reason}", entry.name))),
        })
    };

    let mut storages = Storages::default();
    for entry in &entries {
        let name = entry.name.strip_prefix(&prefix).unwrap_or_default();
        if let (Some(key), Some(extent)) = (name.strip_prefix("data/"), usable(name)) {
            storages.extents.insert(key.into(), extent?);
        }
    }
    if let Some(extent) = usable("byteorder") {
        storages.big_endian = match read(source, extent?, 16)?.trim_ascii() {
            b"little" => false,
            b"big" => true,
            other => {
                let order = String::from_utf8_lossy(other);
                return Err(FormatError::unsupported(format!("the byte order {order:?} is not known")));
            }
        };
    }
    let pickle = usable("data.pkl").ok_or_else(|| FormatError::corrupt("`data.pkl` is gone"))??;
    if pickle.length > MAX_PICKLE {
        let message = format!("`data.pkl` has {} bytes; {MAX_PICKLE} are allowed", pickle.length);
        return Err(FormatError::new(Fault::Limit, message));
    }
    let sum = named.get("data.pkl").map_or(0, |entry| entry.crc32);
    if sum != 0 && sum != crc32(source, pickle)? {
        return Err(FormatError::corrupt("`data.pkl` is damaged: it has another CRC-32 than the archive says"));
    }
    let (values, root) = unpickle(&mut Input::new(source, pickle.offset, pickle.offset + pickle.length))?;
    let metadata = usable(METADATA).transpose()?;
    Ok(Archive { values, root, storages, metadata })
}

/// All entries, in the order of their bytes.
fn entries(source: &dyn Source) -> Result<Vec<Entry>, FormatError> {
    // torch's archives begin with the file. Looking for their beginning goes wrong (zip 9.8.1) where the first entry's
    // name has 30 bytes: its central header is then as long as the zip64 records that torch writes without need.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let several = "if it is a data file of a distributed checkpoint, name its folder instead";
    let directory = zip_directory(source).map_err(|error| match error.fault {
        Fault::Unsupported => error.hint(several),
        _ => error,
    })?;
    let floor = Rc::new(Cell::new(directory));
    let reader = BufReader::new(ZipReader::new(source, Rc::clone(&floor)));
    let mut archive = ZipArchive::with_config(config, reader).map_err(zip_error)?;
    floor.set(0);
    if archive.has_duplicate_names() {
        return Err(FormatError::corrupt("two entries of the archive have the same name"));
    }
    let mut entries = Vec::with_capacity(archive.len());
    for number in 0..archive.len() {
        let entry = archive.by_index_raw(number).map_err(zip_error)?;
        let name = entry.name().map_err(zip_error)?.into_owned();
        let length = entry.compressed_size();
        let offset = entry.data_start().ok_or_else(|| FormatError::corrupt(format!("`{name}` has no data")))?;
        if offset.checked_add(length).is_none_or(|end| end > source.len()) {
            return Err(FormatError::corrupt(format!("`{name}` ends behind the end of the file: it is cut short")));
        }
        if offset + length > directory {
            return Err(FormatError::corrupt(format!("`{name}` reaches into the archive's directory")));
        }
        let unusable = if entry.encrypted() {
            Some("is encrypted".to_owned())
        } else if entry.compression() != CompressionMethod::Stored {
            Some("is compressed, which torch.save never does".to_owned())
        } else if entry.size() != length {
            Some(format!("is said to hold {} bytes in {length}", entry.size()))
        } else {
            None
        };
        let (header, crc32, raw) = (entry.header_start(), entry.crc32(), entry.name_raw().into());
        entries.push(Entry { name, raw, header, extent: Extent { offset, length }, crc32, unusable });
    }
    entries.sort_by_key(|entry| entry.header);
    for pair in entries.windows(2) {
        let [before, after] = pair else { continue };
        if before.extent.offset + before.extent.length > after.header {
            let message = format!("the entries `{}` and `{}` overlap", before.name, after.name);
            return Err(FormatError::corrupt(message));
        }
    }
    for Entry { raw, header, extent, .. } in &entries {
        check_zip_header(source, *header, raw, extent.length)?;
    }
    Ok(entries)
}

/// All bytes of an entry of at most `limit` bytes.
fn read(source: &dyn Source, extent: Extent, limit: u64) -> Result<Vec<u8>, FormatError> {
    if extent.length > limit {
        let message = format!("an entry has {} bytes; {limit} are allowed", extent.length);
        return Err(FormatError::new(Fault::Limit, message));
    }
    let mut bytes = vec![0; extent.length as usize];
    source.read_at(extent.offset, &mut bytes)?;
    Ok(bytes)
}

/// The sum of an entry's bytes.
fn crc32(source: &dyn Source, extent: Extent) -> Result<u32, FormatError> {
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0; extent.length.min(BLOCK) as usize];
    let end = extent.offset + extent.length;
    let mut position = extent.offset;
    while position < end {
        let bytes = &mut block[..(end - position).min(BLOCK) as usize];
        source.read_at(position, bytes)?;
        hasher.update(bytes);
        position += bytes.len() as u64;
    }
    Ok(hasher.finalize())
}

fn zip_error(error: ZipError) -> FormatError {
    let message = format!("the zip archive is damaged or cut short: {error}");
    match error {
        ZipError::Io(error) => match error.downcast::<FormatError>() {
            Ok(error) => error,
            Err(_) => FormatError::corrupt(message),
        },
        _ => FormatError::corrupt(message),
    }
}
