//! What can go wrong around a merge: it is killed, the disk is full, files change under it, names are wrong.
//!
//! Whatever happens, the output is the old one or the new one, whole.

use crate::merge::{merge, settings};
use crate::model::{Model, Outcome, Ran, Random, binary, fixture, names_in, read, run, snapshot, write};
use ckptmerge::dtype::DType;
use ckptmerge::merge::{Input, Node, Terms};
use ckptmerge::recipe::{Models, Plan, Recipe, Target};
use ckptmerge::stream::{Control, Settings};
use ckptmerge::{Checkpoint, Error, IoMode};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// A model of about so many million bytes of F32, none of them zero: an unfinished file has zeros.
fn large(seed: u64, megabytes: u64) -> Model {
    let mut random = Random(seed);
    let block: Vec<u8> = (0..250_000).flat_map(|_| (random.uniform() as f32 + 2.0).to_le_bytes()).collect();
    let tensor = |model: Model, i| model.raw(&format!("block.{i}"), DType::F32, &[1000, 250], block.clone());
    (0..megabytes).fold(Model::new(), tensor)
}

/// Two models `a.st` and `b.st` in a folder.
fn pair(folder: &Path, megabytes: u64) -> Outcome {
    large(1, megabytes).write(folder.join("a.st"))?;
    large(2, megabytes).write(folder.join("b.st"))?;
    Ok(())
}

/// Starts the binary with stdout and stderr kept.
fn start(folder: &Path, arguments: &str) -> Outcome<Child> {
    let mut command = binary();
    command.args(arguments.split_whitespace()).current_dir(folder);
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// The end of a run that must end soon.
fn ended(mut child: Child) -> Outcome<Ran> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            return Err("it hangs".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?.into())
}

fn signal(child: &Child, name: &str) -> Outcome {
    Command::new("kill").args([format!("-{name}"), child.id().to_string()]).stderr(Stdio::null()).status()?;
    Ok(())
}

/// Names in a folder that nobody asked for.
fn strays(folder: &Path) -> Vec<String> {
    names_in(folder).into_iter().filter(|name| name.starts_with('.')).collect()
}

const MERGE: &str = "merge a.st b.st --weights 0.6,0.4 -o out.st";

#[test]
fn a_killed_run_leaves_the_old_output_or_the_new_one() -> Outcome {
    const KILLS: u32 = 20;
    let folder = tempdir()?;
    let (path, out) = (folder.path(), folder.path().join("out.st"));
    pair(path, 60)?;
    let begin = Instant::now();
    run(path, MERGE).ok();
    let whole_run = begin.elapsed();
    let new = std::fs::read(&out)?;
    let old = Model::new().f32("old", &[1.0]).to_bytes();

    let (mut killed, mut unfinished) = (0, 0);
    for kill in 0..KILLS {
        std::fs::write(&out, &old)?;
        let mut child = start(path, MERGE)?;
        std::thread::sleep(whole_run * kill / KILLS);
        child.kill()?;
        killed += u32::from(child.wait()?.code().is_none());
        let now = std::fs::read(&out)?;
        assert!(now == old || now == new, "kill {kill} left {} bytes that are neither", now.len());
        let strays = strays(path);
        // Its own, or of the run before if it was killed before it began to write.
        let are_of_output = strays.iter().all(|name| name.starts_with(".out.st.tmp-"));
        assert!(are_of_output && strays.len() <= 1, "a run removes what others left, but here is {strays:?}");
        unfinished += strays.len();
    }
    assert!(killed >= KILLS / 4 && unfinished > 0, "only {killed} runs were killed, {unfinished} at work");
    run(path, MERGE).ok();
    assert!(std::fs::read(&out)? == new, "a run after killed ones differs");
    assert_eq!(names_in(path), ["a.st", "b.st", "out.st"]);
    Ok(())
}

