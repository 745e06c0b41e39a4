//! Boxes from quartile to quartile with the median in them and whiskers: how numbers are spread, by group and series.

use super::axis::Axis;
use super::colour::{Palette, Rgb, ink_on, of_series};
use super::font::{fitted, widest};
use super::heading::{GAP, Heading, LABEL, Legend, Swatch};
use super::scene::{FINE, Scene, Side};
use super::{ImageKind, Plot, Theme};
use crate::error::{Error, Result};

/// How some numbers are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FiveNumbers {
    /// Where the lower whisker ends.
    pub low: f64,
    /// The lower quartile.
    pub lower: f64,
    /// The median.
    pub median: f64,
    /// The upper quartile.
    pub upper: f64,
    /// Where the upper whisker ends.
    pub high: f64,
}

impl FiveNumbers {
    fn all(&self) -> [f64; 5] {
        [self.low, self.lower, self.median, self.upper, self.high]
    }
}

/// Boxes side by side.
#[derive(Clone, Debug, Default)]
pub struct BoxPlot {
    /// Stands above it.
    pub title: String,
    /// What the numbers are, beside their axis.
    pub unit: String,
    /// What lies along the other axis: layers, or models.
    pub groups: Vec<String>,
    /// A name, and a box for each group that has one.
    pub series: Vec<(String, Vec<Option<FiveNumbers>>)>,
    /// Whether the axis runs by powers of ten. What is not above 0 is at its lower end.
    pub log: bool,
}

/// The most units along the axis of groups.
const FIELD: f64 = 1600.0;
/// A place for a box: wanted at best, with many boxes, and at least.
const PLACES: (f64, f64, f64) = (30.0, 5.0, 1.5);
/// Many boxes go on several panels, one below the other.
const PANELS: usize = 5;
const GROUP_NAME: f64 = 260.0;
/// Groups are no farther from each other.
const APART: f64 = 180.0;
const NAME_HEIGHT: f64 = 14.0;

/// Where groups and boxes go.
struct Layout {
    /// Of how many groups one is shown.
    every: usize,
    /// Groups on each panel.
    across: usize,
    panels: usize,
    /// The width of a box with its space, and of a group.
    place: f64,
    group: f64,
}

impl Layout {
    fn new(groups: usize, series: usize) -> Self {
        let boxes = series as f64;
        // Half a box, and at least 2 units, lie between groups.
        let gap = |place: f64| if series == 1 { 0.0 } else { (place * 0.8).max(3.0) };
        let group = |place: f64| boxes * place + gap(place);
        let across = |place: f64| (FIELD / group(place)).floor().max(1.0) as usize;
        let wanted = (900.0 / (groups as f64 * (boxes + 0.8))).clamp(PLACES.1, PLACES.0);
        let mut place = wanted;
        if across(place) * PANELS < groups {
            place = PLACES.2;
        }
        if group(place) > FIELD {
            place = (FIELD - 3.0) / boxes;
        }
        let every = groups.div_ceil(across(place) * PANELS).max(1);
        let shown = groups.div_ceil(every);
        let panels = shown.div_ceil(across(place)).max(1);
        // As many on each, and then as wide as that leaves room for.
        let across = shown.div_ceil(panels).max(1);
        if place < wanted {
            place = place.max((FIELD / across as f64 - 3.0) / boxes).min(wanted);
        }
        let place = (place * FINE).floor().max(1.0) / FINE;
        Self { every, across, panels, place, group: group(place) }
    }
}

impl BoxPlot {
    /// The boxes of finite numbers, and whether there are others.
    fn numbers(&self) -> (Vec<f64>, bool) {
        let boxes = self.series.iter().flat_map(|(_, boxes)| boxes.iter().flatten());
        let (finite, others): (Vec<_>, Vec<_>) = boxes.partition(|five| five.all().iter().all(|n| n.is_finite()));
        (finite.into_iter().flat_map(FiveNumbers::all).collect(), !others.is_empty())
    }

