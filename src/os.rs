//! What the operating system can do better than the standard library asks it to.
//!
//! Everything here is a hint or has a plain fallback: on a system without it, results are the same and slower.

#![cfg_attr(
    any(target_os = "linux", feature = "cli"),
    expect(unsafe_code, reason = "mincore, sync_file_range, signal and setenv have no safe wrapper")
)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

/// Whether the file lives on a network or user-space file system, where page faults are slow and can fail late.
pub(crate) fn is_network(file: &File) -> bool {
    /// `f_type` of NFS, SMB, CIFS, SMB2, FUSE, Lustre, 9P, Ceph, AFS, from `statfs(2)` and linux/magic.h.
    const NETWORK: [u64; 9] =
        [0x6969, 0x517B, 0xFF53_4D42, 0xFE53_4D42, 0x6573_5546, 0x0BD0_0BD0, 0x0102_1997, 0x00C3_6400, 0x5346_414F];
    #[cfg(target_os = "linux")]
    return rustix::fs::fstatfs(file).is_ok_and(|fs| NETWORK.contains(&(fs.f_type as u64 & 0xFFFF_FFFF)));
    #[cfg(not(target_os = "linux"))]
    return false;
}

/// Bytes free for this user on the file system of `directory`.
pub(crate) fn free_space(directory: &Path) -> Option<u64> {
    let fs = rustix::fs::statvfs(directory).ok()?;
    fs.f_bavail.checked_mul(fs.f_frsize)
}

/// Gives the file its length, with blocks behind it where the file system can, so that a full disk is found out now.
pub(crate) fn allocate(file: &File, length: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if length > 0 {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
            result => return Ok(result?),
        }
    }
    file.set_len(length)
}

/// Starts writing `range` to the disk, without waiting: the final sync then has little left to do.
pub(crate) fn start_write_back(file: &File, range: Range<u64>) {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: a hint on a descriptor that is open; it touches no memory of ours.
        unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                range.start as i64,
                (range.end - range.start) as i64,
                libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

/// Starts reading `range` into the page cache, without waiting.
pub(crate) fn will_need(file: &File, range: Range<u64>) {
    #[cfg(target_os = "linux")]
    {
        let length = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
        // A hint: if it fails, the read itself waits.
        let _ = rustix::fs::fadvise(file, range.start, length, rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

/// The share of mapped pages that are in memory, from 64 evenly spaced probes.
pub(crate) fn resident(map: &[u8]) -> f64 {
    #[cfg(target_os = "linux")]
    {
        const PROBES: usize = 64;
        let page = rustix::param::page_size();
        let pages = map.len().div_ceil(page);
        let step = pages.div_ceil(PROBES).max(1);
        let probes = (0..pages).step_by(step);
        let total = probes.len().max(1);
        let hits = probes
            .filter(|&index| {
                let mut state = 0u8;
                // SAFETY: the page lies in the map, whose start is page-aligned, and one byte holds one page's state.
                let result =
                    unsafe { libc::mincore(map.as_ptr().add(index * page).cast_mut().cast(), 1, &raw mut state) };
                result == 0 && state & 1 == 1
            })
            .count();
        hits as f64 / total as f64
    }
    #[cfg(not(target_os = "linux"))]
    return if map.is_empty() { 1.0 } else { 0.0 };
}

/// Memory that could be used without pushing others out.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Makes writing past a limit on file sizes an error of the write instead of the end of the process.
#[cfg(feature = "cli")]
pub(crate) fn survive_file_size_limits() {
    // SAFETY: ignoring a signal runs no code of ours, and only the binary does it, before it starts threads.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Leaves out Mesa's layer that asks a desktop which device it prefers: where there is none, it says so on stderr, and we
/// order the devices ourselves.
#[cfg(all(feature = "cli", feature = "gpu"))]
pub(crate) fn ask_no_desktop_for_devices() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: only the binary does it, before it starts threads, so that nobody reads the environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Keeps candle from threads of its own beside our pools: they wait in loops for one another, whatever `--threads` says, and one
/// training of several at a time holds up all others.
#[cfg(all(feature = "cli", feature = "diffusion"))]
pub(crate) fn give_candle_no_threads() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_none() {
        // SAFETY: only the binary does it, before it starts threads, so that nobody reads the environment meanwhile.
        unsafe { std::env::set_var(THREADS, "1") };
    }
}

/// Runs `install`, which may set handlers for the signals that ask a process to end, and takes them back for those that
/// were ignored before: `nohup` and background shells mean it.
#[cfg(feature = "cli")]
pub(crate) fn keeping_ignored_signals(install: impl FnOnce()) {
    let signals = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    let ignored = signals.map(|signal| {
        // SAFETY: sigaction fills the structure, which is plain data, and changes nothing when given no new one.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
        }
    });
    install();
    for (signal, _) in signals.into_iter().zip(ignored).filter(|(_, ignored)| *ignored) {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Puts `from` in the place of `to` and `to` in that of `from`, in one step.
pub(crate) fn exchange(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE)?)
    }
    #[cfg(not(target_os = "linux"))]
    return Err(io::ErrorKind::Unsupported.into());
}

/// How many columns the terminal has that stdout is; none if it is no terminal.
#[cfg(feature = "cli")]
pub(crate) fn terminal_width() -> Option<usize> {
    #[cfg(unix)]
    {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
        (size.ws_col > 0).then_some(usize::from(size.ws_col))
    }
    #[cfg(not(unix))]
    None
}
