//! Which output tensor goes into which file, and where in it.

use super::fold::Values;
use super::storable::Checked;
use super::survey::Surveys;
use super::{Operation, Plan, Planned, Target};
use crate::checkpoint::{Checkpoint, FORMATS, TensorView};
use crate::dtype::{self, DType};
use crate::error::{Bytes, Error, Result};
use crate::merge::{BlendKernel, CopyKernel, Node, Offloaded, Program};
use crate::output::StagedFile;
use crate::stream::{self, Control, Item, Kernel, Load, Offloading, Settings};
use ckptmerge_format::{Format, FormatError, Metadata, Shard, TensorSpec, WritePlan};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One file with weights.
pub(super) struct OutputFile<'a, 'p> {
    pub(super) relative: PathBuf,
    pub(super) plan: WritePlan,
    target: PathBuf,
    format: &'static dyn Format,
    tensors: Vec<Stored<'a, 'p>>,
    specs: Vec<TensorSpec>,
    metadata: Arc<Metadata>,
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
        let metadata = Arc::new(plan.metadata_in(format));
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
            let in_all: usize = shards.iter().map(Vec::len).sum();
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
                    let hint = instead(format, spec.dtype);
                    return Err(error(FormatError::unsupported(message).at(&spec.name).hint(hint)));
                }
                map.extend(specs.iter().map(|spec| (spec.name.clone(), Value::from(name.as_str()))));
                total += tensors.iter().map(Stored::bytes).sum::<u64>();
                let layout = if count > 1 {
                    format.plan_shard(&specs, &metadata, Shard { number, count, tensors: in_all })
                } else {
                    format.plan_write(&specs, &metadata)
                };
                files.weights.push(OutputFile {
                    relative: Path::new(&part.folder).join(name),
                    plan: layout.map_err(error)?,
                    target: target.path.clone(),
                    format,
                    tensors,
                    specs,
                    metadata: Arc::clone(&metadata),
                });
            }
            if count > 1 && !format.numbers_shards() {
                map.sort_keys();
                let json = json!({"metadata": {"total_size": total}, "weight_map": map});
                let relative = Path::new(&part.folder).join(format!("{stem}.{ending}.index.json"));
                files.indices.push(IndexFile { relative, json });
            }
        }
        Ok(files)
    }
}

impl Plan<'_> {
    /// The text for a file of the format. transformers 4 refuses safetensors with text that does not say whose layout
    /// the tensors have: of models that come from torch, or that it took before text was added, this says so.
    fn metadata_in(&self, format: &dyn Format) -> Metadata {
        let mut metadata = self.metadata.clone();
        let said = |model: &Checkpoint| model.metadata().get(LIBRARY).cloned();
        let models = || self.sources.iter().map(|(model, _)| *model);
        let is_other = models().any(|model| said(model).is_some_and(|library| library != TORCH));
        let is_torch = models().any(|model| model.format() == "pytorch" || said(model).is_some());
        let was_bare = models().all(|model| model.format() == "safetensors" && model.metadata().is_empty());
        if format.id() == "safetensors" && !is_other && (is_torch || (was_bare && !metadata.is_empty())) {
            metadata.entry(LIBRARY.to_owned()).or_insert_with(|| TORCH.to_owned());
        }
        metadata
    }
}

/// The key of safetensors' metadata that names a library, and torch's name there.
const LIBRARY: &str = "format";
const TORCH: &str = "pt";

