//! The least a merge can cost: `floor [--sync] [--half] OUT IN…` reads every byte of the inputs once through maps and
//! writes as many bytes as the first input has, or half as many, with positional writes, on all cores. There is no arithmetic: what is written
//! is the sum of one word per cache line, so that the compiler cannot drop the reading.
//!
//! `--sync` ends as a merge does, with the output on the disk: early write-back, fsync, rename, fsync of the folder.

use memmap2::Mmap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes per unit, as in the merge.
const UNIT: usize = 1 << 20;

fn main() -> std::io::Result<()> {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let sync = arguments.first().is_some_and(|argument| argument == "--sync");
    arguments.drain(..usize::from(sync));
    let half = arguments.first().is_some_and(|argument| argument == "--half");
    arguments.drain(..usize::from(half));
    let parts = if half { 2 } else { 1 };
    let mut paths = arguments.into_iter().map(PathBuf::from);
    let out = paths.next().expect("usage: floor [--sync] [--half] OUT IN…");
    let maps = paths
        // SAFETY: nobody writes to the benchmark's inputs while it runs.
        .map(|path| unsafe { Mmap::map(&File::open(path)?) })
        .collect::<std::io::Result<Vec<_>>>()?;
    let length = maps.first().expect("at least one input").len();

    let temp = out.with_extension("floor");
    let file = File::create(&temp)?;
    // SAFETY: a call on an open descriptor that touches no memory of ours.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, (length / parts) as i64) };
    assert_eq!(result, 0, "no space for the output");

    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut buffer = vec![0; UNIT];
                loop {
                    let start = next.fetch_add(UNIT, Ordering::Relaxed);
                    if start >= length {
                        break;
                    }
                    for map in &maps {
                        let part = &map[start.min(map.len())..(start + UNIT).min(map.len())];
                        // Every byte is loaded: as wide words, added up.
                        let sum = part.chunks_exact(64).fold([0u64; 8], |mut sum, line| {
                            for (sum, word) in sum.iter_mut().zip(line.chunks_exact(8)) {
                                *sum = sum.wrapping_add(u64::from_le_bytes(word.try_into().expect("8 bytes")));
                            }
                            sum
                        });
                        buffer[..8].copy_from_slice(&sum.iter().fold(0u64, |a, b| a.wrapping_add(*b)).to_le_bytes());
                    }
                    let (start, end) = (start / parts, (start + UNIT).min(length) / parts);
                    file.write_all_at(&buffer[..end - start], start as u64).expect("the output can be written");
                    if sync {
                        // SAFETY: as above.
                        unsafe {
                            libc::sync_file_range(
                                file.as_raw_fd(),
                                start as i64,
                                (end - start) as i64,
                                libc::SYNC_FILE_RANGE_WRITE,
                            );
                        }
                    }
                }
            });
        }
    });
    if sync {
        file.sync_all()?;
    }
    std::fs::rename(&temp, &out)?;
    if sync {
        let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(folder.unwrap_or(".".as_ref()))?.sync_all()?;
    }
    Ok(())
}
