//! Passes on a graphics processor: the same as the CPU's, a tile at a time, by the kernels of `shaders/`.
//!
//! What a tile has that devices need not compute like the CPU, such as NaN or numbers that they flush to 0, is left to the
//! CPU, and so is everything behind a failure of the device: [`Offload::run`] says so, and its callers have both ways.

use super::BlendKernel;
use super::node::Source;
use super::shader::{Leaf, Shader, Text};
use crate::dtype::{self, DType, Simd};
use crate::error::Result;
use crate::gpu::{self, GROUP, Held, Inputs, Job, Limits, Pass, WORKGROUP};
use crate::stream::{Kernel, Offloading};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of inputs that are uploaded at a time, if limits allow: enough to make the cost of a dispatch small, little enough
/// that several are on their way.
const TILE: u64 = 16 << 20;
/// Tiles that are on their way, each with its buffers on both sides.
const IN_FLIGHT: u64 = 6;
/// Elements that one workgroup sums.
pub(super) const SEGMENT: u64 = 4096;
/// Bytes that an element of a mask takes: its factor, and what `ranks.wgsl` needs to find it.
const MASK_BYTES: u64 = 8;
/// The most inputs: compilers take seconds for more, and minutes for many more.
const INPUTS_MOST: usize = 32;
/// Bytes of shaders that are compiled in a moment, and of numbers that are uploaded with every tile: what takes more, as
/// methods of hundreds of models and tables of millions of rows may, is the CPU's.
const TEXT_MOST: usize = 384 << 10;
const PARAMS_MOST: usize = 8 << 20;
/// Words of a mask in the table of `ranks.wgsl`.
const MASK_WORDS: usize = 8;

/// What a kernel computes for a tile: how many workgroups and bytes that takes, and the words of its own.
pub(super) struct Shape {
    pub(super) groups: u64,
    pub(super) output: u64,
    /// Bytes behind the output that stay on the device.
    pub(super) scratch: u64,
    /// Whether the kernel adds to what is there.
    pub(super) zeros: bool,
    /// The words of the header behind the first three.
    pub(super) own: [u32; 2],
}

/// One kernel over tiles of a tensor.
pub(super) struct Offload<'a> {
    offloading: Offloading,
    text: Text<'a>,
    /// The types of the tensors that are read.
    tensors: Vec<DType>,
    /// The types in which leaves are uploaded.
    types: Vec<DType>,
    /// Where the table of masks begins among the words.
    table: u32,
    passes: Vec<Arc<str>>,
    /// A row's elements and how far neighbours are apart, where ranks decide.
    rows: (u64, u64),
}

impl<'a> Offload<'a> {
    /// Of what `root` computes from `sources`; `None` if that is the CPU's alone.
    pub(super) fn new(
        offloading: &Offloading,
        kernel: &str,
        output: Option<DType>,
        tensors: Vec<DType>,
        sources: &[Source<'a>],
        root: &Shader,
    ) -> Option<Self> {
        let text = Text::new(tensors.len(), sources, root)?;
        // Numbers of 64 bits are the CPU's.
        let is_wide = tensors.contains(&DType::F64) || output == Some(DType::F64);
        if is_wide || text.leaves.len() > INPUTS_MOST || size_of::<u32>() * text.word_count() > PARAMS_MOST {
            return None;
        }
        let uploaded = |dtype: DType| if gpu::is_packed(dtype) { dtype } else { DType::F32 };
        let of_leaf = |leaf: &Leaf<'_>| match leaf {
            Leaf::Tensor(index) => uploaded(tensors[*index]),
            Leaf::Generated(_) => DType::F32,
        };
        let types: Vec<DType> = text.leaves.iter().map(of_leaf).collect();
        let features = offloading.compute.features();
        let mut passes = Vec::new();
        if !text.masks.is_empty() {
            passes.push(gpu::text(gpu::kernel("ranks"), &types, None, &text.changes(), features));
        }
        let output = output.map(uploaded);
        passes.push(gpu::text(gpu::kernel(kernel), &types, output, &text.root(), features));
        if passes.iter().any(|pass| pass.len() > TEXT_MOST) {
            return None;
        }
        let rows = text.masks.first().map_or((1, 1), |mask| mask.mask.rows);
        let table = text.word_count();
        let (offloading, table) = (offloading.clone(), u32::try_from(table).ok()?);
        Some(Self { offloading, text, tensors, types, table, passes, rows })
    }

    /// The same where the sources are the tensors, one by one.
    pub(super) fn of_tensors(
        offloading: &Offloading,
        kernel: &str,
        output: Option<DType>,
        tensors: Vec<DType>,
        root: &Shader,
    ) -> Option<Self> {
        let sources: Vec<Source<'a>> = (0..tensors.len()).map(Source::Leaf).collect();
        Self::new(offloading, kernel, output, tensors, &sources, root)
    }

    /// Elements that must come together: slices of rows whose ranks decide.
    pub(super) fn unit(&self) -> u64 {
        self.rows.0 * self.rows.1
    }

