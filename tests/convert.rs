//! Conversions by the binary: every format to every other, types, names, ties, shards, and what is refused.

mod runs;
mod said;
mod scales;

use crate::model::{
    Contents, Model, Outcome, Ran, Random, Tensor, encode, fixture, names_in, read, run, snapshot, write, write_shards,
};
use ckptmerge::checkpoint::FORMATS;
use ckptmerge::dtype::DType;
use ckptmerge::{Checkpoint, OpenOptions};
use ckptmerge_format::{Format, Kind};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tempfile::tempdir;

/// Formats that hold any number of tensors.
fn containers() -> Vec<&'static dyn Format> {
    let several: Vec<_> = FORMATS.iter().copied().filter(|format| format.id() != "npy").collect();
    assert!(several.len() >= 4);
    several
}

/// What is in a file of any format, by the host; NumPy's raw bytes are taken for BF16.
fn open(path: &Path) -> Outcome<Contents> {
    let model = Checkpoint::open_with(path, &OpenOptions { assume: Some(DType::BF16), ..OpenOptions::default() })?;
    let mut tensors = BTreeMap::new();
    for tensor in model.tensors() {
        let mut buffer = Vec::new();
        let bytes = model.view(tensor).read(0..tensor.bytes, &mut buffer)?.to_vec();
        tensors.insert(tensor.name.clone(), Tensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes });
    }
    Ok(Contents { tensors, metadata: model.metadata().clone() })
}

/// The format of a file, by its content.
fn format_of(path: &Path) -> Outcome<&'static str> {
    Ok(Checkpoint::open_with(path, &OpenOptions { assume: Some(DType::BF16), ..OpenOptions::default() })?.format())
}

/// Converts in `folder`; nobody waits for the disk.
fn convert(folder: &Path, arguments: &str) -> Ran {
    run(folder, &format!("convert --no-sync {arguments}"))
}

/// A tensor of random elements of each type that both formats have, in names such as models use.
fn of_every_type(formats: [&'static dyn Format; 2]) -> Model {
    let mut random = Random(3);
    let stored = |dtype: &DType| FORMATS[0].can_store(*dtype) && formats.iter().all(|format| format.can_store(*dtype));
    DType::all().filter(stored).fold(Model::new(), |model, dtype| {
        let length = dtype.size_of(24).expect("24 elements are whole bytes");
        let mask = if dtype == DType::Bool { 1 } else { 0xff };
        let bytes = (0..length).map(|_| random.next() as u8 & mask).collect();
        model.raw(&format!("blocks.0.{}.weight", dtype.name().to_lowercase()), dtype, &[2, 3, 4], bytes)
    })
}

#[test]
fn every_format_becomes_every_other() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let mut pairs = 0;
    for from in containers() {
        for to in containers() {
            let model = of_every_type([from, to]);
            let original = model.write(path.join("original.st"))?;
            let original = read(&original)?;
            assert!(original.tensors.len() >= 7, "{} and {} share {:?}", from.id(), to.id(), original.names());
            let (first, second) = (format!("1.{}", from.extensions()[0]), format!("2.{}", to.extensions()[0]));
            convert(path, &format!("original.st {first}")).ok();
            convert(path, &format!("{first} {second} --assume bf16")).ok();
            convert(path, &format!("{second} back.safetensors --assume bf16")).ok();
            for (file, format) in [(&first, from), (&second, to)] {
                assert_eq!(format_of(&path.join(file))?, format.id());
                assert_eq!(open(&path.join(file))?.tensors, original.tensors, "{file}");
            }
            assert_eq!(read(&path.join("back.safetensors"))?.tensors, original.tensors, "{first} → {second}");
            pairs += 1;
        }
    }
    assert!(pairs >= 16);
    Ok(())
}

