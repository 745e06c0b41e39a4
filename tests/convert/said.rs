//! What a conversion says of its output, and what it does to make that true.

use super::{convert, open, tied};
use crate::model::{Model, Outcome, Random, fixture, names_in, read, run, write, write_shards};
use ckptmerge::Checkpoint;
use ckptmerge::dtype::DType;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::tempdir;

fn config(folder: &Path) -> Outcome<Value> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?)
}

/// A folder of two 8-bit matrices with scales, which its configuration tells of.
fn eight_bit(folder: &Path) -> Outcome {
    let matrix = |model: Model, name: &str| {
        let model = model.with(&format!("{name}.weight"), DType::F8E4M3, &[2, 4], &[1.0; 8]);
        model.f32(&format!("{name}.weight_scale"), &[0.5])
    };
    matrix(matrix(Model::new(), "a"), "b").f32("norm.weight", &[1.0]).write(folder.join("model.safetensors"))?;
    let text = json!({"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}, "vocab_size": 3});
    write(&folder.join("config.json"), text.to_string())
}

#[test]
fn a_configuration_says_nothing_of_scales_that_were_multiplied_in() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    eight_bit(&path.join("m"))?;
    let said = "config.json no longer has `quantization_config`";
    let ran = convert(path, "m whole --dtype bf16").ok();
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    assert_eq!(config(&path.join("whole"))?, json!({"torch_dtype": "bfloat16", "vocab_size": 3}));
    // What is 8 bits still, in whole or in part, still needs it.
    for options in ["copy", "part --dtype-for ^a.weight$=bf16"] {
        let ran = convert(path, &format!("m {options}")).ok();
        assert!(!ran.stderr.contains("quantization_config"), "{}", ran.stderr);
        let name = options.split(' ').next().unwrap_or_default();
        assert!(config(&path.join(name))?.get("quantization_config").is_some(), "{name}");
    }
    // A file has no configuration beside it.
    let ran = convert(path, "m one.safetensors --dtype bf16").ok();
    assert!(!ran.stderr.contains("quantization_config"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn what_is_not_quantized_is_counted_by_why() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = |seed: u64| {
        let numbers = Random(seed).values(64);
        let model =
            Model::new().with("w", DType::F32, &[2, 32], &numbers).with("odd", DType::BF16, &[2, 20], &[0.5; 40]);
        model.f32("bias", &numbers).with("norm", DType::F16, &[32], &[1.0; 32]).with("scale", DType::F16, &[], &[2.0])
    };
    model(1).write(path.join("a.st"))?;
    model(2).write(path.join("b.st"))?;
    let ran = convert(path, "a.st c.gguf --dtype q8_0").ok();
    let merged = run(path, "merge a.st b.st -o m.gguf --dtype q8_0 --no-sync").ok();
    for ran in [ran, merged] {
        for line in [
            "note: 1 tensor of fewer than two dimensions, such as norms and biases, stays F32 and not Q8_0: bias",
            "note: 2 tensors of fewer than two dimensions, such as norms and biases, become F32 and not Q8_0: ",
            "note: 1 tensor whose rows are no whole blocks of 32 elements becomes F32 and not Q8_0: odd",
        ] {
            assert!(ran.stderr.contains(line), "{line:?} is not in {}", ran.stderr);
        }
    }
    for file in ["c.gguf", "m.gguf"] {
        let tensors = open(&path.join(file))?.tensors;
        let types: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.dtype)).collect();
        let (whole, q8) = (DType::F32, DType::Q8_0);
        assert_eq!(types, [("bias", whole), ("norm", whole), ("odd", whole), ("scale", whole), ("w", q8)], "{file}");
    }
    let plain = convert(path, "a.st d.gguf --dtype f16").ok();
    assert!(!plain.stderr.contains("not Q8_0"), "{}", plain.stderr);
    Ok(())
}

#[test]
fn safetensors_say_whose_layout_they_have() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let said = |file: &str| Ok::<_, Box<dyn std::error::Error>>(read(&path.join(file))?.metadata.remove("format"));
    let pt = Some("pt".to_owned());
    Model::new().f32("w", &[1.0]).write(path.join("bare.st"))?;
    Model::new().f32("w", &[2.0]).text("note", "mine").write(path.join("noted.st"))?;
    Model::new().f32("w", &[2.0]).text("format", "mlx").write(path.join("mlx.st"))?;
    convert(path, "bare.st m.bin").ok();
    convert(path, "m.bin of-torch.safetensors").ok();
    assert_eq!(said("of-torch.safetensors")?, pt);
    convert(path, "m.bin named.safetensors --metadata format=flax").ok();
    assert_eq!(said("named.safetensors")?, Some("flax".to_owned()));
    // A copy says what its original says.
    for name in ["bare", "noted"] {
        convert(path, &format!("{name}.st {name}-copy.st")).ok();
        assert_eq!(
            read(&path.join(format!("{name}-copy.st")))?.metadata,
            read(&path.join(format!("{name}.st")))?.metadata
        );
    }
    // A merge adds text, after which transformers 4 wants to know.
    for (number, (models, expected)) in
        [("m.bin m.bin", &pt), ("m.bin noted.st", &pt), ("bare.st bare.st", &pt), ("bare.st mlx.st", &None)]
            .into_iter()
            .enumerate()
    {
        run(path, &format!("merge {models} -o {number}.st --no-sync")).ok();
        assert_eq!(&said(&format!("{number}.st"))?, expected, "{models}");
    }
    convert(path, "m.bin m.gguf").ok();
    assert!(!open(&path.join("m.gguf"))?.metadata.contains_key("format"));
    Ok(())
}

