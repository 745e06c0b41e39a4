//! CLIP's tokens (Radford et al. 2021, <https://arxiv.org/abs/2103.00020>): byte-level BPE of lower-case words.
//!
//! A text is brought to Unicode's form C, white space becomes single spaces, letters become lower-case; words, single digits and
//! runs of other signs are split off, and their bytes are joined by the merges in their order, the last one marked by
//! `</w>`. What stands in the fixed number of places is a start, the tokens, an end, and padding.

use crate::checkpoint::{SMALL_LIMIT, read_json, read_text};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// CLIP's places; what configurations say that do not know is a very large number.
const PLACES: usize = 77;

/// A text as a text encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// A start, the text, an end, and padding: as many as there are places.
    pub ids: Vec<u32>,
    /// The end of the text for which there was no place.
    pub left_out: Option<String>,
}

/// The tokenizer of a pipeline's folder.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    padding: u32,
    places: usize,
    /// One more than the largest token.
    pub(super) vocabulary: u64,
}

impl ClipTokenizer {
    /// Reads `vocab.json` and `merges.txt`, or `tokenizer.json`, and `tokenizer_config.json` and `special_tokens_map.json` where
    /// they are.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Model`].
    pub fn open(folder: &Path) -> Result<Self> {
        let settings = Settings::read(folder)?;
        let (vocabulary, merges) = if folder.join("vocab.json").is_file() {
            let path = folder.join("vocab.json");
            let Value::Object(vocabulary) = read_json(&path)? else {
                return Err(Error::model(&path, "is not a vocabulary, which is a JSON object"));
            };
            (vocabulary, merges(&folder.join("merges.txt"))?)
        } else {
            whole(&folder.join("tokenizer.json"))?
        };
        let wrong = |message: String| Error::model(folder, message);
        let id = |token: &str| {
            let id = vocabulary.get(token).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong(format!("the vocabulary has no token `{token}`")))
        };
        let (start, end, padding) = (id(&settings.start)?, id(&settings.end)?, id(&settings.padding)?);
        let largest = vocabulary.values().filter_map(Value::as_u64).max().unwrap_or(0);
        let special = |content: &String, id: u32| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true
            })
        };
        let unknown = settings.unknown.as_str();
        id(unknown)?;
        let mut added = vec![special(&settings.start, start), special(&settings.end, end)];
        if padding != end && padding != start {
            added.push(special(&settings.padding, padding));
        }
        let whole = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
                { "type": "Lowercase" },
            ] },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ] },
            "post_processor": null,
            "decoder": null,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": "",
                "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": merges,
            },
        });
        let tokenizer = tokenizers::Tokenizer::from_bytes(whole.to_string())
            .map_err(|error| wrong(format!("the tokenizer cannot be built: {error}")))?;
        Ok(Self { tokenizer, start, end, padding, places: settings.places, vocabulary: largest + 1 })
    }

    /// How many places there are.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places
    }

    /// A text's tokens.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the text cannot be split.
    pub fn tokens(&self, text: &str) -> Result<Tokens> {
        let wrong = |error| Error::Recipe(format!("the prompt cannot be made tokens: {error}"));
        let encoding = self.tokenizer.encode(text, false).map_err(wrong)?;
        let room = self.places.saturating_sub(2);
        let taken = encoding.get_ids().iter().copied().take(room);
        let mut ids: Vec<u32> = std::iter::once(self.start).chain(taken).chain([self.end]).collect();
        ids.resize(self.places, self.padding);
        let left_out = encoding.get_offsets().get(room).and_then(|(from, _)| text.get(*from..)).map(str::to_owned);
        Ok(Tokens { ids, left_out })
    }
}

/// What stands for what.
struct Settings {
    start: String,
    end: String,
    padding: String,
    unknown: String,
    places: usize,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            if path.is_file() { read_json(&path) } else { Ok(Value::Null) }
        };
        let (config, map) = (read("tokenizer_config.json")?, read("special_tokens_map.json")?);
        let token = |key: &str, default: &str| {
            let text = |value: &Value| value.as_str().or(value["content"].as_str()).map(str::to_owned);
            text(&config[key]).or_else(|| text(&map[key])).unwrap_or_else(|| default.to_owned())
        };
        let (start, end) = ("<|startoftext|>", "<|endoftext|>");
        let settings = Self {
            start: token("bos_token", start),
            end: token("eos_token", end),
            padding: token("pad_token", end),
            unknown: token("unk_token", end),
            places: config["model_max_length"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(PLACES),
        };
        // Prompts may hold tokens of textual inversion, which are as many more rows of the encoder.
        let own = [&settings.start, &settings.end, &settings.padding, &settings.unknown];
        let mut added: Vec<String> =
            read("added_tokens.json")?.as_object().into_iter().flat_map(Map::keys).cloned().collect();
        let decoder = config["added_tokens_decoder"].as_object();
        added.extend(
            decoder.into_iter().flatten().filter_map(|(_, token)| token["content"].as_str().map(str::to_owned)),
        );
        if let Some(other) = added.iter().find(|token| !own.contains(token)) {
            let message = format!("the tokenizer has the token `{other}` beside CLIP's, which is not supported");
            return Err(Error::model(folder, message));
        }
        Ok(settings)
    }
}

/// Pairs that are joined, one a line, the first ones first.
fn merges(path: &Path) -> Result<Vec<Value>> {
    let text = read_text(path, SMALL_LIMIT)?;
    let lines =
        text.lines().enumerate().filter(|(at, line)| !(line.is_empty() || (*at == 0 && line.starts_with("#version"))));
    let pair = |(at, line): (usize, &str)| match line.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok(json!([left, right]))
        }
        _ => Err(Error::model(path, format!("line {} is no pair of tokens", at + 1))),
    };
    lines.map(pair).collect()
}

/// The vocabulary and the merges of a `tokenizer.json`.
fn whole(path: &Path) -> Result<(Map<String, Value>, Vec<Value>)> {
    if !path.is_file() {
        let folder = path.parent().unwrap_or(path);
        return Err(Error::model(folder, "has neither vocab.json and merges.txt nor tokenizer.json"));
    }
    let mut all = read_json(path)?;
    let mut model = all["model"].take();
    let is_clip = model["type"] == "BPE" && model["end_of_word_suffix"] == "</w>";
    match (model["vocab"].take(), model["merges"].take()) {
        (Value::Object(mut vocabulary), Value::Array(merges)) if is_clip => {
            // Special tokens may stand beside the vocabulary alone.
            for token in all["added_tokens"].as_array().into_iter().flatten() {
                if let Some(content) = token["content"].as_str() {
                    vocabulary.entry(content).or_insert(token["id"].clone());
                }
            }
            Ok((vocabulary, merges))
        }
        _ => Err(Error::model(path, "is not a tokenizer of CLIP's kind: BPE whose words end in `</w>`")),
    }
}
