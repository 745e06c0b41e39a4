//! A checkpoint's tensors as a network's weights.
//!
//! Networks ask for tensors by name and shape through candle's `VarBuilder`; each is decoded from the file when it is
//! asked for, whatever the checkpoint's format and types. What a network did not ask for is reported, so that none is
//! dropped without a word.

use crate::checkpoint::Checkpoint;
use crate::dtype::{self, Simd};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// The tensors of one part of a checkpoint.
#[derive(Clone)]
pub struct Weights {
    shared: Arc<Shared>,
}

struct Shared {
    checkpoint: Arc<Checkpoint>,
    /// What stands before the network's own names.
    prefix: String,
    asked: Mutex<BTreeSet<String>>,
}

impl Weights {
    /// Those tensors of a checkpoint whose names begin with `prefix`, under the rest of their names.
    #[must_use]
    pub fn new(checkpoint: impl Into<Arc<Checkpoint>>, prefix: &str) -> Self {
        let (checkpoint, asked) = (checkpoint.into(), Mutex::new(BTreeSet::new()));
        Self { shared: Arc::new(Shared { checkpoint, prefix: prefix.to_owned(), asked }) }
    }

    /// For networks to build themselves from, as tensors of `dtype` on a device.
    #[must_use]
    pub fn builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// Whether there is a tensor of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.shared.checkpoint.get(&self.shared.named(name)).is_some()
    }

    /// What the checkpoint calls a tensor of the network.
    #[must_use]
    pub fn full_name(&self, name: &str) -> String {
        self.shared.named(name)
    }

    /// The names of the tensors, without the prefix.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let of_all = self.shared.checkpoint.tensors().iter();
        of_all.filter_map(|tensor| tensor.name.strip_prefix(self.shared.prefix.as_str()))
    }

    /// A tensor as f32, of whatever shape it has.
    ///
    /// # Errors
    /// [`Error::Model`] if there is none, or it holds no numbers.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        self.shared.tensor(name, None, DType::F32, device)
    }

    /// That all tensors were asked for, but those of which `spare` says that no network needs them.
    ///
    /// # Errors
    /// [`Error::Model`] naming those that were not.
    pub fn check_used(&self, spare: impl Fn(&str) -> bool) -> Result<()> {
        const LISTED: usize = 5;
        let asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let unused: Vec<&str> = self.names().filter(|name| !asked.contains(*name) && !spare(name)).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let listed = unused.iter().take(LISTED).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let more = unused.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(Error::model(
            &self.shared.path(),
            format!("the network that its configuration describes has no place for {listed}{more}"),
        ))
    }
}

impl Shared {
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn path(&self) -> PathBuf {
        self.checkpoint.layout().root.clone()
    }

    /// Decodes a tensor, of `shape` if one is given.
    fn tensor(&self, name: &str, shape: Option<&Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let full = self.named(name);
        let missing = |what: String| Error::model(&self.path(), what);
        let view = self.checkpoint.get(&full).ok_or_else(|| {
            let hint = "is it a model of another kind, or its config.json another model's?";
            missing(format!("there is no tensor `{full}`, which the network needs: {hint}"))
        })?;
        let found: Vec<usize> = view
            .tensor
            .shape
            .iter()
            .map(|&n| usize::try_from(n))
            .collect::<Result<_, _>>()
            .map_err(|_| missing(format!("the tensor `{full}` has too many elements for this system")))?;
        if let Some(shape) = shape
            && shape.dims() != found
        {
            let wanted = shape.dims();
            return Err(missing(format!(
                "the tensor `{full}` has shape {found:?}, but its configuration says {wanted:?}"
            )));
        }
        if !dtype::can_decode(view.tensor.dtype) {
            return Err(missing(format!("the tensor `{full}` is {}, which are no numbers", view.tensor.dtype)));
        }
        // A view may repeat its elements without end.
        if view.tensor.elements > self.checkpoint.file_bytes().saturating_mul(8) {
            let elements = view.tensor.elements;
            return Err(missing(format!(
                "the tensor `{full}` has {elements} elements, far more than its file has room for"
            )));
        }
        let mut buffer = Vec::new();
        let bytes = view.read(0..view.tensor.bytes, &mut buffer)?;
        let mut values = vec![0.0; view.tensor.elements as usize];
        dtype::decode(Simd::detect(), view.tensor.dtype, bytes, &mut values);
        for file in view.files() {
            file.check_fault()?;
        }
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(Tensor::from_vec(values, found, device)?.to_dtype(dtype)?)
    }
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.shared.tensor(name, Some(&shape), dtype, device).map_err(candle_core::Error::wrap)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.shared.tensor(name, None, dtype, device).map_err(candle_core::Error::wrap)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.contains(name)
    }
}