#[test]
fn a_killed_run_leaves_the_old_folder_or_the_new_one() -> Outcome {
    const KILLS: u32 = 6;
    let folder = tempdir()?;
    let (path, out) = (folder.path(), folder.path().join("out"));
    for name in ["a", "b"] {
        large(name.len() as u64, 30).write(path.join(name).join("model.safetensors"))?;
        write(&path.join(name).join("config.json"), "{}")?;
    }
    let command = "merge a b --weights 0.6,0.4 --shard-size 8MB -o out";
    run(path, "merge a --weights 2 -o out").ok();
    let old = snapshot(&out);
    let begin = Instant::now();
    run(path, command).ok();
    let whole_run = begin.elapsed();
    let new = snapshot(&out);
    assert!(old.len() == 2 && new.len() == 6, "{:?}", new.keys());

    for kill in 0..KILLS {
        run(path, "merge a --weights 2 -o out").ok();
        let mut child = start(path, command)?;
        std::thread::sleep(whole_run * (2 * kill + 1) / (2 * KILLS));
        child.kill()?;
        child.wait()?;
        let now = snapshot(&out);
        assert!(now == old || now == new, "kill {kill} left {:?}", now.keys());
        let strays = strays(path);
        assert!(strays.iter().all(|name| *name == format!(".out.tmp-{}", child.id())), "{strays:?}");
    }
    run(path, command).ok();
    assert!(snapshot(&out) == new, "a run after killed ones differs");
    assert_eq!(names_in(path), ["a", "b", "out"]);
    Ok(())
}

#[test]
fn an_interrupted_run_cleans_up() -> Outcome {
    let folder = tempdir()?;
    let (path, out) = (folder.path(), folder.path().join("out.st"));
    pair(path, 30)?;
    let begin = Instant::now();
    run(path, MERGE).ok();
    let whole_run = begin.elapsed();
    let new = std::fs::read(&out)?;
    let mut interrupted = 0;
    for attempt in 0..6 {
        for name in ["INT", "TERM"] {
            std::fs::write(&out, "old")?;
            let child = start(path, MERGE)?;
            std::thread::sleep(whole_run * attempt / 6);
            signal(&child, name)?;
            let ran = ended(child)?;
            assert_eq!(names_in(path), ["a.st", "b.st", "out.st"], "{name} {attempt}: {ran:?}");
            match ran.code {
                // So early that nobody had said what to do with signals.
                None => assert!(std::fs::read(&out)? == b"old"),
                Some(0) => assert!(std::fs::read(&out)? == new),
                Some(_) => {
                    ran.fails(130, &["interrupted; nothing was written"]);
                    assert!(std::fs::read(&out)? == b"old");
                    interrupted += 1;
                }
            }
        }
    }
    assert!(interrupted > 0, "no run was interrupted at work");
    Ok(())
}

/// A small file system of its own, for as long as it lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None where mounting is not allowed.
    fn new(megabytes: u64) -> Outcome<Option<Self>> {
        let folder = tempdir()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "ckptmerge-test"]).arg(folder.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        Ok(mounted.then_some(Self(folder)))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} is still mounted", self.0.path().display());
    }
}

