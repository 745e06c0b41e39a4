//! Images from a network, an ensemble of two, and the command that makes them.

use super::unet::weights_of;
use super::{farthest, goldens, numbers, with_threads};
use crate::model::{Outcome, binary, names_in, root, run};
use candle_core::{Device, Tensor};
use ckptmerge::Checkpoint;
use ckptmerge::diffusion::schedulers::{Config, SCHEDULERS, by_name};
use ckptmerge::diffusion::{Ddpm, Model, Noise, Sampling, sample, to_images};
use ckptmerge::eval::{self, Reference, Statistics};
use ckptmerge::images::{Image, Set};
use ckptmerge::stream::Control;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The networks of the goldens as folders: one, and another whose weights follow from other names.
fn models(folder: &Path) -> Outcome<[PathBuf; 2]> {
    let cases: Value = serde_json::from_slice(&std::fs::read(root().join("fixtures/unet/cases.json"))?)?;
    let config = &cases["cases"]["gradients"];
    let model = |name: &str, prefix: &str| -> Outcome<PathBuf> {
        let path = folder.join(name);
        std::fs::create_dir(&path)?;
        std::fs::write(path.join("config.json"), config.to_string())?;
        let tensors = weights_of(config, prefix)?;
        candle_core::safetensors::save(&tensors, path.join("diffusion_pytorch_model.safetensors"))?;
        Ok(path)
    };
    Ok([model("one", "")?, model("other", "other.")?])
}

fn open(paths: &[PathBuf]) -> Outcome<Vec<Ddpm>> {
    paths.iter().map(|path| Ok(Ddpm::open(Checkpoint::open(path)?, None)?)).collect()
}

/// All samples of a run.
fn sampled(models: &[Ddpm], sampling: &Sampling<'_>) -> Outcome<Tensor> {
    let mut all = Vec::new();
    let models: Vec<&dyn Model> = models.iter().map(|model| model as &dyn Model).collect();
    sample(&models, sampling, Control::none(), |samples| {
        all.push(samples);
        Ok(())
    })?;
    Ok(Tensor::cat(&all, 0)?)
}

#[test]
fn images_of_one_network_and_of_an_ensemble_are_diffusers() -> Outcome {
    let folder = TempDir::new()?;
    let paths = models(folder.path())?;
    let goldens = goldens("unet/expected.safetensors")?;
    let scheduler = || Config::ddpm().with("prediction_type", "v_prediction").build(Some(by_name("ddim")?), 50);
    let start = (Tensor::from_vec(numbers("noise", 3 * 64), (3, 1, 8, 8), &Device::Cpu)? * 1.5)?;
    for (case, count) in [("one", 1), ("two", 2)] {
        let models = open(&paths[..count])?;
        for batch in [3, 2] {
            let sampling = Sampling {
                scheduler: &scheduler,
                train_timesteps: 1000,
                noise: Noise::new(0),
                start: Some(&start),
                images: 0..3,
                size: (8, 8),
                batch,
                device: &Device::Cpu,
            };
            let off = farthest(&sampled(&models, &sampling)?, &goldens[&format!("sample.{case}")])?;
            assert!(off < 1e-4, "{case} in batches of {batch}: off by {off}");
        }
    }
    Ok(())
}

/// A network that was trained, from the same noise, by two schedulers.
#[test]
fn digits_are_those_that_diffusers_samples() -> Outcome {
    let goldens = goldens("digits-ddpm/expected.safetensors")?;
    let model = Ddpm::open(Checkpoint::open(root().join("fixtures/digits-ddpm/model"))?, None)?;
    let config = model.scheduler().ok_or("the pipeline has a scheduler")?.clone();
    for (name, steps) in [("ddim", 50), ("dpm++", 20)] {
        let scheduler = || config.build(Some(by_name(name)?), steps);
        let sampling = Sampling {
            scheduler: &scheduler,
            train_timesteps: config.train_timesteps(),
            noise: Noise::new(0),
            start: Some(&goldens["noise"]),
            images: 0..4,
            size: (8, 8),
            batch: 4,
            device: &Device::Cpu,
        };
        let off = farthest(&sampled(std::slice::from_ref(&model), &sampling)?, &goldens[name])?;
        assert!(off < 1e-4, "{name} is off by {off}");
    }
    Ok(())
}

