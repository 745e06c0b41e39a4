//! Inner products of many vectors, a block of their elements at a time.
//!
//! Vectors are f32 numbers, or differences of two, which are taken in f64. A product of two f32 is exact in f64, so that
//! a machine may fuse it with the addition behind it without that anybody can tell; products of differences are rounded
//! first, on every machine. Each pair keeps eight partial sums over a block, whatever the registers' width, so the
//! numbers do not depend on the instruction set, or on which other vectors there are.

mod registers;

pub use registers::{Registers, Sums};

use super::lanes::{Isa, Kernel, MAX_LANES, Signs, WIDE};
use super::{DType, Simd, dispatch};

/// The most elements of a vector that are held at a time: few enough that those of eight vectors stay in the first-level
/// cache.
pub const BLOCK: usize = 512;

/// Vectors whose sums with each other are taken in one go, in registers.
const TOGETHER: usize = 6;
/// Beyond [`TOGETHER`], vectors are taken in groups of so many.
const GROUP: usize = 4;
/// Groups whose elements stay in the second-level cache while they meet others.
const GROUPS: usize = 32;

/// Elements in a word of bits, as many as are compared at a time, and words of a block.
const WORD: usize = u16::BITS as usize;
const WORDS: usize = BLOCK / WORD;

/// One bit for each element of a block.
type Bits = [u16; WORDS];

/// A block of a vector. It begins where a cache line does, and rows are no multiple of a page apart, which would have them
/// compete for the same lines of the cache.
#[derive(Clone)]
#[repr(align(64))]
struct Row([f64; BLOCK], #[expect(dead_code, reason = "padding")] [f64; 2 * WIDE]);

impl Row {
    const ZEROS: Self = Self([0.0; BLOCK], [0.0; 2 * WIDE]);
}

/// A block of numbers, and zeros behind them.
#[repr(align(64))]
pub struct Numbers {
    values: [f32; BLOCK],
    count: usize,
    /// Whether all are multiples of 2⁻²⁴ below 2: then a difference of two has at most 26 bits, and a product of two
    /// differences 52, so that it is exact.
    is_fine: bool,
}

/// The bits of two F16 that are 0 in finite numbers below 2.
const LARGE: u32 = 0x4000_4000;

/// Whether all F16 are finite and below 2. They are multiples of 2⁻²⁴ anyway.
struct AreSmall<'a>(&'a [u8], &'a mut bool);

impl Kernel for AreSmall<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        *self.1 = are_small(self.0);
    }
}

/// [`AreSmall`]
#[inline(always)]
fn are_small(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<4>();
    let bits = words.iter().fold(0, |bits, word| bits | u32::from_le_bytes(*word));
    let rest = rest.as_chunks::<2>().0.iter().fold(0, |bits, word| bits | u16::from_le_bytes(*word));
    (bits | u32::from(rest)) & LARGE == 0
}

impl Numbers {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self { values: [0.0; BLOCK], count: 0, is_fine: true }
    }

    /// Takes the next `count` elements, which `bytes` hold.
    ///
    /// # Panics
    /// If there are more than [`BLOCK`], or as [`decode`](super::decode).
    pub fn decode(&mut self, simd: Simd, dtype: DType, bytes: &[u8], count: usize) {
        if count < self.count {
            self.values[count..].fill(0.0);
        }
        self.count = count;
        self.is_fine = false;
        if dtype == DType::F16 {
            dispatch(simd, AreSmall(bytes, &mut self.is_fine));
        }
        super::decode(simd, dtype, bytes, &mut self.values[..count]);
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::new()
    }
}

/// What vectors are differences from: a block of it.
pub struct Base {
    numbers: Numbers,
    wide: Row,
}

impl Base {
    /// Of which there are no elements yet.
    #[must_use]
    pub fn new() -> Self {
        Self { numbers: Numbers::new(), wide: Row::ZEROS }
    }

    /// Takes the next `count` elements, which `bytes` hold.
    ///
    /// # Panics
    /// As [`Numbers::decode`].
    pub fn decode(&mut self, simd: Simd, dtype: DType, bytes: &[u8], count: usize) {
        self.numbers.decode(simd, dtype, bytes, count);
        dispatch(simd, Widen { x: &self.numbers.values, wide: &mut self.wide.0 });
    }

    /// The elements.
    #[must_use]
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }
}

impl Default for Base {
    fn default() -> Self {
        Self::new()
    }
}

