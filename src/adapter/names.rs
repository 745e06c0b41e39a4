//! What an adapter's tensors are, by their names, and which tensors of a base they are for.
//!
//! A name is a module's and a part's. PEFT puts `base_model.model.` before the module's path and diffusers its component
//! (`unet.`). kohya's scripts write `lora_unet_` or `lora_te_` and the path with `_` for every `.`, which cannot be undone
//! by rule; so the base's own names are written that way and looked up, and beside them those that other libraries have
//! for the same model.

use super::product::Layout;
use crate::checkpoint::Checkpoint;
use crate::names;
use std::collections::{BTreeSet, HashMap};

/// What a tensor is to its module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Down(Layout),
    Up(Layout),
    Core,
    Alpha,
    /// Added to the module's bias, scaled as the product is.
    Bias,
    /// Replaces the base's tensor of the module's name.
    Whole,
    /// A part of something that is no plain LoRA.
    Refused(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// Endings of names, the part they are.
const PARTS: [(&str, Role); 11] = [
    (".lora_down.weight", Role::Down(Layout::Plain)),
    (".lora_up.weight", Role::Up(Layout::Plain)),
    (".lora_mid.weight", Role::Core),
    (".lora.down.weight", Role::Down(Layout::Plain)),
    (".lora.up.weight", Role::Up(Layout::Plain)),
    (".lora_linear_layer.down.weight", Role::Down(Layout::Plain)),
    (".lora_linear_layer.up.weight", Role::Up(Layout::Plain)),
    (".lora_embedding_A", Role::Down(Layout::Transposed)),
    (".lora_embedding_B", Role::Up(Layout::Transposed)),
    (".alpha", Role::Alpha),
    (".lora_alpha", Role::Alpha),
];
/// Parts that PEFT writes with the adapter's name within, if it has one: `lora_A.weight`, `lora_A.default.weight`.
const NAMED_PARTS: [(&str, &str, Role); 3] = [
    ("lora_A", "weight", Role::Down(Layout::Plain)),
    ("lora_B", "weight", Role::Up(Layout::Plain)),
    ("lora_B", "bias", Role::Bias),
];
/// Words that one of the last parts of a name begins with, the adapter they are of.
const REFUSED: [(&str, &str); 15] = [
    ("lora_magnitude_vector", "DoRA"),
    ("dora_scale", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("ia3_", "IA3"),
    ("on_input", "IA3"),
    ("boft_", "BOFT"),
    ("oft_", "OFT"),
    ("vera_", "VeRA"),
    ("glora_", "GLoRA"),
    ("lora_E", "AdaLoRA"),
    ("ranknum", "AdaLoRA"),
    ("trainable_tokens", "single trained tokens"),
    ("prompt_embeddings", "prompt tuning"),
    ("scalar", "LyCORIS' trained scale"),
];
/// What PEFT's names begin with.
pub(super) const PEFT: &str = "base_model.model.";

/// A component of a pipeline, as kohya's and diffusers' adapters call it, and what its tensors' names begin with in
/// diffusers' folders, in single files and in a file of its own.
struct Component {
    flat: &'static [&'static str],
    dotted: &'static [&'static str],
    roots: &'static [&'static str],
}

