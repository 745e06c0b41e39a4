//! Where panels, axes and colour bars of a plane's picture are, and drawing them.

use super::bands::{Isoline, Lattice, Region};
use super::legend::{ROW, arranged, draw_legend};
use super::levels::{Bands, significant};
use super::marks::{Field, draw_over};
use super::{Contours, Panel};
use crate::error::{Error, Result};
use crate::plot::axis::Axis;
use crate::plot::colour::{Palette, Rgb, contrast, mixed};
use crate::plot::font::{fitted, text_width, widest};
use crate::plot::heading::{GAP, Heading, LABEL, NOTE};
use crate::plot::number::{fixed, magnitude, unit_with};
use crate::plot::scene::{FINE, LARGEST, Scene, Side};
use crate::plot::{ImageKind, Plot, Theme};

/// Of a single field, of few, of many, the longer side or so.
const ALONE: f64 = 470.0;
const FEW: f64 = 300.0;
const MANY: f64 = 225.0;
const SMALLEST: f64 = 70.0;
/// A side is at most this many times the other.
const LONGEST: f64 = 3.0;
const BAR: f64 = 13.0;
const TICK: f64 = 4.0;
/// The height of a panel's title and of the line below it.
const TITLE_LINE: f64 = LABEL * 1.5;
const NOTE_LINE: f64 = NOTE * 1.35;
/// A curve's points may be moved by so much to be fewer.
const TOLERANCE: f64 = 0.06;

/// What is known of a panel before anything is drawn.
struct Prepared<'a> {
    panel: &'a Panel,
    bands: Bands,
    labels: Vec<String>,
    /// The power of ten that is left out of them.
    power: i32,
    lowest: Option<((f64, f64), f64)>,
}

/// Where a panel is.
struct Place {
    field: Field,
    /// Whether the axes' numbers are at its left and below it.
    left: bool,
    below: bool,
    /// Whether models are named in it.
    named: bool,
}

/// The places of panels and of what they share.
struct Grid {
    places: Vec<Place>,
    /// Right of all panels, and below them with their axes.
    end: (f64, f64),
    /// Where fields begin.
    left: f64,
    /// From where to where the x axis' name stands below fields of a width, and likewise the y axis' beside one of a height.
    x_names: Vec<(f64, f64, f64)>,
    y_name: (f64, f64, f64),
}

impl Contours {
    /// The bands that all panels have in common, if they do.
    fn shared_bands(&self) -> Result<Option<Bands>> {
        let all = || self.panels.iter().flat_map(Panel::numbers).collect::<Vec<f64>>();
        self.shared.then(|| Bands::new(&mut all(), self.levels, self.count, self.most)).transpose()
    }

