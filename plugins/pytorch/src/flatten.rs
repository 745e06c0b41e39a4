//! From nested Python objects to named tensors.
//!
//! A name is the path to the tensor, joined with dots: keys of dictionaries, places in lists, attributes of objects. A
//! pickled module is what its `state_dict()` would be: parameters, buffers that persist, and submodules.
//!
//! The work is bounded without trusting the pickle: containers on the current path are not entered again, those that
//! lead to no tensor not at all, and what is left is counted.

use crate::tensor::{Storages, View, is_tensor, view};
use crate::value::{Call, Global, Id, Value, Values};
use ckptmerge_format::{Fault, FormatError};
use std::collections::HashSet;

/// How deep containers may lie in each other.
const MAX_DEPTH: usize = 256;
/// The most tensors.
const MAX_TENSORS: usize = 1 << 19;
/// The most children looked at, over all visits of all containers.
const MAX_STEPS: usize = 1 << 24;
/// The longest name of a tensor, and all of them together, in bytes.
pub(crate) const MAX_NAME: usize = 1000;
const MAX_NAMES: usize = 1 << 26;

/// One component of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    let mut walk = Walk {
        values,
        storages,
        path: Vec::new(),
        on_path: vec![false; values.len()],
        fertile: fertile(values, storages),
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
    /// Values from which a tensor or an array may be reached.
    fertile: Vec<bool>,
    steps: usize,
    names: usize,
    found: Vec<Found>,
    arrays: Vec<String>,
}

impl Walk<'_> {
    /// Collects the tensors under a value.
    fn visit(&mut self, id: Id) -> Result<(), FormatError> {
        if !self.fertile[id.index()] || self.on_path[id.index()] {
            return Ok(());
        }
        if is_tensor(self.values, self.storages, id) {
            return self.emit(id);
        }
        if is_array(self.values, id) {
            let name = self.name()?;
            self.names += name.len();
            if self.names > MAX_NAMES {
                return Err(FormatError::new(Fault::Limit, format!("more than {MAX_NAMES} bytes of names")));
            }
            self.arrays.push(name);
            return self.count(1);
        }
        if self.path.len() >= MAX_DEPTH {
            return Err(FormatError::new(
                Fault::Limit,
                format!("objects lie more than {MAX_DEPTH} deep in each other"),
            ));
        }
        let children = self.children(id)?;
        self.on_path[id.index()] = true;
        for (step, child) in children {
            self.path.push(step);
            self.visit(child)?;
            self.path.pop();
        }
        self.on_path[id.index()] = false;
        Ok(())
    }

    /// Counts children that are about to be looked at.
    fn count(&mut self, children: usize) -> Result<(), FormatError> {
        self.steps += children;
        if self.steps > MAX_STEPS {
            return Err(FormatError::new(Fault::Limit, "the same objects are contained in each other too many times"));
        }
        Ok(())
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

    fn children(&mut self, id: Id) -> Result<Vec<(Step, Id)>, FormatError> {
        let values = self.values;
        match values.get(id) {
            Value::Dict(entries) => self.keyed(entries),
            Value::List(items) | Value::Set(items) => self.indexed(items),
            Value::Tuple(items) => self.indexed(items),
            Value::Call(call) => self.object(call),
            _ => Ok(Vec::new()),
        }
    }

    /// What an object that nobody made would hold.
    fn object(&mut self, call: &Call) -> Result<Vec<(Step, Id)>, FormatError> {
        let values = self.values;
        let args = values.sequence(call.args).unwrap_or_default();
        if let Some(Global { module, name }) = values.global(call.callable) {
            match (module.as_str(), name.as_str(), args) {
                ("collections", "OrderedDict" | "defaultdict", _) => return self.ordered(call, args),
                ("torch.jit._pickle", _, [value, ..]) => return Ok(vec![(Step::Same, *value)]),
                _ => {}
            }
        }
        let mut children = self.keyed(&call.entries)?;
        children.extend(self.indexed(&call.elements)?);
        if let Some(state) = call.state {
            children.extend(match self.module(state)? {
                Some(parts) => parts,
                None => self.attributes(state)?,
            });
        }
        if children.is_empty() { self.indexed(args) } else { Ok(children) }
    }

    /// Entries that were assigned, behind those that Python 2 gave to the constructor as a list of pairs.
    fn ordered(&mut self, call: &Call, args: &[Id]) -> Result<Vec<(Step, Id)>, FormatError> {
        let values = self.values;
        let given = args.first().and_then(|list| values.sequence(*list)).unwrap_or_default();
        self.count(given.len())?;
        let pair = |id: &Id| match values.sequence(*id) {
            Some([key, value]) => Some((*key, *value)),
            _ => None,
        };
        let entries: Vec<_> = given.iter().filter_map(pair).chain(call.entries.iter().copied()).collect();
        self.keyed(&entries)
    }

    /// The parts of a module's state that its `state_dict()` has.
    fn module(&mut self, state: Id) -> Result<Option<Vec<(Step, Id)>>, FormatError> {
        let values = self.values;
        self.count(values.entries(state).map_or(0, <[_]>::len))?;
        let part = |name| values.entry(state, name);
        let (Some(parameters), Some(buffers), Some(modules)) =
            (part("_parameters"), part("_buffers"), part("_modules"))
        else {
            return Ok(None);
        };
        let passing = part("_non_persistent_buffers_set").map(|set| elements(values, set)).unwrap_or_default();
        self.count(passing.len())?;
        let passing: HashSet<&str> = passing.iter().filter_map(|name| values.text(*name)).collect();
        let persists = |step: &Step| match step {
            Step::Key(key) => !values.text(*key).is_some_and(|name| passing.contains(name)),
            _ => true,
        };
        let mut children = self.members(parameters)?;
        children.extend(self.members(buffers)?.into_iter().filter(|(step, _)| persists(step)));
        children.extend(self.members(modules)?);
        Ok(Some(children))
    }

    /// What a dictionary of a module holds. Nothing but dictionaries is looked into here: an object in their place
    /// could lead back to the module.
    fn members(&mut self, id: Id) -> Result<Vec<(Step, Id)>, FormatError> {
        let values = self.values;
        match values.get(id) {
            Value::Dict(entries) => self.keyed(entries),
            Value::Call(call) => match values.global(call.callable) {
                Some(Global { module, name }) if module == "collections" && name == "OrderedDict" => {
                    self.ordered(call, values.sequence(call.args).unwrap_or_default())
                }
                _ => Ok(Vec::new()),
            },
            _ => Ok(Vec::new()),
        }
    }

    /// Attributes by name; objects with slots have a pair of such dictionaries.
    fn attributes(&mut self, state: Id) -> Result<Vec<(Step, Id)>, FormatError> {
        let values = self.values;
        let is_part = |id: &Id| matches!(values.get(*id), Value::Dict(_) | Value::None);
        match values.get(state) {
            Value::Dict(entries) => self.keyed(entries),
            Value::Tuple(pair) if pair.len() == 2 && pair.iter().all(is_part) => {
                let parts = pair.iter().filter_map(|id| values.entries(*id));
                self.keyed(&parts.flatten().copied().collect::<Vec<_>>())
            }
            _ => Ok(vec![(Step::Same, state)]),
        }
    }

    /// Entries of a dictionary; of two with the same text as key, the later.
    fn keyed(&mut self, entries: &[(Id, Id)]) -> Result<Vec<(Step, Id)>, FormatError> {
        self.count(entries.len())?;
        let mut seen = HashSet::with_capacity(entries.len());
        let mut children: Vec<_> = entries
            .iter()
            .rev()
            .filter(|(key, _)| self.values.text(*key).is_none_or(|key| seen.insert(key)))
            .map(|(key, value)| (Step::Key(*key), *value))
            .collect();
        children.reverse();
        Ok(children)
    }

    fn indexed(&mut self, items: &[Id]) -> Result<Vec<(Step, Id)>, FormatError> {
        self.count(items.len())?;
        Ok(items.iter().enumerate().map(|(place, value)| (Step::Index(place), *value)).collect())
    }
}

