//! From a recipe and open models to what each output tensor is made of.

use super::{Layers, Missing, Models, Recipe};
use crate::checkpoint::{Checkpoint, Tensor, TensorView};
use crate::dtype::{DType, Simd};
use crate::error::{Error, Mismatch, Result};
use crate::merge::{Base, Blend, BlendKernel, Input, Node, ScaleKernel};
use crate::stream::{self, Control, Group, Settings};
use ckptmerge_format::Metadata;
use std::collections::{HashMap, HashSet};

/// Everything that is known of an output before any of it is written: of a merge, or of a conversion.
pub struct Plan<'a> {
    /// The output's tensors, in the order of the reference model.
    pub tensors: Vec<Planned<'a>>,
    /// Tensors of the inputs that the output will not have, as was asked.
    pub left_out: Vec<String>,
    /// Tensors that are written in another type than was asked for, as that has no form for them.
    pub kept_as: Vec<(String, DType)>,
    /// The text that goes with the tensors.
    pub metadata: Metadata,
    /// What is read, and what messages call it.
    pub(super) sources: Vec<(&'a Checkpoint, String)>,
    /// The model that decides which tensor is in which part.
    pub(super) reference: &'a Checkpoint,
    /// The model whose small files come along.
    pub(super) frame: &'a Checkpoint,
}

/// One output tensor.
#[derive(Debug)]
pub struct Planned<'a> {
    /// The name.
    pub name: String,
    /// The type it is written in.
    pub dtype: DType,
    /// Elements along each dimension.
    pub shape: Vec<u64>,
    /// Which part of the reference model's layout it belongs to.
    pub part: usize,
    /// How it is made.
    pub operation: Operation<'a>,
}

/// How an output tensor is made.
#[derive(Debug)]
pub enum Operation<'a> {
    /// The bytes of a source.
    Copy(TensorView<'a>),
    /// A blend of sources, the base last if it has one.
    Blend(BlendKernel, Vec<TensorView<'a>>),
    /// A merge that takes a look at the data before it knows what to compute.
    Merge(Box<Node<'a>>),
    /// A source multiplied by its scales.
    Scale(ScaleKernel, TensorView<'a>),
    /// It stays tied to this other tensor of the output.
    Alias(String),
}

/// A tensor that must be the same in all of its sources, to be compared once everything else fits.
struct MustBeEqual<'a> {
    views: Vec<TensorView<'a>>,
    labels: Vec<&'a str>,
}

impl<'a> Plan<'a> {
    /// Plans the merge. Reads data only to compare tensors that are not floats, and only if all else fits.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the recipe contradicts itself, [`Error::Mismatch`] with everything that does not fit.
    pub fn new(recipe: &'a Recipe, models: &'a Models, settings: &Settings, control: Control<'_>) -> Result<Self> {
        recipe.check(models)?;
        let mut planner = Planner {
            recipe,
            models,
            mismatches: Vec::new(),
            left_out: Vec::new(),
            compare: Vec::new(),
            simd: Simd::detect(),
            layers: Layers::of(models.reference().tensors().iter().map(|tensor| tensor.name.as_str())),
        };
        let mut tensors = Vec::with_capacity(models.reference().tensors().len());
        for tensor in distinct_tensors(models) {
            tensors.extend(planner.tensor(tensor));
        }
        if planner.mismatches.is_empty() {
            planner.compare(settings, control)?;
        }
        if !planner.mismatches.is_empty() {
            return Err(Error::Mismatch(planner.mismatches));
        }
        keep_ties_typed(&mut tensors);
        if tensors.is_empty() {
            return Err(Error::Recipe("nothing is left to write: no tensor is in every model".to_owned()));
        }
        Ok(Self {
            tensors,
            left_out: planner.left_out,
            kept_as: Vec::new(),
            metadata: recipe.metadata(models)?,
            sources: models.sources(),
            reference: models.reference(),
            frame: models.frame(),
        })
    }
}

/// Gives tied tensors the type of what they are tied to, which may be another than in the inputs.
pub(super) fn keep_ties_typed(tensors: &mut [Planned<'_>]) {
    let dtypes: HashMap<String, DType> = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.dtype)).collect();
    for tensor in tensors {
        if let Operation::Alias(target) = &tensor.operation {
            tensor.dtype = dtypes.get(target).copied().unwrap_or(tensor.dtype);
        }
    }
}

/// Every tensor of the models once, by name; the reference model's first, in its order.
fn distinct_tensors(models: &Models) -> Vec<&Tensor> {
    let mut seen = HashSet::new();
    std::iter::once(models.reference())
        .chain(models.all())
        .flat_map(Checkpoint::tensors)
        .filter(|tensor| seen.insert(tensor.name.as_str()))
        .collect()
}

struct Planner<'a> {
    recipe: &'a Recipe,
    models: &'a Models,
    mismatches: Vec<Mismatch>,
    left_out: Vec<String>,
    compare: Vec<MustBeEqual<'a>>,
    simd: Simd,
    layers: Layers,
}

