//! From a recipe and open models to what each output tensor is made of.

use super::beside::Beside;
use super::planner::{self, Made, Making, Module, Slice, Source};
use super::supply::Supply;
use super::{Folded, Models, Projection, Recipe, fold, tied};
use crate::checkpoint::{Checkpoint, Layout, Tensor, TensorView};
use crate::dtype::{DType, Kind, Simd};
use crate::error::{Error, Mismatch, Result};
use crate::merge::{self, Blend, BlendKernel, Input, Node, ScaleKernel, Terms};
use crate::stream::{self, Control, Group, Settings};
use ckptmerge_format::Metadata;
use std::collections::HashMap;
use std::rc::Rc;

/// Everything that is known of an output before any of it is written: of a merge, or of a conversion.
pub struct Plan<'a> {
    /// The output's tensors, in the order of the reference model.
    pub tensors: Vec<Planned<'a>>,
    /// Tensors of the inputs that the output will not have, as was asked.
    pub left_out: Vec<String>,
    /// Tensors that are written in another type than was asked for, as that has no form for them.
    pub kept_as: Vec<Kept>,
    /// What is to be said of how the recipe was understood.
    pub notes: Vec<String>,
    /// What became of channel-wise projections, where they were to be folded.
    pub projections: Vec<Projection>,
    /// The text that goes with the tensors.
    pub metadata: Metadata,
    /// What is read, and what messages call it.
    pub(super) sources: Vec<(&'a Checkpoint, String)>,
    /// The model that decides which tensor is in which part.
    pub(super) reference: &'a Checkpoint,
    /// The model whose small files come along.
    pub(super) frame: &'a Checkpoint,
    /// What is different in those small files.
    pub(super) beside: Beside,
}

/// A tensor that is written in another type than was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name in the model's files.
    pub name: String,
    /// The type it has there.
    pub from: DType,
    /// The type that was asked for.
    pub wanted: DType,
    /// How many dimensions it has.
    pub dimensions: usize,
}

/// The type of a tensor for which `wanted` was asked. As in llama.cpp, norms, biases and whatever else has fewer than
/// two dimensions is not quantized; nor are rows that are no whole blocks.
pub(super) fn stored_type(wanted: DType, shape: &[u64]) -> DType {
    let fits = shape.len() > 1 && shape.last().is_some_and(|last| last.is_multiple_of(wanted.block_elements()));
    if wanted.kind() == Kind::Quantized && !fits { DType::F32 } else { wanted }
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
    /// A merge with a merged projection multiplied in.
    Fold(Box<Folded<'a>>),
}

impl<'a> Operation<'a> {
    /// The merges that take a look at the data.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        let (merged, folded) = match self {
            Self::Merge(node) => (Some(&**node), None),
            Self::Fold(folded) => (None, Some(folded.nodes())),
            _ => (None, None),
        };
        merged.into_iter().chain(folded.into_iter().flatten())
    }
}

/// A tensor that must be the same in all of its sources, to be compared once everything else fits.
pub(super) struct MustBeEqual<'a> {
    pub(super) views: Vec<TensorView<'a>>,
    /// What messages call the sources.
    pub(super) labels: Vec<String>,
    /// Which of them it is copied from.
    pub(super) kept: usize,
}

/// Compares what must be equal, byte for byte, all in one pass.
pub(super) fn compare(all: &[MustBeEqual<'_>], settings: &Settings, control: Control<'_>) -> Result<Vec<Mismatch>> {
    let groups: Vec<Group<'_>> = all.iter().map(|item| Group::bytes(item.views.clone())).collect();
    // Which input differs from the first, if one does.
    let differing =
        stream::measure(&groups, settings, control, |_, inputs| inputs.iter().position(|bytes| bytes != &inputs[0]))?;
    let mismatch = |item: &MustBeEqual<'_>, index: usize| {
        let tensor = item.views[0].tensor;
        let problem = format!(
            "is {} and differs between {} and {}; such tensors are copied, not merged: --exclude it to keep {}'s",
            tensor.dtype, item.labels[0], item.labels[index], item.labels[item.kept],
        );
        Mismatch { tensor: tensor.name.clone(), problem }
    };
    let first = |tiles: Vec<Option<usize>>| tiles.into_iter().flatten().next();
    Ok(all.iter().zip(differing).filter_map(|(item, tiles)| Some(mismatch(item, first(tiles)?))).collect())
}

