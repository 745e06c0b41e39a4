//! Element types: their names, widths and what can be computed with them.
//!
//! The names are those of safetensors 0.8 and, for types that quantize blocks of elements, ggml's. How a value is
//! rounded to one of these types is not known here: that is the host's `dtype` module.

use std::fmt;

/// The type of a tensor's elements.
///
/// Order is by name table only and means nothing; see [`DType::promote`] for the one that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the variants are the field's own names, spelled out in `DTYPES`")]
#[expect(non_camel_case_types, reason = "ggml's names have underscores")]
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
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
    Q2_0,
}

/// What kind of number a [`DType`] holds, which decides what may be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Real floating point that is computed with: F64, F32, F16, BF16, F8_E4M3, F8_E5M2.
    Float,
    /// Blocks of elements with shared scales, as ggml quantizes: read as numbers; most are written from numbers too.
    Quantized,
    /// Integers and booleans: read as numbers for statistics, copied by a merge.
    Integer,
    /// Known by width only (sub-byte floats, scales, complex numbers): copied, never computed with.
    Opaque,
}

/// A type, the name in files, spellings accepted from people (torch's first), elements and bytes per block, kind.
type Row = (DType, &'static str, &'static [&'static str], (u32, u32), Kind);

/// One row per type.
const DTYPES: [Row; 49] = [
    (DType::Bool, "BOOL", &[], (1, 1), Kind::Integer),
    (DType::F4, "F4", &[], (2, 1), Kind::Opaque),
    (DType::F6E2M3, "F6_E2M3", &[], (4, 3), Kind::Opaque),
    (DType::F6E3M2, "F6_E3M2", &[], (4, 3), Kind::Opaque),
    (DType::U8, "U8", &["uint8"], (1, 1), Kind::Integer),
    (DType::I8, "I8", &["int8"], (1, 1), Kind::Integer),
    (DType::F8E5M2, "F8_E5M2", &["float8_e5m2", "fp8_e5m2"], (1, 1), Kind::Float),
    (DType::F8E4M3, "F8_E4M3", &["float8_e4m3fn", "fp8_e4m3fn", "fp8_e4m3"], (1, 1), Kind::Float),
    (DType::F8E8M0, "F8_E8M0", &[], (1, 1), Kind::Opaque),
    (DType::F8E4M3FNUZ, "F8_E4M3FNUZ", &[], (1, 1), Kind::Opaque),
    (DType::F8E5M2FNUZ, "F8_E5M2FNUZ", &[], (1, 1), Kind::Opaque),
    (DType::I16, "I16", &["int16"], (1, 2), Kind::Integer),
    (DType::U16, "U16", &["uint16"], (1, 2), Kind::Integer),
    (DType::F16, "F16", &["float16", "fp16", "half"], (1, 2), Kind::Float),
    (DType::BF16, "BF16", &["bfloat16"], (1, 2), Kind::Float),
    (DType::I32, "I32", &["int32"], (1, 4), Kind::Integer),
    (DType::U32, "U32", &["uint32"], (1, 4), Kind::Integer),
    (DType::F32, "F32", &["float32", "fp32", "float"], (1, 4), Kind::Float),
    (DType::C64, "C64", &["complex64"], (1, 8), Kind::Opaque),
    (DType::F64, "F64", &["float64", "fp64", "double"], (1, 8), Kind::Float),
    (DType::I64, "I64", &["int64"], (1, 8), Kind::Integer),
    (DType::U64, "U64", &["uint64"], (1, 8), Kind::Integer),
    (DType::Q4_0, "Q4_0", &[], (32, 18), Kind::Quantized),
    (DType::Q4_1, "Q4_1", &[], (32, 20), Kind::Quantized),
    (DType::Q5_0, "Q5_0", &[], (32, 22), Kind::Quantized),
    (DType::Q5_1, "Q5_1", &[], (32, 24), Kind::Quantized),
    (DType::Q8_0, "Q8_0", &[], (32, 34), Kind::Quantized),
    (DType::Q8_1, "Q8_1", &[], (32, 36), Kind::Quantized),
    (DType::Q2_K, "Q2_K", &[], (256, 84), Kind::Quantized),
    (DType::Q3_K, "Q3_K", &[], (256, 110), Kind::Quantized),
    (DType::Q4_K, "Q4_K", &[], (256, 144), Kind::Quantized),
    (DType::Q5_K, "Q5_K", &[], (256, 176), Kind::Quantized),
    (DType::Q6_K, "Q6_K", &[], (256, 210), Kind::Quantized),
    (DType::Q8_K, "Q8_K", &[], (256, 292), Kind::Quantized),
    (DType::IQ1_S, "IQ1_S", &[], (256, 50), Kind::Quantized),
    (DType::IQ1_M, "IQ1_M", &[], (256, 56), Kind::Quantized),
    (DType::IQ2_XXS, "IQ2_XXS", &[], (256, 66), Kind::Quantized),
    (DType::IQ2_XS, "IQ2_XS", &[], (256, 74), Kind::Quantized),
    (DType::IQ2_S, "IQ2_S", &[], (256, 82), Kind::Quantized),
    (DType::IQ3_XXS, "IQ3_XXS", &[], (256, 98), Kind::Quantized),
    (DType::IQ3_S, "IQ3_S", &[], (256, 110), Kind::Quantized),
    (DType::IQ4_NL, "IQ4_NL", &[], (32, 18), Kind::Quantized),
    (DType::IQ4_XS, "IQ4_XS", &[], (256, 136), Kind::Quantized),
    (DType::TQ1_0, "TQ1_0", &[], (256, 54), Kind::Quantized),
    (DType::TQ2_0, "TQ2_0", &[], (256, 66), Kind::Quantized),
    (DType::MXFP4, "MXFP4", &[], (32, 17), Kind::Quantized),
    (DType::NVFP4, "NVFP4", &[], (64, 36), Kind::Quantized),
    (DType::Q1_0, "Q1_0", &[], (128, 18), Kind::Quantized),
    (DType::Q2_0, "Q2_0", &[], (64, 18), Kind::Quantized),
];

impl DType {
    /// Every type, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        DTYPES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        &DTYPES[self as usize]
    }

    /// The name in files, such as `BF16` or `Q4_K`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The name torch has for it, such as `bfloat16`, for the types that models are computed in.
    #[must_use]
    pub fn torch_name(self) -> Option<&'static str> {
        self.row().2.first().copied()
    }

    /// Elements that are stored together: 1, unless they are packed or quantized.
    #[must_use]
    pub fn block_elements(self) -> u64 {
        u64::from(self.row().3.0)
    }

    /// Bytes of such a block.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        u64::from(self.row().3.1)
    }

    /// What kind of number this is.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.row().4
    }

    /// Whether it is read as real numbers that models are made of.
    #[must_use]
    pub fn is_real(self) -> bool {
        matches!(self.kind(), Kind::Float | Kind::Quantized)
    }

    /// Bytes per element, or `None` for types that store several together.
    #[must_use]
    pub fn bytes(self) -> Option<usize> {
        (self.block_elements() == 1).then_some(self.block_bytes() as usize)
    }

    /// Bytes that `elements` of this type take; `None` if they overflow or do not fill whole blocks.
    #[must_use]
    pub fn size_of(self, elements: u64) -> Option<u64> {
        let blocks = elements.is_multiple_of(self.block_elements()).then_some(elements / self.block_elements())?;
        blocks.checked_mul(self.block_bytes())
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
    /// torch promotes no F8 pair; here two different F8 types give F16, which holds both exactly. Quantized types
    /// promote as F32, which their values need, even with themselves. `None` unless both are real.
    #[must_use]
    pub fn promote(self, other: Self) -> Option<Self> {
        let rank = |d| match d {
            Self::F8E4M3 | Self::F8E5M2 => Some(0),
            Self::F16 | Self::BF16 => Some(1),
            Self::F32 => Some(2),
            Self::F64 => Some(3),
            _ => None,
        };
        let plain = |d: Self| if d.kind() == Kind::Quantized { Self::F32 } else { d };
        if self.kind() == Kind::Quantized || other.kind() == Kind::Quantized {
            return plain(self).promote(plain(other));
        }
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
                assert_eq!(a.promote(b).is_some(), a.is_real() && b.is_real());
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
        assert_eq!(DType::F64.size_of(u64::MAX / 4), None);
        assert_eq!(DType::Q4_K.size_of(512), Some(288));
    }
}