    fn axis(&self, numbers: &[f64]) -> Result<Axis> {
        let wrong = |why: &str| Err(Error::Recipe(format!("the box plot cannot be drawn: {why}")));
        if numbers.is_empty() {
            return wrong("there are no finite numbers");
        }
        let shown = numbers.iter().copied().filter(|number| !self.log || *number > 0.0);
        let (low, high) = shown.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), n| (a.min(n), b.max(n)));
        if low > high {
            return wrong("no number is above 0, and the axis runs by powers of ten");
        }
        if self.log {
            return Axis::log((low / 1.3).max(f64::MIN_POSITIVE), (high * 1.3).min(f64::MAX), 7, &self.unit);
        }
        // Numbers of one sign that reach near 0 are shown from 0.
        let margin = (high - low) * 0.04;
        let below = if low >= 0.0 && low < high * 0.3 { 0.0 } else { low - margin };
        let above = if high <= 0.0 && high > low * 0.3 { 0.0 } else { high + margin };
        Axis::linear(below, above, 7, &self.unit)
    }

    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Recipe(format!("the box plot cannot be drawn: {why}")));
        let most = (FIELD * 0.9) as usize;
        if self.groups.is_empty() || self.series.is_empty() {
            return wrong("there are no boxes".to_owned());
        }
        if self.series.len() > most {
            return wrong(format!("there are {} series; {most} are the most", self.series.len()));
        }
        if self.series.iter().any(|(_, boxes)| boxes.len() > self.groups.len()) {
            return wrong("there are more boxes than names of groups".to_owned());
        }
        Ok(())
    }
}

impl Plot for BoxPlot {
    fn scene(&self, _kind: ImageKind, theme: Theme) -> Result<Scene> {
        self.check()?;
        let palette = Palette::of(theme);
        let (numbers, others) = self.numbers();
        let axis = self.axis(&numbers)?;
        let layout = Layout::new(self.groups.len(), self.series.len());

        let names: Vec<String> = self.groups.iter().map(|name| fitted(name, LABEL, GROUP_NAME)).collect();
        let longest = widest(names.iter().step_by(layout.every), LABEL);
        let left = GAP + axis.room_beside();
        let across = layout.across as f64 * layout.group + layout.place;
        let width = (left + across + 2.0 * GAP).max(Heading::width_wanted(&self.title)).max(480.0);
        let across = width - left - 2.0 * GAP;
        // Few groups spread over what room there is.
        let roomy = (across / layout.across as f64).min(APART).max(layout.group);
        let layout = Layout { group: if layout.panels == 1 { roomy } else { layout.group }, ..layout };
        let level = longest + 8.0 <= layout.group;
        let name_height = if level { LABEL * 1.4 } else { longest };

        let mut notes = Vec::new();
        if layout.every > 1 {
            notes.push(format!("one of {} groups is shown", layout.every));
        }
        if self.log && numbers.iter().any(|number| *number <= 0.0) {
            notes.push("numbers that are not above 0 are at the axis' lower end".to_owned());
        }
        if others {
            notes.push("boxes with infinite or undefined numbers are left out".to_owned());
        }
        let heading = Heading::new(&self.title, &notes, width);
        let colours: Vec<Rgb> =
            (0..self.series.len()).map(|index| of_series(index, self.series.len(), theme)).collect();
        let entries = self.series.iter().zip(&colours);
        let entries = entries.map(|((name, _), fill)| (Swatch { fill: *fill, hatch: None }, name.clone()));
        // One series without a name needs no legend.
        let named = self.series.len() > 1 || self.series.iter().any(|(name, _)| !name.is_empty());
        let legend = Legend::new(entries.filter(|_| named), width - left - GAP);

        let top = heading.height() + legend.height() + GAP;
        let each = name_height + 8.0 + 1.5 * GAP;
        let high = ((1900.0 - top) / layout.panels as f64 - each).clamp(80.0, 320.0).max(axis.unit_length().min(300.0));
        let high = high.min((1980.0 - top) / layout.panels as f64 - each).max(40.0).floor();
        let mut scene = Scene::new(width, top + layout.panels as f64 * (high + each), &palette)?;
        heading.draw(&mut scene, &palette);
        legend.draw(&mut scene, &palette, (left, heading.height()));

        let shown: Vec<usize> = (0..self.groups.len()).step_by(layout.every).collect();
        for (panel, groups) in shown.chunks(layout.across).enumerate() {
            let from = (left, top + panel as f64 * (high + each));
            let to = (left + across, from.1 + high);
            axis.draw_left(&mut scene, &palette, from, to);
            scene.rectangle((from.0, to.1 - 0.5), (to.0, to.1 + 0.5), palette.muted);
            // In the middle, if the title made the picture wider than the boxes.
            let start = from.0 + (across - groups.len() as f64 * layout.group).max(0.0) / 2.0;
            let start = if layout.panels > 1 { from.0 + layout.place / 2.0 } else { (start * FINE).round() / FINE };
            let step = if level { 1 } else { (NAME_HEIGHT / layout.group).ceil().max(1.0) as usize };
            for (place, group) in groups.iter().enumerate() {
                let x = start + place as f64 * layout.group;
                let middle = x + layout.group / 2.0;
                if place % step == 0 {
                    scene.rectangle((middle - 0.5, to.1), (middle + 0.5, to.1 + 4.0), palette.muted);
                    let name = names.get(*group).cloned().unwrap_or_default();
                    if level {
                        scene.text(name, (middle, to.1 + 6.0 + LABEL * 0.6), LABEL, Side::Middle, palette.ink);
                    } else {
                        scene.turned_text(name, (middle, to.1 + 6.0), LABEL, Side::End, palette.ink);
                    }
                }
                let first = x + (layout.group - self.series.len() as f64 * layout.place) / 2.0;
                for (index, ((_, boxes), colour)) in self.series.iter().zip(&colours).enumerate() {
                    let Some(five) = boxes.get(*group).copied().flatten() else { continue };
                    if five.all().iter().all(|number| number.is_finite()) {
                        let at = first + index as f64 * layout.place;
                        draw_box(&mut scene, &axis, &five, *colour, (at, layout.place), (from.1, to.1));
                    }
                }
            }
        }
        Ok(scene)
    }
}

