//! What the subcommands print, for people and for scripts.

use crate::model::{Model, Outcome, Ran, binary, fixture, names_in, read, root, run};
use ckptmerge::checkpoint::FORMATS;
use ckptmerge::dtype::DType;
use ckptmerge::merge::{Base, METHODS};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Stdio;
use tempfile::tempdir;

/// A file of every kind of tensor, whose statistics can be done by hand.
fn mixed() -> Model {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    Model::new()
        .with("layer.2.w", DType::F32, &[2, 3], &[3.0, -4.0, 0.0, nan, inf, -inf])
        .with("layer.10.w", DType::BF16, &[4], &[1.0, 2.0, 3.0, 4.0])
        .with("layer.10.bias", DType::I64, &[2], &[-5.0, 5.0])
        .with("head", DType::F64, &[], &[0.5])
        .with("nothing", DType::F16, &[0], &[])
        .with("lost", DType::F32, &[1], &[nan])
        .raw("packed", DType::F4, &[4], vec![1, 2])
        .text("format", "pt")
        .text("tied", "head")
}

/// A folder with [`mixed`] in it, as `m.st`.
fn with_mixed() -> Outcome<tempfile::TempDir> {
    let folder = tempdir()?;
    mixed().write(folder.path().join("m.st"))?;
    Ok(folder)
}

/// Whether some line has all of these words, in this order.
fn has_row(text: &str, words: &[&str]) -> bool {
    text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == words)
}

#[track_caller]
fn assert_row(text: &str, words: &[&str]) {
    assert!(has_row(text, words), "no line is {words:?} in:\n{text}");
}

#[test]
fn inspect_sums_a_model_up() -> Outcome {
    let folder = with_mixed()?;
    let ran = run(folder.path(), "inspect m.st").ok();
    let size = std::fs::metadata(folder.path().join("m.st"))?.len();
    let text = &ran.stdout;
    assert_eq!(text.lines().next(), Some("m.st"));
    assert!(size < 1000);
    assert_row(text, &["format", "safetensors", "(1", "file,", &size.to_string(), "B)"]);
    assert_row(text, &["tensors", "8"]);
    assert_row(text, &["parameters", "18"]);
    assert_row(text, &["F32", "2", "tensors,", "7", "elements,", "28", "B"]);
    assert_row(text, &["F64", "1", "tensor,", "1", "elements,", "8", "B"]);
    assert_row(text, &["tied", "tied", "=", "head"]);
    assert_row(text, &["metadata", "format", "=", "pt"]);
    assert_eq!(ran.stderr, "");
    assert!(!text.contains("layer.2.w"), "tensors are listed only when asked for");
    Ok(())
}

#[test]
fn inspect_lists_the_tensors_that_match() -> Outcome {
    let folder = with_mixed()?;
    let all = run(folder.path(), "inspect m.st --tensors").ok().stdout;
    assert_row(&all, &["layer.2.w", "F32", "2×3", "24"]);
    assert_row(&all, &["head", "F64", "scalar", "8"]);
    assert_row(&all, &["nothing", "F16", "0", "0"]);
    let some = run(folder.path(), "inspect m.st --tensors layer.*.w").ok().stdout;
    assert!(has_row(&some, &["layer.10.w", "BF16", "4", "8"]) && some.contains("layer.2.w"));
    assert!(!some.contains("layer.10.bias") && !some.contains("\nhead"), "{some}");
    run(folder.path(), "inspect m.st --tensors laier.*.w").fails(2, &["laier.*.w"]);
    Ok(())
}

#[test]
fn inspect_draws_a_tree_in_the_order_of_numbers() -> Outcome {
    let folder = with_mixed()?;
    let tree = run(folder.path(), "inspect m.st --tree").ok().stdout;
    assert_row(&tree, &["layer", "3", "12", "48", "B"]);
    assert_row(&tree, &["10", "2", "6", "24", "B"]);
    assert_row(&tree, &["2.w", "1", "6", "24", "B"]);
    let at = |text: &str| tree.find(text).unwrap_or_else(|| panic!("{text:?} is not in {tree}"));
    assert!(at("\n  2.w") < at("\n  10"), "2 comes before 10 in:\n{tree}");
    assert!(at("\n    bias") < at("\n    w"));
    Ok(())
}

