//! Files made to break the reader: each is refused with the words it is known to deserve, none with a panic, and
//! whatever is accepted is accepted by the official crate with the same content.
//!
//! Small files stand in fixtures/hostile beside the script that made them; what takes a large file, several files or
//! links is made here. These are of safetensors; those of the other formats are in `formats`.

mod formats;

use crate::model::{Model, Outcome, fixture, names_in};
use ckptmerge::dtype::DType;
use ckptmerge::{Checkpoint, IoMode};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const MODES: [IoMode; 2] = [IoMode::Mmap, IoMode::Pread];
/// A message longer than this many characters is a file's content, not a message.
const LONGEST_MESSAGE: usize = 1000;

/// The error of opening a file that has to be refused, in words fit for a terminal that name the file.
fn refused(path: &Path, mode: IoMode) -> Result<String, String> {
    let Err(error) = Checkpoint::open_with(path, &mode.into()) else {
        return Err(format!("{} was accepted", path.display()));
    };
    let message = error.to_string();
    if message.len() > LONGEST_MESSAGE {
        Err(format!("{}: a message of {} bytes", path.display(), message.len()))
    } else if message.contains(char::is_control) {
        Err(format!("this would reach the terminal as it is: {message:?}"))
    } else if !message.contains(&path.display().to_string()) {
        Err(format!("the path {} is missing: {message}", path.display()))
    } else {
        Ok(message)
    }
}

/// As [`refused`], with words that the error has to contain.
fn refused_with(path: &Path, mode: IoMode, words: &str) -> Result<(), String> {
    let message = refused(path, mode)?;
    if message.contains(words) { Ok(()) } else { Err(format!("{message}\n  lacks: {words}")) }
}

/// Opens a file that may be refused; if it is not, the official crate has to read the same in it.
fn agrees(path: &Path, mode: IoMode) -> Outcome<bool> {
    let Ok(checkpoint) = Checkpoint::open_with(path, &mode.into()) else { return Ok(false) };
    let file = fs::read(path)?;
    let official = SafeTensors::deserialize(&file)
        .unwrap_or_else(|error| panic!("accepted, but the official crate says {error}: {file:?}"));
    let dense: Vec<_> = checkpoint.tensors().iter().filter(|tensor| tensor.alias_of.is_none()).collect();
    assert_eq!(dense.len(), official.len());
    for tensor in dense {
        let theirs = official.tensor(&tensor.name)?;
        assert_eq!(tensor.dtype.name(), theirs.dtype().to_string());
        assert!(tensor.shape.iter().eq(theirs.shape().iter().map(|&n| n as u64).collect::<Vec<_>>().iter()));
        let view = checkpoint.view(tensor);
        assert_eq!(view.read(0..tensor.bytes, &mut Vec::new())?, theirs.data());
    }
    Ok(true)
}

fn with_header(json: &str, data: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), data].concat()
}

/// A valid file with a little of everything.
fn small() -> Vec<u8> {
    Model::new()
        .text("format", "pt")
        .f32("a.weight", &[1.0, 2.0])
        .with("b", DType::BF16, &[2, 1], &[3.0, 4.0])
        .with("empty", DType::I64, &[0, 3], &[])
        .with("scalar", DType::U8, &[], &[5.0])
        .to_bytes()
}

