//! CLIP's text encoder: OpenAI's as transformers names it, and OpenCLIP's own names.
//!
//! Stable Diffusion 1.x and XL hold the first with transformers' names; XL's second encoder has OpenCLIP's, where query,
//! key and value are one matrix and the projection is the other way round.

use super::{Draft, Names, TensorName};
use crate::checkpoint::{Elements, View};
use regex::Regex;
use std::collections::HashMap;
use std::sync::LazyLock;

/// What every name begins with in all but the newest versions of transformers.
const PREFIX: &str = "text_model.";
/// The projections that OpenCLIP joins, in its order.
const JOINED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];
/// What a layer's modules are called by transformers and by OpenCLIP, other than those joined.
const LAYER: [(&str, &str); 5] = [
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
];
/// The tensors outside layers.
const OUTER: [(&str, &str); 4] = [
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm.weight", "ln_final.weight"),
    ("final_layer_norm.bias", "ln_final.bias"),
];
const PROJECTION: (&str, &str) = ("text_projection.weight", "text_projection");
/// Numbers from 0 on, which older versions of transformers save with the model.
const POSITIONS: &str = "embeddings.position_ids";

/// `layers.N.MODULE.weight` by transformers' names.
static LAYERS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^encoder\.layers\.(\d+)\.([a-z0-9_.]+)\.(weight|bias)$").expect("the pattern is a constant")
});
/// The same by OpenCLIP's, where joined projections have no module of their own.
static RESBLOCKS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^transformer\.resblocks\.(\d+)\.([a-z0-9_.]+)[._](weight|bias)$").expect("the pattern is a constant")
});

