//! Which is faster here, the CPU alone or a device: one tensor is merged by both, and what comes of it is thrown away.
//!
//! What this costs is bounded by a share of what the run will take: a device is opened only if the CPU's time for the tensor,
//! multiplied up, leaves room for it, and a device that is not faster by then is stopped.

use super::files::{Files, OutputFile, Slot};
use super::survey::Surveys;
use super::{Plan, Target};
use crate::error::{Error, Result};
use crate::gpu::{Compute, Features, Held, Job, Limits, Lost, Outcome};
use crate::stream::{Control, Offloading, Settings};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// The most that a trial may add to a run.
const SHARE: f64 = 0.05;
/// What opening a device takes with what it compiles, neither of which can be stopped. Measured at 3.4 s for `della` of ten
/// models on Mesa's software device, whose compiler is slow.
const OPENING: Duration = Duration::from_secs(4);
/// Elements of the tensor that is tried, if there is one as large and it is a small part of all.
const ELEMENTS: u64 = 1 << 22;
/// The largest part of all bytes that is tried.
const PART: f64 = 0.01;

/// Bytes of a tile of the first tries: a job that runs cannot be stopped, and may take long.
const TILE: u64 = 1 << 20;
/// With such tiles a device may take so many times as long as the CPU and still be worth a try with its own.
const PROMISING: u32 = 3;

/// A device in small tiles.
#[derive(Debug)]
struct InSmallTiles(Arc<dyn Compute>);

impl Compute for InSmallTiles {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn limits(&self) -> Limits {
        let limits = self.0.limits();
        Limits { binding: limits.binding.min(TILE), ..limits }
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn run(&self, job: &Job<'_>, out: &mut [u8]) -> std::result::Result<Outcome, Lost> {
        self.0.run(job, out)
    }

    fn hold(&self, inputs: &[&[u8]]) -> std::result::Result<Held, Lost> {
        self.0.hold(inputs)
    }

