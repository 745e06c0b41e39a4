//! The reducing pass over one group, in tiles of the caller's size, for what takes several passes over a tensor.

use super::{Control, Group, Hints, Settings, byte_range, files};
use crate::error::Result;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// A group of tensors that is passed over as often as its owner likes.
pub struct Scan<'a> {
    group: Group<'a>,
    hints: Hints,
    control: Control<'a>,
    /// Whether all has been passed over.
    is_known: AtomicBool,
}

impl<'a> Scan<'a> {
    /// Over the same elements of some tensors; `elements` of `block` each, as [`Group`] counts.
    #[must_use]
    pub fn new(group: Group<'a>, settings: &Settings, control: Control<'a>) -> Self {
        let hints = Hints::new(files(group.inputs.iter().copied()), settings);
        Self { group, hints, control, is_known: AtomicBool::new(false) }
    }

    /// How many elements, of as many single ones as the group's block, there are.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.group.elements
    }

    /// Whether the run is to go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) if it is to stop.
    pub fn check(&self) -> Result<()> {
        self.control.check()
    }

    /// Whether all elements have been passed over.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Relaxed)
    }

    /// Runs `tile` over every `step` elements, in parallel, and hands the results to `combine` in their order: those of
    /// `window` tiles for each thread at a time. The more there are, the less threads wait for each other.
    ///
    /// # Errors
    /// As [`measure`](super::measure()), and whatever `tile` returns.
    pub fn run<T: Send>(
        &self,
        step: u64,
        window: usize,
        tile: impl Fn(Range<u64>, &[&[u8]]) -> Result<T> + Sync,
        mut combine: impl FnMut(T),
    ) -> Result<()> {
        let starts: Vec<u64> = (0..self.group.elements).step_by(step.max(1) as usize).collect();
        let range = |start: u64| start..self.group.elements.min(start + step);
        let visit = |buffers: &mut Vec<Vec<u8>>, start: u64| self.visit(buffers, range(start), &tile);
        for window in starts.chunks(window * rayon::current_num_threads()) {
            match window {
                [start] => combine(visit(&mut Vec::new(), *start)?),
                _ => {
                    let results: Vec<T> = window
                        .par_iter()
                        .with_max_len(1)
                        .map_init(Vec::new, |buffers, start| visit(buffers, *start))
                        .collect::<Result<_>>()?;
                    results.into_iter().for_each(&mut combine);
                }
            }
        }
        self.is_known.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Runs `tile` over one range of elements.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn at<T>(&self, elements: Range<u64>, tile: impl FnOnce(&[&[u8]]) -> Result<T>) -> Result<T> {
        self.visit(&mut Vec::new(), elements, |_, inputs| tile(inputs))
    }

    fn visit<T>(
        &self,
        buffers: &mut Vec<Vec<u8>>,
        elements: Range<u64>,
        tile: impl FnOnce(Range<u64>, &[&[u8]]) -> Result<T>,
    ) -> Result<T> {
        self.control.check()?;
        let group = &self.group;
        let hints = if self.is_known() { self.hints.again() } else { self.hints };
        buffers.resize(buffers.len().max(group.inputs.len()), Vec::new());
        let inputs = group
            .inputs
            .iter()
            .zip(buffers)
            .map(|(input, buffer)| {
                let range = byte_range(input, group.elements, &elements);
                if hints.read_ahead {
                    let (file, range) = input.extent(range.clone());
                    file.will_need(range);
                }
                hints.fetch(input, range, buffer)
            })
            .collect::<Result<Vec<_>>>()?;
        let result = tile(elements.clone(), &inputs)?;
        for input in &group.inputs {
            hints.done(input, byte_range(input, group.elements, &elements))?;
        }
        Ok(result)
    }
}
