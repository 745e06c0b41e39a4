//! Files made to break the readers of PyTorch, GGUF and NumPy: small ones beside their script, each with its error, and
//! large ones made here, which may cost no more time and memory than their length excuses.

use super::{MODES, refused_with};
use crate::model::{Outcome, fixture, names_in, run};
use ckptmerge::{Checkpoint, IoMode};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the program may map, in kilobytes: 60,000 for itself in a debug build, and 64 MB of its own.
#[cfg(target_os = "linux")]
const MOST_MEMORY: u32 = 125_000;
/// The time for one file. A release build takes less than 0.3 seconds for the worst on a core of its own.
const MOST_TIME: Duration = Duration::from_secs(20);

/// Runs `inspect` on a file under limits, in a folder where it may leave nothing.
#[cfg(target_os = "linux")]
fn inspect_within_limits(path: &Path, words: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    let limited = format!("ulimit -v {MOST_MEMORY}; ulimit -c 0; exec \"$0\" --memory 32M inspect --stats \"$1\"");
    let output = Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_ckptmerge")])
        .arg(path)
        .current_dir(folder.path())
        .output()
        .map_err(|error| error.to_string())?;
    let (took, says, name) = (begun.elapsed(), String::from_utf8_lossy(&output.stderr), path.display());
    if output.status.code() != Some(1) || !says.contains(words) {
        Err(format!("{name}: {}: {says}\n  lacks: {words}", output.status))
    } else if took > MOST_TIME {
        Err(format!("{name}: it took {took:?}"))
    } else if !names_in(folder.path()).is_empty() {
        Err(format!("{name}: left {:?}", names_in(folder.path())))
    } else {
        Ok(())
    }
}

/// Where memory cannot be limited, what the reader says is still checked.
#[cfg(not(target_os = "linux"))]
fn inspect_within_limits(path: &Path, words: &str) -> Result<(), String> {
    refused_with(path, IoMode::Mmap, words)
}

