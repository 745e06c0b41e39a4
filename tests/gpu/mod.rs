//! Passes on a graphics processor. Where there is none these tests fail: Mesa's software Vulkan driver is enough.

mod command;
mod device;
mod elements;
mod features;
mod ranks;
mod resident;
pub(crate) mod shaders;
mod sums;

use crate::model::Outcome as Test;
use ckptmerge::dtype::{self, DType, Simd};
use ckptmerge::gpu::{
    Choice, Compute, Device, Features, HEADER, Inputs, Job, Outcome, Pass, kernel, layout, open, text,
};
use std::cell::Cell;
use std::sync::OnceLock;

thread_local! {
    /// What shaders use, in this thread.
    pub(crate) static FEATURES: Cell<Features> = const { Cell::new(Features { f16: false, subgroup: 0 }) };
}

/// The device of this process.
pub(crate) fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| open(&Choice::Best, None).expect("tests need an adapter, such as mesa-vulkan-drivers has"))
}

/// One pass of a kernel over a tile.
pub(crate) struct Call<'c> {
    pub(crate) kernel: &'static str,
    /// What `value` is.
    pub(crate) body: &'c str,
    /// What `value` is for the kernel `ranks`, which runs before, in so many workgroups.
    pub(crate) ranks: Option<(&'c str, usize)>,
    /// Bytes behind the output, for the factors.
    pub(crate) scratch: usize,
    /// Inputs: types and bytes.
    pub(crate) leaves: &'c [(DType, Vec<u8>)],
    /// What a blend writes.
    pub(crate) output: Option<DType>,
    pub(crate) count: usize,
    /// The number of the first element in its tensor.
    pub(crate) start: u64,
    /// The kernel's own parameters, the third and those after it.
    pub(crate) own: &'c [u32],
    /// The caller's words.
    pub(crate) words: &'c [u32],
    pub(crate) groups: usize,
    /// Bytes that come out.
    pub(crate) bytes: usize,
}

impl Default for Call<'_> {
    fn default() -> Self {
        let (kernel, body) = ("blend", "");
        let (leaves, own, words) = (&[], &[], &[]);
        Self {
            kernel,
            body,
            leaves,
            ranks: None,
            scratch: 0,
            output: None,
            count: 0,
            start: 0,
            own,
            words,
            groups: 1,
            bytes: 0,
        }
    }
}

impl Call<'_> {
    /// What comes out, or none where a number is strange.
    pub(crate) fn run(&self) -> Test<Option<Vec<u8>>> {
        let device = device();
        let types: Vec<DType> = self.leaves.iter().map(|(dtype, _)| *dtype).collect();
        let shader = text(kernel(self.kernel), &types, self.output, self.body, FEATURES.get());
        let (offsets, _) = layout(self.leaves.iter().map(|(_, bytes)| bytes.len() as u64));
        let mut params = vec![0; HEADER];
        params[0] = self.count as u32;
        params[1] = self.start as u32;
        params[2] = (self.start >> 32) as u32;
        params[3..3 + self.own.len()].copy_from_slice(self.own);
        params.extend(offsets.iter().map(|offset| (offset / 16) as u32));
        params.extend(self.words);
        let inputs: Vec<&[u8]> = self.leaves.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let mut passes = vec![Pass { shader, groups: self.groups as u64 }];
        if let Some((body, groups)) = self.ranks {
            let shader = text(kernel("ranks"), &types, None, body, FEATURES.get());
            passes.insert(0, Pass { shader, groups: groups as u64 });
        }
        let job = Job {
            passes: &passes,
            params: &params,
            inputs: Inputs::Bytes(&inputs),
            output: self.bytes as u64,
            scratch: self.scratch as u64,
            zeros: true,
        };
        let mut out = vec![0xaa; self.bytes];
        match device.run(&job, &mut out) {
            Ok(Outcome::Done) => Ok(Some(out)),
            Ok(Outcome::Strange) => Ok(None),
            Err(_) => Err(device.failure().unwrap_or_default().into()),
        }
    }

    /// The words that come out of what is ordinary.
    pub(crate) fn words(&self) -> Test<Vec<u32>> {
        let out = self.run()?.ok_or("a number is strange")?;
        Ok(out.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect())
    }

    /// The numbers that come out of what is ordinary.
    pub(crate) fn numbers(&self) -> Test<Vec<f32>> {
        Ok(self.words()?.into_iter().map(f32::from_bits).collect())
    }

    /// The pairs of f32 that come out, summed.
    pub(crate) fn pairs(&self) -> Test<Vec<f64>> {
        Ok(self.numbers()?.chunks_exact(2).map(|pair| f64::from(pair[0]) + f64::from(pair[1])).collect())
    }
}

/// Numbers as a type stores them.
pub(crate) fn encoded(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; dtype.size_of(values.len() as u64).expect("it is small") as usize];
    dtype::encode(Simd::Portable, dtype, values, &mut out);
    out
}

/// What a type stores, as numbers.
pub(crate) fn decoded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / dtype.bytes().expect("it has whole bytes")];
    dtype::decode(Simd::Portable, dtype, bytes, &mut out);
    out
}

/// Bits at random, the same for each seed.
pub(crate) fn random(seed: u64, count: usize) -> Vec<u32> {
    let mut out = vec![0; count];
    ckptmerge::merge::Key::new(seed, "test", 0).fill(0, &mut out);
    out
}

/// Numbers between -1 and 1.
pub(crate) fn spread(seed: u64, count: usize) -> Vec<f32> {
    random(seed, count).into_iter().map(|bits| (bits >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}
