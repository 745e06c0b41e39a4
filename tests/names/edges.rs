//! What the lists do not have: parts alone, older and newer names, what training leaves in files, and what is refused.

use super::{convert, list, numbered, read_pipeline, tensors, write_pipeline};
use crate::model::{Model, Outcome, Tensor, names_in, read};
use ckptmerge::dtype::DType;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::tempdir;

/// A file of these tensors under names that `name` makes.
fn write_file(path: &Path, tensors: &BTreeMap<String, Tensor>, name: impl Fn(&str) -> Option<String>) -> Outcome {
    let add = |model: Model, (full, tensor): (&String, &Tensor)| match name(full) {
        Some(name) => model.raw(&name, tensor.dtype, &tensor.shape, tensor.bytes.clone()),
        None => model,
    };
    tensors.iter().fold(Model::new(), add).write(path)?;
    Ok(())
}

/// A small model of a family: the pipeline's tensors, and the one file's.
fn both(family: &str) -> Outcome<[BTreeMap<String, Tensor>; 2]> {
    let folder = tempdir()?;
    let pipeline = numbered(&list(&format!("{family}-small"))?["diffusers"]);
    write_pipeline(&folder.path().join("p"), &pipeline, true)?;
    convert(folder.path(), "p sd.st --rename diffusers-to-sd").ok();
    Ok([pipeline, tensors(read(&folder.path().join("sd.st"))?)])
}

fn of_part(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let within = |(name, tensor): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()));
    tensors.iter().filter_map(within).collect()
}

#[test]
fn parts_alone_are_files_of_their_own() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let [pipeline, sd] = both("sdxl")?;
    for (part, prefix) in [
        ("unet", "model.diffusion_model."),
        ("vae", "first_stage_model."),
        ("text_encoder_2", "conditioner.embedders.1.model."),
    ] {
        let diffusers = of_part(&pipeline, &format!("{part}/"));
        write_file(&path.join("d.st"), &diffusers, |name| Some(name.to_owned()))?;
        convert(path, "d.st sd.st --rename diffusers-to-sd").ok();
        let expected: BTreeMap<_, _> = sd.clone().into_iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        assert!(tensors(read(&path.join("sd.st"))?) == expected, "{part}");
        convert(path, "sd.st back.st --to safetensors --rename sd-to-diffusers").ok();
        assert!(tensors(read(&path.join("back.st"))?) == diffusers, "{part}");
        // In a folder it is where a pipeline has it.
        convert(path, &format!("sd.st {part} --rename sd-to-diffusers")).ok();
        assert_eq!(names_in(&path.join(part)), [part]);
        convert(path, &format!("{part} again.st --rename diffusers-to-sd")).ok();
        assert!(read(&path.join("again.st"))? == read(&path.join("sd.st"))?, "{part}");
        if part != "text_encoder_2" {
            // As people pass them around, without the prefix; the VAE with its training's loss.
            let extra = Tensor { dtype: DType::F32, shape: vec![1], bytes: vec![0; 4] };
            let mut bare = of_part(&sd, prefix);
            if part == "vae" {
                bare.insert("loss.logvar".to_owned(), extra);
            }
            write_file(&path.join("bare.st"), &bare, |name| Some(name.to_owned()))?;
            let ran = convert(path, "bare.st bare-back.st --rename sd-to-diffusers").ok();
            assert_eq!(
                ran.stderr.contains("only training or sampling needs it: 1 tensor, such as `loss.logvar`"),
                part == "vae",
                "{}",
                ran.stderr
            );
            assert!(tensors(read(&path.join("bare-back.st"))?) == diffusers, "{part}");
        }
    }
    // The first text encoder is the same in both families.
    let first = of_part(&pipeline, "text_encoder/");
    write_file(&path.join("t.st"), &first, |name| Some(name.to_owned()))?;
    convert(path, "t.st o.st --rename diffusers-to-sd").fails(1, &["`text_model.", "together with its UNet"]);
    Ok(())
}