#[test]
fn inspect_computes_statistics() -> Outcome {
    let folder = with_mixed()?;
    for how in ["", "-j 1", "--memory 64M", "--io pread"] {
        let document = run(folder.path(), &format!("inspect m.st --stats --json {how}")).ok().json();
        let stats = |name: &str| {
            let tensors = document["tensors"].as_array().into_iter().flatten();
            tensors.filter(|tensor| tensor["name"] == name).map(|tensor| tensor["stats"].clone()).next()
        };
        // Of 3, −4 and 0 the mean is −1/3, the squares add up to 25 and their deviation to 25 − 1/3.
        let first = stats("layer.2.w").ok_or("it is listed")?;
        for (key, expected) in [
            ("min", -4.0),
            ("max", 3.0),
            ("mean", -1.0 / 3.0),
            ("std", ((25.0 - 1.0 / 3.0) / 3.0_f64).sqrt()),
            ("norm", 5.0),
        ] {
            let got = first[key].as_f64().ok_or(key)?;
            assert!((got - expected).abs() < 1e-12, "{key}: {got}, not {expected}");
        }
        assert_eq!((&first["zeros"], &first["nan"], &first["inf"]), (&json!(1), &json!(1), &json!(2)));
        let integers = stats("layer.10.bias").ok_or("it is listed")?;
        assert_eq!((&integers["std"], &integers["mean"]), (&json!(5.0), &json!(0.0)));
        let lost = stats("lost").ok_or("it is listed")?;
        assert_eq!((&lost["min"], &lost["nan"]), (&Value::Null, &json!(1)));
        assert_eq!(stats("nothing").ok_or("it is listed")?["max"], Value::Null);
        assert_eq!(stats("packed"), Some(Value::Null), "nothing is computed of opaque types");
    }
    let text = run(folder.path(), "inspect m.st --stats").ok().stdout;
    let row = ["layer.2.w", "F32", "2×3", "24", "-4.0000e0", "3.0000e0", "-3.3333e-1", "2.8674e0", "5.0000e0"];
    assert_row(&text, &[&row[..], &["1", "1", "2"]].concat());
    Ok(())
}

#[test]
fn inspect_prints_one_document() -> Outcome {
    let folder = with_mixed()?;
    let ran = run(folder.path(), "inspect m.st --json -v").ok();
    let document = ran.json();
    assert_eq!((&document["name"], &document["format"]), (&json!("m.st"), &json!("safetensors")));
    assert_eq!(document["tensor_count"], 8);
    assert_eq!(document["bytes"].as_u64(), Some(std::fs::metadata(folder.path().join("m.st"))?.len()));
    assert_eq!(document["dtypes"]["F32"], json!({"tensors": 2, "elements": 7, "bytes": 28}));
    assert_eq!(document["metadata"], json!({"format": "pt"}));
    assert_eq!(document["tensors"], json!([]));
    let listed = run(folder.path(), "inspect m.st --json --tensors tied").ok().json();
    let expected = json!([{"name": "tied", "dtype": "F64", "shape": [], "bytes": 8, "alias_of": "head"}]);
    assert_eq!(listed["tensors"], expected);
    Ok(())
}

#[test]
fn inspect_tells_what_merged_a_model() -> Outcome {
    let folder = tempdir()?;
    let out = folder.path().join("out.st");
    let ran = binary()
        .args(["merge", "a", "b", "--base", "base", "--weights", "0.3,0.8", "-p", "lambda=0.5", "-o"])
        .arg(&out)
        .current_dir(fixture("llama"))
        .output()?;
    Ran::from(ran).ok();
    let text = run(folder.path(), "inspect out.st").ok().stdout;
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.contains(&format!("ckptmerge {version}: task-arithmetic  b + λ·Σ wᵢ·(xᵢ − b)")), "{text}");
    let of = |weight: &str, name: &str| {
        text.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.len() == 3 && words[0] == weight && words[1] == name && words[2].starts_with("xxh3:")
        })
    };
    assert!(of("0.3", "a") && of("0.8", "b") && of("base", "base"), "{text}");
    assert!(text.contains("parameters: {\"lambda\":0.5}"), "{text}");
    Ok(())
}

