//! Element types as NumPy spells them: `<f4` is little-endian, a float, of 4 bytes.
//!
//! The first letter is the order of an element's bytes: `<` little-endian, `>` big-endian, `|` for types that have
//! none, `=` for the writer's own, which is little-endian on every machine that models are trained on.

use ckptmerge_format::{DType, FormatError};

/// The types that are read and written, in the spelling of `numpy.dtype.str`.
const SPELLINGS: [(DType, &str); 13] = [
    (DType::Bool, "|b1"),
    (DType::I8, "|i1"),
    (DType::U8, "|u1"),
    (DType::I16, "<i2"),
    (DType::U16, "<u2"),
    (DType::I32, "<i4"),
    (DType::U32, "<u4"),
    (DType::I64, "<i8"),
    (DType::U64, "<u8"),
    (DType::F16, "<f2"),
    (DType::F32, "<f4"),
    (DType::F64, "<f8"),
    (DType::C64, "<c8"),
];
/// What `numpy.save` writes for arrays of `ml_dtypes.bfloat16`: two raw bytes.
const BFLOAT16: &str = "<V2";
/// What it writes for `ml_dtypes.float8_e5m2`, the only type of `ml_dtypes` that it does not save as raw bytes.
const FLOAT8_E5M2: &str = "f1";

/// How NumPy spells a type that is written, or `None` if it has no place for it.
pub(crate) fn spelling(dtype: DType) -> Option<&'static str> {
    if dtype == DType::BF16 {
        return Some(BFLOAT16);
    }
    SPELLINGS.iter().find(|row| row.0 == dtype).map(|row| row.1)
}

/// What is lost of a type that is written as raw bytes.
pub(crate) fn unsaid(dtype: DType) -> Option<String> {
    let spelling = spelling(dtype)?;
    spelling.contains('V').then(|| {
        format!("NumPy has no type {dtype}: its elements are written as raw bytes (`{spelling}`); readers must be told, as by `--assume {}`", dtype.name().to_lowercase())
    })
}

/// The type that `descr` spells, and whether it is big-endian. Raw bytes are `assume`d to be of that type.
pub(crate) fn parse(descr: &str, assume: Option<DType>) -> Result<(DType, bool), FormatError> {
    let (order, code) = match descr.as_bytes().first() {
        Some(b'<' | b'>' | b'|' | b'=') => descr.split_at(1),
        _ => return Err(FormatError::unsupported(format!("the type `{descr}` does not begin with a byte order"))),
    };
    let dtype = match code {
        FLOAT8_E5M2 => DType::F8E5M2,
        _ => match SPELLINGS.iter().find(|(_, spelling)| &spelling[1..] == code) {
            Some(&(dtype, _)) => dtype,
            None => raw(descr, code, assume)?,
        },
    };
    let big_endian = order == ">" && dtype.bytes() != Some(1);
    if big_endian && dtype == DType::C64 {
        return Err(FormatError::unsupported(format!("big-endian complex numbers (`{descr}`) are not supported"))
            .hint("save it again with array.astype('<c8')"));
    }
    Ok((dtype, big_endian))
}

/// The type of raw bytes (`V2`), which only the person who saved them knows; other types are refused.
fn raw(descr: &str, code: &str, assume: Option<DType>) -> Result<DType, FormatError> {
    let Some(width) = code.strip_prefix('V').and_then(|width| width.parse::<usize>().ok()) else {
        return Err(refused(descr, code));
    };
    if let Some(dtype) = assume.filter(|dtype| dtype.bytes() == Some(width)) {
        return Ok(dtype);
    }
    let hint = match (assume, width) {
        (Some(assume), _) => format!("`--assume {assume}` does not help, as it is not a type of {width} bytes"),
        (None, 1) => "pass `--assume fp8_e4m3fn`, or whichever type of 1 byte it is".to_owned(),
        (None, 2) => "pass `--assume bf16`, if that is what was saved".to_owned(),
        (None, _) => "pass `--assume` with the type that was saved".to_owned(),
    };
    let message = format!("its elements are raw bytes (`{descr}`): their type is not in the file");
    Err(FormatError::unsupported(message).hint(hint))
}

/// Why elements of a type that is known to NumPy are not read.
fn refused(descr: &str, code: &str) -> FormatError {
    let (reason, hint) = match code.as_bytes().first() {
        Some(b'O') => ("Python objects, a pickle that can run code", Some("save it again as an array of numbers")),
        Some(b'U') => ("Unicode text", None),
        Some(b'S' | b'a') => ("byte strings", None),
        Some(b'M') => ("dates (datetime64)", None),
        Some(b'm') => ("time spans (timedelta64)", None),
        _ => ("of a type that is not supported", None),
    };
    let error = FormatError::unsupported(format!("its elements are {reason}: `{descr}`"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
