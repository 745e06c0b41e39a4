//! Stable Diffusion against diffusers: tokens, each network, whole images, and what is refused.

use crate::model::{Outcome, fixture, names_in, run};
use candle_core::{DType, Device, Tensor};
use ckptmerge::Checkpoint;
use ckptmerge::diffusion::schedulers::{Scheduler, by_name};
use ckptmerge::diffusion::stable_diffusion::{ClipTokenizer, Prompt, StableDiffusion, Tokens};
use ckptmerge::diffusion::{Noise, Sampling, sample, to_images};
use ckptmerge::stream::Control;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use tempfile::tempdir;

const LARGEST: f32 = 1e-3;

fn json(name: &str) -> Outcome<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(fixture(&format!("stable_diffusion/{name}")))?)?)
}

fn expected() -> Outcome<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(fixture("stable_diffusion/expected.safetensors"), &Device::Cpu)?)
}

fn open(folder: &Path) -> Outcome<StableDiffusion> {
    Ok(StableDiffusion::open(Checkpoint::open(folder)?, DType::F32, &Device::Cpu)?)
}

fn pipeline() -> Outcome<StableDiffusion> {
    open(&fixture("stable_diffusion/pipeline"))
}

fn ids(row: &Value) -> Vec<u32> {
    row.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|id| id as u32).collect()
}

/// The largest difference.
fn off(ours: &Tensor, theirs: &Tensor) -> Outcome<f32> {
    assert_eq!(ours.dims(), theirs.dims());
    let off: Vec<f32> = (ours - theirs)?.abs()?.flatten_all()?.to_vec1()?;
    Ok(off.into_iter().fold(0.0, |most, x| if x.is_nan() { f32::INFINITY } else { most.max(x) }))
}

#[test]
fn tokens_are_those_of_transformers() -> Outcome {
    let folder = fixture("stable_diffusion/pipeline/tokenizer");
    let alone = tempdir()?;
    std::fs::copy(folder.join("tokenizer.json"), alone.path().join("tokenizer.json"))?;
    let rows = json("tokens.json")?;
    let rows = rows.as_array().ok_or("a list")?;
    assert!(rows.len() >= 20);
    // Of the two files, and of the one, with what CLIP's settings are by default.
    for folder in [folder.as_path(), alone.path()] {
        let tokenizer = ClipTokenizer::open(folder)?;
        let mut cut = 0;
        for row in rows {
            let text = row["text"].as_str().ok_or("a text")?;
            let tokens = tokenizer.tokens(text)?;
            assert_eq!(tokens.ids, ids(&row["ids"]), "{text:?}");
            let all = ids(&row["all"]).len();
            assert_eq!(tokens.left_out.is_some(), all > 77, "{text:?}: {all}");
            if let Some(left_out) = &tokens.left_out {
                assert!(text.ends_with(left_out.as_str()) && !left_out.is_empty(), "{left_out:?}");
                cut += 1;
            }
        }
        assert!(cut >= 3, "{cut} texts were too long");
    }
    Ok(())
}

#[test]
fn each_network_answers_as_diffusers_does() -> Outcome {
    let (pipeline, expected) = (pipeline()?, expected()?);
    let rows = json("tokens.json")?;
    let hidden: Vec<Tensor> = [2, 17]
        .iter()
        .map(|&row: &usize| Ok(pipeline.encode(&Tokens { ids: ids(&rows[row]["ids"]), left_out: None })?))
        .collect::<Outcome<_>>()?;
    let hidden = Tensor::cat(&hidden, 0)?;
    let latents = &expected["latents"];
    let square = latents.narrow(2, 0, 8)?.contiguous()?;
    let odd = latents.narrow(2, 0, 10)?.narrow(3, 0, 6)?.contiguous()?;
    let texts = &expected["hidden"];
    for (what, ours) in [
        ("hidden", &hidden),
        ("answer", &pipeline.denoise(&square, 481.0, texts)?),
        ("late_answer", &pipeline.denoise(&square, 981.0, texts)?),
        ("odd_answer", &pipeline.denoise(&odd, 21.0, texts)?),
        ("decoded", &pipeline.decode(&square)?),
    ] {
        let off = off(ours, &expected[what])?;
        println!("{what}: {off:e}");
        assert!(off <= LARGEST, "{what} is {off:e} off");
    }
    Ok(())
}

