//! Task vectors: whole, sparse, and as a LoRA, which is read back by the reader that PEFT's own files go through.

use crate::model::{Contents, Model, Outcome, Random, names_in, read, run, snapshot};
use ckptmerge::dtype::DType;
use serde_json::Value;
use std::path::Path;
use tempfile::{TempDir, tempdir};

/// A base and a tuned model in a folder: matrices, a convolution, an embedding, biases, a norm, and what stays as it is.
fn family() -> Outcome<TempDir> {
    let folder = tempdir()?;
    let shapes: [(&str, &[u64]); 9] = [
        ("embed_tokens.weight", &[30, 12]),
        ("a.q.weight", &[12, 20]),
        ("a.q.bias", &[12]),
        ("a.k.weight", &[20, 12]),
        ("conv.weight", &[6, 4, 3, 3]),
        ("norm.weight", &[12]),
        ("norm.bias", &[12]),
        ("same.weight", &[5, 5]),
        ("scale", &[3]),
    ];
    for (file, seed) in [("base.st", 1), ("tuned.st", 2)] {
        let mut random = Random(seed);
        let mut model = Model::new().with("step", DType::I64, &[], &[7.0]);
        for (name, shape) in shapes {
            let count = shape.iter().product::<u64>() as usize;
            let values = random.values(count);
            let values = if name == "same.weight" { vec![0.5; count] } else { values };
            model = model.with(name, DType::F32, shape, &values);
        }
        model.text("head.weight", "embed_tokens.weight").write(folder.path().join(file))?;
    }
    Ok(folder)
}

fn at(folder: &TempDir, name: &str) -> Outcome<Contents> {
    read(&folder.path().join(name))
}

#[test]
fn a_task_vector_is_the_difference_and_adds_back() -> Outcome {
    let folder = family()?;
    let said = run(folder.path(), "task-vector base.st tuned.st -o change.safetensors").ok();
    assert!(said.stderr.contains("leaves out 1 tensor: step"), "{}", said.stderr);
    let (base, tuned, change) = (at(&folder, "base.st")?, at(&folder, "tuned.st")?, at(&folder, "change.safetensors")?);
    assert_eq!(change.names().len(), base.names().len() - 1);
    assert_eq!(change.metadata["head.weight"], "embed_tokens.weight");
    for (name, tensor) in &change.tensors {
        let pairs = tuned.values(name).into_iter().zip(base.values(name));
        let expected: Vec<f64> = pairs.map(|(x, b)| f64::from(x as f32 - b as f32)).collect();
        assert_eq!(tensor.values(), expected, "{name}");
    }
    run(folder.path(), "merge base.st change.safetensors --weights 1,1 --missing base -o back.safetensors -q").ok();
    let back = at(&folder, "back.safetensors")?;
    for (name, tensor) in &change.tensors {
        let distance = |(a, b): (f64, f64)| (a - b).abs();
        let worst = back.values(name).into_iter().zip(tuned.values(name)).map(distance).fold(0.0, f64::max);
        assert!(worst < 2e-7, "{name}: {worst}");
        assert!(tensor.dtype == DType::F32);
    }
    let json = run(folder.path(), "task-vector base.st tuned.st --dtype bf16 --include ^a -o small.st --json -q").ok();
    assert_eq!(json.json()["tensors"], 3);
    assert!(at(&folder, "small.st")?.tensors.values().all(|tensor| tensor.dtype == DType::BF16));
    assert!(run(folder.path(), "inspect change.safetensors").ok().stdout.contains("task-vector"));
    Ok(())
}

#[test]
fn a_sparse_task_vector_has_the_largest_changes() -> Outcome {
    let folder = family()?;
    run(folder.path(), "task-vector base.st tuned.st -o whole.st -q").ok();
    run(folder.path(), "task-vector base.st tuned.st --density 0.3 -o sparse.st -q").ok();
    let (whole, sparse) = (at(&folder, "whole.st")?, at(&folder, "sparse.st")?);
    assert_eq!(whole.names(), sparse.names());
    for (name, tensor) in whole.tensors.iter().filter(|(name, _)| *name != "same.weight") {
        let all = tensor.values();
        let kept = ((0.3 * all.len() as f64) as usize).max(1);
        let mut sizes: Vec<f64> = all.iter().map(|value| value.abs()).collect();
        sizes.sort_by(|a, b| b.total_cmp(a));
        let least = sizes[kept - 1];
        let expected: Vec<f64> = all.iter().map(|value| if value.abs() >= least { *value } else { 0.0 }).collect();
        assert_eq!(sparse.values(name), expected, "{name}");
        assert_eq!(expected.iter().filter(|value| **value != 0.0).count(), kept, "{name}: the test's changes differ");
    }
    for density in ["0", "1.5", "-1", "NaN"] {
        let arguments = format!("task-vector base.st tuned.st --density={density} -o x.st");
        run(folder.path(), &arguments).fails(2, &["a density is above 0 and at most 1"]);
    }
    Ok(())
}

