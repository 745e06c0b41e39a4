//! How task vectors are distributed, against numpy, and that nothing but the numbers decides what is told of them.

use crate::model::{Model, Outcome, Random, fixture, read, run};
use ckptmerge::dtype::DType;
use serde_json::Value;
use std::path::Path;
use tempfile::{TempDir, tempdir};

/// What fixtures/stats/make.py says.
fn expected() -> Outcome<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(fixture("stats/expected.json"))?)?)
}

/// An element as `value` of make.py makes it, of the draws `u` and `v`.
fn element(kind: &str, i: usize, u: f64, v: f64, is_base: bool) -> f64 {
    let tuned = |change: f64| if is_base { 0.0 } else { change };
    match kind {
        "noise" => u * 0.5 + tuned(v * v * v * 0.01),
        "ties" => (u * 8.0).floor() / 16.0 + tuned((v * 3.0).floor() / 64.0),
        "same" => u,
        "zeros" if v < 0.8 || is_base => u,
        "zeros" => u + v / 8.0,
        "constant" => 0.25 + tuned(0.5),
        "far" if is_base => 1000.0 + u,
        "far" => 2000.0 + v,
        "small" => u * 1e-18 + tuned(v * v * v * 1e-20),
        "not-finite" if !is_base && i % 97 == 3 => f64::NAN,
        "not-finite" if !is_base && i % 89 == 5 => f64::INFINITY,
        "not-finite" => u + tuned(v),
        other => panic!("{other} is no kind"),
    }
}

/// The models that make.py speaks of: base.st, 1.st, 2.st and 3.st.
fn family(expected: &Value) -> Outcome<TempDir> {
    let folder = tempdir()?;
    let tensors = expected["tensors"].as_array().ok_or("no tensors")?;
    assert!(tensors.len() > 10);
    for model in 0..4u64 {
        let mut made = Model::new();
        for tensor in tensors {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (name, kind) = (text(&tensor["name"]), text(&tensor["kind"]));
            let dtype = DType::from_name(&text(&tensor["dtypes"][model as usize])).ok_or("no such type")?;
            let (count, seed) = (tensor["count"].as_u64().unwrap_or(0), tensor["seed"].as_u64().unwrap_or(0));
            let (mut base, mut tuned) = (Random(seed), Random(seed + model));
            let one = |i| element(&kind, i, base.uniform(), tuned.uniform(), model == 0);
            let values: Vec<f64> = (0..count as usize).map(one).collect();
            made = made.with(&name, dtype, &[count], &values);
        }
        let name = if model == 0 { "base.st".to_owned() } else { format!("{model}.st") };
        made.write(folder.path().join(name))?;
    }
    Ok(folder)
}

