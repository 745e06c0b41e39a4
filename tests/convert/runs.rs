//! Conversions that differ in how they run and not in what they make: threads, maps and reads, outputs that are inputs,
//! runs that fail or are killed.

use super::{convert, open};
use crate::model::{Model, Outcome, Ran, Random, Tensor, binary, encode, fixture, names_in, read};
use ckptmerge::dtype::DType;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tempfile::tempdir;

/// The tensors of `fixtures/convert/strided.ckpt`, which count up from 0 whatever their strides are.
fn strided() -> BTreeMap<String, Tensor> {
    let count = |dtype, shape: &[u64], number: fn(u64) -> u64| {
        let elements = 0..shape.iter().product();
        let bytes = elements.flat_map(|i| encode(dtype, number(i) as f64)).collect();
        Tensor { dtype, shape: shape.to_vec(), bytes }
    };
    let rows: [(&str, Tensor); 6] = [
        ("transposed", count(DType::F32, &[7, 5], |i| i)),
        ("sliced", count(DType::F32, &[6, 4], |i| i)),
        ("expanded", count(DType::F32, &[3, 4], |i| i / 4)),
        ("channels_last", count(DType::F32, &[2, 3, 4, 5], |i| i)),
        ("half", count(DType::F16, &[9, 4], |i| i)),
        ("ids", count(DType::I64, &[6, 2], |i| i)),
    ];
    rows.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

#[test]
fn strided_tensors_are_converted_whatever_the_way() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let input = fixture("convert/strided.ckpt");
    for options in ["", "--io mmap", "--io pread", "--memory 64M", "--io pread -j 1", "--memory 32M -j 3"] {
        for target in ["o.safetensors", "o.pt", "o.npz", "o.gguf"] {
            convert(path, &format!("{} {target} {options}", input.display())).ok();
            assert_eq!(open(&path.join(target))?.tensors, strided(), "{target} {options}");
        }
        convert(path, &format!("{} d.safetensors --dtype bf16 {options}", input.display())).ok();
        let out = read(&path.join("d.safetensors"))?;
        for (name, tensor) in strided().iter().filter(|(name, _)| *name != "ids") {
            assert_eq!((out.tensors[name].dtype, out.values(name)), (DType::BF16, tensor.values()), "{options}");
        }
        assert_eq!(out.tensors["ids"], strided()["ids"]);
    }
    Ok(())
}

/// A model of several units of work in each of its tensors.
fn large() -> Model {
    let mut random = Random(6);
    let bytes = |random: &mut Random, count: usize| -> Vec<u8> {
        (0..count / 4).flat_map(|_| ((random.uniform() * 3.0) as f32).to_le_bytes()).collect()
    };
    Model::new()
        .raw("a", DType::F32, &[600, 512], bytes(&mut random, 600 * 512 * 4))
        .raw("b", DType::F32, &[300, 256], bytes(&mut random, 300 * 256 * 4))
        .raw("c", DType::F32, &[333], bytes(&mut random, 333 * 4))
        .with("ids", DType::I64, &[3], &[1.0, 2.0, 3.0])
        .unaligned()
}

#[test]
fn neither_threads_nor_reading_change_a_byte() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    large().write(path.join("m.st"))?;
    convert(path, "m.st m.gguf --dtype q8_0").ok();
    for command in [
        "m.st o.pt",
        "m.st o.npz --dtype f16",
        "m.st o.gguf --dtype q8_0 --dtype-for ^b$=q4_k",
        "m.gguf o.safetensors --dtype bf16",
        "m.gguf o.pt --dtype f32",
    ] {
        let out = path.join(command.split(' ').nth(1).ok_or("a command has an output")?);
        convert(path, &format!("{command} -j 1 --io mmap")).ok();
        let first = std::fs::read(&out)?;
        for options in ["-j 2 --io mmap", "-j 2 --io pread", "-j 3 --memory 32M"] {
            convert(path, &format!("{command} {options}")).ok();
            assert!(std::fs::read(&out)? == first, "{command} {options}");
        }
    }
    Ok(())
}

