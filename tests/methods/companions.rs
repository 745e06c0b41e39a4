//! Companions of models: what a recipe asks of them, and that they are read, named and kept in the record.

use crate::merge::settings;
use crate::model::{Model, Outcome, read, run};
use ckptmerge::adapter::Unplaced;
use ckptmerge::dtype::DType;
use ckptmerge::merge::METHODS;
use ckptmerge::recipe::{Models, Plan, Recipe, Target};
use ckptmerge::stream::Control;
use ckptmerge::{Error, IoMode};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// Two models and their diagonals in a folder, by name.
fn write(folder: &Path) -> Outcome<[PathBuf; 4]> {
    let model = |x: [f64; 3]| Model::new().f32("w", &x).with("steps", DType::I64, &[1], &[7.0]);
    let fisher = |x: [f64; 3]| Model::new().with("w", DType::F16, &[3], &x).f32("other", &[1.0]);
    Ok([
        model([1.0, 1.0, 1.0]).write(folder.join("a.st"))?,
        model([2.0, 3.0, 4.0]).write(folder.join("b.st"))?,
        fisher([1.0, 0.5, 0.0]).write(folder.join("fa.st"))?,
        fisher([1.0, 1.5, 0.0]).write(folder.join("fb.st"))?,
    ])
}

fn plan_error(recipe: &Recipe, models: &[PathBuf], companions: &[PathBuf]) -> Outcome<Error> {
    let models = Models::open_with(models, companions, None, &IoMode::Auto.into(), Unplaced::Error)?;
    Ok(Plan::new(recipe, &models, &settings(), Control::none()).err().ok_or("this cannot be merged")?)
}

#[test]
fn companions_weigh_the_models() -> Outcome {
    let folder = tempdir()?;
    write(folder.path())?;
    let arguments = "merge a.st b.st --method fisher --companion fa.st --companion fb.st --explain -o out.safetensors";
    let ran = run(folder.path(), arguments).ok();
    for part in ["x₁ = a.st; x₂ = b.st", "companion₁ = fa.st; companion₂ = fb.st", "F32, F16"] {
        assert!(ran.stdout.contains(part), "{part:?} is not in {}", ran.stdout);
    }
    let merged = read(&folder.path().join("out.safetensors"))?;
    assert_eq!(merged.names(), ["steps", "w"]);
    assert_eq!(merged.values("w"), [1.5, 2.5, 2.5]);
    for name in ["\"fa.st\"", "\"fb.st\""] {
        assert!(merged.metadata["ckptmerge.inputs"].contains(name), "{:?}", merged.metadata);
    }
    assert!(run(folder.path(), "methods").ok().stdout.contains("needs --companion"));
    // What a companion lacks is no obstacle where it is not needed.
    let arguments = arguments.replace("fa.st --companion fb.st", "a.st --companion a.st") + " --exclude nothing|^w$";
    run(folder.path(), &arguments).ok();
    assert_eq!(read(&folder.path().join("out.safetensors"))?.values("w"), [1.0; 3]);
    Ok(())
}

#[test]
fn companions_must_be_there_and_fit() -> Outcome {
    let folder = tempdir()?;
    let [a, b, fa, fb] = write(folder.path())?;
    let models = [a.clone(), b];
    let recipe = Recipe::new("fisher")?;
    for companions in [&[][..], std::slice::from_ref(&fa), &[fa.clone(), fb, fa.clone()]] {
        let error = plan_error(&recipe, &models, companions)?;
        let says = format!("for each of 2 models with --companion, but there are {}", companions.len());
        assert!(matches!(error, Error::Recipe(_)) && error.to_string().contains(&says), "{error}");
    }
    for method in METHODS.iter().filter(|method| method.companions().is_none()) {
        let name = method.about().name;
        let error = plan_error(&Recipe::new(name)?, &models, std::slice::from_ref(&fa))?;
        assert!(matches!(error, Error::Recipe(_)), "{name}: {error}");
    }
    let wrong = [
        (Model::new().f32("other", &[1.0]), "is missing in wrong.st"),
        (Model::new().f32("w", &[1.0, 1.0]), "[3], but [2] in wrong.st"),
        (Model::new().with("w", DType::I64, &[3], &[1.0; 3]), "is I64 in wrong.st"),
        (Model::new().with("w", DType::F8E4M3, &[3], &[1.0; 3]).f32("w_scale", &[1.0]), "`w_scale` in wrong.st"),
    ];
    for (model, says) in wrong {
        let companions = [fa.clone(), model.write(folder.path().join("wrong.st"))?];
        match plan_error(&recipe, &models, &companions)? {
            Error::Mismatch(all) => {
                assert_eq!((all.len(), all[0].tensor.as_str()), (1, "w"));
                assert!(all[0].problem.contains(says), "{says:?} is not in {:?}", all[0].problem);
            }
            other => panic!("not a mismatch: {other}"),
        }
    }
    Ok(())
}

/// What only the data shows leaves nothing behind.
#[test]
fn negative_diagonals_are_refused() -> Outcome {
    let folder = tempdir()?;
    let [a, b, fa, _] = write(folder.path())?;
    let negative = Model::new().f32("w", &[1.0, -1.0, 1.0]).write(folder.path().join("negative.st"))?;
    let models = Models::open_with(&[a, b], &[fa, negative], None, &IoMode::Auto.into(), Unplaced::Error)?;
    let recipe = Recipe::new("fisher")?;
    let plan = Plan::new(&recipe, &models, &settings(), Control::none())?;
    let out = folder.path().join("out.safetensors");
    let Err(error) = plan.emit(&Target::new(&out), &settings(), Control::none()) else { panic!("it is negative") };
    assert!(matches!(&error, Error::Mismatch(all) if all[0].tensor == "w"), "{error}");
    assert!(!out.exists());
    Ok(())
}

#[test]
fn importances_of_any_size_are_weighed() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let most = f64::from(f32::MAX);
    for (name, x) in [
        ("a.st", [1.0, 1000.0, 1.0, 1.0, 4.0]),
        ("b.st", [2.0, 3000.0, 1.0, 2.0, 8.0]),
        ("c.st", [6.0, 2000.0, 1.0, 3.0, 0.0]),
    ] {
        Model::new().f32("w", &x).write(path.join(name))?;
    }
    for (name, x) in [
        ("fa.st", [most, 1e37, most, 1e-15, 1e38]),
        ("fb.st", [most, 3e37, most, 1e-15, 1e-10]),
        ("fc.st", [most, 0.0, 1e-30, 2e-15, 0.0]),
    ] {
        Model::new().f32("w", &x).write(path.join(name))?;
    }
    let companions = "--companion fa.st --companion fb.st --companion fc.st";
    for weights in ["1,1,1", "1e30,1e30,1e30"] {
        run(path, &format!("merge a.st b.st c.st --method fisher {companions} --weights {weights} -o out.safetensors"))
            .ok();
        let values = read(&path.join("out.safetensors"))?.values("w");
        for (value, expected) in values.iter().zip([3.0, 2500.0, 1.0, 2.25, 4.0]) {
            assert!((value - expected).abs() <= 1e-6 * expected, "{values:?}");
        }
    }
    Ok(())
}
