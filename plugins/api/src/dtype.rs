//! Element types: their names, widths and what can be computed with them.
//!
//! The names are those of safetensors 0.8, which has the longest list of any format in use. How a value is
//! rounded to one of these types is not known here: that is the host's `dtype` module.

use std::fmt;

/// The type of a tensor's elements.
///
/// Order is by name table only and means nothing; see [`DType::promote`] for the one that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the variants are the field's own names, spelled out in `DTYPES`")]
#[non_exhaustive]
pub enum DType {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3FNUZ,
    F8E5M2FNUZ,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// What kind of number a [`DType`] holds, which decides what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Real floating point that is computed with: F64, F32, F16, BF16, F8_E4M3, F8_E5M2.
    Float,
    /// Integers and booleans: read as numbers for statistics, copied by a merge.
    Integer,
    /// Known by width only (sub-byte floats, scales, complex numbers): copied, never computed with.
    Opaque,
}

/// One row per type: the name in files, spellings accepted from people (torch's first), bits per element, kind.
const DTYPES: [(DType, &str, &[&str], u32, Kind); 22] = [
    (DType::Bool, "BOOL", &[], 8, Kind::Integer),
    (DType::F4, "F4", &[], 4, Kind::Opaque),
    (DType::F6E2M3, "F6_E2M3", &[], 6, Kind::Opaque),
    (DType::F6E3M2, "F6_E3M2", &[], 6, Kind::Opaque),
    (DType::U8, "U8", &["uint8"], 8, Kind::Integer),
    (DType::I8, "I8", &["int8"], 8, Kind::Integer),
    (DType::F8E5M2, "F8_E5M2", &["float8_e5m2", "fp8_e5m2"], 8, Kind::Float),
    (DType::F8E4M3, "F8_E4M3", &["float8_e4m3fn", "fp8_e4m3fn", "fp8_e4m3"], 8, Kind::Float),
    (DType::F8E8M0, "F8_E8M0", &[], 8, Kind::Opaque),
    (DType::F8E4M3FNUZ, "F8_E4M3FNUZ", &[], 8, Kind::Opaque),
    (DType::F8E5M2FNUZ, "F8_E5M2FNUZ", &[], 8, Kind::Opaque),
    (DType::I16, "I16", &["int16"], 16, Kind::Integer),
    (DType::U16, "U16", &["uint16"], 16, Kind::Integer),
    (DType::F16, "F16", &["float16", "fp16", "half"], 16, Kind::Float),
    (DType::BF16, "BF16", &["bfloat16"], 16, Kind::Float),
    (DType::I32, "I32", &["int32"], 32, Kind::Integer),
    (DType::U32, "U32", &["uint32"], 32, Kind::Integer),
    (DType::F32, "F32", &["float32", "fp32", "float"], 32, Kind::Float),
    (DType::C64, "C64", &["complex64"], 64, Kind::Opaque),
    (DType::F64, "F64", &["float64", "fp64", "double"], 64, Kind::Float),
    (DType::I64, "I64", &["int64"], 64, Kind::Integer),
    (DType::U64, "U64", &["uint64"], 64, Kind::Integer),
];

impl DType {
    /// Every type, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        DTYPES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (Self, &'static str, &'static [&'static str], u32, Kind) {
        &DTYPES[self as usize]
    }

    /// The name safetensors files use, such as `BF16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The name torch has for it, such as `bfloat16`, for the types that models are computed in.
    #[must_use]
    pub fn torch_name(self) -> Option<&'static str> {
        self.row().2.first().copied()
    }

    /// Bits per element; below 8 for the packed types.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.row().3
    }

    /// What kind of number this is.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.row().4
    }

    /// Bytes per element, or `None` for types that pack several elements into a byte.
    #[must_use]
    pub fn bytes(self) -> Option<usize> {
        (self.bits().is_multiple_of(8)).then_some(self.bits() as usize / 8)
    }

    /// Bytes that `elements` of this type take; `None` if they overflow or do not fill whole bytes.
    #[must_use]
    pub fn size_of(self, elements: u64) -> Option<u64> {
        let bits = elements.checked_mul(u64::from(self.bits()))?;
        (bits.is_multiple_of(8)).then_some(bits / 8)
    }

    /// The type named in a file: exactly [`DType::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The type a person named: any case, and the common spellings such as `bf16` or `float16`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        DTYPES
            .iter()
            .find(|row| row.1.eq_ignore_ascii_case(text) || row.2.iter().any(|s| s.eq_ignore_ascii_case(text)))
            .map(|row| row.0)
    }

    /// The smallest float that holds every value of both, as `torch.promote_types` where torch has an answer.
    ///
    /// torch promotes no F8 pair; here two different F8 types give F16, which holds both exactly.
    /// `None` unless both are [`Kind::Float`].
    #[must_use]
    pub fn promote(self, other: Self) -> Option<Self> {
        let rank = |d| match d {
            Self::F8E4M3 | Self::F8E5M2 => Some(0),
            Self::F16 | Self::BF16 => Some(1),
            Self::F32 => Some(2),
            Self::F64 => Some(3),
            _ => None,
        };
        let (a, b) = (rank(self)?, rank(other)?);
        Some(match a.cmp(&b) {
            _ if self == other => self,
            std::cmp::Ordering::Greater => self,
            std::cmp::Ordering::Less => other,
            std::cmp::Ordering::Equal if a == 0 => Self::F16,
            std::cmp::Ordering::Equal => Self::F32,
        })
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_at_their_variant() {
        for dtype in DType::all() {
            assert_eq!(DTYPES[dtype as usize].0, dtype);
            assert_eq!(DType::from_name(dtype.name()), Some(dtype));
            assert_eq!(DType::parse(&dtype.name().to_lowercase()), Some(dtype));
        }
    }

    #[test]
    fn promotion_is_symmetric_and_holds_both() {
        for a in DType::all() {
            for b in DType::all() {
                assert_eq!(a.promote(b), b.promote(a));
                assert_eq!(a.promote(b).is_some(), a.kind() == Kind::Float && b.kind() == Kind::Float);
            }
        }
        assert_eq!(DType::F16.promote(DType::BF16), Some(DType::F32));
        assert_eq!(DType::F8E4M3.promote(DType::F8E5M2), Some(DType::F16));
        assert_eq!(DType::F8E4M3.promote(DType::BF16), Some(DType::BF16));
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(DType::F4.size_of(3), None, "twelve bits are no whole bytes");
        assert_eq!(DType::F6E2M3.size_of(4), Some(3));
        assert_eq!(DType::F64.size_of(u64::MAX / 8), None);
    }
}
