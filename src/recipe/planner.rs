//! One merge planned: for each output tensor what it is made of.
//!
//! Every merge is some slices one after the other, mostly one that is the whole model. A slice takes the same number of
//! consecutive layers from each of its inputs and numbers them anew; what stands before all layers comes from the first
//! slice, what stands behind them from the last.

use super::blocks::ModelBlocks;
use super::fold::Folded;
use super::levels::{Lacking, Levels, Settings, Where};
use super::place::stack_of;
use super::plan::{Kept, MustBeEqual, scale_of, stored_type};
use super::supply::{Given, Supply};
use super::tokens::is_by_token;
use super::{Layers, Missing, Selection, is_before_layers};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::Mismatch;
use crate::merge::{Base, Input, Method, Node, Terms};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

/// What holds for all tensors of a merge.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) method: &'static dyn Method,
    /// Whether weights are divided by their sum where nothing is said.
    pub(super) normalizes: bool,
    /// Whether what mergekit has no default for must be given.
    pub(super) strict: bool,
    /// How to ask for tensors that are missing to be copied.
    pub(super) missing_option: &'static str,
    pub(super) seed: u64,
    pub(super) dtype: Option<DType>,
    /// Which tensors take part; others are copied as they are.
    pub(super) selection: Selection,
    pub(super) missing: Missing,
    /// Which merge of the run it is.
    pub(super) group: usize,
}

/// A part of a model, by the prefix of its names, and the slices it is made of.
pub(super) struct Module<'a> {
    pub(super) prefix: String,
    pub(super) slices: Vec<Slice<'a>>,
}

/// Some inputs and the layers that are taken from each.
pub(super) struct Slice<'a> {
    /// In the order of the method; the base last where it has one.
    inputs: Vec<Rc<Supply<'a>>>,
    has_base: bool,
    /// The input that decides the order of tensors: the base, or the first.
    reference: usize,
    levels: Levels,
    /// What accompanies each model, for methods that ask for it.
    pub(super) companions: Vec<Rc<Supply<'a>>>,
    /// The layers of each input, equally many; none for all there are.
    layers: Option<Vec<Range<u64>>>,
}

/// One input of a slice before it is in its place.
pub(super) struct Source<'a> {
    pub(super) supply: Rc<Supply<'a>>,
    pub(super) levels: Rc<Settings>,
    pub(super) layers: Option<Range<u64>>,
}

impl<'a> Slice<'a> {
    /// Puts the base where the method has it.
    pub(super) fn new(
        method: &dyn Method,
        mut sources: Vec<Source<'a>>,
        base: Option<usize>,
        shared: Vec<Rc<Settings>>,
    ) -> Self {
        let (mut has_base, mut reference) = (false, base.unwrap_or(0));
        if base.is_none() && method.about().base == Base::Last {
            // The last model is the base, though the first still decides the order of tensors.
            has_base = true;
        }
        if let Some(base) = base.filter(|base| *base < sources.len()) {
            match method.about().base {
                Base::Required | Base::Optional | Base::Last => {
                    let last = sources.remove(base);
                    sources.push(last);
                    (has_base, reference) = (true, sources.len() - 1);
                }
                Base::Counts => {
                    let first = sources.remove(base);
                    sources.insert(0, first);
                    reference = 0;
                }
                Base::None => {}
            }
        }
        let layers = sources.iter().map(|source| source.layers.clone()).collect();
        let inputs = sources.iter().map(|source| Rc::clone(&source.supply)).collect();
        let levels = Levels { inputs: sources.into_iter().map(|source| source.levels).collect(), shared };
        Self { inputs, has_base, reference, levels, companions: Vec::new(), layers }
    }

    /// Gives each input, by its number in the method's order, its parameters.
    pub(super) fn set_levels(&mut self, own: impl Fn(usize) -> Rc<Settings>, shared: Vec<Rc<Settings>>) {
        self.levels = Levels { inputs: (0..self.inputs.len()).map(own).collect(), shared };
    }

