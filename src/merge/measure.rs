//! The passes by which methods measure, each on the CPU or on a device.
//!
//! On a device sums go by segments of a fixed number of elements, each a pair of f32 that hold some 48 bits; the segments
//! are added in f64, in their order. So they depend neither on tiles nor on how many are on their way.

use super::data::{Block, Data, Gram, SMALL_RESULTS, TILE, pairs};
use super::node::common_multiple;
use super::offload::{Offload, SEGMENT, Shape};
use super::shader::Shader;
use crate::dtype::vector;
use crate::error::Result;
use crate::gpu::{GRAM_SCALE, GROUP, WORKGROUP};

/// Vectors of a block of inner products in `gram.wgsl`.
const GRAM_BLOCK: u64 = 4;
/// Rows that a thread of `columns.wgsl` adds up.
const STRIP: u64 = 64;
/// Rows with fewer elements are the CPU's: what is solved for each would be as much as what it is solved from.
const SHORTEST: u64 = 32;
/// Elements that a workgroup of `histogram.wgsl` counts.
const SHARE: u64 = 1 << 14;
/// Bytes of a sum.
pub(super) const PAIR: u64 = 8;

/// Makes of a kernel's output what it means.
type Read<'p, T> = Box<dyn Fn(&[u8]) -> T + Sync + 'p>;

/// A pass by a device: what of it is not the same for all kernels.
pub(super) struct OnDevice<'p, 'a, T> {
    offload: Offload<'a>,
    /// Elements of a tile.
    tile: u64,
    shape: Box<dyn Fn(u64) -> Shape + Sync + 'p>,
    read: Read<'p, T>,
}

impl<'p, 'a, T> OnDevice<'p, 'a, T> {
    /// Elements of a tile.
    pub(super) fn tile(&self) -> u64 {
        self.tile
    }

    /// What comes of one tile; `None` if it is the CPU's.
    pub(super) fn run(&self, start: u64, count: u64, bytes: &[&[u8]]) -> Result<Option<T>> {
        let shape = (self.shape)(count);
        let mut out = vec![0; shape.output as usize];
        Ok(self.offload.run(start, count, bytes, &shape, &mut out)?.then(|| (self.read)(&out)))
    }
}

/// The pairs of a kernel's output, added.
fn sums(out: &[u8]) -> Vec<f64> {
    let (pairs, _) = out.as_chunks::<{ PAIR as usize }>();
    let half = |bytes: [u8; 4]| f64::from(f32::from_le_bytes(bytes));
    pairs.iter().map(|&[a, b, c, d, e, f, g, h]| half([a, b, c, d]) + half([e, f, g, h])).collect()
}

/// The same of inner products, which the kernel scales.
pub(super) fn products(out: &[u8]) -> Vec<f64> {
    let mut sums = sums(out);
    sums.iter_mut().for_each(|sum| *sum /= GRAM_SCALE);
    sums
}

/// The units of `unit` elements each, cut into segments of `segment`, that so many elements have.
fn segments(count: u64, unit: u64, segment: u64) -> u64 {
    count / unit * unit.div_ceil(segment) + (count % unit).div_ceil(segment)
}

