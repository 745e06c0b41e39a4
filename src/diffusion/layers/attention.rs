//! Attention over the pixels, behind a group normalisation, added to what went in.

use super::{Groups, Norm};
use crate::diffusion::nn::{Window, attention, conv2d};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Names of the projections: those diffusers gives now, and those before version 0.17.
const NAMES: [[&str; 4]; 2] = [["to_q", "to_k", "to_v", "to_out.0"], ["query", "key", "value", "proj_attn"]];

#[derive(Debug)]
pub(in crate::diffusion) struct PixelAttention {
    norm: Option<Norm>,
    /// Queries, keys, values, and what comes out: kernels of one pixel and their bias.
    projections: [(Tensor, Tensor); 4],
    /// Channels of a head.
    head: usize,
    /// What the sum is divided by.
    divisor: f64,
}

/// Kernels of one pixel and their bias, whose weight may be stored as a matrix.
pub(in crate::diffusion) fn pointwise(channels: usize, builder: &VarBuilder<'_>) -> Result<(Tensor, Tensor)> {
    let shape = (channels, channels, 1, 1);
    let kernels = match builder.get((channels, channels), "weight") {
        Ok(matrix) => matrix.reshape(shape)?,
        Err(error) => builder.get(shape, "weight").map_err(|_| error)?,
    };
    Ok((kernels, builder.get(channels, "bias")?))
}

impl PixelAttention {
    pub(in crate::diffusion) fn new(
        groups: Option<Groups>,
        channels: usize,
        head: usize,
        divisor: f64,
        builder: &VarBuilder<'_>,
    ) -> Result<Self> {
        let norm = groups.map(|groups| groups.norm(channels, &builder.pp("group_norm")));
        let [new, old] = NAMES;
        let [queries, keys, values, out] = if builder.contains_tensor("query.weight") { old } else { new };
        let projection = |name: &str| pointwise(channels, &builder.pp(name));
        let projections = [projection(queries)?, projection(keys)?, projection(values)?, projection(out)?];
        Ok(Self { norm: norm.transpose()?, projections, head, divisor })
    }

    pub(in crate::diffusion) fn forward(&self, sample: &Tensor) -> Result<Tensor> {
        let (batch, channels, rows, columns) = sample.dims4()?;
        let normal = match &self.norm {
            Some(norm) => norm.forward(sample, false)?,
            None => sample.clone(),
        };
        let [queries, keys, values, out] = &self.projections;
        let project = |(kernels, bias): &(Tensor, Tensor)| {
            conv2d(&normal, kernels, Some(bias), Window::PLAIN)?.reshape(((), self.head, rows * columns))
        };
        let scale = 1.0 / (self.head as f64).sqrt();
        let seen = attention(&project(queries)?, &project(keys)?, &project(values)?, scale)?;
        let seen = seen.reshape((batch, channels, rows, columns))?;
        let sum = (sample + conv2d(&seen, &out.0, Some(&out.1), Window::PLAIN)?)?;
        if self.divisor == 1.0 { Ok(sum) } else { sum / self.divisor }
    }
}
