//! Convolution in two dimensions, as products of matrices.
//!
//! For an image, `out (O × pixels) = kernels (O × C·kh·kw) · patches (C·kh·kw × pixels)`, where a column of `patches` is
//! what the kernel sees at an output pixel (Chellapilla et al. 2006). It is taken a tile of pixels at a time, so that the patches
//! stay in the second-level cache. With `G` the gradient of `out`, the gradient of the kernels is `Σ G · patchesᵀ`
//! over all pixels, and that of the image is `kernelsᵀ · G` added back to where each patch came from.

use super::gemm::{Matrix, Tile};
use super::storage::{elements, is_ours, with_elements};
use crate::dtype::vector;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of a tile's patches: a megabyte, half of a common second-level cache.
const PATCHES: usize = 1 << 18;
/// Rows of the patches' matrix whose gradient one task computes, at least: what makes products of matrices fast.
const GRADIENT_ROWS: usize = 128;

/// How a kernel moves over an image, rows first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// By how many rows and columns it moves.
    pub stride: (usize, usize),
    /// Rows of zeros above and below the image, columns of them left and right of it.
    pub padding: (usize, usize),
}

impl Window {
    /// A step of one, and no padding.
    pub const PLAIN: Self = Self { stride: (1, 1), padding: (0, 0) };
    /// A step of one, and as much padding as a 3 × 3 kernel needs to keep an image's size.
    pub const SAME3: Self = Self { stride: (1, 1), padding: (1, 1) };
}

/// `images` (batch, in, rows, columns) with `kernels` (out, in, rows, columns), plus `bias`, (out) or each image's own
/// (batch, out): cross-correlation, as in torch.
///
/// # Errors
/// If the shapes do not agree.
pub fn conv2d(images: &Tensor, kernels: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    if is_ours(images) {
        let (images, kernels) = (images.contiguous()?, kernels.contiguous()?);
        return match bias {
            Some(bias) => images.apply_op3(&kernels, &bias.contiguous()?, Conv(window)),
            None => images.apply_op2(&kernels, Conv(window)),
        };
    }
    let (rows, columns) = window.padding;
    let padded = images.pad_with_zeros(2, rows, rows)?.pad_with_zeros(3, columns, columns)?;
    if window.stride.0 != window.stride.1 {
        bail!("on this device, kernels move by as many rows as columns");
    }
    let out = padded.conv2d(kernels, 0, window.stride.0, 1, 1)?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape(((), kernels.dim(0)?, 1, 1))?),
        None => Ok(out),
    }
}

/// `inputs` (batch, in) by `weights` (out, in), plus `bias` (out): a convolution of images of one pixel.
///
/// # Errors
/// If the shapes do not agree.
pub fn linear(inputs: &Tensor, weights: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (batch, columns) = inputs.dims2()?;
    let (rows, taken) = weights.dims2()?;
    if taken != columns {
        bail!("a layer of {taken} inputs does not take {columns} numbers");
    }
    if is_ours(inputs) {
        let (pixels, kernels) = (inputs.reshape((batch, columns, 1, 1))?, weights.reshape((rows, columns, 1, 1))?);
        return conv2d(&pixels, &kernels, bias, Window::PLAIN)?.reshape((batch, rows));
    }
    let out = inputs.matmul(&weights.t()?)?;
    match bias {
        Some(bias) => out.broadcast_add(bias),
        None => Ok(out),
    }
}

struct Conv(Window);

/// A convolution's sizes.
#[derive(Clone, Copy)]
struct Geometry {
    window: Window,
    batch: usize,
    channels: usize,
    image: (usize, usize),
    kernels: usize,
    kernel: (usize, usize),
    out: (usize, usize),
}

