//! The crate's tests: `fixtures` reads what NumPy wrote, `damage` cuts it short, `write` writes files of our own.

mod damage;
mod fixtures;
mod gather;
mod write;

use std::path::PathBuf;

/// The folder of `make.py` and the files it made.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/numpy")
}
