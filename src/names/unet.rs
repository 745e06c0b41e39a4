//! The UNet of Stable Diffusion, which diffusers calls `UNet2DConditionModel`.
//!
//! diffusers numbers levels, and resnets and attentions within them; the original numbers all in a row, a sampler
//! between two levels included. How many there are is told from the names.

use super::{Direction, Draft, Modules, Names, TensorName};
use regex::Regex;
use std::sync::LazyLock;

const RESNET: [(&str, &str); 6] = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];
const OUTER: [(&str, &str); 7] = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];
/// The modules of a spatial transformer, whose names are the same everywhere.
static TRANSFORMER: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"^(norm|proj_in|proj_out|transformer_blocks\.\d+\.(norm[123]|attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)))$";
    Regex::new(pattern).expect("the pattern is a constant")
});

/// A row of resnets of one resolution.
#[derive(Default)]
struct Level {
    resnets: usize,
    has_attention: bool,
    has_sampler: bool,
}

/// The levels by diffusers' names of one side, `down` or `up`.
fn diffusers_levels(names: &Names<'_>, side: &str) -> Vec<Level> {
    let level = |number: usize| {
        let block = format!("{side}_blocks.{number}");
        let resnets = names.count(|resnet| format!("{block}.resnets.{resnet}."));
        (resnets > 0).then(|| Level {
            resnets,
            has_attention: names.begin(&format!("{block}.attentions.0.")),
            has_sampler: names.begin(&format!("{block}.{side}samplers.0.")),
        })
    };
    (0..).map_while(level).collect()
}

/// The levels on the way down by the original names: a sampler ends one.
fn sd_down(names: &Names<'_>) -> Vec<Level> {
    let mut levels = vec![Level::default()];
    for block in (1..).map(|number| format!("input_blocks.{number}.")).take_while(|block| names.begin(block)) {
        let Some(level) = levels.last_mut() else { break };
        if names.begin(&format!("{block}0.op.")) {
            level.has_sampler = true;
            levels.push(Level::default());
        } else {
            level.resnets += 1;
            level.has_attention |= names.begin(&format!("{block}1."));
        }
    }
    levels
}

/// The levels on the way up by the original names: a sampler comes with the last resnet of one.
fn sd_up(names: &Names<'_>) -> Vec<Level> {
    let mut levels = vec![Level::default()];
    for block in (0..).map(|number| format!("output_blocks.{number}.")).take_while(|block| names.begin(block)) {
        let Some(level) = levels.last_mut() else { break };
        level.resnets += 1;
        let samples_first = names.begin(&format!("{block}1.conv."));
        level.has_attention |= !samples_first && names.begin(&format!("{block}1."));
        level.has_sampler = samples_first || names.begin(&format!("{block}2.conv."));
        if level.has_sampler {
            levels.push(Level::default());
        }
    }
    levels
}

/// The names of all modules.
fn modules(direction: Direction, names: &Names<'_>) -> Modules {
    let (down, up) = match direction {
        Direction::ToSd => (diffusers_levels(names, "down"), diffusers_levels(names, "up")),
        Direction::ToDiffusers => (sd_down(names), sd_up(names)),
    };
    let mut modules = Modules::new(direction);
    for (diffusers, sd) in OUTER {
        modules.layer(diffusers, sd);
    }
    let mut block = 1;
    for (number, level) in down.iter().enumerate() {
        for resnet in 0..level.resnets {
            modules.layers(
                &format!("down_blocks.{number}.resnets.{resnet}"),
                &format!("input_blocks.{block}.0"),
                &RESNET,
            );
            modules.block(format!("down_blocks.{number}.attentions.{resnet}"), format!("input_blocks.{block}.1"));
            block += 1;
        }
        if level.has_sampler {
            modules.layer(format!("down_blocks.{number}.downsamplers.0.conv"), format!("input_blocks.{block}.0.op"));
            block += 1;
        }
    }
    modules.layers("mid_block.resnets.0", "middle_block.0", &RESNET);
    modules.block("mid_block.attentions.0".to_owned(), "middle_block.1".to_owned());
    modules.layers("mid_block.resnets.1", "middle_block.2", &RESNET);
    let mut block = 0;
    for (number, level) in up.iter().enumerate() {
        for resnet in 0..level.resnets {
            modules.layers(
                &format!("up_blocks.{number}.resnets.{resnet}"),
                &format!("output_blocks.{block}.0"),
                &RESNET,
            );
            modules.block(format!("up_blocks.{number}.attentions.{resnet}"), format!("output_blocks.{block}.1"));
            block += 1;
        }
        if level.has_sampler && block > 0 {
            let place = 1 + usize::from(level.has_attention);
            let sampler = format!("output_blocks.{}.{place}.conv", block - 1);
            modules.layer(format!("up_blocks.{number}.upsamplers.0.conv"), sampler);
        }
    }
    modules
}

/// Names every tensor of a UNet.
pub(super) fn rename(
    direction: Direction,
    tensors: &[TensorName<'_>],
    full_name: impl Fn(String) -> String,
    part: usize,
    draft: &mut Draft,
) {
    let modules = modules(direction, &Names::of(tensors));
    for tensor in tensors {
        match modules.renamed(tensor.name, |inner| TRANSFORMER.is_match(inner)) {
            Some(name) => draft.whole(tensor, part, full_name(name)),
            None => draft.problem(tensor, "is not known in the UNet of Stable Diffusion 1.x, 2.x or XL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_modules_of_transformers_are_known_in_attentions() {
        for name in ["norm", "proj_in", "transformer_blocks.11.attn2.to_out.0", "transformer_blocks.0.ff.net.0.proj"] {
            assert!(TRANSFORMER.is_match(name), "{name}");
        }
        for name in ["to_q", "transformer_blocks.0.attn3.to_q", "transformer_blocks.0.attn1.to_q_lora", "normal"] {
            assert!(!TRANSFORMER.is_match(name), "{name}");
        }
    }
}
