//! From named tensors to the table: which of them are the model, which share elements, what text came along.

use crate::flatten::{Found, Step, flatten, step_text};
use crate::tensor::{Storages, View};
use crate::value::{Global, Id, Value, Values};
use ckptmerge_format::{Data, FormatError, Index, Metadata, Subtree, TensorInfo};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// The most top-level scalars that become metadata, and the longest of them, in bytes.
pub(crate) const MAX_SCALARS: usize = 64;
const MAX_SCALAR: usize = 1024;

/// The most parts whose faults are told, one by one.
const MAX_TOLD: usize = 8;

/// What a part of a training checkpoint is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Weights of a model under a name that trainers use.
    Weights,
    /// A moving average of the weights.
    Average,
    /// What only training needs.
    Training,
    /// A name that says nothing.
    Unknown,
}

/// Names of weights, in lower case; with `_state_dict`, `_state`, `_dict` or `s` behind them too.
const WEIGHTS: &[&str] = &[
    "state_dict",
    "state",
    "model",
    "module",
    "net",
    "network",
    "weight",
    "param",
    "generator",
    "discriminator",
    "g",
    "d",
    "netg",
    "netd",
    "gen",
    "disc",
    "student",
    "critic",
    "actor",
    "unet",
    "vae",
];
/// Words of which one, alone between underscores or dots, makes an average.
const AVERAGE: &[&str] = &["ema", "shadow", "averaged", "average", "avg", "swa", "teacher"];
/// Parts of names that only training needs.
const TRAINING: &[&str] = &[
    "optim", "sched", "scaler", "callback", "loop", "rng", "random", "hyper", "hparam", "config", "args", "loss",
    "metric", "history", "grad",
];

fn role(name: &str) -> Role {
    let name = name.to_lowercase();
    let words = || name.split(['_', '.', '-']);
    if TRAINING.iter().any(|part| name.contains(part)) {
        return Role::Training;
    }
    if words().any(|word| AVERAGE.contains(&word)) {
        return Role::Average;
    }
    let stem = ["_state_dict", "_state", "_dict", "s"].iter().find_map(|end| name.strip_suffix(end));
    if WEIGHTS.contains(&name.as_str()) || stem.is_some_and(|stem| WEIGHTS.contains(&stem)) {
        return Role::Weights;
    }
    Role::Unknown
}

/// The root's children that could each be the model.
#[derive(Default)]
struct Parts {
    list: Vec<Subtree>,
    by_step: HashMap<Step, usize>,
}

impl Parts {
    /// The part that a tensor belongs to.
    fn of(&self, found: &Found) -> Option<usize> {
        found.first.filter(|_| found.nested).and_then(|step| self.by_step.get(&step)).copied()
    }
}

/// The table of the tensors under `root`.
pub(crate) fn table(values: &Values, storages: &Storages, root: Id) -> Result<Index, FormatError> {
    table_of(values, storages, root, None)
}

/// As [`table`], told which of the root's children is the model.
pub(crate) fn table_of(
    values: &Values,
    storages: &Storages,
    root: Id,
    model: Option<&str>,
) -> Result<Index, FormatError> {
    let (found, mut warnings) = flatten(values, storages, root)?;
    if found.is_empty() {
        explain_nothing(values, root)?;
    }
    warnings.extend(outside_calls(values));
    let mut seen = HashSet::with_capacity(found.len());
    if let Some(twice) = found.iter().find(|found| !seen.insert(found.name.as_str())) {
        return Err(FormatError::unsupported("two paths give this name").at(&twice.name));
    }
    let mut parts = parts(values, &found)?;
    if let Some(model) = model.filter(|model| parts.list.iter().any(|part| part.name == *model)) {
        parts.list.iter_mut().for_each(|part| part.is_default = part.name == model);
    }
    let dropped = refused(values, storages, &found, &parts, &mut warnings)?;
    let kept = |part: &Option<usize>| !part.is_some_and(|part| dropped.contains(&part));
    let found = found.into_iter().map(|found| (parts.of(&found), found)).filter(|(part, _)| kept(part));
    let views = found.filter_map(|(part, found)| Some((part, found.name, found.view?))).collect();
    let subtrees = parts.list.into_iter().enumerate().filter(|(part, _)| kept(&Some(*part)));
    Ok(Index {
        tensors: tensors(views, storages.big_endian),
        metadata: scalars(values, root),
        subtrees: subtrees.map(|(_, subtree)| subtree).collect(),
        warnings,
        ..Index::default()
    })
}

