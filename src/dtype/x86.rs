//! The registers of x86-64: AVX2 with F16C, and AVX-512.
//!
//! Three things differ from the obvious instructions. BF16 is rounded by integer arithmetic, for `vcvtneps2bf16` takes
//! subnormals for zero. Products and sums are never fused, for `a·b + c` rounded once is another number, but where the
//! product is exact. Every NaN
//! becomes the canonical one just before it is narrowed.
#![expect(unsafe_code, reason = "intrinsics; each is guarded by a token that only feature detection hands out")]

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::lanes::{Isa, Kernel, MAGNITUDE, Portable, Signs, first, first_mut};
use super::scalar::NAN_F32;

/// Bytes of a cache line.
const LINE: usize = 64;

/// [`Isa::prefetch`]
#[inline(always)]
fn prefetch(input: &[u8], ahead: usize, bytes: usize) {
    for line in (0..bytes).step_by(LINE) {
        // SAFETY: SSE is part of x86-64, and a prefetch of any address is allowed: it neither reads nor faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(input.as_ptr().wrapping_add(ahead + line).cast()) };
    }
}

/// The sum of four f64: halves are added, then what they hold.
#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_four(v: __m256d) -> f64 {
    let halves = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
    _mm_cvtsd_f64(_mm_add_sd(halves, _mm_unpackhi_pd(halves, halves)))
}

/// [`Isa::add_agreement`] with an instruction that counts the bits of eight words.
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
fn add_agreement(signs: &[Signs], counts: &mut [[u32; 2]]) {
    // SAFETY: eight words are there.
    let load = |words: &[u64; Signs::WORDS]| unsafe { _mm512_loadu_epi64(words.as_ptr().cast()) };
    let mut counts = counts.iter_mut();
    for (i, one) in signs.iter().enumerate() {
        let (above, below, any) = (load(&one.above), load(&one.below), load(&one.any));
        for (other, counts) in signs[i..].iter().zip(&mut counts) {
            let both_above = _mm512_and_epi64(above, load(&other.above));
            let same = _mm512_or_epi64(both_above, _mm512_and_epi64(below, load(&other.below)));
            let neither_zero = _mm512_and_epi64(any, load(&other.any));
            // Both counts in one word, to be added up once.
            let wide = _mm512_slli_epi64::<32>(_mm512_popcnt_epi64(neither_zero));
            let both = _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_popcnt_epi64(same), wide));
            counts[0] += both as u32;
            counts[1] += (both >> 32) as u32;
        }
    }
}

/// AVX2, FMA, F16C and POPCNT are there.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// AVX-512 F, BW, VL and DQ are there, and all of [`Avx2`].
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        let ask = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("popcnt")
        };
        FOUND.get_or_init(ask).then_some(Self(()))
    }

    /// Canonical NaNs for any NaN.
    #[inline(always)]
    fn canonical(self, v: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_blendv_ps(v, _mm256_set1_ps(NAN_F32), _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v)) }
    }

    /// The BF16 nearest to each in its upper half; the lower half is left over.
    #[inline(always)]
    fn round_to_upper_half(self, v: __m256) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let bits = _mm256_castps_si256(self.canonical(v));
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd)
        }
    }
}

impl Isa for Avx2 {
    type V = __m256;
    const LANES: usize = 8;

