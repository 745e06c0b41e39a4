//! Candidates in memory: a base and task vectors, resident as f32, of which any weighted sum is one pass.
//!
//! `θ + Σ wᵢ·τᵢ` is computed in the order and with the roundings of a merge: weights are f32, and a product is rounded before it is
//! added.

use crate::analysis::Vectors;
use crate::checkpoint::TensorView;
use crate::dtype::{self, Simd};
use crate::error::{Bytes, Error, Result};
use crate::merge::Key;
use crate::os;
use rayon::prelude::*;
use std::collections::HashMap;

/// Elements at a time: what stays in the first-level cache.
const CHUNK: usize = 4096;

/// A base and vectors from it.
pub struct Candidates {
    tensors: Vec<Resident>,
    index: HashMap<String, usize>,
    models: usize,
}

struct Resident {
    base: Vec<f32>,
    vectors: Vec<Vec<f32>>,
}

impl Candidates {
    /// Reads models that have a base, on the current pool's threads; `memory` bounds what they may take.
    ///
    /// # Errors
    /// [`Error::Recipe`] if they do not fit into memory, or have no base; as reading does.
    pub fn read(vectors: &Vectors<'_>, memory: Option<u64>) -> Result<Self> {
        let elements: u64 =
            vectors.tensors.iter().filter_map(|vector| vector.base).map(|view| view.tensor.elements).sum();
        check_memory(elements, vectors.models as u64 + 1, memory)?;
        let of_tensor = |vector: &crate::analysis::Vector<'_>| {
            let base = vector.base.ok_or_else(|| Error::Recipe("there is no base to add vectors to".to_owned()))?;
            let base = decoded(&base)?;
            let difference = |view: &TensorView<'_>| {
                let mut values = decoded(view)?;
                values.iter_mut().zip(&base).for_each(|(value, base)| *value -= base);
                Ok(values)
            };
            let vectors = vector.models.iter().map(difference).collect::<Result<_>>()?;
            Ok((vector.name.to_owned(), Resident { base, vectors }))
        };
        Self::of(vectors.tensors.par_iter().map(of_tensor), vectors.models)
    }

    /// A model with two random directions `d`, normalised by filter (Li et al. 2018, <https://arxiv.org/abs/1712.09913>, §4): of
    /// N(0, 1), each slice along a tensor's first dimension then of the norm that the model's own has. Tensors with one
    /// dimension or none, biases and normalisations, stay as they are.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn around(views: &[TensorView<'_>], seed: u64, memory: Option<u64>) -> Result<Self> {
        const DIRECTIONS: usize = 2;
        check_memory(views.iter().map(|view| view.tensor.elements).sum(), DIRECTIONS as u64 + 1, memory)?;
        let of_tensor = |view: &TensorView<'_>| {
            let base = decoded(view)?;
            let filter = match &view.tensor.shape[..] {
                [filters, _, ..] => base.len().checked_div(*filters as usize),
                _ => None,
            };
            let direction = |number: usize| {
                let mut values = vec![0.0; base.len()];
                if let Some(filter) = filter.filter(|filter| *filter > 0) {
                    Key::new(seed, &view.tensor.name, number).normals(&mut values);
                    values.chunks_mut(filter).zip(base.chunks(filter)).for_each(|(direction, own)| {
                        let scale = (square(own) / square(direction)).sqrt();
                        direction.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
                    });
                }
                values
            };
            let vectors = (0..DIRECTIONS).map(direction).collect();
            Ok((view.tensor.name.clone(), Resident { base, vectors }))
        };
        let found = Self::of(views.par_iter().map(of_tensor), DIRECTIONS)?;
        if found.tensors.iter().flat_map(|tensor| &tensor.vectors).flatten().any(|value| *value != 0.0) {
            return Ok(found);
        }
        let message = "no tensor is left to move along: random directions are of tensors with two dimensions and more that are not zero";
        Err(Error::Recipe(message.to_owned()))
    }

    fn of(tensors: impl IndexedParallelIterator<Item = Result<(String, Resident)>>, models: usize) -> Result<Self> {
        let found: Vec<(String, Resident)> = tensors.collect::<Result<_>>()?;
        let (names, tensors): (Vec<String>, Vec<Resident>) = found.into_iter().unzip();
        let index = names.into_iter().enumerate().map(|(index, name)| (name, index)).collect();
        Ok(Self { tensors, index, models })
    }

    /// Bytes that a candidate takes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| (tensor.base.len() * size_of::<f32>()) as u64).sum()
    }

    /// The names of the tensors that candidates differ in, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// A tensor of the candidate of these weights, one for each vector; none if there is no such tensor.
    ///
    /// # Panics
    /// If there are not as many weights as vectors.
    #[must_use]
    pub fn tensor(&self, name: &str, weights: &[f64]) -> Option<Vec<f32>> {
        assert_eq!(weights.len(), self.models, "each vector has a weight");
        let Resident { base, vectors } = self.tensors.get(*self.index.get(name)?)?;
        let used = vectors.iter().zip(weights).map(|(vector, &weight)| (vector, weight as f32));
        let used: Vec<(&Vec<f32>, f32)> = used.filter(|(_, weight)| *weight != 0.0).collect();
        let Some(((first, weight), others)) = used.split_first() else { return Some(base.clone()) };
        let mut out = Vec::with_capacity(base.len());
        for start in (0..base.len()).step_by(CHUNK) {
            let chunk = start..base.len().min(start + CHUNK);
            let mut sum = first.get(chunk.clone()).unwrap_or_default().to_vec();
            sum.iter_mut().for_each(|value| *value *= weight);
            for (vector, weight) in others {
                let vector = vector.get(chunk.clone()).unwrap_or_default();
                sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += weight * value);
            }
            let base = base.get(chunk.clone()).unwrap_or_default();
            out.extend(base.iter().zip(&sum).map(|(base, sum)| base + sum));
        }
        Some(out)
    }
}

fn square(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// A tensor's elements.
fn decoded(view: &TensorView<'_>) -> Result<Vec<f32>> {
    let mut buffer = Vec::new();
    let bytes = view.read(0..view.tensor.bytes, &mut buffer)?;
    let mut values = vec![0.0; view.tensor.elements as usize];
    dtype::decode(Simd::detect(), view.tensor.dtype, bytes, &mut values);
    view.files().try_for_each(crate::checkpoint::DataFile::check_fault)?;
    Ok(values)
}

/// That models fit into memory as f32.
fn check_memory(elements: u64, models: u64, memory: Option<u64>) -> Result<()> {
    let needed = elements.saturating_mul(models).saturating_mul(size_of::<f32>() as u64);
    let (room, what) = match (memory, os::available_memory()) {
        (Some(bound), _) => (bound, "may be taken (--memory)"),
        (None, Some(free)) => (free, "are free"),
        (None, None) => return Ok(()),
    };
    if needed <= room {
        return Ok(());
    }
    let (needed, room) = (Bytes(needed), Bytes(room));
    let message = format!("{models} models in memory take {needed}, but only {room} {what}");
    Err(Error::Recipe(format!("{message}: give fewer models, or leave tensors out (--exclude)")))
}
