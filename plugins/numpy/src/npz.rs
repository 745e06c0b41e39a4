//! `.npz`: a zip archive in which each member `NAME.npy` is the tensor `NAME`.
//!
//! Metadata, for which NumPy has no place, is a last array `__metadata__` of bytes: a JSON object of text. To `numpy.load`
//! it is one more array, so that loops over all of them go on. Read is also a member `__metadata__.json`, as the first
//! versions wrote it.

use crate::element;
use crate::header::{self, Header, read_error};
use crate::layout::{Layout, Member};
use ckptmerge_format::{
    DType, Data, Extent, Fault, Format, FormatError, Index, Metadata, Reader, Segment, Source, TensorInfo, TensorSpec,
    WritePlan, ZipReader, check_zip_header, zip_directory,
};
use flate2::read::DeflateDecoder;
use std::cell::Cell;
use std::collections::HashSet;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;
use zip::CompressionMethod;
use zip::read::{ArchiveOffset, Config, ZipArchive, ZipFile};
use zip::result::ZipError;

/// What the name of a member that is an array ends with.
const ENDING: &str = ".npy";
/// The array that holds metadata, its member, and the member that once held it.
const METADATA: &str = "__metadata__";
const METADATA_MEMBER: &str = "__metadata__.npy";
const OLD_METADATA: &str = "__metadata__.json";
/// The most metadata that is read, in bytes: as much as a safetensors header may take.
const MAX_METADATA: u64 = 100_000_000;
/// The most that is unpacked of it, for each byte in the archive, and besides. This project's writer compresses nothing.
const MAX_METADATA_RATIO: u64 = 16;
const MORE_METADATA: u64 = 1 << 20;
/// A byte of deflated data stands for at most this many: runs of 258 bytes take two bits.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// The `.npz` format, as `numpy.savez` and `numpy.savez_compressed` write it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Npz;

