//! Tensor data on its way: which range, on which thread, in how much memory.
//!
//! Two passes serve everything. [`write()`] fills an output file: units of consecutive output bytes are handed to
//! threads in file order; each unit's inputs are taken from the maps, or read into buffers of the thread's own, run
//! through the tensor's kernel into one buffer, and written at their place. [`measure`] reduces: each tensor is cut into
//! tiles of a fixed number of elements, and the tiles' results come back in order ([`fold`]: a few at a time). What either
//! computes therefore does not depend on the number of threads, on the unit's size or on how the bytes were fetched.
//!
//! Memory is threads × (output unit + inputs × unit where they are not mapped), whatever the size of the model.

mod measure;
mod scan;
mod write;

pub use measure::{Group, TILE, fold, measure};
pub use scan::Scan;
pub use write::{Item, Kernel, Load, buffer_bytes, rehearse, write};

use crate::checkpoint::{Checkpoint, DataFile, TensorView};
use crate::error::{Bytes, Error, Result};
use crate::gpu::{Compute, Job, Outcome};
use crate::os;
use rayon::prelude::*;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};

/// The most threads that a run starts: beyond it starting them takes longer than what they do.
pub const THREADS_MAX: usize = 256;

/// A device that takes part in a run.
#[derive(Clone, Debug)]
pub struct Offloading {
    /// What runs passes.
    pub compute: Arc<dyn Compute>,
    /// Tensors, and parts of them, with fewer elements stay on the CPU: a dispatch costs more than it saves.
    pub least: u64,
    /// How many tiles it has done, and how many of those it was given the CPU did.
    pub tiles: Arc<Tiles>,
}

/// How many tiles who has done.
#[derive(Debug, Default)]
pub struct Tiles {
    /// The device.
    pub done: AtomicU64,
    /// The CPU, of those with numbers that devices need not know, or because the device failed.
    pub left: AtomicU64,
}

impl Offloading {
    /// Below this a dispatch takes longer than the CPU.
    const LEAST: u64 = 1 << 16;

    /// Bytes that a thread's tiles take on both sides of the way, at the most.
    const TILES: u64 = 48 << 20;

    /// Memory that so many threads take for what is on its way to the device and back.
    #[must_use]
    pub fn memory(&self, threads: usize) -> u64 {
        self.compute.limits().memory.min(threads as u64 * Self::TILES)
    }

    /// By a device, for what is large enough to be worth a dispatch.
    #[must_use]
    pub fn new(compute: Arc<dyn Compute>) -> Self {
        Self { least: Self::LEAST, ..Self::of_all(compute) }
    }

    /// By a device, however small.
    #[must_use]
    pub fn of_all(compute: Arc<dyn Compute>) -> Self {
        Self { compute, least: 0, tiles: Arc::default() }
    }

    /// Runs a tile's job; `false` if it is the CPU's.
    pub fn run(&self, job: &Job<'_>, out: &mut [u8]) -> bool {
        let is_done = self.compute.run(job, out) == Ok(Outcome::Done);
        let count = if is_done { &self.tiles.done } else { &self.tiles.left };
        count.fetch_add(1, Ordering::Relaxed);
        is_done
    }
}

/// Threads of a run by a device, at the least: while some wait for it, others read and write.
const THREADS_OF_DEVICE: usize = 4;

/// How a run may use the machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads; all cores if none is given.
    pub threads: Option<NonZeroUsize>,
    /// A bound on resident memory in bytes, mapped pages of the inputs included.
    pub memory: Option<u64>,
    /// Whether the output is on the disk, and not only in the system's hands, when the run returns.
    pub sync: bool,
    /// A device that computes what it can; none for the CPU alone.
    pub device: Option<Offloading>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { threads: None, memory: None, sync: true, device: None }
    }
}

impl Settings {
    /// The number of threads, all cores being the default. More than [`THREADS_MAX`] are not started.
    #[must_use]
    pub fn threads(&self) -> usize {
        let wanted = self.threads.or_else(|| std::thread::available_parallelism().ok());
        let threads = wanted.map_or(1, NonZeroUsize::get).min(THREADS_MAX);
        if self.device.is_some() { threads.max(THREADS_OF_DEVICE) } else { threads }
    }

    /// The threads of a run.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the system has no more.
    pub fn pool(&self) -> Result<rayon::ThreadPool> {
        decompose_in_one_order();
        rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads())
            .thread_name(|index| format!("stream-{index}"))
            .build()
            .map_err(|error| Error::Recipe(format!("cannot start {} threads: {error}", self.threads())))
    }
}

/// That matrices are decomposed by the thread that asks, in an order that depends on nothing else: faer takes all threads
/// unless it is told, and what it adds up then depends on their number.
pub(crate) fn decompose_in_one_order() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| faer::set_global_parallelism(faer::Par::Seq));
}

/// What a caller may do to a run while it goes on.
#[derive(Clone, Copy)]
pub struct Control<'a> {
    /// Called with each number of bytes done, from any thread.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Set to stop the run, which then returns [`Error::Interrupted`] and leaves nothing behind.
    pub cancel: &'a AtomicBool,
}

impl Control<'_> {
    /// Neither watches nor stops the run.
    #[must_use]
    pub fn none() -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Control { progress: &|_| {}, cancel: &NEVER }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

