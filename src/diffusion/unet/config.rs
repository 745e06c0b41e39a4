//! What a `UNet2DModel` is made of: diffusers' `config.json`.

use crate::diffusion::layers::{Groups, Kind, Waves};
use serde_json::{Map, Value, json};

/// A configuration that has a name.
pub type Named = (&'static str, fn() -> Config);

/// Configurations that were published, by the names they go by here: google/ddpm-cifar10-32, google/ddpm-ema-church-256
/// and google/ddpm-ema-bedroom-256.
pub const NAMED: &[Named] = &[("cifar10", Config::cifar10), ("church", Config::church), ("bedroom", Config::bedroom)];

/// What is in configurations and does not change the network: what names a kind, and what diffusers' `EMAModel` and
/// training scripts leave behind.
const OF_NO_CONSEQUENCE: [&str; 9] = [
    "decay",
    "dropout",
    "inv_gamma",
    "min_decay",
    "num_train_timesteps",
    "optimization_step",
    "power",
    "update_after_step",
    "use_ema_warmup",
];

/// A network's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Rows and columns of the images it was trained on, where that is said.
    pub sample_size: Option<(usize, usize)>,
    /// Channels that go in.
    pub in_channels: usize,
    /// Channels that come out.
    pub out_channels: usize,
    /// Whether images of 0..1 go in, which it brings to −1..1 by itself.
    pub center_input_sample: bool,
    /// Channels of the timestep's embedding; four times the first level's without.
    pub time_embedding_dim: Option<usize>,
    /// What half of the embedding's length is less by in its exponents.
    pub freq_shift: f64,
    /// Whether cosines stand before sines.
    pub flip_sin_to_cos: bool,
    /// Blocks that make images smaller.
    pub down_block_types: Vec<Sampling>,
    /// Whether there is a block in the middle.
    pub has_middle: bool,
    /// Blocks that make images larger again.
    pub up_block_types: Vec<Sampling>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of a block; up blocks have one more.
    pub layers_per_block: usize,
    /// What sums in the middle block are divided by.
    pub mid_block_scale_factor: f64,
    /// Zeros around an image that is made smaller; without any, a row and a column of them at its end.
    pub downsample_padding: usize,
    /// Whether blocks with attention make images smaller by a residual block.
    pub downsample_by_resnet: bool,
    /// Whether blocks with attention make images larger by a residual block.
    pub upsample_by_resnet: bool,
    /// Channels of a head of attention; all in one without.
    pub attention_head_dim: Option<usize>,
    /// Groups of channels that are normalised together.
    pub norm_num_groups: usize,
    /// The same in the middle block's attention.
    pub attn_norm_num_groups: Option<usize>,
    /// What is added to variances.
    pub norm_eps: f64,
    /// Whether the timestep scales and shifts, instead of being added.
    pub time_scale_shift: bool,
    /// Whether the middle block has attention.
    pub add_attention: bool,
}

/// What a block of the way down or up has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Attention behind each residual block.
    pub has_attention: bool,
    /// A residual block, always, where the image's size changes.
    pub by_resnet: bool,
}

impl Sampling {
    const PLAIN: Self = Self { has_attention: false, by_resnet: false };
    const ATTENTION: Self = Self { has_attention: true, by_resnet: false };
    const RESNET: Self = Self { has_attention: false, by_resnet: true };
    const DOWN: [(&str, Self); 3] =
        [("DownBlock2D", Self::PLAIN), ("AttnDownBlock2D", Self::ATTENTION), ("ResnetDownsampleBlock2D", Self::RESNET)];
    const UP: [(&str, Self); 3] =
        [("UpBlock2D", Self::PLAIN), ("AttnUpBlock2D", Self::ATTENTION), ("ResnetUpsampleBlock2D", Self::RESNET)];

    /// Whether it changes the size of images by a residual block, where blocks with attention do or do not.
    pub(super) fn resamples_by_resnet(self, with_attention: bool) -> bool {
        self.by_resnet || (self.has_attention && with_attention)
    }
}