/// The same elements of some vectors.
pub struct Block {
    simd: Simd,
    count: usize,
    /// Zeros behind the last element, and in the rows that fill the last group.
    rows: Vec<Row>,
    above: Vec<Bits>,
    below: Vec<Bits>,
    signs: Vec<Signs>,
    /// How many elements of each row are in use: a whole number of [`MAX_LANES`].
    length: usize,
    /// Whether all products of its numbers are exact.
    exact: bool,
}

impl Block {
    /// For `count` vectors, of which there are no elements yet.
    #[must_use]
    pub fn new(simd: Simd, count: usize) -> Self {
        let rows = vec![Row::ZEROS; count.next_multiple_of(GROUP)];
        let bits = vec![[0; WORDS]; count];
        let (below, signs) = (bits.clone(), vec![Signs::NONE; count]);
        Self { simd, count, rows, above: bits, below, signs, length: 0, exact: true }
    }

    /// Makes room for the next `elements` elements of all vectors, each of which must be set then.
    ///
    /// # Panics
    /// If there are more than [`BLOCK`].
    pub fn start(&mut self, elements: usize) {
        assert!(elements <= BLOCK, "a block has at most {BLOCK} elements, not {elements}");
        let length = elements.next_multiple_of(MAX_LANES);
        if length > elements || length < self.length {
            self.rows.iter_mut().for_each(|row| row.0.fill(0.0));
        }
        (self.length, self.exact) = (length, true);
    }

    /// The elements of a vector: those of `x`, less those of `base` if there is one.
    pub fn set(&mut self, vector: usize, x: &Numbers, base: Option<&Base>) {
        let row = &mut self.rows[vector].0;
        let (above, below) = (&mut self.above[vector], &mut self.below[vector]);
        dispatch(self.simd, Set { x: &x.values, base, row, above, below });
        self.exact &= base.is_none_or(|base| x.is_fine && base.numbers.is_fine);
    }

    /// [`Self::set`] of f64.
    ///
    /// # Panics
    /// If there are more than [`BLOCK`], or `base` has another number of elements.
    pub fn set_f64(&mut self, vector: usize, x: &[f64], base: Option<&[f64]>) {
        self.exact = false;
        let row = &mut self.rows[vector].0[..x.len()];
        match base {
            None => row.copy_from_slice(x),
            Some(base) => {
                assert_eq!(x.len(), base.len(), "as many elements of the base");
                row.iter_mut().zip(x.iter().zip(base)).for_each(|(row, (x, b))| *row = x - b);
            }
        }
        let row = &self.rows[vector].0;
        let bits = |is: fn(f64) -> bool| {
            let word = |word: &[f64]| word.iter().enumerate().fold(0, |bits, (i, x)| bits | u16::from(is(*x)) << i);
            std::array::from_fn(|i| word(&row[WORD * i..][..WORD]))
        };
        self.above[vector] = bits(|x| x > 0.0);
        self.below[vector] = bits(|x| x < 0.0);
    }

    /// Makes an element of all vectors zero.
    pub fn clear(&mut self, element: usize) {
        for vector in 0..self.count {
            self.rows[vector].0[element] = 0.0;
            self.above[vector][element / WORD] &= !(1 << (element % WORD));
            self.below[vector][element / WORD] &= !(1 << (element % WORD));
        }
    }

    /// A vector's elements, and zeros behind them.
    #[must_use]
    pub fn row(&self, vector: usize) -> &[f64] {
        &self.rows[vector].0[..self.length]
    }

    /// Adds the inner products of all pairs `i ≤ j`, which are in row-major order.
    ///
    /// # Panics
    /// If `sums` has not as many.
    pub fn add_products(&self, sums: &mut [f64]) {
        assert_eq!(sums.len(), self.count * (self.count + 1) / 2, "a sum for each pair");
        dispatch(self.simd, Products { block: self, sums });
    }

    /// Adds, for all pairs `i ≤ j` in row-major order, of how many elements the two have the same sign, and of how many
    /// neither is zero.
    ///
    /// # Panics
    /// If `counts` has not as many.
    pub fn add_agreement(&mut self, counts: &mut [[u32; 2]]) {
        assert_eq!(counts.len(), self.count * (self.count + 1) / 2, "a count for each pair");
        dispatch(self.simd, Agreement { block: self, counts });
    }
}

/// `wide[i] = x[i]`
struct Widen<'a> {
    x: &'a [f32; BLOCK],
    wide: &'a mut [f64; BLOCK],
}

impl Kernel for Widen<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, _: I) {
        for i in 0..BLOCK {
            self.wide[i] = f64::from(self.x[i]);
        }
    }
}

