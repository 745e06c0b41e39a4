//! Numbers along an axis, such as a loss over the steps of a training run: a line for each of several series.
//!
//! A noisy series can be smoothed: the bold line is then its exponential moving average, freed of its bias towards the
//! beginning (Kingma and Ba 2015, §3), over the faint line of the numbers themselves.

use super::axis::Axis;
use super::colour::{Palette, Rgb, mixed, of_series};
use super::heading::{GAP, Heading, Legend, Swatch};
use super::scene::{FINE, Scene};
use super::{ImageKind, Plot, Theme};
use crate::error::{Error, Result};

/// One line.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Stands in the legend.
    pub name: String,
    /// Places and numbers, the places in order. What is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
}

/// Lines over one axis.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// Stands above it.
    pub title: String,
    /// What the places are, below their axis.
    pub x_label: String,
    /// What the numbers are, beside their axis.
    pub y_label: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Whether the axis of numbers runs by powers of ten. What is not above 0 is at its lower end.
    pub log_y: bool,
    /// The share of the average before in each average, from 0 to below 1; without it there are no averages.
    pub smoothing: Option<f64>,
}

const FIELD: (f64, f64) = (620.0, 320.0);
/// The width of a line that stands alone, of one that is an average, and of the numbers below that.
const ALONE: f64 = 1.5;
const BOLD: f64 = 2.0;
const FAINT: f64 = 1.0;
/// How much of its colour the line below an average has.
const SHARE: f64 = 0.4;

impl Lines {
    fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Recipe(format!("the lines cannot be drawn: {why}")));
        if !self.numbers().any(|_| true) {
            return wrong("there are no numbers, or none that can be shown".to_owned());
        }
        if self.smoothing.is_some_and(|weight| !(0.0..1.0).contains(&weight)) {
            return wrong("what is smoothed takes a share from 0 to below 1 of the average before".to_owned());
        }
        let in_order = |series: &&Series| series.points.is_sorted_by(|a, b| a.0 <= b.0);
        match self.series.iter().find(|series| !in_order(series)) {
            Some(series) => wrong(format!("the places of `{}` are not in order", super::clean(&series.name))),
            None => Ok(()),
        }
    }

    /// Whether a point has a place in the picture.
    fn is_shown((x, y): (f64, f64)) -> bool {
        x.is_finite() && y.is_finite()
    }

    /// The points that have one.
    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|series| &series.points).copied().filter(|point| Self::is_shown(*point))
    }

    /// The numbers that the axis must reach.
    fn numbers(&self) -> impl Iterator<Item = f64> {
        self.points().map(|(_, y)| y).filter(|y| !self.log_y || *y > 0.0)
    }

    fn axes(&self) -> Result<(Axis, Axis)> {
        let ends = |numbers: &mut dyn Iterator<Item = f64>| {
            numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), n| (low.min(n), high.max(n)))
        };
        let (first, last) = ends(&mut self.points().map(|(x, _)| x));
        let (low, high) = ends(&mut self.numbers());
        let y = if self.log_y {
            // A number at an end is still seen within the field.
            let ratio = (high / low).powf(0.04).clamp(1.0, 10.0);
            Axis::log((low / ratio).max(f64::MIN_POSITIVE), (high * ratio).min(f64::MAX), 7, &self.y_label)?
        } else {
            let around = (high - low) * 0.04;
            Axis::linear(low - around, high + around, 7, &self.y_label)?
        };
        Ok((Axis::linear(first, last, 8, &self.x_label)?, y))
    }

    /// What the picture does not show by itself.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(weight) = self.smoothing {
            let over = 1.0 / (1.0 - weight);
            notes.push(format!("bold lines are exponential moving averages over about {over:.0} of the faint numbers"));
        }
        let left_out = self.series.iter().flat_map(|series| &series.points).filter(|point| !Self::is_shown(**point));
        match left_out.count() {
            0 => {}
            1 => notes.push("a number that is not finite is left out".to_owned()),
            count => notes.push(format!("{count} numbers that are not finite are left out")),
        }
        if self.log_y && self.points().any(|(_, y)| y <= 0.0) {
            notes.push("numbers that are not above 0 are at the axis' lower end".to_owned());
        }
        notes
    }
}