#[test]
fn a_lora_of_full_rank_is_the_tuned_model() -> Outcome {
    let folder = family()?;
    let said = run(folder.path(), "task-vector base.st tuned.st --rank 100 -o lora --json").ok();
    let json = said.json();
    assert_eq!(json["layers"].as_array().map(Vec::len), Some(4));
    assert_eq!(json["whole"], serde_json::json!(["a.q.bias", "norm.weight", "norm.bias"]));
    assert_eq!((&json["left_out"], &json["unchanged"]), (&serde_json::json!(["scale"]), &Value::from(1)));
    assert!(said.stderr.contains("4 tensors have no larger rank than their smaller side"), "{}", said.stderr);
    assert!(said.stderr.contains("1 tensor changed, but PEFT has no place for them"), "{}", said.stderr);
    assert_eq!(names_in(&folder.path().join("lora")), ["adapter_config.json", "adapter_model.safetensors"]);
    let adapter = at(&folder, "lora/adapter_model.safetensors")?;
    for (name, shape) in [
        ("embed_tokens.lora_embedding_A", &[12, 30][..]),
        ("embed_tokens.lora_embedding_B", &[12, 12]),
        ("a.q.lora_A.weight", &[12, 20]),
        ("a.q.lora_B.weight", &[12, 12]),
        ("a.q.base_layer.bias", &[12]),
        ("conv.lora_A.weight", &[6, 4, 3, 3]),
        ("conv.lora_B.weight", &[6, 6, 1, 1]),
        ("norm.weight", &[12]),
    ] {
        assert_eq!(adapter.tensors[&format!("base_model.model.{name}")].shape, shape, "{name}");
    }
    let config: Value = serde_json::from_slice(&std::fs::read(folder.path().join("lora/adapter_config.json"))?)?;
    assert_eq!((&config["r"], &config["lora_alpha"], &config["bias"]), (&12.into(), &12.into(), &"all".into()));
    assert_eq!(config["rank_pattern"], serde_json::json!({"^conv": 6}));
    assert_eq!(config["modules_to_save"], serde_json::json!(["norm"]));

    let tuned = at(&folder, "tuned.st")?;
    for flag in ["", "--fan-in-fan-out"] {
        run(folder.path(), &format!("task-vector base.st tuned.st --rank 100 -o lora -q {flag}")).ok();
        run(folder.path(), "convert base.st+lora back.st -q").ok();
        let back = at(&folder, "back.st")?;
        for name in back.names().into_iter().filter(|name| *name != "scale") {
            for (a, b) in back.values(name).iter().zip(tuned.values(name)) {
                assert!((a - b).abs() < 1e-6, "{name}: {a} against {b}");
            }
        }
        assert_ne!(back.values("scale"), tuned.values("scale"));
    }
    Ok(())
}

/// A column of ±1 whose inner products with the others of `n`, a power of two, are 0.
fn walsh(n: usize, index: usize) -> Vec<f64> {
    (0..n).map(|i| if (i & index).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }).collect()
}

/// A model of zeros, and one of matrices whose singular values are `σ = falls^k`, times a common factor.
fn spectrum(folder: &Path, shapes: &[(usize, usize)], falls: f64) -> Outcome {
    let (mut base, mut tuned) = (Model::new(), Model::new());
    for &(rows, columns) in shapes {
        let mut change = vec![0.0; rows * columns];
        for k in 0..rows.min(columns) {
            let (u, v) = (walsh(rows, k), walsh(columns, k));
            for (i, row) in change.chunks_exact_mut(columns).enumerate() {
                row.iter_mut().zip(&v).for_each(|(value, v)| *value += falls.powi(k as i32) * u[i] * v);
            }
        }
        let (name, shape) = (format!("w{rows}x{columns}.weight"), [rows as u64, columns as u64]);
        base = base.with(&name, DType::F32, &shape, &vec![0.0; rows * columns]);
        tuned = tuned.with(&name, DType::F32, &shape, &change);
    }
    base.write(folder.join("base.st"))?;
    tuned.write(folder.join("tuned.st"))?;
    Ok(())
}

