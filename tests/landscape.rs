//! Planes through models: their geometry, what is judged at their points, and that a run that was cut short goes on to the same.

use crate::model::{Model, Outcome, Random, binary, read, root, run};
use ckptmerge::analysis::{By, Plane, Products, Vectors, similarity};
use ckptmerge::checkpoint::Checkpoint;
use ckptmerge::diffusion::schedulers::Noising;
use ckptmerge::diffusion::{Ddpm, Noise};
use ckptmerge::dtype::DType;
use ckptmerge::images::Set;
use ckptmerge::search::{Candidates, Loss, Objective as _, Samples};
use ckptmerge::stream::{Control, Settings};
use ckptmerge::train::{Batch, Crop, Data, Network, Objective, Source, Weighting};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::{TempDir, tempdir};

fn digits(name: &str) -> PathBuf {
    root().join("fixtures/digits").join(name)
}

/// Models of several tensors with random numbers, the first the base; returns their numbers, too.
fn random_models(folder: &Path, count: usize, dtype: DType) -> Outcome<(Vec<Checkpoint>, Vec<Vec<f64>>)> {
    let shapes: [&[u64]; 4] = [&[7, 5, 3, 3], &[64, 130], &[33], &[]];
    let (mut models, mut numbers) = (Vec::new(), Vec::new());
    for index in 0..count {
        let mut random = Random(index as u64 + 1);
        let mut model = Model::new();
        for (tensor, shape) in shapes.iter().enumerate() {
            let values = random.values(shape.iter().product::<u64>() as usize);
            model = model.with(&format!("t{tensor}"), dtype, shape, &values);
        }
        let path = model.write(folder.join(format!("{index}.st")))?;
        numbers.push(read(&path)?.tensors.values().flat_map(crate::model::Tensor::values).collect());
        models.push(Checkpoint::open(&path)?);
    }
    Ok((models, numbers))
}