/// [`Block::set`]
struct Set<'a> {
    x: &'a [f32; BLOCK],
    base: Option<&'a Base>,
    row: &'a mut [f64; BLOCK],
    above: &'a mut Bits,
    below: &'a mut Bits,
}

impl Kernel for Set<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let Self { x, base, row, above, below } = self;
        match base {
            None => {
                Widen { x, wide: row }.call(isa);
                let zeros = [0.0; WORD];
                let (x, _) = x.as_chunks::<WORD>();
                for word in 0..WORDS {
                    (above[word], below[word]) = isa.compare(&x[word], &zeros);
                }
            }
            Some(Base { numbers, wide }) => {
                for i in 0..BLOCK {
                    row[i] = f64::from(x[i]) - wide.0[i];
                }
                let ((x, _), (base, _)) = (x.as_chunks::<WORD>(), numbers.values.as_chunks::<WORD>());
                for word in 0..WORDS {
                    (above[word], below[word]) = isa.compare(&x[word], &base[word]);
                }
            }
        }
    }
}

/// [`Block::add_products`]
struct Products<'a> {
    block: &'a Block,
    sums: &'a mut [f64],
}

impl Kernel for Products<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        if self.block.exact { self.all::<I, true>(isa) } else { self.all::<I, false>(isa) }
    }
}