#[test]
fn blocks_of_ggml_are_copied_and_nothing_else_holds_them() -> Outcome {
    let folder = tempdir()?;
    let types = fixture("gguf/files/types.gguf");
    convert(folder.path(), &format!("{} copy.gguf", types.display())).ok();
    let (old, new) = (open(&types)?, open(&folder.path().join("copy.gguf"))?);
    assert_eq!(old, new);
    assert!(old.tensors.values().filter(|tensor| tensor.dtype.kind() == Kind::Quantized).count() > 15);
    for other in ["o.safetensors", "o.pt", "o.npz"] {
        let ran = convert(folder.path(), &format!("{} {other}", types.display()));
        ran.fails(1, &[other, "tensor `blocks.", "has no place for elements of type", "--dtype"]);
    }
    assert_eq!(names_in(folder.path()), ["copy.gguf"]);
    Ok(())
}

#[test]
fn the_other_byte_order_and_scalars_and_empty_tensors_are_converted() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for (file, name) in [("pytorch/big-endian.pt", "a"), ("numpy/f4-big-endian.npy", "array")] {
        let file = fixture(file);
        for target in ["b.safetensors", "b.pt", "b.npz", "b.gguf"] {
            convert(path, &format!("{} {target} --include ^{name}$", file.display())).ok();
            assert_eq!(open(&path.join(target))?.tensors[name], open(&file)?.tensors[name], "{target}");
        }
    }
    let model = Model::new().with("s", DType::F32, &[], &[2.5]).with("e", DType::F16, &[3, 0], &[]);
    let original = read(&model.write(path.join("m.st"))?)?;
    for target in ["m.pt", "m.npz", "m.gguf"] {
        convert(path, &format!("m.st {target}")).ok();
        convert(path, &format!("{target} back.st --dtype f64")).ok();
        let back = read(&path.join("back.st"))?;
        assert_eq!(back.values("s"), [2.5]);
        // ggml has no scalars.
        let scalar: &[u64] = if target == "m.gguf" { &[1] } else { &[] };
        assert_eq!((&back.tensors["s"].shape[..], &back.tensors["e"].shape[..]), (scalar, &[3, 0][..]), "{target}");
        assert_eq!(open(&path.join(target))?.tensors["e"], original.tensors["e"]);
    }
    Ok(())
}

#[test]
fn one_array_is_a_file_and_two_are_not() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().with("w", DType::F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0]).f32("b", &[1.0]).write(path.join("m.st"))?;
    convert(path, "m.st w.npy --include ^w$").ok();
    assert_eq!(open(&path.join("w.npy"))?.values("array"), [1.0, 2.0, 3.0, 4.0]);
    convert(path, "m.st two.npy").fails(1, &["two.npy", "exactly one tensor"]);
    assert!(!path.join("two.npy").exists());
    Ok(())
}

#[test]
fn metadata_survives() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let values = open(&fixture("gguf/files/values.gguf"))?.metadata;
    assert!(values.len() > 20);
    // A file with all kinds of values and a tensor.
    let model = values.iter().fold(Model::new().f32("w", &[1.0, 2.0]), |model, (key, value)| model.text(key, value));
    model.write(path.join("m.st"))?;
    convert(path, "m.st a.gguf").ok();
    convert(path, "a.gguf b.gguf").ok();
    convert(path, "b.gguf back.st").ok();
    for file in ["a.gguf", "b.gguf", "back.st"] {
        assert_eq!(open(&path.join(file))?.metadata, values, "{file}");
    }
    assert!(std::fs::read(path.join("a.gguf"))? == std::fs::read(path.join("b.gguf"))?);

    let text = [("format", "pt"), ("modelspec.title", "größe \n\"x\""), ("", "empty key")];
    let model = text.iter().fold(Model::new().f32("w", &[1.0]), |model, (key, value)| model.text(key, value));
    model.write(path.join("t.st"))?;
    convert(path, "t.st u.st").ok();
    let expected: BTreeMap<String, String> = text.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(read(&path.join("u.st"))?.metadata, expected);
    convert(path, "t.st u.npz").ok();
    assert_eq!(open(&path.join("u.npz"))?.metadata, expected);

    convert(path, "t.st v.st --metadata format=np --metadata note=a=b").ok();
    let changed = read(&path.join("v.st"))?.metadata;
    assert_eq!((changed["format"].as_str(), changed["note"].as_str(), changed.len()), ("np", "a=b", 4));
    convert(path, "t.st w.st --metadata novalue").fails(2, &["key=value"]);
    Ok(())
}