#[test]
fn the_output_may_be_the_input() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    large().write(path.join("m.st"))?;
    for (file, options) in [("m.st", "--dtype bf16"), ("m.gguf", "--dtype q8_0"), ("m.pt", "--dtype f16")] {
        if file != "m.st" {
            large().write(path.join("source.st"))?;
            convert(path, &format!("source.st {file}")).ok();
        }
        let other = format!("other.{}", file.split('.').nth(1).unwrap_or_default());
        convert(path, &format!("{file} {other} {options}")).ok();
        convert(path, &format!("{file} {file} {options}")).ok();
        assert!(std::fs::read(path.join(file))? == std::fs::read(path.join(other))?, "{file}");
    }
    // A map of the very file that is replaced, gathered from.
    std::fs::copy(fixture("convert/strided.ckpt"), path.join("s.ckpt"))?;
    convert(path, "s.ckpt s.ckpt").ok();
    assert_eq!(open(&path.join("s.ckpt"))?.tensors, strided());
    Ok(())
}

#[test]
fn what_fails_leaves_the_old_file() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    large().write(path.join("m.st"))?;
    std::fs::write(path.join("o.pt"), "old")?;
    let fails = |input: &Path, says: &[&str]| convert(path, &format!("{} o.pt", input.display())).fails(1, says);
    fails(&fixture("numpy/objects.npz"), &["objects.npz", "tensor `a`: its elements are Python objects"]);
    fails(&fixture("numpy/deflate-broken.npz"), &["deflate-broken.npz", "cannot be decompressed"]);
    fails(&fixture("pytorch/system.pt"), &["system.pt", "posix.system"]);
    fails(&fixture("pytorch/ambiguous.pt"), &["--select: generator, discriminator"]);
    fails(&fixture("gguf/files/types.gguf"), &["o.pt", "has no place for elements of type"]);
    let limited = format!("ulimit -f 100; exec {} convert m.st o.pt", env!("CARGO_BIN_EXE_ckptmerge"));
    Ran::from(Command::new("sh").args(["-c", &limited]).current_dir(path).output()?).fails(1, &["o.pt"]);
    assert_eq!(names_in(path), ["m.st", "o.pt"]);
    assert_eq!(std::fs::read(path.join("o.pt"))?, b"old");
    Ok(())
}

#[test]
fn a_killed_conversion_leaves_the_old_file_or_the_new_one() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let block: Vec<u8> = (0..500_000).flat_map(|i| (i as f32 + 1.0).to_le_bytes()).collect();
    let model = (0..12).fold(Model::new(), |m, i| m.raw(&format!("w{i}"), DType::F32, &[500, 1000], block.clone()));
    model.write(path.join("m.st"))?;
    let start = std::time::Instant::now();
    convert(path, "m.st o.pt --dtype bf16").ok();
    let whole_run = start.elapsed();
    let new = std::fs::read(path.join("o.pt"))?;
    let mut old = 0;
    for kill in 0..6 {
        std::fs::write(path.join("o.pt"), "old")?;
        let arguments = ["convert", "--no-sync", "m.st", "o.pt", "--dtype", "bf16", "-q"];
        let mut child = binary().args(arguments).current_dir(path).spawn()?;
        std::thread::sleep(whole_run * kill / 6);
        child.kill()?;
        child.wait()?;
        let now = std::fs::read(path.join("o.pt"))?;
        assert!(now == b"old" || now == new, "kill {kill} left {} bytes that are neither", now.len());
        old += u32::from(now == b"old");
    }
    assert!(old > 0, "no run was killed in time");
    convert(path, "m.st o.pt --dtype bf16").ok();
    assert_eq!(names_in(path), ["m.st", "o.pt"]);
    assert!(std::fs::read(path.join("o.pt"))? == new);
    Ok(())
}