impl Products<'_> {
    #[inline(always)]
    fn all<I: Isa, const EXACT: bool>(mut self, isa: I) {
        match self.block.count {
            0 => {}
            1 => self.triangle::<I, EXACT, 1>(isa, 0),
            2 => self.triangle::<I, EXACT, 2>(isa, 0),
            3 => self.triangle::<I, EXACT, 3>(isa, 0),
            4 => self.triangle::<I, EXACT, 4>(isa, 0),
            5 => self.triangle::<I, EXACT, 5>(isa, 0),
            TOGETHER => self.triangle::<I, EXACT, TOGETHER>(isa, 0),
            count => {
                let groups = count.div_ceil(GROUP);
                for rows in (0..groups).step_by(GROUPS) {
                    for columns in (rows..groups).step_by(GROUPS) {
                        for i in rows..groups.min(rows + GROUPS) {
                            if rows == columns {
                                self.triangle::<I, EXACT, GROUP>(isa, GROUP * i);
                            }
                            for j in columns.max(i + 1)..groups.min(columns + GROUPS) {
                                self.rectangle::<I, EXACT>(isa, GROUP * i, GROUP * j);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Some vectors with each other.
    #[inline(always)]
    fn triangle<I: Isa, const EXACT: bool, const N: usize>(&mut self, isa: I, first: usize) {
        let rows = &self.block.rows[first..][..N];
        let mut sums = [[isa.wide_splat(0.0); N]; N];
        for at in (0..self.block.length).step_by(WIDE) {
            let mut x = [isa.wide_splat(0.0); N];
            for i in 0..N {
                x[i] = isa.wide_read(&rows[i].0[at..]);
            }
            for i in 0..N {
                for j in i..N {
                    sums[i][j] = add_product::<I, EXACT>(isa, x[i], x[j], sums[i][j]);
                }
            }
        }
        #[expect(clippy::needless_range_loop, reason = "an iterator keeps the sums in memory")]
        for i in 0..N {
            for j in i..N {
                self.add(first + i, first + j, isa.wide_sum(sums[i][j]));
            }
        }
    }

    /// The vectors of two groups with those of the other.
    #[inline(always)]
    fn rectangle<I: Isa, const EXACT: bool>(&mut self, isa: I, above: usize, right: usize) {
        let rows = &self.block.rows[above..][..GROUP];
        let columns = &self.block.rows[right..][..GROUP];
        let mut sums = [[isa.wide_splat(0.0); GROUP]; GROUP];
        for at in (0..self.block.length).step_by(WIDE) {
            let mut x = [isa.wide_splat(0.0); GROUP];
            let mut y = [isa.wide_splat(0.0); GROUP];
            for i in 0..GROUP {
                x[i] = isa.wide_read(&rows[i].0[at..]);
                y[i] = isa.wide_read(&columns[i].0[at..]);
            }
            for i in 0..GROUP {
                for j in 0..GROUP {
                    sums[i][j] = add_product::<I, EXACT>(isa, x[i], y[j], sums[i][j]);
                }
            }
        }
        #[expect(clippy::needless_range_loop, reason = "an iterator keeps the sums in memory")]
        for i in 0..GROUP {
            for j in 0..GROUP {
                self.add(above + i, right + j, isa.wide_sum(sums[i][j]));
            }
        }
    }

    #[inline(always)]
    fn add(&mut self, i: usize, j: usize, sum: f64) {
        let count = self.block.count;
        if j < count {
            self.sums[i * (2 * count + 1 - i) / 2 + (j - i)] += sum;
        }
    }
}

#[inline(always)]
fn add_product<I: Isa, const EXACT: bool>(isa: I, a: I::W, b: I::W, sum: I::W) -> I::W {
    if EXACT { isa.wide_add_exact_product(a, b, sum) } else { isa.wide_add_product(a, b, sum) }
}

/// [`Block::add_agreement`]
struct Agreement<'a> {
    block: &'a mut Block,
    counts: &'a mut [[u32; 2]],
}

impl Kernel for Agreement<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        let Self { block, counts } = self;
        for ((signs, above), below) in block.signs.iter_mut().zip(&block.above).zip(&block.below) {
            *signs = Signs::of(joined(above), joined(below));
        }
        isa.add_agreement(&block.signs, counts);
    }
}

/// Four words of bits as one.
#[inline(always)]
fn joined(bits: &Bits) -> [u64; Signs::WORDS] {
    let (words, _) = bits.as_chunks::<4>();
    std::array::from_fn(|at| (0..4).fold(0, |joined, i| joined | u64::from(words[at][i]) << (16 * i)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of many sizes and both signs, some zero.
    fn numbers(seed: u32, count: usize) -> Vec<f32> {
        let next = |i: usize| {
            let bits = (i as u32).wrapping_add(seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
            (bits ^ (bits >> 13)).wrapping_mul(0xc2b2_ae35)
        };
        (0..count)
            .map(next)
            .map(|x| if x % 7 == 0 { 0.0 } else { (x as i32) as f32 * 2f32.powi((x % 9) as i32 - 40) })
            .collect()
    }

    fn bytes_of(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn block_of(values: &[f32]) -> Numbers {
        let mut numbers = Numbers::new();
        numbers.decode(Simd::detect(), DType::F32, &bytes_of(values), values.len());
        numbers
    }

    #[test]
    fn products_and_signs_are_those_of_the_definition_on_every_instruction_set() {
        for count in [1, 2, 3, 4, 5, 6, 7, 8, 9, 150] {
            for length in [0, 1, 7, 16, 100, 511, 512] {
                for with_base in [false, true] {
                    let vectors: Vec<Vec<f32>> = (0..count).map(|i| numbers(i as u32 + 1, length)).collect();
                    let base_numbers = with_base.then(|| numbers(77, length));
                    let mut base = Base::new();
                    base_numbers.iter().for_each(|x| base.decode(Simd::detect(), DType::F32, &bytes_of(x), length));
                    let mut results = Vec::new();
                    for simd in Simd::available() {
                        let mut block = Block::new(simd, count);
                        // Leavings of a longer block must not count.
                        block.start(BLOCK);
                        (0..count).for_each(|i| block.set(i, &block_of(&[1.0; BLOCK]), None));
                        block.start(length);
                        for (i, vector) in vectors.iter().enumerate() {
                            block.set(i, &block_of(vector), with_base.then_some(&base));
                        }
                        let mut sums = vec![0.0; count * (count + 1) / 2];
                        let mut counts = vec![[0; 2]; count * (count + 1) / 2];
                        block.add_products(&mut sums);
                        block.add_agreement(&mut counts);
                        results.push((sums, counts));
                    }
                    assert!(results.iter().all(|result| *result == results[0]), "{count} {length} {with_base}");

                    let (sums, counts) = &results[0];
                    let wide: Vec<Vec<f64>> = vectors
                        .iter()
                        .map(|v| {
                            (0..length)
                                .map(|e| f64::from(v[e]) - base_numbers.as_ref().map_or(0.0, |b| f64::from(b[e])))
                                .collect()
                        })
                        .collect();
                    let mut pair = 0;
                    for i in 0..count {
                        for j in i..count {
                            let products = || wide[i].iter().zip(&wide[j]).map(|(a, b)| a * b);
                            let size: f64 = products().map(f64::abs).sum();
                            assert!((sums[pair] - products().sum::<f64>()).abs() <= 1e-13 * size, "{i} {j}");
                            let same = products().filter(|product| *product > 0.0).count();
                            let both = products().filter(|product| *product != 0.0).count();
                            assert_eq!(counts[pair], [same as u32, both as u32], "{i} {j}");
                            pair += 1;
                        }
                    }
                }
            }
        }
    }
}