/// What to do about a type that a format has no place for.
fn instead(format: &dyn Format, dtype: DType) -> String {
    if !dtype.is_real() {
        return "--dtype changes real numbers only: leave it out with --exclude, or choose another format".to_owned();
    }
    let writable =
        DType::all().filter(|dtype| dtype.is_real() && format.can_store(*dtype) && dtype::can_encode(*dtype));
    let names: Vec<String> = writable.map(|dtype| dtype.name().to_lowercase()).collect();
    format!("choose another type with --dtype: {}", names.join(", "))
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

impl<'a, 'p> OutputFile<'a, 'p> {
    /// The tensors that have bytes of their own, in the order of these.
    pub(super) fn slots(&self) -> Vec<Slot<'a, 'p>> {
        let slot = |(number, (tensor, offset)): (usize, (&Stored<'a, 'p>, &Option<u64>))| {
            let inputs = match tensor.operation {
                Operation::Alias(_) => return None,
                Operation::Copy(view) | Operation::Scale(_, view) => vec![*view],
                Operation::Blend(_, views) => views.clone(),
                Operation::Merge(node) => node.leaves(),
                Operation::Fold(_) => Vec::new(),
            };
            let output = tensor.planned.dtype;
            let unit = match tensor.operation {
                Operation::Merge(node) => node.unit(output),
                _ => {
                    let dtypes = inputs.iter().map(|input| input.tensor.dtype).chain([output]);
                    // All blocks are powers of two: the largest is a multiple of the others.
                    dtypes.map(|dtype| dtype.block_elements()).max().unwrap_or(1)
                }
            };
            let elements = tensor.planned.shape.iter().product::<u64>() / unit;
            let element_bytes = unit / output.block_elements() * output.block_bytes();
            let (operation, name) = (tensor.operation, tensor.planned.name.as_str());
            Some(Slot { number, offset: (*offset)?, elements, element_bytes, inputs, operation, name, output })
        };
        let mut slots: Vec<_> = self.tensors.iter().zip(&self.plan.offsets).enumerate().filter_map(slot).collect();
        slots.sort_by_key(|slot| slot.offset);
        slots
    }

    /// Writes everything.
    pub(super) fn fill(
        &self,
        staged: &StagedFile,
        surveys: &Surveys,
        settings: &Settings,
        control: Control<'_>,
    ) -> Result<()> {
        for segment in &self.plan.segments {
            staged.write_at(segment.offset, &segment.bytes)?;
        }
        let slots = self.slots();
        let mut crc32 = vec![0; self.tensors.len()];
        for batch in batches(&slots) {
            let solved = solve(batch, surveys, settings, control)?;
            let device = settings.device.as_ref();
            let offloaded: Vec<Option<Offloaded<'_, '_>>> = batch
                .iter()
                .zip(&solved)
                .map(|(slot, solved)| device.and_then(|device| slot.offloaded(solved, device)))
                .collect();
            let kernels: Vec<Checked<'_>> = batch
                .iter()
                .zip(&solved)
                .zip(&offloaded)
                .map(|((slot, solved), offloaded)| slot.kernel(solved, offloaded, &self.target))
                .collect();
            let items: Vec<Item<'_>> = batch.iter().zip(&kernels).map(|(slot, kernel)| slot.item(kernel)).collect();
            let sums = stream::write(staged, &items, self.plan.wants_crc32, settings, control)?;
            batch.iter().zip(sums).for_each(|(slot, sum)| crc32[slot.number] = sum);
        }
        if self.plan.wants_crc32 {
            let segments = self
                .format
                .finish_write(&self.plan, &self.specs, &self.metadata, &crc32)
                .map_err(|source| Error::Format { path: self.target.clone(), source })?;
            for segment in segments {
                staged.write_at(segment.offset, &segment.bytes)?;
            }
        }
        Ok(())
    }
}

/// A tensor's place in a file, and what goes there.
pub(super) struct Slot<'a, 'p> {
    /// Its number in the file.
    number: usize,
    offset: u64,
    elements: u64,
    element_bytes: u64,
    inputs: Vec<TensorView<'a>>,
    operation: &'p Operation<'a>,
    name: &'p str,
    output: DType,
}

/// Bytes of inputs that are measured before any of the output they make is written: little enough to be still in
/// memory when they are read again.
const BATCH: u64 = 1 << 30;
/// Bytes that the solutions of a batch may hold.
const HELD: u64 = 256 << 20;
/// Tensors of fewer elements are solved side by side, each by one thread; larger ones by all threads, one by one.
const SMALL: u64 = 1 << 17;

/// Cuts slots where those that take a measurement have added up.
fn batches<'s, 'a, 'p>(slots: &'s [Slot<'a, 'p>]) -> Vec<&'s [Slot<'a, 'p>]> {
    let mut batches = Vec::new();
    let (mut start, mut read, mut held) = (0, 0, 0);
    for (index, slot) in slots.iter().enumerate() {
        if slot.operation.nodes().next().is_none() {
            continue;
        }
        let (more_read, more_held) = (slot.read_bytes(), slot.load().1);
        if index > start && (read + more_read > BATCH || held + more_held > HELD) {
            batches.push(&slots[start..index]);
            (start, read, held) = (index, 0, 0);
        }
        read += more_read;
        held += more_held;
    }
    batches.push(&slots[start..]);
    batches
}

/// A merge that is solved.
struct Solved<'a> {
    how: How<'a>,
    /// Whether its inputs were passed over for it.
    is_known: bool,
}

/// What a merge has become.
enum How<'a> {
    Sum(BlendKernel),
    Program(Program<'a>),
    Values(Values),
}

/// Measures and solves the merges among the slots; none for the others.
fn solve<'a>(
    slots: &[Slot<'a, '_>],
    surveys: &Surveys,
    settings: &Settings,
    control: Control<'a>,
) -> Result<Vec<Option<Solved<'a>>>> {
    let one = |slot: &Slot<'a, '_>| match slot.operation {
        Operation::Merge(node) => {
            let program = surveys.apply(node).solve(slot.output, settings, control)?;
            let is_known = program.is_known();
            let how = program.as_sum().map_or_else(|| How::Program(program), How::Sum);
            Ok(Some(Solved { how, is_known }))
        }
        Operation::Fold(folded) => {
            let values = folded.evaluate(surveys, settings, control)?;
            Ok(Some(Solved { how: How::Values(Values { values, output: slot.output }), is_known: true }))
        }
        _ => Ok(None),
    };
    if !slots.iter().any(|slot| slot.operation.nodes().next().is_some()) {
        return Ok(slots.iter().map(|_| None).collect());
    }
    settings.pool()?.install(|| {
        let is_small = |slot: &Slot<'_, '_>| slot.elements * slot.element_bytes < SMALL;
        let small: Vec<Option<Result<_>>> =
            slots.par_iter().with_max_len(1).map(|slot| is_small(slot).then(|| one(slot))).collect();
        small.into_iter().zip(slots).map(|(done, slot)| done.unwrap_or_else(|| one(slot))).collect()
    })
}

