//! A small heatmap as text: coloured cells with numbers where there is room, and shades where there is no colour.

use super::Theme;
use super::colour::{Scale, ink_on, of_share};
use super::number::{fixed, magnitude, power_of_ten, short, without};
use super::pool::{factor, pooled, said};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// More rows than this are pooled.
const ROWS: usize = 32;
/// The widest that a row's name may be, in columns of the terminal.
const NAME: usize = 32;
/// From nothing to the limit.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];

/// A heatmap of at most 32 rows in `width` columns of a terminal, each line ended. Colours run from `−limit` to
/// `limit`, or from 0 if no cell is negative; `limit` is taken from the cells if it is not above 0. Undefined cells are
/// "–". With `colour` cells have 24-bit backgrounds.
#[must_use]
pub fn heatmap(
    rows: &[String],
    columns: &[String],
    cells: &[Vec<Option<f64>>],
    limit: f64,
    colour: bool,
    width: usize,
) -> String {
    if rows.is_empty() || columns.is_empty() {
        return "nothing to show\n".to_owned();
    }
    let width = width.clamp(20, 1000);
    let numbers = || cells.iter().flatten().flatten().filter(|number| number.is_finite());
    let largest = numbers().fold(0.0, |largest: f64, number| largest.max(number.abs()));
    let limit = [limit, largest].into_iter().find(|limit| *limit > 0.0 && limit.is_finite()).unwrap_or(1.0);
    let scale = if numbers().any(|number| *number < 0.0) { Scale::Diverging } else { Scale::Sequential };

    let row_pool = factor(rows.len(), ROWS);
    let names: Vec<String> = rows.iter().step_by(row_pool).map(|name| cut(name, NAME.min(width / 3))).collect();
    let name_width = names.iter().map(|name| name.width()).max().unwrap_or(0);
    let room = width.saturating_sub(name_width + 1);

    // Numbers are as many columns wide as the widest, and stand apart; the first form of them that fits is taken.
    let by_rows = pooled(cells, columns.len(), row_pool, 1);
    let alike = if scale == Scale::Diverging { 0.1..100.0 } else { 0.5..10.0 };
    let power = magnitude(largest);
    let forms = match alike.contains(&limit) {
        true => vec![Form::Fixed(0, 2)],
        false => vec![Form::Short, Form::Fixed(power, 2), Form::Fixed(power, 1)],
    };
    let width_of = |form: Form| by_rows.iter().flatten().map(|cell| form.text(*cell).width()).max().unwrap_or(1);
    let fits = |form: &Form| (width_of(*form) + 1) * columns.len() <= room;
    let form = forms.into_iter().find(fits).filter(|_| row_pool == 1 || columns.len() <= ROWS);
    let has_numbers = form.is_some();
    let form = form.unwrap_or(Form::Short);
    let widest = width_of(form) + 1;
    let text = |cell: Option<f64>| form.text(cell);
    let shade_width = if 2 * columns.len() <= room || scale == Scale::Diverging { 2 } else { 1 };
    let column_pool = if has_numbers { 1 } else { factor(columns.len(), (room / shade_width).max(1)) };
    let table = pooled(cells, columns.len(), row_pool, column_pool);
    let shown: Vec<&String> = columns.iter().step_by(column_pool).collect();
    // Wider cells where that makes room for the names of columns.
    let longest = shown.iter().map(|name| clean(name).width() + 2).max().unwrap_or(0);
    let cell_width = if has_numbers { widest.max(longest.min(room / shown.len())).min(24) } else { shade_width };

    let mut out = String::new();
    let named = has_numbers && (longest <= cell_width || cell_width >= 10);
    if has_numbers {
        let heads = shown.iter().enumerate().map(|(index, name)| {
            let head = if named { cut(name, cell_width - 2) } else { (index + 1).to_string() };
            padded_left(&head, cell_width - 1) + " "
        });
        push_line(&mut out, &format!("{} {}", " ".repeat(name_width), heads.collect::<String>()));
    }
    for (row, name) in names.iter().enumerate() {
        let mut line = format!("{name}{} ", " ".repeat(name_width - name.width()));
        for column in 0..shown.len() {
            let cell = table.get(row).and_then(|row| row.get(column)).copied().flatten().filter(|n| !n.is_nan());
            let share = cell.map(|number| number / limit);
            let inside = if has_numbers {
                padded_left(&text(cell), cell_width - 1) + " "
            } else if colour && cell.is_some() {
                " ".repeat(cell_width)
            } else {
                shade(share, scale, cell_width)
            };
            line += &match share {
                Some(share) if colour => painted(&inside, share, scale),
                _ => inside,
            };
        }
        push_line(&mut out, &line);
    }
    match form {
        Form::Fixed(power, _) if has_numbers && power != 0 => {
            push_line(&mut out, &format!("numbers are × {}", power_of_ten(power)));
        }
        _ => {}
    }
    for line in key(&shown, named, has_numbers, width, [row_pool, column_pool], (limit, scale, colour)) {
        push_line(&mut out, &line);
    }
    out
}

