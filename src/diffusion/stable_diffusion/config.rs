//! The configurations of a pipeline's parts.
//!
//! A value that the networks cannot represent is an error that names the file and the key, and so is a key that is not
//! known here: it could change the network.

use super::{decoder, unet};
use crate::checkpoint::read_json;
use crate::error::{Error, Result};
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// More of anything than a network of this kind has; keeps sums and products of what files say in bounds.
const MOST: usize = 1 << 20;

/// A `config.json` that is read key by key.
struct Keys {
    path: PathBuf,
    values: Map<String, Value>,
    read: RefCell<BTreeSet<&'static str>>,
}

impl Keys {
    /// The file of a class.
    fn open(folder: &Path, class: &str) -> Result<Self> {
        let path = folder.join("config.json");
        let Value::Object(values) = read_json(&path)? else {
            return Err(Error::model(&path, "is not a configuration, which is a JSON object"));
        };
        let keys = Self { path, values, read: RefCell::default() };
        match keys.values.get("_class_name").or_else(|| keys.values.get("architectures").map(|list| &list[0])) {
            None => Ok(keys),
            Some(found) if found == class => Ok(keys),
            Some(found) => Err(keys.error(&format!("is of {found}; Stable Diffusion 1.x has a {class} here"))),
        }
    }

    fn error(&self, message: &str) -> Error {
        Error::model(&self.path, message)
    }

    fn unfit(&self, key: &str, what: &str) -> Error {
        let value = self.values.get(key).map_or_else(|| "left out".to_owned(), Value::to_string);
        self.error(&format!("`{key}` is {value}; {what}"))
    }

    /// What is said of a key; `null` too.
    fn said(&self, key: &'static str) -> Option<&Value> {
        self.read.borrow_mut().insert(key);
        self.values.get(key)
    }

    fn get(&self, key: &'static str) -> Option<&Value> {
        self.said(key).filter(|value| !value.is_null())
    }

