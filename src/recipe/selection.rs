//! Which tensors are meant, by their names.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use regex::Regex;

/// Patterns for names.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only tensors that match one of these are taken; all if there are none.
    pub include: Vec<Regex>,
    /// Tensors that match one of these are left out.
    pub exclude: Vec<Regex>,
}

impl Selection {
    /// Whether a tensor of this name is meant.
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        let any = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(name));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// That each pattern matches a name: one that does not is a slip, after which the result would not be what was meant.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the first that does not.
    pub fn check<'a>(&self, models: impl Iterator<Item = &'a Checkpoint> + Clone) -> Result<()> {
        let names = || models.clone().flat_map(Checkpoint::tensors).map(|tensor| tensor.name.as_str());
        let include = self.include.iter().map(|pattern| ("--include", pattern));
        let exclude = self.exclude.iter().map(|pattern| ("--exclude", pattern));
        matches_something(include.chain(exclude), names)
    }
}

/// That each pattern, of an option, matches a name.
pub(super) fn matches_something<'a, N: Iterator<Item = &'a str>>(
    patterns: impl Iterator<Item = (&'static str, &'a Regex)>,
    names: impl Fn() -> N,
) -> Result<()> {
    for (option, pattern) in patterns {
        if !names().any(|name| pattern.is_match(name)) {
            return Err(Error::Recipe(format!("{option}: no tensor's name matches `{pattern}`")));
        }
    }
    Ok(())
}
