//! How the elements of task vectors are distributed: norms, moments and exact quantiles, of each model and part.
//!
//! With `τ = x − base` in f64 (or `τ = x` without a base), a first pass takes the [`Moments`] and counts rough
//! [buckets](super::buckets), and a second, rarely a third, finds the elements at the quantiles' [ranks](super::ranks).
//! Passes go part by part, so that counts of one part only are held at a time, whatever the number of parts. Those of
//! few elements are sorted at once.
//!
//! Moments are taken in tiles of a fixed size that are put together in order, and quantiles are elements or lie between
//! two: the numbers are the same bits for any number of threads.

use super::buckets::{BUCKETS, Counts, Table, table};
use super::elements::{BLOCK, Elements};
use super::look::{Hit, Look, Ranges};
use super::moments::{Moments, energy};
use super::place::natural;
use super::ranks::{self, Finds, Search};
use super::similarity::By;
use super::vectors::Vectors;
use crate::dtype::Simd;
use crate::error::{Error, Result};
use crate::stream::{self, Control, Group, Settings, TILE};
use std::sync::{Mutex, PoisonError};

/// The quantiles that tell how numbers are spread, as shares of them: quartiles, and tails of 1 and 5 %.
pub const LEVELS: [f64; 7] = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99];

/// The most passes that numbers that stay the same can take: each tells eight or more of the 64 bits of a number.
const PASSES: u32 = 1 + u64::BITS / 8;
/// Parts of no more elements are sorted.
const FEW: u64 = 1 << 14;
/// Bytes that the results of the tiles in work may take together.
const RESULTS: usize = 16 << 20;
/// Elements per tile where elements are looked for: the results of a tile may be as large as the tile.
const SEARCH_TILE: u64 = 1 << 16;

/// How the elements of one model's task vector are distributed, in all or in a part.
#[derive(Clone, Debug, Default)]
pub struct Distribution {
    /// The size and the form.
    pub moments: Moments,
    /// The quantiles at the levels that were asked for; none of no elements. Between two elements they are interpolated as
    /// numpy does by default.
    pub quantiles: Vec<f64>,
    /// Σ base² of the same part, and nothing without a base.
    base: f64,
}

impl Distribution {
    /// `‖τ‖ / ‖base‖`, of the finite elements of each; none without a base, or if it is zero.
    #[must_use]
    pub fn relative_norm(&self) -> Option<f64> {
        (self.base > 0.0).then(|| self.moments.norm() / self.base.sqrt()).filter(|norm| norm.is_finite())
    }
}

/// The distributions of the elements of several models' task vectors.
#[derive(Clone, Debug)]
pub struct Distributions {
    /// The shares at which the quantiles are.
    pub levels: Vec<f64>,
    /// Of each model over all tensors.
    pub total: Vec<Distribution>,
    /// Over the parts that were asked for, in the natural order of their names.
    pub parts: Vec<(String, Vec<Distribution>)>,
    /// How often the tensors were passed over, in part or in all.
    pub passes: u32,
}

/// Tensors that are put together.
struct Part<'a> {
    name: &'a str,
    elements: u64,
    found: Vec<Distribution>,
    searches: Vec<Search>,
}

/// The tensors in the order of the parts they belong to.
struct Parts<'a> {
    groups: Vec<Group<'a>>,
    /// The part of each, and its place among the vectors.
    of: Vec<(usize, usize)>,
    all: Vec<Part<'a>>,
}

impl<'a> Parts<'a> {
    fn new(vectors: &Vectors<'a>, by: By) -> Self {
        let (mut names, part_of) = vectors.parts(by);
        if by == By::Model {
            names.push("");
        }
        let new = |name| Part {
            name,
            elements: 0,
            found: vec![Distribution::default(); vectors.models],
            searches: Vec::new(),
        };
        let mut all: Vec<Part<'a>> = names.into_iter().map(new).collect();
        let mut of: Vec<(usize, usize)> = Vec::new();
        for (place, (vector, part)) in vectors.tensors.iter().zip(part_of).enumerate() {
            let part = part.unwrap_or(0);
            all[part].elements += vector.models.first().map_or(0, |view| view.tensor.elements);
            of.push((part, place));
        }
        of.sort_by_key(|(part, _)| *part);
        let mut groups: Vec<Option<Group<'a>>> = vectors.groups().into_iter().map(Some).collect();
        Self { groups: of.iter().filter_map(|(_, place)| groups[*place].take()).collect(), of, all }
    }
}