#[test]
fn diff_tells_equal_from_different() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = |x: f64| Model::new().f32("x", &[1.0, 2.0, x]).with("n", DType::I64, &[1], &[7.0]);
    model(4.0).write(path.join("a.st"))?;
    model(4.0).text("format", "pt").unaligned().write(path.join("same.st"))?;
    model(4.5).write(path.join("b.st"))?;
    let equal = run(path, "diff a.st same.st").ok();
    assert_eq!((equal.stdout.as_str(), equal.stderr.as_str()), ("equal: 2 tensors\n", ""));
    assert!(run(path, "diff a.st same.st --all").ok().stdout.contains("same bytes"));

    let different = run(path, "diff a.st b.st").fails(1, &[]).stdout;
    // |4 − 4.5| is 0.5, which is a ninth of 4.5.
    assert!(
        different.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.starts_with(&["x", "5.000e-1", "1.111e-1"]) && words.ends_with(&["1", "of", "3"])
        }),
        "{different}"
    );
    assert!(different.ends_with("different: 1 of 2 tensors that both have\n"), "{different}");
    for (tolerance, code) in [("--atol 0.5", 0), ("--atol 0.499", 1), ("--rtol 0.112", 0), ("--rtol 0.111", 1)] {
        assert_eq!(run(path, &format!("diff a.st b.st {tolerance}")).code, Some(code), "{tolerance}");
    }
    assert_eq!(run(path, "diff a.st b.st --atol 0.1 --rtol 0.1").code, Some(0), "both together are enough");
    assert_eq!(run(path, "diff a.st b.st -q").fails(1, &[]).stdout, "");

    let document = run(path, "diff a.st b.st --json").fails(1, &[]).json();
    assert_eq!(document["equal"], json!(false));
    let x = &document["tensors"][0];
    assert_eq!((&x["tensor"], &x["equal"], &x["differing"]), (&json!("x"), &json!(false), &json!(1)));
    assert_eq!((&x["max_abs"], &x["elements"], &x["same_bytes"]), (&json!(0.5), &json!(3), &json!(false)));
    let cosine = (1.0 + 4.0 + 18.0) / (21.0f64.sqrt() * 25.25f64.sqrt());
    assert!((x["cosine"].as_f64().ok_or("a cosine")? - cosine).abs() < 1e-12, "{x}");
    Ok(())
}

#[test]
fn diff_draws_where_models_differ() -> Outcome {
    let folder = tempdir()?;
    let model = |change: f64| {
        let names = ["blocks.10.q.weight", "blocks.9.q.weight", "blocks.9.k.weight", "norm.weight"];
        let with = |model: Model, name| model.with(name, DType::F32, &[2], &[1.0 + change, 2.0]);
        names.into_iter().fold(Model::new(), with)
    };
    model(0.0).write(folder.path().join("a.st"))?;
    model(0.5).write(folder.path().join("b.st"))?;
    Model::new().with("other", DType::F32, &[1], &[1.0]).write(folder.path().join("c.st"))?;

    let ran = run(folder.path(), "diff a.st b.st --plot map.svg --json");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), "wrote map.svg\n"));
    assert_eq!(ran.json()["equal"], json!(false));
    let svg = std::fs::read_to_string(folder.path().join("map.svg"))?;
    for text in [
        "How far a.st is from b.st\n",
        "‖a − b‖ / ‖b‖\n",
        "blocks.10\n",
        "q.weight\n",
        "norm\n",
        "0.200\n",
        "not defined\n",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(svg.find("blocks.9\n") < svg.find("blocks.10\n"), "layers stand in the order of their numbers");

    let ran = run(folder.path(), "diff a.st a.st -q --theme dark --plot map.PNG");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(std::fs::read(folder.path().join("map.PNG"))?[..8], *b"\x89PNG\r\n\x1a\n");

    // Types that differ are compared for the picture.
    let half = Model::new().with("norm.weight", DType::F16, &[2], &[1.5, 2.0]);
    half.write(folder.path().join("half.st"))?;
    let ran = run(folder.path(), "diff half.st a.st --plot half.svg");
    assert!(ran.code == Some(1) && ran.stdout.contains("type F16 against F32"), "{ran:?}");
    assert!(std::fs::read_to_string(folder.path().join("half.svg"))?.contains("0.224\n"));
    std::fs::remove_file(folder.path().join("half.st"))?;
    std::fs::remove_file(folder.path().join("half.svg"))?;

    let ran = run(folder.path(), "diff a.st c.st --plot none.svg");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stdout.contains("only in a.st: norm.weight") && ran.stderr.contains("there are no numbers"), "{ran:?}");
    for (arguments, why) in [
        ("--plot map.pdf", "pictures are .svg or .png"),
        ("--plot map", "pictures are .svg or .png"),
        ("--theme dark", "--plot <FILE>"),
        ("--plot map.svg --theme grey", "[possible values: light, dark]"),
    ] {
        let ran = run(folder.path(), &format!("diff a.st b.st {arguments}"));
        assert!(ran.code == Some(2) && ran.stderr.contains(why), "{arguments}: {ran:?}");
    }
    assert_eq!(names_in(folder.path()), ["a.st", "b.st", "c.st", "map.PNG", "map.svg"]);
    Ok(())
}

