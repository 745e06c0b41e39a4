//! Low-rank adapters as models (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>), applied as they are read.
//!
//! A model may be a checkpoint with adapters over it: [`Adapters::open`] reads them, once, against the names of the
//! checkpoint, and [`Adapters::over`] turns one of its tensors into what a merge reads instead: a node of the tensor and
//! `s·B·A`, which is computed a block at a time in f32. Nothing is merged beforehand and no buffer is as large as a
//! tensor. Tensors that no adapter changes are the checkpoint's own.
//!
//! ```no_run
//! # fn main() -> ckptmerge::Result<()> {
//! use ckptmerge::adapter::{Adapters, Unplaced};
//! use ckptmerge::merge::Input;
//!
//! let base = ckptmerge::Checkpoint::open("base.safetensors")?;
//! let paths = ["lora.safetensors".into()];
//! let adapters = Adapters::open(&paths, &base, &Default::default(), Unplaced::Error)?;
//! // The inputs of a `Node`, or `recipe::Models::input` for models that are opened together.
//! let inputs: Vec<Input> = base.tensors().iter().map(|tensor| adapters.over(base.view(tensor))).collect();
//! # Ok(())
//! # }
//! ```
//!
//! Whoever lays inputs out asks two more things: [`Adapters::unties`] before it keeps a tie, and [`Adapters::sources`] for
//! the files to be checked for changes.
//!
//! What is read: PEFT's layout with its `adapter_config.json` (ranks, alphas, rsLoRA, embeddings, convolutions, biases,
//! whole modules), kohya's with `alpha` and Tucker's core, and diffusers'. What is no such sum of products is an error,
//! and so is a tensor of an adapter that has no place in the base: an adapter half applied is another model.

mod config;
mod factor;
mod names;
mod product;
mod read;
mod write;

pub use factor::Sketch;
pub use write::{Changed, EMBEDDINGS, Extracted, Extraction, Layer};

use crate::checkpoint::{Checkpoint, OpenOptions, Tensor, TensorView};
use crate::error::{Error, Result};
use crate::merge::{ANY, About, Base, Blend, Data, Input, Method, Node, Solution, Terms, Weight};
use product::{Kept, Low, Product};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What becomes of an adapter's tensors that the base has no place for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unplaced {
    /// The adapter is refused.
    #[default]
    Error,
    /// They are left out, which [`Adapters::warnings`] says: a text encoder's part over a U-Net alone.
    LeaveOut,
}

/// Adapters over one checkpoint.
#[derive(Debug, Default)]
pub struct Adapters {
    sources: Vec<Checkpoint>,
    /// What is added to each tensor, by the name of the one that others are tied to.
    added: HashMap<String, Vec<Change>>,
    /// Which tensor of which adapter stands in for one of the checkpoint's.
    replaced: HashMap<String, (usize, usize)>,
    kept: Kept,
    warnings: Vec<String>,
}

/// Something that is added to a tensor.
#[derive(Debug)]
enum Change {
    /// A product of an adapter's tensors.
    Product(usize, Product),
    /// A tensor of an adapter, times a number.
    Scaled { source: usize, tensor: usize, scale: f64 },
}

/// Whether a checkpoint is an adapter and no model, by the names of its tensors.
#[must_use]
pub fn is_adapter(checkpoint: &Checkpoint) -> bool {
    names::is_adapter(checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()))
}

/// The paths of a model and its adapters in `MODEL+ADAPTER+…`; a path that has a `+` in it and is there stays whole.
#[must_use]
pub fn split_path(path: &Path) -> Vec<PathBuf> {
    fn split(text: &str) -> Option<Vec<PathBuf>> {
        if Path::new(text).exists() {
            return Some(vec![PathBuf::from(text)]);
        }
        text.match_indices('+').filter(|(at, _)| Path::new(&text[..*at]).exists()).find_map(|(at, _)| {
            let mut paths = vec![PathBuf::from(&text[..at])];
            paths.extend(split(&text[at + 1..])?);
            Some(paths)
        })
    }
    let Some(text) = path.to_str() else { return vec![path.to_owned()] };
    // Where some of it is missing, the error is to name that part.
    split(text).unwrap_or_else(|| text.split('+').map(PathBuf::from).collect())
}

impl Adapters {
    /// Reads adapters, to be applied to `base` in their order.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::Model`] if one is no adapter or is of a kind that is not supported;
    /// [`Error::Mismatch`] with every tensor that cannot be applied.
    pub fn open(paths: &[PathBuf], base: &Checkpoint, options: &OpenOptions, unplaced: Unplaced) -> Result<Self> {
        let sources = paths.iter().map(|path| Checkpoint::open_with(path, options)).collect::<Result<_>>()?;
        Self::new(sources, base, unplaced)
    }

