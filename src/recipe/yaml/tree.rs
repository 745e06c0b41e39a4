//! YAML text as a tree in which everything knows where it stands, so that messages can say so.
//!
//! Scalars stay text: what a word means, a number, a switch or a name, is for the place to say that takes it. A key that
//! stands twice in a mapping is an error, as one of the two would be lost. Anchors, aliases and merge keys (`<<`) are
//! resolved; how much they may add up to is bounded.

use crate::error::{Error, Result};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;

/// How deep a recipe may be nested.
const DEPTH: usize = 64;
/// How many values a recipe may have, aliases spelled out.
const VALUES: usize = 100_000;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    line: usize,
    column: usize,
}

impl Place {
    fn of(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }

    /// An error at this place of a file.
    pub(super) fn error(self, path: &Path, message: impl std::fmt::Display) -> Error {
        match self.line {
            // Given on the command line, and so nowhere in the file.
            0 => Error::Recipe(format!("{}: {message}", path.display())),
            _ => Error::Recipe(format!("{}:{}:{}: {message}", path.display(), self.line, self.column)),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a value is made of.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A word or text, and whether it stands there without quotes.
    Scalar(String, bool),
    List(Vec<Tree>),
    Map(Vec<Entry>),
}

/// A key of a mapping and what it leads to.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) tree: Tree,
}

impl Tree {
    /// Whether there is nothing: no text, `~` or `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(text, true) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Makes it stand nowhere, as what was given beside the file does.
    pub(super) fn forget_place(&mut self) {
        self.place = Place::default();
        match &mut self.value {
            Value::Scalar(..) => {}
            Value::List(list) => list.iter_mut().for_each(Self::forget_place),
            Value::Map(entries) => {
                for entry in entries {
                    entry.place = Place::default();
                    entry.tree.forget_place();
                }
            }
        }
    }

    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(..) if self.is_null() => "nothing",
            Value::Scalar(..) => "a value",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// What a key of a mapping leads to.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.tree),
            _ => None,
        }
    }

    /// Puts `new` at a path of keys and numbers, apart by dots; keys that are not there are added.
    ///
    /// # Errors
    /// A message if the path goes through something that has no parts, or past the end of a list.
    pub(super) fn set(&mut self, path: &[&str], new: Self) -> Result<(), String> {
        let [first, rest @ ..] = path else {
            *self = new;
            return Ok(());
        };
        if self.is_null() {
            self.value = Value::Map(Vec::new());
        }
        match &mut self.value {
            Value::List(list) => {
                let length = list.len();
                let item = first.parse().ok().and_then(|index: usize| list.get_mut(index));
                item.ok_or_else(|| format!("`{first}` is no number of a list of {length}, counted from 0"))?
                    .set(rest, new)
            }
            Value::Map(entries) => {
                if let Some(entry) = entries.iter_mut().find(|entry| entry.key == *first) {
                    return entry.tree.set(rest, new);
                }
                let mut tree = Self { place: new.place, value: Value::Map(Vec::new()) };
                tree.set(rest, new)?;
                entries.push(Entry { key: (*first).to_owned(), place: tree.place, tree });
                Ok(())
            }
            Value::Scalar(text, _) => Err(format!("`{text}` has no part `{first}`")),
        }
    }

    /// The tree as YAML text.
    pub(super) fn to_yaml(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, 0);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }

    /// Writes the tree, of which the first line is already indented.
    fn write(&self, text: &mut String, indent: usize) {
        let pad = " ".repeat(indent);
        match &self.value {
            Value::Scalar(word, true) => text.push_str(word),
            Value::Scalar(word, false) => text.push_str(&quoted(word)),
            Value::List(list) if list.iter().all(|item| matches!(item.value, Value::Scalar(..))) => {
                text.push('[');
                for (index, item) in list.iter().enumerate() {
                    text.push_str(if index > 0 { ", " } else { "" });
                    match &item.value {
                        // In brackets these would end the word.
                        Value::Scalar(word, true) if word.contains([',', '[', ']', '{', '}']) => {
                            text.push_str(&quoted(word));
                        }
                        _ => item.write(text, 0),
                    }
                }
                text.push(']');
            }
            Value::List(list) => {
                for (index, item) in list.iter().enumerate() {
                    text.push_str(if index > 0 { &pad } else { "" });
                    text.push_str("- ");
                    item.write(text, indent + 2);
                    end_line(text);
                }
            }
            Value::Map(entries) if entries.is_empty() => text.push_str("{}"),
            Value::Map(entries) => {
                for (index, Entry { key, tree, .. }) in entries.iter().enumerate() {
                    text.push_str(if index > 0 { &pad } else { "" });
                    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic())
                        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                    // Writing to a String cannot fail.
                    let _ = if plain { write!(text, "{key}:") } else { write!(text, "{}:", quoted(key)) };
                    let is_block = match &tree.value {
                        Value::Scalar(..) => false,
                        Value::List(list) => list.iter().any(|item| !matches!(item.value, Value::Scalar(..))),
                        Value::Map(entries) => !entries.is_empty(),
                    };
                    if is_block {
                        text.push('\n');
                        text.push_str(&" ".repeat(indent + 2));
                        tree.write(text, indent + 2);
                    } else {
                        text.push(' ');
                        tree.write(text, indent + 2);
                    }
                    end_line(text);
                }
            }
        }
    }
}

