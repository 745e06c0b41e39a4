//! From the names that attention had in diffusers before version 0.15 to today's.
//!
//! They are those of the attention between the resnets of `UNet2DModel` and `AutoencoderKL`; diffusers itself renames
//! them when it loads such a model.

use super::{Draft, Mapping, NameMap, Names, PartNames, TensorName, counted};
use crate::error::Mismatch;

/// The map.
#[derive(Debug)]
pub(super) struct DiffusersAttention;

/// A layer's old name, and today's.
pub(super) const LAYERS: [(&str, &str); 4] =
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

impl NameMap for DiffusersAttention {
    fn id(&self) -> &'static str {
        "diffusers-attention"
    }

    fn about(&self) -> &'static str {
        "diffusers' old names of attention (query, key, value, proj_attn) as today's (to_q, to_k, to_v, to_out.0)"
    }

    fn map(&self, parts: &[PartNames<'_>]) -> Result<Mapping, Vec<Mismatch>> {
        rename(
            parts,
            &LAYERS,
            |_, _| true,
            "no tensor's name is one of diffusers' old ones, such as `….attentions.0.query.weight`",
        )
    }
}

/// The attention that a tensor is directly part of, its layer and its leaf: `mid_block.attentions.0`, `to_out.0`, `bias`.
fn attention(name: &str) -> Option<(&str, &str, &str)> {
    let (module, leaf) = name.rsplit_once('.').filter(|(_, leaf)| ["weight", "bias"].contains(leaf))?;
    let start = module.rfind("attentions.").filter(|&at| at == 0 || module[..at].ends_with('.'))?;
    let number = start + "attentions.".len();
    let end = number + module[number..].find('.')?;
    module[number..end].bytes().all(|byte| byte.is_ascii_digit()).then(|| (&module[..end], &module[end + 1..], leaf))
}

/// Renames the layers of the attentions that `concerns` says; all else keeps its name.
pub(super) fn rename(
    parts: &[PartNames<'_>],
    layers: &[(&str, &str)],
    concerns: impl Fn(&Names<'_>, &str) -> bool,
    nothing: &str,
) -> Result<Mapping, Vec<Mismatch>> {
    let mut draft = Draft::default();
    let mut count = 0;
    for part in parts {
        let names = Names::of(&part.tensors);
        for tensor in &part.tensors {
            let renamed = attention(tensor.name).and_then(|(block, layer, leaf)| {
                let (_, to) = layers.iter().find(|(from, _)| *from == layer)?;
                concerns(&names, block).then(|| format!("{block}.{to}.{leaf}"))
            });
            count += usize::from(renamed.is_some());
            draft.whole(tensor, part.part, renamed.unwrap_or_else(|| tensor.name.to_owned()));
        }
    }
    let first: Option<&TensorName<'_>> = parts.iter().find_map(|part| part.tensors.first());
    if let Some(first) = first.filter(|_| count == 0) {
        draft.problem(first, format!("and all others stay as they are: {nothing}"));
    }
    draft.finish(None, vec![format!("other names: {}", counted(count))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attentions_are_found_in_names() {
        let block = "encoder.mid_block.attentions.0";
        assert_eq!(attention("encoder.mid_block.attentions.0.to_out.0.bias"), Some((block, "to_out.0", "bias")));
        assert_eq!(attention("attentions.12.query.weight"), Some(("attentions.12", "query", "weight")));
        for name in ["myattentions.0.query.weight", "attentions.x.query.weight", "attentions.0.weight", "query.weight"]
        {
            assert_eq!(attention(name), None, "{name}");
        }
        let (_, layer, _) = attention("a.attentions.0.transformer_blocks.0.attn1.to_q.weight").expect("it is in one");
        assert_eq!(layer, "transformer_blocks.0.attn1.to_q", "so it is no layer of the table");
    }
}