const COMPONENTS: [Component; 4] = [
    Component {
        flat: &["lora_unet_", "lora_transformer_"],
        dotted: &["unet.", "transformer.", "diffusion_model."],
        roots: &["unet/", "transformer/", "model.diffusion_model.", ""],
    },
    Component {
        flat: &["lora_te1_", "lora_te_"],
        dotted: &["text_encoder."],
        roots: &["text_encoder/", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", ""],
    },
    Component {
        flat: &["lora_te2_"],
        dotted: &["text_encoder_2."],
        roots: &["text_encoder_2/", "conditioner.embedders.1.model.", ""],
    },
    Component { flat: &["lora_te3_"], dotted: &["text_encoder_3."], roots: &["text_encoder_3/", ""] },
];

/// The module and the part that a name is.
pub(super) fn split(name: &str) -> (&str, Role) {
    let is_flat = flat(name).is_some();
    for (ending, role) in PARTS {
        if let Some(module) = name.strip_suffix(ending) {
            return (module, role);
        }
    }
    let parts: Vec<&str> = name.rsplitn(4, '.').collect();
    for (part, last, role) in NAMED_PARTS {
        let within = match parts[..] {
            [end, found, _, ..] if end == last && found == part => Some(found.len() + end.len() + 2),
            [end, adapter, found, _] if end == last && found == part => {
                Some(found.len() + adapter.len() + end.len() + 3)
            }
            _ => None,
        };
        if let Some(module) = within.and_then(|length| name.get(..name.len() - length)) {
            return (module, role);
        }
    }
    let tail = parts.iter().take(3);
    let refused = REFUSED.iter().find(|(word, _)| tail.clone().any(|part| part.starts_with(word)));
    match refused {
        Some((_, what)) => (name, Role::Refused(what)),
        None if name.starts_with(PEFT) && !is_flat => (name, Role::Whole),
        None => (name, Role::Unknown),
    }
}

/// The component that a kohya name is for, and the rest of the name.
fn flat(name: &str) -> Option<(&'static Component, &str)> {
    COMPONENTS.iter().find_map(|component| {
        component.flat.iter().find_map(|prefix| name.strip_prefix(prefix)).map(|rest| (component, rest))
    })
}

/// Whether a name is of a pipeline's second text encoder.
pub(super) fn is_of_second_encoder(name: &str) -> bool {
    let second = &COMPONENTS[2];
    second.flat.iter().chain(second.dotted).any(|prefix| name.starts_with(prefix))
}

/// Whether a file is an adapter: it has parts of one, and no model's layers below it.
pub(super) fn is_adapter<'n>(names: impl Iterator<Item = &'n str>) -> bool {
    let mut found = false;
    for name in names {
        if name.ends_with(".base_layer.weight") {
            return false;
        }
        let (_, role) = split(name);
        // Whole tensors, single numbers and plain words are in other files as well.
        found |= match role {
            Role::Down(_) | Role::Up(_) | Role::Core | Role::Bias => true,
            Role::Refused(_) => !name.contains("scalar") && !name.contains("on_input"),
            Role::Alpha | Role::Whole | Role::Unknown => false,
        };
    }
    found
}

/// The names of a base, to find modules by.
pub(super) struct Names<'b> {
    base: &'b Checkpoint,
    /// Tensors by the names that other libraries have for them.
    others: HashMap<String, &'b str>,
    /// Tensors by component and flat name of their module.
    flat: [HashMap<String, BTreeSet<&'b str>>; COMPONENTS.len()],
    /// What the names of each part of the base's layout begin with.
    parts: Vec<String>,
}

/// A module that is not to be found.
pub(super) enum Lost<'b> {
    Nowhere,
    /// All of these fit.
    Ambiguous(Vec<&'b str>),
}

impl<'b> Names<'b> {
    pub(super) fn new(base: &'b Checkpoint) -> Self {
        let full = |own: String| base.get(&own).map(|view| view.tensor.name.as_str());
        let others = names::other_names(base).into_iter().filter_map(|(name, own)| Some((name, full(own)?)));
        let others: HashMap<String, &str> = others.collect();
        let mut by_flat: [HashMap<String, BTreeSet<&str>>; COMPONENTS.len()] = std::array::from_fn(|_| HashMap::new());
        for (component, names) in COMPONENTS.iter().zip(&mut by_flat) {
            let own = base.tensors().iter().map(|tensor| (&tensor.name, tensor.name.as_str()));
            for (name, tensor) in own.chain(others.iter().map(|(name, tensor)| (name, *tensor))) {
                let Some(module) = name.strip_suffix(".weight") else { continue };
                for path in component.roots.iter().filter_map(|root| module.strip_prefix(root)) {
                    names.entry(path.replace('.', "_")).or_default().insert(tensor);
                }
            }
        }
        let parts = base.layout().parts.iter().map(|part| part.prefix()).collect();
        Self { base, others, flat: by_flat, parts }
    }

