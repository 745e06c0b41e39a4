//! How two checkpoints differ, tensor by tensor.

use super::vectors::same_shape;
use super::{SCRATCH, decode_f64};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::dtype::{self, DType, Simd};
use crate::error::Result;
use crate::stream::{self, Control, Group, Settings};

/// How far apart elements may be and still count as equal: |a − b| ≤ `absolute` + `relative`·|b|.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// Added as it is.
    pub absolute: f64,
    /// Times the size of the second model's element.
    pub relative: f64,
}

impl Tolerance {
    /// Whether nothing is tolerated; then types must be equal as well.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.absolute == 0.0 && self.relative == 0.0
    }
}

/// Two models side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Names that only the first has.
    pub only_first: Vec<String>,
    /// Names that only the second has.
    pub only_second: Vec<String>,
    /// The names that both have, in the first's order.
    pub shared: Vec<(String, Difference)>,
}

impl Comparison {
    /// Whether the models are equal within the tolerance.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.only_first.is_empty() && self.only_second.is_empty() && self.shared.iter().all(|(_, d)| d.is_equal())
    }
}

/// What is different about a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// The shapes.
    Shape(Vec<u64>, Vec<u64>),
    /// The types, which do not mix or may not, as nothing is tolerated.
    DType(DType, DType),
    /// The elements, if at all.
    Values(Values),
    /// The bytes, of a type that is not computed with: whether they are equal.
    Bytes(bool),
}

impl Difference {
    /// Whether it is none.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        match self {
            Self::Values(values) => values.beyond == 0,
            Self::Bytes(equal) => *equal,
            Self::Shape(..) | Self::DType(..) => false,
        }
    }
}

/// How elements differ. Two NaN count as equal; a NaN and a number as infinitely far apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Values {
    /// The largest |a − b|.
    pub max_abs: f64,
    /// The largest |a − b| / |b|; infinite where only b is zero.
    pub max_rel: f64,
    /// How many elements are further apart than is tolerated.
    pub beyond: u64,
    /// How many elements there are.
    pub elements: u64,
    /// Whether every byte is the same.
    pub same_bytes: bool,
    dot: f64,
    squares: (f64, f64),
    distance: f64,
}

impl Values {
    /// The cosine of the angle between the two, as vectors; 1 if both are zero, 0 if one is.
    #[must_use]
    pub fn cosine(&self) -> f64 {
        match (self.squares.0 == 0.0, self.squares.1 == 0.0) {
            (true, true) => 1.0,
            (false, false) => (self.dot / (self.squares.0.sqrt() * self.squares.1.sqrt())).clamp(-1.0, 1.0),
            _ => 0.0,
        }
    }

    /// How far apart the two are for their size: ‖a − b‖ / ‖b‖ over the elements that are finite in both; infinite if
    /// only b is zero, or an element is infinitely far from the other.
    #[must_use]
    pub fn relative_distance(&self) -> f64 {
        if self.max_abs.is_infinite() {
            return f64::INFINITY;
        }
        if self.distance == 0.0 { 0.0 } else { (self.distance / self.squares.1).sqrt() }
    }

    fn add(&mut self, a: f64, b: f64, tolerance: Tolerance) {
        self.elements += 1;
        if a.is_finite() && b.is_finite() {
            self.dot += a * b;
            self.squares.0 += a * a;
            self.squares.1 += b * b;
            self.distance += (a - b) * (a - b);
        }
        if a == b || (a.is_nan() && b.is_nan()) {
            return;
        }
        let apart = (a - b).abs();
        let apart = if apart.is_nan() { f64::INFINITY } else { apart };
        self.max_abs = self.max_abs.max(apart);
        let relative = apart / b.abs();
        self.max_rel = self.max_rel.max(if relative.is_nan() { f64::INFINITY } else { relative });
        self.beyond += u64::from(apart.is_infinite() || apart > tolerance.absolute + tolerance.relative * b.abs());
    }

    fn and(mut self, other: &Self) -> Self {
        self.max_abs = self.max_abs.max(other.max_abs);
        self.max_rel = self.max_rel.max(other.max_rel);
        self.beyond += other.beyond;
        self.elements += other.elements;
        self.same_bytes &= other.same_bytes;
        self.dot += other.dot;
        self.squares.0 += other.squares.0;
        self.squares.1 += other.squares.1;
        self.distance += other.distance;
        self
    }
}

