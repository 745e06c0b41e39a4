//! DeepSpeed's ZeRO checkpoints: the master weights of a model, as the processes of a run (its ranks) share them.
//!
//! A folder holds `[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt` for each rank R. Stages 1 and 2 flatten each group
//! of parameters, pad the whole and give every rank one part of it (`single_partition_of_fp32_groups`). Stage 3 cuts
//! each parameter into parts of one size, the last ones padded, and every rank flattens its own (`fp32_flat_groups`).
//! Names and shapes are in `mp_rank_00_model_states.pt`, in stage 3 `zero_pp_rank_R_mp_rank_00_model_states.pt`: those of
//! trained parameters in `param_shapes`, in the order in which they were flattened, frozen ones with their own data,
//! and in `module` what a module's state dict is, of which stage 3 has emptied the parameters.
//!
//! Any rank's optimizer state stands for the whole model. The states of the model stand for themselves.
//!
//! Source: DeepSpeed 0.19.8, `utils/zero_to_fp32.py`, `runtime/engine.py` and `runtime/bf16_optimizer.py`.

use crate::archive::Archive;
use crate::flatten::MAX_NAME;
use crate::partition::{Chain, Flat, Table, check_limits, elements};
use crate::table::{scalars, table_of};
use crate::tensor::{MAX_DIMENSIONS, Storages, is_tensor, numbers, view};
use crate::value::{Id, Value, Values};
use ckptmerge_format::{Fault, FormatError, Index, Source};
use std::collections::{HashMap, HashSet};

/// The most ranks. Each is a file that is open while the model is.
const MAX_RANKS: u64 = 1 << 14;
/// The most flat tensors of a rank: groups of parameters, in stage 3 cut to so many elements each; and of all ranks.
const MAX_GROUPS: usize = 1 << 16;
const MAX_ALL_GROUPS: usize = 1 << 21;

/// What the files of the ranks and of the model are called.
const RANK: &str = "zero_pp_rank_";
const OPTIMIZER_END: &str = "_mp_rank_00_optim_states.pt";
const MODEL_END: &str = "_mp_rank_00_model_states.pt";
const MODEL: &str = "mp_rank_00_model_states.pt";

/// Whether this is the optimizer's state of one rank.
pub(crate) fn is_rank(values: &Values, root: Id) -> bool {
    optimizer(values, root).is_some()
}

/// The optimizer's state in a rank's file, and the key of its partitions.
fn optimizer(values: &Values, root: Id) -> Option<(Id, &'static str)> {
    let state = values.entry(root, "optimizer_state_dict")?;
    values.entry(state, "partition_count")?;
    let keys = ["single_partition_of_fp32_groups", "fp32_flat_groups"];
    keys.into_iter().find(|key| values.entry(state, key).is_some()).map(|key| (state, key))
}

/// Whether this is the model's state, of a run with ZeRO or without.
pub(crate) fn is_model(values: &Values, root: Id) -> bool {
    ["module", "buffer_names", "param_shapes", "ds_version"].iter().all(|key| values.entry(root, key).is_some())
}

/// The table of the model's state alone: what the processes computed with, in their own precision.
pub(crate) fn model(values: &Values, storages: &Storages, root: Id) -> Result<Index, FormatError> {
    let module = part(values, root, "module").and_then(|module| values.entries(module)).unwrap_or_default();
    let shapes = Shapes::read(values, root)?;
    let listed = shapes.trained.iter().flatten().chain(&shapes.frozen);
    let full: HashSet<&str> = listed.filter(|(_, shape)| !shape.contains(&0)).map(|(name, _)| *name).collect();
    for (name, value) in module {
        let Some(name) = values.text(*name).filter(|name| full.contains(name)) else { continue };
        if is_tensor(values, storages, *value) && view(values, storages, *value)?.shape.contains(&0) {
            let message = "the file has no elements of it: in stage 3 of DeepSpeed's ZeRO they are cut into the files of \
                           all ranks";
            return Err(FormatError::unsupported(message).at(name).hint("name the folder instead"));
        }
    }
    table_of(values, storages, root, Some("module"))
}

/// The name of a rank's file.
struct RankName<'a> {
    /// What comes before the part that all have.
    start: &'a str,
    rank: u64,
}

