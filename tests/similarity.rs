//! Task vectors compared: against sums in f64 over numbers decoded here, and where the answer is known.

use crate::model::{Model, Outcome, Random, read, run, snapshot, write};
use ckptmerge::analysis::{By, Vectors, similarity};
use ckptmerge::checkpoint::Checkpoint;
use ckptmerge::dtype::DType;
use ckptmerge::error::Error;
use ckptmerge::stream::{Control, Settings};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::{TempDir, tempdir};

/// A model of one tensor each for the numbers given.
fn model(tensors: &[(&str, &[f64])]) -> Model {
    tensors.iter().fold(Model::new(), |model, (name, values)| model.f32(name, values))
}

fn numbers(value: &Value) -> Vec<Vec<Option<f64>>> {
    let row = |row: &Value| row.as_array().into_iter().flatten().map(Value::as_f64).collect();
    value.as_array().into_iter().flatten().map(row).collect()
}

fn cosines(folder: &Path, arguments: &str) -> Vec<Vec<Option<f64>>> {
    numbers(&run(folder, &format!("similarity {arguments} --json")).ok().json()["total"]["cosine"])
}

/// A base and vectors from it whose angles are known.
fn known() -> Outcome<TempDir> {
    let folder = tempdir()?;
    let base = [1.0, -2.0, 0.5, 3.0];
    let moved = |by: [f64; 4]| -> Vec<f64> { base.iter().zip(by).map(|(b, t)| b + t).collect() };
    for (name, by) in [
        ("base", [0.0; 4]),
        ("x", [1.0, 0.0, 0.0, 0.0]),
        ("y", [0.0, 2.0, 0.0, 0.0]),
        ("minus_x", [-4.0, 0.0, 0.0, 0.0]),
        ("x_and_y", [3.0, 3.0, 0.0, 0.0]),
        ("x_again", [0.5, 0.0, 0.0, 0.0]),
        ("z", [0.0, 0.0, 1.0, 1.0]),
    ] {
        model(&[("w", &moved(by))]).write(folder.path().join(format!("{name}.st")))?;
    }
    Ok(folder)
}

#[test]
fn known_angles_come_out() -> Outcome {
    let folder = known()?;
    let said =
        run(folder.path(), "similarity base.st x.st y.st minus_x.st x_and_y.st x_again.st base.st z.st --json").ok();
    let total = &said.json()["total"];
    let cosine = numbers(&total["cosine"]);
    let half = 0.5f64.sqrt();
    let none = None::<f64>;
    let expected = [
        [Some(1.0), Some(0.0), Some(-1.0), Some(half), Some(1.0), none, Some(0.0)],
        [Some(0.0), Some(1.0), Some(0.0), Some(half), Some(0.0), none, Some(0.0)],
        [Some(-1.0), Some(0.0), Some(1.0), Some(-half), Some(-1.0), none, Some(0.0)],
        [Some(half), Some(half), Some(-half), Some(1.0), Some(half), none, Some(0.0)],
        [Some(1.0), Some(0.0), Some(-1.0), Some(half), Some(1.0), none, Some(0.0)],
        [none; 7],
        [Some(0.0), Some(0.0), Some(0.0), Some(0.0), Some(0.0), none, Some(1.0)],
    ];
    for (row, wanted) in cosine.iter().zip(&expected) {
        for (cosine, wanted) in row.iter().zip(wanted) {
            match (cosine, wanted) {
                (Some(cosine), Some(wanted)) => assert!((cosine - wanted).abs() < 1e-15, "{cosine} {wanted}"),
                (cosine, wanted) => assert_eq!(cosine, wanted),
            }
        }
    }
    assert_eq!(total["norm"], json!([1.0, 2.0, 4.0, 18f64.sqrt(), 0.5, 0.0, 2f64.sqrt()]));
    assert_eq!(total["changed"], json!([0.25, 0.25, 0.25, 0.5, 0.25, 0.0, 0.5]));
    let relative = total["relative_norm"][1].as_f64().ok_or("a base has a norm")?;
    assert!((relative - 2.0 / 14.25f64.sqrt()).abs() < 1e-15);
    // x, y, −x and x + y lie in a plane, in which each is a combination of others; z stands alone.
    let own = numbers(&json!([total["own_energy"]])).remove(0);
    assert_eq!(own[..6], [Some(0.0), Some(0.0), Some(0.0), Some(0.0), Some(0.0), None]);
    assert!((own[6].ok_or("z has energy")? - 1.0).abs() < 1e-12);
    // Signs are compared where both changed.
    let signs = numbers(&total["sign_agreement"]);
    assert_eq!((signs[0][1], signs[0][2], signs[0][3], signs[5][5]), (None, Some(0.0), Some(1.0), None));
    Ok(())
}

