//! The points of a plane, the coarse ones first.

/// Points by column and row, at `first..=last` of each axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Lattice {
    /// Places along x, rising.
    pub xs: Vec<f64>,
    /// Places along y, rising.
    pub ys: Vec<f64>,
}

impl Lattice {
    /// So many evenly spaced places from one end to the other of each axis.
    #[must_use]
    pub fn new(counts: [usize; 2], [x, y]: [(f64, f64); 2]) -> Self {
        let places = |count: usize, (low, high): (f64, f64)| {
            let last = count.saturating_sub(1).max(1) as f64;
            // The same place has the same bits on a lattice of twice as many steps.
            let place = |index: usize| low + (high - low) * index as f64 / last;
            (0..count).map(|index| if index > 0 && index + 1 == count { high } else { place(index) }).collect()
        };
        Self { xs: places(counts[0], x), ys: places(counts[1], y) }
    }

    /// Columns and rows in the order in which they are to be evaluated: levels, each with what it adds to those before it, by
    /// steps of a power of two that halve. The last place of each axis is in the first.
    #[must_use]
    pub fn levels(&self) -> Vec<Vec<[usize; 2]>> {
        let (columns, rows) = (self.xs.len(), self.ys.len());
        let longest = columns.max(rows).saturating_sub(1).max(1);
        // Five steps or so at first.
        let mut step = (longest / 5).max(1).next_power_of_two();
        let mut levels: Vec<Vec<[usize; 2]>> = Vec::new();
        let mut before = usize::MAX;
        while step > 0 {
            let points = (0..rows).flat_map(|row| (0..columns).map(move |column| [column, row]));
            let is_new = |point: &[usize; 2]| self.is_on(step, *point) && !self.is_on(before, *point);
            levels.push(points.filter(is_new).collect());
            before = step;
            step /= 2;
        }
        levels.retain(|level| !level.is_empty());
        levels
    }

    fn is_on(&self, step: usize, [column, row]: [usize; 2]) -> bool {
        let on = |index: usize, count: usize| index.is_multiple_of(step) || index + 1 == count;
        step != usize::MAX && on(column, self.xs.len()) && on(row, self.ys.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_each_point_once_and_the_corners_first() {
        for counts in [[21, 21], [2, 2], [1, 7], [5, 30], [201, 3]] {
            let lattice = Lattice::new(counts, [(0.0, 1.0), (-1.0, 1.0)]);
            let levels = lattice.levels();
            let mut all: Vec<[usize; 2]> = levels.concat();
            let corners = [[0, 0], [counts[0] - 1, counts[1] - 1]];
            assert!(corners.iter().all(|corner| levels[0].contains(corner)), "{counts:?}");
            all.sort_unstable();
            let before = all.len();
            all.dedup();
            assert_eq!((all.len(), before), (counts[0] * counts[1], counts[0] * counts[1]), "{counts:?}");
        }
        let levels = Lattice::new([21, 21], [(0.0, 1.0); 2]).levels();
        assert_eq!(levels.iter().map(Vec::len).collect::<Vec<_>>(), [36, 85, 320]);
    }

    #[test]
    fn a_finer_lattice_has_the_same_places() {
        let lattice = |count| Lattice::new([count, 2], [(-0.237, 1.313), (0.0, 1.0)]);
        let (coarse, fine) = (lattice(21), lattice(41));
        assert!(coarse.xs.iter().eq(fine.xs.iter().step_by(2)));
        assert_eq!((coarse.xs[0], coarse.xs[20]), (-0.237, 1.313));
    }
}
