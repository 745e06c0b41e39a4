//! From nested Python objects to named tensors.
//!
//! A name is the path to the tensor, joined with dots: keys of dictionaries, places in lists, attributes of objects. A
//! pickled module is what its `state_dict()` would be: parameters, buffers that persist, and submodules.
//!
//! The work is bounded without trusting the pickle: containers on the current path are not entered again, those found
//! to lead to no tensor are not entered twice, and what is left is counted.

use crate::tensor::{Storages, View, is_tensor, view};
use crate::value::{Call, Global, Id, Value, Values};
use ckptmerge_format::{Fault, FormatError};

/// How deep containers may lie in each other.
const MAX_DEPTH: usize = 256;
/// The most tensors.
const MAX_TENSORS: usize = 1 << 19;
/// The most children looked at, over all visits of all containers.
const MAX_STEPS: usize = 1 << 26;
/// The longest name of a tensor, and all of them together, in bytes.
const MAX_NAME: usize = 1000;
const MAX_NAMES: usize = 1 << 27;

/// One component of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The key that this value is.
    Key(Id),
    /// A place in a list.
    Index(usize),
    /// The only part of something that adds nothing to the path.
    Same,
}

/// A tensor on a path.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// The root's child that it is, or lies in.
    pub(crate) first: Option<Step>,
    /// Whether it lies in that child.
    pub(crate) nested: bool,
    pub(crate) view: Result<View, FormatError>,
}

/// All tensors under `root`, in the order in which Python would meet them, and what was odd.
pub(crate) fn flatten(
    values: &Values,
    storages: &Storages,
    root: Id,
) -> Result<(Vec<Found>, Vec<String>), FormatError> {
    let count = values.len();
    let mut walk = Walk {
        values,
        storages,
        path: Vec::new(),
        on_path: vec![false; count],
        barren: vec![false; count],
        steps: 0,
        names: 0,
        found: Vec::new(),
        arrays: Vec::new(),
    };
    walk.visit(root)?;
    let warnings = walk.arrays.first().map(|first| {
        let count = walk.arrays.len();
        format!("{count} NumPy arrays are left out, the first of them `{first}`: only tensors are read")
    });
    Ok((walk.found, warnings.into_iter().collect()))
}

struct Walk<'a> {
    values: &'a Values,
    storages: &'a Storages,
    path: Vec<Step>,
    on_path: Vec<bool>,
    /// Containers from which no tensor is reached.
    barren: Vec<bool>,
    steps: usize,
    names: usize,
    found: Vec<Found>,
    arrays: Vec<String>,
}