#[test]
fn names_of_other_versions_are_known() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let [pipeline, sd] = both("sd15")?;
    let positions =
        Tensor { dtype: DType::I64, shape: vec![1, 7], bytes: (0..7u64).flat_map(u64::to_le_bytes).collect() };
    // transformers from 5.6 on has no `text_model.`, and before 4.31 it saved positions; diffusers before 0.15 had other
    // names in the VAE.
    let other = |name: &str| {
        let name = name.replace("text_model.", "");
        let old = [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];
        if !name.starts_with("vae/") {
            return name;
        }
        old.iter().fold(name, |name, (new, old)| name.replace(new, old))
    };
    let mut changed: BTreeMap<String, Tensor> =
        pipeline.iter().map(|(name, tensor)| (other(name), tensor.clone())).collect();
    changed.insert("text_encoder/embeddings.position_ids".to_owned(), positions.clone());
    assert!(changed.keys().filter(|name| !pipeline.contains_key(*name)).count() > 200);
    write_pipeline(&path.join("p"), &changed, true)?;
    convert(path, "p sd.st --rename diffusers-to-sd").ok();
    let mut expected = sd.clone();
    let place = "cond_stage_model.transformer.text_model.embeddings.position_ids";
    expected.insert(place.to_owned(), positions);
    assert!(tensors(read(&path.join("sd.st"))?) == expected);
    // Some files lack `text_model.` as well.
    write_file(&path.join("short.st"), &expected, |name| Some(name.replace("text_model.", "")))?;
    convert(path, "short.st back --rename sd-to-diffusers").ok();
    let mut back = read_pipeline(&path.join("back"))?;
    assert!(back.remove("text_encoder/text_model.embeddings.position_ids").is_some());
    assert!(back == pipeline);
    Ok(())
}

#[test]
fn what_is_no_part_of_the_model_is_left_out_and_counted() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let [pipeline, sd] = both("sdxl")?;
    let number = Tensor { dtype: DType::F32, shape: vec![], bytes: vec![0; 4] };
    let mut with = sd.clone();
    let leftovers = [
        "model_ema.diffusion_modelinput_blocks00weight",
        "model_ema.decay",
        "alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "first_stage_model.loss.logvar",
        "denoiser.sigmas",
        "conditioner.embedders.1.model.logit_scale",
    ];
    with.extend(leftovers.map(|name| (name.to_owned(), number.clone())));
    write_file(&path.join("sd.st"), &with, |name| Some(name.to_owned()))?;
    let ran = convert(path, "sd.st out --rename sd-to-diffusers --json").ok();
    assert!(
        ran.stderr.contains("note: left out, as only training or sampling needs it: 7 tensors, such as `"),
        "{}",
        ran.stderr
    );
    let mut left_out: Vec<_> = leftovers.into();
    left_out.sort_unstable();
    let mut told: Vec<String> = serde_json::from_value(ran.json()["left_out"].clone())?;
    told.sort_unstable();
    assert_eq!(told, left_out);
    assert!(read_pipeline(&path.join("out"))? == pipeline);

    // What is not known is an error, unless it is left out.
    with.insert("model.diffusion_model.input_blocks.1.0.surprise.weight".to_owned(), number.clone());
    with.insert("stranger".to_owned(), number.clone());
    write_file(&path.join("sd.st"), &with, |name| Some(name.to_owned()))?;
    let says =
        ["sd-to-diffusers cannot name all tensors of sd.st", "--exclude", "`stranger`", "input_blocks.1.0.surprise"];
    convert(path, "sd.st again --rename sd-to-diffusers").fails(1, &says);
    assert!(!path.join("again").exists());
    convert(path, "sd.st again --rename sd-to-diffusers --exclude ^stranger$ --exclude surprise").ok();
    assert!(read_pipeline(&path.join("again"))? == pipeline);

    // The other way: a safety checker, which a single file does not have.
    let mut pipeline = pipeline;
    for name in ["safety_checker/concept_embeds", "safety_checker/vision_model.vision_model.pre_layrnorm.weight"] {
        pipeline.insert(name.to_owned(), number.clone());
    }
    write_pipeline(&path.join("p"), &pipeline, true)?;
    std::fs::rename(
        path.join("p/safety_checker/diffusion_pytorch_model.safetensors"),
        path.join("p/safety_checker/model.safetensors"),
    )?;
    let ran = convert(path, "p one.st --rename diffusers-to-sd").ok();
    assert!(ran.stderr.contains("safety checker") && ran.stdout.contains("without 2 tensors"), "{ran:?}");
    assert!(tensors(read(&path.join("one.st"))?) == sd);
    Ok(())
}

