//! What fine-tuning changed: the task vector τ = tuned − base (Ilharco et al. 2023, <https://arxiv.org/abs/2212.04089>).
//!
//! Computed in f32 (f64 where an input or the output is F64) and rounded once. With a density, the largest
//! `⌊density·n⌋` changes of each tensor, at least one, are kept and others are 0; changes as large as the smallest that is
//! kept are kept as well.

use super::beside::Beside;
use super::plan::{keep_ties_typed, scale_of};
use super::{Models, Operation, Plan, Planned, Selection};
use crate::adapter::Changed;
use crate::checkpoint::{Tensor, TensorView};
use crate::dtype::{self, DType, Simd, vector};
use crate::error::{Error, Mismatch, Result};
use crate::merge::{
    About, Base, Blend, BlendKernel, Block, Data, Method, Node, Parameter, Shader, Solution, Terms, Weight,
};
use crate::stream::{self, Control, Group, Settings};
use serde_json::json;

/// How a change is taken, whichever models are given.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The type it is written in.
    pub dtype: DType,
    /// The share of each tensor's elements that is kept.
    pub density: f64,
    /// Which tensors are taken.
    pub selection: Selection,
}

impl Default for Difference {
    fn default() -> Self {
        Self { dtype: DType::F32, density: 1.0, selection: Selection::default() }
    }
}

/// What is taken of two models.
struct Taken<'a> {
    /// Numbers that are subtracted.
    pairs: Vec<(&'a Tensor, Node<'a>)>,
    /// Tensors tied to others in both.
    tied: Vec<&'a Tensor>,
    /// Tensors that are not taken: left out on request, or not numbers and the same in both.
    left_out: Vec<String>,
}

impl Difference {
    /// Plans the change from the base to the one tuned model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with every tensor that cannot be subtracted; [`Error::Recipe`] if there is no base or nothing
    /// is left.
    pub fn plan<'a>(&self, models: &'a Models, settings: &Settings, control: Control<'_>) -> Result<Plan<'a>> {
        if !self.dtype.is_real() || !dtype::can_encode(self.dtype) {
            return Err(Error::Recipe(format!("{} has no numbers; choose a float type such as f32", self.dtype)));
        }
        let taken = self.taken(models, settings, control)?;
        let planned = |tensor: &Tensor, operation| Planned {
            name: tensor.name.clone(),
            dtype: self.dtype,
            shape: tensor.shape.clone(),
            part: tensor.part,
            operation,
        };
        let mut tensors: Vec<Planned<'a>> = Vec::new();
        for (tensor, node) in taken.pairs {
            let operation = match node.fixed() {
                Some((blend, views)) => {
                    let inputs = views.iter().map(|view| view.tensor.dtype).collect();
                    let kernel = BlendKernel { blend, inputs, output: self.dtype, simd: Simd::detect() };
                    Operation::Blend(kernel, views)
                }
                None => Operation::Merge(Box::new(node)),
            };
            tensors.push(planned(tensor, operation));
        }
        for tensor in taken.tied {
            let target = tensor.alias_of.clone().unwrap_or_default();
            tensors.push(planned(tensor, Operation::Alias(target)));
        }
        keep_ties_typed(&mut tensors);
        let reference = models.reference();
        let recipe = json!({
            "ckptmerge": env!("CARGO_PKG_VERSION"),
            "method": ABOUT.name,
            "formula": ABOUT.formula,
            "density": self.density,
        });
        let metadata = models.metadata(&recipe)?;
        let sources = models.sources();
        let frame = models.frame();
        Ok(Plan {
            tensors,
            left_out: taken.left_out,
            kept_as: Vec::new(),
            notes: Vec::new(),
            projections: Vec::new(),
            metadata,
            sources,
            reference,
            frame,
            beside: Beside::default(),
        })
    }

