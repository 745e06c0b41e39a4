//! Typed values as text, and back.
//!
//! GGUF's metadata has types; a checkpoint's metadata is text. A string is itself. Every other value, and a string
//! that could be mistaken for one, is `gguf:`, its type, a colon, and JSON:
//!
//! | value | text |
//! |---|---|
//! | u8, i8, u16, i16, u32, i32, u64, i64 | `gguf:u32:32000` |
//! | f32, f64 | `gguf:f32:1e-5`, and in quotes `"inf"`, `"-inf"`, `"nan"`, `"nan:7fc00001"` with the bits of unusual ones |
//! | bool | `gguf:bool:true` |
//! | array | `gguf:arr[str]:["a","b"]`, its items as their JSON would be |
//! | array of arrays | `gguf:arr[arr]:[{"u32":[1,2]},{"u32":[]}]` |
//! | string that begins with `gguf:` | `gguf:str:"gguf:…"` |
//! | string that is not UTF-8 | `gguf:bytes:"<hexadecimal>"`; in an array `{"bytes":"<hexadecimal>"}` |

use crate::read::Cursor;
use ckptmerge_format::{Fault, FormatError};
use serde_json::Value;
use std::fmt::{Display, Write};

/// What text begins with that is not a string.
const MARK: &str = "gguf:";

/// How deep arrays may be nested. ggml itself has no nested ones.
const MAX_DEPTH: u32 = 8;

/// A type of value: its name in text, and the fewest bytes that a value takes. Its number in files is its place.
const KINDS: [(&str, u64); 13] = [
    ("u8", 1),
    ("i8", 1),
    ("u16", 2),
    ("i16", 2),
    ("u32", 4),
    ("i32", 4),
    ("f32", 4),
    ("bool", 1),
    ("str", 8),
    ("arr", 12),
    ("u64", 8),
    ("i64", 8),
    ("f64", 8),
];
const STR: u32 = 8;
const ARR: u32 = 9;

fn kind(id: u32) -> Result<(&'static str, u64), FormatError> {
    KINDS.get(id as usize).copied().ok_or_else(|| FormatError::corrupt(format!("there is no type {id} of values")))
}

fn id(name: &str) -> Option<u32> {
    KINDS.iter().position(|kind| kind.0 == name).map(|id| id as u32)
}

/// Reads a type and a value of it.
pub(crate) fn read(cursor: &mut Cursor<'_>) -> Result<String, FormatError> {
    let id = cursor.u32()?;
    let mut text = String::new();
    match id {
        STR => return Ok(plain(cursor.string()?)),
        ARR => {
            let (item, count) = array_head(cursor)?;
            write_to(&mut text, format_args!("{MARK}arr[{}]:", kind(item)?.0));
            read_items(cursor, item, count, MAX_DEPTH, &mut text)?;
        }
        _ => {
            write_to(&mut text, format_args!("{MARK}{}:", kind(id)?.0));
            read_item(cursor, id, MAX_DEPTH, &mut text)?;
        }
    }
    Ok(text)
}

/// The text of a string.
fn plain(bytes: Vec<u8>) -> String {
    match String::from_utf8(bytes) {
        Ok(text) if text.starts_with(MARK) => format!("{MARK}str:{}", Value::from(text)),
        Ok(text) => text,
        Err(error) => format!("{MARK}bytes:\"{}\"", hex(error.as_bytes())),
    }
}

/// An array's type of items, and how many there are: no more than the file has room for.
fn array_head(cursor: &mut Cursor<'_>) -> Result<(u32, u64), FormatError> {
    let (item, count) = (cursor.u32()?, cursor.u64()?);
    let bytes = count.saturating_mul(kind(item)?.1);
    cursor.need(bytes, || format!("an array of {count} values"))?;
    Ok((item, count))
}

