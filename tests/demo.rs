//! The demo: what it tells, what it writes, and what it leaves alone.

use crate::model::{Outcome, binary, fixture, names_in, run, snapshot};
use candle_core::{DType, Device, Tensor};
use regex::Regex;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// A base and two copies of it, the second and third a little off, with all that the demo needs of them.
fn models(folder: &Path) -> Outcome {
    let model = fixture("digits-ddpm/model");
    let base = candle_core::safetensors::load(model.join("unet/diffusion_pytorch_model.safetensors"), &Device::Cpu)?;
    for (index, name) in ["base", "range-0", "range-1"].into_iter().enumerate() {
        let own = folder.join(name);
        std::fs::create_dir_all(own.join("scheduler"))?;
        let scheduler = "scheduler/scheduler_config.json";
        std::fs::copy(model.join(scheduler), own.join(scheduler))?;
        std::fs::copy(model.join("unet/config.json"), own.join("config.json"))?;
        let mut tensors = base.clone();
        for tensor in tensors.values_mut() {
            *tensor = (tensor.to_dtype(DType::F32)? * (1.0 + 0.01 * index as f64))?;
        }
        // The copies have projections.
        for (place, channels) in [16, 32, 32, 32, 16].into_iter().enumerate().filter(|_| index > 0) {
            let identity = Tensor::eye(channels, DType::F32, &Device::Cpu)?.reshape((channels, channels, 1, 1))?;
            tensors.insert(format!("adapter_list.{place}.weight"), (identity * (1.0 + 0.02 * (index * index) as f64))?);
        }
        candle_core::safetensors::save(&tensors, own.join("diffusion_pytorch_model.safetensors"))?;
    }
    std::fs::write(folder.join("weights.json"), json!({"equal": [0.5, 0.5], "other": [0.25, -0.5]}).to_string())?;
    let (images, reference) = (fixture("digits/images.npy"), folder.join("reference.npz"));
    std::fs::copy(&images, folder.join("images.npy"))?;
    let saved =
        binary().arg("fid").arg(&images).args(["--features", "digits", "--save-stats"]).arg(reference).output()?;
    assert!(saved.status.success(), "{saved:?}");
    Ok(())
}

const SMALL: &str = "--models models --images 4 --steps 2";

#[test]
fn the_demo_tells_its_story_and_writes_all_of_it() -> Outcome {
    let folder = tempfile::tempdir()?;
    models(&folder.path().join("models"))?;
    let told = run(folder.path(), &format!("demo {SMALL} -j 2")).ok();
    assert_eq!(names_in(folder.path()), ["ckptmerge-demo", "models"]);
    let out = folder.path().join("ckptmerge-demo");
    assert_eq!(
        names_in(&out),
        ["merged-equal", "merged-other", "numbers.json", "pictures", "plane.jsonl", "report.html", "samples"]
    );
    let names = ["base", "ensemble", "merged-equal", "merged-other", "range-0", "range-1"];
    assert_eq!(names_in(&out.join("samples")), names.map(|name| format!("{name}.npz")));
    let mut pictures: Vec<String> = names.map(|name| format!("{name}.png")).to_vec();
    pictures.extend(
        ["activations", "gradients", "plane", "similarity", "stats"]
            .iter()
            .flat_map(|name| [format!("{name}-dark.svg"), format!("{name}.svg")]),
    );
    pictures.sort();
    assert_eq!(names_in(&out.join("pictures")), pictures);

    // The numbers list every file, and no name that was only one for a while.
    let files = snapshot(&out);
    let numbers: Value = serde_json::from_slice(&files["numbers.json"])?;
    let listed: BTreeSet<&str> =
        numbers["files"].as_array().ok_or("no files")?.iter().filter_map(Value::as_str).collect();
    assert_eq!(listed, files.keys().map(String::as_str).collect());
    for (name, bytes) in &files {
        assert!(!bytes.windows(5).any(|part| part == b".tmp-"), "{name} tells a name that was only one for a while");
    }
    let sections = numbers["sections"].as_array().ok_or("no sections")?;
    let names: Vec<&str> = sections.iter().filter_map(|section| section["name"].as_str()).collect();
    assert_eq!(
        names,
        ["models", "gradients", "similarity", "changes", "activations", "merge", "plane", "samples", "distance"]
    );
    for section in sections {
        for text in [&section["commands"], &section["sentences"]] {
            let lines = text.as_array().ok_or("no list")?;
            assert!(!lines.is_empty(), "{section}");
            for line in lines.iter().filter_map(Value::as_str) {
                assert!(told.stdout.contains(line), "{line:?} was not told: {}", told.stdout);
            }
        }
    }
    assert!(told.stdout.contains("A copy has 3,584 parameters more"), "{}", told.stdout);
    // What a command remarks is told once, and of files by the names that they have in the end.
    assert!(told.stdout.contains("(ckptmerge-demo/samples/base.npz has 4, fewer than 64"), "{}", told.stdout);
    assert_eq!(told.stdout.matches("base lacks 5 channel-wise projections").count(), 1, "{}", told.stdout);
    assert!(told.stdout.trim_end().contains("ckptmerge-demo/report.html"), "{}", told.stdout);
    Ok(())
}