    /// The base's weight that a module has.
    pub(super) fn find(&self, module: &str) -> Result<&'b str, Lost<'b>> {
        let candidates: BTreeSet<&str> = match flat(module) {
            Some((component, rest)) => {
                let index = COMPONENTS.iter().position(|known| std::ptr::eq(known, component)).unwrap_or(0);
                self.flat[index].get(rest).cloned().unwrap_or_default()
            }
            None => self.paths(module).iter().filter_map(|path| self.get(&format!("{path}.weight"))).collect(),
        };
        Self::one(candidates)
    }

    /// The base's tensor that a whole tensor of an adapter replaces.
    pub(super) fn find_whole(&self, name: &str) -> Result<&'b str, Lost<'b>> {
        let name = name.replace(".base_layer.", ".");
        let plain = name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
        Self::one(self.paths(&plain).iter().filter_map(|path| self.get(path)).collect())
    }

    fn get(&self, name: &str) -> Option<&'b str> {
        let own = self.base.get(name).map(|view| view.tensor.name.as_str());
        own.or_else(|| self.others.get(name).copied())
    }

    /// The names that a path with dots may have in the base.
    fn paths(&self, path: &str) -> BTreeSet<String> {
        let mut paths = BTreeSet::new();
        if let Some(rest) = path.strip_prefix(PEFT) {
            paths.extend(self.parts.iter().map(|part| format!("{part}{rest}")));
            return paths;
        }
        paths.insert(path.to_owned());
        for component in &COMPONENTS {
            for rest in component.dotted.iter().filter_map(|prefix| path.strip_prefix(prefix)) {
                paths.extend(component.roots.iter().map(|root| format!("{root}{rest}")));
            }
        }
        paths
    }

    fn one(candidates: BTreeSet<&'b str>) -> Result<&'b str, Lost<'b>> {
        let mut all = candidates.iter();
        match (all.next(), all.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(Lost::Nowhere),
            _ => Err(Lost::Ambiguous(candidates.into_iter().collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_modules_and_parts() {
        let plain = Layout::Plain;
        for (name, module, role) in [
            ("base_model.model.a.q.lora_A.weight", "base_model.model.a.q", Role::Down(plain)),
            ("base_model.model.a.q.lora_B.default.weight", "base_model.model.a.q", Role::Up(plain)),
            ("base_model.model.a.q.lora_B.bias", "base_model.model.a.q", Role::Bias),
            ("base_model.model.e.lora_embedding_A", "base_model.model.e", Role::Down(Layout::Transposed)),
            ("base_model.model.head.weight", "base_model.model.head.weight", Role::Whole),
            ("lora_unet_a_q.lora_up.weight", "lora_unet_a_q", Role::Up(plain)),
            ("lora_unet_a_q.lora_mid.weight", "lora_unet_a_q", Role::Core),
            ("lora_unet_a_q.alpha", "lora_unet_a_q", Role::Alpha),
            ("unet.a.q.lora.down.weight", "unet.a.q", Role::Down(plain)),
            ("unet.a.q.lora_A.weight", "unet.a.q", Role::Down(plain)),
            ("lora_unet_a.hada_w1_a", "lora_unet_a.hada_w1_a", Role::Refused("LoHa")),
            ("lora_unet_a.lokr_w1", "lora_unet_a.lokr_w1", Role::Refused("LoKr")),
            ("base_model.model.a.ia3_l", "base_model.model.a.ia3_l", Role::Refused("IA3")),
            (
                "base_model.model.a.lora_magnitude_vector.weight",
                "base_model.model.a.lora_magnitude_vector.weight",
                Role::Refused("DoRA"),
            ),
            ("lora_unet_a.diff", "lora_unet_a.diff", Role::Unknown),
            ("lora_A.weight", "lora_A.weight", Role::Unknown),
            ("", "", Role::Unknown),
        ] {
            assert_eq!(split(name), (module, role), "{name}");
        }
    }

    #[test]
    fn adapters_are_told_by_their_parts() {
        assert!(is_adapter(["lora_te_x.alpha", "lora_te_x.lora_up.weight"].into_iter()));
        assert!(!is_adapter(["model.layers.0.weight", "alpha.weight", "x.alpha"].into_iter()));
        assert!(!is_adapter(["base_model.model.a.base_layer.weight", "base_model.model.a.lora_A.weight"].into_iter()));
        assert!(!is_adapter([].into_iter()));
    }
}
