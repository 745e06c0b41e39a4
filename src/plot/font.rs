//! The font of pictures: DejaVu Sans, embedded, so that no system library is needed and all pictures look alike.
//!
//! SVG has text as text in a family that the viewer has: DejaVu Sans, or Verdana, from which it differs little. Widths
//! are measured with room for others. What the font lacks is drawn as a box in PNG and is itself in SVG.

use super::colour::Rgb;
use ab_glyph::{Font, FontRef, Glyph, PxScale, point};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters_backend::{BackendColor, BackendCoord, BackendTextStyle, FontFamily, FontStyle, FontTransform};
use std::convert::Infallible;
use std::sync::OnceLock;

const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// A capital's height, as a share of the font size.
pub(super) const CAPITAL: f64 = 0.729;

/// Where plotters' SVG backend puts the base line below a position, as a share of the font size.
pub(super) const BELOW_TOP: f64 = 0.76;

/// Other fonts of an SVG's viewer are at most this much wider.
const SLACK: f64 = 1.07;

/// Characters of a label that are looked at; the middle of a longer one is of no use to anybody.
const LOOKED_AT: usize = 400;

fn font() -> &'static FontRef<'static> {
    static FONT: OnceLock<FontRef<'static>> = OnceLock::new();
    FONT.get_or_init(|| {
        let bytes = include_bytes!("font/DejaVuSans-subset.ttf");
        FontRef::try_from_slice(bytes).expect("the embedded font is whole, which every picture's test sees")
    })
}

/// How far a character moves the pen, as a share of the font size.
fn advance(character: char) -> f64 {
    let font = font();
    match font.glyph_id(character) {
        // Most of what is lacking is as wide as high.
        id if id.0 == 0 => 1.0,
        id => f64::from(font.h_advance_unscaled(id)) / f64::from(font.units_per_em().unwrap_or(2048.0)),
    }
}

/// The width of a text of a font size, with room for other fonts.
#[must_use]
pub fn text_width(text: &str, size: f64) -> f64 {
    exact_width(text, size) * SLACK
}

fn exact_width(text: &str, size: f64) -> f64 {
    text.chars().map(advance).sum::<f64>() * size
}

/// The widest of some labels.
pub(super) fn widest<'a>(labels: impl IntoIterator<Item = &'a String>, size: f64) -> f64 {
    labels.into_iter().map(|label| text_width(label, size)).fold(0.0, f64::max)
}

/// The text without what is no character in XML, commands terminals and layouts, or ends lines.
#[must_use]
pub fn clean(text: &str) -> String {
    let is_odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
            || (c as u32 & 0xfffe) == 0xfffe
    };
    let change = |c: char| match c {
        '\t' | '\n' | '\r' => ' ',
        c if is_odd(c) => '\u{fffd}',
        c => c,
    };
    // The end of a name tells as much as its beginning.
    match text.char_indices().nth(LOOKED_AT) {
        None => text.chars().map(change).collect(),
        Some((end, _)) => {
            let tail = text.char_indices().rev().nth(LOOKED_AT / 2).map_or(end, |(start, _)| start.max(end));
            let head = text.chars().take(LOOKED_AT / 2);
            head.chain(['…']).chain(text[tail..].chars()).map(change).collect()
        }
    }
}

/// The text, clean, with as much of its middle left out as it takes to be no wider than `room`.
#[must_use]
pub fn fitted(text: &str, size: f64, room: f64) -> String {
    let text = clean(text);
    if text_width(&text, size) <= room {
        return text;
    }
    let characters: Vec<char> = text.chars().collect();
    let width = |kept: &[char]| kept.iter().copied().map(advance).sum::<f64>() * size * SLACK;
    let room = room - text_width("…", size);
    let (mut head, mut tail) = (0, characters.len());
    // From both ends, the shorter side first, while it fits.
    let mut used = 0.0;
    loop {
        let from_head = head <= characters.len() - tail;
        let next = if from_head { head } else { tail.wrapping_sub(1) };
        let Some(character) = characters.get(next) else { break };
        used += width(&[*character]);
        if used > room || head >= tail {
            break;
        }
        if from_head { head += 1 } else { tail -= 1 }
    }
    if used > room && head == 0 {
        return "…".to_owned();
    }
    let part = |range: &[char]| range.iter().collect::<String>();
    let (head, tail) = (characters.get(..head).map(part), characters.get(tail..).map(part));
    format!("{}…{}", head.unwrap_or_default().trim_end(), tail.unwrap_or_default().trim_start())
}

/// The text, clean, in lines no wider than `room`: at spaces where there are any, the last of `most` lines fitted.
#[must_use]
pub fn wrapped(text: &str, size: f64, room: f64, most: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let text = clean(text);
    let mut rest = text.trim();
    while !rest.is_empty() {
        if lines.len() + 1 >= most || text_width(rest, size) <= room {
            lines.push(fitted(rest, size, room));
            break;
        }
        let mut used = 0.0;
        let fits = |(_, character): &(usize, char)| {
            used += advance(*character) * size * SLACK;
            used <= room
        };
        // At least one character goes on each line.
        let end = rest.char_indices().take_while(fits).last().map_or(0, |(start, _)| start);
        let end = rest.get(end..).and_then(|tail| tail.chars().next()).map_or(rest.len(), |c| end + c.len_utf8());
        let head = rest.get(..end).unwrap_or(rest);
        let cut = head.rfind(' ').filter(|space| *space * 2 > end).unwrap_or(head.len());
        let (line, tail) = rest.split_at(cut);
        lines.push(line.trim_end().to_owned());
        rest = tail.trim_start();
    }
    lines
}

