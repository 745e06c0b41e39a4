//! A plane as a file of VTK's legacy format, version 3.0, for ParaView and its like.
//!
//! Text: a `STRUCTURED_GRID` whose points stand as high as the first panel's numbers, and one array of numbers for each panel
//! (The VTK User's Guide, 11th edition, "VTK File Formats"). What is not known is NaN in its array; its point stands at the lowest number.

use super::clean;
use super::contour::Contours;
use crate::error::Result;
use std::fmt::Write as _;

/// The longest first line that readers take.
const TITLE: usize = 255;

/// The file's text.
///
/// # Errors
/// [`crate::Error::Recipe`] with what is wrong with the numbers.
pub fn vtk(plane: &Contours) -> Result<String> {
    plane.check()?;
    let title = if plane.title.is_empty() { "a plane".to_owned() } else { one_word(&plane.title, ' ') };
    let title: String = title.chars().take(TITLE).collect();
    let (columns, rows) = (plane.xs.len(), plane.ys.len());
    let points = columns * rows;
    let mut text = format!(
        "# vtk DataFile Version 3.0\n{title}\nASCII\nDATASET STRUCTURED_GRID\nDIMENSIONS {columns} {rows} 1\nPOINTS {points} double\n"
    );
    let mut add = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    let known = |number: Option<f64>| number.filter(|number| number.is_finite());
    if let Some(first) = plane.panels.first() {
        let lowest = first.numbers().fold(f64::INFINITY, f64::min);
        for (y, row) in plane.ys.iter().zip(&first.values) {
            for (x, number) in plane.xs.iter().zip(row) {
                add(&format!("{x:?} {y:?} {:?}", known(*number).unwrap_or(lowest)));
            }
        }
    }
    add(&format!("POINT_DATA {points}"));
    let mut names: Vec<String> = Vec::new();
    for (index, panel) in plane.panels.iter().enumerate() {
        let mut name = one_word(&panel.title, '_');
        if name.is_empty() || names.contains(&name) {
            write!(name, "{}panel_{}", if name.is_empty() { "" } else { "_" }, index + 1).unwrap_or_default();
        }
        add(&format!("SCALARS {name} double 1\nLOOKUP_TABLE default"));
        names.push(name);
        for row in &panel.values {
            let numbers =
                row.iter().map(|number| known(*number).map_or("nan".to_owned(), |number| format!("{number:?}")));
            add(&numbers.collect::<Vec<String>>().join(" "));
        }
    }
    Ok(text)
}

/// The text in printable ASCII, with `space` for spaces and a hyphen for what has no place there.
fn one_word(text: &str, space: char) -> String {
    let plain = |c: char| match c {
        ' ' => space,
        '–' | '−' => '-',
        c if c.is_ascii_graphic() => c,
        _ => '?',
    };
    clean(text).trim().chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Panel;

    #[test]
    fn the_text_is_a_grid_with_an_array_for_each_panel() -> Result<()> {
        let values = |shift: f64| {
            vec![vec![Some(1.0 + shift), Some(2.0)], vec![None, Some(4e-7)], vec![Some(f64::INFINITY), Some(3.5)]]
        };
        let panel = |title: &str, shift| Panel { title: title.to_owned(), values: values(shift) };
        let plane = Contours {
            title: "τ₁ and\nτ₂".to_owned(),
            xs: vec![0.0, 0.1],
            ys: vec![-1.0, 0.0, 2.5],
            panels: vec![panel("[0, 250)", 0.0), panel("[0, 250)", 0.5), panel("", 0.0)],
            ..Contours::default()
        };
        let expected = "# vtk DataFile Version 3.0\n?? and ??\nASCII\nDATASET STRUCTURED_GRID\nDIMENSIONS 2 3 1\nPOINTS 6 double\n\
            0.0 -1.0 1.0\n0.1 -1.0 2.0\n0.0 0.0 4e-7\n0.1 0.0 4e-7\n0.0 2.5 4e-7\n0.1 2.5 3.5\nPOINT_DATA 6\n\
            SCALARS [0,_250) double 1\nLOOKUP_TABLE default\n1.0 2.0\nnan 4e-7\nnan 3.5\n\
            SCALARS [0,_250)_panel_2 double 1\nLOOKUP_TABLE default\n1.5 2.0\nnan 4e-7\nnan 3.5\n\
            SCALARS panel_3 double 1\nLOOKUP_TABLE default\n1.0 2.0\nnan 4e-7\nnan 3.5\n";
        assert_eq!(vtk(&plane)?, expected);
        assert!(vtk(&Contours { xs: vec![0.0], ..plane }).is_err());
        Ok(())
    }
}