/// That one model's numbers are those of numpy: quantiles to the last bit, moments to the 12th digit.
fn assert_same(found: &Value, wanted: &Value, what: &str) {
    for key in ["elements", "not_finite", "zeros", "min", "max"] {
        assert_eq!(found[key], wanted[key], "{key} of {what}");
    }
    for key in ["norm", "relative_norm", "mean", "std", "skewness", "excess_kurtosis"] {
        let close = match (found[key].as_f64(), wanted[key].as_f64()) {
            // A mean is only as exact as the spread about it, and kurtosis as the 3 that is taken off.
            (Some(a), Some(b)) => {
                let of = if key == "mean" { wanted["norm"].as_f64().unwrap_or(0.0) } else { 0.0 };
                let least = if ["skewness", "excess_kurtosis"].contains(&key) { 1.0 } else { 0.0 };
                (a - b).abs() <= 1e-12 * b.abs().max(least).max(of * 1e-3)
            }
            (a, b) => a.is_none() && b.is_none() && found[key].is_null(),
        };
        assert!(close, "{key} of {what}: {} is not {}", found[key], wanted[key]);
    }
    let empty = Vec::new();
    let wanted: Vec<u64> = wanted["quantiles"].as_array().unwrap_or(&empty).iter().filter_map(Value::as_u64).collect();
    let found: Vec<u64> = found["quantiles"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .filter_map(|quantile| Some((quantile.as_f64()? + 0.0).to_bits()))
        .collect();
    let zero = |bits: &u64| if *bits == (-0.0f64).to_bits() { 0 } else { *bits };
    assert_eq!(found, wanted.iter().map(zero).collect::<Vec<_>>(), "quantiles of {what}");
}

#[test]
fn numbers_are_those_of_numpy() -> Outcome {
    let expected = expected()?;
    let folder = family(&expected)?;
    let mut seen = 0;
    for (way, option) in [("base", ""), ("base-less", "--base-less")] {
        for by in ["layer", "block", "tensor", "model"] {
            let arguments = format!("stats base.st 1.st 2.st 3.st --by {by} {option} --json -q");
            let found = run(folder.path(), &arguments).ok().json();
            let wanted = &expected["expected"][way];
            let of = |found: &Value, wanted: &Value, what: &str| {
                let (found, wanted) = (found.as_array().cloned(), wanted.as_array().cloned());
                let (found, wanted) = (found.unwrap_or_default(), wanted.unwrap_or_default());
                assert_eq!((found.len(), wanted.len()), (wanted.len(), if way == "base" { 3 } else { 4 }), "{what}");
                for (model, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    assert_same(found, wanted, &format!("model {model}, {way}, {by} {what}"));
                }
                found.len()
            };
            seen += of(&found["total"], &wanted["model"][""], "all");
            let parts = found["parts"].as_array().ok_or("no parts")?;
            if by != "model" {
                assert_eq!(parts.len(), wanted[by].as_object().map_or(0, serde_json::Map::len), "{by}");
            }
            for part in parts {
                let name = part["name"].as_str().unwrap_or_default();
                seen += of(&part["models"], &wanted[by][name], name);
            }
        }
    }
    assert_eq!(seen, 7 * (4 + 7 + 4 + 13), "so many numbers were looked at");
    Ok(())
}

#[test]
fn parts_are_in_the_natural_order_of_their_names() -> Outcome {
    let folder = family(&expected()?)?;
    let found = run(folder.path(), "stats base.st 1.st --json -q").ok().json();
    let names: Vec<&str> =
        found["parts"].as_array().ok_or("no parts")?.iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["empty", "head", "layers.0", "layers.1", "layers.2", "layers.10", "layers.11"]);
    Ok(())
}

/// A model of tensors of several tiles, and one of a million elements with heavy tails.
fn large(seed: u64, file: &Path) -> Outcome {
    let mut random = Random(seed);
    let mut values = |count: usize| -> Vec<f64> { (0..count).map(|_| random.uniform().powi(5)).collect() };
    let model = Model::new()
        .with("h.0.a", DType::F32, &[700, 1000], &values(700_000))
        .with("h.1.a", DType::F16, &[300, 1001], &values(300_300))
        .with("h.1.b", DType::BF16, &[999], &values(999))
        .with("h.0.b", DType::F32, &[70_001], &values(70_001))
        .with("out", DType::F64, &[3, 33_333], &values(99_999));
    model.write(file)?;
    Ok(())
}

#[test]
fn numbers_do_not_depend_on_threads_or_memory() -> Outcome {
    let folder = tempdir()?;
    for (seed, name) in [(1, "base.st"), (2, "a.st"), (3, "b.st")] {
        large(seed, &folder.path().join(name))?;
    }
    for by in ["model", "layer", "block", "tensor"] {
        let tell = |options: &str| {
            run(folder.path(), &format!("stats base.st a.st b.st --by {by} --histogram --json -q {options}"))
                .ok()
                .stdout
        };
        let first = tell("-j 1");
        assert!(first.contains("\"counts\"") && first.contains("excess_kurtosis"));
        for options in ["-j 2", "-j 3", "-j 7", "--io pread", "--memory 64M", "-j 3 --memory 32M"] {
            assert!(first == tell(options), "{options} changes the numbers by {by}");
        }
    }
    Ok(())
}

