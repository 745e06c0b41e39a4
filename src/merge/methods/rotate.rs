//! The first model turned toward the second: `out = m + a′·Qᵗ`, where Q is the rotation that brings a′ nearest to b′.
//!
//! sd-mecha 1.1.8's `rotate`. A tensor is a matrix of its first dimension by all others; a convolution that is not 1 × 1 of its
//! first two by its last two. a′ and b′ are the matrices without `centralization` times their mean row, and m goes from
//! one of these means to the other by t = `alignment`. Q is that of the orthogonal Procrustes problem (P. Schönemann
//! 1966, <https://link.springer.com/article/10.1007/BF02289451>): `Q = U·Vᵀ` of the singular vectors of a′ᵀ·b′. `alpha` moves a′ toward
//! b′·Qᵀ, which is b′ turned back to a′, before that. `alignment` 0 and `alpha` 0 is a, 1 and 1 is b. With a base, a and b are the
//! differences from it, and it is added to the result. Tensors of one dimension, and those equal in F16, are `a + α·(b − a)`.
//!
//! A power that is no whole number needs a rotation: where Q mirrors, the last vector of U is turned round. With
//! `S = (Q + Qᵀ)/2` and `K = (Q − Qᵀ)/2`, `Qᵗ = f(S) + g(S)·K`, where for S = cos θ f is cos tθ and g is sin tθ / sin θ; so it takes the
//! eigenvectors of a symmetric matrix, and equal angles are no trouble. A half turn, which has no side to it, becomes the
//! factor cos πt, as the real part of the complex power that sd-mecha takes.
//!
//! With fewer rows than columns Q is known on the span of the rows only, and x turned by it is `x − x·V·Vᵀ + x·U·Vᵀ`, as in
//! sd-mecha. Directions with a singular value of 0 are left out; without the mean row there is one of them, which sd-mecha
//! takes in as it happens to come out. Other powers than 1 and −1 use the points at (1+t)/2 and (1−t)/2 of the geodesic from V to U
//! on the Stiefel manifold for U and V; it is found by the iteration of R. Zimmermann and K. Hüper 2022,
//! <https://arxiv.org/abs/2103.12046>, over square matrices of up to twice the rows. For models that are far apart that need not
//! converge: it ends when a step makes nothing better, and what it has found then is a path with the same ends.
//!
//! Needs the tensor whole, in f64, and time that grows with the cube of its smaller side. The linear algebra library uses
//! the CPU's own instructions, so the last bits of the result may differ between kinds of CPUs.

use crate::dtype::{self, DType, Simd, vector};
use crate::error::{Error, Mismatch, Result};
use crate::merge::{About, Base, Block, Data, Method, Parameter, Solution, Terms, Weight};
use faer::{Mat, MatRef, Side};

/// See the module.
pub(super) struct Rotate;

const ABOUT: About = About {
    name: "rotate",
    what: "the first model turned toward the second by the best rotation, or part of the way",
    formula: "m + x₁′·Qᵗ, Q the rotation of x₁′ nearest to x₂′, t = alignment",
    source: "https://github.com/ljleb/sd-mecha",
    base: Base::Optional,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alignment", 1.0, "how much of the turn"),
        Parameter::shared("alpha", 0.0, "how far to go from the first model to the second apart from the turn"),
        Parameter::shared("centralization", 1.0, "how much of the mean row is taken off before"),
    ],
};

/// Elements that are compared at a time.
const TILE: u64 = 1 << 17;
/// Singular values below this share of the greatest count as 0.
const SMALLEST_VALUE: f64 = 1e-10;
/// Cosines this near to −1 are of half turns, and to 1 of none.
const SMALLEST_TURN: f64 = 1e-13;
/// When the search for a geodesic ends: what is left of the block that it makes 0.
const GEODESIC_ERROR: f64 = 1e-8;
/// The most steps of that search.
const GEODESIC_STEPS: usize = 100;

fn is_whole(power: f64) -> bool {
    power == power.round()
}

/// Rows and columns of a tensor as a matrix.
fn matrix_of(shape: &[u64]) -> (usize, usize) {
    let rows = match shape {
        [first, second, height, width] if height * width != 1 => first * second,
        [first, ..] => *first,
        [] => 1,
    };
    let elements: u64 = shape.iter().product();
    (rows as usize, elements.checked_div(rows).unwrap_or(0) as usize)
}

/// What the singular vectors of a′ᵀ·b′ make.
enum Turn {
    /// A square Q.
    Full(Mat<f64>),
    /// U and V of a Q that is known on the span of fewer rows than there are columns.
    Partial(Mat<f64>, Mat<f64>),
}

