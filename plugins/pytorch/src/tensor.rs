//! Tensors: from torch's calls that rebuild them to checked ranges of the file.
//!
//! The calls are functions of `torch._utils` and `torch._tensor`, as of torch 2.15. A storage is a persistent id,
//! `('storage', class, key, location, numel[, view])`, whose bytes the file's layout knows by key.

use crate::dtype::{from_storage, from_torch};
use crate::value::{Global, Id, Value, Values};
use ckptmerge_format::{DType, Data, Extent, FormatError, Pieces};
use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

/// The most dimensions a tensor may have: torch's own limit for most of what it does.
pub(crate) const MAX_DIMENSIONS: usize = 64;
/// How many wrappers (a parameter of a subclass of a tensor) may lie around a tensor.
const MAX_WRAPPERS: usize = 8;

/// Where the bytes of the storages are.
#[derive(Debug, Default)]
pub(crate) struct Storages {
    /// The bytes of each key.
    pub(crate) extents: HashMap<Rc<str>, Extent>,
    /// Tensors that the pickle refers to by key: layouts before 0.1.10 only.
    pub(crate) tensors: HashMap<String, View>,
    /// Whether elements were written most significant byte first.
    pub(crate) big_endian: bool,
}

/// A storage, as far as its claims were checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Storage {
    pub(crate) key: Rc<str>,
    pub(crate) dtype: DType,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A tensor: elements of a storage with strides, all of which lie in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct View {
    pub(crate) storage: Storage,
    pub(crate) dtype: DType,
    /// Where in the storage the first element is, in elements.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    /// In elements.
    pub(crate) strides: Vec<u64>,
}

