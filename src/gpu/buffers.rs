//! Buffers in slots, one a job, which threads take in turn.

use super::context::{Context, Landing, locked};
use super::{ALIGN, Job, Limits, Lost};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use wgpu::{BindGroup, BindGroupDescriptor, BindGroupEntry, BindGroupLayout, BindingResource};
use wgpu::{Buffer, BufferBinding, BufferDescriptor, BufferSize, BufferUsages, MapMode};

/// Bytes of the status.
pub(super) const STATUS: u64 = 16;
/// What goes beside a binding's bytes in the buffer that carries them up or down: parameters, the status.
pub(super) const BESIDE: u64 = 1 << 24;
/// Sizes are rounded up to this, so that slots fit more than one job.
pub(super) const GRAIN: u64 = 1 << 16;

/// Bytes that a job needs of each buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Inputs to be uploaded.
    pub(super) inputs: u64,
    pub(super) params: u64,
    /// Output and scratch.
    pub(super) out: u64,
    /// Output that is downloaded.
    pub(super) output: u64,
}

impl Sizes {
    /// Of a job; the error says which limit it exceeds.
    pub(super) fn of(job: &Job<'_>, inputs: u64, limits: Limits) -> Result<Self, String> {
        let params = (job.params.len() as u64 * 4).max(1).next_multiple_of(ALIGN);
        let out = job.output.saturating_add(job.scratch).clamp(1, u64::MAX - ALIGN).next_multiple_of(ALIGN);
        let sizes = Self { inputs, params, out, output: job.output.next_multiple_of(4) };
        if inputs > limits.binding || out > limits.binding || params > limits.binding.min(BESIDE - 4 * GRAIN) {
            let Limits { binding, .. } = limits;
            return Err(format!(
                "a job of {inputs} B of inputs, {params} B of parameters and {out} B of output exceeds the {binding} B that fit"
            ));
        }
        if let Some(pass) = job.passes.iter().find(|pass| spread(pass.groups, limits.groups).is_none()) {
            return Err(format!("{} workgroups exceed the {} in each of two dimensions", pass.groups, limits.groups));
        }
        Ok(sizes)
    }

    fn rounded(self) -> Self {
        let round = |size: u64| size.max(1).next_multiple_of(GRAIN);
        Self {
            inputs: round(self.inputs),
            params: round(self.params),
            out: round(self.out),
            output: round(self.output),
        }
    }

    fn fit(self, room: Self) -> bool {
        self.inputs <= room.inputs && self.params <= room.params && self.out <= room.out && self.output <= room.output
    }

    /// Of all buffers together.
    fn total(self) -> u64 {
        2 * (self.inputs + self.params) + self.out + self.output + 2 * STATUS
    }
}

/// Workgroups in two dimensions, few more than asked for.
pub(super) fn spread(groups: u64, most: u32) -> Option<[u32; 2]> {
    let rows = groups.div_ceil(u64::from(most)).max(1);
    let columns = groups.div_ceil(rows);
    (rows <= u64::from(most)).then_some([columns as u32, rows as u32])
}

/// The buffers of one job. At rest, `upload` is mapped and the others are not.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) upload: Buffer,
    pub(super) inputs: Buffer,
    pub(super) params: Buffer,
    pub(super) out: Buffer,
    pub(super) status: Buffer,
    pub(super) back: Buffer,
    room: Sizes,
    group: Option<(Sizes, BindGroup)>,
}

impl Slot {
    fn new(context: &Context, room: Sizes) -> Result<Self, Lost> {
        let carried = BufferUsages::STORAGE | BufferUsages::COPY_DST;
        let buffer = |size, usage, mapped_at_creation| {
            context.device.create_buffer(&BufferDescriptor { label: None, size, usage, mapped_at_creation })
        };
        context.checked("allocate memory", || Self {
            upload: buffer(room.inputs + room.params, BufferUsages::MAP_WRITE | BufferUsages::COPY_SRC, true),
            inputs: buffer(room.inputs, carried, false),
            params: buffer(room.params, carried, false),
            out: buffer(room.out, carried | BufferUsages::COPY_SRC, false),
            status: buffer(STATUS, carried | BufferUsages::COPY_SRC, false),
            back: buffer(room.output + STATUS, BufferUsages::MAP_READ | BufferUsages::COPY_DST, false),
            room,
            group: None,
        })
    }

