//! The inputs of one tensor, and the passes over them by which methods measure.
//!
//! Results do not depend on threads: sums go by tiles of a fixed size, added in their order, and counts are exact.

use super::measure::OnDevice;
use super::node::{Scratch, Source, common_multiple};
use crate::checkpoint::TensorView;
use crate::dtype::{DType, vector};
use crate::error::{Error, Result};
use crate::stream::{Offloading, Scan};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Elements that are computed at a time: few enough that those of several inputs stay in the first-level cache, with the
/// bytes of the next that are on their way. 1024 were 5 % slower, 2048 were 15 %.
pub(super) const BLOCK: u64 = 512;

/// Elements per tile of a pass that sums; fixed, so that sums are.
pub(super) const TILE: u64 = 1 << 17;

/// How often what waits for work apart looks whether it is to stop.
const POLL: Duration = Duration::from_millis(50);

/// Tiles in work at a time, for each thread, whose results may be as large as a tile.
pub(super) const LARGE_RESULTS: usize = 4;
/// The same where they are a few numbers.
pub(super) const SMALL_RESULTS: usize = 32;

/// A few elements of all inputs, as numbers.
pub struct Block<'b> {
    /// The number of the first element in the tensor.
    pub start: u64,
    /// The inputs' elements, the base last if there is one. They are the method's to overwrite.
    pub inputs: &'b mut [Vec<f32>],
    /// Whether the last input is the base.
    pub has_base: bool,
}

impl Block<'_> {
    /// The models' elements and the base's.
    ///
    /// # Panics
    /// If there is no base.
    pub fn split_base(&mut self) -> (&mut [Vec<f32>], &[f32]) {
        let (base, models) = self.inputs.split_last_mut().expect("a base is an input");
        (models, base)
    }

    /// Turns the models' elements into differences from the base, if there is one.
    pub fn subtract_base(&mut self) {
        if self.has_base {
            let (models, base) = self.split_base();
            for model in models {
                vector::update(model, [base], |x, [b]| x - b);
            }
        }
    }

    /// The models' elements, without the base.
    #[must_use]
    pub fn models(&self) -> &[Vec<f32>] {
        &self.inputs[..self.inputs.len() - usize::from(self.has_base)]
    }

    /// The elements of the first `N` inputs, for a loop over them.
    ///
    /// # Panics
    /// If there are fewer inputs.
    #[must_use]
    pub fn first<const N: usize>(&self) -> [&[f32]; N] {
        std::array::from_fn(|index| self.inputs[index].as_slice())
    }

    /// How many elements of each input there are.
    #[must_use]
    pub fn length(&self) -> usize {
        self.inputs.first().map_or(0, Vec::len)
    }
}

/// Inner products of the inputs, or of their differences from the base.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    size: usize,
    products: Vec<f64>,
}

impl Gram {
    /// Of `size` vectors, from the products of all pairs `i ≤ j` in row-major order.
    pub(super) fn new(size: usize, upper: &[f64]) -> Self {
        let mut products = vec![0.0; size * size];
        for ((i, j), value) in pairs(size).zip(upper) {
            products[i * size + j] = *value;
            products[j * size + i] = *value;
        }
        Self { size, products }
    }

    /// How many vectors there are.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// `xᵢ·xⱼ`
    #[must_use]
    pub fn product(&self, i: usize, j: usize) -> f64 {
        self.products[i * self.size + j]
    }

    /// `‖xᵢ‖`
    #[must_use]
    pub fn norm(&self, i: usize) -> f64 {
        self.product(i, i).sqrt()
    }

    /// `cᵀ·G·d`: the inner product of two combinations of the vectors.
    #[must_use]
    pub fn between(&self, c: &[f64], d: &[f64]) -> f64 {
        let row = |i: usize| (0..self.size).map(|j| self.product(i, j) * d[j]).sum::<f64>();
        (0..self.size).map(|i| c[i] * row(i)).sum()
    }

    /// The norm of a combination of the vectors; 0 where rounding leaves its square below 0, and NaN stays NaN.
    #[must_use]
    pub fn length(&self, c: &[f64]) -> f64 {
        let square = self.between(c, c);
        if square < 0.0 { 0.0 } else { square.sqrt() }
    }
}

/// The pairs `i ≤ j` in row-major order.
pub(super) fn pairs(size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..size).flat_map(move |i| (i..size).map(move |j| (i, j)))
}

/// The inputs of one tensor.
pub struct Data<'a> {
    scan: Scan<'a>,
    leaves: Vec<TensorView<'a>>,
    sources: Vec<Source<'a>>,
    /// Elements in what the scan counts.
    block: u64,
    elements: u64,
    /// Elements that must come together: a whole number of what the method and every source needs.
    unit: u64,
    has_base: bool,
    device: Option<Offloading>,
}

impl<'a> Data<'a> {
    #[expect(clippy::too_many_arguments, reason = "each is a field")]
    pub(super) fn new(
        scan: Scan<'a>,
        leaves: Vec<TensorView<'a>>,
        sources: Vec<Source<'a>>,
        block: u64,
        elements: u64,
        unit: u64,
        has_base: bool,
        device: Option<Offloading>,
    ) -> Self {
        let unit = sources.iter().map(Source::unit).fold(common_multiple(unit, block), common_multiple);
        Self { scan, leaves, sources, block, elements, unit, has_base, device }
    }

    pub(super) fn device(&self) -> Option<&Offloading> {
        self.device.as_ref()
    }

    /// The types of the tensors that are read.
    pub(super) fn types(&self) -> Vec<DType> {
        self.leaves.iter().map(|view| view.tensor.dtype).collect()
    }

    pub(super) fn sources(&self) -> &[Source<'a>] {
        &self.sources
    }