#[test]
fn a_full_disk_is_noticed_before_anything_is_written() -> Outcome {
    let Some(disk) = SmallDisk::new(8)? else {
        eprintln!("NOT TESTED: a full disk, as this user may not mount one; run the tests as root");
        return Ok(());
    };
    let folder = tempdir()?;
    pair(folder.path(), 12)?;
    let full = disk.0.path();
    let old = Model::new().f32("old", &[1.0]).write(full.join("out.st"))?;
    let old = std::fs::read(old)?;
    let into = |name: &str, more: &str| {
        run(folder.path(), &format!("merge a.st b.st --weights 0.6,0.4 -o {}/{name} {more}", full.display()))
    };
    into("out.st", "").fails(1, &["out.st", "needs 12.0 MB", "8.38 MB are free", "nothing was written"]);
    into("folder", "--shard-size 5MB").fails(1, &["folder", "needs 12.0 MB", "are free", "nothing was written"]);
    assert!(std::fs::read(full.join("out.st"))? == old);
    assert_eq!(names_in(full), ["out.st"]);

    // What fits is written: the half of it.
    into("out.st", "--dtype bf16").ok();
    // And then does not fit beside itself: the old one goes only when the new one is there.
    into("out.st", "--dtype bf16").fails(1, &["needs 6.00 MB", "are free"]);
    assert_eq!(names_in(full), ["out.st"]);
    assert_eq!(read(&full.join("out.st"))?.tensors.len(), 12);
    Ok(())
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_crash() -> Outcome {
    let folder = tempdir()?;
    pair(folder.path(), 4)?;
    std::fs::write(folder.path().join("out.st"), "old")?;
    let limited = format!("ulimit -f 1000; exec {} {MERGE}", env!("CARGO_BIN_EXE_ckptmerge"));
    let ran = Command::new("sh").args(["-c", &limited]).current_dir(folder.path()).output()?;
    let ran = Ran::from(ran).fails(1, &["out.st", "4.00 MB"]);
    assert!(!ran.stderr.contains("are free there"), "the disk is not the reason: {}", ran.stderr);
    assert_eq!(std::fs::read(folder.path().join("out.st"))?, b"old");
    assert_eq!(names_in(folder.path()), ["a.st", "b.st", "out.st"]);
    Ok(())
}

#[test]
fn the_output_may_be_one_of_the_inputs() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for io in ["mmap", "pread"] {
        pair(path, 3)?;
        run(path, &format!("{MERGE} --io {io}")).ok();
        let expected = read(&path.join("out.st"))?;
        for output in ["b.st", "a.st"] {
            pair(path, 3)?;
            run(path, &format!("merge a.st b.st --weights 0.6,0.4 --io {io} -o {output}")).ok();
            assert!(read(&path.join(output))? == expected, "{output} by {io}");
        }
        // Through a link the file it leads to is replaced.
        pair(path, 3)?;
        let _ = std::fs::remove_file(path.join("link.st"));
        std::os::unix::fs::symlink("a.st", path.join("link.st"))?;
        run(path, &format!("merge a.st b.st --weights 0.6,0.4 --io {io} -o link.st")).ok();
        assert!(path.join("link.st").is_symlink());
        assert!(read(&path.join("a.st"))? == expected);
    }
    for name in ["one", "two"] {
        large(name.len() as u64, 2).write(path.join(name).join("model.safetensors"))?;
        write(&path.join(name).join("config.json"), format!("\"{name}\""))?;
    }
    run(path, "merge one two --weights 0.6,0.4 -o three").ok();
    run(path, "merge one two --weights 0.6,0.4 -o two").ok();
    assert!(snapshot(&path.join("two")) == snapshot(&path.join("three")));
    run(path, "merge one two --weights 0.6,0.4 -o one --shard-size 1MB").ok();
    assert!(path.join("one/model.safetensors.index.json").is_file() && !path.join("one/model.safetensors").exists());
    assert!(strays(path).is_empty());
    Ok(())
}

#[test]
fn the_output_is_as_open_to_others_as_it_was() -> Outcome {
    let folder = tempdir()?;
    pair(folder.path(), 1)?;
    let out = folder.path().join("out.st");
    std::fs::write(&out, "old")?;
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o640))?;
    run(folder.path(), MERGE).ok();
    assert_eq!(std::fs::metadata(&out)?.permissions().mode() & 0o777, 0o640);
    Ok(())
}

/// Plans a merge, changes the second model before or within the run, and expects that to be noticed.
fn change_is_noticed(mode: IoMode, within: bool, change: impl Fn(&File) -> std::io::Result<()> + Sync) -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    pair(path, 8)?;
    std::fs::write(path.join("out.st"), "old")?;
    let file = OpenOptions::new().write(true).open(path.join("b.st"))?;

    let recipe = Recipe::new("linear")?;
    let models = Models::open(&[path.join("a.st"), path.join("b.st")], None, &mode.into())?;
    let plan = Plan::new(&recipe, &models, &settings(), Control::none())?;
    let once = Once::new();
    let apply = || once.call_once(|| change(&file).expect("a file of ours can be changed"));
    if !within {
        apply();
    }
    let cancel = AtomicBool::new(false);
    let progress = |_| apply();
    let target = Target { path: path.join("out.st"), shard_size: None, format: None };
    let error = plan.emit(&target, &settings(), Control { progress: &progress, cancel: &cancel });
    let error = error.expect_err("the file changed");
    assert!(matches!(&error, Error::Changed { path } if path.ends_with("b.st")), "{error}");
    assert_eq!(std::fs::read(path.join("out.st"))?, b"old");
    assert_eq!(names_in(path), ["a.st", "b.st", "out.st"]);
    Ok(())
}

#[test]
fn a_model_that_is_cut_short_meanwhile_is_noticed() -> Outcome {
    for mode in [IoMode::Mmap, IoMode::Pread] {
        change_is_noticed(mode, true, |file| file.set_len(4_000_000))?;
        change_is_noticed(mode, true, |file| file.set_len(0))?;
    }
    Ok(())
}

