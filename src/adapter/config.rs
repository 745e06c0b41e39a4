//! What PEFT's `adapter_config.json` says of an adapter: by what its products are scaled, and what else it is.
//!
//! The rank and alpha of a module are those of the first pattern, in the order of the file, that matches the end of its
//! name; scale = alpha / rank, or alpha / √rank with `use_rslora` (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>).

use regex::Regex;
use serde_json::{Map, Value};

/// Entries that make an adapter more than a product added to a weight, and what they are.
const REFUSED: [(&str, &str); 9] = [
    ("use_dora", "DoRA, which rescales the weight it is added to"),
    ("use_qalora", "QA-LoRA, which pools its inputs"),
    ("use_bdlora", "BD-LoRA, whose factors are block-diagonal"),
    ("kasa_config", "KaSA, which changes the singular values of the base"),
    ("monteclora_config", "MonteCLoRA, whose factors are random"),
    ("arrow_config", "Arrow, which chooses among adapters by its input"),
    ("target_parameters", "for parameters that are no layer's weight"),
    ("layer_replication", "for a model some of whose layers are repeated"),
    ("alora_invocation_tokens", "an activated LoRA, which is switched on by tokens"),
];
/// Ways to begin with that change the base itself, so that the adapter is for another base than the model's own.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// An adapter's configuration.
#[derive(Clone, Debug, Default)]
pub(super) struct Config {
    rank: Option<u64>,
    alpha: Option<f64>,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    use_rslora: bool,
    /// Whether layers store their weight as inputs × outputs.
    pub(super) fan_in_fan_out: bool,
}

/// What a value that switches something on is: neither false nor empty nor nothing.
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

impl Config {
    /// Reads the entries of a configuration.
    ///
    /// # Errors
    /// What it is that cannot be applied, or what is wrong with it.
    pub(super) fn new(entries: &Map<String, Value>) -> Result<Self, String> {
        if let Some(kind) = entries.get("peft_type").filter(|kind| *kind != "LORA") {
            return Err(format!("is an adapter of type {kind}, not LoRA: merge it with PEFT first"));
        }
        for (key, what) in REFUSED {
            if entries.get(key).is_some_and(is_on) {
                return Err(format!("has {key}: it is {what}, which is not supported: merge it with PEFT first"));
            }
        }
        if let Some(Value::String(begun)) = entries.get("init_lora_weights")
            && CHANGES_BASE.iter().any(|way| begun.to_lowercase().starts_with(way))
        {
            return Err(format!(
                "was begun with init_lora_weights = {begun}, which changes the base: save it with path_initial_model_for_weight_conversion first"
            ));
        }
        let number = |key: &str| match entries.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| format!("has {key} = {value}, which is no number")),
        };
        let switch = |key: &str| entries.get(key).is_some_and(is_on);
        let rank = match number("r")? {
            Some(rank) if rank >= 1.0 && rank.fract() == 0.0 => Some(rank as u64),
            None => None,
            Some(rank) => return Err(format!("has r = {rank}, which is no rank")),
        };
        Ok(Self {
            rank,
            alpha: number("lora_alpha")?,
            ranks: patterns(entries, "rank_pattern")?,
            alphas: patterns(entries, "alpha_pattern")?,
            use_rslora: switch("use_rslora"),
            fan_in_fan_out: switch("fan_in_fan_out"),
        })
    }

    /// By what a module's product is multiplied, if that is said, given the rank that its tensors have.
    ///
    /// # Errors
    /// If the configuration says another rank.
    pub(super) fn scale(&self, module: &str, rank: u64) -> Result<Option<f64>, String> {
        let find = |patterns: &[(Regex, f64)]| {
            patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
        };
        let said = find(&self.ranks).or(self.rank.map(|rank| rank as f64));
        if let Some(said) = said.filter(|said| *said != rank as f64) {
            return Err(format!("has rank {rank}, but the adapter's configuration says {said}"));
        }
        Ok(find(&self.alphas).or(self.alpha).map(|alpha| self.scaled(alpha, rank)))
    }

    /// alpha over the rank, or over its root.
    pub(super) fn scaled(&self, alpha: f64, rank: u64) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// The patterns of an entry, each as PEFT matches it: all of a name, or its end behind a dot.
