//! Add-difference with a smoothed difference: `out = a + α·G(M(b − c))`.
//!
//! supermerger's "smooth add": M replaces each element by the median of those within one step of it along every dimension
//! (3ⁿ elements for n dimensions), G is a Gaussian filter of deviation 1 along every dimension one after the other, cut at 4
//! deviations. Both see the tensor mirrored at its edges, the edge element twice. As there, this is done along all
//! dimensions of a tensor, channels included.
//!
//! The filters need the tensor whole: two buffers of its elements as F32. The median of an outlier's surroundings does not
//! show it, so where `b − c` is not a finite number the result is NaN.

use crate::dtype::vector;
use crate::error::Result;
use crate::merge::{About, Base, Block, Data, Method, Parameter, Solution, Terms, Weight};
use rayon::prelude::*;

/// See the module.
pub(super) struct SmoothAdd;

const ABOUT: About = About {
    name: "smooth-add",
    what: "the first model plus what the second changed in their ancestor, smoothed within each tensor",
    formula: "x₁ + α·G(M(x₂ − b)), M the median of 3 and G a Gaussian of deviation 1, along every dimension",
    source: "https://github.com/hako-mikan/sd-webui-supermerger",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("alpha", 1.0, "scales the difference")],
};

/// Elements to each side that the Gaussian reaches.
const RADIUS: usize = 4;
/// Elements that it weighs.
const WIDTH: usize = 2 * RADIUS + 1;

/// The Gaussian's weights: deviation 1, sum 1.
fn gaussian() -> [f32; WIDTH] {
    let value = |i: usize| (-0.5 * (i as f64 - RADIUS as f64).powi(2)).exp();
    let sum: f64 = (0..WIDTH).map(value).sum();
    std::array::from_fn(|i| (value(i) / sum) as f32)
}

/// Where place `at` is among `length`, mirrored at both edges as often as need be, the edge element twice.
fn mirrored(at: isize, length: usize) -> usize {
    let place = at.rem_euclid(2 * length as isize) as usize;
    place.min(2 * length - 1 - place)
}

fn middle(a: f32, b: f32, c: f32) -> f32 {
    a.min(b).max(a.max(b).min(c))
}

/// The median of each element's surroundings. `shape` has no dimension of less than 2.
fn median(shape: &[usize], from: &[f32], out: &mut [f32]) {
    let Some((&length, outer)) = shape.split_last() else { return out.copy_from_slice(from) };
    out.par_chunks_mut(length).enumerate().for_each_init(Vec::new, |window, (row, out)| {
        let rows = surrounding(outer, row);
        let part = |row: &usize| &from[row * length..(row + 1) * length];
        match &rows[..] {
            [one] => {
                let row = part(one);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = middle(row[i.saturating_sub(1)], row[i], row[(i + 1).min(length - 1)]);
                }
            }
            [a, b, c] => of_nine(part(a), part(b), part(c), out),
            rows => {
                for (i, out) in out.iter_mut().enumerate() {
                    window.clear();
                    for row in rows.iter().map(part) {
                        window.extend([row[i.saturating_sub(1)], row[i], row[(i + 1).min(length - 1)]]);
                    }
                    let half = window.len() / 2;
                    *out = *window.select_nth_unstable_by(half, f32::total_cmp).1;
                }
            }
        }
    });
}

/// The rows within one step of a row along every dimension, those beyond an edge being the edge's own.
fn surrounding(outer: &[usize], row: usize) -> Vec<usize> {
    let mut rows = vec![0];
    let mut rest = row;
    let mut stride = 1;
    for &length in outer.iter().rev() {
        let at = rest % length;
        let steps = [at.saturating_sub(1), at, (at + 1).min(length - 1)];
        rows = rows.iter().flat_map(|row| steps.map(|step| row + step * stride)).collect();
        rest /= length;
        stride *= length;
    }
    rows
}