#[test]
fn what_does_not_fit_is_told_by_the_inputs_names() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let [pipeline, sd] = both("sdxl")?;
    let fails = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), options: &str, says: &[&str]| -> Outcome {
        let mut changed = pipeline.clone();
        change(&mut changed);
        let _ = std::fs::remove_dir_all(path.join("p"));
        write_pipeline(&path.join("p"), &changed, true)?;
        convert(path, &format!("p o.st --rename diffusers-to-sd {options}")).fails(1, says);
        assert!(!path.join("o.st").exists());
        Ok(())
    };
    let layer = "text_encoder_2/text_model.encoder.layers.3.self_attn";
    fails(
        &|model| drop(model.remove(&format!("{layer}.k_proj.weight"))),
        "",
        &[&format!("`{layer}.q_proj.weight`"), "lacks one of q_proj, k_proj and v_proj"],
    )?;
    fails(&|_| (), "--exclude layers.3.self_attn.k_proj.weight", &[&format!("`{layer}.v_proj.weight`"), "lacks"])?;
    fails(
        &|model| {
            let tensor = Tensor { dtype: DType::F32, shape: vec![2, 6], bytes: vec![0; 48] };
            model.insert(format!("{layer}.k_proj.weight"), tensor);
        },
        "",
        &[&format!("`{layer}.k_proj.weight`"), "another shape"],
    )?;
    fails(
        &|model| {
            let tensor = Tensor { dtype: DType::BF16, shape: vec![6, 6], bytes: vec![0; 72] };
            model.insert(format!("{layer}.k_proj.weight"), tensor);
        },
        "",
        &["text_encoder_2", &format!("`{layer}.q_proj.weight`"), "another type"],
    )?;
    let stranger = |name: &'static str| {
        move |model: &mut BTreeMap<String, Tensor>| {
            drop(model.insert(name.to_owned(), Tensor { dtype: DType::F32, shape: vec![1], bytes: vec![0; 4] }));
        }
    };
    for name in [
        "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn3.to_q.weight",
        "unet/down_blocks.7.resnets.0.conv1.weight",
        "unet/conv_in.gain",
        "unet/class_embedding.weight",
        "vae/encoder.mid_block.attentions.1.to_q.weight",
        "text_encoder/text_model.encoder.layers.0.self_attn.r_proj.weight",
        "text_encoder_2/text_model.surprise",
    ] {
        fails(
            &stranger(name),
            "",
            &["diffusers-to-sd cannot name all tensors of p", &format!("`{name}`: is not known")],
        )?;
    }
    fails(&stranger("controlnet/surprise.weight"), "", &["`controlnet/surprise.weight`: belongs neither to a UNet"])?;

    // Of an 8-bit file the scales would get lost.
    let eight = Tensor { dtype: DType::F8E4M3, shape: vec![2], bytes: vec![0; 2] };
    let one = Tensor { dtype: DType::F32, shape: vec![], bytes: vec![0; 4] };
    let mut scaled = sd.clone();
    scaled.insert("model.diffusion_model.out.0.weight".to_owned(), eight);
    scaled.insert("model.diffusion_model.out.0.scale_weight".to_owned(), one);
    write_file(&path.join("s.st"), &scaled, |name| Some(name.to_owned()))?;
    for options in ["", "--exclude scale_weight"] {
        let ran = convert(path, &format!("s.st o --rename sd-to-diffusers {options}"));
        ran.fails(1, &["`model.diffusion_model.out.0.weight`", "name maps do not carry along"]);
    }
    let joined = sd.keys().find(|name| name.ends_with("in_proj_weight")).ok_or("there is one")?.clone();
    let mut odd = sd;
    odd.insert(joined.clone(), Tensor { dtype: DType::F32, shape: vec![5, 1], bytes: vec![0; 20] });
    write_file(&path.join("odd.st"), &odd, |name| Some(name.to_owned()))?;
    convert(path, "odd.st o --rename sd-to-diffusers").fails(1, &[&joined, "5 rows, which are not three projections"]);
    Ok(())
}

#[test]
fn the_second_version_is_named_but_for_its_text_encoder() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let [mut pipeline, _] = both("sd15")?;
    // Its transformers begin and end in matrices.
    for (name, tensor) in &mut pipeline {
        if name.ends_with("proj_in.weight") || (name.starts_with("unet/") && name.ends_with("proj_out.weight")) {
            tensor.shape.truncate(2);
        }
    }
    write_pipeline(&path.join("p"), &pipeline, true)?;
    convert(path, "p o.st --rename diffusers-to-sd").fails(1, &["`text_encoder/", "Stable Diffusion 2.x"]);
    convert(path, "p o.st --rename diffusers-to-sd --exclude ^text_encoder").ok();
    let mut sd = tensors(read(&path.join("o.st"))?);
    convert(path, "o.st back --rename sd-to-diffusers").ok();
    pipeline.retain(|name, _| !name.starts_with("text_encoder"));
    assert!(read_pipeline(&path.join("back"))? == pipeline);
    let place = "cond_stage_model.model.transformer.resblocks.0.ln_1.weight";
    sd.insert(place.to_owned(), Tensor { dtype: DType::F32, shape: vec![1], bytes: vec![0; 4] });
    write_file(&path.join("sd.st"), &sd, |name| Some(name.to_owned()))?;
    convert(path, "sd.st o --rename sd-to-diffusers").fails(1, &[place, "Stable Diffusion 2.x"]);
    Ok(())
}