#[test]
fn a_model_that_is_cut_short_before_the_run_is_noticed() -> Outcome {
    for mode in [IoMode::Mmap, IoMode::Pread] {
        change_is_noticed(mode, false, |file| file.set_len(4_000_000))?;
        change_is_noticed(mode, false, |file| file.set_len(0))?;
    }
    Ok(())
}

#[test]
fn a_model_that_is_written_to_meanwhile_is_noticed() -> Outcome {
    for mode in [IoMode::Mmap, IoMode::Pread] {
        for within in [false, true] {
            change_is_noticed(mode, within, |file| {
                file.write_all_at(&[1, 2, 3], 5_000_000)?;
                // Clocks of file systems tick in milliseconds.
                file.set_modified(std::time::SystemTime::now() + Duration::from_secs(1))
            })?;
        }
    }
    Ok(())
}

#[test]
fn statistics_of_a_model_that_is_cut_short_are_refused() -> Outcome {
    let folder = tempdir()?;
    let path = large(1, 8).write(folder.path().join("a.st"))?;
    let model = Checkpoint::open_with(&path, &IoMode::Mmap.into())?;
    let views: Vec<_> = model.tensors().iter().map(|tensor| model.view(tensor)).collect();
    OpenOptions::new().write(true).open(&path)?.set_len(1_000_000)?;
    let stats = ckptmerge::analysis::stats(&views, &settings(), Control::none());
    assert!(matches!(stats, Err(Error::Changed { .. })), "{stats:?}");
    Ok(())
}

#[test]
fn folders_with_files_of_somebody_are_not_replaced() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for name in ["a", "b"] {
        Model::new().f32("x", &[1.0]).write(path.join(name).join("model.safetensors"))?;
        write(&path.join(name).join("config.json"), "{}")?;
    }
    let merge = |more: &str| run(path, &format!("merge a b -o out {more}"));
    for stranger in ["notes.txt", ".git/HEAD", "sub/deep/er/file", "backup.json", ".hidden"] {
        write(&path.join("out").join(stranger), "mine")?;
        let before = snapshot(&path.join("out"));
        merge("").fails(1, &["out", stranger, "nothing was written"]);
        assert!(snapshot(&path.join("out")) == before, "{stranger}");
        assert_eq!(names_in(path), ["a", "b", "out"]);
        std::fs::remove_dir_all(path.join("out"))?;
    }
    // An empty folder, and a run's own output, may go; also when the next one has shards or none.
    std::fs::create_dir(path.join("out"))?;
    merge("").ok();
    let first = snapshot(&path.join("out"));
    merge("").ok();
    assert!(snapshot(&path.join("out")) == first);
    merge("--shard-size 1").ok();
    merge("").ok();
    assert!(snapshot(&path.join("out")) == first);
    // Somebody's file beside it is still theirs.
    write(&path.join("out/notes.txt"), "mine")?;
    merge("").fails(1, &["notes.txt"]);
    assert_eq!(std::fs::read(path.join("out/notes.txt"))?, b"mine");
    // And the other way round.
    std::fs::write(path.join("file"), "mine")?;
    run(path, "merge a b -o file").fails(1, &["this is a file", "nothing was written"]);
    assert_eq!(std::fs::read(path.join("file"))?, b"mine");
    Ok(())
}

#[test]
fn a_stray_weights_file_is_not_taken_for_the_old_model() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("x", &[1.0]).write(path.join("a/model.safetensors"))?;
    // Neither was written by a merge, which calls its weights `model.safetensors`.
    write(&path.join("out/broken.safetensors"), "not even a model")?;
    run(path, "merge a -o out").fails(1, &["broken.safetensors", "nothing was written"]);
    std::fs::remove_file(path.join("out/broken.safetensors"))?;
    Model::new().f32("mine", &[1.0]).write(path.join("out/my-best-lora.safetensors"))?;
    run(path, "merge a -o out").fails(1, &["my-best-lora.safetensors", "nothing was written"]);
    assert_eq!(names_in(&path.join("out")), ["my-best-lora.safetensors"]);
    Ok(())
}