/// The linear algebra library found no solution.
struct NotConverged;

impl Turn {
    fn new(a: MatRef<'_, f64>, b: MatRef<'_, f64>, must_rotate: bool) -> Result<Self, NotConverged> {
        if a.nrows() >= a.ncols() {
            let product = a.transpose() * b;
            let svd = product.svd().map_err(|_| NotConverged)?;
            let mut left = svd.U().to_owned();
            if must_rotate && (&left * svd.V().transpose()).determinant() < 0.0 {
                let last = left.ncols() - 1;
                left.col_mut(last).iter_mut().for_each(|x| *x = -*x);
            }
            return Ok(Self::Full(left * svd.V().transpose()));
        }
        // aᵀ·b = aᵀ·Rᵀ·Pᵀ with bᵀ = P·R, which is as small as the rows are few.
        let qr = b.transpose().qr();
        let product = a.transpose() * qr.thin_R().transpose();
        let svd = product.thin_svd().map_err(|_| NotConverged)?;
        let values = svd.S().column_vector();
        let greatest = values.iter().copied().fold(0.0, f64::max);
        let rank = rank(values.iter(), greatest);
        let right = qr.compute_thin_Q() * svd.V();
        Ok(Self::Partial(svd.U().get(.., ..rank).to_owned(), right.get(.., ..rank).to_owned()))
    }

    /// `x·Qᵗ`
    fn apply(&self, x: MatRef<'_, f64>, power: f64) -> Result<Mat<f64>, NotConverged> {
        Ok(match self {
            _ if power == 0.0 => x.to_owned(),
            Self::Full(q) if power == 1.0 => x * q,
            Self::Full(q) if power == -1.0 => x * q.transpose(),
            Self::Full(q) => x * raised(q.as_ref(), power)?,
            Self::Partial(u, v) => {
                let (ahead, back) = match power {
                    1.0 => (u.clone(), v.clone()),
                    -1.0 => (v.clone(), u.clone()),
                    _ => between(u.as_ref(), v.as_ref(), power)?,
                };
                x + x * (&ahead - &back) * back.transpose()
            }
        })
    }
}

/// How many values are not 0 but for rounding, beside the greatest.
fn rank<'v>(values: impl Iterator<Item = &'v f64>, greatest: f64) -> usize {
    values.filter(|value| **value > SMALLEST_VALUE * greatest).count()
}

/// The points at `(1 + power)/2` and `(1 − power)/2` of the geodesic from `v` to `u`, which have orthonormal columns.
fn between(u: MatRef<'_, f64>, v: MatRef<'_, f64>, power: f64) -> Result<(Mat<f64>, Mat<f64>), NotConverged> {
    // A basis of what u and v span: v, and the directions in which u leaves it.
    let along = v.transpose() * u;
    let away = u - v * &along;
    let svd = away.thin_svd().map_err(|_| NotConverged)?;
    let extra = rank(svd.S().column_vector().iter(), 1.0);
    let directions = svd.U().get(.., ..extra).to_owned();
    let across = directions.transpose() * &away;
    let turn = geodesic(&along, &across)?;
    let point = |place: f64| -> Result<Mat<f64>, NotConverged> {
        let raised = raised(turn.as_ref(), place)?;
        let (top, bottom) = raised.get(.., ..v.ncols()).split_at_row(v.ncols());
        Ok(v * top + &directions * bottom)
    };
    Ok((point((1.0 + power) / 2.0)?, point((1.0 - power) / 2.0)?))
}

