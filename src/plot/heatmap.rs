//! A table of numbers as coloured cells, each with its number in it.

use crate::error::{Error, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A table of numbers that are not negative.
#[derive(Clone, Debug)]
pub struct Heatmap {
    /// Stands above it.
    pub title: String,
    /// What the numbers are, beside the colour bar.
    pub unit: String,
    /// The names of the rows.
    pub rows: Vec<String>,
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The numbers by row and column; none where there is nothing to show.
    pub cells: Vec<Vec<Option<f64>>>,
}

/// Sizes in pixels.
const CELL: (i32, i32) = (64, 24);
const FONT: i32 = 13;
const GAP: i32 = 10;
const BAR: i32 = 16;

/// What a character of the label font takes on average.
fn text_width(text: &str) -> i32 {
    text.chars().count() as i32 * FONT * 6 / 10
}

fn longest(labels: &[String]) -> i32 {
    labels.iter().map(|label| text_width(label)).max().unwrap_or(0)
}

impl Heatmap {
    /// The picture as an SVG document.
    ///
    /// # Errors
    /// [`Error::Recipe`] if the backend fails, which for text it does not.
    pub fn to_svg(&self) -> Result<String> {
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| Error::Recipe(format!("cannot draw the picture: {error}")))?;
        Ok(svg)
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let left = GAP + longest(&self.rows) + GAP;
        // Column names are slanted by a quarter turn: their length is their height.
        let top = GAP + 2 * FONT + GAP + longest(&self.columns) + GAP;
        let (wide, high) = (CELL.0 * self.columns.len() as i32, CELL.1 * self.rows.len() as i32);
        let bar = left + wide + 2 * GAP;
        let unit = bar + BAR + GAP + text_width("0.0e-00") + GAP;
        let width = (unit + FONT + GAP).max(text_width(&self.title) * 5 / 4 + 2 * GAP);
        let height = top + high.max(6 * FONT) + 2 * GAP;
        let numbers = || self.cells.iter().flatten().flatten().copied().filter(|number| number.is_finite());
        let max = numbers().fold(0.0, f64::max);
        let area = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;

        let font = ("sans-serif", FONT).into_font();
        let text = |h, v| TextStyle::from(font.clone()).pos(Pos::new(h, v));
        let title = TextStyle::from(("sans-serif", FONT * 5 / 4).into_font());
        area.draw(&Text::new(self.title.clone(), (GAP, GAP), title))?;
        for (row, (label, cells)) in self.rows.iter().zip(&self.cells).enumerate() {
            let y = top + CELL.1 * row as i32;
            area.draw(&Text::new(label.clone(), (left - GAP, y + CELL.1 / 2), text(HPos::Right, VPos::Center)))?;
            for (column, cell) in cells.iter().enumerate() {
                let Some(number) = *cell else { continue };
                let x = left + CELL.0 * column as i32;
                let (fill, ink) = colours(if max > 0.0 { number / max } else { 0.0 });
                area.draw(&Rectangle::new([(x, y), (x + CELL.0 - 1, y + CELL.1 - 1)], fill.filled()))?;
                let style = text(HPos::Center, VPos::Center).color(&ink);
                area.draw(&Text::new(short(number), (x + CELL.0 / 2, y + CELL.1 / 2), style))?;
            }
        }
        for (column, label) in self.columns.iter().enumerate() {
            let at = (left + CELL.0 * column as i32 + CELL.0 / 2, top - GAP);
            let style = text(HPos::Left, VPos::Center).transform(FontTransform::Rotate270);
            area.draw(&Text::new(label.clone(), at, style))?;
        }

        let length = high.max(6 * FONT);
        for pixel in 0..length {
            let (fill, _) = colours(1.0 - f64::from(pixel) / f64::from(length));
            area.draw(&Rectangle::new([(bar, top + pixel), (bar + BAR, top + pixel + 1)], fill.filled()))?;
        }
        for (share, v) in [(0.0, VPos::Bottom), (0.5, VPos::Center), (1.0, VPos::Top)] {
            let y = top + ((1.0 - share) * f64::from(length)) as i32;
            area.draw(&Text::new(short(max * share), (bar + BAR + GAP, y), text(HPos::Left, v)))?;
        }
        let at = (unit, top + length / 2);
        let style = text(HPos::Center, VPos::Center).transform(FontTransform::Rotate270);
        area.draw(&Text::new(self.unit.clone(), at, style))?;
        area.present()?;
        Ok(())
    }
}

/// The colour of a share of the largest number, and an ink that can be read on it.
fn colours(share: f64) -> (RGBColor, RGBColor) {
    if !share.is_finite() {
        return (RGBColor(200, 30, 30), WHITE);
    }
    let colorous::Color { r, g, b } = colorous::CIVIDIS.eval_continuous(share.clamp(0.0, 1.0));
    let ink = if share > 0.55 { BLACK } else { WHITE };
    (RGBColor(r, g, b), ink)
}

/// A number in six characters or so.
fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        size if !size.is_finite() => "inf".to_owned(),
        0.001..1000.0 => {
            let digits = (2 - number.abs().log10().floor() as i32).max(0) as usize;
            format!("{number:.digits$}")
        }
        _ => format!("{number:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, text) in
            [(0.0, "0"), (0.1234, "0.123"), (12.345, "12.3"), (123.4, "123"), (1e-5, "1.0e-5"), (2e4, "2.0e4")]
        {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn a_picture_has_every_label_and_number() {
        let map = Heatmap {
            title: "changes".to_owned(),
            unit: "share".to_owned(),
            rows: vec!["layers.0".to_owned(), "a < b".to_owned()],
            columns: vec!["weight".to_owned()],
            cells: vec![vec![Some(0.5)], vec![None]],
        };
        let svg = map.to_svg().expect("text can be drawn");
        for text in ["changes", "share", "layers.0", "a &lt; b", "weight", "0.500"] {
            assert!(svg.contains(text), "{text}");
        }
    }
}
