//! Channel-wise projections: identities where a model lacks them, and folding.

use super::unet::weights_of;
use super::{farthest, numbers, relative, tensor};
use crate::model::{Outcome, fixture, names_in, read, root, run};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ckptmerge::Checkpoint;
use ckptmerge::diffusion::unet::{Config, UNet2D};
use ckptmerge::diffusion::{Ddpm, Noise, Sampling, sample};
use ckptmerge::stream::Control;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tempfile::TempDir;

pub(super) type Tensors = HashMap<String, Tensor>;

pub(super) fn save(tensors: &Tensors, path: &Path) -> Outcome {
    Ok(candle_core::safetensors::save(tensors, path)?)
}

/// A model that was tuned from `base`: every weight moved a little, and projections near the identity.
pub(super) fn tuned(base: &Tensors, channels: &[usize], name: &str) -> Outcome<Tensors> {
    let moved = |(of, before): (&String, &Tensor)| -> Outcome<(String, Tensor)> {
        let change = tensor(&format!("{name}.{of}"), before.dims())?;
        Ok((of.clone(), (before.to_dtype(DType::F32)? + (change * 0.02)?)?))
    };
    let mut tensors: Tensors = base.iter().map(moved).collect::<Outcome<_>>()?;
    for (index, &channels) in channels.iter().enumerate() {
        let of = format!("adapter_list.{index}.weight");
        let shape = [channels, channels, 1, 1];
        let identity = Tensor::eye(channels, DType::F32, &Device::Cpu)?.reshape(&shape)?;
        let change = tensor(&format!("{name}.{of}"), &shape)?;
        tensors.insert(of, (identity + (change * 0.3)?)?);
    }
    Ok(tensors)
}

/// The channels behind each block of a configuration.
pub(super) fn channels(config: &Value) -> Outcome<Vec<usize>> {
    let levels: Vec<usize> = serde_json::from_value(config["block_out_channels"].clone())?;
    let has_middle = config.get("mid_block_type").is_none_or(|kind| !kind.is_null());
    let middle = has_middle.then(|| levels.last().copied()).flatten();
    Ok(levels.iter().copied().chain(middle).chain(levels.iter().rev().copied()).collect())
}

fn answer(config: &Value, path: &Path) -> Outcome<Tensor> {
    let config = Config::parse(config.to_string().as_bytes())?;
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
    let network = UNet2D::new(&config, &VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))?;
    let (rows, columns) = config.sample_size.ok_or("no size")?;
    let images = tensor("images", &[2, config.in_channels, rows, columns])?;
    Ok(network.forward(&images, &Tensor::new(&[999.0f32, 37.0], &Device::Cpu)?)?)
}

/// The numbers of projections that were folded, by what a merge says.
fn folded(answer: &Value) -> Vec<u64> {
    let all = answer["projections"].as_array().cloned().unwrap_or_default();
    let number = |entry: &Value| entry["name"].as_str()?.split('.').nth(1)?.parse().ok();
    all.iter().filter(|entry| entry["folded_into"].is_array()).filter_map(number).collect()
}

/// Of every kind of network: what it computes stays the same, and what can be folded is.
#[test]
fn folding_changes_no_answer() -> Outcome {
    let cases: Value = serde_json::from_slice(&std::fs::read(root().join("fixtures/unet/cases.json"))?)?;
    let expected = [
        ("gradients", &[3, 4][..]),
        ("defaults", &[4, 5]),
        ("plain", &[3, 4]),
        ("scale-shift", &[3, 4]),
        ("groups", &[3, 4]),
        ("resnet-blocks", &[]),
        ("resnet-sampling", &[4]),
        ("no-middle", &[2, 3]),
    ];
    for (case, folds) in expected {
        let folder = TempDir::new()?;
        let at = |name: &str| folder.path().join(name);
        let mut config = cases["cases"][case].clone();
        if case == "defaults" {
            // Levels of which the last way up ends with attention.
            config["up_block_types"] = json!(["AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"]);
            config["down_block_types"] = json!(["AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"]);
        }
        let base = weights_of(&config, "")?;
        save(&base, &at("base.st"))?;
        for name in ["a", "b"] {
            save(&tuned(&base, &channels(&config)?, name)?, &at(&format!("{name}.st")))?;
        }
        let merge = "merge --base base.st a.st b.st --weights 0.6,0.7 --json";
        let plain = run(folder.path(), &format!("{merge} -o plain.safetensors")).ok();
        assert!(plain.stderr.contains("base.st lacks"), "{}", plain.stderr);
        assert_eq!(plain.json()["projections"], json!([]));
        let answers = run(folder.path(), &format!("{merge} -o folded.safetensors --fold-projections")).ok().json();
        assert_eq!(folded(&answers), folds, "{case}: {answers:#}");
        let (before, after) = (read(&at("plain.safetensors"))?, read(&at("folded.safetensors"))?);
        let dropped: Vec<&str> = before.names().into_iter().filter(|name| !after.names().contains(name)).collect();
        let names: Vec<String> = folds.iter().map(|number| format!("adapter_list.{number}.weight")).collect();
        assert_eq!(dropped, names, "{case}");
        let off = relative(&answer(&config, &at("folded.safetensors"))?, &answer(&config, &at("plain.safetensors"))?)?;
        assert!(off < 1e-5, "{case} is off by {off}");
        // That the test would see it: the projections are no identities.
        let far = relative(&answer(&config, &at("base.st"))?, &answer(&config, &at("plain.safetensors"))?)?;
        assert!(far > 1e-2, "{case} differs from its base by {far} only");
    }
    Ok(())
}