/// The distributions of the elements of task vectors τ = x − base, or of the models' x where there is no base, with the
/// quantiles at some levels from 0 to 1.
///
/// A quantile at q of n elements in order lies at h = (n − 1)·q: the element at ⌊h⌋, and from there h − ⌊h⌋ of the way to the
/// next. That is type 7 of Hyndman and Fan (1996, <https://doi.org/10.1080/00031305.1996.10473566>) and numpy's default. It
/// is exact: no sketch, no histogram stands for the elements.
///
/// # Errors
/// As [`stream::measure`], between two passes as well.
pub fn distributions(
    vectors: &Vectors<'_>,
    by: By,
    levels: &[f64],
    settings: &Settings,
    control: Control<'_>,
) -> Result<Distributions> {
    let mut parts = Parts::new(vectors, by);
    let mut total = Total::new(vectors.models);
    count(vectors, &mut parts, &mut total, levels, settings, control)?;
    let mut passes = 1;
    if by == By::Model {
        total.searches.clear();
    }
    while !ranks::is_done(&total.searches) || !parts.all.iter().all(|part| ranks::is_done(&part.searches)) {
        if passes == PASSES {
            let name = vectors.tensors.first().map_or("", |vector| vector.name);
            return Err(Error::Recipe(format!("the tensors, `{name}` and others, changed while they were read")));
        }
        find(vectors, &mut parts, &mut total, settings, control)?;
        passes += 1;
    }
    for part in &mut parts.all {
        fill(&mut part.found, &part.searches, levels);
    }
    fill(&mut total.found, &total.searches, levels);
    if by == By::Model {
        let whole = parts.all.pop();
        return Ok(Distributions {
            levels: levels.to_vec(),
            total: whole.map_or_else(Vec::new, |part| part.found),
            parts: Vec::new(),
            passes,
        });
    }
    let mut named: Vec<(String, Vec<Distribution>)> =
        parts.all.into_iter().map(|part| (part.name.to_owned(), part.found)).collect();
    named.sort_by(|(a, _), (b, _)| natural(a, b));
    Ok(Distributions { levels: levels.to_vec(), total: total.found, parts: named, passes })
}

/// Writes quantiles that searches were for.
fn fill(found: &mut [Distribution], searches: &[Search], levels: &[f64]) {
    if searches.is_empty() {
        return;
    }
    for (model, distribution) in found.iter_mut().enumerate() {
        distribution.quantiles = ranks::found(searches, model, levels, distribution.moments.count);
    }
}

/// All parts together.
struct Total {
    found: Vec<Distribution>,
    counts: Vec<Vec<u64>>,
    searches: Vec<Search>,
}

impl Total {
    fn new(models: usize) -> Self {
        let counts = vec![ranks::no_counts(); models];
        Self { found: vec![Distribution::default(); models], counts, searches: Vec::new() }
    }
}

/// What a tile tells in the first pass.
struct Tile {
    moments: Vec<Moments>,
    base: f64,
    /// The elements of each model, of parts that have few.
    values: Vec<Vec<f64>>,
}

/// The buckets' counts of each model, of the part that they were made for. Threads take them, add to them and put them
/// back.
struct Shelf(Mutex<Vec<(Option<usize>, Vec<Counts>)>>);

impl Shelf {
    /// Counts of a part, or new ones.
    fn take(&self, part: usize, models: usize) -> Vec<Counts> {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = |counts: &[Counts]| counts.iter().all(|counts| counts.has_room(TILE));
        let its = shelf.iter().position(|(of, counts)| *of == Some(part) && has_room(counts));
        match its.or_else(|| shelf.iter().position(|(of, _)| of.is_none())) {
            Some(at) => shelf.swap_remove(at).1,
            None => {
                drop(shelf);
                (0..models).map(|_| Counts::new()).collect()
            }
        }
    }

