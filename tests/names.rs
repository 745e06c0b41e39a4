//! Name maps: what diffusers itself makes of Stable Diffusion's names, tensor for tensor, and what is refused.

mod edges;

use crate::model::{Contents, Model, Outcome, Ran, Tensor, fixture, names_in, read, run};
use ckptmerge::Checkpoint;
use ckptmerge::dtype::DType;
use ckptmerge::names::{NAME_MAPS, name_map};
use ckptmerge::recipe::{Conversion, Rename};
use flate2::read::GzDecoder;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use tempfile::tempdir;

/// The shape of a tensor, and the beginning of its digest if it has data.
type Row = (Vec<u64>, String);
/// What a list says of one side, by name.
type Side = BTreeMap<String, Row>;

/// A list of `fixtures/names`, by sides.
fn list(name: &str) -> Outcome<BTreeMap<String, Side>> {
    let mut text = String::new();
    GzDecoder::new(File::open(fixture(&format!("names/{name}.tsv.gz")))?).read_to_string(&mut text)?;
    let mut sides: BTreeMap<String, Side> = BTreeMap::new();
    for line in text.lines() {
        let [side, name, shape, digest] = line.split('\t').collect::<Vec<_>>()[..] else { return Err(line.into()) };
        let shape = shape.split('x').filter(|n| !n.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        sides.entry(side.to_owned()).or_default().insert(name.to_owned(), (shape, digest.to_owned()));
    }
    assert_eq!(sides.len(), 2, "{name}");
    Ok(sides)
}

/// The tensors of a side, numbered as the maker of the lists did, by their full names.
fn numbered(side: &Side) -> BTreeMap<String, Tensor> {
    let tensor = |(number, (name, (shape, _))): (u32, (&String, &Row))| {
        let count = shape.iter().product::<u64>() as u32;
        let bytes = (0..count).flat_map(|k| (number * 65536 + k).to_le_bytes()).collect();
        (name.clone(), Tensor { dtype: DType::F32, shape: shape.clone(), bytes })
    };
    (0..).zip(side).map(tensor).collect()
}

/// Writes a pipeline's folders, and its own file if it should have one.
fn write_pipeline(folder: &Path, tensors: &BTreeMap<String, Tensor>, with_index: bool) -> Outcome {
    let mut parts: BTreeMap<&str, Model> = BTreeMap::new();
    for (full, Tensor { dtype, shape, bytes }) in tensors {
        let (part, name) = full.split_once('/').ok_or("a pipeline's tensor is in a part")?;
        let model = parts.remove(part).unwrap_or_default();
        parts.insert(part, model.raw(name, *dtype, shape, bytes.clone()));
    }
    for (part, model) in &parts {
        model.write(folder.join(part).join(format!("{}.safetensors", stem(part))))?;
    }
    if with_index {
        let components: BTreeMap<_, _> = parts.keys().map(|part| (*part, ["diffusers", "Model"])).collect();
        std::fs::write(folder.join("model_index.json"), json!(components).to_string())?;
    }
    Ok(())
}

fn stem(part: &str) -> &'static str {
    if part.starts_with("text_encoder") { "model" } else { "diffusion_pytorch_model" }
}

/// All tensors of a pipeline's folders, which must hold nothing else.
fn read_pipeline(folder: &Path) -> Outcome<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for part in names_in(folder) {
        let file = format!("{}.safetensors", stem(&part));
        assert_eq!(names_in(&folder.join(&part)), [&*file], "{part}");
        let held = read(&folder.join(&part).join(file))?.tensors;
        tensors.extend(held.into_iter().map(|(name, tensor)| (format!("{part}/{name}"), tensor)));
    }
    Ok(tensors)
}