    /// Where the root's numbers stand among the words.
    pub(super) fn root_words(&self) -> Range<usize> {
        self.text.root_words()
    }

    /// The most elements of a tile that takes so many bytes of output for each, a multiple of `unit`; `None` if not even
    /// one fits.
    pub(super) fn tile(&self, unit: u64, output: f64) -> Option<u64> {
        let Limits { binding, memory, .. } = self.offloading.compute.limits();
        let input: u64 = self.types.iter().map(|dtype| dtype.block_bytes()).sum();
        let output = output + (MASK_BYTES * self.text.masks.len() as u64) as f64;
        // What is laid out side by side is padded.
        let spare = gpu::ALIGN * (self.types.len() as u64 + 1);
        let room = |bytes: u64, each: f64| (bytes.saturating_sub(spare) as f64 / each) as u64;
        let elements = room(TILE.min(binding), input as f64)
            .min(room(binding, output))
            .min(room(memory / (2 * IN_FLIGHT), input as f64 + output))
            .min(1 << 31);
        (elements >= unit).then(|| elements / unit * unit)
    }

    /// The bytes of the leaves as the device takes them, of `count` elements from number `start` on.
    fn inputs<'i>(&self, start: u64, count: usize, bytes: &[&'i [u8]]) -> Result<Vec<Cow<'i, [u8]>>> {
        let floats = |fill: &dyn Fn(&mut [f32]) -> Result<()>| -> Result<Cow<'i, [u8]>> {
            let mut values = vec![0.0; count];
            fill(&mut values)?;
            Ok(Cow::Owned(values.into_iter().flat_map(f32::to_le_bytes).collect()))
        };
        let leaf = |leaf: &Leaf<'a>| match leaf {
            Leaf::Tensor(index) if gpu::is_packed(self.tensors[*index]) => Ok(Cow::Borrowed(bytes[*index])),
            Leaf::Tensor(index) => floats(&|values| {
                dtype::decode(Simd::detect(), self.tensors[*index], bytes[*index], values);
                Ok(())
            }),
            Leaf::Generated(generator) => floats(&|values| generator.fill(start, values)),
        };
        self.text.leaves.iter().map(leaf).collect()
    }

    /// Runs over one tile, of which `bytes` are the tensors'; `false` if it is the CPU's.
    pub(super) fn run(&self, start: u64, count: u64, bytes: &[&[u8]], shape: &Shape, out: &mut [u8]) -> Result<bool> {
        if self.offloading.compute.failure().is_some() {
            return Ok(false);
        }
        let inputs = self.inputs(start, count as usize, bytes)?;
        let inputs: Vec<&[u8]> = inputs.iter().map(|input| &**input).collect();
        Ok(self.dispatch(start, count, Inputs::Bytes(&inputs), shape, out))
    }

    /// The same with inputs that were uploaded before, in the types of the leaves.
    pub(super) fn run_held(&self, start: u64, count: u64, held: &Held, shape: &Shape, out: &mut [u8]) -> bool {
        self.offloading.compute.failure().is_none() && self.dispatch(start, count, Inputs::Held(held), shape, out)
    }

    fn dispatch(&self, start: u64, count: u64, inputs: Inputs<'_>, shape: &Shape, out: &mut [u8]) -> bool {
        self.with_job(start, count, inputs, shape, |job| self.offloading.run(job, out)).unwrap_or(false)
    }

    /// The mean time of so many runs over inputs that were uploaded before; `None` if the device fails.
    pub(super) fn time_held(&self, count: u64, held: &Held, shape: &Shape, times: u32) -> Option<Duration> {
        let compute = &self.offloading.compute;
        self.with_job(0, count, Inputs::Held(held), shape, |job| compute.time(job, times).ok())?
    }

    fn with_job<T>(
        &self,
        start: u64,
        count: u64,
        inputs: Inputs<'_>,
        shape: &Shape,
        run: impl FnOnce(&Job<'_>) -> T,
    ) -> Option<T> {
        let params = self.params(start, count, shape)?;
        let most = self.offloading.compute.limits().binding.min(PARAMS_MOST as u64);
        if (params.len() * size_of::<u32>()) as u64 > most {
            return None;
        }
        let masks = self.text.masks.len() as u64;
        let (length, stride) = self.rows;
        let lines = count / (length * stride).max(1) * stride * masks;
        let pass = |(index, shader): (usize, &Arc<str>)| {
            let is_last = index + 1 == self.passes.len();
            Pass { shader: Arc::clone(shader), groups: if is_last { shape.groups } else { lines } }
        };
        let passes: Vec<Pass> = self.passes.iter().enumerate().map(pass).collect();
        let factors = if masks == 0 { 0 } else { gpu::ALIGN + masks * count * MASK_BYTES };
        let scratch = shape.scratch + factors;
        let (output, zeros) = (shape.output, shape.zeros);
        Some(run(&Job { passes: &passes, params: &params, inputs, output, scratch, zeros }))
    }

    fn params(&self, start: u64, count: u64, shape: &Shape) -> Option<Vec<u32>> {
        let mut params = vec![0; gpu::HEADER];
        params[0] = u32::try_from(count).ok()?;
        (params[1], params[2]) = (start as u32, (start >> 32) as u32);
        params[3..3 + shape.own.len()].copy_from_slice(&shape.own);
        // What `ranks` needs, and where it puts the factors.
        let factors = shape.output.next_multiple_of(gpu::ALIGN) / size_of::<u32>() as u64;
        params[7] = u32::try_from(factors).ok()?;
        params[8] = self.text.masks.len() as u32;
        params[9] = self.table;
        (params[5], params[6]) = (u32::try_from(self.rows.0).ok()?, u32::try_from(self.rows.1).ok()?);
        let (offsets, _) = gpu::layout(self.types.iter().map(|dtype| count * dtype.block_bytes()));
        for offset in offsets {
            params.push(u32::try_from(offset / gpu::ALIGN).ok()?);
        }
        params.extend(self.text.words(start)?);
        for (index, mask) in self.text.masks.iter().map(|mask| mask.mask).enumerate() {
            let [low, high] = mask.key.words();
            let (density, epsilon) = mask.by_probability.unwrap_or_default();
            let by_probability = u32::from(mask.by_probability.is_some());
            let words: [u32; MASK_WORDS] = [
                index as u32,
                low,
                high,
                mask.limits.0,
                mask.limits.1,
                by_probability,
                ((density - epsilon) as f32).to_bits(),
                ((2.0 * epsilon) as f32).to_bits(),
            ];
            params.extend(words);
        }
        Some(params)
    }
}

