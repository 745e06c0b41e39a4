//! Every folder of `fixtures/deepspeed`, as DeepSpeed joins it; see `make.py` there.

use super::{BOTH, Case, Row, parsed, sha256, text_map};
use crate::model::{Outcome, fixture, names_in, read, run, snapshot, write};
use ckptmerge::dtype::DType;
use ckptmerge::{Checkpoint, IoMode};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// Puts files, by their path within, into a new folder.
fn unpack(folder: &Path, files: &BTreeMap<String, Vec<u8>>) -> Outcome {
    for (name, bytes) in files {
        let path = folder.join(name);
        write(&path, bytes)?;
    }
    Ok(())
}

/// A golden folder with what is wrong in the spoilt one, in `folder`.
fn spoilt(name: &str, entry: &Value, folder: &Path) -> Outcome<PathBuf> {
    let whole = snapshot(&fixture("deepspeed").join(entry["base"].as_str().ok_or("it is a golden folder")?));
    let mut files = whole.clone();
    for removed in entry["removed"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        files.remove(removed).ok_or("only what is there is removed")?;
    }
    for (copy, source) in text_map(&entry["copied"]) {
        files.insert(copy, whole[&source].clone());
    }
    let own = fixture("deepspeed").join(name);
    if own.is_dir() {
        files.extend(snapshot(&own));
    }
    assert_ne!(files, whole, "{name} differs from its golden folder");
    let target = folder.join(name);
    unpack(&target, &files)?;
    Ok(target)
}

/// The rows of a safetensors file, those of `types` in the type that they had before they were joined.
fn rows(path: &Path, types: &BTreeMap<String, String>) -> Outcome<Vec<Row>> {
    let model = read(path)?;
    let row = |(name, tensor): (&String, &crate::model::Tensor)| {
        let (mut dtype, mut bytes) = (tensor.dtype, tensor.bytes.clone());
        if let Some(stored) = types.get(name) {
            // Joined as F32, of which BF16 is the upper half.
            assert_eq!((stored.as_str(), dtype), ("BF16", DType::F32));
            dtype = DType::BF16;
            bytes = bytes.chunks_exact(4).flat_map(|number| [number[2], number[3]]).collect();
        }
        let shape = tensor.shape.clone();
        Row { name: name.clone(), dtype: dtype.to_string(), shape, digest: sha256(dtype, &bytes) }
    };
    Ok(model.tensors.iter().map(row).collect())
}

/// What a golden folder is to come to.
fn case(name: &str, entry: &Value, path: PathBuf) -> Outcome<Case> {
    let file = |end: &str| fixture("deepspeed").join(format!("{name}{end}.safetensors"));
    let mut expected = rows(&file(""), &text_map(&entry["types"]))?;
    let module: Vec<String> = serde_json::from_value(entry["module"].clone())?;
    if !module.is_empty() {
        expected.extend(rows(&file("-module"), &BTreeMap::new())?);
    }
    let aliases = text_map(&entry["ties"]);
    for (tied, target) in &aliases {
        let target = expected.iter().find(|row| row.name == *target).ok_or("it is joined")?.clone();
        expected.push(Row { name: tied.clone(), ..target });
    }
    let (select, assume, ordered, digest) = (None, None, false, sha256 as fn(DType, &[u8]) -> String);
    Ok(Case {
        path,
        select,
        assume,
        expected: Ok(expected),
        ordered,
        aliases,
        metadata: text_map(&entry["metadata"]),
        digest,
    })
}

