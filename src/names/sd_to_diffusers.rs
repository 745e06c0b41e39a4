//! From the one file of Stable Diffusion 1.x or XL, or a part of it, to the folders of a diffusers pipeline.

use super::{Direction, Draft, Mapping, NameMap, PartNames, TensorName, clip, counted, unet, vae};
use crate::error::Mismatch;

/// The map.
#[derive(Debug)]
pub(super) struct SdToDiffusers;

/// What a part of the file is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Component {
    UNet,
    Vae,
    TextEncoder,
    OpenClip,
}

/// What names of each part begin with.
const PREFIXES: [(&str, Component); 6] = [
    ("model.diffusion_model.", Component::UNet),
    ("first_stage_model.", Component::Vae),
    ("cond_stage_model.transformer.", Component::TextEncoder),
    ("conditioner.embedders.0.transformer.", Component::TextEncoder),
    ("conditioner.embedders.1.model.", Component::OpenClip),
    // XL's refiner has only this encoder, and has it first.
    ("conditioner.embedders.0.model.", Component::OpenClip),
];
/// The folder of each part and the name of the file in it, before the ending.
const FOLDERS: [(Component, &str, &str); 4] = [
    (Component::UNet, "unet", "diffusion_pytorch_model"),
    (Component::Vae, "vae", "diffusion_pytorch_model"),
    (Component::TextEncoder, "text_encoder", "model"),
    (Component::OpenClip, "text_encoder_2", "model"),
];
/// What names begin with in files that hold a part alone, without its prefix.
const BARE: [(&str, Component); 10] = [
    ("time_embed.", Component::UNet),
    ("label_emb.", Component::UNet),
    ("input_blocks.", Component::UNet),
    ("middle_block.", Component::UNet),
    ("output_blocks.", Component::UNet),
    ("out.", Component::UNet),
    ("encoder.", Component::Vae),
    ("decoder.", Component::Vae),
    ("quant_conv.", Component::Vae),
    ("post_quant_conv.", Component::Vae),
];
/// What names begin with that only training needs: moving averages and losses.
const TRAINING: [&str; 4] = ["model_ema.", "first_stage_model.model_ema.", "first_stage_model.loss.", "loss."];
/// Numbers that follow from the noise schedule, which diffusers has in its scheduler, and scales of the latents.
const SCHEDULE: [&str; 16] = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "denoiser.sigmas",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "lvlb_weights",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "scale_factor",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
];

impl NameMap for SdToDiffusers {
    fn id(&self) -> &'static str {
        "sd-to-diffusers"
    }

    fn about(&self) -> &'static str {
        "a file of Stable Diffusion 1.x or XL, or its UNet or VAE alone, as the folders of a diffusers pipeline"
    }

    fn map(&self, parts: &[PartNames<'_>]) -> Result<Mapping, Vec<Mismatch>> {
        let tensors: Vec<TensorName<'_>> = parts.iter().flat_map(|part| part.tensors.iter().copied()).collect();
        let prefixed = |name: &str| PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix));
        let is_bare = !tensors.iter().any(|tensor| prefixed(tensor.name).is_some());
        let mut draft = Draft::default();
        let mut held: [Vec<TensorName<'_>>; FOLDERS.len()] = Default::default();
        for tensor in tensors {
            let name = tensor.name;
            let bare = || BARE.iter().find(|(prefix, _)| is_bare && name.starts_with(prefix));
            if TRAINING.iter().any(|prefix| name.starts_with(prefix)) || SCHEDULE.contains(&name) {
                draft.leave_out(&tensor);
                continue;
            }
            let (within, component) = match (prefixed(name), bare()) {
                (Some((prefix, component)), _) => (&name[prefix.len()..], component),
                (None, Some((_, component))) => (name, component),
                (None, None) => {
                    draft.problem(&tensor, unknown(name));
                    continue;
                }
            };
            if let Some(index) = FOLDERS.iter().position(|(of, ..)| of == component) {
                held[index].push(TensorName { name: within, ..tensor });
            }
        }
        let mut folders = Vec::new();
        for ((component, folder, stem), tensors) in FOLDERS.iter().zip(&held).filter(|(_, held)| !held.is_empty()) {
            let (part, same) = (folders.len(), |name: String| name);
            folders.push((*folder, *stem));
            match component {
                Component::UNet => unet::rename(Direction::ToDiffusers, tensors, same, part, &mut draft),
                Component::Vae => vae::rename(Direction::ToDiffusers, tensors, same, part, &mut draft),
                Component::TextEncoder => clip::keep(tensors, same, part, &mut draft),
                Component::OpenClip => clip::from_open_clip(tensors, same, part, &mut draft),
            }
        }
        let mut notes = Vec::new();
        if let Some(first) = draft.left_out.first() {
            let count = counted(draft.left_out.len());
            notes.push(format!("left out, as only training or sampling needs it: {count}, such as `{first}`"));
        }
        notes.push(
            "only weights are written: configurations, tokenizers and the scheduler come from the repository of the model's base"
                .to_owned(),
        );
        draft.finish(Some(folders), notes)
    }
}

/// Why a tensor cannot be named.
fn unknown(name: &str) -> &'static str {
    if name.starts_with("cond_stage_model.model.") {
        "belongs to a text encoder of Stable Diffusion 2.x, which this map cannot name"
    } else {
        "is not known in a file of Stable Diffusion 1.x or XL"
    }
}
