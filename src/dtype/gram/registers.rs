//! Products of a few vectors of a 16-bit type, from bytes to sums without leaving the registers.
//!
//! It computes what a [`Block`](super::Block) does, to the bit, for the case that is common and large: up to six models of
//! one type. That takes some 30 registers, so only AVX-512 has it.

use super::{BLOCK, Bits, TOGETHER, WORD, WORDS, add_product, are_small, joined};
use crate::dtype::lanes::{Isa, Kernel, Signs, WIDE};
use crate::dtype::{DType, Simd, check, dispatch};

/// How far ahead of the elements in work a vector's bytes are asked for: two blocks.
const AHEAD: usize = 4 * BLOCK;

/// A whole block of some vectors of one type.
pub struct Registers<'a> {
    /// The type: F16 or BF16.
    pub dtype: DType,
    /// The bytes of each vector.
    pub vectors: &'a [&'a [u8]],
    /// What they are differences from.
    pub base: Option<&'a [u8]>,
}

/// Where sums go.
pub struct Sums<'a> {
    /// The inner products of all pairs `i ≤ j` in row-major order.
    pub products: &'a mut [f64],
    /// For the same pairs, of how many elements the two have the same sign, and of how many neither is zero.
    pub agreement: &'a mut [[u32; 2]],
    /// The base's inner product with itself.
    pub base: &'a mut f64,
}

impl Registers<'_> {
    /// Whether this machine can do it, for so many vectors of these types.
    #[must_use]
    pub fn can_hold(simd: Simd, vectors: usize, dtypes: &[DType]) -> bool {
        let is_one = |dtype: DType| dtypes.iter().all(|other| *other == dtype);
        simd == Simd::Avx512 && (1..=TOGETHER).contains(&vectors) && (is_one(DType::F16) || is_one(DType::BF16))
    }

    /// Adds the block's part to the sums.
    ///
    /// # Panics
    /// If it [cannot](Self::can_hold), or if a vector has not the bytes of a [block](BLOCK) or `sums` not as many pairs.
    pub fn add(&self, simd: Simd, sums: Sums<'_>) {
        assert!(Self::can_hold(simd, self.vectors.len(), &[self.dtype]), "registers hold few vectors of 16-bit types");
        let pairs = self.vectors.len() * (self.vectors.len() + 1) / 2;
        assert!(sums.products.len() == pairs && sums.agreement.len() == pairs, "a sum for each pair");
        self.vectors.iter().chain(&self.base).for_each(|bytes| check(self.dtype, bytes, BLOCK));
        dispatch(simd, Add { block: self, sums });
    }
}

/// [`Registers::add`]
struct Add<'a> {
    block: &'a Registers<'a>,
    sums: Sums<'a>,
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn call<I: Isa>(self, isa: I) {
        if I::IS_LARGE {
            let Registers { dtype, vectors, base } = *self.block;
            let are_small = || vectors.iter().chain(&base).all(|bytes| are_small(bytes));
            match (dtype == DType::F16, base.is_some()) {
                (true, false) => self.by_count::<I, true, false, true>(isa),
                (true, true) if are_small() => self.by_count::<I, true, true, true>(isa),
                (true, true) => self.by_count::<I, true, true, false>(isa),
                (false, false) => self.by_count::<I, false, false, true>(isa),
                (false, true) => self.by_count::<I, false, true, false>(isa),
            }
        }
    }
}

impl Add<'_> {
    #[inline(always)]
    fn by_count<I: Isa, const F16: bool, const BASE: bool, const EXACT: bool>(self, isa: I) {
        match self.block.vectors.len() {
            1 => self.all::<I, F16, BASE, EXACT, 1>(isa),
            2 => self.all::<I, F16, BASE, EXACT, 2>(isa),
            3 => self.all::<I, F16, BASE, EXACT, 3>(isa),
            4 => self.all::<I, F16, BASE, EXACT, 4>(isa),
            5 => self.all::<I, F16, BASE, EXACT, 5>(isa),
            _ => self.all::<I, F16, BASE, EXACT, TOGETHER>(isa),
        }
    }

    #[expect(clippy::needless_range_loop, reason = "iterators keep the sums in memory")]
    #[inline(always)]
    fn all<I: Isa, const F16: bool, const BASE: bool, const EXACT: bool, const N: usize>(self, isa: I) {
        let zero = isa.wide_splat(0.0);
        let mut sums = [[zero; N]; N];
        let mut base_sum = zero;
        let (mut above, mut below): ([Bits; N], [Bits; N]) = ([[0; WORDS]; N], [[0; WORDS]; N]);
        let inputs: [_; N] = std::array::from_fn(|i| self.block.vectors[i].as_chunks::<{ 2 * WORD }>().0);
        let base = self.block.base.map_or(&[][..], |base| base.as_chunks::<{ 2 * WORD }>().0);
        let (mut b, mut x) = ([0.0; WORD], [0.0; WORD]);
        for word in 0..WORDS {
            // A line of each vector for every two words: all at once they would keep the processor waiting.
            if word.is_multiple_of(2) {
                for i in 0..N {
                    isa.prefetch(&inputs[i][word], AHEAD, 1);
                }
                if BASE {
                    isa.prefetch(&base[word], AHEAD, 1);
                }
            }
            let mut wide_base = [zero; 2];
            if BASE {
                load::<I, F16>(isa, &base[word], &mut b);
                wide_base = [isa.widen(&b), isa.widen(&b[WIDE..])];
                for half in wide_base {
                    base_sum = isa.wide_add_exact_product(half, half, base_sum);
                }
            }
            let mut wide = [[zero; 2]; N];
            for i in 0..N {
                load::<I, F16>(isa, &inputs[i][word], &mut x);
                (above[i][word], below[i][word]) = isa.compare(&x, &b);
                for half in 0..2 {
                    wide[i][half] = isa.widen(&x[half * WIDE..]);
                    if BASE {
                        wide[i][half] = isa.wide_subtract(wide[i][half], wide_base[half]);
                    }
                }
            }
            for half in 0..2 {
                for i in 0..N {
                    for j in i..N {
                        sums[i][j] = add_product::<I, EXACT>(isa, wide[i][half], wide[j][half], sums[i][j]);
                    }
                }
            }
        }
        let mut pair = 0;
        for i in 0..N {
            for j in i..N {
                self.sums.products[pair] += isa.wide_sum(sums[i][j]);
                pair += 1;
            }
        }
        *self.sums.base += isa.wide_sum(base_sum);
        let mut signs = [Signs::NONE; N];
        for i in 0..N {
            signs[i] = Signs::of(joined(&above[i]), joined(&below[i]));
        }
        isa.add_agreement(&signs, self.sums.agreement);
    }
}

