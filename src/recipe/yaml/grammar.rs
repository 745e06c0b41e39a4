//! mergekit's grammar: from a tree of YAML to what is to be merged.
//!
//! `merge_method`; one of `models`, `slices`, `modules`; `base_model`, `parameters`, `dtype`, `out_dtype`,
//! `tokenizer_source` or `tokenizer`, `chat_template`; `name` in files of several documents. Beside them stand keys of
//! ours: `seed`, `missing`, `include`, `exclude`, `block_presets`. What is in none of the lists here is an error, or with
//! [`Options::lenient`] a warning, as mergekit would pass over it in silence and merge something else than was meant.

use super::keys::{self, TOP};
use super::tree::{Entry, Place, Tree, Value};
use crate::dtype::{self, DType};
use crate::error::{Error, Result};
use crate::merge::{self, Allowed, Method, Weight};
use crate::recipe::levels::{NORMALIZE, Settings, WEIGHT};
use crate::recipe::{Anchors, Filter, Missing, Presets, Setting, blocks, number};
use regex::Regex;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

/// One merge, as a document describes it.
pub(super) struct Document {
    pub(super) name: Option<String>,
    pub(super) place: Place,
    pub(super) method: &'static dyn Method,
    pub(super) modules: Vec<Module>,
    pub(super) base: Option<Reference>,
    pub(super) parameters: Rc<Settings>,
    /// What the output is written in.
    pub(super) dtype: Option<DType>,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) chat_template: Option<(String, Place)>,
    pub(super) seed: u64,
    pub(super) missing: Missing,
    pub(super) include: Vec<Regex>,
    pub(super) exclude: Vec<Regex>,
}

/// A part of the model: all of it, if it has no name.
pub(super) struct Module {
    pub(super) name: Option<(String, Place)>,
    pub(super) slices: Vec<Slice>,
    /// Whether it came as `models`, to which the base is added if it is not among them.
    pub(super) is_whole: bool,
    pub(super) parameters: Rc<Settings>,
}

/// Layers of some models.
pub(super) struct Slice {
    pub(super) place: Place,
    pub(super) sources: Vec<Source>,
    pub(super) base: Option<Reference>,
    pub(super) parameters: Rc<Settings>,
}

/// One of a slice's models.
pub(super) struct Source {
    pub(super) model: Reference,
    pub(super) layers: Option<Range<u64>>,
    pub(super) parameters: Rc<Settings>,
}

/// A model by its path or name, perhaps with adapters.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) place: Place,
    /// `MODEL` or `MODEL+ADAPTER`, as it stands there.
    pub(super) text: String,
}

/// Where the tokens come from.
pub(super) struct Tokenizer {
    pub(super) place: Place,
    pub(super) source: TokenizerSource,
    pub(super) tokens: Vec<Token>,
    pub(super) pad_to_multiple_of: Option<u64>,
}

pub(super) enum TokenizerSource {
    Union,
    Base,
    Model(Reference),
}

/// What the row of a token is.
pub(super) struct Token {
    pub(super) token: String,
    pub(super) place: Place,
    pub(super) source: Option<TokenSource>,
    /// Whether models that have the token get this row as well.
    pub(super) force: bool,
}

pub(super) enum TokenSource {
    Zero,
    /// The same token of a model.
    Model(Reference),
    /// Another token of a model, by its text or its number.
    Other(Reference, Result<String, u64>),
}

/// What has parameters, in messages.
const PARAMETERS_OF: &str = "merge by ";
/// More layers than any model has.
const LAYERS: u64 = 1 << 16;

/// Reads documents, and notes what is odd.
pub(super) struct Reader<'p> {
    pub(super) path: &'p Path,
    pub(super) lenient: bool,
    pub(super) warnings: RefCell<Vec<String>>,
    /// What is wrong and keeps nothing else from being read.
    wrong: RefCell<Vec<(Place, String)>>,
    /// The file of lists for blocks that the document names.
    presets: RefCell<Option<Presets>>,
    /// The lists that are taken from such files.
    pub(super) used_presets: RefCell<BTreeMap<String, Vec<f64>>>,
}