/// The rotation whose first columns are `[along; across]` and whose logarithm has zeros where both rows and columns
/// are those of `across`: that is what makes its powers a geodesic.
fn geodesic(along: &Mat<f64>, across: &Mat<f64>) -> Result<Mat<f64>, NotConverged> {
    let (inner, extra) = (along.ncols(), across.nrows());
    let first = stack(along, across);
    let complement = first.qr().compute_Q().get(.., inner..).to_owned();
    let svd = complement.get(inner.., ..).svd().map_err(|_| NotConverged)?;
    let nearest = |sign: f64| {
        let last = extra.saturating_sub(1);
        let left = Mat::from_fn(extra, extra, |i, j| svd.U()[(i, j)] * if j == last { sign } else { 1.0 });
        beside(&first, &(&complement * svd.V() * left.transpose()))
    };
    let mut turn = nearest(1.0);
    if turn.determinant() < 0.0 {
        turn = nearest(-1.0);
    }
    let (mut least, mut best) = (f64::INFINITY, turn.clone());
    for _ in 0..GEODESIC_STEPS {
        let log = logarithm(turn.as_ref())?;
        let rest = log.get(inner.., inner..);
        let norm = rest.norm_l2();
        if norm >= least {
            break;
        }
        (least, best) = (norm, turn.clone());
        if norm <= GEODESIC_ERROR {
            break;
        }
        // The step solves S·G + G·S = rest for S = B·Bᵀ/12 − 1/2, with B the block beside it.
        let block = log.get(inner.., ..inner);
        let product = block * block.transpose();
        let symmetric = Mat::from_fn(extra, extra, |i, j| product[(i, j)] / 12.0 - if i == j { 0.5 } else { 0.0 });
        let eigen = symmetric.self_adjoint_eigen(Side::Lower).map_err(|_| NotConverged)?;
        let (vectors, values) = (eigen.U(), eigen.S().column_vector());
        let inside = vectors.transpose() * rest * vectors;
        let step =
            vectors * Mat::from_fn(extra, extra, |i, j| inside[(i, j)] / (values[i] + values[j])) * vectors.transpose();
        let columns = turn.get(.., inner..) * exponential(&step)?;
        turn = beside(&first, &columns);
    }
    Ok(best)
}

fn stack(top: &Mat<f64>, bottom: &Mat<f64>) -> Mat<f64> {
    let n = top.nrows();
    let value = |i: usize, j: usize| if i < n { top[(i, j)] } else { bottom[(i - n, j)] };
    Mat::from_fn(n + bottom.nrows(), top.ncols(), value)
}

fn beside(left: &Mat<f64>, right: &Mat<f64>) -> Mat<f64> {
    let n = left.ncols();
    let value = |i: usize, j: usize| if j < n { left[(i, j)] } else { right[(i, j - n)] };
    Mat::from_fn(left.nrows(), n + right.ncols(), value)
}

/// The even and the odd part of a square matrix, symmetric and skew.
fn halves(matrix: MatRef<'_, f64>) -> (Mat<f64>, Mat<f64>) {
    let n = matrix.nrows();
    let half = |sign: f64| Mat::from_fn(n, n, |i, j| 0.5 * (matrix[(i, j)] + sign * matrix[(j, i)]));
    (half(1.0), half(-1.0))
}

/// `even(S) + odd(S)·K` for a symmetric S and a K that commutes with it.
fn function(
    symmetric: &Mat<f64>,
    skew: &Mat<f64>,
    even: impl Fn(f64) -> f64,
    odd: impl Fn(f64) -> f64,
) -> Result<Mat<f64>, NotConverged> {
    let n = symmetric.nrows();
    let eigen = symmetric.self_adjoint_eigen(Side::Lower).map_err(|_| NotConverged)?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let scaled = |factor: &dyn Fn(f64) -> f64| {
        let factors: Vec<f64> = values.iter().map(|value| factor(*value)).collect();
        Mat::from_fn(n, n, |i, j| vectors[(i, j)] * factors[j]) * vectors.transpose()
    };
    Ok(scaled(&even) + scaled(&odd) * skew)
}

/// `factor(θ) / sin θ` for the cosine of θ, where the factor is `slope·θ` for small angles; 0 for half turns.
fn over_sine(cosine: f64, slope: f64, factor: impl Fn(f64) -> f64) -> f64 {
    let angle = cosine.clamp(-1.0, 1.0).acos();
    match angle.sin() {
        _ if 1.0 - cosine < SMALLEST_TURN => slope,
        _ if 1.0 + cosine < SMALLEST_TURN => 0.0,
        sine => factor(angle) / sine,
    }
}

/// The logarithm of a rotation.
fn logarithm(q: MatRef<'_, f64>) -> Result<Mat<f64>, NotConverged> {
    let (symmetric, skew) = halves(q);
    function(&symmetric, &skew, |_| 0.0, |cosine| over_sine(cosine, 1.0, |angle| angle))
}

/// The rotation of a skew logarithm, whose square is symmetric.
fn exponential(skew: &Mat<f64>) -> Result<Mat<f64>, NotConverged> {
    let square = skew * skew.transpose();
    let angle = |square: f64| square.max(0.0).sqrt();
    let sinc = |angle: f64| if angle < 1e-8 { 1.0 } else { angle.sin() / angle };
    function(&square, skew, |square| angle(square).cos(), |square| sinc(angle(square)))
}

