//! What people see: text and JSON on stdout, progress, warnings and notes on stderr.

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::os;
use crate::output::StagedFile;
use crate::stream::Control;
use ckptmerge_format::printable;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use unicode_width::UnicodeWidthStr;

/// Set by Ctrl-C and by the signals that ask a process to end.
static CANCEL: AtomicBool = AtomicBool::new(false);

/// What a subcommand said, where another one ran it.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// The answer, for people.
    pub(super) text: String,
    /// The answer as a document.
    pub(super) json: Value,
    /// Warnings and notes.
    pub(super) remarks: Vec<String>,
}

/// Where it is kept.
pub(super) type Kept = Arc<Mutex<Said>>;

/// Where a subcommand says things.
pub(super) struct Report {
    json: bool,
    quiet: bool,
    verbose: bool,
    /// What is said is kept here, and nobody hears it.
    kept: Option<Kept>,
}

impl Report {
    pub(super) fn new(json: bool, quiet: bool, verbose: bool, kept: Option<Kept>) -> Self {
        Self { json, quiet, verbose, kept }
    }

    fn kept(&self) -> Option<MutexGuard<'_, Said>> {
        self.kept.as_ref().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A part of an answer that is told as the work goes on. A document is told once, at the end.
    #[cfg(all(feature = "diffusion", feature = "plot"))]
    pub(super) fn tell(&self, text: &str) -> anyhow::Result<()> {
        if self.json || self.quiet { Ok(()) } else { print(text) }
    }