/// The name without the prefix that it may have.
fn inner(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// Whether these are a text encoder by transformers' names.
pub(super) fn is_text_encoder(names: &Names<'_>) -> bool {
    ["", PREFIX].iter().any(|prefix| names.begin(&format!("{prefix}{}", OUTER[0].0)))
}

/// Whether it has a projection, as the encoders of OpenCLIP do that are used here.
pub(super) fn is_projected(names: &Names<'_>) -> bool {
    names.begin(PROJECTION.0)
}

/// The width of the encoder's layers.
pub(super) fn width(tensors: &[TensorName<'_>]) -> Option<u64> {
    tensors.iter().find(|tensor| inner(tensor.name) == OUTER[2].0)?.shape.first().copied()
}

/// Names every tensor of a text encoder as transformers does, which both forms of the first encoder do.
pub(super) fn keep(tensors: &[TensorName<'_>], full_name: impl Fn(String) -> String, part: usize, draft: &mut Draft) {
    for tensor in tensors {
        let name = inner(tensor.name);
        let in_layer = |name: &str| {
            LAYERS.captures(name).is_some_and(|found| {
                let joined = found[2].strip_prefix("self_attn.").is_some_and(|module| JOINED.contains(&module));
                joined || LAYER.iter().any(|(module, _)| *module == &found[2])
            })
        };
        if name == POSITIONS || OUTER.iter().any(|(outer, _)| *outer == name) || in_layer(name) {
            draft.whole(tensor, part, full_name(format!("{PREFIX}{name}")));
        } else {
            draft.problem(tensor, "is not known in the text encoder of CLIP");
        }
    }
}

/// Names every tensor of a text encoder as OpenCLIP does.
pub(super) fn to_open_clip(
    tensors: &[TensorName<'_>],
    full_name: impl Fn(String) -> String,
    part: usize,
    draft: &mut Draft,
) {
    let by_name: HashMap<&str, &TensorName<'_>> = tensors.iter().map(|tensor| (inner(tensor.name), tensor)).collect();
    for tensor in tensors {
        let name = inner(tensor.name);
        if name == POSITIONS {
            draft.leave_out(tensor);
        } else if let Some((_, to)) = OUTER.iter().find(|(from, _)| *from == name) {
            draft.whole(tensor, part, full_name((*to).to_owned()));
        } else if name == PROJECTION.0 {
            draft.transposed(tensor, part, full_name(PROJECTION.1.to_owned()));
        } else if let Some(found) = LAYERS.captures(name) {
            let (layer, module, leaf) = (&found[1], &found[2], &found[3]);
            let block = |module: &str| full_name(format!("transformer.resblocks.{layer}.{module}"));
            if let Some((_, to)) = LAYER.iter().find(|(from, _)| *from == module) {
                draft.whole(tensor, part, block(&format!("{to}.{leaf}")));
            } else if module.strip_prefix("self_attn.").is_some_and(|module| JOINED.contains(&module)) {
                let all =
                    JOINED.map(|module| by_name.get(&*format!("encoder.layers.{layer}.self_attn.{module}.{leaf}")));
                match all {
                    [Some(q), Some(k), Some(v)] if q.shape == k.shape && q.shape == v.shape => {
                        // Once for the three.
                        if q.full == tensor.full {
                            draft.joined(&[q, k, v], part, block(&format!("attn.in_proj_{leaf}")));
                        }
                    }
                    [Some(_), Some(_), Some(_)] => {
                        draft.problem(tensor, "has another shape than the projections that it is joined with");
                    }
                    _ => draft.problem(tensor, "lacks one of q_proj, k_proj and v_proj, which OpenCLIP has as one"),
                }
            } else {
                draft.problem(tensor, "is not known in the text encoder of CLIP");
            }
        } else {
            draft.problem(tensor, "is not known in the text encoder of CLIP");
        }
    }
}

/// Names every tensor of OpenCLIP's text encoder as transformers does.
pub(super) fn from_open_clip(
    tensors: &[TensorName<'_>],
    full_name: impl Fn(String) -> String,
    part: usize,
    draft: &mut Draft,
) {
    for tensor in tensors {
        let outer = OUTER.iter().find(|(_, from)| *from == tensor.name);
        let layer = RESBLOCKS.captures(tensor.name);
        if let Some((to, _)) = outer {
            draft.whole(tensor, part, full_name(format!("{PREFIX}{to}")));
        } else if tensor.name == PROJECTION.1 {
            draft.transposed(tensor, part, full_name(PROJECTION.0.to_owned()));
        } else if ["logit_scale", "attn_mask"].contains(&tensor.name) {
            draft.leave_out(tensor);
        } else if let Some(found) = layer {
            let (layer, module, leaf) = (&found[1], &found[2], &found[3]);
            let name = |module: &str| full_name(format!("{PREFIX}encoder.layers.{layer}.{module}.{leaf}"));
            if let Some((to, _)) = LAYER.iter().find(|(_, from)| *from == module) {
                draft.whole(tensor, part, name(to));
            } else if module == "attn.in_proj" {
                let rows = tensor.shape.first().copied().unwrap_or(0);
                if !rows.is_multiple_of(3) {
                    draft.problem(tensor, format!("has {rows} rows, which are not three projections"));
                    continue;
                }
                let mut shape = tensor.shape.to_vec();
                shape.iter_mut().take(1).for_each(|height| *height = rows / 3);
                for (number, projection) in (0..).zip(JOINED) {
                    let rows = number * (rows / 3)..(number + 1) * (rows / 3);
                    let elements = Elements::Rows(tensor.full.to_owned(), rows);
                    let name = name(&format!("self_attn.{projection}"));
                    draft.views.push(View { name, part, shape: shape.clone(), elements });
                }
            } else {
                draft.problem(tensor, "is not known in the text encoder of OpenCLIP");
            }
        } else {
            draft.problem(tensor, "is not known in the text encoder of OpenCLIP");
        }
    }
}

impl Draft {
    /// A matrix the other way round.
    fn transposed(&mut self, tensor: &TensorName<'_>, part: usize, name: String) {
        let &[rows, columns] = tensor.shape else {
            self.problem(tensor, "is no matrix, as a projection is");
            return;
        };
        let elements = Elements::Transposed(tensor.full.to_owned());
        self.views.push(View { name, part, shape: vec![columns, rows], elements });
    }

    /// Tensors of one shape, one behind the other.
    fn joined(&mut self, tensors: &[&TensorName<'_>], part: usize, name: String) {
        let mut shape = tensors.first().map(|tensor| tensor.shape.to_vec()).unwrap_or_default();
        shape.iter_mut().take(1).for_each(|height| *height = height.saturating_mul(tensors.len() as u64));
        let names = tensors.iter().map(|tensor| tensor.full.to_owned()).collect();
        self.views.push(View { name, part, shape, elements: Elements::Joined(names) });
    }
}
