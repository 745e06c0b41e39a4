//! A residual block: two convolutions behind normalisations, with the timestep added between them.

use super::{Conv, Groups, Norm};
use crate::diffusion::nn::{Window, linear, upsample};
use candle_core::{Error, Result, Tensor};
use candle_nn::VarBuilder;

/// Whether a residual block changes the size of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::diffusion) enum Resample {
    /// To half, by means of two by two pixels.
    Down,
    /// To twice, by nearest neighbours.
    Up,
}

impl Resample {
    fn apply(self, images: &Tensor) -> Result<Tensor> {
        match self {
            Self::Down => images.avg_pool2d(2),
            Self::Up => upsample(images),
        }
    }
}

/// What all residual blocks of a network have in common.
#[derive(Clone, Copy, Debug)]
pub(in crate::diffusion) struct Kind {
    pub(in crate::diffusion) groups: Groups,
    /// Channels of the timestep's embedding, if blocks are told of it.
    pub(in crate::diffusion) time: Option<usize>,
    /// Whether the timestep scales and shifts behind the second normalisation, instead of being added before it.
    pub(in crate::diffusion) time_scale_shift: bool,
}

#[derive(Debug)]
pub(in crate::diffusion) struct ResnetBlock {
    norm1: Norm,
    conv1: Conv,
    time: Option<(Tensor, Tensor)>,
    time_scale_shift: bool,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<Conv>,
    resample: Option<Resample>,
    divisor: f64,
}

impl ResnetBlock {
    /// From some channels to others.
    pub(in crate::diffusion) fn new(
        kind: Kind,
        (channels, out): (usize, usize),
        resample: Option<Resample>,
        builder: &VarBuilder<'_>,
    ) -> Result<Self> {
        let rows = if kind.time_scale_shift { 2 * out } else { out };
        let at = builder.pp("time_emb_proj");
        let time = kind.time.map(|time| Ok::<_, Error>((at.get((rows, time), "weight")?, at.get(rows, "bias")?)));
        let shortcut = builder.pp("conv_shortcut");
        Ok(Self {
            norm1: kind.groups.norm(channels, &builder.pp("norm1"))?,
            conv1: Conv::same3(channels, out, &builder.pp("conv1"))?,
            time: time.transpose()?,
            time_scale_shift: kind.time_scale_shift,
            norm2: kind.groups.norm(out, &builder.pp("norm2"))?,
            conv2: Conv::same3(out, out, &builder.pp("conv2"))?,
            shortcut: (channels != out).then(|| Conv::new(channels, out, 1, Window::PLAIN, &shortcut)).transpose()?,
            resample,
            divisor: 1.0,
        })
    }

    /// The same block, whose sum is divided.
    pub(in crate::diffusion) fn scaled(self, divisor: f64) -> Self {
        Self { divisor, ..self }
    }

    /// With the embedding of the timestep behind SiLU: (batch, channels), or (1, channels) for all.
    pub(in crate::diffusion) fn forward(&self, sample: &Tensor, embedding: Option<&Tensor>) -> Result<Tensor> {
        let mut inner = self.norm1.forward(sample, true)?;
        let mut sample = sample.clone();
        if let Some(resample) = self.resample {
            (inner, sample) = (resample.apply(&inner)?, resample.apply(&sample)?);
        }
        let time = match (&self.time, embedding) {
            (Some((weight, bias)), Some(embedding)) => Some(linear(embedding, weight, Some(bias))?),
            _ => None,
        };
        inner = match time {
            Some(time) if self.time_scale_shift => {
                let normal = self.norm2.forward(&self.conv1.forward(&inner)?, false)?;
                let out = normal.dim(1)?;
                let time = time.unsqueeze(2)?.unsqueeze(3)?;
                let (scale, shift) = (time.narrow(1, 0, out)?, time.narrow(1, out, out)?);
                normal.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(&shift)?.silu()?
            }
            Some(time) => self.norm2.forward(&self.conv1.forward_with(&inner, &time)?, true)?,
            None => self.norm2.forward(&self.conv1.forward(&inner)?, true)?,
        };
        inner = self.conv2.forward(&inner)?;
        let sum = match &self.shortcut {
            Some(shortcut) => (shortcut.forward(&sample)? + inner)?,
            None => (sample + inner)?,
        };
        if self.divisor == 1.0 { Ok(sum) } else { sum / self.divisor }
    }
}