#[test]
fn images_are_those_of_diffusers() -> Outcome {
    let (pipeline, expected, runs) = (pipeline()?, expected()?, json("runs.json")?);
    let config = pipeline.scheduler_config()?;
    let list = runs["runs"].as_array().ok_or("a list of runs")?;
    assert!(list.len() >= 5);
    for (i, run) in list.iter().enumerate() {
        let number = |key: &str| run[key].as_f64().unwrap_or_else(|| panic!("{run} has no {key}"));
        let mut prompt = Prompt::new(runs["text"].as_str().ok_or("a text")?);
        prompt.negative = run["negative"].as_str().ok_or("a text")?.to_owned();
        prompt.guidance = number("guidance");
        (prompt.height, prompt.width) = (Some(number("height") as usize), Some(number("width") as usize));
        let (height, width) = pipeline.size(&prompt)?;
        let start = expected["latents"].narrow(2, 0, height / 2)?.narrow(3, 0, width / 2)?.contiguous()?;
        let entry = by_name(run["scheduler"].as_str().ok_or("a name")?)?;
        let scheduler = || config.build(Some(entry), number("steps") as usize);
        let latents = latents(&pipeline, &prompt, &scheduler, Some(&start), 0..start.dim(0)?, 1)?;
        let theirs = &expected[&format!("run_{i}_latents")];
        let scale = theirs.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
        let latents_off = off(&latents, theirs)? / scale;
        let image = pipeline.decode(&latents)?.affine(0.5, 0.5)?.clamp(0f32, 1f32)?;
        let image_off = off(&image, &expected[&format!("run_{i}")])?;
        println!("{run}: latents {latents_off:e}, image {image_off:e}");
        assert!(latents_off <= LARGEST && image_off <= LARGEST, "{run}: {latents_off:e}, {image_off:e}");
    }
    Ok(())
}

/// The pipeline with another content of a file, in a folder of its own.
fn changed(file: &str, change: impl FnOnce(&mut Value)) -> Outcome<tempfile::TempDir> {
    let folder = copied()?;
    let path = folder.path().join(file);
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    change(&mut value);
    std::fs::write(path, value.to_string())?;
    Ok(folder)
}

fn copied() -> Outcome<tempfile::TempDir> {
    let folder = tempdir()?;
    let from = fixture("stable_diffusion/pipeline");
    let mut files = 0;
    for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        std::fs::create_dir_all(folder.path().join(part))?;
        for name in names_in(&from.join(part)) {
            if from.join(part).join(&name).is_file() {
                std::fs::copy(from.join(part).join(&name), folder.path().join(part).join(&name))?;
                files += 1;
            }
        }
    }
    assert_eq!(files, 12, "of the pipeline's files");
    Ok(folder)
}

/// Two images by DDIM, of noise of its own in each step.
fn sampled(pipeline: &StableDiffusion, images: std::ops::Range<usize>) -> Outcome<Vec<u8>> {
    let mut prompt = Prompt::new("a painting of a small house by the sea");
    prompt.negative = "blurry".to_owned();
    let config = pipeline.scheduler_config()?.with_eta(0.5);
    let scheduler = || config.build(Some(by_name("ddim")?), 3);
    let latents = latents(pipeline, &prompt, &scheduler, None, images.clone(), images.len())?;
    let made = to_images(&pipeline.decode(&latents)?)?;
    assert_eq!((made.count, made.height, made.width, made.channels), (images.len(), 16, 16, 3));
    assert_eq!(made.samples.len(), images.len() * 16 * 16 * 3);
    Ok(made.samples)
}