    /// As [`Self::open`], of adapters that are open.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn new(sources: Vec<Checkpoint>, base: &Checkpoint, unplaced: Unplaced) -> Result<Self> {
        let mut adapters = Self::default();
        let mut mismatches = Vec::new();
        for source in sources {
            let root = &source.layout().root;
            if !is_adapter(&source) {
                return Err(Error::model(root, "is no adapter: it has no tensors such as `….lora_A.weight`"));
            }
            read::apply(&mut adapters, &source, base, unplaced, &mut mismatches)?;
            adapters.sources.push(source);
        }
        if mismatches.is_empty() { Ok(adapters) } else { Err(Error::Mismatch(mismatches)) }
    }

    /// The adapters' own checkpoints.
    #[must_use]
    pub fn sources(&self) -> &[Checkpoint] {
        &self.sources
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// What was assumed, and what was left out.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether adapters tell a tensor from the one it is tied to in the checkpoint: they replace one of the two. What is
    /// added to one of them is added to both, as PEFT does.
    #[must_use]
    pub fn unties(&self, tensor: &Tensor) -> bool {
        let target = tensor.alias_of.as_ref();
        target.is_some_and(|target| self.replaced.contains_key(target) || self.replaced.contains_key(&tensor.name))
    }

    /// What a tensor of the checkpoint is with the adapters: an adapter's tensor in its place, or a node that adds to it;
    /// the tensor itself if they do not change it.
    #[must_use]
    pub fn over<'a>(&'a self, view: TensorView<'a>) -> Input<'a> {
        let name = &view.tensor.name;
        let replaced = self.replaced.get(name).and_then(|&(source, tensor)| self.view(source, tensor));
        let first = replaced.unwrap_or(view);
        let Some(changes) = self.added.get(root(view.checkpoint, name)) else { return Input::Tensor(first) };
        let mut inputs = vec![Input::Tensor(first)];
        let mut terms = Terms::new(&ABOUT, name, &view.tensor.shape, 1, false);
        for change in changes {
            let (input, weight) = match change {
                Change::Scaled { source, tensor, scale } => (self.view(*source, *tensor).map(Input::Tensor), *scale),
                Change::Product(source, product) => (self.low(*source, product), 1.0),
            };
            if let Some(input) = input {
                inputs.push(input);
                terms.weights.push(weight);
            }
        }
        Input::Node(Box::new(Node { method: &Added, terms, inputs }))
    }

    fn view(&self, source: usize, tensor: usize) -> Option<TensorView<'_>> {
        let source = self.sources.get(source)?;
        source.tensors().get(tensor).map(|tensor| source.view(tensor))
    }

    fn low<'a>(&'a self, source: usize, product: &'a Product) -> Option<Input<'a>> {
        let view = |tensor| self.view(source, tensor);
        let (down, up, core) = (view(product.down)?, view(product.up)?, product.core.and_then(view));
        Some(Input::Generated(Arc::new(Low { product, down, up, core, kept: &self.kept })))
    }
}

/// The name of the tensor that the one of this name is tied to, or its own.
fn root<'n>(checkpoint: &'n Checkpoint, name: &'n str) -> &'n str {
    let target = checkpoint.get(name).and_then(|view| view.tensor.alias_of.as_deref());
    target.map_or(name, |target| root(checkpoint, target))
}

/// A tensor and what adapters add to it. It is no method to be chosen, only what an adapted tensor is to a merge.
#[derive(Debug)]
struct Added;

/// What [`Node::method`] is called where a node is a tensor with adapters over it.
pub const METHOD: &str = "adapter";

const ABOUT: About = About {
    name: METHOD,
    what: "a tensor and what adapters add to it",
    formula: "b + Σ s·B·A",
    source: "https://arxiv.org/abs/2106.09685",
    base: Base::None,
    models: (1, ANY),
    weight: Weight::One,
    normalizes: false,
    parameters: &[],
};

impl Method for Added {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn fixed(&self, terms: &Terms) -> Option<Blend> {
        Some(Blend { from_base: false, coefficients: terms.weights.clone() })
    }

    fn solve(&self, terms: &Terms, _data: &Data<'_>) -> Result<Solution> {
        Ok(Solution::sum(terms.weights.clone()))
    }
}
