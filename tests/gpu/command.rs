//! `--device` on the command line.

use crate::model::{Model, Outcome as Test, Random, read, run};
use ckptmerge::dtype::DType;
use ckptmerge::gpu::adapters;
use std::path::Path;
use tempfile::tempdir;

/// Three models and a recipe for them. One of their tensors is large enough for a device by itself.
fn write_models(folder: &Path) -> Test {
    let mut random = Random(41);
    for name in ["a", "b", "base"] {
        let model = [&[400, 500][..], &[30]].iter().fold(Model::new(), |model, shape| {
            let values = random.values(shape.iter().product::<u64>() as usize);
            model.with(&format!("{shape:?}"), DType::BF16, shape, &values)
        });
        model.write(folder.join(format!("{name}.st")))?;
    }
    let recipe = "merge_method: ties\nbase_model: base.st\nmodels: [{model: a.st}, {model: b.st}]\nparameters: {density: 0.4, weight: 0.5}\n";
    Ok(std::fs::write(folder.join("r.yaml"), recipe)?)
}

#[test]
fn merges_and_recipes_are_computed_by_a_device() -> Test {
    let folder = tempdir()?;
    write_models(folder.path())?;
    for command in ["merge a.st b.st --base base.st --method ties -p density=0.4 --weights 0.5,0.5", "run r.yaml"] {
        run(folder.path(), &format!("{command} -o cpu.safetensors")).ok();
        let on_cpu = read(&folder.path().join("cpu.safetensors"))?;
        for device in ["gpu", "GPU:0", "gpu --memory 200M", "gpu -j 1"] {
            let ran = run(folder.path(), &format!("{command} -o gpu.safetensors --device {device}")).ok();
            assert_eq!(ran.stderr, "", "{command} {device}");
            assert!(ran.stdout.trim_end().ends_with(&format!(" by {}", adapters()[0].name)), "{}", ran.stdout);
            let on_device = read(&folder.path().join("gpu.safetensors"))?;
            for (name, tensor) in &on_cpu.tensors {
                let (expected, found) = (tensor.values(), on_device.tensors[name].values());
                let same = expected.iter().zip(&found).filter(|(x, y)| x == y).count();
                assert!(same as f64 >= 0.995 * expected.len() as f64, "{command} {device}: {name}");
            }
        }
    }
    Ok(())
}

#[test]
fn it_is_said_who_computed() -> Test {
    let folder = tempdir()?;
    write_models(folder.path())?;
    let name = &adapters()[0].name;
    let device = |options: &str| -> Test<serde_json::Value> {
        let ran = run(folder.path(), &format!("merge a.st b.st -o out.safetensors --json {options}")).ok();
        Ok(serde_json::from_str::<serde_json::Value>(&ran.stdout)?["device"].clone())
    };
    assert_eq!(device("--device gpu")?, name.as_str());
    assert_eq!(device("")?, "cpu");
    assert_eq!(device("--device gpu --dtype f64")?, "cpu");
    let ran = run(folder.path(), "merge a.st b.st -o out.safetensors --dtype f64 --device gpu").ok();
    assert!(ran.stderr.contains(&format!("{name} had nothing to compute")), "{}", ran.stderr);
    assert!(!ran.stdout.contains(" by "), "{}", ran.stdout);
    Ok(())
}

#[test]
fn a_small_merge_is_not_tried() -> Test {
    let folder = tempdir()?;
    write_models(folder.path())?;
    let ran = run(folder.path(), "merge a.st b.st -o out.safetensors --device auto").ok();
    assert!(ran.stderr.contains("computed by the CPU: "), "{}", ran.stderr);
    let mut random = Random(42);
    for name in ["c", "d"] {
        let model = (0..200).fold(Model::new(), |model, index| {
            model.with(&format!("layers.{index}.w"), DType::F16, &[100, 200], &random.values(20_000))
        });
        model.write(folder.path().join(format!("{name}.st")))?;
    }
    let ran = run(folder.path(), "merge c.st d.st -o out.safetensors --device auto").ok();
    assert!(ran.stderr.contains(" s, and a device is tried from "), "{}", ran.stderr);
    Ok(())
}

#[test]
fn devices_that_are_not_there_are_errors() -> Test {
    let folder = tempdir()?;
    write_models(folder.path())?;
    let ran = run(folder.path(), "merge a.st b.st -o out.safetensors --device gpu:radeon-9000");
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("there is no graphics processor `radeon-9000`"), "{}", ran.stderr);
    for device in ["tpu", "gpu:", "0"] {
        let ran = run(folder.path(), &format!("merge a.st b.st -o out.safetensors --device {device}"));
        assert_eq!(ran.code, Some(2), "{device}");
        assert!(ran.stderr.contains("it is cpu, auto, gpu, or gpu:NAME"), "{}", ran.stderr);
    }
    assert!(!folder.path().join("out.safetensors").exists());
    Ok(())
}
