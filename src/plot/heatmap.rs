//! A table of numbers as coloured cells, each with its number in it where there is room.

use super::axis::Axis;
use super::colour::{Palette, Scale, ink_on, of_share};
use super::font::{fitted, text_width, widest};
use super::heading::{GAP, Heading, LABEL, Legend, NOTE, Swatch};
use super::number::{fixed, short};
use super::pool::{factor, pooled, said};
use super::scene::{FINE, Scene, Side};
use super::{ImageKind, Plot, Theme};
use crate::error::{Error, Result};

/// A table of numbers.
#[derive(Clone, Debug, Default)]
pub struct Heatmap {
    /// Stands above it.
    pub title: String,
    /// What the numbers are, beside the colour bar.
    pub unit: String,
    /// Whether there are negative numbers. If there are on a sequential scale, they have the colour of 0.
    pub scale: Scale,
    /// The number at the end of the colour bar; without, the largest there is, whatever its sign.
    pub limit: Option<f64>,
    /// The names of the rows.
    pub rows: Vec<String>,
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The numbers by row and column; none, and likewise NaN, where there is none to show.
    pub cells: Vec<Vec<Option<f64>>>,
}

/// The most units that cells and names take.
const FIELD: f64 = 1500.0;
const ROW_NAME: f64 = 250.0;
const COLUMN_NAME: f64 = 240.0;
/// The width of a page's field, in units, and the largest side of a cell without a number in it.
const PAGE: f64 = 700.0;
const LARGEST: f64 = 20.0;
/// Hatches are seen in cells of this size.
const HATCHED: f64 = 6.0;
/// A cell's height with a number in it.
const NUMBER_HEIGHT: f64 = 15.0;
/// The distance of names from each other.
const NAME_HEIGHT: f64 = 14.0;
/// Shapes that an SVG may have and still open at once.
const SVG_CELLS: usize = 100_000;
const BAR: f64 = 16.0;

/// The table as it is drawn: pooled, with the sizes that it gets.
struct Layout {
    cells: Vec<Vec<Option<f64>>>,
    /// Rows and columns of the table for each that is drawn.
    pool: (usize, usize),
    count: (usize, usize),
    /// Of a cell.
    width: f64,
    height: f64,
    numbers: bool,
    limit: f64,
    digits: Option<usize>,
    /// Whether cells without a number are left blank, there being many; not so where white is a number's colour.
    blank: bool,
}

impl Heatmap {
    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Recipe(format!("the heatmap cannot be drawn: {why}")));
        if self.rows.is_empty() || self.columns.is_empty() {
            return wrong("there are no numbers".to_owned());
        }
        if self.cells.len() > self.rows.len() || self.cells.iter().any(|row| row.len() > self.columns.len()) {
            return wrong("there are more numbers than names of rows or columns".to_owned());
        }
        match self.limit {
            Some(limit) if !(limit > 0.0 && limit.is_finite()) => {
                wrong(format!("{limit} is no end for a colour bar; it must be above 0"))
            }
            _ => Ok(()),
        }
    }

    fn layout(&self, kind: ImageKind) -> Layout {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let most = (FIELD * FINE) as usize;
        let mut pool = (factor(rows, most), factor(columns, most));
        while kind == ImageKind::Svg && rows.div_ceil(pool.0) * columns.div_ceil(pool.1) > SVG_CELLS {
            // The longer side first: a square table stays square.
            let longer = rows.div_ceil(pool.0).cmp(&columns.div_ceil(pool.1));
            pool.0 += usize::from(longer.is_ge());
            pool.1 += usize::from(longer.is_le());
        }
        let cells = if pool == (1, 1) { self.cells.clone() } else { pooled(&self.cells, columns, pool.0, pool.1) };
        let count = (rows.div_ceil(pool.0), columns.div_ceil(pool.1));
        let sizes = || cells.iter().flatten().flatten().filter(|number| number.is_finite());
        let largest = sizes().fold(0.0, |largest: f64, number| match self.scale {
            Scale::Sequential => largest.max(*number),
            Scale::Diverging => largest.max(number.abs()),
        });
        let limit = self.limit.unwrap_or(largest);
        // A table of zeros has the colour of zero.
        let limit = if limit > 0.0 { limit } else { 1.0 };
        // Numbers of both signs are compared with their limit, and others with each other.
        let alike = self.scale == Scale::Diverging && (0.1..100.0).contains(&limit);
        let digits = alike.then_some(if limit < 10.0 { 2 } else { 1 });
        let defined = cells.iter().flatten().filter(|cell| cell.is_some_and(|number| !number.is_nan())).count();
        let all = count.0 * count.1;
        let blank = self.scale == Scale::Sequential && all >= 20 && defined > 0 && defined * 4 < all * 3;
        let mut layout = Layout { cells, pool, count, width: 0.0, height: 0.0, numbers: false, limit, digits, blank };
        layout.size_cells();
        layout
    }

    fn notes(&self, layout: &Layout) -> Vec<String> {
        let numbers = || layout.cells.iter().flatten().flatten().filter(|number| number.is_finite());
        // What rounding leaves beyond the end is not worth a word.
        let end = layout.limit * (1.0 + 1e-6);
        let beyond = numbers().any(|number| match self.scale {
            Scale::Sequential => *number > end,
            Scale::Diverging => number.abs() > end,
        });
        let negative = self.scale == Scale::Sequential && numbers().any(|number| *number < -1e-6 * layout.limit);
        let notes = [
            said(layout.pool.0, layout.pool.1),
            beyond.then(|| "numbers beyond an end of the colour bar have its colour".to_owned()),
            negative.then(|| "numbers below 0 have the colour of 0".to_owned()),
        ];
        notes.into_iter().flatten().collect()
    }

    fn legend(&self, layout: &Layout, theme: Theme, room: f64) -> Legend {
        let palette = Palette::of(theme);
        let cells = || layout.cells.iter().flatten();
        let drawn: usize = layout.cells.iter().map(Vec::len).sum();
        let undefined = drawn < layout.count.0 * layout.count.1 || cells().any(|cell| cell.is_none_or(f64::is_nan));
        let infinite = cells().flatten().any(|number| number.is_infinite());
        let end = of_share(1.0, self.scale, theme);
        let hatch = |colour| layout.is_hatched().then_some(colour);
        let entries = [
            undefined.then(|| match layout.blank {
                true => (Swatch { fill: palette.blank, hatch: None }, "not defined".to_owned()),
                false => (Swatch { fill: palette.empty, hatch: hatch(palette.hatch) }, "–  not defined".to_owned()),
            }),
            infinite.then(|| (Swatch { fill: end, hatch: hatch(ink_on(end)) }, "∞  infinite".to_owned())),
        ];
        Legend::new(entries.into_iter().flatten(), room)
    }
}