impl<'a> Planner<'a> {
    fn mismatch(&mut self, tensor: &Tensor, problem: String) -> Option<Planned<'a>> {
        self.mismatches.push(Mismatch { tensor: tensor.name.clone(), problem });
        None
    }

    fn leave_out(&mut self, tensor: &Tensor) -> Option<Planned<'a>> {
        self.left_out.push(tensor.name.clone());
        None
    }

    /// What becomes of the tensor of this name; none if it is left out or does not fit.
    fn tensor(&mut self, tensor: &'a Tensor) -> Option<Planned<'a>> {
        let name = tensor.name.as_str();
        let models = self.models;
        let reference = models.reference().get(name);
        if !self.recipe.merges(name) {
            let Some(view) = reference else { return self.leave_out(tensor) };
            // Two tied tensors that both stay as they are stay tied.
            return Some(match &view.tensor.alias_of {
                Some(target) if !self.recipe.merges(target) && !models.unties(view.tensor) => {
                    self.tied(view.tensor, target)
                }
                _ => self.own(view, None),
            });
        }
        let found: Vec<Option<TensorView<'a>>> = models.all().map(|model| model.get(name)).collect();
        let views: Vec<TensorView<'a>> = found.iter().flatten().copied().collect();
        if views.len() < found.len() {
            return match (self.recipe.missing, reference) {
                (Missing::Error, _) => {
                    let lacking: Vec<_> = found
                        .iter()
                        .zip(models.labels())
                        .filter(|(view, _)| view.is_none())
                        .map(|(_, label)| label.as_str())
                        .collect();
                    self.mismatch(tensor, format!("is missing in {} (see --missing)", lacking.join(", ")))
                }
                (Missing::Base, Some(view)) => Some(self.own(view, self.recipe.dtype)),
                _ => self.leave_out(tensor),
            };
        }

        if views.iter().any(|view| view.tensor.shape != tensor.shape) {
            let shapes: Vec<_> = views
                .iter()
                .zip(models.labels())
                .map(|(view, label)| format!("{:?} in {label}", view.tensor.shape))
                .collect();
            return self.mismatch(tensor, format!("has different shapes: {}", shapes.join(", ")));
        }
        // Tied everywhere to the same tensor, which is merged as well: still tied.
        if let Some(target) = &tensor.alias_of
            && self.recipe.merges(target)
            && views.iter().all(|view| view.tensor.alias_of.as_ref() == Some(target))
            && !models.unties(tensor)
        {
            return Some(self.tied(tensor, target));
        }
        if views.iter().all(|view| view.tensor.dtype.is_real()) {
            return self.blend(tensor, views);
        }
        if views.iter().any(|view| view.tensor.dtype != tensor.dtype) {
            let dtypes: Vec<_> = views
                .iter()
                .zip(models.labels())
                .map(|(view, label)| format!("{} in {label}", view.tensor.dtype))
                .collect();
            return self.mismatch(tensor, format!("has types that do not mix: {}", dtypes.join(", ")));
        }
        let labels = models.labels().iter().map(String::as_str).collect();
        let planned = self.copy(tensor, reference?);
        self.compare.push(MustBeEqual { views, labels });
        Some(planned)
    }

    fn planned(&self, tensor: &Tensor, dtype: DType, operation: Operation<'a>) -> Planned<'a> {
        Planned { name: tensor.name.clone(), dtype, shape: tensor.shape.clone(), part: tensor.part, operation }
    }

    fn tied(&self, tensor: &Tensor, target: &str) -> Planned<'a> {
        self.planned(tensor, tensor.dtype, Operation::Alias(target.to_owned()))
    }

    fn copy(&self, tensor: &Tensor, view: TensorView<'a>) -> Planned<'a> {
        self.planned(tensor, view.tensor.dtype, Operation::Copy(view))
    }

    /// The reference model's tensor with what adapters make of it, in the type given if it is a float, or else its own.
    fn own(&self, view: TensorView<'a>, dtype: Option<DType>) -> Planned<'a> {
        match self.models.input(self.models.reference_index(), view) {
            Input::Tensor(found) => self.cast(view.tensor, found, dtype.unwrap_or(view.tensor.dtype)),
            Input::Generated(_) => self.copy(view.tensor, view),
            Input::Node(node) => self.planned(view.tensor, dtype.unwrap_or(view.tensor.dtype), Operation::Merge(node)),
        }
    }

    /// The tensor itself, in the type given if it is a float.
    fn cast(&self, tensor: &Tensor, view: TensorView<'a>, dtype: DType) -> Planned<'a> {
        match dtype {
            dtype if view.tensor.dtype.is_real() && dtype != view.tensor.dtype => {
                let blend = Blend { from_base: false, coefficients: vec![1.0] };
                let kernel = BlendKernel { blend, inputs: vec![view.tensor.dtype], output: dtype, simd: self.simd };
                self.planned(tensor, dtype, Operation::Blend(kernel, vec![view]))
            }
            _ => self.copy(tensor, view),
        }
    }

    fn blend(&mut self, tensor: &'a Tensor, views: Vec<TensorView<'a>>) -> Option<Planned<'a>> {
        let models = self.models;
        let scaled = views.iter().zip(models.all()).find_map(|(view, model)| scale_of(view.tensor, model));
        if let Some(scale) = scaled {
            let problem = format!(
                "is {} with a scale in `{scale}`, without which its numbers mean nothing: convert the model to bf16 first, or --exclude it",
                tensor.dtype
            );
            return self.mismatch(tensor, problem);
        }
        let method = self.recipe.method;
        let mut inputs: Vec<Input<'a>> =
            views.iter().enumerate().map(|(index, view)| models.input(index, *view)).collect();
        let has_base = models.base.is_some() && method.about().base != Base::Counts;
        if models.base.is_some() && !has_base {
            // The base counts as the first model.
            inputs.rotate_right(1);
        }
        let count = self.recipe.count(models);
        // `tensor` is the reference model's own, as every tensor that is in all models comes from it first.
        let terms = self.recipe.terms(&tensor.name, &tensor.shape, count, has_base, &self.layers);
        if let Err(problem) = method.check(&terms) {
            return self.mismatch(tensor, problem);
        }
        let promoted =
            views.iter().map(|view| view.tensor.dtype).try_fold(views[0].tensor.dtype, |all, dtype| all.promote(dtype));
        let output = self.recipe.dtype.or(promoted)?;
        let node = Node { method, terms, inputs };
        let Some((blend, views)) = node.fixed() else {
            return Some(self.planned(tensor, output, Operation::Merge(Box::new(node))));
        };
        let inputs: Vec<DType> = views.iter().map(|view| view.tensor.dtype).collect();
        if !blend.from_base && blend.coefficients == [1.0] && inputs[0] == output {
            return Some(self.copy(tensor, views[0]));
        }
        let kernel = BlendKernel { blend, inputs, output, simd: self.simd };
        Some(self.planned(tensor, output, Operation::Blend(kernel, views)))
    }

    /// Compares what must be equal, byte for byte, all in one pass.
    fn compare(&mut self, settings: &Settings, control: Control<'_>) -> Result<()> {
        let groups: Vec<Group<'a>> = self.compare.iter().map(|item| Group::bytes(item.views.clone())).collect();
        // Which input differs from the first, if one does.
        let differing = stream::measure(&groups, settings, control, |_, inputs| {
            inputs.iter().position(|bytes| bytes != &inputs[0])
        })?;
        for (item, tiles) in self.compare.iter().zip(differing) {
            if let Some(index) = tiles.into_iter().flatten().next() {
                let tensor = item.views[0].tensor;
                let problem = format!(
                    "is {} and differs between {} and {}; such tensors are copied, not merged: --exclude it to keep {}'s",
                    tensor.dtype,
                    item.labels[0],
                    item.labels[index],
                    self.models.labels()[if self.models.base.is_some() { self.models.tuned.len() } else { 0 }],
                );
                self.mismatches.push(Mismatch { tensor: tensor.name.clone(), problem });
            }
        }
        Ok(())
    }
}

/// The tensor that an 8-bit float tensor must be multiplied with to mean anything, by the names in use.
pub(super) fn scale_of(tensor: &Tensor, model: &Checkpoint) -> Option<String> {
    if !matches!(tensor.dtype, DType::F8E4M3 | DType::F8E5M2) {
        return None;
    }
    let name = &tensor.name;
    let stem = name.strip_suffix("weight").unwrap_or(name);
    [format!("{name}_scale_inv"), format!("{name}_scale"), format!("{name}.scale"), format!("{stem}scale_weight")]
        .into_iter()
        .find(|scale| model.get(scale).is_some())
}
