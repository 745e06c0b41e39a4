//! Tables of numbers made smaller: each cell the most telling of several.

/// How many neighbours become one, so that `count` are at most `most`.
pub(super) fn factor(count: usize, most: usize) -> usize {
    count.div_ceil(most.max(1)).max(1)
}

/// The numbers farthest from 0 in blocks of `rows` × `columns` cells of a table `width` wide. Where no cell of a block has a
/// number, there is none.
pub(super) fn pooled(cells: &[Vec<Option<f64>>], width: usize, rows: usize, columns: usize) -> Vec<Vec<Option<f64>>> {
    let (rows, columns) = (rows.max(1), columns.max(1));
    let block = |band: &[Vec<Option<f64>>], start: usize| {
        let cells = band.iter().flat_map(move |row| row.iter().skip(start).take(columns));
        let numbers = cells.flatten().copied().filter(|number| !number.is_nan());
        numbers.reduce(|one, other| if other.abs() > one.abs() { other } else { one })
    };
    let starts = || (0..width).step_by(columns);
    cells.chunks(rows).map(|band| starts().map(|start| block(band, start)).collect()).collect()
}

/// "each cell is the one farthest from 0 of 2×3", or nothing where it is not.
pub(super) fn said(rows: usize, columns: usize) -> Option<String> {
    (rows * columns > 1).then(|| format!("each cell is the one farthest from 0 of {rows}×{columns}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_become_what_tells_most() {
        let cells =
            vec![vec![Some(1.0), Some(3.0), None], vec![Some(2.0), None, Some(f64::NAN)], vec![Some(f64::INFINITY)]];
        assert_eq!(pooled(&cells, 3, 2, 2), [vec![Some(3.0), None], vec![Some(f64::INFINITY), None]]);
        assert_eq!(pooled(&[vec![Some(0.5), None, Some(-0.7), Some(0.6)]], 4, 1, 4), [vec![Some(-0.7)]]);
        assert_eq!([factor(10, 10), factor(11, 10), factor(0, 0), factor(1000, 300)], [1, 2, 1, 4]);
        assert_eq!([said(1, 1), said(1, 2)], [None, Some("each cell is the one farthest from 0 of 1×2".to_owned())]);
    }
}