#[test]
fn diff_sees_names_shapes_types_and_bytes() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let large = |last: i64| [(1i64 << 60).to_le_bytes(), ((1i64 << 60) + last).to_le_bytes()].concat();
    Model::new()
        .f32("only.a", &[1.0])
        .f32("shape", &[1.0, 2.0])
        .f32("type", &[1.0])
        .with("nan", DType::F32, &[2], &[f64::NAN, 1.0])
        .raw("packed", DType::F4, &[2], vec![0x12])
        .raw("large", DType::I64, &[2], large(0))
        .write(path.join("a.st"))?;
    Model::new()
        .with("shape", DType::F32, &[2, 1], &[1.0, 2.0])
        .with("type", DType::BF16, &[1], &[1.0])
        .with("nan", DType::F32, &[2], &[f64::NAN, 1.0])
        .raw("packed", DType::F4, &[2], vec![0x13])
        // Beyond 2⁵³, where f64 cannot tell it from its neighbour.
        .raw("large", DType::I64, &[2], large(1))
        .f32("only.b", &[1.0])
        .write(path.join("b.st"))?;
    let text = run(path, "diff a.st b.st").fails(1, &[]).stdout;
    for part in ["only in a.st: only.a", "only in b.st: only.b", "shape 2 against 2×1", "type F32 against BF16"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(text.contains("different bytes") && !text.lines().any(|line| line.starts_with("nan ")), "{text}");
    assert!(text.contains("different: 4 of 5 tensors that both have, 2 tensors in only one model"), "{text}");
    let document = run(path, "diff a.st b.st --json --atol 1e-9").fails(1, &[]).json();
    let equal = |name: &str| {
        let tensors = document["tensors"].as_array().into_iter().flatten();
        tensors.filter(|tensor| tensor["tensor"] == name).map(|tensor| tensor["equal"].clone()).next()
    };
    assert_eq!(equal("type"), Some(json!(true)), "with a tolerance, 1 is 1 in any type");
    assert_eq!((equal("shape"), equal("packed")), (Some(json!(false)), Some(json!(false))));
    assert_eq!((&document["only_first"], &document["only_second"]), (&json!(["only.a"]), &json!(["only.b"])));
    // A NaN and a number are as far apart as can be.
    Model::new().f32("x", &[f64::NAN]).write(path.join("c.st"))?;
    Model::new().f32("x", &[1.0]).write(path.join("d.st"))?;
    let ran = run(path, "diff c.st d.st --atol 1e300 --json").fails(1, &[]);
    assert_eq!(ran.json()["equal"], json!(false));
    Ok(())
}

#[test]
fn methods_and_formats_are_listed() -> Outcome {
    let here = Path::new(".");
    let (text, document) = (run(here, "methods").ok().stdout, run(here, "methods --json").ok().json());
    assert_eq!(document.as_array().map(Vec::len), Some(METHODS.len()));
    for (method, entry) in METHODS.iter().zip(document.as_array().into_iter().flatten()) {
        let about = method.about();
        assert_eq!((&entry["name"], &entry["formula"]), (&json!(about.name), &json!(about.formula)));
        assert_eq!(entry["needs_base"], json!(about.base == Base::Required));
        assert_eq!(entry["parameters"].as_array().map(Vec::len), Some(about.parameters.len()));
        for part in [about.name, about.what, about.formula, about.source] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        for parameter in about.parameters {
            let option = format!("-p {}=", parameter.name);
            let found = text.split(&option).skip(1).filter_map(|rest| rest.split(": ").next());
            assert!(found.flat_map(str::parse::<f64>).any(|value| value == parameter.default), "{text}");
        }
    }
    let (text, document) = (run(here, "formats").ok().stdout, run(here, "formats --json").ok().json());
    assert_eq!(document.as_array().map(Vec::len), Some(FORMATS.len()));
    for (format, entry) in FORMATS.iter().zip(document.as_array().into_iter().flatten()) {
        assert_eq!((&entry["id"], &entry["extensions"]), (&json!(format.id()), &json!(format.extensions())));
        assert!(text.contains(format.id()) && text.contains(&format!(".{}", format.extensions()[0])), "{text}");
    }
    Ok(())
}

