//! Models of several files, what lies beside them, tied tensors, and what the output says about itself.

use crate::merge::{merge, settings};
use crate::model::{Model, Outcome, binary, fixture, names_in, read, root, run, snapshot, write, write_shards};
use ckptmerge::dtype::DType;
use ckptmerge::recipe::{Models, Plan, Recipe, Target};
use ckptmerge::stream::Control;
use ckptmerge::{Bytes, Checkpoint, IoMode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn linear(weights: &[f64]) -> Recipe {
    Recipe::new("linear").expect("the method is there").weights(weights)
}

/// Merges with shards of at most `size` bytes of tensors.
fn merge_sharded(recipe: &Recipe, models: &[PathBuf], out: &Path, size: u64) -> ckptmerge::Result<()> {
    let models = Models::open(models, None, &IoMode::Auto.into())?;
    let plan = Plan::new(recipe, &models, &settings(), Control::none())?;
    let target = Target { path: out.to_owned(), shard_size: Some(Bytes(size)), format: None };
    plan.emit(&target, &settings(), Control::none()).map(drop)
}

/// A model whose output layer is the embedding, tied by the convention of `safetensors.torch.save_model`.
fn tied(value: f64) -> Model {
    Model::new()
        .with("embed.weight", DType::F32, &[2, 2], &[value, 2.0, 3.0, 4.0])
        .f32("norm", &[value])
        .text("format", "pt")
        .text("lm_head.weight", "embed.weight")
}

/// The same with a tensor of its own.
fn untied(value: f64) -> Model {
    Model::new()
        .with("embed.weight", DType::F32, &[2, 2], &[value, 2.0, 3.0, 4.0])
        .f32("norm", &[value])
        .with("lm_head.weight", DType::F32, &[2, 2], &[value, 20.0, 30.0, 40.0])
        .text("format", "pt")
}

#[test]
fn tensors_tied_in_all_models_stay_tied() -> Outcome {
    let folder = tempdir()?;
    let models = [tied(1.0).write(folder.path().join("a.st"))?, tied(3.0).write(folder.path().join("b.st"))?];
    let out = folder.path().join("out.safetensors");
    merge(&linear(&[0.5, 0.5]), &models, None, &out)?;
    let merged = read(&out)?;
    assert_eq!(merged.names(), ["embed.weight", "norm"], "a tied tensor takes no room");
    assert_eq!(merged.metadata.get("lm_head.weight").map(String::as_str), Some("embed.weight"));
    assert_eq!(merged.values("embed.weight"), [2.0, 2.0, 3.0, 4.0]);
    let opened = Checkpoint::open(&out)?;
    let head = opened.get("lm_head.weight").ok_or("it is still a tensor of the model")?;
    assert_eq!(head.tensor.alias_of.as_deref(), Some("embed.weight"));
    Ok(())
}

#[test]
fn tensors_tied_in_one_model_become_real() -> Outcome {
    let folder = tempdir()?;
    let (a, b) = (tied(1.0).write(folder.path().join("a.st"))?, untied(3.0).write(folder.path().join("b.st"))?);
    let out = folder.path().join("out.safetensors");
    for models in [[a.clone(), b.clone()], [b, a.clone()]] {
        merge(&linear(&[0.5, 0.5]), &models, None, &out)?;
        let merged = read(&out)?;
        assert_eq!(merged.names(), ["embed.weight", "lm_head.weight", "norm"]);
        assert_eq!(merged.values("embed.weight"), [2.0, 2.0, 3.0, 4.0]);
        assert_eq!(merged.values("lm_head.weight"), [2.0, 11.0, 16.5, 22.0]);
        assert!(!merged.metadata.contains_key("lm_head.weight"), "{:?}", merged.metadata);
    }
    // As do two that are tied everywhere when only one of them is merged.
    let second = tied(3.0).write(folder.path().join("c.st"))?;
    for (pattern, embed, head) in [("lm_head", 2.0, 1.0), ("embed", 1.0, 2.0)] {
        let exclude = vec![regex::Regex::new(pattern)?];
        let models = [a.clone(), second.clone()];
        merge(&Recipe { exclude, ..linear(&[0.5, 0.5]) }, &models, None, &out)?;
        let merged = read(&out)?;
        assert_eq!((merged.values("embed.weight")[0], merged.values("lm_head.weight")[0]), (embed, head));
    }
    Ok(())
}

#[test]
fn tied_tensors_survive_being_cut_into_shards() -> Outcome {
    let folder = tempdir()?;
    let models = [tied(1.0).write(folder.path().join("a.st"))?, tied(3.0).write(folder.path().join("b.st"))?];
    let out = folder.path().join("out");
    merge_sharded(&linear(&[0.5, 0.5]), &models, &out, 16)?;
    assert_eq!(names_in(&out).iter().filter(|name| name.ends_with(".safetensors")).count(), 2);
    let opened = Checkpoint::open(&out)?;
    let names: BTreeSet<&str> = opened.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["embed.weight", "lm_head.weight", "norm"]));
    assert!(opened.warnings().is_empty(), "{:?}", opened.warnings());
    let head = opened.get("lm_head.weight").ok_or("it is there")?;
    assert_eq!(head.tensor.alias_of.as_deref(), Some("embed.weight"));
    // And merging it again, from the shards, gives the same numbers.
    let again = folder.path().join("again.safetensors");
    merge(&linear(&[1.0]), std::slice::from_ref(&out), None, &again)?;
    assert_eq!(read(&again)?.values("embed.weight"), [2.0, 2.0, 3.0, 4.0]);
    Ok(())
}