/// The latents of images, so many at a time.
fn latents(
    pipeline: &StableDiffusion,
    prompt: &Prompt,
    scheduler: &(dyn Fn() -> ckptmerge::Result<Box<dyn Scheduler>> + Sync),
    start: Option<&Tensor>,
    images: std::ops::Range<usize>,
    batch: usize,
) -> Outcome<Tensor> {
    let model = pipeline.prompted(prompt)?;
    let sampling = Sampling {
        scheduler,
        train_timesteps: 1000,
        noise: Noise::new(7),
        start,
        images,
        size: model.latent_size(),
        batch,
        device: &Device::Cpu,
    };
    let mut all = Vec::new();
    sample(&[&model], &sampling, Control::none(), |latents| {
        all.push(latents);
        Ok(())
    })?;
    Ok(Tensor::cat(&all, 0)?)
}

/// How many samples differ by more than one step of 256, as roundings of another order do.
fn unlike(a: &[u8], b: &[u8]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a.abs_diff(**b) > 1).count()
}

#[test]
fn an_image_depends_on_its_number_and_not_on_its_batch() -> Outcome {
    let pipeline = pipeline()?;
    let all = sampled(&pipeline, 0..3)?;
    let each: Vec<u8> = (0..3).map(|i| sampled(&pipeline, i..i + 1)).collect::<Outcome<Vec<_>>>()?.concat();
    assert!(all == each, "{} samples depend on the batch", unlike(&all, &each));
    let (first, second) = all.split_at(16 * 16 * 3);
    assert!(unlike(first, &second[..first.len()]) > 100, "two images are alike");
    let broken = Prompt { guidance: f64::NAN, ..Prompt::new("a") };
    assert!(pipeline.prompted(&broken).is_err());
    // What has no place is told.
    assert!(pipeline.remarks(&Prompt::new("a short one"))?.is_empty());
    let long = Prompt { negative: "a".repeat(100), ..Prompt::new(&"b ".repeat(77)) };
    let remarks = pipeline.remarks(&long)?;
    assert!(remarks.len() == 2 && remarks[0].ends_with("left out: `b b `"), "{remarks:?}");
    Ok(())
}

/// A pipeline in another format, in shards, merged, or with the names of older files makes the same images.
#[test]
fn any_form_of_a_pipeline_makes_the_same_images() -> Outcome {
    let images = sampled(&pipeline()?, 0..2)?;
    let folder = tempdir()?;
    let source = fixture("stable_diffusion/pipeline");
    let source = source.to_str().ok_or("a path of text")?;
    for command in [
        format!("convert {source} bin --to pytorch"),
        format!("convert {source} shards --shard-size 30K --dtype f32"),
        format!("merge {source} {source} -o merged --weights 0.25,0.75"),
    ] {
        run(folder.path(), &command).ok();
        let name = command.split(' ').find(|word| ["bin", "shards", "merged"].contains(word)).ok_or("a name")?;
        assert_eq!(sampled(&open(&folder.path().join(name))?, 0..2)?, images, "{command}");
    }

    let old = copied()?;
    let rename = |file: &str, change: &dyn Fn(&str) -> String| -> Outcome {
        let path = old.path().join(file);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
        let renamed: HashMap<String, Tensor> =
            tensors.into_iter().map(|(name, tensor)| (change(&name), tensor)).collect();
        Ok(candle_core::safetensors::save(&renamed, path)?)
    };
    rename("text_encoder/model.safetensors", &|name| format!("text_model.{name}"))?;
    let pairs = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    rename("vae/diffusion_pytorch_model.safetensors", &|name| {
        pairs.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    })?;
    assert_eq!(sampled(&open(old.path())?, 0..2)?, images);
    Ok(())
}

#[test]
fn half_precision_makes_nearly_the_same_images() -> Outcome {
    let images = sampled(&pipeline()?, 0..2)?;
    let half = Checkpoint::open(fixture("stable_diffusion/pipeline"))?;
    let half = sampled(&StableDiffusion::open(half, DType::F16, &Device::Cpu)?, 0..2)?;
    let off: f64 = images.iter().zip(&half).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / images.len() as f64;
    assert!(off < 3.0, "{off} of 255");
    Ok(())
}

