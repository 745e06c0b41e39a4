//! The denoising network with a text in sight: diffusers' `UNet2DConditionModel` (Rombach et al. 2022,
//! <https://arxiv.org/abs/2112.10752>).
//!
//! Levels of residual blocks go down to a middle and up again, each block up joined with what the same one had on its way down.
//! Behind residual blocks stand transformers: attention over the pixels, attention to the text, and a gated linear unit
//! (Shazeer 2020), each behind a normalisation and added to what went in. candle has this network too, but approximates GELU,
//! rounds timesteps to the type it computes in, and normalises in 32 groups on the way down and up whatever is asked for.

use super::tokens::{attend, pixels, tokens};
use crate::diffusion::layers::{Conv, Groups, Kind, Norm, ResnetBlock, TimeEmbedding, Waves, pointwise};
use crate::diffusion::nn::{Window, conv2d};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm, linear, linear_no_bias};

/// One level of the network.
#[derive(Clone, Debug)]
pub(super) struct Level {
    pub(super) channels: usize,
    /// Heads of attention.
    pub(super) heads: usize,
    /// Layers of each transformer, where there are any.
    pub(super) depth: Option<usize>,
}

/// What a network is made of.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Of what it denoises, and of what it answers.
    pub(super) channels: usize,
    /// Rows and columns of the latents it was trained with.
    pub(super) size: (usize, usize),
    /// Whether latents of 0..1 go in, which it brings to −1..1 by itself.
    pub(super) center_input_sample: bool,
    /// Whether cosines stand before sines.
    pub(super) flip_sin_to_cos: bool,
    /// What half of the embedding's length is less by in its exponents.
    pub(super) freq_shift: f64,
    pub(super) levels: Vec<Level>,
    /// Layers of the middle's transformer.
    pub(super) mid_depth: usize,
    /// Residual blocks of a level on the way down; on the way up there is one more.
    pub(super) layers_per_block: usize,
    /// Zeros around an image that is made smaller; without any, a row and a column of them at its end.
    pub(super) downsample_padding: usize,
    /// What sums in the middle's residual blocks are divided by.
    pub(super) mid_block_scale_factor: f64,
    pub(super) groups: usize,
    pub(super) norm_eps: f64,
    /// Of the texts.
    pub(super) cross_attention_dim: usize,
}

impl Config {
    fn first_channels(&self) -> usize {
        self.levels.first().map_or(0, |level| level.channels)
    }

    fn groups(&self) -> Groups {
        Groups { count: self.groups, epsilon: self.norm_eps }
    }

    fn resnet(&self, channels: usize, out: usize, at: VarBuilder<'_>) -> Result<ResnetBlock> {
        let time = Some(4 * self.first_channels());
        ResnetBlock::new(Kind { groups: self.groups(), time, time_scale_shift: false }, (channels, out), None, &at)
    }
}

/// A layer of the tokens (batch, n, channels) of each image alone: candle multiplies those of a batch together, and then their
/// bits depend on how many there are.
fn each(layer: &Linear, tokens: &Tensor) -> Result<Tensor> {
    let images = (0..tokens.dim(0)?).map(|image| layer.forward(&tokens.narrow(0, image, 1)?));
    Tensor::cat(&images.collect::<Result<Vec<_>>>()?, 0)
}

/// Attention to the tokens themselves, or to a text.
#[derive(Debug)]
struct Attention {
    queries: Linear,
    keys: Linear,
    values: Linear,
    out: Linear,
    heads: usize,
}

impl Attention {
    fn new(channels: usize, of: usize, heads: usize, at: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            queries: linear_no_bias(channels, channels, at.pp("to_q"))?,
            keys: linear_no_bias(of, channels, at.pp("to_k"))?,
            values: linear_no_bias(of, channels, at.pp("to_v"))?,
            out: linear(channels, channels, at.pp("to_out.0"))?,
            heads,
        })
    }

    /// Of `tokens` (batch, n, channels) to `of` (batch, m, …).
    fn forward(&self, tokens: &Tensor, of: &Tensor) -> Result<Tensor> {
        let queries = each(&self.queries, tokens)?;
        each(&self.out, &attend(&queries, &each(&self.keys, of)?, &each(&self.values, of)?, self.heads)?)
    }
}

/// One layer of a transformer.
#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    to_itself: Attention,
    norm2: LayerNorm,
    to_text: Attention,
    norm3: LayerNorm,
    gated: Linear,
    out: Linear,
}

