//! Files of named lists of values, as supermerger's `mbwpresets_master.txt`: in each line a name, a tab or a colon, and the
//! values apart by commas. A comma or spaces may stand for the tab.
//!
//! Lines that are no such thing, as the heading of the published file, mean nothing until their name is asked for.

use super::value;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The longest file that is read, in bytes.
const LIMIT: u64 = 10 << 20;

/// The lists of a file.
#[derive(Clone, Debug)]
pub struct Presets {
    path: PathBuf,
    /// The name and the values of each, and the number of its line.
    entries: Vec<(String, String, usize)>,
}

impl Presets {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Recipe`] if it is no text, or longer than any file of presets.
    pub fn read(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(Error::io("open", path))?;
        if !kind.is_file() || kind.len() > LIMIT {
            let message = format!("{}: is no file of presets: not a file of at most {LIMIT} bytes", path.display());
            return Err(Error::Recipe(message));
        }
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::Recipe(format!("{}: is not UTF-8 text: {error}", path.display())))?;
        let lines = text.strip_prefix('\u{feff}').unwrap_or(&text).lines();
        let entries = (1..).zip(lines).filter_map(|(number, line)| {
            let (name, values) = entry(line.trim())?;
            (values.contains(',') && !name.starts_with('#')).then(|| (name.to_owned(), values.to_owned(), number))
        });
        Ok(Self { path: path.to_owned(), entries: entries.collect() })
    }

    /// The values of that name.
    ///
    /// # Errors
    /// [`Error::Recipe`] if there are none, with the nearest name, or several, or if they are not all numbers.
    pub fn get(&self, name: &str) -> Result<Vec<f64>> {
        let fail = |message: String| Err(Error::Recipe(format!("{}: {message}", self.path.display())));
        let mut found = self.entries.iter().filter(|(known, ..)| known == name);
        let Some((_, text, line)) = found.next() else {
            let known = self.entries.iter().map(|(known, ..)| known.as_str());
            return fail(Error::unknown("block preset", name, known).to_string());
        };
        if let Some((.., other)) = found.find(|(_, other, _)| other != text) {
            return fail(format!("`{name}` stands in the lines {line} and {other} with other values"));
        }
        let values = text.split(',').map(value).collect::<std::result::Result<Vec<f64>, String>>();
        values.or_else(|problem| fail(format!("`{name}` in line {line}: {problem}")))
    }
}

/// The name and the values of a line.
fn entry(line: &str) -> Option<(&str, &str)> {
    let (name, values) = line.split_once('\t').or_else(|| line.split_once(':')).or_else(|| {
        // The first value is behind the last space before the first comma, if one is there.
        let (head, rest) = line.split_once(',')?;
        let split = head.trim_end().rfind(char::is_whitespace);
        Some(split.map_or((head, rest), |space| line.split_at(space)))
    })?;
    Some((name.trim(), values.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_a_tab_a_colon_a_space_or_a_comma() {
        for line in ["A B\t0, 1", "A B:0, 1", "A B 0, 1", "A B: 0, 1"] {
            assert_eq!(entry(line), Some(("A B", "0, 1")), "{line}");
        }
        assert_eq!(entry("A,0,1"), Some(("A", "0,1")));
        assert_eq!(entry("A:B\t0,1"), Some(("A:B", "0,1")));
        assert_eq!(entry("nothing"), None);
    }
}