impl<'a> RankName<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (start, rest) = name.split_once(RANK)?;
        let digits = rest.strip_suffix(OPTIMIZER_END)?;
        let rank = digits.parse().ok().filter(|rank: &u64| rank.to_string() == digits)?;
        Some(Self { start, rank })
    }

    /// The name of another rank's file.
    fn of(&self, rank: u64) -> String {
        format!("{}{RANK}{rank}{OPTIMIZER_END}", self.start)
    }
}

/// What a rank's file says of the run, and its partitions.
struct Rank {
    stage: u64,
    world: u64,
    groups: Vec<Flat>,
}

/// An attribute that is neither missing nor `None`.
fn part(values: &Values, dict: Id, key: &str) -> Option<Id> {
    values.entry(dict, key).filter(|id| !matches!(values.get(*id), Value::None))
}

fn odd(what: &str) -> FormatError {
    FormatError::corrupt(format!("{what} is given in a way that DeepSpeed never does"))
}

impl Rank {
    fn read(archive: &Archive) -> Result<Self, FormatError> {
        let (values, root) = (&archive.values, archive.root);
        let (state, key) = optimizer(values, root)
            .ok_or_else(|| FormatError::corrupt("it holds no optimizer state of ZeRO, as those beside it do"))?;
        let stage = match part(values, state, "zero_stage") {
            Some(stage) => number(values, stage).ok_or_else(|| odd("the stage"))?,
            // The optimizer for bfloat16 has the layout of stage 1 and does not say so.
            None => 1,
        };
        let expected = if stage == 3 { "fp32_flat_groups" } else { "single_partition_of_fp32_groups" };
        if !(1..=3).contains(&stage) || key != expected {
            return Err(FormatError::unsupported(format!("partitions called `{key}` in stage {stage} of ZeRO")));
        }
        let world = part(values, state, "partition_count").ok_or_else(|| odd("the number of partitions"))?;
        let world = match values.sequence(world) {
            None => values.unsigned(world),
            Some(counts) if counts.windows(2).all(|pair| same_number(values, pair)) => {
                counts.first().and_then(|count| values.unsigned(*count))
            }
            Some(_) => return Err(experts()),
        };
        let world = world.filter(|world| *world > 0).ok_or_else(|| odd("the number of partitions"))?;
        if world > MAX_RANKS {
            return Err(FormatError::new(Fault::Limit, format!("a run of {world} ranks; {MAX_RANKS} are allowed")));
        }
        if part(values, state, "ds_zero_partition_groups").is_some() {
            return Err(experts());
        }
        let groups = values.entry(state, key).and_then(|groups| values.sequence(groups));
        let groups = groups.ok_or_else(|| odd("the list of partitions"))?;
        if groups.len() > MAX_GROUPS {
            let message = format!("it has {} groups of parameters; {MAX_GROUPS} are allowed", groups.len());
            return Err(FormatError::new(Fault::Limit, message));
        }
        let groups = groups.iter().map(|group| Flat::read(archive, *group)).collect::<Result<_, _>>()?;
        Ok(Self { stage, world, groups })
    }
}

fn same_number(values: &Values, pair: &[Id]) -> bool {
    matches!(pair, [a, b] if values.unsigned(*a) == values.unsigned(*b))
}

/// A number, or a member of an enumeration of them.
fn number(values: &Values, id: Id) -> Option<u64> {
    match values.call(id) {
        Some((_, _, [value])) => values.unsigned(*value),
        _ => values.unsigned(id),
    }
}

fn experts() -> FormatError {
    FormatError::unsupported("the model has experts that are spread over the ranks in their own way")
        .hint("join it with DeepSpeed and save the whole model")
}

/// Names of parameters and their shapes, in order.
type Shaped<'v> = Vec<(&'v str, Vec<u64>)>;

/// The shapes of parameters: trained ones by group.
struct Shapes<'v> {
    trained: Vec<Shaped<'v>>,
    frozen: Shaped<'v>,
}

impl<'v> Shapes<'v> {
    fn read(values: &'v Values, root: Id) -> Result<Self, FormatError> {
        let groups = part(values, root, "param_shapes").map(|list| values.sequence(list));
        let groups = groups.unwrap_or(Some(&[])).ok_or_else(|| odd("the list of shapes"))?;
        let mut seen = HashSet::new();
        let mut dict = |dict: Id| {
            let entries = values.entries(dict).ok_or_else(|| odd("the list of shapes"))?;
            entries.iter().map(|(name, shape)| shaped(values, *name, *shape, &mut seen)).collect()
        };
        let frozen = part(values, root, "frozen_param_shapes").map_or_else(|| Ok(Vec::new()), &mut dict)?;
        let trained = groups.iter().map(|group| dict(*group)).collect::<Result<_, _>>()?;
        Ok(Self { trained, frozen })
    }
}