/// Workgroups of so many threads.
pub(super) fn groups_of(threads: u64) -> u64 {
    threads.div_ceil(u64::from(WORKGROUP))
}

/// A kernel of the writing pass that runs on a device, and on the CPU where the device does not.
pub struct Offloaded<'k, 'a> {
    cpu: &'k dyn Kernel,
    offload: Offload<'a>,
    output: DType,
    /// Elements in what the stream counts.
    unit: u64,
}

impl<'k, 'a> Offloaded<'k, 'a> {
    pub(super) fn new(cpu: &'k dyn Kernel, offload: Offload<'a>, output: DType, unit: u64) -> Self {
        Self { cpu, offload, output, unit }
    }

    /// One for a weighted sum of tensors, unless that is the CPU's.
    #[must_use]
    pub fn of_sum(kernel: &'k BlendKernel, offloading: &Offloading) -> Option<Self> {
        let (output, sum) = (Some(kernel.output), Shader::sum(&kernel.blend));
        let offload = Offload::of_tensors(offloading, "blend", output, kernel.inputs.clone(), &sum)?;
        let blocks = kernel.inputs.iter().chain([&kernel.output]).map(|dtype| dtype.block_elements());
        let unit = blocks.max().unwrap_or(1);
        Some(Self::new(kernel, offload, kernel.output, unit))
    }

    /// One tile of a few elements; `false` if it is the CPU's.
    fn tile(&self, start: u64, count: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<bool> {
        let group = u64::from(GROUP);
        let packed = gpu::is_packed(self.output);
        let width = if packed { self.output.block_bytes() } else { DType::F32.block_bytes() };
        let shape = Shape {
            groups: groups_of(count.div_ceil(group)),
            output: count * width,
            scratch: 0,
            zeros: false,
            own: [0; 2],
        };
        if packed {
            return self.offload.run(start, count, inputs, &shape, out);
        }
        let mut bytes = vec![0; (count * width) as usize];
        let done = self.offload.run(start, count, inputs, &shape, &mut bytes)?;
        if done {
            let mut values = vec![0.0; count as usize];
            dtype::decode(Simd::detect(), DType::F32, &bytes, &mut values);
            dtype::encode(Simd::detect(), self.output, &values, out);
        }
        Ok(done)
    }
}

impl Kernel for Offloaded<'_, '_> {
    fn run(&self, start: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<()> {
        let bytes = |dtype: DType, elements: u64| (elements / dtype.block_elements() * dtype.block_bytes()) as usize;
        let count = out.len() as u64 / self.output.block_bytes() * self.output.block_elements();
        let tile = self.offload.tile(self.unit, self.output.block_bytes().max(4) as f64);
        let Some(tile) = tile.filter(|_| count >= self.offload.offloading.least) else {
            return self.cpu.run(start, inputs, out);
        };
        let mut part: Vec<&[u8]> = Vec::with_capacity(inputs.len());
        for at in (0..count).step_by(tile as usize) {
            let length = tile.min(count - at);
            part.clear();
            part.extend(
                inputs
                    .iter()
                    .zip(&self.offload.tensors)
                    .map(|(input, &dtype)| &input[bytes(dtype, at)..bytes(dtype, at + length)]),
            );
            let out = &mut out[bytes(self.output, at)..bytes(self.output, at + length)];
            if !self.tile(start * self.unit + at, length, &part, out)? {
                self.cpu.run(start + at / self.unit, &part, out)?;
            }
        }
        Ok(())
    }
}