impl<'a> Plan<'a> {
    /// Plans the merge. Reads data only to compare tensors that are not floats, and only if all else fits.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the recipe contradicts itself, [`Error::Mismatch`] with everything that does not fit.
    pub fn new(recipe: &Recipe, models: &'a Models, settings: &Settings, control: Control<'_>) -> Result<Self> {
        recipe.check(models)?;
        let mut notes = Vec::new();
        let supply = |(index, (model, label)): (usize, (&'a Checkpoint, &String))| {
            Rc::new(Supply::of(label, model, models.adapters(index)))
        };
        let supplies: Vec<Rc<Supply<'a>>> = models.all().zip(models.labels()).enumerate().map(supply).collect();
        let supplies = tied::complete(&supplies, &mut notes);
        let sources = supplies.into_iter().map(|supply| Source { supply, levels: Rc::default(), layers: None });
        let sources = sources.collect();
        let base = models.base.is_some().then_some(models.tuned.len());
        let mut slice = Slice::new(recipe.method, sources, base, Vec::new());
        slice.set_levels(|index| Rc::new(recipe.levels(index)), vec![Rc::new(recipe.shared_levels())]);
        let rules = recipe.rules();
        slice.place_blocks(|name| rules.selection.takes(name), &mut notes).map_err(Error::Recipe)?;
        slice.companions = models.accompanied().map(|(model, label)| Rc::new(Supply::plain(label, model))).collect();
        let module = Module { prefix: String::new(), slices: vec![slice] };
        let mut planned = planner::plan(&rules, &[module]);
        notes.extend(planned.notes);
        if !planned.mismatches.is_empty() {
            return Err(Error::Mismatch(planned.mismatches));
        }
        let different = compare(&planned.compare, settings, control)?;
        if !different.is_empty() {
            return Err(Error::Mismatch(different));
        }
        let projections = if recipe.fold_projections { fold::fold(&mut planned.made)? } else { Vec::new() };
        let (reference, frame) = (models.reference(), models.frame());
        Ok(Self {
            tensors: lowered(planned.made, reference.layout())?,
            left_out: planned.left_out,
            kept_as: planned.kept,
            notes,
            projections,
            metadata: recipe.metadata(models)?,
            sources: models.sources(),
            reference,
            frame,
            beside: Beside::default(),
        })
    }
}

/// The tensors with the fastest operation that makes each, in the parts of the layout that their names begin with.
///
/// # Errors
/// [`Error::Recipe`] if there are none.
pub(super) fn lowered<'a>(made: Vec<Made<'a>>, layout: &Layout) -> Result<Vec<Planned<'a>>> {
    if made.is_empty() {
        return Err(Error::Recipe("nothing is left to write: no tensor is in every model".to_owned()));
    }
    let prefixes: Vec<String> = layout.parts.iter().map(|part| part.prefix()).collect();
    let part_of = |name: &str| {
        let named = prefixes.iter().position(|prefix| !prefix.is_empty() && name.starts_with(prefix.as_str()));
        named.or(prefixes.iter().position(String::is_empty)).unwrap_or(0)
    };
    let one = |made: Made<'a>| {
        let operation = match made.making {
            Making::Tied(target) => Operation::Alias(target),
            Making::Folded(folded) => Operation::Fold(folded),
            Making::From(input) => operation(input, &made.name, &made.shape, made.dtype)?,
        };
        let part = part_of(&made.name);
        Ok(Planned { name: made.name, dtype: made.dtype, shape: made.shape, part, operation })
    };
    let mut tensors = made.into_iter().map(one).collect::<Result<Vec<_>>>()?;
    keep_ties_typed(&mut tensors);
    Ok(tensors)
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

/// How elements come to be written in a type.
fn operation<'a>(input: Input<'a>, name: &str, shape: &[u64], dtype: DType) -> Result<Operation<'a>> {
    let kernel = |blend: Blend, views: Vec<TensorView<'a>>| {
        let inputs = views.iter().map(|view| view.tensor.dtype).collect();
        Operation::Blend(BlendKernel { blend, inputs, output: dtype, simd: Simd::detect() }, views)
    };
    let whole = || Blend { from_base: false, coefficients: vec![1.0] };
    Ok(match input {
        Input::Tensor(view) if view.tensor.dtype == dtype => Operation::Copy(view),
        Input::Tensor(view) => kernel(whole(), vec![view]),
        Input::Generated(_) => {
            let method = merge::method("linear")?;
            let terms = Terms::new(method.about(), name, shape, 1, false);
            Operation::Merge(Box::new(Node { method, terms, inputs: vec![input] }))
        }
        Input::Node(node) => match node.fixed() {
            Some((blend, views)) => kernel(blend, views),
            None => Operation::Merge(node),
        },
    })
}

/// The tensor that an 8-bit float tensor must be multiplied with to mean anything, by the names in use.
pub(crate) fn scale_of(tensor: &Tensor, model: &Checkpoint) -> Option<String> {
    if !matches!(tensor.dtype, DType::F8E4M3 | DType::F8E5M2) {
        return None;
    }
    let name = &tensor.name;
    let stem = name.strip_suffix("weight").unwrap_or(name);
    [format!("{name}_scale_inv"), format!("{name}_scale"), format!("{name}.scale"), format!("{stem}scale_weight")]
        .into_iter()
        .find(|scale| model.get(scale).is_some())
}