impl Layout {
    fn text(&self, number: f64) -> String {
        match self.digits {
            Some(digits) => fixed(number, digits),
            None => short(number),
        }
    }

    fn is_hatched(&self) -> bool {
        self.width.min(self.height) >= HATCHED
    }

    /// Numbers if they fit, else cells as large as the field allows.
    fn size_cells(&mut self) {
        let (rows, columns) = (self.count.0 as f64, self.count.1 as f64);
        if rows * NUMBER_HEIGHT <= FIELD && columns * NUMBER_HEIGHT <= FIELD {
            let texts = self.cells.iter().flatten().flatten().map(|number| self.text(*number));
            let widest = texts.map(|text| text_width(&text, NOTE)).fold(text_width("0.00", NOTE), f64::max);
            let height = (300.0 / rows).clamp(22.0, 40.0).min(FIELD / rows);
            let width = (widest + 10.0).max(height * 1.2);
            if width * columns <= FIELD {
                (self.width, self.height, self.numbers) = (width.ceil(), height.floor(), true);
                return;
            }
        }
        // Whole pixels, or rows would differ in height.
        let size = |count: f64, most: f64| ((FIELD / count).min(most) * FINE).floor().max(1.0) / FINE;
        // What is much wider than high is read on a page, where its names shrink with it: no wider than all names need.
        let most = if columns > 2.0 * rows { (PAGE / columns).clamp(NAME_HEIGHT, LARGEST) } else { LARGEST };
        (self.width, self.height) = (size(columns, most), size(rows, LARGEST));
    }

    /// Of how all names one is shown, for cells of a size.
    fn step(size: f64) -> usize {
        (NAME_HEIGHT / size).ceil().max(1.0) as usize
    }
}