#[test]
fn quantiles_of_large_tensors_are_those_of_their_sorted_elements() -> Outcome {
    let folder = tempdir()?;
    let mut all = Vec::new();
    for (seed, name) in [(1, "base.st"), (2, "a.st")] {
        let path = folder.path().join(name);
        large(seed, &path)?;
        all.push(read(&path)?.values("h.0.a"));
    }
    let mut change: Vec<f64> = all[1].iter().zip(&all[0]).map(|(x, base)| x - base).collect();
    change.sort_by(f64::total_cmp);
    let ran = run(folder.path(), "stats base.st a.st --by tensor --json -v").ok();
    assert!(ran.stderr.contains("took 2 passes"), "{}", ran.stderr);
    let document = ran.json();
    let levels: Vec<f64> = document["levels"].as_array().ok_or("")?.iter().filter_map(Value::as_f64).collect();
    assert_eq!(levels, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]);
    let part =
        document["parts"].as_array().and_then(|parts| parts.iter().find(|p| p["name"] == "h.0.a")).ok_or("no part")?;
    for (level, found) in levels.iter().zip(part["models"][0]["quantiles"].as_array().ok_or("")?) {
        let place = (change.len() - 1) as f64 * level;
        let (low, high) = (change[place.floor() as usize], change[place.ceil() as usize]);
        let found = found.as_f64().ok_or("no quantile")?;
        assert!(low <= found && found <= high, "{found} is not between {low} and {high}");
    }
    Ok(())
}

#[test]
fn formats_mix() -> Outcome {
    let folder = family(&expected()?)?;
    let ok = |arguments: &str| run(folder.path(), arguments).ok();
    ok("convert base.st base.gguf --exclude empty -q");
    ok("convert 1.st 1.npz --exclude empty -q");
    ok("convert 2.st 2.pt --exclude empty -q");
    let plain = ok("stats base.st 1.st 2.st --exclude empty --json -q").json();
    let mixed = ok("stats base.gguf 1.npz 2.pt --json -q").json();
    assert_eq!(mixed["models"], serde_json::json!(["1.npz", "2.pt"]));
    assert!(plain["parts"].as_array().is_some_and(|parts| parts.len() == 6));
    let text = |document: &Value, key: &str| document[key].to_string().replace("1.npz", "1.st").replace("2.pt", "2.st");
    for key in ["total", "parts", "levels"] {
        assert_eq!(text(&mixed, key), text(&plain, key));
    }
    Ok(())
}

#[test]
fn quantized_tensors_count_as_what_they_decode_to() -> Outcome {
    let folder = tempdir()?;
    let mut random = Random(5);
    for name in ["base.st", "a.st"] {
        Model::new().with("w", DType::F32, &[64, 512], &random.values(64 * 512)).write(folder.path().join(name))?;
    }
    let ok = |arguments: &str| run(folder.path(), arguments).ok();
    ok("convert a.st a.gguf --dtype q4_k -q");
    ok("convert a.gguf plain.st --dtype f32 -q");
    let quantized = ok("stats base.st a.gguf --json -q").json();
    let plain = ok("stats base.st plain.st --json -q").json();
    assert!(plain["total"][0]["norm"].as_f64().is_some_and(|norm| norm > 10.0));
    assert_eq!(
        quantized["total"].to_string().replace("a.gguf", ""),
        plain["total"].to_string().replace("plain.st", "")
    );
    Ok(())
}

#[test]
fn a_histogram_counts_every_finite_element_once() -> Outcome {
    let expected = expected()?;
    let folder = family(&expected)?;
    let ran = run(
        folder.path(),
        "stats base.st 1.st 3.st --by layer --exclude far|layers.10.up --histogram --bins 7 --range 0.0625 --json",
    )
    .ok();
    assert!(ran.stderr.contains("1.st has no finite change in 6 elements"), "{}", ran.stderr);
    let document = ran.json();
    let edges: Vec<f64> = (0..=7).map(|i| 0.0625 * ((2.0 * f64::from(i) - 7.0) / 7.0)).collect();
    assert_eq!(document["histogram"]["edges"], serde_json::json!(edges));
    let (base, tuned) = (read(&folder.path().join("base.st"))?, read(&folder.path().join("1.st"))?);
    let change = |name: &str| -> Vec<f64> {
        tuned.values(name).iter().zip(base.values(name)).map(|(x, base)| x - base).filter(|x| x.is_finite()).collect()
    };
    let parts = document["histogram"]["parts"].as_array().ok_or("no parts")?;
    let find = |name: &str| parts.iter().find(|part| part["name"] == name).map(|part| part["models"][0].clone());
    for (layer, names) in [
        ("layers.0", ["layers.0.up.weight", "layers.0.norm"]),
        ("layers.1", ["layers.1.up.weight", "layers.1.norm"]),
        ("layers.2", ["layers.2.up.weight", "layers.2.norm"]),
        ("layers.10", ["layers.10.norm", "empty.weight"]),
    ] {
        let (mut counts, mut below, mut above) = ([0u64; 7], 0, 0);
        for x in names.iter().flat_map(|name| change(name)) {
            below += u64::from(x < edges[0]);
            above += u64::from(x > edges[7]);
            counts[(1..7).filter(|i| x >= edges[*i]).count()] += 1;
        }
        let found = find(layer).ok_or("no such layer")?;
        assert_eq!(found["counts"], serde_json::json!(counts), "{layer}");
        assert_eq!([&found["below"], &found["above"]], [below, above], "{layer}");
    }
    Ok(())
}

