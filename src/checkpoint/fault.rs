//! A mapped file that shrinks under us: an error instead of a crash.
//!
//! Reading a mapped page that the file no longer has raises SIGBUS. The handler here looks whether the address lies in
//! one of our maps; if so it puts a page of zeros there, marks the map as faulted and returns, so the read goes on and
//! the reader finds the mark when it next asks ([`Guard::faulted`]). Everything the handler does is
//! async-signal-safe: it reads atomics and calls `mmap`. A SIGBUS of anybody else goes to whoever handled it before.

#![expect(unsafe_code, reason = "installing a signal handler and patching a page have no safe form")]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Maps that can be guarded at once. A file beyond them is read with `pread`, which cannot fault.
const SLOTS: usize = 4096;

struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; SLOTS];

/// The handler that was there before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
static PAGE: AtomicUsize = AtomicUsize::new(4096);

/// Watches over one map for as long as it lives. It must be dropped before the map is.
#[derive(Debug)]
pub(super) struct Guard(usize);

impl Guard {
    /// Guards `length` bytes from `start`; `None` if the table is full.
    pub(super) fn new(start: *const u8, length: usize) -> Option<Self> {
        install();
        let slot = TABLE.iter().position(|slot| !slot.taken.swap(true, Ordering::AcqRel))?;
        let entry = &TABLE[slot];
        entry.faulted.store(false, Ordering::Relaxed);
        entry.end.store(start as usize + length, Ordering::Relaxed);
        // Published last: the handler takes an entry for real once it has a start.
        entry.start.store(start as usize, Ordering::Release);
        Some(Self(slot))
    }

    /// Whether a read since the beginning met a page that the file no longer has.
    pub(super) fn faulted(&self) -> bool {
        TABLE[self.0].faulted.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &TABLE[self.0];
        slot.start.store(0, Ordering::Release);
        slot.taken.store(false, Ordering::Release);
    }
}

fn install() {
    PREVIOUS.get_or_init(|| {
        PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
        // SAFETY: both structures are plain data that sigaction fills or reads, and `on_sigbus` has the signature
        // that SA_SIGINFO asks for. SA_ONSTACK keeps the runtime's alternate stack in use.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let mut previous: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous);
            previous
        }
    });
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a SA_SIGINFO handler, and for SIGBUS it carries an address.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE {
        let start = slot.start.load(Ordering::Acquire);
        if start != 0 && (start..slot.end.load(Ordering::Relaxed)).contains(&address) {
            let page = PAGE.load(Ordering::Relaxed);
            // SAFETY: the page lies inside a map of ours (maps are whole pages), is readable only, and stays ours to
            // unmap; the zeros replace what the file no longer has.
            let patched = unsafe {
                libc::mmap(
                    (address & !(page - 1)) as *mut libc::c_void,
                    page,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                )
            };
            if patched != libc::MAP_FAILED {
                slot.faulted.store(true, Ordering::Release);
                return;
            }
        }
    }
    hand_on(signal, info, context);
}

/// Gives the signal to the handler before ours, or back to the system, which ends the process as it always did.
fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let previous = PREVIOUS.get();
    // SAFETY: the handler address and its flags come from the kernel's own record of what was installed; restoring
    // the default and returning repeats the faulting instruction under it.
    unsafe {
        match previous {
            Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
                if old.sa_flags & libc::SA_SIGINFO == 0 {
                    let handler: extern "C" fn(libc::c_int) = std::mem::transmute(old.sa_sigaction);
                    handler(signal);
                } else {
                    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                        std::mem::transmute(old.sa_sigaction);
                    handler(signal, info, context);
                }
            }
            _ => {
                libc::signal(libc::SIGBUS, libc::SIG_DFL);
            }
        }
    }
}
