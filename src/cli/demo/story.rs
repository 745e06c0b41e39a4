//! What the demo tells as it goes: commands, sentences, tables and pictures, kept for the report.

use super::Demo;
use super::models::Models;
use crate::cli::report::{Report, Said};
use crate::cli::{Common, run_typed};
use crate::error::Error;
use crate::output::StagedFolder;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A command line, as one would type it and as it is run: into the folder that is not there yet.
#[derive(Clone)]
pub(super) struct Command {
    typed: Vec<String>,
    run: Vec<OsString>,
}

impl Command {
    /// Of a subcommand.
    pub(super) fn new(name: &str) -> Self {
        Self { typed: Vec::new(), run: Vec::new() }.word(name)
    }

    /// With a word more.
    pub(super) fn word(self, word: impl ToString) -> Self {
        let word = word.to_string();
        self.both(word.clone(), word.into())
    }

    /// With several.
    pub(super) fn words(self, words: &str) -> Self {
        words.split(' ').fold(self, Self::word)
    }

    /// With a path to what is there.
    pub(super) fn path(self, path: &Path) -> Self {
        self.both(path.display().to_string(), path.into())
    }

    /// With several.
    pub(super) fn paths(self, paths: &[PathBuf]) -> Self {
        paths.iter().fold(self, |command, path| command.path(path))
    }

    fn both(mut self, typed: String, run: OsString) -> Self {
        self.typed.push(typed);
        self.run.push(run);
        self
    }
}

/// A picture that was drawn.
pub(super) struct Picture {
    /// Its file in the folder.
    pub(super) file: PathBuf,
    /// The same for dark screens.
    pub(super) dark: Option<PathBuf>,
    /// What one sees.
    pub(super) caption: String,
}

/// Rows under headings; a number in the first column behind the names is drawn as a bar as well.
pub(super) struct Table {
    /// What the columns are.
    pub(super) headings: Vec<String>,
    /// A name, numbers, and how long its bar is, 0 to 1.
    pub(super) rows: Vec<(Vec<String>, f64)>,
}

/// A part of the story.
pub(super) struct Section {
    name: &'static str,
    /// Stands above it.
    pub(super) title: &'static str,
    /// The commands, as one would type them.
    pub(super) commands: Vec<String>,
    /// What came of them.
    pub(super) sentences: Vec<String>,
    /// In numbers.
    pub(super) tables: Vec<Table>,
    /// In pictures.
    pub(super) pictures: Vec<Picture>,
    numbers: Value,
}

impl Section {
    /// Its numbers and what leads to them.
    pub(super) fn document(&self) -> Value {
        json!({
            "name": self.name,
            "title": self.title,
            "commands": self.commands,
            "sentences": self.sentences,
            "numbers": self.numbers,
        })
    }
}

/// The story so far, and what its steps need.
pub(super) struct Story<'a> {
    /// What it is about.
    pub(super) models: &'a Models,
    /// How it is to be told.
    pub(super) demo: &'a Demo,
    /// Its parts.
    pub(super) sections: Vec<Section>,
    common: &'a Common,
    report: &'a Report,
    /// Where outputs go, and where they will be.
    unfinished: PathBuf,
    finished: PathBuf,
}

impl<'a> Story<'a> {
    pub(super) fn new(
        models: &'a Models,
        demo: &'a Demo,
        common: &'a Common,
        report: &'a Report,
        folder: &StagedFolder,
    ) -> Result<Self, Error> {
        let unfinished = folder.path(Path::new(""))?;
        Ok(Self { models, demo, sections: Vec::new(), common, report, unfinished, finished: demo.output.clone() })
    }

    /// Begins a part.
    pub(super) fn begin(&mut self, name: &'static str, title: &'static str) -> anyhow::Result<()> {
        let none = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (commands, sentences, tables, pictures) = none;
        let space = if self.sections.is_empty() { "" } else { "\n" };
        self.sections.push(Section { name, title, commands, sentences, tables, pictures, numbers: json!({}) });
        self.report.tell(&format!("{space}{title}\n"))
    }

    fn section(&mut self) -> Option<&mut Section> {
        self.sections.last_mut()
    }

    /// Where an output is while the story is told, with its folder made.
    pub(super) fn place(&self, name: &Path) -> PathBuf {
        self.unfinished.join(name)
    }

    /// A command with an output's path.
    pub(super) fn with_output(&self, command: Command, name: &str) -> Result<Command, Error> {
        let path = self.place(Path::new(name));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        Ok(command.both(self.finished.join(name).display().to_string(), path.into()))
    }

    /// Shows a command and runs it.
    pub(super) fn run(&mut self, command: &Command) -> anyhow::Result<Said> {
        let line = format!("ckptmerge {}", command.typed.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
        self.report.tell(&format!("  $ {line}\n"))?;
        if let Some(section) = self.section() {
            section.commands.push(line);
        }
        self.run_unseen(command)
    }

    /// Runs a command that is shown in another form.
    pub(super) fn run_unseen(&self, command: &Command) -> anyhow::Result<Said> {
        let mut said = run_typed(&command.run, self.common)?;
        for remark in &mut said.remarks {
            *remark = self.with_finished(remark);
        }
        Ok(Said {
            text: self.with_finished(&said.text),
            json: renamed(said.json, &|text| self.with_finished(text)),
            ..said
        })
    }

    /// A text with the outputs under the names that they will have.
    fn with_finished(&self, text: &str) -> String {
        text.replace(&self.unfinished.display().to_string(), &self.finished.display().to_string())
    }

    /// Says what came of it.
    pub(super) fn say(&mut self, sentence: impl Into<String>) -> anyhow::Result<()> {
        let sentence = sentence.into();
        self.report.tell(&format!("  {sentence}\n"))?;
        if let Some(section) = self.section() {
            section.sentences.push(sentence);
        }
        Ok(())
    }

    /// Keeps a number of this part.
    pub(super) fn number(&mut self, name: &str, number: impl Into<Value>) {
        if let Some(section) = self.section() {
            section.numbers[name] = number.into();
        }
    }

    /// Keeps a picture for the report.
    pub(super) fn picture(&mut self, file: &str, dark: Option<&str>, caption: impl Into<String>) {
        let picture = Picture { file: file.into(), dark: dark.map(Into::into), caption: caption.into() };
        if let Some(section) = self.section() {
            section.pictures.push(picture);
        }
    }

    /// Shows a table.
    pub(super) fn table(&mut self, table: Table) -> anyhow::Result<()> {
        let headings: Vec<&str> = table.headings.iter().map(String::as_str).collect();
        let rows = table.rows.iter().map(|(row, _)| row.clone());
        let text = crate::cli::report::table(&headings, headings.get(1..).unwrap_or_default(), rows);
        self.report.tell(&text.lines().map(|line| format!("  {line}\n")).collect::<String>())?;
        if let Some(section) = self.section() {
            section.tables.push(table);
        }
        Ok(())
    }
}

/// A document whose texts are changed.
fn renamed(document: Value, change: &impl Fn(&str) -> String) -> Value {
    match document {
        Value::String(text) => Value::String(change(&text)),
        Value::Array(items) => items.into_iter().map(|item| renamed(item, change)).collect(),
        Value::Object(entries) => entries.into_iter().map(|(key, value)| (key, renamed(value, change))).collect(),
        other => other,
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./,=:+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(["a/b-c.npz", "0.1,0.2"].map(quoted), ["a/b-c.npz", "0.1,0.2"]);
        assert_eq!(["my models", "it's", "", "$HOME"].map(quoted), ["'my models'", r"'it'\''s'", "''", "'$HOME'"]);
    }
}