#[test]
fn wrong_usage_ends_with_2() -> Outcome {
    let folder = tempdir()?;
    pair(folder.path(), 1)?;
    for (arguments, says) in [
        ("", "Usage"),
        ("mrege a.st", "merge"),
        ("merge a.st b.st", "--output"),
        ("merge -o out.st", "MODEL"),
        ("merge a.st b.st -o out.st --no-such-option", "--no-such-option"),
        ("merge a.st b.st -o out.st --method liner", "the nearest is `linear`"),
        ("merge a.st b.st -o out.st --weights 0.5", "1 weights, but there are 2 models"),
        ("merge a.st b.st -o out.st --weights 0.5,0.2,0.3", "3 weights, but there are 2 models"),
        ("merge a.st b.st -o out.st --weights nan,1", "NaN"),
        ("merge a.st b.st -o out.st --weights inf,1", "inf"),
        ("merge a.st b.st -o out.st --weights 1e39,1", "not a finite number"),
        ("merge a.st b.st -o out.st --weights a,b", "--weights"),
        ("merge a.st b.st -o out.st --weights 0.5,,0.5", "--weights"),
        ("merge a.st b.st -o out.st --weights-for (=1,1", "--weights-for"),
        ("merge a.st b.st -o out.st --weights-for block", "REGEX=weight"),
        ("merge a.st b.st -o out.st --weights-for block=1", "1 weights, but there are 2 models"),
        ("merge a.st b.st -o out.st -p lambda=1", "lambda"),
        ("merge a.st b.st -o out.st --base b.st -p lamda=1", "the nearest is `lambda`"),
        ("merge a.st b.st -o out.st --dtype i64", "I64"),
        ("merge a.st b.st -o out.st --include (", "--include"),
        ("merge a.st b.st -o out.st --missing maybe", "error, base, skip"),
        ("merge a.st b.st -o out.st --memory 1M", "at least 32M"),
        ("merge a.st b.st -o out.st --memory lots", "--memory"),
        ("merge a.st b.st -o out.st --shard-size 5X", "5X"),
        ("merge a.st b.st -o out.st -j 0", "--threads"),
        ("merge a.st b.st -o out.st -q -v", "--verbose"),
        ("merge a.st b.st -o out.st --method task-arithmetic", "--base"),
        ("inspect a.st --tensors nothing*", "nothing*"),
        ("man mrege", "the nearest is `merge`"),
        ("diff a.st", "SECOND"),
        ("diff a.st b.st --atol=-1", "not negative"),
    ] {
        let ran = run(folder.path(), arguments);
        assert_eq!(ran.stdout, "", "{arguments}");
        assert_eq!(ran.code, Some(2), "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{arguments}: {says:?} is not in {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{arguments}: {}", ran.stderr);
    }
    assert_eq!(names_in(folder.path()), ["a.st", "b.st"]);
    Ok(())
}

#[test]
fn the_nearest_name_is_found_in_any_case() -> Outcome {
    let folder = tempdir()?;
    pair(folder.path(), 1)?;
    for (arguments, nearest) in [("--dtype bf61", "`BF16`"), ("--dtype f23", "`F32`"), ("--method Liner", "`linear`")] {
        run(folder.path(), &format!("merge a.st b.st -o out.st {arguments}")).fails(2, &["the nearest is", nearest]);
    }
    Ok(())
}

#[test]
fn failures_end_with_1() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    pair(path, 1)?;
    std::fs::write(path.join("empty.st"), "")?;
    std::fs::write(path.join("text.st"), "this is no model, whatever it is called")?;
    std::fs::write(path.join("short.st"), &large(1, 1).to_bytes()[..500_000])?;
    Model::new().f32("other", &[1.0]).write(path.join("other.st"))?;
    write(&path.join("folder/notes.txt"), "mine")?;
    for (arguments, says) in [
        ("merge a.st nowhere.st -o out.st", "nowhere.st"),
        ("merge a.st b.st --base nowhere.st -o out.st", "nowhere.st"),
        ("merge a.st empty.st -o out.st", "empty.st: the file is empty"),
        ("merge a.st text.st -o out.st", "text.st"),
        ("merge a.st short.st -o out.st", "short.st"),
        ("merge a.st other.st -o out.st", "`other`: is missing in a.st"),
        ("merge a.st folder -o out.st", "folder"),
        ("merge a.st b.st -o folder", "notes.txt"),
        ("merge a.st b.st -o text.st/", "text.st: this is a file"),
        ("merge a.st b.st -o nowhere/out.st", "nowhere"),
        ("merge a.st b.st -o a.st/out.st", "a.st"),
        ("merge a.st b.st -o out.st --shard-size 5MB", "shards come in a folder"),
        ("inspect nowhere.st", "nowhere.st"),
        ("inspect short.st", "cut short"),
    ] {
        let ran = run(path, arguments);
        assert_eq!(ran.stdout, "", "{arguments}");
        assert_eq!(ran.code, Some(1), "{arguments}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{arguments}: {says:?} is not in {}", ran.stderr);
        assert!(!ran.stderr.contains("panicked"), "{arguments}: {}", ran.stderr);
    }
    assert_eq!(names_in(path), ["a.st", "b.st", "empty.st", "folder", "other.st", "short.st", "text.st"]);
    Ok(())
}