/// Python's own modules whose functions reach beyond the object that is being made: by running, reading, writing,
/// importing or connecting.
const OUTSIDE: &[&str] = &[
    "asyncio",
    "bdb",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "ftplib",
    "http",
    "importlib",
    "imp",
    "marshal",
    "multiprocessing",
    "nt",
    "ntpath",
    "os",
    "pdb",
    "pickle",
    "pip",
    "pkgutil",
    "posix",
    "posixpath",
    "profile",
    "cProfile",
    "pty",
    "pydoc",
    "requests",
    "runpy",
    "shutil",
    "signal",
    "smtplib",
    "socket",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "timeit",
    "urllib",
    "urllib2",
    "webbrowser",
];
/// What of Python's builtins is only data, or leads to some, as `getattr` does in pickles of enumerations.
const DATA: &[&str] = &[
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "getattr",
    "int",
    "list",
    "long",
    "object",
    "range",
    "set",
    "slice",
    "str",
    "tuple",
    "unicode",
];
/// The most calls that are named, and the most of a name, in bytes.
const MAX_CALLS: usize = 3;
const MAX_CALL: usize = 100;

/// What Python would do on loading the file that no checkpoint asks for.
fn outside_calls(values: &Values) -> Option<String> {
    let reaches_out = |global: &Global| {
        let package = global.module.split('.').next().unwrap_or_default();
        match package {
            "builtins" | "__builtin__" => !DATA.contains(&global.name.as_str()),
            _ => OUTSIDE.contains(&package),
        }
    };
    // What a call gave is called by no checkpoint, whatever it is.
    let called = values.iter().filter_map(|(_, value)| match value {
        Value::Call(call) => match values.call(call.callable) {
            Some((_, made_by, _)) => made_by,
            None => values.global(call.callable).filter(|global| reaches_out(global)),
        },
        _ => None,
    });
    let mut globals: Vec<&Global> = Vec::new();
    for global in called {
        if !globals.contains(&global) {
            globals.push(global);
        }
        if globals.len() > MAX_CALLS {
            break;
        }
    }
    let more = if globals.len() > MAX_CALLS { " and others" } else { "" };
    let names = globals.iter().take(MAX_CALLS).map(|global| {
        let name: String = global.to_string().chars().take(MAX_CALL).collect();
        format!("`{name}`")
    });
    let names = names.collect::<Vec<_>>().join(", ");
    (!globals.is_empty()).then(|| format!("Python would call {names}{more} on loading it; nothing was called here"))
}

/// An empty dictionary is an empty checkpoint; anything else without tensors is no checkpoint.
fn explain_nothing(values: &Values, root: Id) -> Result<(), FormatError> {
    let mut globals: Vec<&Global> = Vec::new();
    for (_, value) in values.iter() {
        let Value::Call(call) = value else { continue };
        let Some(global) = values.global(call.callable) else { continue };
        let is_plain = global.module == "collections" && global.name == "OrderedDict";
        if !is_plain && !globals.contains(&global) {
            globals.push(global);
            if globals.len() == 3 {
                break;
            }
        }
    }
    let names: Vec<String> = globals.iter().map(ToString::to_string).collect();
    let is_dict = match values.get(root) {
        Value::Call(call) => {
            let mut args = values.sequence(call.args).unwrap_or_default().iter();
            values.global(call.callable).is_some() && args.all(|id| values.sequence(*id).is_some_and(<[_]>::is_empty))
        }
        _ => true,
    };
    if names.is_empty() && is_dict && values.entries(root).is_some_and(<[_]>::is_empty) {
        return Ok(());
    }
    let calls = if names.is_empty() {
        String::new()
    } else {
        format!(", but calls of {}, none of which was made", names.join(", "))
    };
    let error = FormatError::unsupported(format!("the pickle holds no tensors{calls}"));
    Err(if names.iter().any(|name| name.starts_with("numpy")) {
        error.hint("NumPy arrays in pickles are not read: save them with torch.save as tensors, or with numpy.savez")
    } else {
        error
    })
}

/// The root's children that hold tensors, if the root is a training checkpoint and not a model.
fn parts(values: &Values, found: &[Found]) -> Result<Parts, FormatError> {
    let mut by_step = HashMap::new();
    let mut names = Vec::new();
    for step in found.iter().filter(|found| found.nested).filter_map(|found| found.first) {
        if let Entry::Vacant(vacant) = by_step.entry(step) {
            vacant.insert(names.len());
            names.push(step_text(values, step)?);
        }
    }
    let list = subtrees(names, found.iter().all(|found| found.nested));
    Ok(if list.is_empty() { Parts::default() } else { Parts { list, by_step } })
}