    /// Tells from the names of the reference's tensors which are in the blocks that parameters have values for; `merges`
    /// says which tensors need values. What is to be said about it is added to `notes`.
    ///
    /// # Errors
    /// A message if the values are not for this model's blocks.
    pub(super) fn place_blocks(
        &mut self,
        merges: impl Fn(&str) -> bool,
        notes: &mut Vec<String>,
    ) -> Result<(), String> {
        if !self.levels.have_blocks() {
            return Ok(());
        }
        if self.layers.is_some() {
            return Err("values for blocks are for whole models, not for slices of them".to_owned());
        }
        let reference = Rc::clone(self.reference());
        let label = reference.label.as_str();
        let blocks = ModelBlocks::of(reference.tensors()).map_err(|problem| format!("{label} {problem}"))?;
        let merged = || {
            let merged = reference.tensors().iter().filter(|given| given.dtype.is_real() && merges(&given.name));
            merged.map(|given| given.name.as_str())
        };
        self.levels.place_blocks(|name, setting| blocks.place(setting, (name, label), merged(), notes))
    }

    /// How many models are merged, without a base that does not count as one.
    pub(super) fn models(&self) -> usize {
        self.inputs.len() - usize::from(self.has_base)
    }

    /// The input that decides the order of tensors.
    pub(super) fn reference(&self) -> &Rc<Supply<'a>> {
        &self.inputs[self.reference]
    }

    fn has_the_inputs_of(&self, other: &Self) -> bool {
        self.inputs.len() == other.inputs.len() && self.inputs.iter().zip(&other.inputs).all(|(a, b)| Rc::ptr_eq(a, b))
    }
}

/// An output tensor and how it is made.
pub(super) struct Made<'a> {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    pub(super) making: Making<'a>,
}

pub(super) enum Making<'a> {
    /// The elements of one source; not bit for bit if the type changes.
    From(Input<'a>),
    /// It stays tied to this other tensor of the output.
    Tied(String),
    /// With a projection multiplied in, once all tensors are planned.
    Folded(Box<Folded<'a>>),
}

/// What a merge comes to.
#[derive(Default)]
pub(super) struct Planned<'a> {
    pub(super) made: Vec<Made<'a>>,
    pub(super) left_out: Vec<String>,
    pub(super) kept: Vec<Kept>,
    pub(super) mismatches: Vec<Mismatch>,
    pub(super) compare: Vec<MustBeEqual<'a>>,
    /// What is to be said of how the recipe was understood.
    pub(super) notes: Vec<String>,
}

impl<'a> Planned<'a> {
    /// What comes of it as a model for another merge.
    pub(super) fn into_supply(self, label: String, root: &'a Checkpoint) -> Supply<'a> {
        let inputs: HashMap<String, Input<'a>> = self
            .made
            .iter()
            .filter_map(|made| match &made.making {
                Making::From(input) => Some((made.name.clone(), input.clone())),
                Making::Tied(_) | Making::Folded(_) => None,
            })
            .collect();
        let given = self.made.into_iter().filter_map(|made| {
            let (input, alias_of) = match made.making {
                Making::From(input) => (input, None),
                Making::Tied(target) => (inputs.get(&target)?.clone(), Some(target)),
                // What another merge takes is never folded.
                Making::Folded(_) => return None,
            };
            Some(Given { name: made.name, dtype: made.dtype, shape: made.shape, alias_of, input })
        });
        Supply::new(label, root, given.collect())
    }
}

/// An output tensor whose inputs are to be found.
struct Sought<'s, 'a> {
    output: String,
    inputs: Vec<String>,
    slice: &'s Slice<'a>,
    place: f64,
    side: Side,
}

/// Where a tensor stands in a model that is put together of slices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// The model is one slice.
    Whole,
    Before,
    Inside,
    Behind,
}

