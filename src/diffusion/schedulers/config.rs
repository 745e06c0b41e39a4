//! What a `scheduler_config.json` says.
//!
//! A scheduler reads the keys that its class in diffusers has, through a [`Reader`]. What it does not implement of
//! their values is an error, and so are keys that no class has. As in diffusers, keys that only other classes have mean
//! nothing to it: a DDPM configuration holds a `variance_type`, which DDIM has no use for.

use super::{Entry, SCHEDULERS, Scheduler};
use crate::checkpoint::read_text;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Far more than any configuration has; trained betas are the longest.
const LARGEST_FILE: u64 = 16 << 20;

/// diffusers' classes that share the keys below and whose configurations hold a schedule of betas.
const CLASSES: [&str; 16] = [
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
];

/// What the classes above know, beside what all of them do.
const KEYS_OF_SOME: [&str; 37] = [
    "algorithm_type",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "predict_x0",
    "prediction_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "set_alpha_to_one",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "thresholding",
    "time_shift_type",
    "timestep_spacing",
    "timestep_type",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
    // How old versions of the library held tensors.
    "tensor_format",
];

/// A scheduler's configuration, as diffusers keeps it; two are equal if they say the same.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it was read from.
    path: Option<PathBuf>,
    values: Map<String, Value>,
    eta: f64,
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        let said = |config: &Self| {
            let mut values = config.values.clone();
            values.shift_remove("_diffusers_version");
            values
        };
        said(self) == said(other) && self.eta == other.eta
    }
}

impl Config {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Model`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read_text(path, LARGEST_FILE)?, path)
    }

    /// Of the text of the file at `path`.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a configuration of a scheduler that is made of betas.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |error| Error::model(path, format!("is not JSON: {error}"));
        match serde_json::from_str(&with_quoted_infinities(text)).map_err(wrong)? {
            Value::Object(values) => {
                let config = Self { path: Some(path.to_owned()), values, eta: 0.0 };
                config.class()?;
                Ok(config)
            }
            _ => Err(Error::model(path, "is not a scheduler's configuration, which is a JSON object")),
        }
    }

    /// That of `google/ddpm-cifar10-32` and models trained like it (Ho et al. 2020): betas from 0.0001 to 0.02 in 1000
    /// steps, images clipped to -1..1.
    #[must_use]
    pub fn ddpm() -> Self {
        Self::of(json!({
            "_class_name": "DDPMScheduler",
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "clip_sample": true,
            "num_train_timesteps": 1000,
            "variance_type": "fixed_large",
        }))
    }

    /// That of Stable Diffusion 1.x (Rombach et al. 2022): square roots of betas linear from 0.00085 to 0.012.
    #[must_use]
    pub fn stable_diffusion() -> Self {
        Self::of(json!({
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "set_alpha_to_one": false,
            "skip_prk_steps": true,
            "steps_offset": 1,
        }))
    }

    fn of(values: Value) -> Self {
        let values = if let Value::Object(values) = values { values } else { Map::new() };
        Self { path: None, values, eta: 0.0 }
    }

    /// The same with another value of a key.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.values.insert(key.to_owned(), value.into());
        self
    }

    /// The same with a share of fresh noise in each step of DDIM: 0 is none, 1 is as much as DDPM has. No other
    /// scheduler takes one but 0.
    #[must_use]
    pub fn with_eta(mut self, eta: f64) -> Self {
        self.eta = eta;
        self
    }

    /// As a `scheduler_config.json` says it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        Value::Object(self.values.clone())
    }

    /// Timesteps that the model was trained on: from 0 to one less.
    #[must_use]
    pub fn train_timesteps(&self) -> u64 {
        self.values.get("num_train_timesteps").and_then(Value::as_u64).unwrap_or(1000)
    }

    /// The scheduler that it was written for.
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Recipe`] if it does not say, or if that one is not among [`SCHEDULERS`].
    pub fn entry(&self) -> Result<&'static Entry> {
        let names = || SCHEDULERS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
        let Some(class) = self.class()? else {
            return Err(self.error(format!("does not say which scheduler it is for; name one: {}", names())));
        };
        let found = SCHEDULERS.iter().find(|entry| entry.class == class);
        found.ok_or_else(|| {
            self.error(format!("is for `{class}`, which is not implemented; name another scheduler: {}", names()))
        })
    }

    /// Builds a scheduler: `entry`, or the one that it was written for.
    ///
    /// # Errors
    /// As [`Config::entry`] and [`Entry::build`].
    pub fn build(&self, entry: Option<&Entry>, steps: usize) -> Result<Box<dyn Scheduler>> {
        let entry = entry.map_or_else(|| self.entry(), Ok)?;
        (entry.build)(self, steps)
    }

    /// diffusers' name of the scheduler that it was written for.
    fn class(&self) -> Result<Option<&str>> {
        match self.values.get("_class_name") {
            None => Ok(None),
            Some(Value::String(class)) if CLASSES.contains(&class.as_str()) => Ok(Some(class)),
            Some(other) => Err(self.error(format!(
                "`_class_name` is {other}, whose noise is not that of a schedule of betas; it is not implemented"
            ))),
        }
    }

    pub(super) fn error(&self, message: String) -> Error {
        match &self.path {
            Some(path) => Error::model(path, message),
            None => Error::Recipe(format!("the scheduler's configuration: {message}")),
        }
    }
}

