//! The same tensors of several models, side by side, and of the base that they were tuned from.

use super::By;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::dtype;
use crate::error::{Error, Mismatch, Result};
use crate::stream::Group;
use std::collections::{HashMap, HashSet};

/// What all models have in common.
#[derive(Debug)]
pub struct Vectors<'a> {
    /// The tensors that are numbers in all of them, in the order of the base, or of the first model.
    pub tensors: Vec<Vector<'a>>,
    /// The names of those that are no numbers, or not in all models where only shared ones are taken.
    pub left_out: Vec<String>,
    /// How many models there are.
    pub models: usize,
}

/// A tensor of all models.
#[derive(Debug)]
pub struct Vector<'a> {
    /// Its name.
    pub name: &'a str,
    /// In the models.
    pub models: Vec<TensorView<'a>>,
    /// In the base.
    pub base: Option<TensorView<'a>>,
}

impl<'a> Vectors<'a> {
    /// Finds the tensors whose names `takes` says yes to. Tied tensors count once. With `shared_only` those that a model
    /// lacks are left out; otherwise they are an error.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every tensor that is missing somewhere, or of another shape; [`Error::Recipe`] if no
    /// tensors are left.
    pub fn of(
        models: &[&'a Checkpoint],
        base: Option<&'a Checkpoint>,
        labels: &[String],
        takes: &dyn Fn(&str) -> bool,
        shared_only: bool,
    ) -> Result<Self> {
        let all: Vec<&'a Checkpoint> = base.into_iter().chain(models.iter().copied()).collect();
        let base_label = labels.get(models.len()).into_iter();
        let labels: Vec<&String> = base_label.filter(|_| base.is_some()).chain(&labels[..models.len()]).collect();
        let mut found = Self { tensors: Vec::new(), left_out: Vec::new(), models: models.len() };
        let mut mismatches = Vec::new();
        let Some(first) = all.first() else { return Err(Error::Recipe("there is no model".to_owned())) };
        for tensor in first.tensors().iter().filter(|tensor| takes(&tensor.name)) {
            let views: Vec<Option<TensorView<'a>>> = all.iter().map(|model| model.get(&tensor.name)).collect();
            let lacking =
                || labels.iter().zip(&views).filter(|(_, view)| view.is_none()).map(|(label, _)| label.as_str());
            let views: Vec<TensorView<'a>> = match views.iter().copied().collect() {
                Some(views) => views,
                None if shared_only => {
                    found.left_out.push(tensor.name.clone());
                    continue;
                }
                None => {
                    mismatches.push(missing(&tensor.name, lacking()));
                    continue;
                }
            };
            if tensor.alias_of.as_ref().is_some_and(|target| {
                takes(target) && views.iter().all(|view| view.tensor.alias_of.as_ref() == Some(target))
            }) {
                continue;
            }
            let is_number = |view: &TensorView<'_>| view.tensor.dtype.is_real() && dtype::can_decode(view.tensor.dtype);
            if let Some(other) = views.iter().position(|view| !same_shape(view, &views[0])) {
                let shapes = [&tensor.shape, &views[other].tensor.shape];
                let problem = format!(
                    "has shape {:?} in {} and {:?} in {}: --exclude it",
                    shapes[0], labels[0], shapes[1], labels[other]
                );
                mismatches.push(Mismatch { tensor: tensor.name.clone(), problem });
            } else if views.iter().all(is_number) {
                let (base, models) = if base.is_some() { (Some(views[0]), &views[1..]) } else { (None, &views[..]) };
                found.tensors.push(Vector { name: &tensor.name, models: models.to_vec(), base });
            } else if views.iter().any(is_number) {
                let problem = format!("has types that do not mix, in {} and others", labels[0]);
                mismatches.push(Mismatch { tensor: tensor.name.clone(), problem });
            } else {
                found.left_out.push(tensor.name.clone());
            }
        }
        let mut left_out: HashSet<&str> = HashSet::new();
        for (model, label) in all.iter().zip(&labels).skip(1) {
            for tensor in
                model.tensors().iter().filter(|tensor| takes(&tensor.name) && first.get(&tensor.name).is_none())
            {
                if !shared_only {
                    mismatches
                        .push(missing(&tensor.name, [labels[0].as_str()].into_iter().filter(|_| label != &labels[0])));
                } else if left_out.insert(&tensor.name) {
                    found.left_out.push(tensor.name.clone());
                }
            }
        }
        mismatches.dedup();
        if !mismatches.is_empty() {
            return Err(Error::Mismatch(mismatches));
        }
        if found.tensors.is_empty() {
            return Err(Error::Recipe(
                "no tensor is left to compare: none that all models have is of real numbers".to_owned(),
            ));
        }
        Ok(found)
    }

    /// The names of the parts, as they come, and the number of the part that each tensor is in.
    pub(super) fn parts(&self, by: By) -> (Vec<&'a str>, Vec<Option<usize>>) {
        let names: Vec<&'a str> = self.tensors.iter().map(|vector| vector.name).collect();
        let (mut parts, mut index): (Vec<&str>, HashMap<&str, usize>) = (Vec::new(), HashMap::new());
        let mut number = |part: &'a str| {
            *index.entry(part).or_insert_with(|| {
                parts.push(part);
                parts.len() - 1
            })
        };
        let part_of = by.parts(&names).into_iter().map(|part| part.map(&mut number)).collect();
        (parts, part_of)
    }

    /// How many bytes a pass over them reads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors
            .iter()
            .flat_map(|vector| vector.models.iter().chain(&vector.base))
            .map(|view| view.tensor.bytes)
            .sum()
    }

    /// The tensors as the stream takes them, the base last.
    pub(super) fn groups(&self) -> Vec<Group<'a>> {
        let inputs = |vector: &Vector<'a>| vector.models.iter().copied().chain(vector.base).collect();
        self.tensors.iter().map(|vector| Group::numbers(inputs(vector))).collect()
    }
}

fn missing<'l>(tensor: &str, labels: impl Iterator<Item = &'l str>) -> Mismatch {
    let labels: Vec<&str> = labels.collect();
    let problem =
        format!("is missing in {}: --exclude it, or compare only what all have with --shared", labels.join(", "));
    Mismatch { tensor: tensor.to_owned(), problem }
}

/// Whether two tensors have the same shape. GGUF has no scalars, and makes one element in a row of them.
pub(super) fn same_shape(a: &TensorView<'_>, b: &TensorView<'_>) -> bool {
    let is_scalar = |view: &TensorView<'_>| matches!(view.tensor.shape[..], [] | [1]);
    let from_gguf = [a, b].iter().any(|view| view.checkpoint.format() == "gguf");
    a.tensor.shape == b.tensor.shape || from_gguf && is_scalar(a) && is_scalar(b)
}