impl Geometry {
    fn new(images: &Shape, kernels: &Shape, window: Window) -> Result<Self> {
        let (batch, channels, height, width) = images.dims4()?;
        let (count, of, rows, columns) = kernels.dims4()?;
        let nothing = channels * height * width * rows * columns == 0;
        if of != channels || nothing || window.stride.0 == 0 || window.stride.1 == 0 {
            bail!("kernels {kernels:?} do not fit images {images:?}");
        }
        let outputs = |size: usize, padding: usize, kernel: usize, stride: usize| {
            (size + 2 * padding).checked_sub(kernel).map(|room| room / stride + 1)
        };
        let out = outputs(height, window.padding.0, rows, window.stride.0).zip(outputs(
            width,
            window.padding.1,
            columns,
            window.stride.1,
        ));
        let Some(out) = out else { bail!("kernels {kernels:?} are larger than the images {images:?}") };
        Ok(Self { window, batch, channels, image: (height, width), kernels: count, kernel: (rows, columns), out })
    }

    fn pixels(&self) -> usize {
        self.image.0 * self.image.1
    }

    fn out_pixels(&self) -> usize {
        self.out.0 * self.out.1
    }

    /// Elements of a kernel in one channel.
    fn area(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// Rows of the patches' matrix.
    fn rows(&self) -> usize {
        self.channels * self.area()
    }

    /// Whether an image is its own matrix of patches.
    fn is_plain(&self) -> bool {
        self.area() == 1 && self.window == Window::PLAIN
    }

    /// Output pixels that are done at a time.
    fn tile(&self, rows: usize) -> usize {
        (PATCHES / rows.max(1)).clamp(64, 512).next_multiple_of(16)
    }

    fn shape(&self) -> Shape {
        (self.batch, self.kernels, self.out.0, self.out.1).into()
    }

    /// For each run of output pixels `tile` in one row, and each element of a kernel that sees some of the image there:
    /// `each(row of the patches, their columns, first pixel of the channel)`. Columns without a call see the padding.
    #[inline]
    fn runs(&self, tile: Range<usize>, channels: Range<usize>, mut each: impl FnMut(usize, Range<usize>, usize)) {
        let (stride, padding) = (self.window.stride, self.window.padding);
        let first = channels.start;
        for channel in channels {
            for y in 0..self.kernel.0 {
                for x in 0..self.kernel.1 {
                    let row = ((channel - first) * self.kernel.0 + y) * self.kernel.1 + x;
                    // The output columns that see a column of the image.
                    let low = padding.1.saturating_sub(x).div_ceil(stride.1);
                    let high = (self.image.1 + padding.1).saturating_sub(x).div_ceil(stride.1).min(self.out.1);
                    let mut pixel = tile.start;
                    while pixel < tile.end {
                        let (out_y, out_x) = (pixel / self.out.1, pixel % self.out.1);
                        let end = tile.end.min(pixel - out_x + self.out.1);
                        let at = out_y * stride.0 + y;
                        let (from, to) = (out_x.max(low), (out_x + end - pixel).min(high));
                        if at >= padding.0 && at - padding.0 < self.image.0 && from < to {
                            let start = channel * self.pixels() + (at - padding.0) * self.image.1;
                            let column = from + pixel - out_x - tile.start;
                            each(row, column..column + (to - from), start + from * stride.1 + x - padding.1);
                        }
                        pixel = end;
                    }
                }
            }
        }
    }

    /// The patches of some channels at output pixels `tile`, rows one behind the other.
    fn patches(&self, image: &[f32], tile: Range<usize>, channels: Range<usize>, out: &mut Vec<f32>) {
        let width = tile.len();
        out.clear();
        out.resize(channels.len() * self.area() * width, 0.0);
        let step = self.window.stride.1;
        self.runs(tile, channels, |row, columns, from| {
            let to = &mut out[row * width + columns.start..row * width + columns.end];
            if step == 1 {
                to.copy_from_slice(&image[from..from + to.len()]);
            } else {
                to.iter_mut().zip(image[from..].iter().step_by(step)).for_each(|(to, from)| *to = *from);
            }
        });
    }

    fn forward(&self, images: &[f32], kernels: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut out = vec![0.0; self.batch * self.kernels * self.out_pixels()];
        if out.is_empty() {
            return out;
        }
        let kernels = Matrix::of_rows(kernels, self.kernels, self.rows());
        let width = self.tile(self.rows());
        let tiles: Vec<(usize, Tile<'_>)> = out
            .chunks_exact_mut(self.kernels * self.out_pixels())
            .enumerate()
            .flat_map(|(image, out)| {
                Tile::cut(out, self.kernels, self.out_pixels(), width).map(move |tile| (image, tile))
            })
            .collect();
        let size = self.channels * self.pixels();
        tiles.into_par_iter().for_each_init(Vec::new, |patches, (image, mut tile)| {
            if let Some(bias) = bias {
                let bias = &bias[image * self.kernels % bias.len()..][..self.kernels];
                bias.iter().enumerate().for_each(|(row, bias)| tile.row(row).fill(*bias));
            }
            let (image, columns) = (&images[image * size..][..size], tile.columns());
            let seen = if self.is_plain() {
                Matrix::of_rows(image, self.channels, self.pixels()).columns(columns)
            } else {
                self.patches(image, columns.clone(), 0..self.channels, patches);
                Matrix::of_rows(patches, self.rows(), columns.len())
            };
            tile.multiply(kernels, seen, bias.is_some());
        });
        out
    }

    /// Channels whose gradients one task computes.
    fn group(&self) -> usize {
        GRADIENT_ROWS.div_ceil(self.area()).min(self.channels.max(1))
    }

    /// The gradient of the images, of `gradient`, that of the output.
    fn backward_images(&self, gradient: &[f32], kernels: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.batch * self.channels * self.pixels()];
        if out.is_empty() {
            return out;
        }
        let kernels = Matrix::of_rows(kernels, self.kernels, self.rows());
        let group = self.group();
        let of_image = out.par_chunks_exact_mut(self.channels * self.pixels()).enumerate();
        let tasks = of_image.flat_map(|(image, out)| {
            out.par_chunks_mut(group * self.pixels()).enumerate().map(move |(index, out)| (image, index, out))
        });
        tasks.for_each_init(Vec::new, |patches, (image, index, out)| {
            let size = self.kernels * self.out_pixels();
            let gradient = Matrix::of_rows(&gradient[image * size..][..size], self.kernels, self.out_pixels());
            let channels = index * group..(index * group + group).min(self.channels);
            let rows = channels.len() * self.area();
            let kernels = kernels.columns(channels.start * self.area()..channels.end * self.area()).transposed();
            if self.is_plain() {
                let tiles = Tile::cut(out, rows, self.pixels(), self.tile(rows));
                tiles.for_each(|mut tile| tile.multiply(kernels, gradient.columns(tile.columns()), false));
                return;
            }
            let width = self.tile(rows);
            for start in (0..self.out_pixels()).step_by(width) {
                let tile = start..(start + width).min(self.out_pixels());
                let width = tile.len();
                patches.clear();
                patches.resize(rows * width, 0.0);
                let gradient = gradient.columns(tile.clone());
                Tile::cut(patches, rows, width, width).for_each(|mut tile| tile.multiply(kernels, gradient, false));
                let step = self.window.stride.1;
                // Channels are counted from the task's first, as its part of the output is.
                self.runs(tile, 0..channels.len(), |row, columns, to| {
                    let from = &patches[row * width + columns.start..row * width + columns.end];
                    if step == 1 {
                        out[to..to + from.len()].iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    } else {
                        out[to..].iter_mut().step_by(step).zip(from).for_each(|(to, from)| *to += from);
                    }
                });
            }
        });
        out
    }

    /// The gradient of the kernels.
    fn backward_kernels(&self, gradient: &[f32], images: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.kernels * self.rows()];
        let group = self.group();
        let size = self.channels * self.pixels();
        let tasks: Vec<Tile<'_>> = Tile::cut(&mut out, self.kernels, self.rows(), group * self.area()).collect();
        tasks.into_par_iter().for_each_init(Vec::new, |patches, mut task| {
            let columns = task.columns();
            let channels = columns.start / self.area()..columns.end / self.area();
            let width = self.tile(columns.len());
            for (image, gradient) in
                images.chunks_exact(size).zip(gradient.chunks_exact(self.kernels * self.out_pixels()))
            {
                let gradient = Matrix::of_rows(gradient, self.kernels, self.out_pixels());
                for start in (0..self.out_pixels()).step_by(width) {
                    let tile = start..(start + width).min(self.out_pixels());
                    self.patches(image, tile.clone(), channels.clone(), patches);
                    let seen = Matrix::of_rows(patches, columns.len(), tile.len());
                    task.multiply(gradient.columns(tile), seen.transposed(), true);
                }
            }
        });
        out
    }

