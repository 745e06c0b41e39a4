//! From an adapter's tensors to what they change in a base.

use super::config::{Config, of_components};
use super::names::{self, Lost, Names, PEFT, Role};
use super::product::{Layout, Product, Shape, numbers};
use super::{Adapters, Change, Unplaced, root};
use crate::checkpoint::{Checkpoint, Tensor, read_json};
use crate::dtype;
use crate::error::{Error, Mismatch, Result};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The file that PEFT keeps beside an adapter.
const CONFIG: &str = "adapter_config.json";
/// The text in a file's metadata in which diffusers keeps the same.
const METADATA: &str = "lora_adapter_metadata";
/// Names shown of many.
const SHOWN: usize = 5;

/// The tensors of one module, by their number in the adapter.
#[derive(Default)]
struct Module {
    down: Option<(usize, Layout)>,
    up: Option<(usize, Layout)>,
    core: Option<usize>,
    alpha: Option<usize>,
    bias: Option<usize>,
}

/// What went wrong with a tensor or module.
type Problem = String;

/// What a module is scaled by.
enum Configs {
    /// None is known.
    None,
    /// The one beside the adapter.
    One(Config),
    /// By what the names of the modules begin with.
    Components(Vec<(String, Config)>),
}

impl Configs {
    fn of(source: &Checkpoint) -> Result<Self> {
        let wrong = |path: &Path, message: String| Error::model(path, message);
        let path = config_path(source);
        if path.is_file() {
            let Value::Object(entries) = read_json(&path)? else {
                return Err(wrong(&path, "is not a JSON object".to_owned()));
            };
            return Ok(Self::One(Config::new(&entries).map_err(|message| wrong(&path, message))?));
        }
        let Some(text) = source.metadata().get(METADATA) else { return Ok(Self::None) };
        let components = of_components(text).into_iter().map(|(component, entries)| {
            let config = Config::new(&entries).map_err(|message| wrong(&source.layout().root, message))?;
            Ok((component, config))
        });
        Ok(Self::Components(components.collect::<Result<_>>()?))
    }

    /// The configuration of a module and what the module is called in it.
    fn of_module<'m>(&self, module: &'m str) -> Option<(&Config, &'m str)> {
        match self {
            Self::None => None,
            Self::One(config) => Some((config, module.strip_prefix(PEFT).unwrap_or(module))),
            Self::Components(all) => {
                all.iter().find_map(|(component, config)| Some((config, module.strip_prefix(component.as_str())?)))
            }
        }
    }
}

/// Where the configuration of an adapter would be: in its folder, or beside its file.
fn config_path(source: &Checkpoint) -> PathBuf {
    let layout = source.layout();
    if layout.is_folder { layout.root.join(CONFIG) } else { layout.root.with_file_name(CONFIG) }
}

/// Adds what `source` changes in `base` to `adapters`, as the next of its sources.
pub(super) fn apply(
    adapters: &mut Adapters,
    source: &Checkpoint,
    base: &Checkpoint,
    unplaced: Unplaced,
    mismatches: &mut Vec<Mismatch>,
) -> Result<()> {
    let mut reader = Reader {
        number: adapters.sources.len(),
        configs: Configs::of(source)?,
        names: Names::new(base),
        source,
        base,
        adapters,
        mismatches: Vec::new(),
        lost: Vec::new(),
        assumed: Vec::new(),
        taken: HashMap::new(),
    };
    let modules = reader.modules();
    for (name, module) in &modules {
        reader.module(name, module)?;
    }
    reader.finish(unplaced, mismatches);
    Ok(())
}

struct Reader<'r> {
    number: usize,
    configs: Configs,
    names: Names<'r>,
    source: &'r Checkpoint,
    base: &'r Checkpoint,
    adapters: &'r mut Adapters,
    mismatches: Vec<Mismatch>,
    /// Tensors of the adapter without a place in the base.
    lost: Vec<String>,
    /// Modules whose alpha is not known.
    assumed: Vec<String>,
    /// Which module a tensor of the base is changed by.
    taken: HashMap<String, String>,
}