/// What an index says: the shard of each tensor, and the total size.
fn index(path: &Path) -> Outcome<(BTreeMap<String, String>, u64)> {
    let index: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let map = index["weight_map"].as_object().ok_or("an index has a map")?;
    let file = |file: &Value| file.as_str().map(str::to_owned).ok_or("a shard has a name");
    let map = map.iter().map(|(tensor, shard)| Ok((tensor.clone(), file(shard)?))).collect::<Outcome<_>>()?;
    Ok((map, index["metadata"]["total_size"].as_u64().ok_or("an index has a size")?))
}

#[test]
fn folders_merge_to_folders() -> Outcome {
    let folder = tempdir()?;
    let (a, b, out) = (fixture("llama/a"), fixture("llama/b"), folder.path().join("out"));
    merge(&linear(&[0.6, 0.4]), &[a.clone(), b.clone()], None, &out)?;
    let (first, merged) = (snapshot(&a), snapshot(&out));
    assert_eq!(merged.keys().collect::<Vec<_>>(), first.keys().collect::<Vec<_>>());
    assert!(first.len() >= 5, "the fixture lost its files");
    for (name, bytes) in first.iter().filter(|(name, _)| *name != "model.safetensors") {
        assert_eq!(&merged[name], bytes, "{name}");
    }
    // The sharded one decides how when it comes first: still one file, as shards are asked for.
    let second = folder.path().join("second");
    merge(&linear(&[0.4, 0.6]), &[b, a.clone()], None, &second)?;
    let (one, other) = (read(&out.join("model.safetensors"))?, read(&second.join("model.safetensors"))?);
    assert_eq!(one.names(), other.names());
    // And a folder goes into a file when the output has a file's name.
    let file = folder.path().join("single.st");
    merge(&linear(&[0.6, 0.4]), &[a, fixture("llama/b")], None, &file)?;
    assert_eq!(read(&file)?.tensors, one.tensors);
    Ok(())
}

#[test]
fn shards_are_of_the_size_asked_for_and_listed() -> Outcome {
    const SIZE: u64 = 9000;
    let folder = tempdir()?;
    let models = [fixture("llama/a"), fixture("llama/b")];
    let (whole, out) = (folder.path().join("whole.safetensors"), folder.path().join("out"));
    merge(&linear(&[0.6, 0.4]), &models, None, &whole)?;
    merge_sharded(&linear(&[0.6, 0.4]), &models, &out, SIZE)?;
    let whole = read(&whole)?;

    let (map, total) = index(&out.join("model.safetensors.index.json"))?;
    let shards: Vec<String> = names_in(&out).into_iter().filter(|name| name.ends_with(".safetensors")).collect();
    let wanted: Vec<String> =
        (1..=shards.len()).map(|i| format!("model-{i:05}-of-{:05}.safetensors", shards.len())).collect();
    assert_eq!(shards, wanted);
    let mut sizes = Vec::new();
    let mut seen = BTreeMap::new();
    for shard in &shards {
        let contents = read(&out.join(shard))?;
        sizes.push(contents.tensors.values().map(|tensor| tensor.bytes.len() as u64).sum::<u64>());
        for (name, tensor) in contents.tensors {
            assert_eq!(map.get(&name), Some(shard), "{name}");
            assert_eq!(tensor, whole.tensors[&name], "{name}");
            assert!(seen.insert(name.clone(), shard).is_none(), "{name} is in two shards");
        }
    }
    assert_eq!(seen.len(), whole.tensors.len());
    assert_eq!(map.len(), whole.tensors.len());
    assert_eq!(total, sizes.iter().sum::<u64>());
    assert!(sizes.iter().all(|size| *size <= SIZE), "{sizes:?}");
    assert!(sizes.len() as u64 <= 2 * total.div_ceil(SIZE), "the shards are too small: {sizes:?}");
    assert!(out.join("tokenizer.json").is_file());

    let again = folder.path().join("again.safetensors");
    merge(&linear(&[1.0]), &[out.join("model.safetensors.index.json")], None, &again)?;
    assert_eq!(read(&again)?.tensors, whole.tensors);
    // A tensor that is larger than a shard has one to itself.
    merge_sharded(&linear(&[0.6, 0.4]), &models, &folder.path().join("tiny"), 1)?;
    let (map, _) = index(&folder.path().join("tiny/model.safetensors.index.json"))?;
    assert_eq!(map.values().collect::<BTreeSet<_>>().len(), whole.tensors.len());
    // One shard needs no index.
    merge_sharded(&linear(&[0.6, 0.4]), &models, &folder.path().join("large"), 1 << 30)?;
    assert!(folder.path().join("large/model.safetensors").is_file());
    assert!(!folder.path().join("large/model.safetensors.index.json").exists());
    Ok(())
}