/// Medians of 3 × 3: of the greatest of the least of each column, the middle of the middle ones, the least of the greatest.
fn of_nine(above: &[f32], here: &[f32], below: &[f32], out: &mut [f32]) {
    let length = out.len();
    // A column more at each edge.
    let mut sorted = [0; 3].map(|_: i32| vec![0.0; length + 2]);
    let [least, mid, most] = &mut sorted;
    vector::map(&mut least[1..=length], [above, here, below], |[a, b, c]| a.min(b).min(c));
    vector::map(&mut mid[1..=length], [above, here, below], |[a, b, c]| middle(a, b, c));
    vector::map(&mut most[1..=length], [above, here, below], |[a, b, c]| a.max(b).max(c));
    for column in [&mut *least, &mut *mid, &mut *most] {
        column[0] = column[1];
        column[length + 1] = column[length];
    }
    fn three(column: &[f32], length: usize) -> [&[f32]; 3] {
        [&column[..length], &column[1..=length], &column[2..]]
    }
    let ([a, b, c], [d, e, f], [g, h, i]) = (three(least, length), three(mid, length), three(most, length));
    vector::map(out, [a, b, c, d, e, f, g, h, i], |[a, b, c, d, e, f, g, h, i]| {
        middle(a.max(b).max(c), middle(d, e, f), g.min(h).min(i))
    });
}

/// Filters along one dimension of `length`, whose elements are `stride` apart.
fn smooth(length: usize, stride: usize, from: &[f32], out: &mut [f32]) {
    let weights = gaussian();
    let weigh =
        move |values: [f32; WIDTH]| values.iter().zip(&weights).fold(0.0, |sum, (value, weight)| sum + value * weight);
    if stride == 1 {
        out.par_chunks_mut(length).zip(from.par_chunks(length)).for_each_init(Vec::new, |wide, (out, row)| {
            wide.clear();
            let places = -(RADIUS as isize)..(length + RADIUS) as isize;
            wide.extend(places.map(|at| row[mirrored(at, length)]));
            let shifted: [&[f32]; WIDTH] = std::array::from_fn(|i| &wide[i..i + length]);
            vector::map(out, shifted, weigh);
        });
        return;
    }
    out.par_chunks_mut(stride).enumerate().for_each(|(row, out)| {
        let (first, at) = (row / length * length, row % length);
        let near: [&[f32]; WIDTH] = std::array::from_fn(|i| {
            let row = first + mirrored(at as isize + i as isize - RADIUS as isize, length);
            &from[row * stride..(row + 1) * stride]
        });
        vector::map(out, near, weigh);
    });
}

/// Both filters.
fn filtered(shape: &[u64], mut values: Vec<f32>, mut other: Vec<f32>) -> Vec<f32> {
    // Along a dimension of 1 both filters change nothing.
    let shape: Vec<usize> = shape.iter().map(|n| *n as usize).filter(|n| *n != 1).collect();
    median(&shape, &values, &mut other);
    std::mem::swap(&mut values, &mut other);
    let mut stride = values.len();
    for length in shape {
        stride /= length;
        smooth(length, stride, &values, &mut other);
        std::mem::swap(&mut values, &mut other);
    }
    values
}

impl Method for SmoothAdd {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn memory(&self, terms: &Terms) -> u64 {
        2 * size_of::<f32>() as u64 * terms.shape.iter().product::<u64>()
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let alpha = terms.get("alpha") as f32;
        if data.elements() == 0 {
            return Ok(Solution::around_base(vec![1.0, alpha.into()]));
        }
        let (mut difference, base) = (data.whole_input(1)?, data.whole_input(2)?);
        vector::update(&mut difference, [&base], |b, [c]| b - c);
        let smoothed = filtered(&terms.shape, difference, base);
        Ok(Solution::of_whole(move |block: &mut Block<'_>, out: &mut [f32]| {
            let start = block.start as usize;
            out.copy_from_slice(&smoothed[start..start + out.len()]);
            vector::update(out, block.first(), |smooth, [a, b, c]| {
                // What is added last is 0 or, for what is not finite, NaN.
                a + alpha * smooth + 0.0 * (b - c)
            });
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_mirrored_with_the_edge_twice() {
        let places: Vec<usize> = (-4..7).map(|at| mirrored(at, 3)).collect();
        assert_eq!(places, [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]);
        assert_eq!(mirrored(-4, 1), 0);
    }

    #[test]
    fn the_network_finds_the_median_of_nine() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as f32
        };
        let rows: Vec<Vec<f32>> = (0..3).map(|_| (0..1000).map(|_| next()).collect()).collect();
        let mut out = vec![0.0; 1000];
        of_nine(&rows[0], &rows[1], &rows[2], &mut out);
        for (i, out) in out.iter().enumerate() {
            let columns = [i.max(1) - 1, i, (i + 1).min(999)];
            let mut window: Vec<f32> = rows.iter().flat_map(|row| columns.map(|column| row[column])).collect();
            window.sort_unstable_by(f32::total_cmp);
            assert_eq!(*out, window[4], "{i}");
        }
    }
}