/// A name and a shape, unless another has the name.
fn shaped<'v>(
    values: &'v Values,
    name: Id,
    shape: Id,
    seen: &mut HashSet<&'v str>,
) -> Result<(&'v str, Vec<u64>), FormatError> {
    let name = name_of(values, name)?;
    let shape = numbers(values, shape).filter(|shape| shape.len() <= MAX_DIMENSIONS);
    let shape = shape.ok_or_else(|| odd("its shape").at(name))?;
    if !seen.insert(name) {
        return Err(FormatError::corrupt("it is listed twice").at(name));
    }
    Ok((name, shape))
}

fn name_of(values: &Values, id: Id) -> Result<&str, FormatError> {
    let name = values.text(id).filter(|name| name.len() <= MAX_NAME);
    name.ok_or_else(|| FormatError::corrupt(format!("a tensor's name is no text of up to {MAX_NAME} bytes")))
}

/// The files beside the one that is indexed.
struct Files<'a> {
    source: &'a dyn Source,
    /// Those that tensors are in, from number 1 on.
    names: Vec<String>,
}

impl Files<'_> {
    /// Opens a file, whose number is then the last.
    fn open(&mut self, name: String) -> Result<Archive, FormatError> {
        let file = self.source.sibling(&name)?;
        let archive = crate::open(&*file).map_err(|error| beside(&name, error))?;
        self.names.push(name);
        Ok(archive)
    }

    /// The number of the file that was opened last.
    fn last(&self) -> usize {
        self.names.len()
    }

    /// The same error, saying that it was noticed in the file that was opened last.
    fn blame(&self, error: FormatError) -> FormatError {
        self.names.last().map_or_else(|| error.clone(), |name| beside(name, error.clone()))
    }
}

fn beside(name: &str, mut error: FormatError) -> FormatError {
    error.message = format!("{name}: {}", error.message);
    error
}

/// The table of a model whose optimizer's state of one rank is `archive`.
pub(crate) fn index(source: &dyn Source, archive: &Archive) -> Result<Index, FormatError> {
    let name = RankName::parse(source.name().unwrap_or_default()).ok_or_else(|| {
        let message = format!("it is a part of a DeepSpeed checkpoint, but not called {RANK}N{OPTIMIZER_END}");
        FormatError::unsupported(message).hint(
            "put it back under its own name; parts of a model that is cut by tensor \
                                                parallelism, which have other names, are not read",
        )
    })?;
    let own = Rank::read(archive)?;
    let stage = own.stage;
    let mut files = Files { source, names: Vec::new() };
    let ranks = ranks(&mut files, &name, own)?;

    let model_name = if stage == 3 { format!("{RANK}0{MODEL_END}") } else { MODEL.to_owned() };
    let model = files.open(model_name)?;
    let mut index = whole(&mut files, archive, &model, stage, &ranks).map_err(|error| match error.tensor {
        Some(_) => error,
        None => files.blame(error),
    })?;
    index.files = files.names;
    Ok(index)
}

/// The partitions of all ranks, each with the number of its file.
fn ranks(files: &mut Files<'_>, name: &RankName<'_>, own: Rank) -> Result<Vec<(usize, Vec<Flat>)>, FormatError> {
    let Rank { stage, world, groups } = own;
    let count = groups.len();
    if name.rank >= world {
        let message = format!("it is rank {} of a run of {world}: the folder mixes two runs", name.rank);
        return Err(FormatError::corrupt(message));
    }
    if count.saturating_mul(world as usize) > MAX_ALL_GROUPS {
        let message = format!("{world} ranks have {count} groups of parameters each; {MAX_ALL_GROUPS} are allowed");
        return Err(FormatError::new(Fault::Limit, message));
    }
    let all = || format!("the run had {world} ranks, and all of their files are needed");
    let mut ranks = Vec::new();
    for rank in 0..world {
        if rank == name.rank {
            ranks.push((0, groups.clone()));
            continue;
        }
        let archive = files.open(name.of(rank)).map_err(|error| error.hint(all()))?;
        let other = Rank::read(&archive).map_err(|error| files.blame(error))?;
        if (other.stage, other.world, other.groups.len()) != (stage, world, count) {
            let message = format!(
                "stage {} of ZeRO on {} ranks with {} groups of parameters, others stage {stage} on {world} with {count}",
                other.stage,
                other.world,
                other.groups.len()
            );
            return Err(files.blame(FormatError::corrupt(message).hint("the folder mixes two runs")));
        }
        ranks.push((files.last(), other.groups));
    }
    let extra = name.of(world);
    if files.source.sibling(&extra).is_ok() {
        let message = format!("{extra} lies beside it, but the run had {world} ranks: the folder mixes two runs");
        return Err(FormatError::corrupt(message).hint("move the files of the older run elsewhere"));
    }
    Ok(ranks)
}