fn end_line(text: &mut String) {
    while text.ends_with([' ', '\n']) {
        text.pop();
    }
    text.push('\n');
}

/// A text in double quotes: what JSON writes is YAML as well.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The documents of a file.
///
/// # Errors
/// [`Error::Recipe`] with the place at which the text is no YAML, or more than a recipe is.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Tree>> {
    let mut builder = Builder { path, anchors: HashMap::new(), open: Vec::new(), documents: Vec::new(), values: 0 };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Place::of(*error.marker()).error(path, error.info()))?;
        builder.take(event, Place::of(span.start))?;
    }
    Ok(builder.documents)
}

/// A list or mapping whose end has not come yet.
struct Open {
    place: Place,
    anchor: usize,
    parts: Parts,
}

/// What has come so far of a list or mapping.
enum Parts {
    List(Vec<Tree>),
    /// The entries, and the key whose value comes next.
    Map(Vec<Entry>, Option<(String, Place)>),
}

struct Builder<'p> {
    path: &'p Path,
    anchors: HashMap<usize, (Tree, usize)>,
    open: Vec<Open>,
    documents: Vec<Tree>,
    values: usize,
}

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<()> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let tree = Tree { place, value: Value::Scalar(text.into_owned(), style == ScalarStyle::Plain) };
                self.finished(tree, anchor, 1)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open { place, anchor, parts: Parts::List(Vec::new()) }),
            Event::MappingStart(anchor, _) => self.begin(Open { place, anchor, parts: Parts::Map(Vec::new(), None) }),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let value = match open.parts {
                    Parts::List(items) => Value::List(items),
                    Parts::Map(entries, _) => Value::Map(self.merged(entries)?),
                };
                self.finished(Tree { place: open.place, value }, open.anchor, 1)
            }
            Event::Alias(anchor) => {
                let Some((tree, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(place.error(self.path, "this alias stands inside of what it names"));
                };
                self.finished(tree, 0, size)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<()> {
        if self.open.len() >= DEPTH {
            return Err(open.place.error(self.path, format!("is nested deeper than {DEPTH} levels")));
        }
        self.open.push(open);
        Ok(())
    }

    /// Puts a finished value where it belongs.
    fn finished(&mut self, tree: Tree, anchor: usize, added: usize) -> Result<()> {
        self.values += added;
        if self.values > VALUES {
            return Err(tree.place.error(self.path, format!("the recipe has more than {VALUES} values")));
        }
        if anchor != 0 {
            let size = values_in(&tree);
            self.anchors.insert(anchor, (tree.clone(), size));
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.push(tree);
            return Ok(());
        };
        let (entries, key) = match &mut open.parts {
            Parts::List(items) => {
                items.push(tree);
                return Ok(());
            }
            Parts::Map(entries, key) => (entries, key),
        };
        match key.take() {
            Some((key, place)) => entries.push(Entry { key, place, tree }),
            None => {
                let Value::Scalar(word, _) = tree.value else {
                    return Err(tree.place.error(self.path, "a key must be a word"));
                };
                if let Some(first) = entries.iter().find(|entry| entry.key == word && word != "<<") {
                    let message =
                        format!("`{word}` stands twice in this mapping; the first is in line {}", first.place.line);
                    return Err(tree.place.error(self.path, message));
                }
                *key = Some((word, tree.place));
            }
        }
        Ok(())
    }

    /// The entries with those of merge keys, where they have no key of that name themselves.
    fn merged(&self, entries: Vec<Entry>) -> Result<Vec<Entry>> {
        let (merges, mut own): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| entry.key == "<<");
        for merge in merges {
            let sources = match merge.tree.value {
                Value::List(list) => list,
                _ => vec![merge.tree],
            };
            for source in sources {
                let Value::Map(entries) = source.value else {
                    return Err(source.place.error(self.path, "`<<` takes mappings"));
                };
                for entry in entries {
                    if !own.iter().any(|other| other.key == entry.key) {
                        own.push(entry);
                    }
                }
            }
        }
        Ok(own)
    }
}