/// Two names for one tensor, and a tensor beside.
fn tied() -> Model {
    Model::new()
        .with("embed", DType::F32, &[2, 32], &Random(1).values(64))
        .f32("norm", &[1.0, 2.0])
        .text("head", "embed")
}

#[test]
fn ties_stay_or_become_copies() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    tied().write(path.join("m.st"))?;
    convert(path, "m.st again.safetensors").ok();
    let again = read(&path.join("again.safetensors"))?;
    assert_eq!((again.names(), again.metadata["head"].as_str()), (vec!["embed", "norm"], "embed"));
    for target in ["m.pt", "m.npz", "m.gguf"] {
        convert(path, &format!("m.st {target}")).ok();
        let copy = open(&path.join(target))?;
        assert_eq!(copy.names(), ["embed", "head", "norm"]);
        assert_eq!(copy.tensors["head"], again.tensors["embed"], "{target}");
        assert!(copy.metadata.is_empty(), "the tie is no text: {:?}", copy.metadata);
        let model = Checkpoint::open(path.join(target))?;
        let tie = model.get("head").and_then(|head| head.tensor.alias_of.as_deref());
        let can_tie = ckptmerge::checkpoint::format(model.format())?.can_tie();
        assert_eq!(tie, can_tie.then_some("embed"), "{target}");
    }
    convert(path, &format!("{} torch.safetensors", fixture("pytorch/tied.pt").display())).ok();
    let text = [("head", "embed"), ("format", "pt")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(read(&path.join("torch.safetensors"))?.metadata, text.into());

    // Of another type, still one tensor; with the target gone, a tensor of its own.
    convert(path, "m.st half.st --dtype f16").ok();
    let half = read(&path.join("half.st"))?;
    assert_eq!((half.tensors["embed"].dtype, half.metadata["head"].as_str()), (DType::F16, "embed"));
    convert(path, "m.st alone.st --exclude embed --dtype f16").ok();
    let alone = read(&path.join("alone.st"))?;
    assert_eq!((&alone.tensors["head"], alone.metadata.len()), (&half.tensors["embed"], 0));
    // Of two types, two tensors.
    convert(path, "m.st two.st --dtype-for head=bf16").ok();
    let two = read(&path.join("two.st"))?;
    assert_eq!(two.tensors["embed"], again.tensors["embed"]);
    assert_eq!((two.tensors["head"].dtype, two.metadata.len()), (DType::BF16, 0));
    Ok(())
}

#[test]
fn a_tie_that_is_cut_is_converted_as_what_it_was_tied_to() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let vector = Model::new().f32("embed", &Random(1).values(40)).with("w", DType::F32, &[1, 32], &[0.5; 32]);
    vector.text("head", "embed").write(path.join("v.st"))?;
    // One dimension, so not quantized.
    convert(path, "v.st v.gguf --exclude embed --dtype q8_0").ok();
    let head = &open(&path.join("v.gguf"))?.tensors["head"];
    assert_eq!((head.dtype, &head.bytes), (DType::F32, &read(&path.join("v.st"))?.tensors["embed"].bytes));
    Ok(())
}

#[test]
fn a_tie_between_integers_does_not_become_numbers() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().with("ids", DType::I64, &[2], &[1.0, 2.0]).text("more", "ids").write(path.join("i.st"))?;
    convert(path, "i.st o.st --dtype-for more=f32").fails(1, &["`more`", "is I64 and cannot become F32"]);
    Ok(())
}

