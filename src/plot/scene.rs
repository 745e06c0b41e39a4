//! A picture as the shapes it consists of, before it is drawn by one of plotters' backends.
//!
//! Lengths are units of 1/96 inch, as in CSS. Backends take whole numbers only, so they are given [`FINE`] of their
//! pixels for a unit: PNG has as many pixels, SVG a `viewBox` of as many.

use super::ImageKind;
use super::area::filled;
use super::colour::{Palette, Rgb};
use super::font::{BELOW_TOP, CAPITAL, Letters, text_width};
use super::stroke::covered;
use crate::error::{Error, Result};
use plotters::style::text_anchor::HPos;
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, DrawingBackend};

/// A backend's pixels for each unit: 192 for an inch, as print and today's screens want.
pub(super) const FINE: f64 = 2.0;

/// The same for curves in SVG, which are looked at closely.
const FINEST: f64 = 24.0;

/// How far a halo reaches beyond its letters, in units.
pub(super) const HALO: f64 = 1.75;

/// No picture is wider or higher, in units.
pub const LARGEST: f64 = 2000.0;

/// Where a text's position is on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it begins.
    Start,
    /// In its middle.
    Middle,
    /// Where it ends.
    End,
}

/// A text in its place. It stands in the middle of its line's height.
#[derive(Clone, Debug)]
pub(super) struct Label {
    pub(super) text: String,
    pub(super) at: (f64, f64),
    pub(super) size: f64,
    pub(super) side: Side,
    /// By a quarter, to be read from below upward.
    pub(super) turned: bool,
    pub(super) colour: Rgb,
}

#[derive(Clone, Debug)]
enum Shape {
    Rectangle {
        from: (f64, f64),
        to: (f64, f64),
        colour: Rgb,
        opacity: f64,
    },
    Line {
        from: (f64, f64),
        to: (f64, f64),
        colour: Rgb,
    },
    Path {
        points: Vec<(f64, f64)>,
        width: f64,
        colour: Rgb,
    },
    Area {
        corners: Vec<(f64, f64)>,
        colour: Rgb,
    },
    Label(Label),
    /// The same letters, thicker: what lies round a label.
    Halo(Label),
}

/// A picture's size and shapes, the first of them undermost.
#[derive(Clone, Debug)]
pub struct Scene {
    size: (f64, f64),
    /// A backend's pixels for each unit.
    fine: f64,
    shapes: Vec<Shape>,
}

impl Scene {
    /// An empty picture of a width and a height.
    ///
    /// # Errors
    /// [`Error::Recipe`] if it has no size or is larger than [`LARGEST`].
    pub fn new(width: f64, height: f64, palette: &Palette) -> Result<Self> {
        let size = (width.ceil(), height.ceil());
        if !(1.0..=LARGEST).contains(&size.0) || !(1.0..=LARGEST).contains(&size.1) {
            return Err(Error::Recipe(format!("a picture of {width:.0} × {height:.0} cannot be drawn")));
        }
        let mut scene = Self { size, fine: FINE, shapes: Vec::new() };
        scene.rectangle((0.0, 0.0), size, palette.paper);
        Ok(scene)
    }

    /// The same with smaller pixels where they are but numbers: curves of an SVG want them.
    #[must_use]
    pub(super) fn refined(mut self, kind: ImageKind) -> Self {
        self.fine = if kind == ImageKind::Svg { FINEST } else { FINE };
        self
    }

    /// How many times a pixel of [`FINE`] is one of this picture's.
    pub(super) fn fine(&self) -> f64 {
        self.fine
    }

    /// Its width and height in units.
    #[must_use]
    pub fn size(&self) -> (f64, f64) {
        self.size
    }

    /// Its width and height in pixels.
    #[must_use]
    pub fn pixels(&self) -> (u32, u32) {
        ((self.size.0 * self.fine) as u32, (self.size.1 * self.fine) as u32)
    }

    /// A filled rectangle between two of its corners.
    pub fn rectangle(&mut self, from: (f64, f64), to: (f64, f64), colour: Rgb) {
        self.tint(from, to, colour, 1.0);
    }

    /// A rectangle through which one can see: opacity 0 is invisible, 1 is solid.
    pub fn tint(&mut self, from: (f64, f64), to: (f64, f64), colour: Rgb, opacity: f64) {
        self.shapes.push(Shape::Rectangle { from, to, colour, opacity });
    }