#[test]
fn what_is_undefined_is_shown_as_such() -> Outcome {
    let folder = known()?;
    let said = run(folder.path(), "similarity base.st x.st base.st").ok();
    assert!(said.stdout.contains('–'), "{}", said.stdout);
    assert!(!said.stdout.contains("NaN") && !said.stdout.contains("inf"), "{}", said.stdout);
    run(folder.path(), "similarity base.st x.st base.st --csv out.csv -q").ok();
    let csv = std::fs::read_to_string(folder.path().join("out.csv"))?;
    let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0][..6], ["part", "a", "b", "elements", "inner_product", "cosine"]);
    assert_eq!(rows[1][1..6], ["x.st", "x.st", "4", "1", "1"]);
    assert_eq!(rows[2][1..6], ["x.st", "base.st", "4", "0", ""]);
    assert_eq!(rows.len(), 4);
    Ok(())
}

#[test]
fn own_energy_is_the_distance_to_what_the_others_span() -> Outcome {
    let folder = tempdir()?;
    model(&[("w", &[0.0; 3])]).write(folder.path().join("base.st"))?;
    model(&[("w", &[1.0, 0.0, 0.0])]).write(folder.path().join("a.st"))?;
    model(&[("w", &[3.0, 4.0, 0.0])]).write(folder.path().join("b.st"))?;
    model(&[("w", &[2.0, 2.0, 1.0])]).write(folder.path().join("c.st"))?;
    let own = |arguments: &str| {
        let found = run(folder.path(), &format!("similarity base.st {arguments} --json")).ok().json();
        numbers(&json!([found["total"]["own_energy"]])).remove(0)
    };
    // 1 − cos² of two.
    for share in own("a.st b.st") {
        assert!((share.ok_or("defined")? - 0.64).abs() < 1e-12);
    }
    // c is one above the plane of the others, of which its length is 3.
    assert!((own("a.st b.st c.st")[2].ok_or("defined")? - 1.0 / 9.0).abs() < 1e-12);
    assert_eq!(own("a.st"), [Some(1.0)]);
    Ok(())
}

/// Models of several types and sizes, of which `base` is the first.
fn family(folder: &Path) -> Outcome<Vec<String>> {
    let types = [DType::F32, DType::F16, DType::BF16, DType::F32, DType::F16];
    let sizes = [1, 7, 512, 513, 4096, 300_001];
    let mut random = Random(7);
    let names: Vec<String> = (0..types.len()).map(|index| format!("m{index}.st")).collect();
    for (index, dtype) in types.into_iter().enumerate() {
        let mut model = Model::new();
        for (layer, size) in sizes.into_iter().enumerate() {
            // Large and small, and the same number all over.
            let scale = [1.0, 1e-3, 300.0][layer % 3];
            let values: Vec<f64> = random.values(size).iter().map(|x| x * scale).collect();
            model = model.with(&format!("layers.{layer}.w"), dtype, &[size as u64], &values).with(
                &format!("layers.{layer}.b"),
                dtype,
                &[size as u64],
                &vec![0.1 * (index + 1) as f64; size],
            );
        }
        model.write(folder.join(&names[index]))?;
    }
    Ok(names)
}

/// Cosines by the definition, in f64, of the models' differences from the base, or of the models.
fn by_definition(folder: &Path, base: Option<&str>, names: &[&str], tensors: &[&str]) -> Outcome<Vec<Vec<f64>>> {
    let values = |name: &str| -> Outcome<Vec<f64>> {
        let contents = read(&folder.join(name))?;
        Ok(tensors.iter().flat_map(|tensor| contents.values(tensor)).collect())
    };
    let below = base.map(values).transpose()?;
    let mut vectors = Vec::new();
    for name in names {
        let values = values(name)?;
        vectors.push(match &below {
            Some(base) => values.iter().zip(base).map(|(x, b)| x - b).collect(),
            None => values,
        });
    }
    let dot = |a: &[f64], b: &[f64]| -> f64 {
        // Small runs first, so that the oracle's own rounding is far below what is asked for.
        a.chunks(256).zip(b.chunks(256)).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()).sum()
    };
    let row = |a: &Vec<f64>| vectors.iter().map(|b| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).collect();
    Ok(vectors.iter().map(row).collect())
}

