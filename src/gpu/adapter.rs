//! Which adapters there are, and which of them is meant.

use super::Limits;
use crate::error::{Error, Result};

/// What an adapter is, from the one to be preferred on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A card with memory of its own.
    Discrete,
    /// A part of the processor, with its memory.
    Integrated,
    /// A share of one in another machine.
    Virtual,
    /// The driver does not say.
    Other,
    /// The processor itself.
    Software,
}

impl Kind {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Other => "other",
            Self::Software => "software",
        }
    }
}

/// What is known of an adapter before it is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// As its driver calls it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The interface through which it is reached: `Vulkan`, `Metal` or `DX12`.
    pub backend: &'static str,
    /// The driver and its version.
    pub driver: String,
    /// What fits into a job.
    pub limits: Limits,
}

/// How fast a device is, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// From our memory to where shaders read.
    pub upload: f64,
    /// Read and written by the plainest of shaders, both together.
    pub copy: f64,
    /// From where shaders write to our memory.
    pub download: f64,
}

/// Which adapter to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first: they are in order of preference.
    Best,
    /// By its number, or by a part of its name in any case.
    Named(String),
}

/// The number of the one meant.
pub(super) fn choose(choice: &Choice, adapters: &[Adapter]) -> Result<usize> {
    if adapters.is_empty() {
        return Err(Error::Gpu(format!("no graphics processor can be used: {NONE}")));
    }
    let Choice::Named(wanted) = choice else { return Ok(0) };
    let names = || adapters.iter().map(|adapter| adapter.name.as_str());
    // Of more digits it is a card's name, as in 4090.
    if let Some(number) = wanted.parse::<usize>().ok().filter(|number| *number < 100) {
        let unknown = || Error::unknown("graphics processor", wanted, names());
        return Some(number).filter(|number| *number < adapters.len()).ok_or_else(unknown);
    }
    let lower = wanted.to_lowercase();
    let numbered = || adapters.iter().map(|adapter| adapter.name.to_lowercase()).enumerate();
    let equal: Vec<usize> = numbered().filter(|(_, name)| *name == lower).map(|(number, _)| number).collect();
    let within = || numbered().filter(|(_, name)| !lower.is_empty() && name.contains(&lower));
    let found = if equal.is_empty() { within().map(|(number, _)| number).collect() } else { equal };
    match found[..] {
        [number] => Ok(number),
        [] => Err(Error::unknown("graphics processor", wanted, names())),
        _ => {
            let list: Vec<String> = found
                .iter()
                .filter_map(|number| Some((number, adapters.get(*number)?)))
                .map(|(number, adapter)| format!("{number}: {} ({})", adapter.name, adapter.backend))
                .collect();
            let message = format!("`{wanted}` may be any of several graphics processors; say its number");
            Err(Error::Recipe(format!("{message}: {}", list.join(", "))))
        }
    }
}

/// What is missing where there is no adapter.
pub const NONE: &str = if cfg!(not(feature = "gpu")) {
    "this build is without them; build it with the feature `gpu`"
} else if cfg!(target_os = "macos") {
    "the system offers none by Metal"
} else if cfg!(windows) {
    "the system offers none by Vulkan or DX12; install the card's driver"
} else {
    "there is no Vulkan driver; install the card's own, or mesa-vulkan-drivers, and the loader libvulkan1"
};

#[cfg(test)]
mod tests {
    use super::*;

    fn adapters(names: &[&str]) -> Vec<Adapter> {
        let limits = Limits { binding: 1 << 27, memory: 1 << 30, groups: 65_535 };
        let adapter = |name: &&str| {
            let driver = "driver 1.0".to_owned();
            Adapter { name: (*name).to_owned(), kind: Kind::Discrete, backend: "Vulkan", driver, limits }
        };
        names.iter().map(adapter).collect()
    }

    #[test]
    fn adapters_are_chosen_by_number_or_name() {
        let adapters = adapters(&["Card 4090", "Card 4090 D", "llvmpipe (LLVM)"]);
        let chosen = |name: &str| choose(&Choice::Named(name.to_owned()), &adapters).map_err(|error| error.to_string());
        assert_eq!(choose(&Choice::Best, &adapters).ok(), Some(0));
        assert_eq!([chosen("2"), chosen("LLVM"), chosen("card 4090"), chosen("0 d")], [Ok(2), Ok(2), Ok(0), Ok(1)]);
        let ambiguous = chosen("4090").expect_err("there are two");
        assert!(ambiguous.contains("0: Card 4090 (Vulkan), 1: Card 4090 D (Vulkan)"), "{ambiguous}");
        for name in ["3", "", "radeon"] {
            let unknown = chosen(name).expect_err("there is none");
            assert!(unknown.starts_with(&format!("there is no graphics processor `{name}`")), "{unknown}");
            assert!(unknown.contains("llvmpipe (LLVM)"), "{unknown}");
        }
    }

    #[test]
    fn without_adapters_it_says_what_is_missing() {
        for choice in [Choice::Best, Choice::Named("card".to_owned())] {
            let error = choose(&choice, &[]).expect_err("there is none").to_string();
            assert!(error.contains(NONE), "{error}");
        }
    }
}
