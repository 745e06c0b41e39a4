//! The exponential of f32 in loops that compilers vectorise, and what is made of it: SiLU and softmax.

use super::storage::{elements, with_elements};
use crate::dtype::vector;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// eˣ within 2 ulps for results that are normal numbers; less than the least of them is 0.
///
/// `eˣ = 2ⁿ·eʳ` with `n` the nearest whole number to `x/ln 2`, and `eʳ` by its Taylor polynomial of degree 7, on
/// |r| ≤ ln 2 / 2 off by less than 2⁻²⁶.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// 1.5·2²³: adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // The logarithms of 2⁻¹²⁶ and of the largest number.
    const LEAST: f32 = -87.336_54;
    const MOST: f32 = 88.722_83;
    // ln 2 in two parts, the first with few bits, so that its products with whole numbers are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(LEAST, MOST);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for divisor in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = sum * r + 1.0 / divisor;
    }
    // 2¹²⁸ is no number of 32 bits, and 2⁻¹²⁷ no normal one: in two factors.
    let n = shifted.to_bits() as i32 - ROUND.to_bits() as i32;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let result = sum * power(n >> 1) * power(n - (n >> 1));
    let result = if x < LEAST { 0.0 } else { result };
    let result = if x > MOST { f32::INFINITY } else { result };
    if x.is_nan() { x } else { result }
}

/// x·σ(x), the sigmoid linear unit.
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The derivative of [`silu`]: σ(x)·(1 + x·(1 − σ(x))).
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    sigmoid * (1.0 + x * (1.0 - sigmoid))
}

/// `exp(scale·x) / Σ exp(scale·x)` along the last dimension.
pub(super) fn softmax(inputs: &Tensor, scale: f32) -> Result<Tensor> {
    inputs.contiguous()?.apply_op1(Softmax(scale))
}

struct Softmax(f32);

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let inputs = elements(storage, layout)?;
        let Some(&length) = layout.dims().last() else { bail!("softmax of a scalar") };
        let mut out = vec![0.0; inputs.len()];
        let scale = self.0;
        out.par_chunks_mut(length.max(1)).zip(inputs.par_chunks(length.max(1))).for_each(|(out, inputs)| {
            vector::map(out, [inputs], move |[x]| scale * x);
            let largest = out.iter().fold(f32::NEG_INFINITY, |largest, &x| largest.max(x));
            vector::update(out, [], move |x, []| exp(x - largest));
            let factor = (1.0 / vector::sum([out], |[x]| f64::from(x))) as f32;
            vector::update(out, [], move |x, []| x * factor);
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    /// `scale · p · (g − Σ g·p)`.
    fn bwd(&self, _: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let length = result.dims().last().copied().unwrap_or(1).max(1);
        let scale = self.0;
        let of_inputs = with_elements(result, |result| {
            with_elements(gradient, |gradient| {
                let mut out = vec![0.0; result.len()];
                let rows = result.par_chunks(length).zip(gradient.par_chunks(length));
                out.par_chunks_mut(length).zip(rows).for_each(|(out, (p, g))| {
                    let sum = vector::dot(p, g) as f32;
                    vector::map(out, [p, g], move |[p, g]| scale * p * (g - sum));
                });
                Ok(out)
            })
        })?;
        Ok(Some(Tensor::from_vec(of_inputs, result.shape(), result.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_two_ulps() {
        let mut worst: f64 = 0.0;
        for step in -873_365..887_228 {
            let x = step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            if exact >= f64::from(f32::MIN_POSITIVE) {
                let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
            }
        }
        assert!(worst < 2.0, "{worst} ulps");
    }

    #[test]
    fn exponentials_end_where_they_should() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(silu(f32::NAN).is_nan());
        assert_eq!(silu(-1e4), -0.0);
        assert_eq!(silu(1e4), 1e4);
    }
}