impl<'a> Slot<'a, '_> {
    /// Bytes that one pass over the inputs reads.
    pub(super) fn read_bytes(&self) -> u64 {
        let generated = match self.operation {
            Operation::Merge(node) => node.generated_bytes(),
            Operation::Fold(folded) => {
                let leaves = folded.nodes().flat_map(Node::leaves).map(|view| view.tensor.bytes);
                leaves.chain(folded.nodes().map(Node::generated_bytes)).sum()
            }
            _ => 0,
        };
        self.inputs.iter().map(|input| input.tensor.bytes).sum::<u64>() + generated
    }

    /// What it takes of memory: to write it, and what its solution holds meanwhile.
    pub(super) fn load(&self) -> (Load<'_, 'a>, u64) {
        let (scratch, held) = match self.operation {
            Operation::Merge(node) => node.memory(self.output),
            Operation::Fold(folded) => (0, folded.memory()),
            _ => (0, 0),
        };
        let Self { elements, element_bytes, inputs, .. } = self;
        (Load { elements: *elements, element_bytes: *element_bytes, inputs, scratch }, held)
    }

    /// The tensor's name in the output.
    pub(super) fn name(&self) -> &str {
        self.name
    }

    /// How many elements it has.
    pub(super) fn count(&self) -> u64 {
        self.elements * self.element_bytes / self.output.block_bytes() * self.output.block_elements()
    }

    /// Whether it is computed by what devices do as well.
    pub(super) fn is_computed(&self) -> bool {
        matches!(self.operation, Operation::Blend(..) | Operation::Merge(_))
    }

    /// Whether its method measures over the whole model first.
    pub(super) fn surveys(&self) -> bool {
        let mut surveys = false;
        for node in self.operation.nodes() {
            node.visit(&mut |node| surveys |= node.method.surveys(&node.terms));
        }
        surveys
    }

    /// Computes it for the time that takes.
    pub(super) fn rehearse(&self, surveys: &Surveys, settings: &Settings, control: Control<'_>) -> Result<Duration> {
        let start = Instant::now();
        let solved = solve(std::slice::from_ref(self), surveys, settings, control)?;
        let solved = solved.into_iter().next().flatten();
        let offloaded = settings.device.as_ref().and_then(|device| self.offloaded(&solved, device));
        let kernel = self.kernel(&solved, &offloaded, Path::new(self.name));
        stream::rehearse(&[self.item(&kernel)], settings, control)?;
        Ok(start.elapsed())
    }

    /// What a device does for this tensor, if anything.
    fn offloaded<'s>(&'s self, solved: &'s Option<Solved<'a>>, device: &Offloading) -> Option<Offloaded<'s, 'a>> {
        if self.count() < device.least {
            return None;
        }
        match (self.operation, solved.as_ref().map(|solved| &solved.how)) {
            (_, Some(How::Sum(kernel))) => Offloaded::of_sum(kernel, device),
            (_, Some(How::Program(program))) => program.offloaded(device),
            (Operation::Blend(kernel, _), _) => Offloaded::of_sum(kernel, device),
            _ => None,
        }
    }

    fn kernel<'s>(
        &'s self,
        solved: &'s Option<Solved<'a>>,
        offloaded: &'s Option<Offloaded<'s, 'a>>,
        target: &'s Path,
    ) -> Checked<'s> {
        let is_known = solved.as_ref().is_some_and(|solved| solved.is_known);
        let kernel: &dyn Kernel = match (self.operation, solved.as_ref().map(|solved| &solved.how), offloaded) {
            (_, _, Some(offloaded)) => offloaded,
            (_, Some(How::Sum(kernel)), None) => kernel,
            (_, Some(How::Program(program)), None) => program,
            (_, Some(How::Values(values)), None) => values,
            (Operation::Blend(kernel, _), ..) => kernel,
            (Operation::Scale(kernel, _), ..) => kernel,
            (Operation::Copy(_) | Operation::Alias(_) | Operation::Merge(_) | Operation::Fold(_), None, None) => {
                &CopyKernel
            }
        };
        let rounds_to = (!matches!(self.operation, Operation::Copy(_))).then_some(self.output);
        Checked { kernel, is_known, rounds_to, name: self.name, target }
    }

    fn item<'s>(&'s self, kernel: &'s Checked<'_>) -> Item<'s> {
        let inputs = self.inputs.clone();
        // A method that needed whole rows to measure may have come to a sum, which does not: the unit stays.
        let (offset, elements, element_bytes) = (self.offset, self.elements, self.element_bytes);
        Item { offset, elements, element_bytes, inputs, kernel, is_known: kernel.is_known }
    }
}