    fn failure(&self) -> Option<String> {
        self.0.failure()
    }
}

/// What a trial came to.
pub struct Trial {
    /// The device, if it is faster.
    pub device: Option<Offloading>,
    /// What was measured, for people.
    pub because: String,
}

impl Trial {
    fn cpu(because: impl Into<String>) -> Self {
        Self { device: None, because: because.into() }
    }
}

impl Plan<'_> {
    /// Tries one tensor on the CPU and, if the run is long enough for it, on the device that `open` opens.
    ///
    /// # Errors
    /// As [`Self::emit`](Plan::emit), so far as reading goes. That there is no device is none.
    pub fn try_device(
        &self,
        target: &Target,
        settings: &Settings,
        control: Control<'_>,
        open: impl FnOnce() -> Result<Offloading> + Send + 'static,
    ) -> Result<Trial> {
        let is_folder = self.makes_folder(target)?;
        let files = Files::new(self, target, is_folder)?;
        let slots: Vec<Slot<'_, '_>> = files.weights.iter().flat_map(OutputFile::slots).collect();
        let computed = || slots.iter().filter(|slot| slot.is_computed());
        let total: u64 = computed().map(Slot::read_bytes).sum();
        let is_small = |slot: &&Slot<'_, '_>| slot.read_bytes() as f64 <= PART * total as f64 && !slot.surveys();
        let Some(slot) = computed().filter(is_small).min_by_key(|slot| slot.count().abs_diff(ELEMENTS)) else {
            return Ok(Trial::cpu(
                "a tensor is tried that is at most a hundredth of all, and there is none that devices compute",
            ));
        };
        // What a second pass over everything would take is known from the first of a part.
        let scale = total as f64 / slot.read_bytes().max(1) as f64;
        let cpu = Settings { device: None, ..settings.clone() };
        let surveys = Surveys::default();
        let start = Instant::now();
        // The first time its pages are not mapped yet, and may not be in memory.
        slot.rehearse(&surveys, &cpu, control)?;
        let on_cpu = slot.rehearse(&surveys, &cpu, control)?;
        let estimate = on_cpu.as_secs_f64() * scale;
        let budget = Duration::from_secs_f64(estimate * SHARE);
        let cost = OPENING + start.elapsed();
        if budget < cost {
            let least = cost.as_secs_f64() / SHARE;
            let message = format!("that takes about {estimate:.1} s, and a device is tried from {least:.1} s on");
            return Ok(Trial::cpu(message));
        }
        let (opened, device) = mpsc::channel();
        // A driver that takes too long is not waited for.
        thread::spawn(move || opened.send(open()));
        let device = match device.recv_timeout(budget.saturating_sub(start.elapsed())) {
            Ok(Ok(device)) => device,
            Ok(Err(error @ Error::Gpu(_))) => return Ok(Trial::cpu(error.to_string())),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(Trial::cpu("the device takes too long to open")),
        };
        let name = device.compute.name().to_owned();
        let time = |device: Offloading| {
            let with = Settings { device: Some(device), ..settings.clone() };
            let left = budget.saturating_sub(start.elapsed());
            within(left, control, |control| slot.rehearse(&surveys, &with, control))
        };
        let small = || Offloading { compute: Arc::new(InSmallTiles(Arc::clone(&device.compute))), ..device.clone() };
        // The first time compiles, and the first of large tiles allocates.
        let mut on_device = time(small())?;
        if on_device.is_some() {
            on_device = time(small())?.filter(|time| *time < on_cpu * PROMISING);
        }
        for _ in 0..2 {
            if on_device.is_some() {
                on_device = time(device.clone())?;
            }
        }
        let tensor = slot.name();
        let cpu_time = on_cpu.as_secs_f64() * 1e3;
        let said = match on_device {
            Some(time) => {
                format!("`{tensor}` takes {cpu_time:.0} ms on the CPU, {:.0} ms by {name}", time.as_secs_f64() * 1e3)
            }
            None => format!("`{tensor}` takes {cpu_time:.0} ms on the CPU, and {name} took longer"),
        };
        let is_faster = on_device.is_some_and(|time| time < on_cpu) && device.compute.failure().is_none();
        // The run counts its own tiles.
        let device = is_faster.then(|| Offloading { tiles: Arc::default(), ..device });
        Ok(Trial { device, because: said })
    }
}

/// Runs `work` and stops it when the time is over; `None` if it was stopped for that.
fn within<T>(time: Duration, control: Control<'_>, work: impl FnOnce(Control<'_>) -> Result<T>) -> Result<Option<T>> {
    let stop = AtomicBool::new(false);
    let (done, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let until = Instant::now() + time;
            let poll = Duration::from_millis(5);
            while Instant::now() < until && !control.cancel.load(Ordering::Relaxed) {
                if !matches!(ended.recv_timeout(poll), Err(mpsc::RecvTimeoutError::Timeout)) {
                    return;
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let result = work(Control { progress: &|_| {}, cancel: stop });
        drop(done);
        match result {
            Err(Error::Interrupted) if !control.cancel.load(Ordering::Relaxed) => Ok(None),
            other => other.map(Some),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_stopped() -> Result<()> {
        let long = |control: Control<'_>| {
            while !control.cancel.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            Err::<(), _>(Error::Interrupted)
        };
        assert_eq!(within(Duration::ZERO, Control::none(), long)?, None);
        assert_eq!(within(Duration::from_millis(20), Control::none(), long)?, None);
        assert_eq!(within(Duration::from_secs(60), Control::none(), |_| Ok(7))?, Some(7));
        let failed = within(Duration::from_secs(60), Control::none(), |_| Err::<(), _>(Error::Gpu("gone".to_owned())));
        assert!(matches!(failed, Err(Error::Gpu(_))));
        // A stop that was asked for is one, and no verdict on the device.
        let stopped = AtomicBool::new(true);
        let control = Control { progress: &|_| {}, cancel: &stopped };
        assert!(matches!(within(Duration::from_secs(60), control, long), Err(Error::Interrupted)));
        Ok(())
    }
}