/// The table, from the partitions of all ranks and the model's state, which was opened last.
fn whole(
    files: &mut Files<'_>,
    own: &Archive,
    model: &Archive,
    stage: u64,
    ranks: &[(usize, Vec<Flat>)],
) -> Result<Index, FormatError> {
    let (values, root, number) = (&model.values, model.root, files.last());
    refuse_parallel(values, root, ranks.len())?;
    let shapes = Shapes::read(values, root)?;
    let mut table = Table::default();
    if stage == 3 {
        parts_of_each(&mut table, &shapes, ranks)?;
        frozen_parts(&mut table, files, model, &shapes, ranks.len())?;
    } else {
        parts_of_groups(&mut table, &shapes, ranks, own)?;
        let fragments = fragments(model);
        for (name, shape) in &shapes.frozen {
            let mut add = || {
                let id = *fragments.get(name).ok_or_else(no_fragment)?;
                let held = view(values, &model.storages, id)?.shape;
                if held != *shape {
                    return Err(FormatError::corrupt(format!("it has the shape {held:?}, not {shape:?}")));
                }
                table.add_whole(name, model, id, number)
            };
            add().map_err(|error| error.at(*name))?;
        }
    }
    let ties = part(values, root, "shared_params").and_then(|dict| values.entries(dict)).unwrap_or_default();
    let ties: Vec<(&str, &str)> = ties
        .iter()
        .map(|(name, target)| Ok((name_of(values, *name)?, name_of(values, *target)?)))
        .collect::<Result<_, FormatError>>()?;
    rest_of_module(&mut table, model, number, stage, ties.iter().map(|(name, _)| *name).collect())?;
    table.tie(ties.into_iter())?;
    Ok(Index { tensors: table.finish(), metadata: scalars(values, root), ..Index::default() })
}

/// Refuses models that are cut in other ways too, and runs of another size.
fn refuse_parallel(values: &Values, root: Id, world: usize) -> Result<(), FormatError> {
    let degrees = part(values, root, "checkpoint_parallel_dimensions");
    let degree = |name| degrees.and_then(|degrees| values.unsigned(values.entry(degrees, name)?));
    let parallel = part(values, root, "mp_world_size").and_then(|size| values.unsigned(size));
    let is_cut = [parallel, degree("pp_degree"), degree("tp_degree")].into_iter().flatten().any(|degree| degree > 1);
    if is_cut || part(values, root, "module").is_none() {
        return Err(FormatError::unsupported("the model itself is cut too, by tensor or pipeline parallelism")
            .hint("join it with the library that trained it"));
    }
    let lists = ["num_experts", "ds_autoep_layers", "autoep_layers"].iter().filter_map(|key| part(values, root, key));
    if lists.filter_map(|list| values.sequence(list)).any(|list| !list.is_empty()) {
        return Err(experts());
    }
    let said = part(values, root, "dp_world_size").and_then(|size| values.unsigned(size));
    if let Some(said) = said.filter(|said| *said != world as u64) {
        let message = format!("it is of a run of {said} ranks, but the optimizer's states of one of {world}");
        return Err(FormatError::corrupt(message).hint("the folder mixes two runs"));
    }
    Ok(())
}

