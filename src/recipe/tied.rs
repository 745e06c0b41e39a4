//! Output heads that models share with their embeddings, and so do not hold.
//!
//! Where some models of a merge have a head of their own and others lack it, the embedding of those that lack it stands
//! for it, as it does when they run. Told without a table of architectures: by the names of the two tensors and their
//! width, unless the model's `config.json` says that the two are not tied.

use super::supply::{Given, Supply};
use crate::checkpoint::{Checkpoint, read_json};
use serde_json::Value;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Ends of the names of heads and of the embeddings that they are tied to: Llama and most others, GPT-2, BLOOM and
/// Falcon, GPT-NeoX, GGUF.
const PAIRS: [(&str, &str); 5] = [
    ("lm_head.weight", "embed_tokens.weight"),
    ("lm_head.weight", "wte.weight"),
    ("lm_head.weight", "word_embeddings.weight"),
    ("embed_out.weight", "embed_in.weight"),
    ("output.weight", "token_embd.weight"),
];
/// What a configuration calls whether they are tied.
const SWITCH: &str = "tie_word_embeddings";

fn ends_with(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with(['.', '/']))
}

/// Whether a tensor of this name is a head that may be tied.
fn is_head(name: &str) -> bool {
    PAIRS.iter().any(|(head, _)| ends_with(name, head))
}

/// The embedding that stands for a head of this name and width in a model that lacks it.
fn embedding<'s, 'a>(supply: &'s Supply<'a>, head: &str, width: Option<&u64>) -> Option<&'s Given<'a>> {
    let of_head = |name: &str| PAIRS.iter().any(|(end, other)| ends_with(head, end) && ends_with(name, other));
    let fits = |given: &&Given<'a>| given.shape.len() == 2 && given.shape.last() == width && of_head(&given.name);
    let mut found = supply.tensors().iter().filter(fits);
    // Of several it is not known which.
    found.next().filter(|_| found.next().is_none())
}

/// Whether a model's configuration says that the two are not tied.
fn is_untied(model: &Checkpoint) -> bool {
    let layout = model.layout();
    if !layout.is_folder {
        return false;
    }
    let Ok(config) = read_json(&layout.root.join("config.json")) else { return false };
    let said = config.get(SWITCH).or_else(|| config.get("text_config")?.get(SWITCH));
    said == Some(&Value::Bool(false))
}

/// Puts supplies with heads in place of those that lack one which another has for its own, and notes it.
pub(super) fn complete<'a>(supplies: &[Rc<Supply<'a>>], notes: &mut Vec<String>) -> Vec<Rc<Supply<'a>>> {
    let own = |given: &&Given<'a>| given.shape.len() == 2 && given.alias_of.is_none() && is_head(&given.name);
    let heads = supplies.iter().flat_map(|supply| supply.tensors().iter().filter(own));
    let heads: BTreeSet<(&str, Option<&u64>)> = heads.map(|given| (given.name.as_str(), given.shape.last())).collect();
    let completed = |supply: &Rc<Supply<'a>>| {
        let mut added: Vec<Given<'a>> = Vec::new();
        for (head, width) in &heads {
            if supply.get(head).is_some() || added.iter().any(|given| given.name == *head) {
                continue;
            }
            let Some(embedding) = embedding(supply, head, *width).filter(|_| !is_untied(supply.root)) else { continue };
            let note = format!(
                "{} has no `{head}`: its `{}` stands for it, as in models whose embeddings are tied",
                supply.label, embedding.name
            );
            if !notes.contains(&note) {
                notes.push(note);
            }
            let alias_of = Some(embedding.name.clone());
            added.push(Given { name: (*head).to_owned(), alias_of, ..embedding.clone() });
        }
        if added.is_empty() {
            return Rc::clone(supply);
        }
        let all = supply.tensors().iter().cloned().chain(added).collect();
        Rc::new(Supply::new(supply.label.clone(), supply.root, all))
    };
    supplies.iter().map(completed).collect()
}

/// Makes a configuration say that the two are not tied; tells whether that changed it.
pub(super) fn untie(config: &mut Value) -> bool {
    let Value::Object(entries) = config else { return false };
    let mut changed = entries.insert(SWITCH.to_owned(), false.into()) != Some(false.into());
    for part in entries.values_mut().filter_map(|part| part.get_mut(SWITCH)) {
        changed |= *part != Value::Bool(false);
        *part = false.into();
    }
    changed
}

/// Whether an output has a head of its own where the model whose configuration it gets has none.
pub(super) fn unties<'n>(mut own: impl Iterator<Item = &'n str>, frame: &Checkpoint) -> bool {
    own.any(|name| is_head(name) && frame.get(name).is_none_or(|view| view.tensor.alias_of.is_some()))
}