/// That names, shapes and digests are those of the list.
#[track_caller]
fn assert_is(contents: &BTreeMap<String, Tensor>, side: &Side) {
    let of = |tensor: &Tensor| {
        let digest: String = Sha256::digest(&tensor.bytes)[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        (tensor.shape.clone(), digest)
    };
    let found: Side = contents.iter().map(|(name, tensor)| (name.clone(), of(tensor))).collect();
    let differing: Vec<_> = side.iter().filter(|(name, row)| found.get(*name) != Some(*row)).take(5).collect();
    assert!(differing.is_empty(), "{differing:?}");
    assert_eq!(found.len(), side.len());
}

/// Converts in `folder`; nobody waits for the disk.
fn convert(folder: &Path, arguments: &str) -> Ran {
    run(folder, &format!("convert --no-sync {arguments}"))
}

#[test]
fn pipelines_become_files_and_pipelines_again() -> Outcome {
    for (family, parts) in [("sd15", 3), ("sdxl", 4)] {
        let folder = tempdir()?;
        let path = folder.path();
        let list = list(&format!("{family}-small"))?;
        let pipeline = numbered(&list["diffusers"]);
        write_pipeline(&path.join("pipeline"), &pipeline, true)?;
        std::fs::write(path.join("pipeline/unet/config.json"), "{}")?;

        let ran = convert(path, "pipeline sd.safetensors --rename diffusers-to-sd").ok();
        assert_eq!(ran.stderr, "", "{family}: nothing is left out");
        let sd = read(&path.join("sd.safetensors"))?;
        assert_is(&sd.tensors, &list["sd"]);
        // As a folder it has a usual name, and what belonged to the pipeline stays there.
        convert(path, "pipeline sd/ --rename diffusers-to-sd").ok();
        assert_eq!(names_in(&path.join("sd")), ["model.safetensors"]);

        for io in ["mmap", "pread"] {
            let ran = convert(path, &format!("sd.safetensors {io} --rename sd-to-diffusers --io {io}")).ok();
            assert!(ran.stderr.contains("configurations, tokenizers and the scheduler come from"), "{}", ran.stderr);
            assert_eq!(names_in(&path.join(io)).len(), parts);
            assert!(read_pipeline(&path.join(io))? == pipeline, "{family} by {io}");
        }
        // Without a pipeline's own file the folders are one model.
        run(path, "diff pipeline mmap").ok();
        convert(path, "mmap again.safetensors --rename diffusers-to-sd").ok();
        assert!(read(&path.join("again.safetensors"))? == sd);
        // In other formats, types and shards.
        convert(path, "mmap torch.ckpt --rename diffusers-to-sd --dtype bf16").ok();
        convert(path, "torch.ckpt shards --rename sd-to-diffusers --shard-size 40k --dtype f32").ok();
        assert!(path.join("shards/unet/diffusion_pytorch_model.safetensors.index.json").is_file());
        convert(path, "shards one.safetensors --rename diffusers-to-sd --dtype bf16").ok();
        convert(path, "torch.ckpt two.safetensors").ok();
        assert!(read(&path.join("one.safetensors"))?.tensors == read(&path.join("two.safetensors"))?.tensors);
    }
    Ok(())
}

#[test]
fn a_file_is_no_place_for_a_pipeline() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    write_pipeline(&path.join("p"), &numbered(&list("sd15-small")?["diffusers"]), true)?;
    convert(path, "p sd.st --to safetensors --rename diffusers-to-sd").ok();
    convert(path, "sd.st out.safetensors --rename sd-to-diffusers").fails(1, &["several files", "for a folder"]);
    convert(path, "p out.safetensors").fails(1, &["several files"]);
    assert!(!path.join("out.safetensors").exists());
    Ok(())
}