fn patterns(entries: &Map<String, Value>, key: &str) -> Result<Vec<(Regex, f64)>, String> {
    let map = match entries.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(format!("has {key} = {other}, which is no table")),
    };
    map.iter()
        .map(|(pattern, value)| {
            let number = value.as_f64().ok_or_else(|| format!("has {key} = {value} for {pattern}, no number"))?;
            let whole = Regex::new(&format!(r"^(.*\.)?({pattern})$"))
                .map_err(|_| format!("has the {key} `{pattern}`, which cannot be read as a regular expression"))?;
            Ok((whole, number))
        })
        .collect()
}

/// The configurations in the metadata that diffusers writes into an adapter's file: `unet.r`, `text_encoder.lora_alpha`,
/// … by component.
pub(super) fn of_components(text: &str) -> Vec<(String, Map<String, Value>)> {
    let Ok(Value::Object(flat)) = serde_json::from_str(text) else { return Vec::new() };
    let mut found: Vec<(String, Map<String, Value>)> = Vec::new();
    for (key, value) in flat {
        let Some((component, entry)) = key.split_once('.') else { continue };
        let component = format!("{component}.");
        let entry = entry.to_owned();
        match found.iter_mut().find(|(known, _)| *known == component) {
            Some((_, map)) => drop(map.insert(entry, value)),
            None => found.push((component, Map::from_iter([(entry, value)]))),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(value: Value) -> Result<Config, String> {
        Config::new(value.as_object().expect("an object is written here"))
    }

    #[test]
    fn the_first_pattern_that_matches_counts() -> Result<(), String> {
        let config = config(json!({
            "r": 4, "lora_alpha": 8, "use_rslora": false,
            "rank_pattern": {"a.q": 2, "q": 1}, "alpha_pattern": {"b\\.[12]\\.v": 3, "^k": 5},
        }))?;
        assert_eq!(config.scale("x.a.q", 2)?, Some(4.0));
        assert_eq!(config.scale("x.b.q", 1)?, Some(8.0));
        assert_eq!(config.scale("x.bq", 4)?, Some(2.0), "a pattern begins behind a dot");
        assert_eq!(config.scale("b.2.v", 4)?, Some(0.75));
        assert_eq!(config.scale("k", 4)?, Some(1.25));
        assert_eq!(config.scale("a.k", 4)?, Some(2.0));
        assert!(config.scale("x", 3).is_err_and(|message| message.contains("rank 3")));
        Ok(())
    }

    #[test]
    fn what_is_no_plain_product_is_refused() {
        for (entries, says) in [
            (json!({"peft_type": "LOHA"}), "LOHA"),
            (json!({"use_dora": true}), "DoRA"),
            (json!({"init_lora_weights": "pissa_niter_4"}), "pissa_niter_4"),
            (json!({"r": 0}), "r = 0"),
            (json!({"r": "x"}), "r = "),
            (json!({"rank_pattern": {"(": 1}}), "`(`"),
            (json!({"alpha_pattern": [1]}), "alpha_pattern"),
        ] {
            let message = config(entries.clone()).expect_err("it cannot be applied");
            assert!(message.contains(says), "{entries}: {message}");
        }
        for entries in [json!({"use_dora": false, "target_parameters": []}), json!({"init_lora_weights": "gaussian"})] {
            assert!(config(entries.clone()).is_ok(), "{entries}");
        }
    }

    #[test]
    fn components_have_their_own() {
        let found = of_components(r#"{"unet.r": 4, "unet.lora_alpha": 8, "text_encoder.r": 2}"#);
        assert_eq!(
            found.iter().map(|(name, map)| (name.as_str(), map.len())).collect::<Vec<_>>(),
            [("unet.", 2), ("text_encoder.", 1)]
        );
        assert!(of_components("[").is_empty());
    }
}
