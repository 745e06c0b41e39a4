//! From nested Python objects to named tensors.
//!
//! A name is the path to the tensor, joined with dots: keys of dictionaries, places in lists, attributes of objects. A
//! pickled module is what its `state_dict()` would be: parameters, buffers that persist, and submodules.
//!
//! The work is bounded without trusting the pickle: containers on the current path are not entered again, those that
//! lead to no tensor not at all, and what is left is counted. A container that is recalled from the memo is visited
//! again for two bytes of pickle, so both the steps and the memory of the table that they lead to are limited by the
//! pickle's length.

use crate::tensor::{Storages, View, is_tensor, view};
use crate::value::{Call, Global, Id, Value, Values};
use ckptmerge_format::{Fault, FormatError};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// How deep containers may lie in each other.
const MAX_DEPTH: usize = 256;
/// The most tensors.
const MAX_TENSORS: usize = 1 << 19;
/// The most children looked at, over all visits of all containers: so many for each byte of the pickle, and besides. A
/// pickle of torch's has one for some twenty bytes.
const STEPS_PER_BYTE: u64 = 4;
const MORE_STEPS: u64 = 1 << 18;
/// Bytes of a key that are looked at in a step.
const STEP_TEXT: usize = 32;
/// The most memory that the table may take, in bytes: so much for each byte of the pickle, and besides. A tensor that
/// torch wrote takes 120 bytes of pickle and 600 here, and may be repeated.
const ROOM_PER_BYTE: u64 = 24;
const MORE_ROOM: u64 = 8 << 20;
/// What a tensor, a byte of its name and a dimension take in the table, its rows and its names in all indexes, in bytes.
const TENSOR_ROOM: u64 = 256;
const NAME_ROOM: u64 = 4;
const DIMENSION_ROOM: u64 = 48;
/// The longest name of a tensor, in bytes.
pub(crate) const MAX_NAME: usize = 1000;

/// One component of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// The key that this value is.
    Key(Id),
    /// A place in a list.
    Index(u32),
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
    pub(crate) id: Id,
    /// None if it cannot be read, for the reason that [`Found::error`] gives.
    pub(crate) view: Option<Rc<View>>,
}

impl Found {
    /// Why it cannot be read. Reasons are not kept: there can be as many as tensors.
    pub(crate) fn error(&self, values: &Values, storages: &Storages) -> Option<FormatError> {
        if self.view.is_some() {
            return None;
        }
        view(values, storages, self.id).err().map(|error| error.at(&self.name))
    }
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
        name: String::new(),
        ends: Vec::new(),
        on_path: vec![false; values.len()],
        fertile: fertile(values, storages),
        steps: MORE_STEPS + STEPS_PER_BYTE * values.pickled(),
        room: MORE_ROOM + ROOM_PER_BYTE * values.pickled(),
        views: HashMap::new(),
        found: Vec::new(),
        arrays: 0,
        first_array: None,
    };
    walk.visit(root)?;
    let warnings = walk.first_array.map(|first| {
        let count = walk.arrays;
        format!("{count} NumPy arrays are left out, the first of them `{first}`: only tensors are read")
    });
    Ok((walk.found, warnings.into_iter().collect()))
}

