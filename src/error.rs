//! One error for the library, split by whose fault it is.
//!
//! A message names the file and the tensor, and says what to do next where that is known. An error is handled once:
//! whoever reports it does not pass it on.

use ckptmerge_format::{FormatError, printable};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused something.
    #[error("cannot {action} {}: {source}", shown(path))]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file breaks its format's rules, or uses a part of it that is not supported.
    #[error("{}: {source}", shown(path))]
    Format {
        /// Which file.
        path: PathBuf,
        /// What the format said.
        source: FormatError,
    },
    /// A path is not a model in any known format or layout.
    #[error("{}: {message}", shown(path))]
    Model {
        /// Which path.
        path: PathBuf,
        /// Why not, and what would be one.
        message: String,
    },
    /// A file changed or shrank while it was being read, so what was read is not one state of it.
    #[error("{} changed while it was being read; nothing was written: run again when it is complete", shown(path))]
    Changed {
        /// Which file.
        path: PathBuf,
    },
    /// The models do not fit together.
    #[error("the models do not fit together:{}", Bullets(.0))]
    Mismatch(Vec<Mismatch>),
    /// A model cannot be converted as was asked.
    #[error("the model cannot be converted so:{}", Bullets(.0))]
    Unfit(Vec<Mismatch>),
    /// A name map cannot name all of a model's tensors.
    #[error("{map} cannot name all tensors of {model}; --exclude leaves tensors out:{}", Bullets(.tensors))]
    Names {
        /// The map.
        map: &'static str,
        /// What the model is called.
        model: String,
        /// The tensors, by the model's own names.
        tensors: Vec<Mismatch>,
    },
    /// A name that is in none of our tables.
    #[error("there is no {what} `{name}`; {suggestion}")]
    Unknown {
        /// What kind of name it is.
        what: &'static str,
        /// The name given.
        name: String,
        /// The closest one that exists, or the list of all.
        suggestion: String,
    },
    /// What was asked for contradicts itself or cannot be done.
    #[error("{0}")]
    Recipe(String),
    /// A graphics processor cannot be used.
    #[error("{0}")]
    Gpu(String),
    /// A network could not be built or run.
    #[cfg(feature = "diffusion")]
    #[error("{0}")]
    Network(String),
    /// What a network made is not finite.
    #[cfg(feature = "diffusion")]
    #[error("{0}")]
    NotNumbers(String),
    /// The output cannot go where it was asked to.
    #[error("{}: {message}; nothing was written", shown(path))]
    Output {
        /// Where it should have gone.
        path: PathBuf,
        /// Why it cannot.
        message: String,
    },
    /// The output would not fit.
    #[error("{}: the output needs {needed}, but only {available} are free there; nothing was written", shown(path))]
    NoSpace {
        /// Where it should have gone.
        path: PathBuf,
        /// Bytes needed.
        needed: Bytes,
        /// Bytes free.
        available: Bytes,
    },
    /// The user asked to stop.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// The user asked to stop what can be gone on with; the message says how.
    #[error("interrupted; {0}")]
    Paused(String),
}

#[cfg(feature = "diffusion")]
impl From<candle_core::Error> for Error {
    /// What candle says, without the backtrace that it puts behind where the environment asks for one.
    fn from(mut error: candle_core::Error) -> Self {
        while let candle_core::Error::WithBacktrace { inner, .. } = error {
            error = *inner;
        }
        Self::Network(error.to_string())
    }
}

impl Error {
    /// For `map_err` on system calls.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn output(path: &Path, message: impl Into<String>) -> Self {
        Self::Output { path: path.to_owned(), message: message.into() }
    }

    pub(crate) fn model(path: &Path, message: impl Into<String>) -> Self {
        Self::Model { path: path.to_owned(), message: printable(&message.into()) }
    }

    /// An [`Error::Unknown`] that suggests the closest of `known`.
    pub(crate) fn unknown<'a>(what: &'static str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        /// More names than this are no help.
        const LISTED: usize = 30;
        let known: Vec<&str> = known.into_iter().collect();
        let lower = name.to_lowercase();
        let nearest = known
            .iter()
            .map(|candidate| (strsim::normalized_damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
            .filter(|(similarity, _)| *similarity >= 0.5)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, candidate)| candidate);
        let suggestion = match (nearest, known.len()) {
            (Some(nearest), _) => format!("the nearest is `{nearest}`"),
            (None, 0) => "there are none".to_owned(),
            (None, 1..=LISTED) => format!("there are: {}", known.join(", ")),
            (None, _) => "none is near it".to_owned(),
        };
        Self::Unknown { what, name: name.to_owned(), suggestion }
    }
}

/// A path as messages show it: whole, as its end tells most, and with control characters escaped.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// One way in which models do not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The tensor.
    pub tensor: String,
    /// What is wrong with it, naming the models.
    pub problem: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", printable(&self.tensor), printable(&self.problem))
    }
}

/// Mismatches shown before "and N more".
const SHOWN: usize = 20;

struct Bullets<'a>(&'a [Mismatch]);

impl fmt::Display for Bullets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mismatch in self.0.iter().take(SHOWN) {
            write!(f, "\n  {mismatch}")?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(f, "\n  … and {more} more"),
            _ => Ok(()),
        }
    }
}

/// A number of bytes, shown in decimal units as disks are sold: `1.72 GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        for unit in ["B", "kB", "MB", "GB", "TB"] {
            if value < 999.5 || unit == "TB" {
                let text = match unit {
                    "B" => format!("{value} {unit}"),
                    _ if value < 9.995 => format!("{value:.2} {unit}"),
                    _ if value < 99.95 => format!("{value:.1} {unit}"),
                    _ => format!("{value:.0} {unit}"),
                };
                return f.pad(&text);
            }
            value /= 1000.0;
        }
        Ok(())
    }
}

impl Bytes {
    /// Reads `256M`, `5GB`, `64 MiB` or a plain number. `K`, `M`, `G`, `T` are powers of 1000, as in mergekit and
    /// Hugging Face shard sizes; with an `i` they are powers of 1024.
    ///
    /// # Errors
    /// [`Error::Recipe`] if it is not a size.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::Recipe(format!("`{text}` is not a size; examples: 5GB, 256M, 64MiB, 4096"));
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let binary = unit.contains('i');
        let power = match unit.trim_end_matches('b').trim_end_matches('i') {
            "" if !binary => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(wrong()),
        };
        let scale = if binary { 1024u64 } else { 1000 }.pow(power);
        let value = number.parse::<f64>().map_err(|_| wrong())? * scale as f64;
        (value.is_finite() && value <= 1e18).then_some(Self(value as u64)).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print() {
        for (text, bytes) in
            [("5GB", 5_000_000_000), ("256M", 256_000_000), ("64MiB", 64 << 20), ("1.5k", 1500), ("7", 7)]
        {
            assert_eq!(Bytes::parse(text).expect(text), Bytes(bytes));
        }
        for text in ["", "GB", "5 X", "-1", "1e99", "5ii", "inf"] {
            assert!(Bytes::parse(text).is_err(), "{text}");
        }
        assert_eq!(Bytes(1_720_000_000).to_string(), "1.72 GB");
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(64_000_000).to_string(), "64.0 MB");
    }

    #[test]
    fn unknown_names_suggest_the_nearest() {
        let error = Error::unknown("merge method", "liner", ["linear", "ties"]);
        assert_eq!(error.to_string(), "there is no merge method `liner`; the nearest is `linear`");
        let error = Error::unknown("merge method", "xyz", ["linear", "ties"]);
        assert_eq!(error.to_string(), "there is no merge method `xyz`; there are: linear, ties");
    }
}