#[test]
fn a_histogram_ends_at_the_tails() -> Outcome {
    let folder = family(&expected()?)?;
    let document = run(folder.path(), "stats base.st 1.st 2.st --include layers.0 --histogram --json -q").ok().json();
    assert_eq!(document["levels"], serde_json::json!([0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999]));
    let at = |model: usize, place: usize| document["total"][model]["quantiles"][place].as_f64().unwrap_or(0.0).abs();
    let end = at(0, 0).max(at(0, 8)).max(at(1, 0)).max(at(1, 8));
    let edges = document["histogram"]["edges"].as_array().ok_or("no edges")?;
    assert_eq!((edges.len(), edges[0].as_f64(), edges[101].as_f64()), (102, Some(-end), Some(end)));

    // Nothing changed at all, and too little for the tails to tell.
    let ran = run(folder.path(), "stats base.st base.st --histogram --json").ok();
    assert!(ran.stderr.contains("nothing changed"), "{}", ran.stderr);
    assert_eq!(ran.json()["histogram"]["edges"][0], -1.0);
    let mut values = vec![0.0; 5000];
    Model::new().f32("w", &values).write(folder.path().join("zero.st"))?;
    values[7] = 0.5;
    Model::new().f32("w", &values).write(folder.path().join("one.st"))?;
    let document = run(folder.path(), "stats zero.st one.st --histogram --json -q").ok().json();
    assert_eq!(document["histogram"]["edges"][101], 0.5);
    Ok(())
}

#[test]
fn answers_that_are_known() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    Model::new().f32("a", &[3.0, 4.0]).f32("b", &[1.0; 4]).write(path("base.st"))?;
    Model::new().f32("a", &[6.0, 8.0]).f32("b", &[1.0, 1.0, 1.0, 5.0]).write(path("x.st"))?;
    Model::new().f32("a", &[3.0, f64::NAN]).f32("b", &[f64::INFINITY; 4]).write(path("bad.st"))?;
    let ran = run(folder.path(), "stats base.st x.st bad.st --by tensor --json").ok();
    assert!(
        ran.stderr.contains("bad.st has no finite change in 5 elements, left out of its statistics"),
        "{}",
        ran.stderr
    );
    let document = ran.json();
    let a = &document["parts"][0]["models"][0];
    assert_eq!(
        (&a["norm"], &a["relative_norm"], &a["mean"], &a["std"]),
        (&5.0.into(), &1.0.into(), &3.5.into(), &0.5.into())
    );
    assert_eq!(
        (&a["quantiles"][0], &a["quantiles"][3], &a["excess_kurtosis"]),
        (&3.01.into(), &3.5.into(), &(-2.0).into())
    );
    let b = &document["parts"][1]["models"][0];
    assert_eq!((&b["norm"], &b["relative_norm"], &b["sparsity"]), (&4.0.into(), &2.0.into(), &0.75.into()));
    let bad = [&document["parts"][0]["models"][1], &document["parts"][1]["models"][1]];
    assert_eq!((&bad[0]["elements"], &bad[0]["not_finite"], &bad[0]["norm"]), (&1.into(), &1.into(), &0.0.into()));
    for key in ["mean", "std", "min", "max", "sparsity", "skewness", "excess_kurtosis"] {
        assert!(bad[1][key].is_null(), "{key} is {}", bad[1][key]);
    }
    assert_eq!(bad[1]["quantiles"], serde_json::json!([null, null, null, null, null, null, null]));

    let text = run(folder.path(), "stats base.st x.st --by model").ok().stdout;
    assert!(text.contains("‖τ‖/‖base‖") && text.contains("median") && text.contains("6 elements"), "{text}");
    let text = run(folder.path(), "stats base.st x.st --base-less --by tensor").ok().stdout;
    assert!(text.contains("‖x‖") && !text.contains("τ"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("all ")).count(), 2, "{text}");
    Ok(())
}