    /// The gradient of a bias of each image's own: sums over pixels.
    fn backward_bias(&self, gradient: &[f32]) -> Vec<f32> {
        let sums = gradient.par_chunks(self.out_pixels().max(1));
        sums.map(|pixels| vector::sum([pixels], |[x]| f64::from(x)) as f32).collect()
    }

    /// The gradients of images, kernels and bias.
    fn backward(&self, images: &Tensor, kernels: &Tensor, gradient: &Tensor) -> Result<[Tensor; 3]> {
        let device = gradient.device();
        let [of_images, of_kernels, of_bias] = with_elements(gradient, |gradient| {
            let of_images = with_elements(kernels, |kernels| Ok(self.backward_images(gradient, kernels)))?;
            let of_kernels = with_elements(images, |images| Ok(self.backward_kernels(gradient, images)))?;
            Ok([of_images, of_kernels, self.backward_bias(gradient)])
        })?;
        Ok([
            Tensor::from_vec(of_images, images.shape(), device)?,
            Tensor::from_vec(of_kernels, kernels.shape(), device)?,
            Tensor::from_vec(of_bias, (self.batch, self.kernels), device)?,
        ])
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        of_images: &Layout,
        kernels: &CpuStorage,
        of_kernels: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(of_images.shape(), of_kernels.shape(), self.0)?;
        let out = geometry.forward(elements(images, of_images)?, elements(kernels, of_kernels)?, None);
        Ok((CpuStorage::F32(out), geometry.shape()))
    }

