//! That what is quantized can be read again: a scale that binary16 has no number for makes NaN of its whole block.

use crate::dtype::{self, DType, Unstorable};
use crate::error::{Error, Result};
use crate::stream::Kernel;
use ckptmerge_format::printable;
use std::path::Path;

/// A kernel whose output is looked at, unless it is a copy.
pub(super) struct Checked<'a> {
    pub(super) kernel: &'a dyn Kernel,
    /// Whether its inputs were passed over before.
    pub(super) is_known: bool,
    /// The type that the kernel rounds to; none if it copies.
    pub(super) rounds_to: Option<DType>,
    /// The tensor's name in the output.
    pub(super) name: &'a str,
    /// Where the output goes.
    pub(super) target: &'a Path,
}

impl Kernel for Checked<'_> {
    fn run(&self, start: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<()> {
        self.kernel.run(start, inputs, out)?;
        let Some((dtype, problem)) = self.rounds_to.and_then(|dtype| Some((dtype, dtype::unstorable(dtype, out)?)))
        else {
            return Ok(());
        };
        let what = match problem {
            Unstorable::NotFinite => "it has NaN or infinities, each of which would make NaN of its whole block",
            Unstorable::TooLarge => "it has numbers too large for a block's scale, and whole blocks would become NaN",
        };
        let name = printable(self.name);
        let message =
            format!("tensor `{name}` cannot be stored as {dtype}: {what}; choose another type for it, such as f32");
        Err(Error::output(self.target, message))
    }
}