/// What each of a root's children is whose tensors lie in it, by their names; nothing if the root is itself a model.
/// `all_nested` says that the root holds no tensor directly.
pub(crate) fn subtrees(names: Vec<String>, all_nested: bool) -> Vec<Subtree> {
    let roles: Vec<Role> = names.iter().map(|name| role(name)).collect();
    let only = roles.len() == 1 && all_nested;
    // Names that cannot be told apart choose nothing.
    let distinct: HashSet<&str> = names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    if distinct.len() < names.len() {
        return Vec::new();
    }
    if !only && roles.iter().all(|role| *role == Role::Unknown) {
        return Vec::new();
    }
    let candidates = |wanted: &[Role]| {
        let mut matching = (0..roles.len()).filter(|&part| wanted.contains(&roles[part]));
        matching.next().map(|first| (first, matching.next().is_none()))
    };
    let chosen = candidates(&[Role::Weights, Role::Unknown]).or_else(|| candidates(&[Role::Average]));
    let is_default = |part| chosen == Some((part, true));
    let subtree = |(part, name)| Subtree { prefix: format!("{name}."), name, is_default: is_default(part) };
    names.into_iter().enumerate().map(subtree).collect()
}

/// The parts with a tensor that cannot be read, which are left out whole; an error if such a tensor is not in a part,
/// or in the default one, or if there is none.
fn refused(
    values: &Values,
    storages: &Storages,
    found: &[Found],
    parts: &Parts,
    warnings: &mut Vec<String>,
) -> Result<HashSet<usize>, FormatError> {
    let mut dropped = HashSet::new();
    let has_default = parts.list.iter().any(|part| part.is_default);
    for found in found.iter().filter(|found| found.view.is_none()) {
        let part = parts.of(found).filter(|part| has_default && !parts.list[*part].is_default);
        let is_told = part.is_none_or(|part| dropped.insert(part) && dropped.len() <= MAX_TOLD);
        let error = is_told.then(|| found.error(values, storages)).flatten();
        match (part, error) {
            (Some(part), Some(error)) => warnings.push(format!("`{}` is left out: {error}", parts.list[part].name)),
            (None, Some(error)) => return Err(error),
            (_, None) => {}
        }
    }
    if let Some(more) = dropped.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
        warnings.push(format!("{more} more parts are left out, as they hold tensors that cannot be read"));
    }
    Ok(dropped)
}

/// Rows in the order of their bytes, the later of two equal views of a storage as an alias of the earlier.
///
/// Tensors of different parts of a checkpoint are not tied to each other, so that each part can be taken alone.
fn tensors(views: Vec<(Option<usize>, String, Rc<View>)>, big_endian: bool) -> Vec<TensorInfo> {
    let mut firsts: HashMap<(Option<usize>, Rc<View>), usize> = HashMap::with_capacity(views.len());
    let mut rows: Vec<(u64, TensorInfo)> = Vec::with_capacity(views.len());
    for (part, name, view) in views {
        let (dtype, shape) = (view.dtype, view.shape.clone());
        let (order, data) = match firsts.entry((part, Rc::clone(&view))) {
            Entry::Occupied(first) => (u64::MAX, Data::Alias(rows[*first.get()].1.name.clone())),
            Entry::Vacant(vacant) => {
                vacant.insert(rows.len());
                (view.start(), view.data())
            }
        };
        let mut row = TensorInfo::new(name, dtype, shape, data);
        row.big_endian = big_endian && dtype.block_bytes() > 1;
        rows.push((order, row));
    }
    rows.sort_by_key(|(order, _)| *order);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Top-level text and numbers, such as the epoch.
pub(crate) fn scalars(values: &Values, root: Id) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in values.entries(root).unwrap_or_default() {
        let Some(key) = values.text(*key).filter(|key| key.len() <= MAX_SCALAR) else { continue };
        let Some(text) = scalar(values, *value) else { continue };
        metadata.insert(key.to_owned(), text);
        if metadata.len() == MAX_SCALARS {
            break;
        }
    }
    metadata
}

/// A short text, or a number or truth value as text.
pub(crate) fn scalar(values: &Values, id: Id) -> Option<String> {
    match values.get(id) {
        Value::Text(text) if text.len() <= MAX_SCALAR => Some(text.to_string()),
        Value::Int(int) => Some(int.to_string()),
        Value::Float(float) => Some(float.to_string()),
        Value::Bool(bool) => Some(bool.to_string()),
        _ => None,
    }
}
