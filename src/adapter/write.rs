//! A change written as a LoRA in PEFT's layout: `adapter_model.safetensors` and `adapter_config.json`.
//!
//! A weight with at least two dimensions becomes a product of thin matrices; alpha is the rank, so its scale is 1. What is
//! no such weight is saved whole where PEFT has a place for it: a bias beside a product (`bias: all`), other parameters of
//! a module without products (`modules_to_save`). PEFT goes by the types of layers, which no checkpoint has: a matrix is
//! taken for a linear layer's unless its name says that it is an embedding's.

use super::factor::{Change, Sketch};
use super::names::PEFT;
use crate::checkpoint::{Checkpoint, format};
use crate::dtype::{self, DType, Simd};
use crate::error::{Error, Mismatch, Result};
use crate::merge::{Data, Node};
use crate::output::{StagedFile, StagedFolder};
use crate::stream::{self, Control, Settings};
use ckptmerge_format::{Metadata, TensorSpec};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A tensor of a tuned model beside its base's.
pub struct Changed<'a> {
    /// The name.
    pub name: String,
    /// Elements along each dimension.
    pub shape: Vec<u64>,
    /// Its inputs are the tuned tensor and the base's, which is its base.
    pub node: Node<'a>,
}

/// How a change is written.
#[derive(Clone, Debug)]
pub struct Extraction {
    /// Rank and precision of the products.
    pub sketch: Sketch,
    /// The type of all tensors.
    pub dtype: DType,
    /// Matrices whose names match are embeddings.
    pub embeddings: Regex,
    /// Whether matrices are stored as inputs × outputs, as in GPT-2.
    pub fan_in_fan_out: bool,
}

/// The names of embeddings' weights in the models that are most used.
pub const EMBEDDINGS: &str = r"(^|[._])(wte|wpe|emb|embed|embeddings?|embed_tokens|embed_positions|tok_embeddings|(word|token|position|token_type)_embeddings?|shared)\.weight$";

/// A weight that became a product.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The tensor.
    pub tensor: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The rank of the product, which may be lower than what was asked for.
    pub rank: u64,
    /// `‖τ‖`
    pub norm: f64,
    /// `‖τ_R‖² / ‖τ‖²`
    pub energy: f64,
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    /// Weights that became products.
    pub layers: Vec<Layer>,
    /// Tensors that are saved whole.
    pub whole: Vec<String>,
    /// Tensors that changed and that PEFT has no place for.
    pub left_out: Vec<String>,
    /// How many tensors are the same in both models, and so not written.
    pub unchanged: u64,
    /// Bytes of the weights' file.
    pub bytes: u64,
}

impl Extracted {
    /// How much of all layers' changes is in their products.
    #[must_use]
    pub fn energy(&self) -> f64 {
        let all: f64 = self.layers.iter().map(|layer| layer.norm.powi(2)).sum();
        let kept: f64 = self.layers.iter().map(|layer| layer.energy * layer.norm.powi(2)).sum();
        if all > 0.0 { kept / all } else { 1.0 }
    }
}

/// What becomes of a tensor that changed.
enum Part {
    /// A product of this rank.
    Product { module: String, rank: u64, embedding: bool },
    /// Written whole under this name.
    Whole(String),
}

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