    fn run<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "popcnt,avx2,fma,f16c")]
        fn compiled<K: Kernel>(isa: Avx2, kernel: K) {
            kernel.call(isa);
        }
        // SAFETY: `self` proves AVX2, FMA, F16C and POPCNT.
        unsafe { compiled(self, kernel) }
    }

    #[inline(always)]
    fn prefetch(self, input: &[u8], ahead: usize, bytes: usize) {
        prefetch(input, ahead, bytes);
    }
    #[inline(always)]
    fn compare_magnitudes(self, values: &[f32], low: u32, width: u32) -> (u32, u32) {
        let values: &[f32; 8] = first(values);
        // SAFETY: `self` proves AVX2; eight f32 are there.
        unsafe {
            let bits = _mm256_loadu_si256(values.as_ptr().cast());
            let magnitudes = _mm256_and_si256(bits, _mm256_set1_epi32(MAGNITUDE as i32));
            let (low, width) = (_mm256_set1_epi32(low as i32), _mm256_set1_epi32(width as i32));
            // Neither has the upper bit, so that comparing them as signed numbers is right.
            let below = _mm256_cmpgt_epi32(low, magnitudes);
            let above = _mm256_sub_epi32(magnitudes, low);
            let within = _mm256_cmpeq_epi32(_mm256_min_epu32(above, width), above);
            let mask = |lanes| _mm256_movemask_ps(_mm256_castsi256_ps(lanes)) as u32;
            (mask(below), mask(within))
        }
    }
    #[inline(always)]
    fn compare(self, a: &[f32; 16], b: &[f32; 16]) -> (u16, u16) {
        let half = |at: usize| {
            let (a, b): (&[f32; 8], &[f32; 8]) = (first(&a[at..]), first(&b[at..]));
            // SAFETY: `self` proves AVX2; eight f32 are in each.
            unsafe {
                let (a, b) = (_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr()));
                let above = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b));
                let below = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b));
                (above as u16, below as u16)
            }
        };
        let (low, high) = (half(0), half(8));
        (low.0 | high.0 << 8, low.1 | high.1 << 8)
    }

    type W = [__m256d; 2];
    #[inline(always)]
    fn wide_splat(self, value: f64) -> Self::W {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_set1_pd(value); 2] }
    }
    #[inline(always)]
    fn wide_read(self, values: &[f64]) -> Self::W {
        let values: &[f64; 8] = first(values);
        // SAFETY: `self` proves AVX2; eight f64 are there.
        unsafe { [_mm256_loadu_pd(values.as_ptr()), _mm256_loadu_pd(values[4..].as_ptr())] }
    }
    #[inline(always)]
    fn widen(self, values: &[f32]) -> Self::W {
        let values: &[f32; 8] = first(values);
        // SAFETY: `self` proves AVX2; eight f32 are there.
        unsafe { [_mm256_cvtps_pd(_mm_loadu_ps(values.as_ptr())), _mm256_cvtps_pd(_mm_loadu_ps(values[4..].as_ptr()))] }
    }
    #[inline(always)]
    fn wide_subtract(self, a: Self::W, b: Self::W) -> Self::W {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_sub_pd(a[0], b[0]), _mm256_sub_pd(a[1], b[1])] }
    }
    #[inline(always)]
    fn wide_add_exact_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W {
        // SAFETY: `self` proves FMA.
        unsafe { [_mm256_fmadd_pd(a[0], b[0], sum[0]), _mm256_fmadd_pd(a[1], b[1], sum[1])] }
    }
    #[inline(always)]
    fn wide_add_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_add_pd(sum[0], _mm256_mul_pd(a[0], b[0])), _mm256_add_pd(sum[1], _mm256_mul_pd(a[1], b[1]))] }
    }
    #[inline(always)]
    fn wide_sum(self, v: Self::W) -> f64 {
        // SAFETY: `self` proves AVX2.
        unsafe { sum_of_four(_mm256_add_pd(v[0], v[1])) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX2.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn read(self, values: &[f32]) -> __m256 {
        let values: &[f32; 8] = first(values);
        // SAFETY: `self` proves AVX2; eight f32 are there.
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    fn write(self, v: __m256, values: &mut [f32]) {
        let values: &mut [f32; 8] = first_mut(values);
        // SAFETY: `self` proves AVX2; eight f32 are there.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8]) -> __m256 {
        let bytes: &[u8; 32] = first(bytes);
        // SAFETY: `self` proves AVX2; 32 bytes are there.
        unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8]) -> __m256 {
        let bytes: &[u8; 16] = first(bytes);
        // SAFETY: `self` proves F16C; 16 bytes are there.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8]) -> __m256 {
        let bytes: &[u8; 16] = first(bytes);
        // SAFETY: `self` proves AVX2; 16 bytes are there.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn store_f32(self, v: __m256, bytes: &mut [u8]) {
        let bytes: &mut [u8; 32] = first_mut(bytes);
        // SAFETY: `self` proves AVX2; 32 bytes are there.
        unsafe { _mm256_storeu_ps(bytes.as_mut_ptr().cast(), self.canonical(v)) }
    }
    #[inline(always)]
    fn store_f16(self, v: __m256, bytes: &mut [u8]) {
        let bytes: &mut [u8; 16] = first_mut(bytes);
        // SAFETY: `self` proves F16C; 16 bytes are there.
        unsafe {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.canonical(v));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), halves);
        }
    }
    #[inline(always)]
    fn store_bf16(self, v: __m256, bytes: &mut [u8]) {
        let bytes: &mut [u8; 16] = first_mut(bytes);
        // SAFETY: `self` proves AVX2; 16 bytes are there.
        unsafe {
            let words = _mm256_srli_epi32::<16>(self.round_to_upper_half(v));
            let packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), packed);
        }
    }

    #[inline(always)]
    fn load_bf16_halves(self, bytes: &[u8]) -> [__m256; 2] {
        let bytes: &[u8; 32] = first(bytes);
        // SAFETY: `self` proves AVX2; 32 bytes are there.
        unsafe {
            let words = _mm256_loadu_si256(bytes.as_ptr().cast());
            let odd = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)), _mm256_castsi256_ps(odd)]
        }
    }
    #[inline(always)]
    fn store_bf16_halves(self, [even, odd]: [__m256; 2], bytes: &mut [u8]) {
        let bytes: &mut [u8; 32] = first_mut(bytes);
        // SAFETY: `self` proves AVX2; 32 bytes are there.
        unsafe {
            let even = _mm256_srli_epi32::<16>(self.round_to_upper_half(even));
            let words = _mm256_blend_epi16::<0b1010_1010>(even, self.round_to_upper_half(odd));
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), words);
        }
    }
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<bool> = OnceLock::new();
        let ask = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && Avx2::detect().is_some()
        };
        FOUND.get_or_init(ask).then_some(Self(()))
    }

    /// Canonical NaNs for any NaN.
    #[inline(always)]
    fn canonical(self, v: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), _mm512_set1_ps(NAN_F32)) }
    }

    /// The BF16 nearest to each in its upper half; the lower half is left over.
    #[inline(always)]
    fn round_to_upper_half(self, v: __m512) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let bits = _mm512_castps_si512(self.canonical(v));
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd)
        }
    }
}

