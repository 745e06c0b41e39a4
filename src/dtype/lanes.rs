//! What a kernel sees of an instruction set: registers of f32, and how the three fast types get in and out of them.
//!
//! A [`Kernel`] is written once, over any [`Isa`]; [`Isa::run`] compiles it anew for each. The pattern is memchr's and
//! pulp's: the kernel is `#[inline(always)]` and ends up inside a function that has the target features.
//!
//! [`Portable`] has no instructions of its own. Its registers are arrays, its operations loops over [`super::scalar`],
//! and so it is what the others are compared with.

use super::scalar::{self, Bf16, Element, F16};

/// Work that is to be compiled for an instruction set.
pub(super) trait Kernel {
    /// Must be `#[inline(always)]`, and so must all that it calls.
    fn call<I: Isa>(self, isa: I);
}

/// How far ahead of the element in work inputs are asked for, in bytes. The hardware's own prefetcher stops at every
/// page and follows few streams; on three BF16 inputs in memory this made a merge 10 % faster, and 512 or 4096 less so.
pub(super) const AHEAD: usize = 1024;

/// All bits of an f32 but the sign.
pub(super) const MAGNITUDE: u32 = 0x7fff_ffff;

/// An instruction set. A value of the type is the proof that this CPU has it.
///
/// Slices must hold at least the elements that are read or written; a shorter one panics.
pub(super) trait Isa: Copy {
    /// A register of [`Isa::LANES`] f32.
    type V: Copy;
    /// f32 per register, at most [`MAX_LANES`].
    const LANES: usize;

    /// Runs `kernel`, compiled for this instruction set.
    fn run<K: Kernel>(self, kernel: K);

    /// Asks for the cache lines of `bytes` bytes from `ahead` bytes behind the start of `input`, which may reach past its
    /// end: a hint, which reads nothing.
    #[inline(always)]
    fn prefetch(self, _input: &[u8], _ahead: usize, _bytes: usize) {}

    /// Of the magnitudes of [`Isa::LANES`] numbers, as bits without the sign: which are below `low`, and which are at most
    /// `width` above it. A bit for each.
    fn compare_magnitudes(self, values: &[f32], low: u32, width: u32) -> (u32, u32);

    /// Adds, for all pairs in row-major order, how many elements have the same sign, and of how many neither is zero.
    #[inline(always)]
    fn add_agreement(self, signs: &[Signs], counts: &mut [[u32; 2]]) {
        let mut counts = counts.iter_mut();
        for (i, one) in signs.iter().enumerate() {
            for (other, counts) in signs[i..].iter().zip(&mut counts) {
                for word in 0..Signs::WORDS {
                    let same = (one.above[word] & other.above[word]) | (one.below[word] & other.below[word]);
                    counts[0] += same.count_ones();
                    counts[1] += (one.any[word] & other.any[word]).count_ones();
                }
            }
        }
    }

    /// Of 16 pairs of numbers: which first ones are above the second, and which below. A bit for each.
    fn compare(self, a: &[f32; 16], b: &[f32; 16]) -> (u16, u16);
    /// Whether there are 32 registers of eight f64.
    const IS_LARGE: bool = false;

    /// Eight f64, in as many registers as they take.
    type W: Copy;
    fn wide_splat(self, value: f64) -> Self::W;
    fn wide_read(self, values: &[f64]) -> Self::W;
    fn widen(self, values: &[f32]) -> Self::W;
    fn wide_subtract(self, a: Self::W, b: Self::W) -> Self::W;
    /// Whether the machine fuses: to be used only where products are exact, so that it makes no difference.
    fn wide_add_exact_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W;
    fn wide_add_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W;
    /// The sum of the eight: halves are added, then halves of those.
    fn wide_sum(self, v: Self::W) -> f64;

