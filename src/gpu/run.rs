//! A job's way: up, through its passes, and down again.

use super::buffers::{GRAIN, Lease, STATUS, Sizes, Slot, spread};
use super::context::Landing;
use super::device::{Device, Kept};
use super::{ALIGN, Inputs, Job, Lost, Outcome, layout};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wgpu::{BindGroup, Buffer, CommandEncoder, ComputePipeline, MapMode};

/// Bytes of what is held that are uploaded at a time.
const PART: u64 = 8 << 20;

impl Device {
    /// What a job needs of buffers.
    pub(super) fn sizes(&self, job: &Job<'_>) -> Result<Sizes, Lost> {
        self.context.failure.check()?;
        let inputs = match job.inputs {
            Inputs::Bytes(inputs) => layout(inputs.iter().map(|input| input.len() as u64)).1,
            Inputs::Held(_) => 0,
        };
        Sizes::of(job, inputs, self.adapter.limits).or_else(|reason| self.refuse(reason))
    }

    fn pipelines_of(&self, job: &Job<'_>) -> Result<Vec<ComputePipeline>, Lost> {
        job.passes.iter().map(|pass| self.pipelines.get(&self.context, &pass.shader)).collect()
    }

    /// Writes what the job reads where the device gets it from; what is held already is returned.
    fn write<'j>(&self, job: &Job<'j>, sizes: Sizes, slot: &Slot) -> Result<Option<&'j Buffer>, Lost> {
        let failed = |reason| self.context.failure.set(reason);
        let held = match job.inputs {
            Inputs::Bytes(inputs) => {
                fill(&slot.upload, 0, inputs, 0..sizes.inputs).map_err(failed)?;
                None
            }
            Inputs::Held(held) => match held.0.downcast_ref::<Kept>() {
                Some(kept) => Some(&kept.buffer),
                None => return self.refuse("the inputs are held by something else".to_owned()),
            },
        };
        let mut params: Vec<u8> = job.params.iter().flat_map(|word| word.to_le_bytes()).collect();
        params.resize(sizes.params as usize, 0);
        fill(&slot.upload, sizes.inputs, &[&params], 0..sizes.params).map_err(failed)?;
        Ok(held)
    }

    /// Makes the buffers ready for the job's passes.
    fn load(
        &self,
        encoder: &mut CommandEncoder,
        sizes: Sizes,
        slot: &mut Slot,
        held: Option<&Buffer>,
        zeros: bool,
    ) -> BindGroup {
        let group = slot.bind(&self.context, &self.pipelines.bindings, sizes, held);
        slot.upload.unmap();
        if sizes.inputs > 0 {
            encoder.copy_buffer_to_buffer(&slot.upload, 0, &slot.inputs, 0, sizes.inputs);
        }
        encoder.copy_buffer_to_buffer(&slot.upload, sizes.inputs, &slot.params, 0, sizes.params);
        if zeros {
            encoder.clear_buffer(&slot.out, 0, Some(sizes.out));
        }
        encoder.clear_buffer(&slot.status, 0, None);
        group
    }

    /// Records the job's passes so many times.
    fn dispatch(
        &self,
        encoder: &mut CommandEncoder,
        job: &Job<'_>,
        pipelines: &[ComputePipeline],
        group: &BindGroup,
        times: u32,
    ) {
        let mut passes = encoder.begin_compute_pass(&Default::default());
        passes.set_bind_group(0, group, &[]);
        for _ in 0..times {
            for (pass, pipeline) in job.passes.iter().zip(pipelines) {
                if let Some([columns, rows]) = spread(pass.groups, self.adapter.limits.groups) {
                    passes.set_pipeline(pipeline);
                    passes.dispatch_workgroups(columns, rows, 1);
                }
            }
        }
    }

    pub(super) fn run_in(
        &self,
        job: &Job<'_>,
        sizes: Sizes,
        lease: &mut Lease<'_>,
        out: &mut [u8],
    ) -> Result<Outcome, Lost> {
        let slot = lease.slot().ok_or(Lost)?;
        let pipelines = self.pipelines_of(job)?;
        let held = self.write(job, sizes, slot)?;
        let landing = Arc::new(Landing::default());
        let submission = self.context.checked("run a job", || {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            let group = self.load(&mut encoder, sizes, slot, held, job.zeros);
            self.dispatch(&mut encoder, job, &pipelines, &group, 1);
            encoder.copy_buffer_to_buffer(&slot.status, 0, &slot.back, 0, STATUS);
            if sizes.output > 0 {
                encoder.copy_buffer_to_buffer(&slot.out, 0, &slot.back, STATUS, sizes.output);
            }
            let submission = self.context.queue.submit([encoder.finish()]);
            slot.map_upload(&landing);
            slot.back.map_async(MapMode::Read, ..STATUS + sizes.output, landing.expect());
            submission
        })?;
        self.context.wait(submission, &landing)?;

        let view = slot.back.get_mapped_range(..STATUS + sizes.output);
        let view = view.map_err(|error| self.context.failure.set(format!("cannot read what it computed: {error}")))?;
        let (status, computed) = view.split_at(STATUS as usize);
        let outcome = if status.iter().take(4).any(|byte| *byte != 0) { Outcome::Strange } else { Outcome::Done };
        if outcome == Outcome::Done {
            out.copy_from_slice(&computed[..out.len()]);
        }
        drop(view);
        slot.back.unmap();
        Ok(outcome)
    }

    /// As [`Compute::time`](super::Compute::time).
    pub(super) fn timed(&self, job: &Job<'_>, times: u32) -> Result<Duration, Lost> {
        let sizes = self.sizes(job)?;
        let mut lease = self.pool.lend(&self.context, sizes)?;
        let slot = lease.slot().ok_or(Lost)?;
        let pipelines = self.pipelines_of(job)?;
        let held = self.write(job, sizes, slot)?;
        let landing = Arc::new(Landing::default());
        // The first time is slower.
        let (group, submission) = self.context.checked("run a job", || {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            let group = self.load(&mut encoder, sizes, slot, held, job.zeros);
            self.dispatch(&mut encoder, job, &pipelines, &group, 1);
            let submission = self.context.queue.submit([encoder.finish()]);
            slot.map_upload(&landing);
            (group, submission)
        })?;
        self.context.wait(submission, &landing)?;
        let start = Instant::now();
        let submission = self.context.checked("run a job", || {
            let mut encoder = self.context.device.create_command_encoder(&Default::default());
            self.dispatch(&mut encoder, job, &pipelines, &group, times);
            self.context.queue.submit([encoder.finish()])
        })?;
        self.context.wait(submission, &Landing::default())?;
        let taken = start.elapsed();
        lease.give_back();
        Ok(taken / times.max(1))
    }

    /// Uploads inputs to a buffer that has room for them, in parts that go through the buffers of jobs.
    pub(super) fn upload(&self, buffer: &Buffer, inputs: &[&[u8]]) -> Result<(), Lost> {
        let (_, end) = layout(inputs.iter().map(|input| input.len() as u64));
        let part = (self.adapter.limits.memory / 8).next_multiple_of(GRAIN).clamp(GRAIN, PART).min(end);
        let sizes = Sizes { inputs: part, params: 0, out: 0, output: 0 };
        let mut lease = self.pool.lend(&self.context, sizes)?;
        let slot = lease.slot().ok_or(Lost)?;
        let mut start = 0;
        while start < end {
            let stop = (start + part).min(end);
            fill(&slot.upload, 0, inputs, start..stop).map_err(|reason| self.context.failure.set(reason))?;
            let landing = Arc::new(Landing::default());
            let submission = self.context.checked("upload", || {
                slot.upload.unmap();
                let mut encoder = self.context.device.create_command_encoder(&Default::default());
                encoder.copy_buffer_to_buffer(&slot.upload, 0, buffer, start, stop - start);
                let submission = self.context.queue.submit([encoder.finish()]);
                slot.map_upload(&landing);
                submission
            })?;
            self.context.wait(submission, &landing)?;
            start = stop;
        }
        lease.give_back();
        Ok(())
    }
}