/// How numbers are written.
#[derive(Clone, Copy)]
enum Form {
    /// Each with its own power of ten.
    Short,
    /// Without a power of ten, with so many digits behind the point.
    Fixed(i32, usize),
}

impl Form {
    fn text(self, cell: Option<f64>) -> String {
        match (cell.filter(|number| !number.is_nan()), self) {
            (None, _) => "–".to_owned(),
            (Some(number), Self::Short) => short(number),
            (Some(number), Self::Fixed(power, digits)) => fixed(without(number, power), digits),
        }
    }
}

/// What the table does not say by itself.
fn key(
    columns: &[&String],
    named: bool,
    numbers: bool,
    width: usize,
    pool: [usize; 2],
    (limit, scale, colour): (f64, Scale, bool),
) -> Vec<String> {
    let mut lines = Vec::new();
    if numbers && !named {
        let entries: Vec<String> =
            columns.iter().enumerate().map(|(index, name)| format!("{} {}", index + 1, cut(name, NAME))).collect();
        let mut line = String::from("columns:");
        for (index, entry) in entries.iter().enumerate() {
            let comma = if index + 1 < entries.len() { "," } else { "" };
            if line.width() + entry.width() + 2 > width && line != " " {
                lines.push(std::mem::replace(&mut line, " ".to_owned()));
            }
            line += &format!(" {entry}{comma}");
        }
        lines.push(line);
    } else if !numbers {
        let [first, last] = [columns.first(), columns.last()].map(|name| name.map_or("", |name| name.as_str()));
        let room = width.saturating_sub("columns:  to ".len()) / 2;
        lines.push(format!("columns: {} to {}", cut(first, room), cut(last, room)));
        let low = if scale == Scale::Diverging { -limit } else { 0.0 };
        let share_of = |step: i32| if low < 0.0 { f64::from(step) / 4.0 } else { f64::from(step + 4) / 8.0 };
        let bar = (-4..=4).map(|step| match (colour, scale) {
            (true, _) => painted("  ", share_of(step), scale),
            (false, Scale::Diverging) => shade(Some(share_of(step)), scale, 2),
            // As many as there are shades.
            (false, Scale::Sequential) if step % 2 == 0 => shade(Some(share_of(step)), scale, 1),
            (false, Scale::Sequential) => String::new(),
        });
        lines.push(format!("{} {} {}   – not defined", short(low), bar.collect::<String>(), short(limit)));
    }
    lines.extend(said(pool[0], pool[1]));
    lines
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line.trim_end_matches(' '));
    out.push('\n');
}

/// A shade for a share of the limit, with a sign where there are both.
fn shade(share: Option<f64>, scale: Scale, width: usize) -> String {
    let Some(share) = share else { return padded_left("–", width) };
    let place = (share.abs().min(1.0) * (SHADES.len() - 1) as f64).round() as usize;
    let shade = if scale == Scale::Sequential && share < 0.0 { SHADES.first() } else { SHADES.get(place) };
    let shade = shade.copied().unwrap_or('█');
    match scale {
        Scale::Diverging => format!("{}{shade}", if share < 0.0 && place > 0 { '−' } else { ' ' }),
        Scale::Sequential => shade.to_string().repeat(width),
    }
}

fn painted(text: &str, share: f64, scale: Scale) -> String {
    let (r, g, b) = of_share(share, scale, Theme::Light);
    let (ink_r, ink_g, ink_b) = ink_on((r, g, b));
    format!("\u{1b}[48;2;{r};{g};{b};38;2;{ink_r};{ink_g};{ink_b}m{text}\u{1b}[0m")
}

fn padded_left(text: &str, width: usize) -> String {
    " ".repeat(width.saturating_sub(text.width())) + text
}

/// The text without what commands terminals.
fn clean(text: &str) -> String {
    let is_odd = |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
    text.chars().take(400).map(|c| if is_odd(c) { '\u{fffd}' } else { c }).collect()
}

