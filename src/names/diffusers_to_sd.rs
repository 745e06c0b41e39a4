//! From a diffusers pipeline, or a part of one, to the one file of Stable Diffusion 1.x or XL.

use super::{Direction, Draft, Mapping, NameMap, Names, PartNames, TensorName, clip, unet, vae};
use crate::error::Mismatch;

/// The map.
#[derive(Debug)]
pub(super) struct DiffusersToSd;

/// What a part of a pipeline is, told from its names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Component {
    UNet,
    Vae,
    TextEncoder,
    /// A text encoder that ends in a projection.
    ProjectedTextEncoder,
    /// Not part of a single file.
    SafetyChecker,
    Unknown,
}

/// Which model it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Sd1,
    Sd2,
    Sdxl,
    /// XL's refiner, which has only the second text encoder.
    SdxlRefiner,
    Unknown,
}

impl Component {
    fn of(names: &Names<'_>) -> Self {
        let all = |prefixes: &[&str]| prefixes.iter().all(|prefix| names.begin(prefix));
        if names.begin("concept_embeds") {
            Self::SafetyChecker
        } else if clip::is_text_encoder(names) {
            if clip::is_projected(names) { Self::ProjectedTextEncoder } else { Self::TextEncoder }
        } else if all(&["down_blocks.", "up_blocks.", "time_embedding."]) {
            Self::UNet
        } else if names.begin("encoder.conv_in.") || names.begin("decoder.conv_in.") {
            Self::Vae
        } else {
            Self::Unknown
        }
    }
}

impl Family {
    fn of(parts: &[(Component, &[TensorName<'_>])]) -> Self {
        let part = |wanted| parts.iter().find(|(component, _)| *component == wanted).map(|(_, tensors)| *tensors);
        let projected = part(Component::ProjectedTextEncoder);
        let Some(unet) = part(Component::UNet) else {
            return if projected.is_some() { Self::Sdxl } else { Self::Unknown };
        };
        let shape = |ends: &str| unet.iter().find(|tensor| tensor.name.ends_with(ends)).map(|tensor| tensor.shape);
        let context = shape(".attn2.to_k.weight").and_then(|shape| shape.get(1).copied());
        if unet.iter().any(|tensor| tensor.name.starts_with("add_embedding.")) {
            // The base sees both encoders side by side.
            let sees_one = projected.and_then(clip::width).is_some_and(|width| context == Some(width));
            return if sees_one { Self::SdxlRefiner } else { Self::Sdxl };
        }
        // From 2.x on, transformers begin with a matrix, not a convolution.
        if shape(".proj_in.weight").is_some_and(|shape| shape.len() == 2) { Self::Sd2 } else { Self::Sd1 }
    }
}

impl NameMap for DiffusersToSd {
    fn id(&self) -> &'static str {
        "diffusers-to-sd"
    }

    fn about(&self) -> &'static str {
        "a diffusers pipeline, or its UNet, VAE or text encoders, as one file of Stable Diffusion 1.x or XL"
    }

    fn map(&self, parts: &[PartNames<'_>]) -> Result<Mapping, Vec<Mismatch>> {
        let parts: Vec<(Component, &[TensorName<'_>])> =
            parts.iter().map(|part| (Component::of(&Names::of(&part.tensors)), &part.tensors[..])).collect();
        let family = Family::of(&parts);
        let mut draft = Draft::default();
        let prefixed = |prefix: &'static str| move |name: String| format!("{prefix}{name}");
        let mut notes = Vec::new();
        for (component, tensors) in parts {
            let first = tensors.first();
            match (component, family) {
                (Component::UNet, _) => {
                    unet::rename(Direction::ToSd, tensors, prefixed("model.diffusion_model."), 0, &mut draft);
                }
                (Component::Vae, _) => {
                    vae::rename(Direction::ToSd, tensors, prefixed("first_stage_model."), 0, &mut draft);
                }
                (Component::TextEncoder, Family::Sd1) => {
                    clip::keep(tensors, prefixed("cond_stage_model.transformer."), 0, &mut draft);
                }
                (Component::TextEncoder, Family::Sdxl) => {
                    clip::keep(tensors, prefixed("conditioner.embedders.0.transformer."), 0, &mut draft);
                }
                (Component::ProjectedTextEncoder, Family::Sdxl) => {
                    clip::to_open_clip(tensors, prefixed("conditioner.embedders.1.model."), 0, &mut draft);
                }
                (Component::ProjectedTextEncoder, Family::SdxlRefiner) => {
                    clip::to_open_clip(tensors, prefixed("conditioner.embedders.0.model."), 0, &mut draft);
                }
                (Component::TextEncoder, Family::Unknown) => draft.all(
                    first,
                    "belongs to a text encoder that Stable Diffusion 1.x and XL name differently: convert it together with its UNet",
                ),
                (Component::TextEncoder | Component::ProjectedTextEncoder, Family::Sd2) => draft.all(
                    first,
                    "belongs to a text encoder of Stable Diffusion 2.x, which this map cannot name",
                ),
                (Component::TextEncoder | Component::ProjectedTextEncoder, _) => draft.all(
                    first,
                    "belongs to a text encoder that this model's single file has no place for",
                ),
                (Component::SafetyChecker, _) => {
                    tensors.iter().for_each(|tensor| draft.leave_out(tensor));
                    notes.push("the safety checker has no place in a single file and is left out".to_owned());
                }
                (Component::Unknown, _) => {
                    for tensor in tensors {
                        draft.problem(tensor, "belongs neither to a UNet nor to a VAE nor to a text encoder of diffusers");
                    }
                }
            }
        }
        draft.finish(Some(vec![("", "model")]), notes)
    }
}

impl Draft {
    /// A problem of a whole part, told once.
    fn all(&mut self, first: Option<&TensorName<'_>>, problem: &str) {
        if let Some(first) = first {
            self.problem(first, problem);
        }
    }
}
