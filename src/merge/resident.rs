//! Models that stay on a device while many weighted sums of them are tried, as searches and planes do.
//!
//! The tensors of all models lie one behind another as if each model were one vector, cut into tiles that a device binds at
//! once. A candidate `b + Σ cᵢ·(xᵢ − b)`, or `Σ cᵢ·xᵢ`, is one dispatch and one download for each tile; there is one tile,
//! where the device's limits allow it.

use super::data::pairs;
use super::measure::{PAIR, gram_groups, products};
use super::offload::{Offload, SEGMENT, Shape, groups_of};
use super::shader::Shader;
use super::{Blend, BlendKernel, Block, Gram};
use crate::checkpoint::TensorView;
use crate::dtype::{self, DType, Simd, vector};
use crate::error::{Error, Result};
use crate::gpu::{self, GROUP, Held, Limits};
use crate::stream::{Kernel, Offloading};
use rayon::prelude::*;
use std::ops::Range;
use std::time::Duration;

/// Elements at whose multiples tiles begin.
const STEP: u64 = 1 << 12;

/// Models on a device.
pub struct Resident<'a> {
    offloading: Offloading,
    /// For each model, its tensors in their order; the base last.
    models: Vec<Vec<TensorView<'a>>>,
    /// Where each tensor begins, and where the last ends.
    starts: Vec<u64>,
    types: Vec<DType>,
    has_base: bool,
    tiles: Vec<Tile>,
}

/// A part of all models.
struct Tile {
    elements: Range<u64>,
    held: Held,
}

impl<'a> Resident<'a> {
    /// Uploads models: `models[i]` are the tensors of model `i`, all of one type, and of the shapes and in the order of those
    /// of the others; with `has_base` the last is the base. The least so many bytes of a tile's output for each element are
    /// those of `output`, the type of candidates.
    ///
    /// # Errors
    /// [`Error::Recipe`] if there are types that devices do not compute with, or tensors differ; [`Error::Gpu`] if the models
    /// do not fit; as reading does.
    pub fn new(
        offloading: &Offloading,
        models: Vec<Vec<TensorView<'a>>>,
        has_base: bool,
        output: DType,
    ) -> Result<Self> {
        let types = models.iter().map(|tensors| one_type(tensors)).collect::<Result<Vec<DType>>>()?;
        if !gpu::is_packed(output) {
            return Err(Error::Recipe(format!("devices do not write {output}")));
        }
        let first = models.first().ok_or_else(|| Error::Recipe("there are no models to upload".to_owned()))?;
        let shape = |view: &TensorView<'_>| view.tensor.shape.clone();
        let shapes: Vec<_> = first.iter().map(shape).collect();
        if models.iter().any(|model| !model.iter().map(shape).eq(shapes.iter().cloned())) {
            return Err(Error::Recipe("the models' tensors have different shapes".to_owned()));
        }
        let mut starts = vec![0];
        for view in first {
            starts.push(starts.last().copied().unwrap_or(0) + view.tensor.elements);
        }
        let mut resident = Self { offloading: offloading.clone(), models, starts, types, has_base, tiles: Vec::new() };
        let tile = resident.tile(output).ok_or_else(|| {
            Error::Gpu(format!("{} has too little memory for so many models", offloading.compute.name()))
        })?;
        for start in (0..resident.elements()).step_by(tile as usize) {
            let elements = start..resident.elements().min(start + tile);
            let inputs = resident.read(&elements)?;
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let held = offloading.compute.hold(&inputs).map_err(|gpu::Lost| {
                let reason = offloading.compute.failure().unwrap_or_default();
                Error::Gpu(format!("{} cannot hold the models: {reason}", offloading.compute.name()))
            })?;
            resident.tiles.push(Tile { elements, held });
        }
        Ok(resident)
    }

    /// Elements of each model.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The largest tile that a dispatch can read and write.
    fn tile(&self, output: DType) -> Option<u64> {
        let Limits { binding, .. } = self.offloading.compute.limits();
        let spare = gpu::ALIGN * (self.types.len() as u64 + 1);
        let input: u64 = self.types.iter().map(|dtype| dtype.block_bytes()).sum();
        let most = (binding.saturating_sub(spare) / input.max(1))
            .min(binding.saturating_sub(spare) / output.block_bytes())
            .min(1 << 31);
        (most >= STEP).then(|| most / STEP * STEP)
    }

