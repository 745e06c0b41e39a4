//! What networks make of noisy images, against torch: activations of two, gradients of one.

use super::projections::{channels, save, tuned};
use super::tensor;
use super::unet::weights_of;
use crate::model::{Outcome, fixture, run};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ckptmerge::Checkpoint;
use ckptmerge::diffusion::schedulers::{Config as SchedulerConfig, Noising};
use ckptmerge::diffusion::unet::{Config, UNet2D};
use ckptmerge::diffusion::{Comparison, Weights};
use ckptmerge::stream::Control;
use ckptmerge::train::{Gradients, Network, Source};
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use tempfile::TempDir;

fn json(path: &str) -> Outcome<Value> {
    Ok(serde_json::from_slice(&std::fs::read(fixture(path))?)?)
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The configuration that `fixtures/analyses/make.py` has.
fn config() -> Outcome<Value> {
    Ok(json("unet/cases.json")?["cases"]["gradients"].clone())
}

/// The second network's weights, with its projections.
fn projected(config: &Value) -> Outcome<HashMap<String, Tensor>> {
    let mut tensors = weights_of(config, "other.")?;
    for (index, channels) in channels(config)?.into_iter().enumerate() {
        let (name, shape) = (format!("adapter_list.{index}.weight"), [channels, channels, 1, 1]);
        let identity = Tensor::eye(channels, DType::F32, &Device::Cpu)?.reshape(&shape)?;
        let change = (tensor(&format!("other.{name}"), &shape)? * 0.3)?;
        tensors.insert(name, (identity + change)?);
    }
    Ok(tensors)
}

/// Some of so many images with their noise.
fn pairs(count: usize) -> impl Fn(Range<usize>) -> ckptmerge::Result<(Tensor, Tensor)> {
    move |range| {
        let all = |name: &str| tensor(name, &[count, 1, 8, 8]).expect("numbers can be made");
        let part = |tensor: Tensor| tensor.narrow(0, range.start, range.len());
        Ok((part(all("images"))?, part((all("noise") * 1.5)?)?))
    }
}

fn close(found: &[f64], expected: &[f64], tolerance: f64) -> bool {
    let size = expected.iter().fold(0.0, |size: f64, number| size.max(number.abs()));
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance * size)
}

