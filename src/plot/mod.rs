//! Rows of numbers to pictures.
//!
//! Pictures are SVG, so they need no font here and stay sharp in print. The colour map is cividis, which looks the same
//! to people with and without colour-blindness and keeps its order in grey.

mod heatmap;

pub use heatmap::Heatmap;
