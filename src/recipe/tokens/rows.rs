//! Rows put together from several tensors, without ever all being in memory.

use crate::checkpoint::{DataFile, TensorView};
use crate::dtype::{self, Simd};
use crate::error::Result;
use crate::merge::{Generator, Input};
use std::sync::{Arc, Mutex};

/// Where a row comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::recipe) enum Row {
    Zero,
    /// A row of one of the sources.
    Of(usize, u64),
    /// The mean of rows of sources.
    Mean(Box<[(usize, u64)]>),
    /// The mean of all rows that are not padding.
    Padding,
}

/// A tensor that rows are taken from.
pub(in crate::recipe) struct RowSource<'a> {
    pub(in crate::recipe) rows: u64,
    width: u64,
    elements: Elements<'a>,
}

enum Elements<'a> {
    Read(TensorView<'a>),
    Computed(Arc<dyn Generator + 'a>),
}

impl<'a> RowSource<'a> {
    /// A tensor of `rows` × `width`.
    ///
    /// # Errors
    /// A message if single rows of it cannot be had.
    pub(super) fn new(input: &Input<'a>, rows: u64, width: u64) -> Result<Self, String> {
        let elements = match input {
            Input::Tensor(view) => {
                let dtype = view.tensor.dtype;
                if !dtype.is_real() || !dtype::can_decode(dtype) || !width.is_multiple_of(dtype.block_elements()) {
                    return Err(format!(
                        "is {dtype}, whose rows cannot be taken apart: convert the model to bf16 first"
                    ));
                }
                Elements::Read(*view)
            }
            Input::Generated(generator) => Elements::Computed(Arc::clone(generator)),
            Input::Node(_) => {
                return Err("is itself the result of a merge, whose rows cannot be put in another order: merge it on its own first".to_owned());
            }
        };
        Ok(Self { rows, width, elements })
    }

    /// Fills `out` with part of a row, from its element `offset` on.
    fn fill(&self, row: u64, offset: u64, out: &mut [f32]) -> Result<()> {
        let start = row * self.width + offset;
        match &self.elements {
            Elements::Computed(generator) => generator.fill(start, out),
            Elements::Read(view) => {
                let dtype = view.tensor.dtype;
                let block = dtype.block_elements();
                // Whole blocks, which a part of a row may not be.
                let (first, last) = (start / block * block, (start + out.len() as u64).next_multiple_of(block));
                let bytes = |elements: u64| elements / block * dtype.block_bytes();
                let mut buffer = Vec::new();
                let read = view.read(bytes(first)..bytes(last), &mut buffer)?;
                if (first, last - first) == (start, out.len() as u64) {
                    dtype::decode(Simd::detect(), dtype, read, out);
                } else {
                    let mut values = vec![0.0; (last - first) as usize];
                    dtype::decode(Simd::detect(), dtype, read, &mut values);
                    let skip = (start - first) as usize;
                    out.copy_from_slice(&values[skip..skip + out.len()]);
                }
                view.files().try_for_each(DataFile::check_fault)
            }
        }
    }
}

/// A tensor of rows of others.
pub(in crate::recipe) struct Rows<'a> {
    sources: Arc<Vec<RowSource<'a>>>,
    rows: Vec<Row>,
    /// Rows that are not padding.
    count: u64,
    width: u64,
    /// The mean of these, once it was asked for.
    mean: Mutex<Option<Arc<Vec<f32>>>>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(sources: Arc<Vec<RowSource<'a>>>, rows: Vec<Row>, count: u64) -> Self {
        let width = sources.first().map_or(1, |source| source.width);
        Self { sources, rows, count, width, mean: Mutex::new(None) }
    }

    fn fill_row(&self, row: &Row, offset: u64, out: &mut [f32]) -> Result<()> {
        match row {
            Row::Zero => out.fill(0.0),
            Row::Of(source, row) => self.sources[*source].fill(*row, offset, out)?,
            Row::Mean(of) => {
                let mut sum = vec![0.0f64; out.len()];
                for (source, row) in of {
                    self.sources[*source].fill(*row, offset, out)?;
                    sum.iter_mut().zip(&*out).for_each(|(sum, value)| *sum += f64::from(*value));
                }
                out.iter_mut().zip(sum).for_each(|(out, sum)| *out = (sum / of.len() as f64) as f32);
            }
            Row::Padding => {
                let mean = self.mean()?;
                out.copy_from_slice(&mean[offset as usize..offset as usize + out.len()]);
            }
        }
        Ok(())
    }

    /// The mean of all rows that are not padding.
    fn mean(&self) -> Result<Arc<Vec<f32>>> {
        let mut kept = self.mean.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some(mean) = &*kept {
            return Ok(Arc::clone(mean));
        }
        let mut sum = vec![0.0f64; self.width as usize];
        let mut values = vec![0.0; self.width as usize];
        for row in &self.rows[..self.count as usize] {
            self.fill_row(row, 0, &mut values)?;
            sum.iter_mut().zip(&values).for_each(|(sum, value)| *sum += f64::from(*value));
        }
        let mean = Arc::new(sum.into_iter().map(|sum| (sum / self.count.max(1) as f64) as f32).collect());
        *kept = Some(Arc::clone(&mean));
        Ok(mean)
    }
}

impl Generator for Rows<'_> {
    fn fill(&self, start: u64, out: &mut [f32]) -> Result<()> {
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, offset) = (at / self.width, at % self.width);
            let length = rest.len().min((self.width - offset) as usize);
            let (now, after) = rest.split_at_mut(length);
            self.fill_row(&self.rows[row as usize], offset, now)?;
            at += length as u64;
            rest = after;
        }
        Ok(())
    }

    fn reads(&self) -> Vec<TensorView<'_>> {
        let mut views = Vec::new();
        for source in self.sources.iter() {
            match &source.elements {
                Elements::Read(view) => views.push(*view),
                Elements::Computed(generator) => views.extend(generator.reads()),
            }
        }
        views
    }
}