impl Extraction {
    /// Factors the changes and writes them to the folder `target`; `sources` are checked to have stayed the same.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a change is not finite, [`Error::Recipe`] if there is no weight to factor,
    /// [`Error::Output`] if the folder holds other files; as the passes over the data.
    pub fn write(
        &self,
        changed: &[Changed<'_>],
        sources: &[&Checkpoint],
        target: &Path,
        settings: &Settings,
        control: Control<'_>,
    ) -> Result<Extracted> {
        check_replaceable(target)?;
        settings.pool()?.install(|| {
            let norms = norms(changed, settings, control)?;
            let mut extracted = Extracted::default();
            let modified: Vec<(&Changed<'_>, f64)> =
                changed.iter().zip(norms).filter(|(_, norm)| *norm > 0.0).collect();
            extracted.unchanged = (changed.len() - modified.len()) as u64;
            let parts = self.parts(&modified, &mut extracted);
            if !parts.iter().any(|(_, _, part)| matches!(part, Part::Product { .. })) {
                return Err(Error::Recipe(
                    "no tensor of two dimensions that is called `….weight` changed, so there is nothing of low rank: write the task vector without --rank".to_owned(),
                ));
            }
            let specs: Vec<TensorSpec> =
                parts.iter().flat_map(|(changed, _, part)| self.specs(changed, part)).collect();
            let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
            let failed = |source| Error::Format { path: target.to_owned(), source };
            let plan = format("safetensors")?.plan_write(&specs, &metadata).map_err(failed)?;
            let folder = StagedFolder::create(target, plan.length)?;
            let file = folder.file(Path::new(WEIGHTS), plan.length)?;
            for segment in &plan.segments {
                file.write_at(segment.offset, &segment.bytes)?;
            }
            let mut offsets = plan.offsets.iter().copied();
            for (changed, norm, part) in &parts {
                let data = changed.node.data(settings, control)?;
                match part {
                    Part::Whole(_) => {
                        let offset = offsets.next().flatten().unwrap_or(0);
                        self.store(changed, &file, offset, &data.whole_input(0)?)?;
                    }
                    Part::Product { rank, embedding, .. } => {
                        let places = [offsets.next(), offsets.next()].map(|offset| offset.flatten().unwrap_or(0));
                        let captured = self.factor(changed, &data, (*rank, *embedding), &file, places)?;
                        extracted.layers.push(Layer {
                            tensor: changed.name.clone(),
                            shape: changed.shape.clone(),
                            rank: *rank,
                            norm: norm.sqrt(),
                            energy: (captured / norm).min(1.0),
                        });
                    }
                }
                (control.progress)(data.elements() * size_of::<f32>() as u64);
            }
            extracted.bytes = plan.length;
            stream::check_unchanged(sources.iter().copied())?;
            file.commit(settings.sync)?;
            folder.write(Path::new(CONFIG), format!("{:#}\n", self.config(&parts)).as_bytes())?;
            folder.commit(settings.sync)?;
            Ok(extracted)
        })
    }

    /// What becomes of each tensor that changed; those without a place are taken note of.
    fn parts<'c, 'a>(
        &self,
        modified: &[(&'c Changed<'a>, f64)],
        extracted: &mut Extracted,
    ) -> Vec<(&'c Changed<'a>, f64, Part)> {
        let module = |changed: &Changed<'_>| {
            let matrix = changed.shape.len() > 1 && !changed.shape.contains(&0);
            changed.name.strip_suffix(".weight").filter(|module| matrix && !module.is_empty()).map(str::to_owned)
        };
        let factored: BTreeSet<String> = modified.iter().filter_map(|(changed, _)| module(changed)).collect();
        let mut parts = Vec::new();
        for (changed, norm) in modified {
            if let Some(module) = module(changed) {
                let (rows, columns) = sizes(&changed.shape);
                let rank = self.sketch.rank.min(rows as u64).min(columns as u64);
                let embedding = changed.shape.len() == 2 && self.embeddings.is_match(&changed.name);
                parts.push((*changed, *norm, Part::Product { module, rank, embedding }));
                continue;
            }
            let (owner, last) = changed.name.rsplit_once('.').unwrap_or(("", &changed.name));
            let below = format!("{owner}.");
            let name = if factored.contains(owner) {
                (last == "bias").then(|| format!("{PEFT}{owner}.base_layer.bias"))
            } else {
                // A module that PEFT is to copy whole cannot have products in it.
                let whole = !owner.is_empty() && !factored.iter().any(|module| module.starts_with(&below));
                whole.then(|| format!("{PEFT}{}", changed.name))
            };
            match name {
                Some(name) => {
                    extracted.whole.push(changed.name.clone());
                    parts.push((*changed, *norm, Part::Whole(name)));
                }
                None => extracted.left_out.push(changed.name.clone()),
            }
        }
        parts
    }

    /// The tensors of a part, the first factor of a product first.
    fn specs(&self, changed: &Changed<'_>, part: &Part) -> Vec<TensorSpec> {
        let spec = |name: String, shape: Vec<u64>| TensorSpec { name, dtype: self.dtype, shape, alias_of: None };
        match part {
            Part::Whole(name) => vec![spec(name.clone(), changed.shape.clone())],
            Part::Product { module, rank, embedding } => {
                let (rows, columns) = sizes(&changed.shape);
                let name = |part: &str| format!("{PEFT}{module}.{part}");
                if self.is_turned(changed, *embedding) {
                    let [a, b] = if *embedding {
                        ["lora_embedding_A", "lora_embedding_B"]
                    } else {
                        ["lora_A.weight", "lora_B.weight"]
                    };
                    return vec![spec(name(a), vec![*rank, rows as u64]), spec(name(b), vec![columns as u64, *rank])];
                }
                let (mut a, mut b) = (changed.shape.clone(), vec![1; changed.shape.len()]);
                a[0] = *rank;
                (b[0], b[1]) = (changed.shape[0], *rank);
                vec![spec(name("lora_A.weight"), a), spec(name("lora_B.weight"), b)]
            }
        }
    }

    /// Whether the product is of the weight the other way round.
    fn is_turned(&self, changed: &Changed<'_>, embedding: bool) -> bool {
        embedding || (self.fan_in_fan_out && changed.shape.len() == 2)
    }

    /// Factors a change, writes both factors, and says how much of it they have.
    fn factor(
        &self,
        changed: &Changed<'_>,
        data: &Data<'_>,
        (rank, embedding): (u64, bool),
        file: &StagedFile,
        places: [u64; 2],
    ) -> Result<f64> {
        let (rows, columns) = sizes(&changed.shape);
        let sketch = Sketch { rank, ..self.sketch };
        let factored = Change { data, rows, columns }.factor(&changed.name, &sketch)?;
        let (left, right) = (factored.left, factored.right);
        let turned = |matrix: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..columns).flat_map(|j| (0..rows).map(move |i| matrix[i * columns + j])).collect()
        };
        let rank = rank as usize;
        let (a, b) = if self.is_turned(changed, embedding) {
            (turned(&left, rows, rank), turned(&right, rank, columns))
        } else {
            (right, left)
        };
        self.store(changed, file, places[0], &a)?;
        self.store(changed, file, places[1], &b)?;
        Ok(factored.captured)
    }

    fn store(&self, changed: &Changed<'_>, file: &StagedFile, offset: u64, values: &[f32]) -> Result<()> {
        let mut bytes = vec![0; values.len() * self.dtype.bytes().unwrap_or(size_of::<f32>())];
        dtype::encode(Simd::detect(), self.dtype, values, &mut bytes);
        let mut stored = vec![0.0; values.len()];
        dtype::decode(Simd::detect(), self.dtype, &bytes, &mut stored);
        if let Some(lost) = stored.iter().position(|value| !value.is_finite()) {
            let (number, dtype) = (values[lost], self.dtype);
            let problem = format!(
                "changed too much: {number:e} is more than {dtype} holds; choose another --dtype, or --exclude it"
            );
            return Err(Error::Mismatch(vec![Mismatch { tensor: changed.name.clone(), problem }]));
        }
        file.write_at(offset, &bytes)
    }

    fn config(&self, parts: &[(&Changed<'_>, f64, Part)]) -> Value {
        let mut ranks: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut whole, mut biases) = (BTreeSet::new(), false);
        for (changed, _, part) in parts {
            match part {
                Part::Product { module, rank, .. } => drop(ranks.insert(module, *rank)),
                Part::Whole(name) if name.ends_with(".base_layer.bias") => biases = true,
                Part::Whole(_) => drop(changed.name.rsplit_once('.').map(|(owner, _)| whole.insert(owner))),
            }
        }
        let largest = ranks.values().copied().max().unwrap_or(1);
        let lower = ranks.iter().filter(|(_, rank)| **rank != largest);
        let patterns: Map<String, Value> =
            lower.map(|(module, rank)| (format!("^{}", regex::escape(module)), Value::from(*rank))).collect();
        json!({
            "peft_type": "LORA",
            "task_type": null,
            "base_model_name_or_path": null,
            "r": largest,
            "lora_alpha": largest,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "use_rslora": false,
            "target_modules": ranks.keys().collect::<Vec<_>>(),
            "modules_to_save": if whole.is_empty() { Value::Null } else { json!(whole) },
            "bias": if biases { "all" } else { "none" },
            "fan_in_fan_out": self.fan_in_fan_out,
            "lora_dropout": 0.0,
            "init_lora_weights": true,
            "inference_mode": true,
        })
    }
}