#[inline(always)]
fn load<I: Isa, const F16: bool>(isa: I, bytes: &[u8; 2 * WORD], out: &mut [f32; WORD]) {
    for part in (0..WORD).step_by(I::LANES) {
        let bytes = &bytes[2 * part..];
        isa.write(if F16 { isa.load_f16(bytes) } else { isa.load_bf16(bytes) }, &mut out[part..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::gram::{Base, Block, Numbers};

    /// Bit patterns of all sizes, or only of numbers below 2, that are finite in both types.
    fn bytes(seed: u32, small: bool) -> Vec<u8> {
        let word = |i: u32| {
            let bits = (i + seed * 977).wrapping_mul(0x9e37_79b9);
            let word = (bits ^ (bits >> 15)) as u16;
            let kept = if small { 0xb7ff } else { 0xf7ff };
            if bits.is_multiple_of(5) { 0 } else { word & kept }
        };
        (0..BLOCK as u32).flat_map(|i| word(i).to_le_bytes()).collect()
    }

    #[test]
    fn sums_are_those_of_a_block_to_the_bit() {
        let simd = Simd::detect();
        let mut tried = 0;
        for dtype in [DType::F16, DType::BF16] {
            for (count, small, has_base) in
                (1..=TOGETHER).flat_map(|n| [(n, true, true), (n, false, true), (n, true, false), (n, false, false)])
            {
                if !Registers::can_hold(simd, count, &[dtype]) {
                    continue;
                }
                let vectors: Vec<Vec<u8>> = (1..=count as u32).map(|seed| bytes(seed, small)).collect();
                let below = bytes(99, small);
                let pairs = count * (count + 1) / 2;

                let (mut products, mut agreement, mut base_sum) = (vec![0.0; pairs], vec![[0; 2]; pairs], 0.0);
                let (mut numbers, mut base) = (Numbers::new(), Base::new());
                base.decode(simd, dtype, &below, BLOCK);
                // Nothing is fused there.
                let mut block = Block::new(Simd::Portable, count);
                block.start(BLOCK);
                for (i, bytes) in vectors.iter().enumerate() {
                    numbers.decode(simd, dtype, bytes, BLOCK);
                    block.set(i, &numbers, has_base.then_some(&base));
                }
                block.add_products(&mut products);
                block.add_agreement(&mut agreement);
                if has_base {
                    let mut block = Block::new(simd, 1);
                    block.start(BLOCK);
                    block.set(0, base.numbers(), None);
                    block.add_products(std::slice::from_mut(&mut base_sum));
                }

                let (mut fast, mut fast_agreement, mut fast_base) = (vec![0.0; pairs], vec![[0; 2]; pairs], 0.0);
                let slices: Vec<&[u8]> = vectors.iter().map(Vec::as_slice).collect();
                let sums = Sums { products: &mut fast, agreement: &mut fast_agreement, base: &mut fast_base };
                let base = has_base.then_some(below.as_slice());
                Registers { dtype, vectors: &slices, base }.add(simd, sums);
                let bits = |sums: &[f64]| -> Vec<u64> { sums.iter().map(|sum| sum.to_bits()).collect() };
                assert_eq!(bits(&fast), bits(&products), "{dtype} {count} {small} {has_base}");
                assert_eq!(fast_agreement, agreement, "{dtype} {count} {small} {has_base}");
                assert_eq!(fast_base.to_bits(), base_sum.to_bits(), "{dtype} {count} {small} {has_base}");
                assert!(products.iter().all(|sum| sum.is_finite() && *sum != 0.0));
                tried += 1;
            }
        }
        assert_eq!(tried, if simd == Simd::Avx512 { 2 * 4 * TOGETHER } else { 0 });
    }
}