    /// The job's bindings; `held` are inputs from elsewhere.
    pub(super) fn bind(
        &mut self,
        context: &Context,
        layout: &BindGroupLayout,
        sizes: Sizes,
        held: Option<&Buffer>,
    ) -> BindGroup {
        if let Some((_, group)) = self.group.as_ref().filter(|(bound, _)| held.is_none() && *bound == sizes) {
            return group.clone();
        }
        let part =
            |buffer, size| BindingResource::Buffer(BufferBinding { buffer, offset: 0, size: BufferSize::new(size) });
        let inputs = held.map_or_else(|| part(&self.inputs, sizes.inputs.max(ALIGN)), Buffer::as_entire_binding);
        let entries = [
            BindGroupEntry { binding: 0, resource: inputs },
            BindGroupEntry { binding: 1, resource: part(&self.params, sizes.params) },
            BindGroupEntry { binding: 2, resource: part(&self.out, sizes.out) },
            BindGroupEntry { binding: 3, resource: part(&self.status, STATUS) },
        ];
        let descriptor = BindGroupDescriptor { label: None, layout, entries: &entries };
        let group = context.device.create_bind_group(&descriptor);
        self.group = held.is_none().then(|| (sizes, group.clone()));
        group
    }

    /// Asks for `upload` to be mapped when the device has read it.
    pub(super) fn map_upload(&self, landing: &Arc<Landing>) {
        self.upload.map_async(MapMode::Write, .., landing.expect());
    }
}

/// The slots of a device, and what they take.
#[derive(Debug)]
pub(super) struct Pool {
    memory: u64,
    /// Bytes of what is held, which `memory` does not limit: whoever holds much would leave no room for jobs.
    held: AtomicU64,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Slot>,
    /// Of all slots.
    bytes: u64,
    lent: usize,
}

impl Pool {
    pub(super) fn new(memory: u64) -> Self {
        Self { memory, held: AtomicU64::new(0), state: Mutex::default(), freed: Condvar::new() }
    }

    /// A slot for one job, when there is one to be had. One there always is, however little the memory.
    pub(super) fn lend(&self, context: &Context, sizes: Sizes) -> Result<Lease<'_>, Lost> {
        let room = sizes.rounded();
        let taken = self.find(context, room.total(), |free| {
            let fitting = free.iter().enumerate().filter(|(_, slot)| sizes.fit(slot.room));
            fitting.min_by_key(|(_, slot)| slot.room.total()).map(|(index, _)| index)
        })?;
        let mut lease = Lease { pool: self, slot: None, bytes: room.total() };
        let slot = match taken {
            Some(slot) => slot,
            None => Slot::new(context, room)?,
        };
        lease.bytes = slot.room.total();
        lease.slot = Some(slot);
        Ok(lease)
    }

    /// Counts memory that is held beside the slots.
    pub(super) fn count(self: &Arc<Self>, bytes: u64) -> Counted {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Counted { pool: Arc::clone(self), bytes }
    }

    /// Takes the free slot that `pick` picks, or counts `bytes` as taken.
    fn find(
        &self,
        context: &Context,
        bytes: u64,
        pick: impl Fn(&[Slot]) -> Option<usize>,
    ) -> Result<Option<Slot>, Lost> {
        let mut state = locked(&self.state);
        loop {
            context.failure.check()?;
            if let Some(index) = pick(&state.free) {
                state.lent += 1;
                return Ok(Some(state.free.swap_remove(index)));
            }
            let nothing_else = state.lent == 0 && state.free.is_empty();
            if nothing_else || state.bytes.saturating_add(bytes) <= self.memory {
                state.lent += 1;
                state.bytes += bytes;
                return Ok(None);
            }
            state = match state.free.pop() {
                Some(slot) => {
                    state.bytes -= slot.room.total();
                    drop(state);
                    drop(slot);
                    locked(&self.state)
                }
                // A device that fails wakes nobody.
                None => {
                    self.freed.wait_timeout(state, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Drops all slots that are free.
    pub(super) fn clear(&self) {
        let mut state = locked(&self.state);
        let slots = mem::take(&mut state.free);
        state.bytes -= slots.iter().map(|slot| slot.room.total()).sum::<u64>();
        drop(state);
    }

    /// Bytes of all slots and of what is held.
    pub(super) fn bytes(&self) -> u64 {
        locked(&self.state).bytes + self.held.load(Ordering::Relaxed)
    }
}

/// A slot that is in use. It is dropped with this unless it is given back.
pub(super) struct Lease<'p> {
    pool: &'p Pool,
    slot: Option<Slot>,
    bytes: u64,
}

impl Lease<'_> {
    pub(super) fn slot(&mut self) -> Option<&mut Slot> {
        self.slot.as_mut()
    }

    /// For the next job: `upload` is mapped and nothing else is.
    pub(super) fn give_back(mut self) {
        if let Some(slot) = self.slot.take() {
            locked(&self.pool.state).free.push(slot);
            self.bytes = 0;
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        drop(self.slot.take());
        let mut state = locked(&self.pool.state);
        state.lent -= 1;
        state.bytes -= self.bytes;
        drop(state);
        self.pool.freed.notify_all();
    }
}

/// Memory that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    pool: Arc<Pool>,
    bytes: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.pool.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
