//! The writing pass.

use super::{Control, Hints, Settings, byte_range, files, release};
use crate::checkpoint::TensorView;
use crate::error::Result;
use crate::output::StagedFile;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Output bytes per unit of work: large enough that system calls cost nothing, small enough that a unit is still in
/// the second-level cache when it is written. Between 384 KiB and 1 MiB made no difference that could be measured;
/// 256 KiB was 4 % slower, 2 MiB 3 %.
const UNIT: u64 = 512 << 10;
/// The same where a device computes: what goes there at a time has to make up for the way.
const UNIT_OF_DEVICE: u64 = 4 << 20;
/// No bound on memory makes units smaller than this.
const UNIT_MIN: u64 = 64 << 10;
/// What the process takes beside its buffers: program, tables, stacks. Measured at 7 MiB for a 300-tensor model.
const RESERVE: u64 = 16 << 20;
/// How many units ahead of the one in work are asked for when the inputs are not in memory.
const READ_AHEAD: usize = 16;

/// What is done to elements: `inputs` are the same range of elements of each of a tensor's sources.
pub trait Kernel: Sync {
    /// Computes `out` from `inputs`, all being whole elements from number `start` of the item on.
    ///
    /// # Errors
    /// If it fetches something of its own and cannot.
    fn run(&self, start: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<()>;
}

/// A run of output bytes made from the same elements of several tensors.
pub struct Item<'a> {
    /// Where in the output file it begins.
    pub offset: u64,
    /// How many elements it has; where some of its tensors store elements in blocks, how many of the largest blocks; for
    /// bytes that are copied, how many bytes.
    pub elements: u64,
    /// Output bytes per such element.
    pub element_bytes: u64,
    /// The sources, each with a whole number of bytes per such element.
    pub inputs: Vec<TensorView<'a>>,
    /// What is done to them.
    pub kernel: &'a dyn Kernel,
    /// Whether the sources were passed over just before.
    pub is_known: bool,
}

impl Item<'_> {
    fn end(&self) -> u64 {
        self.offset + self.elements * self.element_bytes
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
fn pieces<'a, 'b>(items: &'b [Item<'a>], unit: Unit) -> impl Iterator<Item = (usize, &'b Item<'a>, Range<u64>)> {
    let mut element = unit.element;
    let within = (unit.item..).zip(&items[unit.item..]).take_while(move |(_, item)| item.offset < unit.end);
    within.filter_map(move |(index, item)| {
        let last = (unit.end.min(item.end()) - item.offset).checked_div(item.element_bytes).unwrap_or(0);
        let range = element..last;
        element = 0;
        (!range.is_empty()).then_some((index, item, range))
    })
}