impl Layer {
    fn new(config: &Config, channels: usize, heads: usize, at: VarBuilder<'_>) -> Result<Self> {
        const EPSILON: f64 = 1e-5;
        const WIDER: usize = 4;
        let inner = WIDER * channels;
        Ok(Self {
            norm1: layer_norm(channels, EPSILON, at.pp("norm1"))?,
            to_itself: Attention::new(channels, channels, heads, at.pp("attn1"))?,
            norm2: layer_norm(channels, EPSILON, at.pp("norm2"))?,
            to_text: Attention::new(channels, config.cross_attention_dim, heads, at.pp("attn2"))?,
            norm3: layer_norm(channels, EPSILON, at.pp("norm3"))?,
            gated: linear(channels, 2 * inner, at.pp("ff.net.0.proj"))?,
            out: linear(inner, channels, at.pp("ff.net.2"))?,
        })
    }

    fn forward(&self, tokens: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let normal = self.norm1.forward(tokens)?;
        let tokens = (tokens + self.to_itself.forward(&normal, &normal)?)?;
        let tokens = (&tokens + self.to_text.forward(&self.norm2.forward(&tokens)?, texts)?)?;
        let gated = each(&self.gated, &self.norm3.forward(&tokens)?)?.chunk(2, D::Minus1)?;
        let [value, gate] = gated.as_slice() else { candle_core::bail!("a gate that is not half of its layer") };
        &tokens + each(&self.out, &(value * gate.gelu_erf()?)?)?
    }
}

/// A transformer over the pixels, added to what went in.
#[derive(Debug)]
struct Transformer {
    norm: Norm,
    enter: (Tensor, Tensor),
    layers: Vec<Layer>,
    leave: (Tensor, Tensor),
}

impl Transformer {
    fn new(config: &Config, channels: usize, heads: usize, depth: usize, at: VarBuilder<'_>) -> Result<Self> {
        let layer = |i: usize| Layer::new(config, channels, heads, at.pp(format!("transformer_blocks.{i}")));
        Ok(Self {
            norm: Groups { count: config.groups, epsilon: 1e-6 }.norm(channels, &at.pp("norm"))?,
            enter: pointwise(channels, &at.pp("proj_in"))?,
            layers: (0..depth).map(layer).collect::<Result<_>>()?,
            leave: pointwise(channels, &at.pp("proj_out"))?,
        })
    }

    fn forward(&self, sample: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let mix =
            |images: &Tensor, (kernels, bias): &(Tensor, Tensor)| conv2d(images, kernels, Some(bias), Window::PLAIN);
        let mut tokens = tokens(&mix(&self.norm.forward(sample, false)?, &self.enter)?)?;
        for layer in &self.layers {
            tokens = layer.forward(&tokens, texts)?;
        }
        sample + mix(&pixels(&tokens, sample)?, &self.leave)?
    }
}

/// Residual blocks with their transformers, and a change of size behind them.
#[derive(Debug)]
struct Block {
    resnets: Vec<ResnetBlock>,
    transformers: Vec<Transformer>,
    resample: Option<Conv>,
}

impl Block {
    /// Of residual blocks that begin with these channels.
    fn new(
        config: &Config,
        level: &Level,
        inputs: &[usize],
        resample: Option<Conv>,
        at: &VarBuilder<'_>,
    ) -> Result<Self> {
        let resnet = |(j, &input): (usize, &usize)| config.resnet(input, level.channels, at.pp(format!("resnets.{j}")));
        let transformer = |j: usize, depth: usize| {
            Transformer::new(config, level.channels, level.heads, depth, at.pp(format!("attentions.{j}")))
        };
        let transformers = level.depth.into_iter().flat_map(|depth| (0..inputs.len()).map(move |j| (j, depth)));
        Ok(Self {
            resnets: inputs.iter().enumerate().map(resnet).collect::<Result<_>>()?,
            transformers: transformers.map(|(j, depth)| transformer(j, depth)).collect::<Result<_>>()?,
            resample,
        })
    }

    /// One residual block and its transformer.
    fn step(&self, j: usize, resnet: &ResnetBlock, sample: &Tensor, time: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let sample = resnet.forward(sample, Some(time))?;
        match self.transformers.get(j) {
            Some(transformer) => transformer.forward(&sample, texts),
            None => Ok(sample),
        }
    }
}

/// The network.
#[derive(Debug)]
pub(super) struct Unet {
    config: Config,
    dtype: DType,
    time: TimeEmbedding,
    enter: Conv,
    down: Vec<Block>,
    middle: (ResnetBlock, Transformer, ResnetBlock),
    up: Vec<Block>,
    norm: Norm,
    leave: Conv,
}