/// A power of an orthogonal matrix.
fn raised(q: MatRef<'_, f64>, power: f64) -> Result<Mat<f64>, NotConverged> {
    let (symmetric, skew) = halves(q);
    let even = |cosine: f64| (power * cosine.clamp(-1.0, 1.0).acos()).cos();
    function(&symmetric, &skew, even, |cosine| over_sine(cosine, power, |angle| (power * angle).sin()))
}

/// The matrix that the tensors' become.
fn turned(terms: &Terms, mut a: Mat<f64>, mut b: Mat<f64>) -> Result<Mat<f64>, NotConverged> {
    let (alignment, alpha) = (terms.get("alignment"), terms.get("alpha"));
    let centralization = terms.get("centralization");
    let (a_mean, b_mean) = (take_mean(&mut a, centralization), take_mean(&mut b, centralization));
    let turn = Turn::new(a.as_ref(), b.as_ref(), !is_whole(alignment))?;
    if alpha != 0.0 {
        let back = turn.apply(b.as_ref(), -1.0)?;
        a = Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] + alpha * (back[(i, j)] - a[(i, j)]));
    }
    let result = turn.apply(a.as_ref(), alignment)?;
    let mean: Vec<f64> = a_mean.iter().zip(&b_mean).map(|(a, b)| a + alignment * (b - a)).collect();
    Ok(Mat::from_fn(result.nrows(), result.ncols(), |i, j| result[(i, j)] + mean[j]))
}

/// Takes so much of the mean row off every row, and returns that.
fn take_mean(matrix: &mut Mat<f64>, share: f64) -> Vec<f64> {
    let rows = matrix.nrows() as f64;
    let mean: Vec<f64> = matrix.col_iter().map(|column| share * column.iter().sum::<f64>() / rows).collect();
    for (column, mean) in matrix.col_iter_mut().zip(&mean) {
        column.iter_mut().for_each(|x| *x -= mean);
    }
    mean
}

/// Whether the two inputs are the same numbers in F16.
fn are_near(data: &Data<'_>) -> Result<bool> {
    let mut is_near = true;
    let compare = |near: &mut bool, block: &mut Block<'_>| {
        block.subtract_base();
        let [a, b] = block.first::<2>().map(|values| {
            let mut bytes = vec![0; 2 * values.len()];
            dtype::encode(Simd::detect(), DType::F16, values, &mut bytes);
            bytes
        });
        *near &= a == b;
    };
    data.fold(TILE, || true, compare, |near| is_near &= near)?;
    Ok(is_near)
}

