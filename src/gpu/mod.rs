//! Passes over tensors on a graphics processor.
//!
//! A [`Job`] is a few dispatches over one tile of elements: the inputs' bytes are laid side by side in one buffer, so that any
//! number of inputs takes one binding; what comes out is handed back. [`Compute`] runs jobs, from any number of threads at
//! a time: while one waits for the device, others upload and download. Nothing here knows of merge methods: whoever makes
//! a job brings its WGSL.
//!
//! Every dispatch sees the same four bindings of group 0, which is what the smallest devices have:
//!
//! | binding | type | holds |
//! |---|---|---|
//! | 0 | `var<storage, read> inputs: array<vec4<u32>>` | the inputs, each from a multiple of [`ALIGN`] bytes |
//! | 1 | `var<storage, read> params: array<u32>` | [`Job::params`] |
//! | 2 | `var<storage, read_write> out` | [`Job::output`] bytes of output, then [`Job::scratch`] bytes; zeros at first if [`Job::zeros`] |
//! | 3 | `var<storage, read_write> status: array<atomic<u32>, 4>` | zeros; 1 in the first if the CPU must do this tile |
//!
//! A thread makes at most 65,535 turns of loops, all of its loops together: Mesa's software device leaves them then, without a
//! word. Sums are written so that compilers cannot simplify them, as `shaders/check.wgsl` does: drivers take what rounding
//! took for 0.
//!
//! Nothing here needs what only some devices have. What [`Features`] says that one has makes shaders shorter, where it gives
//! the same numbers and is worth it: [`text`] puts them together so, and [`Device`] asks for no other optional feature.
//!
//! Devices may flush numbers below 2⁻¹²⁶ to 0 and need not know infinities and NaN. A kernel that meets a number that is not
//! finite, or so small that a difference could be flushed, says so in `status`, and the tile is the CPU's:
//! [`Outcome::Strange`].

#[cfg(not(feature = "gpu"))]
mod absent;
mod adapter;
#[cfg(feature = "gpu")]
mod buffers;
#[cfg(feature = "gpu")]
mod check;
#[cfg(feature = "gpu")]
mod context;
#[cfg(feature = "gpu")]
mod device;
#[cfg(feature = "gpu")]
mod failure;
#[cfg(feature = "gpu")]
mod pipelines;
#[cfg(feature = "gpu")]
mod rates;
#[cfg(feature = "gpu")]
mod run;
mod shaders;

#[cfg(not(feature = "gpu"))]
pub use absent::{Device, adapters, open};
pub use adapter::{Adapter, Choice, Kind, NONE, Rates};
#[cfg(feature = "gpu")]
pub use device::{Device, adapters, open};
pub use shaders::{GRAM_SCALE, HEADER, KERNELS, Kernel, PRELUDE, is_packed, kernel, power_table, power_words, text};

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Each input begins at a multiple of so many bytes.
pub const ALIGN: u64 = 16;
/// Threads of a workgroup, in every shader.
pub const WORKGROUP: u32 = 256;
/// Elements that a thread of the blend handles.
pub const GROUP: u32 = 8;

/// What a device can do in one dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of a buffer that a shader sees.
    pub binding: u64,
    /// The most bytes of all jobs' buffers together; one job there may always be. What is held comes on top.
    pub memory: u64,
    /// The most workgroups in one dimension.
    pub groups: u32,
}

/// What shaders may use that only some devices have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// 16-bit floats, which it converts exactly as the integer code of `shaders/prelude.wgsl` does.
    pub f16: bool,
    /// Threads that hand each other numbers without memory: neighbours, as many in every dispatch, a power of two. 0 or 1 if
    /// there are none.
    pub subgroup: u32,
}

/// One dispatch.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The whole WGSL text, whose entry point is `main`.
    pub shader: Arc<str>,
    /// Workgroups. They are spread over two dimensions, so a shader's number is `id.y * groups.x + id.x`, and there may be
    /// some beyond the last.
    pub groups: u64,
}

/// What a job reads.
#[derive(Clone, Copy)]
pub enum Inputs<'j> {
    /// Bytes to be uploaded.
    Bytes(&'j [&'j [u8]]),
    /// What has been uploaded before.
    Held(&'j Held),
}

/// Inputs that stay on the device until this is dropped.
#[derive(Clone)]
pub struct Held(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held")
    }
}

/// Dispatches over one tile, in order.
#[derive(Clone, Copy)]
pub struct Job<'j> {
    /// What is run.
    pub passes: &'j [Pass],
    /// Numbers that all passes read.
    pub params: &'j [u32],
    /// What is read.
    pub inputs: Inputs<'j>,
    /// Bytes that come out.
    pub output: u64,
    /// Bytes behind the output, which passes hand to each other.
    pub scratch: u64,
    /// Whether `out` must hold zeros before the first pass.
    pub zeros: bool,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The output is there.
    Done,
    /// There are numbers with which devices need not compute as the CPU does; the output means nothing.
    Strange,
}

/// The device can compute no more: lost, out of memory, or it refused a shader. The rest is the CPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// What runs jobs.
pub trait Compute: Send + Sync + fmt::Debug {
    /// The adapter's name.
    fn name(&self) -> &str;

    /// What fits into a job.
    fn limits(&self) -> Limits;

    /// What its shaders should use.
    fn features(&self) -> Features {
        Features::default()
    }

    /// Runs a job and copies its output to `out`, which has [`Job::output`] bytes.
    ///
    /// # Errors
    /// [`Lost`], now and ever after.
    fn run(&self, job: &Job<'_>, out: &mut [u8]) -> Result<Outcome, Lost>;

    /// How long the passes of a job take, without the way up and down where that can be told apart: the mean of so many
    /// times.
    ///
    /// # Errors
    /// [`Lost`], now and ever after.
    fn time(&self, job: &Job<'_>, times: u32) -> Result<Duration, Lost> {
        let mut out = vec![0; job.output as usize];
        self.run(job, &mut out)?;
        let start = Instant::now();
        (0..times).try_for_each(|_| self.run(job, &mut out).map(drop))?;
        Ok(start.elapsed() / times.max(1))
    }

    /// Uploads inputs that several jobs will read.
    ///
    /// # Errors
    /// [`Lost`], now and ever after.
    fn hold(&self, inputs: &[&[u8]]) -> Result<Held, Lost>;

    /// Why it computes no more, if so.
    fn failure(&self) -> Option<String>;
}

/// Where each of some inputs begins, in bytes, and where the last ends.
#[must_use]
pub fn layout(lengths: impl IntoIterator<Item = u64>) -> (Vec<u64>, u64) {
    let mut end = 0;
    let mut next = |length: u64| {
        let start = end;
        end += length.next_multiple_of(ALIGN);
        start
    };
    let offsets = lengths.into_iter().map(&mut next).collect();
    (offsets, end)
}