    fn put(&self, part: usize, counts: Vec<Counts>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((Some(part), counts));
    }

    /// Moves all counts of a part to `sums`.
    fn drain_into(&self, part: usize, sums: &mut [Vec<u64>]) {
        let mut shelf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (of, counts) in shelf.iter_mut().filter(|(of, _)| *of == Some(part)) {
            counts.iter_mut().zip(&mut *sums).for_each(|(counts, sums)| counts.drain_into(sums));
            *of = None;
        }
    }
}

/// The first pass.
fn count(
    vectors: &Vectors<'_>,
    parts: &mut Parts<'_>,
    total: &mut Total,
    levels: &[f64],
    settings: &Settings,
    control: Control<'_>,
) -> Result<()> {
    let (simd, models) = (Simd::detect(), vectors.models);
    let Parts { groups, of, all } = parts;
    let has_few: Vec<bool> = all.iter().map(|part| part.elements <= FEW).collect();
    let shelf = Shelf(Mutex::new(Vec::new()));
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); models];
    // Of all parts that have few elements.
    let mut few: Vec<Counts> = (0..models).map(|_| Counts::new()).collect();
    let mut finish = |part: &mut Part<'_>, number: usize, values: &mut [Vec<f64>], total: &mut Total| {
        let mut sums = vec![Vec::new(); models];
        if has_few[number] {
            for (model, (values, found)) in values.iter_mut().zip(&mut part.found).enumerate() {
                let counts = &mut few[model];
                if !counts.has_room(FEW) {
                    counts.drain_into(&mut total.counts[model]);
                }
                values.chunks(BLOCK).for_each(|block| counts.add(block, &mut [0; BLOCK]));
                found.quantiles = ranks::quantiles_of(values, levels);
                values.clear();
            }
        } else {
            sums.fill_with(ranks::no_counts);
            shelf.drain_into(number, &mut sums);
            for (model, (sums, found)) in sums.iter().zip(&part.found).enumerate() {
                part.searches.extend(ranks::searches(model, levels, sums, &found.moments));
                total.counts[model].iter_mut().zip(sums).for_each(|(total, count)| *total += count);
            }
        }
        for (total, found) in total.found.iter_mut().zip(&part.found) {
            total.moments = total.moments.and(&found.moments);
            total.base += found.base;
        }
    };
    let window = (RESULTS / (4 * BUCKETS * models).max(1)).max(2 * settings.threads());
    let mut current = 0;
    stream::fold(
        groups,
        TILE,
        window,
        settings,
        control,
        |group, inputs| {
            let (part, place) = of[group];
            let mut tile = Tile { moments: vec![Moments::default(); models], base: 0.0, values: Vec::new() };
            let mut counts = if has_few[part] { Vec::new() } else { shelf.take(part, models) };
            tile.values.resize(if has_few[part] { models } else { 0 }, Vec::new());
            let mut places = [0; BLOCK];
            let take = |model: usize, values: &mut [f64]| {
                let (moments, finite) = Moments::of(values);
                tile.moments[model] = tile.moments[model].and(&moments);
                match counts.get_mut(model) {
                    Some(counts) => counts.add(&values[..finite], &mut places),
                    None => tile.values[model].extend(&values[..finite]),
                }
            };
            let base = |values: &[f64]| tile.base += energy(values);
            Elements::of(simd, &vectors.tensors[place]).each(inputs, base, take);
            if !has_few[part] {
                shelf.put(part, counts);
            }
            tile
        },
        |group, tile| {
            let (part, _) = of[group];
            while current < part {
                finish(&mut all[current], current, &mut values, total);
                current += 1;
            }
            for (found, moments) in all[part].found.iter_mut().zip(&tile.moments) {
                found.moments = found.moments.and(moments);
                found.base += tile.base;
            }
            values.iter_mut().zip(tile.values).for_each(|(values, more)| values.extend(more));
        },
    )?;
    while current < all.len() {
        finish(&mut all[current], current, &mut values, total);
        current += 1;
    }
    few.iter_mut().zip(&mut total.counts).for_each(|(few, counts)| few.drain_into(counts));
    for (model, (counts, found)) in total.counts.iter().zip(&total.found).enumerate() {
        total.searches.extend(ranks::searches(model, levels, counts, &found.moments));
    }
    total.counts = Vec::new();
    Ok(())
}

