//! AdamW (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>) as torch computes it, and a moving average of weights as
//! diffusers' `EMAModel` does.
//!
//! ```text
//! m ← β₁·m + (1−β₁)·g,  v ← β₂·v + (1−β₂)·g²,  w ← w − η·λ·w − η/(1−β₁ⁿ) · m / (√v/√(1−β₂ⁿ) + ε)
//! ```

/// What the steps depend on beside the learning rate η.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// β₁ and β₂.
    pub betas: [f64; 2],
    /// ε
    pub epsilon: f64,
    /// λ
    pub decay: f64,
}

impl Default for AdamW {
    /// As the authors of Decouple-then-Merge train.
    fn default() -> Self {
        Self { betas: [0.95, 0.999], epsilon: 1e-8, decay: 1e-6 }
    }
}

impl AdamW {
    /// Step `number`, from 1, of weights with their moments, at a learning rate.
    pub(super) fn step(
        &self,
        rate: f64,
        number: u64,
        weights: &mut [f32],
        gradient: &[f32],
        [first, second]: [&mut [f32]; 2],
    ) {
        let [beta, squares] = self.betas;
        let correction = |beta: f64| 1.0 - beta.powf(number as f64);
        let kept = (1.0 - rate * self.decay) as f32;
        let size = (rate / correction(beta)) as f32;
        let root = correction(squares).sqrt() as f32;
        let (new, new_squares) = ((1.0 - beta) as f32, (1.0 - squares) as f32);
        let (squares, epsilon) = (squares as f32, self.epsilon as f32);
        for (((weight, &g), m), v) in weights.iter_mut().zip(gradient).zip(first).zip(second) {
            *m += new * (g - *m);
            *v = squares * *v + new_squares * g * g;
            *weight = kept * *weight - size * (*m / (v.sqrt() / root + epsilon));
        }
    }
}

/// An exponential moving average that begins with the weights themselves: the decay of update n is
/// `min(decay, 1 − (1 + n/γ)^−power)`, from n = 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MovingAverage {
    /// The largest decay.
    pub decay: f64,
    /// γ: updates until the decay has grown to `1 − 2^−power`.
    pub inverse_gamma: f64,
    /// How fast it grows.
    pub power: f64,
}

impl Default for MovingAverage {
    /// As the authors of Decouple-then-Merge train.
    fn default() -> Self {
        Self { decay: 0.9999, inverse_gamma: 1.0, power: 0.75 }
    }
}

impl MovingAverage {
    /// The decay of an update, from 0.
    fn decay(&self, update: u64) -> f64 {
        (1.0 - (1.0 + update as f64 / self.inverse_gamma).powf(-self.power)).clamp(0.0, self.decay)
    }

    /// Takes weights in, the update being number `update` from 0.
    pub(super) fn update(&self, update: u64, average: &mut [f32], weights: &[f32]) {
        let new = (1.0 - self.decay(update)) as f32;
        average.iter_mut().zip(weights).for_each(|(average, weight)| *average -= new * (*average - weight));
    }
}