/// The text, clean, with as much of its middle left out as it takes to be no wider than `room` columns.
fn cut(text: &str, room: usize) -> String {
    let text = clean(text);
    if text.width() <= room {
        return text;
    }
    let take = |characters: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        let fits = |c: &char| {
            used += c.width().unwrap_or(0);
            used <= room
        };
        characters.take_while(fits).collect::<Vec<char>>()
    };
    let room = room.saturating_sub(1);
    let head = take(&mut text.chars(), room.div_ceil(2));
    let tail = take(&mut text.chars().rev(), room / 2);
    head.into_iter().chain(['…']).chain(tail.into_iter().rev()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize, prefix: &str) -> Vec<String> {
        (0..count).map(|index| format!("{prefix}{index}")).collect()
    }

    fn without_colour(text: &str) -> String {
        regex::Regex::new("\u{1b}\\[[0-9;]*m").expect("the pattern is written here").replace_all(text, "").into_owned()
    }

    #[test]
    fn a_small_table_has_its_names_and_numbers() {
        let cells = vec![vec![Some(1.0), Some(-0.25)], vec![Some(-0.25), None]];
        let text = heatmap(&names(2, "model-"), &names(2, "model-"), &cells, 1.0, false, 80);
        assert_eq!(text, "         model-0  model-1\nmodel-0     1.00    −0.25\nmodel-1    −0.25        –\n");
        let small = vec![vec![Some(0.002), Some(0.0456)]; 2];
        let wide = heatmap(&names(2, "m"), &names(2, "c"), &small, 0.0, false, 80);
        assert_eq!(wide.lines().nth(1), Some("m0 0.00200  0.0456"));
        let row = vec![vec![Some(0.0456); 9]];
        let narrow = heatmap(&names(1, "m"), &names(9, "column "), &row, 0.0, false, 40);
        assert_eq!(narrow.lines().nth(1), Some("m0 4.6 4.6 4.6 4.6 4.6 4.6 4.6 4.6 4.6"));
        assert!(narrow.contains("\nnumbers are × 10⁻²\ncolumns: 1 column 0, 2 column 1,"), "{narrow}");
        let coloured = heatmap(&names(2, "model-"), &names(2, "model-"), &cells, 1.0, true, 80);
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(lines(&without_colour(&coloured)), lines(&text));
        assert_eq!(coloured.matches("\u{1b}[48;2;").count(), 3, "{coloured:?}");
    }

    #[test]
    fn tables_of_any_size_fit_and_say_how() {
        for (rows, columns) in [(1, 1), (4, 4), (24, 9), (25, 9), (200, 12), (1000, 1000), (3, 500)] {
            for sign in [1.0, -1.0] {
                let row = |row: usize| (0..columns).map(|c| Some(sign * (row * c) as f64)).collect::<Vec<_>>();
                let cells: Vec<_> = (0..rows).map(row).collect();
                for (colour, width) in [(false, 80), (true, 80), (false, 0), (true, 20), (true, 200)] {
                    let text = heatmap(&names(rows, "layers."), &names(columns, "c"), &cells, 0.0, colour, width);
                    let plain = without_colour(&text);
                    let is_key = |line: &&str| {
                        ["columns:", "not defined", "the one farthest from 0 of", "numbers are"]
                            .iter()
                            .any(|part| line.contains(part))
                    };
                    let widest = |room: usize, key: bool| {
                        plain.lines().filter(|line| is_key(line) == key).all(|line| line.width() <= room)
                    };
                    assert!(widest(width.max(20), false) && widest(width.max(60), true), "{width}\n{plain}");
                    assert!(plain.lines().filter(|line| !is_key(line)).count() <= ROWS + 3, "{plain}");
                    assert!(rows <= ROWS || plain.contains("the one farthest from 0 of"), "{plain}");
                }
            }
        }
    }

    #[test]
    fn odd_input_is_shown_somehow() {
        assert_eq!(heatmap(&[], &names(2, "c"), &[], 1.0, true, 80), "nothing to show\n");
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0, -0.0, 5e-324];
        let cells = vec![odd.map(Some).to_vec(), Vec::new()];
        let labels = ["\u{1b}[2J".to_owned(), "界".repeat(10_000)];
        for limit in [f64::NAN, 0.0, -1.0, f64::INFINITY, 1.0] {
            for colour in [false, true] {
                for width in [0, 60, 200, usize::MAX] {
                    let text = heatmap(&labels, &names(8, "\n"), &cells, limit, colour, width);
                    assert!(!text.contains("[2J") || !text.contains("\u{1b}[2J"), "{text:?}");
                    assert!(text.contains('–'));
                }
            }
        }
    }
}