impl Unet {
    pub(super) fn new(config: Config, at: &VarBuilder<'_>) -> Result<Self> {
        let (first, layers) = (config.first_channels(), config.layers_per_block);
        let Some(last) = config.levels.last().cloned() else { candle_core::bail!("a network without levels") };
        // Channels of the sample, and of what each block up is joined with.
        let (mut channels, mut skips) = (first, vec![first]);
        let mut down = Vec::new();
        for (i, level) in config.levels.iter().enumerate() {
            let at = at.pp(format!("down_blocks.{i}"));
            let inputs: Vec<usize> = (0..layers).map(|j| if j == 0 { channels } else { level.channels }).collect();
            channels = level.channels;
            skips.extend(vec![channels; layers]);
            let shrink = (i + 1 < config.levels.len())
                .then(|| Conv::half3(channels, config.downsample_padding, &at.pp("downsamplers.0.conv")))
                .transpose()?;
            skips.extend(shrink.as_ref().map(|_| channels));
            down.push(Block::new(&config, level, &inputs, shrink, &at)?);
        }

        let mid = at.pp("mid_block");
        let divisor = config.mid_block_scale_factor;
        let middle = (
            config.resnet(channels, channels, mid.pp("resnets.0"))?.scaled(divisor),
            Transformer::new(&config, channels, last.heads, config.mid_depth, mid.pp("attentions.0"))?,
            config.resnet(channels, channels, mid.pp("resnets.1"))?.scaled(divisor),
        );

        let mut up = Vec::new();
        for (i, level) in config.levels.iter().rev().enumerate() {
            let at = at.pp(format!("up_blocks.{i}"));
            let mut inputs = Vec::new();
            for _ in 0..=layers {
                inputs.push(channels + skips.pop().unwrap_or(0));
                channels = level.channels;
            }
            let grow = (i + 1 < config.levels.len())
                .then(|| Conv::same3(channels, channels, &at.pp("upsamplers.0.conv")))
                .transpose()?;
            up.push(Block::new(&config, level, &inputs, grow, &at)?);
        }

        let (flip_sin_to_cos, freq_shift) = (config.flip_sin_to_cos, config.freq_shift);
        let waves = Waves { channels: first, flip_sin_to_cos, freq_shift };
        Ok(Self {
            dtype: at.dtype(),
            time: TimeEmbedding::new(waves, 4 * first, &at.pp("time_embedding"))?,
            enter: Conv::same3(config.channels, first, &at.pp("conv_in"))?,
            down,
            middle,
            up,
            norm: config.groups().norm(first, &at.pp("conv_norm_out"))?,
            leave: Conv::same3(first, config.channels, &at.pp("conv_out"))?,
            config,
        })
    }

    /// The answer to latents (batch, channels, rows, columns), in their own type, at a timestep with texts (batch, places,
    /// width) in sight.
    pub(super) fn forward(&self, latents: &Tensor, timestep: f32, texts: &Tensor) -> Result<Tensor> {
        let texts = &texts.to_dtype(self.dtype)?;
        let time = &self.time.forward(&Tensor::new(&[timestep], latents.device())?, self.dtype)?;
        let mut sample = latents.to_dtype(self.dtype)?;
        if self.config.center_input_sample {
            sample = sample.affine(2.0, -1.0)?;
        }
        sample = self.enter.forward(&sample)?;
        let mut skips = vec![sample.clone()];
        for block in &self.down {
            for (j, resnet) in block.resnets.iter().enumerate() {
                sample = block.step(j, resnet, &sample, time, texts)?;
                skips.push(sample.clone());
            }
            if let Some(resample) = &block.resample {
                sample = resample.shrink(&sample)?;
                skips.push(sample.clone());
            }
        }
        let (before, transformer, behind) = &self.middle;
        sample = before.forward(&sample, Some(time))?;
        sample = behind.forward(&transformer.forward(&sample, texts)?, Some(time))?;
        for block in &self.up {
            for (j, resnet) in block.resnets.iter().enumerate() {
                let Some(skip) = skips.pop() else { candle_core::bail!("more blocks up than down") };
                sample = block.step(j, resnet, &Tensor::cat(&[&sample, &skip], 1)?, time, texts)?;
            }
            if let (Some(resample), Some(like)) = (&block.resample, skips.last()) {
                // Twice as large, or one less where what it is joined with was odd.
                let (_, _, rows, columns) = like.dims4()?;
                sample = resample.grow(&sample, (rows, columns))?;
            }
        }
        self.leave.forward(&self.norm.forward(&sample, true)?)?.to_dtype(latents.dtype())
    }
}