#[test]
fn the_energy_is_that_of_the_largest_singular_values() -> Outcome {
    let folder = tempdir()?;
    let shapes = [(64, 64), (128, 32), (32, 128)];
    for falls in [0.9f64, 0.99] {
        spectrum(folder.path(), &shapes, falls)?;
        for rank in [1, 4, 10] {
            let json =
                run(folder.path(), &format!("task-vector base.st tuned.st --rank {rank} -o lora --json")).ok().json();
            let layers = json["layers"].as_array().ok_or("a list")?;
            assert_eq!(layers.len(), shapes.len());
            let adapter = read(&folder.path().join("lora/adapter_model.safetensors"))?;
            let change = read(&folder.path().join("tuned.st"))?;
            for (layer, (rows, columns)) in layers.iter().zip(shapes) {
                let squares = |count: usize| (0..count).map(|k| falls.powi(2 * k as i32)).sum::<f64>();
                let expected = squares(rank) / squares(rows.min(columns));
                let energy = layer["energy"].as_f64().ok_or("a number")?;
                assert!((energy / expected - 1.0).abs() < 1e-3, "{rows}×{columns} {rank}: {energy} against {expected}");
                let norm = (squares(rows.min(columns)) * (rows * columns) as f64).sqrt();
                assert!((layer["norm"].as_f64().ok_or("a number")? / norm - 1.0).abs() < 1e-6);
                // The product is what is said of it.
                let factor =
                    |part: &str| adapter.values(&format!("base_model.model.w{rows}x{columns}.lora_{part}.weight"));
                let (a, b) = (factor("A"), factor("B"));
                let change = change.values(&format!("w{rows}x{columns}.weight"));
                let rest: f64 = (0..rows * columns)
                    .map(|e| (e / columns, e % columns))
                    .map(|(i, j)| {
                        let product: f64 = (0..rank).map(|k| b[i * rank + k] * a[k * columns + j]).sum();
                        (change[i * columns + j] - product).powi(2)
                    })
                    .sum();
                assert!((energy - (1.0 - rest / norm.powi(2))).abs() < 1e-5, "{rows}×{columns} {rank}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_lora_does_not_depend_on_threads_and_follows_from_its_seed() -> Outcome {
    let folder = tempdir()?;
    spectrum(folder.path(), &[(256, 512), (1024, 64)], 0.97)?;
    let write = |options: &str| {
        run(folder.path(), &format!("task-vector base.st tuned.st --rank 4 -o lora -q {options}")).ok();
        snapshot(&folder.path().join("lora"))
    };
    let first = write("-j 1");
    assert!(first == write("-j 3") && first == write("-j 2 --memory 64M") && first == write("--io pread --seed 0"));
    assert!(first != write("--seed 1"));
    Ok(())
}

#[test]
fn what_cannot_be_a_task_vector_is_refused() -> Outcome {
    let folder = family()?;
    let run = |arguments: &str| run(folder.path(), arguments);
    run("task-vector base.st tuned.st --rank 0 -o lora").fails(2, &["0 is not in 1.."]);
    run("task-vector base.st tuned.st --rank 2 --density 0.5 -o lora").fails(2, &["cannot be used with"]);
    run("task-vector base.st tuned.st --seed 2 -o x.st").fails(2, &["--rank"]);
    run("task-vector base.st tuned.st --rank 2 -o lora.st").fails(1, &["a LoRA is a folder"]);
    run("task-vector base.st tuned.st --rank 2 --dtype q8_0 -o lora").fails(2, &["a LoRA cannot be of Q8_0"]);
    run("task-vector base.st tuned.st --rank 2 --include norm -o lora").fails(2, &["nothing of low rank"]);
    run("task-vector base.st tuned.st --include nothing -o x.st").fails(2, &["no tensor's name matches"]);
    run("task-vector base.st base.st --rank 2 -o lora").fails(2, &["nothing of low rank"]);

    let other = Model::new().f32("x", &[1.0]).f32("y", &[f64::NAN]).with("step", DType::I64, &[], &[1.0]);
    let same = other.clone().with("z.weight", DType::F32, &[2, 2], &[1.0; 4]);
    same.write(folder.path().join("a.st"))?;
    let differs =
        Model::new().f32("x", &[1.0, 2.0]).f32("y", &[0.0]).with("step", DType::I64, &[], &[2.0]).f32("new", &[0.0]);
    differs.write(folder.path().join("b.st"))?;
    run("task-vector a.st b.st -o x.st").fails(
        1,
        &[
            "`x`: has shape [1] in the base and [2] in the tuned model",
            "`z.weight`: is missing in b.st",
            "`new`: is not in the base",
        ],
    );
    run("task-vector a.st b.st --exclude ^[xzn] -o x.st").fails(1, &["`step`: is I64 and differs"]);
    let changed = other.with("z.weight", DType::F32, &[2, 2], &[2.0; 4]);
    changed.write(folder.path().join("c.st"))?;
    run("task-vector a.st c.st --rank 1 -o lora").fails(1, &["`y`: has elements whose change is no finite number"]);
    assert!(!folder.path().join("lora").exists() && !folder.path().join("x.st").exists());

    // Somebody's folder is not replaced.
    std::fs::create_dir(folder.path().join("mine"))?;
    std::fs::write(folder.path().join("mine/notes.txt"), "mine")?;
    run("task-vector base.st tuned.st --rank 2 -o mine").fails(1, &["holds notes.txt"]);
    assert_eq!(names_in(&folder.path().join("mine")), ["notes.txt"]);
    Ok(())
}

#[test]
fn a_lora_that_its_type_cannot_hold_is_refused() -> Outcome {
    let folder = tempdir()?;
    let write = |name: &str, size: f64| {
        let values: Vec<f64> = Random(3).values(64).iter().map(|x| x * size).collect();
        Model::new().with("a.weight", DType::F32, &[8, 8], &values).write(folder.path().join(name))
    };
    write("base.st", 0.0)?;
    write("tuned.st", 1e12)?;
    run(folder.path(), "task-vector base.st tuned.st --rank 2 --dtype f16 -o lora")
        .fails(1, &["`a.weight`", "more than F16 holds"]);
    assert!(!folder.path().join("lora").exists());
    run(folder.path(), "task-vector base.st tuned.st --rank 2 -o lora").ok();
    Ok(())
}