impl Plot for Heatmap {
    fn scene(&self, kind: ImageKind, theme: Theme) -> Result<Scene> {
        self.check()?;
        let palette = Palette::of(theme);
        let layout = self.layout(kind);
        let field = (layout.width * layout.count.1 as f64, layout.height * layout.count.0 as f64);
        let (low, high) = match self.scale {
            Scale::Sequential => (0.0, layout.limit),
            Scale::Diverging => (-layout.limit, layout.limit),
        };
        let axis = Axis::linear(low, high, 6, &self.unit)?;

        let shown = |names: &[String], pool: usize, size: f64, room: f64| -> Vec<(usize, String)> {
            let kept = names.iter().step_by(pool).enumerate().step_by(Layout::step(size));
            kept.map(|(place, name)| (place, fitted(name, LABEL, room))).collect()
        };
        let rows = shown(&self.rows, layout.pool.0, layout.height, ROW_NAME);
        let columns = shown(&self.columns, layout.pool.1, layout.width, COLUMN_NAME);
        let longest_row = widest(rows.iter().map(|(_, name)| name), LABEL);
        let longest_column = widest(columns.iter().map(|(_, name)| name), LABEL);
        let level = longest_column + 6.0 <= layout.width;
        let left = GAP + longest_row + 8.0;
        let above = if level { LABEL * 1.4 } else { longest_column } + 8.0;

        let length = field.1.max(axis.unit_length().min(300.0)).clamp(110.0, 420.0);
        let bar = left + field.0 + 2.0 * GAP;
        let right = bar + BAR + axis.room_beside() + GAP;
        let width = right.max(Heading::width_wanted(&self.title)).max(260.0);
        let legend = self.legend(&layout, theme, width - 2.0 * GAP);
        let heading = Heading::new(&self.title, &self.notes(&layout), width);
        let top = heading.height() + above;
        let below = top + field.1.max(length) + GAP;
        let mut scene = Scene::new(width, below + legend.height() + GAP, &palette)?;
        heading.draw(&mut scene, &palette);

        self.draw_cells(&mut scene, &layout, theme, (left, top));
        for (place, name) in rows {
            let y = top + (place as f64 + 0.5) * layout.height;
            if layout.height < NAME_HEIGHT {
                scene.rectangle((left - 5.0, y - 0.25), (left - 1.0, y + 0.25), palette.muted);
            }
            scene.text(name, (left - 8.0, y), LABEL, Side::End, palette.ink);
        }
        for (place, name) in columns {
            let x = left + (place as f64 + 0.5) * layout.width;
            if layout.width < NAME_HEIGHT {
                scene.rectangle((x - 0.25, top - 5.0), (x + 0.25, top - 1.0), palette.muted);
            }
            if level {
                scene.text(name, (x, top - 8.0 - LABEL * 0.5), LABEL, Side::Middle, palette.ink);
            } else {
                scene.turned_text(name, (x, top - 8.0), LABEL, Side::Start, palette.ink);
            }
        }

        // Each strip reaches down to the end and the next lies on it, lest viewers show seams.
        let (length, steps) = (length.floor(), length as usize);
        for step in 0..steps {
            let share = 1.0 - (step as f64 + 0.5) / steps as f64;
            let share = if self.scale == Scale::Diverging { 2.0 * share - 1.0 } else { share };
            let corner = (bar, top + step as f64);
            scene.rectangle(corner, (bar + BAR, top + length), of_share(share, self.scale, theme));
        }
        axis.draw_right(&mut scene, &palette, (bar, top), (bar + BAR, top + length));
        legend.draw(&mut scene, &palette, (GAP.max(left.min(width - GAP - legend.width())), below));
        Ok(scene)
    }
}

impl Heatmap {
    fn draw_cells(&self, scene: &mut Scene, layout: &Layout, theme: Theme, (left, top): (f64, f64)) {
        let palette = Palette::of(theme);
        let (rows, columns) = layout.count;
        let end = (left + columns as f64 * layout.width, top + rows as f64 * layout.height);
        // Between large cells a line; small ones lap over to where the next begins, lest viewers show seams.
        let lap = if layout.width.min(layout.height) >= 10.0 { -1.0 } else { 1.0 / FINE };
        let empty = if layout.blank { palette.blank } else { palette.empty };
        scene.rectangle((left, top), end, if lap < 0.0 && !layout.blank { palette.paper } else { empty });
        let no_cells = Vec::new();
        for row in 0..rows {
            let cells = layout.cells.get(row).unwrap_or(&no_cells);
            for column in 0..columns {
                let from = (left + column as f64 * layout.width, top + row as f64 * layout.height);
                let to = ((from.0 + layout.width + lap).min(end.0), (from.1 + layout.height + lap).min(end.1));
                let middle = (from.0 + (layout.width - 1.0) / 2.0, from.1 + (layout.height - 1.0) / 2.0);
                let number = cells.get(column).copied().flatten().filter(|number| !number.is_nan());
                let fill = match number {
                    Some(number) => of_share(number / layout.limit, self.scale, theme),
                    None => empty,
                };
                if number.is_none() && layout.blank {
                    continue;
                }
                // In a field of the same colour it would be one more shape.
                if number.is_some() || lap < 0.0 {
                    scene.rectangle(from, to, fill);
                }
                let is_odd = number.is_none_or(f64::is_infinite);
                if is_odd && layout.is_hatched() {
                    scene.hatch(from, to, number.map_or(palette.hatch, |_| ink_on(fill)));
                }
                if layout.numbers {
                    let text = number.map_or_else(|| "–".to_owned(), |number| layout.text(number));
                    if is_odd {
                        let half = text_width(&text, NOTE) / 2.0 + 2.0;
                        let box_from = (middle.0 - half, middle.1 - NOTE * 0.6);
                        scene.rectangle(box_from, (middle.0 + half, middle.1 + NOTE * 0.6), fill);
                    }
                    let ink = if number.is_some() { ink_on(fill) } else { palette.ink };
                    scene.text(text, middle, NOTE, Side::Middle, ink);
                }
            }
        }
    }
}
