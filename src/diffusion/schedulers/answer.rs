//! What a model's answer says: the image or the noise in a sample.
//!
//! With `x = α·x₀ + σ·ε` a model answers ε, x₀, or `v = α·ε − σ·x₀` (Salimans and Ho 2022,
//! <https://arxiv.org/abs/2202.00512>). Images may be kept in their range: clipped, or by dynamic thresholding (Saharia et al.
//! 2022, <https://arxiv.org/abs/2205.11487>).

use super::config::Reader;
use super::schedule::Schedule;
use super::sum;
use crate::error;
use candle_core::{DType, Result, Tensor};

/// What a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prediction {
    /// The noise.
    Epsilon,
    /// The image.
    Sample,
    /// The velocity.
    V,
}

impl Prediction {
    pub(super) const ALL: [(&str, Self); 3] =
        [("epsilon", Self::Epsilon), ("sample", Self::Sample), ("v_prediction", Self::V)];

    pub(super) fn read(reader: &Reader) -> error::Result<Self> {
        reader.choice("prediction_type", "epsilon", &Self::ALL)
    }

    /// That the noise in a sample can tell the image: not where there is nothing else in it.
    pub(super) fn check(self, reader: &Reader, schedule: &Schedule, timesteps: &[f64]) -> error::Result<()> {
        let is_noise = |&t: &f64| schedule.alpha_cumprod(t as i64, 1.0) == Some(0.0);
        if self == Self::Epsilon && timesteps.iter().any(is_noise) {
            let problem =
                "the first sample is noise alone then, which a model that predicts `epsilon` cannot make an image of";
            return Err(reader.error("rescale_betas_zero_snr", problem));
        }
        Ok(())
    }

    /// The image in `sample`.
    pub(super) fn image(self, (alpha, sigma): (f64, f64), output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        match self {
            Self::Epsilon => sum(1.0 / alpha, sample, -sigma / alpha, output),
            Self::Sample => Ok(output.clone()),
            Self::V => sum(alpha, sample, -sigma, output),
        }
    }

    /// The noise in `sample`.
    pub(super) fn noise(self, (alpha, sigma): (f64, f64), output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        match self {
            Self::Epsilon => Ok(output.clone()),
            Self::Sample => sum(1.0 / sigma, sample, -alpha / sigma, output),
            Self::V => sum(alpha, output, sigma, sample),
        }
    }
}

/// How images are kept in their range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Range {
    /// Not at all.
    Free,
    /// To `-limit..limit`.
    Clipped {
        /// The largest magnitude.
        limit: f64,
    },
    /// To the magnitude below which a share of an image's numbers lies, and divided by it.
    Thresholded {
        /// The share, 0..=1.
        ratio: f64,
        /// The largest magnitude that may be.
        most: f64,
    },
}

impl Range {
    /// Of schedulers that can clip, `clips` unless the configuration says otherwise, and threshold if `thresholds`.
    pub(super) fn read(reader: &Reader, clips: Option<bool>, thresholds: bool) -> error::Result<Self> {
        let mut range = Self::Free;
        if let Some(default) = clips {
            let limit = reader.number("clip_sample_range", 1.0)?;
            if reader.flag("clip_sample", default)? {
                if limit <= 0.0 {
                    return Err(reader.error("clip_sample_range", "it is more than 0"));
                }
                range = Self::Clipped { limit };
            }
        }
        if thresholds {
            let ratio = reader.number("dynamic_thresholding_ratio", 0.995)?;
            let most = reader.number("sample_max_value", 1.0)?;
            if reader.flag("thresholding", false)? {
                if !(0.0..=1.0).contains(&ratio) {
                    return Err(reader.error("dynamic_thresholding_ratio", "it is from 0 to 1"));
                }
                if most < 1.0 {
                    return Err(reader.error("sample_max_value", "it is 1 or more"));
                }
                range = Self::Thresholded { ratio, most };
            }
        }
        Ok(range)
    }

    /// Images in their range.
    pub(super) fn keep(self, image: Tensor) -> Result<Tensor> {
        match self {
            Self::Free => Ok(image),
            Self::Clipped { limit } => image.clamp(-limit, limit),
            Self::Thresholded { ratio, most } => {
                let count = image.dim(0)?;
                let rows: Vec<Vec<f32>> = image.flatten_from(1)?.to_dtype(DType::F32)?.to_vec2()?;
                let limits: Vec<f32> =
                    rows.into_iter().map(|row| quantile(row, ratio).clamp(1.0, most as f32)).collect();
                let mut shape = vec![1; image.rank()];
                if let Some(first) = shape.first_mut() {
                    *first = count;
                }
                let limits = Tensor::from_vec(limits, shape, image.device())?.to_dtype(image.dtype())?;
                let clipped = image.broadcast_minimum(&limits)?.broadcast_maximum(&limits.neg()?)?;
                clipped.broadcast_div(&limits)
            }
        }
    }
}

/// Of magnitudes, with linear interpolation between two. NaN where one of them is.
fn quantile(mut row: Vec<f32>, share: f64) -> f32 {
    row.iter_mut().for_each(|x| *x = x.abs());
    row.sort_by(f32::total_cmp);
    let Some(last) = row.len().checked_sub(1) else { return 1.0 };
    let rank = share * last as f64;
    let at = |rank: f64| row.get(rank as usize).copied().map_or(f64::NAN, f64::from);
    let (below, above) = (at(rank.floor()), at(rank.ceil()));
    (below + (above - below) * rank.fract()) as f32
}

/// That the two agree on what a step is of.
pub(super) fn check_shapes(output: &Tensor, sample: &Tensor) -> Result<Tensor> {
    if output.dims() != sample.dims() {
        candle_core::bail!(
            "the model answers with the shape {:?} to a sample of {:?}; models that answer with a variance beside it are not \
             supported",
            output.dims(),
            sample.dims()
        );
    }
    // Whatever the model computes in, steps are taken in the sample's type.
    output.to_dtype(sample.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn each_image_has_its_own_threshold() -> Result<()> {
        let image = Tensor::from_vec(vec![0.5f32, -0.2, 3.0, -1.0, 2.0, 4.0], (2, 3), &Device::Cpu)?;
        let kept = Range::Thresholded { ratio: 0.5, most: 9.0 }.keep(image)?.to_vec2::<f32>()?;
        assert_eq!(kept, [[0.5, -0.2, 1.0], [-0.5, 1.0, 1.0]]);
        assert_eq!(quantile(vec![], 0.5), 1.0);
        assert_eq!(quantile(vec![-1.0, 3.0], 0.25), 1.5);
        Ok(())
    }
}