fn read_items(cursor: &mut Cursor<'_>, item: u32, count: u64, depth: u32, out: &mut String) -> Result<(), FormatError> {
    out.push('[');
    for i in 0..count {
        if i > 0 {
            out.push(',');
        }
        read_item(cursor, item, depth, out)?;
    }
    out.push(']');
    Ok(())
}

/// Reads a value of the type and appends its JSON.
fn read_item(cursor: &mut Cursor<'_>, id: u32, depth: u32, out: &mut String) -> Result<(), FormatError> {
    match kind(id)?.0 {
        "u8" => write_to(out, cursor.take::<1>()?[0]),
        "i8" => write_to(out, cursor.take::<1>()?[0] as i8),
        "u16" => write_to(out, cursor.u16()?),
        "i16" => write_to(out, cursor.u16()? as i16),
        "u32" => write_to(out, cursor.u32()?),
        "i32" => write_to(out, cursor.u32()? as i32),
        "u64" => write_to(out, cursor.u64()?),
        "i64" => write_to(out, cursor.u64()? as i64),
        "f32" => write_to(out, f32_text(f32::from_bits(cursor.u32()?))),
        "f64" => write_to(out, f64_text(f64::from_bits(cursor.u64()?))),
        "bool" => write_to(out, cursor.take::<1>()?[0] != 0),
        "str" => match String::from_utf8(cursor.string()?) {
            Ok(text) => write_to(out, Value::from(text)),
            Err(error) => write_to(out, format_args!("{{\"bytes\":\"{}\"}}", hex(error.as_bytes()))),
        },
        _ => {
            let depth = depth
                .checked_sub(1)
                .ok_or_else(|| FormatError::new(Fault::Limit, format!("arrays are nested {MAX_DEPTH} deep or more")))?;
            let (item, count) = array_head(cursor)?;
            write_to(out, format_args!("{{\"{}\":", kind(item)?.0));
            read_items(cursor, item, count, depth, out)?;
            out.push('}');
        }
    }
    Ok(())
}

fn write_to(out: &mut String, value: impl Display) {
    write!(out, "{value}").expect("a String takes all that is written to it");
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    bytes.iter().for_each(|byte| write_to(&mut text, format_args!("{byte:02x}")));
    text
}

/// The shortest decimal that is read back as this number, also by way of f64.
fn f32_text(value: f32) -> String {
    if !value.is_finite() {
        return special(value.is_nan(), value < 0.0, value.to_bits() != f32::NAN.to_bits(), value.to_bits().into());
    }
    let text = format!("{value:?}");
    if text.parse::<f64>().map(|wide| (wide as f32).to_bits()) == Ok(value.to_bits()) {
        return text;
    }
    format!("{:?}", f64::from(value))
}

fn f64_text(value: f64) -> String {
    if value.is_finite() {
        return format!("{value:?}");
    }
    special(value.is_nan(), value < 0.0, value.to_bits() != f64::NAN.to_bits(), value.to_bits())
}

fn special(is_nan: bool, is_negative: bool, is_unusual: bool, bits: u64) -> String {
    match (is_nan, is_negative) {
        (true, _) if is_unusual => format!("\"nan:{bits:x}\""),
        (true, _) => "\"nan\"".to_owned(),
        (false, true) => "\"-inf\"".to_owned(),
        (false, false) => "\"inf\"".to_owned(),
    }
}

/// Appends the type and the value that the text stands for.
///
/// # Errors
/// What is wrong with text that begins like that of a typed value, but is not.
pub(crate) fn write(text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let Some(typed) = text.strip_prefix(MARK) else {
        out.extend(STR.to_le_bytes());
        write_string(text.as_bytes(), out);
        return Ok(());
    };
    let (name, json) = typed.split_once(':').ok_or("it has no type")?;
    let value: Value = serde_json::from_str(json).map_err(|error| format!("`{json:.40}` is not JSON: {error}"))?;
    if name == "bytes" {
        out.extend(STR.to_le_bytes());
        return write_hex(&value, out);
    }
    if let Some(item) = name.strip_prefix("arr[").and_then(|name| name.strip_suffix(']')) {
        out.extend(ARR.to_le_bytes());
        return write_items(item, &value, out);
    }
    let id = id(name).filter(|&id| id != ARR).ok_or_else(|| format!("GGUF has no type `{name:.40}`"))?;
    out.extend(id.to_le_bytes());
    write_item(name, &value, out)
}