    /// The bytes of some elements of each model.
    fn read(&self, elements: &Range<u64>) -> Result<Vec<Vec<u8>>> {
        let of_model = |(tensors, dtype): (&Vec<TensorView<'a>>, &DType)| {
            let mut bytes = Vec::with_capacity(((elements.end - elements.start) * dtype.block_bytes()) as usize);
            let mut buffer = Vec::new();
            for (index, view) in tensors.iter().enumerate() {
                let (start, end) = (self.starts[index], self.starts[index + 1]);
                let part = elements.start.clamp(start, end) - start..elements.end.clamp(start, end) - start;
                if !part.is_empty() {
                    let range = part.start * dtype.block_bytes()..part.end * dtype.block_bytes();
                    bytes.extend_from_slice(view.read(range, &mut buffer)?);
                }
            }
            Ok(bytes)
        };
        self.models.par_iter().zip(&self.types).map(of_model).collect()
    }

    /// The candidate of these coefficients, one for each model but the base, as elements of `output`: all tensors, one behind
    /// another. What the device cannot do the CPU does.
    ///
    /// # Errors
    /// As reading does.
    ///
    /// # Panics
    /// If there are not as many coefficients as models, or `out` is not as long as the elements take.
    pub fn candidate(&self, coefficients: &[f64], output: DType, out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len() as u64, self.elements() * output.block_bytes(), "all elements come out");
        let mut parts = Vec::with_capacity(self.tiles.len());
        let mut rest = out;
        for tile in &self.tiles {
            let (part, after) = rest.split_at_mut((tile.count() * output.block_bytes()) as usize);
            parts.push((tile, part));
            rest = after;
        }
        let kernel = self.kernel(coefficients, output);
        let offload = self.offload(&kernel);
        parts.into_par_iter().try_for_each(|(tile, out)| {
            let shape = tile.shape(output, true);
            let done = offload
                .as_ref()
                .is_some_and(|offload| offload.run_held(tile.elements.start, tile.count(), &tile.held, &shape, out));
            if done {
                return Ok(());
            }
            let inputs = self.read(&tile.elements)?;
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            kernel.run(0, &inputs, out)
        })
    }

    /// The inner products of all models or, around a base, of their differences from it: over all tensors as one vector.
    ///
    /// # Errors
    /// As reading does.
    pub fn gram(&self) -> Result<Gram> {
        let size = self.models.len() - usize::from(self.has_base);
        let vector = |i: usize| if self.has_base { format!("x[{i}] - x[BASE$]") } else { format!("x[{i}]") };
        let vectors = Shader::each((0..size).map(vector));
        let offload = Offload::of_tensors(&self.offloading, "gram", None, self.types.clone(), &vectors);
        let of_tile = |tile: &Tile| {
            let segments = tile.count().div_ceil(SEGMENT);
            let pairs = pairs(size).count() as u64;
            let shape = Shape {
                groups: segments * gram_groups(size),
                output: segments * pairs * PAIR,
                scratch: 0,
                zeros: false,
                own: [SEGMENT as u32; 2],
            };
            let mut out = vec![0; shape.output as usize];
            let done = offload.as_ref().is_some_and(|offload| {
                offload.run_held(tile.elements.start, tile.count(), &tile.held, &shape, &mut out)
            });
            if done { Ok(products(&out)) } else { self.gram_of(tile, size) }
        };
        let parts: Vec<Vec<f64>> = self.tiles.par_iter().map(of_tile).collect::<Result<_>>()?;
        let mut upper = vec![0.0; pairs(size).count()];
        let length = upper.len().max(1);
        for part in parts.iter().flat_map(|part| part.chunks(length)) {
            upper.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        Ok(Gram::new(size, &upper))
    }

    /// The same of a tile, by the CPU.
    fn gram_of(&self, tile: &Tile, size: usize) -> Result<Vec<f64>> {
        let bytes = self.read(&tile.elements)?;
        let mut values = vec![vec![0.0; tile.count() as usize]; bytes.len()];
        for ((bytes, dtype), values) in bytes.iter().zip(&self.types).zip(&mut values) {
            dtype::decode(Simd::detect(), *dtype, bytes, values);
        }
        Block { start: tile.elements.start, inputs: &mut values, has_base: self.has_base }.subtract_base();
        Ok(pairs(size).map(|(i, j)| vector::dot(&values[i], &values[j])).collect())
    }

    /// How long a candidate takes that stays on the device: the mean of so many times, by tile.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the device cannot.
    pub fn time(&self, coefficients: &[f64], output: DType, times: u32) -> Result<Duration> {
        let kernel = self.kernel(coefficients, output);
        let fail = || {
            let reason = self.offloading.compute.failure().unwrap_or_else(|| "it is the CPU's".to_owned());
            Error::Gpu(format!("{} computes no candidate: {reason}", self.offloading.compute.name()))
        };
        let offload = self.offload(&kernel).ok_or_else(fail)?;
        let time = |tile: &Tile| {
            offload.time_held(tile.count(), &tile.held, &tile.shape(output, false), times).ok_or_else(fail)
        };
        self.tiles.iter().map(time).sum()
    }

    fn kernel(&self, coefficients: &[f64], output: DType) -> BlendKernel {
        assert_eq!(coefficients.len() + usize::from(self.has_base), self.models.len(), "each model has a coefficient");
        let blend = Blend { from_base: self.has_base, coefficients: coefficients.to_vec() };
        BlendKernel { blend, inputs: self.types.clone(), output, simd: Simd::detect() }
    }

    fn offload(&self, kernel: &BlendKernel) -> Option<Offload<'a>> {
        let sum = Shader::sum(&kernel.blend);
        Offload::of_tensors(&self.offloading, "blend", Some(kernel.output), self.types.clone(), &sum)
    }
}

