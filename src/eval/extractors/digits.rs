//! A small classifier of handwritten digits, 8×8 grey, that is part of the program.
//!
//! It was trained by `fixtures/digits/classifier.rs` on scikit-learn's digits, which are from E. Alpaydin and C. Kaynak, *Optical
//! Recognition of Handwritten Digits* (<https://doi.org/10.24432/C50P49>, CC BY 4.0). Its features are the 64 numbers
//! before the last layer.

use super::classifier::Classifier;
use super::{Kind, Resize};
use crate::error::{Error, Result};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

pub(super) static KIND: Kind = Kind {
    name: "digits",
    argument: None,
    about: "a classifier of 8×8 grey digits that is part of the program, 64 numbers",
    open: |_, resize| open(resize).map(|classifier| Box::new(classifier) as _),
};

static WEIGHTS: &[u8] = include_bytes!("digits/digits.safetensors");
static DESCRIPTION: &str = include_str!("digits/digits.json");

fn open(resize: Option<Resize>) -> Result<Classifier> {
    let path = Path::new("digits");
    let tensors = candle_core::safetensors::load_buffer(WEIGHTS, &Device::Cpu).map_err(Error::from)?;
    let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    // What was measured by other weights does not compare.
    let id = format!("digits ({:016x})", xxh3_64(WEIGHTS));
    Classifier::new(DESCRIPTION, path, &weights, "digits".to_owned(), id, resize)
}
