//! Images of twice the height and width, each pixel four times.

use super::storage::{elements, is_ours, with_elements};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// The nearest neighbours of `images` (batch, channels, rows, columns) in images of twice as many rows and columns.
///
/// # Errors
/// If there are not four dimensions.
pub fn upsample(images: &Tensor) -> Result<Tensor> {
    if is_ours(images) {
        return images.contiguous()?.apply_op1(Upsample);
    }
    // candle's own operation loses gradients that were there before.
    let (batch, channels, rows, columns) = images.dims4()?;
    let images = images.reshape((batch, channels, rows, 1, columns, 1))?;
    images.broadcast_as((batch, channels, rows, 2, columns, 2))?.reshape((batch, channels, 2 * rows, 2 * columns))
}

struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, rows, columns) = layout.shape().dims4()?;
        let images = elements(storage, layout)?;
        let mut out = vec![0.0; 4 * images.len()];
        out.par_chunks_mut((4 * columns).max(1)).zip(images.par_chunks(columns.max(1))).for_each(|(out, row)| {
            let (first, second) = out.split_at_mut(2 * columns);
            first.chunks_exact_mut(2).zip(row).for_each(|(pair, pixel)| pair.fill(*pixel));
            second.copy_from_slice(first);
        });
        Ok((CpuStorage::F32(out), (batch, channels, 2 * rows, 2 * columns).into()))
    }

    /// The sum of the four.
    fn bwd(&self, images: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let columns = images.dim(3)?;
        let mut out = vec![0.0; images.elem_count()];
        with_elements(gradient, |gradient| {
            out.par_chunks_mut(columns.max(1)).zip(gradient.par_chunks((4 * columns).max(1))).for_each(
                |(out, rows)| {
                    let (first, second) = rows.split_at(2 * columns);
                    let pairs = first.chunks_exact(2).zip(second.chunks_exact(2));
                    out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = (a[0] + a[1]) + (b[0] + b[1]));
                },
            );
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(out, images.shape(), images.device())?))
    }
}
