//! The pickle machine: every instruction of protocols 0 to 5, and nothing that they would run.
//!
//! Where Python's machine imports and calls, this one notes the name and the arguments ([`Call`]). What the calls mean
//! is decided by the readers of the notes, from a short list of names. Instructions are documented in Python's
//! `pickletools` module, and the protocols in PEP 307, 3154 and 574.
//!
//! Memory is at most 50 bytes for each byte of the pickle that was run: 32 for a value, 4 for its place on the stack, the
//! rest for the memo. Time is linear in it.

use crate::input::Input;
use crate::value::{Call, Global, Id, Value, Values};
use ckptmerge_format::{Fault, FormatError};
use std::collections::HashMap;

/// The most values, memo entries and stack entries of a pickle of any length. A 70-billion-parameter model with its
/// optimizer has about 10^5.
const MAX_VALUES: usize = 1 << 23;
/// How many more a long pickle may have: one for so many of its bytes, so that memory is in proportion to the file, and
/// at most so many in all. Long ones are the metadata of distributed checkpoints, which take 28 values and 143 bytes a
/// chunk (measured of torch 2.15): 2^26 values are 2.4 million, a few more than are allowed (`distributed`). A model of
/// 405 billion parameters has 1,138 tensors, with its optimizer 3,414, which 512 processes cut into 1.75 million chunks.
const BYTES_PER_VALUE: u64 = 4;
const MAX_VALUES_OF_LONG: usize = 1 << 26;
/// The longest text that is kept, in bytes; longer ones (a module's source code) are passed over.
const MAX_TEXT: u64 = 1 << 20;
/// The longest name of a class or function, in bytes.
const MAX_GLOBAL: usize = 1024;
/// How many bytes of names are copied from the memo, for each byte of the pickle so far, and besides. Python's pickler
/// writes each name once.
const MAX_NAMES_RATIO: u64 = 4;
const MAX_NAMES: u64 = 1 << 16;

/// Runs one pickle to its STOP.
pub(crate) fn unpickle(input: &mut Input<'_>) -> Result<(Values, Id), FormatError> {
    let mut machine = Machine {
        start: input.position(),
        input,
        values: Values::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        names: 0,
    };
    while !machine.step()? {}
    let root = machine.pop()?;
    let pickled = machine.run_so_far();
    machine.values.set_pickled(pickled);
    Ok((machine.values, root))
}

struct Machine<'i, 'a> {
    /// Where the pickle begins.
    start: u64,
    input: &'i mut Input<'a>,
    values: Values,
    stack: Vec<Id>,
    /// Heights of the stack at which a MARK stands.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes of names of classes and functions that were recalled.
    names: u64,
}

