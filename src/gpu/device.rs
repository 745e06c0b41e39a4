//! A device that computes, by wgpu.

use super::adapter::choose;
use super::buffers::{BESIDE, Counted, Pool};
use super::context::Context;
use super::pipelines::Pipelines;
use super::{ALIGN, Adapter, Choice, Compute, Features, Held, Job, Kind, Limits, Lost, Outcome, check, layout};
use crate::error::{Error, Result};
use std::sync::Arc;
use std::time::Duration;
use wgpu::{Backend, Backends, Buffer, BufferDescriptor, BufferUsages, DeviceType, DownlevelFlags};

/// What streaming takes of a device's memory, unless it is told otherwise. Of a device that is the processor itself, this is
/// the memory of the machine.
const MEMORY: u64 = 1 << 30;
const MEMORY_OF_SOFTWARE: u64 = 1 << 28;

/// An adapter that is open.
#[derive(Debug)]
pub struct Device {
    pub(super) adapter: Adapter,
    offered: Features,
    features: Features,
    pub(super) pipelines: Pipelines,
    pub(super) pool: Arc<Pool>,
    pub(super) context: Context,
}

/// Inputs on a device.
pub(super) struct Kept {
    pub(super) buffer: Buffer,
    _bytes: Counted,
}

/// The adapters, in order of preference: the best first, software last.
#[must_use]
pub fn adapters() -> Vec<Adapter> {
    found().into_iter().map(|(_, adapter)| adapter).collect()
}

/// Opens an adapter, and checks that it computes as it should. Of `forced`, the memory is what jobs take together instead of a
/// GiB, and the others hold where they are less than the adapter's own.
///
/// # Errors
/// If there is none, none that is meant, or it cannot be used.
pub fn open(choice: &Choice, forced: Option<Limits>) -> Result<Device> {
    let (handles, mut adapters): (Vec<_>, Vec<_>) = found().into_iter().unzip();
    let number = choose(choice, &adapters)?;
    let none = || Error::Gpu("the graphics processor is gone".to_owned());
    let handle = handles.get(number).ok_or_else(none)?;
    let adapter = adapters.swap_remove(number);
    let offered = offered(handle);
    let opened = connect(handle, adapter.clone(), offered, forced);
    // A driver that fails with what it offers may do without.
    if opened.is_err() && offered != Features::default() {
        return connect(handle, adapter, Features::default(), forced);
    }
    opened
}

fn connect(handle: &wgpu::Adapter, mut adapter: Adapter, offered: Features, forced: Option<Limits>) -> Result<Device> {
    let mut required_features = wgpu::Features::empty();
    required_features.set(wgpu::Features::SHADER_F16, offered.f16);
    required_features.set(wgpu::Features::SUBGROUP, offered.subgroup > 1);
    let required_limits = requested(&handle.limits());
    // Buffers are few, large, and made once.
    let memory_hints = wgpu::MemoryHints::MemoryUsage;
    let descriptor = wgpu::DeviceDescriptor { required_features, required_limits, memory_hints, ..Default::default() };
    let unusable = |reason: String| Error::Gpu(format!("{} cannot be used: {reason}", adapter.name));
    let (device, queue) =
        pollster::block_on(handle.request_device(&descriptor)).map_err(|error| unusable(error.to_string()))?;
    let context = Context::new(device, queue);
    let pipelines = Pipelines::new(&context)
        .map_err(|Lost| unusable(context.failure.get().unwrap_or("it lays out no bindings").to_owned()))?;
    let limits = adapter.limits;
    let limits = forced.map_or(limits, |forced| Limits {
        binding: limits.binding.min(forced.binding) / 256 * 256,
        memory: forced.memory,
        groups: limits.groups.min(forced.groups),
    });
    let pool = Arc::new(Pool::new(limits.memory));
    let name = adapter.name.clone();
    adapter.limits = limits;
    let features = Features::default();
    let mut device = Device { adapter, offered, features, pipelines, pool, context };
    let unusable = |reason: String| Error::Gpu(format!("{name} cannot be used: {reason}"));
    check::check(&device).map_err(unusable)?;
    let used = worthwhile(offered, device.adapter.kind);
    device.features = check::features(&device, used).map_err(|Lost| unusable(device.failure().unwrap_or_default()))?;
    Ok(device)
}

/// What an adapter has.
fn offered(handle: &wgpu::Adapter) -> Features {
    let (info, features) = (handle.get_info(), handle.features());
    let converts = handle.get_downlevel_capabilities().flags.contains(DownlevelFlags::SHADER_F16_IN_F32);
    // Where the size may change, so may the order of sums.
    let size = info.subgroup_max_size;
    let is_fixed = info.subgroup_min_size == size && size.is_power_of_two();
    Features {
        f16: converts && features.contains(wgpu::Features::SHADER_F16),
        subgroup: if is_fixed && features.contains(wgpu::Features::SUBGROUP) { size } else { 0 },
    }
}

/// What of that is worth its checks. Of Mesa's software device these take a tenth of a second to compile; its own conversions are
/// as fast as integer code, and subgroups make sums faster by a tenth.
fn worthwhile(offered: Features, kind: Kind) -> Features {
    if kind == Kind::Software { Features::default() } else { offered }
}