    fn bwd(
        &self,
        images: &Tensor,
        kernels: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [images, kernels, _] =
            Geometry::new(images.shape(), kernels.shape(), self.0)?.backward(images, kernels, gradient)?;
        Ok((Some(images), Some(kernels)))
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        of_images: &Layout,
        kernels: &CpuStorage,
        of_kernels: &Layout,
        bias: &CpuStorage,
        of_bias: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let geometry = Geometry::new(of_images.shape(), of_kernels.shape(), self.0)?;
        let bias = elements(bias, of_bias)?;
        let (batch, count) = (geometry.batch, geometry.kernels);
        if of_bias.dims() != [count] && of_bias.dims() != [batch, count] {
            bail!("a bias {:?} does not fit {count} kernels and {batch} images", of_bias.shape());
        }
        let (images, weights) = (elements(images, of_images)?, elements(kernels, of_kernels)?);
        let out = geometry.forward(images, weights, Some(bias));
        Ok((CpuStorage::F32(out), geometry.shape()))
    }

    fn bwd(
        &self,
        images: &Tensor,
        kernels: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let geometry = Geometry::new(images.shape(), kernels.shape(), self.0)?;
        let [images, kernels, of_bias] = geometry.backward(images, kernels, gradient)?;
        let of_bias = if bias.rank() == 1 { of_bias.sum(0)? } else { of_bias };
        Ok((Some(images), Some(kernels), Some(of_bias)))
    }
}