#[test]
fn an_error_is_said_once() -> Outcome {
    let folder = tempdir()?;
    std::fs::write(folder.path().join("short.st"), &large(1, 1).to_bytes()[..500_000])?;
    for (arguments, cause) in [("inspect nowhere.st", "(os error 2)"), ("inspect short.st", "cut short")] {
        let ran = run(folder.path(), arguments).fails(1, &[cause]);
        assert_eq!(ran.stderr.matches(cause).count(), 1, "{}", ran.stderr);
    }
    Ok(())
}

#[test]
fn pipes_and_devices_are_refused_at_once() -> Outcome {
    let folder = tempdir()?;
    pair(folder.path(), 1)?;
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe.st")).status()?.success(), "no pipe could be made");
    for arguments in ["merge a.st pipe.st -o out.st", "inspect pipe.st", "diff a.st /dev/zero"] {
        ended(start(folder.path(), arguments)?)?.fails(1, &["is not a regular file"]);
    }
    Ok(())
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() -> Outcome {
    let folder = fixture("llama");
    for arguments in ["inspect base --tensors", "inspect base --json", "man merge", "methods", "completions zsh"] {
        let mut child = start(&folder, arguments)?;
        // Nobody reads: the pipe is closed before much can be written.
        drop(child.stdout.take());
        let ran = ended(child)?;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{arguments}");
        let head = format!("{} {arguments} | head -1", env!("CARGO_BIN_EXE_ckptmerge"));
        let ran = Command::new("sh").args(["-c", &head]).current_dir(&folder).output()?;
        let ran = Ran::from(ran).ok();
        assert_eq!((ran.stdout.lines().count(), ran.stderr.as_str()), (1, ""), "{arguments}");
    }
    // A disk that is full is one.
    let full = OpenOptions::new().write(true).open("/dev/full")?;
    let ran = binary().args(["inspect", "base"]).current_dir(&folder).stdout(full).stderr(Stdio::piped()).spawn()?;
    ended(ran)?.fails(1, &["error"]);
    Ok(())
}

#[test]
fn two_runs_at_once_leave_one_whole_output() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    pair(path, 2)?;
    merge(&Recipe::new("linear")?, &[path.join("a.st"), path.join("b.st")], None, &path.join("expected.st"))?;
    let expected = std::fs::read(path.join("expected.st"))?;
    run(path, "merge a.st b.st -o whole --shard-size 1MB").ok();
    let whole = snapshot(&path.join("whole"));
    for round in 0..12 {
        for (command, output) in
            [("merge a.st b.st -o out.st", "out.st"), ("merge a.st b.st -o out --shard-size 1MB", "out")]
        {
            let children = [start(path, command)?, start(path, command)?, start(path, command)?];
            let mut done = 0;
            for child in children {
                let ran = ended(child)?;
                if ran.code == Some(0) {
                    done += 1;
                } else {
                    ran.fails(1, &["error"]);
                }
            }
            assert!(done > 0, "round {round}: all of them failed");
            let out = path.join(output);
            if out.is_dir() {
                assert!(snapshot(&out) == whole, "round {round}: {:?}", snapshot(&out).keys());
                std::fs::remove_dir_all(&out)?;
            } else {
                assert!(std::fs::read(&out)? == expected, "round {round}");
                std::fs::remove_file(&out)?;
            }
            assert_eq!(names_in(path), ["a.st", "b.st", "expected.st", "whole"], "round {round}");
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
/// The most memory of its own that a run has, so far as one sees who looks all the time.
fn peak_memory(folder: &Path, arguments: &str) -> Outcome<u64> {
    let child = start(folder, arguments)?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // A process that has ended has a status without memory.
    while let Some(kilobytes) = std::fs::read_to_string(&status).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    }) {
        peak = peak.max(kilobytes << 10);
        std::thread::sleep(Duration::from_micros(500));
    }
    ended(child)?.ok();
    Ok(peak)
}

#[cfg(target_os = "linux")]
#[test]
fn a_dry_run_predicts_the_memory() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let mut random = Random(5);
    let block: Vec<u8> = (0..8 << 20).flat_map(|_| (random.uniform() as f32 - 0.5).to_le_bytes()).collect();
    for name in ["a", "b", "c"] {
        let (byte, block) = (name.as_bytes()[0], &block);
        let numbers: Vec<u8> = block.iter().map(|bits| bits ^ (byte & 3)).collect();
        Model::new().raw("w", DType::F32, &[8 << 10, 1 << 10], numbers).write(path.join(format!("{name}.st")))?;
    }
    for (method, memory) in [
        ("linear --weights 0.5,0.5", ""),
        ("ties -p density=0.3 --base c.st", ""),
        ("ties -p density=0.3 --base c.st", "--memory 32M"),
        ("della -p density=0.5 --base c.st", ""),
        ("breadcrumbs -p density=0.5 --base c.st", "--memory 32M"),
    ] {
        let command = format!("merge a.st b.st --method {method} -o out.st -j 2 {memory}");
        let dry = run(path, &format!("{command} --dry-run --json")).ok().json();
        let predicted = dry["peak_memory"].as_u64().expect("it is predicted");
        let peak = peak_memory(path, &command)?;
        // A tensor of one model alone has 34 MB.
        assert!(predicted < 30_000_000, "{command}: {predicted} bytes predicted");
        assert!(peak > 500_000 && peak <= predicted, "{command}: {predicted} bytes predicted, {peak} used");
    }
    Ok(())
}