#[test]
fn cosines_agree_with_f64_for_all_types_together() -> Outcome {
    let folder = tempdir()?;
    let names = family(folder.path())?;
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let first = read(&folder.path().join("m0.st"))?;
    let compare = |arguments: &str, base: Option<&str>, models: &[&str]| -> Outcome {
        let found = run(folder.path(), &format!("similarity {arguments} --by tensor --json")).ok().json();
        let check = |found: &Value, tensors: &[&str]| -> Outcome {
            let expected = by_definition(folder.path(), base, models, tensors)?;
            let cosine = numbers(&found["cosine"]);
            assert_eq!(cosine.len(), expected.len());
            for (row, wanted) in cosine.iter().zip(&expected) {
                for (cosine, wanted) in row.iter().zip(wanted) {
                    let cosine = cosine.ok_or("no vector is zero")?;
                    assert!((cosine - wanted).abs() <= 1e-12, "{tensors:?}: {cosine} {wanted}");
                }
            }
            Ok(())
        };
        let parts = found["parts"].as_array().ok_or("there are parts")?;
        assert_eq!(parts.len(), 12);
        for part in parts {
            check(part, &[part["name"].as_str().ok_or("a part has a name")?])?;
        }
        check(&found["total"], &first.names())
    };
    compare("m0.st m1.st m2.st m3.st m4.st", Some("m0.st"), &all[1..])?;
    compare("m0.st m1.st m2.st m3.st m4.st --base-less", None, &all)?;
    // F16 alone, whose products need no rounding.
    compare("m4.st m1.st", Some("m4.st"), &["m1.st"])
}

#[test]
fn f64_is_not_narrowed() -> Outcome {
    let folder = tempdir()?;
    let write =
        |name: &str, values: &[f64]| Model::new().with("w", DType::F64, &[3], values).write(folder.path().join(name));
    write("base.st", &[1.0, 1.0, 1.0])?;
    write("a.st", &[1.0 + 1e-12, 1.0, 1.0])?;
    write("b.st", &[1.0 + 1e-12, 1.0 + 1e-12, 1.0])?;
    let cosine = cosines(folder.path(), "base.st a.st b.st")[0][1].ok_or("defined")?;
    assert!((cosine - 0.5f64.sqrt()).abs() < 1e-9, "{cosine}");
    Ok(())
}

#[test]
fn numbers_do_not_depend_on_threads_or_how_files_are_read() -> Outcome {
    let folder = tempdir()?;
    let names = family(folder.path())?.join(" ");
    let base = run(folder.path(), &format!("similarity {names} --by layer --json -j 1")).ok().stdout;
    for more in ["-j 2", "-j 3", "-j 7 --io pread", "--memory 64M", "--io mmap"] {
        let other = run(folder.path(), &format!("similarity {names} --by layer --json {more}")).ok().stdout;
        assert!(base == other, "{more}");
    }
    Ok(())
}

#[test]
fn a_pair_has_the_same_numbers_whoever_is_beside_it() -> Outcome {
    let folder = tempdir()?;
    let mut random = Random(3);
    let names: Vec<String> = (0..41).map(|index| format!("m{index}.st")).collect();
    for name in &names {
        model(&[("a.0.w", &random.values(1000)), ("a.1.w", &random.values(40))]).write(folder.path().join(name))?;
    }
    let all = run(folder.path(), &format!("similarity {} --json", names.join(" "))).ok().json();
    let products = numbers(&all["total"]["inner_product"]);
    assert_eq!(products.len(), 40);
    for (i, j) in [(0, 1), (3, 39), (17, 18), (30, 31), (38, 39)] {
        let pair = format!("similarity m0.st {} {} --json", names[i + 1], names[j + 1]);
        let alone = numbers(&run(folder.path(), &pair).ok().json()["total"]["inner_product"]);
        assert_eq!(alone[0][1].map(f64::to_bits), products[i][j].map(f64::to_bits), "{i} {j}");
        assert_eq!(products[i][j].map(f64::to_bits), products[j][i].map(f64::to_bits), "{i} {j}");
    }
    Ok(())
}