/// Python writes infinities and NaN as bare words, which JSON does not have: the same with quotes around them.
fn with_quoted_infinities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].into_iter().find(|word| rest.starts_with(word));
        let length = if next == '"' {
            let mut escaped = false;
            let end = rest.char_indices().skip(1).find(|(_, c)| {
                let closes = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                closes
            });
            end.map_or(rest.len(), |(at, _)| at + 1)
        } else {
            word.map_or(next.len_utf8(), str::len)
        };
        let (token, behind) = rest.split_at(length);
        if word.is_some() {
            out.extend(["\"", token, "\""]);
        } else {
            out.push_str(token);
        }
        rest = behind;
    }
    out
}

/// A configuration as one scheduler reads it.
pub(super) struct Reader<'a> {
    pub(super) config: &'a Config,
    entry: Entry,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(config: &'a Config, entry: Entry) -> Result<Self> {
        config.class()?;
        Ok(Self { config, entry, read: RefCell::default() })
    }

    pub(super) fn error(&self, key: &str, problem: &str) -> Error {
        let value = self.config.values.get(key).map(|value| {
            let text = value.to_string();
            if text.chars().count() > 60 { "a long value".to_owned() } else { text }
        });
        let value = value.unwrap_or_else(|| "left out".to_owned());
        self.config.error(format!("`{key}` is {value}; {problem} (scheduler `{}`)", self.entry.name))
    }

    /// A value that is there. `null` is not a value for keys whose default is one.
    fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key);
        let by_default = self.config.values.get("_use_default_values").and_then(Value::as_array);
        let is_default = by_default.is_some_and(|keys| keys.iter().any(|other| other.as_str() == Some(key)));
        self.config.values.get(key).filter(|_| !is_default)
    }

    fn optional(&self, key: &'static str) -> Option<&'a Value> {
        self.value(key).filter(|value| !value.is_null())
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> Result<bool> {
        let read = |value: &Value| value.as_bool().ok_or_else(|| self.error(key, "it is true or false"));
        self.value(key).map_or(Ok(default), read)
    }

    pub(super) fn number(&self, key: &'static str, default: f64) -> Result<f64> {
        let read = |value: &Value| value.as_f64().ok_or_else(|| self.error(key, "it is a number"));
        self.value(key).map_or(Ok(default), read)
    }

    pub(super) fn optional_number(&self, key: &'static str) -> Result<Option<f64>> {
        let read = |value: &Value| value.as_f64().ok_or_else(|| self.error(key, "it is a number or null"));
        self.optional(key).map(read).transpose()
    }

    /// A number that Python may have written as `-Infinity`.
    pub(super) fn number_or_minus_infinity(&self, key: &'static str) -> Result<f64> {
        match self.value(key) {
            None => Ok(f64::NEG_INFINITY),
            Some(Value::String(word)) if word == "-Infinity" => Ok(f64::NEG_INFINITY),
            Some(value) => value.as_f64().ok_or_else(|| self.error(key, "it is a number or -Infinity")),
        }
    }

    pub(super) fn count(&self, key: &'static str, default: usize) -> Result<usize> {
        let read = |value: &Value| {
            let count = value.as_u64().and_then(|value| usize::try_from(value).ok());
            count.ok_or_else(|| self.error(key, "it is a whole number of 0 or more"))
        };
        self.value(key).map_or(Ok(default), read)
    }

    /// A list of whole numbers.
    pub(super) fn counts(&self, key: &'static str) -> Result<Vec<u64>> {
        let read = |value: &Value| {
            let counts = value.as_array().and_then(|list| list.iter().map(Value::as_u64).collect());
            counts.ok_or_else(|| self.error(key, "it is a list of whole numbers"))
        };
        self.value(key).map_or(Ok(Vec::new()), read)
    }

    /// A list of numbers, or none.
    pub(super) fn optional_numbers(&self, key: &'static str) -> Result<Option<Vec<f64>>> {
        let read = |value: &Value| {
            let numbers = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
            numbers.ok_or_else(|| self.error(key, "it is a list of numbers or null"))
        };
        self.optional(key).map(read).transpose()
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, default: &str, choices: &[(&str, T)]) -> Result<T> {
        self.choice_of(self.value(key), key, default, choices)
    }

    /// One of some words; `null` is the default too.
    pub(super) fn optional_choice<T: Copy>(
        &self,
        key: &'static str,
        default: &str,
        choices: &[(&str, T)],
    ) -> Result<T> {
        self.choice_of(self.optional(key), key, default, choices)
    }

    fn choice_of<T: Copy>(
        &self,
        value: Option<&Value>,
        key: &'static str,
        default: &str,
        choices: &[(&str, T)],
    ) -> Result<T> {
        let word = value.map_or(Some(default), Value::as_str);
        let found = choices.iter().find(|(name, _)| word == Some(name)).map(|(_, choice)| *choice);
        found.ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.error(key, &format!("implemented are: {}", names.join(", ")))
        })
    }

    /// That switches are off that are not implemented.
    pub(super) fn off(&self, keys: &[&'static str]) -> Result<()> {
        for &key in keys {
            if self.optional(key).is_some_and(|value| *value != Value::Bool(false)) {
                return Err(self.error(key, "only false is implemented"));
            }
        }
        Ok(())
    }

    /// That a value is missing or null.
    pub(super) fn absent(&self, key: &'static str) -> Result<()> {
        self.optional(key).map_or(Ok(()), |_| Err(self.error(key, "only null is implemented")))
    }

    /// Reads keys that mean nothing as the others are.
    pub(super) fn pass(&self, keys: &[&'static str]) {
        self.read.borrow_mut().extend(keys);
    }

    /// DDIM's share of noise, 0..=1.
    pub(super) fn eta(&self) -> Result<f64> {
        let eta = self.config.eta;
        let is_share = (0.0..=1.0).contains(&eta);
        is_share.then_some(eta).ok_or_else(|| Error::Recipe(format!("eta is {eta}; it is a number from 0 to 1")))
    }

    /// That no share of noise is asked for.
    pub(super) fn no_eta(&self) -> Result<()> {
        if self.config.eta == 0.0 {
            return Ok(());
        }
        Err(Error::Recipe(format!("the scheduler `{}` takes no eta; `ddim` does", self.entry.name)))
    }

    /// That nothing is left that no scheduler knows.
    pub(super) fn finish(self) -> Result<()> {
        let read = self.read.borrow();
        for (key, value) in &self.config.values {
            let is_neutral = match key.as_str() {
                "predict_epsilon" => *value == Value::Bool(true),
                "timestep_values" => value.is_null(),
                key => key.starts_with('_') || read.contains(key) || KEYS_OF_SOME.contains(&key),
            };
            if !is_neutral {
                return Err(self.error(key, "this is not implemented"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_are_quoted_outside_of_strings_only() {
        let text = r#"{"a": -Infinity, "b\"NaN": "Infinity", "ü": [NaN, Infinity]}"#;
        let expected = r#"{"a": "-Infinity", "b\"NaN": "Infinity", "ü": ["NaN", "Infinity"]}"#;
        assert_eq!(with_quoted_infinities(text), expected);
        assert_eq!(with_quoted_infinities("\"open \\"), "\"open \\");
    }
}