/// The elements of a set, which protocol 2 writes as `set([…])`.
fn elements(values: &Values, set: Id) -> &[Id] {
    match values.get(set) {
        Value::Set(items) => items,
        _ => match values.call(set) {
            Some((_, _, [items])) => values.sequence(*items).unwrap_or_default(),
            _ => &[],
        },
    }
}

/// Which values a tensor or an array may be reached from, following every reference backwards.
fn fertile(values: &Values, storages: &Storages) -> Vec<bool> {
    let mut edges: Vec<(Id, Id)> = Vec::new();
    let mut fertile = vec![false; values.len()];
    let mut reached: Vec<Id> = Vec::new();
    for (id, _) in values.iter() {
        if is_tensor(values, storages, id) || is_array(values, id) {
            fertile[id.index()] = true;
            reached.push(id);
        } else {
            values.references(id, |child| edges.push((child, id)));
        }
    }
    edges.sort_unstable();
    while let Some(id) = reached.pop() {
        let parents = edges[edges.partition_point(|(child, _)| *child < id)..].iter();
        for (_, parent) in parents.take_while(|(child, _)| *child == id) {
            if !fertile[parent.index()] {
                fertile[parent.index()] = true;
                reached.push(*parent);
            }
        }
    }
    fertile
}

/// Whether the value is a NumPy array.
fn is_array(values: &Values, id: Id) -> bool {
    let Some((_, Some(function), _)) = values.call(id) else { return false };
    function.module.starts_with("numpy") && matches!(function.name.as_str(), "_reconstruct" | "_frombuffer")
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
