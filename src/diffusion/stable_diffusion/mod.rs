//! Stable Diffusion 1.x: images from texts (Rombach et al. 2022, <https://arxiv.org/abs/2112.10752>).
//!
//! A pipeline's folder in diffusers' layout has a text encoder, a network that denoises latents with the text in sight, and
//! an autoencoder that makes images of latents. With a guidance g above 1 (Ho and Salimans 2022,
//! <https://arxiv.org/abs/2207.12598>) each step asks the network twice, and goes by `o(negative) + g·(o(prompt) − o(negative))`.
//! The text encoder is candle's. The safety checker is not run.
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use ckptmerge::Checkpoint;
//! use ckptmerge::diffusion::stable_diffusion::{Prompt, StableDiffusion};
//! use ckptmerge::diffusion::{Noise, Sampling, sample, to_images};
//! use ckptmerge::stream::Control;
//!
//! let pipeline = StableDiffusion::open(Checkpoint::open("stable-diffusion-v1-5")?, DType::F32, &Device::Cpu)?;
//! let model = pipeline.prompted(&Prompt::new("a photograph of an astronaut riding a horse"))?;
//! let config = pipeline.scheduler_config()?;
//! let sampling = Sampling {
//!     scheduler: &|| config.build(None, 50),
//!     train_timesteps: config.train_timesteps(),
//!     noise: Noise::new(0),
//!     start: None,
//!     images: 0..4,
//!     size: model.latent_size(),
//!     batch: 1,
//!     device: &Device::Cpu,
//! };
//! sample(&[&model], &sampling, Control::none(), |latents| {
//!     let images = to_images(&pipeline.decode(&latents)?)?;
//!     ckptmerge::images::write("astronaut.png".as_ref(), &images, 0)
//! })?;
//! # Ok::<(), ckptmerge::Error>(())
//! ```

mod config;
mod decoder;
mod tokenizer;
mod tokens;
mod unet;

pub use tokenizer::{ClipTokenizer, Tokens};

use super::schedulers::Config;
use super::{Denoiser, Model, Weights};
use crate::checkpoint::{Checkpoint, read_json};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::clip::text_model::ClipTextTransformer;
use decoder::Decoder;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unet::Unet;

/// More pixels in a row or column than fit in any memory with what attention remembers of them.
const LARGEST: usize = 1 << 14;

/// What images are asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// What they should show.
    pub text: String,
    /// What they should not show; by default nothing is said.
    pub negative: String,
    /// How far to go from the negative text to the other: 1 and less do not look at the negative one.
    pub guidance: f64,
    /// Rows of an image; those that the model was trained with by default.
    pub height: Option<usize>,
    /// Pixels of a row; as `height`.
    pub width: Option<usize>,
}

impl Prompt {
    /// A text, with the usual guidance of 7.5.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), negative: String::new(), guidance: 7.5, height: None, width: None }
    }
}

/// A pipeline that is ready to run.
#[derive(Debug)]
pub struct StableDiffusion {
    root: PathBuf,
    name: String,
    tokenizer: ClipTokenizer,
    text_encoder: ClipTextTransformer,
    unet: Unet,
    decoder: Decoder,
    /// Of latents.
    channels: usize,
    /// Pixels to a latent, in a row and in a column.
    reduction: usize,
    /// Rows and columns of the latents that the model was trained with.
    latent_size: (usize, usize),
    device: Device,
}