    /// The answer: `json` if that was asked for, else `text` unless it should be quiet.
    pub(super) fn answer(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> anyhow::Result<()> {
        if let Some(mut kept) = self.kept() {
            kept.text += &text();
            kept.json = json();
            return Ok(());
        }
        if self.json {
            print(&in_json(&format!("{:#}\n", json())))
        } else if self.quiet {
            Ok(())
        } else {
            print(&text())
        }
    }

    /// The answer with `picture`, of our own characters and colours, in it: between the two texts.
    pub(super) fn answer_with_picture(
        &self,
        text: impl FnOnce() -> [String; 3],
        json: impl FnOnce() -> Value,
    ) -> anyhow::Result<()> {
        if self.kept.is_some() {
            return self.answer(|| text().concat(), json);
        }
        if self.json || self.quiet {
            return self.answer(String::new, json);
        }
        let [before, picture, behind] = text();
        print(&before)?;
        print_as_it_is(&picture)?;
        print(&behind)
    }

    /// What was chosen and what is odd in a model.
    pub(super) fn about(&self, model: &Checkpoint) {
        model.notes().iter().for_each(|note| self.remark(note));
        model.warnings().iter().for_each(|warning| self.warn(warning));
    }

    /// Something odd that does not stop the run.
    pub(super) fn warn(&self, message: &str) {
        if let Some(mut kept) = self.kept() {
            kept.remarks.push(message.to_owned());
        } else if !self.quiet {
            say(&format!("warning: {message}"));
        }
    }

    /// What one should know of an output, though nothing is wrong with it.
    pub(super) fn remark(&self, message: &str) {
        if let Some(mut kept) = self.kept() {
            kept.remarks.push(message.to_owned());
        } else if !self.quiet {
            say(&format!("note: {message}"));
        }
    }

    /// A file that was written beside the answer.
    pub(super) fn wrote(&self, path: &Path) {
        if !self.quiet && self.kept.is_none() {
            say(&format!("wrote {}", path.display()));
        }
    }

    /// Writes a small file beside the answer, whole.
    pub(super) fn write(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        let file = StagedFile::create(path, bytes.len() as u64)?;
        file.write_at(0, bytes)?;
        file.commit(false)?;
        self.wrote(path);
        Ok(())
    }

    /// Whether the answer goes where colours can be seen.
    pub(super) fn has_colour(&self) -> bool {
        self.kept.is_none()
            && io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// How many columns the answer has room for.
    pub(super) fn width(&self) -> usize {
        let of_terminal = if self.kept.is_some() { None } else { os::terminal_width() };
        of_terminal.unwrap_or(100)
    }

    /// Something that only the curious want to know.
    pub(super) fn note(&self, message: impl FnOnce() -> String) {
        if self.verbose && self.kept.is_none() {
            say(&message());
        }
    }

    /// Runs `work` with a bar over `total` bytes, on a terminal, and stops it on Ctrl-C.
    pub(super) fn watched<T>(
        &self,
        total: u64,
        work: impl FnOnce(Control<'_>) -> crate::Result<T>,
    ) -> crate::Result<T> {
        let style = "{bar:32} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
        self.watched_as(style, total, work)
    }

    /// The same over so many things of a kind, such as `images`.
    #[cfg(any(feature = "diffusion", feature = "plot"))]
    pub(super) fn watched_count<T>(
        &self,
        total: u64,
        things: &str,
        work: impl FnOnce(Control<'_>) -> crate::Result<T>,
    ) -> crate::Result<T> {
        let style = format!("{{bar:32}} {{human_pos}}/{{human_len}} {things}  {{per_sec}}  {{eta}} left");
        self.watched_as(&style, total, work)
    }

    fn watched_as<T>(
        &self,
        style: &str,
        total: u64,
        work: impl FnOnce(Control<'_>) -> crate::Result<T>,
    ) -> crate::Result<T> {
        // Only the first call installs the handler; without one, Ctrl-C ends the process and the next run cleans up.
        os::keeping_ignored_signals(|| {
            let _ = ctrlc::set_handler(|| CANCEL.store(true, std::sync::atomic::Ordering::Relaxed));
        });
        let shown = !self.quiet && io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        let result = work(Control { progress: &|done| bar.inc(done), cancel: &CANCEL });
        bar.finish_and_clear();
        result
    }
}

/// Prints to stdout. A reader that has had enough, as `head` has, is no failure: the exit code stays the command's own.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    print_as_it_is(&harmless(text))
}

fn print_as_it_is(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Says a line on stderr, if anybody can hear it.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{}", harmless(text));
}

/// Whether a character can command a terminal, or turn the order of what is behind it.
fn commands(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || character.is_control() && !matches!(character, '\n' | '\t')
}

/// The text with such characters escaped, which names from files may have.
fn harmless(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.escape_default().to_string())
}

/// The same of JSON, in which they are within strings.
fn in_json(text: &str) -> Cow<'_, str> {
    escaped(text, |c| format!("\\u{:04x}", u32::from(c)))
}

fn escaped(text: &str, escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(commands) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if commands(c) { escape(c) } else { c.to_string() }).collect())
}

/// That files to be written beside an answer are different ones, and none of the models' own.
pub(super) fn check_beside<'a>(
    outputs: &[Option<&Path>],
    models: impl Iterator<Item = &'a Checkpoint> + Clone,
) -> crate::Result<()> {
    // A file that is not there yet is known by its folder.
    let real = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        path.canonicalize()
            .or_else(|_| Ok::<_, io::Error>(folder.canonicalize()?.join(name)))
            .unwrap_or(path.to_owned())
    };
    let outputs: Vec<&Path> = outputs.iter().copied().flatten().collect();
    for (index, output) in outputs.iter().enumerate() {
        if outputs[..index].iter().any(|other| real(other) == real(output)) {
            return Err(Error::output(output, "is to be written twice: give each output a name of its own"));
        }
        let mut inputs = models.clone().flat_map(Checkpoint::files);
        if inputs.any(|input| real(input.path()) == real(output)) {
            return Err(Error::output(
                output,
                "is one of the models, which would be lost: give the output another name",
            ));
        }
    }
    Ok(())
}

