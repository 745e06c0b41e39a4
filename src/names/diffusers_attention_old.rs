//! From today's names of attention in diffusers to those before version 0.15, for programs that know no others.

use super::diffusers_attention::{LAYERS, rename};
use super::{Mapping, NameMap, Names, PartNames};
use crate::error::Mismatch;

/// The map.
#[derive(Debug)]
pub(super) struct DiffusersAttentionOld;

impl NameMap for DiffusersAttentionOld {
    fn id(&self) -> &'static str {
        "diffusers-attention-old"
    }

    fn about(&self) -> &'static str {
        "the way back: today's names of attention (to_q, …) as the old ones (query, …)"
    }

    fn map(&self, parts: &[PartNames<'_>]) -> Result<Mapping, Vec<Mismatch>> {
        let layers = LAYERS.map(|(old, new)| (new, old));
        // Attention with keys of its own for text never had other names.
        let had_old_names = |names: &Names<'_>, block: &str| !names.begin(&format!("{block}.add_k_proj."));
        rename(
            parts,
            &layers,
            had_old_names,
            "no tensor's name is one that diffusers had another for, such as `….attentions.0.to_q.weight`",
        )
    }
}