/// A further pass, over the parts in which something is left to find.
fn find(
    vectors: &Vectors<'_>,
    parts: &mut Parts<'_>,
    total: &mut Total,
    settings: &Settings,
    control: Control<'_>,
) -> Result<()> {
    let (simd, models) = (Simd::detect(), vectors.models);
    let in_total = ranks::ranges(&total.searches);
    let Parts { groups, of, all } = parts;
    let in_parts: Vec<Ranges> = all.iter().map(|part| ranks::ranges(&part.searches)).collect();
    let is_open = |part: usize| !in_total.is_empty() || !in_parts[part].is_empty();
    let open: Vec<usize> = (0..groups.len()).filter(|group| is_open(of[*group].0)).collect();
    let some: Vec<Group<'_>> =
        open.iter().map(|group| Group { inputs: groups[*group].inputs.clone(), ..groups[*group] }).collect();

    let mut finds_in_total = Finds::new(&total.searches);
    let mut finds: Option<(usize, Finds)> = None;
    let tables: Mutex<Vec<Vec<Table<bool>>>> = Mutex::new(Vec::new());
    let window = window(&in_parts, &in_total, all, &total.found, models).max(2 * settings.threads());
    stream::fold(
        &some,
        SEARCH_TILE,
        window,
        settings,
        control,
        |group, inputs| {
            let (part, place) = of[open[group]];
            let taken = tables.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let taken = taken.unwrap_or_else(|| (0..models).map(|_| table()).collect());
            let mut look = Look::new(&in_parts[part], &in_total, taken);
            Elements::of(simd, &vectors.tensors[place]).each(inputs, |_| (), |model, values| look.at(model, values));
            let (hits, given_back) = look.finish();
            tables.lock().unwrap_or_else(PoisonError::into_inner).push(given_back);
            hits
        },
        |group, hits| {
            let (part, _) = of[open[group]];
            if finds.as_ref().is_none_or(|(of, _)| *of != part) {
                if let Some((of, finds)) = finds.take() {
                    finds.narrow(&mut all[of].searches);
                }
                finds = Some((part, Finds::new(&all[part].searches)));
            }
            let Some((_, finds)) = &mut finds else { return };
            let of_part = in_parts[part].len();
            for hit in hits {
                match (hit.range as usize).checked_sub(of_part) {
                    None => finds.add(hit.range as usize, hit.key, hit.count),
                    Some(range) => finds_in_total.add(range, hit.key, hit.count),
                }
            }
        },
    )?;
    if let Some((of, finds)) = finds {
        finds.narrow(&mut all[of].searches);
    }
    finds_in_total.narrow(&mut total.searches);
    Ok(())
}

/// How many tiles may be in work at a time, so that what they meet stays within [`RESULTS`].
fn window(in_parts: &[Ranges], in_total: &Ranges, all: &[Part<'_>], total: &[Distribution], models: usize) -> usize {
    let share = |ranges: &Ranges, found: &[Distribution]| {
        let elements: u64 = found.iter().map(|found| found.moments.count).sum();
        let met: u64 = ranges.iter().map(|(_, range)| range.count).sum();
        if elements == 0 { 0.0 } else { met as f64 / elements as f64 }
    };
    let parts = in_parts.iter().zip(all).map(|(ranges, part)| share(ranges, &part.found));
    let share = parts.fold(0.0, f64::max) + share(in_total, total);
    let tile = SEARCH_TILE as usize * models * size_of::<Hit>();
    (RESULTS as f64 / (tile as f64 * share.max(0.02))) as usize
}