    /// The tensors that could have changed, to be written as an adapter.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn changed<'a>(
        &self,
        models: &'a Models,
        settings: &Settings,
        control: Control<'_>,
    ) -> Result<Vec<Changed<'a>>> {
        let parts = &models.reference().layout().parts;
        if parts.len() > 1 {
            let names: Vec<&str> = parts.iter().map(|part| part.folder.as_str()).collect();
            let message = format!("a LoRA is for one model, but these have {}: name one of each", names.join(", "));
            return Err(Error::Recipe(message));
        }
        let pairs = self.taken(models, settings, control)?.pairs;
        let changed = |(tensor, node): (&Tensor, Node<'a>)| Changed {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            node,
        };
        Ok(pairs.into_iter().map(changed).collect())
    }

    fn taken<'a>(&self, models: &'a Models, settings: &Settings, control: Control<'_>) -> Result<Taken<'a>> {
        let ([tuned], Some(base)) = (&models.tuned[..], &models.base) else {
            return Err(Error::Recipe("a task vector is of one model and its base".to_owned()));
        };
        if !(self.density > 0.0 && self.density <= 1.0) {
            return Err(Error::Recipe(format!("a density is above 0 and at most 1, not {}", self.density)));
        }
        self.selection.check(models.all())?;
        let mut taken = Taken { pairs: Vec::new(), tied: Vec::new(), left_out: Vec::new() };
        let (mut mismatches, mut same) = (Vec::new(), Vec::new());
        let mut mismatch =
            |tensor: &str, problem: String| mismatches.push(Mismatch { tensor: tensor.to_owned(), problem });
        for tensor in base.tensors() {
            let name = tensor.name.as_str();
            if !self.selection.takes(name) {
                taken.left_out.push(tensor.name.clone());
                continue;
            }
            let Some(other) = tuned.get(name) else {
                mismatch(name, format!("is missing in {}: --exclude it", models.labels()[0]));
                continue;
            };
            let before = base.view(tensor);
            let (dtypes, shapes) = ([tensor.dtype, other.tensor.dtype], [&tensor.shape, &other.tensor.shape]);
            let scale = scale_of(tensor, base).or(scale_of(other.tensor, tuned));
            if shapes[0] != shapes[1] {
                mismatch(name, format!("has shape {:?} in the base and {:?} in the tuned model", shapes[0], shapes[1]));
            } else if let Some(scale) = scale {
                mismatch(
                    name,
                    format!(
                        "has a scale in `{scale}`, without which its numbers mean nothing: convert the models to bf16 first"
                    ),
                );
            } else if tensor.alias_of.as_ref().is_some_and(|target| {
                self.selection.takes(target) && other.tensor.alias_of.as_ref() == Some(target) && !models.unties(tensor)
            }) {
                taken.tied.push(tensor);
            } else if dtypes.iter().all(|dtype| dtype.is_real() && dtype::can_decode(*dtype)) {
                let mut terms = Terms::new(&ABOUT, name, &tensor.shape, 1, true);
                for (_, values) in &mut terms.parameters {
                    values.fill(self.density);
                }
                let inputs = vec![models.input(0, other), models.input(1, before)];
                taken.pairs.push((tensor, Node { method: &Changes, terms, inputs }));
            } else if dtypes[0] != dtypes[1] {
                mismatch(name, format!("has types that do not mix: {} and {}", dtypes[0], dtypes[1]));
            } else {
                same.push([before, other]);
            }
        }
        for tensor in tuned.tensors().iter().filter(|tensor| base.get(&tensor.name).is_none()) {
            if self.selection.takes(&tensor.name) {
                mismatch(&tensor.name, "is not in the base: --exclude it".to_owned());
            } else {
                taken.left_out.push(tensor.name.clone());
            }
        }
        if mismatches.is_empty() {
            mismatches = differing(&same, settings, control)?;
        }
        if !mismatches.is_empty() {
            return Err(Error::Mismatch(mismatches));
        }
        taken.left_out.extend(same.iter().map(|[view, _]| view.tensor.name.clone()));
        if taken.pairs.is_empty() {
            return Err(Error::Recipe("nothing is left to subtract: no tensor of numbers is taken".to_owned()));
        }
        Ok(taken)
    }
}

/// Those of some pairs of tensors that are not the same, byte for byte.
fn differing(pairs: &[[TensorView<'_>; 2]], settings: &Settings, control: Control<'_>) -> Result<Vec<Mismatch>> {
    let groups: Vec<Group<'_>> = pairs.iter().map(|pair| Group::bytes(pair.to_vec())).collect();
    let equal = stream::measure(&groups, settings, control, |_, inputs| inputs[0] == inputs[1])?;
    let differs = pairs.iter().zip(equal).filter(|(_, tiles)| tiles.contains(&false));
    Ok(differs
        .map(|([view, _], _)| Mismatch {
            tensor: view.tensor.name.clone(),
            problem: format!("is {} and differs; such tensors have no difference: --exclude it", view.tensor.dtype),
        })
        .collect())
}

/// `x − b`, or its largest elements. It is no method to be chosen: its output is no model.
#[derive(Debug)]
struct Changes;

const ABOUT: About = About {
    name: "task-vector",
    what: "what a model changed in its base",
    formula: "x − b",
    source: "https://arxiv.org/abs/2212.04089",
    base: Base::Required,
    models: (1, 1),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("density", 1.0, "the share of the change that is kept")],
};

impl Method for Changes {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        let whole = terms.get("density") >= 1.0 || terms.shape.contains(&0);
        whole.then(|| Blend { from_base: false, coefficients: vec![1.0, -1.0] })
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let elements = data.elements();
        let kept = ((terms.get("density") * elements as f64) as u64).clamp(1, elements);
        let change = "x[0] - x[BASE$]";
        let ranks = [vec![elements - kept]];
        let found = data.select(&ranks, || Shader::of(change), |block| block.subtract_base())?;
        let least = found.iter().flatten().next().copied().unwrap_or(0.0);
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            block.subtract_base();
            // By bits, as they were ordered: what is not a number is kept.
            vector::map(out, [&block.inputs[0]], |[x]| if x.abs().to_bits() >= least.to_bits() { x } else { 0.0 });
        };
        let value = format!("select(0.0, {change}, magnitude({change}) >= word$(0u))");
        Ok(Solution::of(function, move || Shader::of(value.as_str()).words([least.to_bits()])))
    }
}