/// What a call makes, as far as its name tells.
enum Recipe {
    /// The storage is the first argument.
    Tensor,
    /// As `Tensor`, with the type as seventh argument.
    TypedTensor,
    /// The tensor is the first argument.
    Wrapper,
    /// The function is the first argument, its arguments the third.
    Apply,
    /// A kind of tensor that has no plain elements.
    Special(&'static str),
}

fn recipe(function: &Global) -> Option<Recipe> {
    if !function.module.starts_with("torch.") {
        return None;
    }
    Some(match function.name.as_str() {
        "_rebuild_tensor" | "_rebuild_tensor_v2" => Recipe::Tensor,
        "_rebuild_tensor_v3" => Recipe::TypedTensor,
        "_rebuild_parameter" | "_rebuild_parameter_with_state" => Recipe::Wrapper,
        "_rebuild_from_type" | "_rebuild_from_type_v2" => Recipe::Apply,
        "_rebuild_sparse_tensor" => Recipe::Special("a sparse tensor"),
        "_rebuild_sparse_csr_tensor" => Recipe::Special("a sparse CSR tensor"),
        "_rebuild_nested_tensor" => Recipe::Special("a nested tensor"),
        "_rebuild_qtensor" => Recipe::Special("a quantized tensor"),
        "_rebuild_meta_tensor_no_storage" => Recipe::Special("a meta tensor, which has no elements"),
        "_rebuild_wrapper_subclass" => Recipe::Special("a tensor of a wrapper class"),
        "_rebuild_device_tensor_from_numpy" | "_rebuild_device_tensor_from_cpu_tensor" => {
            Recipe::Special("a tensor that a device backend wrote in its own way")
        }
        name if name.starts_with("_rebuild_") => Recipe::Special("a tensor of a kind that is not known here"),
        _ => return None,
    })
}

/// Whether the value is a tensor, readable or not.
pub(crate) fn is_tensor(values: &Values, storages: &Storages, id: Id) -> bool {
    match values.get(id) {
        Value::Call(call) => values.global(call.callable).and_then(recipe).is_some(),
        Value::Persistent(key) => values.key(*key).is_some_and(|key| storages.tensors.contains_key(&*key)),
        _ => false,
    }
}

/// The tensor that a call or persistent id stands for.
pub(crate) fn view(values: &Values, storages: &Storages, id: Id) -> Result<View, FormatError> {
    if let Value::Persistent(key) = values.get(id) {
        let known = values.key(*key).and_then(|key| storages.tensors.get(&*key)).cloned();
        return known.ok_or_else(|| FormatError::corrupt("the file holds no tensor under its key"));
    }
    let Some((call, Some(function), mut args)) = values.call(id) else {
        return Err(FormatError::corrupt("it is made of something that is no tensor"));
    };
    let mut function = function;
    let mut current = call;
    for _ in 0..MAX_WRAPPERS {
        match recipe(function) {
            Some(Recipe::Tensor) => return tensor(values, storages, args, false),
            Some(Recipe::TypedTensor) => return tensor(values, storages, args, true),
            Some(Recipe::Wrapper) => {
                let inner = args.first().ok_or_else(|| missing("tensor"))?;
                if matches!(values.get(*inner), Value::Persistent(_)) {
                    return view(values, storages, *inner);
                }
                let Some((call, Some(next), inner)) = values.call(*inner) else { break };
                (current, function, args) = (call, next, inner);
            }
            Some(Recipe::Apply) => {
                let (Some(next), Some(inner)) = (args.first(), args.get(2)) else { return Err(missing("arguments")) };
                let Some(next) = values.global(*next) else { break };
                (function, args) = (next, values.sequence(*inner).ok_or_else(|| missing("arguments"))?);
            }
            Some(Recipe::Special(kind)) => {
                return Err(FormatError::unsupported(format!("it is {kind} ({function})"))
                    .hint("load it with torch and save a dense tensor in its place"));
            }
            None => break,
        }
    }
    let name = values.global(current.callable).unwrap_or(function);
    Err(FormatError::unsupported(format!("it is made by {name}, in a way that is not known here")))
}

fn missing(what: &str) -> FormatError {
    FormatError::corrupt(format!("the call that rebuilds it lacks its {what}"))
}

fn tensor(values: &Values, storages: &Storages, args: &[Id], typed: bool) -> Result<View, FormatError> {
    let [storage, offset, shape, strides, rest @ ..] = args else { return Err(missing("arguments")) };
    let Value::Persistent(id) = values.get(*storage) else { return Err(missing("storage")) };
    let storage = storages.resolve(values, *id)?;
    let dtype = if typed {
        let dtype = rest.get(2).and_then(|id| values.global(*id)).ok_or_else(|| missing("type"))?;
        from_torch(&dtype.name).ok_or_else(|| FormatError::unsupported(format!("the type {dtype} is not supported")))?
    } else {
        storage.dtype
    };
    if let Some(metadata) = rest.get(if typed { 3 } else { 2 }) {
        refuse_bits(values, *metadata)?;
    }
    let view = View {
        dtype,
        offset: values.unsigned(*offset).ok_or_else(|| FormatError::corrupt("its offset is no valid number"))?,
        shape: numbers(values, *shape).ok_or_else(|| FormatError::corrupt("its shape is no list of sizes"))?,
        strides: numbers(values, *strides).ok_or_else(|| FormatError::corrupt("its strides are not all valid"))?,
        storage,
    };
    view.check()?;
    if storages.big_endian && view.dtype == DType::C64 {
        return Err(FormatError::unsupported("its complex numbers are big-endian"));
    }
    Ok(view)
}

/// Lazy views say that their elements have another sign than the stored ones.
fn refuse_bits(values: &Values, metadata: Id) -> Result<(), FormatError> {
    if values.entries(metadata).is_some_and(|entries| entries.len() > MAX_DIMENSIONS) {
        return Err(FormatError::corrupt("it has more properties than any tensor"));
    }
    for (bit, method) in [("neg", "resolve_neg()"), ("conj", "resolve_conj()")] {
        if values.entry(metadata, bit).is_some_and(|id| !matches!(values.get(id), Value::Bool(false))) {
            return Err(FormatError::unsupported(format!("its {bit} bit is set: the stored signs are not its own"))
                .hint(format!("save its {method} instead")));
        }
    }
    Ok(())
}

/// The numbers of a tuple, list or `torch.Size`.
pub(crate) fn numbers(values: &Values, id: Id) -> Option<Vec<u64>> {
    let items = match values.call(id) {
        Some((_, Some(size), [items])) if size.name == "Size" => values.sequence(*items)?,
        _ => values.sequence(id)?,
    };
    // One number too many is enough to be refused.
    items.iter().take(MAX_DIMENSIONS + 1).map(|id| values.unsigned(*id)).collect()
}

impl Storages {
    /// What a storage's persistent id says, without looking at its bytes: key, element type and length in elements.
    pub(crate) fn claim(values: &Values, id: Id) -> Result<Option<(Cow<'_, str>, DType, u64)>, FormatError> {
        let Some([tag, class, key, _location, numel, ..]) = values.sequence(id) else { return Ok(None) };
        if values.text(*tag) != Some("storage") {
            return Ok(None);
        }
        let malformed = || FormatError::corrupt("its storage is described in a way that torch never does");
        let class = values.global(*class).ok_or_else(malformed)?;
        let dtype = from_storage(&class.name).filter(|_| class.module.split('.').next() == Some("torch"));
        let dtype = dtype.ok_or_else(|| FormatError::unsupported(format!("storages of {class} are not supported")))?;
        let key = values.key(*key).ok_or_else(malformed)?;
        Ok(Some((key, dtype, values.unsigned(*numel).ok_or_else(malformed)?)))
    }