    fn splat(self, value: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

    /// Numbers that are f32 already, kept bit for bit.
    fn read(self, values: &[f32]) -> Self::V;
    fn write(self, v: Self::V, values: &mut [f32]);

    fn load_f32(self, bytes: &[u8]) -> Self::V;
    fn load_f16(self, bytes: &[u8]) -> Self::V;
    fn load_bf16(self, bytes: &[u8]) -> Self::V;

    fn store_f32(self, v: Self::V, bytes: &mut [u8]);
    fn store_f16(self, v: Self::V, bytes: &mut [u8]);
    fn store_bf16(self, v: Self::V, bytes: &mut [u8]);

    /// Twice [`Isa::LANES`] BF16: those at even places, then those at odd ones.
    ///
    /// A BF16 at an odd place is an f32 under a mask, at an even place under a shift, so this is half the work of
    /// loading them in order, and its inverse a third.
    fn load_bf16_halves(self, bytes: &[u8]) -> [Self::V; 2];
    fn store_bf16_halves(self, halves: [Self::V; 2], bytes: &mut [u8]);
}

/// Which elements of a block of 512 are positive, negative, and either.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Signs {
    pub(super) above: [u64; Self::WORDS],
    pub(super) below: [u64; Self::WORDS],
    pub(super) any: [u64; Self::WORDS],
}

impl Signs {
    pub(super) const WORDS: usize = 8;
    /// Of what is positive and what is negative.
    #[inline(always)]
    pub(super) fn of(above: [u64; Self::WORDS], below: [u64; Self::WORDS]) -> Self {
        Self { above, below, any: std::array::from_fn(|word| above[word] | below[word]) }
    }

    pub(super) const NONE: Self = Self { above: [0; Self::WORDS], below: [0; Self::WORDS], any: [0; Self::WORDS] };
}

/// f64 in an [`Isa::W`].
pub(super) const WIDE: usize = 8;

/// The most lanes of any [`Isa`].
pub(super) const MAX_LANES: usize = 16;

/// How elements of one type move between memory and a pair of registers.
pub(super) trait Codec {
    /// Bytes per element.
    const BYTES: usize;
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> [I::V; 2];
    fn store<I: Isa>(isa: I, pair: [I::V; 2], bytes: &mut [u8]);
}

macro_rules! in_order {
    ($codec:ty, $bytes:literal, $load:ident, $store:ident) => {
        impl Codec for $codec {
            const BYTES: usize = $bytes;
            #[inline(always)]
            fn load<I: Isa>(isa: I, bytes: &[u8]) -> [I::V; 2] {
                [isa.$load(bytes), isa.$load(&bytes[I::LANES * $bytes..])]
            }
            #[inline(always)]
            fn store<I: Isa>(isa: I, [low, high]: [I::V; 2], bytes: &mut [u8]) {
                isa.$store(low, bytes);
                isa.$store(high, &mut bytes[I::LANES * $bytes..]);
            }
        }
    };
}

in_order!(f32, 4, load_f32, store_f32);
in_order!(F16, 2, load_f16, store_f16);
in_order!(Bf16, 2, load_bf16, store_bf16);

/// BF16 in the order of [`Isa::load_bf16_halves`]: for kernels that load and store nothing else.
pub(super) struct Bf16Halves;

impl Codec for Bf16Halves {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<I: Isa>(isa: I, bytes: &[u8]) -> [I::V; 2] {
        isa.load_bf16_halves(bytes)
    }
    #[inline(always)]
    fn store<I: Isa>(isa: I, pair: [I::V; 2], bytes: &mut [u8]) {
        isa.store_bf16_halves(pair, bytes);
    }
}

/// The first `N` elements: a length check that disappears where the compiler knows the length.
#[inline(always)]
pub(super) fn first<T, const N: usize>(values: &[T]) -> &[T; N] {
    values.first_chunk().expect("a whole register's worth of elements")
}

/// [`first`], to be written to.
#[inline(always)]
pub(super) fn first_mut<T, const N: usize>(values: &mut [T]) -> &mut [T; N] {
    values.first_chunk_mut().expect("a whole register's worth of elements")
}

/// No instruction set: arrays, and whatever the compiler makes of loops over them.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// Enough for two SSE2 or NEON registers.
const LANES: usize = 8;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], op: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = op(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn load<E: Element<N>, const N: usize>(bytes: &[u8]) -> [f32; LANES] {
    let elements: &[[u8; N]; LANES] = first(bytes.as_chunks().0);
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = E::to_f32(elements[i]);
    }
    out
}

#[inline(always)]
fn store<E: Element<N>, const N: usize>(v: [f32; LANES], bytes: &mut [u8]) {
    let elements: &mut [[u8; N]; LANES] = first_mut(bytes.as_chunks_mut().0);
    for i in 0..LANES {
        elements[i] = E::from_f32(v[i]);
    }
}

