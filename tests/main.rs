//! The one test binary.

mod dtype;
