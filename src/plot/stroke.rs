//! How much of each pixel a line through points covers.
//!
//! A line is all that is within half its width of a segment, so that its ends and corners are round. A pixel's cover is
//! told by its middle's distance, which is within a few hundredths of the area that is covered.

/// Pixels with how much of them is covered, above 0 to 1, each once. Points and width are in pixels.
pub(super) fn covered(points: &[(f64, f64)], width: f64) -> Vec<((i32, i32), f64)> {
    if points.len() < 2 {
        return Vec::new();
    }
    let reach = width / 2.0 + 0.5;
    let ends = |of: fn(&(f64, f64)) -> f64| {
        let fold = points.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), n| (a.min(n), b.max(n)));
        ((fold.0 - reach).floor() as i32, (fold.1 + reach).ceil() as i32)
    };
    let ((left, right), (top, bottom)) = (ends(|point| point.0), ends(|point| point.1));
    let columns = (right - left).max(0) as usize;
    let mut cover = vec![0f32; columns * (bottom - top).max(0) as usize];
    for pair in points.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        let (along, down) = (x1 - x0, y1 - y0);
        let length = along.hypot(down);
        // Columns are narrowed to those that a row's piece of the segment can reach: long slanting ones are cheap then.
        let aside = if down == 0.0 { f64::INFINITY } else { reach * length / down.abs() };
        let rows = (y0.min(y1) - reach).floor() as i32..(y0.max(y1) + reach).ceil() as i32;
        for row in rows {
            let y = f64::from(row) + 0.5;
            let middle = if down == 0.0 { (x0 + x1) / 2.0 } else { x0 + along * ((y - y0) / down).clamp(0.0, 1.0) };
            let low = (middle - aside - reach).max(x0.min(x1) - reach).floor() as i32;
            let high = (middle + aside + reach).min(x0.max(x1) + reach).ceil() as i32;
            for column in low..high {
                let x = f64::from(column) + 0.5;
                let share = ((x - x0) * along + (y - y0) * down) / (length * length);
                let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
                let distance = (x - x0 - share * along).hypot(y - y0 - share * down);
                let place = (row - top) as usize * columns + (column - left) as usize;
                if let Some(cover) = cover.get_mut(place) {
                    *cover = cover.max((reach - distance).clamp(0.0, 1.0) as f32);
                }
            }
        }
    }
    let place = |index: usize| (left + (index % columns) as i32, top + (index / columns) as i32);
    let seen = cover.into_iter().enumerate().filter(|(_, cover)| *cover > 0.0);
    seen.map(|(index, cover)| (place(index), f64::from(cover.min(1.0)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The area is the length times the width, and half a disc at each end.
    #[test]
    fn as_much_is_covered_as_the_line_is_large() {
        let ends = [
            ((3.0, 4.0), (60.0, 4.0)),
            ((5.5, 70.0), (5.5, 2.0)),
            ((0.0, 0.0), (40.0, 63.0)),
            ((9.0, 50.0), (80.0, 47.0)),
        ];
        for (from, to) in ends {
            for width in [1.0, 2.0, 3.0, 8.0] {
                let covered = covered(&[from, to], width);
                let found: f64 = covered.iter().map(|(_, cover)| cover).sum();
                let (from, to): ((f64, f64), (f64, f64)) = (from, to);
                let area = (to.0 - from.0).hypot(to.1 - from.1) * width + std::f64::consts::PI * width * width / 4.0;
                assert!((found / area - 1.0).abs() < 0.04, "{from:?} {to:?} {width}: {found} for {area}");
                let pixels: std::collections::BTreeSet<(i32, i32)> = covered.iter().map(|(pixel, _)| *pixel).collect();
                assert_eq!(pixels.len(), covered.len());
            }
        }
    }

    /// Nothing is farther from the points than half the width, however sharp the corner.
    #[test]
    fn corners_do_not_reach_out() {
        let zigzag: Vec<(f64, f64)> = (0..40).map(|i| (f64::from(i), if i % 2 == 0 { 10.0 } else { 300.0 })).collect();
        let covered = covered(&zigzag, 3.0);
        assert!(covered.iter().all(|((x, y), _)| (-3..43).contains(x) && (8..302).contains(y)), "{covered:?}");
        assert_eq!(super::covered(&[(2.0, 2.0); 3], 2.0).len(), 4);
        assert!(super::covered(&[(2.0, 2.0)], 2.0).is_empty() && super::covered(&[], 2.0).is_empty());
    }
}
