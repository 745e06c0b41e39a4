//! The picture of `diff`: how far apart two models are, layers down and blocks across.

use crate::analysis::{Comparison, Difference, layers_and_blocks, natural};
use crate::plot::Heatmap;
use std::collections::{BTreeMap, HashMap};

/// The relative distance of every tensor that both have.
pub(super) fn map(comparison: &Comparison, title: String) -> Heatmap {
    let distances: Vec<(&str, f64)> = comparison
        .shared
        .iter()
        .filter_map(|(name, difference)| match difference {
            Difference::Values(values) => Some((name.as_str(), values.relative_distance())),
            _ => None,
        })
        .collect();
    let names: Vec<&str> = distances.iter().map(|(name, _)| *name).collect();

    let mut layers: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
    for ((layer, block), (_, distance)) in layers_and_blocks(&names).into_iter().zip(&distances) {
        layers.entry(layer).or_default().push((block, *distance));
    }
    let mut layers: Vec<_> = layers.into_iter().collect();
    layers.sort_by(|a, b| natural(a.0, b.0));
    // Blocks stand in the order in which they come.
    let mut columns: HashMap<&str, usize> = HashMap::new();
    let mut map = Heatmap { title, unit: "‖a − b‖ / ‖b‖".to_owned(), ..Heatmap::default() };
    for (layer, blocks) in layers {
        let mut cells = vec![None; map.columns.len()];
        for (block, distance) in blocks {
            let column = *columns.entry(block).or_insert_with(|| {
                map.columns.push(block.to_owned());
                map.columns.len() - 1
            });
            cells.resize(cells.len().max(column + 1), None);
            cells[column] = Some(distance);
        }
        map.rows.push(layer.to_owned());
        map.cells.push(cells);
    }
    map
}
