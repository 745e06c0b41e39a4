//! What stands beside the weights in a folder and is not as in the model that the folder is taken from: the recipe, a
//! card, a configuration with other numbers.

use crate::checkpoint::{SMALL_LIMIT, read_text};
use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The name of the card.
const CARD: &str = "README.md";
/// What a card that may be replaced says of itself.
const MARK: &str = "<!-- written by ckptmerge -->";
/// What configurations call the number of layers.
const LAYERS: [&str; 7] = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
];
/// What configurations call the number of tokens.
const TOKENS: [&str; 2] = ["vocab_size", "n_vocab"];

/// How the small files differ.
#[derive(Clone, Debug, Default)]
pub(super) struct Beside {
    /// Files that are written anew, with what is in them.
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    /// Files of the model's that would no longer be true.
    pub(super) dropped: BTreeSet<PathBuf>,
    /// What the card says below its title.
    pub(super) card: Option<String>,
    /// The number of layers that the configuration says, and which of them each layer of the output was.
    pub(super) layers: Option<(u64, Vec<u64>)>,
    /// The number of tokens that the output has.
    pub(super) tokens: Option<u64>,
}

impl Beside {
    /// The files, for an output at `target`.
    pub(super) fn files(&self, target: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = self.files.clone();
        if let Some(card) = &self.card {
            let name = target.components().next_back().map(|last| last.as_os_str().to_string_lossy().into_owned());
            let text = format!("# {}\n\n{MARK}\n\n{card}", name.unwrap_or_default());
            files.insert(CARD.into(), text.into_bytes());
        }
        files
    }

    /// Whether the output is not whole without small files: with another vocabulary it needs its tokenizer.
    pub(super) fn needs_folder(&self) -> bool {
        self.tokens.is_some() || self.files.contains_key(Path::new(crate::recipe::tokens::template::FILE))
    }

    /// That a card which is there is one of ours, so that nobody's text is lost.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(super) fn check_card(&self, folder: &Path) -> Result<()> {
        let path = folder.join(CARD);
        if self.card.is_none() || !path.exists() {
            return Ok(());
        }
        let text = read_text(&path, SMALL_LIMIT)?;
        if text.contains(MARK) {
            return Ok(());
        }
        let message = format!("the folder holds a {CARD} that ckptmerge did not write: move it or name another folder");
        Err(Error::output(folder, message))
    }

    /// Brings a configuration up to date; tells whether that changed it.
    pub(super) fn update(&self, config: &mut Value) -> bool {
        let mut changed = false;
        let Value::Object(entries) = config else { return false };
        for (key, value) in entries {
            match (value, &self.layers, self.tokens) {
                (value @ Value::Number(_), Some((old, from)), _)
                    if LAYERS.contains(&key.as_str()) && value.as_u64() == Some(*old) =>
                {
                    *value = from.len().into();
                    changed |= from.len() as u64 != *old;
                }
                (value @ Value::Number(_), _, Some(tokens)) if TOKENS.contains(&key.as_str()) => {
                    changed |= value.as_u64() != Some(tokens);
                    *value = tokens.into();
                }
                // A list with something for each layer, such as `layer_types`.
                (Value::Array(list), Some((old, from)), _) if key.contains("layer") && list.len() as u64 == *old => {
                    let picked: Option<Vec<Value>> =
                        from.iter().map(|layer| list.get(usize::try_from(*layer).ok()?).cloned()).collect();
                    if let Some(picked) = picked.filter(|picked| picked != list) {
                        *list = picked;
                        changed = true;
                    }
                }
                // The configuration of a part, such as `text_config`.
                (part @ Value::Object(_), ..) => changed |= self.update(part),
                _ => {}
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_of_layers_and_tokens_are_brought_up_to_date() {
        let mut config = json!({
            "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 60,
            "layer_types": ["a", "b", "c", "d"], "part": {"n_layer": 4, "vocab_size": 60},
        });
        let beside = Beside { layers: Some((4, vec![0, 1, 0, 1, 2])), tokens: Some(63), ..Beside::default() };
        assert!(beside.update(&mut config));
        let expected = json!({
            "num_hidden_layers": 5, "num_attention_heads": 4, "vocab_size": 63,
            "layer_types": ["a", "b", "a", "b", "c"], "part": {"n_layer": 5, "vocab_size": 63},
        });
        assert_eq!(config, expected);
        assert!(!Beside::default().update(&mut config));
    }
}