#[test]
fn completions_and_manual_pages_know_the_options() {
    let here = Path::new(".");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(here, &format!("completions {shell}")).ok().stdout;
        for word in ["merge", "inspect", "weights-for", "dry-run"] {
            assert!(script.contains(word), "{shell}'s completions lack {word}");
        }
    }
    run(here, "completions tcl").fails(2, &["bash"]);
    let whole = run(here, "man").ok().stdout;
    assert!(whole.contains(".TH ckptmerge 1") && whole.contains("merge"), "{whole}");
    let page = run(here, "man merge").ok().stdout;
    assert!(page.contains(".TH ckptmerge-merge 1"), "{page}");
    for option in [r"\-\-weights", r"\-\-shard\-size", r"\-\-missing", r"\-\-memory"] {
        assert!(page.contains(option), "the page lacks {option}");
    }
    let help = run(here, "merge --help").ok().stdout;
    assert!(help.contains("Examples:") && help.contains("--weights-for"), "{help}");
    assert!(run(here, "--version").ok().stdout.starts_with("ckptmerge "));
    assert!(run(here, "merge -h").ok().stdout.len() < help.len(), "the short help is shorter");
}

#[test]
fn a_dry_run_predicts_what_the_run_does() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for (name, x) in [("a", 1.0), ("b", 2.0)] {
        Model::new()
            .f32("x", &[x; 1000])
            .with("half", DType::F16, &[333], &[x; 333])
            .with("count", DType::I64, &[2], &[1.0, 2.0])
            .with("none", DType::F32, &[0], &[])
            .text("tied", "x")
            .write(path.join(format!("{name}.st")))?;
    }
    for (options, read, output) in [
        // Both models' floats, and the integers once.
        ("--weights 0.6,0.4", 2 * (4000 + 666) + 16, "out.st"),
        ("--weights 0.6,0.4 --dtype bf16", 2 * (4000 + 666) + 16, "out.st"),
        ("--base a.st --weights 1,1", 3 * (4000 + 666) + 16, "out.st"),
        ("--exclude half", 2 * 4000 + 666 + 16, "out.st"),
        ("--weights 0.6,0.4 --shard-size 2kB", 2 * (4000 + 666) + 16, "out"),
    ] {
        let command = format!("merge a.st b.st {options} -o {output} --json");
        let predicted = run(path, &format!("{command} --dry-run")).ok().json();
        assert_eq!(names_in(path), ["a.st", "b.st"], "a dry run wrote something");
        assert_eq!((&predicted["written"], &predicted["seconds"]), (&json!(false), &Value::Null));
        let done = run(path, &command).ok().json();
        assert_eq!(done["written"], json!(true));
        let out = path.join(output);
        let files: Vec<_> = if out.is_dir() {
            names_in(&out)
                .into_iter()
                .filter(|name| name.ends_with(".safetensors"))
                .map(|name| out.join(name))
                .collect()
        } else {
            vec![out.clone()]
        };
        let length = |file: &std::path::PathBuf| std::fs::metadata(file).map(|metadata| metadata.len());
        let written: u64 = files.iter().map(length).sum::<std::io::Result<u64>>()?;
        for document in [&predicted, &done] {
            assert_eq!(document["bytes_written"], json!(written), "{options}: {document}");
            assert_eq!(document["bytes_read"], json!(read), "{options}: {document}");
            assert_eq!(document["files"], json!(files.len()), "{options}");
            assert_eq!(document["tensors"], json!(5), "{options}");
        }
        if out.is_dir() { std::fs::remove_dir_all(&out)? } else { std::fs::remove_file(&out)? }
    }
    let text = run(path, "merge a.st b.st --dry-run").ok().stdout;
    assert!(text.contains("would have 5 tensors in 1 file"), "{text}");
    assert!(text.contains("linear: Σ wᵢ·xᵢ") && text.contains("memory"), "{text}");
    assert_eq!(names_in(path), ["a.st", "b.st"]);
    run(path, "merge a.st m.st --dry-run").fails(1, &["m.st"]);
    Ok(())
}