#[test]
fn tables_and_pictures_are_written_beside_the_answer() -> Outcome {
    let folder = family(&expected()?)?;
    let tell = |options: &str| run(folder.path(), &format!("stats base.st 1.st 2.st {options}")).ok();
    tell("--csv all.csv --plot boxes.svg -q");
    let csv = std::fs::read_to_string(folder.path().join("all.csv"))?;
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let headings = lines.next().ok_or("no heading")?;
    assert_eq!(headings.len(), 21);
    assert_eq!(headings[14..], ["q0.01", "q0.05", "q0.25", "q0.5", "q0.75", "q0.95", "q0.99"]);
    let rows: Vec<_> = lines.collect();
    assert_eq!(rows.len(), 2 * 8, "two models, seven layers and all");
    assert!(rows.iter().all(|row| row.len() == 21));
    // Every number as in the JSON.
    let document = tell("--json").json();
    for (row, part) in rows.iter().zip(document["parts"].as_array().ok_or("no parts")?.iter().flat_map(|p| [p, p])) {
        let model = usize::from(row[1] == "2.st");
        assert_eq!(row[0], part["name"]);
        let numbers = |text: &str| text.parse::<f64>().ok();
        assert_eq!(numbers(row[6]), part["models"][model]["norm"].as_f64());
        assert_eq!(numbers(row[11]), part["models"][model]["excess_kurtosis"].as_f64());
        assert_eq!(numbers(row[17]), part["models"][model]["quantiles"][3].as_f64());
    }
    let svg = std::fs::read_to_string(folder.path().join("boxes.svg"))?;
    for part in ["Changes from base", "whiskers at 1 % and 99 %", "layers.0", "layers.11", "\n1\n", "\n2\n"] {
        assert!(svg.contains(part), "the picture lacks {part}");
    }
    tell("--by model --histogram --bins 5 --plot counts.svg --histogram-csv counts.csv -q");
    let counts = std::fs::read_to_string(folder.path().join("counts.csv"))?;
    assert_eq!((counts.lines().count(), counts.lines().next()), (1 + 2 * 5, Some("part,model,from,to,count")));
    let svg = std::fs::read_to_string(folder.path().join("counts.svg"))?;
    assert!(svg.contains("beyond the ends") && svg.contains("\n2\n"));
    tell("--by tensor --plot boxes.png -q");
    assert!(std::fs::read(folder.path().join("boxes.png"))?.starts_with(b"\x89PNG"));
    Ok(())
}

#[test]
fn what_has_no_statistics_is_refused() -> Outcome {
    let folder = family(&expected()?)?;
    let path = |name: &str| folder.path().join(name);
    Model::new().f32("x", &[1.0]).f32("y", &[1.0, 2.0]).write(path("a.st"))?;
    Model::new().f32("x", &[1.5]).f32("z", &[1.0, 2.0]).write(path("b.st"))?;
    let run = |arguments: &str| run(folder.path(), arguments);
    run("stats a.st b.st").fails(1, &["`y`", "b.st", "`z`", "a.st", "--shared"]);
    let shared = run("stats a.st b.st --shared --json").ok();
    assert!(shared.stderr.contains("left out 2 tensors"), "{}", shared.stderr);
    assert_eq!(shared.json()["total"][0]["max"], 0.5);
    run("stats a.st").fails(2, &["TUNED"]);
    run("stats a.st b.st --bins 7").fails(2, &["--histogram"]);
    run("stats a.st b.st --histogram --bins 0").fails(2, &["0 is not in 1..="]);
    run("stats a.st b.st --histogram --range 0").fails(2, &["above 0"]);
    run("stats a.st b.st --shared --histogram --range 1e-320").fails(2, &["no bins with a width"]);
    run("stats a.st b.st --shared --plot x.jpg").fails(2, &[".svg or .png"]);
    run("stats a.st b.st --by line").fails(2, &["layer"]);
    Ok(())
}
