//! Which output tensor goes into which file, and where in it.

use super::{Operation, Plan, Planned, Target};
use crate::checkpoint::FORMATS;
use crate::error::{Bytes, Error, Result};
use crate::merge::CopyKernel;
use crate::output::StagedFile;
use crate::stream::{self, Control, Item, Kernel, Settings};
use ckptmerge_format::{Format, FormatError, Metadata, TensorSpec, WritePlan};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One file with weights.
pub(super) struct OutputFile<'a, 'p> {
    pub(super) relative: PathBuf,
    pub(super) plan: WritePlan,
    target: PathBuf,
    format: &'static dyn Format,
    tensors: Vec<Stored<'a, 'p>>,
    specs: Vec<TensorSpec>,
    metadata: &'p Metadata,
}

/// A tensor and what its bytes are made of: for one whose tie the format cannot keep, what its target is made of.
struct Stored<'a, 'p> {
    planned: &'p Planned<'a>,
    operation: &'p Operation<'a>,
}

/// A folder's index of shards.
pub(super) struct IndexFile {
    pub(super) relative: PathBuf,
    pub(super) json: Value,
}

/// All files of an output.
pub(super) struct Files<'a, 'p> {
    pub(super) weights: Vec<OutputFile<'a, 'p>>,
    pub(super) indices: Vec<IndexFile>,
}

impl<'a, 'p> Files<'a, 'p> {
    /// Lays the plan's tensors out.
    pub(super) fn new(plan: &'p Plan<'a>, target: &Target, is_folder: bool) -> Result<Self> {
        let format = target.format();
        let mut files = Files { weights: Vec::new(), indices: Vec::new() };
        let layout = plan.reference.layout();
        let by_name: HashMap<&str, &Operation<'_>> =
            plan.tensors.iter().map(|planned| (planned.name.as_str(), &planned.operation)).collect();
        for (index, part) in layout.parts.iter().enumerate() {
            let stored = plan.tensors.iter().filter(|planned| planned.part == index).map(|planned| {
                let operation = match &planned.operation {
                    Operation::Alias(to) if !format.can_tie() => {
                        by_name.get(to.as_str()).copied().unwrap_or(&planned.operation)
                    }
                    own => own,
                };
                Stored { planned, operation }
            });
            let shards = cut(stored.collect(), target.shard_size);
            let prefix = part.prefix();
            let (usual, ending) = format.name_in_folder();
            // A name that says more than that this is the model, such as `diffusion_pytorch_model`, stays.
            let says_more = layout.is_folder && !FORMATS.iter().any(|format| format.name_in_folder().0 == part.stem);
            let stem = if says_more { part.stem.as_str() } else { usual };
            let (mut map, mut total) = (Map::new(), 0);
            let count = shards.len();
            for (number, tensors) in shards.into_iter().enumerate() {
                let name = match (is_folder, count) {
                    (false, _) => target.path.display().to_string(),
                    (true, 1) => format!("{stem}.{ending}"),
                    (true, _) => format!("{stem}-{:05}-of-{count:05}.{ending}", number + 1),
                };
                let specs: Vec<TensorSpec> = tensors.iter().map(|tensor| tensor.spec(&prefix)).collect();
                let error = |source| Error::Format { path: target.path.clone(), source };
                if let Some(spec) = specs.iter().find(|spec| !format.can_store(spec.dtype)) {
                    let message = format!("{} has no place for elements of type {}", format.id(), spec.dtype);
                    return Err(error(
                        FormatError::unsupported(message).at(&spec.name).hint("choose another type with --dtype"),
                    ));
                }
                map.extend(specs.iter().map(|spec| (spec.name.clone(), Value::from(name.as_str()))));
                total += tensors.iter().map(Stored::bytes).sum::<u64>();
                files.weights.push(OutputFile {
                    relative: Path::new(&part.folder).join(name),
                    plan: format.plan_write(&specs, &plan.metadata).map_err(error)?,
                    target: target.path.clone(),
                    format,
                    tensors,
                    specs,
                    metadata: &plan.metadata,
                });
            }
            if count > 1 {
                map.sort_keys();
                let json = json!({"metadata": {"total_size": total}, "weight_map": map});
                let relative = Path::new(&part.folder).join(format!("{stem}.{ending}.index.json"));
                files.indices.push(IndexFile { relative, json });
            }
        }
        Ok(files)
    }
}

