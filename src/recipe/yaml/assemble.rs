//! From a recipe file and its open models to a plan: each document is planned, and stands in those that use it as the
//! tree of what it computes.

use super::grammar::{self, Document, Reference};
use super::{RecipeFile, Sources, references};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Mismatch, Result};
use crate::merge::{Base, Method};
use crate::recipe::beside::Beside;
use crate::recipe::levels::Settings as Parameters;
use crate::recipe::plan::{MustBeEqual, compare, lowered};
use crate::recipe::planner::{self, Module, Planned, Rules, Slice, Source};
use crate::recipe::supply::Supply;
use crate::recipe::tokens::Alignment;
use crate::recipe::{Layers, Plan, Selection, matches_something, miscount, tied};
use crate::stream::{Control, Settings};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

impl<'a> Plan<'a> {
    /// Plans what a recipe file describes. Reads data only to compare tensors that are not floats, and only if all else
    /// fits.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the recipe contradicts itself, [`Error::Mismatch`] with everything that does not fit.
    pub fn of_file(file: &RecipeFile, sources: &'a Sources, settings: &Settings, control: Control<'_>) -> Result<Self> {
        let mut assembly = Assembly::new(file, sources);
        let mut last = None;
        for (group, document) in file.used().enumerate() {
            // Without what it uses, a document cannot be planned; what was wrong there is said already.
            assembly.completed.clear();
            let Some(models) = assembly.models(document) else { continue };
            let models = assembly.complete(models);
            let tokenizer = file.made_tokenizer(document, &models)?;
            let alignment = tokenizer.as_ref().map(|made| &made.alignment);
            let rules = rules(document, group);
            let Some(modules) = assembly.modules(document, &rules, alignment)? else { continue };
            let planned = planner::plan(&rules, &modules);
            let frame = modules.first().and_then(|module| module.slices.first()).map(|slice| slice.reference().root);
            let mut beside = beside(document, &modules);
            if let Some(root) = frame {
                file.add_tokenizer(document, tokenizer.as_ref(), &models, sources.frame(root), &mut beside)?;
            }
            last = assembly.take(document, planned, frame)?.map(|planned| (planned, frame, beside));
        }
        if !assembly.mismatches.is_empty() {
            return Err(Error::Mismatch(assembly.mismatches));
        }
        let Some((planned, Some(frame), beside)) = last else {
            return Err(Error::Recipe(format!("{}: holds no recipe", file.path.display())));
        };
        let different = compare(&assembly.compare, settings, control)?;
        if !different.is_empty() {
            return Err(Error::Mismatch(different));
        }
        let (reference, frame) = (frame, sources.frame(frame));
        Ok(Self {
            tensors: lowered(planned.made, reference.layout())?,
            left_out: assembly.left_out,
            kept_as: planned.kept,
            notes: assembly.notes,
            projections: Vec::new(),
            metadata: file.metadata(sources, reference)?,
            sources: sources.named().collect(),
            reference,
            frame,
            beside: file.beside(sources, beside),
        })
    }
}

/// The documents that are planned so far.
struct Assembly<'f, 'a> {
    file: &'f RecipeFile,
    /// By what a recipe calls them.
    supplies: HashMap<String, Rc<Supply<'a>>>,
    /// The same for those that have a head in the document at hand that is not their own.
    completed: HashMap<String, Rc<Supply<'a>>>,
    mismatches: Vec<Mismatch>,
    left_out: Vec<String>,
    notes: Vec<String>,
    compare: Vec<MustBeEqual<'a>>,
}

impl<'f, 'a> Assembly<'f, 'a> {
    fn new(file: &'f RecipeFile, sources: &'a Sources) -> Self {
        let models: Vec<Rc<Supply<'a>>> = sources.supplies().map(Rc::new).collect();
        let named = sources.by_text.iter();
        let supplies = named.filter_map(|(text, &index)| Some((text.clone(), Rc::clone(models.get(index)?))));
        Self {
            file,
            supplies: supplies.collect(),
            completed: HashMap::new(),
            mismatches: Vec::new(),
            left_out: Vec::new(),
            notes: Vec::new(),
            compare: Vec::new(),
        }
    }

