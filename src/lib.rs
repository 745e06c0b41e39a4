#![doc = include_str!("../README.md")]

#[cfg(not(unix))]
compile_error!("ckptmerge maps and positions files by Unix calls; other systems are not supported yet");

pub mod adapter;
pub mod analysis;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "diffusion")]
pub mod diffusion;
pub mod dtype;
pub mod error;
#[cfg(feature = "diffusion")]
pub mod eval;
pub mod gpu;
#[cfg(feature = "diffusion")]
pub mod images;
pub mod merge;
pub mod names;
mod os;
pub mod output;
pub mod plot;
pub mod recipe;
pub mod search;
pub mod stream;
#[cfg(feature = "diffusion")]
pub mod train;

pub use checkpoint::{Checkpoint, IoMode, OpenOptions};
pub use error::{Bytes, Error, Mismatch, Result};
