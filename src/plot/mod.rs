//! Rows of numbers to pictures and to text for the terminal.
//!
//! A [`Plot`] lays itself out as a [`Scene`], which [`render`] draws with plotters as PNG or SVG. The font is embedded,
//! labels are measured with it, and what there is no room for is thinned, shortened or pooled, and said in the picture.
//! Colours can be told apart by colour-blind readers and, from zero on, in grey.

#[cfg(feature = "plot")]
mod area;
#[cfg(feature = "plot")]
mod axis;
#[cfg(feature = "plot")]
mod box_plot;
mod colour;
#[cfg(feature = "plot")]
mod contour;
#[cfg(feature = "plot")]
mod font;
#[cfg(feature = "plot")]
mod heading;
#[cfg(feature = "plot")]
mod heatmap;
#[cfg(feature = "plot")]
mod histogram;
#[cfg(feature = "plot")]
mod interactive;
#[cfg(feature = "plot")]
mod lines;
mod number;
mod pool;
#[cfg(feature = "plot")]
mod scene;
#[cfg(feature = "plot")]
mod stroke;
pub mod terminal;
#[cfg(all(test, feature = "plot"))]
mod tests;
#[cfg(feature = "plot")]
mod vtk;

#[cfg(feature = "plot")]
pub use axis::Axis;
#[cfg(feature = "plot")]
pub use box_plot::{BoxPlot, FiveNumbers};
pub use colour::{Palette, Rgb, Scale, contrast, ink_on, of_series, of_share};
#[cfg(feature = "plot")]
pub use contour::{Contours, Levels, Mark, MarkKind, Panel};
#[cfg(feature = "plot")]
pub use font::{clean, fitted, text_width, wrapped};
#[cfg(feature = "plot")]
pub use heatmap::Heatmap;
#[cfg(feature = "plot")]
pub use histogram::Histogram;
#[cfg(feature = "plot")]
pub use interactive::{Details, Place, Weight, escaped, interactive};
#[cfg(feature = "plot")]
pub use lines::{Lines, Series};
#[cfg(feature = "plot")]
pub use scene::{LARGEST, Scene, Side};
#[cfg(feature = "plot")]
pub use vtk::vtk;

#[cfg(feature = "plot")]
use crate::error::{Error, Result};
#[cfg(feature = "plot")]
use plotters::prelude::{BitMapBackend, SVGBackend};

/// What a picture lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Theme {
    /// White paper.
    #[default]
    Light,
    /// A dark screen.
    Dark,
}

impl Theme {
    /// The themes by name.
    pub const NAMES: [(&'static str, Self); 2] = [("light", Self::Light), ("dark", Self::Dark)];
}

/// A picture's file format.
#[cfg(feature = "plot")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Shapes and text, sharp at any size.
    Svg,
    /// Pixels.
    Png,
}

#[cfg(feature = "plot")]
impl ImageKind {
    /// The kind that a file's ending tells.
    ///
    /// # Errors
    /// [`Error::Recipe`] if it is neither.
    pub fn of(path: &std::path::Path) -> Result<Self> {
        let is = |ending: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
        match (is("svg"), is("png")) {
            (true, _) => Ok(Self::Svg),
            (_, true) => Ok(Self::Png),
            _ => Err(Error::Recipe("pictures are .svg or .png: give the file one of these endings".to_owned())),
        }
    }
}

/// What can be drawn.
#[cfg(feature = "plot")]
pub trait Plot {
    /// Lays it out. The kind bounds the number of shapes, which are nothing to a PNG and much to an SVG.
    ///
    /// # Errors
    /// [`Error::Recipe`] with what is wrong with the numbers.
    fn scene(&self, kind: ImageKind, theme: Theme) -> Result<Scene>;
}

/// The bytes of a plot's picture.
///
/// # Errors
/// [`Error::Recipe`] with what is wrong with the numbers.
#[cfg(feature = "plot")]
pub fn render(plot: &impl Plot, kind: ImageKind, theme: Theme) -> Result<Vec<u8>> {
    written(&plot.scene(kind, theme)?, kind)
}

/// The bytes of a scene's picture.
#[cfg(feature = "plot")]
fn written(scene: &Scene, kind: ImageKind) -> Result<Vec<u8>> {
    let (width, height) = scene.pixels();
    match kind {
        ImageKind::Svg => {
            let mut svg = String::new();
            scene.draw(kind, &mut SVGBackend::with_string(&mut svg, (width, height)))?;
            // The backend's size is its number of pixels; the `viewBox` keeps that.
            let (wide, high) = scene.size();
            let sized = format!("<svg width=\"{wide}\" height=\"{high}\"");
            let svg = svg.replacen(&format!("<svg width=\"{width}\" height=\"{height}\""), &sized, 1);
            // Lines end and turn as they do in PNG.
            let svg = svg.replacen('>', " stroke-linejoin=\"round\" stroke-linecap=\"round\">", 1);
            // What is so without saying makes up a third of a large heatmap.
            let svg = svg.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"/>", "/>");
            Ok(with_halos(svg, 2.0 * scene::HALO * scene.fine()).into_bytes())
        }
        ImageKind::Png => {
            let mut pixels = vec![0; width as usize * height as usize * 3];
            scene.draw(kind, &mut BitMapBackend::with_buffer(&mut pixels, (width, height)))?;
            encoded(&pixels, width, height)
                .map_err(|error| Error::Recipe(format!("cannot write the picture as PNG: {error}")))
        }
    }
}

/// The SVG with outlines, `width` wide, of the letters that are to have a halo.
#[cfg(feature = "plot")]
fn with_halos(svg: String, width: f64) -> String {
    let mut parts = svg.split(font::HALO_STYLE);
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // The colour stands right before.
        let colour = whole.rfind("fill=\"").and_then(|at| whole.get(at + 5..)).unwrap_or_default().to_owned();
        whole += &format!(" stroke={colour} stroke-width=\"{width}\" aria-hidden=\"true\"");
        whole += part;
    }
    whole
}

/// Red, green and blue of each pixel, as PNG.
#[cfg(feature = "plot")]
fn encoded(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>, png::EncodingError> {
    /// A unit is 1/96 inch; PNG counts in metres.
    const PER_METRE: u32 = (96.0 * scene::FINE / 0.0254) as u32;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Balanced);
    // Of flat cells with text in them the pixels themselves repeat more than their differences.
    encoder.set_filter(png::Filter::NoFilter);
    let dimensions = png::PixelDimensions { xppu: PER_METRE, yppu: PER_METRE, unit: png::Unit::Meter };
    encoder.set_pixel_dims(Some(dimensions));
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}