/// How the pages of a run's inputs are treated, decided once from their sizes and what is in memory.
#[derive(Clone, Copy, Debug)]
struct Hints {
    /// Ask for the pages of units to come: worth its calls only when they are not in memory already.
    read_ahead: bool,
    /// Map a unit at a time, where pages are in memory already.
    maps: bool,
    /// Let go of the pages of units that are done, which costs about a third of a warm run's speed.
    let_go: bool,
    /// Start writing each unit to the disk at once, so that the final sync has little left to do.
    write_back: bool,
}

impl Hints {
    fn new<'a>(files: impl Iterator<Item = &'a DataFile> + Clone, settings: &Settings) -> Self {
        /// Below this share of resident pages, inputs count as cold.
        const WARM: f64 = 0.95;
        let total: u64 = files.clone().map(DataFile::length).sum();
        let large = os::available_memory().is_some_and(|available| total > available / 2);
        let read_ahead = files.clone().any(|file| !file.is_mapped() || file.resident() < WARM);
        Self { read_ahead, maps: !read_ahead, let_go: settings.memory.is_some() || large, write_back: settings.sync }
    }

    /// For what has been passed over before: its pages need not be mapped once more, unless they were let go.
    fn again(self) -> Self {
        Self { maps: self.let_go && self.maps, ..self }
    }

    /// The bytes of a range, to be given back by [`Self::done`].
    fn fetch<'a>(self, view: &TensorView<'a>, range: Range<u64>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        if self.maps {
            let (file, range) = view.extent(range.clone());
            file.populate(range);
        }
        view.read(range, buffer)
    }

    /// That the bytes of a range were there while they were used.
    fn done(self, view: &TensorView<'_>, range: Range<u64>) -> Result<()> {
        if self.let_go {
            let (file, range) = view.extent(range);
            file.let_go(range);
        }
        view.files().try_for_each(DataFile::check_fault)
    }
}

/// The bytes that `elements` of an item take in one of its tensors, which may store several elements together: the item
/// then counts those groups.
fn byte_range(view: &TensorView<'_>, total: u64, elements: &Range<u64>) -> Range<u64> {
    let width = view.tensor.bytes / total;
    elements.start * width..elements.end * width
}

/// The files of some tensors, each once.
fn files<'a>(views: impl Iterator<Item = TensorView<'a>>) -> impl Iterator<Item = &'a DataFile> + Clone {
    let files = views.flat_map(|view| view.files().collect::<Vec<_>>());
    let unique: HashMap<_, _> = files.map(|file| (std::ptr::from_ref(file), file)).collect();
    unique.into_values().collect::<Vec<_>>().into_iter()
}

/// Lets go of the mapped pages of some tensors behind a pass over them, on the threads of a pool. Otherwise one thread does
/// it as the process ends, in a tenth of the time that the pass took.
fn release<'a>(views: impl Iterator<Item = TensorView<'a>>, pool: &rayon::ThreadPool) {
    /// Bytes that a thread lets go of at a time.
    const PART: u64 = 64 << 20;
    let mut spans: HashMap<*const DataFile, (&DataFile, Range<u64>)> = HashMap::new();
    for view in views.filter(TensorView::is_mapped) {
        let (file, range) = view.extent(0..view.tensor.bytes);
        let (_, span) = spans.entry(std::ptr::from_ref(file)).or_insert_with(|| (file, range.clone()));
        *span = span.start.min(range.start)..span.end.max(range.end);
    }
    let cut = |(file, span): (&'a DataFile, Range<u64>)| {
        span.clone().step_by(PART as usize).map(move |start| (file, start..span.end.min(start + PART)))
    };
    let parts: Vec<(&DataFile, Range<u64>)> = spans.into_values().flat_map(cut).collect();
    if parts.len() > 1 {
        pool.install(|| parts.par_iter().for_each(|(file, part)| file.let_go(part.clone())));
    }
}

/// Views that repeat what is in their files may have so many bytes for each in the files, and besides.
const REPEATED: u64 = 1024;
const MORE_REPEATED: u64 = 16 << 30;

/// That tensors are not out of all proportion to the files they are in: a view can repeat one element 2^60 times, and
/// a pass over it would never end.
///
/// # Errors
/// [`Error::Model`] naming the largest.
fn check_proportion<'a>(views: impl Iterator<Item = TensorView<'a>> + Clone) -> Result<()> {
    let held: u64 = files(views.clone()).map(DataFile::length).fold(0, u64::saturating_add);
    let asked = views.clone().map(|view| view.tensor.bytes).fold(0, u64::saturating_add);
    let most = held.saturating_mul(REPEATED).saturating_add(MORE_REPEATED);
    let Some(largest) = views.max_by_key(|view| view.tensor.bytes).filter(|_| asked > most) else { return Ok(()) };
    let (asked, held, name) = (Bytes(asked), Bytes(held), &largest.tensor.name);
    let message = format!(
        "holds {asked} of tensors in {held} of file, most in `{name}`, which repeats its elements; they are not read"
    );
    Err(largest.files().next().map_or(Error::Recipe(message.clone()), |file| Error::model(file.path(), message)))
}

/// That none of the checkpoints' files changed since they were opened.
///
/// # Errors
/// [`Error::Changed`] naming the one that did.
pub fn check_unchanged<'a>(checkpoints: impl IntoIterator<Item = &'a Checkpoint>) -> Result<()> {
    checkpoints.into_iter().flat_map(Checkpoint::files).try_for_each(DataFile::check_unchanged)
}
