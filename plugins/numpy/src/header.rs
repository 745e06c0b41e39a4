//! An array's header: magic, version, length, Python literal; behind it the elements.

use crate::{element, literal};
use ckptmerge_format::{DType, Data, Extent, Fault, FormatError, Pieces, TensorInfo, TensorSpec};
use std::io::{self, Read};

/// What every array begins with.
pub(crate) const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header that is read, in bytes. NumPy's own limit is 10,000 characters. It is also what a hundred bytes of
/// deflated bytes can make a reader look at for each member.
const MAX_HEADER: u64 = 1 << 14;
/// What the header is padded to, in bytes, so that the elements are aligned.
pub(crate) const ALIGNMENT: u64 = 64;

/// An array's type and shape, and how many bytes they take.
#[derive(Debug)]
pub(crate) struct Header {
    dtype: DType,
    big_endian: bool,
    shape: Vec<u64>,
    /// Whether the first index, rather than the last, runs fastest, and that makes a difference.
    pub(crate) column_major: bool,
    /// Bytes before the first element.
    pub(crate) length: u64,
    /// Bytes of the elements.
    bytes: u64,
}

impl Header {
    /// Reads the header of an array that takes `available` bytes in all.
    pub(crate) fn read(from: &mut dyn Read, available: u64, assume: Option<DType>) -> Result<Self, FormatError> {
        let [magic @ .., major, minor] = take::<8>(from)?;
        if magic != MAGIC {
            return Err(FormatError::corrupt("it does not begin as a NumPy array"));
        }
        // Version 2 has a longer length, and version 3 the names of fields in UTF-8, which are not read anyway.
        let (prefix, text) = match (major, minor) {
            (1, 0) => (10, u64::from(u16::from_le_bytes(take(from)?))),
            (2 | 3, 0) => (12, u64::from(u32::from_le_bytes(take(from)?))),
            _ => {
                let message = format!("it is an array of version {major}.{minor}; 1.0, 2.0 and 3.0 are known");
                return Err(FormatError::unsupported(message));
            }
        };
        if text > MAX_HEADER {
            let message = format!("the header claims {text} bytes; {MAX_HEADER} are allowed");
            return Err(FormatError::new(Fault::Limit, message));
        }
        let mut literal = vec![0; text as usize];
        from.read_exact(&mut literal).map_err(read_error)?;
        let literal::Description { descr, fortran_order, shape } = literal::parse(&literal)?;
        let (dtype, big_endian) = element::parse(&descr, assume)?;

        let bytes = elements(&shape).and_then(|elements| dtype.size_of(elements));
        let bytes = bytes.ok_or_else(|| FormatError::corrupt(format!("the size of shape {shape:?} overflows")))?;
        let length = prefix + text;
        let given = available.saturating_sub(length);
        if given < bytes {
            return Err(FormatError::corrupt(format!(
                "{dtype} of shape {shape:?} takes {bytes} bytes, but only {given} follow the header: it is cut short"
            )));
        }
        if given > bytes {
            return Err(FormatError::corrupt(format!(
                "{dtype} of shape {shape:?} takes {bytes} bytes, but {given} follow the header"
            )));
        }
        let column_major = fortran_order && bytes > 0 && shape.iter().filter(|&&n| n > 1).count() > 1;
        Ok(Self { dtype, big_endian, shape, column_major, length, bytes })
    }

    /// The tensor of an array that lies uncompressed at `offset`, header included.
    pub(crate) fn tensor(self, name: &str, offset: u64) -> TensorInfo {
        let offset = offset + self.length;
        let data = if self.column_major {
            let strides: Vec<u64> = self
                .shape
                .iter()
                .scan(1, |stride, &n| {
                    let here = *stride;
                    *stride *= n;
                    Some(here)
                })
                .collect();
            Data::Pieces(Pieces::strided(offset, &self.shape, &strides))
        } else {
            Data::Dense(Extent { offset, length: self.bytes })
        };
        self.with_data(name, data)
    }

    /// The tensor of an array in row-major order that is compressed, header included.
    pub(crate) fn deflated_tensor(self, name: &str, extent: Extent) -> TensorInfo {
        let data = Data::Deflated { extent, skip: self.length };
        self.with_data(name, data)
    }

    fn with_data(self, name: &str, data: Data) -> TensorInfo {
        let mut tensor = TensorInfo::new(name, self.dtype, self.shape, data);
        tensor.big_endian = self.big_endian;
        tensor
    }
}

/// The header for a tensor that is written, and the bytes its elements take.
pub(crate) fn write(tensor: &TensorSpec) -> Result<(Vec<u8>, u64), FormatError> {
    if tensor.alias_of.is_some() {
        return Err(FormatError::unsupported("NumPy's files cannot tie two tensors")
            .at(&tensor.name)
            .hint("write both"));
    }
    let descr = element::spelling(tensor.dtype)
        .ok_or_else(|| FormatError::unsupported(format!("NumPy has no type {}", tensor.dtype)).at(&tensor.name))?;
    let limit = |message: String| FormatError::new(Fault::Limit, message).at(&tensor.name);
    if tensor.shape.len() > literal::MAX_DIMENSIONS {
        return Err(limit(format!("NumPy allows at most {} dimensions", literal::MAX_DIMENSIONS)));
    }
    let bytes = elements(&tensor.shape).and_then(|elements| tensor.dtype.size_of(elements));
    let bytes = bytes.ok_or_else(|| limit("the tensor's size overflows 64 bits".to_owned()))?;

    let sizes: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    let sizes = if sizes.len() == 1 { format!("{},", sizes[0]) } else { sizes.join(", ") };
    let mut header = [MAGIC, &[1, 0, 0, 0]].concat();
    header.extend(format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}").bytes());
    header.resize((header.len() + 1).next_multiple_of(ALIGNMENT as usize) - 1, b' ');
    header.push(b'\n');
    let text = u16::try_from(header.len() - 10).expect("64 sizes of 20 digits fit the shorter length");
    header[8..10].copy_from_slice(&text.to_le_bytes());
    Ok((header, bytes))
}

fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))
}

fn take<const N: usize>(from: &mut dyn Read) -> Result<[u8; N], FormatError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map_err(read_error)?;
    Ok(bytes)
}

/// What went wrong below a reader: the source's own error if there was one.
pub(crate) fn read_error(error: io::Error) -> FormatError {
    let ended = error.kind() == io::ErrorKind::UnexpectedEof;
    error.downcast::<FormatError>().unwrap_or_else(|error| {
        if ended {
            FormatError::corrupt("it ends within its header: it is cut short")
        } else {
            FormatError::corrupt(format!("it cannot be decompressed: {error}"))
        }
    })
}