impl<'p> Reader<'p> {
    pub(super) fn new(path: &'p Path, lenient: bool) -> Self {
        let (warnings, wrong, presets, used_presets) = Default::default();
        Self { path, lenient, warnings, wrong, presets, used_presets }
    }
}

impl Reader<'_> {
    fn fail<T>(&self, place: Place, message: impl std::fmt::Display) -> Result<T> {
        Err(place.error(self.path, message))
    }

    fn warn(&self, place: Place, message: impl std::fmt::Display) {
        self.warnings.borrow_mut().push(place.error(self.path, message).to_string());
    }

    /// All documents.
    ///
    /// # Errors
    /// [`Error::Recipe`] with every key that is not known, and what else is wrong first.
    pub(super) fn documents(&self, trees: &[Tree]) -> Result<Vec<Document>> {
        let read = trees.iter().map(|tree| self.document(tree)).collect::<Result<Vec<_>>>();
        let mut wrong = self.wrong.take();
        // As they stand in the file, not in the order in which they are looked at.
        wrong.sort();
        // What aliases repeat stands there once.
        wrong.dedup();
        let mut all: Vec<String> =
            wrong.into_iter().map(|(place, message)| place.error(self.path, message).to_string()).collect();
        match (read, all.len()) {
            (read, 0) => read,
            (Ok(_), 1) => Err(Error::Recipe(all.concat())),
            (read, _) => {
                all.extend(read.err().map(|error| error.to_string()));
                Err(Error::Recipe(format!("the recipe is wrong in {} places:\n  {}", all.len(), all.join("\n  "))))
            }
        }
    }

    /// The entries of a mapping, all of whose keys are known.
    fn map<'t>(&self, tree: &'t Tree, what: &'static str, known: &[&str]) -> Result<Vec<&'t Entry>> {
        let Value::Map(entries) = &tree.value else {
            return self.fail(tree.place, format!("a {what} is a mapping of keys, not {}", tree.kind()));
        };
        let mut kept = Vec::new();
        for entry in entries {
            if known.contains(&entry.key.as_str()) {
                if !entry.tree.is_null() {
                    kept.push(entry);
                }
            } else {
                self.unknown(entry, what, known.iter().copied());
            }
        }
        Ok(kept)
    }

    /// What is said of a key of a `what` that is none of the known: an error, or a warning where one is lenient or nothing
    /// else would be merged.
    fn unknown<'k>(&self, entry: &Entry, what: &str, known: impl IntoIterator<Item = &'k str>) {
        let (key, place) = (&entry.key, entry.place);
        let in_parameters = what.starts_with(PARAMETERS_OF);
        let kind = if in_parameters { "parameter" } else { "key" };
        if let Some(why) = keys::without_effect(key) {
            return self.warn(place, format!("`{key}` has no effect: {why}"));
        }
        let message = format!("there is no {kind} `{key}` of a {what}; {}", keys::advice(key, in_parameters, known));
        if self.lenient {
            self.warn(place, message);
        } else {
            self.wrong.borrow_mut().push((place, message));
        }
    }

    fn list<'t>(&self, tree: &'t Tree, what: &str) -> Result<&'t [Tree]> {
        match &tree.value {
            Value::List(list) if !list.is_empty() => Ok(list),
            _ => self.fail(tree.place, format!("{what} is a list with at least one entry")),
        }
    }

    fn word<'t>(&self, tree: &'t Tree, what: &str) -> Result<&'t str> {
        match &tree.value {
            Value::Scalar(text, _) if !tree.is_null() => Ok(text),
            _ => self.fail(tree.place, format!("{what} is a word, not {}", tree.kind())),
        }
    }

    fn integer(&self, tree: &Tree, what: &str) -> Result<u64> {
        let text = self.word(tree, what)?;
        text.parse().or_else(|_| self.fail(tree.place, format!("{what} is a whole number from 0, not `{text}`")))
    }

    fn switch(&self, tree: &Tree, what: &str) -> Result<bool> {
        let text = self.word(tree, what)?;
        number(text)
            .map_or_else(|| self.fail(tree.place, format!("{what} is true or false, not `{text}`")), |n| Ok(n != 0.0))
    }

    fn dtype(&self, tree: &Tree) -> Result<DType> {
        let text = self.word(tree, "a type")?;
        let Some(dtype) = DType::parse(text) else {
            let error = Error::unknown("type", text, DType::all().map(DType::name));
            return self.fail(tree.place, error);
        };
        if !dtype.is_real() || !dtype::can_encode(dtype) {
            return self
                .fail(tree.place, format!("models cannot be merged to {dtype}; choose a float type such as bfloat16"));
        }
        Ok(dtype)
    }

    /// A document.
    fn document(&self, tree: &Tree) -> Result<Document> {
        self.map(tree, "recipe", &TOP)?;
        let present = |key: &str| tree.get(key).filter(|tree| !tree.is_null());
        let Some(name) = present("merge_method") else {
            return self.fail(tree.place, "the recipe has no `merge_method`");
        };
        let method =
            merge::method(self.word(name, "`merge_method`")?).map_err(|error| name.place.error(self.path, error))?;
        let presets = present("block_presets").map(|tree| self.presets(tree)).transpose()?;
        self.presets.replace(presets);
        let bodies: Vec<&str> =
            ["models", "slices", "modules"].into_iter().filter(|key| present(key).is_some()).collect();
        let (["models"] | ["slices"] | ["modules"]) = bodies[..] else {
            return self.fail(tree.place, "a recipe has exactly one of `models`, `slices` and `modules`");
        };
        let modules = match present("modules") {
            None => vec![self.module(tree, None, method)?],
            Some(modules) => {
                let Value::Map(entries) = &modules.value else {
                    return self.fail(modules.place, "`modules` is a mapping of names to modules");
                };
                let one = |entry: &Entry| {
                    self.map(&entry.tree, "module", &["models", "slices", "parameters"])?;
                    self.module(&entry.tree, Some((entry.key.clone(), entry.place)), method)
                };
                entries.iter().map(one).collect::<Result<_>>()?
            }
        };
        let dtype = present("out_dtype").or(present("dtype")).map(|tree| self.dtype(tree)).transpose()?;
        if let Some(inner) = present("dtype") {
            self.dtype(inner)?;
        }
        let tokenizer = match (present("tokenizer_source"), present("tokenizer")) {
            (Some(_), Some(both)) => {
                return self.fail(both.place, "a recipe has either `tokenizer` or `tokenizer_source`, not both");
            }
            (Some(source), None) => Some(Tokenizer {
                place: source.place,
                source: self.tokenizer_source(source)?,
                tokens: Vec::new(),
                pad_to_multiple_of: None,
            }),
            (None, Some(tokenizer)) => Some(self.tokenizer(tokenizer)?),
            (None, None) => None,
        };
        let template = present("chat_template");
        let missing = present("missing").map(|tree| {
            let word = self.word(tree, "`missing`")?;
            let found = Missing::NAMES.iter().find(|(name, _)| *name == word);
            found.map_or_else(|| self.fail(tree.place, "`missing` is error, base or skip"), |(_, missing)| Ok(*missing))
        });
        Ok(Document {
            name: present("name").map(|tree| self.word(tree, "`name`").map(str::to_owned)).transpose()?,
            place: tree.place,
            method,
            modules,
            base: present("base_model").map(|tree| self.reference(tree)).transpose()?,
            // Of modules, which have levels of their own between, these are the farthest.
            parameters: self.parameters(tree, method)?,
            dtype,
            tokenizer,
            chat_template: template
                .map(|tree| Ok::<_, Error>((self.word(tree, "`chat_template`")?.to_owned(), tree.place)))
                .transpose()?,
            seed: present("seed").map(|tree| self.integer(tree, "`seed`")).transpose()?.unwrap_or(0),
            missing: missing.transpose()?.unwrap_or_default(),
            include: self.patterns(present("include"))?,
            exclude: self.patterns(present("exclude"))?,
        })
    }

    fn presets(&self, tree: &Tree) -> Result<Presets> {
        let text = self.word(tree, "`block_presets`")?;
        let Some(path) = super::find(self.path, text) else {
            return self.fail(
                tree.place,
                format!("there is no file `{text}`, neither beside the recipe nor in the current folder"),
            );
        };
        Presets::read(&path).or_else(|error| self.fail(tree.place, error))
    }

    fn patterns(&self, tree: Option<&Tree>) -> Result<Vec<Regex>> {
        let Some(tree) = tree else { return Ok(Vec::new()) };
        let all = match &tree.value {
            Value::List(list) => list.iter().collect(),
            _ => vec![tree],
        };
        let one = |tree: &Tree| {
            let text = self.word(tree, "a pattern")?;
            Regex::new(text).or_else(|error| self.fail(tree.place, error))
        };
        all.into_iter().map(one).collect()
    }

    /// `models` or `slices` with their `parameters`, of a module or of a recipe without any.
    fn module(&self, tree: &Tree, name: Option<(String, Place)>, method: &dyn Method) -> Result<Module> {
        let present = |key: &str| tree.get(key).filter(|tree| !tree.is_null());
        let (slices, is_whole) = match (present("models"), present("slices")) {
            (Some(models), None) => {
                let sources = self.list(models, "`models`")?.iter().map(|tree| self.source(tree, method, false));
                let sources = sources.collect::<Result<_>>()?;
                (vec![Slice { place: models.place, sources, base: None, parameters: Rc::default() }], true)
            }
            (None, Some(slices)) => {
                let slices = self.list(slices, "`slices`")?.iter().map(|tree| self.slice(tree, method));
                (slices.collect::<Result<_>>()?, false)
            }
            _ => return self.fail(tree.place, "a module has either `models` or `slices`"),
        };
        // A recipe's own parameters are those of the document.
        let parameters = if name.is_some() { self.parameters(tree, method)? } else { Rc::default() };
        Ok(Module { name, slices, is_whole, parameters })
    }

    fn slice(&self, tree: &Tree, method: &dyn Method) -> Result<Slice> {
        // mergekit knows `residual_weight` and has no use for it.
        self.map(tree, "slice", &["sources", "base_model", "parameters", "residual_weight"])?;
        let Some(sources) = tree.get("sources") else { return self.fail(tree.place, "a slice has `sources`") };
        let sources: Vec<Source> = self
            .list(sources, "`sources`")?
            .iter()
            .map(|tree| self.source(tree, method, true))
            .collect::<Result<_>>()?;
        let length = |source: &Source| source.layers.as_ref().map(|layers| layers.end - layers.start);
        if let Some(other) = sources.iter().find(|source| length(source) != sources.first().and_then(length)) {
            return self.fail(other.model.place, "all sources of a slice have the same number of layers");
        }
        let base = tree.get("base_model").filter(|tree| !tree.is_null());
        Ok(Slice {
            place: tree.place,
            sources,
            base: base.map(|tree| self.reference(tree)).transpose()?,
            parameters: self.parameters(tree, method)?,
        })
    }

    fn source(&self, tree: &Tree, method: &dyn Method, in_slice: bool) -> Result<Source> {
        // A model alone needs no mapping.
        if let (Value::Scalar(..), false) = (&tree.value, in_slice) {
            return Ok(Source { model: self.reference(tree)?, layers: None, parameters: Rc::default() });
        }
        let keys: &[&str] = if in_slice { &["model", "layer_range", "parameters"] } else { &["model", "parameters"] };
        self.map(tree, if in_slice { "source" } else { "model" }, keys)?;
        let Some(model) = tree.get("model") else { return self.fail(tree.place, "this has no `model`") };
        let layers = match (tree.get("layer_range"), in_slice) {
            (Some(range), true) => match &range.value {
                Value::List(ends) if ends.len() == 2 => {
                    let ends = ends.iter().map(|end| self.integer(end, "an end of `layer_range`"));
                    let ends = ends.collect::<Result<Vec<u64>>>()?;
                    match ends[..] {
                        [first, end] if first < end && end <= LAYERS => Some(first..end),
                        _ => {
                            let message = format!(
                                "`layer_range` is [first, behind the last], with at least one layer, and none above {LAYERS}"
                            );
                            return self.fail(range.place, message);
                        }
                    }
                }
                _ => return self.fail(range.place, "`layer_range` is a list of two numbers: [first, behind the last]"),
            },
            (None, true) => return self.fail(tree.place, "a source of a slice has a `layer_range`"),
            _ => None,
        };
        Ok(Source { model: self.reference(model)?, layers, parameters: self.parameters(tree, method)? })
    }

    /// A model: text, or the mapping that mergekit writes for it.
    fn reference(&self, tree: &Tree) -> Result<Reference> {
        if let Value::Scalar(..) = &tree.value {
            return Ok(Reference { place: tree.place, text: self.word(tree, "a model")?.to_owned() });
        }
        self.map(tree, "model", &["model", "lora", "override_architecture", "path", "revision"])?;
        let path = |tree: &Tree| -> Result<String> {
            if let Value::Scalar(text, _) = &tree.value {
                return Ok(text.clone());
            }
            self.map(tree, "model", &["path", "revision"])?;
            let Some(path) = tree.get("path") else { return self.fail(tree.place, "a model has a `path`") };
            let revision = tree.get("revision").filter(|tree| !tree.is_null());
            let revision = revision.map(|tree| self.word(tree, "`revision`")).transpose()?;
            Ok(self.word(path, "`path`")?.to_owned() + &revision.map_or(String::new(), |name| format!("@{name}")))
        };
        let mut text = path(tree.get("model").unwrap_or(tree))?;
        if let Some(lora) = tree.get("lora").filter(|tree| !tree.is_null()) {
            text = format!("{text}+{}", path(lora)?);
        }
        Ok(Reference { place: tree.place, text })
    }

    /// What stands under `parameters`, if anything does.
    fn parameters(&self, tree: &Tree, method: &dyn Method) -> Result<Rc<Settings>> {
        let Some(tree) = tree.get("parameters").filter(|tree| !tree.is_null()) else { return Ok(Rc::default()) };
        let Value::Map(entries) = &tree.value else {
            return self.fail(tree.place, format!("`parameters` is a mapping, not {}", tree.kind()));
        };
        let mut settings = Settings::new();
        let about = method.about();
        let weighs = about.weight != Weight::Unused;
        for entry in entries.iter().filter(|entry| !entry.tree.is_null()) {
            let Entry { key, place, tree } = entry;
            // mergekit's name of the switch where a method is of those that it took over from its users.
            let name = if key == "normalize_weights" { NORMALIZE } else { key.as_str() };
            let own = about.parameters.iter().map(|parameter| parameter.name);
            let mut known = own.chain([WEIGHT, NORMALIZE].into_iter().filter(|_| weighs));
            let Some(name) = known.find(|known| *known == name) else {
                if keys::is_parameter(name) {
                    self.warn(*place, format!("{} has no parameter `{key}`; it has no effect", about.name));
                } else {
                    let known = about.parameters.iter().map(|parameter| parameter.name).chain([WEIGHT, NORMALIZE]);
                    self.unknown(entry, &format!("{PARAMETERS_OF}{}", about.name), known);
                }
                continue;
            };
            let setting = self.setting(tree)?;
            let parameter = about.parameters.iter().find(|parameter| parameter.name == name);
            for value in setting.values() {
                let checked = match parameter {
                    Some(parameter) => parameter.check(about, value),
                    None if name == NORMALIZE && !Allowed::Switch.has(value) => {
                        Err(format!("`{key}` is true or false, not {value}"))
                    }
                    None => Ok(()),
                };
                checked.or_else(|problem| self.fail(tree.place, problem))?;
            }
            settings.insert(name.to_owned(), setting);
        }
        Ok(Rc::new(settings))
    }

    /// A value: a number, a gradient, a value with a filter, values for blocks, or a list of those.
    fn setting(&self, tree: &Tree) -> Result<Setting> {
        let rules = match &tree.value {
            Value::List(list) if list.iter().any(|item| matches!(item.value, Value::Map(_))) => {
                list.iter().map(|item| self.rules(item)).collect::<Result<Vec<_>>>()?.concat()
            }
            Value::Map(_) => self.rules(tree)?,
            _ => vec![(Filter::Any, self.anchors(tree)?)],
        };
        Ok(Setting { rules })
    }

    fn rules(&self, tree: &Tree) -> Result<Vec<(Filter, Anchors)>> {
        if let Some(values) = tree.get("blocks") { self.blocks(tree, values) } else { Ok(vec![self.rule(tree)?]) }
    }

    /// Values for the blocks of a diffusion model: all in order, by the name of a list, or by the names of blocks.
    fn blocks(&self, tree: &Tree, values: &Tree) -> Result<Vec<(Filter, Anchors)>> {
        self.map(tree, "value for blocks", &["blocks", "otherwise"])?;
        let listed = |numbers: &[f64]| blocks::rules(numbers).or_else(|problem| self.fail(values.place, problem));
        let mut rules = match &values.value {
            Value::Map(entries) => {
                let one = |entry: &Entry| Ok(blocks::rule(entry.key.clone(), self.anchors(&entry.tree)?));
                entries.iter().map(one).collect::<Result<Vec<_>>>()?
            }
            Value::List(list) => {
                let one = |item: &Tree| {
                    let value = blocks::value(self.word(item, "a value")?);
                    value.or_else(|problem| self.fail(item.place, problem))
                };
                listed(&list.iter().map(one).collect::<Result<Vec<_>>>()?)?
            }
            Value::Scalar(..) => {
                let name = self.word(values, "`blocks`")?;
                let presets = self.presets.borrow();
                let Some(presets) = presets.as_ref() else {
                    let message = format!("`{name}` is the name of a list: give the file it is in as `block_presets`");
                    return self.fail(values.place, message);
                };
                let numbers = presets.get(name).or_else(|error| self.fail(values.place, error))?;
                let rules = listed(&numbers)?;
                self.used_presets.borrow_mut().insert(name.to_owned(), numbers);
                rules
            }
        };
        if let Some(rest) = tree.get("otherwise").filter(|tree| !tree.is_null()) {
            rules.push((Filter::Any, self.anchors(rest)?));
        }
        Ok(rules)
    }

    fn rule(&self, tree: &Tree) -> Result<(Filter, Anchors)> {
        self.map(tree, "value with a filter", &["value", "filter"])?;
        let Some(value) = tree.get("value") else { return self.fail(tree.place, "this has no `value`") };
        let filter = match tree.get("filter").filter(|tree| !tree.is_null()) {
            None => Filter::Any,
            Some(tree) => match self.word(tree, "`filter`")? {
                "*" => Filter::Any,
                text => Filter::Contains(text.to_owned()),
            },
        };
        Ok((filter, self.anchors(value)?))
    }

    fn anchors(&self, tree: &Tree) -> Result<Anchors> {
        let items = match &tree.value {
            Value::List(list) => list.as_slice(),
            _ => std::slice::from_ref(tree),
        };
        let words = items.iter().map(|item| self.word(item, "a value")).collect::<Result<Vec<_>>>()?;
        let stepped = words.iter().all(|word| word.parse::<f64>().is_err());
        let values = items.iter().zip(words).map(|(item, word)| match number(word) {
            Some(value) if (value as f32).is_finite() => Ok(value),
            Some(value) => self.fail(item.place, format!("{value:e} is not a finite number of 32 bits")),
            None => self.fail(item.place, format!("`{word}` is not a number")),
        });
        Ok(Anchors { values: values.collect::<Result<_>>()?, stepped })
    }

    fn tokenizer_source(&self, tree: &Tree) -> Result<TokenizerSource> {
        Ok(match &tree.value {
            Value::Scalar(word, _) if word == "union" => TokenizerSource::Union,
            Value::Scalar(word, _) if word == "base" => TokenizerSource::Base,
            Value::Scalar(word, _) if word.starts_with("model:") && super::find(self.path, word).is_none() => {
                let message =
                    format!("`model:` is of older versions of mergekit: name the model alone, `{}`", &word[6..]);
                return self.fail(tree.place, message);
            }
            _ => TokenizerSource::Model(self.reference(tree)?),
        })
    }

    fn tokenizer(&self, tree: &Tree) -> Result<Tokenizer> {
        self.map(tree, "tokenizer", &["source", "tokens", "pad_to_multiple_of"])?;
        let present = |key: &str| tree.get(key).filter(|tree| !tree.is_null());
        let source = present("source").map_or(Ok(TokenizerSource::Union), |tree| self.tokenizer_source(tree))?;
        let mut tokens = Vec::new();
        if let Some(list) = present("tokens") {
            let Value::Map(entries) = &list.value else {
                return self.fail(list.place, "`tokens` is a mapping of tokens to where their rows come from");
            };
            tokens = entries.iter().map(|entry| self.token(entry)).collect::<Result<_>>()?;
        }
        let pad = present("pad_to_multiple_of").map(|tree| self.integer(tree, "`pad_to_multiple_of`")).transpose()?;
        Ok(Tokenizer { place: tree.place, source, tokens, pad_to_multiple_of: pad.filter(|pad| *pad > 0) })
    }

    fn token(&self, entry: &Entry) -> Result<Token> {
        self.map(&entry.tree, "token", &["source", "force"])?;
        let present = |key: &str| entry.tree.get(key).filter(|tree| !tree.is_null());
        let force = present("force").map(|tree| self.switch(tree, "`force`")).transpose()?.unwrap_or(false);
        let source = present("source").map(|tree| self.token_source(tree)).transpose()?;
        Ok(Token { token: entry.key.clone(), place: entry.place, source, force })
    }

    fn token_source(&self, tree: &Tree) -> Result<TokenSource> {
        let Some(kind) = tree.get("kind") else { return Ok(TokenSource::Model(self.reference(tree)?)) };
        match self.word(kind, "`kind`")? {
            "zero" => {
                self.map(tree, "token's source", &["kind"])?;
                Ok(TokenSource::Zero)
            }
            "model_token" => {
                self.map(tree, "token's source", &["kind", "model", "token", "token_id"])?;
                let Some(model) = tree.get("model") else { return self.fail(tree.place, "this has no `model`") };
                let present = |key: &str| tree.get(key).filter(|tree| !tree.is_null());
                let token = match (present("token"), present("token_id")) {
                    (Some(token), None) => Ok(self.word(token, "`token`")?.to_owned()),
                    (None, Some(id)) => Err(self.integer(id, "`token_id`")?),
                    _ => return self.fail(tree.place, "a token of a model has either `token` or `token_id`"),
                };
                Ok(TokenSource::Other(self.reference(model)?, token))
            }
            other => self.fail(kind.place, format!("`kind` is model_token or zero, not `{other}`")),
        }
    }
}