#[test]
fn the_refiner_has_the_second_text_encoder_first() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let [mut pipeline, _] = both("sdxl")?;
    pipeline.retain(|name, _| !name.starts_with("text_encoder/"));
    // It sees that encoder alone.
    for (name, tensor) in &mut pipeline {
        if name.ends_with("attn2.to_k.weight") || name.ends_with("attn2.to_v.weight") {
            tensor.shape[1] = 6;
            tensor.bytes.truncate((tensor.shape[0] * 6 * 4) as usize);
        }
    }
    write_pipeline(&path.join("p"), &pipeline, true)?;
    convert(path, "p o.st --rename diffusers-to-sd").ok();
    let sd = read(&path.join("o.st"))?;
    assert!(sd.tensors.contains_key("conditioner.embedders.0.model.text_projection"));
    assert!(!sd.names().iter().any(|name| name.starts_with("conditioner.embedders.1.")));
    convert(path, "o.st back --rename sd-to-diffusers").ok();
    assert!(read_pipeline(&path.join("back"))? == pipeline);
    Ok(())
}

#[test]
fn patterns_are_of_the_inputs_names_and_rules_follow_in_order() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let [pipeline, sd] = both("sdxl")?;
    write_pipeline(&path.join("p"), &pipeline, true)?;
    convert(path, "p o.st --rename diffusers-to-sd --include ^vae/ --dtype-for ^vae/decoder=bf16").ok();
    let out = read(&path.join("o.st"))?;
    assert!(out.names().iter().all(|name| name.starts_with("first_stage_model.")) && out.tensors.len() == 248);
    for (name, tensor) in &out.tensors {
        let half = name.starts_with("first_stage_model.decoder.");
        assert_eq!(tensor.dtype, if half { DType::BF16 } else { DType::F32 }, "{name}");
    }
    convert(path, "p o.st --rename diffusers-to-sd --exclude ^first_stage").fails(2, &["--exclude", "^first_stage"]);
    // A joined tensor goes by any of its names.
    convert(path, "p o.st --rename diffusers-to-sd --dtype-for layers.31.self_attn.k_proj.weight=f64").ok();
    let wide: Vec<String> =
        tensors(read(&path.join("o.st"))?).into_iter().filter(|(_, t)| t.dtype == DType::F64).map(|(n, _)| n).collect();
    assert_eq!(wide, ["conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight"]);
    convert(path, "p o.st --rename diffusers-to-sd --dtype-for layers.31.self_attn.k_proj.weight=f4")
        .fails(1, &["layers.31.self_attn.q_proj.weight`, `text_encoder_2/", "is F32 and cannot become F4"]);

    // Rules before a map, and behind it.
    write_file(&path.join("odd.st"), &sd, |name| Some(format!("module.{name}")))?;
    std::fs::write(path.join("before"), "^module\\. -> ")?;
    std::fs::write(path.join("behind"), "^ -> module.\n")?;
    convert(path, "odd.st back --rename before --rename sd-to-diffusers").ok();
    assert!(read_pipeline(&path.join("back"))? == pipeline);
    convert(path, "back o.st --rename diffusers-to-sd --rename behind").ok();
    assert!(read(&path.join("o.st"))? == read(&path.join("odd.st"))?);
    // Rules that make two of one before a map name the input's tensors.
    std::fs::write(path.join("clash"), "\\d+ -> 0")?;
    let ran = convert(path, "odd.st o --rename clash --rename sd-to-diffusers");
    ran.fails(1, &["`module.conditioner.", "would both be called"]);
    // There and back in one.
    convert(path, "odd.st same.st --rename before --rename sd-to-diffusers --rename diffusers-to-sd --rename behind")
        .ok();
    assert!(read(&path.join("same.st"))?.tensors == read(&path.join("odd.st"))?.tensors);
    Ok(())
}

#[test]
fn ties_outlive_other_names() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = Model::new().f32("mid_block.attentions.0.query.weight", &[1.0, 2.0]).f32("other.weight", &[3.0]);
    model.text("mid_block.attentions.0.key.weight", "mid_block.attentions.0.query.weight").write(path.join("m.st"))?;
    convert(path, "m.st o.st --rename diffusers-attention").ok();
    let out = read(&path.join("o.st"))?;
    assert_eq!(out.names(), ["mid_block.attentions.0.to_q.weight", "other.weight"]);
    assert_eq!(out.metadata["mid_block.attentions.0.to_k.weight"], "mid_block.attentions.0.to_q.weight");
    // Without what it is tied to, it is a tensor of its own.
    convert(path, "m.st o.st --rename diffusers-attention --exclude query").ok();
    let out = read(&path.join("o.st"))?;
    assert_eq!((out.values("mid_block.attentions.0.to_k.weight"), out.metadata.len()), (vec![1.0, 2.0], 0));
    Ok(())
}
