//! The reducing pass.

use super::{Control, Hints, Settings};
use crate::checkpoint::TensorView;
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;

/// Elements per tile. Fixed, so that results do not depend on memory or threads; 1 MiB of F32.
pub const TILE: u64 = 1 << 18;

/// Tensors with the same number of elements, to be looked at side by side.
pub struct Group<'a> {
    /// The tensors.
    pub inputs: Vec<TensorView<'a>>,
    /// How many elements each has; for opaque types, the number of bytes.
    pub elements: u64,
}

/// Runs `tile` over every tile of every group and returns the results by group, in the order of the tiles.
///
/// `tile` is given the group's number and the same elements of each input. Groups without elements have no tiles.
///
/// # Errors
/// As [`write`](super::write).
pub fn measure<T: Send>(
    groups: &[Group<'_>],
    settings: &Settings,
    control: Control<'_>,
    tile: impl Fn(usize, &[&[u8]]) -> T + Sync,
) -> Result<Vec<Vec<T>>> {
    let tiles: Vec<(usize, Range<u64>)> = groups
        .iter()
        .enumerate()
        .flat_map(|(index, group)| {
            (0..group.elements)
                .step_by(TILE as usize)
                .map(move |start| (index, start..group.elements.min(start + TILE)))
        })
        .collect();
    let files = groups.iter().flat_map(|group| &group.inputs).map(|input| input.file);
    let unique: std::collections::HashMap<_, _> = files.map(|file| (std::ptr::from_ref(file), file)).collect();
    let hints = Hints::new(unique.values().copied(), settings);

    let results = settings.pool()?.install(|| {
        tiles
            .par_iter()
            .map_init(Vec::new, |buffers: &mut Vec<Vec<u8>>, (index, elements)| {
                control.check()?;
                let group = &groups[*index];
                buffers.resize(buffers.len().max(group.inputs.len()), Vec::new());
                let ranges: Vec<Range<u64>> = group
                    .inputs
                    .iter()
                    .map(|input| {
                        let width = input.tensor.bytes / group.elements;
                        input.file_range(elements.start * width..elements.end * width)
                    })
                    .collect();
                let inputs = group
                    .inputs
                    .iter()
                    .zip(&ranges)
                    .zip(buffers)
                    .map(|((input, range), buffer)| {
                        if hints.read_ahead {
                            input.file.will_need(range.clone());
                        }
                        hints.fetch(input.file, range.clone(), buffer)
                    })
                    .collect::<Result<Vec<_>>>()?;
                let result = tile(*index, &inputs);
                for (input, range) in group.inputs.iter().zip(ranges) {
                    (control.progress)(range.end - range.start);
                    hints.done(input.file, range)?;
                }
                Ok(result)
            })
            .collect::<Result<Vec<T>>>()
    })?;

    let mut by_group: Vec<Vec<T>> = groups.iter().map(|_| Vec::new()).collect();
    for ((index, _), result) in tiles.into_iter().zip(results) {
        by_group[index].push(result);
    }
    Ok(by_group)
}