impl StableDiffusion {
    /// Builds the networks of a pipeline's folder, which compute in `dtype`; samples are F32 whatever it is.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not one of Stable Diffusion 1.x, or if a value in its configurations, which is named, is not
    /// supported; [`Error::Io`] and [`Error::Network`].
    pub fn open(checkpoint: impl Into<Arc<Checkpoint>>, dtype: DType, device: &Device) -> Result<Self> {
        let checkpoint = checkpoint.into();
        let root = checkpoint.layout().root.clone();
        check_index(&root)?;
        let part = |name: &str| {
            let found = checkpoint.layout().parts.iter().find(|part| part.folder == name);
            found.map(|part| (Weights::new(checkpoint.clone(), &part.prefix()), root.join(name))).ok_or_else(|| {
                let message = format!(
                    "has no weights in a folder `{name}`, as pipelines of diffusers have; `convert --rename sd-to-diffusers` makes \
                     them of a single file"
                );
                Error::model(&root, message)
            })
        };
        let (unet_weights, unet_folder) = part("unet")?;
        let (vae_weights, vae_folder) = part("vae")?;
        let (text_weights, text_folder) = part("text_encoder")?;
        let (unet, vae, text) =
            (config::unet(&unet_folder)?, config::decoder(&vae_folder)?, config::text(&text_folder)?);
        let tokenizer = ClipTokenizer::open(&root.join("tokenizer"))?;

        let disagree = |message: String| Err(Error::model(&root, message));
        if tokenizer.vocabulary > text.vocab_size as u64 {
            let (tokens, rows) = (tokenizer.vocabulary, text.vocab_size);
            return disagree(format!("the tokenizer has {tokens} tokens, but the text encoder {rows} (`vocab_size`)"));
        }
        if !(3..=text.max_position_embeddings).contains(&tokenizer.places()) {
            let (places, most) = (tokenizer.places(), text.max_position_embeddings);
            return disagree(format!(
                "the tokenizer has {places} places (`model_max_length`), but the text encoder {most} (`max_position_embeddings`)"
            ));
        }
        if unet.cross_attention_dim != text.embed_dim {
            let (wanted, given) = (unet.cross_attention_dim, text.embed_dim);
            return disagree(format!(
                "unet/config.json has `cross_attention_dim` {wanted}, but text_encoder/config.json `hidden_size` {given}"
            ));
        }
        if unet.channels != vae.latent_channels {
            let (wanted, given) = (unet.channels, vae.latent_channels);
            return disagree(format!(
                "unet/config.json has `in_channels` {wanted}, but vae/config.json `latent_channels` {given}"
            ));
        }

        let builder = |weights: &Weights| weights.builder(dtype, device);
        let reduction = 1 << (vae.block_out_channels.len() - 1);
        let text_builder = builder(&text_weights);
        // Newer files leave out the name of the only module.
        let is_nested = text_weights.names().any(|name| name.starts_with("text_model."));
        let text_builder = if is_nested { text_builder.pp("text_model") } else { text_builder };
        let pipeline = Self {
            text_encoder: ClipTextTransformer::new(text_builder, &text)?,
            channels: unet.channels,
            latent_size: unet.size,
            unet: Unet::new(unet, &builder(&unet_weights))?,
            decoder: Decoder::new(vae, &builder(&vae_weights))?,
            root: root.clone(),
            name: checkpoint.name().to_owned(),
            tokenizer,
            reduction,
            device: device.clone(),
        };
        text_weights.check_used(|name| name.ends_with("embeddings.position_ids"))?;
        unet_weights.check_used(|_| false)?;
        vae_weights.check_used(|name| name.starts_with("encoder.") || name.starts_with("quant_conv."))?;
        Ok(pipeline)
    }

    /// The pipeline's own scheduler, as diffusers runs it: with `steps_offset` 1 and without `clip_sample`, whatever old files
    /// say.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn scheduler_config(&self) -> Result<Config> {
        let path = self.root.join("scheduler").join("scheduler_config.json");
        Ok(Config::read(&path)?.with("steps_offset", 1).with("clip_sample", false))
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &ClipTokenizer {
        &self.tokenizer
    }