#[test]
fn numbers_change_their_type_and_integers_do_not() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let mut random = Random(4);
    // Any bits at all, then numbers halfway between two halves, and their neighbours.
    let mut numbers: Vec<f64> = (0..500).map(|_| f64::from(f32::from_bits(random.next() as u32))).collect();
    numbers.retain(|number| !number.is_nan());
    for _ in 0..300 {
        let tie = f32::from_bits((random.next() as u32 & 0x8fff_e000) + 0x3800_1000);
        numbers.extend([tie, tie.next_up(), tie.next_down()].map(f64::from));
        let tie = f32::from_bits((random.next() as u32 & 0xbfff_0000) | 0x8000);
        numbers.extend([tie, tie.next_up(), tie.next_down()].map(f64::from));
    }
    numbers.extend([65504.0, 65519.99, 65520.0, 1e-8, 5.96e-8, 2.98e-8, -0.0]);
    let count = numbers.len() as u64;
    let model = Model::new()
        .with("w", DType::F32, &[count], &numbers)
        .with("ids", DType::I64, &[3], &[1.0, -7.0, 1e15])
        .with("mask", DType::Bool, &[2], &[0.0, 1.0])
        .with("codes", DType::U8, &[2], &[0.0, 255.0]);
    let original = read(&model.write(path.join("m.st"))?)?;
    for (name, dtype) in [("f16", DType::F16), ("bf16", DType::BF16), ("float64", DType::F64)] {
        convert(path, &format!("m.st {name}.ckpt --dtype {name}")).ok();
        let out = open(&path.join(format!("{name}.ckpt")))?;
        for same in ["ids", "mask", "codes"] {
            assert_eq!(out.tensors[same], original.tensors[same]);
        }
        let expected: Vec<u8> = original.values("w").iter().flat_map(|number| encode(dtype, *number)).collect();
        assert!(out.tensors["w"].dtype == dtype && out.tensors["w"].bytes == expected, "{name}");
    }
    // Back to what holds more changes nothing more.
    convert(path, "f16.ckpt wide.st --dtype f32").ok();
    assert_eq!(read(&path.join("wide.st"))?.values("w"), open(&path.join("f16.ckpt"))?.values("w"));
    convert(path, "m.st x.st --dtype i64").fails(2, &["numbers cannot be converted to I64", "bf16"]);
    convert(path, "m.st x.st --dtype-for w=i64").fails(1, &["`w`", "is F32 and cannot become I64"]);
    convert(path, "m.st x.st --dtype float17").fails(2, &["float17"]);
    Ok(())
}

#[test]
fn the_first_type_whose_pattern_matches_counts() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = ["norm.weight", "head.weight", "other"].iter().fold(Model::new(), |m, name| m.f32(name, &[1.5]));
    model.with("ids", DType::I64, &[1], &[3.0]).write(path.join("m.st"))?;
    convert(path, r"m.st o.st --dtype bf16 --dtype-for ^norm=f32 --dtype-for weight$=f16 --dtype-for ^norm=f64").ok();
    let out = read(&path.join("o.st"))?;
    let types: Vec<_> = ["norm.weight", "head.weight", "other", "ids"].map(|n| out.tensors[n].dtype).into();
    assert_eq!(types, [DType::F32, DType::F16, DType::BF16, DType::I64]);
    convert(path, "m.st o.st --dtype-for ids=f32").fails(1, &["`ids`", "only real numbers change their type"]);
    convert(path, "m.st o.st --dtype-for (=f32").fails(2, &["--dtype-for"]);
    convert(path, "m.st o.st --dtype-for ids").fails(2, &["REGEX=DTYPE"]);
    Ok(())
}