impl Tile {
    fn count(&self) -> u64 {
        self.elements.end - self.elements.start
    }

    fn shape(&self, output: DType, comes_out: bool) -> Shape {
        let bytes = self.count() * output.block_bytes();
        let (output, scratch) = if comes_out { (bytes, 0) } else { (0, bytes) };
        Shape { groups: groups_of(self.count().div_ceil(u64::from(GROUP))), output, scratch, zeros: false, own: [0; 2] }
    }
}

/// Bytes that a device reads and writes in a second as it blends three models in F16, and keeps what it makes; of so many
/// elements each. `None` if it fails.
#[must_use]
pub fn blend_rate(offloading: &Offloading, elements: u64) -> Option<f64> {
    const TIMES: u32 = 8;
    let types = [DType::F16; 3];
    let bytes = vec![0x3c; (elements * DType::F16.block_bytes()) as usize];
    let held = offloading.compute.hold(&types.map(|_| bytes.as_slice())).ok()?;
    let blend = Blend { from_base: false, coefficients: vec![0.5, 0.25, 0.25] };
    let offload = Offload::of_tensors(offloading, "blend", Some(DType::F16), types.to_vec(), &Shader::sum(&blend))?;
    let tile = Tile { elements: 0..elements, held };
    let time = offload.time_held(elements, &tile.held, &tile.shape(DType::F16, false), TIMES)?;
    let moved = elements * DType::F16.block_bytes() * (types.len() as u64 + 1);
    Some(moved as f64 / time.as_secs_f64().max(1e-9))
}

/// The one type of some tensors, which must be one that devices read.
fn one_type(tensors: &[TensorView<'_>]) -> Result<DType> {
    let Some(first) = tensors.first() else {
        return Err(Error::Recipe("a model without tensors cannot be uploaded".to_owned()));
    };
    let dtype = first.tensor.dtype;
    match tensors.iter().find(|view| view.tensor.dtype != dtype) {
        Some(other) => {
            let (name, of_other) = (&other.tensor.name, other.tensor.dtype);
            Err(Error::Recipe(format!(
                "`{name}` is {of_other}, others are {dtype}: convert the model to one type first"
            )))
        }
        None if gpu::is_packed(dtype) => Ok(dtype),
        None => Err(Error::Recipe(format!("`{}` is {dtype}, which devices do not read", first.tensor.name))),
    }
}
