//! diffusers' `UNet2DModel`: the network of DDPM (Ho et al. 2020), by its `config.json`.
//!
//! Names of tensors are diffusers', of attention the new (`to_q`) and the old (`query`). A checkpoint may have
//! channel-wise projections, `adapter_list.i.weight`: convolutions of one pixel without bias behind each down block,
//! the middle block and each up block, in this order; what goes around the inner blocks is not projected (Ma et al.
//! 2025). One that is absent is the identity: where they are folded into other weights, some are left.

mod config;

pub use config::{Config, NAMED, Named};

use super::layers::{Conv, Groups, Norm, PixelAttention, Resample, ResnetBlock, TimeEmbedding};
use super::nn::{Window, conv2d};
use candle_core::{Error, Result, Tensor};
use candle_nn::VarBuilder;
use config::Sampling;

/// What stands before the number of a channel-wise projection in its tensor's name.
pub const PROJECTIONS: &str = "adapter_list";

/// A network that tells the noise in images.
#[derive(Debug)]
pub struct UNet2D {
    center_input: bool,
    conv_in: Conv,
    time: TimeEmbedding,
    down: Vec<DownBlock>,
    middle: Option<MiddleBlock>,
    up: Vec<UpBlock>,
    norm_out: Norm,
    conv_out: Conv,
    /// Behind each block; without one, its output goes on as it is.
    projections: Vec<Option<Tensor>>,
}

/// What makes images smaller behind a block.
#[derive(Debug)]
enum Downsampler {
    Conv(Conv),
    Resnet(ResnetBlock),
}

#[derive(Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    /// One behind each residual block, or none at all.
    attentions: Vec<PixelAttention>,
    downsampler: Option<Downsampler>,
}

#[derive(Debug)]
struct MiddleBlock {
    first: ResnetBlock,
    attention: Option<PixelAttention>,
    second: ResnetBlock,
}

/// What makes images larger behind a block.
#[derive(Debug)]
enum Upsampler {
    Conv(Conv),
    Resnet(ResnetBlock),
}

#[derive(Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<PixelAttention>,
    upsampler: Option<Upsampler>,
}

