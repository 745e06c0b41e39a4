//! `tokenizer.json`, read for its tokens and written with more of them.

use crate::checkpoint::{Checkpoint, read_json};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// The file of a fast tokenizer.
pub(in crate::recipe) const FILE: &str = "tokenizer.json";

/// The most rows that a vocabulary may have, padding included: sixty times the largest there is.
pub(in crate::recipe) const MOST: u64 = 1 << 24;

/// A model's tokens.
pub(in crate::recipe) struct Vocabulary {
    /// The tokenizer, as its file has it.
    pub(in crate::recipe) json: Value,
    /// The number of each token.
    pub(in crate::recipe) ids: HashMap<String, u64>,
    /// How many rows the model has for tokens; those beyond have none.
    pub(in crate::recipe) size: u64,
}

impl Vocabulary {
    /// Of a model that is a folder; none if it has no tokenizer.
    ///
    /// # Errors
    /// [`Error::Model`] if its files are not what they should be.
    pub(in crate::recipe) fn of(model: &Checkpoint) -> Result<Option<Self>> {
        let layout = model.layout();
        let path = layout.root.join(FILE);
        if !layout.is_folder || !path.is_file() {
            return Ok(None);
        }
        let json = read_json(&path)?;
        let ids = ids(&json).ok_or_else(|| Error::model(&path, "is not a tokenizer: its tokens cannot be told"))?;
        let config = layout.root.join("config.json");
        let size = if config.is_file() { vocab_size(&read_json(&config)?) } else { None };
        let size = size.unwrap_or(ids.len() as u64);
        Ok(Some(Self { json, ids, size }))
    }

    /// The tokens in the order of their numbers.
    pub(in crate::recipe) fn ordered(&self) -> Vec<(String, u64)> {
        let mut all: Vec<(String, u64)> = self.ids.iter().map(|(token, id)| (token.clone(), *id)).collect();
        all.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        all
    }

    /// The tokenizer without tokens that the model has no rows for.
    ///
    /// # Errors
    /// A message if there are such tokens and they cannot be taken out.
    pub(in crate::recipe) fn stripped(&self) -> Result<Value, String> {
        let unused: HashSet<&str> =
            self.ids.iter().filter(|(_, id)| **id >= self.size).map(|(token, _)| token.as_str()).collect();
        let mut json = self.json.clone();
        if unused.is_empty() {
            return Ok(json);
        }
        if json["model"]["type"] != "BPE" {
            let kind = json["model"]["type"].as_str().unwrap_or("unknown");
            return Err(format!(
                "has tokens beyond its {} rows, which can be taken out of tokenizers of type BPE, not {kind}",
                self.size
            ));
        }
        if let Some(added) = json["added_tokens"].as_array_mut() {
            added.retain(|entry| entry["id"].as_u64().is_some_and(|id| id < self.size));
        }
        if let Some(vocab) = json["model"]["vocab"].as_object_mut() {
            vocab.retain(|token, _| !unused.contains(token.as_str()));
        }
        if let Some(merges) = json["model"]["merges"].as_array_mut() {
            merges.retain(|merge| match merge {
                Value::String(pair) => !pair.split(' ').any(|token| unused.contains(token)),
                Value::Array(pair) => !pair.iter().filter_map(Value::as_str).any(|token| unused.contains(token)),
                _ => true,
            });
        }
        Ok(json)
    }
}

/// The number of tokens that a configuration says, its own or that of its text part.
fn vocab_size(config: &Value) -> Option<u64> {
    let of = |config: &Value| ["vocab_size", "n_vocab"].iter().find_map(|key| config.get(*key)?.as_u64());
    of(config).or_else(|| of(config.get("text_config")?))
}

/// All tokens of a tokenizer, ordinary and added ones, with their numbers; none if it is not one, or has [too many](MOST).
pub(in crate::recipe) fn ids(json: &Value) -> Option<HashMap<String, u64>> {
    let mut ids = HashMap::new();
    match json.get("model")?.get("vocab")? {
        Value::Object(vocab) => {
            for (token, id) in vocab {
                ids.insert(token.clone(), id.as_u64()?);
            }
        }
        // Unigram: pairs of a token and its score, numbered as they stand.
        Value::Array(vocab) => {
            for (id, pair) in vocab.iter().enumerate() {
                ids.insert(pair.get(0)?.as_str()?.to_owned(), id as u64);
            }
        }
        _ => return None,
    }
    for entry in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        ids.insert(entry.get("content")?.as_str()?.to_owned(), entry.get("id")?.as_u64()?);
    }
    ids.values().all(|id| *id < MOST).then_some(ids)
}