/// I + Σ wᵢ·(Wᵢ − I), whichever model lacks its projections, by every command that takes changes.
#[test]
fn identities_stand_for_projections_that_a_model_lacks() -> Outcome {
    let folder = TempDir::new()?;
    let cases: Value = serde_json::from_slice(&std::fs::read(root().join("fixtures/unet/cases.json"))?)?;
    let config = &cases["cases"]["gradients"];
    let base = weights_of(config, "")?;
    let channels = channels(config)?;
    save(&base, &folder.path().join("base.st"))?;
    let mut changed = Vec::new();
    for name in ["a", "b"] {
        let tensors = tuned(&base, &channels, name)?;
        save(&tensors, &folder.path().join(format!("{name}.st")))?;
        changed.push(tensors);
    }
    // The same base with its identities written out.
    let mut augmented = base.clone();
    for (index, &channels) in channels.iter().enumerate() {
        let identity = Tensor::eye(channels, DType::F32, &Device::Cpu)?.reshape((channels, channels, 1, 1))?;
        augmented.insert(format!("adapter_list.{index}.weight"), identity);
    }
    save(&augmented, &folder.path().join("augmented.st"))?;

    run(folder.path(), "merge --base base.st a.st b.st --weights 0.25,0.5 -o merged.safetensors").ok();
    let merged = candle_core::safetensors::load(folder.path().join("merged.safetensors"), &Device::Cpu)?;
    for (index, &channels) in channels.iter().enumerate() {
        let name = format!("adapter_list.{index}.weight");
        let identity = Tensor::eye(channels, DType::F32, &Device::Cpu)?.reshape((channels, channels, 1, 1))?;
        let mut expected = identity.clone();
        for (tensors, weight) in changed.iter().zip([0.25, 0.5]) {
            expected = (expected + ((&tensors[&name] - &identity)? * weight)?)?;
        }
        assert!(farthest(&merged[&name], &expected)? < 1e-6, "{name}");
    }
    for command in [
        "merge --base {} a.st b.st --method ties -p density=0.5 -o out.safetensors",
        "merge {} a.st b.st -o out.safetensors",
        "merge a.st {} -o out.safetensors --memory 64M",
        "task-vector {} a.st -o out.safetensors",
        "task-vector {} a.st -o out.safetensors --density 0.2",
    ] {
        let [by_itself, written_out] = ["base.st", "augmented.st"].map(|base| -> Outcome<_> {
            let ran = run(folder.path(), &command.replace("{}", base)).ok();
            assert_eq!(ran.stderr.contains("base.st lacks 5 channel-wise projections"), base == "base.st", "{command}");
            Ok(read(&folder.path().join("out.safetensors"))?.tensors)
        });
        assert!(by_itself? == written_out?, "{command}");
    }
    for command in [
        "similarity {} a.st b.st --by tensor --json",
        "stats {} a.st b.st --json",
        "similarity {} a.st --base-less --json",
    ] {
        let [by_itself, written_out] = ["base.st", "augmented.st"].map(|base| {
            let ran = run(folder.path(), &command.replace("{}", base)).ok();
            assert_eq!(ran.stderr.contains("base.st lacks 5 channel-wise projections"), base == "base.st", "{command}");
            ran.stdout.replace("augmented", "base")
        });
        let numbers = |text: &str| -> Outcome<Value> {
            let mut all: Value = serde_json::from_str(text)?;
            // In the order of the base's file, in which added tensors are last.
            if let Some(parts) = all["parts"].as_array_mut() {
                parts.sort_by_key(|part| part["name"].to_string());
            }
            Ok(all)
        };
        let (found, expected) = (numbers(&by_itself)?, numbers(&written_out)?);
        assert_eq!(found["parts"], expected["parts"], "{command}");
        assert_eq!(found["models"], expected["models"], "{command}");
    }
    let lora = run(folder.path(), "task-vector base.st a.st --rank 2 -o lora/").ok();
    assert!(lora.stderr.contains("fits models that have them only"), "{}", lora.stderr);
    // A recipe in mergekit's grammar.
    let recipe = "merge_method: task_arithmetic\nbase_model: base.st\nmodels:\n- model: a.st\n  parameters: {weight: 0.25}\n- model: b.st\n  parameters: {weight: 0.5}\n";
    std::fs::write(folder.path().join("recipe.yaml"), recipe)?;
    run(folder.path(), "run recipe.yaml -o by-recipe.safetensors").ok();
    let of = |name: &str| -> Outcome<_> { Ok(read(&folder.path().join(name))?.tensors) };
    assert!(of("by-recipe.safetensors")? == of("merged.safetensors")?);
    Ok(())
}

