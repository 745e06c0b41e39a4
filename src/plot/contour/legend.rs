//! What signs mean, below a plane's picture.

use super::marks::{Sign, draw_arrow, draw_cross, draw_mark, draw_path};
use super::{Contours, MarkKind};
use crate::plot::colour::Palette;
use crate::plot::font::text_width;
use crate::plot::heading::NOTE;
use crate::plot::scene::{Scene, Side};

/// The height of a line, and the width of a sign.
pub(super) const ROW: f64 = 20.0;
const SIGN: f64 = 22.0;

/// Entries in lines of some room, each with where it begins.
pub(super) fn arranged(entries: Vec<(Sign, String)>, room: f64) -> Vec<Vec<(f64, Sign, String)>> {
    let mut lines: Vec<Vec<(f64, Sign, String)>> = Vec::new();
    let mut x = 0.0;
    for (sign, text) in entries {
        let width = SIGN + 5.0 + text_width(&text, NOTE) + 16.0;
        if lines.is_empty() || x + width > room {
            lines.push(Vec::new());
            x = 0.0;
        }
        if let Some(line) = lines.last_mut() {
            line.push((x, sign, text));
        }
        x += width;
    }
    lines
}

pub(super) fn draw_legend(
    scene: &mut Scene,
    lines: &[Vec<(f64, Sign, String)>],
    (left, top): (f64, f64),
    palette: &Palette,
) {
    for (row, line) in lines.iter().enumerate() {
        let y = top + (row as f64 + 0.5) * ROW;
        for (x, sign, text) in line {
            let (from, to) = (left + x, left + x + SIGN);
            let centre = ((from + to) / 2.0, y);
            match sign {
                Sign::Mark(kind, hollow) => draw_mark(scene, *kind, *hollow, centre, 0.9),
                Sign::Arrow => draw_arrow(scene, (from, y), (to, y), true),
                Sign::Path => {
                    draw_path(scene, &[((from, y), (to, y))], &[(from + 4.0, y), (to - 4.0, y)]);
                }
                Sign::Lowest => draw_cross(scene, centre, 3.6),
                Sign::Unknown => {
                    scene.rectangle((from + 2.0, y - 6.0), (to - 2.0, y + 6.0), palette.empty);
                    scene.hatch((from + 2.0, y - 6.0), (to - 2.0, y + 6.0), palette.hatch);
                }
            }
            scene.text(text.clone(), (to + 5.0, y), NOTE, Side::Start, palette.ink);
        }
    }
}

impl Contours {
    /// What signs mean.
    pub(super) fn legend(&self) -> Vec<(Sign, String)> {
        let mut kinds: Vec<(MarkKind, bool)> = self.marks.iter().map(|mark| (mark.kind, mark.beyond)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let name = |kind: MarkKind| match kind {
            MarkKind::Base => "base",
            MarkKind::Model => "tuned model",
            MarkKind::Merge => "marked model",
            MarkKind::Point => "point",
        };
        let entry = |(kind, beyond): &(MarkKind, bool)| {
            let off = if *beyond { ", off the plane" } else { "" };
            (Sign::Mark(*kind, *beyond), format!("{}{off}", name(*kind)))
        };
        let mut entries: Vec<(Sign, String)> = kinds.iter().map(entry).collect();
        let mut add = |when: bool, sign: Sign, text: &str| {
            if when {
                entries.push((sign, text.to_owned()));
            }
        };
        add(!self.arrows.is_empty(), Sign::Arrow, "task vector");
        add(!self.path.is_empty(), Sign::Path, "the search's path");
        add(self.lowest, Sign::Lowest, "lowest");
        let unknown = self.panels.iter().any(|panel| panel.numbers().count() < self.xs.len() * self.ys.len());
        add(unknown, Sign::Unknown, "not known");
        entries
    }
}