#[test]
fn differences_of_activations_are_torchs() -> Outcome {
    let (config, expected) = (config()?, json("analyses/expected.json")?);
    let parsed = Config::parse(config.to_string().as_bytes())?;
    let network = |tensors: HashMap<String, Tensor>| {
        UNet2D::new(&parsed, &VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
    };
    let (first, second) = (network(weights_of(&config, "")?)?, network(projected(&config)?)?);
    let noising = Noising::new(&SchedulerConfig::ddpm())?;
    let timesteps: Vec<usize> = serde_json::from_value(expected["timesteps"].clone())?;
    let names = first.blocks();
    assert_eq!(names, ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1", "output"]);
    for (batch, blocks) in [(3, &[0, 1, 2, 3, 4, 5][..]), (2, &[3, 5])] {
        let comparison = Comparison {
            networks: [&first, &second],
            names: ["first", "second"],
            noising: &noising,
            timesteps: &timesteps,
            images: 3,
            batch,
            blocks,
            device: &Device::Cpu,
        };
        let changes = comparison.run(pairs(3), Control::none())?;
        assert_eq!(changes.iter().map(|change| change.block).collect::<Vec<_>>(), blocks);
        for change in changes {
            let name = &names[change.block];
            let wanted = &expected["activations"][name];
            assert!(close(&change.by_channel, &floats(&wanted["by_channel"]), 1e-5), "{name}: {:?}", change.by_channel);
            assert!(close(&change.by_pixel, &floats(&wanted["by_pixel"]), 1e-5), "{name}: {:?}", change.by_pixel);
            assert!(close(&change.by_timestep, &floats(&wanted["by_timestep"]), 1e-5), "{name}");
            assert!(close(&[change.size], &[wanted["size"].as_f64().ok_or("no size")?], 1e-5), "{name}");
            let mean = change.by_pixel.iter().sum::<f64>() / change.by_pixel.len() as f64;
            assert!((change.mean() - mean).abs() < 1e-12, "{name}");
        }
    }
    Ok(())
}

#[test]
fn cosines_of_gradients_are_torchs() -> Outcome {
    let (config, expected) = (config()?, json("analyses/expected.json")?);
    let parsed = Config::parse(config.to_string().as_bytes())?;
    let noising = Noising::new(&SchedulerConfig::ddpm())?;
    let timesteps: Vec<usize> = serde_json::from_value(expected["points"].clone())?;
    let folder = TempDir::new()?;
    for (case, tensors) in [("gradients", weights_of(&config, "")?), ("projected", projected(&config)?)] {
        let file = folder.path().join(format!("{case}.safetensors"));
        save(&tensors, &file)?;
        let source = Source::Checkpoint(Weights::new(Checkpoint::open(&file)?, ""));
        let network = Network::new(&parsed, &source, false)?;
        let wanted = &expected[case];
        for batch in [6, 4] {
            let of = |memory| Gradients {
                network: &network,
                noising: &noising,
                timesteps: &timesteps,
                images: 6,
                batch,
                memory,
            };
            let found = of(None).compare(|_| true, pairs(6), Control::none())?;
            assert_eq!(Some(found.parameters as u64), wanted["parameters"].as_u64());
            assert!(close(&found.losses, &floats(&wanted["losses"]), 1e-5), "{case}: {:?}", found.losses);
            assert!(close(&found.norms, &floats(&wanted["norms"]), 1e-4), "{case}: {:?}", found.norms);
            for (row, wanted) in found.cosines.iter().zip(wanted["cosines"].as_array().ok_or("no cosines")?) {
                let row: Vec<f64> = row.iter().flatten().copied().collect();
                assert!(close(&row, &floats(wanted), 1e-4), "{case}: {row:?} against {wanted}");
            }
            let error = of(Some(1000)).compare(|_| true, pairs(6), Control::none()).expect_err("it does not fit");
            assert!(error.to_string().contains("1.00 kB may be taken"), "{error}");
            let few = of(Some(1000)).compare(|name| name == "conv_out.bias", pairs(6), Control::none())?;
            assert_eq!(few.parameters, 1);
        }
    }
    Ok(())
}

/// A trained model, and one with projections that was tuned from it.
fn digits(folder: &Path) -> Outcome<String> {
    let model = fixture("digits-ddpm/model");
    let config: Value = serde_json::from_slice(&std::fs::read(model.join("unet/config.json"))?)?;
    let weights = candle_core::safetensors::load(model.join("unet/diffusion_pytorch_model.safetensors"), &Device::Cpu)?;
    std::fs::create_dir(folder.join("tuned"))?;
    std::fs::write(folder.join("tuned/config.json"), config.to_string())?;
    std::fs::copy(model.join("scheduler/scheduler_config.json"), folder.join("tuned/scheduler_config.json"))?;
    save(&tuned(&weights, &channels(&config)?, "digits")?, &folder.join("tuned/diffusion_pytorch_model.safetensors"))?;
    std::os::unix::fs::symlink(&model, folder.join("base"))?;
    std::fs::copy(fixture("digits/images.npy"), folder.join("digits.npy"))?;
    Ok("--data digits.npy".to_owned())
}

#[test]
fn activations_are_told_and_drawn() -> Outcome {
    let folder = TempDir::new()?;
    let data = digits(folder.path())?;
    let command = format!("activations base tuned {data} -n 5 --timesteps 100,900");
    let ran = run(folder.path(), &format!("{command} --json --csv all.csv --plot channels.svg")).ok();
    let blocks = ran.json()["blocks"].as_array().cloned().ok_or("no blocks")?;
    let names: Vec<&str> = blocks.iter().filter_map(|block| block["name"].as_str()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"down_blocks.0"), Some(&"output")));
    assert!(blocks.iter().all(|block| block["mean"].as_f64().is_some_and(|mean| mean > 1e-4)));
    // Every number is in the table as well.
    let mut numbers = 0;
    for block in &blocks {
        let pixels = block["by_pixel"].as_array().map_or(0, |rows| rows.iter().map(|row| floats(row).len()).sum());
        numbers += floats(&block["by_channel"]).len() + floats(&block["by_timestep"]).len() + pixels;
    }
    let table = std::fs::read_to_string(folder.path().join("all.csv"))?;
    assert_eq!(table.lines().count(), numbers + 1);
    assert!(std::fs::read_to_string(folder.path().join("channels.svg"))?.contains("up_blocks.0"));
    for threads in [1, 3] {
        let again = run(folder.path(), &format!("{command} --json -j {threads}")).ok();
        assert_eq!(again.stdout, ran.stdout, "{threads} threads");
    }
    // Other noise, other numbers; one block, the same.
    let other = run(folder.path(), &format!("{command} --json --seed 1")).ok();
    assert_ne!(other.stdout, ran.stdout);
    let one = run(folder.path(), &format!("{command} --json --block up_blocks.0 --by pixel --plot pixels.png")).ok();
    let at = names.iter().position(|name| *name == "up_blocks.0").ok_or("no such block")?;
    assert_eq!(one.json()["blocks"][0], blocks[at]);
    let text = run(folder.path(), &command).ok().stdout;
    assert!(text.contains("Difference of activations, base and tuned") && text.contains("t=900"), "{text}");
    let same = run(folder.path(), &format!("activations base base {data} -n 2 --json")).ok().json();
    assert_eq!(same["timesteps"], serde_json::json!([125, 375, 625, 875]));
    assert!(same["blocks"].as_array().is_some_and(|blocks| blocks.iter().all(|block| block["mean"] == 0.0)));

    let name = "diffusion_pytorch_model.safetensors";
    let mut tensors = candle_core::safetensors::load(folder.path().join("tuned").join(name), &Device::Cpu)?;
    let bias = (&tensors["conv_in.bias"] * f64::NAN)?;
    tensors.insert("conv_in.bias".to_owned(), bias);
    std::fs::create_dir(folder.path().join("broken"))?;
    for file in ["config.json", "scheduler_config.json"] {
        std::fs::copy(folder.path().join("tuned").join(file), folder.path().join("broken").join(file))?;
    }
    save(&tensors, &folder.path().join("broken").join(name))?;
    let floats = Tensor::full(0.5f32, (2, 8, 8), &Device::Cpu)?;
    save(&HashMap::from([("pixels".to_owned(), floats)]), &folder.path().join("floats.st"))?;
    for (arguments, code, says) in [
        ("base broken --data digits.npy -n 2", 1, "activations of broken"),
        ("broken base --data digits.npy -n 2", 1, "activations of broken"),
        ("base tuned --data floats.st", 1, "`pixels` is F32 of 2×8×8; convert it to bytes"),
        ("base tuned --data nosuch", 1, "nosuch"),
        ("base tuned", 2, "--data"),
        ("base tuned --data digits.npy --block up_block.0", 2, "up_blocks.0"),
        ("base tuned --data digits.npy --timesteps 1000", 2, "0 to 999"),
        ("base tuned --data digits.npy -n 1000000", 2, "images, not 1000000"),
        ("base tuned --data digits.npy --size 7", 2, "multiples of"),
        ("base tuned --data digits.npy --by pixel --plot a.svg --block output --block mid_block", 2, "one block"),
        ("base tuned --data digits.npy --config cifar10", 1, "configuration says"),
        ("base tuned --data digits.npy --csv tuned/diffusion_pytorch_model.safetensors", 1, "one of the models"),
        ("base tuned --data digits.npy --csv digits.npy", 1, "would be lost"),
        ("base tuned --data digits.npy --csv tuned/config.json", 1, "would be lost"),
    ] {
        run(folder.path(), &format!("activations {arguments}")).fails(code, &[says]);
    }
    Ok(())
}