/// Appends a string with its length.
pub(crate) fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn write_hex(value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let digits = value.as_str().filter(|text| text.len() % 2 == 0).ok_or("`bytes` needs pairs of digits")?;
    let pairs = digits.as_bytes().as_chunks::<2>().0;
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or("`bytes` needs hexadecimal digits");
    let bytes: Result<Vec<u8>, _> =
        pairs.iter().map(|[high, low]| Ok::<_, &str>((digit(*high)? << 4 | digit(*low)?) as u8)).collect();
    write_string(&bytes?, out);
    Ok(())
}

/// Appends the type of an array's items, their number, and the items.
fn write_items(item: &str, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let id = id(item).ok_or_else(|| format!("GGUF has no type `{item:.40}`"))?;
    let items = value.as_array().ok_or("an array is to be in brackets")?;
    out.extend(id.to_le_bytes());
    out.extend((items.len() as u64).to_le_bytes());
    items.iter().try_for_each(|value| write_item(item, value, out))
}

fn write_item(name: &str, value: &Value, out: &mut Vec<u8>) -> Result<(), String> {
    let wrong = || format!("`{:.40}` is no {name}", value.to_string());
    /// The little-endian bytes of an integer, if it is one of the type.
    macro_rules! integer {
        ($integer:ty, $as:ident) => {
            out.extend(value.$as().and_then(|v| <$integer>::try_from(v).ok()).ok_or_else(wrong)?.to_le_bytes())
        };
    }
    match name {
        "u8" => integer!(u8, as_u64),
        "u16" => integer!(u16, as_u64),
        "u32" => integer!(u32, as_u64),
        "u64" => integer!(u64, as_u64),
        "i8" => integer!(i8, as_i64),
        "i16" => integer!(i16, as_i64),
        "i32" => integer!(i32, as_i64),
        "i64" => integer!(i64, as_i64),
        "f32" => {
            let nan = |bits| u32::try_from(bits).ok().map(f32::from_bits);
            out.extend(float(value, f32::NAN, nan, |wide| wide as f32).ok_or_else(wrong)?.to_le_bytes());
        }
        "f64" => {
            let nan = |bits| Some(f64::from_bits(bits));
            out.extend(float(value, f64::NAN, nan, |wide| wide).ok_or_else(wrong)?.to_le_bytes());
        }
        "bool" => out.push(value.as_bool().ok_or_else(wrong)?.into()),
        "str" => match value.get("bytes") {
            Some(digits) => write_hex(digits, out)?,
            None => write_string(value.as_str().ok_or_else(wrong)?.as_bytes(), out),
        },
        _ => {
            let pair = value.as_object().filter(|object| object.len() == 1).and_then(|object| object.iter().next());
            let (item, items) = pair.ok_or_else(wrong)?;
            write_items(item, items, out)?;
        }
    }
    Ok(())
}

/// The number that the text of [`f32_text`] or [`f64_text`] is of.
fn float<F>(value: &Value, nan: F, of_bits: impl Fn(u64) -> Option<F>, of_f64: impl Fn(f64) -> F) -> Option<F> {
    match value.as_str() {
        None => value.as_f64().map(of_f64),
        Some("inf") => Some(of_f64(f64::INFINITY)),
        Some("-inf") => Some(of_f64(f64::NEG_INFINITY)),
        Some("nan") => Some(nan),
        Some(text) => of_bits(u64::from_str_radix(text.strip_prefix("nan:")?, 16).ok()?),
    }
}