struct Walk<'a> {
    values: &'a Values,
    storages: &'a Storages,
    path: Vec<Step>,
    /// The first steps of the path as text, as many as there are `ends`: where the text of each ends.
    name: String,
    ends: Vec<usize>,
    on_path: Vec<bool>,
    /// Values from which a tensor or an array may be reached.
    fertile: Vec<bool>,
    /// How many children may still be looked at, and how much memory the table may still take.
    steps: u64,
    room: u64,
    /// The tensors seen, as they are often recalled; none are those that cannot be read.
    views: HashMap<Id, Option<Rc<View>>>,
    found: Vec<Found>,
    arrays: usize,
    first_array: Option<String>,
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
            if self.first_array.is_none() {
                self.first_array = Some(self.name()?);
            }
            self.arrays += 1;
            return Ok(());
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
            if self.fertile[child.index()] && !self.on_path[child.index()] {
                self.path.push(step);
                self.visit(child)?;
                self.path.pop();
                self.forget();
            }
        }
        self.on_path[id.index()] = false;
        Ok(())
    }

    /// Counts children that are about to be looked at.
    fn count(&mut self, children: usize) -> Result<(), FormatError> {
        self.steps = self.steps.checked_sub(children as u64).ok_or_else(|| self.repeated("objects"))?;
        Ok(())
    }

    fn repeated(&self, what: &str) -> FormatError {
        let pickled = self.values.pickled();
        let message =
            format!("the same {what} are contained in each other too many times for a pickle of {pickled} bytes");
        FormatError::new(Fault::Limit, message)
    }

    /// Forgets the text of steps that are no longer on the path.
    fn forget(&mut self) {
        if self.ends.len() > self.path.len() {
            self.ends.truncate(self.path.len());
            self.name.truncate(self.ends.last().copied().unwrap_or(0));
        }
    }

    fn emit(&mut self, id: Id) -> Result<(), FormatError> {
        let name = self.name()?;
        if self.found.len() == MAX_TENSORS {
            return Err(FormatError::new(Fault::Limit, format!("more than {MAX_TENSORS} tensors")));
        }
        let (values, storages) = (self.values, self.storages);
        let read = || view(values, storages, id).ok().map(Rc::new);
        let view = self.views.entry(id).or_insert_with(read).clone();
        let dimensions = view.as_ref().map_or(0, |view| view.shape.len()) as u64;
        let room = TENSOR_ROOM + NAME_ROOM * name.len() as u64 + DIMENSION_ROOM * dimensions;
        self.room = self.room.checked_sub(room).ok_or_else(|| self.repeated("tensors"))?;
        let mut steps = self.path.iter().filter(|step| **step != Step::Same);
        self.found.push(Found { name, first: steps.next().copied(), nested: steps.next().is_some(), id, view });
        Ok(())
    }

    /// The current path as text.
    fn name(&mut self) -> Result<String, FormatError> {
        for step in self.path.iter().skip(self.ends.len()) {
            if *step != Step::Same {
                if !self.name.is_empty() {
                    self.name.push('.');
                }
                self.name.push_str(&step_text(self.values, *step)?);
            }
            self.ends.push(self.name.len());
            if self.name.len() > MAX_NAME {
                return Err(FormatError::new(Fault::Limit, format!("a tensor's name has more than {MAX_NAME} bytes")));
            }
        }
        // A tensor that is the whole file has no path.
        Ok(if self.name.is_empty() { "tensor".to_owned() } else { self.name.clone() })
    }

    fn children(&mut self, id: Id) -> Result<Vec<(Step, Id)>, FormatError> {
        let values = self.values;
        match values.get(id) {
            Value::Dict(entries) => self.keyed(entries),
            Value::List(items) | Value::Set(items) => self.indexed(items),
            Value::Tuple(_) => self.indexed(values.sequence(id).unwrap_or_default()),
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
        let mut children = self.keyed(call.entries())?;
        children.extend(self.indexed(call.elements())?);
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
        let entries: Vec<_> = given.iter().filter_map(pair).chain(call.entries().iter().copied()).collect();
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
        let mut names = HashSet::with_capacity(passing.len());
        for name in passing.iter().filter_map(|name| short(values, *name)) {
            self.count(name.len() / STEP_TEXT)?;
            names.insert(name);
        }
        let persists = |step: &Step| match step {
            Step::Key(key) => !short(values, *key).is_some_and(|name| names.contains(name)),
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
            Value::Tuple(_) => match values.sequence(state) {
                Some(pair @ [_, _]) if pair.iter().all(is_part) => {
                    let parts = pair.iter().filter_map(|id| values.entries(*id));
                    self.keyed(&parts.flatten().copied().collect::<Vec<_>>())
                }
                _ => Ok(vec![(Step::Same, state)]),
            },
            _ => Ok(vec![(Step::Same, state)]),
        }
    }

    /// Entries of a dictionary; of two with the same text as key, the later.
    fn keyed(&mut self, entries: &[(Id, Id)]) -> Result<Vec<(Step, Id)>, FormatError> {
        self.count(entries.len())?;
        let values = self.values;
        let mut seen = HashSet::with_capacity(entries.len());
        let mut children = Vec::new();
        for (key, value) in entries.iter().rev() {
            let is_last = match short(values, *key) {
                Some(text) => {
                    self.count(text.len() / STEP_TEXT)?;
                    seen.insert(text)
                }
                None => true,
            };
            if is_last && self.fertile[value.index()] {
                children.push((Step::Key(*key), *value));
            }
        }
        children.reverse();
        Ok(children)
    }

    fn indexed(&mut self, items: &[Id]) -> Result<Vec<(Step, Id)>, FormatError> {
        self.count(items.len())?;
        let places = items.iter().zip(0..).filter(|(value, _)| self.fertile[value.index()]);
        Ok(places.map(|(value, place)| (Step::Index(place), *value)).collect())
    }
}

/// A text that may be a part of a tensor's name. What is longer is not compared with others: that could take forever,
/// and no tensor has it in its name.
fn short(values: &Values, id: Id) -> Option<&str> {
    values.text(id).filter(|text| text.len() <= MAX_NAME)
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
    let mut fertile = vec![false; values.len()];
    let mut reached: Vec<Id> = Vec::new();
    // How many refer to a value, then where the list of them ends, and at last where it begins: the next one's ends it.
    let mut starts = vec![0u32; values.len() + 1];
    for (id, _) in values.iter() {
        if is_tensor(values, storages, id) || is_array(values, id) {
            fertile[id.index()] = true;
            reached.push(id);
        } else {
            values.references(id, |child| starts[child.index()] += 1);
        }
    }
    let mut end = 0;
    for start in &mut starts {
        end += *start;
        *start = end;
    }
    let mut parents = vec![Id::default(); end as usize];
    for (id, _) in values.iter().filter(|(id, _)| !fertile[id.index()]) {
        values.references(id, |child| {
            starts[child.index()] -= 1;
            parents[starts[child.index()] as usize] = id;
        });
    }
    while let Some(id) = reached.pop() {
        let range = starts[id.index()] as usize..starts[id.index() + 1] as usize;
        for parent in &parents[range] {
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
        Step::Key(key) => match (values.get(key), values.sequence(key)) {
            (Value::Tuple(_), Some(parts)) if parts.len() <= MAX_DEPTH => {
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
