//! The autoencoder of Stable Diffusion, which diffusers calls `AutoencoderKL`.
//!
//! The original numbers the decoder's levels from the finest, and has the linear layers of its attention as 1×1
//! convolutions.

use super::{Direction, Draft, Modules, Names, TensorName};

const RESNET: [(&str, &str); 5] =
    [("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"), ("conv_shortcut", "nin_shortcut")];
const ATTENTION: [(&str, &str); 5] =
    [("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];
/// What older versions of diffusers call the same.
const OLD_ATTENTION: [(&str, &str); 4] = [("query", "q"), ("key", "k"), ("value", "v"), ("proj_attn", "proj_out")];
const OUTER: [(&str, &str); 8] = [
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.conv_norm_out", "encoder.norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.conv_norm_out", "decoder.norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
];

/// The names of all modules.
fn modules(direction: Direction, names: &Names<'_>) -> Modules {
    let mut modules = Modules::new(direction);
    for (diffusers, sd) in OUTER {
        modules.layer(diffusers, sd);
    }
    for (coder, side) in [("encoder", "down"), ("decoder", "up")] {
        let in_diffusers = |level: usize| format!("{coder}.{side}_blocks.{level}");
        let in_sd = |level: usize| format!("{coder}.{side}.{level}");
        let to_sd = direction == Direction::ToSd;
        let levels = names.count(|level| format!("{}.", if to_sd { in_diffusers(level) } else { in_sd(level) }));
        for level in 0..levels {
            let (diffusers, sd) = (in_diffusers(level), in_sd(if side == "up" { levels - 1 - level } else { level }));
            let resnets = names.count(|resnet| {
                if to_sd { format!("{diffusers}.resnets.{resnet}.") } else { format!("{sd}.block.{resnet}.") }
            });
            for resnet in 0..resnets {
                modules.layers(&format!("{diffusers}.resnets.{resnet}"), &format!("{sd}.block.{resnet}"), &RESNET);
            }
            modules.layer(format!("{diffusers}.{side}samplers.0.conv"), format!("{sd}.{side}sample.conv"));
        }
        let mid = format!("{coder}.mid_block");
        modules.layers(&format!("{mid}.resnets.0"), &format!("{coder}.mid.block_1"), &RESNET);
        modules.layers(&format!("{mid}.resnets.1"), &format!("{coder}.mid.block_2"), &RESNET);
        let attention = (format!("{mid}.attentions.0"), format!("{coder}.mid.attn_1"));
        if to_sd {
            modules.layers(&attention.0, &attention.1, &OLD_ATTENTION);
        }
        modules.layers(&attention.0, &attention.1, &ATTENTION);
    }
    modules
}

/// Names every tensor of an autoencoder.
pub(super) fn rename(
    direction: Direction,
    tensors: &[TensorName<'_>],
    full_name: impl Fn(String) -> String,
    part: usize,
    draft: &mut Draft,
) {
    let modules = modules(direction, &Names::of(tensors));
    for tensor in tensors {
        let Some(name) = modules.renamed(tensor.name, |_| false) else {
            draft.problem(tensor, "is not known in the autoencoder of Stable Diffusion");
            continue;
        };
        let sd = if direction == Direction::ToSd { &name } else { tensor.name };
        let is_linear =
            ["q", "k", "v", "proj_out"].iter().any(|layer| sd.ends_with(&format!(".mid.attn_1.{layer}.weight")));
        let shape = match (direction, tensor.shape) {
            (Direction::ToSd, &[to, from]) if is_linear => vec![to, from, 1, 1],
            (Direction::ToDiffusers, &[to, from, 1] | &[to, from, 1, 1]) if is_linear => vec![to, from],
            (_, shape) => shape.to_vec(),
        };
        draft.shaped(tensor, part, full_name(name), shape);
    }
}
