//! Diffusion: layers, networks, and images made with them, against diffusers and torch.

mod analyses;
mod layers;
mod projections;
mod sample;
mod train;
mod unet;

use crate::model::{Outcome, root};
use candle_core::{Device, Tensor};
use std::collections::HashMap;

/// Numbers that follow from a name, uniform in −1..1, as in `fixtures/unet/make.py`.
pub(crate) fn numbers(name: &str, count: usize) -> Vec<f32> {
    let key = crc32fast::hash(name.as_bytes());
    let number = |index: usize| {
        let x = index as u32 ^ key;
        let x = (x ^ (x >> 16)).wrapping_mul(0x21f0_aaad);
        let x = (x ^ (x >> 15)).wrapping_mul(0x735a_2d97);
        (f64::from(x ^ (x >> 15)) / 2f64.powi(31) - 1.0) as f32
    };
    (0..count).map(number).collect()
}

/// The same as a tensor.
pub(crate) fn tensor(name: &str, shape: &[usize]) -> Outcome<Tensor> {
    Ok(Tensor::from_vec(numbers(name, shape.iter().product()), shape, &Device::Cpu)?)
}

/// The tensors of a file of goldens.
pub(crate) fn goldens(path: &str) -> Outcome<HashMap<String, Tensor>> {
    let goldens = candle_core::safetensors::load(root().join("fixtures").join(path), &Device::Cpu)?;
    assert!(!goldens.is_empty(), "{path} holds nothing");
    Ok(goldens)
}

/// The largest difference of two tensors of one shape.
pub(crate) fn farthest(a: &Tensor, b: &Tensor) -> Outcome<f32> {
    assert_eq!(a.dims(), b.dims());
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)
}

/// The largest difference, for the size of the largest number.
pub(crate) fn relative(found: &Tensor, expected: &Tensor) -> Outcome<f32> {
    let size = expected.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    Ok(farthest(found, expected)? / size)
}

/// Runs it in a pool of so many threads.
pub(crate) fn with_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> Outcome<R> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(run))
}