    fn number(&self, key: &'static str, default: f64) -> Result<f64> {
        let read = |value: &Value| value.as_f64().ok_or_else(|| self.unfit(key, "it is a number"));
        self.said(key).map_or(Ok(default), read)
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.unfit(key, "it is true or false"));
        self.said(key).map_or(Ok(default), read)
    }

    fn size(value: &Value) -> Option<usize> {
        value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MOST).contains(n))
    }

    /// A whole number of 1 or more.
    fn count(&self, key: &'static str, default: usize) -> Result<usize> {
        let read =
            |value: &Value| Self::size(value).ok_or_else(|| self.unfit(key, "it is a whole number of 1 or more"));
        self.said(key).map_or(Ok(default), read)
    }

    /// One for each block; one number stands for all.
    fn counts(&self, key: &'static str, default: usize, blocks: usize) -> Result<Vec<usize>> {
        let wrong =
            || self.unfit(key, &format!("it is a whole number of 1 or more, or one for each of the {blocks} blocks"));
        match self.said(key) {
            None => Ok(vec![default; blocks]),
            Some(Value::Array(list)) if list.len() == blocks => {
                list.iter().map(|n| Self::size(n).ok_or_else(wrong)).collect()
            }
            Some(value) => Ok(vec![Self::size(value).ok_or_else(wrong)?; blocks]),
        }
    }

    /// A whole number that stands for all blocks, or as many that are the same.
    fn same(&self, key: &'static str, default: usize, blocks: usize) -> Result<usize> {
        let counts = self.counts(key, default, blocks)?;
        match counts.first() {
            Some(&first) if counts.iter().all(|&count| count == first) => Ok(first),
            _ => Err(self.unfit(key, "only the same for all blocks is supported")),
        }
    }

    /// The channels of each block.
    fn channels(&self, groups: usize) -> Result<Vec<usize>> {
        let key = "block_out_channels";
        let list = self.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let channels: Option<Vec<usize>> = list.iter().map(Self::size).collect();
        let fits = |n: &usize| n.is_multiple_of(groups) && n.is_multiple_of(2);
        let channels = channels.filter(|list| !list.is_empty() && list.len() < 16 && list.iter().all(fits));
        channels
            .ok_or_else(|| self.unfit(key, &format!("it is a list of numbers of channels, each of {groups} groups")))
    }

    /// Words, one for each block.
    fn words(&self, key: &'static str, blocks: usize) -> Result<Vec<&str>> {
        let list = self.get(key).and_then(Value::as_array);
        let words: Option<Vec<&str>> = list.and_then(|list| list.iter().map(Value::as_str).collect());
        let words = words.filter(|words| words.len() == blocks);
        words.ok_or_else(|| self.unfit(key, &format!("it is a list of {blocks} names, one for each block")))
    }

    /// That keys have the one value that is supported, or none.
    fn neutral(&self, keys: &[(&'static str, Value)]) -> Result<()> {
        for (key, only) in keys {
            let found = self.get(key);
            let is_same = |value: &Value| value == only || value.as_f64().is_some_and(|n| only.as_f64() == Some(n));
            let all = |value: &Value| value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(is_same));
            if found.is_some_and(|value| !is_same(value) && !all(value)) {
                return Err(self.unfit(key, &format!("only {only} is supported")));
            }
        }
        Ok(())
    }

    /// Keys that do not change what the network computes.
    fn pass(&self, keys: &[&'static str]) {
        self.read.borrow_mut().extend(keys);
    }

    fn finish(self) -> Result<()> {
        let read = self.read.borrow();
        match self.values.keys().find(|key| !key.starts_with('_') && !read.contains(key.as_str())) {
            Some(key) => Err(self.unfit(key, "this key is not known, and could change the network")),
            None => Ok(()),
        }
    }
}

/// The denoising network's.
pub(super) fn unet(folder: &Path) -> Result<unet::Config> {
    let keys = Keys::open(folder, "UNet2DConditionModel")?;
    let channels = keys.count("in_channels", 4)?;
    if keys.count("out_channels", 4)? != channels {
        return Err(keys.unfit("in_channels", "only as many as `out_channels` are supported: no inpainting, no depth"));
    }
    let size = match keys.get("sample_size") {
        Some(Value::Array(list)) => match list.iter().map(Keys::size).collect::<Option<Vec<usize>>>().as_deref() {
            Some(&[rows, columns]) => (rows, columns),
            _ => return Err(keys.unfit("sample_size", "it is one number or two")),
        },
        Some(_) => {
            let size = keys.count("sample_size", 64)?;
            (size, size)
        }
        None => (64, 64),
    };
    let groups = keys.count("norm_num_groups", 32)?;
    let block_channels = keys.channels(groups)?;
    let blocks = block_channels.len();
    let heads = keys.counts("attention_head_dim", 8, blocks)?;
    let depths = keys.counts("transformer_layers_per_block", 1, blocks)?;
    let mut levels = Vec::new();
    let kinds = keys.words("down_block_types", blocks)?;
    for (((kind, &channels), &heads), &depth) in kinds.into_iter().zip(&block_channels).zip(&heads).zip(&depths) {
        let depth = match kind {
            "CrossAttnDownBlock2D" => Some(depth),
            "DownBlock2D" => None,
            _ => return Err(keys.unfit("down_block_types", "only CrossAttnDownBlock2D and DownBlock2D are supported")),
        };
        if !channels.is_multiple_of(heads) {
            return Err(keys.unfit("attention_head_dim", "it is the number of heads, which divides the channels"));
        }
        levels.push(unet::Level { channels, heads, depth });
    }
    let up = |level: &unet::Level| if level.depth.is_some() { "CrossAttnUpBlock2D" } else { "UpBlock2D" };
    let mirrored: Vec<&str> = levels.iter().rev().map(up).collect();
    if keys.words("up_block_types", blocks)? != mirrored {
        let what = format!("only the mirror of `down_block_types` is supported: {mirrored:?}");
        return Err(keys.unfit("up_block_types", &what));
    }
    let downsample_padding = match keys.get("downsample_padding").map(Value::as_u64) {
        None => 1,
        Some(Some(padding @ 0..=1)) => padding as usize,
        Some(_) => return Err(keys.unfit("downsample_padding", "it is 0 or 1")),
    };
    let half = block_channels.first().map_or(1, |channels| channels / 2) as f64;
    let freq_shift = keys.number("freq_shift", 0.0)?;
    if !(0.0..half).contains(&freq_shift) {
        return Err(keys.unfit("freq_shift", "it is 0 or more, and less than half of the first channels"));
    }
    let mid_block_scale_factor = keys.number("mid_block_scale_factor", 1.0)?;
    if mid_block_scale_factor == 0.0 {
        return Err(keys.unfit("mid_block_scale_factor", "sums are divided by it"));
    }
    let config = unet::Config {
        channels,
        size,
        center_input_sample: keys.flag("center_input_sample", false)?,
        flip_sin_to_cos: keys.flag("flip_sin_to_cos", true)?,
        freq_shift,
        levels,
        mid_depth: depths.last().copied().unwrap_or(1),
        layers_per_block: keys.same("layers_per_block", 2, blocks)?,
        downsample_padding,
        mid_block_scale_factor,
        groups,
        norm_eps: keys.number("norm_eps", 1e-5)?,
        cross_attention_dim: keys.same("cross_attention_dim", 1280, blocks)?,
    };
    if let Some(act) = keys.get("act_fn")
        && act != "silu"
        && act != "swish"
    {
        return Err(keys.unfit("act_fn", "only silu is supported"));
    }
    let null = || Value::Null;
    keys.neutral(&[
        ("mid_block_type", json!("UNetMidBlock2DCrossAttn")),
        ("only_cross_attention", json!(false)),
        ("reverse_transformer_layers_per_block", null()),
        ("encoder_hid_dim", null()),
        ("encoder_hid_dim_type", null()),
        ("num_attention_heads", null()),
        ("dual_cross_attention", json!(false)),
        ("class_embed_type", null()),
        ("addition_embed_type", null()),
        ("num_class_embeds", null()),
        ("resnet_time_scale_shift", json!("default")),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_out_scale_factor", json!(1.0)),
        ("time_embedding_type", json!("positional")),
        ("time_embedding_dim", null()),
        ("time_embedding_act_fn", null()),
        ("timestep_post_act", null()),
        ("time_cond_proj_dim", null()),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("attention_type", json!("default")),
        ("class_embeddings_concat", json!(false)),
        ("mid_block_only_cross_attention", json!(false)),
        ("cross_attention_norm", null()),
    ])?;
    // Weights tell whether projections are linear, and attention is computed in f32 whatever is said; the others are of embeddings that are not there.
    keys.pass(&[
        "upcast_attention",
        "use_linear_projection",
        "dropout",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "addition_embed_type_num_heads",
    ]);
    keys.finish()?;
    Ok(config)
}

/// The autoencoder's.
pub(super) fn decoder(folder: &Path) -> Result<decoder::Config> {
    let keys = Keys::open(folder, "AutoencoderKL")?;
    let channels = keys.count("out_channels", 3)?;
    if !matches!(channels, 1 | 3) {
        return Err(keys.unfit("out_channels", "images have 3, or 1"));
    }
    let groups = keys.count("norm_num_groups", 32)?;
    let block_out_channels = keys.channels(groups)?;
    if keys.words("up_block_types", block_out_channels.len())?.iter().any(|word| *word != "UpDecoderBlock2D") {
        return Err(keys.unfit("up_block_types", "only UpDecoderBlock2D is supported"));
    }
    let scaling_factor = keys.number("scaling_factor", 0.18215)?;
    if scaling_factor <= 0.0 {
        return Err(keys.unfit("scaling_factor", "it is more than 0"));
    }
    let config = decoder::Config {
        channels,
        latent_channels: keys.count("latent_channels", 4)?,
        scaling_factor,
        block_out_channels,
        layers_per_block: keys.count("layers_per_block", 1)?,
        groups,
        use_post_quant_conv: keys.flag("use_post_quant_conv", true)?,
    };
    keys.neutral(&[
        ("act_fn", json!("silu")),
        ("shift_factor", Value::Null),
        ("latents_mean", Value::Null),
        ("latents_std", Value::Null),
        ("mid_block_add_attention", json!(true)),
    ])?;
    // The encoder's, and what tells of training.
    keys.pass(&["in_channels", "down_block_types", "use_quant_conv", "sample_size", "force_upcast"]);
    keys.finish()?;
    Ok(config)
}

/// The text encoder. Its file holds much that is the library's, so that unknown keys are let pass.
pub(super) fn text(folder: &Path) -> Result<ClipTextConfig> {
    let keys = Keys::open(folder, "CLIPTextModel")?;
    keys.neutral(&[
        ("hidden_act", json!("quick_gelu")),
        ("layer_norm_eps", json!(1e-5)),
        ("use_attention_mask", json!(false)),
        ("text_config", Value::Null),
    ])?;
    let config = ClipTextConfig {
        vocab_size: keys.count("vocab_size", 49408)?,
        embed_dim: keys.count("hidden_size", 512)?,
        activation: Activation::QuickGelu,
        intermediate_size: keys.count("intermediate_size", 2048)?,
        max_position_embeddings: keys.count("max_position_embeddings", 77)?,
        pad_with: None,
        num_hidden_layers: keys.count("num_hidden_layers", 12)?,
        num_attention_heads: keys.count("num_attention_heads", 8)?,
        projection_dim: 0,
    };
    if !config.embed_dim.is_multiple_of(config.num_attention_heads) {
        return Err(keys.unfit("num_attention_heads", "it divides `hidden_size`"));
    }
    Ok(config)
}