impl Isa for Portable {
    type V = [f32; LANES];
    const LANES: usize = LANES;

    fn run<K: Kernel>(self, kernel: K) {
        kernel.call(self);
    }

    #[inline(always)]
    fn compare_magnitudes(self, values: &[f32], low: u32, width: u32) -> (u32, u32) {
        let (mut below, mut within) = (0, 0);
        for (lane, value) in first::<f32, LANES>(values).iter().enumerate() {
            let magnitude = value.to_bits() & MAGNITUDE;
            below |= u32::from(magnitude < low) << lane;
            within |= u32::from(magnitude.wrapping_sub(low) <= width) << lane;
        }
        (below, within)
    }
    #[inline(always)]
    fn compare(self, a: &[f32; 16], b: &[f32; 16]) -> (u16, u16) {
        let (mut above, mut below) = (0, 0);
        for i in 0..16 {
            above |= u16::from(a[i] > b[i]) << i;
            below |= u16::from(a[i] < b[i]) << i;
        }
        (above, below)
    }

    type W = [f64; WIDE];
    #[inline(always)]
    fn wide_splat(self, value: f64) -> Self::W {
        [value; WIDE]
    }
    #[inline(always)]
    fn wide_read(self, values: &[f64]) -> Self::W {
        *first(values)
    }
    #[inline(always)]
    fn widen(self, values: &[f32]) -> Self::W {
        first::<f32, WIDE>(values).map(f64::from)
    }
    #[inline(always)]
    fn wide_subtract(self, a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn wide_add_exact_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W {
        self.wide_add_product(a, b, sum)
    }
    #[inline(always)]
    fn wide_add_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W {
        let mut out = sum;
        for i in 0..WIDE {
            out[i] += a[i] * b[i];
        }
        out
    }
    #[inline(always)]
    fn wide_sum(self, [a, b, c, d, e, f, g, h]: Self::W) -> f64 {
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn read(self, values: &[f32]) -> Self::V {
        *first(values)
    }
    #[inline(always)]
    fn write(self, v: Self::V, values: &mut [f32]) {
        *first_mut(values) = v;
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8]) -> Self::V {
        load::<f32, 4>(bytes)
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8]) -> Self::V {
        load::<F16, 2>(bytes)
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8]) -> Self::V {
        load::<Bf16, 2>(bytes)
    }

    #[inline(always)]
    fn store_f32(self, v: Self::V, bytes: &mut [u8]) {
        store::<f32, 4>(v, bytes);
    }
    #[inline(always)]
    fn store_f16(self, v: Self::V, bytes: &mut [u8]) {
        store::<F16, 2>(v, bytes);
    }
    #[inline(always)]
    fn store_bf16(self, v: Self::V, bytes: &mut [u8]) {
        store::<Bf16, 2>(v, bytes);
    }

    #[inline(always)]
    fn load_bf16_halves(self, bytes: &[u8]) -> [Self::V; 2] {
        let words: &[[u8; 4]; LANES] = first(bytes.as_chunks().0);
        let mut halves = [[0.0; LANES]; 2];
        for i in 0..LANES {
            let word = u32::from_le_bytes(words[i]);
            halves[0][i] = f32::from_bits(word << 16);
            halves[1][i] = f32::from_bits(word & 0xffff_0000);
        }
        halves
    }
    #[inline(always)]
    fn store_bf16_halves(self, halves: [Self::V; 2], bytes: &mut [u8]) {
        let words: &mut [[u8; 4]; LANES] = first_mut(bytes.as_chunks_mut().0);
        for i in 0..LANES {
            let even = round_to_upper_half(halves[0][i]) >> 16;
            let odd = round_to_upper_half(halves[1][i]) & 0xffff_0000;
            words[i] = (even | odd).to_le_bytes();
        }
    }
}

/// The BF16 nearest to `value` in the upper half, ties to even; the lower half is left over.
#[inline(always)]
fn round_to_upper_half(value: f32) -> u32 {
    let bits = scalar::canonical(value).to_bits();
    bits + 0x7fff + ((bits >> 16) & 1)
}
