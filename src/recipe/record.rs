//! The recipe as it is kept in the output's metadata.

use super::{Missing, Models, Recipe};
use crate::error::Result;
use ckptmerge_format::Metadata;
use serde_json::{Map, Value, json};

impl Recipe {
    /// The text of the output: what all inputs agree on, the recipe and the inputs' fingerprints.
    pub(super) fn metadata(&self, models: &Models) -> Result<Metadata> {
        let mut metadata = models.reference().metadata().clone();
        metadata.retain(|key, value| {
            !key.starts_with("ckptmerge.") && models.all().all(|model| model.metadata().get(key) == Some(value))
        });
        let mut inputs = Vec::new();
        for (model, label) in models.all().zip(models.labels()) {
            inputs.push(json!({"name": label, "fingerprint": model.fingerprint()?}));
        }
        metadata.insert("ckptmerge.recipe".to_owned(), self.to_json(models.labels()).to_string());
        metadata.insert("ckptmerge.inputs".to_owned(), Value::from(inputs).to_string());
        Ok(metadata)
    }

    /// The recipe as it is kept in the output; the base's label, if there is one, is last.
    fn to_json(&self, labels: &[String]) -> Value {
        let (models, base) = labels.split_at(labels.len() - usize::from(self.method.needs_base()));
        let weights =
            self.weights.clone().unwrap_or_else(|| vec![self.method.default_weight(models.len()); models.len()]);
        let patterns = |patterns: &[regex::Regex]| patterns.iter().map(|p| Value::from(p.as_str())).collect::<Vec<_>>();
        let mut json = json!({
            "ckptmerge": env!("CARGO_PKG_VERSION"),
            "method": self.method.name(),
            "formula": self.method.formula(),
            "models": models,
            "weights": weights,
            "normalize": self.normalize,
        });
        let mut add = |key: &str, value: Value| {
            let empty = match &value {
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                other => other.is_null(),
            };
            if !empty {
                json[key] = value;
            }
        };
        add("base", base.first().map_or(Value::Null, |label| Value::from(label.as_str())));
        let parameters = self.method.parameters().iter().zip(self.parameter_values());
        add(
            "parameters",
            parameters.map(|(p, value)| (p.name.to_owned(), Value::from(value))).collect::<Map<_, _>>().into(),
        );
        let special = self.weights_for.iter().map(|(p, weights)| json!({"pattern": p.as_str(), "weights": weights}));
        add("weights_for", special.collect::<Vec<_>>().into());
        add("dtype", self.dtype.map_or(Value::Null, |dtype| dtype.name().into()));
        add("include", patterns(&self.include).into());
        add("exclude", patterns(&self.exclude).into());
        if self.missing != Missing::Error {
            add("missing", if self.missing == Missing::Base { "base" } else { "skip" }.into());
        }
        json
    }
}