/// What is odd: nothing to fold, projections that fit nothing, tensors that are not the network's.
#[test]
fn what_cannot_be_folded_is_said() -> Outcome {
    let folder = TempDir::new()?;
    let cases: Value = serde_json::from_slice(&std::fs::read(root().join("fixtures/unet/cases.json"))?)?;
    let config = &cases["cases"]["gradients"];
    let base = weights_of(config, "")?;
    save(&base, &folder.path().join("base.st"))?;
    let ran = run(folder.path(), "merge base.st --fold-projections -o out.safetensors").ok();
    assert!(ran.stderr.contains("nothing to fold"), "{}", ran.stderr);

    let mut odd = tuned(&base, &channels(config)?, "odd")?;
    let shape = [4, 4, 1, 1];
    odd.insert("adapter_list.3.weight".to_owned(), Tensor::from_vec(numbers("small", 16), &shape, &Device::Cpu)?);
    odd.insert("adapter_list.9.weight".to_owned(), Tensor::from_vec(numbers("small", 16), &shape, &Device::Cpu)?);
    save(&odd, &folder.path().join("odd.st"))?;
    let ran = run(folder.path(), "merge odd.st --fold-projections -o out.safetensors").ok();
    for says in [
        "kept adapter_list.0.weight: what it projects, the output of `down_blocks.0`, is a skip connection",
        "kept adapter_list.2.weight: `mid_block.resnets.1`, before it, has no `conv_shortcut`",
        "kept adapter_list.3.weight: `up_blocks.0.upsamplers.0.conv.weight` before it does not have 4 rows",
        "folded adapter_list.4.weight into up_blocks.1.resnets.1.conv2.weight, up_blocks.1.resnets.1.conv2.bias",
        "kept adapter_list.9.weight: there is no block before it",
    ] {
        assert!(ran.stdout.contains(says), "{says}: {}", ran.stdout);
    }
    // What has a number that no block has is not taken for the identity of another model.
    run(folder.path(), "merge --base base.st odd.st -o out.safetensors")
        .fails(1, &["`adapter_list.9.weight`", "base.st"]);
    let mut broken = tuned(&base, &channels(config)?, "broken")?;
    let nothing = (&broken["adapter_list.4.weight"] * f64::NAN)?;
    broken.insert("adapter_list.4.weight".to_owned(), nothing);
    save(&broken, &folder.path().join("broken.st"))?;
    run(folder.path(), "merge broken.st --fold-projections -o broken.safetensors")
        .fails(2, &["`adapter_list.4.weight`", "not finite", "--fold-projections"]);
    assert!(!folder.path().join("broken.safetensors").exists());
    run(folder.path(), "merge broken.st -o broken.safetensors").ok();
    let explained = run(folder.path(), "merge odd.st --fold-projections --explain").ok();
    assert!(explained.stdout.contains("P·x, P the merged `adapter_list.4.weight`"), "{}", explained.stdout);
    // In a type that is rounded to, by methods that look at the data, over several threads.
    save(&tuned(&base, &channels(config)?, "a")?, &folder.path().join("a.st"))?;
    for options in ["--dtype bf16", "--method slerp --base base.st -p t=0.3", "--dtype f64"] {
        let merge = format!("merge a.st {options} --fold-projections");
        let merge = if options.contains("slerp") {
            merge.replace("a.st", "a.st a.st").replace("--base base.st ", "")
        } else {
            merge
        };
        for threads in [1, 3] {
            run(folder.path(), &format!("{merge} -j {threads} -o {threads}.safetensors")).ok();
        }
        let [one, three] = [1, 3].map(|threads| std::fs::read(folder.path().join(format!("{threads}.safetensors"))));
        assert!(one? == three?, "{options}");
    }
    Ok(())
}