/// A shape as a matrix.
fn sizes(shape: &[u64]) -> (usize, usize) {
    let rows = shape.first().copied().unwrap_or(1);
    (rows as usize, shape.iter().skip(1).product::<u64>() as usize)
}

/// `‖τ‖²` of each change.
fn norms(changed: &[Changed<'_>], settings: &Settings, control: Control<'_>) -> Result<Vec<f64>> {
    let mut norms = Vec::with_capacity(changed.len());
    let mut mismatches = Vec::new();
    for change in changed {
        let data = change.node.data(settings, control)?;
        let square = data.gram(true)?.product(0, 0);
        norms.push(square);
        if !square.is_finite() {
            let problem = "has elements whose change is no finite number: --exclude it".to_owned();
            mismatches.push(Mismatch { tensor: change.name.clone(), problem });
        }
    }
    if mismatches.is_empty() { Ok(norms) } else { Err(Error::Mismatch(mismatches)) }
}

/// That a folder that would be replaced holds an adapter and nothing else.
fn check_replaceable(target: &Path) -> Result<()> {
    if !target.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(target).map_err(Error::io("list", target))? {
        let name = entry.map_err(Error::io("list", target))?.file_name();
        if name != WEIGHTS && name != CONFIG {
            let message = format!(
                "the folder would be replaced as a whole, but holds {}, which the new output does not: move it or name another folder",
                name.to_string_lossy()
            );
            return Err(Error::output(target, message));
        }
    }
    Ok(())
}
