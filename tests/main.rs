//! The one test binary.

mod blocks;
mod cli;
mod convert;
#[cfg(all(feature = "diffusion", feature = "plot"))]
mod demo;
mod diffusion;
mod dtype;
#[cfg(feature = "diffusion")]
mod eval;
mod finetune;
mod formats;
mod gpu;
mod hostile;
mod house;
mod journal;
#[cfg(all(feature = "diffusion", feature = "plot"))]
mod landscape;
mod layouts;
mod limits;
mod lora;
mod merge;
mod methods;
mod methods_diffusion;
mod model;
mod names;
mod numbers;
mod recipes;
mod robust;
mod schedulers;
mod similarity;
mod stable_diffusion;
mod stats;
mod task_vector;

use ckptmerge::error; // `formats::pieces` compiles `src/checkpoint/gather.rs` a second time, which names it so.