impl<'r> Reader<'r> {
    fn tensor(&self, number: usize) -> &'r Tensor {
        &self.source.tensors()[number]
    }

    fn mismatch(&mut self, tensor: &str, problem: Problem) {
        let problem = format!("{problem} (in {})", self.source.name());
        self.mismatches.push(Mismatch { tensor: tensor.to_owned(), problem });
    }

    /// Sorts the tensors by module; whole ones are put in place at once.
    fn modules(&mut self) -> BTreeMap<String, Module> {
        let mut modules: BTreeMap<String, Module> = BTreeMap::new();
        let mut refused = HashSet::new();
        for (number, tensor) in self.source.tensors().iter().enumerate() {
            let (module, role) = names::split(&tensor.name);
            let named = |modules: &mut BTreeMap<String, Module>, set: &mut dyn FnMut(&mut Module)| {
                set(modules.entry(module.to_owned()).or_default());
            };
            match role {
                Role::Down(layout) => named(&mut modules, &mut |module| module.down = Some((number, layout))),
                Role::Up(layout) => named(&mut modules, &mut |module| module.up = Some((number, layout))),
                Role::Core => named(&mut modules, &mut |module| module.core = Some(number)),
                Role::Alpha => named(&mut modules, &mut |module| module.alpha = Some(number)),
                Role::Bias => named(&mut modules, &mut |module| module.bias = Some(number)),
                Role::Whole => self.whole(number),
                Role::Refused(what) => {
                    let problem = format!("is of {what}, which is not supported: merge it with the tool that made it");
                    self.mismatch(&tensor.name, problem);
                    refused.insert(module_of(&tensor.name).to_owned());
                }
                Role::Unknown => {
                    self.mismatch(&tensor.name, "is no part of a LoRA adapter that is known".to_owned());
                }
            }
        }
        // Of a module that is refused, what is left is not half a product.
        modules.retain(|name, _| !refused.contains(name));
        modules
    }

    fn whole(&mut self, number: usize) {
        let tensor = self.tensor(number);
        let target = match self.names.find_whole(&tensor.name) {
            Ok(target) => target,
            Err(lost) => return self.lose(&tensor.name, lost),
        };
        let Some(own) = self.base.get(target) else { return };
        let (own, name) = (own.tensor, tensor.name.clone());
        if own.shape != tensor.shape {
            let problem = format!(
                "replaces `{target}`, but has shape {:?} where the base has {:?}: resize the base first",
                tensor.shape, own.shape
            );
            return self.mismatch(&name, problem);
        }
        if !can_add(own) || !can_add(tensor) {
            return self
                .mismatch(&name, format!("is {} and cannot replace `{target}`, which is {}", tensor.dtype, own.dtype));
        }
        if self.adapters.replaced.insert(target.to_owned(), (self.number, number)).is_some() {
            self.mismatch(&name, format!("replaces `{target}`, which another tensor replaces already"));
        }
    }

    fn lose(&mut self, name: &str, lost: Lost<'_>) {
        match lost {
            Lost::Nowhere => self.lost.push(name.to_owned()),
            Lost::Ambiguous(all) => {
                let problem = format!("could be for each of {}, and nothing says for which", all.join(", "));
                self.mismatch(name, problem);
            }
        }
    }

    /// Puts a module's product and bias in place.
    fn module(&mut self, name: &str, module: &Module) -> Result<()> {
        let numbers_of =
            [module.down.map(|(n, _)| n), module.up.map(|(n, _)| n), module.core, module.bias, module.alpha];
        let target = match self.names.find(name) {
            Ok(target) => target.to_owned(),
            Err(lost @ Lost::Ambiguous(_)) => {
                self.lose(name, lost);
                return Ok(());
            }
            Err(Lost::Nowhere) => {
                let own = numbers_of.into_iter().flatten().map(|number| self.tensor(number).name.clone());
                self.lost.extend(own.collect::<Vec<_>>());
                return Ok(());
            }
        };
        if let Some(other) = self.taken.insert(target.clone(), name.to_owned()) {
            self.mismatch(name, format!("is for `{target}`, which `{other}` is for as well"));
            return Ok(());
        }
        let scale = match self.product(name, module, &target)? {
            Ok((product, scale)) => {
                let key = root(self.base, &target).to_owned();
                self.adapters.added.entry(key).or_default().push(Change::Product(self.number, product));
                scale
            }
            Err(problem) => {
                self.mismatch(name, problem);
                return Ok(());
            }
        };
        if let Some(number) = module.bias {
            self.bias(number, &target, scale);
        }
        Ok(())
    }

    fn bias(&mut self, number: usize, weight: &str, scale: f64) {
        let tensor = self.tensor(number);
        let target = format!("{}bias", weight.strip_suffix("weight").unwrap_or(weight));
        let Some(own) = self.base.get(&target) else { return self.lost.push(tensor.name.clone()) };
        if own.tensor.shape != tensor.shape || !can_add(own.tensor) || !can_add(tensor) {
            let problem = format!(
                "is {} {:?} and cannot be added to `{target}`, which is {} {:?}",
                tensor.dtype, tensor.shape, own.tensor.dtype, own.tensor.shape
            );
            return self.mismatch(&tensor.name.clone(), problem);
        }
        let key = root(self.base, &target).to_owned();
        let change = Change::Scaled { source: self.number, tensor: number, scale };
        self.adapters.added.entry(key).or_default().push(change);
    }

    /// The product for a tensor of the base, and by what it is scaled.
    fn product(&mut self, name: &str, module: &Module, target: &str) -> Result<Result<(Product, f64), Problem>> {
        let Some(own) = self.base.get(target).map(|view| view.tensor) else { return Ok(Err("is lost".to_owned())) };
        let ((down, layout), up) = match (module.down, module.up) {
            (Some(down), Some((up, _))) => (down, up),
            (None, None) => return Ok(Err("has neither of the two factors of a product".to_owned())),
            (None, _) => {
                return Ok(Err("has only the second factor (lora_up, lora_B); the first is missing".to_owned()));
            }
            (_, None) => {
                return Ok(Err("has only the first factor (lora_down, lora_A); lora_up is missing".to_owned()));
            }
        };
        let tensors = [Some(down), Some(up), module.core].into_iter().flatten().map(|number| self.tensor(number));
        if let Some(tensor) = tensors.chain([own]).find(|tensor| !can_add(tensor)) {
            return Ok(Err(format!("has `{}`, which is {} and cannot be computed with", tensor.name, tensor.dtype)));
        }
        let config = self.configs.of_module(name);
        let layout = match layout {
            Layout::Plain if config.is_some_and(|(config, _)| config.fan_in_fan_out) => Layout::Transposed,
            layout => layout,
        };
        let (a, b) = (self.tensor(down), self.tensor(up));
        let core = module.core.map(|number| self.tensor(number));
        let shape = match shape(layout, &own.shape, &a.shape, &b.shape, core.map(|core| core.shape.as_slice())) {
            Ok(shape) => shape,
            Err(problem) => return Ok(Err(format!("{problem} in `{target}`"))),
        };
        let scale = match (module.alpha, config) {
            (Some(alpha), _) => {
                let tensor = self.tensor(alpha);
                if tensor.elements != 1 || !dtype::can_decode(tensor.dtype) {
                    return Ok(Err(format!("has an alpha that is no number: {} {:?}", tensor.dtype, tensor.shape)));
                }
                let alpha = numbers(&self.source.view(tensor))?.first().copied().unwrap_or(f32::NAN);
                Some(f64::from(alpha) / shape.rank as f64)
            }
            (None, Some((config, module))) => match config.scale(module, shape.rank) {
                Ok(scale) => scale,
                Err(problem) => return Ok(Err(problem)),
            },
            (None, None) => None,
        };
        if scale.is_some_and(|scale| !(scale as f32).is_finite()) {
            return Ok(Err("has an alpha that is no finite number".to_owned()));
        }
        if scale.is_none() {
            self.assumed.push(name.to_owned());
        }
        let scale = scale.unwrap_or(1.0);
        Ok(Ok((Product::new(down, up, module.core, shape, scale), scale)))
    }

    fn finish(self, unplaced: Unplaced, mismatches: &mut Vec<Mismatch>) {
        let (adapter, base) = (self.source.name(), self.base.name());
        mismatches.extend(self.mismatches);
        let warnings = &mut self.adapters.warnings;
        if !self.assumed.is_empty() {
            warnings.push(format!(
                "{adapter}: no alpha is said for {} of its modules; alpha = rank is assumed, so scale 1: {}",
                self.assumed.len(),
                shown(&self.assumed)
            ));
        }
        match unplaced {
            Unplaced::LeaveOut if !self.lost.is_empty() => warnings.push(format!(
                "{adapter}: {} of its tensors have no place in {base} and are left out: {}",
                self.lost.len(),
                shown(&self.lost)
            )),
            Unplaced::LeaveOut => {}
            Unplaced::Error => mismatches.extend(self.lost.into_iter().map(|tensor| {
                let remedy = if names::is_of_second_encoder(&tensor) {
                    "a single file has q, k and v of this text encoder in one tensor, so apply it to the pipeline that `convert --rename sd-to-diffusers` makes of it"
                } else {
                    "apply it to the model it is for"
                };
                let problem =
                    format!("(in {adapter}) has no place in {base}: {remedy}; merge --missing skip leaves it out");
                Mismatch { tensor, problem }
            })),
        }
    }
}

