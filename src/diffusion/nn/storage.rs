//! candle's tensors as slices.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

/// Whether our own kernels compute it: numbers of 32 bits in the CPU's memory.
pub(super) fn is_ours(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// The elements of a tensor that lie in order.
pub(super) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the elements of {:?} do not lie in order", layout.shape());
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Lends the elements of a tensor, put in order if they are not.
pub(super) fn with_elements<R>(tensor: &Tensor, each: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => each(elements(storage, layout)?),
        _ => bail!("a tensor on the CPU was expected"),
    }
}