fn draw_box(scene: &mut Scene, axis: &Axis, five: &FiveNumbers, colour: Rgb, at: (f64, f64), range: (f64, f64)) {
    let (left, place) = at;
    let y = |number: f64| range.1 - axis.share(number) * (range.1 - range.0);
    let gap = if place >= 3.0 { (place * 0.15).max(0.5) } else { 0.0 };
    let (from, to) = (left + gap, left + place - gap);
    let middle = (from + to) / 2.0;
    let thick = if place >= 12.0 { 0.75 } else { 0.25 };
    for (quartile, end) in [(five.lower, five.low), (five.upper, five.high)] {
        scene.rectangle((middle - thick, y(quartile)), (middle + thick, y(end)), colour);
        if place >= 6.0 {
            let half = (to - from) * 0.3;
            scene.rectangle((middle - half, y(end) - thick), (middle + half, y(end) + thick), colour);
        }
    }
    scene.rectangle((from, y(five.upper)), (to, y(five.lower)), colour);
    let thick = if place >= 12.0 { 1.0 } else { 0.5 };
    // Of a box that is no more than a line the median is the box.
    let ink = if y(five.lower) - y(five.upper) > 4.0 * thick { ink_on(colour) } else { colour };
    scene.rectangle((from, y(five.median) - thick), (to, y(five.median) + thick), ink);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_boxes_has_its_place() {
        for groups in [1, 2, 12, 32, 200, 1000, 100_000] {
            for series in [1, 2, 4, 30, 1000] {
                let layout = Layout::new(groups, series);
                let shown = groups.div_ceil(layout.every);
                assert!(layout.across * layout.panels >= shown && layout.panels <= PANELS, "{groups} {series}");
                assert!(layout.across as f64 * layout.group <= FIELD + 4.0, "{groups} {series}: {}", layout.group);
                assert!(layout.place >= 1.0, "{groups} {series}");
            }
        }
        let layout = Layout::new(32, 4);
        assert_eq!((layout.every, layout.panels), (1, 1));
        assert!(crate::plot::text_width("10", LABEL) < layout.group);
    }

    /// Layers differ in the middle of their names, by the number of a block.
    #[test]
    fn names_of_layers_are_whole() -> Result<()> {
        let name = |block: usize| format!("down_blocks.{block}.attentions.0.to_out.0");
        let five = FiveNumbers { low: -2.0, lower: -1.0, median: 0.0, upper: 1.0, high: 2.0 };
        let plot = BoxPlot {
            groups: (0..12).map(name).collect(),
            series: vec![(String::new(), vec![Some(five); 12])],
            ..BoxPlot::default()
        };
        let picture = String::from_utf8_lossy(&crate::plot::render(&plot, ImageKind::Svg, Theme::Light)?).into_owned();
        assert!((0..12).all(|block| picture.contains(&name(block))), "{picture}");
        Ok(())
    }
}
