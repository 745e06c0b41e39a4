//! How fast a device is: up, down, and through the plainest of shaders.

use super::{Compute, Device, Inputs, Job, Kind, Lost, Pass, Rates, WORKGROUP, kernel};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Jobs of each thread.
const JOBS: usize = 4;
/// Dispatches that are timed together.
const TIMES: u32 = 8;

impl Device {
    /// How fast it is, measured on the way that jobs go. It takes a tenth of a second or so.
    ///
    /// # Errors
    /// [`Lost`], now and ever after.
    pub fn rates(&self) -> Result<Rates, Lost> {
        let limits = self.limits();
        // The processor copies a part of its cache as fast as any; a card is slower with little.
        let usual = if self.adapter.kind == Kind::Software { 4 << 20 } else { 16 << 20 };
        let size = usual.min(limits.binding).min(limits.memory / 16) / 256 * 256;
        let bytes = vec![0x5a; size as usize];
        let none = Job { passes: &[], params: &[], inputs: Inputs::Bytes(&[]), output: 0, scratch: 0, zeros: false };
        let inputs: [&[u8]; 1] = [&bytes];
        let up = self.together(&Job { inputs: Inputs::Bytes(&inputs), ..none })?;
        let down = self.together(&Job { output: size, ..none })?;

        let vectors = size / 16;
        let passes =
            [Pass { shader: Arc::from(kernel("copy").source()), groups: vectors.div_ceil(u64::from(WORKGROUP)) }];
        let params = [vectors as u32];
        let inputs = Inputs::Bytes(&inputs);
        let through = self.time(&Job { passes: &passes, params: &params, inputs, output: size, ..none }, TIMES)?;
        let rate = |taken: Duration| size as f64 / taken.as_secs_f64().max(1e-9);
        Ok(Rates { upload: rate(up), copy: 2.0 * rate(through), download: rate(down) })
    }

    /// The time of a job where several threads run it, as they do.
    fn together(&self, job: &Job<'_>) -> Result<Duration, Lost> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(4);
        let run = |times: usize| {
            let mut out = vec![0; job.output as usize];
            (0..times).try_for_each(|_| self.run(job, &mut out).map(drop))
        };
        let all = |times: usize| {
            thread::scope(|scope| {
                let started: Vec<_> = (0..threads).map(|_| scope.spawn(|| run(times))).collect();
                started.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(Lost)))
            })
        };
        // The first jobs allocate the buffers.
        all(1)?;
        let start = Instant::now();
        all(JOBS)?;
        Ok(start.elapsed() / (threads * JOBS) as u32)
    }
}