/// Plans a merge.
pub(super) fn plan<'a>(rules: &Rules, modules: &[Module<'a>]) -> Planned<'a> {
    let mut planner = Planner { rules, planned: Planned::default() };
    for module in modules {
        let (Some(first), Some(last)) = (module.slices.first(), module.slices.last()) else { continue };
        // The longest prefix counts, so that one module may be all that is in no other.
        let longer = |name: &str, other: &Module<'_>| {
            other.prefix.len() > module.prefix.len() && name.starts_with(&other.prefix)
        };
        let of_module =
            |name: &&str| name.starts_with(&module.prefix) && !modules.iter().any(|other| longer(name, other));
        let layers = Layers::of(first.reference().names().filter(of_module));
        let all = match &module.slices[..] {
            [whole] if whole.layers.is_none() => {
                let one = |name: &str| Sought {
                    output: name.to_owned(),
                    inputs: vec![name.to_owned(); whole.inputs.len()],
                    slice: whole,
                    place: layers.place(name),
                    side: Side::Whole,
                };
                distinct(whole).filter(of_module).map(one).collect()
            }
            slices => planner.layered(slices, &layers, &of_module),
        };
        planner.planned.notes.extend(beside_layers(rules, &layers, &all));
        for sought in &all {
            // A tie stays where both tensors are made of the same inputs.
            let tied = |target: &str| match sought.side {
                Side::Whole => true,
                Side::Inside => false,
                side => {
                    let same_side = is_before_layers(target) == (side == Side::Before);
                    layers.layer(target).is_none() && (same_side || first.has_the_inputs_of(last))
                }
            };
            let made = planner.tensor(sought, tied);
            planner.planned.made.extend(made);
        }
    }
    planner.check_whole(modules);
    planner.planned
}

/// Every name in the inputs of a slice once: the reference's first, in its order.
fn distinct<'s>(slice: &'s Slice<'_>) -> impl Iterator<Item = &'s str> {
    let mut seen = HashSet::new();
    let supplies = std::iter::once(slice.reference()).chain(&slice.inputs);
    supplies.flat_map(|supply| supply.names()).filter(move |name| seen.insert(*name))
}

/// What is to be said of numbered tensors that gradients do not follow.
fn beside_layers(rules: &Rules, layers: &Layers, all: &[Sought<'_, '_>]) -> Option<String> {
    /// More stacks than this are not named.
    const NAMED: usize = 6;
    let (mut stacks, mut values) = (BTreeSet::new(), BTreeSet::new());
    for sought in all.iter().filter(|sought| rules.selection.takes(&sought.output)) {
        let stack = match sought.side {
            Side::Whole => layers.loose(&sought.output),
            Side::Before | Side::Behind => stack_of(&sought.output),
            Side::Inside => None,
        };
        let Some(stack) = stack else { continue };
        let mut gradients = sought.slice.levels.gradients(&sought.output).peekable();
        if gradients.peek().is_some() {
            stacks.insert(stack);
            values.extend(gradients.map(|(parameter, value)| format!("{parameter} {value}")));
        }
    }
    if stacks.is_empty() {
        return None;
    }
    let more = stacks.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named: Vec<String> = stacks.into_iter().take(NAMED).map(|stack| format!("`{stack}`")).collect();
    let (named, values) = (named.join(", "), values.into_iter().collect::<Vec<_>>().join(", "));
    let followed = layers.name(0, "");
    let followed = followed.trim_end_matches('0');
    Some(format!(
        "gradients follow the layers of `{followed}`; tensors that are numbered behind {named}{more} have the first value: {values}"
    ))
}

struct Planner<'r, 'a> {
    rules: &'r Rules,
    planned: Planned<'a>,
}

