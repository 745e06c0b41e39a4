//! The one test binary.

mod dtype;
mod house;
mod model;