/// What a part's configuration says that is not supported is an error that names the file and the key.
#[test]
fn what_is_not_supported_is_named() -> Outcome {
    let (unet, vae, text) = ("unet/config.json", "vae/config.json", "text_encoder/config.json");
    let cases = [
        ("model_index.json", "_class_name", json!("StableDiffusionXLPipeline")),
        (unet, "_class_name", json!("UNet2DModel")),
        (unet, "in_channels", json!(9)),
        (unet, "sample_size", json!([8])),
        (unet, "norm_num_groups", json!(null)),
        (unet, "norm_num_groups", json!(0)),
        (unet, "block_out_channels", json!([])),
        (unet, "block_out_channels", json!([8, 18, 16])),
        (unet, "attention_head_dim", json!(3)),
        (unet, "attention_head_dim", json!([2, 4])),
        (unet, "down_block_types", json!(["CrossAttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"])),
        (unet, "up_block_types", json!(["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"])),
        (unet, "layers_per_block", json!([1, 2, 1])),
        (unet, "downsample_padding", json!(3)),
        (unet, "freq_shift", json!(4)),
        (unet, "mid_block_scale_factor", json!(0)),
        (unet, "act_fn", json!("gelu")),
        (unet, "mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        (unet, "only_cross_attention", json!(true)),
        (unet, "class_embed_type", json!("timestep")),
        (unet, "addition_embed_type", json!("text_time")),
        (unet, "num_attention_heads", json!(8)),
        (unet, "resnet_time_scale_shift", json!("scale_shift")),
        (unet, "conv_in_kernel", json!(1)),
        (unet, "time_cond_proj_dim", json!(256)),
        (unet, "cross_attention_dim", json!(64)),
        (unet, "cross_attention_dim", json!("wide")),
        (unet, "something_new", json!(true)),
        (vae, "latent_channels", json!(16)),
        (vae, "out_channels", json!(4)),
        (vae, "up_block_types", json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])),
        (vae, "scaling_factor", json!(0)),
        (vae, "shift_factor", json!(0.1)),
        (vae, "mid_block_add_attention", json!(false)),
        (vae, "block_out_channels", json!([8, 16, 1u64 << 40])),
        (text, "hidden_act", json!("gelu")),
        (text, "layer_norm_eps", json!(1e-6)),
        (text, "num_attention_heads", json!(5)),
        (text, "num_attention_heads", json!(0)),
        (text, "vocab_size", json!(10)),
        (text, "max_position_embeddings", json!(76)),
        (text, "architectures", json!(["CLIPTextModelWithProjection"])),
        ("tokenizer/tokenizer_config.json", "model_max_length", json!(2)),
    ];
    for (file, key, value) in cases {
        let folder = changed(file, |config| config[key] = value.clone())?;
        let error = open(folder.path()).err().ok_or_else(|| format!("{file}: {key} {value}"))?.to_string();
        let named = if key == "architectures" { "CLIPTextModelWithProjection" } else { key };
        let class = key == "_class_name" && value.as_str().is_some_and(|class| error.contains(class));
        assert!(error.contains(named) || class, "{file}: {key} {value}: {error}");
    }
    // Weights that the configuration does not describe, and too few of them.
    for (file, key, value) in
        [(vae, "layers_per_block", 2), (unet, "layers_per_block", 2), (text, "num_hidden_layers", 1)]
    {
        let folder = changed(file, |config| config[key] = json!(value))?;
        let error = open(folder.path()).err().ok_or(file)?.to_string();
        assert!(error.contains('`') && error.contains("configuration") || error.contains("config.json"), "{error}");
    }
    for (folder, says) in [("unet", "`unet`"), ("text_encoder", "`text_encoder`")] {
        let copy = copied()?;
        std::fs::remove_dir_all(copy.path().join(folder))?;
        let error = open(copy.path()).err().ok_or(folder)?.to_string();
        assert!(error.contains(says) && error.contains("sd-to-diffusers"), "{error}");
    }
    for height in [0, 17, 1 << 20] {
        let prompt = Prompt { height: Some(height), ..Prompt::new("a") };
        let error = pipeline()?.size(&prompt).expect_err("there are no such images").to_string();
        assert!(error.contains(&height.to_string()) && error.contains("multiples of 2"), "{error}");
    }
    Ok(())
}