#[test]
fn ggufs_shards_find_each_other_and_a_container_is_called_one() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = (0..5).fold(Model::new(), |model, i| model.f32(&format!("w{i}"), &[f64::from(i); 100]));
    let model = model.text("general.architecture", "llama").text("general.alignment", "gguf:u32:64");
    model.write(path.join("m.st"))?;
    let ran = convert(path, "m.st out --to gguf --shard-size 800").ok();
    assert!(!ran.stderr.contains("container"), "{}", ran.stderr);
    let names = ["model-00001-of-00003.gguf", "model-00002-of-00003.gguf", "model-00003-of-00003.gguf"];
    assert_eq!(names_in(&path.join("out")), names);
    for (number, name) in names.into_iter().enumerate() {
        // By another name a part is a file of its own.
        std::fs::copy(path.join("out").join(name), path.join("part.gguf"))?;
        let metadata = open(&path.join("part.gguf"))?.metadata;
        let mut expected = vec![
            ("general.alignment", "gguf:u32:64".to_owned()),
            ("split.count", "gguf:u16:3".to_owned()),
            ("split.no", format!("gguf:u16:{number}")),
            ("split.tensors.count", "gguf:i32:5".to_owned()),
        ];
        if number == 0 {
            expected.insert(1, ("general.architecture", "llama".to_owned()));
        }
        let expected: Vec<(String, String)> = expected.into_iter().map(|(key, text)| (key.to_owned(), text)).collect();
        assert_eq!(metadata.into_iter().collect::<Vec<_>>(), expected, "{name}");
    }
    convert(path, "out whole.gguf").ok();
    let whole = open(&path.join("whole.gguf"))?;
    assert_eq!((whole.tensors.len(), whole.metadata.len()), (5, 2));
    // In folders that held shards, the new ones take their place.
    convert(path, "m.st out --to gguf --shard-size 1200").ok();
    assert_eq!(names_in(&path.join("out")), ["model-00001-of-00002.gguf", "model-00002-of-00002.gguf"]);

    Model::new().f32("w", &[1.0]).write(path.join("plain.st"))?;
    let ran = convert(path, "plain.st plain.gguf").ok();
    assert!(ran.stderr.contains("not a model for llama.cpp: it has no `general.architecture`"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn ties_are_told() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    tied().write(path.join("m.st"))?;
    for (target, how) in [("o.st", "tied and stored once"), ("o.gguf", "tied and stored again, as gguf ties nothing")] {
        let ran = convert(path, &format!("m.st {target}")).ok();
        assert!(ran.stderr.contains(&format!("note: {how}: 1 tensor (head = embed)")), "{}", ran.stderr);
    }
    assert_eq!(convert(path, "m.st o.st -q").ok().stderr, "");
    Ok(())
}

#[test]
fn rules_that_change_nothing_are_named() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("a.0.w", &[1.0]).f32("b.0.w", &[2.0]).write(path.join("m.st"))?;
    write(&path.join("rules"), "^a\\. -> c.\n^c\\.(\\d) -> d.${1}x\n^a\\. -> e.\nnowhere -> f")?;
    let ran = convert(path, "m.st o.st --rename rules").ok();
    for rule in [r"^a\.", "nowhere"] {
        let warning = format!("warning: --rename: no tensor's name matches `{rule}`");
        assert_eq!(ran.stderr.matches(&warning).count(), 1, "{}", ran.stderr);
    }
    assert!(!ran.stderr.contains(r"^c\."), "{}", ran.stderr);
    assert_eq!(read(&path.join("o.st"))?.names(), ["b.0.w", "d.0x.w"]);
    let help = convert(path, "--help").ok().stdout;
    assert!(help.contains("${1}") && help.contains("$1x"), "{help}");
    Ok(())
}