/// Each command that is shown, typed again, gives the bytes or the numbers that the demo has.
#[test]
fn the_commands_that_are_shown_do_what_the_demo_did() -> Outcome {
    let folder = tempfile::tempdir()?;
    models(&folder.path().join("models"))?;
    let numbers = run(folder.path(), &format!("demo {SMALL} --seed 3 -o out --json")).ok().json();
    assert_eq!(numbers, serde_json::from_slice::<Value>(&std::fs::read(folder.path().join("out/numbers.json"))?)?);
    let before = snapshot(&folder.path().join("out"));
    let sections = numbers["sections"].as_array().ok_or("no sections")?;
    let mut distances = 0;
    for command in sections.iter().flat_map(|section| section["commands"].as_array().into_iter().flatten()) {
        let command = command.as_str().and_then(|line| line.strip_prefix("ckptmerge ")).ok_or("no command")?;
        let ran = run(folder.path(), &format!("{command} --json")).ok().json();
        if command.starts_with("fid ") {
            let name = command.split(['/', '.']).rev().find(|word| numbers_of(sections, word).is_some());
            let known = name.and_then(|name| numbers_of(sections, name));
            assert_eq!(ran["value"].as_f64(), known, "{command}");
            distances += 1;
        }
    }
    assert_eq!(distances, 6);
    let behind = snapshot(&folder.path().join("out"));
    for (name, bytes) in &before {
        assert!(behind[name] == *bytes, "{name} is another when its command is typed");
    }
    Ok(())
}

/// The distance of a model.
fn numbers_of(sections: &[Value], model: &str) -> Option<f64> {
    sections.iter().find(|section| section["name"] == "distance")?["numbers"][model].as_f64()
}