#[test]
fn each_hostile_file_of_other_formats_gets_its_error() -> Outcome {
    let folder = fixture("hostile/formats");
    let expected: BTreeMap<String, String> = serde_json::from_slice(&fs::read(folder.join("expected.json"))?)?;
    let mut found = names_in(&folder);
    found.retain(|name| name != "make.py" && name != "expected.json");
    assert!(found.len() >= 240, "only {} hostile files were found", found.len());
    assert!(found.iter().eq(expected.keys()), "expected.json does not list the files: run make.py");
    let mut wrong = Vec::new();
    for (name, words) in &expected {
        let path = folder.join(name);
        for mode in MODES {
            let begun = Instant::now();
            wrong.extend(refused_with(&path, mode, words).err());
            assert!(begun.elapsed() < MOST_TIME, "{name}: it took {:?}", begun.elapsed());
        }
        wrong.extend(inspect_within_limits(&path, words).err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!Path::new("marker").exists(), "the code of a pickle was run");
    Ok(())
}

/// An archive of torch's with this pickle and two storages of one F32. The sums are 0, as torch writes them if told to.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [("x/data.pkl", pickle), ("x/data/0", &[0; 4]), ("x/data/1", &[0; 4])] {
        let (offset, length) = (file.len() as u32, data.len() as u32);
        let sizes = [[0; 4], length.to_le_bytes(), length.to_le_bytes()].concat();
        let lengths = [(name.len() as u16).to_le_bytes(), [0; 2]].concat();
        file.extend([b"PK\x03\x04\x14\0\0\0\0\0\0\0\x21\0", &sizes[..], &lengths, name.as_bytes(), data].concat());
        directory.extend([b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\x21\0", &sizes[..], &lengths, &[0; 10]].concat());
        directory.extend([&offset.to_le_bytes(), name.as_bytes()].concat());
    }
    let (length, offset) = (directory.len() as u32, file.len() as u32);
    file.extend(directory);
    file.extend(
        [b"PK\x05\x06\0\0\0\0\x03\0\x03\0", &length.to_le_bytes()[..], &offset.to_le_bytes(), &[0; 2]].concat(),
    );
    file
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Pushes the persistent id of the storage under a key.
fn storage(key: &str) -> Vec<u8> {
    [b"(X\x07\0\0\0storagectorch\nFloatStorage\n", &text(key)[..], b"X\x03\0\0\0cpuK\x01tQ"].concat()
}

/// Pushes torch's function for tensors and memoizes it as 0; then arguments with this shape, memoized as 1.
fn arguments(shape: &[u8]) -> Vec<u8> {
    [b"ctorch._utils\n_rebuild_tensor_v2\nq\0(", &storage("0")[..], b"K\0", shape, shape, b"\x89Ntq\x01"].concat()
}

/// Lists that hold twice the list below them, in the end a tensor: some 10^17 times.
fn memo_bomb() -> Vec<u8> {
    let mut pickle = [&arguments(b")")[..], b"R]q\x02h\0h\x01Ra"].concat();
    for level in 3..60 {
        pickle.extend([b']', b'q', level, b'(', b'h', level - 1, b'h', level - 1, b'e']);
    }
    pickle
}

#[test]
fn a_long_hostile_pickle_costs_no_more_than_its_length_excuses() -> Outcome {
    /// The length of each, in bytes.
    const LENGTH: usize = 1_100_000;
    let many = |part: &[u8]| part.repeat(LENGTH / part.len());
    let after = |before: &[u8], part: &[u8]| [before, &many(part)].concat();
    let (nothing, tensors) = ("the pickle holds no tensors", "the same tensors are contained in each other too many");
    let objects = "the same objects are contained in each other too many times";
    let dimensions = [b"(", &b"K\x01".repeat(64)[..], b"t"].concat();
    let listed = |before: &[u8], part: &[u8]| [before, b"](", &many(part), b"e"].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty lists", many(b"]"), nothing),
        ("scalars", many(b"N"), nothing),
        ("tuples in each other", after(b"N", b"\x85"), nothing),
        ("calls of what they are given", after(b"N", b"2R"), nothing),
        ("calls that are filled", after(b"N", b"2R22s2a"), nothing),
        ("dicts", after(b"N", b"}22s"), nothing),
        ("one list", [b"(N", &many(b"2")[..], b"l"].concat(), nothing),
        ("memo entries", after(b"N", b"\x94"), nothing),
        ("marks", [&many(b"(")[..], b"N"].concat(), nothing),
        ("names of classes", many(b"cm\nn\n"), nothing),
        ("texts", many(b"U\x01a"), nothing),
        ("bytes past the end", [&many(b"N")[..], b"X\xff\xff\xff\xff"].concat(), "4294967295 bytes are claimed"),
        (
            "the name of a class from the memo",
            after(&[&text(&"m".repeat(1000))[..], b"q\0"].concat(), b"h\0h\0\x93"),
            "the pickle names the same classes too many times",
        ),
        ("tensors of a call", listed(&arguments(b")"), b"h\0h\x01R"), tensors),
        ("tensors of many dimensions", listed(&arguments(&dimensions), b"h\0h\x01R"), tensors),
        (
            "tensors of storages that are not there",
            listed(
                &[b"ctorch._utils\n_rebuild_tensor_v2\nq\0", &storage(&"k".repeat(255))[..], b"q\x01"].concat(),
                b"h\0(h\x01K\0))\x89NtR",
            ),
            "the file has no storage `kkk",
        ),
        (
            "a long key, again and again",
            [&text(&"k".repeat(500_000))[..], b"q\x03}(", &b"h\x03N".repeat(200_000), b"u"].concat(),
            nothing,
        ),
        (
            "a key, again and again",
            [
                &text(&"k".repeat(1000))[..],
                b"q\x03}(",
                &many(b"h\x03N")[..999_999],
                &text("w"),
                &arguments(b")"),
                b"Ru",
            ]
            .concat(),
            objects,
        ),
        (
            "keys of a long text and a number",
            [
                &text(&"k".repeat(900))[..],
                b"q\x03}",
                &text("w"),
                &arguments(b")"),
                b"Rsq\x04}(",
                &(0..100_000u32)
                    .flat_map(|i| [&b"h\x03J"[..], &i.to_le_bytes(), b"\x86h\x04"].concat())
                    .collect::<Vec<_>>(),
                b"u",
            ]
            .concat(),
            tensors,
        ),
        ("lists, and a memo bomb", [many(b"]"), memo_bomb()].concat(), tensors),
        ("calls, and a memo bomb", [after(b"N", b"2R"), memo_bomb()].concat(), tensors),
        ("tuples, and a memo bomb", [after(b"N", b"\x85"), memo_bomb()].concat(), tensors),
        ("a memo bomb alone", memo_bomb(), tensors),
    ];
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bomb.pt");
    let mut wrong = Vec::new();
    for (what, pickle, words) in cases {
        fs::write(&path, archive(&[b"\x80\x04", &pickle[..], b"."].concat()))?;
        wrong.extend(inspect_within_limits(&path, words).err().map(|fault| format!("{what}: {fault}")));
    }
    // The old layout: a key in the list of storages costs two bytes of pickle and eight of file.
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02}.\x80\x02](";
    let keys = [&text(&"k".repeat(255))[..], b"q\0", &many(b"h\0"), b"e."].concat();
    fs::write(&path, [magic, &keys[..], &[0; 4096]].concat())?;
    wrong.extend(inspect_within_limits(&path, "storage `kkk").err());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A sparse file of `length` bytes that ends in `tail`.
fn sparse(path: &Path, head: &[u8], length: u64, tail: &[u8]) -> Outcome {
    let mut file = File::create(path)?;
    file.write_all(head)?;
    file.seek(SeekFrom::Start(length - tail.len() as u64))?;
    Ok(file.write_all(tail)?)
}

/// The end records of an archive of zip64 in a file of `length` bytes whose directory has `size` bytes.
fn zip64_end(length: u64, entries: u64, size: u64) -> Vec<u8> {
    let at = length - 98;
    let mut end = b"PK\x06\x06\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0".to_vec();
    for number in [entries, entries, size, at.saturating_sub(size)] {
        end.extend(number.to_le_bytes());
    }
    end.extend([&b"PK\x06\x07\0\0\0\0"[..], &at.to_le_bytes(), &[1, 0, 0, 0]].concat());
    end.extend([&b"PK\x05\x06\0\0\0\0"[..], &[0xff; 12], &[0; 2]].concat());
    end
}

#[test]
fn an_archive_of_a_terabyte_of_nothing_is_refused_at_once() -> Outcome {
    const TERABYTE: u64 = 1 << 40;
    let folder = tempfile::tempdir()?;
    for (name, member) in [("sparse.pt", "x/data.pkl"), ("sparse.npz", "a.npy")] {
        let path = folder.path().join(name);
        let mut head = b"PK\x03\x04".to_vec();
        head.resize(26, 0);
        head.extend([member.len() as u8, 0, 0, 0]);
        head.extend(member.bytes());
        let cases = [
            (zip64_end(TERABYTE, 1 << 33, 46 << 33), "8589934592 entries in"),
            (zip64_end(TERABYTE, 1, 1 << 39), "1 entries in 549755813888 bytes"),
            (zip64_end(TERABYTE, 1 << 20, 1 << 27), "damaged or cut short"),
            (vec![0], "it has no end record"),
        ];
        for (tail, words) in cases {
            sparse(&path, &head, TERABYTE, &tail)?;
            let begun = Instant::now();
            refused_with(&path, IoMode::Pread, words)?;
            assert!(begun.elapsed() < MOST_TIME, "{words}: it took {:?}", begun.elapsed());
        }
    }
    Ok(())
}

#[test]
fn what_would_unpack_to_more_than_the_disk_has_is_refused_before_it_is_unpacked() -> Outcome {
    /// The compressed bytes of the array, and what they are said to hold: less than deflate can do.
    const PACKED: u64 = 1 << 40;
    const UNPACKED: u64 = 1 << 49;
    let descr = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}\n", UNPACKED - 10 - 74);
    let descr = format!("{descr:>74}");
    let array = [b"\x93NUMPY\x01\0", &(descr.len() as u16).to_le_bytes()[..], descr.as_bytes()].concat();
    // A block of deflate that is stored as it is, longer than a decoder looks ahead, and nothing sensible behind it.
    let length = u16::MAX;
    let mut block = [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), &array].concat();
    block.resize(5 + usize::from(length), 0);
    let zip64 = [&[1, 0, 16, 0][..], &UNPACKED.to_le_bytes(), &PACKED.to_le_bytes()].concat();
    let common = [&b"\x2d\0\0\0\x08\0\0\0\x21\0\0\0\0\0"[..], &[0xff; 8], &[5, 0, zip64.len() as u8, 0]].concat();
    let head = [&b"PK\x03\x04"[..], &common, b"a.npy", &zip64, &block].concat();
    let data = (head.len() - block.len()) as u64;
    let directory = [&b"PK\x01\x02\x2d\0"[..], &common, &[0; 14], b"a.npy", &zip64].concat();
    let length = data + PACKED + directory.len() as u64 + 98;
    let tail = [&directory[..], &zip64_end(length, 1, directory.len() as u64)].concat();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bomb.npz");
    sparse(&path, &head, length, &tail)?;
    refused_with(&path, IoMode::Pread, "takes 563 TB unpacked, but only")?;
    refused_with(&path, IoMode::Pread, "set TMPDIR to a folder with more room")?;
    Ok(())
}