impl UNet2D {
    /// The network that `config` describes, with the weights of `builder`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn new(config: &Config, builder: &VarBuilder<'_>) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (config.first_channels(), config.last_channels());
        let time = TimeEmbedding::new(config.waves(), config.time_channels(), &builder.pp("time_embedding"))?;
        let mut down = Vec::with_capacity(channels.len());
        let mut before = first;
        for (index, (&out, kind)) in channels.iter().zip(&config.down_block_types).enumerate() {
            let is_last = index + 1 == channels.len();
            down.push(DownBlock::new(
                config,
                *kind,
                before,
                out,
                is_last,
                &builder.pp(format!("down_blocks.{index}")),
            )?);
            before = out;
        }
        let middle = config.has_middle.then(|| MiddleBlock::new(config, last, &builder.pp("mid_block"))).transpose()?;
        let mut up = Vec::with_capacity(channels.len());
        let mut before = last;
        for (index, kind) in config.up_block_types.iter().enumerate() {
            let of = |index: usize| channels[channels.len() - 1 - index.min(channels.len() - 1)];
            let (out, skip) = (of(index), of(index + 1));
            let is_last = index + 1 == channels.len();
            let builder = builder.pp(format!("up_blocks.{index}"));
            up.push(UpBlock::new(config, *kind, [before, skip, out], is_last, &builder)?);
            before = out;
        }
        let of_middle = config.has_middle.then_some(last);
        let blocks = channels.iter().copied().chain(of_middle).chain(channels.iter().rev().copied());
        let projection = |(index, of): (usize, usize)| {
            let name = format!("{PROJECTIONS}.{index}.weight");
            builder.contains_tensor(&name).then(|| builder.get((of, of, 1, 1), &name)).transpose()
        };
        let projections = blocks.enumerate().map(projection).collect::<Result<_>>()?;
        Ok(Self {
            center_input: config.center_input_sample,
            conv_in: Conv::same3(config.in_channels, first, &builder.pp("conv_in"))?,
            time,
            down,
            middle,
            up,
            norm_out: config.groups().norm(first, &builder.pp("conv_norm_out"))?,
            conv_out: Conv::same3(first, config.out_channels, &builder.pp("conv_out"))?,
            projections,
        })
    }

    /// How often it halves the sides of images.
    #[must_use]
    pub fn halvings(&self) -> usize {
        self.down.iter().filter(|block| block.downsampler.is_some()).count()
    }

    /// What the network makes of `samples` (batch, channels, rows, columns) at each one's `timestep` (batch).
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn forward(&self, samples: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        self.forward_seen(samples, timesteps, &mut |_, _| Ok(()))
    }

    /// The names of what [`forward_seen`](Self::forward_seen) shows, in their order.
    #[must_use]
    pub fn blocks(&self) -> Vec<String> {
        let down = (0..self.down.len()).map(|index| format!("down_blocks.{index}"));
        let middle = self.middle.iter().map(|_| "mid_block".to_owned());
        let up = (0..self.up.len()).map(|index| format!("up_blocks.{index}"));
        down.chain(middle).chain(up).chain(["output".to_owned()]).collect()
    }

    /// As [`forward`](Self::forward), and shows what comes out of each block, behind its projection, and of the network, by
    /// the numbers of [`blocks`](Self::blocks).
    ///
    /// # Errors
    /// If the shapes do not agree; those of `see`.
    pub fn forward_seen(
        &self,
        samples: &Tensor,
        timesteps: &Tensor,
        see: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let embedding = self.time.forward(timesteps, samples.dtype())?;
        let mut number = 0;
        let mut project = |sample: Tensor| {
            let sample = match self.projections.get(number) {
                Some(Some(kernels)) => conv2d(&sample, kernels, None, Window::PLAIN)?,
                _ => sample,
            };
            see(number, &sample)?;
            number += 1;
            Ok::<_, Error>(sample)
        };
        let samples = if self.center_input { samples.affine(2.0, -1.0)? } else { samples.clone() };
        let mut sample = self.conv_in.forward(&samples)?;
        let mut skips = vec![sample.clone()];
        for block in &self.down {
            sample = project(block.forward(&sample, &embedding, &mut skips)?)?;
        }
        if let Some(middle) = &self.middle {
            sample = project(middle.forward(&sample, &embedding)?)?;
        }
        for block in &self.up {
            sample = project(block.forward(&sample, &embedding, &mut skips)?)?;
        }
        let answer = self.conv_out.forward(&self.norm_out.forward(&sample, true)?)?;
        see(number, &answer)?;
        Ok(answer)
    }
}

/// Attention behind each of a block's residual blocks, if its kind has it.
fn attentions(
    config: &Config,
    kind: Sampling,
    channels: usize,
    count: usize,
    builder: &VarBuilder<'_>,
) -> Result<Vec<PixelAttention>> {
    if !kind.has_attention {
        return Ok(Vec::new());
    }
    let (groups, head) = (Some(config.groups()), config.head(channels));
    let attention = |j| PixelAttention::new(groups, channels, head, 1.0, &builder.pp(format!("attentions.{j}")));
    (0..count).map(attention).collect()
}

impl DownBlock {
    fn new(
        config: &Config,
        kind: Sampling,
        channels: usize,
        out: usize,
        is_last: bool,
        builder: &VarBuilder<'_>,
    ) -> Result<Self> {
        let count = config.layers_per_block;
        let of = |j: usize| if j == 0 { channels } else { out };
        let resnets = (0..count)
            .map(|j| ResnetBlock::new(config.resnets(), (of(j), out), None, &builder.pp(format!("resnets.{j}"))));
        let resnets = resnets.collect::<Result<_>>()?;
        let at = builder.pp("downsamplers.0");
        let downsampler = if is_last {
            None
        } else if kind.resamples_by_resnet(config.downsample_by_resnet) {
            Some(Downsampler::Resnet(ResnetBlock::new(config.resnets(), (out, out), Some(Resample::Down), &at)?))
        } else {
            Some(Downsampler::Conv(Conv::half3(out, config.downsample_padding, &at.pp("conv"))?))
        };
        Ok(Self { resnets, attentions: attentions(config, kind, out, count, builder)?, downsampler })
    }