    fn prepared(&self, shared: Option<&Bands>) -> Result<Vec<Prepared<'_>>> {
        let one = |panel: &'_ Panel| -> Result<Bands> {
            match shared {
                Some(bands) => Ok(bands.clone()),
                None => Bands::new(&mut panel.numbers().collect::<Vec<f64>>(), self.levels, self.count, self.most),
            }
        };
        let prepared = self.panels.iter().map(|panel| {
            let bands = one(panel)?;
            let (labels, power) = bands.labels();
            Ok(Prepared { panel, labels, power, bands, lowest: self.lowest(panel) })
        });
        prepared.collect()
    }

    /// The lowest number of a panel and where it is; the first of equal ones.
    fn lowest(&self, panel: &Panel) -> Option<((f64, f64), f64)> {
        let cells =
            self.ys.iter().zip(&panel.values).flat_map(|(y, row)| {
                self.xs.iter().zip(row).filter_map(|(x, cell)| cell.map(|number| ((*x, *y), number)))
            });
        cells.filter(|(_, number)| number.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1))
    }

    fn ends(coordinates: &[f64]) -> (f64, f64) {
        let end = |place: Option<&f64>| place.copied().unwrap_or_default();
        (end(coordinates.first()), end(coordinates.last()))
    }

    /// A field's width over its height, and whether that is not the plane's own.
    fn ratio(&self) -> (f64, bool) {
        let (x, y) = (Self::ends(&self.xs), Self::ends(&self.ys));
        let own = (x.1 - x.0) / (y.1 - y.0);
        match self.equal {
            true if own.is_finite() => (own.clamp(1.0 / LONGEST, LONGEST), !(1.0 / LONGEST..=LONGEST).contains(&own)),
            true => (1.0, true),
            false => (4.0 / 3.0, true),
        }
    }

    /// Panels beside the first, by columns and rows, if it is a large one; else all panels.
    fn columns_and_rows(&self, ratio: f64) -> (bool, usize, usize) {
        let count = self.panels.len();
        if count >= 5 && count % 2 == 1 {
            let rows = (2..).find(|rows| (count - 1).div_ceil(*rows) <= 2 * rows).unwrap_or(2);
            return (true, (count - 1).div_ceil(rows), rows);
        }
        let columns = match count {
            0..=3 if ratio <= 1.6 => count,
            0..=3 => 1,
            4 => 2,
            _ => (count as f64 * 1.5 / ratio).sqrt().round().clamp(2.0, count as f64) as usize,
        };
        (false, columns, count.div_ceil(columns))
    }

    fn size_of(ratio: f64, side: f64) -> (f64, f64) {
        let width = (side * ratio.sqrt()).min(side * 1.4).min(side * 1.25 * ratio);
        (width.round(), (width / ratio).round())
    }

    fn grid(&self, prepared: &[Prepared<'_>], top: f64) -> Result<Grid> {
        let (ratio, _) = self.ratio();
        let (lead, columns, rows) = self.columns_and_rows(ratio);
        let wanted = match self.panels.len() {
            1 => ALONE,
            2..=4 => FEW,
            _ => MANY,
        };
        let bar = |room: f64| if self.shared { 0.0 } else { 8.0 + BAR + room };
        let lead_bar = bar(prepared.first().map_or(0.0, Prepared::bar_room));
        let bar_room = bar(prepared.iter().skip(usize::from(lead)).map(Prepared::bar_room).fold(0.0, f64::max));
        let head = TITLE_LINE * f64::from(self.panels.iter().any(|panel| !panel.title.is_empty()))
            + NOTE_LINE * f64::from(self.lowest || prepared.iter().any(|one| one.bands.len() == 1 || one.power != 0))
            + 2.0;
        let (gap_x, gap_y) = (bar_room + 2.0 * GAP, head + GAP + 4.0);
        let foot = TICK + LABEL * 1.4 + if self.x_label.is_empty() { 0.0 } else { LABEL * 1.5 };

        let mut side = wanted;
        loop {
            let (width, height) = Self::size_of(ratio, side);
            let cells = (columns as f64 * (width + gap_x), rows as f64 * (height + gap_y) - gap_y + head);
            let lead_height = rows as f64 * height + (rows - 1) as f64 * gap_y;
            let lead_width = if lead { (lead_height * ratio).round() } else { 0.0 };
            let tick_room = self.tick_room(height)?;
            let first_room = if lead { self.tick_room(lead_height)? } else { tick_room };
            let left = (GAP + if self.y_label.is_empty() { 0.0 } else { LABEL * 1.5 } + first_room).ceil();
            let cells_left = left + if lead { lead_width + lead_bar + 2.0 * GAP + tick_room } else { 0.0 };
            let end = (cells_left + cells.0, top + cells.1 + foot);
            if end.0 > LARGEST - 160.0 || end.1 > LARGEST - 120.0 {
                side *= 0.93;
                if side < SMALLEST {
                    let why = format!("{} panels are too many for one picture", self.panels.len());
                    return Err(Error::Recipe(format!("the plane cannot be drawn: {why}")));
                }
                continue;
            }
            let field = |from: (f64, f64), size: (f64, f64)| Field {
                from,
                to: (from.0 + size.0, from.1 + size.1),
                x: Self::ends(&self.xs),
                y: Self::ends(&self.ys),
            };
            let mut places = Vec::new();
            if lead {
                let field = field((left, top + head), (lead_width, lead_height));
                places.push(Place { field, left: true, below: true, named: true });
            }
            let others = self.panels.len() - places.len();
            for index in 0..others {
                let (row, column) = (index / columns, index % columns);
                let from = (cells_left + column as f64 * (width + gap_x), top + head + row as f64 * (height + gap_y));
                let named = !lead && (self.panels.len() <= 4 || index == 0);
                let below = index + columns >= others;
                places.push(Place { field: field(from, (width, height)), left: column == 0, below, named });
            }
            let cells_end = cells_left + columns as f64 * (width + gap_x) - gap_x;
            let mut x_names = vec![(cells_left, cells_end, width)];
            if lead {
                x_names.push((left, left + lead_width, lead_width));
            }
            let y_name = (top + head, top + cells.1, if lead { lead_height } else { height });
            return Ok(Grid { places, end, left, x_names, y_name });
        }
    }

    fn axis(ends: (f64, f64), length: f64, unit: &str) -> Result<Axis> {
        Axis::linear(ends.0, ends.1, (length / 50.0).clamp(3.0, 7.0) as usize + 1, unit)
    }

    /// The width of the numbers at the left of a field of a height.
    fn tick_room(&self, height: f64) -> Result<f64> {
        Ok(Self::axis(Self::ends(&self.ys), height, "")?.room_beside())
    }

    /// What the picture does not show by itself.
    fn remarks(&self, prepared: &[Prepared<'_>]) -> Vec<String> {
        let mut notes = self.notes.clone();
        let several = self.panels.len() > 1 && !self.shared;
        if several && !self.unit.is_empty() {
            notes.push(format!("colours: {}, in each panel from its own lowest number on", self.unit));
        } else if several {
            notes.push("colours begin with each panel's own lowest number".to_owned());
        }
        if self.ratio().1 {
            notes.push("a length is not the same along both axes".to_owned());
        }
        if prepared.iter().any(|panel| panel.bands.open) {
            notes.push("the last colour is that of all numbers from its beginning on".to_owned());
        }
        notes
    }

    /// The picture of one panel with the levels that it has among the others, and where its field is. Title and remarks are left out.
    pub(in crate::plot) fn laid_out_alone(
        &self,
        panel: usize,
        kind: ImageKind,
        theme: Theme,
    ) -> Result<(Scene, Field)> {
        self.check()?;
        let shared = self.shared_bands()?;
        let panels = self.panels.iter().skip(panel).take(1);
        let panels = panels.map(|panel| Panel { title: String::new(), values: panel.values.clone() }).collect();
        let alone = Self { title: String::new(), notes: Vec::new(), shared: false, panels, ..self.clone() };
        let (scene, fields) = alone.laid_out(shared.as_ref(), kind, theme)?;
        let none = || Error::Recipe(format!("the plane has no panel {}", panel + 1));
        Ok((scene, fields.first().copied().ok_or_else(none)?))
    }

    /// The picture, and where in it each panel's field is.
    pub(super) fn laid_out(
        &self,
        shared: Option<&Bands>,
        kind: ImageKind,
        theme: Theme,
    ) -> Result<(Scene, Vec<Field>)> {
        self.check()?;
        let prepared = self.prepared(shared)?;
        let palette = Palette::of(theme);
        let shared_bar = prepared.first().filter(|_| self.shared || prepared.len() == 1);
        // The heading's height follows from the width, and its width from nothing above it.
        let probe = self.grid(&prepared, 0.0)?;
        let unit_room = if shared_bar.is_some() && !self.unit.is_empty() { LABEL * 1.6 } else { 0.0 };
        let shared_room = shared_bar.filter(|_| self.shared).map_or(0.0, |panel| 8.0 + BAR + panel.bar_room());
        let width = (probe.end.0 + shared_room + unit_room).max(Heading::width_wanted(&self.title)).max(300.0).ceil();
        let heading = Heading::new(&self.title, &self.remarks(&prepared), width);
        let grid = self.grid(&prepared, heading.height())?;
        let legend = arranged(self.legend(), width - grid.left - GAP);
        let height = grid.end.1 + 6.0 + legend.len() as f64 * ROW + GAP;
        let mut scene = Scene::new(width, height, &palette)?.refined(kind);
        heading.draw(&mut scene, &palette);

        for (panel, place) in prepared.iter().zip(&grid.places) {
            self.draw_field(&mut scene, panel, &place.field, theme)?;
            let size = if place.field.to.0 - place.field.from.0 >= 260.0 { LABEL } else { NOTE };
            let lowest = panel.lowest.filter(|_| self.lowest).map(|(at, _)| at);
            let names = place.named.then_some(size);
            draw_over(&mut scene, self, &place.field, lowest, names, (palette.ink, palette.paper));
            Self::draw_axes(&mut scene, place, &palette)?;
            self.draw_head(&mut scene, panel, &place.field, &palette);
            if !self.shared {
                draw_bar(&mut scene, panel, (place.field.to.0 + 8.0, place.field.from.1, place.field.to.1), theme);
            }
        }
        let bottom = grid.places.iter().map(|place| place.field.to.1).fold(0.0, f64::max);
        if let Some(panel) = shared_bar {
            let (top, bottom) = match self.shared {
                true => (grid.y_name.0, bottom),
                false => grid.places.first().map_or((0.0, 0.0), |place| (place.field.from.1, place.field.to.1)),
            };
            let right = grid.places.iter().map(|place| place.field.to.0).fold(0.0, f64::max) + 8.0;
            if self.shared {
                draw_bar(&mut scene, panel, (right, top, bottom), theme);
            }
            let x = right + BAR + panel.bar_room() + LABEL * 0.7;
            let unit = fitted(&self.unit, LABEL, bottom - top + 2.0 * GAP);
            scene.turned_text(unit, (x, (top + bottom) / 2.0), LABEL, Side::Middle, palette.ink);
        }
        for (from, to, field) in &grid.x_names {
            let axis = Self::axis(Self::ends(&self.xs), *field, &self.x_label)?;
            let name = fitted(axis.unit(), LABEL, to - from + 2.0 * GAP);
            let at = ((from + to) / 2.0, bottom + TICK + LABEL * 2.2);
            scene.text(name, at, LABEL, Side::Middle, palette.ink);
        }
        let axis = Self::axis(Self::ends(&self.ys), grid.y_name.2, &self.y_label)?;
        let name = fitted(axis.unit(), LABEL, grid.y_name.1 - grid.y_name.0);
        let at = (GAP + LABEL * 0.6, (grid.y_name.0 + grid.y_name.1) / 2.0);
        scene.turned_text(name, at, LABEL, Side::Middle, palette.ink);
        draw_legend(&mut scene, &legend, (grid.left, grid.end.1 + 6.0), &palette);
        Ok((scene, grid.places.into_iter().map(|place| place.field).collect()))
    }

    fn draw_field(&self, scene: &mut Scene, panel: &Prepared<'_>, field: &Field, theme: Theme) -> Result<()> {
        let palette = Palette::of(theme);
        scene.rectangle(field.from, field.to, panel.bands.colour(0, theme));
        let lattice = Lattice::of(self, &panel.panel.values);
        let lattice = if self.smooth { lattice.smooth() } else { lattice };
        let (regions, lines) = lattice.cut(&panel.bands)?;
        let placed = |points: &[(f64, f64)]| points.iter().map(|point| field.place(*point)).collect::<Vec<_>>();
        for Region { band, corners } in &regions {
            let mut ring = placed(corners);
            ring.extend(ring.first().copied());
            let mut ring = thinned(&ring);
            ring.pop();
            if ring.len() > 2 {
                scene.area(ring, panel.bands.colour(*band, theme));
            }
        }
        for Isoline { band, points } in &lines {
            let points = thinned(&placed(points));
            if points.len() > 1 {
                scene.path(points, 0.7, line_colour(panel.bands.colour(*band, theme)));
            }
        }
        self.draw_unknown(scene, panel.panel, field, &palette);
        scene.frame((field.from.0 - 0.5, field.from.1 - 0.5), (field.to.0 + 0.5, field.to.1 + 0.5), 1.0, palette.muted);
        Ok(())
    }

    /// Covers what is nearer to a point without a number than to others.
    fn draw_unknown(&self, scene: &mut Scene, panel: &Panel, field: &Field, palette: &Palette) {
        let edges = |places: &[f64]| -> Vec<f64> {
            let middles = places.windows(2).filter_map(|pair| Some((pair.first()? + pair.get(1)?) / 2.0));
            places.first().copied().into_iter().chain(middles).chain(places.last().copied()).collect()
        };
        let (xs, ys) = (edges(&self.xs), edges(&self.ys));
        let is_unknown = |cell: &Option<f64>| cell.is_none_or(|number| !number.is_finite());
        // Cells of a row that touch are one; the same in the rows above make it higher.
        let mut open: Vec<((usize, usize), (usize, usize))> = Vec::new();
        let mut whole = Vec::new();
        let none = Vec::new();
        for row in 0..=panel.values.len() {
            let cells = panel.values.get(row).unwrap_or(&none);
            let mut runs = Vec::new();
            let mut column = 0;
            while column < cells.len() {
                let count = cells.iter().skip(column).take_while(|cell| is_unknown(cell)).count();
                if count > 0 {
                    runs.push((column, column + count));
                }
                column += count + 1;
            }
            let (kept, closed): (Vec<_>, Vec<_>) = open.into_iter().partition(|(run, _)| runs.contains(run));
            whole.extend(closed.into_iter().map(|(run, (first, _))| (run, (first, row))));
            let new = runs.iter().filter(|run| kept.iter().all(|(old, _)| old != *run));
            open = kept.iter().copied().chain(new.map(|run| (*run, (row, row)))).collect();
        }
        for ((first, end), (low, high)) in whole {
            let corner = |x: usize, y: usize| Some(field.place((*xs.get(x)?, *ys.get(y)?)));
            if let (Some(from), Some(to)) = (corner(first, high), corner(end, low)) {
                scene.rectangle(from, to, palette.empty);
                scene.hatch(from, to, palette.hatch);
            }
        }
    }

    fn draw_axes(scene: &mut Scene, place: &Place, palette: &Palette) -> Result<()> {
        let field = &place.field;
        let x_axis = Self::axis(field.x, field.to.0 - field.from.0, "")?;
        let y_axis = Self::axis(field.y, field.to.1 - field.from.1, "")?;
        for (share, label) in x_axis.places() {
            let x = field.from.0 + share * (field.to.0 - field.from.0);
            scene.rectangle((x - 0.5, field.to.1), (x + 0.5, field.to.1 + TICK), palette.muted);
            if place.below {
                scene.text(label.clone(), (x, field.to.1 + TICK + LABEL * 0.75), LABEL, Side::Middle, palette.ink);
            }
        }
        for (share, label) in y_axis.places() {
            let y = field.to.1 - share * (field.to.1 - field.from.1);
            scene.rectangle((field.from.0 - TICK, y - 0.5), (field.from.0, y + 0.5), palette.muted);
            if place.left {
                scene.text(label.clone(), (field.from.0 - TICK - 3.0, y), LABEL, Side::End, palette.ink);
            }
        }
        Ok(())
    }

    /// A panel's title and what is said below it.
    fn draw_head(&self, scene: &mut Scene, panel: &Prepared<'_>, field: &Field, palette: &Palette) {
        let room = field.to.0 - field.from.0;
        let mut y = field.from.1 - 4.0;
        let note = match panel.lowest {
            _ if panel.bands.high <= panel.bands.low => format!("everywhere {}", raised(panel.bands.low)),
            Some(((x, across), number)) if self.lowest => {
                let place = format!("({}, {})", coordinate(x, field.x), coordinate(across, field.y));
                let lowest = format!("lowest: {}", raised(number));
                let whole = format!("{lowest} at {place}");
                // The cross in the field shows the place.
                if text_width(&whole, NOTE) <= room { whole } else { lowest }
            }
            _ => String::new(),
        };
        if !note.is_empty() {
            y -= NOTE_LINE / 2.0;
            scene.text(fitted(&note, NOTE, room), (field.from.0, y), NOTE, Side::Start, palette.muted);
            y -= NOTE_LINE / 2.0;
        }
        let title = fitted(&panel.panel.title, LABEL, room);
        scene.text(title, (field.from.0, y - TITLE_LINE / 2.0), LABEL, Side::Start, palette.ink);
    }
}

impl Plot for Contours {
    fn scene(&self, kind: ImageKind, theme: Theme) -> Result<Scene> {
        self.check()?;
        Ok(self.laid_out(self.shared_bands()?.as_ref(), kind, theme)?.0)
    }
}

impl Prepared<'_> {
    /// The width of what stands beside the colour bar.
    fn bar_room(&self) -> f64 {
        (TICK + 4.0 + widest(&self.labels, NOTE)).max(text_width(&self.times(), NOTE) - BAR)
    }

    /// "× 10⁻⁴", or nothing.
    fn times(&self) -> String {
        unit_with("", self.power)
    }
}