#[test]
fn tensors_are_kept_by_name() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = ["a.w", "a.b", "b.w", "c"].iter().fold(Model::new(), |model, name| model.f32(name, &[1.0]));
    model.write(path.join("m.st"))?;
    for (options, expected) in [
        ("--include ^a", &["a.b", "a.w"][..]),
        ("--include ^a --include ^c$", &["a.b", "a.w", "c"]),
        ("--exclude w$", &["a.b", "c"]),
        ("--include ^[ab] --exclude ^a.b --exclude ^b", &["a.w"]),
    ] {
        let ran = convert(path, &format!("m.st o.st {options} --json")).ok().json();
        assert_eq!(read(&path.join("o.st"))?.names(), expected, "{options}");
        assert_eq!(ran["tensors"], json!(expected.len()));
        assert_eq!(ran["left_out"].as_array().map(Vec::len), Some(4 - expected.len()), "{ran}");
    }
    std::fs::remove_file(path.join("o.st"))?;
    convert(path, "m.st o.st --include nothing").fails(2, &["--include", "`nothing`"]);
    convert(path, "m.st o.st --exclude .").fails(2, &["nothing is left to write"]);
    assert!(!path.join("o.st").exists());
    Ok(())
}

#[test]
fn names_change_by_rules() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = Model::new().f32("model.layers.0.w", &[1.0]).f32("model.layers.11.w", &[2.0]).f32("embed", &[3.0]);
    model.text("head", "embed").write(path.join("m.st"))?;
    let rules = |text: &str| write(&path.join("rules"), text);
    rules("# in their order\n\n^model\\. -> \nlayers\\.(\\d+) -> blk.$1\nblk.11->blk.eleven\n^embed$ -> token_embd\n")?;
    convert(path, "m.st o.st --rename rules").ok();
    let out = read(&path.join("o.st"))?;
    assert_eq!(out.names(), ["blk.0.w", "blk.eleven.w", "token_embd"]);
    assert_eq!((out.values("blk.eleven.w"), out.metadata["head"].as_str()), (vec![2.0], "token_embd"));
    convert(path, "m.st o.pt --rename rules").ok();
    assert_eq!(open(&path.join("o.pt"))?.values("head"), [3.0]);

    let before = snapshot(path);
    rules("\\d+ -> N")?;
    let collision = convert(path, "m.st o.st --rename rules");
    collision.fails(1, &["`model.layers.11.w`", "`model.layers.0.w`", "would both be called `model.layers.N.w`"]);
    rules("embed -> head")?;
    convert(path, "m.st o.st --rename rules").fails(1, &["would both be called `head`"]);
    rules("fine -> fine\nno arrow")?;
    convert(path, "m.st o.st --rename rules").fails(2, &["rules:2", "REGEX -> REPLACEMENT"]);
    rules("\n( -> x")?;
    convert(path, "m.st o.st --rename rules").fails(2, &["rules:2"]);
    convert(path, "m.st o.st --rename none").fails(2, &["no name map or file of rules `none`", "diffusers-to-sd"]);
    assert_eq!(snapshot(path)["o.st"], before["o.st"]);
    Ok(())
}

#[test]
fn a_set_of_a_training_checkpoint_is_taken_out() -> Outcome {
    let folder = tempdir()?;
    let training = fixture("pytorch/training.pt");
    let expected = |select: &str| -> Outcome<Contents> {
        let options = OpenOptions { select: Some(select.to_owned()), ..OpenOptions::default() };
        let model = Checkpoint::open_with(&training, &options)?;
        let names: Vec<_> = model.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert!(select == "optimizer" || names == ["weight", "bias"], "{names:?}");
        convert(folder.path(), &format!("{} o.safetensors --select {select}", training.display())).ok();
        read(&folder.path().join("o.safetensors"))
    };
    let (weights, ema) = (expected("state_dict")?, expected("ema")?);
    assert_ne!(weights, ema);
    convert(folder.path(), &format!("{} default.safetensors", training.display())).ok();
    assert_eq!(read(&folder.path().join("default.safetensors"))?, weights);
    let ran = convert(folder.path(), &format!("{} o.safetensors --select emma", training.display()));
    ran.fails(2, &["emma", "ema"]);
    assert_eq!(read(&folder.path().join("o.safetensors"))?, ema);
    Ok(())
}

