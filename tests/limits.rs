//! What is refused because nobody can mean it, or would be lost if it were done: names that grow without end, files that
//! are no files, numbers that a type cannot hold, options without an effect.

use crate::model::{Model, Outcome, Ran, binary, fixture, names_in, read, run};
use ckptmerge::dtype::DType;
use ckptmerge::{Checkpoint, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// A run that has to end within some seconds, however much it was asked to do.
fn soon(folder: &Path, arguments: &[&str]) -> Outcome<Ran> {
    let mut child = binary()
        .args(arguments)
        .current_dir(folder)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            return Err(format!("{arguments:?} does not end").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?.into())
}

fn pipe(path: &Path) -> Outcome {
    if Command::new("mkfifo").arg(path).status()?.success() { Ok(()) } else { Err("no pipe can be made".into()) }
}

#[test]
fn rules_that_double_a_name_end_in_an_error() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("a", &[1.0]).write(path.join("in.st"))?;
    std::fs::write(path.join("double"), "(.*) -> $1$1\n".repeat(60))?;
    soon(path, &["convert", "in.st", "out.st", "--rename", "double"])?
        .fails(1, &["`a`: would get a name of more than 65536 bytes", "$1$1"]);
    // Before a map, rules are applied elsewhere.
    soon(path, &["convert", "in.st", "out.st", "--rename", "double", "--rename", "diffusers-to-sd"])?
        .fails(1, &["more than 65536 bytes"]);
    std::fs::write(path.join("long"), format!("a -> {}\n", "$0".repeat(501)))?;
    soon(path, &["convert", "in.st", "out.st", "--rename", "long"])?.fails(2, &["long:1: ", "more than 1000 bytes"]);
    assert_eq!(names_in(path), ["double", "in.st", "long"]);

    // Matches are taken as the regex crate replaces them: empty ones, groups, what lies between.
    std::fs::write(path.join("rules"), "^ -> model.\n(a)(x)?$ -> <$2>${1}b\n")?;
    run(path, "convert in.st out.st --rename rules").ok();
    assert_eq!(read(&path.join("out.st"))?.names(), ["model.<>ab"]);
    Ok(())
}

#[test]
fn small_files_are_regular_and_bounded() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("a", &[1.0]).write(path.join("in.st"))?;
    pipe(&path.join("pipe"))?;
    std::fs::File::create(path.join("large"))?.set_len((16 << 20) + 1)?;
    std::fs::write(path.join("bytes"), b"a -> \xff\n")?;
    let convert = |rules| soon(path, &["convert", "in.st", "out.st", "--rename", rules]);
    convert("pipe")?.fails(1, &["pipe: is not a regular file"]);
    convert("/dev/zero")?.fails(1, &["/dev/zero: is not a regular file"]);
    convert("large")?.fails(1, &["large: has 16.8 MB, more than the 16.8 MB that are read"]);
    convert("bytes")?.fails(1, &["bytes: is not UTF-8 text"]);
    soon(path, &["run", "pipe", "-o", "out.st"])?.fails(1, &["pipe: is not a regular file"]);
    soon(path, &["run", "/dev/zero", "-o", "out.st"])?.fails(1, &["/dev/zero: is not a regular file"]);

    // A model's own small files: an index of shards.
    std::fs::create_dir(path.join("model"))?;
    pipe(&path.join("model/model.safetensors.index.json"))?;
    soon(path, &["inspect", "model/model.safetensors.index.json"])?.fails(1, &["is not a regular file"]);
    Ok(())
}

#[test]
fn blocks_that_would_become_nan_are_refused() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let row = |last: f64| {
        let mut values = vec![1.0; 512];
        values[511] = last;
        values
    };
    let write = |last: f64| {
        let model = Model::new().with("good", DType::F32, &[2, 256], &row(2.0));
        model.with("w\n", DType::F32, &[2, 256], &row(last)).write(path.join("in.st"))
    };
    std::fs::write(path.join("out.gguf"), "old")?;
    for dtype in ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q6_k"] {
        let convert = || run(path, &format!("convert in.st out.gguf --dtype {dtype}"));
        let name = format!("tensor `w\\n` cannot be stored as {}", dtype.to_uppercase());
        write(3e38)?;
        convert().fails(1, &[&name, "too large for a block's scale", "choose another type"]);
        for value in [f64::NAN, f64::INFINITY] {
            write(value)?;
            convert().fails(1, &[&name, "it has NaN or infinities"]);
        }
        assert_eq!(std::fs::read(path.join("out.gguf"))?, b"old", "{dtype}");
        assert_eq!(names_in(path), ["in.st", "out.gguf"], "{dtype}");
    }
    // The largest scale there is, and its block is read back.
    write(65504.0 * 127.0)?;
    run(path, "convert in.st good.gguf --dtype q8_0").ok();
    let model = Checkpoint::open(path.join("good.gguf"))?;
    assert_eq!(model.tensors().len(), 2);
    // A merge rounds as well.
    write(3e38)?;
    run(path, "merge in.st in.st --weights 0.5,0.5 -o merged.gguf --dtype q8_0")
        .fails(1, &["cannot be stored as Q8_0"]);
    Ok(())
}

