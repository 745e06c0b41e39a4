//! Pixels as tokens, and attention of tokens to others.

use candle_core::{DType, Result, Tensor};

/// Numbers that attention looks at together, at most: a quarter of a GiB.
const SCORES: usize = 1 << 26;

/// Attention of queries (batch, n, channels) to keys and values (batch, m, channels), whose channels are cut into heads:
/// (batch, n, channels). Sums and exponentials are f32, whatever the type.
pub(super) fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, count, channels) = queries.dims3()?;
    let (others, size) = (keys.dim(1)?, channels / heads);
    let split = |projected: &Tensor| -> Result<Tensor> {
        let split = projected.reshape((batch, (), heads, size))?.transpose(1, 2)?;
        split.contiguous()?.reshape((batch * heads, (), size))?.to_dtype(DType::F32)
    };
    let dtype = queries.dtype();
    let (queries, keys, values) = ((split(queries)? / (size as f64).sqrt())?, split(keys)?, split(values)?);
    let together = (SCORES / (count * others).max(1)).max(1);
    let mut seen = Vec::new();
    for start in (0..batch * heads).step_by(together) {
        let some = together.min(batch * heads - start);
        let part = |tensor: &Tensor| tensor.narrow(0, start, some);
        let (queries, keys, values) = (part(&queries)?, part(&keys)?.t()?, part(&values)?);
        // Of many tokens even one head is cut.
        let rows = (SCORES / others.max(1)).clamp(1, count.max(1));
        let starts = (0..count).step_by(rows);
        let of_rows = starts.map(|start| {
            let scores = queries.narrow(1, start, rows.min(count - start))?.matmul(&keys)?;
            candle_nn::ops::softmax_last_dim(&scores)?.matmul(&values)
        });
        seen.push(Tensor::cat(&of_rows.collect::<Result<Vec<_>>>()?, 1)?);
    }
    let seen = Tensor::cat(&seen, 0)?.reshape((batch, heads, count, size))?.transpose(1, 2)?;
    seen.reshape((batch, count, channels))?.to_dtype(dtype)
}

/// The pixels of images (batch, channels, rows, columns) as tokens (batch, pixels, channels), in that order in memory:
/// candle 0.11 multiplies a transposed batch wrongly by a matrix that is broadcast, as linear layers do.
pub(super) fn tokens(images: &Tensor) -> Result<Tensor> {
    images.flatten_from(2)?.transpose(1, 2)?.contiguous()
}

/// Tokens as the pixels they are, in the shape of `images`.
pub(super) fn pixels(tokens: &Tensor, images: &Tensor) -> Result<Tensor> {
    tokens.transpose(1, 2)?.contiguous()?.reshape(images.shape())
}
