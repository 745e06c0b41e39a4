//! Devices of a build without the feature `gpu`: there are none.

use super::adapter::choose;
use super::{Adapter, Choice, Compute, Features, Held, Job, Limits, Lost, Outcome, Rates};
use crate::error::Result;

/// A device, of which there is none.
#[derive(Debug)]
pub enum Device {}

/// The adapters: none.
#[must_use]
pub fn adapters() -> Vec<Adapter> {
    Vec::new()
}

/// Opens no adapter.
///
/// # Errors
/// Always, with what is missing.
pub fn open(choice: &Choice, _: Option<Limits>) -> Result<Device> {
    choose(choice, &[]).map(|_| unreachable!("one of none cannot be chosen"))
}

impl Device {
    /// The adapter.
    #[must_use]
    pub fn adapter(&self) -> &Adapter {
        match *self {}
    }

    /// What its shaders can use.
    #[must_use]
    pub fn offered(&self) -> Features {
        match *self {}
    }

    /// Bytes of all its buffers.
    #[must_use]
    pub fn taken(&self) -> u64 {
        match *self {}
    }

    /// How fast it is.
    ///
    /// # Errors
    /// None, as there is no device.
    pub fn rates(&self) -> Result<Rates, Lost> {
        match *self {}
    }
}

impl Compute for Device {
    fn name(&self) -> &str {
        match *self {}
    }

    fn limits(&self) -> Limits {
        match *self {}
    }

    fn run(&self, _: &Job<'_>, _: &mut [u8]) -> Result<Outcome, Lost> {
        match *self {}
    }

    fn hold(&self, _: &[&[u8]]) -> Result<Held, Lost> {
        match *self {}
    }

    fn failure(&self) -> Option<String> {
        match *self {}
    }
}