    /// A fine line in any direction.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: Rgb) {
        self.shapes.push(Shape::Line { from, to, colour });
    }

    /// A line through points, `width` wide.
    pub fn path(&mut self, points: Vec<(f64, f64)>, width: f64, colour: Rgb) {
        self.shapes.push(Shape::Path { points, width, colour });
    }

    /// A filled polygon that does not cross itself.
    pub fn area(&mut self, corners: Vec<(f64, f64)>, colour: Rgb) {
        self.shapes.push(Shape::Area { corners, colour });
    }

    /// The outline of a rectangle, `width` wide, within it.
    pub fn frame(&mut self, from: (f64, f64), to: (f64, f64), width: f64, colour: Rgb) {
        self.rectangle(from, (to.0, from.1 + width), colour);
        self.rectangle((from.0, to.1 - width), to, colour);
        self.rectangle(from, (from.0 + width, to.1), colour);
        self.rectangle((to.0 - width, from.1), to, colour);
    }

    /// Slanting lines over a rectangle.
    pub fn hatch(&mut self, from: (f64, f64), to: (f64, f64), colour: Rgb) {
        const APART: f64 = 5.0;
        let (width, height) = (to.0 - from.0, to.1 - from.1);
        // Lines x + y = sum, from edge to edge; the picture's size bounds their number.
        let mut sum = APART - (from.0 + from.1).rem_euclid(APART);
        while sum < width + height {
            let start = (from.0 + sum.min(width), from.1 + (sum - width).max(0.0));
            let end = (from.0 + (sum - height).max(0.0), from.1 + sum.min(height));
            self.line(start, end, colour);
            sum += APART;
        }
    }

    pub(super) fn label(&mut self, label: Label) {
        if !label.text.is_empty() {
            self.shapes.push(Shape::Label(label));
        }
    }

    /// A text. It must be clean, as [`super::fitted`] and [`super::wrapped`] give it.
    pub fn text(&mut self, text: impl Into<String>, at: (f64, f64), size: f64, side: Side, colour: Rgb) {
        self.label(Label { text: text.into(), at, size, side, turned: false, colour });
    }

    /// A text with a halo, to be read on any colour.
    pub fn haloed_text(&mut self, text: &str, at: (f64, f64), size: f64, side: Side, (ink, halo): (Rgb, Rgb)) {
        let label = Label { text: text.to_owned(), at, size, side, turned: false, colour: ink };
        if !text.is_empty() {
            self.shapes.push(Shape::Halo(Label { colour: halo, ..label.clone() }));
        }
        self.label(label);
    }

    /// A text that is read from below upward.
    pub fn turned_text(&mut self, text: impl Into<String>, at: (f64, f64), size: f64, side: Side, colour: Rgb) {
        self.label(Label { text: text.into(), at, size, side, turned: true, colour });
    }

    /// Draws it on a backend of [`Self::pixels`], which is one of this kind.
    ///
    /// # Errors
    /// [`Error::Recipe`] with the backend's reason.
    pub fn draw<B: DrawingBackend>(&self, kind: ImageKind, backend: &mut B) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| Error::Recipe(format!("cannot draw the picture: {error}"));
        backend.ensure_prepared().map_err(|error| failed(&error))?;
        for shape in &self.shapes {
            draw_shape(kind, self.fine, backend, shape).map_err(|error| failed(&error))?;
        }
        backend.present().map_err(|error| failed(&error))
    }

    /// The box that a text takes: its left upper and right lower corner.
    fn text_box(label: &Label) -> ((f64, f64), (f64, f64)) {
        let length = text_width(&label.text, label.size);
        let before = match label.side {
            Side::Start => 0.0,
            Side::Middle => length / 2.0,
            Side::End => length,
        };
        // What is below the base line is about a quarter of the font size.
        let (half, (x, y)) = (label.size * 0.6, label.at);
        if label.turned {
            ((x - half, y + before - length), (x + half, y + before))
        } else {
            ((x - before, y - half), (x - before + length, y + half))
        }
    }

    /// The texts that do not lie within the picture.
    #[must_use]
    pub fn texts_outside(&self) -> Vec<&str> {
        let labels = self.shapes.iter().filter_map(|shape| match shape {
            Shape::Label(label) => Some(label),
            _ => None,
        });
        labels
            .filter(|label| {
                let (from, to) = Self::text_box(label);
                from.0 < 0.0 || from.1 < 0.0 || to.0 > self.size.0 || to.1 > self.size.1
            })
            .map(|label| label.text.as_str())
            .collect()
    }
}