    /// Rows and columns of images, as asked for or as the model was trained.
    ///
    /// # Errors
    /// [`Error::Recipe`] if they are not multiples of the pixels to a latent, or too large.
    pub fn size(&self, prompt: &Prompt) -> Result<(usize, usize)> {
        let of = |asked: Option<usize>, latents: usize| {
            let pixels = asked.unwrap_or(latents * self.reduction);
            let is_possible = (1..=LARGEST).contains(&pixels) && pixels.is_multiple_of(self.reduction);
            is_possible.then_some(pixels).ok_or_else(|| {
                Error::Recipe(format!(
                    "images of {pixels} pixels cannot be made: height and width are multiples of {}, up to {LARGEST}",
                    self.reduction
                ))
            })
        };
        Ok((of(prompt.height, self.latent_size.0)?, of(prompt.width, self.latent_size.1)?))
    }

    /// What should be said of a prompt before it is used: that the end of a text has no place.
    ///
    /// # Errors
    /// As [`ClipTokenizer::tokens`].
    pub fn remarks(&self, prompt: &Prompt) -> Result<Vec<String>> {
        let places = self.tokenizer.places();
        let mut remarks = Vec::new();
        for (what, text) in [("prompt", &prompt.text), ("negative prompt", &prompt.negative)] {
            if let Some(left_out) = self.tokenizer.tokens(text)?.left_out {
                remarks.push(format!(
                    "the {what} is longer than the model's {places} places; left out: `{}`",
                    shortened(&left_out)
                ));
            }
        }
        Ok(remarks)
    }

    /// What the text encoder makes of tokens: (1, places, width).
    ///
    /// # Errors
    /// candle's.
    pub fn encode(&self, tokens: &Tokens) -> Result<Tensor> {
        let ids = Tensor::new(tokens.ids.as_slice(), &self.device)?.unsqueeze(0)?;
        Ok(self.text_encoder.forward_with_mask(&ids, usize::MAX)?.to_dtype(DType::F32)?)
    }

    /// What the network answers to latents (n, channels, rows, columns) at a timestep, with texts (n, places, width) in sight.
    ///
    /// # Errors
    /// candle's.
    pub fn denoise(&self, latents: &Tensor, timestep: f32, texts: &Tensor) -> Result<Tensor> {
        Ok(self.unet.forward(latents, timestep, texts)?)
    }

    /// The images of latents: (n, channels, height, width), from −1 to 1 and a little beyond.
    ///
    /// # Errors
    /// candle's.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(self.decoder.forward(latents)?)
    }

    /// The model with a text to go by.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the guidance is no number, or the size cannot be made; those of the tokenizer, and candle's.
    pub fn prompted(&self, prompt: &Prompt) -> Result<Prompted<'_>> {
        if !prompt.guidance.is_finite() {
            return Err(Error::Recipe(format!("a guidance of {} is no number to go by", prompt.guidance)));
        }
        let embed = |text: &str| self.encode(&self.tokenizer.tokens(text)?);
        let text = embed(&prompt.text)?;
        let negative = if prompt.guidance > 1.0 { Some(embed(&prompt.negative)?) } else { None };
        let size = self.size(prompt)?;
        let size = (size.0 / self.reduction, size.1 / self.reduction);
        Ok(Prompted { pipeline: self, text, negative, guidance: prompt.guidance, size })
    }
}

/// A pipeline and what its images should show.
pub struct Prompted<'a> {
    pipeline: &'a StableDiffusion,
    /// (1, places, width), as is the other.
    text: Tensor,
    /// With guidance only.
    negative: Option<Tensor>,
    guidance: f64,
    size: (usize, usize),
}

impl Prompted<'_> {
    /// Rows and columns of latents.
    #[must_use]
    pub fn latent_size(&self) -> (usize, usize) {
        self.size
    }
}

impl Model for Prompted<'_> {
    fn name(&self) -> &str {
        &self.pipeline.name
    }

    fn channels(&self) -> usize {
        self.pipeline.channels
    }

    /// It is in memory already.
    fn bytes(&self) -> u64 {
        0
    }

    fn network(&self, _: &Device) -> Result<Box<dyn Denoiser + '_>> {
        Ok(Box::new(self))
    }
}