/// How a text is drawn by plotters' backends: in place by its top, with a size in their pixels.
pub(super) struct Letters {
    pub(super) size: f64,
    pub(super) colour: Rgb,
    pub(super) anchor: HPos,
    pub(super) turned: bool,
    pub(super) halo: bool,
}

/// What plotters writes of a halo's letters into an SVG, having no word for outlines.
pub(super) const HALO_STYLE: &str = " font-style=\"oblique\"";

impl BackendTextStyle for Letters {
    type FontError = Infallible;

    fn color(&self) -> BackendColor {
        BackendColor { alpha: 1.0, rgb: self.colour }
    }

    fn size(&self) -> f64 {
        // plotters divides by this number again.
        self.size * 1.24
    }

    fn transform(&self) -> FontTransform {
        if self.turned { FontTransform::Rotate270 } else { FontTransform::None }
    }

    fn style(&self) -> FontStyle {
        if self.halo { FontStyle::Oblique } else { FontStyle::Normal }
    }

    fn anchor(&self) -> Pos {
        Pos::new(self.anchor, VPos::Top)
    }

    fn family(&self) -> FontFamily<'_> {
        FontFamily::Name(FAMILY)
    }

    fn layout_box(&self, text: &str) -> Result<((i32, i32), (i32, i32)), Infallible> {
        Ok(((0, 0), (exact_width(text, self.size).round() as i32, self.size.ceil() as i32)))
    }

    fn draw<E, Draw: FnMut(i32, i32, BackendColor) -> Result<(), E>>(
        &self,
        text: &str,
        (left, top): BackendCoord,
        mut draw: Draw,
    ) -> Result<Result<(), E>, Infallible> {
        let font = font();
        // ab_glyph's scale is the height of a line, not the font size.
        let line = font.height_unscaled() / font.units_per_em().unwrap_or(2048.0);
        let scale = PxScale::from(self.size as f32 * line);
        let base = (self.size * BELOW_TOP).round() as f32;
        let mut pen = 0.0;
        for character in text.chars() {
            let id = font.glyph_id(character);
            // A box stands in the middle of its place, which is wider.
            let shift = if id.0 == 0 { 0.2 * self.size } else { 0.0 };
            let glyph = Glyph { id, scale, position: point((pen + shift) as f32, base) };
            pen += advance(character) * self.size;
            let Some(outline) = font.outline_glyph(glyph) else { continue };
            let corner = outline.px_bounds().min;
            let (x0, y0) = (left + corner.x as i32, top + corner.y as i32);
            let mut result = Ok(());
            outline.draw(|x, y, share| {
                if result.is_ok() && share > 0.0 {
                    let color = BackendColor { alpha: f64::from(share).min(1.0), rgb: self.colour };
                    result = draw(x0 + x as i32, y0 + y as i32, color);
                }
            });
            if result.is_err() {
                return Ok(result);
            }
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_has_what_labels_and_units_use() {
        for character in "aZ09_-.…–−×·‖⟨⟩τλθΣσμεαβ∈→≤≥½°∞≈⁰¹²³⁴⁵⁶⁷⁸⁹⁻₀₁éßñøłžЖя�".chars()
        {
            assert_ne!(font().glyph_id(character).0, 0, "{character}");
        }
        let height = f64::from(font().outline(font().glyph_id('H')).expect("H has an outline").bounds.min.y.abs());
        let capital = font().outline(font().glyph_id('H')).expect("H has an outline").bounds.max.y.abs();
        let capital = f64::from(capital).max(height) / 2048.0;
        assert!((capital - CAPITAL).abs() < 1e-3, "{capital}");
    }

    #[test]
    fn labels_are_shortened_in_the_middle() {
        let name = "model.layers.17.self_attn.q_proj.weight";
        assert_eq!(fitted(name, 12.0, 1000.0), name);
        for room in [0.0, 5.0, 12.0, 20.0, 60.0, 100.0, 200.0] {
            let short = fitted(name, 12.0, room);
            assert!(text_width(&short, 12.0) <= room.max(text_width("…", 12.0)), "{short}");
            assert!(short.contains('…') && short.chars().count() < name.len());
        }
        let short = fitted(name, 12.0, 150.0);
        let (head, tail) = short.split_once('…').expect("something is left out");
        assert!(name.starts_with(head) && name.ends_with(tail) && head.len().abs_diff(tail.len()) <= 1, "{short}");
        assert_eq!(fitted("", 12.0, 0.0), "");
    }

    #[test]
    fn odd_texts_are_made_harmless() {
        assert_eq!(clean("a\n\tb\u{1b}[31m\u{0}\u{ffff}\u{202e}"), "a  b\u{fffd}[31m\u{fffd}\u{fffd}\u{fffd}");
        let long = clean(&format!("begin{}end", "界".repeat(10_000)));
        assert!(long.chars().count() <= LOOKED_AT + 2 && long.starts_with("begin") && long.ends_with("end"));
        for text in ["", " ", "x", "one two three four five six", &"w".repeat(300), "界界界界界界界"] {
            for room in [0.0, 1.0, 50.0, 90.0] {
                for most in [1, 2, 3] {
                    let lines = wrapped(text, 12.0, room, most);
                    assert!(lines.len() <= most, "{lines:?}");
                }
            }
        }
        assert_eq!(wrapped("one two three", 12.0, 60.0, 3), ["one two", "three"]);
    }
}
