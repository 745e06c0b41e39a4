//! The writing pass.

use super::{Control, Hints, Settings};
use crate::checkpoint::{DataFile, TensorView};
use crate::error::Result;
use crate::output::StagedFile;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Output bytes per unit of work: large enough that system calls cost nothing, small enough that a unit is still in
/// the second-level cache when it is written. Between 384 KiB and 1 MiB made no difference that could be measured;
/// 256 KiB was 4 % slower, 2 MiB 3 %.
const UNIT: u64 = 512 << 10;
/// No bound on memory makes units smaller than this.
const UNIT_MIN: u64 = 64 << 10;
/// What the process takes beside its buffers: program, tables, stacks. Measured at 7 MiB for a 300-tensor model.
const RESERVE: u64 = 16 << 20;
/// How many units ahead of the one in work are asked for when the inputs are not in memory.
const READ_AHEAD: usize = 16;

/// What is done to elements: `inputs` are the same range of elements of each of a tensor's sources.
pub trait Kernel: Sync {
    /// Computes `out` from `inputs`, all being whole elements.
    fn run(&self, inputs: &[&[u8]], out: &mut [u8]);
}

/// A run of output bytes made from the same elements of several tensors.
pub struct Item<'a> {
    /// Where in the output file it begins.
    pub offset: u64,
    /// How many elements it has. For bytes that are copied, the number of bytes.
    pub elements: u64,
    /// Output bytes per element.
    pub element_bytes: u64,
    /// The sources, each with a whole number of bytes per element.
    pub inputs: Vec<TensorView<'a>>,
    /// What is done to them.
    pub kernel: &'a dyn Kernel,
}

impl Item<'_> {
    fn end(&self) -> u64 {
        self.offset + self.elements * self.element_bytes
    }

    /// The range in the file of an input's `elements`.
    fn input_range(&self, input: &TensorView<'_>, elements: &Range<u64>) -> Range<u64> {
        let width = input.tensor.bytes / self.elements;
        input.file_range(elements.start * width..elements.end * width)
    }
}

/// Consecutive output bytes: from an element of an item up to an offset in the file.
#[derive(Clone, Copy, Debug)]
struct Unit {
    item: usize,
    element: u64,
    start: u64,
    end: u64,
}

/// Cuts the items, which are sorted by offset, into units of at most `size` bytes (or one element).
fn cut(items: &[Item<'_>], size: u64) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let mut element = 0;
        while element < item.elements {
            let start = item.offset + element * item.element_bytes;
            let room = match units.last() {
                Some(unit) if unit.end == start => size.saturating_sub(start - unit.start),
                _ => 0,
            };
            let (joins, room) = if room >= item.element_bytes { (true, room) } else { (false, size) };
            let taken = (room / item.element_bytes).clamp(1, item.elements - element);
            let end = start + taken * item.element_bytes;
            match units.last_mut() {
                Some(unit) if joins => unit.end = end,
                _ => units.push(Unit { item: index, element, start, end }),
            }
            element += taken;
        }
    }
    units
}

/// The pieces of a unit: an item, and which of its elements.
fn pieces<'a, 'b>(items: &'b [Item<'a>], unit: Unit) -> impl Iterator<Item = (&'b Item<'a>, Range<u64>)> {
    let mut element = unit.element;
    items[unit.item..].iter().take_while(move |item| item.offset < unit.end).filter_map(move |item| {
        let last = (unit.end.min(item.end()) - item.offset).checked_div(item.element_bytes).unwrap_or(0);
        let range = element..last;
        element = 0;
        (!range.is_empty()).then_some((item, range))
    })
}

