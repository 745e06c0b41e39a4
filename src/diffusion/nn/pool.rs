//! The largest pixels of windows of an image.
//!
//! The gradient goes to the pixel that was the largest, the first of several, as in torch. candle 0.11 multiplies it by the share of
//! the window that is largest instead: a quarter is left in a window of four.

use super::storage::{elements, is_ours, with_elements};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// The largest of each `size` × `size` window of `images` (batch, channels, rows, columns), windows `stride` apart, without padding.
///
/// # Errors
/// If there are not four dimensions, or a window does not fit into an image; for gradients on devices other than the CPU.
pub fn max_pool2d(images: &Tensor, size: usize, stride: usize) -> Result<Tensor> {
    if is_ours(images) {
        return images.contiguous()?.apply_op1(MaxPool { size, stride });
    }
    images.max_pool2d_with_stride(size, stride)
}

struct MaxPool {
    size: usize,
    stride: usize,
}

/// A pool's sizes.
struct Geometry {
    planes: usize,
    image: (usize, usize),
    out: (usize, usize),
    shape: Shape,
}

impl MaxPool {
    fn geometry(&self, images: &Shape) -> Result<Geometry> {
        let (batch, channels, rows, columns) = images.dims4()?;
        if self.size == 0 || self.stride == 0 || self.size > rows || self.size > columns {
            bail!("windows of {0}×{0}, {1} apart, do not fit into images of {rows}×{columns}", self.size, self.stride);
        }
        let out = ((rows - self.size) / self.stride + 1, (columns - self.size) / self.stride + 1);
        let shape = (batch, channels, out.0, out.1).into();
        Ok(Geometry { planes: batch * channels, image: (rows, columns), out, shape })
    }

    /// For each window of a plane, by rows: where its largest pixel is, the first of several.
    fn largest<'a>(&'a self, plane: &'a [f32], geometry: &'a Geometry) -> impl Iterator<Item = usize> + 'a {
        let columns = geometry.image.1;
        (0..geometry.out.0 * geometry.out.1).map(move |window| {
            let (y, x) = (window / geometry.out.1 * self.stride, window % geometry.out.1 * self.stride);
            let pixels = (y..y + self.size).flat_map(|y| y * columns + x..y * columns + x + self.size);
            pixels.reduce(|most, at| if plane[at] > plane[most] || plane[at].is_nan() { at } else { most }).unwrap_or(0)
        })
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let geometry = self.geometry(layout.shape())?;
        let images = elements(storage, layout)?;
        let (pixels, windows) = (geometry.image.0 * geometry.image.1, geometry.out.0 * geometry.out.1);
        let mut out = vec![0.0; geometry.planes * windows];
        out.par_chunks_mut(windows).zip(images.par_chunks(pixels)).for_each(|(out, plane)| {
            out.iter_mut().zip(self.largest(plane, &geometry)).for_each(|(out, at)| *out = plane[at]);
        });
        Ok((CpuStorage::F32(out), geometry.shape))
    }

    fn bwd(&self, images: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let geometry = self.geometry(images.shape())?;
        let (pixels, windows) = (geometry.image.0 * geometry.image.1, geometry.out.0 * geometry.out.1);
        let mut out = vec![0.0; images.elem_count()];
        with_elements(images, |images| {
            with_elements(gradient, |gradient| {
                let planes = images.par_chunks(pixels).zip(gradient.par_chunks(windows));
                out.par_chunks_mut(pixels).zip(planes).for_each(|(out, (plane, gradient))| {
                    self.largest(plane, &geometry).zip(gradient).for_each(|(at, gradient)| out[at] += gradient);
                });
                Ok(())
            })
        })?;
        Ok(Some(Tensor::from_vec(out, images.shape(), images.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_gradient_goes_to_the_first_of_the_largest() -> Result<()> {
        let images = Var::new(&[[[[1f32, 5.0, 2.0], [5.0, 0.0, 7.0], [3.0, 3.0, 4.0]]]], &Device::Cpu)?;
        let weights = Tensor::new(&[[[[1f32, 10.0], [100.0, 1000.0]]]], &Device::Cpu)?;
        let pooled = max_pool2d(&images, 2, 1)?;
        assert_eq!(pooled.flatten_all()?.to_vec1::<f32>()?, [5.0, 7.0, 5.0, 7.0]);
        let gradients = (pooled * weights)?.sum_all()?.backward()?;
        let gradient = gradients.get(&images).map(|gradient| gradient.flatten_all()?.to_vec1::<f32>()).transpose()?;
        assert_eq!(gradient, Some(vec![0.0, 1.0, 0.0, 100.0, 0.0, 1010.0, 0.0, 0.0, 0.0]));
        assert!(max_pool2d(&images, 4, 4).is_err() && max_pool2d(&images, 2, 0).is_err());
        Ok(())
    }
}