/// From the sampler to the distance in memory, and by way of a file and the command.
#[test]
fn images_are_judged_without_touching_the_disk() -> Outcome {
    let fixture = root().join("fixtures/digits-ddpm");
    let model = Ddpm::open(Checkpoint::open(fixture.join("model"))?, None)?;
    let config = model.scheduler().ok_or("the pipeline has a scheduler")?.clone();
    let scheduler = || config.build(Some(by_name("dpm++")?), 5);
    let sampling = Sampling {
        scheduler: &scheduler,
        train_timesteps: 1000,
        noise: Noise::new(2),
        start: None,
        images: 0..70,
        size: (8, 8),
        batch: 70,
        device: &Device::Cpu,
    };
    let images = to_images(&sampled(&[model], &sampling)?)?;
    let extractor = eval::extractor("digits", None)?;
    let features = |batch: Vec<Image>, origin: &str| {
        eval::features(extractor.as_ref(), std::iter::once(Ok(batch)), origin, Control::none())
    };
    let digits = Checkpoint::open(root().join("fixtures/digits/images.npy"))?;
    let name = Set::array_in(&digits)?.ok_or("no array")?.to_owned();
    let digits = Set::of_array(digits, &name)?;
    let real = digits.batches(2000).next().ok_or("no digits")??;
    let reference = Reference::new(Statistics::of(&features(real, "digits")?)?);
    let distance = reference.distance_of(&features(images.iter().collect(), "samples")?)?;

    let folder = TempDir::new()?;
    let path = fixture.display();
    run(folder.path(), &format!("sample {path}/model -n 70 --scheduler dpm++ --steps 5 --seed 2 --batch 9 -o a.npz"))
        .ok();
    let found =
        run(folder.path(), &format!("fid {path}/../digits/images.npy a.npz --features digits --json")).ok().json();
    let of_files = found["value"].as_f64().ok_or("no distance")?;
    assert!((distance - of_files).abs() <= 1e-9 * distance, "{distance} in memory, {of_files} of files");
    Ok(())
}

/// Few images go through one expert after the other, many through all that stay in memory, each with the same result.
#[test]
fn ensembles_make_the_same_of_few_images_and_of_many() -> Outcome {
    let folder = TempDir::new()?;
    let models = open(&models(folder.path())?)?;
    let scheduler = || Config::ddpm().build(Some(by_name("heun")?), 4);
    let run = |count: usize, batch: usize| {
        let sampling = Sampling {
            scheduler: &scheduler,
            train_timesteps: 1000,
            noise: Noise::new(1),
            start: None,
            images: 0..count,
            size: (8, 8),
            batch,
            device: &Device::Cpu,
        };
        sampled(&models, &sampling)
    };
    let many = run(150, 50)?;
    assert!(150 * 64 * 4 * 6 > models[1].bytes() && 5 * 64 * 4 * 6 < models[1].bytes());
    assert_eq!(farthest(&many.narrow(0, 0, 5)?, &run(5, 2)?)?, 0.0);
    Ok(())
}

/// By every scheduler, with noise of their own steps too.
#[test]
fn images_depend_on_neither_batch_nor_threads_nor_company() -> Outcome {
    let folder = TempDir::new()?;
    let paths = models(folder.path())?;
    for entry in SCHEDULERS {
        let run = |images: std::ops::Range<usize>, batch: usize, threads: usize| -> Outcome<Tensor> {
            let eta = if entry.name == "ddim" { 1.0 } else { 0.0 };
            let scheduler = || Config::ddpm().with_eta(eta).build(Some(entry), 6);
            let sampling = Sampling {
                scheduler: &scheduler,
                train_timesteps: 1000,
                noise: Noise::new(7),
                start: None,
                images,
                size: (8, 8),
                batch,
                device: &Device::Cpu,
            };
            with_threads(threads, || {
                open(&paths).and_then(|models| sampled(&models, &sampling)).map_err(|error| error.to_string())
            })?
            .map_err(Into::into)
        };
        let all = run(0..7, 7, 2)?;
        for (images, batch, threads) in [(0..7, 1, 1), (0..7, 3, 3), (4..6, 16, 1)] {
            let some = all.narrow(0, images.start, images.len())?;
            assert_eq!(farthest(&run(images, batch, threads)?, &some)?, 0.0, "{} in batches of {batch}", entry.name);
        }
        let other = all.narrow(0, 0, 1)?;
        assert!(farthest(&other, &all.narrow(0, 1, 1)?)? > 0.1, "{}: images are all the same", entry.name);
    }
    Ok(())
}

