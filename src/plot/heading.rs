//! What stands around a plot: the title with remarks below it, and the legend.

use super::colour::{Palette, Rgb};
use super::font::{fitted, text_width, wrapped};
use super::scene::{Scene, Side};

/// The sizes of text, and the space between things, in units.
pub(super) const TITLE: f64 = 15.0;
pub(super) const LABEL: f64 = 12.0;
pub(super) const NOTE: f64 = 11.0;
pub(super) const GAP: f64 = 10.0;

/// The height of a line of a text.
pub(super) fn line_height(size: f64) -> f64 {
    size * 1.4
}

/// A title and the remarks below it.
pub(super) struct Heading {
    title: Vec<String>,
    notes: Vec<String>,
}

impl Heading {
    /// A picture should not be narrower than its title, within reason.
    pub(super) fn width_wanted(title: &str) -> f64 {
        text_width(&fitted(title, TITLE, 560.0), TITLE) + 2.0 * GAP
    }

    /// Fits them into a picture of some width.
    pub(super) fn new(title: &str, notes: &[String], width: f64) -> Self {
        let room = width - 2.0 * GAP;
        let notes = notes.iter().flat_map(|note| wrapped(note, NOTE, room, 3)).collect();
        Self { title: wrapped(title, TITLE, room, 3), notes }
    }

    /// Its height, with the space above and below it.
    pub(super) fn height(&self) -> f64 {
        let lines = self.title.len() as f64 * line_height(TITLE) + self.notes.len() as f64 * line_height(NOTE);
        lines + GAP + if lines > 0.0 { GAP } else { 0.0 }
    }

    pub(super) fn draw(&self, scene: &mut Scene, palette: &Palette) {
        let mut y = GAP;
        for (lines, size, colour) in [(&self.title, TITLE, palette.ink), (&self.notes, NOTE, palette.muted)] {
            for line in lines {
                scene.text(line.clone(), (GAP, y + line_height(size) / 2.0), size, Side::Start, colour);
                y += line_height(size);
            }
        }
    }
}

/// What a sign of a legend looks like.
#[derive(Clone, Copy)]
pub(super) struct Swatch {
    pub(super) fill: Rgb,
    pub(super) hatch: Option<Rgb>,
}

/// What signs and colours mean, in lines.
pub(super) struct Legend {
    lines: Vec<Vec<(f64, Swatch, String)>>,
}

const SWATCH: f64 = 14.0;
const ROW: f64 = 20.0;
/// More entries than this are no help.
const MOST: usize = 30;

impl Legend {
    /// Lays entries out in lines of some room.
    pub(super) fn new(entries: impl IntoIterator<Item = (Swatch, String)>, room: f64) -> Self {
        let (mut lines, mut line, mut x) = (Vec::new(), Vec::new(), 0.0);
        let longest = (room - SWATCH - 6.0).min(280.0);
        let mut entries: Vec<_> = entries.into_iter().collect();
        if entries.len() > MOST {
            // The first, some of the middle and the last tell how the colours run.
            let (count, last) = (entries.len(), entries.len() - 1);
            let kept: std::collections::BTreeSet<usize> = (0..MOST).map(|i| i * last / (MOST - 1)).collect();
            entries = entries.into_iter().enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, e)| e).collect();
            if let Some((_, name)) = entries.last_mut() {
                *name += &format!("  ({} of {count} are named)", MOST);
            }
        }
        for (swatch, name) in entries {
            let name = fitted(&name, LABEL, longest);
            let width = SWATCH + 6.0 + text_width(&name, LABEL);
            if x > 0.0 && x + width > room {
                lines.push(std::mem::take(&mut line));
                x = 0.0;
            }
            line.push((x, swatch, name));
            x += width + 18.0;
        }
        if !line.is_empty() {
            lines.push(line);
        }
        Self { lines }
    }

    pub(super) fn height(&self) -> f64 {
        self.lines.len() as f64 * ROW
    }

    /// How wide it is.
    pub(super) fn width(&self) -> f64 {
        let end = |line: &Vec<(f64, Swatch, String)>| {
            line.last().map_or(0.0, |(x, _, name)| x + SWATCH + 6.0 + text_width(name, LABEL))
        };
        self.lines.iter().map(end).fold(0.0, f64::max)
    }

    pub(super) fn draw(&self, scene: &mut Scene, palette: &Palette, (left, top): (f64, f64)) {
        for (row, line) in self.lines.iter().enumerate() {
            let middle = top + (row as f64 + 0.5) * ROW;
            for (x, swatch, name) in line {
                let (from, to) = ((left + x, middle - SWATCH / 2.0), (left + x + SWATCH, middle + SWATCH / 2.0));
                scene.rectangle(from, to, swatch.fill);
                if let Some(colour) = swatch.hatch {
                    scene.hatch(from, to, colour);
                }
                scene.text(name.clone(), (to.0 + 6.0, middle), LABEL, Side::Start, palette.ink);
            }
        }
    }
}