#[test]
fn the_format_is_the_one_asked_for() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("w", &[1.0]).write(path.join("m.st"))?;
    let targets =
        [("x.bin --to safetensors", "safetensors"), ("y.safetensors --to pytorch", "pytorch"), ("z", "safetensors")];
    for (target, format) in targets {
        convert(path, &format!("m.st {target}")).ok();
        let file = path.join(target.split(' ').next().unwrap_or_default());
        assert_eq!(format_of(&file)?, format, "{target}");
    }
    for (ending, format) in [("PT", "pytorch"), ("ckpt", "pytorch"), ("npz", "npz"), ("GGUF", "gguf")] {
        convert(path, &format!("m.st by.{ending}")).ok();
        assert_eq!(format_of(&path.join(format!("by.{ending}")))?, format);
    }
    convert(path, "m.st q --to pytorhc").fails(2, &["pytorhc", "pytorch"]);
    Ok(())
}

#[test]
fn the_input_is_of_the_format_that_it_is_said_to_be() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("w", &[1.0]).write(path.join("m.st"))?;
    convert(path, "m.st o.st --from safetensors").ok();
    assert_eq!(read(&path.join("o.st"))?.values("w"), [1.0]);
    convert(path, "m.st p.st --from pytorch").fails(1, &["m.st: is in the format safetensors, not pytorch"]);
    convert(path, "m.st p.st --from safetensor").fails(2, &["safetensor", "nearest is `safetensors`"]);
    // A pickle without a header, of a protocol that no first byte tells.
    let bare = b"(dp0\n.";
    write(&path.join("bare.pkl"), bare)?;
    convert(path, "bare.pkl p.st").fails(1, &["bare.pkl: its content is of no known format"]);
    convert(path, "bare.pkl p.st --from pytorch").fails(1, &["bare.pkl"]);
    write(&path.join("text"), "no model")?;
    for format in FORMATS {
        let ran = convert(path, &format!("text p.st --from {}", format.id()));
        assert!(!ran.fails(1, &["text"]).stderr.contains("no known format"), "{}", format.id());
    }
    assert!(!path.join("p.st").exists());
    Ok(())
}

/// The weight map and the total of an index.
fn index(path: &Path) -> Outcome<(BTreeMap<String, String>, u64)> {
    let value: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let total = value["metadata"]["total_size"].as_u64().ok_or("no total")?;
    Ok((serde_json::from_value(value["weight_map"].clone())?, total))
}

#[test]
fn shards_have_the_names_that_libraries_look_for() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = (0..5).fold(Model::new(), |model, i| model.f32(&format!("w{i}"), &[f64::from(i); 100]));
    let original = read(&model.text("tied", "w3").write(path.join("m.st"))?)?;
    for (format, stem, ending) in [("safetensors", "model", "safetensors"), ("pytorch", "pytorch_model", "bin")] {
        convert(path, &format!("m.st {format} --to {format} --shard-size 800")).ok();
        let out = path.join(format);
        let ties = ckptmerge::checkpoint::format(format)?.can_tie();
        let count = 3;
        let mut names: Vec<String> = (1..=count).map(|n| format!("{stem}-{n:05}-of-{count:05}.{ending}")).collect();
        names.push(format!("{stem}.{ending}.index.json"));
        names.sort();
        assert_eq!(names_in(&out), names);
        let (map, total) = index(&out.join(format!("{stem}.{ending}.index.json")))?;
        assert_eq!((map.len(), total), (6, if ties { 2000 } else { 2400 }));
        for (tensor, file) in &map {
            let name = if ties && tensor == "tied" { "w3" } else { tensor };
            assert!(open(&out.join(file))?.tensors.contains_key(name), "{tensor} is not in {file}");
        }
        let whole = open(&out)?;
        assert_eq!(whole.tensors.len(), 6);
        for (name, tensor) in &original.tensors {
            assert_eq!(&whole.tensors[name], tensor);
        }
        assert_eq!(whole.tensors["tied"], original.tensors["w3"]);
        // And together again.
        convert(path, &format!("{format} {format}.st")).ok();
        assert_eq!(open(&path.join(format!("{format}.st")))?.tensors, whole.tensors);
    }
    convert(path, "m.st one --to pytorch --shard-size 1MB").ok();
    assert_eq!(names_in(&path.join("one")), ["pytorch_model.bin"]);
    convert(path, "m.st no.pt --shard-size 800").fails(1, &["no.pt", "without an ending"]);
    Ok(())
}