impl Config {
    /// That of Ho et al.'s networks, with attention at the level `attention`.
    fn ddpm(size: usize, channels: &[usize], attention: usize) -> Self {
        let levels = channels.len();
        let kind = |at: usize| if at == attention { Sampling::ATTENTION } else { Sampling::PLAIN };
        Self {
            sample_size: Some((size, size)),
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_dim: None,
            freq_shift: 1.0,
            flip_sin_to_cos: false,
            down_block_types: (0..levels).map(kind).collect(),
            has_middle: true,
            up_block_types: (0..levels).rev().map(kind).collect(),
            block_out_channels: channels.to_vec(),
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 0,
            downsample_by_resnet: false,
            upsample_by_resnet: false,
            attention_head_dim: None,
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-6,
            time_scale_shift: false,
            add_attention: true,
        }
    }

    /// google/ddpm-cifar10-32: 35,746,307 parameters.
    #[must_use]
    pub fn cifar10() -> Self {
        Self::ddpm(32, &[128, 256, 256, 256], 1)
    }

    /// google/ddpm-ema-church-256: 113,673,219 parameters.
    #[must_use]
    pub fn church() -> Self {
        Self::ddpm(256, &[128, 128, 256, 256, 512, 512], 4)
    }

    /// google/ddpm-ema-bedroom-256: as [church](Self::church).
    #[must_use]
    pub fn bedroom() -> Self {
        Self::church()
    }