/// A number with four digits that count, small and large ones by their power of ten.
pub(in crate::plot) fn raised(number: f64) -> String {
    let text = significant(number, 4);
    match text.split_once('e') {
        Some((digits, power)) => {
            format!("{digits} {}", unit_with("", power.replace('−', "-").parse().unwrap_or_default()))
        }
        None => text,
    }
}

/// A coordinate with digits for a thousandth of what its axis spans.
fn coordinate(place: f64, ends: (f64, f64)) -> String {
    let digits = 2 - magnitude(ends.1 - ends.0);
    if (0..=8).contains(&digits) { fixed(place, digits as usize) } else { significant(place, 4) }
}

/// Darker than the band above it, or lighter where that is dark itself.
fn line_colour(band: Rgb) -> Rgb {
    if contrast(band, (0, 0, 0)) > 3.2 { mixed(band, (0, 0, 0), 0.38) } else { mixed(band, (255, 255, 255), 0.28) }
}

/// A bar of a panel's bands, all of the same height, from `x` on between two heights.
fn draw_bar(scene: &mut Scene, panel: &Prepared<'_>, (x, top, bottom): (f64, f64, f64), theme: Theme) {
    let palette = Palette::of(theme);
    let bands = panel.bands.len();
    let height = (bottom - top) / bands as f64;
    let edge = |band: usize| ((bottom - band as f64 * height) * FINE).round() / FINE;
    for band in 0..bands {
        // Each reaches up to the end and the next lies on it, lest viewers show seams.
        scene.rectangle((x, top), (x + BAR, edge(band)), panel.bands.colour(band, theme));
    }
    scene.frame((x - 0.5, top - 0.5), (x + BAR + 0.5, bottom + 0.5), 1.0, palette.muted);
    scene.text(panel.times(), (x, top - 7.0 - NOTE_LINE / 2.0), NOTE, Side::Start, palette.ink);
    let last = panel.labels.len().saturating_sub(1);
    let step = ((NOTE * 1.15) / height).ceil().max(1.0) as usize;
    for (band, label) in panel.labels.iter().enumerate() {
        let y = edge(band).clamp(top, bottom);
        if band > 0 && band < bands {
            scene.rectangle((x + BAR, y - 0.5), (x + BAR + TICK, y + 0.5), palette.muted);
        }
        // The first and the last are always there, and others not near the last.
        if band == last || (band % step == 0 && last - band >= step) {
            let y = if panel.bands.open && band == last { (edge(band) + top) / 2.0 } else { y };
            scene.text(label.clone(), (x + BAR + TICK + 3.0, y), NOTE, Side::Start, palette.ink);
        }
    }
}