impl Machine<'_, '_> {
    /// Runs one instruction; true at STOP.
    fn step(&mut self) -> Result<bool, FormatError> {
        let opcode = self.input.byte()?;
        match opcode {
            b'.' => return Ok(true),
            // Framing: PROTO, FRAME.
            0x80 => {
                let protocol = self.input.byte()?;
                if protocol > 5 {
                    return Err(FormatError::unsupported(format!("pickle protocol {protocol}; 5 is the newest known")));
                }
            }
            0x95 => {
                let length = u64::from_le_bytes(self.input.array()?);
                self.input.expect(length)?;
            }
            // The stack: MARK, POP, POP_MARK, DUP.
            b'(' => {
                self.room(self.marks.len())?;
                self.marks.push(self.stack.len());
            }
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            // Memo: GET, BINGET, LONG_BINGET, PUT, BINPUT, LONG_BINPUT, MEMOIZE.
            b'g' => {
                let index = self.number()?;
                self.get(index)?;
            }
            b'h' => {
                let index = self.input.byte()?.into();
                self.get(index)?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.input.array()?);
                self.get(index)?;
            }
            b'p' => {
                let index = self.number()?;
                self.put(index)?;
            }
            b'q' => {
                let index = self.input.byte()?.into();
                self.put(index)?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.input.array()?);
                self.put(index)?;
            }
            0x94 => self.put(self.memo.len() as u32)?,
            // Containers: EMPTY_DICT, EMPTY_LIST, EMPTY_SET, DICT, LIST, FROZENSET, SETITEM(S), APPEND(S), ADDITEMS.
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            0x8f => self.push(Value::Set(Vec::new()))?,
            b'd' => {
                let entries = pairs(&self.pop_mark()?)?;
                self.push(Value::Dict(entries))?;
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::Set(items))?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.assign(&[(key, value)])?;
            }
            b'u' => {
                let entries = pairs(&self.pop_mark()?)?;
                self.assign(&entries)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            0x90 => {
                let items = self.pop_mark()?;
                self.append(&items)?;
            }
            // Tuples: EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE.
            b')' => self.push_tuple(&[])?,
            0x85..=0x87 => {
                let mut items = vec![self.pop()?];
                for _ in 0x85..opcode {
                    items.insert(0, self.pop()?);
                }
                self.push_tuple(&items)?;
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push_tuple(&items)?;
            }
            _ => return self.step_object(opcode).map(|()| false),
        }
        Ok(false)
    }

    /// Names, calls and what the layout resolves.
    fn step_object(&mut self, opcode: u8) -> Result<(), FormatError> {
        match opcode {
            // GLOBAL, STACK_GLOBAL.
            b'c' => {
                let global = self.global()?;
                self.push(global)
            }
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Some(module), Some(name)) = (self.values.text(module), self.values.text(name)) else {
                    return Err(self.corrupt("a class or function is named by something that is not text"));
                };
                if module.len().max(name.len()) > MAX_GLOBAL {
                    return Err(self.corrupt("the name of a class or function is too long"));
                }
                let (module, name) = (module.to_owned(), name.to_owned());
                self.names += (module.len() + name.len()) as u64;
                if self.names > MAX_NAMES + MAX_NAMES_RATIO * self.run_so_far() {
                    return Err(FormatError::new(Fault::Limit, "the pickle names the same classes too many times"));
                }
                self.push(Value::Global(Box::new(Global { module, name })))
            }
            // REDUCE and NEWOBJ differ in how Python makes the object, NEWOBJ_EX has keywords too.
            b'R' | 0x81 => {
                let args = self.pop()?;
                let callable = self.pop()?;
                self.push_call(callable, args)
            }
            0x92 => {
                let keywords = self.pop()?;
                let args = self.pop()?;
                let callable = self.pop()?;
                let both = self.values.tuple_of(&[args, keywords]);
                let both = self.add(both)?;
                self.push_call(callable, both)
            }
            // INST, OBJ: the instances of Python 2's old classes.
            b'i' => {
                let global = self.global()?;
                let args = self.pop_mark()?;
                let callable = self.add(global)?;
                let args = self.values.tuple_of(&args);
                let args = self.add(args)?;
                self.push_call(callable, args)
            }
            b'o' => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return Err(self.corrupt("an object without a class"));
                }
                let callable = args.remove(0);
                let args = self.values.tuple_of(&args);
                let args = self.add(args)?;
                self.push_call(callable, args)
            }
            // BUILD.
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                match self.values.get_mut(target) {
                    Value::Call(call) => call.state = Some(state),
                    other => {
                        let message = format!("the attributes of {} are assigned", other.kind());
                        return Err(self.corrupt(&message));
                    }
                }
                Ok(())
            }
            // PERSID, BINPERSID.
            b'P' => {
                let text = self.input.line(MAX_TEXT as usize)?;
                let id = self.add(text_or_bytes(text))?;
                self.push(Value::Persistent(id))
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))
            }
            0x82..=0x84 => Err(FormatError::unsupported("the pickle uses copyreg's extension registry")),
            0x97 | 0x98 => Err(FormatError::unsupported("the pickle keeps its buffers outside itself")),
            _ => {
                let value = self.scalar(opcode)?;
                self.push(value)
            }
        }
    }

    /// Values without parts.
    fn scalar(&mut self, opcode: u8) -> Result<Value, FormatError> {
        Ok(match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            // BININT, BININT1, BININT2, LONG1, LONG4, INT, LONG.
            b'J' => Value::Int(i32::from_le_bytes(self.input.array()?).into()),
            b'K' => Value::Int(self.input.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.input.array()?).into()),
            0x8a => {
                let length = self.input.byte()?;
                self.long(length.into())?
            }
            0x8b => {
                let length = u32::from_le_bytes(self.input.array()?);
                self.long(length.into())?
            }
            b'I' | b'L' => {
                let line = self.input.line(MAX_TEXT as usize)?;
                let digits = line.strip_suffix(b"L").unwrap_or(&line);
                match digits {
                    b"00" if opcode == b'I' => Value::Bool(false),
                    b"01" if opcode == b'I' => Value::Bool(true),
                    _ => match std::str::from_utf8(digits).ok().and_then(|digits| digits.trim().parse().ok()) {
                        Some(int) => Value::Int(int),
                        None => Value::Bytes,
                    },
                }
            }
            // BINFLOAT, FLOAT.
            b'G' => Value::Float(f64::from_be_bytes(self.input.array()?)),
            b'F' => {
                let line = self.input.line(MAX_TEXT as usize)?;
                let float = std::str::from_utf8(&line).ok().and_then(|line| line.trim().parse().ok());
                Value::Float(float.ok_or_else(|| self.corrupt("a number that cannot be read"))?)
            }
            // SHORT_BINSTRING, BINSTRING, SHORT_BINUNICODE, BINUNICODE, BINUNICODE8, STRING, UNICODE.
            b'U' | 0x8c => {
                let length = self.input.byte()?;
                self.text(length.into())?
            }
            b'T' | b'X' => {
                let length = u32::from_le_bytes(self.input.array()?);
                self.text(length.into())?
            }
            0x8d => {
                let length = u64::from_le_bytes(self.input.array()?);
                self.text(length)?
            }
            b'S' => {
                let line = self.input.line(MAX_TEXT as usize)?;
                let quoted =
                    [b'\'', b'"'].iter().find_map(|quote| line.strip_prefix(&[*quote])?.strip_suffix(&[*quote]));
                text_or_bytes(unescape(quoted.ok_or_else(|| self.corrupt("text without quotes"))?, false))
            }
            b'V' => text_or_bytes(unescape(&self.input.line(MAX_TEXT as usize)?, true)),
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8.
            b'C' => {
                let length = self.input.byte()?;
                self.bytes(length.into())?
            }
            b'B' => {
                let length = u32::from_le_bytes(self.input.array()?);
                self.bytes(length.into())?
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(self.input.array()?);
                self.bytes(length)?
            }
            _ => return Err(self.corrupt(&format!("the pickle has no such instruction: {opcode:#04x}"))),
        })
    }

    fn corrupt(&self, message: &str) -> FormatError {
        FormatError::corrupt(format!("{message} (before byte {})", self.input.position()))
    }

    /// Fails if `count` things are as many as there may be.
    fn room(&self, count: usize) -> Result<(), FormatError> {
        if count < MAX_VALUES {
            return Ok(());
        }
        let earned = (self.input.position() - self.start) / BYTES_PER_VALUE;
        if count as u64 >= earned.min(MAX_VALUES_OF_LONG as u64) {
            return Err(FormatError::new(Fault::Limit, format!("the pickle holds {count} values and more, too many")));
        }
        Ok(())
    }

    fn add(&mut self, value: Value) -> Result<Id, FormatError> {
        self.room(self.values.len())?;
        Ok(self.values.add(value))
    }

    fn push(&mut self, value: Value) -> Result<(), FormatError> {
        let id = self.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), FormatError> {
        self.room(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    fn push_call(&mut self, callable: Id, args: Id) -> Result<(), FormatError> {
        self.push(Value::Call(Call::new(callable, args)))
    }

    fn push_tuple(&mut self, parts: &[Id]) -> Result<(), FormatError> {
        let tuple = self.values.tuple_of(parts);
        self.push(tuple)
    }

    /// Bytes of the pickle that were run.
    fn run_so_far(&self) -> u64 {
        self.input.position() - self.start
    }

    fn top(&self) -> Result<Id, FormatError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(top) if self.stack.len() > floor => Ok(*top),
            _ => Err(self.corrupt("the pickle takes something from an empty stack")),
        }
    }

    fn pop(&mut self) -> Result<Id, FormatError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// What was pushed since the last MARK.
    fn pop_mark(&mut self) -> Result<Vec<Id>, FormatError> {
        let mark = self.marks.pop().ok_or_else(|| self.corrupt("the pickle looks for a mark that it never set"))?;
        Ok(self.stack.split_off(mark))
    }

    fn get(&mut self, index: u32) -> Result<(), FormatError> {
        let message = || FormatError::corrupt(format!("the pickle recalls entry {index}, which it never stored"));
        let id = self.memo.get(&index).copied().ok_or_else(message)?;
        self.push_id(id)
    }

    fn put(&mut self, index: u32) -> Result<(), FormatError> {
        self.room(self.memo.len())?;
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn assign(&mut self, entries: &[(Id, Id)]) -> Result<(), FormatError> {
        let target = self.top()?;
        match self.values.get_mut(target) {
            Value::Dict(dict) => dict.extend_from_slice(entries),
            Value::Call(call) => call.assign(entries),
            other => {
                let message = format!("entries of {} are assigned, which is no dict", other.kind());
                return Err(self.corrupt(&message));
            }
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), FormatError> {
        let target = self.top()?;
        match self.values.get_mut(target) {
            Value::List(list) | Value::Set(list) => list.extend_from_slice(items),
            Value::Call(call) => call.append(items),
            other => {
                let message = format!("elements are appended to {}, which is no list", other.kind());
                return Err(self.corrupt(&message));
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<u32, FormatError> {
        let line = self.input.line(MAX_TEXT as usize)?;
        let number = std::str::from_utf8(&line).ok().and_then(|line| line.trim().parse().ok());
        number.ok_or_else(|| self.corrupt("a memo entry that is no number"))
    }

    fn global(&mut self) -> Result<Value, FormatError> {
        let module = self.input.line(MAX_GLOBAL)?;
        let name = self.input.line(MAX_GLOBAL)?;
        match (String::from_utf8(module), String::from_utf8(name)) {
            (Ok(module), Ok(name)) => Ok(Value::Global(Box::new(Global { module, name }))),
            _ => Err(self.corrupt("the name of a class or function is not UTF-8")),
        }
    }

    fn text(&mut self, length: u64) -> Result<Value, FormatError> {
        if length > MAX_TEXT { self.bytes(length) } else { Ok(text_or_bytes(self.input.bytes(length)?)) }
    }

    fn bytes(&mut self, length: u64) -> Result<Value, FormatError> {
        self.input.skip(length)?;
        Ok(Value::Bytes)
    }

    /// A number in two's complement, least significant byte first.
    fn long(&mut self, length: u64) -> Result<Value, FormatError> {
        if length > 16 {
            return self.bytes(length);
        }
        let bytes = self.input.bytes(length)?;
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 16];
        wide[..bytes.len()].copy_from_slice(&bytes);
        Ok(Value::Int(i128::from_le_bytes(wide)))
    }
}

fn text_or_bytes(bytes: Vec<u8>) -> Value {
    String::from_utf8(bytes).map_or(Value::Bytes, |text| Value::Text(text.into()))
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, FormatError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(FormatError::corrupt("a dict has a key without a value"));
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// Resolves backslash escapes: `\uXXXX` and `\UXXXXXXXX` if `unicode`, else those of a Python 2 string.
fn unescape(text: &[u8], unicode: bool) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let [escape, tail @ ..] = tail else {
            plain.push(*byte);
            continue;
        };
        let digits = match (byte, escape, unicode) {
            (b'\\', b'u', true) => 4,
            (b'\\', b'U', true) => 8,
            (b'\\', b'x', false) => 2,
            (b'\\', b'\\' | b'\'' | b'"' | b'n' | b'r' | b't', false) => 0,
            _ => {
                plain.push(*byte);
                continue;
            }
        };
        if digits == 0 {
            plain.push(match escape {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => *other,
            });
            rest = tail;
            continue;
        }
        let code = tail.get(..digits).and_then(|hex| u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (code, code.and_then(char::from_u32)) {
            (Some(code), _) if !unicode => plain.push(code as u8),
            (_, Some(character)) => plain.extend(character.encode_utf8(&mut [0; 4]).bytes()),
            _ => {
                plain.push(*byte);
                continue;
            }
        }
        rest = &tail[digits..];
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use ckptmerge_format::Source;

    struct Bytes(&'static [u8]);

    impl Source for Bytes {
        fn len(&self) -> u64 {
            self.0.len() as u64
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
            buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
            Ok(())
        }
    }

    /// A value with its parts, as Python would write it; calls with what is done to their result.
    fn show(values: &Values, id: Id) -> String {
        let all = |ids: &[Id]| ids.iter().map(|id| show(values, *id)).collect::<Vec<_>>().join(" ");
        let pairs = |pairs: &[(Id, Id)]| {
            pairs
                .iter()
                .map(|(k, v)| format!("{}:{}", show(values, *k), show(values, *v)))
                .collect::<Vec<_>>()
                .join(" ")
        };
        match values.get(id) {
            Value::None => "None".to_owned(),
            Value::Bool(bool) => bool.to_string(),
            Value::Int(int) => int.to_string(),
            Value::Float(float) => float.to_string(),
            Value::Text(text) => format!("{text:?}"),
            Value::Bytes => "bytes".to_owned(),
            Value::List(items) => format!("[{}]", all(items)),
            Value::Tuple(_) => format!("({})", all(values.sequence(id).unwrap_or_default())),
            Value::Set(items) => format!("set({})", all(items)),
            Value::Dict(entries) => format!("{{{}}}", pairs(entries)),
            Value::Global(global) => global.to_string(),
            Value::Persistent(inner) => format!("#{}", show(values, *inner)),
            Value::Call(call) => {
                let state = call.state.map(|state| show(values, state)).unwrap_or_default();
                let (callable, args) = (show(values, call.callable), show(values, call.args));
                format!("{callable}{args}[{}]{{{}}}<{state}>", all(call.elements()), pairs(call.entries()))
            }
        }
    }

    fn run(pickle: &'static [u8]) -> String {
        let source = Bytes(pickle);
        let mut input = Input::new(&source, 0, u64::MAX);
        let (values, root) = unpickle(&mut input).expect("the pickle is in order");
        assert_eq!(input.left(), 0, "all of it is used");
        show(&values, root)
    }

    /// One instruction sequence again and again, and a STOP.
    struct Repeated {
        part: &'static [u8],
        times: u64,
    }

    impl Source for Repeated {
        fn len(&self) -> u64 {
            self.part.len() as u64 * self.times + 2
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
            let end = self.len() - 2;
            for (place, byte) in (offset..).zip(buffer) {
                *byte = match place.checked_sub(end) {
                    None => self.part[(place % self.part.len() as u64) as usize],
                    Some(0) => b'N',
                    Some(_) => b'.',
                };
            }
            Ok(())
        }
    }

    #[test]
    fn long_pickles_may_hold_more() {
        let run = |part: &'static [u8], times| {
            let source = Repeated { part, times };
            unpickle(&mut Input::new(&source, 0, u64::MAX)).map(|(values, _)| values.len())
        };
        let more = MAX_VALUES as u64 + 1000;
        assert_eq!(run(b"J\x01\x02\x03\x040", more).expect("6 bytes a value"), more as usize + 1);
        let error = run(b"N0", more).expect_err("2 bytes a value");
        assert_eq!(error.fault, Fault::Limit, "{error}");
    }

    #[test]
    fn scalars_of_every_protocol() {
        assert_eq!(run(b"(I1\nI01\nI00\nL-23L\nF1.5\nNt."), "(1 true false -23 1.5 None)");
        assert_eq!(run(b"\x80\x02(J\xff\xff\xff\xffK\xffM\x01\x01\x8a\x02\x00\xff\x8a\x00t."), "(-1 255 257 -256 0)");
        assert_eq!(run(b"\x80\x02(\x88\x89G\x3f\xf8\0\0\0\0\0\0\x8b\x01\0\0\0\x05t."), "(true false 1.5 5)");
        assert_eq!(run(b"\x8a\x11AAAAAAAAAAAAAAAAA."), "bytes");
    }

    #[test]
    fn texts_of_every_protocol() {
        assert_eq!(run(b"(S'a\\'\\n\\x41\\\\'\nS\"b\"\nV\\u00e9\\q\\\nt."), r#"("a'\nA\\" "b" "é\\q\\")"#);
        assert_eq!(
            run(b"(U\x01aT\x01\0\0\0bX\x02\0\0\0\xc3\xa9\x8c\x01d\x8d\x01\0\0\0\0\0\0\0et."),
            r#"("a" "b" "é" "d" "e")"#
        );
        assert_eq!(
            run(b"(U\x01\xffC\x01aB\x01\0\0\0a\x8e\x01\0\0\0\0\0\0\0a\x96\x01\0\0\0\0\0\0\0at."),
            "(bytes bytes bytes bytes bytes)"
        );
    }

    #[test]
    fn containers_and_memo() {
        assert_eq!(run(b"(lp0\nI1\nag0\n."), "[1]");
        assert_eq!(run(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0]\x94(K\x01K\x02eh\0\x86."), "([1 2] [1 2])");
        assert_eq!(run(b"(K\x01K\x02dr\0\x01\0\0K\x03K\x04sj\0\x01\0\0\x86."), "({1:2 3:4} {1:2 3:4})");
        assert_eq!(run(b"\x8f(K\x01K\x02\x90(K\x03\x91K\x04\x87."), "(set(1 2) set(3) 4)");
        assert_eq!(run(b"K\x01(K\x02K\x031(0K\x0502\x85\x86."), "(1 (1))");
    }

    #[test]
    fn objects_are_notes() {
        assert_eq!(run(b"cos\nsystem\n(S'ls'\ntR}b."), r#"os.system("ls")[]{}<{}>"#);
        assert_eq!(run(b"\x8c\x01m\x8c\x01C\x93)\x81(K\x01e(K\x02K\x03u."), "m.C()[1]{2:3}<>");
        assert_eq!(run(b"cm\nC\n)}\x92."), "m.C(() {})[]{}<>");
        assert_eq!(run(b"(K\x01im\nC\n."), "m.C(1)[]{}<>");
        assert_eq!(run(b"(cm\nC\nK\x01o."), "m.C(1)[]{}<>");
        assert_eq!(run(b"(P12\nK\x07Qt."), r##"(#"12" #7)"##);
    }
}
