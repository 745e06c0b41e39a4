//! 8-bit floats with scales, as large language models are published: `out = x · s`, where `s` is one number, one per
//! row, or one per block of 128 × 128 elements.
//!
//! The layouts are those of DeepSeek-V3 (`weight_scale_inv`, blocks) and of compressed-tensors (`weight_scale`, one
//! number or rows). In all of them the scale is what the element is multiplied with.

use crate::dtype::{self, DType};
use crate::error::Result;
use crate::stream::Kernel;

/// Rows and columns of a block.
const BLOCK: u64 = 128;
/// Elements that are scaled at a time. Every quantized type's block divides it.
const TILE: usize = 2048;

/// A tensor's scales, ready to run on its bytes.
#[derive(Clone, Debug)]
pub struct ScaleKernel {
    input: DType,
    output: DType,
    scales: Vec<f32>,
    /// Elements of the output in what the stream counts.
    step: u64,
    columns: u64,
    /// Rows and columns that share a scale, and scales in a row of them.
    block: (u64, u64, u64),
}

impl ScaleKernel {
    /// For elements of type `input` in a tensor of `shape`, whose scales are a tensor of shape `grid`.
    ///
    /// # Errors
    /// If the scales have no known meaning for the tensor.
    pub fn new(input: DType, shape: &[u64], scales: Vec<f32>, grid: &[u64], output: DType) -> Result<Self, String> {
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let rows = shape.iter().rev().skip(1).product::<u64>();
        let blocks = (rows.div_ceil(BLOCK), columns.div_ceil(BLOCK));
        let block = match grid {
            _ if scales.len() == 1 => (rows.max(1), columns, 1),
            [n] | [n, 1] if *n == rows && shape.len() == 2 => (1, columns, 1),
            [down, across] if (*down, *across) == blocks && shape.len() == 2 => (BLOCK, BLOCK, blocks.1),
            _ => {
                return Err(format!(
                    "has shape {shape:?}, for which the shape {grid:?} of its scales has no known meaning"
                ));
            }
        };
        Ok(Self { input, output, scales, step: output.block_elements(), columns, block })
    }

    /// The type of the tensor.
    #[must_use]
    pub fn input(&self) -> DType {
        self.input
    }

    fn scale(&self, element: u64) -> f32 {
        let (row, column) = (element / self.columns, element % self.columns);
        let (down, across, width) = self.block;
        self.scales[(row / down * width + column / across) as usize]
    }
}

impl Kernel for ScaleKernel {
    fn run(&self, start: u64, inputs: &[&[u8]], out: &mut [u8]) -> Result<()> {
        // A product of an 8-bit float and an f32 is exact in f64, so that encoding rounds it once.
        let mut values = [0.0f64; TILE];
        let tile_bytes = TILE as u64 / self.output.block_elements() * self.output.block_bytes();
        let mut element = start * self.step;
        for (bytes, out) in inputs[0].chunks(TILE).zip(out.chunks_mut(tile_bytes as usize)) {
            let values = &mut values[..bytes.len()];
            dtype::decode_f64(self.input, bytes, values);
            let mut rest = &mut *values;
            while !rest.is_empty() {
                // Up to where the next scale begins.
                let column = element % self.columns;
                let run = (self.block.1 - column % self.block.1).min(self.columns - column);
                let (now, after) = rest.split_at_mut((run as usize).min(rest.len()));
                let scale = f64::from(self.scale(element));
                now.iter_mut().for_each(|value| *value *= scale);
                element += now.len() as u64;
                rest = after;
            }
            dtype::encode_f64(self.output, values, out);
        }
        Ok(())
    }
}
