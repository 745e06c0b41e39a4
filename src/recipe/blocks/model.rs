//! Which tensors each block of a diffusion model has, told from their names.
//!
//! UNets: `input_blocks.N` is `INnn`, `middle_block` is `M00`, `output_blocks.N` is `OUTnn`; `out` goes with the last of
//! these, `time_embed` with the first block, and all else, text encoders, VAE and `label_emb` among it, is `BASE`. Names of
//! diffusers are those of the original by the name map `diffusers-to-sd`.
//! Flux: `double_blocks.N` is `Dnn`, `single_blocks.N` is `Snn`, what takes images, text, time and guidance in is `IN`, the
//! last layer is `OUT`, the text encoders are `CLIP` and `T5`. The VAE is in no block.
//!
//! This is supermerger's way but for two modules. To `time_embed` of 1.x it gives `OUT11`'s weight, by an index below 0
//! where its own note, its first versions and "merge block weighted" have `IN00`. It leaves `time_embed` and `label_emb`
//! of XL as the first model has them, so that 1 for all blocks is not the second model.

use super::{names, numbered};
use crate::checkpoint::Elements;
use crate::names::{PartNames, TensorName, name_map};
use crate::recipe::Block;
use crate::recipe::supply::Given;
use regex::Regex;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

/// The modules of a UNet that are in its blocks, by their original names.
static UNET: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?:^|\.)(input_blocks|middle_block|output_blocks|out|time_embed)\.(\d{1,3})\.";
    Regex::new(pattern).expect("the pattern is a constant")
});
/// A UNet by diffusers' names, alone or as a part of a pipeline.
static DIFFUSERS_UNET: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^([^/.]*/)?down_blocks\.\d").expect("the pattern is a constant"));
/// The blocks of Flux, by the original names or at the start of diffusers'.
static FLUX: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?:(?:^|\.)(double|single)_blocks|^(?:[^/.]*/)?(single_)?transformer_blocks)\.(\d{1,3})\.";
    Regex::new(pattern).expect("the pattern is a constant")
});
/// What comes before and behind the blocks of Flux.
static FLUX_ENDS: LazyLock<Regex> = LazyLock::new(|| {
    let into = "img_in|txt_in|time_in|vector_in|guidance_in|x_embedder|context_embedder|time_text_embed";
    let pattern = format!(r"(?:^|[./])(?:({into})|final_layer|norm_out|proj_out)\.");
    Regex::new(&pattern).expect("the pattern is a constant")
});

/// The blocks of a model.
pub(in crate::recipe) struct ModelBlocks {
    /// Their names in order.
    pub(super) names: Vec<String>,
    tensors: HashMap<String, Arc<HashSet<String>>>,
}