/// Fills `file` with `items`, which are sorted by offset and do not overlap.
///
/// # Errors
/// [`Error::Changed`](crate::Error::Changed) if an input shrinks under the pass,
/// [`Error::Io`](crate::Error::Io) as the system says, [`Error::Interrupted`](crate::Error::Interrupted) on request.
pub fn write(file: &StagedFile, items: &[Item<'_>], settings: &Settings, control: Control<'_>) -> Result<()> {
    let inputs = most_inputs(items);
    let units = cut(items, unit_bytes(inputs, settings));
    let hints = Hints::new(files(items), settings);

    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    settings.pool()?.broadcast(|_| {
        let mut worker = Worker { buffers: vec![Vec::new(); inputs as usize], out: Vec::new() };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&now) = units.get(index) else { break };
            if hints.read_ahead
                && let Some(&ahead) = units.get(index + READ_AHEAD)
            {
                ask_for(items, ahead);
            }
            let result = control.check().and_then(|()| worker.run(file, items, now, hints));
            if let Err(error) = result {
                next.store(units.len(), Ordering::Relaxed);
                failure.lock().unwrap_or_else(|poison| poison.into_inner()).get_or_insert(error);
                break;
            }
            (control.progress)(now.end - now.start);
        }
    });
    failure.into_inner().unwrap_or_else(|poison| poison.into_inner()).map_or(Ok(()), Err)
}

/// The most inputs that any item has.
fn most_inputs(items: &[Item<'_>]) -> u64 {
    items.iter().map(|item| item.inputs.len()).max().unwrap_or(0) as u64
}

/// The size of a unit. Half of the memory that is left serves each thread's buffers; the other half is for pages that
/// are mapped but not yet let go.
fn unit_bytes(inputs: u64, settings: &Settings) -> u64 {
    settings.memory.map_or(UNIT, |memory| {
        (memory.saturating_sub(RESERVE) / (2 * settings.threads() as u64 * (inputs + 2))).clamp(UNIT_MIN, UNIT)
    })
}

/// Memory that [`write`] takes for these items: the buffers of all threads and what the process takes anyway.
#[must_use]
pub fn buffer_bytes(items: &[Item<'_>], settings: &Settings) -> u64 {
    let inputs = most_inputs(items);
    // Where inputs are not mapped each has a buffer of its own; wider elements than the output's make it larger.
    let read: u64 = items
        .iter()
        .map(|item| {
            let unmapped = item.inputs.iter().filter(|input| !input.file.is_mapped());
            let widths: u64 = unmapped.map(|input| input.tensor.bytes.checked_div(item.elements).unwrap_or(0)).sum();
            (unit_bytes(inputs, settings) * widths).checked_div(item.element_bytes).unwrap_or(0)
        })
        .max()
        .unwrap_or(0);
    RESERVE + settings.threads() as u64 * (unit_bytes(inputs, settings) + read)
}

fn files<'a>(items: &'a [Item<'a>]) -> impl Iterator<Item = &'a DataFile> + Clone {
    let mut seen = std::collections::HashSet::new();
    let unique: Vec<&DataFile> = items
        .iter()
        .flat_map(|item| &item.inputs)
        .map(|input| input.file)
        .filter(|file| seen.insert(std::ptr::from_ref(*file)))
        .collect();
    unique.into_iter()
}

fn ask_for(items: &[Item<'_>], unit: Unit) {
    for (item, elements) in pieces(items, unit) {
        for input in &item.inputs {
            input.file.will_need(item.input_range(input, &elements));
        }
    }
}

/// A thread's own memory.
struct Worker {
    buffers: Vec<Vec<u8>>,
    out: Vec<u8>,
}

impl Worker {
    fn run(&mut self, file: &StagedFile, items: &[Item<'_>], unit: Unit, hints: Hints) -> Result<()> {
        self.out.resize((unit.end - unit.start) as usize, 0);
        let mut rest = &mut self.out[..];
        for (item, elements) in pieces(items, unit) {
            let (out, after) = rest.split_at_mut(((elements.end - elements.start) * item.element_bytes) as usize);
            rest = after;
            let inputs = item
                .inputs
                .iter()
                .zip(&mut self.buffers)
                .map(|(input, buffer)| hints.fetch(input.file, item.input_range(input, &elements), buffer))
                .collect::<Result<Vec<_>>>()?;
            item.kernel.run(&inputs, out);
            for input in &item.inputs {
                hints.done(input.file, item.input_range(input, &elements))?;
            }
        }
        file.write_at(unit.start, &self.out)?;
        if hints.write_back {
            file.start_write_back(unit.start..unit.end);
        }
        Ok(())
    }
}
