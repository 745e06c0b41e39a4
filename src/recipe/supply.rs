//! A model as a merge takes it: by name, how to come by each tensor's elements. A checkpoint, one with changes over it, or
//! the result of another merge, of which nothing is ever written.

use crate::adapter::Adapters;
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::merge::Input;
use std::collections::HashMap;

/// What a merge takes for one of its models.
pub(super) struct Supply<'a> {
    /// What messages call it.
    pub(super) label: String,
    /// The checkpoint whose layout and small files it has.
    pub(super) root: &'a Checkpoint,
    tensors: Vec<Given<'a>>,
    by_name: HashMap<String, usize>,
}

/// A tensor of a [`Supply`].
#[derive(Clone)]
pub(super) struct Given<'a> {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    /// The tensor of the same supply that it is tied to.
    pub(super) alias_of: Option<String>,
    /// The elements, of a tied one as well.
    pub(super) input: Input<'a>,
}

impl<'a> Supply<'a> {
    /// Of tensors with distinct names.
    pub(super) fn new(label: String, root: &'a Checkpoint, tensors: Vec<Given<'a>>) -> Self {
        let by_name = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)).collect();
        Self { label, root, tensors, by_name }
    }

    /// A checkpoint as it is.
    pub(super) fn plain(label: &str, checkpoint: &'a Checkpoint) -> Self {
        let given = checkpoint.tensors().iter().map(|tensor| Given {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            alias_of: tensor.alias_of.clone(),
            input: Input::Tensor(checkpoint.view(tensor)),
        });
        Self::new(label.to_owned(), checkpoint, given.collect())
    }

    /// A checkpoint with what adapters make of it.
    pub(super) fn of(label: &str, checkpoint: &'a Checkpoint, adapters: &'a Adapters) -> Self {
        let given = checkpoint.tensors().iter().map(|tensor| Given {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            alias_of: tensor.alias_of.clone().filter(|_| !adapters.unties(tensor)),
            input: adapters.over(checkpoint.view(tensor)),
        });
        Self::new(label.to_owned(), checkpoint, given.collect())
    }

    pub(super) fn tensors(&self) -> &[Given<'a>] {
        &self.tensors
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    pub(super) fn get(&self, name: &str) -> Option<&Given<'a>> {
        self.by_name.get(name).map(|&index| &self.tensors[index])
    }
}
