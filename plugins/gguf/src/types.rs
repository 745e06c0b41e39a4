//! The numbers that GGUF files have for types of elements: ggml's `enum ggml_type` as of 2026.

use ckptmerge_format::{DType, FormatError};

/// Numbers of types, in their order. 4, 5, 31 to 33 and 36 to 38 were given up, see [`REMOVED`].
const TYPES: [(u32, DType); 35] = [
    (0, DType::F32),
    (1, DType::F16),
    (2, DType::Q4_0),
    (3, DType::Q4_1),
    (6, DType::Q5_0),
    (7, DType::Q5_1),
    (8, DType::Q8_0),
    (9, DType::Q8_1),
    (10, DType::Q2_K),
    (11, DType::Q3_K),
    (12, DType::Q4_K),
    (13, DType::Q5_K),
    (14, DType::Q6_K),
    (15, DType::Q8_K),
    (16, DType::IQ2_XXS),
    (17, DType::IQ2_XS),
    (18, DType::IQ3_XXS),
    (19, DType::IQ1_S),
    (20, DType::IQ4_NL),
    (21, DType::IQ3_S),
    (22, DType::IQ2_S),
    (23, DType::IQ4_XS),
    (24, DType::I8),
    (25, DType::I16),
    (26, DType::I32),
    (27, DType::I64),
    (28, DType::F64),
    (29, DType::IQ1_M),
    (30, DType::BF16),
    (34, DType::TQ1_0),
    (35, DType::TQ2_0),
    (39, DType::MXFP4),
    (40, DType::NVFP4),
    (41, DType::Q1_0),
    (42, DType::Q2_0),
];

/// Types that ggml once had: files with them were for particular processors or are from before August 2023.
const REMOVED: [(u32, &str); 8] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// The type that has the number in files.
pub(crate) fn dtype(id: u32) -> Result<DType, FormatError> {
    if let Some((_, dtype)) = TYPES.iter().find(|row| row.0 == id) {
        return Ok(*dtype);
    }
    Err(match REMOVED.iter().find(|row| row.0 == id) {
        Some((_, name)) => FormatError::unsupported(format!("its type {id} ({name}) was removed from ggml"))
            .hint("quantize the model anew with a current llama.cpp"),
        None => FormatError::unsupported(format!("ggml had no type {id} when this was written")),
    })
}

/// The number that the type has in files, if it has one.
pub(crate) fn id(dtype: DType) -> Option<u32> {
    TYPES.iter().find(|row| row.1 == dtype).map(|row| row.0)
}
