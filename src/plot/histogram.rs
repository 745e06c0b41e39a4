//! How many numbers fall into each of some ranges, of one or several series laid over each other.

use super::axis::Axis;
use super::colour::{Palette, Rgb, mixed, of_series};
use super::heading::{GAP, Heading, Legend, Swatch};
use super::pool::factor;
use super::scene::{FINE, Scene};
use super::{ImageKind, Plot, Theme};
use crate::error::{Error, Result};

/// Counts between edges.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Stands above it.
    pub title: String,
    /// What the edges are, below their axis.
    pub unit: String,
    /// From the lowest to the highest, one more than there are counts.
    pub edges: Vec<f64>,
    /// A name, and the counts between the edges.
    pub series: Vec<(String, Vec<u64>)>,
    /// Whether the axis of counts runs by powers of ten.
    pub log_counts: bool,
}

const FIELD: (f64, f64) = (620.0, 320.0);
/// Ranges that there are pixels for.
const BINS: usize = 620;
/// So many areas can lie over each other and still be seen.
const AREAS: usize = 4;
/// How much of its colour an area has.
const AREA: f64 = 0.18;
/// Half the width of a line.
const LINE: f64 = 0.75;

impl Histogram {
    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Recipe(format!("the histogram cannot be drawn: {why}")));
        if self.series.is_empty() || self.edges.len() < 2 {
            return wrong("there are no counts".to_owned());
        }
        if !self.edges.iter().all(|edge| edge.is_finite()) || !self.edges.is_sorted_by(|a, b| a < b) {
            return wrong("its edges are not in order, or not finite".to_owned());
        }
        match self.series.iter().find(|(_, counts)| counts.len() + 1 != self.edges.len()) {
            Some((name, counts)) => {
                wrong(format!("`{}` has {} counts for {} edges", super::clean(name), counts.len(), self.edges.len()))
            }
            None => Ok(()),
        }
    }

    /// Edges and counts, with neighbours joined where there are more than pixels.
    fn joined(&self) -> (usize, Vec<f64>, Vec<Vec<u64>>) {
        let by = factor(self.edges.len() - 1, BINS);
        let mut edges: Vec<f64> = self.edges.iter().copied().step_by(by).collect();
        if !(self.edges.len() - 1).is_multiple_of(by) {
            edges.extend(self.edges.last());
        }
        let sum = |counts: &[u64]| counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        (by, edges, self.series.iter().map(|(_, counts)| counts.chunks(by).map(sum).collect()).collect())
    }
}

impl Plot for Histogram {
    fn scene(&self, _kind: ImageKind, theme: Theme) -> Result<Scene> {
        self.check()?;
        let palette = Palette::of(theme);
        let (by, edges, counts) = self.joined();
        let most = counts.iter().flatten().copied().max().unwrap_or(0).max(1) as f64;
        let count_axis = if self.log_counts {
            // One of a kind is still seen above the axis.
            Axis::log(0.5, most * 1.3, 7, "count")?
        } else {
            Axis::linear(0.0, most * 1.04, 7, "count")?
        };
        let (first, last) = (edges.first().copied().unwrap_or(0.0), edges.last().copied().unwrap_or(1.0));
        let axis = Axis::linear(first, last, 8, &self.unit)?;

        let notes: Vec<String> = (by > 1).then(|| format!("each bar is the sum of {by} bins")).into_iter().collect();
        let left = GAP + count_axis.room_beside().max(axis.room_aside());
        let right = GAP + axis.room_aside().max(GAP);
        let width = (left + FIELD.0 + right).max(Heading::width_wanted(&self.title));
        let heading = Heading::new(&self.title, &notes, width);
        let colours: Vec<Rgb> = (0..counts.len()).map(|index| of_series(index, counts.len(), theme)).collect();
        let named = self.series.len() > 1 || self.series.iter().any(|(name, _)| !name.is_empty());
        let entries = self.series.iter().zip(&colours);
        let entries = entries.map(|((name, _), fill)| (Swatch { fill: *fill, hatch: None }, name.clone()));
        let legend = Legend::new(entries.filter(|_| named), width - left - GAP);
        let from = (left, heading.height() + legend.height() + GAP);
        let to = (width - right, from.1 + FIELD.1);
        let mut scene = Scene::new(width, to.1 + axis.room_below() + GAP, &palette)?;
        heading.draw(&mut scene, &palette);
        legend.draw(&mut scene, &palette, (left, heading.height()));

        let snap = |place: f64| (place * FINE).round() / FINE;
        let x = |edge: f64| snap(from.0 + axis.share(edge) * (to.0 - from.0));
        let y = |count: u64| match count {
            0 => to.1,
            count => snap(to.1 - count_axis.share(count as f64) * FIELD.1),
        };
        let ranges: Vec<(f64, f64)> = edges.windows(2).map(|range| (x(range[0]), x(range[1]))).collect();
        let tops: Vec<Vec<f64>> = counts.iter().map(|counts| counts.iter().map(|count| y(*count)).collect()).collect();
        if counts.len() <= AREAS {
            draw_areas(&mut scene, &ranges, &tops, &colours, palette.paper, to.1);
        }
        count_axis.draw_left(&mut scene, &palette, from, to);
        for (tops, colour) in tops.iter().zip(&colours) {
            let mut before = to.1;
            for (top, (low, high)) in tops.iter().zip(&ranges) {
                let (upper, lower) = (before.min(*top), before.max(*top));
                scene.rectangle((low - LINE, upper - LINE), (low + LINE, lower + LINE), *colour);
                scene.rectangle((*low, top - LINE), (*high, top + LINE), *colour);
                before = *top;
            }
            scene.rectangle((to.0 - LINE, before - LINE), (to.0 + LINE, to.1), *colour);
        }
        axis.draw_below(&mut scene, &palette, from, to);
        Ok(scene)
    }
}

/// Fills what is below each line with a part of its colour. What lies over each other is mixed here, as a viewer's own
/// mixing leaves seams between neighbours.
fn draw_areas(scene: &mut Scene, ranges: &[(f64, f64)], tops: &[Vec<f64>], colours: &[Rgb], paper: Rgb, bottom: f64) {
    for (bin, (low, high)) in ranges.iter().enumerate() {
        let heights: Vec<f64> = tops.iter().map(|tops| tops.get(bin).copied().unwrap_or(bottom)).collect();
        let mut levels = heights.clone();
        levels.sort_by(f64::total_cmp);
        levels.push(bottom);
        for (upper, lower) in levels.iter().zip(levels.iter().skip(1)).filter(|(upper, lower)| upper < lower) {
            // Of all series that reach up here.
            let reaching = heights.iter().zip(colours).filter(|(top, _)| *top <= upper);
            let colour = reaching.fold(paper, |below, (_, colour)| mixed(below, *colour, AREA));
            scene.rectangle((*low, *upper), (*high, *lower), colour);
        }
    }
}