impl<'a> Planner<'_, 'a> {
    fn mismatch<T>(&mut self, tensor: &str, problem: String) -> Option<T> {
        self.planned.mismatches.push(Mismatch { tensor: tensor.to_owned(), problem });
        None
    }

    fn leave_out<T>(&mut self, tensor: &str) -> Option<T> {
        self.planned.left_out.push(tensor.to_owned());
        None
    }

    /// The type that was asked for, or what a tensor that cannot have it gets.
    fn asked(&mut self, name: &str, given: &Given<'a>) -> Option<DType> {
        let wanted = self.rules.dtype?;
        let dtype = stored_type(wanted, &given.shape);
        if dtype != wanted {
            let (name, dimensions) = (name.to_owned(), given.shape.len());
            self.planned.kept.push(Kept { name, from: given.dtype, wanted, dimensions });
        }
        Some(dtype)
    }

    /// The tensors of slices one after the other, with the layers numbered anew.
    fn layered<'s>(
        &mut self,
        slices: &'s [Slice<'a>],
        layers: &Layers,
        of_module: &impl Fn(&&str) -> bool,
    ) -> Vec<Sought<'s, 'a>> {
        let mut all = Vec::new();
        let outside = |slice: &'s Slice<'a>, side: Side| {
            let names = distinct(slice).filter(of_module).filter(|name| layers.layer(name).is_none());
            let names: Vec<&str> = names.filter(|name| is_before_layers(name) == (side == Side::Before)).collect();
            names.into_iter().map(move |name| Sought {
                output: name.to_owned(),
                inputs: vec![name.to_owned(); slice.inputs.len()],
                slice,
                place: 0.0,
                side,
            })
        };
        all.extend(slices.first().into_iter().flat_map(|slice| outside(slice, Side::Before)));
        let mut number = 0;
        for slice in slices {
            // Slices without are whole models, which are not put together.
            let Some(ranges) = &slice.layers else { continue };
            for (input, range) in slice.inputs.iter().zip(ranges) {
                let count = layers.count_in(input.names().filter(of_module));
                if range.end > count {
                    let name = layers.name(range.end - 1, "…");
                    let problem = format!("is asked for, but {} has {count} layers", input.label);
                    return self.mismatch(&name, problem).unwrap_or_default();
                }
            }
            let length = ranges.first().map_or(0, |range| range.end - range.start);
            for offset in 0..length {
                // What a layer has behind its number, in any of the inputs.
                let mut behind: Vec<&str> = Vec::new();
                let mut seen = HashSet::new();
                let order = std::iter::once(slice.reference).chain(0..slice.inputs.len());
                for (input, range) in order.filter_map(|index| Some((slice.inputs.get(index)?, ranges.get(index)?))) {
                    let found = input.names().filter(of_module).filter_map(|name| layers.layer(name));
                    let here = found.filter(|(_, layer, _)| *layer == range.start + offset);
                    behind.extend(here.map(|(.., behind)| behind).filter(|behind| seen.insert(*behind)));
                }
                let place = if length > 1 { offset as f64 / (length - 1) as f64 } else { 1.0 };
                all.extend(behind.into_iter().map(|behind| Sought {
                    output: layers.name(number, behind),
                    inputs: ranges.iter().map(|range| layers.name(range.start + offset, behind)).collect(),
                    slice,
                    place,
                    side: Side::Inside,
                }));
                number += 1;
            }
        }
        all.extend(slices.last().into_iter().flat_map(|slice| outside(slice, Side::Behind)));
        all
    }

    /// What becomes of a tensor; none if it is left out or does not fit.
    fn tensor(&mut self, sought: &Sought<'_, 'a>, tied: impl Fn(&str) -> bool) -> Option<Made<'a>> {
        let (slice, rules, name) = (sought.slice, self.rules, sought.output.as_str());
        let found: Vec<Option<&Given<'a>>> =
            slice.inputs.iter().zip(&sought.inputs).map(|(input, name)| input.get(name)).collect();
        let reference = found.get(slice.reference).copied().flatten();
        if !rules.selection.takes(name) {
            let Some(given) = reference else { return self.leave_out(name) };
            // Two tied tensors that both stay as they are stay tied.
            return Some(match &given.alias_of {
                Some(target) if !rules.selection.takes(target) && tied(target) => {
                    made(name, given, Making::Tied(target.clone()))
                }
                _ => made(name, given, Making::From(given.input.clone())),
            });
        }
        let given: Vec<&Given<'a>> = found.iter().copied().flatten().collect();
        if given.len() < found.len() {
            return match (rules.missing, reference) {
                (Missing::Error, _) => {
                    let lacking = found.iter().zip(&slice.inputs).filter(|(given, _)| given.is_none());
                    let labels: Vec<_> = lacking.map(|(_, input)| input.label.as_str()).collect();
                    self.mismatch(name, format!("is missing in {} (see {})", labels.join(", "), rules.missing_option))
                }
                (Missing::Base, Some(given)) => {
                    let asked = if given.dtype.is_real() { self.asked(name, given) } else { None };
                    let dtype = asked.unwrap_or(given.dtype);
                    Some(Made { dtype, ..made(name, given, Making::From(given.input.clone())) })
                }
                _ => self.leave_out(name),
            };
        }
        let own = reference?;
        let each = |text: fn(&Given<'a>) -> String| {
            let all =
                given.iter().zip(&slice.inputs).map(|(given, input)| format!("{} in {}", text(given), input.label));
            all.collect::<Vec<_>>().join(", ")
        };
        if given.iter().any(|given| !same_shape(&given.shape, &own.shape)) {
            let shapes = each(|given| format!("{:?}", given.shape));
            let rows_alone = given.iter().all(|given| given.shape.get(1..) == own.shape.get(1..));
            let hint = if rules.strict && rows_alone && is_by_token(name) {
                "; models with other vocabularies need a `tokenizer_source`"
            } else {
                ""
            };
            return self.mismatch(name, format!("has different shapes: {shapes}{hint}"));
        }
        // Tied everywhere to the same tensor, which is merged as well: still tied.
        if let Some(target) = &own.alias_of
            && rules.selection.takes(target)
            && tied(target)
            && given.iter().all(|given| given.alias_of.as_ref() == Some(target))
        {
            return Some(made(name, own, Making::Tied(target.clone())));
        }
        if given.iter().all(|given| given.dtype.is_real()) {
            return self.blend(sought, own, &given);
        }
        if given.iter().any(|given| given.dtype != own.dtype) {
            let dtypes = each(|given| given.dtype.to_string());
            return self.mismatch(name, format!("has types that do not mix: {dtypes}"));
        }
        let views = given.iter().filter_map(|given| match &given.input {
            Input::Tensor(view) => Some(*view),
            _ => None,
        });
        let (views, labels) = (views.collect(), slice.inputs.iter().map(|input| input.label.clone()).collect());
        self.planned.compare.push(MustBeEqual { views, labels, kept: slice.reference });
        Some(made(name, own, Making::From(own.input.clone())))
    }

    fn blend(&mut self, sought: &Sought<'_, 'a>, own: &Given<'a>, given: &[&Given<'a>]) -> Option<Made<'a>> {
        let (slice, rules, name) = (sought.slice, self.rules, sought.output.as_str());
        let scaled = given.iter().find_map(|given| match &given.input {
            Input::Tensor(view) => scale_of(view.tensor, view.checkpoint),
            Input::Generated(_) => None,
            Input::Node(node) => node.leaves().iter().find_map(|view| scale_of(view.tensor, view.checkpoint)),
        });
        if let Some(scale) = scaled {
            let problem = format!(
                "is {} with a scale in `{scale}`, without which its numbers mean nothing: convert the model to bf16 first, or exclude it",
                own.dtype
            );
            return self.mismatch(name, problem);
        }
        let method = rules.method;
        let mut terms = Terms::new(method.about(), name, &own.shape, slice.models(), slice.has_base);
        (terms.normalize, terms.seed, terms.group) = (rules.normalizes, rules.seed, rules.group);
        let at = Where { output: name, inputs: &sought.inputs, place: sought.place };
        if let Err(Lacking { parameter, input }) = slice.levels.fill(method, &mut terms, &at, rules.strict) {
            let whose = input.and_then(|index| slice.inputs.get(index));
            let whose = whose.map_or(String::new(), |input| format!(" for {}", input.label));
            let problem = format!("has no `{parameter}`{whose}, which {} needs", method.about().name);
            return self.mismatch(name, problem);
        }
        if terms.normalize && !slice.has_base && terms.weights.iter().sum::<f64>() == 0.0 {
            return self.mismatch(name, "has weights that add up to 0, so they cannot be normalized".to_owned());
        }
        // A gradient of whole numbers may have others between them.
        let values = method.about().parameters.iter().zip(&terms.parameters);
        let mut values =
            values.flat_map(|(parameter, (_, values))| values.iter().map(move |value| (parameter, *value)));
        if let Err(problem) = values.try_for_each(|(parameter, value)| parameter.check(method.about(), value)) {
            return self.mismatch(name, problem);
        }
        if let Err(problem) = method.check(&terms) {
            return self.mismatch(name, problem);
        }
        let promoted = given.iter().try_fold(own.dtype, |all, given| all.promote(given.dtype));
        let dtype = self.asked(name, own).or(promoted)?;
        let mut inputs: Vec<Input<'a>> = given.iter().map(|given| given.input.clone()).collect();
        match accompanying(slice, name, &own.shape) {
            Ok(more) => drop(inputs.splice(slice.models()..slice.models(), more)),
            Err(problem) => return self.mismatch(name, problem),
        }
        let making = Making::From(match (method.fixed(&terms), &inputs[..]) {
            // One model at weight 1 is that model.
            (Some(blend), [only]) if !blend.from_base && blend.coefficients == [1.0] => only.clone(),
            _ => Input::Node(Box::new(Node { method, terms, inputs })),
        });
        Some(Made { name: name.to_owned(), dtype, shape: own.shape.clone(), making })
    }

    /// That the modules make up the whole model.
    fn check_whole(&mut self, modules: &[Module<'a>]) {
        let mut strangers: BTreeMap<&str, &str> = BTreeMap::new();
        for slice in modules.iter().flat_map(|module| &module.slices) {
            for name in distinct(slice).filter(|name| !modules.iter().any(|module| name.starts_with(&module.prefix))) {
                strangers.entry(name.split(['.', '/']).next().unwrap_or(name)).or_insert(name);
            }
        }
        for (head, name) in strangers {
            let problem = format!("is in none of the recipe's modules: add one called `{head}`, or `default` for all");
            self.planned.mismatches.push(Mismatch { tensor: name.to_owned(), problem });
        }
    }
}