impl Plot for Lines {
    fn scene(&self, _kind: ImageKind, theme: Theme) -> Result<Scene> {
        self.check()?;
        let palette = Palette::of(theme);
        let (x_axis, y_axis) = self.axes()?;
        let left = GAP + y_axis.room_beside().max(x_axis.room_aside());
        let right = GAP + x_axis.room_aside().max(GAP);
        let width = (left + FIELD.0 + right).max(Heading::width_wanted(&self.title));
        let heading = Heading::new(&self.title, &self.notes(), width);
        let colours: Vec<Rgb> = (0..self.series.len()).map(|at| of_series(at, self.series.len(), theme)).collect();
        let named = self.series.len() > 1 || self.series.iter().any(|series| !series.name.is_empty());
        let entries = self.series.iter().zip(&colours);
        let entries = entries.map(|(series, fill)| (Swatch { fill: *fill, hatch: None }, series.name.clone()));
        let legend = Legend::new(entries.filter(|_| named), width - left - GAP);
        let from = (left, heading.height() + legend.height() + GAP);
        let to = (width - right, from.1 + FIELD.1);
        let mut scene = Scene::new(width, to.1 + x_axis.room_below() + GAP, &palette)?;
        heading.draw(&mut scene, &palette);
        legend.draw(&mut scene, &palette, (left, heading.height()));
        y_axis.draw_left(&mut scene, &palette, from, to);
        x_axis.draw_below(&mut scene, &palette, from, to);

        let place = |(x, y): (f64, f64)| {
            let (x, y) = (from.0 + x_axis.share(x) * (to.0 - from.0), to.1 - y_axis.share(y) * FIELD.1);
            ((x * FINE).round() / FINE, (y * FINE).round() / FINE)
        };
        let mut draw = |points: &[(f64, f64)], width: f64, colour: Rgb| {
            for run in points.split(|point| !Self::is_shown(*point)).filter(|run| !run.is_empty()) {
                let places: Vec<(f64, f64)> = run.iter().map(|point| place(*point)).collect();
                match places[..] {
                    [(x, y)] => scene.rectangle((x - width, y - width), (x + width, y + width), colour),
                    _ => scene.path(thinned(&places), width, colour),
                }
            }
        };
        // All faint lines first, so that none lies over an average.
        if self.smoothing.is_some() {
            for (series, colour) in self.series.iter().zip(&colours) {
                draw(&series.points, FAINT, mixed(palette.paper, *colour, SHARE));
            }
        }
        for (series, colour) in self.series.iter().zip(&colours) {
            match self.smoothing {
                Some(weight) => draw(&averages(&series.points, weight), BOLD, *colour),
                None => draw(&series.points, ALONE, *colour),
            }
        }
        Ok(scene)
    }
}

/// Exponential moving averages; what is not shown is passed over, and stays a gap.
fn averages(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut of) = (0.0, 0.0);
    let average = |&(x, y): &(f64, f64)| {
        if !Lines::is_shown((x, y)) {
            return (x, y);
        }
        sum = weight * sum + (1.0 - weight) * y;
        of = weight * of + (1.0 - weight);
        (x, sum / of)
    };
    points.iter().map(average).collect()
}

/// The same line with at most four points to a column of pixels: where it enters, its lowest, its highest, and where
/// it leaves.
fn thinned(places: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut thin = Vec::with_capacity(places.len().min(4 * (FIELD.0 * FINE) as usize));
    for column in places.chunk_by(|a, b| a.0 == b.0) {
        if column.len() <= 4 {
            thin.extend_from_slice(column);
            continue;
        }
        let by_height = |a: &(usize, &(f64, f64)), b: &(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let (lowest, highest) =
            (column.iter().enumerate().min_by(by_height), column.iter().enumerate().max_by(by_height));
        let mut kept = vec![0, column.len() - 1];
        kept.extend(lowest.iter().chain(&highest).map(|(index, _)| *index));
        kept.sort_unstable();
        kept.dedup();
        thin.extend(kept.into_iter().filter_map(|index| column.get(index)));
    }
    thin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_have_no_bias_and_pass_over_gaps() {
        let points = [(0.0, 8.0), (1.0, f64::NAN), (2.0, 8.0), (3.0, 0.0)];
        let averages = averages(&points, 0.5);
        assert_eq!((averages[0], averages[2]), ((0.0, 8.0), (2.0, 8.0)));
        assert!(averages[1].1.is_nan());
        // Weights 1/8, 1/4 and 1/2 for their sum.
        assert!((averages[3].1 - 3.0 / 0.875).abs() < 1e-12);
        assert_eq!(super::averages(&points[2..], 0.0), points[2..]);
    }

    #[test]
    fn a_thinned_line_keeps_its_extremes_and_ends() {
        let column = |x: f64, ys: &[f64]| ys.iter().map(|y| (x, *y)).collect::<Vec<_>>();
        let line = [column(0.0, &[5.0, 1.0, 3.0, 2.0, 9.0, 4.0]), column(1.0, &[1.0, 2.0]), column(2.0, &[7.0; 6])];
        let thin = [column(0.0, &[5.0, 1.0, 9.0, 4.0]), column(1.0, &[1.0, 2.0]), column(2.0, &[7.0; 2])];
        assert_eq!(thinned(&line.concat()), thin.concat());
    }
}