/// Stages 1 and 2: parameters lie one behind another in a group, which the ranks share.
fn parts_of_groups(
    table: &mut Table,
    shapes: &Shapes<'_>,
    ranks: &[(usize, Vec<Flat>)],
    own: &Archive,
) -> Result<(), FormatError> {
    let count = ranks.first().map_or(0, |(_, groups)| groups.len());
    if shapes.trained.len() != count {
        let message = format!("it lists {} groups of parameters, the ranks have {count}", shapes.trained.len());
        return Err(FormatError::corrupt(message));
    }
    let state = optimizer(&own.values, own.root).map(|(state, _)| state);
    let paddings = state.and_then(|state| part(&own.values, state, "param_alignment_paddings"));
    for (group, parameters) in shapes.trained.iter().enumerate() {
        let mut chain = Chain::default();
        for (file, groups) in ranks {
            groups.get(group).map_or(Ok(()), |flat| chain.push(*file, flat.clone()))?;
        }
        let mut at = 0u64;
        for (place, (name, shape)) in parameters.iter().enumerate() {
            let mut add = || {
                let end = at.checked_add(elements(shape)?).filter(|end| *end <= chain.length).ok_or_else(|| {
                    let message = format!("it reaches out of its group's partitions, which have {}", chain.length);
                    FormatError::corrupt(message)
                })?;
                table.add_flat(name, shape.clone(), [(&chain, at, end)].into_iter())?;
                let padding = paddings.map_or(Some(0), |paddings| padding(&own.values, paddings, group, place));
                at = padding.and_then(|padding| end.checked_add(padding)).ok_or_else(|| odd("its padding"))?;
                Ok(())
            };
            add().map_err(|error: FormatError| error.at(*name))?;
        }
        // What fills the group up is saved by some ranks and versions, and left out by others.
        let align = 2 * ranks.len() as u64;
        if at.div_ceil(align) != chain.length.div_ceil(align) {
            let held = chain.length;
            let message = format!("the parameters of group {group} are {at} elements, its partitions {held}");
            return Err(FormatError::corrupt(message));
        }
    }
    Ok(())
}

/// How many elements follow a parameter that belong to none.
fn padding(values: &Values, paddings: Id, group: usize, place: usize) -> Option<u64> {
    let group = values.sequence(paddings)?.get(group)?;
    values.unsigned(*values.sequence(*group)?.get(place)?)
}

/// Stage 3: every parameter is cut into one part a rank, and parts lie one behind another in a rank's groups.
fn parts_of_each(table: &mut Table, shapes: &Shapes<'_>, ranks: &[(usize, Vec<Flat>)]) -> Result<(), FormatError> {
    let mut chains = Vec::with_capacity(ranks.len());
    for (file, groups) in ranks {
        let mut chain = Chain::default();
        groups.iter().try_for_each(|flat| chain.push(*file, flat.clone()))?;
        chains.push(chain);
    }
    let held = chains.first().map_or(0, |chain| chain.length);
    if let Some(other) = chains.iter().map(|chain| chain.length).find(|length| *length != held) {
        return Err(FormatError::corrupt(format!("one rank holds {held} elements, another {other}: all hold as many")));
    }
    let mut at = 0u64;
    for (name, shape) in shapes.trained.iter().flatten() {
        let mut add = || {
            let count = elements(shape)?;
            let end = at.checked_add(count.div_ceil(ranks.len() as u64)).filter(|end| *end <= held);
            let end = end.ok_or_else(|| {
                FormatError::corrupt(format!("its part reaches out of each rank's partitions, which have {held}"))
            })?;
            table.add_flat(name, shape.clone(), parts(&chains, count, at, end))?;
            at = end;
            Ok(())
        };
        add().map_err(|error: FormatError| error.at(*name))?;
    }
    if at != held {
        let message = format!("the parameters are {at} elements a rank, but the partitions have {held}");
        return Err(FormatError::corrupt(message));
    }
    Ok(())
}

/// Of each rank the range that is its part of `count` elements in `from..to`, without padding.
fn parts(chains: &[Chain], count: u64, from: u64, to: u64) -> impl Iterator<Item = (&Chain, u64, u64)> {
    let part = to - from;
    chains.iter().scan(count, move |left, chain| {
        let length = part.min(*left);
        *left -= length;
        Some((chain, from, from + length))
    })
}

