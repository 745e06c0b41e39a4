//! Recipe files: mergekit's YAML as it is, of one document or of several that use each other's results.

mod assemble;
mod card;
mod grammar;
mod keys;
mod tree;
mod vocabulary;

use crate::adapter::{self, Adapters, Unplaced};
use crate::checkpoint::{Checkpoint, OpenOptions, read_text};
use crate::error::{Error, Result};
use crate::merge::Method;
use crate::recipe::{joined, labels, projections};
use grammar::{Document, Reader, Reference, TokenSource, TokenizerSource};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The longest recipe that is read, in bytes.
const LIMIT: u64 = 10 << 20;

/// How to read a recipe file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether keys that are not known are warnings.
    pub lenient: bool,
    /// Values to put in place of what the file says, by a path of keys and numbers apart by dots. In a file of several
    /// documents it begins with a document's name, or is the last document's.
    pub set: Vec<(String, String)>,
}

/// A recipe file, read and understood.
pub struct RecipeFile {
    path: PathBuf,
    /// The text, with what was set in place.
    text: String,
    documents: Vec<Document>,
    /// The documents that lead to the output, each behind those that it uses; the last is the output.
    order: Vec<usize>,
    method: &'static dyn Method,
    /// The lists of values for blocks that it takes from files, by their names.
    presets: BTreeMap<String, Vec<f64>>,
    warnings: Vec<String>,
}