/// Fills `file` with `items`, which are sorted by offset and do not overlap. With `checksums`, returns the CRC-32 of each
/// item's bytes.
///
/// # Errors
/// [`Error::Changed`](crate::Error::Changed) if an input shrinks under the pass,
/// [`Error::Io`](crate::Error::Io) as the system says, [`Error::Interrupted`](crate::Error::Interrupted) on request.
pub fn write(
    file: &StagedFile,
    items: &[Item<'_>],
    checksums: bool,
    settings: &Settings,
    control: Control<'_>,
) -> Result<Vec<u32>> {
    fill(Some(file), items, checksums, settings, control)
}

/// Computes what [`write()`] would, for the time it takes.
///
/// # Errors
/// As [`write()`].
pub fn rehearse(items: &[Item<'_>], settings: &Settings, control: Control<'_>) -> Result<()> {
    fill(None, items, false, settings, control).map(drop)
}

fn fill(
    file: Option<&StagedFile>,
    items: &[Item<'_>],
    checksums: bool,
    settings: &Settings,
    control: Control<'_>,
) -> Result<Vec<u32>> {
    let inputs = most_inputs(items);
    let units = cut(items, unit_bytes(inputs, settings));
    let hints = Hints::new(files(items.iter().flat_map(|item| item.inputs.iter().copied())), settings);

    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let all_sums = Mutex::new(Vec::new());
    let pool = settings.pool()?;
    pool.broadcast(|_| {
        let mut worker = Worker { buffers: vec![Vec::new(); inputs as usize], out: Vec::new(), sums: Vec::new() };
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(&now) = units.get(index) else { break };
            if hints.read_ahead
                && let Some(&ahead) = units.get(index + READ_AHEAD)
            {
                ask_for(items, ahead);
            }
            let result = control.check().and_then(|()| worker.run(file, items, now, checksums, hints));
            if let Err(error) = result {
                next.store(units.len(), Ordering::Relaxed);
                failure.lock().unwrap_or_else(|poison| poison.into_inner()).get_or_insert(error);
                break;
            }
            (control.progress)(now.end - now.start);
        }
        all_sums.lock().unwrap_or_else(|poison| poison.into_inner()).append(&mut worker.sums);
    });
    failure.into_inner().unwrap_or_else(|poison| poison.into_inner()).map_or(Ok(()), Err)?;
    if hints.maps {
        release(items.iter().flat_map(|item| item.inputs.iter().copied()), &pool);
    }
    Ok(combined(items.len(), all_sums.into_inner().unwrap_or_else(|poison| poison.into_inner())))
}

/// The CRC-32 of some bytes of an item.
struct Checksum {
    item: usize,
    element: u64,
    bytes: u64,
    crc32: u32,
}

/// The CRC-32 of each item from those of its pieces.
fn combined(items: usize, mut sums: Vec<Checksum>) -> Vec<u32> {
    sums.sort_by_key(|sum| (sum.item, sum.element));
    let mut hashers = vec![crc32fast::Hasher::new(); items];
    for sum in sums {
        hashers[sum.item].combine(&crc32fast::Hasher::new_with_initial_len(sum.crc32, sum.bytes));
    }
    hashers.into_iter().map(crc32fast::Hasher::finalize).collect()
}

/// The most inputs that any item has.
fn most_inputs(items: &[Item<'_>]) -> u64 {
    items.iter().map(|item| item.inputs.len()).max().unwrap_or(0) as u64
}

/// The size of a unit. Half of the memory that is left serves each thread's buffers; the other half is for pages that
/// are mapped but not yet let go.
fn unit_bytes(inputs: u64, settings: &Settings) -> u64 {
    let most = if settings.device.is_some() { UNIT_OF_DEVICE } else { UNIT };
    settings.memory.map_or(most, |memory| {
        (memory.saturating_sub(RESERVE) / (2 * settings.threads() as u64 * (inputs + 2))).clamp(UNIT_MIN, most)
    })
}

/// What an item takes of memory.
pub struct Load<'i, 'a> {
    /// As in [`Item`].
    pub elements: u64,
    /// As in [`Item`].
    pub element_bytes: u64,
    /// As in [`Item`].
    pub inputs: &'i [TensorView<'a>],
    /// Bytes that its kernel takes of its own in each thread.
    pub scratch: u64,
}

/// Memory that [`write()`] takes for these items: the buffers of all threads and what the process takes anyway.
#[must_use]
pub fn buffer_bytes(items: &[Load<'_, '_>], settings: &Settings) -> u64 {
    let inputs = items.iter().map(|item| item.inputs.len()).max().unwrap_or(0) as u64;
    let unit = unit_bytes(inputs, settings);
    // Where inputs are not mapped each has a buffer of its own; wider elements than the output's make it larger.
    let per_thread = items.iter().map(|item| {
        let unmapped = item.inputs.iter().filter(|input| !input.is_mapped());
        let widths: u64 = unmapped.map(|input| input.tensor.bytes.checked_div(item.elements).unwrap_or(0)).sum();
        // A unit is at least one element, however large an item's elements are.
        let taken = unit.checked_div(item.element_bytes).unwrap_or(0).max(1);
        taken * widths + unit.max(item.element_bytes) + item.scratch
    });
    RESERVE + settings.threads() as u64 * per_thread.max().unwrap_or(0)
}

fn ask_for(items: &[Item<'_>], unit: Unit) {
    for (_, item, elements) in pieces(items, unit) {
        for input in &item.inputs {
            let (file, range) = input.extent(byte_range(input, item.elements, &elements));
            file.will_need(range);
        }
    }
}

/// A thread's own memory.
struct Worker {
    buffers: Vec<Vec<u8>>,
    out: Vec<u8>,
    sums: Vec<Checksum>,
}

impl Worker {
    fn run(
        &mut self,
        file: Option<&StagedFile>,
        items: &[Item<'_>],
        unit: Unit,
        checksums: bool,
        hints: Hints,
    ) -> Result<()> {
        self.out.resize((unit.end - unit.start) as usize, 0);
        let mut rest = &mut self.out[..];
        for (index, item, elements) in pieces(items, unit) {
            let (out, after) = rest.split_at_mut(((elements.end - elements.start) * item.element_bytes) as usize);
            rest = after;
            let hints = if item.is_known { hints.again() } else { hints };
            let inputs = item
                .inputs
                .iter()
                .zip(&mut self.buffers)
                .map(|(input, buffer)| hints.fetch(input, byte_range(input, item.elements, &elements), buffer))
                .collect::<Result<Vec<_>>>()?;
            item.kernel.run(elements.start, &inputs, out)?;
            if checksums {
                let (element, bytes) = (elements.start, out.len() as u64);
                self.sums.push(Checksum { item: index, element, bytes, crc32: crc32fast::hash(out) });
            }
            for input in &item.inputs {
                hints.done(input, byte_range(input, item.elements, &elements))?;
            }
        }
        if let Some(file) = file {
            file.write_at(unit.start, &self.out)?;
            if hints.write_back {
                file.start_write_back(unit.start..unit.end);
            }
        }
        Ok(())
    }
}