#[test]
fn shards_of_any_format_can_be_read_again() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = (0..5).fold(Model::new(), |model, i| model.f32(&format!("w{i}"), &[f64::from(i); 100]));
    let original = read(&model.write(path.join("m.st"))?)?;
    for format in containers() {
        let id = format.id();
        convert(path, &format!("m.st {id} --to {id} --shard-size 800")).ok();
        let shards_and_index = 3 + usize::from(!format.numbers_shards());
        assert_eq!(names_in(&path.join(id)).len(), shards_and_index, "{id}");
        assert_eq!(open(&path.join(id))?.tensors, original.tensors, "{id}");
    }
    Ok(())
}

#[test]
fn folders_keep_what_is_beside_the_weights() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let tensor = |name: &str| Model::new().f32(name, &[1.0, 2.0]);
    write_shards(&path.join("hf"), "model", &[tensor("a"), tensor("b")])?;
    write(&path.join("hf/config.json"), r#"{"torch_dtype": "float32", "n": 2}"#)?;
    write(&path.join("hf/tokenizer.json"), "{}")?;
    convert(path, "hf out --to pytorch --dtype bf16").ok();
    assert_eq!(names_in(&path.join("out")), ["config.json", "pytorch_model.bin", "tokenizer.json"]);
    let config: Value = serde_json::from_slice(&std::fs::read(path.join("out/config.json"))?)?;
    assert_eq!(config, json!({"torch_dtype": "bfloat16", "n": 2}));
    assert_eq!(open(&path.join("out"))?.values("b"), [1.0, 2.0]);
    convert(path, "hf one.safetensors").ok();
    assert_eq!(read(&path.join("one.safetensors"))?.names(), ["a", "b"]);

    let components = json!({"_class_name": "P", "unet": ["diffusers", "U"], "text_encoder": ["transformers", "T"]});
    write(&path.join("sd/model_index.json"), components.to_string())?;
    write(&path.join("sd/unet/config.json"), "{}")?;
    tensor("conv.w").write(path.join("sd/unet/diffusion_pytorch_model.safetensors"))?;
    tensor("conv.w").write(path.join("sd/text_encoder/model.safetensors"))?;
    write(&path.join("rules"), "^conv -> c\nunet -> broken")?;
    convert(path, "sd sd2 --to pytorch --dtype f16 --rename rules").ok();
    let files: BTreeSet<String> = snapshot(&path.join("sd2")).into_keys().collect();
    let expected =
        ["model_index.json", "text_encoder/pytorch_model.bin", "unet/config.json", "unet/diffusion_pytorch_model.bin"];
    assert_eq!(files, expected.map(str::to_owned).into());
    let again = open(&path.join("sd2"))?;
    assert_eq!(again.names(), ["text_encoder/c.w", "unet/c.w"]);
    assert_eq!(again.tensors["unet/c.w"].dtype, DType::F16);
    convert(path, "sd one.st").fails(1, &["one.st", "pipeline"]);
    Ok(())
}

