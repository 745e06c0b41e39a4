//! What a pickle says, as data: values that refer to each other by number, and calls that nobody makes.
//!
//! Containers are references, as in Python: one that is filled after it was memoized is filled everywhere, and one that
//! contains itself is a cycle of numbers.

use std::borrow::Cow;
use std::fmt;

/// The longest key of a storage, in bytes. torch's own are numbers. Each mention of one is looked up.
const MAX_KEY: usize = 255;

/// Which value: an index into [`Values`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u32);

/// A Python object, in 32 bytes: the shortest instructions make one of a single byte.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Box<str>),
    /// Bytes, text that is no UTF-8 and numbers beyond 128 bits: no tensor is described by one, so none is kept.
    Bytes,
    List(Vec<Id>),
    /// What [`Values::tuple`] finds the parts by.
    Tuple(Parts),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Box<Global>),
    Call(Call),
    /// What the file's layout says about this value: a storage, mostly.
    Persistent(Id),
}

/// A function or class by name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Global {
    pub(crate) module: String,
    pub(crate) name: String,
}

impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// What Python would make by calling something, and what it would do to the result.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) callable: Id,
    pub(crate) args: Id,
    /// What `__setstate__` or the object's attributes would be given.
    pub(crate) state: Option<Id>,
    filled: Option<Box<Filled>>,
}

/// What an object was filled with, which few are.
#[derive(Debug, Default)]
struct Filled {
    entries: Vec<(Id, Id)>,
    elements: Vec<Id>,
}

impl Call {
    pub(crate) fn new(callable: Id, args: Id) -> Self {
        Self { callable, args, state: None, filled: None }
    }

    /// Entries that would be assigned, for objects that behave like dictionaries.
    pub(crate) fn entries(&self) -> &[(Id, Id)] {
        self.filled.as_ref().map_or(&[], |filled| &filled.entries)
    }

    /// Elements that would be appended, for objects that behave like lists.
    pub(crate) fn elements(&self) -> &[Id] {
        self.filled.as_ref().map_or(&[], |filled| &filled.elements)
    }

    pub(crate) fn assign(&mut self, entries: &[(Id, Id)]) {
        self.filled.get_or_insert_default().entries.extend_from_slice(entries);
    }

    pub(crate) fn append(&mut self, elements: &[Id]) {
        self.filled.get_or_insert_default().elements.extend_from_slice(elements);
    }
}

/// A run of the parts of all tuples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    start: u32,
    end: u32,
}

impl Value {
    /// What Python calls such a thing, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Float(_) => "a float",
            Self::Text(_) => "text",
            Self::Bytes => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class or function",
            Self::Call(_) => "an object",
            Self::Persistent(_) => "a storage",
        }
    }
}

/// All values of a pickle.
#[derive(Debug, Default)]
pub(crate) struct Values {
    list: Vec<Value>,
    /// The parts of all tuples, which cannot change: a vector for each would take more than the values do.
    parts: Vec<Id>,
    /// How long the pickle is that they were made of, in bytes.
    pickled: u64,
}

impl Values {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// How long the pickle is that they were made of, in bytes.
    pub(crate) fn pickled(&self) -> u64 {
        self.pickled
    }

    pub(crate) fn set_pickled(&mut self, bytes: u64) {
        self.pickled = bytes;
    }

    /// Adds a value. The caller limits how many there are to 32 bits.
    pub(crate) fn add(&mut self, value: Value) -> Id {
        let id = Id(self.list.len() as u32);
        reserve_one(&mut self.list);
        self.list.push(value);
        id
    }

    /// A tuple of these parts. The caller limits the bytes of a pickle, and so all parts, to 32 bits.
    pub(crate) fn tuple_of(&mut self, parts: &[Id]) -> Value {
        let start = self.parts.len() as u32;
        for part in parts {
            reserve_one(&mut self.parts);
            self.parts.push(*part);
        }
        Value::Tuple(Parts { start, end: self.parts.len() as u32 })
    }

    fn tuple(&self, parts: Parts) -> &[Id] {
        &self.parts[parts.start as usize..parts.end as usize]
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        &self.list[id.index()]
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> &mut Value {
        &mut self.list[id.index()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &Value)> {
        self.list.iter().enumerate().map(|(index, value)| (Id(index as u32), value))
    }

    /// Calls `visit` with everything that a value refers to, whatever it means.
    pub(crate) fn references(&self, id: Id, mut visit: impl FnMut(Id)) {
        let pairs = |entries: &[(Id, Id)], visit: &mut dyn FnMut(Id)| {
            for (key, value) in entries {
                visit(*key);
                visit(*value);
            }
        };
        match self.get(id) {
            Value::List(items) | Value::Set(items) => items.iter().copied().for_each(visit),
            Value::Tuple(parts) => self.tuple(*parts).iter().copied().for_each(visit),
            Value::Dict(entries) => pairs(entries, &mut visit),
            Value::Call(call) => {
                pairs(call.entries(), &mut visit);
                let parts = [call.callable, call.args].into_iter().chain(call.state);
                parts.chain(call.elements().iter().copied()).for_each(visit);
            }
            _ => {}
        }
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number that is not negative and fits 64 bits.
    pub(crate) fn unsigned(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(int) => u64::try_from(*int).ok(),
            _ => None,
        }
    }

    /// A storage's key as text, however it was written.
    pub(crate) fn key(&self, id: Id) -> Option<Cow<'_, str>> {
        match self.get(id) {
            Value::Text(text) if text.len() <= MAX_KEY => Some(Cow::Borrowed(text)),
            Value::Int(int) => Some(Cow::Owned(int.to_string())),
            _ => None,
        }
    }

    /// The elements of a list or tuple.
    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) => Some(items),
            Value::Tuple(parts) => Some(self.tuple(*parts)),
            _ => None,
        }
    }

    pub(crate) fn global(&self, id: Id) -> Option<&Global> {
        match self.get(id) {
            Value::Global(global) => Some(global),
            // Layouts before 1.6 wrap the classes of pickled modules: ('module', class, file, source).
            Value::Persistent(inner) => match self.sequence(*inner)? {
                [tag, class, ..] if self.text(*tag) == Some("module") => match self.get(*class) {
                    Value::Global(global) => Some(global),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// A call, what it calls if that has a name, and its arguments.
    pub(crate) fn call(&self, id: Id) -> Option<(&Call, Option<&Global>, &[Id])> {
        match self.get(id) {
            Value::Call(call) => Some((call, self.global(call.callable), self.sequence(call.args).unwrap_or_default())),
            _ => None,
        }
    }

    /// The entries of a dictionary or of an object that behaves like one.
    pub(crate) fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(entries) => Some(entries),
            Value::Call(call) => Some(call.entries()),
            _ => None,
        }
    }

    /// The value under a text key; the last one, as assignments go.
    pub(crate) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        self.entries(dict)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value)
    }
}

impl Id {
    /// The value's place among [`Values`].
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Makes room for one more element, and for no more than a quarter of what is there: doubling would make the limit on a
/// pickle's memory twice as high.
fn reserve_one<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(list.len() / 4 + 16);
    }
}
