//! What torch calls the element types: as a `torch.dtype`, and as the class of a storage, which newer types lack.

use ckptmerge_format::DType;

/// A type, its name in `torch`, and its storage class there.
type Row = (DType, &'static str, Option<&'static str>);

/// One row per type that torch and [`DType`] share. torch's pairs of F4 in a byte are left out: their shape counts pairs.
const DTYPES: [Row; 20] = [
    (DType::Bool, "bool", Some("BoolStorage")),
    (DType::U8, "uint8", Some("ByteStorage")),
    (DType::I8, "int8", Some("CharStorage")),
    (DType::I16, "int16", Some("ShortStorage")),
    (DType::I32, "int32", Some("IntStorage")),
    (DType::I64, "int64", Some("LongStorage")),
    (DType::F16, "float16", Some("HalfStorage")),
    (DType::BF16, "bfloat16", Some("BFloat16Storage")),
    (DType::F32, "float32", Some("FloatStorage")),
    (DType::F64, "float64", Some("DoubleStorage")),
    (DType::C64, "complex64", Some("ComplexFloatStorage")),
    (DType::U16, "uint16", None),
    (DType::U32, "uint32", None),
    (DType::U64, "uint64", None),
    (DType::F8E4M3, "float8_e4m3fn", None),
    (DType::F8E5M2, "float8_e5m2", None),
    (DType::F8E4M3FNUZ, "float8_e4m3fnuz", None),
    (DType::F8E5M2FNUZ, "float8_e5m2fnuz", None),
    (DType::F8E8M0, "float8_e8m0fnu", None),
    // Storages without a type hold bytes.
    (DType::U8, "uint8", Some("UntypedStorage")),
];

/// The type of a `torch.dtype`'s name.
pub(crate) fn from_torch(name: &str) -> Option<DType> {
    DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
}

/// The type that a storage class holds.
pub(crate) fn from_storage(class: &str) -> Option<DType> {
    // Between 1.10 and 1.13 the class had an underscore in front.
    let class = class.strip_prefix('_').unwrap_or(class);
    DTYPES.iter().find(|row| row.2 == Some(class)).map(|row| row.0)
}

/// The type's name in torch and its storage class, if it has one of its own.
pub(crate) fn to_torch(dtype: DType) -> Option<(&'static str, Option<&'static str>)> {
    DTYPES.iter().find(|row| row.0 == dtype).map(|row| (row.1, row.2))
}