impl Denoiser for &Prompted<'_> {
    fn denoise(&self, latents: &Tensor, timestep: f32) -> candle_core::Result<Tensor> {
        let count = latents.dim(0)?;
        let of_all = |text: &Tensor| text.repeat((count, 1, 1));
        let Some(negative) = &self.negative else {
            return self.pipeline.unet.forward(latents, timestep, &of_all(&self.text)?);
        };
        let texts = Tensor::cat(&[of_all(negative)?, of_all(&self.text)?], 0)?;
        let answers = self.pipeline.unet.forward(&Tensor::cat(&[latents, latents], 0)?, timestep, &texts)?;
        let (negative, positive) = (answers.narrow(0, 0, count)?, answers.narrow(0, count, count)?);
        &negative + ((positive - &negative)? * self.guidance)?
    }
}

/// The beginning of a text that may be long.
fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    let beginning: String = text.chars().take(MOST).collect();
    if beginning.len() < text.len() { beginning + "…" } else { beginning }
}

/// That a folder's `model_index.json`, where there is one, is that of such a pipeline.
fn check_index(root: &Path) -> Result<()> {
    let path = root.join("model_index.json");
    if !path.is_file() {
        return Ok(());
    }
    match &read_json(&path)?["_class_name"] {
        Value::String(class) if class == "StableDiffusionPipeline" => Ok(()),
        other => Err(Error::model(
            &path,
            format!("`_class_name` is {other}; only StableDiffusionPipeline makes images of texts here"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Shape;
    use candle_nn::Init;
    use candle_nn::var_builder::{SimpleBackend, VarBuilder};
    use sha2::{Digest, Sha256};
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    type Asked = Arc<Mutex<BTreeMap<String, Vec<usize>>>>;

    /// Tensors of any shape, which take no memory, and a list of those that were asked for.
    struct Listed(Asked);

    impl SimpleBackend for Listed {
        fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
            // Kernels of one pixel stand where layers may be linear too.
            if name.contains(".proj_") && name.ends_with(".weight") && shape.rank() == 2 {
                candle_core::bail!("{name} is a kernel");
            }
            self.0.lock().expect("no test failed").insert(name.to_owned(), shape.dims().to_vec());
            Tensor::zeros(1, dtype, device)?.broadcast_as(shape)
        }

        fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
            candle_core::bail!("{name} has no shape")
        }

        fn contains_tensor(&self, name: &str) -> bool {
            !name.ends_with("query.weight")
        }
    }

    /// The networks of the published configurations ask for exactly the tensors that diffusers' have.
    #[test]
    fn published_networks_have_the_tensors_of_diffusers() -> Result<(), Box<dyn std::error::Error>> {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/stable_diffusion/published.json");
        let published: Value = serde_json::from_str(&std::fs::read_to_string(fixture)?)?;
        for part in ["unet", "vae", "text_encoder"] {
            let folder = tempfile::tempdir()?;
            std::fs::write(folder.path().join("config.json"), published[part]["config"].to_string())?;
            let asked = Asked::default();
            let builder = VarBuilder::from_backend(Box::new(Listed(asked.clone())), DType::F32, Device::Cpu);
            match part {
                "unet" => drop(Unet::new(config::unet(folder.path())?, &builder)?),
                "vae" => drop(Decoder::new(config::decoder(folder.path())?, &builder)?),
                _ => drop(ClipTextTransformer::new(builder, &config::text(folder.path())?)?),
            }
            let asked = asked.lock().expect("no test failed");
            let numbers: usize = asked.values().map(|shape| shape.iter().product::<usize>()).sum();
            let lines: String = asked.iter().map(|(name, shape)| format!("{name} {shape:?}\n")).collect();
            let digest: String = Sha256::digest(lines.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(Value::from(asked.len()), published[part]["tensors"], "{part}");
            assert_eq!(Value::from(numbers), published[part]["numbers"], "{part}");
            assert_eq!(Value::from(digest), published[part]["sha256"], "{part}: {lines}");
        }
        Ok(())
    }
}