/// A diffusers pipeline with a sharded unet, a vae, and a scheduler that has no weights.
fn pipeline(folder: &Path, value: f64) -> Outcome {
    let components = json!({
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [null, null],
    });
    write(&folder.join("model_index.json"), components.to_string())?;
    write(&folder.join("scheduler/scheduler_config.json"), "{\"beta_start\": 0.00085}")?;
    write(&folder.join("unet/config.json"), "{\"in_channels\": 4}")?;
    write(&folder.join("vae/config.json"), "{\"latent_channels\": 4}")?;
    // Not part of the pipeline, and so neither read nor written.
    write(&folder.join("unet/diffusion_pytorch_model.bin"), "pickle")?;
    let tensor = |name: &str, value| Model::new().f32(name, &[value]);
    // The same name in two components are two tensors.
    write_shards(&folder.join("unet"), "diffusion_pytorch_model", &[tensor("conv.weight", value), tensor("out", 1.0)])?;
    tensor("conv.weight", -value).write(folder.join("vae/diffusion_pytorch_model.safetensors"))?;
    Ok(())
}

#[test]
fn pipelines_merge_component_by_component() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    pipeline(&path("a"), 1.0)?;
    pipeline(&path("b"), 5.0)?;
    merge(&linear(&[0.75, 0.25]), &[path("a"), path("b")], None, &path("out"))?;
    let (inputs, merged) = (snapshot(&path("a")), snapshot(&path("out")));
    let companions = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"];
    let weights = ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"];
    let expected: BTreeSet<&str> = companions.into_iter().chain(weights).collect();
    assert_eq!(merged.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    for name in companions {
        assert_eq!(merged[name], inputs[name], "{name}");
    }
    let unet = read(&path("out").join(weights[0]))?;
    assert_eq!((unet.values("conv.weight"), unet.values("out")), (vec![2.0], vec![1.0]));
    let vae = read(&path("out").join(weights[1]))?;
    assert_eq!((vae.names(), vae.values("conv.weight")), (vec!["conv.weight"], vec![-2.0]));

    let models = [path("a"), path("b")];
    merge_sharded(&linear(&[0.75, 0.25]), &models, &path("shards"), 4)?;
    let (map, total) = index(&path("shards").join("unet/diffusion_pytorch_model.safetensors.index.json"))?;
    assert_eq!((map.keys().map(String::as_str).collect::<Vec<_>>(), total), (vec!["conv.weight", "out"], 8));
    assert!(path("shards").join("vae/diffusion_pytorch_model.safetensors").is_file());
    assert_eq!(Checkpoint::open(path("shards"))?.tensors().len(), 3);

    let error =
        merge(&linear(&[0.5, 0.5]), &models, None, &path("one.safetensors")).expect_err("three parts, one file");
    assert!(error.to_string().contains("pipeline of several files"), "{error}");
    Ok(())
}

/// The parsed JSON under a key of a file's metadata.
fn text(path: &Path, key: &str) -> Outcome<Value> {
    Ok(serde_json::from_str(read(path)?.metadata.get(key).ok_or_else(|| format!("it has no {key}"))?)?)
}