/// How many values there are in a tree, itself included.
fn values_in(tree: &Tree) -> usize {
    match &tree.value {
        Value::Scalar(..) => 1,
        Value::List(list) => 1 + list.iter().map(values_in).sum::<usize>(),
        Value::Map(entries) => 1 + entries.iter().map(|entry| values_in(&entry.tree)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Tree>> {
        parse(Path::new("r.yaml"), text)
    }

    fn only(text: &str) -> Tree {
        read(text).expect(text).remove(0)
    }

    #[test]
    fn documents_lists_and_mappings_have_places() {
        let documents = read("a: 1\n---\nb:\n  - x\n  - \"y\"\n").expect("it is YAML");
        assert_eq!(documents.len(), 2);
        let list = documents[1].get("b").expect("it is there");
        assert_eq!(list.place, Place { line: 4, column: 3 });
        assert_eq!(documents[1].to_yaml(), "b: [x, \"y\"]\n");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, message) in [
            ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1: `a` stands twice in this mapping; the first is in line 1"),
            ("a: [1, 2\n", "r.yaml:"),
            ("a: &x [*x]\n", "inside of what it names"),
            ("? [1, 2]\n: 3\n", "r.yaml:1:3: a key must be a word"),
        ] {
            let error = read(text).expect_err(text).to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(read(&"[".repeat(100_000)).is_err());
        let deep = format!("{}1{}", "[".repeat(65), "]".repeat(65));
        assert!(read(&deep).expect_err("too deep").to_string().contains("nested deeper"));
        let mut bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for i in 1..9 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb += &format!("a{i}: &a{i} [{list}]\n");
        }
        assert!(read(&bomb).expect_err("too many").to_string().contains("more than 100000 values"));
    }

    #[test]
    fn merge_keys_give_what_is_not_there() {
        let tree = only("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  y: 3\n");
        assert_eq!(tree.get("own").expect("it is there").to_yaml(), "y: 3\nx: 1\n");
    }

    #[test]
    fn paths_set_values_and_what_is_written_reads_as_the_same() {
        let mut tree = only("models:\n  - model: a b\n    parameters: {weight: 1}\n  - model: \"b: c\"\nt:\n");
        let value = |text: &str| only(text);
        tree.set(&["models", "0", "parameters", "weight"], value("[0, 0.5]")).expect("it is there");
        tree.set(&["t", "new", "deep"], value("x")).expect("it can be made");
        let written = "models:\n  - model: a b\n    parameters:\n      weight: [0, 0.5]\n  - model: \"b: c\"\nt:\n  new:\n    deep: x\n";
        assert_eq!(tree.to_yaml(), written);
        assert_eq!(only(written).to_yaml(), written);
        assert!(tree.set(&["models", "2"], value("1")).is_err());
        assert!(tree.set(&["models", "0", "model", "x"], value("1")).is_err());
    }
}