#[test]
fn empty_tensors_are_no_trouble_where_the_whole_model_is_measured() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for (seed, name) in (1..).zip(["a", "b"]) {
        let mut random = Random(seed);
        let values: Vec<f64> = (0..262_200).map(|_| random.uniform() - 0.5).collect();
        let model = Model::new().with("w", DType::F32, &[262_200], &values);
        model.with("none", DType::F32, &[0, 5], &[]).write(path.join(format!("{name}.st")))?;
    }
    run(path, "merge a.st --base b.st --method ties -p density=0.5 -p global=1 -o out.st").ok();
    assert_eq!(read(&path.join("out.st"))?.tensors["none"].shape, [0, 5]);
    Ok(())
}

#[test]
fn what_does_not_keep_to_the_memory_or_replaces_a_model_says_so() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for (name, x) in [("a", 1.0), ("b", 2.0)] {
        let values = vec![x; 4_000_000];
        Model::new().with("w", DType::F32, &[4_000_000], &values).write(path.join(format!("{name}.st")))?;
    }
    let ran = run(path, "merge a.st --base b.st --method della -p density=0.5 --memory 32M -o a.st").ok();
    assert!(ran.stderr.contains("more than the 32.0 MB of --memory"), "{}", ran.stderr);
    assert!(ran.stderr.contains("a.st is one of the models, and is replaced"), "{}", ran.stderr);
    let ran = run(path, "merge a.st b.st --weights 1,0 --memory 32M -o c.st").ok();
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_stop_does_not_wait_for_work_apart() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path().join("a.st");
    Model::new().f32("w", &[1.0, 2.0]).write(&path)?;
    let model = Checkpoint::open(&path)?;
    let view = model.get("w").ok_or("it is there")?;
    let method = ckptmerge::merge::method("linear")?;
    let terms = Terms::new(method.about(), "w", &[2], 1, false);
    let node = Node { method, terms, inputs: vec![Input::Tensor(view)] };
    let cancel = AtomicBool::new(false);
    let data = node.data(&Settings::default(), Control { progress: &|_| {}, cancel: &cancel })?;
    assert_eq!(data.apart(|| 7)?, 7);
    // Work that would never end by itself.
    let (release, released) = std::sync::mpsc::channel::<()>();
    cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = data.apart(move || released.recv().is_err());
    assert!(matches!(stopped, Err(Error::Interrupted)));
    drop(release);
    Ok(())
}