/// A file of these names and shapes without data: what is not written takes no room on the disk.
fn write_hollow(path: &Path, side: &[(&str, &[u64])]) -> Outcome {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in side {
        let start = end;
        end += shape.iter().product::<u64>() * 2;
        header.insert((*name).to_owned(), json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = serde_json::Value::Object(header).to_string();
    std::fs::create_dir_all(path.parent().ok_or("a file is in a folder")?)?;
    let mut file = File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    Ok(file.set_len(8 + header.len() as u64 + end)?)
}

/// The names and shapes that a map makes of a model.
fn mapped(model: &Path, map: &str) -> Outcome<BTreeMap<String, Vec<u64>>> {
    let map = name_map(map).ok_or("there is no such map")?;
    let conversion = Conversion { rename: vec![Rename::Map(map)], ..Conversion::default() };
    let renamed = conversion.rename(Checkpoint::open(model)?)?;
    let plan = conversion.plan(&renamed)?;
    Ok(plan.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect())
}

#[test]
fn every_tensor_of_the_published_models_has_a_name_there_and_back() -> Outcome {
    for (family, unet, vae) in [("sd15", 686, 248), ("sdxl", 1680, 248)] {
        let folder = tempdir()?;
        let list = list(family)?;
        let shapes = |side: &str| -> BTreeMap<String, Vec<u64>> {
            list[side].iter().map(|(name, (shape, _))| (name.clone(), shape.clone())).collect()
        };
        let (diffusers, sd) = (shapes("diffusers"), shapes("sd"));
        let begin =
            |names: &BTreeMap<String, Vec<u64>>, prefix: &str| names.keys().filter(|n| n.starts_with(prefix)).count();
        assert_eq!([begin(&diffusers, "unet/"), begin(&diffusers, "vae/")], [unet, vae], "{family}");
        assert_eq!(begin(&sd, "model.diffusion_model."), unet, "{family}");

        let all: Vec<(&str, &[u64])> = sd.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
        write_hollow(&folder.path().join("sd.safetensors"), &all)?;
        assert!(mapped(&folder.path().join("sd.safetensors"), "sd-to-diffusers")? == diffusers, "{family}");

        let parts: BTreeSet<&str> = diffusers.keys().filter_map(|name| Some(name.split_once('/')?.0)).collect();
        for part in parts {
            let within = |(name, shape): (&'_ String, &'_ Vec<u64>)| -> Option<(String, Vec<u64>)> {
                Some((name.strip_prefix(&format!("{part}/"))?.to_owned(), shape.clone()))
            };
            let held: Vec<_> = diffusers.iter().filter_map(within).collect();
            let held: Vec<(&str, &[u64])> = held.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
            write_hollow(&folder.path().join(part).join(format!("{}.safetensors", stem(part))), &held)?;
        }
        std::fs::remove_file(folder.path().join("sd.safetensors"))?;
        assert!(mapped(folder.path(), "diffusers-to-sd")? == sd, "{family}");
    }
    Ok(())
}

#[test]
fn old_names_of_attention_become_new_and_old_again() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let list = list("attention-small")?;
    let new = numbered(&list["new"]);
    assert_eq!(
        list["new"].keys().filter(|name| !list["old"].contains_key(*name)).count(),
        64,
        "eight of each attention"
    );
    write_pipeline(&path.join("new"), &new, true)?;
    let ran = convert(path, "new old --rename diffusers-attention-old").ok();
    assert!(ran.stderr.contains("other names: 64 tensors"), "{}", ran.stderr);
    std::fs::remove_file(path.join("old/model_index.json"))?;
    let old = read_pipeline(&path.join("old"))?;
    assert_is(&old, &list["old"]);
    convert(path, "old back --rename diffusers-attention").ok();
    assert!(read_pipeline(&path.join("back"))? == new);
    // One component, and nothing to do.
    convert(path, "old/vae/diffusion_pytorch_model.safetensors vae.st --rename diffusers-attention").ok();
    assert_eq!(
        read(&path.join("vae.st"))?.names(),
        read(&path.join("new/vae/diffusion_pytorch_model.safetensors"))?.names()
    );
    convert(path, "new again --rename diffusers-attention").fails(1, &["diffusers-attention cannot name", "old ones"]);
    convert(path, "old again --rename diffusers-attention-old").fails(1, &["`unet/", "to_q.weight"]);
    assert!(!path.join("again").exists());
    Ok(())
}

#[test]
fn names_of_maps_and_files_of_rules_are_told_apart() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("w", &[1.0]).write(path.join("m.st"))?;
    convert(path, "m.st o.st --rename diffusers-to-ds")
        .fails(2, &["no name map or file of rules `diffusers-to-ds`", "`diffusers-to-sd`"]);
    std::fs::write(path.join("diffusers-to-ds"), "^w -> v")?;
    convert(path, "m.st o.st --rename diffusers-to-ds").ok();
    assert_eq!(read(&path.join("o.st"))?.names(), ["v"]);
    // One after the other.
    std::fs::write(path.join("more"), "v -> x.$0")?;
    convert(path, "m.st o.st --rename diffusers-to-ds --rename ./more").ok();
    assert_eq!(read(&path.join("o.st"))?.names(), ["x.v"]);
    let help = run(path, "convert --help").ok().stdout;
    for map in NAME_MAPS {
        assert!(help.contains(map.id()), "{help}");
    }
    Ok(())
}

/// The contents by name, for tests below.
fn tensors(contents: Contents) -> BTreeMap<String, Tensor> {
    contents.tensors
}

#[test]
fn a_merge_of_other_names_is_told_of_the_map() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    write_pipeline(&path.join("pipeline"), &numbered(&list("sd15-small")?["diffusers"]), true)?;
    convert(path, "pipeline sd.safetensors --rename diffusers-to-sd").ok();
    for models in ["sd.safetensors pipeline", "pipeline sd.safetensors"] {
        let ran = run(path, &format!("merge {models} -o o"));
        ran.fails(1, &["do not fit together", "note: ", "shares 0 of its ", "`ckptmerge convert --rename "]);
    }
    let ran = run(path, "merge sd.safetensors pipeline -o o");
    ran.fails(1, &["convert --rename diffusers-to-sd` gives pipeline the names of sd.safetensors"]);
    Model::new().f32("a", &[1.0]).write(path.join("a.st"))?;
    Model::new().f32("b", &[1.0]).write(path.join("b.st"))?;
    run(path, "merge a.st b.st -o o")
        .fails(1, &["b.st shares 0 of its 1 names with a.st: `ckptmerge convert --rename FILE`"]);
    // A model that fits but for a tensor has no other names.
    Model::new().f32("a", &[1.0]).f32("c", &[1.0]).f32("d", &[1.0]).write(path.join("c.st"))?;
    Model::new().f32("a", &[1.0]).f32("c", &[1.0]).write(path.join("d.st"))?;
    let ran = run(path, "merge c.st d.st -o o").fails(1, &["`d`"]);
    assert!(!ran.stderr.contains("--rename"), "{}", ran.stderr);
    Ok(())
}