fn found() -> Vec<(wgpu::Adapter, Adapter)> {
    // The primary backends: those for which a driver is a driver of the card.
    let primary = Backends::VULKAN | Backends::METAL | Backends::DX12;
    let backends = primary & wgpu::Instance::enabled_backend_features();
    if backends.is_empty() {
        return Vec::new();
    }
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut found: Vec<(wgpu::Adapter, Adapter)> = Vec::new();
    for handle in pollster::block_on(instance.enumerate_adapters(backends)) {
        let info = handle.get_info();
        let is_same = |other: &wgpu::AdapterInfo| {
            let [one, two] = [&info, other].map(|info| (info.vendor, info.device, &info.device_pci_bus_id));
            info.backend != other.backend
                && one.0 == two.0
                && one.1 == two.1
                && (one.2 == two.2 || one.2.is_empty() || two.2.is_empty())
        };
        if !found.iter().any(|(other, _)| is_same(&other.get_info())) {
            let adapter = described(&info, &handle.limits());
            found.push((handle, adapter));
        }
    }
    found.sort_by_key(|(_, adapter)| adapter.kind);
    found
}

fn described(info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> Adapter {
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => Kind::Discrete,
        DeviceType::IntegratedGpu => Kind::Integrated,
        DeviceType::VirtualGpu => Kind::Virtual,
        DeviceType::Other => Kind::Other,
        DeviceType::Cpu => Kind::Software,
    };
    let backend = match info.backend {
        Backend::Vulkan => "Vulkan",
        Backend::Metal => "Metal",
        Backend::Dx12 => "DX12",
        other => other.to_str(),
    };
    let buffer = limits.max_buffer_size;
    let limits = Limits {
        binding: limits.max_storage_buffer_binding_size.min(buffer.saturating_sub(BESIDE)) / 256 * 256,
        memory: if kind == Kind::Software { MEMORY_OF_SOFTWARE } else { MEMORY },
        groups: limits.max_compute_workgroups_per_dimension,
    };
    let driver = [info.driver.trim(), info.driver_info.trim()].join(" ").trim().to_owned();
    Adapter { name: info.name.trim().to_owned(), kind, backend, driver, limits }
}

/// What every device has, so that a shader that asks for more fails everywhere; but buffers and workgroups as they come.
fn requested(limits: &wgpu::Limits) -> wgpu::Limits {
    wgpu::Limits {
        max_buffer_size: limits.max_buffer_size,
        max_storage_buffer_binding_size: limits.max_storage_buffer_binding_size,
        max_compute_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
        ..wgpu::Limits::downlevel_defaults()
    }
}

impl Device {
    /// The adapter, with the limits that this was opened with.
    #[must_use]
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// What its shaders can use; what they should is [`Compute::features`].
    #[must_use]
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// What of that gives the numbers that it should, by a dispatch for each.
    ///
    /// # Errors
    /// [`Lost`], now and ever after.
    #[doc(hidden)]
    pub fn checked(&self) -> Result<Features, Lost> {
        check::features(self, self.offered)
    }

    /// Bytes of all its buffers.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.pool.bytes()
    }

    /// Loses the device, as a driver that is reset does.
    #[doc(hidden)]
    pub fn lose(&self) {
        self.context.failure.set("the device was lost: it was told to be");
        self.context.device.destroy();
    }

    /// A fault of who made the job, which is no reason to stop: the CPU computes it.
    pub(super) fn refuse<T>(&self, reason: String) -> Result<T, Lost> {
        Err(self.context.failure.set(reason))
    }
}

impl Compute for Device {
    fn name(&self) -> &str {
        &self.adapter.name
    }

    fn time(&self, job: &Job<'_>, times: u32) -> Result<Duration, Lost> {
        self.timed(job, times)
    }

    fn limits(&self) -> Limits {
        self.adapter.limits
    }

    fn features(&self) -> Features {
        self.features
    }

    fn run(&self, job: &Job<'_>, out: &mut [u8]) -> Result<Outcome, Lost> {
        let sizes = self.sizes(job)?;
        if out.len() as u64 != job.output {
            return self.refuse(format!("{} B of output do not go into {} B", job.output, out.len()));
        }
        let mut lease = self.pool.lend(&self.context, sizes)?;
        let outcome = self.run_in(job, sizes, &mut lease, out)?;
        lease.give_back();
        Ok(outcome)
    }

    fn hold(&self, inputs: &[&[u8]]) -> Result<Held, Lost> {
        self.context.failure.check()?;
        let (_, end) = layout(inputs.iter().map(|input| input.len() as u64));
        let size = end.max(ALIGN);
        if size > self.adapter.limits.binding {
            let most = self.adapter.limits.binding;
            return self.refuse(format!("{size} B of inputs exceed the {most} B that fit"));
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST;
        let descriptor = BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        let buffer = self.context.checked("allocate memory", || self.context.device.create_buffer(&descriptor))?;
        self.upload(&buffer, inputs)?;
        Ok(Held(Arc::new(Kept { buffer, _bytes: self.pool.count(size) })))
    }

    fn failure(&self) -> Option<String> {
        self.context.failure.get().map(str::to_owned)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.pool.clear();
    }
}