impl Stored<'_, '_> {
    /// Bytes of elements that the tensor has of its own.
    fn bytes(&self) -> u64 {
        let elements: u64 = self.planned.shape.iter().product();
        match self.operation {
            Operation::Alias(_) => 0,
            // The plan was made from tensors whose size is known to fit.
            _ => self.planned.dtype.size_of(elements).unwrap_or(0),
        }
    }

    fn spec(&self, prefix: &str) -> TensorSpec {
        let within = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
        TensorSpec {
            name: within(&self.planned.name),
            dtype: self.planned.dtype,
            shape: self.planned.shape.clone(),
            alias_of: match self.operation {
                Operation::Alias(target) => Some(within(target)),
                _ => None,
            },
        }
    }
}

/// Cuts tensors into shards of at most `size` bytes, or one tensor; tied tensors stay with what they are tied to.
fn cut<'a, 'p>(tensors: Vec<Stored<'a, 'p>>, size: Option<Bytes>) -> Vec<Vec<Stored<'a, 'p>>> {
    let (tied, own): (Vec<_>, Vec<_>) =
        tensors.into_iter().partition(|tensor| matches!(tensor.operation, Operation::Alias(_)));
    let mut shards: Vec<(u64, Vec<Stored<'_, '_>>)> = Vec::new();
    for tensor in own {
        let bytes = tensor.bytes();
        match shards.last_mut() {
            Some((total, shard)) if size.is_none_or(|size| *total + bytes <= size.0) => {
                *total += bytes;
                shard.push(tensor);
            }
            _ => shards.push((bytes, vec![tensor])),
        }
    }
    let mut shards: Vec<_> = shards.into_iter().map(|(_, shard)| shard).collect();
    for tensor in tied {
        let Operation::Alias(target) = tensor.operation else { continue };
        let shard = shards.iter_mut().find(|shard| shard.iter().any(|other| other.planned.name == *target));
        if let Some(shard) = shard {
            shard.push(tensor);
        }
    }
    shards
}

impl OutputFile<'_, '_> {
    /// The tensors as the stream wants them, in the order of their bytes, each with its number.
    fn numbered(&self) -> Vec<(usize, Item<'_>)> {
        let mut items: Vec<(usize, Item<'_>)> = Vec::with_capacity(self.tensors.len());
        for (number, (tensor, offset)) in self.tensors.iter().zip(&self.plan.offsets).enumerate() {
            let (inputs, kernel): (_, &dyn Kernel) = match tensor.operation {
                Operation::Alias(_) => continue,
                Operation::Copy(view) => (vec![*view], &CopyKernel),
                Operation::Blend(kernel, views) => (views.clone(), kernel),
                Operation::Scale(kernel, view) => (vec![*view], kernel),
            };
            let Some(offset) = *offset else { continue };
            let output = tensor.planned.dtype;
            let dtypes = inputs.iter().map(|input| input.tensor.dtype).chain([output]);
            // All blocks are powers of two: the largest is a multiple of the others.
            let block = dtypes.map(|dtype| dtype.block_elements()).max().unwrap_or(1);
            let elements = tensor.planned.shape.iter().product::<u64>() / block;
            let element_bytes = block / output.block_elements() * output.block_bytes();
            items.push((number, Item { offset, elements, element_bytes, inputs, kernel }));
        }
        items.sort_by_key(|(_, item)| item.offset);
        items
    }

    /// The tensors as the stream wants them.
    pub(super) fn items(&self) -> Vec<Item<'_>> {
        self.numbered().into_iter().map(|(_, item)| item).collect()
    }

    /// Writes everything.
    pub(super) fn fill(&self, staged: &StagedFile, settings: &Settings, control: Control<'_>) -> Result<()> {
        for segment in &self.plan.segments {
            staged.write_at(segment.offset, &segment.bytes)?;
        }
        let (numbers, items): (Vec<usize>, Vec<Item<'_>>) = self.numbered().into_iter().unzip();
        let sums = stream::write(staged, &items, self.plan.wants_crc32, settings, control)?;
        if self.plan.wants_crc32 {
            let mut crc32 = vec![0; self.tensors.len()];
            numbers.into_iter().zip(sums).for_each(|(number, sum)| crc32[number] = sum);
            let segments = self
                .format
                .finish_write(&self.plan, &self.specs, self.metadata, &crc32)
                .map_err(|source| Error::Format { path: self.target.clone(), source })?;
            for segment in segments {
                staged.write_at(segment.offset, &segment.bytes)?;
            }
        }
        Ok(())
    }
}
