//! `--device`: what computes.

use super::report::Report;
use crate::error::{Error, Result};
use crate::gpu::{self, Choice, Limits};
use crate::recipe::{Plan, Target};
use crate::stream::{Control, Offloading, Settings};
use clap::Args;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What computes.
#[derive(Args)]
pub(super) struct Device {
    /// What computes: cpu, gpu, gpu:NAME (or its number in `ckptmerge devices`), or auto
    ///
    /// A graphics processor keeps and drops the same elements as the CPU; drivers differ in the last bit of roots and divisions,
    /// so that the output is the same on every machine only with cpu. `auto` tries one tensor on both and takes the faster,
    /// if the merge takes some 90 s or more; it never takes a software device. rotate, smooth-add, types of 64 bits and tensors of fewer than 65,536
    /// elements stay on the CPU. With --memory, half of that is for data on its way to the device; the driver's own memory is not counted.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = wanted)]
    device: Wanted,
}

#[derive(Clone)]
enum Wanted {
    Cpu,
    Auto,
    Gpu(Choice),
}

fn wanted(text: &str) -> Result<Wanted, String> {
    let name = text.get(..4).filter(|prefix| prefix.eq_ignore_ascii_case("gpu:")).map(|_| &text[4..]);
    match (text.to_lowercase().as_str(), name) {
        ("cpu", _) => Ok(Wanted::Cpu),
        ("auto", _) => Ok(Wanted::Auto),
        ("gpu", _) => Ok(Wanted::Gpu(Choice::Best)),
        (_, Some(name)) if !name.is_empty() => Ok(Wanted::Gpu(Choice::Named(name.to_owned()))),
        _ => Err("it is cpu, auto, gpu, or gpu:NAME with a name or number that `ckptmerge devices` lists".to_owned()),
    }
}

/// As the device's own limits, with this share of so much memory.
fn limits(memory: u64) -> Limits {
    Limits { binding: u64::MAX, memory: memory / 2, groups: u32::MAX }
}

/// Opens a device for a run. With a bound on memory, half of it is the device's: its buffers are partly the system's memory.
fn open(choice: &Choice, settings: &Settings) -> Result<Offloading> {
    let device = gpu::open(choice, settings.memory.map(limits))?;
    Ok(Offloading::new(Arc::new(device)))
}

impl Device {
    /// Puts the device that was asked for by name into the settings. Others are chosen for a plan.
    pub(super) fn prepare(&self, settings: &mut Settings) -> Result<()> {
        if let Wanted::Gpu(choice) = &self.device {
            settings.device = Some(open(choice, settings)?);
        }
        Ok(())
    }

    /// The settings with the device for a plan, and what is said of it.
    pub(super) fn choose(
        &self,
        plan: &Plan<'_>,
        target: &Target,
        settings: &Settings,
        report: &Report,
        control: Control<'_>,
    ) -> Result<Settings> {
        let mut settings = settings.clone();
        if matches!(self.device, Wanted::Auto) {
            let own = settings.clone();
            let trial = plan.try_device(target, &settings, control, move || {
                let best = gpu::adapters().into_iter().next().filter(|adapter| adapter.kind != gpu::Kind::Software);
                best.ok_or_else(|| Error::Gpu("there is no graphics processor but the CPU itself".to_owned()))?;
                open(&Choice::Best, &own)
            })?;
            let chosen = trial.device.as_ref().map_or("the CPU", |device| device.compute.name());
            report.remark(&format!("computed by {chosen}: {}", trial.because));
            settings.device = trial.device;
        }
        Ok(settings)
    }

    /// What there is to say behind a run: who computed, if not the CPU alone.
    pub(super) fn computed_by(settings: &Settings, report: &Report) -> Option<String> {
        let device = settings.device.as_ref()?;
        let name = device.compute.name();
        let [done, left] = [&device.tiles.done, &device.tiles.left].map(|count| count.swap(0, Ordering::Relaxed));
        if let Some(reason) = device.compute.failure() {
            report.warn(&format!("{name} failed, and the CPU computed the rest: {reason}"));
        } else if done + left == 0 {
            report.remark(&format!(
                "{name} had nothing to compute: what is copied, small, of 64 bits or needs whole tensors is the CPU's"
            ));
        } else if left > 0 {
            report.note(|| {
                format!("{name} did {done} tiles and left {left} to the CPU, for numbers that it may not know\n")
            });
        }
        (done > 0).then(|| name.to_owned())
    }
}