#[test]
fn samples_are_rounded_to_even_and_clipped() -> Outcome {
    let at = |level: f32| level / 255.0 * 2.0 - 1.0;
    let samples = [at(0.4), at(254.6), at(77.0), -3.0, 3.0, at(128.2)];
    let samples = Tensor::new(&samples, &Device::Cpu)?.reshape((1, 2, 1, 3))?;
    let images = to_images(&samples)?;
    assert_eq!(images.samples, [0, 0, 255, 255, 77, 128]);
    assert_eq!((images.count, images.height, images.width, images.channels), (1, 1, 3, 2));
    Ok(())
}

#[test]
fn the_command_writes_the_same_images_in_every_form() -> Outcome {
    let folder = TempDir::new()?;
    models(folder.path())?;
    let written = |extra: &str, to: &str| -> Outcome<Vec<u8>> {
        run(folder.path(), &format!("sample one -n 5 --steps 4 --seed 3 {extra} -o {to}")).ok();
        Ok(std::fs::read(folder.path().join(to))?)
    };
    let array = written("", "a.npz")?;
    assert_eq!(array, written("--batch 2 -j 1", "b.npz")?);
    assert_eq!(array, written("--scheduler ddim", "c.npz")?, "ddim is the default");
    assert_ne!(array, written("--eta 0.5", "d.npz")?);
    let grid = written("", "grid.png")?;
    assert!(grid.starts_with(b"\x89PNG"));
    let width = |png: &[u8]| png[16..20].iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
    let large = written("--zoom 4", "large.png")?;
    assert!(width(&large) > 3 * width(&grid), "{} and {}", width(&grid), width(&large));
    let document = run(folder.path(), "sample one other --ensemble -n 2 -o images --json").ok().json();
    assert_eq!((&document["images"], &document["scheduler"]), (&2.into(), &"ddim".into()));
    let names = || names_in(&folder.path().join("images"));
    assert_eq!(names(), ["00000.png", "00001.png"]);
    // Images go by their numbers, and none that another run made is lost.
    let more = "sample one -n 2 --first 2 --steps 2 -o images";
    run(folder.path(), more).fails(1, &[".png`, which would be lost"]);
    assert_eq!(names().len(), 2);
    run(folder.path(), "sample one -n 3 --steps 2 -o images").ok();
    run(folder.path(), "sample one -n 2 --first 3 --steps 2 -o rest").ok();
    assert_eq!(names_in(&folder.path().join("rest")), ["00003.png", "00004.png"]);
    Ok(())
}

/// Networks without a word on their noise are told of, and candle's backtraces are kept from users.
#[test]
fn what_is_assumed_is_told() -> Outcome {
    let folder = TempDir::new()?;
    models(folder.path())?;
    let ran = run(folder.path(), "sample one -n 1 --steps 2 -o out.png").ok();
    assert!(ran.stderr.contains("--scheduler-config"), "{}", ran.stderr);
    let broken = Tensor::full(f32::NAN, (1, 1, 8, 8), &Device::Cpu)?;
    candle_core::safetensors::save(&[("noise".to_owned(), broken)].into(), folder.path().join("nan.st"))?;
    run(folder.path(), "sample one -n 1 --noise nan.st -o out.png").fails(1, &["nan.st", "not finite"]);
    // Of several models the one is named whose answers are broken.
    let name = "diffusion_pytorch_model.safetensors";
    let mut tensors = candle_core::safetensors::load(folder.path().join("other").join(name), &Device::Cpu)?;
    let bias = (&tensors["conv_out.bias"] * f64::NAN)?;
    tensors.insert("conv_out.bias".to_owned(), bias);
    std::fs::create_dir(folder.path().join("broken"))?;
    std::fs::copy(folder.path().join("other/config.json"), folder.path().join("broken/config.json"))?;
    candle_core::safetensors::save(&tensors, folder.path().join("broken").join(name))?;
    for models in ["one broken other --ensemble", "one other broken --ensemble", "broken"] {
        let ran = run(folder.path(), &format!("sample {models} -n 2 --steps 4 -o out.png"));
        ran.fails(1, &["images 0 to 1 of broken", "NaN"]);
    }
    let mut command = binary();
    command.args(["sample", "one", "--config", "cifar10", "--steps", "2", "-o", "out.png"]);
    let output = command.env("RUST_BACKTRACE", "1").current_dir(folder.path()).output()?;
    let said = String::from_utf8(output.stderr)?;
    let errors: Vec<&str> = said.lines().filter(|line| !line.starts_with("warning")).collect();
    assert!(matches!(errors[..], [line] if line.contains("[512, 128]")), "{said}");
    Ok(())
}