#[test]
fn every_folder_of_deepspeed_is_as_deepspeed_joins_it() -> Outcome {
    let folder = tempdir()?;
    let mut cases = Vec::new();
    let (mut goldens, mut seen) = (0, BTreeSet::new());
    let expected = parsed("deepspeed/expected.json")?;
    for (name, entry) in &expected {
        if let Some(error) = entry["error"].as_str() {
            let path = spoilt(name, entry, folder.path())?;
            seen.insert(name.trim_start_matches("spoilt/").to_owned());
            let (select, assume, ordered, digest) = (None, None, false, sha256 as fn(DType, &[u8]) -> String);
            let (aliases, metadata) = (BTreeMap::new(), BTreeMap::new());
            cases.push(Case {
                path,
                select,
                assume,
                expected: Err(error.to_owned()),
                ordered,
                aliases,
                metadata,
                digest,
            });
            continue;
        }
        let root = fixture("deepspeed").join(name);
        let step = root.join("global_step3");
        // The root, the step, and any rank's file stand for the model.
        cases.push(case(name, entry, root)?);
        cases.push(case(name, entry, step.clone())?);
        for rank in names_in(&step).into_iter().filter(|file| file.ends_with("optim_states.pt")) {
            cases.push(case(name, entry, step.join(rank))?);
        }
        goldens += 1;
        seen.insert(name.clone());
    }
    let mut there: BTreeSet<String> = names_in(&fixture("deepspeed")).into_iter().collect();
    there.retain(|name| fixture("deepspeed").join(name).is_dir() && name != "spoilt");
    there.extend(names_in(&fixture("deepspeed/spoilt")));
    assert!(there.is_subset(&seen), "without a line: {:?}", there.difference(&seen));
    assert!(goldens >= 11 && cases.len() > 70, "{goldens} folders, {} cases", cases.len());
    let ways = |case: &Case| if case.expected.is_ok() { &BOTH[..] } else { &BOTH[..1] };
    let problems: Vec<String> =
        cases.iter().flat_map(|case| ways(case).iter().flat_map(|io| case.problems(*io))).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[test]
fn a_model_file_of_zero_is_a_model_where_it_is_whole() -> Outcome {
    let path = |name: &str| fixture("deepspeed").join(name);
    let whole = path("zero2-bf16/global_step3/mp_rank_00_model_states.pt");
    let model = Checkpoint::open(&whole)?;
    let weight = model.get("mid.weight").ok_or("it is a tensor of the module")?;
    assert_eq!((weight.tensor.dtype, &weight.tensor.shape[..]), (DType::BF16, &[5, 5][..]));
    let head = model.get("head.weight").ok_or("it is a tensor of the module")?;
    assert_eq!(head.tensor.alias_of.as_deref(), Some("embed.weight"));
    let joined = Checkpoint::open(path("zero2-bf16"))?;
    assert_eq!(joined.tensors().len(), model.tensors().len(), "the same model in another precision");
    for rank in 0..2 {
        let part = path(&format!("zero3-bf16/global_step3/zero_pp_rank_{rank}_mp_rank_00_model_states.pt"));
        let error = Checkpoint::open(&part).expect_err("its parameters are emptied").to_string();
        assert!(error.contains("`gain`: the file has no elements") && error.contains("name the folder"), "{error}");
    }
    Ok(())
}

#[test]
fn a_rank_of_one_lies_where_it_is() -> Outcome {
    let model = Checkpoint::open_with(fixture("deepspeed/zero2-one-rank"), &IoMode::Mmap.into())?;
    assert!(model.get("mid.weight").ok_or("it is there")?.is_mapped(), "nothing is put together");
    let model = Checkpoint::open_with(fixture("deepspeed/zero3-three-ranks"), &IoMode::Mmap.into())?;
    let weight = model.get("mid.weight").ok_or("it is there")?;
    assert!(!weight.is_mapped() && weight.files().count() == 3, "each rank has a part");
    Ok(())
}

#[test]
fn the_commands_take_such_folders() -> Outcome {
    let folder = tempdir()?;
    let at = folder.path();
    for name in ["zero2-bf16", "zero3-bf16"] {
        unpack(&at.join(name), &snapshot(&fixture("deepspeed").join(name)))?;
        write(&at.join(name).join("config.json"), "{}")?;
        write(&at.join(name).join("zero_to_fp32.py"), "")?;
    }
    let joined = read(&fixture("deepspeed/zero3-bf16.safetensors"))?;
    run(at, "convert --no-sync zero3-bf16 out.safetensors").ok();
    assert_eq!(read(&at.join("out.safetensors"))?.tensors["mid.weight"].bytes, joined.tensors["mid.weight"].bytes);
    run(at, "merge --no-sync --method linear --weights 0.5,0.5 zero2-bf16 zero3-bf16 -o merged").ok();
    // What says which files a training run left is not about the merged model.
    assert_eq!(names_in(&at.join("merged")), ["config.json", "model.safetensors"]);
    assert!(run(at, "inspect zero2-bf16").ok().stdout.contains("head.weight = embed.weight"));
    run(at, "diff zero3-bf16 out.safetensors").ok();

    // Weights under a usual name are the model, whatever lies beside them.
    std::fs::copy(at.join("out.safetensors"), at.join("zero2-bf16/model.safetensors"))?;
    assert_eq!(Checkpoint::open(at.join("zero2-bf16"))?.format(), "safetensors");
    Ok(())
}

#[test]
fn other_files_called_latest_are_left_alone() -> Outcome {
    let folder = tempdir()?;
    let at = folder.path();
    std::fs::copy(fixture("pytorch/plain.pt"), at.join("epoch5.pt"))?;
    for text in ["epoch5.pt", "/somewhere/epoch5.pt", "../x", "", "global_step7"] {
        write(&at.join("latest"), text)?;
        assert!(Checkpoint::open(at).is_ok(), "{text:?}");
    }
    std::fs::remove_file(at.join("latest"))?;
    std::os::unix::fs::symlink("epoch5.pt", at.join("latest"))?;
    assert!(Checkpoint::open(at).is_ok());
    Ok(())
}
