//! How much of each pixel a polygon covers.
//!
//! Exactly: an edge adds, to each pixel that it passes, the signed area between itself and the pixel's right side, and its
//! height to all pixels right of it; sums along a row then are the covered shares.

/// Pixels with how much of them is covered, above 0 to 1, each once, row by row. The polygon's corners are in pixels; it is
/// closed, and does not cross itself.
pub(super) fn filled(corners: &[(f64, f64)]) -> Vec<((i32, i32), f64)> {
    if corners.len() < 3 || corners.iter().any(|(x, y)| !(x.is_finite() && y.is_finite())) {
        return Vec::new();
    }
    let ends = |of: fn(&(f64, f64)) -> f64| {
        let fold = corners.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), n| (a.min(n), b.max(n)));
        (fold.0.floor() as i32, fold.1.ceil() as i32)
    };
    let ((left, right), (top, bottom)) = (ends(|corner| corner.0), ends(|corner| corner.1));
    // One more column takes what lies right of the last.
    let columns = (right - left).max(0) as usize + 1;
    let mut sums = vec![0f64; columns * (bottom - top).max(0) as usize];
    let mut add = |row: usize, column: usize, height: f64, share: f64| {
        let place = row * columns + column;
        if let Some(sum) = sums.get_mut(place) {
            *sum += height * share;
        }
        if let Some(sum) = sums.get_mut(place + 1).filter(|_| column + 1 < columns) {
            *sum += height * (1.0 - share);
        }
    };
    for (index, from) in corners.iter().enumerate() {
        let to = corners.get(index + 1).or(corners.first()).unwrap_or(from);
        let sign = if from.1 < to.1 { 1.0 } else { -1.0 };
        let (low, high) = if from.1 < to.1 { (from, to) } else { (to, from) };
        let (x0, y0) = (low.0 - f64::from(left), low.1 - f64::from(top));
        let (x1, y1) = (high.0 - f64::from(left), high.1 - f64::from(top));
        if y0 == y1 {
            continue;
        }
        let slope = (x1 - x0) / (y1 - y0);
        let at = |y: f64| (x0 + (y - y0) * slope).clamp(x0.min(x1), x0.max(x1));
        for row in y0.floor() as usize..y1.ceil() as usize {
            let (upper, lower) = (y0.max(row as f64), y1.min((row + 1) as f64));
            let (a, b) = (at(upper), at(lower));
            let (start, end) = (a.min(b), a.max(b));
            let height = sign * (lower - upper);
            let (first, last) = (start.floor() as usize, end.floor() as usize);
            for column in first..=last {
                let (enters, leaves) = (start.max(column as f64), end.min((column + 1) as f64));
                let part = if first == last { 1.0 } else { (leaves - enters) / (end - start) };
                add(row, column, height * part, 1.0 - ((enters + leaves) / 2.0 - column as f64));
            }
        }
    }
    let mut pixels = Vec::new();
    for (row, sums) in sums.chunks(columns).enumerate() {
        let mut sum = 0.0;
        for (column, added) in sums.iter().enumerate() {
            sum += added;
            // What rounding leaves is not seen.
            let cover = sum.abs();
            if cover > 1e-3 {
                pixels.push(((left + column as i32, top + row as i32), if cover > 0.999 { 1.0 } else { cover }));
            }
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(corners: &[(f64, f64)]) -> f64 {
        let next = corners.iter().cycle().skip(1);
        corners.iter().zip(next).map(|((x0, y0), (x1, y1))| x0 * y1 - x1 * y0).sum::<f64>().abs() / 2.0
    }

    #[test]
    fn as_much_is_covered_as_the_polygon_is_large() {
        let star = |turn: f64| -> Vec<(f64, f64)> {
            let at = |i: i32| {
                let (angle, r) = (turn + f64::from(i) * 0.2 * std::f64::consts::PI, [30.3, 11.7][(i % 2) as usize]);
                (40.1 + r * angle.sin(), 37.7 + r * angle.cos())
            };
            (0..10).map(at).collect()
        };
        let thin = vec![(1.2, 1.3), (90.7, 4.1), (90.7, 4.3)];
        let square = vec![(2.0, 3.0), (2.0, 9.0), (7.0, 9.0), (7.0, 3.0)];
        for mut corners in [star(0.0), star(0.37), thin, square] {
            for _ in 0..2 {
                let pixels = filled(&corners);
                let found: f64 = pixels.iter().map(|(_, cover)| cover).sum();
                assert!((found - area(&corners)).abs() < 0.02 + 1e-3 * found, "{found} for {}", area(&corners));
                let places: std::collections::BTreeSet<(i32, i32)> = pixels.iter().map(|(pixel, _)| *pixel).collect();
                assert_eq!(places.len(), pixels.len());
                corners.reverse();
            }
        }
    }

    #[test]
    fn pixels_within_are_whole_and_others_untouched() {
        let pixels = filled(&[(2.0, 3.0), (7.5, 3.0), (7.5, 9.0), (2.0, 9.0)]);
        assert!(pixels.iter().all(|((x, y), cover)| *cover == if *x == 7 { 0.5 } else { 1.0 } && (3..9).contains(y)));
        assert_eq!(pixels.len(), 36);
        assert!(filled(&[(0.0, 0.0), (1.0, 1.0)]).is_empty() && filled(&[(0.0, f64::NAN); 4]).is_empty());
        assert!(filled(&[(5.0, 5.0); 3]).is_empty());
    }
}