fn products(models: &[Checkpoint]) -> Outcome<Products> {
    let labels: Vec<String> = (0..models.len()).map(|index| format!("model {index}")).collect();
    let tuned: Vec<&Checkpoint> = models[1..].iter().collect();
    let vectors = Vectors::of(&tuned, Some(&models[0]), &labels, &|_| true, false)?;
    Ok(similarity(&vectors, By::Model, &Settings::default(), Control::none())?.total)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The directions that a plane's coefficients mean, as vectors.
fn directions(plane: &Plane, taus: &[Vec<f64>]) -> [Vec<f64>; 2] {
    plane.directions.clone().map(|shares| {
        (0..taus[0].len()).map(|at| shares.iter().zip(taus).map(|(share, tau)| share * tau[at]).sum()).collect()
    })
}

#[test]
fn directions_are_orthonormal_and_models_land_on_their_places() -> Outcome {
    for dtype in [DType::F32, DType::BF16] {
        let folder = tempdir()?;
        let (models, numbers) = random_models(folder.path(), 5, dtype)?;
        let taus: Vec<Vec<f64>> = numbers[1..]
            .iter()
            .map(|model| model.iter().zip(&numbers[0]).map(|(x, base)| x - base).collect())
            .collect();
        let products = products(&models)?;
        let label = |index: usize| index.to_string();
        let through = Plane::through(&products, [2, 0], &label)?;
        let principal = Plane::principal(&products, 4)?;
        for plane in [&through, &principal] {
            let [u, v] = directions(plane, &taus);
            assert!(dot(&u, &v).abs() <= 1e-9, "{}", dot(&u, &v));
            for direction in [&u, &v] {
                assert!((dot(direction, direction).sqrt() - 1.0).abs() <= 1e-9);
            }
            for (index, tau) in taus.iter().enumerate() {
                let place = plane.place(&products, index);
                let size = dot(tau, tau).sqrt();
                for (at, direction) in place.at.iter().zip([&u, &v]) {
                    assert!((at - dot(tau, direction)).abs() <= 1e-9 * size);
                }
                let rest = dot(tau, tau) - place.at[0].powi(2) - place.at[1].powi(2);
                assert!((place.beyond.powi(2) - rest).abs() <= 1e-9 * size * size, "{place:?}");
            }
        }
        // What spans the plane lies in it: the first along x, the second above it.
        let [first, second] = [2, 0].map(|index| through.place(&products, index));
        assert!(first.at[1].abs() <= 1e-9 * first.at[0] && first.beyond == 0.0, "{first:?}");
        assert!(second.at[1] > 0.0 && second.beyond <= 1e-5 * second.at[1], "{second:?}");
        for (index, place) in [(2, first), (0, second)] {
            for (model, weight) in through.weights(place.at).iter().enumerate() {
                let wanted = if model == index { 1.0 } else { 0.0 };
                assert!((weight - wanted).abs() < 1e-9, "model {model} has {weight} at model {index}");
            }
        }
        // No other two directions hold more: the energy is that of the two largest eigenvalues, which their sum bounds from below.
        let energy = |plane: &Plane| -> f64 {
            (0..4).map(|index| plane.place(&products, index).at.iter().map(|at| at * at).sum::<f64>()).sum()
        };
        let all: f64 = (0..4).map(|index| products.product(index, index)).sum();
        assert!((energy(&principal) / all - principal.energy).abs() < 1e-9);
        assert!(energy(&principal) >= energy(&through));
    }
    Ok(())
}

#[test]
fn a_line_is_no_plane() -> Outcome {
    let folder = tempdir()?;
    let at = folder.path();
    for (name, values) in
        [("base", [1.0, 2.0, 0.0]), ("a", [2.0, 2.0, 0.0]), ("twice", [3.0, 2.0, 0.0]), ("back", [0.0, 2.0, 0.0])]
    {
        Model::new().f32("w", &values).write(at.join(format!("{name}.st")))?;
    }
    Model::new().f32("w", &[f64::NAN, 0.0, 0.0]).write(at.join("nan.st"))?;
    let plane = |models: &str, options: &str| {
        let mut command = binary();
        command.current_dir(at).arg("landscape").args(models.split(' ')).args(options.split_whitespace());
        let output = command.args(["--objective", "cmd", "--command", "echo {model} 1"]).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (models, options, said) in [
        ("base.st a.st twice.st", "", "the same way"),
        ("base.st a.st back.st", "", "opposite ways"),
        ("base.st a.st base.st", "", "model at the origin"),
        ("base.st a.st twice.st back.st", "--directions pca", "on a line"),
        ("base.st a.st", "", "two TUNED models"),
        ("base.st a.st twice.st back.st", "", "--mark"),
        ("base.st a.st", "--directions random", "BASE alone"),
        ("base.st", "--directions random", "loss or fid"),
        ("base.st a.st twice.st", "--ranges 4", "--objective loss"),
    ] {
        let (code, errors) = plane(models, options);
        assert!(code == Some(2) && errors.contains(said), "{models} {options}: {errors}");
    }
    let (code, errors) = plane("base.st a.st nan.st", "");
    assert!(code == Some(2) && errors.contains("nan.st has elements that are not finite"), "{errors}");
    assert_eq!(std::fs::read_dir(at)?.count(), 5, "nothing is left behind");
    Ok(())
}

/// A candidate in memory has the bits of the merge.
#[test]
fn candidates_are_merges() -> Outcome {
    for dtype in [DType::F32, DType::BF16] {
        let folder = tempdir()?;
        let (models, _) = random_models(folder.path(), 3, dtype)?;
        let labels = ["a", "b", "base"].map(str::to_owned);
        let vectors = Vectors::of(&[&models[1], &models[2]], Some(&models[0]), &labels, &|_| true, false)?;
        let candidates = Candidates::read(&vectors, None)?;
        for weights in [[0.3, -0.7], [1.0, 0.0], [1.25, 0.1]] {
            let list = weights.map(|weight| weight.to_string()).join(",");
            let line = format!("merge 1.st 2.st --base 0.st --weights {list} --dtype f32 -o merged.st");
            run(folder.path(), &line).ok();
            for (name, tensor) in read(&folder.path().join("merged.st"))?.tensors {
                let found = candidates.tensor(&name, &weights).ok_or("a tensor is missing")?;
                let bits: Vec<u8> = found.iter().flat_map(|value| value.to_le_bytes()).collect();
                assert!(bits == tensor.bytes, "{name} of {dtype} by {list}");
            }
        }
    }
    Ok(())
}

/// Each filter of a random direction is as long as the model's own, and what is no filter stays.
#[test]
fn random_directions_are_normalised_by_filter() -> Outcome {
    let folder = tempdir()?;
    let (models, _) = random_models(folder.path(), 1, DType::F32)?;
    let views: Vec<_> = models[0].tensors().iter().filter_map(|tensor| models[0].get(&tensor.name)).collect();
    let [candidates, others] = [0, 1].map(|seed| Candidates::around(&views, seed, None));
    let (candidates, others) = (candidates?, others?);
    let file = read(&folder.path().join("0.st"))?;
    for (name, tensor) in &file.tensors {
        let own = tensor.values();
        let direction = |candidates: &Candidates, weights: [f64; 2]| -> Outcome<Vec<f64>> {
            let moved = candidates.tensor(name, &weights).ok_or("a tensor is missing")?;
            Ok(moved.iter().zip(&own).map(|(moved, own)| f64::from(*moved) - own).collect())
        };
        let [first, second] = [direction(&candidates, [1.0, 0.0])?, direction(&candidates, [0.0, 1.0])?];
        if tensor.shape.len() < 2 {
            assert!(first.iter().chain(&second).all(|value| *value == 0.0), "{name}");
            continue;
        }
        let filter = own.len() / tensor.shape[0] as usize;
        for direction in [&first, &second] {
            for (direction, own) in direction.chunks(filter).zip(own.chunks(filter)) {
                let ratio = (dot(direction, direction) / dot(own, own)).sqrt();
                assert!((ratio - 1.0).abs() < 1e-5, "{name}: {ratio}");
            }
        }
        let cosine = dot(&first, &second) / (dot(&first, &first) * dot(&second, &second)).sqrt();
        assert!(cosine.abs() < 5.0 / (own.len() as f64).sqrt(), "{name}: {cosine}");
        assert_ne!(first, direction(&others, [1.0, 0.0])?, "{name} has its seed's direction");
    }
    Ok(())
}

/// The loss of a range is the mean over its samples of the loss that is trained by, which is tested against torch.
#[test]
fn losses_are_those_of_training() -> Outcome {
    let (count, seed) = (24, 3);
    let ranges = [0..1000, 0..250, 900..1000];
    let open = |name: &str| -> Outcome<Ddpm> { Ok(Ddpm::open(Checkpoint::open(digits(name))?, None)?) };
    let base = open("base")?;
    let config = base.config().clone();
    let noising = Noising::new(base.scheduler().ok_or("it comes with a scheduler")?)?;
    let file = Checkpoint::open(digits("images.npy"))?;
    let name = Set::array_in(&file)?.ok_or("it holds images")?.to_owned();
    let set = Set::of_array(file, &name)?;
    let data = Data::new(set, 1, (8, 8), Crop::Center, false);
    let samples = Samples::new(&data, &noising, &ranges, count, 5, seed)?;
    let files = [Checkpoint::open(digits("control"))?, Checkpoint::open(digits("base"))?];
    let labels = ["control", "base"].map(str::to_owned);
    let vectors = Vectors::of(&[&files[0]], Some(&files[1]), &labels, &|_| true, false)?;
    let candidates = Candidates::read(&vectors, None)?;
    let weights = base.into_weights();
    let loss = Loss::new(&candidates, &config, &weights, &samples);
    let found = loss.evaluator()?.evaluate(&[1.0], Control::none())?;

    let control = Network::new(&config, &Source::Checkpoint(open("control")?.into_weights()), false)?;
    let objective = Objective { weighting: Weighting::by_name("none")?, gamma: 0.0, consistency: 0.0 };
    let timesteps = samples.timesteps();
    let mut losses = Vec::new();
    for (number, &timestep) in timesteps.iter().enumerate() {
        let images = data.images(number..number + 1)?;
        let noise = Noise::new(seed).tensor("noise of samples", number..number + 1, (1, 8, 8), images.device())?;
        let batch = Batch { images, noise, timesteps: vec![timestep] };
        losses.push(objective.of(&control.unet, None, &noising, &batch)?.1.total);
    }
    for (range, found) in ranges.iter().zip(found) {
        let own: Vec<f64> =
            losses.iter().zip(timesteps).filter(|(_, t)| range.contains(t)).map(|(loss, _)| *loss).collect();
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        assert!((found - mean).abs() <= 1e-5 * mean, "{range:?}: {found}, not {mean}");
    }
    Ok(())
}

/// A command that tells a quadratic function of a model's numbers.
const QUADRATIC: &str = "tail -c 12 {model} | od -An -v -tf4 -w12 | awk '{printf \"%.17g\\n\", ($1 - 0.25) ^ 2 + 4 * ($2 - 0.5) ^ 2 + $3 ^ 2}'";

/// A base at zero, and models that are one along each axis of the first two numbers.
fn axes() -> Outcome<TempDir> {
    let folder = tempdir()?;
    for (name, values) in
        [("base", [0.0, 0.0, 0.0]), ("a", [1.0, 0.0, 0.0]), ("b", [0.0, 1.0, 0.0]), ("c", [0.5, 0.5, 0.25])]
    {
        Model::new().f32("w", &values).write(folder.path().join(format!("{name}.st")))?;
    }
    Ok(folder)
}

fn quadratic(folder: &Path, options: &str) -> Command {
    let mut command = binary();
    command.current_dir(folder).args("landscape base.st a.st b.st --objective cmd --json --command".split(' '));
    command.arg(QUADRATIC).args(options.split_whitespace());
    command
}

fn document(command: &mut Command) -> Outcome<Value> {
    let output = command.output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_quadratic_function_has_its_minimum_and_its_axes() -> Outcome {
    let folder = axes()?;
    let line = "--grid 9 --margin 0.5 --mark c.st --jobs 2 --csv plane.csv --npz plane.npz --plot plane.svg";
    let said = document(&mut quadratic(folder.path(), line))?;
    let places =
        |name: &str| -> Vec<f64> { said[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect() };
    let (xs, ys) = (places("xs"), places("ys"));
    let wanted: Vec<f64> = (0..9).map(|index| f64::from(index) / 4.0 - 0.5).collect();
    assert_eq!((&xs, &ys), (&wanted, &wanted));
    let value = |row: usize, column: usize| said["values"][0][row][column].as_f64().expect("each point has a number");
    for (row, y) in ys.iter().enumerate() {
        for (column, x) in xs.iter().enumerate() {
            assert_eq!(value(row, column), (x - 0.25).powi(2) + 4.0 * (y - 0.5).powi(2), "at {x}, {y}");
        }
    }
    let lowest = &said["lowest"][0];
    assert_eq!([&lowest["x"], &lowest["y"], &lowest["value"]].map(|n| n.as_f64()), [Some(0.25), Some(0.5), Some(0.0)]);
    assert_eq!(lowest["weights"], serde_json::json!([0.25, 0.5]));
    // The ellipse of 1 has the half axes 1 and 1/2.
    assert_eq!([value(4, 7), value(2, 3), value(6, 3)], [1.0; 3]);
    // The mark's own number is not that of the place below it.
    let mark = &said["models"][3];
    assert_eq!(["x", "y", "distance_from_plane"].map(|key| mark[key].as_f64()), [Some(0.5), Some(0.5), Some(0.25)]);
    assert_eq!(mark["values"][0].as_f64(), Some(0.125));

    let npz = Checkpoint::open(folder.path().join("plane.npz"))?;
    let array = |name: &str| -> Outcome<(Vec<u64>, Vec<f64>)> {
        let view = npz.get(name).ok_or_else(|| format!("no {name}"))?;
        let (mut buffer, shape) = (Vec::new(), view.tensor.shape.clone());
        Ok((shape, crate::model::decode(DType::F64, view.read(0..view.tensor.bytes, &mut buffer)?)))
    };
    let (shape, grid) = array("grid")?;
    assert_eq!(shape, [9, 9, 2]);
    let (_, losses) = array("tr_loss")?;
    for (place, loss) in grid.chunks(2).zip(&losses) {
        assert_eq!(*loss, (place[0] - 0.25).powi(2) + 4.0 * (place[1] - 0.5).powi(2));
    }
    assert_eq!(array("bend_coordinates")?.1, [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
    assert_eq!(array("alphas")?.1, wanted);
    let rows = std::fs::read_to_string(folder.path().join("plane.csv"))?;
    assert_eq!(rows.lines().next(), Some("x,y,weight of a,weight of b,the command's number"));
    assert_eq!(rows.lines().nth(2), Some("-0.25,-0.5,-0.25,-0.5,4.25"));
    assert_eq!(rows.lines().count(), 82);
    Ok(())
}

/// Killed wherever it is, a plane goes on to the same numbers, and evaluates no point again.
#[test]
fn a_plane_that_was_killed_goes_on() -> Outcome {
    let folder = axes()?;
    let at = folder.path();
    let whole = document(&mut quadratic(at, "--grid 5 --csv whole.csv"))?;
    let journal = at.join("cut.journal.jsonl");
    let lines = || std::fs::read_to_string(&journal).unwrap_or_default().lines().count();
    for (kill, least) in [("-KILL", 3), ("-INT", 8), ("-KILL", 14)] {
        let mut child = quadratic(at, "--grid 5 --csv cut.csv");
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let begun = Instant::now();
        while lines() < least && begun.elapsed() < Duration::from_secs(60) && child.try_wait()?.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Command::new("kill").args([kill, &child.id().to_string()]).status()?;
        let code = child.wait()?.code();
        assert!(matches!((kill, code), ("-KILL", None) | ("-INT", Some(130)) | (_, Some(0))), "{kill}: {code:?}");
    }
    let before = lines();
    assert!(before >= 14, "{before} lines");
    let cut = document(&mut quadratic(at, "--grid 5 --csv cut.csv"))?;
    assert_eq!(cut["values"], whole["values"]);
    // A line for the setup, and one for each of 25 points and three models.
    assert_eq!(lines(), 29);
    let mut seen = std::collections::BTreeSet::new();
    for line in std::fs::read_to_string(&journal)?.lines().skip(1) {
        let line: Value = serde_json::from_str(line)?;
        assert!(seen.insert(line["weights"].to_string()), "{} was evaluated twice", line["weights"]);
    }
    // Drawn again, nothing is evaluated; another setup is refused; a finer grid takes over what is there.
    let again = document(&mut quadratic(at, "--grid 5 --csv cut.csv"))?;
    assert_eq!(again["known_before"], 28);
    let finer = document(&mut quadratic(at, "--grid 9 --csv cut.csv"))?;
    assert_eq!(finer["known_before"], 28);
    let refused = quadratic(at, "--grid 5 --csv cut.csv --exclude zzz").output()?;
    assert!(!refused.status.success());
    Ok(())
}

/// The same seed gives the same numbers, with any threads and batch; another seed gives others.
#[test]
fn a_plane_of_losses_is_a_function_of_its_seed() -> Outcome {
    let folder = tempdir()?;
    let models = ["base", "range-0", "range-3"].map(|name| digits(name).display().to_string()).join(" ");
    let data = digits("images.npy");
    let line = format!("landscape {models} --data {} --grid 2 --samples 12 --ranges 2 --json", data.display());
    let plane = |options: &str| run(folder.path(), &format!("{line} {options}")).ok().json();
    let first = plane("-j 1");
    for options in ["-j 2", "--batch 5 -j 2"] {
        assert_eq!(plane(options)["values"], first["values"], "{options}");
    }
    assert_ne!(plane("--seed 1")["values"], first["values"]);
    assert_eq!(first["values"].as_array().map(Vec::len), Some(3));
    run(folder.path(), &format!("{line} --timesteps 990..1000 --timesteps 0..10")).fails(2, &["cannot be used with"]);
    let line = line.replace("--ranges 2", "");
    run(folder.path(), &format!("{line} --timesteps 0..1001")).fails(2, &["0..1000"]);
    run(folder.path(), &format!("{line} --timesteps 0..1000 --timesteps 3..4")).fails(2, &["more --samples"]);
    Ok(())
}

/// A distance of images is what `sample` and `fid` give of the merged model.
#[test]
fn distances_are_those_of_samples() -> Outcome {
    let folder = tempdir()?;
    let at = folder.path();
    let models = ["base", "range-0", "range-3"].map(|name| digits(name).display().to_string());
    let reference = digits("reference.npz").display().to_string();
    let judged = format!("--objective fid --reference {reference} --features digits --images 70 --steps 3 --seed 5");
    let line = format!("landscape {} {judged} --grid 2 --margin 0 --json", models.join(" "));
    let found = run(at, &line).ok().json();
    let [base, first, second] = &models;
    let weights = found["directions"].clone();
    let corner: Vec<f64> = (0..2)
        .map(|model| {
            let [x, y] = ["xs", "ys"].map(|axis| found[axis][1].as_f64().expect("a place"));
            let share = |direction: usize| weights[direction][model].as_f64().expect("a share");
            x * share(0) + y * share(1)
        })
        .collect();
    let list = format!("{},{}", corner[0], corner[1]);
    run(at, &format!("merge {first} {second} --base {base} --weights {list} -o merged")).ok();
    run(at, "sample merged -n 70 --steps 3 --seed 5 -o images.npz").ok();
    let distance = run(at, &format!("fid {reference} images.npz --features digits --json")).ok().json();
    let (wanted, found) = (distance["value"].as_f64(), found["values"][0][1][1].as_f64());
    assert_eq!(found, wanted);
    Ok(())
}

/// Nothing that was given is written over, and what cannot be written is told before anything is judged.
#[test]
fn outputs_are_checked_first() -> Outcome {
    let folder = axes()?;
    let at = folder.path();
    std::fs::create_dir(at.join("folder"))?;
    std::os::unix::fs::symlink("nowhere", at.join("link"))?;
    let made = Command::new("mkfifo").arg(at.join("fifo")).status()?;
    assert!(made.success());
    for (output, said) in [
        ("--csv a.st", "would be lost"),
        ("--csv folder", "is a folder"),
        ("--csv link", "leads nowhere"),
        ("--csv /dev/null", "no regular file"),
        ("--csv none/x.csv", "make it first"),
        ("--csv x.csv --journal fifo", "no regular file"),
        ("--csv x.csv --npz x.csv", "end with .npz"),
        ("--csv x.csv --plot x.svg --journal x.svg", "written twice"),
        ("--csv x.csv --most nan", "finite"),
        ("--csv x.csv --span 2", "random directions"),
    ] {
        let output = quadratic(at, output).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(said), "{said}: {errors}");
    }
    assert_eq!(crate::model::names_in(at), ["a.st", "b.st", "base.st", "c.st", "fifo", "folder", "link"]);

    let base = at.join("base");
    std::fs::create_dir(&base)?;
    for name in ["config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"] {
        std::fs::write(base.join(name), std::fs::read(digits("base").join(name))?)?;
    }
    let [first, second] = ["range-0", "range-3"].map(|name| digits(name).display().to_string());
    let data = digits("images.npy").display().to_string();
    let line = format!("landscape base {first} {second} --data {data} --grid 2 --samples 4 --csv base/config.json");
    run(at, &line).fails(1, &["config.json", "would be lost"]);
    Ok(())
}

/// A mark that is added is all that is judged anew; a model is known by what it is.
#[test]
fn marks_can_be_added_to_a_plane() -> Outcome {
    let folder = axes()?;
    let at = folder.path();
    document(&mut quadratic(at, "--grid 4 --csv x.csv"))?;
    let marked = document(&mut quadratic(at, "--grid 4 --csv x.csv --mark c.st"))?;
    assert_eq!(marked["known_before"], 19);
    assert_eq!(marked["models"][3]["values"][0].as_f64(), Some(0.125));
    assert_eq!(document(&mut quadratic(at, "--grid 4 --csv x.csv --mark c.st"))?["known_before"], 20);
    let journal = at.join("x.journal.jsonl");
    let text = std::fs::read_to_string(&journal)?.replace("\"values\":[", "\"values\":[1,");
    std::fs::write(&journal, text)?;
    let refused = quadratic(at, "--grid 4 --csv x.csv").output()?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no evaluation of this plane"));
    Ok(())
}

/// What a command leaves running is not waited for, and a name with a dash first is no option.
#[test]
fn commands_may_leave_others_running() -> Outcome {
    let folder = axes()?;
    let at = folder.path();
    std::fs::copy(at.join("a.st"), at.join("-a.st"))?;
    let mut command = binary();
    command.current_dir(at).args("landscape --objective cmd --grid 2 --json --command".split(' '));
    let begun = Instant::now();
    let said = document(command.args(["(sleep 60 &); wc -c {model}", "--", "base.st", "-a.st", "b.st"]))?;
    assert!(begun.elapsed() < Duration::from_secs(50));
    assert!(said["values"][0][1][1].as_f64().is_some());
    Ok(())
}
