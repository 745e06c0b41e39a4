//! The header, read with every length checked before anything is made of it.

use crate::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMENSIONS, MAX_HEADER, types, value};
use ckptmerge_format::{Data, Extent, Fault, FormatError, Index, Kind, Metadata, Source, TensorInfo};
use std::collections::HashSet;

/// The fewest bytes of a tensor's entry: name's length, number of dimensions, type and offset.
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;
/// The fewest bytes of a key and its value: key's length, type, and one byte.
const MIN_PAIR: u64 = 8 + 4 + 1;
/// Bytes that are fetched from the file at once.
const WINDOW: usize = 1 << 16;
/// How much of a name that is no text is shown, in bytes.
const SHOWN: usize = 64;

/// Reads numbers and strings from front to back.
pub(crate) struct Cursor<'a> {
    source: &'a dyn Source,
    /// Bytes of the file that end at `fetched`; those from `used` on are still to be read.
    window: Vec<u8>,
    used: usize,
    fetched: u64,
    big_endian: bool,
}

impl<'a> Cursor<'a> {
    fn new(source: &'a dyn Source) -> Self {
        Self { source, window: Vec::new(), used: 0, fetched: 0, big_endian: false }
    }

    /// Where the next byte is.
    fn position(&self) -> u64 {
        self.fetched - (self.window.len() - self.used) as u64
    }