impl Format for Npz {
    fn id(&self) -> &'static str {
        "npz"
    }

    fn about(&self) -> &'static str {
        "NumPy archive: named arrays, as numpy.savez and numpy.savez_compressed write them"
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["npz"]
    }

    /// Whether it is a zip archive whose first member is a `.npy`.
    ///
    /// Zip archives are also what PyTorch (`NAME/data.pkl`) and Keras (`metadata.json`) write. When the first member's
    /// name is longer than the part of it that is shown, its ending is not seen; then PyTorch's habit tells them apart:
    /// its writer leaves the sizes to a data descriptor (bit 3 of the flags), NumPy's does not. Empty archives and
    /// those which begin with our metadata count as well.
    fn recognises(&self, head: &[u8], _len: u64) -> bool {
        const NAME: usize = 30;
        if head.starts_with(b"PK\x05\x06") {
            return true;
        }
        let [b'P', b'K', 3, 4, _, _, flags, ..] = head else { return false };
        let Some(fixed) = head.get(..NAME) else { return false };
        let length = usize::from(u16::from_le_bytes([fixed[26], fixed[27]]));
        match head.get(NAME..NAME + length) {
            Some(name) => name.ends_with(ENDING.as_bytes()) || name == OLD_METADATA.as_bytes(),
            None => flags & 8 == 0,
        }
    }

    fn index(&self, source: &dyn Source) -> Result<Index, FormatError> {
        self.index_assuming(source, None)
    }

    fn index_assuming(&self, source: &dyn Source, assume: Option<DType>) -> Result<Index, FormatError> {
        // Left to guess, the crate takes some archives for ones that something was put in front of.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let floor = Rc::new(Cell::new(zip_directory(source)?));
        let reader = BufReader::new(ZipReader::new(source, Rc::clone(&floor)));
        let mut archive = ZipArchive::with_config(config, reader).map_err(zip_error)?;
        floor.set(0);
        if archive.has_duplicate_names() {
            return Err(FormatError::corrupt("two members of the archive have the same name"));
        }
        // Also checks that each member ends before the archive's directory.
        if archive.has_overlapping_entries().map_err(zip_error)? {
            return Err(FormatError::corrupt("members of the archive overlap, or reach into its directory"));
        }

        let mut index = Index::default();
        let mut has_metadata = false;
        for number in 0..archive.len() {
            let member = archive.by_index_raw(number).map_err(zip_error)?;
            check_zip_header(source, member.header_start(), member.name_raw(), member.compressed_size())?;
            let name = member.name().map_err(zip_error)?.into_owned();
            if let Some(text) = metadata(&name, &member, source)? {
                index.metadata = text;
                has_metadata = true;
            } else if let Some(name) = name.strip_suffix(ENDING) {
                index.tensors.push(tensor(name, &member, source, assume).map_err(|error| error.at(name))?);
            } else {
                index.warnings.push(format!("the member `{name}` is not a .npy array, and is left out"));
            }
        }
        if index.tensors.is_empty() && !has_metadata && !archive.is_empty() {
            return Err(FormatError::unsupported("no member of this zip archive is a .npy array"));
        }
        // Different bytes can be the same name in the two encodings that archives have.
        let mut seen = HashSet::with_capacity(index.tensors.len());
        if let Some(twice) = index.tensors.iter().find(|tensor| !seen.insert(tensor.name.as_str())) {
            return Err(FormatError::corrupt("two members of the archive have this name").at(&twice.name));
        }
        index.tensors.sort_by_key(|tensor| match &tensor.data {
            Data::Dense(extent) | Data::Deflated { extent, .. } => extent.offset,
            Data::Pieces(pieces) => pieces.boxes.first().map_or(0, |piece| piece.offset),
            _ => 0,
        });
        Ok(index)
    }

    fn leaves_unsaid(&self, dtype: DType) -> Option<String> {
        element::unsaid(dtype)
    }

    fn can_store(&self, dtype: DType) -> bool {
        element::spelling(dtype).is_some()
    }

    fn plan_write(&self, tensors: &[TensorSpec], metadata: &Metadata) -> Result<WritePlan, FormatError> {
        let layout = lay_out(tensors, metadata)?;
        let offsets = layout.data_offsets().take(tensors.len()).map(Some).collect();
        Ok(WritePlan::new(layout.length(), layout.segments(&[]), offsets).with_crc32())
    }

    fn finish_write(
        &self,
        _plan: &WritePlan,
        tensors: &[TensorSpec],
        metadata: &Metadata,
        crc32: &[u32],
    ) -> Result<Vec<Segment>, FormatError> {
        Ok(lay_out(tensors, metadata)?.segments(crc32))
    }
}

/// The tensor that the member `name`.npy is.
fn tensor<R: Read>(
    name: &str,
    member: &ZipFile<'_, R>,
    source: &dyn Source,
    assume: Option<DType>,
) -> Result<TensorInfo, FormatError> {
    let (extent, mut bytes) = open(member, source)?;
    let header = Header::read(&mut bytes, member.size(), assume)?;
    if member.compression() == CompressionMethod::Stored {
        return Ok(header.tensor(name, extent.offset));
    }
    if header.column_major {
        return Err(FormatError::unsupported("it is compressed and in Fortran order, which cannot be read together")
            .hint("save it again with numpy.savez, or in C order"));
    }
    Ok(header.deflated_tensor(name, extent))
}

/// Where a member's bytes are, and the same decompressed.
fn open<'a, R: Read>(
    member: &ZipFile<'_, R>,
    source: &'a dyn Source,
) -> Result<(Extent, Box<dyn Read + 'a>), FormatError> {
    if member.encrypted() {
        return Err(FormatError::unsupported("it is encrypted"));
    }
    let offset = member.data_start().ok_or_else(|| FormatError::corrupt("it has no place in the archive"))?;
    let (length, size) = (member.compressed_size(), member.size());
    let mut reader = Reader::new(source);
    reader.seek(SeekFrom::Start(offset)).map_err(read_error)?;
    let reader = BufReader::new(reader.take(length));
    let bytes: Box<dyn Read> = match member.compression() {
        CompressionMethod::Stored if length != size => {
            let message = format!("it is not compressed, but {size} bytes take {length} in the archive");
            return Err(FormatError::corrupt(message));
        }
        CompressionMethod::Stored => Box::new(reader),
        CompressionMethod::DEFLATE if size > length.saturating_mul(MAX_DEFLATE_RATIO) => {
            let message = format!("it claims {size} bytes, more than can be compressed into {length}");
            return Err(FormatError::corrupt(message));
        }
        CompressionMethod::DEFLATE => Box::new(DeflateDecoder::new(reader)),
        other => {
            return Err(FormatError::unsupported(format!("it is compressed by {other}; only deflate is supported"))
                .hint("save it again with numpy.savez"));
        }
    };
    Ok((Extent { offset, length }, bytes))
}