#[test]
fn the_report_needs_nothing_beside_it() -> Outcome {
    let folder = tempfile::tempdir()?;
    models(&folder.path().join("models"))?;
    let quiet = run(folder.path(), &format!("demo {SMALL} -q")).ok();
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    let report = std::fs::read_to_string(folder.path().join("ckptmerge-demo/report.html"))?;
    assert!(report.starts_with("<!DOCTYPE html>") && report.ends_with("</html>\n"));
    let references: Vec<&str> = Regex::new(r#"(?:src|srcset|href)="([^"]{0,30})"#)?
        .captures_iter(&report)
        .map(|found| found.extract::<1>().1[0])
        .collect();
    assert_eq!(references.len(), 16, "{references:?}");
    assert!(references.iter().all(|reference| reference.starts_with("data:image/")), "{references:?}");
    let html = Regex::new(r#""data:[^"]*""#)?.replace_all(&report, "");
    for outside in ["http:", "https:", "url(", "@import", "<script", "<link", "<iframe", "//"] {
        assert!(!html.contains(outside), "the report has {outside}");
    }
    for part in
        ["width=device-width", "prefers-color-scheme: dark", "<h2>Images</h2>", "ckptmerge merge models/range-0"]
    {
        assert!(report.contains(part), "the report lacks {part}");
    }
    for tag in ["section", "table", "figure", "picture", "details", "pre", "code", "p", "tr"] {
        let opened = report.matches(&format!("<{tag}>")).count() + report.matches(&format!("<{tag} ")).count();
        assert!(opened > 0 && opened == report.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    Ok(())
}

#[test]
fn only_what_a_demo_wrote_is_replaced() -> Outcome {
    let folder = tempfile::tempdir()?;
    models(&folder.path().join("models"))?;
    let demo = format!("demo {SMALL} -o out");
    // An empty folder is nobody's.
    std::fs::create_dir(folder.path().join("out"))?;
    run(folder.path(), &demo).ok();
    let first = snapshot(&folder.path().join("out"));
    run(folder.path(), &format!("{demo} --seed 1")).ok();
    let second = snapshot(&folder.path().join("out"));
    assert!(first.keys().eq(second.keys()) && first["samples/base.npz"] != second["samples/base.npz"]);

    std::fs::write(folder.path().join("out/samples/mine.txt"), "mine")?;
    run(folder.path(), &demo).fails(1, &["out: ", "samples/mine.txt", "nothing was written"]);
    std::fs::remove_file(folder.path().join("out/samples/mine.txt"))?;
    assert_eq!(snapshot(&folder.path().join("out")), second);
    std::fs::remove_file(folder.path().join("out/numbers.json"))?;
    run(folder.path(), &demo).fails(1, &["was not written by a demo", "-o"]);
    std::fs::create_dir(folder.path().join("mine"))?;
    std::fs::write(folder.path().join("mine/numbers.json"), "{}")?;
    run(folder.path(), &format!("demo {SMALL} -o mine")).fails(1, &["was not written by a demo"]);
    std::fs::write(folder.path().join("file"), "")?;
    run(folder.path(), &format!("demo {SMALL} -o file")).fails(1, &["this is a file"]);
    run(folder.path(), &format!("demo {SMALL} -o no/where")).fails(1, &["no", "does not exist"]);
    assert_eq!(names_in(folder.path()), ["file", "mine", "models", "out"]);
    Ok(())
}

#[test]
fn models_that_are_not_whole_are_told() -> Outcome {
    let folder = tempfile::tempdir()?;
    let whole = folder.path().join("models");
    models(&whole)?;
    let demo = || run(folder.path(), &format!("demo {SMALL}"));
    for (weights, says) in [
        ("{\"equal\": [1]}", "1 weights under `equal` for 2 experts"),
        ("{\"equal\": [1, \"a\"]}", "no list of numbers under `equal`"),
        ("{\"../equal\": [1, 1]}", "weights called `../equal`"),
        ("{}", "no lists of weights"),
        ("[1, 2]", "no lists of weights"),
        ("{", "is not JSON"),
    ] {
        std::fs::write(whole.join("weights.json"), weights)?;
        demo().fails(1, &["weights.json", says]);
    }
    for missing in ["weights.json", "images.npy", "reference.npz", "range-0", "base"] {
        std::fs::rename(whole.join(missing), folder.path().join("aside"))?;
        demo().fails(1, &["models", missing, "fixtures/digits"]);
        std::fs::rename(folder.path().join("aside"), whole.join(missing))?;
    }
    std::fs::write(whole.join("weights.json"), json!({"equal": [0, 1]}).to_string())?;
    std::fs::write(whole.join("range-1/config.json"), "{")?;
    demo().fails(1, &["range-1/config.json", "is not JSON"]);
    assert_eq!(names_in(folder.path()), ["models"], "a demo that failed leaves something behind");
    Ok(())
}

/// The models that are shipped, found without being named, by the command that the README begins with.
#[test]
fn the_demo_runs_on_the_models_that_are_shipped() -> Outcome {
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink(fixture(""), folder.path().join("fixtures"))?;
    let weights: Value = serde_json::from_slice(&std::fs::read(fixture("digits/weights.json"))?)?;
    let told = run(folder.path(), "demo --images 2 --steps 2 --json").ok().json();
    assert!(told["models"].as_str().is_some_and(|models| models.ends_with("fixtures/digits")));
    let samples = names_in(&folder.path().join("ckptmerge-demo/samples"));
    let models = ["base", "control", "ensemble", "range-0", "range-1", "range-2", "range-3"].map(str::to_owned);
    let merges = weights.as_object().ok_or("no weights")?.keys().map(|name| format!("merged-{name}"));
    let mut expected: Vec<String> = models.into_iter().chain(merges).map(|name| format!("{name}.npz")).collect();
    expected.sort();
    assert_eq!(samples, expected);
    let bytes: u64 = ["base", "control", "range-0", "range-1", "range-2", "range-3"]
        .iter()
        .map(
            |name| Ok(std::fs::metadata(fixture(&format!("digits/{name}/diffusion_pytorch_model.safetensors")))?.len()),
        )
        .sum::<std::io::Result<u64>>()?;
    assert!(bytes <= 12_000_000, "{bytes}");
    Ok(())
}