/// What a path is drawn with.
struct Pen {
    colour: Rgb,
    width: u32,
}

impl BackendStyle for Pen {
    fn color(&self) -> BackendColor {
        BackendColor { alpha: 1.0, rgb: self.colour }
    }

    fn stroke_width(&self) -> u32 {
        self.width
    }
}

fn rounded((x, y): (f64, f64)) -> BackendCoord {
    (x.round() as i32, y.round() as i32)
}

fn draw_shape<B: DrawingBackend>(
    kind: ImageKind,
    fine: f64,
    backend: &mut B,
    shape: &Shape,
) -> Result<(), plotters_backend::DrawingErrorKind<B::ErrorType>> {
    let solid = |rgb| BackendColor { alpha: 1.0, rgb };
    let exact = |points: &[(f64, f64)]| points.iter().map(|(x, y)| (x * fine, y * fine)).collect::<Vec<_>>();
    let pixel = |(x, y): (f64, f64)| rounded((x * fine, y * fine));
    match shape {
        Shape::Rectangle { from, to, colour, opacity } => {
            let (from, to) = (pixel(*from), pixel(*to));
            let low = (from.0.min(to.0), from.1.min(to.1));
            // What is too thin to be seen is one pixel wide.
            let high = (from.0.max(to.0).max(low.0 + 1), from.1.max(to.1).max(low.1 + 1));
            backend.draw_rect(low, high, &BackendColor { alpha: *opacity, rgb: *colour }, true)
        }
        Shape::Line { from, to, colour } => {
            let pen = Pen { colour: *colour, width: (fine / FINE) as u32 };
            backend.draw_line(pixel(*from), pixel(*to), &pen)
        }
        Shape::Path { points, width, colour } => {
            match kind {
                ImageKind::Svg => {
                    let pen = Pen { colour: *colour, width: (width * fine).round() as u32 };
                    backend.draw_path(points.iter().map(|point| pixel(*point)), &pen)
                }
                // plotters' own reach far out at sharp corners.
                ImageKind::Png => dots(backend, covered(&exact(points), width * fine), *colour),
            }
        }
        Shape::Area { corners, colour } => match kind {
            ImageKind::Svg => backend.fill_polygon(corners.iter().map(|corner| pixel(*corner)), &solid(*colour)),
            // plotters' own have no soft edges.
            ImageKind::Png => dots(backend, filled(&exact(corners)), *colour),
        },
        Shape::Label(label) => draw_label(fine, backend, label, (0.0, 0.0), false),
        Shape::Halo(label) => match kind {
            ImageKind::Svg => draw_label(fine, backend, label, (0.0, 0.0), true),
            ImageKind::Png => (0..AROUND).try_for_each(|step| {
                let angle = f64::from(step) / f64::from(AROUND) * std::f64::consts::TAU;
                draw_label(fine, backend, label, (HALO * angle.cos(), HALO * angle.sin()), false)
            }),
        },
    }
}

/// Times that letters are drawn around their place for a halo.
const AROUND: u32 = 16;

/// Draws pixels by how much of each is covered.
fn dots<B: DrawingBackend>(
    backend: &mut B,
    pixels: Vec<(BackendCoord, f64)>,
    rgb: Rgb,
) -> Result<(), plotters_backend::DrawingErrorKind<B::ErrorType>> {
    pixels.into_iter().try_for_each(|(pixel, alpha)| backend.draw_pixel(pixel, BackendColor { alpha, rgb }))
}

/// Draws a text, shifted by some units.
fn draw_label<B: DrawingBackend>(
    fine: f64,
    backend: &mut B,
    label: &Label,
    shift: (f64, f64),
    halo: bool,
) -> Result<(), plotters_backend::DrawingErrorKind<B::ErrorType>> {
    // From the middle of a capital to the top that plotters counts from.
    let up = label.size * (CAPITAL / 2.0 - BELOW_TOP);
    let (x, y) = (label.at.0 + shift.0, label.at.1 + shift.1);
    let (x, y) = if label.turned { (x + up, y) } else { (x, y + up) };
    let anchor = match label.side {
        Side::Start => HPos::Left,
        Side::Middle => HPos::Center,
        Side::End => HPos::Right,
    };
    let letters = Letters { size: label.size * fine, colour: label.colour, anchor, turned: label.turned, halo };
    backend.draw_text(&label.text, &letters, rounded((x * fine, y * fine)))
}