impl Isa for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const IS_LARGE: bool = true;

    fn run<K: Kernel>(self, kernel: K) {
        #[target_feature(enable = "popcnt,avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
        fn compiled<K: Kernel>(isa: Avx512, kernel: K) {
            kernel.call(isa);
        }
        // SAFETY: `self` proves AVX-512, AVX2, FMA, F16C and POPCNT.
        unsafe { compiled(self, kernel) }
    }

    #[inline(always)]
    fn prefetch(self, input: &[u8], ahead: usize, bytes: usize) {
        prefetch(input, ahead, bytes);
    }
    #[inline(always)]
    fn compare_magnitudes(self, values: &[f32], low: u32, width: u32) -> (u32, u32) {
        let values: &[f32; 16] = first(values);
        // SAFETY: `self` proves AVX-512; sixteen f32 are there.
        unsafe {
            let bits = _mm512_loadu_si512(values.as_ptr().cast());
            let magnitudes = _mm512_and_si512(bits, _mm512_set1_epi32(MAGNITUDE as i32));
            let (low, width) = (_mm512_set1_epi32(low as i32), _mm512_set1_epi32(width as i32));
            let below = _mm512_cmplt_epu32_mask(magnitudes, low);
            let within = _mm512_cmple_epu32_mask(_mm512_sub_epi32(magnitudes, low), width);
            (u32::from(below), u32::from(within))
        }
    }
    #[inline(always)]
    fn add_agreement(self, signs: &[Signs], counts: &mut [[u32; 2]]) {
        static FOUND: OnceLock<bool> = OnceLock::new();
        if *FOUND.get_or_init(|| is_x86_feature_detected!("avx512vpopcntdq")) {
            // SAFETY: `self` proves AVX-512 F, and the other was found.
            unsafe { add_agreement(signs, counts) }
        } else {
            Portable.add_agreement(signs, counts);
        }
    }

    #[inline(always)]
    fn compare(self, a: &[f32; 16], b: &[f32; 16]) -> (u16, u16) {
        // SAFETY: `self` proves AVX-512; sixteen f32 are in each.
        unsafe {
            let (a, b) = (_mm512_loadu_ps(a.as_ptr()), _mm512_loadu_ps(b.as_ptr()));
            (_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
        }
    }

    type W = __m512d;
    #[inline(always)]
    fn wide_splat(self, value: f64) -> Self::W {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_pd(value) }
    }
    #[inline(always)]
    fn wide_read(self, values: &[f64]) -> Self::W {
        let values: &[f64; 8] = first(values);
        // SAFETY: `self` proves AVX-512; eight f64 are there.
        unsafe { _mm512_loadu_pd(values.as_ptr()) }
    }
    #[inline(always)]
    fn widen(self, values: &[f32]) -> Self::W {
        let values: &[f32; 8] = first(values);
        // SAFETY: `self` proves AVX-512 and AVX2; eight f32 are there.
        unsafe { _mm512_cvtps_pd(_mm256_loadu_ps(values.as_ptr())) }
    }
    #[inline(always)]
    fn wide_subtract(self, a: Self::W, b: Self::W) -> Self::W {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_sub_pd(a, b) }
    }
    #[inline(always)]
    fn wide_add_exact_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_fmadd_pd(a, b, sum) }
    }
    #[inline(always)]
    fn wide_add_product(self, a: Self::W, b: Self::W, sum: Self::W) -> Self::W {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_pd(sum, _mm512_mul_pd(a, b)) }
    }
    #[inline(always)]
    fn wide_sum(self, v: Self::W) -> f64 {
        // SAFETY: `self` proves AVX-512 and AVX2.
        unsafe { sum_of_four(_mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd::<1>(v))) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn read(self, values: &[f32]) -> __m512 {
        let values: &[f32; 16] = first(values);
        // SAFETY: `self` proves AVX-512; sixteen f32 are there.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
    #[inline(always)]
    fn write(self, v: __m512, values: &mut [f32]) {
        let values: &mut [f32; 16] = first_mut(values);
        // SAFETY: `self` proves AVX-512; sixteen f32 are there.
        unsafe { _mm512_storeu_ps(values.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_f32(self, bytes: &[u8]) -> __m512 {
        let bytes: &[u8; 64] = first(bytes);
        // SAFETY: `self` proves AVX-512; 64 bytes are there.
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f16(self, bytes: &[u8]) -> __m512 {
        let bytes: &[u8; 32] = first(bytes);
        // SAFETY: `self` proves AVX-512; 32 bytes are there.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, bytes: &[u8]) -> __m512 {
        let bytes: &[u8; 32] = first(bytes);
        // SAFETY: `self` proves AVX-512; 32 bytes are there.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(bytes.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }

    #[inline(always)]
    fn store_f32(self, v: __m512, bytes: &mut [u8]) {
        let bytes: &mut [u8; 64] = first_mut(bytes);
        // SAFETY: `self` proves AVX-512; 64 bytes are there.
        unsafe { _mm512_storeu_ps(bytes.as_mut_ptr().cast(), self.canonical(v)) }
    }
    #[inline(always)]
    fn store_f16(self, v: __m512, bytes: &mut [u8]) {
        let bytes: &mut [u8; 32] = first_mut(bytes);
        // SAFETY: `self` proves AVX-512; 32 bytes are there.
        unsafe {
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.canonical(v));
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), halves);
        }
    }
    #[inline(always)]
    fn store_bf16(self, v: __m512, bytes: &mut [u8]) {
        let bytes: &mut [u8; 32] = first_mut(bytes);
        // SAFETY: `self` proves AVX-512; 32 bytes are there.
        unsafe {
            let words = _mm512_srli_epi32::<16>(self.round_to_upper_half(v));
            _mm256_storeu_si256(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(words));
        }
    }

    #[inline(always)]
    fn load_bf16_halves(self, bytes: &[u8]) -> [__m512; 2] {
        let bytes: &[u8; 64] = first(bytes);
        // SAFETY: `self` proves AVX-512; 64 bytes are there.
        unsafe {
            let words = _mm512_loadu_si512(bytes.as_ptr().cast());
            let odd = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)), _mm512_castsi512_ps(odd)]
        }
    }
    #[inline(always)]
    fn store_bf16_halves(self, [even, odd]: [__m512; 2], bytes: &mut [u8]) {
        let bytes: &mut [u8; 64] = first_mut(bytes);
        // SAFETY: `self` proves AVX-512; 64 bytes are there.
        unsafe {
            let even = _mm512_srli_epi32::<16>(self.round_to_upper_half(even));
            let words = _mm512_mask_blend_epi16(0xaaaa_aaaa, even, self.round_to_upper_half(odd));
            _mm512_storeu_si512(bytes.as_mut_ptr().cast(), words);
        }
    }
}