impl Method for Rotate {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn memory(&self, terms: &Terms) -> u64 {
        let (rows, columns) = matrix_of(&terms.shape);
        let small = rows.min(columns) as u64;
        // Both matrices, what they are before, and three of their size; and square ones, of twice the side for a geodesic.
        let squares = if rows < columns && ![-1.0, 0.0, 1.0].contains(&terms.get("alignment")) { 40 } else { 10 };
        (size_of::<f64>() as u64) * (6 * terms.shape.iter().product::<u64>() + squares * small * small)
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let (alignment, alpha) = (terms.get("alignment"), terms.get("alpha"));
        let straight = |share: f64| {
            let coefficients = vec![1.0 - share, share];
            if terms.has_base { Solution::around_base(coefficients) } else { Solution::sum(coefficients) }
        };
        if (alignment == 0.0 && alpha == 0.0) || (alignment == 1.0 && alpha == 1.0) {
            return Ok(straight(alpha));
        }
        if terms.shape.len() <= 1 || data.elements() == 0 || are_near(data)? {
            return Ok(straight(alpha));
        }
        let fail = |problem: &str| {
            let problem = format!("{problem}; --exclude it");
            Error::Mismatch(vec![Mismatch { tensor: terms.tensor.clone(), problem }])
        };
        let (rows, columns) = matrix_of(&terms.shape);
        let base = terms.has_base.then(|| data.whole_input(2)).transpose()?;
        let matrix = |index| -> Result<Mat<f64>> {
            let mut values = data.whole_input(index)?;
            if let Some(base) = &base {
                vector::update(&mut values, [base], |x, [base]| x - base);
            }
            if !values.iter().all(|value| value.is_finite()) {
                return Err(fail("has elements that are not finite, which cannot be turned"));
            }
            Ok(Mat::from_fn(rows, columns, |i, j| f64::from(values[i * columns + j])))
        };
        let (a, b) = (matrix(0)?, matrix(1)?);
        drop(base);
        let own = terms.clone();
        let result = data.apart(move || turned(&own, a, b))?;
        let result = result.map_err(|NotConverged| fail("has no singular vectors that could be found"))?;
        let result: Vec<f32> = (0..rows * columns).map(|i| result[(i / columns, i % columns)] as f32).collect();
        let has_base = terms.has_base;
        Ok(Solution::of_whole(move |block: &mut Block<'_>, out: &mut [f32]| {
            let start = block.start as usize;
            out.copy_from_slice(&result[start..start + out.len()]);
            if has_base {
                let (_, base) = block.split_base();
                vector::update(out, [base], |change, [base]| base + change);
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A turn by given angles in planes, seen from a basis that is not theirs.
    fn turn(angles: &[f64]) -> Mat<f64> {
        let n = 2 * angles.len();
        let skewed = Mat::from_fn(n, n, |i, j| ((i * n + j) as f64).sin() + if i == j { 3.0 } else { 0.0 });
        let basis = skewed.qr().compute_thin_Q();
        let planes = Mat::from_fn(n, n, |i, j| match (i / 2 == j / 2, i % 2, j % 2) {
            (false, ..) => 0.0,
            (_, 0, 1) => -angles[i / 2].sin(),
            (_, 1, 0) => angles[i / 2].sin(),
            _ => angles[i / 2].cos(),
        });
        &basis * planes * basis.transpose()
    }

    fn distance(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
        (a - b).norm_l2()
    }

    #[test]
    fn powers_of_turns_multiply_their_angles() {
        // Equal angles, none, and nearly a half turn.
        let angles = [0.5, 0.5, -0.5, 0.0, 3.1, 1.2];
        for power in [0.5, 0.25, -0.3, 2.0, 3.0] {
            let Ok(raised) = raised(turn(&angles).as_ref(), power) else { panic!("it converges") };
            let expected = turn(&angles.map(|angle| power * angle));
            assert!(distance(&raised, &expected) < 1e-11, "{power}: {}", distance(&raised, &expected));
        }
    }

    #[test]
    fn a_half_turn_is_scaled() {
        let Ok(raised) = raised(turn(&[std::f64::consts::PI]).as_ref(), 1.0 / 3.0) else { panic!("it converges") };
        assert!(distance(&raised, &Mat::from_fn(2, 2, |i, j| if i == j { 0.5 } else { 0.0 })) < 1e-7);
    }

    #[test]
    fn the_turn_is_found() {
        let a = Mat::from_fn(9, 4, |i, j| ((7 * i * i + 3 * j * j + i * j) as f64).cos());
        let q = turn(&[0.7, -1.1]);
        let Ok(found) = Turn::new(a.as_ref(), (&a * &q).as_ref(), true) else { panic!("it converges") };
        let Ok(half) = found.apply(a.as_ref(), 0.5) else { panic!("it converges") };
        assert!(distance(&half, &(&a * turn(&[0.35, -0.55]))) < 1e-12);
    }

    #[test]
    fn a_geodesic_goes_from_one_end_to_the_other() {
        // Orthonormal columns, few of many and nearly all.
        for (n, columns) in [(12, 3), (12, 10)] {
            let u = turn(&[0.3, 0.9, -0.4, 1.0, 0.2, -0.7]).get(.., ..columns).to_owned();
            let v = Mat::from_fn(n, columns, |i, j| if i == j { 1.0 } else { 0.0 });
            let at = |power: f64| match between(u.as_ref(), v.as_ref(), power) {
                Ok(points) => points,
                Err(NotConverged) => panic!("it converges"),
            };
            let (end, start) = at(1.0);
            assert!(distance(&end, &u) + distance(&start, &v) < 1e-10);
            let (middle, same) = at(0.0);
            assert!(distance(&middle, &same) < 1e-12);
            assert!((distance(&middle, &u) - distance(&middle, &v)).abs() < 1e-6, "the middle is in the middle");
            let identity = Mat::from_fn(columns, columns, |i, j| if i == j { 1.0 } else { 0.0 });
            assert!(distance(&(middle.transpose() * &middle), &identity) < 1e-10);
        }
    }

    #[test]
    fn shapes_are_matrices() {
        assert_eq!(matrix_of(&[4, 3, 3, 3]), (12, 9));
        assert_eq!(matrix_of(&[4, 3, 1, 1]), (4, 3));
        assert_eq!(matrix_of(&[4, 3, 5]), (4, 15));
        assert_eq!(matrix_of(&[0, 3]), (0, 0));
    }
}