#[test]
fn types_that_have_no_place_come_with_those_that_have() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = Model::new().with("w", DType::F8E4M3, &[2], &[1.0, 2.0]);
    model.write(path.join("f8.st"))?;
    Model::new().raw("mask", DType::Bool, &[2], vec![0, 1]).write(path.join("mask.st"))?;
    convert(path, "f8.st o.gguf").fails(1, &["`w`", "F8_E4M3", "--dtype: f16, bf16, f32, f64, q4_0"]);
    convert(path, "f8.st o.npz").fails(1, &["--dtype: f16, bf16, f32, f64"]);
    convert(path, "mask.st o.gguf").fails(1, &["`mask`", "BOOL", "leave it out with --exclude"]);
    convert(path, "f8.st o.st --dtype fp8").fails(2, &["no type `fp8`", "there are f8_e5m2, f8_e4m3"]);
    convert(path, "f8.st o.st --dtype q4").fails(2, &["there are q4_0, q4_1, q4_k"]);
    let ran = convert(path, "f8.st o.st --dtype int8").fails(2, &["cannot be converted to I8, but to f8_e5m2"]);
    assert!(!ran.stderr.contains("fit together"), "{}", ran.stderr);
    let ran = convert(path, "f8.st o.st --dtype-for w=i8").fails(1, &["the model cannot be converted so:", "`w`"]);
    assert!(!ran.stderr.contains("fit together"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn endings_and_losses_are_told() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("w", &[1.0, 2.5]).write(path.join("m.st"))?;
    let ran = convert(path, "m.st o.weights").ok();
    assert!(ran.stderr.contains("`.weights` is the ending of no format, so this is safetensors"), "{}", ran.stderr);
    assert!(ran.stderr.contains(".gguf"), "{}", ran.stderr);
    for quiet in ["m.st o.safetensors", "m.st plain", "m.st o.weights --to safetensors", "m.st m.st --dtype f64"] {
        assert_eq!(convert(path, quiet).ok().stderr, "", "{quiet}");
    }
    let ran = convert(path, "m.st m.st --dtype f16").ok();
    assert!(ran.stderr.contains("m.st is the model itself: 1 tensor of it"), "{}", ran.stderr);
    write_shards(&path.join("hf"), "model", &[Model::new().f32("a", &[1.0]), Model::new().f32("b", &[1.0])])?;
    let ran = convert(path, "hf hf --dtype bf16").ok();
    assert!(ran.stderr.contains("hf is the model itself: 2 tensors of it"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn a_moving_average_under_flattened_names_takes_the_weights_place() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = Model::new()
        .f32("model.diffusion_model.input_blocks.0.0.weight", &[1.0])
        .f32("model.diffusion_model.out.2.bias", &[2.0])
        .f32("first_stage_model.w", &[3.0])
        .f32("model_ema.decay", &[0.9])
        .f32("model_ema.num_updates", &[7.0])
        .f32("model_ema.diffusion_modelinput_blocks00weight", &[10.0])
        .f32("model_ema.diffusion_modelout2bias", &[20.0]);
    model.write(path.join("m.st"))?;
    convert(path, "m.st m.ckpt").ok();
    for file in ["m.st", "m.ckpt"] {
        let ran = convert(path, &format!("{file} ema.st --select ema")).ok();
        assert!(
            ran.stderr.contains(
                "the weights of the model are their moving averages, `model_ema.…` (2 tensors, and 1 others as saved)"
            ),
            "{}",
            ran.stderr
        );
        let out = read(&path.join("ema.st"))?;
        let values: Vec<_> = out.names().iter().map(|name| (*name, out.values(name)[0])).collect();
        let expected = [
            ("first_stage_model.w", 3.0),
            ("model.diffusion_model.input_blocks.0.0.weight", 10.0),
            ("model.diffusion_model.out.2.bias", 20.0),
        ];
        assert_eq!(values, expected, "{file}");
    }
    let odd =
        |name: &str, shape: &[f64]| Model::new().f32("model.a.b", &[1.0]).f32(name, shape).write(path.join("odd.st"));
    odd("model_ema.ac", &[1.0])?;
    convert(path, "odd.st o.st --select ema").fails(1, &["`model_ema.ac`", "of no weight there is"]);
    odd("model_ema.ab", &[1.0, 2.0])?;
    convert(path, "odd.st o.st --select ema").fails(1, &["`model_ema.ab`", "another shape"]);
    Ok(())
}

#[test]
fn a_set_below_others_is_listed_and_can_be_selected() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let training = fixture("pytorch/training.pt");
    let training = training.display();
    let ran = convert(path, &format!("{training} o.st --select stat"));
    ran.fails(2, &["`stat` is in these, which can be selected: optimizer.state, state_dict"]);
    convert(path, &format!("{training} o.st --select optimizer.state.0")).ok();
    let whole = Checkpoint::open_with(
        fixture("pytorch/training.pt"),
        &ckptmerge::OpenOptions { select: Some("optimizer".to_owned()), ..Default::default() },
    )?;
    let below: Vec<&str> = whole.tensors().iter().filter_map(|tensor| tensor.name.strip_prefix("state.0.")).collect();
    assert!(!below.is_empty());
    assert_eq!(read(&path.join("o.st"))?.names().len(), below.len());
    Ok(())
}