    fn supply(&self, reference: &Reference) -> Option<Rc<Supply<'a>>> {
        self.completed.get(&reference.text).or(self.supplies.get(&reference.text)).cloned()
    }

    /// Takes in what a document came to. The last one is given back, others become models.
    fn take(
        &mut self,
        document: &Document,
        mut planned: Planned<'a>,
        root: Option<&'a Checkpoint>,
    ) -> Result<Option<Planned<'a>>> {
        let name = document.name.as_deref();
        let within = |tensor: String| name.map_or(tensor.clone(), |name| format!("{tensor} (of {name})"));
        let is_last = self.file.used().next_back().is_some_and(|last| std::ptr::eq(last, document));
        self.compare.append(&mut planned.compare);
        self.notes.append(&mut planned.notes);
        if is_last {
            self.left_out.append(&mut planned.left_out);
            self.mismatches.append(&mut planned.mismatches);
            return Ok(Some(planned));
        }
        self.left_out.extend(planned.left_out.drain(..).map(within));
        let mismatches = planned.mismatches.drain(..);
        let before = self.mismatches.len();
        self.mismatches
            .extend(mismatches.map(|Mismatch { tensor, problem }| Mismatch { tensor: within(tensor), problem }));
        if let (Some(name), Some(root), true) = (name, root, self.mismatches.len() == before) {
            self.supplies.insert(name.to_owned(), Rc::new(planned.into_supply(name.to_owned(), root)));
        }
        Ok(None)
    }

    /// The models of a document by what it calls them, its base first; none if one of these could not be made.
    fn models<'d>(&self, document: &'d Document) -> Option<Vec<(&'d str, Rc<Supply<'a>>)>> {
        let mut seen = HashSet::new();
        let all = references(document).into_iter().filter(|reference| seen.insert(reference.text.as_str()));
        all.map(|reference| Some((reference.text.as_str(), self.supply(reference)?))).collect()
    }

    /// The models of a document, with heads for those that lack one which others have.
    fn complete<'d>(&mut self, models: Vec<(&'d str, Rc<Supply<'a>>)>) -> Vec<(&'d str, Rc<Supply<'a>>)> {
        // A model that is named in two ways stays one.
        let mut distinct: Vec<Rc<Supply<'a>>> = Vec::new();
        for (_, supply) in &models {
            if !distinct.iter().any(|known| Rc::ptr_eq(known, supply)) {
                distinct.push(Rc::clone(supply));
            }
        }
        let completed = tied::complete(&distinct, &mut self.notes);
        let with_head = |(text, supply): (&'d str, Rc<Supply<'a>>)| {
            let index = distinct.iter().position(|known| Rc::ptr_eq(known, &supply));
            let supply = index.and_then(|index| completed.get(index)).map_or(supply, Rc::clone);
            (text, supply)
        };
        let models: Vec<(&str, Rc<Supply<'a>>)> = models.into_iter().map(with_head).collect();
        self.completed = models.iter().map(|(text, supply)| ((*text).to_owned(), Rc::clone(supply))).collect();
        models
    }

    /// The modules of a document with their models; none if one of these could not be made.
    fn modules(
        &mut self,
        document: &Document,
        rules: &Rules,
        alignment: Option<&Alignment>,
    ) -> Result<Option<Vec<Module<'a>>>> {
        let mut modules = Vec::new();
        for module in &document.modules {
            let slices = module.slices.iter().map(|slice| self.slice(document, module, slice, alignment));
            let slices: Option<Vec<Slice<'a>>> = slices.collect::<Result<Vec<_>>>()?.into_iter().collect();
            let Some(slices) = slices else { return Ok(None) };
            modules.push(Module { prefix: self.prefix(module, &slices)?, slices });
        }
        let names = || modules.iter().flat_map(|module| &module.slices).flat_map(|slice| slice.reference().names());
        let include = document.include.iter().map(|pattern| ("include", pattern));
        let exclude = document.exclude.iter().map(|pattern| ("exclude", pattern));
        matches_something(include.chain(exclude), names)
            .map_err(|error| document.place.error(&self.file.path, error))?;
        let prefixes: Vec<String> = modules.iter().map(|module| module.prefix.clone()).collect();
        for (module, described) in modules.iter_mut().zip(&document.modules) {
            let longer = prefixes.iter().filter(|other| other.len() > module.prefix.len());
            let longer: Vec<&String> = longer.collect();
            let merged = |name: &str| {
                let others = || longer.iter().any(|other| name.starts_with(other.as_str()));
                name.starts_with(&module.prefix) && !others() && rules.selection.takes(name)
            };
            for (slice, grammar::Slice { place, .. }) in module.slices.iter_mut().zip(&described.slices) {
                let placed = slice.place_blocks(merged, &mut self.notes);
                placed.map_err(|problem| place.error(&self.file.path, problem))?;
            }
        }
        Ok(Some(modules))
    }

    /// What the names of a module's tensors begin with: its own name, in a folder or as the first parts of theirs.
    fn prefix(&self, module: &grammar::Module, slices: &[Slice<'a>]) -> Result<String> {
        let Some((name, place)) = module.name.as_ref().filter(|(name, _)| name != "default") else {
            return Ok(String::new());
        };
        let names = || slices.iter().flat_map(|slice| slice.reference().names());
        let candidates = [
            format!("{name}/"),
            format!("{name}."),
            format!("model.{name}."),
            format!("model.{}.", name.replace('_', ".")),
        ];
        let found = candidates.into_iter().find(|prefix| names().any(|tensor| tensor.starts_with(prefix)));
        found.ok_or_else(|| {
            let mut heads: Vec<&str> = names().filter_map(|name| name.split(['.', '/']).next()).collect();
            heads.sort_unstable();
            heads.dedup();
            let message = format!("no tensor's name begins with `{name}`; they begin with {}", heads.join(", "));
            place.error(&self.file.path, message)
        })
    }

    fn slice(
        &self,
        document: &Document,
        module: &grammar::Module,
        slice: &grammar::Slice,
        alignment: Option<&Alignment>,
    ) -> Result<Option<Slice<'a>>> {
        let error = |message: String| slice.place.error(&self.file.path, message);
        let fail = |message: String| Err(error(message));
        let method = document.method;
        let about = method.about();
        let base = slice.base.as_ref().or(document.base.as_ref());
        let mut sources = Vec::new();
        for source in &slice.sources {
            let Some(supply) = self.supply(&source.model) else { return Ok(None) };
            sources.push(Source { supply, levels: Rc::clone(&source.parameters), layers: source.layers.clone() });
        }
        let mut base_index = None;
        if let Some(base) = base {
            let Some(supply) = self.supply(base) else { return Ok(None) };
            base_index = sources.iter().position(|source| Rc::ptr_eq(&source.supply, &supply));
            if base_index.is_none() && module.is_whole {
                // As in mergekit it is then one of the inputs, for methods without a base like any other.
                sources.push(Source { supply, levels: Rc::default(), layers: None });
                base_index = Some(sources.len() - 1);
            }
            if base_index.is_none() && about.base != Base::None {
                return fail(format!("the base model `{}` is not among the sources of this slice: add it", base.text));
            }
        }
        if about.needs_base() && base_index.is_none() {
            return fail(format!("{} needs a `base_model`", about.name));
        }
        if let Some(alignment) = alignment {
            let inputs: Vec<Rc<Supply<'a>>> = sources.iter().map(|source| Rc::clone(&source.supply)).collect();
            let aligned = alignment.apply(&inputs, base_index).map_err(error)?;
            sources.iter_mut().zip(aligned).for_each(|(source, supply)| source.supply = supply);
        }
        let mut shared: Vec<Rc<Parameters>> = vec![Rc::clone(&slice.parameters), Rc::clone(&module.parameters)];
        shared.push(Rc::clone(&document.parameters));
        let slice_of = Slice::new(method, sources, base_index, shared);
        match miscount(about, slice_of.models()) {
            Some(problem) if base_index.is_some() && about.base == Base::None => {
                fail(format!("{problem}, `base_model` being one of them"))
            }
            Some(problem) => fail(problem),
            None => Ok(Some(slice_of)),
        }
    }
}

/// What holds for all tensors of a document.
fn rules(document: &Document, group: usize) -> Rules {
    Rules {
        method: document.method,
        normalizes: normalizes(document.method),
        strict: true,
        missing_option: "`missing: base` and `missing: skip`",
        seed: document.seed,
        dtype: document.dtype,
        selection: Selection { include: document.include.clone(), exclude: document.exclude.clone() },
        missing: document.missing,
        group,
    }
}

/// Whether weights are divided by their sum where a recipe says nothing: mergekit's linear merge does.
fn normalizes(method: &dyn Method) -> bool {
    let about = method.about();
    about.normalizes || about.name == "linear"
}

/// The numbers of the configuration that change: of layers, if the model is made of slices.
fn beside(document: &Document, modules: &[Module<'_>]) -> Beside {
    let mut beside = Beside::default();
    for (module, described) in modules.iter().zip(&document.modules) {
        let Some(first) = module.slices.first().filter(|_| !described.is_whole) else { continue };
        let names = || first.reference().names().filter(|name| name.starts_with(&module.prefix));
        let from = described.slices.iter().filter_map(|slice| slice.sources.first()?.layers.clone()).flatten();
        beside.layers = Some((Layers::of(names()).count(), from.collect()));
    }
    beside
}