/// Adds an entry of `added_tokens`, with the number that its token has or the next that is free.
fn add(json: &mut Value, mut entry: Value) -> Option<()> {
    let content = entry.get("content")?.as_str()?.to_owned();
    let known = ids(json)?;
    let ordinary = match json.get("model")?.get("vocab")? {
        Value::Object(vocab) => vocab.len() as u64,
        Value::Array(vocab) => vocab.len() as u64,
        _ => return None,
    };
    let added = json.get_mut("added_tokens")?.as_array_mut()?;
    if added.iter().any(|other| other["content"] == content.as_str()) {
        return Some(());
    }
    let next = added.iter().filter_map(|other| other["id"].as_u64()).map(|id| id + 1).max().unwrap_or(0).max(ordinary);
    entry["id"] = known.get(&content).copied().unwrap_or(next).into();
    added.push(entry);
    added.sort_by_key(|entry| entry["id"].as_u64());
    Some(())
}

/// A token without properties.
fn plain(token: &str) -> Value {
    json!({
        "id": 0, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true,
        "special": false,
    })
}

/// A tokenizer with more tokens, which it may have already.
pub(in crate::recipe) fn with_tokens<'t>(mut json: Value, tokens: impl IntoIterator<Item = &'t str>) -> Option<Value> {
    let known = ids(&json)?;
    for token in tokens {
        if !known.contains_key(token) {
            add(&mut json, plain(token))?;
        }
    }
    Some(json)
}

/// The base's tokenizer with the tokens of others: first ordinary ones, then added ones.
pub(in crate::recipe) fn union<'v>(base: Value, others: impl Iterator<Item = &'v Vocabulary> + Clone) -> Option<Value> {
    let mut json = base;
    let known = ids(&json)?;
    let added = |vocabulary: &'v Vocabulary| {
        let entries = vocabulary.json.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
        entries.filter(|entry| entry["id"].as_u64().is_some_and(|id| id < vocabulary.size))
    };
    let special: HashSet<&str> = others.clone().flat_map(added).filter_map(|entry| entry["content"].as_str()).collect();
    let mut words = Vec::new();
    for vocabulary in others.clone() {
        let ordinary = vocabulary.ordered().into_iter().filter(|(_, id)| *id < vocabulary.size);
        words.extend(ordinary.map(|(token, _)| token).filter(|token| !special.contains(token.as_str())));
    }
    for word in words.iter().filter(|word| !known.contains_key(word.as_str())) {
        add(&mut json, plain(word))?;
    }
    for entry in others.flat_map(added) {
        add(&mut json, entry.clone())?;
    }
    Some(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(words: &[&str], added: &[(&str, u64)], size: u64) -> Vocabulary {
        let vocab: serde_json::Map<String, Value> =
            words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
        let added: Vec<Value> =
            added.iter().map(|(token, id)| json!({"id": id, "content": token, "special": true})).collect();
        let json =
            json!({"added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", ["b", "c"]]}});
        Vocabulary { ids: ids(&json).expect("it has tokens"), json, size }
    }

    #[test]
    fn a_union_adds_words_and_then_special_tokens() {
        let base = vocabulary(&["a", "b"], &[("<s>", 2)], 3);
        let other = vocabulary(&["b", "x", "<s>", "beyond"], &[("<y>", 4), ("a", 5)], 6);
        let json = union(base.json.clone(), [&base, &other].into_iter()).expect("both are tokenizers");
        let tokens = ids(&json).expect("it has tokens");
        // `a` is a token that is added in the other model, and keeps its number.
        for (token, id) in [("a", 0), ("b", 1), ("<s>", 2), ("x", 3), ("beyond", 4), ("<y>", 5)] {
            assert_eq!(tokens.get(token), Some(&id), "{token} of {tokens:?}");
        }
        assert_eq!(tokens.len(), 6);
        let more = with_tokens(json, ["a", "new"]).expect("it has tokens");
        assert_eq!(ids(&more).expect("it has tokens").get("new"), Some(&6));
    }

    #[test]
    fn tokens_without_rows_are_taken_out() {
        let mut base = vocabulary(&["a", "b", "c"], &[("<s>", 3)], 2);
        let json = base.stripped().expect("it is BPE");
        assert_eq!(ids(&json).map(|ids| ids.len()), Some(2));
        assert_eq!(json["model"]["merges"], json!(["a b"]));
        base.json["model"]["type"] = "Unigram".into();
        assert!(base.stripped().is_err());
    }
}