fn can_add(tensor: &Tensor) -> bool {
    tensor.dtype.is_real() && dtype::can_decode(tensor.dtype)
}

/// The module of a name whose part is not known: all but the last, or the last two if that is `weight`.
fn module_of(name: &str) -> &str {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    stem.rsplit_once('.').map_or(stem, |(module, _)| module)
}

fn shown(names: &[String]) -> String {
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// A shape as a matrix: the first dimension, and the others without those of 1 at the end.
fn matrix(shape: &[u64]) -> Option<(u64, &[u64])> {
    let (first, rest) = shape.split_first()?;
    let length = rest.iter().rposition(|n| *n != 1).map_or(0, |last| last + 1);
    Some((*first, &rest[..length]))
}

/// The sizes of the product of `down`, perhaps `core`, and `up` in a tensor of shape `own`.
fn shape(layout: Layout, own: &[u64], down: &[u64], up: &[u64], core: Option<&[u64]>) -> Result<Shape, Problem> {
    let misfit = || format!("has factors of shapes {up:?} and {down:?}, whose product does not fit {own:?}");
    let ((rank, inputs), (outputs, inner)) = matrix(down).zip(matrix(up)).ok_or_else(misfit)?;
    let inner = inner.iter().product::<u64>();
    if rank == 0 || inner != rank {
        return Err(format!("has factors of shapes {up:?} and {down:?}, of different ranks {inner} and {rank}"));
    }
    let (rows, rest) = matrix(own).ok_or_else(misfit)?;
    let columns = rest.iter().product::<u64>();
    let sizes = |layout| Shape { layout, rows, columns, rank };
    if let Some(core) = core {
        // [rank, rank, h, w] between two factors without an area of their own.
        let spread = match (core, rest) {
            ([a, b, area @ ..], [first, after @ ..]) if [*a, *b] == [rank; 2] && inputs == [*first] => {
                let length = area.iter().rposition(|n| *n != 1).map_or(0, |last| last + 1);
                &area[..length] == after
            }
            _ => false,
        };
        return if spread && outputs == rows && layout == Layout::Plain { Ok(sizes(layout)) } else { Err(misfit()) };
    }
    let plain = outputs == rows && inputs == rest;
    let transposed =
        own.len() == 2 && inputs.len() <= 1 && [outputs, inputs.first().copied().unwrap_or(1)] == [columns, rows];
    // PEFT goes by the layer's type, which its shape tells unless it is square.
    match (layout, plain, transposed) {
        (Layout::Plain, true, _) => Ok(sizes(Layout::Plain)),
        (Layout::Transposed, _, true) => Ok(sizes(Layout::Transposed)),
        (_, true, _) => Ok(sizes(Layout::Plain)),
        (_, _, true) => Ok(sizes(Layout::Transposed)),
        _ => Err(misfit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(own: &[u64], down: &[u64], up: &[u64], core: Option<&[u64]>) -> Option<(Layout, u64, u64, u64)> {
        let shape = shape(Layout::Plain, own, down, up, core).ok()?;
        Some((shape.layout, shape.rows, shape.columns, shape.rank))
    }

    #[test]
    fn factors_must_fit() {
        let plain = Layout::Plain;
        assert_eq!(sizes(&[8, 6], &[2, 6], &[8, 2], None), Some((plain, 8, 6, 2)));
        assert_eq!(sizes(&[8, 6], &[2, 6, 1, 1], &[8, 2, 1, 1], None), Some((plain, 8, 6, 2)));
        assert_eq!(sizes(&[8, 6, 1, 1], &[2, 6], &[8, 2], None), Some((plain, 8, 6, 2)));
        assert_eq!(sizes(&[8, 4, 3, 3], &[2, 4, 3, 3], &[8, 2, 1, 1], None), Some((plain, 8, 36, 2)));
        assert_eq!(sizes(&[6, 8], &[2, 6], &[8, 2], None), Some((Layout::Transposed, 6, 8, 2)));
        assert_eq!(sizes(&[8, 1], &[1, 1], &[8, 1], None), Some((plain, 8, 1, 1)));
        assert_eq!(sizes(&[8, 4, 3, 3], &[3, 4, 1, 1], &[8, 3, 1, 1], Some(&[3, 3, 3, 3])), Some((plain, 8, 36, 3)));
        for (own, down, up, core) in [
            (&[8, 6][..], &[2, 6][..], &[8, 3][..], None::<&[u64]>),
            (&[8, 6], &[2, 5], &[8, 2], None),
            (&[8, 6], &[0, 6], &[8, 0], None),
            (&[8], &[2, 6], &[8, 2], None),
            (&[], &[], &[], None),
            (&[6, 2, 3, 3], &[4, 4, 3, 3], &[6, 2, 1, 1], None),
            (&[8, 4, 3, 3], &[2, 9, 4], &[8, 2], None),
            (&[8, 4, 3, 3], &[3, 4, 1, 1], &[8, 3, 1, 1], Some(&[3, 3, 3, 1][..])),
            (&[8, 4, 3, 3], &[3, 4, 1, 1], &[8, 3, 1, 1], Some(&[3])),
        ] {
            assert_eq!(sizes(own, down, up, core), None, "{own:?} {down:?} {up:?} {core:?}");
        }
    }
}
