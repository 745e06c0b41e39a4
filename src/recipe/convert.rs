//! One model to another form: other format, types, names, a part of its tensors.
//!
//! A tensor whose type stays is copied bit for bit. One that changes is decoded, multiplied by its scales if it is an
//! 8-bit float that has some, and rounded once.

use super::beside::Beside;
use super::plan::{Kept, scale_of, stored_type};
use super::rename::{replaced, within};
use super::{Operation, Plan, Planned, Rename, Renamed, Selection};
use crate::adapter::Adapters;
use crate::checkpoint::{Tensor, TensorView};
use crate::dtype::{self, DType, Simd};
use crate::error::{Error, Mismatch, Result};
use crate::merge::{Blend, BlendKernel, Input, ScaleKernel};
use regex::Regex;
use std::collections::{HashMap, HashSet};

/// How to convert, whichever model is given.
#[derive(Clone, Debug, Default)]
pub struct Conversion {
    /// The type of real numbers; others keep theirs.
    pub dtype: Option<DType>,
    /// Types for tensors whose name matches; the first match counts.
    pub dtype_for: Vec<(Regex, DType)>,
    /// Which tensors are kept.
    pub selection: Selection,
    /// How names change, one after the other. Patterns above are of the names before.
    pub rename: Vec<Rename>,
    /// Text that goes with the tensors, beside what the model has.
    pub metadata: Vec<(String, String)>,
}

impl Conversion {
    /// The type a tensor is to have, if another was asked for.
    fn dtype_of(&self, tensor: &Tensor) -> Option<DType> {
        let special =
            self.dtype_for.iter().find(|(pattern, _)| tensor.inputs().iter().any(|name| pattern.is_match(name)));
        let special = special.map(|(_, dtype)| *dtype);
        special.or(self.dtype.filter(|_| tensor.dtype.is_real())).filter(|dtype| *dtype != tensor.dtype)
    }

    /// Plans the conversion of a model that [`Self::rename`] has taken through the name maps. Reads no data but scales.
    ///
    /// # Errors
    /// [`Error::Unfit`] with every tensor that cannot be converted, [`Error::Recipe`] if nothing is left, or no number can have
    /// the type.
    pub fn plan<'a>(&self, renamed: &'a Renamed) -> Result<Plan<'a>> {
        self.plan_with(renamed, None)
    }

    /// As [`Self::plan`], of a model with adapters over it, which the output then has in its tensors.
    ///
    /// # Errors
    /// As [`Self::plan`]; [`Error::Recipe`] if there is a name map as well, since adapters go by the names in the files.
    pub fn plan_with<'a>(&self, renamed: &'a Renamed, adapters: Option<&'a Adapters>) -> Result<Plan<'a>> {
        let model = renamed.model();
        if adapters.is_some() && self.rename.iter().any(|rename| matches!(rename, Rename::Map(_))) {
            let message = "an adapter goes by the names in the model's files: convert the model with it first, then give the tensors other names";
            return Err(Error::Recipe(message.to_owned()));
        }
        // A scale is multiplied in with its tensor, or stays as it is with it.
        let scales: HashSet<String> = model.tensors().iter().filter_map(|tensor| scale_of(tensor, model)).collect();
        if let Some(dtype) = self.dtype.filter(|dtype| !dtype.is_real() || !dtype::can_encode(*dtype)) {
            let writable = DType::all().filter(|dtype| dtype.is_real() && dtype::can_encode(*dtype));
            let list: Vec<String> = writable.map(|dtype| dtype.name().to_lowercase()).collect();
            let message = format!("real numbers cannot be converted to {dtype}, but to {}", list.join(", "));
            return Err(Error::Recipe(message));
        }
        let mut mismatches = Vec::new();
        let (mut tensors, mut left_out, mut kept_as) = (Vec::new(), renamed.left_out.clone(), Vec::new());
        let mut consumed = HashSet::new();
        for tensor in model.tensors() {
            if !renamed.is_filtered && !self.selection.takes(&tensor.name) {
                left_out.push(tensor.name.clone());
                continue;
            }
            if scales.contains(&tensor.name) {
                match planned(renamed, tensor, tensor.dtype, Operation::Copy(model.view(tensor))) {
                    Ok(planned) => tensors.push((tensor, planned)),
                    Err(problem) => mismatches.push(Mismatch { tensor: inputs(tensor), problem }),
                }
                continue;
            }
            match self.tensor((renamed, adapters), tensor, &mut consumed, &mut kept_as) {
                Ok(planned) => tensors.push(planned),
                Err(problem) => mismatches.push(Mismatch { tensor: inputs(tensor), problem }),
            }
        }
        for (tensor, planned) in &tensors {
            let scale =
                scale_of(tensor, model).filter(|scale| planned.dtype == tensor.dtype && !self.selection.takes(scale));
            if let Some(scale) = scale {
                let problem =
                    format!("is kept, but its scale `{scale}` is not, without which its numbers mean nothing");
                mismatches.push(Mismatch { tensor: tensor.name.clone(), problem });
            }
        }
        // Scales that were multiplied in have no further meaning.
        tensors.retain(|(tensor, _): &(&Tensor, Planned<'_>)| !consumed.contains(&tensor.name));
        let names: HashMap<&str, String> =
            tensors.iter().map(|(tensor, planned)| (tensor.name.as_str(), planned.name.clone())).collect();
        let mut seen = HashMap::new();
        let dtypes: HashMap<String, DType> =
            tensors.iter().map(|(tensor, planned)| (tensor.name.clone(), planned.dtype)).collect();
        for (tensor, planned) in &mut tensors {
            // A tie lasts while what it leads to is kept, in the same type; else the elements are the tensor's own.
            if let Some(target) = &tensor.alias_of
                && let Some(name) = names.get(target.as_str())
                && dtypes.get(target) == Some(&planned.dtype)
                && !adapters.is_some_and(|adapters| adapters.unties(tensor))
            {
                planned.operation = Operation::Alias(name.clone());
            }
            if let Some(other) = seen.insert(planned.name.clone(), inputs(tensor)) {
                let problem = format!("and `{other}` would both be called `{}`", planned.name);
                mismatches.push(Mismatch { tensor: inputs(tensor), problem });
            }
        }
        if !mismatches.is_empty() {
            return Err(Error::Unfit(mismatches));
        }
        if tensors.is_empty() {
            return Err(super::nothing_left());
        }
        let mut metadata = model.metadata().clone();
        metadata.extend(self.metadata.iter().cloned());
        Ok(Plan {
            tensors: tensors.into_iter().map(|(_, planned)| planned).collect(),
            left_out,
            kept_as,
            notes: Vec::new(),
            projections: Vec::new(),
            metadata,
            sources: std::iter::once(model)
                .chain(adapters.into_iter().flat_map(Adapters::sources))
                .map(|source| (source, source.name().to_owned()))
                .collect(),
            reference: model,
            frame: model,
            beside: Beside::default(),
        })
    }

    fn tensor<'a>(
        &self,
        (renamed, adapters): (&'a Renamed, Option<&'a Adapters>),
        tensor: &'a Tensor,
        consumed: &mut HashSet<String>,
        kept_as: &mut Vec<Kept>,
    ) -> Result<(&'a Tensor, Planned<'a>), String> {
        let model = renamed.model();
        let view = model.view(tensor);
        let planned = |dtype, operation| Ok((tensor, planned(renamed, tensor, dtype, operation)?));
        let adapted = adapters
            .map(|adapters| adapters.over(view))
            .filter(|input| !matches!(input, Input::Tensor(own) if std::ptr::eq(own.tensor, tensor)));
        let wanted = self.dtype_of(tensor).or(adapted.is_some().then_some(tensor.dtype));
        let Some(wanted) = wanted else { return planned(tensor.dtype, Operation::Copy(view)) };
        if !tensor.dtype.is_real() || !wanted.is_real() {
            return Err(format!("is {} and cannot become {wanted}: only real numbers change their type", tensor.dtype));
        }
        if !dtype::can_decode(tensor.dtype) || !dtype::can_encode(wanted) {
            return Err(format!("cannot be converted from {} to {wanted}", tensor.dtype));
        }
        let output = stored_type(wanted, &tensor.shape);
        if output != wanted {
            let dimensions = tensor.shape.len();
            kept_as.push(Kept { name: inputs(tensor), from: tensor.dtype, wanted, dimensions });
        }
        match (adapted, scale_of(tensor, model)) {
            (None, _) => {}
            (Some(_), Some(scale)) => {
                return Err(format!(
                    "is {} with a scale in `{scale}`, so nothing can be added to it: convert the model to bf16 first",
                    tensor.dtype
                ));
            }
            (Some(Input::Node(node)), None) => return planned(output, Operation::Merge(node)),
            (Some(Input::Tensor(view)), None) => return planned(output, converted(view, output)),
            (Some(Input::Generated(_)), None) => return Err("has no elements of its own".to_owned()),
        }
        if let Some(scale) = scale_of(tensor, model) {
            let scales = model.get(&scale).ok_or("has no scales")?;
            let values = read_scales(scales)?;
            let kernel = ScaleKernel::new(tensor.dtype, &tensor.shape, values, &scales.tensor.shape, output)?;
            consumed.insert(scale);
            return planned(output, Operation::Scale(kernel, view));
        }
        planned(output, converted(view, output))
    }
}

