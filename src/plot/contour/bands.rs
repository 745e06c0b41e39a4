//! From numbers on a lattice to regions between levels and the lines around them, by marching squares.
//!
//! What is inside a line has one colour until the next line within it, and lines of all levels lie apart or within each
//! other. So whole regions are painted over each other from the largest to the smallest: none has a hole, and between
//! neighbours there is no seam.

use super::Contours;
use super::levels::Bands;
use crate::error::{Error, Result};
use ::contour::ContourBuilder;

/// Numbers on a lattice, all of them known.
#[derive(Clone, Debug)]
pub(super) struct Lattice {
    pub(super) xs: Vec<f64>,
    pub(super) ys: Vec<f64>,
    /// Row by row.
    pub(super) numbers: Vec<f64>,
}

/// What a line encloses.
#[derive(Clone, Debug)]
pub(super) struct Region {
    /// The band just inside.
    pub(super) band: usize,
    pub(super) corners: Vec<(f64, f64)>,
}

/// A line of one level, as far as it does not run along the lattice's edge.
#[derive(Clone, Debug)]
pub(super) struct Isoline {
    /// The band above it.
    pub(super) band: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// Points of a smooth lattice along each side, about.
const FINE: usize = 160;
const FINEST_PARTS: usize = 40;

impl Lattice {
    /// A panel's numbers. What is not known continues its neighbours, for it will be covered.
    pub(super) fn of(plane: &Contours, values: &[Vec<Option<f64>>]) -> Self {
        let known = |number: &Option<f64>| number.filter(|number| number.is_finite());
        let mut cells: Vec<Option<f64>> = values.iter().flatten().map(known).collect();
        let width = plane.xs.len();
        let numbers = || values.iter().flatten().filter_map(known);
        let ends = numbers().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), n| (a.min(n), b.max(n)));
        while ends.0 <= ends.1 && cells.iter().any(Option::is_none) {
            let before = cells.clone();
            for (place, cell) in cells.iter_mut().enumerate().filter(|(_, cell)| cell.is_none()) {
                let (row, column) = (place / width, place % width);
                let at = |down: isize, across: isize| {
                    let (row, column) = (row.checked_add_signed(down)?, column.checked_add_signed(across)?);
                    let place = row * width + column;
                    before.get(place).copied().flatten().filter(|_| column < width)
                };
                let sides = [(0, -1), (0, 1), (-1, 0), (1, 0)];
                let near = sides.map(|(down, across)| at(down, across));
                // Two in a row tell where their line goes.
                let lines = sides.map(|(down, across)| Some(2.0 * at(down, across)? - at(2 * down, 2 * across)?));
                let from = if lines.iter().any(Option::is_some) { lines } else { near };
                let count = from.iter().flatten().count();
                let mean = from.iter().flatten().map(|number| number / count as f64).sum::<f64>();
                *cell = (count > 0).then(|| mean.clamp(ends.0, ends.1));
            }
        }
        let numbers = cells.into_iter().map(Option::unwrap_or_default).collect();
        Self { xs: plane.xs.clone(), ys: plane.ys.clone(), numbers }
    }

    /// The same with points between, on smooth curves through the lattice's; none beyond the numbers that there are.
    pub(super) fn smooth(&self) -> Self {
        let parts = |count: usize| (FINE / (count - 1).max(1)).clamp(1, FINEST_PARTS);
        let (across, along) = (parts(self.xs.len()), parts(self.ys.len()));
        let rows = self.numbers.chunks(self.xs.len()).map(|row| between(&self.xs, row, across));
        let rows: Vec<Vec<f64>> = rows.collect();
        let xs = between(&self.xs, &self.xs, across);
        let column = |x: usize| rows.iter().filter_map(|row| row.get(x).copied()).collect::<Vec<f64>>();
        let columns: Vec<Vec<f64>> = (0..xs.len()).map(|x| between(&self.ys, &column(x), along)).collect();
        let ys = between(&self.ys, &self.ys, along);
        let ends = self.numbers.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), n| (a.min(*n), b.max(*n)));
        let row = |y: usize| columns.iter().filter_map(move |column| column.get(y)).map(|n| n.clamp(ends.0, ends.1));
        let numbers = (0..ys.len()).flat_map(row).collect();
        Self { xs, ys, numbers }
    }

    /// The regions in the order in which they are painted over the lowest band, and the lines.
    ///
    /// # Errors
    /// [`Error::Recipe`] with the reason of what draws the lines.
    pub(super) fn cut(&self, bands: &Bands) -> Result<(Vec<Region>, Vec<Isoline>)> {
        let (width, height) = (self.xs.len(), self.ys.len());
        let failed = |error| Error::Recipe(format!("the plane cannot be drawn: {error}"));
        let lines = ContourBuilder::new(width, height, true).lines(&self.numbers, &bands.thresholds).map_err(failed)?;
        let (mut regions, mut isolines) = (Vec::new(), Vec::new());
        for (below, line) in lines.into_iter().enumerate() {
            for ring in line.geometry().iter() {
                // Numbers are in the middle of the crate's cells, whose outer halves are beyond the lattice's edge.
                let ring: Vec<(f64, f64)> = ring.0.iter().map(|point| (point.x - 0.5, point.y - 0.5)).collect();
                let ends = ((width - 1) as f64, (height - 1) as f64);
                let within = |(x, y): &(f64, f64)| (x.clamp(0.0, ends.0), y.clamp(0.0, ends.1));
                let mut ring: Vec<(f64, f64)> = ring.iter().map(within).collect();
                ring.dedup();
                let area = signed_area(&ring);
                if ring.len() < 4 || area == 0.0 {
                    continue;
                }
                let on_edge = |a: (f64, f64), b: (f64, f64)| {
                    (a.0 == b.0 && (a.0 == 0.0 || a.0 == ends.0)) || (a.1 == b.1 && (a.1 == 0.0 || a.1 == ends.1))
                };
                let place = |point: &(f64, f64)| (along(&self.xs, point.0), along(&self.ys, point.1));
                for run in runs(&ring, on_edge) {
                    isolines.push(Isoline { band: below + 1, points: run.iter().map(place).collect() });
                }
                ring.pop();
                let band = if area > 0.0 { below + 1 } else { below };
                regions.push((area.abs(), Region { band, corners: ring.iter().map(place).collect() }));
            }
        }
        // The order of equal ones is that of the levels, and so the same each time.
        regions.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok((regions.into_iter().map(|(_, region)| region).collect(), isolines))
    }
}