/// What is known of a pair before its data is read.
enum Pair<'a> {
    Known(Difference),
    Values(TensorView<'a>, TensorView<'a>),
    Bytes(TensorView<'a>, TensorView<'a>),
}

/// Compares two checkpoints.
///
/// # Errors
/// As [`stream::measure`].
pub fn diff(
    first: &Checkpoint,
    second: &Checkpoint,
    tolerance: Tolerance,
    settings: &Settings,
    control: Control<'_>,
) -> Result<Comparison> {
    let only = |one: &Checkpoint, other: &Checkpoint| -> Vec<String> {
        one.tensors().iter().filter(|t| other.get(&t.name).is_none()).map(|t| t.name.clone()).collect()
    };
    let shared: Vec<(TensorView<'_>, TensorView<'_>)> =
        first.tensors().iter().filter_map(|tensor| Some((first.view(tensor), second.get(&tensor.name)?))).collect();
    let pairs: Vec<Pair<'_>> = shared.iter().map(|&(a, b)| pair(a, b, tolerance)).collect();
    let groups: Vec<Group<'_>> = pairs
        .iter()
        .map(|pair| match *pair {
            Pair::Known(_) => Group::bytes(Vec::new()),
            Pair::Values(a, b) => Group::numbers(vec![a, b]),
            Pair::Bytes(a, b) => Group::bytes(vec![a, b]),
        })
        .collect();

    let simd = Simd::detect();
    let tiles = stream::measure(&groups, settings, control, |group, inputs| match pairs[group] {
        Pair::Values(a, b) => values(simd, (a.tensor.dtype, inputs[0]), (b.tensor.dtype, inputs[1]), tolerance),
        _ => Values { same_bytes: inputs[0] == inputs[1], ..Values::default() },
    })?;

    let shared = shared.iter().zip(pairs).zip(tiles).map(|((&(a, _), pair), tiles)| {
        let start = Values { same_bytes: true, ..Values::default() };
        let total = tiles.iter().fold(start, |total, tile| total.and(tile));
        let difference = match pair {
            Pair::Known(difference) => difference,
            Pair::Values(..) => Difference::Values(total),
            Pair::Bytes(..) => Difference::Bytes(total.same_bytes),
        };
        (a.tensor.name.clone(), difference)
    });
    Ok(Comparison { only_first: only(first, second), only_second: only(second, first), shared: shared.collect() })
}

fn pair<'a>(a: TensorView<'a>, b: TensorView<'a>, tolerance: Tolerance) -> Pair<'a> {
    let (left, right) = (a.tensor, b.tensor);
    let computed = dtype::can_decode;
    if !same_shape(&a, &b) {
        return Pair::Known(Difference::Shape(left.shape.clone(), right.shape.clone()));
    }
    let mixes = !tolerance.is_zero() && computed(left.dtype) && computed(right.dtype);
    if left.dtype != right.dtype && !mixes {
        return Pair::Known(Difference::DType(left.dtype, right.dtype));
    }
    if computed(left.dtype) { Pair::Values(a, b) } else { Pair::Bytes(a, b) }
}

fn values(simd: Simd, a: (DType, &[u8]), b: (DType, &[u8]), tolerance: Tolerance) -> Values {
    let mut total = Values { same_bytes: a == b, ..Values::default() };
    let bytes = |dtype: DType| SCRATCH / dtype.block_elements() as usize * dtype.block_bytes() as usize;
    let mut scratch = [0.0; SCRATCH];
    let (mut left, mut right) = ([0.0; SCRATCH], [0.0; SCRATCH]);
    for (a_bytes, b_bytes) in a.1.chunks(bytes(a.0)).zip(b.1.chunks(bytes(b.0))) {
        let count = a_bytes.len() / a.0.block_bytes() as usize * a.0.block_elements() as usize;
        decode_f64(simd, a.0, a_bytes, &mut scratch, &mut left[..count]);
        decode_f64(simd, b.0, b_bytes, &mut scratch, &mut right[..count]);
        let mut part = Values { same_bytes: true, ..Values::default() };
        for (a, b) in left[..count].iter().zip(&right[..count]) {
            part.add(*a, *b, tolerance);
        }
        if tolerance.is_zero() && matches!(a.0, DType::I64 | DType::U64) {
            // Beyond 2⁵³ different integers can be the same f64.
            part.beyond = a_bytes.chunks(8).zip(b_bytes.chunks(8)).filter(|(a, b)| a != b).count() as u64;
        }
        total = total.and(&part);
    }
    total
}
