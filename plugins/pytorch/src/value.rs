//! What a pickle says, as data: values that refer to each other by number, and calls that nobody makes.
//!
//! Containers are references, as in Python: one that is filled after it was memoized is filled everywhere, and one that
//! contains itself is a cycle of numbers.

use std::fmt;

/// The longest key of a storage, in bytes. torch's own are numbers and file names.
const MAX_KEY: usize = 1024;

/// Which value: an index into [`Values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u32);

/// A Python object.
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
    Tuple(Box<[Id]>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Box<Global>),
    Call(Box<Call>),
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
    /// Entries that would be assigned, for objects that behave like dictionaries.
    pub(crate) entries: Vec<(Id, Id)>,
    /// Elements that would be appended, for objects that behave like lists.
    pub(crate) elements: Vec<Id>,
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
pub(crate) struct Values(Vec<Value>);

impl Values {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds a value. The caller limits how many there are to 32 bits.
    pub(crate) fn add(&mut self, value: Value) -> Id {
        let id = Id(self.0.len() as u32);
        self.0.push(value);
        id
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        &self.0[id.index()]
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> &mut Value {
        &mut self.0[id.index()]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &Value)> {
        self.0.iter().enumerate().map(|(index, value)| (Id(index as u32), value))
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
            Value::Tuple(items) => items.iter().copied().for_each(visit),
            Value::Dict(entries) => pairs(entries, &mut visit),
            Value::Call(call) => {
                pairs(&call.entries, &mut visit);
                let parts = [call.callable, call.args].into_iter().chain(call.state);
                parts.chain(call.elements.iter().copied()).for_each(visit);
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
    pub(crate) fn key(&self, id: Id) -> Option<String> {
        match self.get(id) {
            // Each mention of a key is a copy, so long ones are none.
            Value::Text(text) if text.len() <= MAX_KEY => Some(text.to_string()),
            Value::Int(int) => Some(int.to_string()),
            _ => None,
        }
    }

    /// The elements of a list or tuple.
    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) => Some(items),
            Value::Tuple(items) => Some(items),
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
            Value::Call(call) => Some(&call.entries),
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