/// A network that was trained, from the same noise.
#[test]
fn a_folded_model_samples_the_same_images() -> Outcome {
    let folder = TempDir::new()?;
    let base = fixture("digits-ddpm/model");
    let config: Value = serde_json::from_slice(&std::fs::read(base.join("unet/config.json"))?)?;
    let weights = candle_core::safetensors::load(base.join("unet/diffusion_pytorch_model.safetensors"), &Device::Cpu)?;
    std::fs::create_dir(folder.path().join("tuned"))?;
    std::fs::write(folder.path().join("tuned/config.json"), config.to_string())?;
    save(
        &tuned(&weights, &channels(&config)?, "digits")?,
        &folder.path().join("tuned/diffusion_pytorch_model.safetensors"),
    )?;
    run(folder.path(), "merge tuned -o whole/").ok();
    run(folder.path(), "merge tuned -o folded/ --fold-projections").ok();
    let scheduler_config = ckptmerge::diffusion::schedulers::Config::ddpm();
    let scheduler = || scheduler_config.build(Some(ckptmerge::diffusion::schedulers::by_name("ddim")?), 10);
    let [whole, folded] = ["whole", "folded"].map(|name| -> Outcome<Tensor> {
        let model = Ddpm::open(Checkpoint::open(folder.path().join(name))?, None)?;
        let sampling = Sampling {
            scheduler: &scheduler,
            train_timesteps: 1000,
            noise: Noise::new(0),
            start: None,
            images: 0..2,
            size: (8, 8),
            batch: 2,
            device: &Device::Cpu,
        };
        let mut all = Vec::new();
        sample(&[&model], &sampling, Control::none(), |samples| {
            all.push(samples);
            Ok(())
        })?;
        Ok(Tensor::cat(&all, 0)?)
    });
    let off = farthest(&whole?, &folded?)?;
    assert!(off < 1e-3, "off by {off}");
    Ok(())
}

/// What was trained from a pipeline's network is the network alone, and still its model.
#[test]
fn a_network_alone_goes_with_its_pipeline() -> Outcome {
    let folder = TempDir::new()?;
    let base = fixture("digits-ddpm/model");
    std::os::unix::fs::symlink(&base, folder.path().join("base"))?;
    let config: Value = serde_json::from_slice(&std::fs::read(base.join("unet/config.json"))?)?;
    let file = "unet/diffusion_pytorch_model.safetensors";
    let weights = candle_core::safetensors::load(base.join(file), &Device::Cpu)?;
    let copy = folder.path().join("copy");
    std::fs::create_dir(&copy)?;
    std::fs::write(copy.join("config.json"), config.to_string())?;
    save(&tuned(&weights, &channels(&config)?, "digits")?, &copy.join("diffusion_pytorch_model.safetensors"))?;

    run(folder.path(), "merge --base base copy --weights 0.5 -o merged/ --fold-projections").ok();
    let written = names_in(&folder.path().join("merged"));
    assert_eq!(written, ["model_index.json", "scheduler", "unet"]);
    run(folder.path(), "sample merged --steps 2 -o out.png").ok();
    // The other way round it is the network alone that is written, of the same numbers.
    run(folder.path(), "merge --base copy base --weights 0.5 -o alone/ --fold-projections").ok();
    assert_eq!(names_in(&folder.path().join("alone")), ["config.json", "diffusion_pytorch_model.safetensors"]);
    let load = |path: &str| candle_core::safetensors::load(folder.path().join(path), &Device::Cpu);
    let (one, other) = (load(&format!("merged/{file}"))?, load("alone/diffusion_pytorch_model.safetensors")?);
    assert_eq!(one.len(), other.len());
    for (name, tensor) in &one {
        assert!(farthest(tensor, &other[name])? < 1e-5, "{name}");
    }
    run(folder.path(), "merge --base base copy/diffusion_pytorch_model.safetensors -o file/").ok();
    let inner = run(folder.path(), "similarity base/unet copy --json").ok().json();
    let outer = run(folder.path(), "similarity base copy --json").ok().json();
    assert_eq!(inner["total"], outer["total"]);
    run(folder.path(), "task-vector base copy -o change/").ok();
    assert_eq!(read(&folder.path().join("change").join(file))?.names().len(), 149);
    Ok(())
}