    fn forward(&self, sample: &Tensor, embedding: &Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut sample = sample.clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            sample = resnet.forward(&sample, Some(embedding))?;
            if let Some(attention) = self.attentions.get(index) {
                sample = attention.forward(&sample)?;
            }
            skips.push(sample.clone());
        }
        let Some(downsampler) = &self.downsampler else { return Ok(sample) };
        sample = match downsampler {
            Downsampler::Conv(conv) => conv.shrink(&sample)?,
            Downsampler::Resnet(resnet) => resnet.forward(&sample, Some(embedding))?,
        };
        skips.push(sample.clone());
        Ok(sample)
    }
}

impl MiddleBlock {
    fn new(config: &Config, channels: usize, builder: &VarBuilder<'_>) -> Result<Self> {
        let block = |index: usize| {
            let at = builder.pp(format!("resnets.{index}"));
            let resnet = ResnetBlock::new(config.resnets(), (channels, channels), None, &at)?;
            Ok::<_, Error>(resnet.scaled(config.mid_block_scale_factor))
        };
        // diffusers leaves the norm out where the time scales and shifts, unless groups are given for it.
        let count = config.attn_norm_num_groups.or((!config.time_scale_shift).then_some(config.norm_num_groups));
        let groups = count.map(|count| Groups { count, ..config.groups() });
        let (head, divisor) = (config.head(channels), config.mid_block_scale_factor);
        let at = builder.pp("attentions.0");
        let attention = config.add_attention.then(|| PixelAttention::new(groups, channels, head, divisor, &at));
        Ok(Self { first: block(0)?, attention: attention.transpose()?, second: block(1)? })
    }

    fn forward(&self, sample: &Tensor, embedding: &Tensor) -> Result<Tensor> {
        let mut sample = self.first.forward(sample, Some(embedding))?;
        if let Some(attention) = &self.attention {
            sample = attention.forward(&sample)?;
        }
        self.second.forward(&sample, Some(embedding))
    }
}

impl UpBlock {
    /// Of channels from the block before, of the skip connections' last, and out.
    fn new(
        config: &Config,
        kind: Sampling,
        [before, skip, out]: [usize; 3],
        is_last: bool,
        builder: &VarBuilder<'_>,
    ) -> Result<Self> {
        let count = config.layers_per_block + 1;
        let of = |j: usize| (if j == 0 { before } else { out }) + if j + 1 == count { skip } else { out };
        let resnets = (0..count)
            .map(|j| ResnetBlock::new(config.resnets(), (of(j), out), None, &builder.pp(format!("resnets.{j}"))));
        let resnets = resnets.collect::<Result<_>>()?;
        let at = builder.pp("upsamplers.0");
        let upsampler = if is_last {
            None
        } else if kind.resamples_by_resnet(config.upsample_by_resnet) {
            Some(Upsampler::Resnet(ResnetBlock::new(config.resnets(), (out, out), Some(Resample::Up), &at)?))
        } else {
            Some(Upsampler::Conv(Conv::same3(out, out, &at.pp("conv"))?))
        };
        Ok(Self { resnets, attentions: attentions(config, kind, out, count, builder)?, upsampler })
    }

    fn forward(&self, sample: &Tensor, embedding: &Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut sample = sample.clone();
        for (index, resnet) in self.resnets.iter().enumerate() {
            let Some(skip) = skips.pop() else { candle_core::bail!("more up blocks than down blocks") };
            sample = resnet.forward(&Tensor::cat(&[&sample, &skip], 1)?, Some(embedding))?;
            if let Some(attention) = self.attentions.get(index) {
                sample = attention.forward(&sample)?;
            }
        }
        match &self.upsampler {
            Some(Upsampler::Conv(conv)) => {
                let (_, _, rows, columns) = sample.dims4()?;
                conv.grow(&sample, (2 * rows, 2 * columns))
            }
            Some(Upsampler::Resnet(resnet)) => resnet.forward(&sample, Some(embedding)),
            None => Ok(sample),
        }
    }
}