    /// Fails unless the file, and the longest header, have so many more bytes.
    pub(crate) fn need(&self, bytes: u64, what: impl Fn() -> String) -> Result<(), FormatError> {
        let (at, len) = (self.position(), self.source.len());
        if bytes > len - at {
            let message = format!("the file ends inside its header: {} from byte {at} on is cut short", what());
            return Err(FormatError::corrupt(message).hint("download or copy it again"));
        }
        if at + bytes > MAX_HEADER {
            let message = format!("the header is longer than {MAX_HEADER} bytes: {} at byte {at}", what());
            return Err(FormatError::new(Fault::Limit, message));
        }
        Ok(())
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<(), FormatError> {
        while !out.is_empty() {
            if self.used == self.window.len() {
                let left = usize::try_from(self.source.len() - self.fetched).unwrap_or(usize::MAX);
                self.window.resize(left.min(WINDOW), 0);
                self.source.read_at(self.fetched, &mut self.window)?;
                self.fetched += self.window.len() as u64;
                self.used = 0;
            }
            let count = out.len().min(self.window.len() - self.used);
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(&self.window[self.used..][..count]);
            self.used += count;
            out = later;
        }
        Ok(())
    }

    /// The next bytes, turned around in a big-endian file so that they are little-endian.
    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        self.need(N as u64, || "a number".to_owned())?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        if self.big_endian {
            bytes.reverse();
        }
        Ok(bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.take().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }

    /// A length and as many bytes.
    pub(crate) fn string(&mut self) -> Result<Vec<u8>, FormatError> {
        let length = self.u64()?;
        self.need(length, || format!("a string of {length} bytes"))?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn name(&mut self, what: &str) -> Result<String, FormatError> {
        String::from_utf8(self.string()?).map_err(|error| {
            // A name can be as long as the header.
            let bytes = error.as_bytes();
            let shown = bytes.get(..SHOWN).unwrap_or(bytes).escape_ascii();
            FormatError::corrupt(format!("a {what} of {} bytes is not UTF-8: `{shown}`", bytes.len()))
        })
    }
}

/// A tensor as its entry in the header has it.
struct Entry {
    info: TensorInfo,
    /// Where its bytes are, relative to the data.
    offset: u64,
    bytes: u64,
}

pub(crate) fn index(source: &dyn Source) -> Result<Index, FormatError> {
    let mut cursor = Cursor::new(source);
    if cursor.take::<4>()? != MAGIC {
        return Err(FormatError::corrupt("the file does not begin with `GGUF`"));
    }
    version(&mut cursor)?;
    let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
    let least = tensors.checked_mul(MIN_TENSOR).zip(pairs.checked_mul(MIN_PAIR)).and_then(|(a, b)| a.checked_add(b));
    cursor.need(least.unwrap_or(u64::MAX), || format!("a table of {tensors} tensors and {pairs} keys"))?;

    let mut metadata = Metadata::new();
    for _ in 0..pairs {
        let key = cursor.name("key")?;
        let text = value::read(&mut cursor).map_err(|error| at_key(error, &key))?;
        if metadata.contains_key(&key) {
            return Err(FormatError::corrupt(format!("the key `{key}` stands twice in the header")));
        }
        metadata.insert(key, text);
    }
    let alignment = alignment(&metadata)?;

    let mut entries = Vec::new();
    for _ in 0..tensors {
        entries.push(entry(&mut cursor)?);
    }
    let mut seen = HashSet::with_capacity(entries.len());
    if let Some(twice) = entries.iter().find(|entry| !seen.insert(entry.info.name.as_str())) {
        return Err(FormatError::corrupt("the name stands twice in the header").at(&twice.info.name));
    }
    let start = cursor.position().next_multiple_of(alignment);
    place(&mut entries, start, alignment, source.len())?;
    let tensors = entries.into_iter().map(|entry| entry.info).collect();
    Ok(Index { tensors, metadata, ..Index::default() })
}

fn at_key(mut error: FormatError, key: &str) -> FormatError {
    error.message = format!("key `{key}`: {}", error.message);
    error
}

/// Reads the version, which also says in what order the bytes of numbers are.
fn version(cursor: &mut Cursor<'_>) -> Result<(), FormatError> {
    let mut version = cursor.u32()?;
    if version.trailing_zeros() >= 16 {
        version = version.swap_bytes();
        cursor.big_endian = true;
    }
    match version {
        2 | 3 => Ok(()),
        1 => Err(FormatError::unsupported("version 1 of GGUF, which was in use for three weeks of August 2023")
            .hint("convert the model anew with a current llama.cpp")),
        _ => Err(FormatError::unsupported(format!("version {version} of GGUF; this reader knows 2 and 3"))),
    }
}

/// What the starts of tensors are multiples of.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u64, FormatError> {
    let Some(text) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let alignment = text.strip_prefix("gguf:u32:").and_then(|digits| digits.parse::<u64>().ok());
    alignment.filter(|n| n.is_power_of_two() && *n <= 1 << 20).ok_or_else(|| {
        let rule = "a u32 that is a power of two of at most 1048576";
        FormatError::corrupt(format!("key `{ALIGNMENT_KEY}`: `{text:.40}` is not {rule}"))
    })
}

fn entry(cursor: &mut Cursor<'_>) -> Result<Entry, FormatError> {
    let name = cursor.name("tensor's name")?;
    let dimensions = cursor.u32()?;
    if dimensions > MAX_DIMENSIONS {
        let message = format!("it has {dimensions} dimensions; GGUF allows {MAX_DIMENSIONS}");
        return Err(FormatError::new(Fault::Limit, message).at(name));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        shape.push(cursor.u64()?);
    }
    shape.reverse();
    let dtype = types::dtype(cursor.u32()?).map_err(|error| error.at(&name))?;
    let offset = cursor.u64()?;
    let big_endian = cursor.big_endian;
    if big_endian && dtype.kind() == Kind::Quantized {
        let message = format!("its type is {dtype}, whose blocks are only read in little-endian order");
        return Err(FormatError::unsupported(message)
            .at(name)
            .hint("convert the file with gguf-py's gguf_convert_endian.py"));
    }
    let mut info = TensorInfo::new(name, dtype, shape, Data::Dense(Extent { offset: 0, length: 0 }));
    info.big_endian = big_endian;
    let bytes = size(&info).map_err(|error| error.at(&info.name))?;
    Ok(Entry { info, offset, bytes })
}

/// The bytes of a tensor, whose rows are whole blocks.
fn size(info: &TensorInfo) -> Result<u64, FormatError> {
    let (dtype, shape) = (info.dtype, &info.shape);
    let block = dtype.block_elements();
    if !shape.last().unwrap_or(&1).is_multiple_of(block) {
        return Err(FormatError::corrupt(format!("rows of shape {shape:?} are not whole blocks of {block} {dtype}")));
    }
    info.elements()
        .and_then(|elements| dtype.size_of(elements))
        .ok_or_else(|| FormatError::corrupt(format!("the size of shape {shape:?} overflows 64 bits")))
}

/// Sorts the tensors by where they are, and says where in a file of `length` bytes that is.
fn place(entries: &mut [Entry], start: u64, alignment: u64, length: u64) -> Result<(), FormatError> {
    entries.sort_by_key(|entry| entry.offset);
    let mut end = 0;
    for entry in entries {
        let Entry { info, offset, bytes } = entry;
        let wrong = |message: String| FormatError::corrupt(message).at(&info.name);
        if !offset.is_multiple_of(alignment) {
            return Err(wrong(format!("its data is at byte {offset}, which is no multiple of {alignment}")));
        }
        if *offset < end {
            return Err(wrong(format!("its data at byte {offset} overlaps the tensor before it, which ends at {end}")));
        }
        let stop = offset.checked_add(*bytes).and_then(|stop| stop.checked_add(start));
        if stop.is_none_or(|stop| stop > length) {
            let message =
                format!("its {bytes} bytes at byte {offset} of the data are not in the file: it is cut short");
            return Err(wrong(message).hint("download or copy it again"));
        }
        end = *offset + *bytes;
        info.data = Data::Dense(Extent { offset: start + *offset, length: *bytes });
    }
    Ok(())
}