impl Walk<'_> {
    /// Collects the tensors under a value; true if a container on the path was met again, or a tensor.
    fn visit(&mut self, id: Id) -> Result<bool, FormatError> {
        if self.barren[id.index()] {
            return Ok(false);
        }
        if self.on_path[id.index()] {
            return Ok(true);
        }
        if is_tensor(self.values, self.storages, id) {
            return self.emit(id).map(|()| true);
        }
        if self.is_array(id) {
            self.arrays.push(self.name()?);
            return Ok(false);
        }
        if self.path.len() >= MAX_DEPTH {
            return Err(FormatError::new(Fault::Limit, format!("objects lie more than {MAX_DEPTH} deep in each other")));
        }
        let children = self.children(id);
        self.steps += children.len();
        if self.steps > MAX_STEPS {
            return Err(FormatError::new(Fault::Limit, "the same objects are contained in each other too many times"));
        }
        self.on_path[id.index()] = true;
        let mut fertile = false;
        for (step, child) in children {
            self.path.push(step);
            fertile |= self.visit(child)?;
            self.path.pop();
        }
        self.on_path[id.index()] = false;
        self.barren[id.index()] = !fertile;
        Ok(fertile)
    }

    fn emit(&mut self, id: Id) -> Result<(), FormatError> {
        let name = self.name()?;
        self.names += name.len();
        if self.found.len() == MAX_TENSORS || self.names > MAX_NAMES {
            let message = format!("more than {MAX_TENSORS} tensors, or {MAX_NAMES} bytes of names");
            return Err(FormatError::new(Fault::Limit, message));
        }
        let view = view(self.values, self.storages, id).map_err(|error| error.at(&name));
        let mut steps = self.path.iter().filter(|step| **step != Step::Same);
        self.found.push(Found { name, first: steps.next().copied(), nested: steps.next().is_some(), view });
        Ok(())
    }

    /// The current path as text.
    fn name(&self) -> Result<String, FormatError> {
        let mut name = String::new();
        for step in self.path.iter().filter(|step| **step != Step::Same) {
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(&step_text(self.values, *step)?);
            if name.len() > MAX_NAME {
                return Err(FormatError::new(Fault::Limit, format!("a tensor's name has more than {MAX_NAME} bytes")));
            }
        }
        // A tensor that is the whole file has no path.
        Ok(if name.is_empty() { "tensor".to_owned() } else { name })
    }

    fn is_array(&self, id: Id) -> bool {
        let Some((_, Some(function), _)) = self.values.call(id) else { return false };
        function.module.starts_with("numpy") && matches!(function.name.as_str(), "_reconstruct" | "_frombuffer")
    }

    fn children(&self, id: Id) -> Vec<(Step, Id)> {
        match self.values.get(id) {
            Value::Dict(entries) => keyed(entries),
            Value::List(items) | Value::Set(items) => indexed(items),
            Value::Tuple(items) => indexed(items),
            Value::Call(call) => self.object(call),
            _ => Vec::new(),
        }
    }

    /// What an object that nobody made would hold.
    fn object(&self, call: &Call) -> Vec<(Step, Id)> {
        let args = self.values.sequence(call.args).unwrap_or_default();
        if let Some(Global { module, name }) = self.values.global(call.callable) {
            match (module.as_str(), name.as_str(), args) {
                ("collections", "OrderedDict" | "defaultdict", _) => return self.ordered(call, args),
                ("torch.jit._pickle", _, [value, ..]) => return vec![(Step::Same, *value)],
                ("torch", "Size", _) => return Vec::new(),
                ("numpy" | "numpy.core.multiarray" | "numpy._core.multiarray" | "numpy.random._pickle", ..) => {
                    return Vec::new();
                }
                _ => {}
            }
        }
        let mut children = keyed(&call.entries);
        children.extend(indexed(&call.elements));
        if let Some(state) = call.state {
            children.extend(self.module(state).unwrap_or_else(|| self.attributes(state)));
        }
        if children.is_empty() { indexed(args) } else { children }
    }

    /// Entries that were assigned, behind those that Python 2 gave to the constructor as a list of pairs.
    fn ordered(&self, call: &Call, args: &[Id]) -> Vec<(Step, Id)> {
        let given = args.first().and_then(|list| self.values.sequence(*list)).unwrap_or_default();
        let pair = |id: &Id| match self.values.sequence(*id) {
            Some([key, value]) => Some((Step::Key(*key), *value)),
            _ => None,
        };
        given.iter().filter_map(pair).chain(keyed(&call.entries)).collect()
    }

    /// The parts of a module's state that its `state_dict()` has.
    fn module(&self, state: Id) -> Option<Vec<(Step, Id)>> {
        let parameters = self.values.entry(state, "_parameters")?;
        let buffers = self.values.entry(state, "_buffers")?;
        let modules = self.values.entry(state, "_modules")?;
        let passing = self.values.entry(state, "_non_persistent_buffers_set").map(|set| self.elements(set));
        let persists = |step: &Step| match step {
            Step::Key(key) => !passing.iter().flatten().any(|name| self.values.text(*name) == self.values.text(*key)),
            _ => true,
        };
        let mut children = self.children(parameters);
        children.extend(self.children(buffers).into_iter().filter(|(step, _)| persists(step)));
        children.extend(self.children(modules));
        Some(children)
    }

    /// The elements of a set, which protocol 2 writes as `set([…])`.
    fn elements(&self, set: Id) -> &[Id] {
        match self.values.get(set) {
            Value::Set(items) => items,
            _ => match self.values.call(set) {
                Some((_, _, [items])) => self.values.sequence(*items).unwrap_or_default(),
                _ => &[],
            },
        }
    }

    /// Attributes by name; objects with slots have a pair of such dictionaries.
    fn attributes(&self, state: Id) -> Vec<(Step, Id)> {
        match self.values.get(state) {
            Value::Dict(entries) => keyed(entries),
            Value::Tuple(pair) if pair.len() == 2 && pair.iter().all(|id| self.is_dict_or_none(*id)) => {
                pair.iter().filter_map(|id| self.values.entries(*id)).flat_map(keyed).collect()
            }
            _ => vec![(Step::Same, state)],
        }
    }

    fn is_dict_or_none(&self, id: Id) -> bool {
        matches!(self.values.get(id), Value::Dict(_) | Value::None)
    }
}

fn keyed(entries: &[(Id, Id)]) -> Vec<(Step, Id)> {
    entries.iter().map(|(key, value)| (Step::Key(*key), *value)).collect()
}

fn indexed(items: &[Id]) -> Vec<(Step, Id)> {
    items.iter().enumerate().map(|(place, value)| (Step::Index(place), *value)).collect()
}

/// A component of a name as text: a tuple's parts are joined with dots too.
pub(crate) fn step_text(values: &Values, step: Step) -> Result<String, FormatError> {
    match step {
        Step::Same => Ok(String::new()),
        Step::Index(place) => Ok(place.to_string()),
        Step::Key(key) => match values.get(key) {
            Value::Tuple(parts) if parts.len() <= MAX_DEPTH => {
                let parts: Result<Vec<_>, _> = parts.iter().map(|part| scalar_text(values, *part)).collect();
                parts.map(|parts| parts.join("."))
            }
            _ => scalar_text(values, key),
        },
    }
}

fn scalar_text(values: &Values, id: Id) -> Result<String, FormatError> {
    match values.get(id) {
        Value::Text(text) if text.len() <= MAX_NAME => Ok(text.to_string()),
        Value::Text(_) => Err(FormatError::new(Fault::Limit, format!("a key has more than {MAX_NAME} bytes"))),
        Value::Int(int) => Ok(int.to_string()),
        Value::Float(float) => Ok(float.to_string()),
        Value::Bool(bool) => Ok(if *bool { "True" } else { "False" }.to_owned()),
        Value::None => Ok("None".to_owned()),
        Value::Global(global) => Ok(global.to_string()),
        other => Err(FormatError::unsupported(format!("a tensor's path has {} as a key", other.kind()))),
    }
}