impl<'a> Data<'a> {
    /// The kernel on this tensor's device, if it has one and is large enough.
    pub(super) fn offload(&self, kernel: &str, shader: impl Fn() -> Shader) -> Option<Offload<'a>> {
        let offloading = self.device()?;
        if self.elements() < offloading.least {
            return None;
        }
        Offload::new(offloading, kernel, None, self.types(), self.sources(), &shader())
    }

    /// A kernel that makes `sums_of_segment` sums of each segment.
    fn by_segments<'p>(
        &self,
        kernel: &str,
        shader: impl Fn() -> Shader,
        row: Option<u64>,
        sums_of_segment: u64,
        groups_of_segment: u64,
        read: impl Fn(&[u8]) -> Vec<f64> + Sync + 'p,
    ) -> Option<OnDevice<'p, 'a, Vec<f64>>> {
        let offload = self.offload(kernel, shader)?;
        let together = common_multiple(offload.unit(), self.block());
        let (unit, segment) = match row {
            Some(row) => (row, row),
            None => (together * SEGMENT.div_ceil(together), SEGMENT),
        };
        u32::try_from(unit).ok()?;
        let bytes = sums_of_segment * PAIR;
        let tile = offload.tile(common_multiple(unit, together), bytes as f64 / unit.min(segment) as f64)?;
        let shape = move |count: u64| {
            let segments = segments(count, unit, segment);
            let own = [unit as u32, segment as u32];
            Shape {
                groups: segments.div_ceil(together_of(segment.min(unit))) * groups_of_segment,
                output: segments * bytes,
                scratch: 0,
                zeros: false,
                own,
            }
        };
        Some(OnDevice { offload, tile, shape: Box::new(shape), read: Box::new(read) })
    }

    /// `count` sums over all elements, to which `add` adds each block's part, and `shader` has each element's part of each.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn sums(
        &self,
        count: usize,
        shader: impl Fn() -> Shader,
        add: impl Fn(&mut Block<'_>, &mut [f64]) + Sync,
    ) -> Result<Vec<f64>> {
        let device = self.by_segments("sums", shader, None, count as u64, 1, sums);
        let mut total = vec![0.0; count];
        self.fold_on(
            device,
            TILE,
            SMALL_RESULTS,
            || vec![0.0; count],
            |sums, block| add(block, sums),
            |tile: Vec<f64>| {
                for part in tile.chunks(count.max(1)) {
                    total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
                }
            },
        )?;
        Ok(total)
    }

    /// The inner products of all inputs; around the base, of the models' differences from it.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn gram(&self, around_base: bool) -> Result<Gram> {
        if around_base {
            let size = self.models();
            let shader = || Shader::each((0..size).map(|i| format!("x[{i}] - x[BASE$]")));
            self.gram_of(size, shader, |block| block.subtract_base())
        } else {
            let size = self.sources().len();
            self.gram_of(size, || Shader::each((0..size).map(|i| format!("x[{i}]"))), |_| {})
        }
    }

    /// The inner products of what `vectors` leaves in the first `size` inputs of a block, which are what `shader` computes.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn gram_of(
        &self,
        size: usize,
        shader: impl Fn() -> Shader,
        vectors: impl Fn(&mut Block<'_>) + Sync,
    ) -> Result<Gram> {
        let add = |sums: &mut Vec<f64>, more: &[f64]| sums.iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        let count = size * (size + 1) / 2;
        let device = self.by_segments("gram", shader, None, count as u64, gram_groups(size), products);
        let mut upper = vec![0.0; count];
        self.fold_on(
            device,
            TILE,
            SMALL_RESULTS,
            || vec![0.0; count],
            |sums, block| {
                vectors(block);
                match (size, &*block.inputs) {
                    (2, [a, b, ..]) => add(sums, &vector::gram_of_two(a, b)),
                    (3, [a, b, c, ..]) => {
                        let ([aa, ab, ac], [bb, bc, cc]) = (vector::three_dots(a, b, c), vector::gram_of_two(b, c));
                        add(sums, &[aa, ab, ac, bb, bc, cc]);
                    }
                    (_, inputs) => {
                        for ((i, j), sum) in pairs(size).zip(sums) {
                            *sum += vector::dot(&inputs[i], &inputs[j]);
                        }
                    }
                }
            },
            |tile: Vec<f64>| tile.chunks(count.max(1)).for_each(|part| add(&mut upper, part)),
        )?;
        Ok(Gram::new(size, &upper))
    }

    /// The inner products `i ≤ j`, in row-major order, of what `vectors` leaves in the first `size` inputs of each row; `None`
    /// if the tensor has no device or rows are short, as the CPU has them when it blends.
    ///
    /// # Errors
    /// As [`Self::fold`].
    pub fn row_grams(
        &self,
        row: u64,
        size: usize,
        shader: impl Fn() -> Shader,
        vectors: impl Fn(&mut Block<'_>) + Sync,
    ) -> Result<Option<Vec<f64>>> {
        if row < SHORTEST {
            return Ok(None);
        }
        let count = size * (size + 1) / 2;
        let Some(device) = self.by_segments("gram", shader, Some(row), count as u64, gram_groups(size), products)
        else {
            return Ok(None);
        };
        let mut rows = Vec::new();
        self.fold_on(
            Some(device),
            TILE,
            SMALL_RESULTS,
            Vec::new,
            |rows: &mut Vec<f64>, block| {
                vectors(block);
                let row = row as usize;
                for start in (0..block.length()).step_by(row) {
                    let part = |i: usize| &block.inputs[i][start..start + row];
                    rows.extend(pairs(size).map(|(i, j)| vector::dot(part(i), part(j))));
                }
            },
            |tile| rows.extend(tile),
        )?;
        Ok(Some(rows))
    }

    /// Sums over each of the `columns` columns. `visit` adds a block's part, `combine` takes what came of some rows: on the
    /// CPU all that `start` makes, of a device `read`'s, of `count` sums for each column.
    ///
    /// # Errors
    /// As [`Self::fold`].
    #[expect(clippy::too_many_arguments, reason = "the two forms of one pass")]
    pub fn columns<T: Send>(
        &self,
        columns: u64,
        count: usize,
        shader: impl Fn() -> Shader,
        size: u64,
        start: impl Fn() -> T + Sync,
        visit: impl Fn(&mut T, &mut Block<'_>) + Sync,
        read: impl Fn(&[f64]) -> T + Sync,
        mut combine: impl FnMut(T),
    ) -> Result<()> {
        let strip = columns * STRIP;
        let device = u32::try_from(strip).ok().and_then(|_| {
            let offload = self.offload("columns", shader)?;
            let bytes = columns * count as u64 * PAIR;
            let least = strip.min(self.elements());
            let tile = offload.tile(common_multiple(least, self.block()), bytes as f64 / least as f64)?;
            let shape = move |elements: u64| {
                let strips = elements.div_ceil(strip);
                let threads = strips * columns;
                let own = [columns as u32, STRIP as u32];
                Shape {
                    groups: super::offload::groups_of(threads),
                    output: strips * bytes,
                    scratch: 0,
                    zeros: false,
                    own,
                }
            };
            let read = |out: &[u8]| sums(out).chunks(columns as usize * count).map(&read).collect::<Vec<T>>();
            Some(OnDevice { offload, tile, shape: Box::new(shape), read: Box::new(read) })
        });
        self.fold_on(
            device,
            size,
            super::data::LARGE_RESULTS,
            || vec![start()],
            |tile, block| tile.iter_mut().for_each(|folded| visit(folded, block)),
            |tile: Vec<T>| tile.into_iter().for_each(&mut combine),
        )
    }

    /// A pass that counts magnitudes in `buckets` buckets for each of some searches, which are words of the shader: four
    /// each, the last of them.
    pub(super) fn counts<'p, T>(
        &self,
        shader: impl Fn() -> Shader,
        searches: u64,
        counts_of_search: u64,
        read: impl Fn(&[u8]) -> T + Sync + 'p,
    ) -> Option<OnDevice<'p, 'a, T>> {
        let offload = self.offload("histogram", shader)?;
        let words = offload.root_words();
        let table = words.end.checked_sub(4 * searches as usize)?;
        let bytes = searches * counts_of_search * size_of::<u32>() as u64;
        let tile = offload.tile(common_multiple(SEGMENT, self.block()), 0.0)?;
        let shape = move |count: u64| {
            let own = [searches as u32, table as u32];
            Shape { groups: count.div_ceil(SHARE), output: bytes, scratch: 0, zeros: true, own }
        };
        Some(OnDevice { offload, tile, shape: Box::new(shape), read: Box::new(read) })
    }
}

/// Segments that a workgroup sums together: each takes as many threads as it has groups of 8 elements, in powers of two.
fn together_of(segment: u64) -> u64 {
    let workgroup = u64::from(WORKGROUP);
    workgroup / segment.div_ceil(u64::from(GROUP)).next_power_of_two().clamp(1, workgroup)
}

/// Workgroups that the inner products of a segment take.
pub(super) fn gram_groups(size: usize) -> u64 {
    let blocks = (size as u64).div_ceil(GRAM_BLOCK);
    blocks * (blocks + 1) / 2
}