/// Lays inputs side by side with zeros between them, and writes a part of that into a mapped buffer, from `start` on.
fn fill(buffer: &Buffer, start: u64, inputs: &[&[u8]], part: Range<u64>) -> Result<(), String> {
    if part.is_empty() {
        return Ok(());
    }
    let view = buffer.get_mapped_range_mut(start..start + (part.end - part.start));
    let mut view = view.map_err(|error| format!("cannot write to the device's memory: {error}"))?;
    let (offsets, _) = layout(inputs.iter().map(|input| input.len() as u64));
    let first = offsets.partition_point(|offset| *offset <= part.start).saturating_sub(1);
    for (input, offset) in inputs.iter().zip(offsets).skip(first).take_while(|(_, offset)| *offset < part.end) {
        let end = offset + input.len() as u64;
        // Of the input and of the zeros behind it, what is in the part.
        let [from, behind, next] = [offset, end, end.next_multiple_of(ALIGN)].map(|at| at.clamp(part.start, part.end));
        let within = |at: u64| (at - part.start) as usize;
        let bytes = &input[(from - offset) as usize..][..(behind - from) as usize];
        view.slice(within(from)..within(behind)).copy_from_slice(bytes);
        view.slice(within(behind)..within(next)).fill(0);
    }
    Ok(())
}