#[test]
fn scales_that_repeat_one_element_are_not_unrolled() -> Outcome {
    let bytes = [b"(", &text("storage")[..], b"ctorch.storage\nUntypedStorage\n", &text("0"), &text("cpu"), b"K\x04tQ"]
        .concat();
    let typed = [&b"ctorch._utils\n_rebuild_tensor_v3\n("[..], &bytes, b"K\0))\x89Nctorch\nfloat8_e4m3fn\ntR"].concat();
    let huge =
        [&b"ctorch._utils\n_rebuild_tensor_v2\n("[..], &storage("1"), b"K\0\x8a\x06\0\0\0\0\0\x01\x85K\0\x85\x89NtR"];
    let pickle = [&b"\x80\x02}("[..], &text("w"), &typed, &text("w_scale"), &huge.concat(), b"u."].concat();
    let folder = tempfile::tempdir()?;
    crate::model::write(&folder.path().join("scales.pt"), archive(&pickle))?;
    run(folder.path(), "convert scales.pt out.safetensors --dtype f32").fails(1, &["1099511627776 scales"]);
    Ok(())
}

#[test]
fn a_deflated_array_that_fits_is_unpacked() -> Outcome {
    let model = Checkpoint::open(fixture("numpy/compressed.npz"))?;
    assert!(model.tensors().len() > 1);
    Ok(())
}