#[test]
fn the_output_says_how_it_was_made() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let model = |value: f64| Model::new().f32("x", &[value]).text("format", "pt").text("license", "MIT");
    let a = model(1.0).text("step", "100").text("only", "here").write(path("a.st"))?;
    let b = model(2.0).text("step", "200").write(path("b.st"))?;
    let out = path("out.safetensors");
    merge(&linear(&[0.25, 0.75]), &[a.clone(), b], None, &out)?;
    let metadata = read(&out)?.metadata;
    let kept: BTreeSet<&str> = metadata.keys().map(String::as_str).collect();
    assert_eq!(kept, BTreeSet::from(["ckptmerge.inputs", "ckptmerge.recipe", "format", "license"]));
    assert_eq!((metadata["format"].as_str(), metadata["license"].as_str()), ("pt", "MIT"));

    let recipe = text(&out, "ckptmerge.recipe")?;
    assert_eq!(recipe["method"], "linear");
    assert_eq!(recipe["weights"], json!([0.25, 0.75]));
    assert_eq!(recipe["models"], json!(["a.st", "b.st"]));
    assert_eq!(recipe["normalize"], json!(false));
    assert_eq!(recipe["ckptmerge"], env!("CARGO_PKG_VERSION"));

    // A copy has the same fingerprint, another model another; where it lies does not matter.
    std::fs::create_dir(path("elsewhere"))?;
    std::fs::copy(&a, path("elsewhere/c.st"))?;
    let changed = model(1.0000001).text("step", "100").text("only", "here").write(path("d.st"))?;
    merge(&linear(&[1.0, 1.0, 1.0]), &[a.clone(), path("elsewhere/c.st"), changed], None, &out)?;
    let inputs = text(&out, "ckptmerge.inputs")?;
    let print = |i: usize| inputs[i]["fingerprint"].as_str().unwrap_or_default().to_owned();
    assert!(print(0).starts_with("xxh3:") && print(0).len() == 37, "{inputs}");
    assert_eq!(print(0), print(1));
    assert_ne!(print(0), print(2));
    assert_eq!(inputs[1]["name"], "c.st");

    // The base is one of the inputs, and an old recipe is not carried on.
    let next = path("next.safetensors");
    let task = Recipe::new("task-arithmetic")?.weights(&[0.5]);
    merge(&Recipe { dtype: Some(DType::BF16), ..task }, std::slice::from_ref(&a), Some(&out), &next)?;
    let recipe = text(&next, "ckptmerge.recipe")?;
    assert_eq!((&recipe["base"], &recipe["models"]), (&json!("out.safetensors"), &json!(["a.st"])));
    assert_eq!((&recipe["parameters"]["lambda"], &recipe["dtype"]), (&json!(1.0), &json!("BF16")));
    assert_eq!(text(&next, "ckptmerge.inputs")?.as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn the_recipe_holds_all_that_was_asked_for() -> Outcome {
    let folder = tempdir()?;
    Model::new().f32("x", &[1.0]).f32("y", &[1.0]).write(folder.path().join("a.st"))?;
    Model::new().f32("x", &[2.0]).write(folder.path().join("b.st"))?;
    let options = "--weights 3,1 --normalize --missing base --weights-for ^x$=1,3 --include x --exclude y";
    run(folder.path(), &format!("merge a.st b.st {options} -o out.st")).ok();
    let recipe = text(&folder.path().join("out.st"), "ckptmerge.recipe")?;
    assert_eq!(recipe["weights_for"], json!([{"pattern": "^x$", "weights": [1.0, 3.0]}]));
    assert_eq!((&recipe["include"], &recipe["exclude"]), (&json!(["x"]), &json!(["y"])));
    assert_eq!((&recipe["normalize"], &recipe["missing"]), (&json!(true), &json!("base")));
    assert_eq!(read(&folder.path().join("out.st"))?.values("x"), [1.75]);
    Ok(())
}

#[test]
fn the_configuration_names_the_type_of_the_weights() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let config = "{\n  \"z\": 1,\n  \"torch_dtype\": \"float32\",\n  \"a\": [1.5]\n}\n";
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        Model::new().f32("x", &[value]).write(path(name).join("model.safetensors"))?;
        write(&path(name).join("config.json"), config)?;
        write(&path(name).join("other.json"), config)?;
    }
    let models = [path("a"), path("b")];
    merge(&linear(&[0.5, 0.5]), &models, None, &path("same"))?;
    assert_eq!(std::fs::read_to_string(path("same/config.json"))?, config, "nothing changed, so nothing is rewritten");
    merge(&Recipe { dtype: Some(DType::BF16), ..linear(&[0.5, 0.5]) }, &models, None, &path("bf16"))?;
    let written: Value = serde_json::from_slice(&std::fs::read(path("bf16/config.json"))?)?;
    assert_eq!(written, json!({"z": 1, "torch_dtype": "bfloat16", "a": [1.5]}));
    assert_eq!(std::fs::read_to_string(path("bf16/other.json"))?, config, "this file is none of ours");
    Ok(())
}

