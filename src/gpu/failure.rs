//! Why a device computes no more: the first reason, kept.

use super::Lost;
use std::sync::OnceLock;

/// Set once, by whoever meets the failure first.
#[derive(Debug, Default)]
pub(super) struct Failure(OnceLock<String>);

impl Failure {
    /// The first reason stays; what fails afterwards fails because of it.
    pub(super) fn set(&self, reason: impl Into<String>) -> Lost {
        let _ = self.0.set(reason.into());
        Lost
    }

    pub(super) fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }

    pub(super) fn check(&self) -> Result<(), Lost> {
        if self.0.get().is_some() { Err(Lost) } else { Ok(()) }
    }
}
