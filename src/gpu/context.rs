//! A connection to a device, whose errors are kept instead of thrown.

use super::Lost;
use super::failure::Failure;
use std::cell::Cell;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use wgpu::{BufferAsyncError, Error, ErrorFilter, PollError, PollType, SubmissionIndex};

/// A device that takes longer over one submission will not come back.
const PATIENCE: Duration = Duration::from_secs(60);

/// A device with its queue, and why it failed.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) failure: Arc<Failure>,
}

impl Context {
    pub(super) fn new(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let failure = Arc::new(Failure::default());
        let kept = Arc::clone(&failure);
        device.on_uncaptured_error(Arc::new(move |error: Error| {
            kept.set(said(&error));
        }));
        let kept = Arc::clone(&failure);
        device.set_device_lost_callback(move |_, message| {
            let reason = if message.is_empty() { "no reason is given" } else { message.trim() };
            kept.set(format!("the device was lost: {reason}"));
        });
        Self { device, queue, failure }
    }

    /// Does something with the device; an error of it is the device's failure.
    pub(super) fn checked<T>(&self, action: &str, work: impl FnOnce() -> T) -> Result<T, Lost> {
        self.failure.check()?;
        let filters = [ErrorFilter::Internal, ErrorFilter::OutOfMemory, ErrorFilter::Validation];
        let mut scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let result = work();
        // Scopes end in the opposite order.
        scopes.reverse();
        for scope in scopes {
            if let Some(error) = pollster::block_on(scope.pop()) {
                self.failure.set(format!("cannot {action}: {}", said(&error)));
            }
        }
        self.failure.check().map(|()| result)
    }

    /// Waits for a submission, and for mappings that end with it.
    pub(super) fn wait(&self, submission: SubmissionIndex, landing: &Landing) -> Result<(), Lost> {
        let until = Instant::now() + PATIENCE;
        let poll = PollType::Wait { submission_index: Some(submission), timeout: Some(PATIENCE) };
        match quietly(|| self.device.poll(poll)) {
            Ok(Ok(_)) => {}
            Ok(Err(PollError::Timeout)) => return Err(self.hung()),
            // A lost device takes no submissions, so that there is none to wait for.
            Ok(Err(PollError::WrongSubmissionIndex(..))) | Err(_) => {
                return Err(self.failure.set("the device was lost"));
            }
        }
        // Another thread that polled may be the one to report them.
        loop {
            match landing.ended() {
                Some(true) => return Ok(()),
                Some(false) => return Err(self.failure.set("the device's memory cannot be mapped")),
                None if Instant::now() > until => return Err(self.hung()),
                None => self.failure.check()?,
            }
        }
    }

    fn hung(&self) -> Lost {
        // Whoever drops the last one waits for the device, which would be for ever.
        mem::forget(self.queue.clone());
        self.failure.set(format!("the device did not answer for {} s", PATIENCE.as_secs()))
    }
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may panic, which is not said on stderr: where a driver reports a lost device, the library panics.
fn quietly<T>(work: impl FnOnce() -> T) -> thread::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                usual(panic);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    IS_QUIET.set(false);
    result
}

/// An error with what it came from, in one line.
fn said(error: &Error) -> String {
    let text = match error {
        Error::OutOfMemory { .. } => "out of memory on the device".to_owned(),
        Error::Validation { description, .. } | Error::Internal { description, .. } => description.clone(),
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Mappings that have been asked for and not yet granted.
#[derive(Default)]
pub(super) struct Landing {
    state: Mutex<Awaited>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Awaited {
    mappings: usize,
    failed: bool,
}

impl Landing {
    /// One more, which ends when what is returned is called.
    pub(super) fn expect(self: &Arc<Self>) -> impl FnOnce(Result<(), BufferAsyncError>) + Send + use<> {
        locked(&self.state).mappings += 1;
        let landing = Arc::clone(self);
        move |result| {
            let mut state = locked(&landing.state);
            state.mappings -= 1;
            state.failed |= result.is_err();
            landing.changed.notify_all();
        }
    }

    /// Whether all have been granted, if they have ended after a moment's waiting.
    fn ended(&self) -> Option<bool> {
        let state = locked(&self.state);
        let wait = self.changed.wait_timeout_while(state, Duration::from_millis(20), |state| state.mappings > 0);
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        (state.mappings == 0 || state.failed).then_some(!state.failed)
    }
}

/// What another thread that panicked has left is whole: nothing is changed in steps.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_quietly_is_an_error() {
        assert!(quietly(|| panic!("nobody hears this")).is_err());
        assert_eq!(quietly(|| 1).ok(), Some(1));
        assert!(!IS_QUIET.get());
    }
}