/// That files can be written where they are to go: each a name in a folder, or a regular file that may be replaced.
#[cfg(feature = "plot")]
pub(super) fn check_places(outputs: &[Option<&Path>]) -> crate::Result<()> {
    for output in outputs.iter().copied().flatten() {
        let folder = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            return Err(Error::output(
                output,
                format!("the folder {} does not exist; make it first", folder.display()),
            ));
        }
        match output.metadata() {
            Ok(found) if found.is_file() => {}
            Ok(found) if found.is_dir() => return Err(Error::output(output, "is a folder; name a file")),
            Ok(_) => return Err(Error::output(output, "is no regular file and is not replaced; name another")),
            Err(_) if output.is_symlink() => {
                return Err(Error::output(output, "is a link that leads nowhere; remove it or name another"));
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// That files to be written beside an answer would not replace what it is of: a file that was given, or one in a folder that was.
#[cfg(any(feature = "diffusion", feature = "plot"))]
pub(super) fn check_kept(outputs: &[Option<&Path>], inputs: &[Option<&Path>]) -> crate::Result<()> {
    // Only what is there can be lost.
    for output in outputs.iter().copied().flatten().filter_map(|path| path.canonicalize().ok()) {
        let inputs = inputs.iter().copied().flatten().filter_map(|path| path.canonicalize().ok());
        if let Some(input) = inputs.into_iter().find(|input| output.starts_with(input)) {
            let message = format!("is of what was given ({}), and would be lost: name another", input.display());
            return Err(Error::output(&output, message));
        }
    }
    Ok(())
}

/// A table without rules, as wide as its content; columns whose heading is in `right` are numbers.
pub(super) fn table(headings: &[&str], right: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    // All cells in one text: there can be millions.
    let (mut text, mut ends, mut widths) = (String::new(), Vec::new(), vec![0; headings.len()]);
    let mut add = |cells: &mut dyn Iterator<Item = &str>| {
        for (cell, width) in cells.zip(&mut widths) {
            let cell = printable(cell);
            *width = cell.width().max(*width);
            text += &cell;
            ends.push(text.len());
        }
    };
    add(&mut headings.iter().copied());
    rows.into_iter().for_each(|row| add(&mut row.iter().map(String::as_str)));

    let (mut lines, mut start) = (String::with_capacity(text.len()), 0);
    for row in ends.chunks(headings.len().max(1)) {
        for (column, ((end, width), heading)) in row.iter().zip(&widths).zip(headings).enumerate() {
            let cell = &text[start..*end];
            start = *end;
            let room = " ".repeat(width - cell.width());
            let (before, behind) = if right.contains(heading) { (room, String::new()) } else { (String::new(), room) };
            // Two spaces between columns, none before the first.
            lines += if column > 0 { "  " } else { "" };
            lines.extend([before.as_str(), cell, behind.as_str()]);
        }
        lines.truncate(lines.trim_end_matches(' ').len());
        lines.push('\n');
    }
    lines
}

/// A table as comma-separated values (RFC 4180, but with plain line ends).
pub(super) fn csv(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let field = |field: &str| {
        if field.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    };
    let line = |fields: &mut dyn Iterator<Item = &str>| fields.map(field).collect::<Vec<_>>().join(",") + "\n";
    let mut text = line(&mut headings.iter().copied());
    rows.into_iter().for_each(|row| text += &line(&mut row.iter().map(String::as_str)));
    text
}

/// A number with so many digits that count, as `0.01235` or `1.235e-7`.
pub(super) fn significant(number: f64, digits: usize) -> String {
    let magnitude = if number == 0.0 { 0 } else { number.abs().log10().floor() as i32 };
    if (-4..6).contains(&magnitude) {
        let behind = (digits as i32 - 1 - magnitude).max(0) as usize;
        format!("{number:.behind$}")
    } else {
        format!("{number:.*e}", digits - 1)
    }
}

/// `12345678` as `12,345,678`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `[2, 3]` as `2×3`; a scalar as `scalar`.
pub(super) fn shape(shape: &[u64]) -> String {
    if shape.is_empty() {
        return "scalar".to_owned();
    }
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join("×")
}

/// One of a thing, several of others: `1 tensor`, `2 tensors`.
pub(super) fn count(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// The first few names of many.
pub(super) fn shortened(names: &[String]) -> String {
    let more = if names.len() > 5 { ", …" } else { "" };
    format!("{}{more}", names.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", "))
}
