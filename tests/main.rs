//! The one test binary.

mod cli;
mod dtype;
mod hostile;
mod house;
mod layouts;
mod merge;
mod model;
mod numbers;
mod robust;
