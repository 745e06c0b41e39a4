//! How alike the directions are in which models changed.
//!
//! With task vectors `τᵢ = xᵢ − base` (or `τᵢ = xᵢ` without a base), one pass takes the Gram matrix `Gᵢⱼ = τᵢ·τⱼ`, and
//! all else follows from it: norms `√Gᵢᵢ`, cosines `Gᵢⱼ / √(Gᵢᵢ·Gⱼⱼ)`, and how much of a vector's energy `Gᵢᵢ` the others
//! have in common with it. Beside it stand counts that it cannot tell: of how many elements two vectors agree in sign (Yadav et
//! al. 2023, <https://arxiv.org/abs/2306.01708>), and how many changed at all.
//!
//! Differences and sums are f64, in tiles of a fixed size that are added in the order of the file: the numbers are the
//! same bits for any number of threads, and within about 1e-15 of exact arithmetic for their size.

use super::elements;
use super::place::{layers_and_blocks, natural};
use super::vectors::Vectors;
use crate::dtype::gram::{BLOCK, Base, Block, Numbers, Registers, Sums};
use crate::dtype::{self, DType, Simd};
use crate::error::Result;
use crate::stream::{self, Control, Settings, TILE};
use faer::{Mat, Side};

/// What is put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// Nothing but all of it.
    #[default]
    Model,
    /// Tensors that are the same thing in different layers, such as `mlp.up_proj.weight`.
    Block,
    /// Tensors of a layer, such as `model.layers.7`.
    Layer,
    /// Each tensor on its own.
    Tensor,
}

impl By {
    /// The names on the command line.
    pub const NAMES: [(&str, Self); 4] =
        [("model", Self::Model), ("block", Self::Block), ("layer", Self::Layer), ("tensor", Self::Tensor)];

    /// What each of some tensors is part of, which follows from the names of all; none if only the whole is asked for.
    #[must_use]
    pub fn parts<'a>(self, tensors: &[&'a str]) -> Vec<Option<&'a str>> {
        let places = || layers_and_blocks(tensors).into_iter();
        match self {
            Self::Model => vec![None; tensors.len()],
            Self::Layer => places().map(|(layer, _)| Some(layer)).collect(),
            Self::Block => places().map(|(_, block)| Some(block)).collect(),
            Self::Tensor => tensors.iter().copied().map(Some).collect(),
        }
    }
}

/// The models compared.
#[derive(Clone, Debug)]
pub struct Similarity {
    /// Over all tensors.
    pub total: Products,
    /// Over the parts that were asked for, in the natural order of their names.
    pub parts: Vec<(String, Products)>,
}

/// What is known of some vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Products {
    vectors: usize,
    /// `i ≤ j`, row by row.
    gram: Vec<f64>,
    /// The same for elements of the same sign, and for elements of which neither is zero.
    agreement: Vec<[u64; 2]>,
    not_finite: Vec<u64>,
    left_out: u64,
    elements: u64,
    base: f64,
}

impl Products {
    fn new(vectors: usize) -> Self {
        Self {
            vectors,
            gram: vec![0.0; vectors * (vectors + 1) / 2],
            agreement: vec![[0; 2]; vectors * (vectors + 1) / 2],
            not_finite: vec![0; vectors],
            left_out: 0,
            elements: 0,
            base: 0.0,
        }
    }

