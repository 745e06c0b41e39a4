//! The reducing pass.

use super::{Control, Hints, Settings, byte_range, check_proportion, files, release};
use crate::checkpoint::{DataFile, TensorView};
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Elements per tile. Fixed, so that results do not depend on memory or threads; 1 MiB of F32.
pub const TILE: u64 = 1 << 18;

/// Tensors with the same number of elements, to be looked at side by side.
pub struct Group<'a> {
    /// The tensors.
    pub inputs: Vec<TensorView<'a>>,
    /// How many elements each has; where one stores elements in blocks, how many of the largest blocks; for types that
    /// are not computed with, how many bytes.
    pub elements: u64,
    /// Elements in what `elements` counts.
    pub block: u64,
}

impl<'a> Group<'a> {
    /// Tensors whose elements are computed with, all of the same number.
    #[must_use]
    pub fn numbers(inputs: Vec<TensorView<'a>>) -> Self {
        let block = inputs.iter().map(|view| view.tensor.dtype.block_elements()).max().unwrap_or(1);
        let elements = inputs.first().map_or(0, |view| view.tensor.elements) / block;
        Self { inputs, elements, block }
    }

    /// Tensors whose bytes are looked at, all of the same number.
    #[must_use]
    pub fn bytes(inputs: Vec<TensorView<'a>>) -> Self {
        let elements = inputs.first().map_or(0, |view| view.tensor.bytes);
        Self { inputs, elements, block: 1 }
    }
}

/// Runs `tile` over every tile of every group and returns the results by group, in the order of the tiles.
///
/// `tile` is given the group's number and the same elements of each input. Groups without elements have no tiles.
///
/// # Errors
/// As [`write`](super::write()); [`Error::Model`](crate::Error::Model) if views repeat their elements without measure.
pub fn measure<T: Send>(
    groups: &[Group<'_>],
    settings: &Settings,
    control: Control<'_>,
    tile: impl Fn(usize, &[&[u8]]) -> T + Sync,
) -> Result<Vec<Vec<T>>> {
    // Exact, as most of a million small tensors have one tile.
    let tiles_of = |group: &Group<'_>| group.elements.div_ceil(TILE / group.block) as usize;
    let mut by_group: Vec<Vec<T>> = groups.iter().map(|group| Vec::with_capacity(tiles_of(group))).collect();
    let all = usize::MAX;
    fold(groups, TILE, all, settings, control, tile, |group, result| by_group[group].push(result))?;
    Ok(by_group)
}

/// [`measure`] in tiles of `step` elements, whose results are handed to `combine` in order, `window` of them at a time:
/// for results that are too large to be kept.
///
/// # Errors
/// As [`measure`].
pub fn fold<T: Send>(
    groups: &[Group<'_>],
    step: u64,
    window: usize,
    settings: &Settings,
    control: Control<'_>,
    tile: impl Fn(usize, &[&[u8]]) -> T + Sync,
    mut combine: impl FnMut(usize, T) + Send,
) -> Result<()> {
    let views = groups.iter().flat_map(|group| group.inputs.iter().copied());
    check_proportion(views.clone())?;
    let tiles: Vec<(usize, Range<u64>)> = groups
        .iter()
        .enumerate()
        .flat_map(|(index, group)| {
            let step = (step / group.block).max(1);
            (0..group.elements)
                .step_by(step as usize)
                .map(move |start| (index, start..group.elements.min(start + step)))
        })
        .collect();
    let hints = Hints::new(files(views), settings);

    let pool = settings.pool()?;
    let visit = |buffers: &mut Vec<Vec<u8>>, (index, elements): &(usize, Range<u64>)| {
        control.check()?;
        let group = &groups[*index];
        buffers.resize(buffers.len().max(group.inputs.len()), Vec::new());
        let range = |input: &TensorView<'_>| byte_range(input, group.elements, elements);
        let inputs = group
            .inputs
            .iter()
            .zip(buffers)
            .map(|(input, buffer)| {
                if hints.read_ahead {
                    let (file, range) = input.extent(range(input));
                    file.will_need(range);
                }
                hints.fetch(input, range(input), buffer)
            })
            .collect::<Result<Vec<_>>>()?;
        let result = tile(*index, &inputs);
        for input in &group.inputs {
            let range = range(input);
            (control.progress)(range.end - range.start);
            hints.done(input, range)?;
        }
        Ok(result)
    };
    pool.install(|| -> Result<()> {
        for tiles in tiles.chunks(window.max(1)) {
            let results: Vec<T> = tiles.par_iter().map_init(Vec::new, visit).collect::<Result<_>>()?;
            tiles.iter().zip(results).for_each(|((index, _), result)| combine(*index, result));
        }
        Ok(())
    })?;
    files(groups.iter().flat_map(|group| group.inputs.iter().copied())).try_for_each(DataFile::check_unchanged)?;
    if hints.maps {
        release(groups.iter().flat_map(|group| group.inputs.iter().copied()), &pool);
    }
    Ok(())
}