/// What messages call a tensor: the names in the model's files.
fn inputs(tensor: &Tensor) -> String {
    tensor.inputs().join("`, `")
}

fn planned<'a>(
    renamed: &Renamed,
    tensor: &Tensor,
    dtype: DType,
    operation: Operation<'a>,
) -> Result<Planned<'a>, String> {
    let model = renamed.model();
    let prefix = model.layout().parts[tensor.part].prefix();
    let name = format!("{prefix}{}", replaced(&renamed.rules, within(model, tensor))?);
    Ok(Planned { name, dtype, shape: tensor.shape.clone(), part: tensor.part, operation })
}

/// The most scales of a tensor. A tensor of 10^10 elements has some 10^6 of them, or 10^5 if it has one for each row.
const MAX_SCALES: u64 = 1 << 24;

fn read_scales(scales: TensorView<'_>) -> Result<Vec<f32>, String> {
    let Tensor { dtype, elements, bytes, .. } = scales.tensor;
    if !dtype.is_real() || !dtype::can_decode(*dtype) {
        return Err(format!("has scales of type {dtype}, which cannot be read"));
    }
    // A view can repeat one element of its file any number of times.
    if *elements > MAX_SCALES {
        return Err(format!("has {elements} scales; {MAX_SCALES} are read"));
    }
    let mut buffer = Vec::new();
    let bytes = scales.read(0..*bytes, &mut buffer).map_err(|error| error.to_string())?;
    let mut values = vec![0.0; *elements as usize];
    dtype::decode(Simd::detect(), *dtype, bytes, &mut values);
    Ok(values)
}

/// A tensor in another type, or a copy if it is the same.
fn converted(view: TensorView<'_>, output: DType) -> Operation<'_> {
    if view.tensor.dtype == output {
        return Operation::Copy(view);
    }
    let blend = Blend { from_base: false, coefficients: vec![1.0] };
    let kernel = BlendKernel { blend, inputs: vec![view.tensor.dtype], output, simd: Simd::detect() };
    Operation::Blend(kernel, vec![view])
}
