//! What networks are made of: convolutions, normalisations, residual blocks, attention over pixels, and what they are told of the
//! timestep.

mod attention;
mod resnet;
mod time;

pub(super) use attention::{PixelAttention, pointwise};
pub(super) use resnet::{Kind, Resample, ResnetBlock};
pub(super) use time::{TimeEmbedding, Waves};

use super::nn::{Window, conv2d, group_norm, upsample};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// A convolution with its weights.
#[derive(Debug)]
pub(super) struct Conv {
    kernels: Tensor,
    bias: Tensor,
    window: Window,
}

impl Conv {
    /// Of square kernels.
    pub(super) fn new(
        channels: usize,
        out: usize,
        size: usize,
        window: Window,
        builder: &VarBuilder<'_>,
    ) -> Result<Self> {
        let kernels = builder.get((out, channels, size, size), "weight")?;
        Ok(Self { kernels, bias: builder.get(out, "bias")?, window })
    }

    /// 3 × 3, of images that keep their size.
    pub(super) fn same3(channels: usize, out: usize, builder: &VarBuilder<'_>) -> Result<Self> {
        Self::new(channels, out, 3, Window::SAME3, builder)
    }

    /// 3 × 3, of images that are halved.
    pub(super) fn half3(channels: usize, padding: usize, builder: &VarBuilder<'_>) -> Result<Self> {
        Self::new(channels, channels, 3, Window { stride: (2, 2), padding: (padding, padding) }, builder)
    }

    pub(super) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        conv2d(images, &self.kernels, Some(&self.bias), self.window)
    }

    /// With something more added to each image's channels: (batch, out), or (1, out) for all.
    pub(super) fn forward_with(&self, images: &Tensor, shift: &Tensor) -> Result<Tensor> {
        let shift = shift.broadcast_add(&self.bias)?;
        let shift = if shift.dim(0)? == 1 { shift.squeeze(0)? } else { shift };
        conv2d(images, &self.kernels, Some(&shift), self.window)
    }

    /// Of images that are made smaller: where there are no zeros around them, a row and a column stand at their end.
    pub(super) fn shrink(&self, images: &Tensor) -> Result<Tensor> {
        if self.window.padding.0 > 0 {
            return self.forward(images);
        }
        self.forward(&images.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)
    }

    /// Of images that are made larger first, by nearest neighbours: to twice the size, or a row or column less.
    pub(super) fn grow(&self, images: &Tensor, (rows, columns): (usize, usize)) -> Result<Tensor> {
        self.forward(&upsample(images)?.narrow(2, 0, rows)?.narrow(3, 0, columns)?)
    }
}

/// How a network normalises.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub(super) count: usize,
    pub(super) epsilon: f64,
}

impl Groups {
    pub(super) fn norm(self, channels: usize, builder: &VarBuilder<'_>) -> Result<Norm> {
        Ok(Norm { scale: builder.get(channels, "weight")?, shift: builder.get(channels, "bias")?, groups: self })
    }
}

/// A group normalisation with its weights.
#[derive(Debug)]
pub(super) struct Norm {
    scale: Tensor,
    shift: Tensor,
    groups: Groups,
}

impl Norm {
    pub(super) fn forward(&self, images: &Tensor, then_silu: bool) -> Result<Tensor> {
        let Groups { count, epsilon } = self.groups;
        group_norm(images, &self.scale, &self.shift, count, epsilon, then_silu)
    }
}