/// The text in the metadata's member; `None` if this is not it, or something else of its name.
fn metadata<R: Read>(
    name: &str,
    member: &ZipFile<'_, R>,
    source: &dyn Source,
) -> Result<Option<Metadata>, FormatError> {
    // An array of that name with anything but bytes in a row is a tensor.
    let is_bytes = || tensor(name, member, source, None).is_ok_and(|t| t.dtype == DType::U8 && t.shape.len() == 1);
    let is_array = name == METADATA_MEMBER;
    if name != OLD_METADATA && !(is_array && is_bytes()) {
        return Ok(None);
    }
    let named = |mut error: FormatError| {
        error.message = format!("the member `{name}`: {}", error.message);
        error
    };
    let most = MAX_METADATA.min(MORE_METADATA + MAX_METADATA_RATIO.saturating_mul(member.compressed_size()));
    if member.size() > most {
        let message = format!("it takes {} bytes; {most} are allowed", member.size());
        return Err(named(FormatError::new(Fault::Limit, message)));
    }
    let (_, bytes) = open(member, source).map_err(named)?;
    let mut json = Vec::new();
    bytes.take(member.size()).read_to_end(&mut json).map_err(|error| named(read_error(error)))?;
    if crc32fast::hash(&json) != member.crc32() {
        return Err(named(FormatError::corrupt("its checksum does not match")));
    }
    let mut text = &json[..];
    if is_array {
        Header::read(&mut text, member.size(), None).map_err(named)?;
    }
    Ok(serde_json::from_slice(text).ok())
}

fn zip_error(error: ZipError) -> FormatError {
    match error {
        ZipError::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => read_error(error),
        ZipError::UnsupportedArchive(what) => {
            FormatError::unsupported(format!("the zip archive is not supported: {what}"))
        }
        other => FormatError::corrupt(format!("the zip archive is damaged or cut short: {other}")),
    }
}

fn lay_out(tensors: &[TensorSpec], metadata: &Metadata) -> Result<Layout, FormatError> {
    let mut members = Vec::with_capacity(tensors.len() + 1);
    let mut seen = HashSet::with_capacity(tensors.len());
    for tensor in tensors {
        if !seen.insert(tensor.name.as_str()) {
            return Err(FormatError::corrupt("two tensors would have this name").at(&tensor.name));
        }
        // Python's zipfile cuts names there.
        if tensor.name.contains('\0') {
            let error = FormatError::unsupported("the name holds a zero byte, which archives cannot").at(&tensor.name);
            return Err(error.hint("rename it"));
        }
        let (head, data) = header::write(tensor)?;
        members.push(Member { name: format!("{}{ENDING}", tensor.name), head, data });
    }
    if !metadata.is_empty() {
        if seen.contains(METADATA) {
            let error = FormatError::unsupported("the name is that of the archive's metadata").at(METADATA);
            return Err(error.hint("rename it"));
        }
        let json = serde_json::to_vec(metadata).expect("text is valid JSON");
        let (name, shape) = (METADATA.to_owned(), vec![json.len() as u64]);
        let (mut head, _) = header::write(&TensorSpec { name, dtype: DType::U8, shape, alias_of: None })?;
        head.extend(json);
        members.push(Member { name: METADATA_MEMBER.to_owned(), head, data: 0 });
    }
    Layout::new(members)
}