#[test]
fn a_folder_among_files_gives_the_output_its_form() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let model = |value: f64| Model::new().f32("x", &[value]);
    let file = model(1.0).write(path("file.st"))?;
    model(3.0).write(path("folder/model.safetensors"))?;
    write(&path("folder/config.json"), "{}")?;
    merge(&linear(&[0.5, 0.5]), &[file.clone(), path("folder")], None, &path("out"))?;
    assert_eq!(names_in(&path("out")), ["config.json", "model.safetensors"]);
    assert_eq!(read(&path("out/model.safetensors"))?.values("x"), [2.0]);

    // Of files alone it is a folder when it is called one, or is one already.
    std::fs::create_dir(path("empty"))?;
    for name in ["new/", "empty"] {
        merge(&linear(&[0.5, 0.5]), &[file.clone(), file.clone()], None, &path(name))?;
        assert_eq!(names_in(&path(name)), ["model.safetensors"], "{name}");
    }
    merge(&linear(&[0.5, 0.5]), &[file.clone(), file], None, &path("plain"))?;
    assert!(path("plain").is_file());
    let stray: Vec<String> = names_in(folder.path()).into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(stray.is_empty(), "{stray:?}");
    Ok(())
}

#[test]
fn components_in_their_folders_are_a_pipeline_without_its_file() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let model = Model::new().f32("x", &[1.0]);
    model.write(path("p/unet/diffusion_pytorch_model.safetensors"))?;
    write_shards(&path("p/text_encoder"), "model", &[model.clone(), Model::new().f32("y", &[2.0])])?;
    // Neither a component by its name, nor weights by theirs.
    model.write(path("p/checkpoint-500/model.safetensors"))?;
    model.write(path("p/vae/mine.safetensors"))?;
    write(&path("p/vae/config.json"), "{}")?;
    let opened = Checkpoint::open(path("p"))?;
    let names: Vec<_> = opened.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["text_encoder/x", "text_encoder/y", "unet/x"]);
    run(&path(""), "convert --no-sync p out").ok();
    assert_eq!(names_in(&path("out")), ["text_encoder", "unet", "vae"]);
    assert_eq!(names_in(&path("out/vae")), ["config.json"]);
    // Weights of the folder's own come first, and a pipeline's own file says what is in it.
    model.write(path("p/model.safetensors"))?;
    assert_eq!(Checkpoint::open(path("p"))?.tensors().len(), 1);
    write(&path("p/model_index.json"), json!({"unet": ["diffusers", "UNet2DConditionModel"]}).to_string())?;
    assert_eq!(Checkpoint::open(path("p"))?.tensors()[0].name, "unet/x");
    // A folder of several models is none.
    model.write(path("runs/checkpoint-500/model.safetensors"))?;
    model.write(path("runs/checkpoint-1000/model.safetensors"))?;
    let error = Checkpoint::open(path("runs")).expect_err("which of them?").to_string();
    assert!(error.contains("holds no weights"), "{error}");
    Ok(())
}

#[test]
fn folders_that_are_no_model_are_refused() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let model = Model::new().f32("x", &[1.0]);
    std::fs::create_dir(path("empty"))?;
    for name in ["one", "two"] {
        model.write(path("ambiguous").join(format!("{name}.safetensors")))?;
    }
    write_shards(&path("broken"), "model", &[model.clone(), Model::new().f32("y", &[1.0])])?;
    std::fs::remove_file(path("broken/model-00002-of-00002.safetensors"))?;
    // An index is from the internet: it may not lead out of its folder.
    model.write(path("secret.safetensors"))?;
    let escape = json!({"weight_map": {"x": "../secret.safetensors"}});
    write(&path("escape/model.safetensors.index.json"), escape.to_string())?;
    let lie = json!({"weight_map": {"x": "model.safetensors", "ghost": "model.safetensors"}});
    write(&path("lie/model.safetensors.index.json"), lie.to_string())?;
    model.write(path("lie/model.safetensors"))?;
    for (name, says) in [
        ("empty", "holds no weights"),
        ("ambiguous", "several files could be the model"),
        ("broken", "model-00002-of-00002.safetensors is missing"),
        ("escape", "no plain file name"),
        ("lie", "ghost"),
    ] {
        let error = Checkpoint::open(path(name)).expect_err("this is no model").to_string();
        assert!(error.contains(says) && error.contains(name), "{says:?} is not in {error}");
    }
    let ran = binary().args(["inspect"]).arg(path("ambiguous")).current_dir(root()).output()?;
    crate::model::Ran::from(ran).fails(1, &["one.safetensors, two.safetensors"]);
    Ok(())
}
