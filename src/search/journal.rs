//! What was evaluated, as lines of JSON in a file that only grows.
//!
//! The first line tells what is evaluated, and how; a run that means something else does not go on with it. A line counts once it
//! is on the disk. What a run that was killed wrote of its last line is cut off by the next.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The most bytes of a journal that is read.
const LONGEST: u64 = 1 << 30;

/// A file of evaluations, open for one run alone.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

/// What an evaluation is known by: its weights, as they are written.
#[must_use]
pub fn key(weights: &[f64]) -> String {
    // Zero has one sign.
    weights.iter().map(|weight| (weight + 0.0).to_string()).collect::<Vec<_>>().join(",")
}

impl Journal {
    /// Opens a journal, or begins one: `setup` is an object that tells what is evaluated. Returns the lines behind it, too.
    ///
    /// # Errors
    /// [`Error::Model`] if it is of another setup, naming the first difference, or is no journal; [`Error::Output`] if another run
    /// has it open; [`Error::Io`].
    pub fn open(path: &Path, setup: &Value) -> Result<(Self, Vec<Value>)> {
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(Error::output(path, "is no regular file, as a journal is; name another"));
        }
        let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = opened.map_err(Error::io("open", path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::output(path, "another run is writing this journal: wait for it, or name another"));
        }
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length > LONGEST {
            return Err(Error::model(path, "is too long for a journal; name another"));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(Error::io("read", path))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let parse = |(number, line): (usize, &str)| {
            serde_json::from_str::<Value>(line).map_err(|error| {
                Error::model(path, format!("line {} is no journal's ({error}): remove it", number + 1))
            })
        };
        let mut lines = text
            .get(..whole)
            .unwrap_or_default()
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(parse);
        let mut journal = Self { file, path: path.to_owned() };
        match lines.next() {
            Some(before) => {
                let before = before?;
                if let Some(difference) = difference(&before["setup"], setup) {
                    let message = format!("is the journal of another run ({difference}): name another, or remove it");
                    return Err(Error::model(path, message));
                }
            }
            None if text.is_empty() || setup_line(setup).starts_with(&text) => {
                journal.cut(0)?;
                journal.write(&setup_line(setup))?;
                return Ok((journal, Vec::new()));
            }
            None => return Err(Error::model(path, "is no journal; name another file")),
        }
        let lines = lines.collect::<Result<_>>()?;
        if whole < text.len() {
            journal.cut(whole as u64)?;
        }
        Ok((journal, lines))
    }

    /// Adds a line, which is on the disk when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, line: &Value) -> Result<()> {
        self.write(&format!("{line}\n"))
    }

    fn write(&mut self, line: &str) -> Result<()> {
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(Error::io("write", &self.path))
    }

    fn cut(&mut self, length: u64) -> Result<()> {
        let cut = self.file.set_len(length).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map(drop).map_err(Error::io("write", &self.path))
    }
}

fn setup_line(setup: &Value) -> String {
    format!("{}\n", json!({"setup": setup}))
}

/// The first entry that is not the same in both, in what lies within others too.
fn difference(before: &Value, now: &Value) -> Option<String> {
    let (Value::Object(inner), Value::Object(other)) = (before, now) else { return Some("it has no setup".to_owned()) };
    let key = inner.keys().chain(other.keys()).find(|key| inner.get(*key) != other.get(*key))?;
    let (before, now) = (&before[key.as_str()], &now[key.as_str()]);
    if before.is_object() && now.is_object() {
        return difference(before, now);
    }
    Some(format!("{key}: {before}, not {now}"))
}