/// An adapter of rank 1 for modules, called as they are, of weights of these shapes.
fn write_adapter(path: &Path, modules: &[(String, Vec<u64>)]) -> Outcome {
    let part = |model: Model, (module, shape): &(String, Vec<u64>)| {
        let (rows, columns) = (shape[0], shape[1]);
        let up: Vec<f64> = (0..rows).map(|i| i as f64 + 1.0).collect();
        let down: Vec<f64> = (0..columns).map(|i| 0.5 - i as f64).collect();
        model
            .with(&format!("{module}.lora_up.weight"), DType::F32, &[rows, 1], &up)
            .with(&format!("{module}.lora_down.weight"), DType::F32, &[1, columns], &down)
            .with(&format!("{module}.alpha"), DType::F32, &[], &[1.0])
    };
    assert!(modules.len() > 10, "{} has {} modules", path.display(), modules.len());
    modules.iter().fold(Model::new(), part).write(path)?;
    Ok(())
}

/// kohya's names of the linear modules of a part: `lora_unet_down_blocks_0_…` for `unet/down_blocks.0.…`.
fn modules<'n>(
    tensors: impl Iterator<Item = (&'n String, &'n Vec<u64>)>,
    part: &str,
    begin: &str,
) -> Vec<(String, Vec<u64>)> {
    let module = |(name, shape): (&String, &Vec<u64>)| {
        let path = name.strip_prefix(part)?.strip_suffix(".weight")?;
        (shape.len() == 2).then(|| (format!("{begin}_{}", path.replace('.', "_")), shape.clone()))
    };
    tensors.filter_map(module).collect()
}

#[test]
fn adapters_fit_a_model_under_the_names_of_either_library() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let sides = list("sd15-small")?;
    write_pipeline(&path.join("pipe"), &numbered(&sides["diffusers"]), true)?;
    convert(path, "pipe single.safetensors --rename diffusers-to-sd").ok();
    let single = read(&path.join("single.safetensors"))?.tensors;
    let theirs = || sides["diffusers"].iter().map(|(name, (shape, _))| (name, shape));
    let unet = modules(theirs(), "unet/", "lora_unet");
    write_adapter(&path.join("theirs.st"), &[unet, modules(theirs(), "text_encoder/", "lora_te")].concat())?;
    let shapes = single.iter().map(|(name, tensor)| (name, &tensor.shape));
    write_adapter(&path.join("original.st"), &modules(shapes, "model.diffusion_model.", "lora_unet"))?;
    for lora in ["theirs.st", "original.st"] {
        convert(path, &format!("pipe+{lora} baked")).ok();
        convert(path, &format!("single.safetensors+{lora} baked.safetensors")).ok();
        convert(path, "baked there.safetensors --rename diffusers-to-sd").ok();
        let here = read(&path.join("baked.safetensors"))?.tensors;
        assert!(here == read(&path.join("there.safetensors"))?.tensors, "{lora} differs");
        let changed = here.iter().filter(|(name, tensor)| single[*name] != **tensor).count();
        assert!(changed > 10, "{lora} changes {changed} tensors");
    }
    Ok(())
}

#[test]
fn adapters_of_the_second_text_encoder_fit_a_pipeline() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let sides = list("sdxl-small")?;
    write_pipeline(&path.join("pipe"), &numbered(&sides["diffusers"]), true)?;
    convert(path, "pipe single.safetensors --rename diffusers-to-sd").ok();
    let single = read(&path.join("single.safetensors"))?.tensors;
    let shapes = single.iter().map(|(name, tensor)| (name, &tensor.shape));
    let theirs = || sides["diffusers"].iter().map(|(name, (shape, _))| (name, shape));
    // As kohya's scripts write them: the UNet by its original names, the text encoders by those of their library.
    let parts = [
        modules(shapes, "model.diffusion_model.", "lora_unet"),
        modules(theirs(), "text_encoder/", "lora_te1"),
        modules(theirs(), "text_encoder_2/", "lora_te2"),
    ];
    write_adapter(&path.join("lora.st"), &parts.concat())?;
    convert(path, "pipe+lora.st baked").ok();
    let ran = convert(path, "single.safetensors+lora.st baked.safetensors");
    ran.fails(1, &["lora_te2_", "apply it to the pipeline that `convert --rename sd-to-diffusers` makes of it"]);
    Ok(())
}
