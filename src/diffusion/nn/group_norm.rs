//! Group normalisation (Wu and He 2018), and SiLU behind it, in one pass over a group while it is in the cache.
//!
//! `y = γ·(x − mean)/√(var + ε) + β` over a group of channels of an image, with the variance of the group itself
//! (not corrected), then `y·σ(y)` if asked for. Sums are f64.

use super::softmax::{silu, silu_slope};
use super::storage::{elements, is_ours, with_elements};
use crate::dtype::vector;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Normalises `inputs` (batch, channels, …) in `groups` of channels, with `scale` γ and `shift` β (channels), and
/// applies SiLU if `then_silu`.
///
/// # Errors
/// If the shapes do not agree.
pub fn group_norm(
    inputs: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    groups: usize,
    epsilon: f64,
    then_silu: bool,
) -> Result<Tensor> {
    if is_ours(inputs) {
        let operation = GroupNorm { groups, epsilon, then_silu };
        return inputs.contiguous()?.apply_op3(&scale.contiguous()?, &shift.contiguous()?, operation);
    }
    let channels = inputs.dim(1)?;
    let norm = candle_nn::GroupNorm::new(scale.clone(), shift.clone(), channels, groups, epsilon)?;
    let out = inputs.apply(&norm)?;
    if then_silu { out.silu() } else { Ok(out) }
}

struct GroupNorm {
    groups: usize,
    epsilon: f64,
    then_silu: bool,
}

/// What the elements of a group are normalised by: `x·factor + offset`.
#[derive(Clone, Copy)]
struct Normal {
    factor: f32,
    offset: f32,
}

/// A batch's sizes.
struct Geometry {
    channels: usize,
    /// Elements of a channel.
    pixels: usize,
    /// Channels of a group.
    group: usize,
}

impl GroupNorm {
    fn geometry(&self, inputs: &Shape, scale: &Shape, shift: &Shape) -> Result<Geometry> {
        let &[_, channels, ref inner @ ..] = inputs.dims() else { bail!("{inputs:?} has no channels") };
        if self.groups == 0 || channels % self.groups != 0 {
            bail!("{channels} channels are not {} groups", self.groups);
        }
        if scale.dims() != [channels] || shift.dims() != [channels] {
            bail!("{scale:?} and {shift:?} do not fit {channels} channels");
        }
        Ok(Geometry { channels, pixels: inner.iter().product(), group: channels / self.groups })
    }

