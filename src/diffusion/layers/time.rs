//! What a network is told of the timestep.
//!
//! `sin(t·ω)` and `cos(t·ω)` with `ω_i = 10000^(−i/(half − shift))` (Vaswani et al. 2017), then two linear layers.

use crate::diffusion::nn::linear;
use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

/// The longest period.
const MAX_PERIOD: f64 = 10_000.0;

/// The waves of a timestep.
#[derive(Clone, Copy, Debug)]
pub(in crate::diffusion) struct Waves {
    /// How many, sines and cosines together.
    pub(in crate::diffusion) channels: usize,
    /// Whether cosines stand before sines.
    pub(in crate::diffusion) flip_sin_to_cos: bool,
    /// What half of their number is less by in the exponents.
    pub(in crate::diffusion) freq_shift: f64,
}

#[derive(Debug)]
pub(in crate::diffusion) struct TimeEmbedding {
    frequencies: Tensor,
    cos_first: bool,
    is_odd: bool,
    layers: [(Tensor, Tensor); 2],
}

impl TimeEmbedding {
    pub(in crate::diffusion) fn new(waves: Waves, out: usize, builder: &VarBuilder<'_>) -> Result<Self> {
        let half = waves.channels / 2;
        let step = -(MAX_PERIOD.ln() as f32) / (half as f32 - waves.freq_shift as f32);
        let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * step).exp()).collect();
        let layer = |name: &str, columns: usize| -> Result<(Tensor, Tensor)> {
            let builder = builder.pp(name);
            Ok((builder.get((out, columns), "weight")?, builder.get(out, "bias")?))
        };
        Ok(Self {
            frequencies: Tensor::from_vec(frequencies, (1, half), builder.device())?,
            cos_first: waves.flip_sin_to_cos,
            is_odd: waves.channels % 2 == 1,
            layers: [layer("linear_1", waves.channels)?, layer("linear_2", out)?],
        })
    }

    /// The embedding of timesteps (batch), behind the SiLU that every block puts before its own layer of it.
    pub(in crate::diffusion) fn forward(&self, timesteps: &Tensor, dtype: DType) -> Result<Tensor> {
        let angles = timesteps.to_dtype(DType::F32)?.reshape(((), 1))?.broadcast_mul(&self.frequencies)?;
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        let parts = if self.cos_first { [cos, sin] } else { [sin, cos] };
        let waves = Tensor::cat(&parts, 1)?.pad_with_zeros(1, 0, usize::from(self.is_odd))?.to_dtype(dtype)?;
        let [first, second] = &self.layers;
        let inner = linear(&waves, &first.0, Some(&first.1))?.silu()?;
        linear(&inner, &second.0, Some(&second.1))?.silu()
    }
}