/// Whether tensors have the same elements in the same places. A scalar is the same as one element in a row, which
/// formats without scalars make of it.
fn same_shape(one: &[u64], other: &[u64]) -> bool {
    one == other || matches!((one, other), ([], [1]) | ([1], []))
}

/// What the companions have for a tensor, which must fit it.
fn accompanying<'a>(slice: &Slice<'a>, name: &str, shape: &[u64]) -> Result<Vec<Input<'a>>, String> {
    let input = |companion: &Rc<Supply<'a>>| {
        let label = &companion.label;
        let given = companion
            .get(name)
            .ok_or_else(|| format!("is missing in {label}: --exclude it if it is not to be merged"))?;
        if !same_shape(&given.shape, shape) {
            return Err(format!("has different shapes: {shape:?}, but {:?} in {label}", given.shape));
        }
        if !given.dtype.is_real() {
            return Err(format!("is {} in {label}", given.dtype));
        }
        let scale = match &given.input {
            Input::Tensor(view) => scale_of(view.tensor, view.checkpoint),
            _ => None,
        };
        match scale {
            Some(scale) => Err(format!("is {} with a scale in `{scale}` in {label}", given.dtype)),
            None => Ok(given.input.clone()),
        }
    };
    slice.companions.iter().map(input).collect()
}

fn made<'a>(name: &str, given: &Given<'a>, making: Making<'a>) -> Made<'a> {
    Made { name: name.to_owned(), dtype: given.dtype, shape: given.shape.clone(), making }
}
