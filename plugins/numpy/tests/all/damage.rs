//! Files that are cut short or have a wrong byte are refused or read, but never panic.

use crate::folder;
use crate::gather::Bytes;
use ckptmerge_format::{Fault, Format};
use ckptmerge_format_numpy::{Npy, Npz};

fn cases() -> Vec<(&'static str, &'static dyn Format, Vec<u8>)> {
    let npy: &'static dyn Format = &Npy;
    let npz: &'static dyn Format = &Npz;
    [("f4.npy", npy), ("fortran.npy", npy), ("stored.npz", npz), ("compressed.npz", npz), ("metadata.npz", npz)]
        .into_iter()
        .map(|(name, format)| (name, format, std::fs::read(folder().join(name)).expect("it can be read")))
        .collect()
}

#[test]
fn every_cut_is_refused() {
    for (name, format, whole) in cases() {
        assert!(format.index(&Bytes(whole.clone())).is_ok(), "{name}");
        for length in 0..whole.len() {
            let error = format.index(&Bytes(whole[..length].to_vec())).expect_err(name);
            assert_eq!(error.fault, Fault::Corrupt, "{name} cut to {length} bytes: {error}");
        }
    }
}

#[test]
fn no_wrong_byte_panics() {
    for (_, format, whole) in cases() {
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff, whole[at] ^ 0x80] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                // Where it is in the elements it cannot be noticed.
                drop(format.index(&Bytes(damaged)));
            }
        }
    }
}