    fn add(&mut self, tile: &Tile) {
        self.gram.iter_mut().zip(&tile.gram).for_each(|(sum, x)| *sum += x);
        for (sum, x) in self.agreement.iter_mut().zip(&tile.agreement) {
            *sum = [sum[0] + u64::from(x[0]), sum[1] + u64::from(x[1])];
        }
        self.not_finite.iter_mut().zip(&tile.not_finite).for_each(|(sum, x)| *sum += u64::from(*x));
        self.left_out += u64::from(tile.left_out);
        self.elements += u64::from(tile.elements);
        self.base += tile.base;
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// How many elements each has.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// How many elements are not finite in a vector. Where one is, the element counts in none.
    #[must_use]
    pub fn not_finite(&self, i: usize) -> u64 {
        self.not_finite[i]
    }

    /// How many elements count in no vector, as one of them is not finite.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// `τᵢ·τⱼ`
    #[must_use]
    pub fn product(&self, i: usize, j: usize) -> f64 {
        self.gram[self.pair(i, j)]
    }

    /// Where the numbers of a pair are.
    fn pair(&self, i: usize, j: usize) -> usize {
        let (i, j) = (i.min(j), i.max(j));
        i * (2 * self.vectors + 1 - i) / 2 + (j - i)
    }

    /// `‖τᵢ‖`
    #[must_use]
    pub fn norm(&self, i: usize) -> f64 {
        self.product(i, i).sqrt()
    }

    /// `‖τᵢ‖ / ‖base‖`; none without a base, or if it is zero.
    #[must_use]
    pub fn relative_norm(&self, i: usize) -> Option<f64> {
        (self.base > 0.0).then(|| (self.product(i, i) / self.base).sqrt()).filter(|norm| norm.is_finite())
    }

    /// `τᵢ·τⱼ / (‖τᵢ‖·‖τⱼ‖)`; none if one of them is zero, or too large for its norm to be a number.
    #[must_use]
    pub fn cosine(&self, i: usize, j: usize) -> Option<f64> {
        let norms = self.norm(i) * self.norm(j);
        if i == j {
            return (norms > 0.0 && norms.is_finite()).then_some(1.0);
        }
        (norms > 0.0 && norms.is_finite()).then(|| (self.product(i, j) / norms).clamp(-1.0, 1.0))
    }

    /// The angle between two vectors in radians, from 0 to π; none if it is undefined.
    #[must_use]
    pub fn angle(&self, i: usize, j: usize) -> Option<f64> {
        self.cosine(i, j).map(f64::acos)
    }

    /// Of the elements that are zero in neither vector, the share that has the same sign; none if there are none.
    #[must_use]
    pub fn sign_agreement(&self, i: usize, j: usize) -> Option<f64> {
        let [same, both] = self.agreement[self.pair(i, j)];
        (both > 0).then(|| same as f64 / both as f64)
    }

    /// The share of the elements that count that are not zero: that changed.
    #[must_use]
    pub fn changed(&self, i: usize) -> f64 {
        let [_, changed] = self.agreement[self.pair(i, i)];
        let elements = self.elements - self.left_out;
        if elements == 0 { 0.0 } else { changed as f64 / elements as f64 }
    }

    /// The share of each vector's energy `‖τᵢ‖²` that no combination of the others has: the squared distance from τᵢ to
    /// what the others span, over `‖τᵢ‖²`. The rest is shared. None for a vector without energy.
    ///
    /// With the cosines `C` of the vectors that are not zero, it is `1 / (C⁺)ᵢᵢ`, or 0 for a vector that is a combination
    /// of others.
    #[must_use]
    pub fn own_energy(&self) -> Vec<Option<f64>> {
        /// Eigenvalues below this share of the largest are rounding.
        const RANK: f64 = 1e-11;
        let some: Vec<usize> = (0..self.vectors).filter(|&i| self.cosine(i, i).is_some()).collect();
        let cosines = Mat::from_fn(some.len(), some.len(), |i, j| self.cosine(some[i], some[j]).unwrap_or(0.0));
        let mut own = vec![None; self.vectors];
        let Ok(eigen) = cosines.self_adjoint_eigen(Side::Lower) else { return own };
        let (values, basis) = (eigen.S().column_vector(), eigen.U());
        let largest = (0..some.len()).map(|k| values[k]).fold(0.0, f64::max);
        for (row, &i) in some.iter().enumerate() {
            let (mut inverse, mut dependent) = (0.0, 0.0);
            for k in 0..some.len() {
                let share = basis[(row, k)] * basis[(row, k)];
                if values[k] > RANK * largest { inverse += share / values[k] } else { dependent += share }
            }
            own[i] = Some(if dependent > 1e-9 { 0.0 } else { (1.0 / inverse).min(1.0) });
        }
        own
    }
}

/// [`Products`] of the elements of a tile.
struct Tile {
    gram: Vec<f64>,
    agreement: Vec<[u32; 2]>,
    not_finite: Vec<u32>,
    left_out: u32,
    elements: u32,
    base: f64,
}

/// Bytes that the results of the tiles in work may take together.
const RESULTS: usize = 16 << 20;

/// Compares models tensor by tensor, and puts the tensors together that `by` says.
///
/// # Errors
/// As [`stream::measure`].
pub fn similarity(vectors: &Vectors<'_>, by: By, settings: &Settings, control: Control<'_>) -> Result<Similarity> {
    let groups = vectors.groups();
    let (names, part_of) = vectors.parts(by);
    let new = |name: &str| (name.to_owned(), Products::new(vectors.models));
    let mut parts: Vec<(String, Products)> = names.into_iter().map(new).collect();
    let mut total = Products::new(vectors.models);
    let simd = Simd::detect();
    // A tile's results: 16 bytes for each pair.
    let window = (RESULTS / (16 * vectors.models * vectors.models).max(64)).max(settings.threads());
    stream::fold(
        &groups,
        TILE,
        window,
        settings,
        control,
        |group, inputs| {
            let vector = &vectors.tensors[group];
            let dtypes: Vec<DType> = vector.models.iter().chain(&vector.base).map(|view| view.tensor.dtype).collect();
            let tile = Tile::of(simd, &dtypes, inputs, vectors.models, false);
            // A number that is not finite makes its vector's square so.
            if tile.gram.iter().all(|product| product.is_finite()) && tile.base.is_finite() {
                tile
            } else {
                Tile::of(simd, &dtypes, inputs, vectors.models, true)
            }
        },
        |group, tile| {
            total.add(&tile);
            if let Some(part) = part_of[group] {
                parts[part].1.add(&tile);
            }
        },
    )?;
    parts.sort_by(|(a, _), (b, _)| natural(a, b));
    Ok(Similarity { total, parts })
}

impl Tile {
    /// Of the same elements of all models, the base's behind them if there is one. With `careful`, elements that are not
    /// finite in one of them are left out.
    fn of(simd: Simd, dtypes: &[DType], inputs: &[&[u8]], models: usize, careful: bool) -> Self {
        let pairs = models * (models + 1) / 2;
        let mut tile = Self {
            gram: vec![0.0; pairs],
            agreement: vec![[0; 2]; pairs],
            not_finite: vec![0; models],
            left_out: 0,
            elements: 0,
            base: 0.0,
        };
        let has_base = inputs.len() > models;
        let is_wide = dtypes.contains(&DType::F64);
        let in_registers = !careful && Registers::can_hold(simd, models, dtypes);
        let mut parts = Vec::with_capacity(models);
        let mut block = Block::new(simd, models);
        let mut base_block = Block::new(simd, usize::from(has_base));
        let (mut numbers, mut base) = (Numbers::new(), Base::new());
        let (mut wide, mut wide_base) = ([0.0f64; BLOCK], [0.0f64; BLOCK]);
        let all = elements::count(dtypes[0], inputs[0]);
        for start in (0..all).step_by(BLOCK) {
            let count = BLOCK.min(all - start);
            let part = |input: usize| elements::part(dtypes[input], inputs[input], start, count);
            if in_registers && count == BLOCK {
                parts.clear();
                parts.extend((0..models).map(part));
                let (vectors, base) = (&parts[..], has_base.then(|| part(models)));
                let Self { gram: products, agreement, base: base_sum, .. } = &mut tile;
                let sums = Sums { products, agreement, base: base_sum };
                Registers { dtype: dtypes[0], vectors, base }.add(simd, sums);
                tile.elements += count as u32;
                continue;
            }
            block.start(count);
            base_block.start(count);
            if is_wide {
                if has_base {
                    dtype::decode_f64(dtypes[models], part(models), &mut wide_base[..count]);
                    base_block.set_f64(0, &wide_base[..count], None);
                }
                for (model, &dtype) in dtypes[..models].iter().enumerate() {
                    dtype::decode_f64(dtype, part(model), &mut wide[..count]);
                    block.set_f64(model, &wide[..count], has_base.then_some(&wide_base[..count]));
                }
            } else {
                if has_base {
                    base.decode(simd, dtypes[models], part(models), count);
                    base_block.set(0, base.numbers(), None);
                }
                for (model, &dtype) in dtypes[..models].iter().enumerate() {
                    numbers.decode(simd, dtype, part(model), count);
                    block.set(model, &numbers, has_base.then_some(&base));
                }
            }
            if careful {
                tile.leave_out(&mut block, &mut base_block, count);
            }
            block.add_products(&mut tile.gram);
            block.add_agreement(&mut tile.agreement);
            if has_base {
                base_block.add_products(std::slice::from_mut(&mut tile.base));
            }
            tile.elements += count as u32;
        }
        tile
    }

    /// Makes the elements zero that are not finite in one of the vectors.
    fn leave_out(&mut self, block: &mut Block, base: &mut Block, count: usize) {
        for element in 0..count {
            let mut any = false;
            for (model, not_finite) in self.not_finite.iter_mut().enumerate() {
                if !block.row(model)[element].is_finite() {
                    *not_finite += 1;
                    any = true;
                }
            }
            if any {
                self.left_out += 1;
                block.clear(element);
                base.clear(element);
            }
        }
    }
}