    /// Reads a `config.json`; what is missing is as in diffusers.
    ///
    /// # Errors
    /// Which entry is wrong, or says something that is not supported.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
        let Value::Object(entries) = value else { return Err("is not a JSON object".to_owned()) };
        match entries.get("_class_name").and_then(Value::as_str) {
            None | Some("UNet2DModel") => {}
            Some("UNet2DConditionModel") => {
                let hint = "of Stable Diffusion name the whole pipeline's folder";
                return Err(format!("describes a UNet2DConditionModel, not a UNet2DModel; {hint}"));
            }
            Some(other) => return Err(format!("describes a {other}, not a UNet2DModel")),
        }
        let mut fields = Fields { entries };
        let config = Self {
            sample_size: fields.take("sample_size", size)?,
            in_channels: fields.count("in_channels")?.unwrap_or(3),
            out_channels: fields.count("out_channels")?.unwrap_or(3),
            center_input_sample: fields.flag("center_input_sample")?.unwrap_or(false),
            time_embedding_dim: fields.count("time_embedding_dim")?,
            freq_shift: fields.number("freq_shift")?.unwrap_or(0.0),
            flip_sin_to_cos: fields.flag("flip_sin_to_cos")?.unwrap_or(true),
            down_block_types: fields.blocks("down_block_types", &Sampling::DOWN)?.unwrap_or_else(|| {
                vec![Sampling::PLAIN, Sampling::ATTENTION, Sampling::ATTENTION, Sampling::ATTENTION]
            }),
            has_middle: !fields.is_null("mid_block_type"),
            up_block_types: fields.blocks("up_block_types", &Sampling::UP)?.unwrap_or_else(|| {
                vec![Sampling::ATTENTION, Sampling::ATTENTION, Sampling::ATTENTION, Sampling::PLAIN]
            }),
            block_out_channels: fields.take("block_out_channels", counts)?.unwrap_or_else(|| vec![224, 448, 672, 896]),
            layers_per_block: fields.count("layers_per_block")?.unwrap_or(2),
            mid_block_scale_factor: fields
                .take("mid_block_scale_factor", |value| value.as_f64().filter(|&factor| factor != 0.0))?
                .unwrap_or(1.0),
            downsample_padding: fields
                .take("downsample_padding", |value| whole(value).filter(|&n| n < 2))?
                .unwrap_or(1),
            downsample_by_resnet: fields.one_of("downsample_type", &["conv", "resnet"])?.unwrap_or(0) == 1,
            upsample_by_resnet: fields.one_of("upsample_type", &["conv", "resnet"])?.unwrap_or(0) == 1,
            attention_head_dim: fields
                .nullable("attention_head_dim", |value| whole(value).filter(|&head| head > 0))?
                .unwrap_or(Some(8)),
            norm_num_groups: fields.count("norm_num_groups")?.unwrap_or(32),
            attn_norm_num_groups: fields.count("attn_norm_num_groups")?,
            norm_eps: fields
                .take("norm_eps", |value| value.as_f64().filter(|&epsilon| epsilon >= 0.0))?
                .unwrap_or(1e-5),
            time_scale_shift: fields.one_of("resnet_time_scale_shift", &["default", "scale_shift"])?.unwrap_or(0) == 1,
            add_attention: fields.flag("add_attention")?.unwrap_or(true),
        };
        fields.one_of("mid_block_type", &["UNetMidBlock2D"])?;
        fields.one_of("time_embedding_type", &["positional"])?;
        fields.one_of("act_fn", &["silu", "swish"])?;
        for key in ["class_embed_type", "num_class_embeds"] {
            if !fields.is_null(key) && fields.entries.contains_key(key) {
                return Err(format!("has {key}: networks that are told a class are not supported"));
            }
            fields.entries.shift_remove(key);
        }
        fields.check_known()?;
        config.check()?;
        Ok(config)
    }

    /// As a `config.json` says it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let names = |blocks: &[Sampling], known: &[(&str, Sampling)]| -> Vec<Value> {
            let name = |block: &Sampling| known.iter().find(|(_, kind)| kind == block).map(|(name, _)| (*name).into());
            blocks.iter().filter_map(name).collect()
        };
        let resampling = |by_resnet: bool| if by_resnet { "resnet" } else { "conv" };
        json!({
            "_class_name": "UNet2DModel",
            "act_fn": "silu",
            "add_attention": self.add_attention,
            "attention_head_dim": self.attention_head_dim,
            "attn_norm_num_groups": self.attn_norm_num_groups,
            "block_out_channels": self.block_out_channels,
            "center_input_sample": self.center_input_sample,
            "down_block_types": names(&self.down_block_types, &Sampling::DOWN),
            "downsample_padding": self.downsample_padding,
            "downsample_type": resampling(self.downsample_by_resnet),
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": self.mid_block_scale_factor,
            "mid_block_type": self.has_middle.then_some("UNetMidBlock2D"),
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.out_channels,
            "resnet_time_scale_shift": if self.time_scale_shift { "scale_shift" } else { "default" },
            "sample_size": self.sample_size.map(|(rows, columns)| {
                if rows == columns { json!(rows) } else { json!([rows, columns]) }
            }),
            "time_embedding_dim": self.time_embedding_dim,
            "time_embedding_type": "positional",
            "up_block_types": names(&self.up_block_types, &Sampling::UP),
            "upsample_type": resampling(self.upsample_by_resnet),
        })
    }

    fn check(&self) -> Result<(), String> {
        let levels = self.block_out_channels.len();
        if levels == 0 || self.down_block_types.len() != levels || self.up_block_types.len() != levels {
            let [down, up] = [&self.down_block_types, &self.up_block_types].map(Vec::len);
            return Err(format!(
                "block_out_channels, down_block_types and up_block_types are of {levels}, {down} and {up} levels"
            ));
        }
        let half = self.first_channels() / 2;
        if self.freq_shift as f32 == half as f32 {
            return Err(format!(
                "freq_shift = {} is half of the first of block_out_channels, so that frequencies of timesteps would be divided by 0",
                self.freq_shift
            ));
        }
        for &channels in &self.block_out_channels {
            if !channels.is_multiple_of(self.norm_num_groups) {
                return Err(format!("{channels} channels are not norm_num_groups = {} groups", self.norm_num_groups));
            }
            if let Some(head) = self.attention_head_dim
                && !channels.is_multiple_of(head)
            {
                return Err(format!("{channels} channels are not heads of attention_head_dim = {head}"));
            }
        }
        if let Some(groups) = self.attn_norm_num_groups
            && !self.last_channels().is_multiple_of(groups)
        {
            return Err(format!("{} channels are not attn_norm_num_groups = {groups} groups", self.last_channels()));
        }
        Ok(())
    }

    /// How it normalises.
    pub(super) fn groups(&self) -> Groups {
        Groups { count: self.norm_num_groups, epsilon: self.norm_eps }
    }

    /// What its residual blocks have in common.
    pub(super) fn resnets(&self) -> Kind {
        let time = Some(self.time_channels());
        Kind { groups: self.groups(), time, time_scale_shift: self.time_scale_shift }
    }

    /// Channels of a head of attention over so many.
    pub(super) fn head(&self, channels: usize) -> usize {
        self.attention_head_dim.unwrap_or(channels)
    }

    /// What it is told of timesteps.
    pub(super) fn waves(&self) -> Waves {
        let (flip_sin_to_cos, freq_shift) = (self.flip_sin_to_cos, self.freq_shift);
        Waves { channels: self.first_channels(), flip_sin_to_cos, freq_shift }
    }

    /// Channels of the outermost level.
    pub(super) fn first_channels(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or_default()
    }

    /// Channels of the innermost level.
    pub(super) fn last_channels(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or_default()
    }

    /// Channels of the timestep's embedding.
    pub(super) fn time_channels(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.first_channels())
    }
}