#[test]
fn a_dry_run_tells_the_size_and_writes_nothing() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    tied().with("m", DType::F32, &[3, 64], &[1.0; 192]).text("k", "v").write(path.join("m.st"))?;
    for target in ["o.st", "o.pt", "o.npz", "o.gguf", "o.st --dtype bf16", "o.gguf --dtype q8_0", "o --shard-size 300"]
    {
        let predicted = convert(path, &format!("m.st {target} --json --dry-run")).ok().json();
        assert_eq!(names_in(path), ["m.st"], "a dry run wrote something");
        let done = convert(path, &format!("m.st {target} --json")).ok().json();
        assert_eq!((&predicted["written"], &done["written"]), (&json!(false), &json!(true)));
        let out = path.join(target.split(' ').next().unwrap_or_default());
        let files = if out.is_dir() { snapshot(&out) } else { [("o".to_owned(), std::fs::read(&out)?)].into() };
        let weights: Vec<_> = files.iter().filter(|(name, _)| !name.ends_with(".json")).collect();
        let bytes: usize = weights.iter().map(|(_, bytes)| bytes.len()).sum();
        for document in [&predicted, &done] {
            assert_eq!(document["bytes_written"], json!(bytes), "{target}");
            assert_eq!(document["files"], json!(weights.len()), "{target}");
        }
        if out.is_dir() { std::fs::remove_dir_all(&out)? } else { std::fs::remove_file(&out)? }
    }
    Ok(())
}

#[test]
fn a_merge_of_three_formats_is_that_of_three_safetensors() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for (seed, name) in [(1, "a"), (2, "b"), (3, "c")] {
        let values = Random(seed).values(64 * 33);
        let model = Model::new()
            .with("x.weight", DType::F16, &[33, 64], &values)
            .with("y", DType::BF16, &[32], &values[..32])
            .with("ids", DType::I64, &[2], &[1.0, 2.0]);
        model.write(path.join(format!("{name}.st")))?;
    }
    convert(path, "a.st a.ckpt").ok();
    convert(path, "c.st c.gguf --dtype-for weight=q8_0").ok();
    convert(path, "a.ckpt a.safetensors").ok();
    convert(path, "b.st b.safetensors").ok();
    convert(path, "c.gguf c.safetensors --dtype f32").ok();
    run(path, "merge a.ckpt b.st c.gguf --weights 0.5,0.3,0.2 --dtype f32 -o mixed.safetensors").ok();
    run(path, "merge a.safetensors b.safetensors c.safetensors --weights 0.5,0.3,0.2 --dtype f32 -o plain.st").ok();
    let (mixed, plain) = (read(&path.join("mixed.safetensors"))?, read(&path.join("plain.st"))?);
    assert_eq!(mixed.tensors, plain.tensors);
    assert_eq!(mixed.names(), ["ids", "x.weight", "y"]);
    Ok(())
}

#[test]
fn a_model_in_parts_becomes_one() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let parts = ["parts-00001-of-00002.gguf", "parts-00002-of-00002.gguf"];
    for part in parts {
        std::fs::copy(fixture("convert").join(part), path.join(part))?;
    }
    for part in parts {
        convert(path, &format!("{part} whole.gguf")).ok();
        let whole = open(&path.join("whole.gguf"))?;
        assert_eq!(whole.names(), ["blk.0.weight", "blk.1.weight", "blk.2.weight", "blk.3.weight"]);
        for (number, tensor) in whole.tensors.values().enumerate() {
            let expected: Vec<f64> = (0..128).map(|i| f64::from(i + 1000 * number as u32)).collect();
            assert_eq!((tensor.values(), &tensor.shape[..]), (expected, &[4, 32][..]));
        }
        assert_eq!(whole.metadata["test.block_count"], "gguf:u32:3");
        assert!(!whole.metadata.keys().any(|key| key.starts_with("split.")), "{:?}", whole.metadata);
    }
    convert(path, "parts-00001-of-00002.gguf whole.st").ok();
    assert_eq!(read(&path.join("whole.st"))?.tensors.len(), 4);
    std::fs::remove_file(path.join(parts[1]))?;
    convert(path, "parts-00001-of-00002.gguf o.st").fails(1, &[parts[0], parts[1], "is missing"]);
    Ok(())
}