    /// Elements in what the scan counts.
    pub(super) fn block(&self) -> u64 {
        self.block
    }

    /// Whether all elements have been passed over.
    pub(super) fn is_known(&self) -> bool {
        self.scan.is_known()
    }

    /// The sources, handed back.
    pub(super) fn into_sources(self) -> Vec<Source<'a>> {
        self.sources
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// The number of models, without the base.
    #[must_use]
    pub fn models(&self) -> usize {
        self.sources.len() - usize::from(self.has_base)
    }

    /// Does what takes long and reads nothing on a thread of its own, so that a stop need not wait for it: what is left
    /// undone then goes on until it ends, and nothing comes of it.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the run is to stop; [`Error::Recipe`] if the system has no thread left.
    ///
    /// # Panics
    /// If the work does.
    pub fn apart<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (done, result) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("apart".to_owned()).spawn(move || {
            // Nobody waits for it behind a stop.
            let _ = done.send(work());
        });
        let thread = thread.map_err(|error| Error::Recipe(format!("cannot start a thread: {error}")))?;
        loop {
            match result.recv_timeout(POLL) {
                Ok(result) => return Ok(result),
                Err(RecvTimeoutError::Timeout) => self.scan.check()?,
                Err(RecvTimeoutError::Disconnected) => match thread.join() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(()) => return Err(Error::Interrupted),
                },
            }
        }
    }

    /// Passes over all elements in tiles of about `size`, folding each tile's blocks into something that `start`
    /// makes; hands what came of the tiles to `combine` in their order.
    ///
    /// # Errors
    /// As [`Scan::run`].
    pub fn fold<T: Send>(
        &self,
        size: u64,
        start: impl Fn() -> T + Sync,
        visit: impl Fn(&mut T, &mut Block<'_>) + Sync,
        combine: impl FnMut(T),
    ) -> Result<()> {
        self.fold_on(None, size, LARGE_RESULTS, start, visit, combine)
    }

    /// [`Self::fold`] of `window` tiles for each thread at a time, as [`Scan::run`] takes them, and by a device where it can.
    pub(super) fn fold_on<T: Send>(
        &self,
        device: Option<OnDevice<'_, 'a, T>>,
        size: u64,
        window: usize,
        start: impl Fn() -> T + Sync,
        visit: impl Fn(&mut T, &mut Block<'_>) + Sync,
        combine: impl FnMut(T),
    ) -> Result<()> {
        let tile = device.as_ref().map_or_else(|| self.unit * (size / self.unit).max(1), OnDevice::tile);
        self.scan.run(
            tile / self.block,
            window,
            |range, inputs| {
                if let Some(device) = &device {
                    let (first, count) = (range.start * self.block, (range.end - range.start) * self.block);
                    if let Some(folded) = device.run(first, count, inputs)? {
                        return Ok(folded);
                    }
                }
                let mut folded = start();
                self.blocks(range, inputs, |block| visit(&mut folded, block))?;
                Ok(folded)
            },
            combine,
        )
    }

    /// Calls `visit` on each block of a range of what the scan counts.
    fn blocks<'i>(&self, range: Range<u64>, inputs: &[&'i [u8]], mut visit: impl FnMut(&mut Block<'_>)) -> Result<()> {
        let step = self.unit * (BLOCK / self.unit).max(1);
        let (first, last) = (range.start * self.block, range.end * self.block);
        let mut scratch = Scratch::default();
        let mut part: Vec<&[u8]> = Vec::with_capacity(inputs.len());
        let mut at = first;
        while at < last {
            let length = step.min(last - at);
            let bytes = |view: &TensorView<'_>, elements: u64| {
                (elements / view.tensor.dtype.block_elements() * view.tensor.dtype.block_bytes()) as usize
            };
            part.clear();
            let taken = |(input, view): (&&'i [u8], &TensorView<'_>)| {
                &input[bytes(view, at - first)..bytes(view, at - first + length)]
            };
            part.extend(inputs.iter().zip(&self.leaves).map(taken));
            let mut values = scratch.take(self.sources.len(), length as usize);
            for (source, values) in self.sources.iter().zip(&mut values) {
                source.fill(&self.leaves, at, &part, &mut scratch, values)?;
            }
            visit(&mut Block { start: at, inputs: &mut values, has_base: self.has_base });
            scratch.give_back(values);
            at += length;
        }
        Ok(())
    }

    /// What `visit` makes of blocks at evenly spaced places, about `count` elements in all, in the order of the places.
    pub(super) fn sample<T: Send>(&self, count: u64, visit: impl Fn(&mut Block<'_>) -> T + Sync) -> Result<Vec<T>> {
        let step = self.unit * (BLOCK / self.unit).max(1);
        let blocks = self.elements.div_ceil(step);
        if blocks == 0 {
            return Ok(Vec::new());
        }
        let wanted = (count / step).clamp(1, blocks);
        let at = |index: u64| {
            let start = index * blocks / wanted * step;
            let range = start / self.block..self.elements.min(start + step) / self.block;
            let mut made = Vec::new();
            self.scan
                .at(range.clone(), |inputs| self.blocks(range.clone(), inputs, |block| made.push(visit(block))))?;
            Ok(made)
        };
        let made: Vec<Vec<T>> = (0..wanted).into_par_iter().map(at).collect::<Result<_>>()?;
        Ok(made.into_iter().flatten().collect())
    }

    /// All elements of an input, as numbers: for what no pass can do.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn whole_input(&self, index: usize) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(self.elements as usize);
        self.fold(
            TILE,
            Vec::new,
            |part: &mut Vec<f32>, block| part.extend(&block.inputs[index]),
            |part| all.extend(part),
        )?;
        Ok(all)
    }
}