#[test]
fn explain_shows_the_formulas() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for (name, x) in [("a", 1.0), ("b", 2.0), ("base", 0.0)] {
        let model = Model::new().f32("attn.w", &[x]).f32("mlp.w", &[x]).f32("mlp.v", &[x]);
        model.with("count", DType::I64, &[1], &[3.0]).write(path.join(format!("{name}.st")))?;
    }
    let text = run(path, "merge a.st b.st --weights 3,1 --normalize --weights-for attn=-1,3 --explain").ok().stdout;
    assert_eq!(
        text,
        "0.75·a.st + 0.25·b.st\n    2 tensors (F32 → F32): mlp.w, mlp.v\n\
         −0.5·a.st + 1.5·b.st\n    1 tensor (F32 → F32): attn.w\n\
         copied from a.st\n    1 tensor (I64 → I64): count\n"
    );
    let text = run(path, "merge a.st b.st --base base.st --weights 0.3,-1 --dtype bf16 --explain").ok().stdout;
    let formula = "base.st + 0.3·(a.st − base.st) − 1·(b.st − base.st)\n    3 tensors (F32 → BF16): ";
    assert!(text.starts_with(formula) && text.contains("copied from base.st"), "{text}");
    assert_eq!(names_in(path), ["a.st", "b.st", "base.st"]);
    let document = run(path, "merge a.st b.st --explain --json").ok().json();
    assert_eq!(document["formulas"][0]["formula"], "0.5·a.st + 0.5·b.st");
    assert_eq!(document["formulas"][0]["tensors"], json!(["attn.w", "mlp.w", "mlp.v"]));
    // With an output it is shown, and then done.
    let text = run(path, "merge a.st b.st --explain -o out.st").ok().stdout;
    assert!(text.starts_with("0.5·a.st") && text.contains("out.st: 4 tensors"), "{text}");
    assert_eq!(read(&path.join("out.st"))?.values("mlp.w"), [1.5]);
    Ok(())
}