#[test]
fn each_hostile_file_gets_its_error() -> Outcome {
    let folder = fixture("hostile");
    let expected: BTreeMap<String, String> = serde_json::from_slice(&fs::read(folder.join("expected.json"))?)?;
    let mut found = names_in(&folder);
    found.retain(|name| name.ends_with(".safetensors"));
    assert!(found.len() >= 100, "only {} hostile files were found", found.len());
    assert!(found.iter().eq(expected.keys()), "expected.json does not list the files: run make.py");
    let (mut wrong, mut stricter) = (Vec::new(), Vec::new());
    for (name, words) in &expected {
        let path = folder.join(name);
        let content = fs::read(&path)?;
        assert!(content.len() < 2000, "{name} is not small");
        // The crate's own sum overflows there: it panics in debug builds.
        if name != "range-sum-fills-64-bits.safetensors" && SafeTensors::deserialize(&content).is_ok() {
            stricter.push(name.trim_end_matches(".safetensors"));
        }
        for mode in MODES {
            wrong.extend(refused_with(&path, mode, words).err());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(stricter, STRICTER, "which of them the official crate accepts");
    Ok(())
}

/// Files that the official crate accepts all the same: it takes what its derived code can read by accident, lets the
/// later of two names win, and has no opinion on slices of distributed checkpoints.
const STRICTER: [&str; 6] =
    ["dtype-object", "entry-array", "json-leading-space", "metadata-null", "name-twice-the-same", "sharded-by-torch"];

#[test]
fn what_is_odd_but_valid_is_accepted() -> Outcome {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let cases = [
        ("no tensors", "{}".to_owned(), 0),
        ("no name", format!(r#"{{"":{entry}}}"#), 4),
        ("padding of every white space", format!("{{\"a\":{entry}}}\r\n\t "), 4),
        ("a field of the future", format!(r#"{{"a":{},"x":{{"x":1,"x":[]}}}}}}"#, entry.trim_end_matches('}')), 4),
        ("a name of control characters", format!(r#"{{"\u0000\u001b[2J\n":{entry}}}"#), 4),
        ("a text key that stands twice", format!(r#"{{"__metadata__":{{"k":"1","k":"2"}},"a":{entry}}}"#), 4),
        ("a tie by a reserved name", format!(r#"{{"__metadata__":{{"__metadata__":"a"}},"a":{entry}}}"#), 4),
        (
            "no elements in the largest dimension",
            r#"{"a":{"dtype":"F4","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#.to_owned(),
            0,
        ),
    ];
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("odd.safetensors");
    for (what, json, data) in cases {
        fs::write(&path, with_header(&json, &vec![0; data]))?;
        for mode in MODES {
            assert!(agrees(&path, mode)?, "{what}: {:?}", Checkpoint::open(&path).err().map(|e| e.to_string()));
        }
    }
    fs::write(&path, with_header(&format!(r#"{{"__metadata__":{{"__metadata__":"a"}},"a":{entry}}}"#), &[0; 4]))?;
    let names: Vec<_> = Checkpoint::open(&path)?.tensors().iter().map(|tensor| tensor.name.clone()).collect();
    assert_eq!(names, ["a"], "no format could write a tensor of that name");
    Ok(())
}

#[test]
fn a_file_cut_anywhere_is_an_error() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("cut.safetensors");
    let whole = small();
    fs::write(&path, &whole)?;
    assert!(agrees(&path, IoMode::Mmap)? && agrees(&path, IoMode::Pread)?, "the whole file is valid");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length])?;
        for mode in MODES {
            refused(&path, mode)?;
        }
    }
    fs::write(&path, [&whole[..], &[0]].concat())?;
    Ok(refused_with(&path, IoMode::Mmap, "1 bytes follow the last tensor")?)
}

#[test]
fn a_header_damaged_anywhere_is_refused_or_read_as_the_crate_reads_it() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged.safetensors");
    let whole = small();
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().expect("it begins with eight bytes")) as usize;
    let (mut accepted, mut tried) = (0, 0);
    for at in 0..header {
        let old = whole[at];
        for new in [0, b' ', b'"', b'0', b'9', b',', b'-', b'\\', b']', b'{', b'}', old ^ 1, old ^ 0x20, !old] {
            let mut damaged = whole.clone();
            damaged[at] = new;
            fs::write(&path, &damaged)?;
            // What fails is told by the byte, not by the line.
            println!("byte {at}: {old} became {new}");
            accepted += usize::from(agrees(&path, MODES[tried % 2])?);
            tried += 1;
        }
    }
    assert!(accepted > 50 && accepted < tried / 2, "{accepted} of {tried} were accepted");
    Ok(())
}

#[test]
fn a_length_without_a_file_behind_it_costs_nothing() -> Outcome {
    let path = fixture("hostile").join("length-99-megabytes.safetensors");
    for mode in MODES {
        let begun = Instant::now();
        refused_with(&path, mode, "claims 99000000 bytes")?;
        assert!(begun.elapsed() < Duration::from_millis(50), "it took {:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
fn a_header_over_the_limit_is_refused_unread() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("sparse.safetensors");
    for (length, words) in [
        (100_000_001u64, "the header claims 100000001 bytes; the format allows 100000000"),
        (100_000_000, "not valid JSON"),
    ] {
        let mut file = File::create(&path)?;
        file.write_all(&length.to_le_bytes())?;
        file.write_all(b"{")?;
        file.set_len(200_000_000)?;
        refused_with(&path, IoMode::Mmap, words)?;
    }
    Ok(())
}

#[test]
fn a_shape_of_a_million_dimensions_is_quick() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("dimensions.safetensors");
    let shape = vec!["1"; 1_000_000].join(" ,");
    let begun = Instant::now();
    let json = format!(r#"{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}"#);
    fs::write(&path, with_header(&json, &[0; 4]))?;
    // Without the limit each dimension would take forty times its text in memory.
    refused_with(&path, IoMode::Mmap, "bytes; 65536 are read")?;
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn ten_thousand_levels_do_not_overflow_the_stack() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("deep.safetensors");
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let deep = format!("{}0{}", open.repeat(10_000), close.repeat(10_000));
        fs::write(&path, with_header(&format!(r#"{{"a":{deep}}}"#), &[]))?;
        refused_with(&path, IoMode::Mmap, "recursion limit exceeded")?;
        fs::write(&path, with_header(&format!(r#"{{"__metadata__":{deep}}}"#), &[]))?;
        refused_with(&path, IoMode::Mmap, "`__metadata__`")?;
        let index = folder.path().join("model.safetensors.index.json");
        fs::write(&index, format!(r#"{{"weight_map":{deep}}}"#))?;
        refused_with(&index, IoMode::Mmap, "recursion limit exceeded")?;
    }
    Ok(())
}

/// A folder of shards that an index of the given content may name: `x` is in a and c, `y` in b, `w` in c.
fn shards(index: &str) -> Outcome<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("sub"))?;
    fs::create_dir(at("folder.safetensors"))?;
    Model::new().f32("x", &[1.0]).write(at("a.safetensors"))?;
    Model::new().f32("x", &[1.0]).write(at("sub/a.safetensors"))?;
    Model::new().f32("y", &[2.0]).write(at("b.safetensors"))?;
    Model::new().f32("w", &[3.0]).f32("x", &[4.0]).write(at("c.safetensors"))?;
    symlink("loop.safetensors", at("loop.safetensors"))?;
    symlink("/dev/zero", at("zeros.safetensors"))?;
    fs::write(at("model.safetensors.index.json"), index)?;
    Ok(folder)
}

#[test]
fn each_bad_index_gets_its_error() -> Outcome {
    let plain = "is no plain file name; not followed";
    let absent = "is missing beside it";
    let cases = [
        (r#"{"weight_map":{"x":"../a.safetensors"}}"#, plain),
        (r#"{"weight_map":{"x":"/etc/passwd"}}"#, plain),
        (r#"{"weight_map":{"x":"sub/a.safetensors"}}"#, plain),
        (r#"{"weight_map":{"x":"./a.safetensors"}}"#, plain),
        (r#"{"weight_map":{"x":"sub\\a.safetensors"}}"#, plain),
        (r#"{"weight_map":{"x":"a.safetensors\u0000.txt"}}"#, plain),
        (r#"{"weight_map":{"x":".."}}"#, plain),
        (r#"{"weight_map":{"x":"."}}"#, plain),
        (r#"{"weight_map":{"x":""}}"#, plain),
        (r#"{"weight_map":{"x":1}}"#, plain),
        (r#"{"weight_map":{"x":null}}"#, plain),
        (r#"{"weight_map":{"\u001b[2J":"\u001b[2J/"}}"#, plain),
        (r#"{"weight_map":{"x":"d.safetensors"}}"#, absent),
        (r#"{"weight_map":{"x":"folder.safetensors"}}"#, absent),
        (r#"{"weight_map":{"x":"loop.safetensors"}}"#, absent),
        (r#"{"weight_map":{"x":"zeros.safetensors"}}"#, absent),
        (r#"{"weight_map":{"x":"\u001b[2J"}}"#, absent),
        (r#"{"weight_map":{"z":"a.safetensors"}}"#, "`z`: the index says that this shard holds it, but it does not"),
        (r#"{"weight_map":{"x":"a.safetensors","w":"c.safetensors"}}"#, "another shard of the model holds a tensor"),
        (r#"{"weight_map":{"x":"model.safetensors.index.json"}}"#, "no known format"),
        (r#"{"weight_map":["a.safetensors"]}"#, "it has no `weight_map`"),
        (r#"{"weight_map":null}"#, "it has no `weight_map`"),
        (r#"{"x":"a.safetensors"}"#, "it has no `weight_map`"),
        ("[]", "it has no `weight_map`"),
        ("null", "it has no `weight_map`"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("\u{feff}{}", "is not valid JSON"),
    ];
    let mut wrong = Vec::new();
    for (index, words) in cases {
        let folder = shards(index)?;
        // The message names the index or the shard, which both lie below the folder.
        let fault = refused_with(folder.path(), IoMode::Mmap, words).err();
        wrong.extend(fault.map(|fault| format!("{index}: {fault}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (index, tensors) in [
        (r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#, 2),
        (r#"{"weight_map":{"x":"c.safetensors","w":"c.safetensors"}}"#, 2),
        (r#"{"weight_map":{"x":"../a.safetensors","x":"a.safetensors"}}"#, 1),
        (r#"{"metadata":{"total_size":-1},"weight_map":{"x":"a.safetensors"}}"#, 1),
        (r#"{"weight_map":{}}"#, 0),
    ] {
        assert_eq!(Checkpoint::open(shards(index)?.path())?.tensors().len(), tensors, "{index}");
    }
    Ok(())
}

#[test]
fn links_in_a_circle_are_an_error() -> Outcome {
    let folder = tempfile::tempdir()?;
    for name in ["model.safetensors", "model.safetensors.index.json", "a.json"] {
        let path = folder.path().join(name);
        symlink(name, &path)?;
        refused_with(&path, IoMode::Mmap, "symbolic links")?;
    }
    assert!(Checkpoint::open(folder.path()).is_err());
    Ok(())
}

#[test]
fn a_pipe_is_not_waited_for() -> Outcome {
    let folder = tempfile::tempdir()?;
    for name in ["pipe.safetensors", "pipe.safetensors.index.json", "pipe.json"] {
        let path = folder.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status()?.success());
        let (done, answer) = mpsc::channel();
        let opened = path.clone();
        // A thread that waits for the pipe is left behind: nothing can call it back.
        std::thread::spawn(move || done.send(Checkpoint::open(opened).map(drop).map_err(|error| error.to_string())));
        let answer = answer.recv_timeout(Duration::from_secs(10)).map_err(|_| format!("{name} is waited for"))?;
        let message = answer.expect_err("a pipe is no model");
        assert!(message.contains(name) && message.contains("regular file"), "{message}");
    }
    Ok(())
}