#[test]
fn what_is_written_is_read_again() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for (length, fits) in [(1000, true), (1001, false)] {
        let name = "n".repeat(length);
        Model::new().f32(&name, &[1.0]).write(path.join("in.st"))?;
        let ran = run(path, "convert in.st out.pt");
        if fits {
            ran.ok();
            assert_eq!(Checkpoint::open(path.join("out.pt"))?.tensors()[0].name, name);
        } else {
            ran.fails(1, &["tensor `nnn", "its name has 1001 bytes; names of up to 1000", "shorter name"]);
        }
    }
    Ok(())
}

#[test]
fn types_that_numpy_lacks_are_said() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().with("a", DType::BF16, &[2], &[1.0, 2.0]).f32("b", &[1.0]).write(path.join("in.st"))?;
    let say = "NumPy has no type BF16: its elements are written as raw bytes (`<V2`)";
    for arguments in ["convert in.st o.npz", "merge in.st in.st -w 0.5,0.5 -o m.npz"] {
        let ran = run(path, arguments).ok();
        assert!(ran.stderr.contains(say) && ran.stderr.contains("--assume bf16"), "{}", ran.stderr);
    }
    run(path, "inspect o.npz --assume bf16").ok();
    let ran = run(path, "convert in.st f.npz --dtype f32").ok();
    assert!(!ran.stderr.contains("NumPy has no type"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_table_is_read_without_unpacking() -> Outcome {
    let file = fixture("numpy/compressed.npz");
    let inspect = |more: &[&str], room: &Path| -> Outcome<Ran> {
        Ok(binary().arg("inspect").arg(&file).args(more).env("TMPDIR", room).output()?.into())
    };
    let nowhere = Path::new("/proc/nowhere");
    let ran = inspect(&["--tensors"], nowhere)?.ok();
    assert!(ran.stdout.contains("1 file,"), "{}", ran.stdout);
    inspect(&["--stats"], nowhere)?.fails(1, &["temporary file"]);
    inspect(&["--stats"], &std::env::temp_dir())?.ok();

    // The same table either way; data are asked for in vain where it is all that was wanted.
    let whole = Checkpoint::open(&file)?;
    let table = Checkpoint::open_with(&file, &OpenOptions { headers_only: true, ..OpenOptions::default() })?;
    let rows = |model: &Checkpoint| -> Vec<_> {
        model.tensors().iter().map(|tensor| (tensor.name.clone(), tensor.dtype, tensor.shape.clone())).collect()
    };
    assert_eq!(rows(&whole), rows(&table));
    let tensor = table.tensors().iter().find(|tensor| tensor.bytes > 0).ok_or("an empty fixture")?;
    let error = table.view(tensor).read(0..tensor.bytes, &mut Vec::new()).expect_err("it is packed").to_string();
    assert!(error.contains("was opened for its table only"), "{error}");

    // A limit on the sizes of files is not the input's damage.
    let line = "ulimit -f 0; exec \"$0\" inspect --stats \"$1\"";
    let ran: Ran = Command::new("sh").args(["-c", line, env!("CARGO_BIN_EXE_ckptmerge")]).arg(&file).output()?.into();
    let ran = ran.fails(1, &["cannot be unpacked to a temporary file in", "ulimit -f"]);
    assert!(!ran.stderr.contains("damaged"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_view_that_repeats_without_end_is_not_read() -> Outcome {
    let folder = tempdir()?;
    let file = fixture("limits/vast-view.pt");
    let file = file.to_str().ok_or("a path of text")?;
    let says = &["vast-view.pt", "`vast`, which repeats its elements"][..];
    soon(folder.path(), &["inspect", file, "--stats"])?.fails(1, says);
    soon(folder.path(), &["diff", file, file])?.fails(1, says);
    // What is not asked for does not count.
    soon(folder.path(), &["inspect", file, "--stats", "--tensors", "small"])?.ok();
    Ok(())
}

#[test]
fn options_without_an_effect_are_errors() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("a", &[1.0]).write(path.join("in.st"))?;
    let nothing = "there is nothing to select `ema` from: in.st holds one set of tensors; leave --select out";
    for command in ["inspect in.st", "convert in.st out.st", "diff in.st in.st", "merge in.st in.st -w 1,1 -o out.st"] {
        run(path, &format!("{command} --select ema")).fails(2, &[nothing]);
    }
    run(path, "inspect in.st -j 257").fails(2, &["at most 256"]);
    run(path, "inspect in.st -j 256").ok();
    run(path, "convert in.st out.st --metadata a=1 --metadata a=2").fails(2, &["--metadata gives `a` twice"]);
    assert_eq!(names_in(path), ["in.st"]);
    Ok(())
}

#[test]
fn paths_in_messages_are_escaped() -> Outcome {
    let folder = tempdir()?;
    let name = "a\nerror: \u{1b}[31mb.st";
    for content in [None, Some("text")] {
        if let Some(content) = content {
            std::fs::write(folder.path().join(name), content)?;
        }
        let ran: Ran = binary().args(["inspect", name]).current_dir(folder.path()).output()?.into();
        let ran = ran.fails(1, &["a\\nerror: \\u{1b}[31mb.st"]);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    Ok(())
}
