//! A plane that can be asked: one HTML file with nothing beside it.
//!
//! It shows the picture of each panel, light or dark as the reader's screen is, and without a script that is all. With it, a point
//! of the plane tells its coordinates, the number there, and the weights of the models that make it: the plane's map is linear.
//! Numbers between the points are bilinear.

use super::contour::{Contours, Field, raised};
use super::{ImageKind, Theme, clean, written};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// What the file tells beside the picture.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// What a point of the plane means in weights of the tuned models.
    pub weights: Vec<Weight>,
    /// The marks, in a table.
    pub places: Vec<Place>,
    /// Settings, by name.
    pub facts: Vec<(String, String)>,
}

/// The weight of one tuned model at the point (x, y): `x · u + y · v`.
#[derive(Clone, Debug, Default)]
pub struct Weight {
    /// The model.
    pub name: String,
    /// What a unit along x adds.
    pub u: f64,
    /// What a unit along y adds.
    pub v: f64,
}

/// What is known of a mark.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its coordinates along x and y.
    pub at: (f64, f64),
    /// How far it lies from the plane.
    pub distance: f64,
    /// The number at the mark itself for each panel, where it is known.
    pub losses: Vec<Option<f64>>,
}

const STYLE: &str = include_str!("interactive/page.css");
const SCRIPT: &str = include_str!("interactive/page.js");

/// The file's text.
///
/// # Errors
/// [`Error::Recipe`] with what is wrong with the numbers, or if the details are not finite.
pub fn interactive(plane: &Contours, details: &Details) -> Result<String> {
    plane.check()?;
    let coefficients = details.weights.iter().flat_map(|weight| [weight.u, weight.v]);
    let places = details.places.iter().flat_map(|place| [place.at.0, place.at.1, place.distance]);
    if !coefficients.chain(places).all(f64::is_finite) {
        return Err(Error::Recipe("the plane cannot be written: a weight or a place is not finite".to_owned()));
    }
    let (mut choices, mut shown, mut figures, mut panels) = (String::new(), String::new(), String::new(), Vec::new());
    for (index, panel) in plane.panels.iter().enumerate() {
        let title = if panel.title.is_empty() { format!("panel {}", index + 1) } else { panel.title.clone() };
        let title = in_html(&title);
        let checked = if index == 0 { " checked" } else { "" };
        choices += &format!("<input type=\"radio\" name=\"panel\" id=\"panel{index}\"{checked}>\n");
        if plane.panels.len() > 1 {
            choices += &format!("<label for=\"panel{index}\">{title}</label>\n");
        }
        shown += &format!("#panel{index}:checked ~ #figure{index} {{ display: block; }}\n");
        let mut both = String::new();
        let mut field = None;
        for (theme, name) in [(Theme::Light, "light"), (Theme::Dark, "dark")] {
            let (scene, place) = plane.laid_out_alone(index, ImageKind::Svg, theme)?;
            let svg = String::from_utf8_lossy(&written(&scene, ImageKind::Svg)?).into_owned();
            let svg = svg.replacen("<svg ", &format!("<svg class=\"{name}\" role=\"img\" aria-label=\"{title}\" "), 1);
            both += &svg;
            field = Some((scene.size(), place));
        }
        figures += &format!(
            "<figure id=\"figure{index}\" tabindex=\"0\">\n{both}<div class=\"spot\" hidden></div>\n</figure>\n"
        );
        panels.extend(field.map(|(size, field)| numbers(plane, index, size, &field)));
    }
    let weights: Vec<Value> = details
        .weights
        .iter()
        .map(|weight| json!({"name": clean(&weight.name), "u": weight.u, "v": weight.v}))
        .collect();
    let data = json!({
        "xs": plane.xs, "ys": plane.ys, "unit": clean(&plane.unit), "panels": panels, "weights": weights,
    });
    // A script ends at the first `</`, whatever it stands in.
    let data = data.to_string().replace('<', "\\u003c");
    let title = in_html(if plane.title.is_empty() { "A plane" } else { &plane.title });
    let notes: String = plane.notes.iter().map(|note| format!("<p class=\"muted\">{}</p>\n", in_html(note))).collect();
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>\n{STYLE}{shown}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n{notes}<main>\n<div class=\"planes\">\n{choices}{figures}</div>\n\
         <aside id=\"told\" hidden>\n<p class=\"muted\" id=\"how\"></p>\n<table id=\"point\"></table>\n\
         <table id=\"weights\"></table>\n</aside>\n</main>\n{}{}\
         <script type=\"application/json\" id=\"numbers\">{data}</script>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        places_table(plane, details),
        facts_table(details),
    ))
}

/// What the script needs of a panel: its numbers, and where on the picture they are.
fn numbers(plane: &Contours, index: usize, size: (f64, f64), field: &Field) -> Value {
    // Seven digits are more than a picture shows, and half of the bytes.
    let short = |number: &f64| format!("{number:.6e}").parse::<f64>().unwrap_or(*number);
    let known = |number: &Option<f64>| number.as_ref().filter(|number| number.is_finite()).map(short);
    let values = plane.panels.get(index).map(|panel| panel.values.as_slice()).unwrap_or_default();
    let rows: Vec<Vec<Option<f64>>> = values.iter().map(|row| row.iter().map(known).collect()).collect();
    let ends = [field.from.0 / size.0, field.from.1 / size.1, field.to.0 / size.0, field.to.1 / size.1];
    json!({"field": ends, "values": rows})
}

fn places_table(plane: &Contours, details: &Details) -> String {
    if details.places.is_empty() {
        return String::new();
    }
    let heads = |title: &str| if title.is_empty() { in_html(&plane.unit) } else { in_html(title) };
    let titles: String = plane.panels.iter().map(|panel| format!("<th>{}</th>", heads(&panel.title))).collect();
    let row = |place: &Place| {
        let loss = |index: usize| {
            let number = place.losses.get(index).copied().flatten().filter(|number| number.is_finite());
            format!("<td>{}</td>", number.map_or_else(|| "–".to_owned(), raised))
        };
        let losses: String = (0..plane.panels.len()).map(loss).collect();
        let [x, y, distance] = [place.at.0, place.at.1, place.distance].map(raised);
        format!("<tr><td>{}</td><td>{x}</td><td>{y}</td><td>{distance}</td>{losses}</tr>\n", in_html(&place.name))
    };
    format!(
        "<h2>Marks</h2>\n<div class=\"wide\"><table>\n<tr><th>name</th><th>x</th><th>y</th><th>distance from the plane</th>{titles}\
         </tr>\n{}</table></div>\n",
        details.places.iter().map(row).collect::<String>(),
    )
}

fn facts_table(details: &Details) -> String {
    if details.facts.is_empty() {
        return String::new();
    }
    let row =
        |(name, value): &(String, String)| format!("<tr><th>{}</th><td>{}</td></tr>\n", in_html(name), in_html(value));
    let rows: String = details.facts.iter().map(row).collect();
    format!("<h2>Settings</h2>\n<div class=\"wide\"><table class=\"facts\">\n{rows}</table></div>\n")
}

/// A text as HTML has it in elements and attributes.
#[must_use]
pub fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        '\'' => "&#39;".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A name, clean.
fn in_html(name: &str) -> String {
    escaped(&clean(name))
}