/// A line with fewer points, none of those left out farther than [`TOLERANCE`] from it (Douglas and Peucker 1973).
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept = vec![false; points.len()];
    if let Some(first) = kept.first_mut() {
        *first = true;
    }
    if let Some(last) = kept.last_mut() {
        *last = true;
    }
    let mut pieces = vec![(0, points.len().saturating_sub(1))];
    while let Some((from, to)) = pieces.pop() {
        let (Some(a), Some(b)) = (points.get(from), points.get(to)) else { continue };
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let length = dx * dx + dy * dy;
        let distance = |point: &(f64, f64)| {
            let share = if length > 0.0 { ((point.0 - a.0) * dx + (point.1 - a.1) * dy) / length } else { 0.0 };
            let share = share.clamp(0.0, 1.0);
            (point.0 - a.0 - share * dx).hypot(point.1 - a.1 - share * dy)
        };
        let between = points.iter().enumerate().take(to).skip(from + 1);
        let farthest = between.map(|(index, point)| (index, distance(point))).max_by(|a, b| a.1.total_cmp(&b.1));
        if let Some((index, _)) = farthest.filter(|(_, far)| *far > TOLERANCE) {
            if let Some(kept) = kept.get_mut(index) {
                *kept = true;
            }
            pieces.extend([(from, index), (index, to)]);
        }
    }
    points.iter().zip(kept).filter(|(_, kept)| *kept).map(|(point, _)| *point).collect()
}