/// The entries that were not read yet.
struct Fields {
    entries: Map<String, Value>,
}

impl Fields {
    fn is_null(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(Value::is_null)
    }

    /// Reads an entry, which may be missing or null.
    fn take<T>(&mut self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, String> {
        Ok(self.nullable(key, read)?.flatten())
    }

    /// Reads an entry, which may be missing; the inner option is whether it is not null.
    fn nullable<T>(&mut self, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<Option<T>>, String> {
        match self.entries.shift_remove(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(Some(read))),
                None => Err(format!("says {key} = {value}, which is not what {key} can be")),
            },
        }
    }

    /// A whole number above 0.
    fn count(&mut self, key: &str) -> Result<Option<usize>, String> {
        self.take(key, |value| whole(value).filter(|&count| count > 0))
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, String> {
        self.take(key, |value| value.as_f64().filter(|number| number.is_finite()))
    }

    fn flag(&mut self, key: &str) -> Result<Option<bool>, String> {
        self.take(key, Value::as_bool)
    }

    /// Which of some words an entry is.
    fn one_of(&mut self, key: &str, words: &[&str]) -> Result<Option<usize>, String> {
        let Some(Value::String(word)) = self.entries.get(key) else {
            return self.take(key, |_| None);
        };
        match words.iter().position(|known| known == word) {
            Some(index) => {
                self.entries.shift_remove(key);
                Ok(Some(index))
            }
            None => Err(format!("says {key} = {word}; supported are: {}", words.join(", "))),
        }
    }

    fn blocks(&mut self, key: &str, known: &[(&str, Sampling)]) -> Result<Option<Vec<Sampling>>, String> {
        let Some(names) = self.take(key, |value| {
            let list = value.as_array()?;
            list.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        })?
        else {
            return Ok(None);
        };
        let kind = |name: &String| known.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
        let unknown = |name: &String| {
            let known: Vec<&str> = known.iter().map(|(known, _)| *known).collect();
            format!("says {key} has a {name}; supported are: {}", known.join(", "))
        };
        names.iter().map(|name| kind(name).ok_or_else(|| unknown(name))).collect::<Result<_, _>>().map(Some)
    }

    /// That nothing is left that may change the network.
    fn check_known(&self) -> Result<(), String> {
        let unknown = |key: &&String| !key.starts_with('_') && !OF_NO_CONSEQUENCE.contains(&key.as_str());
        match self.entries.keys().find(unknown) {
            None => Ok(()),
            Some(key) => {
                Err(format!("has an entry {key}, which is not known: remove it if it does not change the network"))
            }
        }
    }
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|&number| number < 1 << 15)
}

fn counts(value: &Value) -> Option<Vec<usize>> {
    value.as_array()?.iter().map(|value| whole(value).filter(|&count| count > 0)).collect()
}

/// One number, or rows and columns.
fn size(value: &Value) -> Option<(usize, usize)> {
    let sides = match value {
        Value::Array(_) => counts(value)?,
        _ => vec![whole(value).filter(|&side| side > 0)?; 2],
    };
    match sides[..] {
        [rows, columns] => Some((rows, columns)),
        _ => None,
    }
}