/// The frozen parameters of stage 3, of which each rank has a part in its own state of the model.
fn frozen_parts(
    table: &mut Table,
    files: &mut Files<'_>,
    model: &Archive,
    shapes: &Shapes<'_>,
    world: usize,
) -> Result<(), FormatError> {
    if shapes.frozen.is_empty() {
        return Ok(());
    }
    check_limits(shapes.frozen.len(), shapes.frozen.len().saturating_mul(world))?;
    let mut chains: Vec<Vec<Chain>> = shapes.frozen.iter().map(|_| Vec::new()).collect();
    for rank in 0..world {
        let opened;
        let archive = if rank == 0 {
            model
        } else {
            opened = files.open(format!("{RANK}{rank}{MODEL_END}"))?;
            &opened
        };
        let fragments = fragments(archive);
        for ((name, shape), chains) in shapes.frozen.iter().zip(&mut chains) {
            let mut read = || {
                let flat = Flat::read(archive, *fragments.get(name).ok_or_else(no_fragment)?)?;
                let part = elements(shape)?.div_ceil(world as u64);
                if flat.length != part {
                    let message = format!("its part has {} elements, not {part}", flat.length);
                    return Err(FormatError::corrupt(message));
                }
                let mut chain = Chain::default();
                chain.push(files.last(), flat)?;
                chains.push(chain);
                Ok(())
            };
            read().map_err(|error| files.blame(error).at(*name))?;
        }
    }
    for ((name, shape), chains) in shapes.frozen.iter().zip(&chains) {
        let mut add = || {
            let count = elements(shape)?;
            table.add_flat(name, shape.clone(), parts(chains, count, 0, count.div_ceil(world as u64)))
        };
        add().map_err(|error| error.at(*name))?;
    }
    Ok(())
}

/// The data of the frozen parameters.
fn fragments(model: &Archive) -> HashMap<&str, Id> {
    let fragments = part(&model.values, model.root, "frozen_param_fragments");
    let entries = fragments.and_then(|dict| model.values.entries(dict)).unwrap_or_default();
    entries.iter().filter_map(|(name, value)| Some((model.values.text(*name)?, *value))).collect()
}

fn no_fragment() -> FormatError {
    FormatError::corrupt("it is frozen, but has no data")
}

/// What a module's state dict has besides its parameters: buffers, and in stage 1 the frozen parameters, which are
/// listed nowhere else.
fn rest_of_module(
    table: &mut Table,
    model: &Archive,
    number: usize,
    stage: u64,
    tied: HashSet<&str>,
) -> Result<(), FormatError> {
    let (values, root) = (&model.values, model.root);
    let module = part(values, root, "module").and_then(|module| values.entries(module));
    let module = module.ok_or_else(|| odd("the module's state dict"))?;
    let buffers = part(values, root, "buffer_names").and_then(|list| values.sequence(list)).unwrap_or_default();
    let buffers: HashSet<&str> = buffers.iter().filter_map(|name| values.text(*name)).collect();
    for (key, value) in module {
        if !is_tensor(values, &model.storages, *value) {
            continue;
        }
        let name = name_of(values, *key)?;
        if table.holds(name) || tied.contains(name) {
            continue;
        }
        let mut add = || {
            let is_empty = view(values, &model.storages, *value)?.shape.contains(&0);
            if stage == 3 && is_empty && !buffers.contains(name) {
                return Err(FormatError::corrupt("it is a parameter, but no file is said to have its elements"));
            }
            table.add_whole(name, model, *value, number)
        };
        add().map_err(|error| error.at(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ranks() {
        let parse = |name| RankName::parse(name).map(|name| (name.start, name.rank));
        assert_eq!(parse("zero_pp_rank_0_mp_rank_00_optim_states.pt"), Some(("", 0)));
        assert_eq!(parse("bf16_zero_pp_rank_12_mp_rank_00_optim_states.pt"), Some(("bf16_", 12)));
        assert_eq!(parse("zero_pp_rank_01_mp_rank_00_optim_states.pt"), None);
        assert_eq!(parse("zero_pp_rank_+1_mp_rank_00_optim_states.pt"), None);
        assert_eq!(parse("zero_pp_rank_0_mp_rank_01_optim_states.pt"), None);
        assert_eq!(parse("zero_pp_rank_99999999999999999999_mp_rank_00_optim_states.pt"), None);
        let name = RankName::parse("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").map(|name| name.of(10));
        assert_eq!(name.as_deref(), Some("bf16_zero_pp_rank_10_mp_rank_00_optim_states.pt"));
    }
}