#[test]
fn broken_tokenizers_are_named() -> Outcome {
    let cases: [(&str, &str, &str); 8] = [
        ("vocab.json", "[]", "vocab.json"),
        ("vocab.json", "{}", "<|startoftext|>"),
        ("vocab.json", r#"{"<|startoftext|>": "0", "<|endoftext|>": 1}"#, "<|startoftext|>"),
        ("vocab.json", r#"{"<|startoftext|>": 0, "<|endoftext|>": 1, "a": -7}"#, "tokenizer"),
        ("merges.txt", "#version: 0.2\na b\nthree of them\n", "line 3"),
        ("merges.txt", "not known\n", "not"),
        ("added_tokens.json", r#"{"<my-style>": 664}"#, "<my-style>"),
        ("tokenizer_config.json", r#"{"pad_token": "!!"}"#, "`!!`"),
    ];
    for (file, content, says) in cases {
        let copy = copied()?;
        let folder = copy.path().join("tokenizer");
        std::fs::write(folder.join(file), content)?;
        let error = ClipTokenizer::open(&folder).err().ok_or_else(|| format!("{file}: {content}"))?.to_string();
        assert!(error.contains(says), "{file} {content}: {error}");
    }
    let empty = tempdir()?;
    let error = ClipTokenizer::open(empty.path()).err().ok_or("there is nothing")?.to_string();
    assert!(error.contains("vocab.json"), "{error}");
    std::fs::write(empty.path().join("tokenizer.json"), r#"{"model": {"type": "WordPiece"}}"#)?;
    let error = ClipTokenizer::open(empty.path()).err().ok_or("another kind")?.to_string();
    assert!(error.contains("BPE"), "{error}");
    Ok(())
}

#[test]
fn the_command_makes_images_of_texts() -> Outcome {
    let folder = tempdir()?;
    let pipeline = fixture("stable_diffusion/pipeline");
    let model = pipeline.to_str().ok_or("a path of text")?;
    let written = |arguments: &str, to: &str| -> Outcome<Vec<u8>> {
        run(folder.path(), &format!("sample {model} {arguments} -o {to}")).ok();
        Ok(std::fs::read(folder.path().join(to))?)
    };
    let two = written("-n 2 --steps 3 --prompt sea --seed 4", "two.npz")?;
    assert_eq!(two, written("-n 2 --steps 3 --prompt sea --seed 4 --batch 1 -j 1", "one.npz")?);
    let plain = "-n 5 --prompt sea --guidance 1 --size 24x40 --scheduler dpm++ --steps 8";
    assert_eq!(
        written(&format!("{plain} --batch 5"), "five.npz")?,
        written(&format!("{plain} --batch 1"), "ones.npz")?
    );
    assert_ne!(two, written("-n 2 --steps 3 --prompt house --seed 4", "other.npz")?);
    assert_ne!(two, written("-n 2 --steps 3 --prompt sea --seed 4 --negative-prompt house", "negative.npz")?);
    assert_ne!(two, written("-n 2 --steps 3 --prompt sea --seed 4 --guidance 1", "plain.npz")?);
    assert_ne!(two, written("-n 2 --steps 3 --prompt sea --seed 4 --size 32x16", "large.npz")?);
    for (arguments, says) in [
        ("", "--prompt"),
        ("--prompt sea --config cifar10", "--config"),
        ("--prompt sea --size 17", "multiples of 2"),
        ("--prompt sea --guidance NaN", "guidance"),
        ("--guidance 3", "--prompt"),
    ] {
        run(folder.path(), &format!("sample {model} {arguments} -o out.png")).fails(2, &[says]);
    }
    Ok(())
}

/// Latents may be numbers and their images none.
#[test]
fn a_broken_decoder_is_told() -> Outcome {
    let folder = copied()?;
    let path = folder.path().join("vae/diffusion_pytorch_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let bias = tensors.get_mut("decoder.conv_out.bias").ok_or("no such tensor")?;
    *bias = (&*bias * f64::NAN)?;
    candle_core::safetensors::save(&tensors, &path)?;
    let arguments = format!("sample {} --prompt sea -n 1 --steps 2 -o out.png", folder.path().display());
    let here = tempdir()?;
    run(here.path(), &arguments).fails(1, &["not numbers"]);
    assert!(!here.path().join("out.png").exists());
    Ok(())
}