/// The coordinate at a place between indices.
fn along(coordinates: &[f64], place: f64) -> f64 {
    let index = (place as usize).min(coordinates.len().saturating_sub(2));
    match (coordinates.get(index), coordinates.get(index + 1)) {
        (Some(from), Some(to)) => from + (to - from) * (place - index as f64),
        _ => f64::NAN,
    }
}

/// Above 0 where what is inside is above the level, as the crate runs.
fn signed_area(ring: &[(f64, f64)]) -> f64 {
    let pairs = ring.windows(2).filter_map(|pair| Some((pair.first()?, pair.get(1)?)));
    pairs.map(|((x0, y0), (x1, y1))| y0 * x1 - x0 * y1).sum::<f64>() / 2.0
}

/// The pieces of a closed ring without the steps that `leaves_out` names.
fn runs(ring: &[(f64, f64)], leaves_out: impl Fn((f64, f64), (f64, f64)) -> bool) -> Vec<Vec<(f64, f64)>> {
    let mut runs: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut open = false;
    for pair in ring.windows(2) {
        let [from, to] = pair else { continue };
        if leaves_out(*from, *to) {
            open = false;
        } else {
            match runs.last_mut().filter(|_| open) {
                Some(run) => run.push(*to),
                None => runs.push(vec![*from, *to]),
            }
            open = true;
        }
    }
    // What begins where the ring does goes on from its end.
    if runs.len() > 1 && open && runs.first().and_then(|run| run.first()) == ring.first() {
        let first = runs.remove(0);
        if let Some(last) = runs.last_mut() {
            last.extend(first.into_iter().skip(1));
        }
    }
    runs
}

/// The numbers at `parts` places for each step, and at the last, on a curve through them: Hermite's cubics whose slope at each point is
/// that of the parabola through it and its neighbours (Bessel's slopes; de Boor 1978, "A Practical Guide to Splines", chapter IV). A
/// parabola is itself, as losses are near a minimum.
fn between(places: &[f64], numbers: &[f64], parts: usize) -> Vec<f64> {
    let steps: Vec<(f64, f64, f64)> = places
        .windows(2)
        .zip(numbers.windows(2))
        .filter_map(|(x, y)| {
            let width = x.get(1)? - x.first()?;
            Some((width, *y.first()?, (y.get(1)? - y.first()?) / width))
        })
        .collect();
    // Of two steps that meet: the slope of their parabola where they do. At its ends it is as much beyond theirs.
    let meet =
        |(before, _, a): (f64, f64, f64), (after, _, b): (f64, f64, f64)| (a * after + b * before) / (before + after);
    let slope_at = |point: usize| match (point.checked_sub(1).and_then(|step| steps.get(step)), steps.get(point)) {
        (Some(before), Some(after)) => meet(*before, *after),
        (None, Some(first)) => steps.get(1).map_or(first.2, |next| 2.0 * first.2 - meet(*first, *next)),
        (Some(last), None) => {
            let before = point.checked_sub(2).and_then(|step| steps.get(step));
            before.map_or(last.2, |before| 2.0 * last.2 - meet(*before, *last))
        }
        (None, None) => 0.0,
    };
    let mut found = Vec::with_capacity(steps.len() * parts + 1);
    for (index, (width, from, slope)) in steps.iter().enumerate() {
        let (enters, leaves) = (slope_at(index), slope_at(index + 1));
        for part in 0..parts {
            let share = part as f64 / parts as f64;
            // Hermite's cubic, as what it adds to the straight line.
            let bend = share * (1.0 - share) * ((1.0 - share) * (enters - slope) - share * (leaves - slope));
            found.push(from + width * (slope * share + bend));
        }
    }
    found.extend(numbers.last());
    found
}