#[test]
fn gradients_are_told_and_drawn() -> Outcome {
    let folder = TempDir::new()?;
    let data = digits(folder.path())?;
    let command = format!("similarity --gradients tuned {data} --points 3 --samples 4");
    let ran = run(folder.path(), &format!("{command} --json --csv all.csv --plot cosines.svg")).ok();
    let found = ran.json();
    assert_eq!(found["timesteps"], serde_json::json!([166, 500, 833]));
    assert_eq!(found["cosine"][0][0], 1.0);
    assert_eq!(found["cosine"][0][2], found["cosine"][2][0]);
    assert!(found["cosine"][0][2].as_f64().is_some_and(|cosine| cosine < 0.99));
    assert_eq!(std::fs::read_to_string(folder.path().join("all.csv"))?.lines().count(), 7);
    assert!(std::fs::read_to_string(folder.path().join("cosines.svg"))?.contains("Cosine of the gradients"));
    assert_eq!(run(folder.path(), &format!("{command} --json -j 1")).ok().stdout, ran.stdout);
    let text = run(folder.path(), &command).ok().stdout;
    assert!(text.contains("Cosine of the gradients of tuned"), "{text}");
    let some = run(folder.path(), &format!("{command} --include adapter_list --json")).ok().json();
    assert!(some["parameters"].as_u64() < found["parameters"].as_u64());

    for (arguments, code, says) in [
        ("--gradients base", 2, "--data"),
        ("base tuned --data digits.npy", 2, "--gradients"),
        ("base tuned --seed 3", 2, "--gradients"),
        ("base tuned --points 3", 2, "--gradients"),
        ("--gradients base tuned --data digits.npy", 2, "one model alone"),
        ("--gradients base --data digits.npy --base-less", 2, "--base-less"),
        ("--gradients base --data digits.npy --csv digits.npy", 1, "would be lost"),
        ("--gradients base --data digits.npy --shared", 2, "--shared"),
        ("--gradients base --data digits.npy --by layer", 2, "--by"),
        ("--gradients base --data digits.npy --include nosuch", 2, "no tensor's name matches"),
        ("--gradients base --data digits.npy --points 1000 --samples 1 --memory 32M", 2, "--points"),
    ] {
        run(folder.path(), &format!("similarity {arguments}")).fails(code, &[says]);
    }
    Ok(())
}