impl RecipeFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Model`] if it is not a regular file of text of at most 10 MiB, or [`Error::Recipe`] naming
    /// line and column.
    pub fn read(path: &Path, options: &Options) -> Result<Self> {
        Self::parse(path, read_text(path, LIMIT)?, options)
    }

    /// Reads a text that stands at `path`, to whose folder its models' paths are relative.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(path: &Path, text: String, options: &Options) -> Result<Self> {
        let fail = |message: String| Error::Recipe(format!("{}: {message}", path.display()));
        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
        let mut trees = tree::parse(path, &text)?;
        trees.retain(|tree| !tree.is_null());
        let mut text = text;
        if !options.set.is_empty() {
            for (key, value) in &options.set {
                set(&mut trees, key, value).map_err(|problem| fail(format!("--set {key}: {problem}")))?;
            }
            text = trees.iter().map(tree::Tree::to_yaml).collect::<Vec<_>>().join("---\n");
        }
        let reader = Reader::new(path, options.lenient);
        let documents = reader.documents(&trees)?;
        let (order, unused) = order(path, &documents)?;
        check_trees(path, order.iter().filter_map(|&index| documents.get(index)))?;
        let last = order.last().and_then(|&index| documents.get(index));
        let method = last.ok_or_else(|| fail("holds no recipe".to_owned()))?.method;
        let presets = reader.used_presets.into_inner();
        let mut warnings = reader.warnings.into_inner();
        warnings.extend(unused);
        Ok(Self { path: path.to_owned(), text, documents, order, method, presets, warnings })
    }

    /// What is odd without being wrong.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The method of the merge that is written.
    #[must_use]
    pub fn method(&self) -> &'static dyn Method {
        self.method
    }

    fn used(&self) -> impl DoubleEndedIterator<Item = &Document> {
        self.order.iter().filter_map(|&index| self.documents.get(index))
    }

    /// Opens all models that the recipe names.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], with the place at which the model is named.
    pub fn open(&self, options: &OpenOptions) -> Result<Sources> {
        let names: HashSet<&str> = self.documents.iter().filter_map(|document| document.name.as_deref()).collect();
        let mut sources = Sources { models: Vec::new(), by_text: HashMap::new(), completed: Vec::new() };
        for reference in self.used().flat_map(references).filter(|reference| !names.contains(reference.text.as_str())) {
            if sources.by_text.contains_key(&reference.text) {
                continue;
            }
            let parts = self.resolve(reference)?;
            let known = sources.models.iter().position(|model| model.parts == parts);
            let index = match known {
                Some(index) => index,
                None => {
                    sources.models.push(Model::open(parts, options)?);
                    sources.models.len() - 1
                }
            };
            sources.by_text.insert(reference.text.clone(), index);
        }
        sources.name();
        let models = sources.models.iter_mut();
        let mut named: Vec<_> = models.map(|model| (&mut model.checkpoint, model.label.as_str())).collect();
        sources.completed = projections::complete(&mut named, options.io)?;
        Ok(sources)
    }

    /// The paths of a model and its adapters.
    fn resolve(&self, reference: &Reference) -> Result<Vec<PathBuf>> {
        let fail = |message: String| Err(reference.place.error(&self.path, message));
        // A path may have these characters itself.
        if let Some(path) = self.find(&reference.text) {
            return Ok(vec![path]);
        }
        let mut parts = Vec::new();
        for part in reference.text.split('+') {
            if let Some(path) = self.find(part) {
                parts.push(path);
            } else if let Some((path, revision)) = part.rsplit_once('@').filter(|(path, _)| self.find(path).is_some()) {
                return fail(format!(
                    "`{path}` is a local path, of which there is no revision `{revision}`: name the folder of that revision"
                ));
            } else {
                return fail(format!(
                    "there is no model `{part}`: neither beside the recipe nor in the current folder; models are local files and folders, so download it first"
                ));
            }
        }
        Ok(parts)
    }

    /// A path as it is from the recipe's folder, or else from the current one.
    fn find(&self, text: &str) -> Option<PathBuf> {
        find(&self.path, text)
    }
}

/// A path as it is from a recipe's folder, or else from the current one.
fn find(recipe: &Path, text: &str) -> Option<PathBuf> {
    let beside = recipe.parent().unwrap_or(Path::new("")).join(text);
    [beside, PathBuf::from(text)].into_iter().find(|path| path.exists())
}

/// Puts a value into the documents.
fn set(trees: &mut [tree::Tree], key: &str, value: &str) -> Result<(), String> {
    let new = tree::parse(Path::new("value"), value).map_err(|error| error.to_string())?;
    let [new] = &new[..] else { return Err("give one value".to_owned()) };
    let mut new = new.clone();
    new.forget_place();
    let path: Vec<&str> = key.split('.').collect();
    let is_name = |tree: &tree::Tree| {
        tree.get("name").is_some_and(|name| matches!(&name.value, tree::Value::Scalar(text, _) if *text == path[0]))
    };
    let named = trees.iter().position(is_name).filter(|_| path.len() > 1);
    let unnamed = trees.iter().position(|tree| tree.get("name").is_none());
    let index = named.or(unnamed).unwrap_or(trees.len().saturating_sub(1));
    let tree = trees.get_mut(index).ok_or("the recipe is empty")?;
    tree.set(if named.is_some() { &path[1..] } else { &path }, new)
}

/// All models that a document names, its base first.
fn references(document: &Document) -> Vec<&Reference> {
    let mut all: Vec<&Reference> = document.base.iter().collect();
    for slice in document.modules.iter().flat_map(|module| &module.slices) {
        all.extend(&slice.base);
        all.extend(slice.sources.iter().map(|source| &source.model));
    }
    if let Some(tokenizer) = &document.tokenizer {
        if let TokenizerSource::Model(reference) = &tokenizer.source {
            all.push(reference);
        }
        all.extend(tokenizer.tokens.iter().filter_map(|token| match &token.source {
            Some(TokenSource::Model(reference) | TokenSource::Other(reference, _)) => Some(reference),
            _ => None,
        }));
    }
    all
}

/// The documents that lead to the output in the order in which they can be planned, and warnings of those that do not.
fn order(path: &Path, documents: &[Document]) -> Result<(Vec<usize>, Vec<String>)> {
    let fail = |message: String| Err(Error::Recipe(format!("{}: {message}", path.display())));
    let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, document) in documents.iter().enumerate() {
        if let Some(name) = &document.name
            && by_name.insert(name, index).is_some()
        {
            return Err(document.place.error(path, format!("another document is called `{name}` as well")));
        }
    }
    let uses = |index: usize| {
        let used =
            references(&documents[index]).into_iter().filter_map(|reference| by_name.get(reference.text.as_str()));
        used.copied().collect::<Vec<usize>>()
    };
    let is_used: HashSet<usize> = (0..documents.len()).flat_map(uses).collect();
    let unnamed: Vec<usize> = (0..documents.len()).filter(|&index| documents[index].name.is_none()).collect();
    let loose: Vec<usize> = (0..documents.len()).filter(|index| !is_used.contains(index)).collect();
    let last = match (&unnamed[..], &loose[..]) {
        _ if documents.is_empty() => return fail("holds no recipe".to_owned()),
        ([only], _) | ([], [only]) => *only,
        ([], []) => return fail("every document uses another: there is no first one".to_owned()),
        ([], _) => {
            return fail("several documents are used by no other: the one to write is to have no `name`".to_owned());
        }
        ([_, second, ..], _) => {
            let message = "only one document, the one to write, may have no `name`";
            return Err(documents[*second].place.error(path, message));
        }
    };
    // Depth first; what is open is on the way to itself.
    let (mut order, mut open, mut stack) = (Vec::new(), HashSet::new(), vec![(last, false)]);
    while let Some((index, is_done)) = stack.pop() {
        if is_done {
            open.remove(&index);
            order.push(index);
        } else if open.contains(&index) {
            let name = documents[index].name.as_deref().unwrap_or_default();
            return Err(documents[index].place.error(path, format!("`{name}` uses its own result")));
        } else if !order.contains(&index) {
            open.insert(index);
            stack.push((index, true));
            stack.extend(uses(index).into_iter().filter(|used| !order.contains(used)).map(|used| (used, false)));
        }
    }
    let unused = loose.iter().filter(|&&index| index != last).filter_map(|&index| documents.get(index));
    let unused = unused.map(|document| {
        let name = document.name.as_deref().unwrap_or_default();
        document.place.error(path, format!("`{name}` is used by no other document and not merged")).to_string()
    });
    Ok((order, unused.collect()))
}

/// The most merges that a tensor may go through, in all and one after the other: each takes memory for every tensor.
const MERGES: u64 = 1000;
const DEPTH: u64 = 32;

/// That no tensor takes too many merges, of documents in the order in which they can be planned. One that is used twice
/// counts twice.
fn check_trees<'d>(path: &Path, documents: impl Iterator<Item = &'d Document>) -> Result<()> {
    let mut trees: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for document in documents {
        let (mut merges, mut depth) = (1, 1);
        for slice in document.modules.iter().flat_map(|module| &module.slices) {
            let base = slice.base.iter().chain(&document.base).take(1);
            let models = slice.sources.iter().map(|source| &source.model).chain(base);
            let below = models.filter_map(|model| trees.get(model.text.as_str()));
            let (all, deepest) =
                below.fold((1u64, 1), |(all, deepest), tree| (all.saturating_add(tree.0), deepest.max(tree.1 + 1)));
            (merges, depth) = (merges.max(all), depth.max(deepest));
        }
        if merges > MERGES || depth > DEPTH {
            let message = format!(
                "each tensor would go through {merges} merges, {depth} of them one after the other, as documents use each other's results; at most {MERGES} and {DEPTH} can be one run: write some results to files first"
            );
            return Err(document.place.error(path, message));
        }
        if let Some(name) = &document.name {
            trees.insert(name, (merges, depth));
        }
    }
    Ok(())
}

/// A model that a recipe names, open.
struct Model {
    parts: Vec<PathBuf>,
    checkpoint: Checkpoint,
    adapters: Adapters,
    label: String,
}

impl Model {
    fn open(parts: Vec<PathBuf>, options: &OpenOptions) -> Result<Self> {
        let checkpoint = Checkpoint::open_with(&parts[0], options)?;
        if adapter::is_adapter(&checkpoint) {
            let message = "is an adapter, not a model: name its model before it, as in MODEL+ADAPTER";
            return Err(Error::model(&parts[0], message));
        }
        let adapters = Adapters::open(&parts[1..], &checkpoint, options, Unplaced::Error)?;
        Ok(Self { checkpoint, adapters, label: String::new(), parts })
    }
}

/// The models that a recipe names, open.
pub struct Sources {
    models: Vec<Model>,
    by_text: HashMap<String, usize>,
    /// What stands for tensors that models lack.
    completed: Vec<String>,
}

impl Sources {
    /// Gives each a name that tells it from the others.
    fn name(&mut self) {
        let paths: Vec<PathBuf> = self.models.iter().map(|model| joined(&model.parts)).collect();
        let labels = labels(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>());
        self.models.iter_mut().zip(labels).for_each(|(model, label)| model.label = label);
    }

    /// All models' checkpoints.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> + Clone {
        self.models.iter().map(|model| &model.checkpoint)
    }

    /// What was put in place of tensors that some of the models lack.
    pub fn remarks(&self) -> impl Iterator<Item = &str> {
        self.completed.iter().map(String::as_str)
    }

    /// What is odd about the adapters without being wrong.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.models.iter().flat_map(|model| model.adapters.warnings()).map(String::as_str)
    }
}
