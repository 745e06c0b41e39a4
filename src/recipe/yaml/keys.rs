//! The keys of a recipe, and what is said of others: those of older versions of mergekit, of tools beside it, and such as
//! stand at another level.

use crate::error::Error;
use crate::merge::METHODS;
use crate::recipe::levels::{NORMALIZE, WEIGHT};

/// The keys of a document.
pub(super) const TOP: [&str; 17] = [
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
    "seed",
    "missing",
    "include",
    "exclude",
    "block_presets",
];

/// Keys that many recipes have and mergekit 0.1.5 passes over, without which nothing else is merged: what is said of each.
const WITHOUT_EFFECT: [(&str, &str); 2] = [
    ("embed_slerp", "embeddings are merged like other tensors, as in mergekit since 0.1"),
    ("random_seed", "mergekit takes it on the command line only, and here the key is `seed`"),
];

/// What replaces keys of older versions, of tools beside mergekit and of other programs.
const REPLACED: [(&str, &str); 14] = [
    ("out_path", OUTPUT),
    ("output_path", OUTPUT),
    ("output_dir", OUTPUT),
    ("out_shard_size", "give it on the command line, as `--shard-size`"),
    ("allow_crimes", NEEDLESS),
    ("copy_tokenizer", NEEDLESS),
    ("cuda", NEEDLESS),
    ("lazy_unpickle", NEEDLESS),
    ("low_cpu_memory", NEEDLESS),
    ("trust_remote_code", NEEDLESS),
    ("experts", EXPERTS),
    ("gate_mode", EXPERTS),
    ("layer_slices", "write `slices`, whose sources have a `layer_range: [first, behind the last]`"),
    ("dare_pruning_rate", "write `density`, which is 1 − that rate"),
];
const OUTPUT: &str = "give the output on the command line, with `-o`";
const NEEDLESS: &str = "it is an option of mergekit's that is not needed here: drop it";
const EXPERTS: &str = "it is mergekit-moe's, whose mixtures of experts cannot be made here";

/// The parameters that any method has.
fn parameters() -> impl Iterator<Item = &'static str> {
    let own = METHODS.iter().flat_map(|method| method.about().parameters).map(|parameter| parameter.name);
    own.chain([WEIGHT, NORMALIZE])
}

/// Whether it is a parameter of some method.
pub(super) fn is_parameter(key: &str) -> bool {
    parameters().any(|parameter| parameter == key)
}

/// Why a key that is none of the known may be passed over.
pub(super) fn without_effect(key: &str) -> Option<&'static str> {
    WITHOUT_EFFECT.iter().find(|(known, _)| *known == key).map(|(_, why)| *why)
}

/// What is to be done about a key that is none of the known: of `parameters`, or of something else.
pub(super) fn advice<'k>(key: &str, in_parameters: bool, known: impl IntoIterator<Item = &'k str>) -> String {
    if let Some((_, advice)) = REPLACED.iter().find(|(old, _)| *old == key) {
        return (*advice).to_owned();
    }
    let known: Vec<&str> = known.into_iter().collect();
    if in_parameters && TOP.contains(&key) {
        return "it stands beside `parameters`, not among them".to_owned();
    }
    if !in_parameters && known.contains(&"parameters") && is_parameter(key) {
        return "it stands under `parameters`".to_owned();
    }
    if key == "layer_range" {
        return "layers are taken by the `sources` of `slices`".to_owned();
    }
    match Error::unknown("key", key, known) {
        Error::Unknown { suggestion, .. } => suggestion,
        other => other.to_string(),
    }
}