impl ModelBlocks {
    /// The blocks of the model that has these tensors.
    ///
    /// # Errors
    /// A message if it has none.
    pub(in crate::recipe) fn of(tensors: &[Given<'_>]) -> Result<Self, String> {
        let all = || tensors.iter().map(|tensor| tensor.name.as_str());
        if let Some(flux) = Self::of_flux(all()) {
            return Ok(flux);
        }
        if let Some(unet) = Self::of_unet(all().map(|name| (name.to_owned(), name.to_owned()))) {
            return Ok(unet);
        }
        let none = "has none of the blocks of Stable Diffusion or Flux: values for blocks are for these";
        let Some(prefix) = all().find_map(|name| DIFFUSERS_UNET.captures(name)) else { return Err(none.to_owned()) };
        let prefix = prefix.get(1).map_or("", |prefix| prefix.as_str());
        let within = |tensor: &'_ Given<'_>| tensor.name.starts_with(prefix);
        let tensor_name = |tensor: &'_ Given<'_>| tensor.name.get(prefix.len()..).unwrap_or_default().to_owned();
        let inner: Vec<String> = tensors.iter().filter(|tensor| within(tensor)).map(tensor_name).collect();
        let part = tensors.iter().filter(|tensor| within(tensor)).zip(&inner);
        let part = part.map(|(tensor, name)| TensorName { name, full: &tensor.name, shape: &tensor.shape });
        let part = PartNames { folder: "unet", part: 0, tensors: part.collect() };
        let map = name_map("diffusers-to-sd").ok_or(none)?;
        let mapping = map.map(&[part]).map_err(|problems| match problems.first() {
            Some(first) => {
                format!("has blocks that are not those of Stable Diffusion: `{}` {}", first.tensor, first.problem)
            }
            None => none.to_owned(),
        })?;
        let mut original: HashMap<String, String> = HashMap::new();
        for view in mapping.views {
            if let Elements::Whole(full) = &view.elements {
                original.insert(full.clone(), view.name);
            }
        }
        let pairs = all().map(|name| (name.to_owned(), original.get(name).cloned().unwrap_or_default()));
        Self::of_unet(pairs).ok_or_else(|| none.to_owned())
    }

    /// The blocks of a UNet whose tensors come with their original names.
    fn of_unet(tensors: impl Iterator<Item = (String, String)>) -> Option<Self> {
        let (mut outside, mut inside, mut ends) = (HashSet::new(), Vec::new(), HashSet::new());
        let (mut down, mut up, mut has_middle) = (0, 0, false);
        for (name, original) in tensors {
            let found = UNET.captures(&original).and_then(|found| {
                Some((found.get(1)?.as_str().to_owned(), found.get(2)?.as_str().parse::<usize>().ok()?))
            });
            let block = match found.as_ref().map(|(module, number)| (module.as_str(), *number)) {
                Some(("input_blocks", number)) => {
                    down = down.max(number + 1);
                    numbered("IN", number)
                }
                Some(("output_blocks", number)) => {
                    up = up.max(number + 1);
                    numbered("OUT", number)
                }
                Some(("middle_block", _)) => {
                    has_middle = true;
                    numbered("M", 0)
                }
                Some(("time_embed", _)) => numbered("IN", 0),
                Some(_) => {
                    ends.insert(name);
                    continue;
                }
                None => {
                    outside.insert(name);
                    continue;
                }
            };
            inside.push((block, name));
        }
        if down == 0 || up == 0 || !has_middle {
            return None;
        }
        inside.extend(ends.into_iter().map(|name| (numbered("OUT", up - 1), name)));
        inside.extend(outside.into_iter().map(|name| ("BASE".to_owned(), name)));
        Some(Self::new(names(&[("BASE", None), ("IN", Some(down)), ("M", Some(1)), ("OUT", Some(up))]), inside))
    }

    /// The blocks of Flux.
    fn of_flux<'n>(tensors: impl Iterator<Item = &'n str>) -> Option<Self> {
        let (mut inside, mut double, mut single) = (Vec::new(), 0, 0);
        for name in tensors {
            let block = if let Some(found) = FLUX.captures(name) {
                let number = found.get(3)?.as_str().parse::<usize>().ok()?;
                let is_single = found.get(1).map_or(found.get(2).is_some(), |kind| kind.as_str() == "single");
                let (stem, count) = if is_single { ("S", &mut single) } else { ("D", &mut double) };
                *count = (*count).max(number + 1);
                numbered(stem, number)
            } else if name.starts_with("vae.") || name.starts_with("vae/") || name.starts_with("first_stage_model.") {
                continue;
            } else if name.contains("t5xxl") || name.starts_with("text_encoder_2/") {
                "T5".to_owned()
            } else if name.contains("text_encoders.clip") || name.starts_with("text_encoder/") {
                "CLIP".to_owned()
            } else if let Some(end) = FLUX_ENDS.captures(name) {
                if end.get(1).is_some() { "IN" } else { "OUT" }.to_owned()
            } else {
                continue;
            };
            inside.push((block, name.to_owned()));
        }
        let blocks =
            [("CLIP", None), ("T5", None), ("IN", None), ("D", Some(double)), ("S", Some(single)), ("OUT", None)];
        (double > 0 && single > 0).then(|| Self::new(names(&blocks), inside))
    }

    fn new(names: Vec<String>, tensors: Vec<(String, String)>) -> Self {
        let mut by_block: HashMap<String, HashSet<String>> = HashMap::new();
        for (block, name) in tensors {
            by_block.entry(block).or_default().insert(name);
        }
        Self { names, tensors: by_block.into_iter().map(|(block, tensors)| (block, Arc::new(tensors))).collect() }
    }

    /// Whether a tensor is in one of the blocks.
    pub(super) fn has(&self, tensor: &str) -> bool {
        self.tensors.values().any(|tensors| tensors.contains(tensor))
    }

    /// The block of that name with its tensors.
    pub(super) fn block(&self, name: &str) -> Block {
        Block { name: name.to_owned(), tensors: self.tensors.get(name).cloned().unwrap_or_default() }
    }
}
