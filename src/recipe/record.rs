//! The recipe as it is kept in the output's metadata.

use super::{Anchors, Filter, Missing, Models, Recipe, Setting};
use crate::error::Result;
use crate::merge::Weight;
use ckptmerge_format::Metadata;
use serde_json::{Map, Value, json};

impl Recipe {
    /// The text of the output: what all inputs agree on, the recipe and the inputs' fingerprints.
    pub(super) fn metadata(&self, models: &Models) -> Result<Metadata> {
        models.metadata(&self.to_json(models.labels(), models.base.is_some()))
    }

    /// The recipe as it is kept in the output; the base's label, if there is one, is last.
    fn to_json(&self, labels: &[String], has_base: bool) -> Value {
        let (models, base) = labels.split_at(labels.len() - usize::from(has_base));
        let about = self.method.about();
        let count = models.len();
        let weights = self.weights.clone().unwrap_or_else(|| vec![about.weight.default(count); count]);
        let patterns = |patterns: &[regex::Regex]| patterns.iter().map(|p| Value::from(p.as_str())).collect::<Vec<_>>();
        let mut json = json!({
            "ckptmerge": env!("CARGO_PKG_VERSION"),
            "method": about.name,
            "formula": about.formula,
            "models": models,
        });
        if about.weight != Weight::Unused {
            json["weights"] = weights.into();
            json["normalize"] = self.normalize.unwrap_or(about.normalizes).into();
        }
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
        let parameters = about.parameters.iter().map(|parameter| {
            let given = self.parameters.get(parameter.name);
            (
                parameter.name.to_owned(),
                given.map_or_else(|| parameter.default.into(), |settings| settings_json(settings)),
            )
        });
        add("parameters", parameters.collect::<Map<_, _>>().into());
        add("seed", if self.seed == 0 { Value::Null } else { self.seed.into() });
        let special = self.weights_for.iter().map(|(p, weights)| json!({"pattern": p.as_str(), "weights": weights}));
        add("weights_for", special.collect::<Vec<_>>().into());
        let blocks = self.blocks.iter().map(|given| {
            let mut json = json!({"parameter": given.parameter});
            if let Some(model) = given.model {
                json["model"] = (model + 1).into();
            }
            json["values"] = setting_json(&given.setting);
            json
        });
        add("blocks", blocks.collect::<Vec<_>>().into());
        add("dtype", self.dtype.map_or(Value::Null, |dtype| dtype.name().into()));
        add("include", patterns(&self.include).into());
        add("exclude", patterns(&self.exclude).into());
        if self.missing != Missing::Error {
            add("missing", if self.missing == Missing::Base { "base" } else { "skip" }.into());
        }
        if self.fold_projections {
            json["fold_projections"] = true.into();
        }
        json
    }
}

impl Models {
    /// The text of an output that a recipe makes of these models.
    pub(super) fn metadata(&self, recipe: &Value) -> Result<Metadata> {
        let mut metadata = self.reference().metadata().clone();
        metadata.retain(|key, value| {
            !key.starts_with("ckptmerge.") && self.all().all(|model| model.metadata().get(key) == Some(value))
        });
        let mut inputs = Vec::new();
        for ((model, label), adapters) in self.all().zip(self.labels()).zip(&self.adapters) {
            let mut input = json!({"name": label, "fingerprint": model.fingerprint()?});
            let mut over = Vec::new();
            for adapter in adapters.sources() {
                over.push(json!({"name": adapter.name(), "fingerprint": adapter.fingerprint()?}));
            }
            if !over.is_empty() {
                input["adapters"] = over.into();
            }
            inputs.push(input);
        }
        for (model, label) in self.accompanied() {
            inputs.push(json!({"name": label, "fingerprint": model.fingerprint()?}));
        }
        metadata.insert("ckptmerge.recipe".to_owned(), recipe.to_string());
        metadata.insert("ckptmerge.inputs".to_owned(), Value::from(inputs).to_string());
        Ok(metadata)
    }
}

/// A parameter's values: one, or one for each model.
fn settings_json(settings: &[Setting]) -> Value {
    match settings {
        [setting] => setting_json(setting),
        several => several.iter().map(setting_json).collect(),
    }
}

fn setting_json(setting: &Setting) -> Value {
    let anchors = |anchors: &Anchors| match anchors.values[..] {
        [value] => Value::from(value),
        _ => anchors.values.clone().into(),
    };
    match &setting.rules[..] {
        [(Filter::Any, value)] => anchors(value),
        rules if rules.iter().all(|(filter, _)| matches!(filter, Filter::Block(_))) => {
            let block = |(filter, value): &(Filter, Anchors)| match filter {
                Filter::Block(block) => Some((block.name.clone(), anchors(value))),
                _ => None,
            };
            rules.iter().filter_map(block).collect::<Map<_, _>>().into()
        }
        rules => rules
            .iter()
            .map(|(filter, value)| match filter {
                Filter::Any => json!({"value": anchors(value)}),
                Filter::Contains(text) => json!({"filter": text, "value": anchors(value)}),
                Filter::Matches(pattern) => json!({"pattern": pattern.as_str(), "value": anchors(value)}),
                Filter::Block(block) => json!({"block": block.name, "value": anchors(value)}),
            })
            .collect(),
    }
}
