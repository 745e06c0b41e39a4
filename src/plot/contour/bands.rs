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

/// The numbers at `parts` places for each step, and at the last, on a curve through them of Hermite's cubics.
fn between(places: &[f64], numbers: &[f64], parts: usize) -> Vec<f64> {
    let pairs = places.windows(2).zip(numbers.windows(2));
    let step = |(x, y): (&[f64], &[f64])| {
        let (width, from) = (x.get(1)? - x.first()?, *y.first()?);
        Some(Step { width, from, slope: (y.get(1)? - from) / width })
    };
    let steps: Vec<Step> = pairs.filter_map(step).collect();
    let slopes = slopes(&steps);
    let mut found = Vec::with_capacity(steps.len() * parts + 1);
    for (step, ends) in steps.iter().zip(slopes.windows(2)) {
        let [enters, leaves] = ends else { continue };
        for part in 0..parts {
            let share = part as f64 / parts as f64;
            // What the cubic adds to the straight line.
            let bend = (1.0 - share) * (enters - step.slope) - share * (leaves - step.slope);
            found.push(step.from + step.width * (step.slope * share + share * (1.0 - share) * bend));
        }
    }
    found.extend(numbers.last());
    found
}

/// The straight line between two points.
#[derive(Clone, Copy)]
struct Step {
    width: f64,
    from: f64,
    slope: f64,
}

/// The number nearer to 0, or 0 between two of different signs.
fn minmod(a: f64, b: f64) -> f64 {
    if a * b <= 0.0 { 0.0 } else { a.signum() * a.abs().min(b.abs()) }
}

/// The slopes at all points: of the parabola through a point and its neighbours, limited as by Huynh (1993, "Accurate monotone cubic
/// interpolation", the constraint M3-A). A parabola is itself, as losses are near a minimum, and a cliff makes no basin beside it.
fn slopes(steps: &[Step]) -> Vec<f64> {
    // Half of the second derivative where two steps meet; at the ends it goes on as it changes, or not at all.
    let pairs = steps.windows(2).filter_map(|pair| Some((pair.first()?, pair.get(1)?)));
    let mut bends: Vec<f64> = pairs.map(|(a, b)| (b.slope - a.slope) / (a.width + b.width)).collect();
    let end = |first: Option<&f64>, next: Option<&f64>| match (first, next) {
        (Some(first), Some(next)) => minmod(*first, 2.0 * first - next),
        (first, _) => first.copied().unwrap_or_default(),
    };
    let (first, last) = (end(bends.first(), bends.get(1)), end(bends.last(), bends.iter().rev().nth(1)));
    bends.insert(0, first);
    bends.push(last);
    // On a step, the bend on which both of its ends agree.
    let agreed: Vec<f64> =
        bends.windows(2).map(|ends| ends.iter().copied().reduce(minmod).unwrap_or_default()).collect();
    let from_right = |point: usize| Some((steps.get(point)?, -agreed.get(point)?));
    let from_left = |point: usize| point.checked_sub(1).and_then(|step| Some((steps.get(step)?, *agreed.get(step)?)));
    let at_end = |(step, bend): (&Step, f64)| step.slope + bend * step.width;
    let slope = |point: usize| match (from_left(point), from_right(point)) {
        (Some(left), Some(right)) => {
            let (a, b) = (left.0, right.0);
            let parabola = (a.slope * b.width + b.slope * a.width) / (a.width + b.width);
            let (agreed, least) = (minmod(at_end(left), at_end(right)), minmod(a.slope, b.slope));
            minmod(parabola, agreed.signum() * (3.0 * least.abs()).max(1.5 * agreed.abs()))
        }
        (Some(end), None) | (None, Some(end)) => at_end(end),
        (None, None) => 0.0,
    };
    (0..=steps.len()).map(slope).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_follow_parabolas_and_stay_between_their_points_beside_cliffs() {
        let places = [-1.0, 0.0, 0.5, 2.0, 2.5, 4.0, 5.0];
        let parabola = |x: f64| 3.0 - 2.0 * x + 0.7 * x * x;
        let fine = between(&places, &places, 7);
        let found = between(&places, &places.map(parabola), 7);
        assert_eq!((fine.len(), found.len()), (43, 43));
        assert!(fine.iter().zip(&found).all(|(x, number)| (parabola(*x) - number).abs() < 1e-12), "{found:?}");
        for cliff in [
            [3.0, 2.4, 2.1, 1.2, 90.0, 90.0, 90.0],
            [0.0, 0.1, 3.0, 100.0, 1e3, 1e5, 1e7],
            [9.0, 9.0, 9.0, 0.0, 9.0, 9.0, 9.0],
        ] {
            let found = between(&places, &cliff, 7);
            for (step, ends) in cliff.windows(2).enumerate() {
                let within = &found[step * 7..=step * 7 + 7];
                let (low, high) = (ends[0].min(ends[1]) - 1e-9, ends[0].max(ends[1]) + 1e-9);
                assert!(within.iter().all(|number| (low..=high).contains(number)), "{ends:?}: {within:?}");
            }
        }
        assert_eq!(between(&[0.0, 2.0], &[1.0, 5.0], 4), [1.0, 2.0, 3.0, 4.0, 5.0]);
    }
}