/// Outputs that cannot be written, or would replace what is read, are refused before anything is sampled.
#[test]
fn outputs_are_checked_before_the_work() -> Outcome {
    let folder = TempDir::new()?;
    let [one, other] = models(folder.path())?;
    run(folder.path(), "convert one model.npz").ok();
    let before = std::fs::read(folder.path().join("model.npz"))?;
    std::fs::create_dir_all(folder.path().join("images/00000.png"))?;
    std::fs::write(folder.path().join("file"), "text")?;
    for (arguments, says) in [
        ("model.npz --config one -o model.npz", "one of the models"),
        ("one -o missing/out.npz", "make it first"),
        ("one -o file", "not a folder"),
        ("one -o images", "`00000.png`, which would be lost"),
    ] {
        run(folder.path(), &format!("sample {arguments} -n 3000")).fails(1, &[says]);
    }
    assert_eq!(std::fs::read(folder.path().join("model.npz"))?, before);
    let scheduler = |path: &Path, beta: f64| {
        let text = format!(r#"{{"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_end": {beta}}}"#);
        std::fs::write(path.join("scheduler_config.json"), text)
    };
    scheduler(&one, 0.02)?;
    scheduler(&other, 0.01)?;
    run(folder.path(), "sample one other --ensemble -n 1 -o a.npz").fails(2, &["different noise schedules"]);
    scheduler(&other, 0.02)?;
    run(folder.path(), "sample one other --ensemble -n 1 --steps 2 -o a.npz").ok();
    Ok(())
}

/// The same model in other formats, types and layouts: a file, a pipeline's folder, and Google's, which has all in one folder.
#[test]
fn models_of_any_format_and_layout_are_sampled_from() -> Outcome {
    let folder = TempDir::new()?;
    let [one, _] = models(folder.path())?;
    let sample = |model: &str| -> Outcome<Vec<u8>> {
        run(folder.path(), &format!("sample {model} -n 2 --steps 3 -o out.npz")).ok();
        Ok(std::fs::read(folder.path().join("out.npz"))?)
    };
    let expected = sample("one")?;
    for (file, of) in [("one.pt", "one"), ("one.npz", "one.pt"), ("one.gguf", "one"), ("one.safetensors", "one.npz")] {
        run(folder.path(), &format!("convert {of} {file}")).ok();
        assert_eq!(sample(&format!("{file} --config one/config.json"))?, expected, "{file}");
    }
    run(folder.path(), "convert one old.safetensors --rename diffusers-attention-old").ok();
    let names = Checkpoint::open(folder.path().join("old.safetensors"))?;
    assert!(names.get("mid_block.attentions.0.proj_attn.weight").is_some(), "the map renamed nothing");
    assert_eq!(sample("old.safetensors --config one/config.json")?, expected);

    let index = r#"{"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}"#;
    let scheduler = r#"{"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_end": 0.01}"#;
    let pipeline = folder.path().join("pipeline");
    std::fs::create_dir_all(pipeline.join("scheduler"))?;
    std::fs::rename(&one, pipeline.join("unet"))?;
    std::fs::write(pipeline.join("model_index.json"), index)?;
    let plain = sample("pipeline")?;
    assert_eq!(plain, expected);
    std::fs::write(pipeline.join("scheduler/scheduler_config.json"), scheduler)?;
    let other = sample("pipeline")?;
    assert_ne!(other, expected, "the folder's scheduler is another");
    assert_eq!(sample("pipeline/unet")?, other, "the scheduler of a network's own pipeline");
    let stated = "--scheduler-config pipeline/scheduler/scheduler_config.json";
    assert_eq!(sample(&format!("one.pt --config pipeline/unet {stated}"))?, other);
    let google = folder.path().join("google");
    std::fs::rename(pipeline.join("unet"), &google)?;
    std::fs::write(google.join("model_index.json"), index)?;
    std::fs::write(google.join("scheduler_config.json"), scheduler)?;
    assert_eq!(sample("google")?, other);
    Ok(())
}

#[test]
fn what_cannot_be_sampled_is_told() -> Outcome {
    let folder = TempDir::new()?;
    models(folder.path())?;
    let zeros = Tensor::zeros((2, 1, 8, 8), candle_core::DType::F32, &Device::Cpu)?;
    candle_core::safetensors::save(&[("noise".to_owned(), zeros)].into(), folder.path().join("noise.st"))?;
    let lone = folder.path().join("lone");
    std::fs::create_dir(&lone)?;
    std::fs::copy(folder.path().join("one/diffusion_pytorch_model.safetensors"), lone.join("lone.st"))?;
    for (arguments, says, code) in [
        ("one other", "--ensemble", 2),
        ("one --scheduler dimm", "ddim", 2),
        ("one --steps 0", "0", 2),
        ("one --steps 2000", "2000", 2),
        ("one --prompt x", "without being told", 2),
        ("one --zoom 0", "zoom", 2),
        ("one --size 7", "multiples of 2", 2),
        ("one --noise noise.st -n 3", "[2, 1, 8, 8]", 1),
        ("one --scheduler euler --eta 0.5", "eta", 2),
        ("one --device cuda:1", "--features cuda", 2),
        ("one --device tpu", "metal", 2),
        ("lone/lone.st", "--config", 1),
        ("lone/lone.st --config cifar10", "configuration says [512, 128]", 1),
        ("lone/lone.st --config imagenet", "church", 2),
    ] {
        run(folder.path(), &format!("sample {arguments} -o out.png")).fails(code, &[says]);
        assert!(!folder.path().join("out.png").exists());
    }
    run(folder.path(), "sample one --noise noise.st -n 2 -o out.png").ok();
    Ok(())
}

/// A tensor that the network has no place for, and one whose shape is another.
#[test]
fn weights_that_do_not_fit_are_named() -> Outcome {
    let folder = TempDir::new()?;
    let [one, _] = models(folder.path())?;
    let file = one.join("diffusion_pytorch_model.safetensors");
    let tensors = candle_core::safetensors::load(&file, &Device::Cpu)?;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    for (name, tensor, says) in [
        ("down_blocks.0.extra", zeros(&[3])?, "has no place for `down_blocks.0.extra`"),
        ("conv_in.weight", zeros(&[8, 1, 5, 5])?, "`conv_in.weight` has shape [8, 1, 5, 5]"),
        ("adapter_list.0.weight", zeros(&[8, 8])?, "`adapter_list.0.weight` has shape [8, 8]"),
        ("adapter_list.5.weight", zeros(&[8, 8, 1, 1])?, "has no place for `adapter_list.5.weight`"),
    ] {
        let mut changed = tensors.clone();
        changed.insert(name.to_owned(), tensor);
        candle_core::safetensors::save(&changed, &file)?;
        let error = Ddpm::open(Checkpoint::open(&one)?, None)?.unet(&Device::Cpu).expect_err(name).to_string();
        assert!(error.contains(says) && error.contains("one"), "{error}");
    }
    let mut broken = tensors;
    broken.insert("conv_out.bias".to_owned(), Tensor::new(&[f32::NAN], &Device::Cpu)?);
    candle_core::safetensors::save(&broken, &file)?;
    run(folder.path(), "sample one --steps 2 -o out.png").fails(1, &["not numbers"]);
    assert!(!folder.path().join("out.png").exists());
    Ok(())
}
