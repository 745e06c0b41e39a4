//! From latents to images: the decoder of diffusers' `AutoencoderKL` (Rombach et al. 2022,
//! <https://arxiv.org/abs/2112.10752>).
//!
//! Residual blocks, with attention over all pixels between the first two; each level but the last ends twice as large.
//! The encoder is not read: nothing here makes latents of images.

use crate::diffusion::layers::{Conv, Groups, Kind, Norm, PixelAttention, ResnetBlock};
use crate::diffusion::nn::Window;
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

/// What a decoder is made of.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Of images.
    pub(super) channels: usize,
    pub(super) latent_channels: usize,
    /// By what latents are multiplied where they are denoised.
    pub(super) scaling_factor: f64,
    /// Of each level, the largest images first.
    pub(super) block_out_channels: Vec<usize>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub(super) layers_per_block: usize,
    pub(super) groups: usize,
    /// Whether latents are mixed first.
    pub(super) use_post_quant_conv: bool,
}

/// The decoder.
#[derive(Debug)]
pub(super) struct Decoder {
    config: Config,
    dtype: DType,
    mix: Option<Conv>,
    enter: Conv,
    middle: (ResnetBlock, PixelAttention, ResnetBlock),
    /// Residual blocks, and what stands behind twice the size.
    levels: Vec<(Vec<ResnetBlock>, Option<Conv>)>,
    norm: Norm,
    leave: Conv,
}

impl Decoder {
    pub(super) fn new(config: Config, root: &VarBuilder<'_>) -> Result<Self> {
        let groups = Groups { count: config.groups, epsilon: 1e-6 };
        let (latent, at) = (config.latent_channels, root.pp("decoder"));
        let (Some(&first), Some(&last)) = (config.block_out_channels.first(), config.block_out_channels.last()) else {
            candle_core::bail!("a decoder without levels");
        };
        let kind = Kind { groups, time: None, time_scale_shift: false };
        let resnet = |channels, out, at| ResnetBlock::new(kind, (channels, out), None, &at);
        let mid = at.pp("mid_block");
        let middle = (
            resnet(last, last, mid.pp("resnets.0"))?,
            PixelAttention::new(Some(groups), last, last, 1.0, &mid.pp("attentions.0"))?,
            resnet(last, last, mid.pp("resnets.1"))?,
        );
        let (mut channels, mut levels) = (last, Vec::new());
        for (i, &out) in config.block_out_channels.iter().rev().enumerate() {
            let at = at.pp(format!("up_blocks.{i}"));
            let mut resnets = Vec::new();
            for j in 0..=config.layers_per_block {
                resnets.push(resnet(channels, out, at.pp(format!("resnets.{j}")))?);
                channels = out;
            }
            let grows = i + 1 < config.block_out_channels.len();
            let conv = grows.then(|| Conv::same3(channels, channels, &at.pp("upsamplers.0.conv"))).transpose()?;
            levels.push((resnets, conv));
        }
        let mix = config
            .use_post_quant_conv
            .then(|| Conv::new(latent, latent, 1, Window::PLAIN, &root.pp("post_quant_conv")));
        Ok(Self {
            dtype: root.dtype(),
            mix: mix.transpose()?,
            enter: Conv::same3(latent, last, &at.pp("conv_in"))?,
            middle,
            levels,
            norm: groups.norm(first, &at.pp("conv_norm_out"))?,
            leave: Conv::same3(first, config.channels, &at.pp("conv_out"))?,
            config,
        })
    }

    /// Images of latents as they are denoised: (batch, channels, rows, columns), in the latents' type.
    pub(super) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut images = latents.affine(1.0 / self.config.scaling_factor, 0.0)?.to_dtype(self.dtype)?;
        if let Some(mix) = &self.mix {
            images = mix.forward(&images)?;
        }
        let (before, attention, behind) = &self.middle;
        images = before.forward(&self.enter.forward(&images)?, None)?;
        images = behind.forward(&attention.forward(&images)?, None)?;
        for (resnets, conv) in &self.levels {
            for resnet in resnets {
                images = resnet.forward(&images, None)?;
            }
            if let Some(conv) = conv {
                let (_, _, rows, columns) = images.dims4()?;
                images = conv.grow(&images, (2 * rows, 2 * columns))?;
            }
        }
        self.leave.forward(&self.norm.forward(&images, true)?)?.to_dtype(latents.dtype())
    }
}