#[test]
fn a_merge_says_as_much_as_it_is_asked_to() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().f32("x", &[1.0]).f32("extra", &[1.0]).write(path.join("a.st"))?;
    Model::new().f32("x", &[3.0]).write(path.join("b.st"))?;
    let merge = |more: &str| run(path, &format!("merge a.st b.st -o out.st --missing skip {more}")).ok();
    let plain = merge("");
    assert!(plain.stdout.starts_with("out.st: 1 tensor, "), "{}", plain.stdout);
    assert_eq!(plain.stderr, "warning: the output leaves out 1 tensor: extra\n");
    let quiet = merge("-q");
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("", ""));
    assert!(merge("-v").stderr.contains("0.5·a.st + 0.5·b.st"));
    let document = merge("--json").json();
    assert_eq!((&document["output"], &document["method"]), (&json!("out.st"), &json!("linear")));
    assert_eq!((&document["left_out"], &document["tensors"]), (&json!(["extra"]), &json!(1)));
    assert!(document["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert!(document["peak_memory"].as_u64().is_some_and(|bytes| bytes > 0));
    let quiet = merge("-q --json");
    assert_eq!((&quiet.json()["written"], quiet.stderr.as_str()), (&json!(true), ""));
    for ran in [plain, merge("-v")] {
        assert!(!ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'), "colours where no terminal is");
    }
    // Errors are never silent.
    run(path, "merge a.st b.st -o out.st -q").fails(1, &["`extra`: is missing in b.st"]);
    Ok(())
}

#[test]
fn names_say_nothing_about_what_a_file_is() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for name in ["a.ckpt", "b", "c.json.bin"] {
        Model::new().f32("x", &[1.0]).write(path.join(name))?;
    }
    run(path, "merge a.ckpt b c.json.bin -o out --weights 1,2,3").ok();
    assert_eq!(read(&path.join("out"))?.values("x"), [6.0]);
    for (name, content, says) in [
        ("zip.safetensors", &b"PK\x03\x04 and more"[..], "zip file"),
        ("pickle.safetensors", &b"\x80\x02}q\x00."[..], "pickle"),
        ("gguf.st", &b"GGUF\x03\x00\x00\x00"[..], "cut short"),
    ] {
        std::fs::write(path.join(name), content)?;
        run(path, &format!("inspect {name}")).fails(1, &[name, says]);
    }
    // Nor does stdin: nothing waits for it.
    let child = binary().args(["inspect", "a.ckpt"]).current_dir(path).stdin(Stdio::piped()).output()?;
    Ran::from(child).ok();
    Ok(())
}

#[test]
fn a_pattern_may_stand_anywhere_and_may_be_missing() -> Outcome {
    let folder = with_mixed()?;
    let path = folder.path();
    let all = run(path, "inspect m.st --tensors").ok().stdout;
    assert!(all.lines().count() > 5);
    for same in ["inspect --tensors m.st", "inspect --tensors=* m.st", "inspect m.st --tensors *"] {
        assert_eq!(run(path, same).ok().stdout, all, "{same}");
    }
    run(path, "inspect --tensors").fails(2, &["needs a MODEL"]);
    run(path, "inspect --tensors=none").fails(2, &["needs a MODEL"]);
    run(path, "inspect").fails(2, &["MODEL"]);
    run(path, "inspect m.st --tensors=[").fails(2, &["["]);
    Ok(())
}

#[test]
fn options_of_models_are_not_in_the_help_of_what_opens_none() {
    for (name, has) in [("methods", false), ("formats", false), ("completions", false), ("man", false), ("diff", true)]
    {
        let help = run(root(), &format!("{name} --help")).ok().stdout;
        for option in ["--select", "--assume", "--memory", "--io", "--threads"] {
            assert_eq!(help.contains(option), has, "{name} {option}");
        }
        assert!(help.contains("--json"), "{name}");
    }
    // They are let through all the same, as scripts may give them to all.
    run(root(), "formats --select ema --memory 64M").ok();
}

#[test]
fn numbers_without_their_scales_are_told() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = Model::new().with("w", DType::F8E4M3, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    model.f32("w_scale_inv", &[0.5]).write(path.join("a.st"))?;
    let told = "note: a.st: 1 tensor of 8-bit floats is taken without scales";
    for command in ["diff a.st a.st", "inspect a.st --stats"] {
        let ran = run(path, command).ok();
        assert!(ran.stderr.contains(told) && ran.stderr.contains("convert --dtype bf16"), "{}", ran.stderr);
    }
    assert_eq!(run(path, "inspect a.st").ok().stderr, "");
    Ok(())
}

#[test]
fn a_scalar_is_the_same_in_formats_without_scalars() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    Model::new().with("s", DType::F32, &[], &[3.0]).f32("w", &[1.0, 2.0]).write(path.join("m.st"))?;
    Model::new().with("s", DType::F32, &[1], &[3.0]).f32("w", &[1.0, 2.0]).write(path.join("row.st"))?;
    run(path, "convert m.st m.gguf --no-sync").ok();
    run(path, "diff m.st m.gguf").ok();
    run(path, "diff m.gguf m.st").ok();
    // Where both formats have scalars, it is a difference.
    run(path, "diff m.st row.st").fails(1, &[]);
    for (models, shape) in [("m.st m.gguf", &[][..]), ("m.gguf m.st", &[1])] {
        run(path, &format!("merge {models} -o o.st --no-sync")).ok();
        let merged = read(&path.join("o.st"))?;
        assert_eq!((merged.tensors["s"].shape.as_slice(), merged.values("s")), (shape, vec![3.0]));
    }
    Ok(())
}

#[test]
fn what_looks_at_files_as_they_are_takes_no_adapters() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for name in ["a.st", "b.st", "c+b.st"] {
        Model::new().f32("x", &[1.0]).write(path.join(name))?;
    }
    for command in ["diff b.st a.st+b.st", "diff a.st+none.st b.st", "inspect a.st+b.st"] {
        run(path, command).fails(1, &["a.st+", "ckptmerge convert MODEL+ADAPTER OUT"]);
    }
    // A path may have the sign in it, and one that is not there is just that.
    run(path, "diff c+b.st b.st").ok();
    let said = run(path, "diff none+b.st b.st").fails(1, &["cannot open none+b.st"]).stderr;
    assert!(!said.contains("ADAPTER"), "{said}");
    Ok(())
}