#[test]
fn parts_are_named_and_ordered_as_people_would() -> Outcome {
    let folder = tempdir()?;
    for (name, shift) in [("base.st", 0.0), ("a.st", 1.0), ("b.st", 2.0)] {
        let values = |x: f64| vec![x * shift, shift, -x];
        model(&[
            ("model.layers.10.up.weight", &values(1.0)),
            ("model.layers.2.up.weight", &values(2.0)),
            ("model.layers.2.down.weight", &values(3.0)),
        ])
        .write(folder.path().join(name))?;
    }
    let parts = |by: &str| -> Vec<String> {
        let found = run(folder.path(), &format!("similarity base.st a.st b.st --by {by} --json")).ok().json();
        let parts = found["parts"].as_array().cloned().unwrap_or_default();
        parts.iter().map(|part| part["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(parts("layer"), ["model.layers.2", "model.layers.10"]);
    assert_eq!(parts("block"), ["down.weight", "up.weight"]);
    assert_eq!(parts("tensor").len(), 3);
    assert_eq!(parts("model").len(), 0);
    let text = run(folder.path(), "similarity base.st a.st b.st --by layer").ok().stdout;
    assert!(text.contains("model.layers.10") && text.contains("a · b"), "{text}");
    Ok(())
}

#[test]
fn numbers_that_are_not_finite_count_in_no_model() -> Outcome {
    let folder = tempdir()?;
    model(&[("w", &[0.0, 0.0, 0.0, 0.0])]).write(folder.path().join("base.st"))?;
    model(&[("w", &[1.0, 1.0, f64::NAN, 5.0])]).write(folder.path().join("a.st"))?;
    model(&[("w", &[1.0, -1.0, 7.0, f64::INFINITY])]).write(folder.path().join("b.st"))?;
    let said = run(folder.path(), "similarity base.st a.st b.st --json").ok();
    let total = &said.json()["total"];
    assert_eq!(total["inner_product"], json!([[2.0, 0.0], [0.0, 2.0]]));
    assert_eq!((&total["not_finite"], &total["left_out"]), (&json!([1, 1]), &json!(2)));
    assert_eq!(total["changed"], json!([1.0, 1.0]), "of the elements that count");
    assert!(said.stderr.contains("a.st has an element that is not finite"), "{}", said.stderr);
    Ok(())
}

#[test]
fn what_does_not_fit_is_said_all_at_once() -> Outcome {
    let folder = tempdir()?;
    model(&[("w", &[1.0, 2.0]), ("head", &[1.0]), ("v", &[1.0])]).write(folder.path().join("base.st"))?;
    model(&[("w", &[1.0, 2.0, 3.0]), ("extra", &[1.0]), ("v", &[2.0])]).write(folder.path().join("a.st"))?;
    model(&[("w", &[1.0, 3.0]), ("head", &[2.0]), ("v", &[3.0])]).write(folder.path().join("b.st"))?;
    run(folder.path(), "similarity base.st a.st b.st").fails(
        1,
        &[
            "`w`: has shape [2]",
            "`head`: is missing in a.st",
            "`extra`: is missing in base.st",
            "--shared",
            "--exclude",
        ],
    );
    let said = run(folder.path(), "similarity base.st a.st b.st --shared --exclude ^w --json").ok();
    assert!(said.stderr.contains("left out 2 tensors") && said.stderr.contains("head, extra"), "{}", said.stderr);
    assert_eq!(said.json()["total"]["elements"], 1);
    run(folder.path(), "similarity base.st b.st --include nosuch").fails(2, &["no tensor's name matches `nosuch`"]);
    run(folder.path(), "similarity base.st").fails(2, &["required"]);
    run(folder.path(), "similarity base.st nosuch.st").fails(1, &["nosuch.st"]);
    write(&folder.path().join("empty.st"), Model::new().to_bytes())?;
    run(folder.path(), "similarity empty.st empty.st").fails(2, &["no tensor is left to compare"]);
    Ok(())
}

#[test]
fn tied_tensors_count_once_and_formats_mix() -> Outcome {
    let folder = tempdir()?;
    let mut random = Random(5);
    let shape = [8, 32];
    for name in ["base.st", "a.st"] {
        let values = random.values(256);
        let tied = Model::new().with("embed.weight", DType::F32, &shape, &values).text("head.weight", "embed.weight");
        tied.write(folder.path().join(name))?;
    }
    let found = run(folder.path(), "similarity base.st a.st a.st --json").ok().json();
    assert_eq!(found["total"]["elements"], 256);
    for format in ["a.pt", "a.npz", "a.gguf"] {
        run(folder.path(), &format!("convert a.st {format} -q")).ok();
        let cosine = cosines(folder.path(), &format!("base.st a.st {format}"))[0][1].ok_or("defined")?;
        assert!((cosine - 1.0).abs() < 1e-15, "{format}: {cosine}");
    }
    run(folder.path(), "convert a.st a8.gguf --dtype q8_0 -q").ok();
    let cosine = cosines(folder.path(), "base.st a.st a8.gguf")[0][1].ok_or("defined")?;
    assert!((0.999..1.0).contains(&cosine), "{cosine}");
    Ok(())
}

#[test]
fn json_is_valid_whatever_names_hold() -> Outcome {
    let folder = tempdir()?;
    let odd = "a\u{7f}\u{85}\u{202e}\"b\\";
    model(&[(odd, &[1.0])]).write(folder.path().join("a.st"))?;
    model(&[(odd, &[2.0])]).write(folder.path().join("b.st"))?;
    let said = run(folder.path(), "similarity a.st b.st b.st --by tensor --json").ok();
    assert_eq!(said.json()["parts"][0]["name"], odd);
    assert!(!said.stdout.contains(['\u{7f}', '\u{85}', '\u{202e}']));
    let text = run(folder.path(), "similarity a.st b.st b.st --by tensor").ok().stdout;
    assert!(!text.contains(['\u{7f}', '\u{85}', '\u{202e}']), "{text}");
    Ok(())
}

#[test]
fn pictures_are_drawn() -> Outcome {
    let folder = known()?;
    for (arguments, picture) in [("", "a.svg"), ("--by tensor", "b.svg"), ("--theme dark", "c.png")] {
        run(folder.path(), &format!("similarity base.st x.st y.st base.st {arguments} --plot {picture} -q")).ok();
        let bytes = std::fs::read(folder.path().join(picture))?;
        if picture.ends_with(".png") {
            assert!(bytes.starts_with(b"\x89PNG"), "{picture}");
        } else {
            let svg = String::from_utf8(bytes)?;
            assert!(svg.contains("Cosine of the changes from base\n") && svg.contains("\nx"), "{svg}");
        }
    }
    run(folder.path(), "similarity base.st x.st y.st --plot a.jpg").fails(2, &[".svg or .png"]);
    run(folder.path(), "similarity base.st x.st --by layer --plot a.svg").fails(1, &["one model alone"]);
    let before = snapshot(folder.path());
    for (command, says) in [
        ("similarity base.st x.st y.st --csv x.st", "x.st: is one of the models"),
        ("stats base.st x.st y.st --csv ./x.st", "x.st: is one of the models"),
        ("similarity base.st x.st y.st --csv new.svg --plot new.svg", "new.svg: is to be written twice"),
        ("stats base.st x.st --histogram --csv new.csv --histogram-csv ./new.csv", "new.csv: is to be written twice"),
    ] {
        run(folder.path(), command).fails(1, &[says, "nothing was written"]);
    }
    assert!(before == snapshot(folder.path()));
    Ok(())
}

#[test]
fn a_model_that_changes_under_the_pass_is_an_error() -> Outcome {
    let folder = tempdir()?;
    let path = |name: &str| folder.path().join(name);
    model(&[("w", &[1.0, 2.0])]).write(path("a.st"))?;
    model(&[("w", &[3.0, 5.0])]).write(path("b.st"))?;
    let (a, b) = (Checkpoint::open(path("a.st"))?, Checkpoint::open(path("b.st"))?);
    let labels = ["b".to_owned(), "a".to_owned()];
    let vectors = Vectors::of(&[&b], Some(&a), &labels, &|_| true, false)?;
    let settings = Settings::default();
    let take = || similarity(&vectors, By::Model, &settings, Control::none());
    assert_eq!(take()?.total.product(0, 0), 13.0);
    let mut bytes = std::fs::read(path("b.st"))?;
    bytes.extend([0; 8]);
    std::fs::write(path("b.st"), bytes)?;
    assert!(matches!(take(), Err(Error::Changed { .. })), "{:?}", take());
    Ok(())
}