    fn normal(&self, group: &[f32]) -> Normal {
        let count = group.len() as f64;
        let mean = vector::sum([group], |[x]| f64::from(x)) / count;
        let variance = vector::sum([group], move |[x]| (f64::from(x) - mean).powi(2)) / count;
        let factor = 1.0 / (variance + self.epsilon).sqrt();
        Normal { factor: factor as f32, offset: (-mean * factor) as f32 }
    }
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        inputs: &CpuStorage,
        of_inputs: &Layout,
        scale: &CpuStorage,
        of_scale: &Layout,
        shift: &CpuStorage,
        of_shift: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = self.geometry(of_inputs.shape(), of_scale.shape(), of_shift.shape())?;
        let inputs = elements(inputs, of_inputs)?;
        let (scale, shift) = (elements(scale, of_scale)?, elements(shift, of_shift)?);
        let mut out = vec![0.0; inputs.len()];
        let size = (geometry.group * geometry.pixels).max(1);
        out.par_chunks_mut(size).zip(inputs.par_chunks(size)).enumerate().for_each(|(index, (out, inputs))| {
            let normal = self.normal(inputs);
            let first = index % self.groups * geometry.group;
            let channels = out.chunks_mut(geometry.pixels).zip(inputs.chunks(geometry.pixels));
            for (channel, (out, inputs)) in channels.enumerate() {
                let factor = normal.factor * scale[first + channel];
                let offset = normal.offset * scale[first + channel] + shift[first + channel];
                if self.then_silu {
                    vector::map(out, [inputs], move |[x]| silu(x * factor + offset));
                } else {
                    vector::map(out, [inputs], move |[x]| x * factor + offset);
                }
            }
        });
        Ok((CpuStorage::F32(out), of_inputs.shape().clone()))
    }

    /// With `x̂` the normalised inputs and `h` the gradient before γ and β, that is `g`, times SiLU's slope if it stands
    /// behind: `∂β = Σ h`, `∂γ = Σ h·x̂`, and `∂x = (γh − mean(γh) − x̂·mean(γh·x̂))/√(var + ε)`.
    fn bwd(
        &self,
        inputs: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let geometry = self.geometry(inputs.shape(), scale.shape(), shift.shape())?;
        let (scales, shifts) = (scale.to_vec1::<f32>()?, shift.to_vec1::<f32>()?);
        let (of_inputs, sums) = with_elements(inputs, |inputs| {
            with_elements(gradient, |gradient| Ok(self.backward(&geometry, inputs, gradient, &scales, &shifts)))
        })?;
        // By image, in order: which thread had which does not matter.
        let mut of_scale = vec![0.0f64; geometry.channels];
        let mut of_shift = of_scale.clone();
        for (index, sums) in sums.into_iter().enumerate() {
            let first = index % self.groups * geometry.group;
            for (channel, [product, plain]) in sums.into_iter().enumerate() {
                of_scale[first + channel] += product;
                of_shift[first + channel] += plain;
            }
        }
        let vector = |values: Vec<f64>| {
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            Tensor::from_vec(values, geometry.channels, inputs.device())
        };
        let of_inputs = Tensor::from_vec(of_inputs, inputs.shape(), inputs.device())?;
        Ok((Some(of_inputs), Some(vector(of_scale)?), Some(vector(of_shift)?)))
    }
}

impl GroupNorm {
    /// The gradient of the inputs and, for each group of each image and each channel of it, `Σ h·x̂` and `Σ h`.
    fn backward(
        &self,
        geometry: &Geometry,
        inputs: &[f32],
        gradient: &[f32],
        scale: &[f32],
        shift: &[f32],
    ) -> (Vec<f32>, Vec<Vec<[f64; 2]>>) {
        let mut out = vec![0.0; inputs.len()];
        let size = (geometry.group * geometry.pixels).max(1);
        let groups = inputs.par_chunks(size).zip(gradient.par_chunks(size));
        let tasks = out.par_chunks_mut(size).zip(groups).enumerate();
        let sums = tasks.map(|(index, (out, (inputs, gradient)))| {
            let Normal { factor, offset } = self.normal(inputs);
            let first = index % self.groups * geometry.group;
            let pixels = geometry.pixels;
            let (mut sums, mut mean, mut mean_product) = (Vec::with_capacity(geometry.group), 0.0, 0.0);
            for channel in 0..geometry.group {
                let range = channel * pixels..(channel + 1) * pixels;
                let (scale, shift) = (scale[first + channel], shift[first + channel]);
                // `out` holds h until the means are known.
                let (out, inputs) = (&mut out[range.clone()], &inputs[range.clone()]);
                if self.then_silu {
                    vector::map(out, [inputs, &gradient[range]], move |[x, g]| {
                        g * silu_slope((x * factor + offset) * scale + shift)
                    });
                } else {
                    out.copy_from_slice(&gradient[range]);
                }
                let [product, plain] = vector::two_sums([out, inputs], move |[h, x]| [h * (x * factor + offset), h]);
                mean += f64::from(scale) * plain;
                mean_product += f64::from(scale) * product;
                sums.push([product, plain]);
            }
            let mean = (mean / size as f64) as f32;
            let mean_product = (mean_product / size as f64) as f32;
            for (channel, (out, inputs)) in out.chunks_mut(pixels).zip(inputs.chunks(pixels)).enumerate() {
                let scale = scale[first + channel];
                vector::update(out, [inputs], move |h, [x]| {
                    factor * (scale * h - mean - (x * factor + offset) * mean_product)
                });
            }
            sums
        });
        let sums = sums.collect();
        (out, sums)
    }
}