    /// The storage of a persistent id.
    fn resolve(&self, values: &Values, id: Id) -> Result<Storage, FormatError> {
        let (key, dtype, numel) = Self::claim(values, id)?.ok_or_else(|| missing("storage"))?;
        let (key, extent) = self
            .extents
            .get_key_value(&*key)
            .ok_or_else(|| FormatError::corrupt(format!("the file has no storage `{key}`")))?;
        let claimed = dtype.size_of(numel).filter(|claimed| *claimed == extent.length).ok_or_else(|| {
            let held = extent.length;
            FormatError::corrupt(format!(
                "storage `{key}` is said to hold {numel} {dtype} elements, but has {held} bytes"
            ))
        })?;
        let mut storage = Storage { key: Rc::clone(key), dtype, offset: extent.offset, length: claimed };
        // Before torch 0.4 a storage could be a part of another: (key, first element, elements).
        let view = values.sequence(id).and_then(|items| items.get(5)).and_then(|view| values.sequence(*view));
        if let Some([_, first, elements]) = view {
            let part = |id: &Id| values.unsigned(*id).and_then(|elements| dtype.size_of(elements));
            let (first, length) = part(first)
                .zip(part(elements))
                .filter(|(first, length)| first.checked_add(*length).is_some_and(|end| end <= claimed))
                .ok_or_else(|| FormatError::corrupt(format!("its part of storage `{}` is not in it", storage.key)))?;
            (storage.offset, storage.length) = (storage.offset + first, length);
        }
        Ok(storage)
    }
}

impl View {
    /// Checks that every element lies in the storage.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        if self.shape.len() != self.strides.len() {
            return Err(FormatError::corrupt("it has not as many strides as dimensions"));
        }
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(FormatError::corrupt(format!("it has more than {MAX_DIMENSIONS} dimensions")));
        }
        let elements = self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let length = elements.and_then(|elements| self.dtype.size_of(elements));
        let steps =
            self.shape.iter().zip(&self.strides).try_fold(self.offset, |last, (&n, &stride)| {
                last.checked_add(n.saturating_sub(1).checked_mul(stride)?)
            });
        let end = steps.and_then(|last| self.dtype.size_of(last.checked_add(1)?));
        match (length, end) {
            (Some(0), _) => Ok(()),
            (Some(_), Some(end)) if end <= self.storage.length => Ok(()),
            (None, _) | (_, None) => Err(FormatError::corrupt("its size overflows 64 bits")),
            (_, Some(end)) => Err(FormatError::corrupt(format!(
                "it needs {end} bytes of storage `{}`, which has {}",
                self.storage.key, self.storage.length
            ))),
        }
    }

    /// Whether the elements lie in row-major order without gaps.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected *= n.max(1);
            fits
        })
    }

    /// Where in the file the first element is.
    pub(crate) fn start(&self) -> u64 {
        let offset = self.dtype.size_of(self.offset).filter(|offset| *offset <= self.storage.length);
        // Only a tensor without elements may begin elsewhere; where it does does not matter.
        self.storage.offset + offset.unwrap_or(0)
    }

    /// Where the elements are.
    pub(crate) fn data(&self) -> Data {
        let elements: u64 = self.shape.iter().product();
        if elements == 0 || self.is_contiguous() {
            let length = self.dtype.size_of(elements).unwrap_or(0);
            Data::Dense(Extent { offset: self.start(), length })
        } else {
            Data::Pieces(Pieces::strided(self.start(), &self.shape, &self.strides))
        }
    }
}
