//! `ckptmerge fid`

use super::expected;
use crate::model::{Outcome, fixture, names_in, run, snapshot};
use ckptmerge::Checkpoint;
use ckptmerge::dtype::DType;
use ckptmerge::eval::{Features, Statistics};
use ckptmerge::images::{Images, write};
use ckptmerge::output::{Array, write_npz};
use std::path::Path;
use tempfile::tempdir;

/// The golden digits, in many copies that differ, as a folder and as an array.
fn digits(folder: &Path, name: &str, count: usize, add: u8) -> Outcome<Images> {
    let contents = super::golden("digits.safetensors")?;
    let digits = super::pictures(&contents, "images")?;
    let mut samples = Vec::new();
    for index in 0..count {
        let start = index % digits.count * digits.stride();
        let own = &digits.samples[start..start + digits.stride()];
        samples.extend(own.iter().enumerate().map(|(place, &sample)| {
            let noise = (index * 31 + place * 17 + usize::from(add)) % 37;
            sample.saturating_add(noise as u8).saturating_add(add)
        }));
    }
    let images = Images { count, samples, ..digits };
    write(&folder.join(name), &images, 0)?;
    write(&folder.join(format!("{name}.npz")), &images, 0)?;
    Ok(images)
}

#[test]
fn folders_arrays_statistics_threads_and_batches_agree() -> Outcome {
    let folder = tempdir()?;
    let here = folder.path();
    digits(here, "a", 90, 0)?;
    digits(here, "b", 70, 9)?;
    for features in ["digits", "pixels"] {
        let value = |arguments: &str| {
            let found = run(here, &format!("fid {arguments} --features {features} --json")).ok().json();
            assert_eq!(found["metric"], "FD");
            found["value"].as_f64().unwrap_or(f64::NAN)
        };
        let of_folders = value("a b");
        assert!(of_folders > 1e-3, "{of_folders}");
        for same in ["a.npz b.npz", "a b.npz -j 1", "a b --batch 7 -j 3", "a b --batch 1000"] {
            assert_eq!(value(same).to_bits(), of_folders.to_bits(), "{same}");
        }
        let stats = format!("{features}.npz");
        let said = run(here, &format!("fid a --features {features} --save-stats {stats}")).ok();
        assert!(said.stdout.contains("90 images"), "{said:?}");
        assert_eq!(value(&format!("{stats} b")).to_bits(), of_folders.to_bits());
        let by_statistics = value(&format!("b {stats}"));
        assert!((by_statistics - of_folders).abs() < 1e-7 * of_folders, "{by_statistics} {of_folders}");
        // What is left is the roots of eigenvalues that should be zero: of pixels that no image has.
        assert!(value("a a.npz") < 1e-6);
    }
    // Of others' statistics nothing is known but their dimension.
    let theirs =
        Statistics { extractor: None, count: None, ..Statistics::read(&Checkpoint::open(here.join("pixels.npz"))?)? };
    theirs.write(&here.join("theirs.npz"))?;
    let said = run(here, "fid theirs.npz b --features pixels").ok();
    assert!(said.stderr.contains("theirs.npz does not say what its numbers are of"), "{}", said.stderr);
    assert!(
        said.stdout.contains("theirs.npz (statistics)") && said.stdout.contains("by pixels of 8×8×1"),
        "{}",
        said.stdout
    );
    let other = run(here, "fid digits.npz b --features pixels");
    other.fails(2, &["digits.npz has statistics of digits", "by pixels", "--features"]);
    let resized = run(here, "fid digits.npz b --features digits --resize clean");
    resized.fails(2, &["digits.npz has statistics of digits", "resized as clean"]);
    run(here, "fid a --features digits --resize clean --save-stats resized.npz").ok();
    let resized = run(here, "fid resized.npz b --features digits");
    resized.fails(2, &["resized.npz has statistics of digits", "resized as clean"]);
    run(here, "fid resized.npz b --features digits --resize clean").ok();
    let mixed = run(here, "fid digits.npz pixels.npz");
    mixed.fails(2, &["digits.npz", "pixels.npz", "features of"]);
    Ok(())
}

#[test]
fn all_measures_are_told() -> Outcome {
    let folder = tempdir()?;
    let here = folder.path();
    digits(here, "a", 60, 0)?;
    digits(here, "b", 60, 3)?;
    let all = "fid a b --features digits --kid --infinity --precision-recall";
    let said = run(here, all).ok();
    for part in ["FD (not FID) ", "a (60 images)", "KID ", "100 subsets of 60", "FD∞ ", "precision ", "by digits"] {
        assert!(said.stdout.contains(part), "{part:?} is not in {}", said.stdout);
    }
    assert!(
        said.stderr.contains("a has 60 and b has 60, fewer than 64: the distance is biased upward"),
        "{}",
        said.stderr
    );
    let found = run(here, &format!("{all} --json -q")).ok();
    assert_eq!(found.stderr, "");
    let found = found.json();
    for place in ["/kid/mean", "/infinity/value", "/precision", "/recall", "/a/count", "/dimension"] {
        assert!(found.pointer(place).is_some_and(serde_json::Value::is_number), "{place} in {found}");
    }
    let other = run(here, &format!("{all} --json -q --seed 1")).ok().json();
    assert_ne!(other["infinity"]["value"], found["infinity"]["value"]);
    assert_eq!(other["value"], found["value"]);
    Ok(())
}

#[test]
fn files_of_others_are_taken() -> Outcome {
    let pairs = expected()?;
    let theirs = pairs["pairs"]["bd"]["frechet"].as_f64().ok_or("no number")?;
    let folder = tempdir()?;
    let golden = fixture("eval");
    // An archive of one array, as `numpy.save` writes it.
    let features = Features::read(&Checkpoint::open(golden.join("features.npz"))?, "d")?;
    let bytes: Vec<u8> = features.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = [features.count() as u64, features.dimension as u64];
    let dtype = DType::F32;
    let array = Array { name: "arr_0", dtype, shape: &shape, bytes: &bytes };
    write_npz(&folder.path().join("d.npz"), &[array], &[])?;
    let stats = golden.join("stats-b.npz");
    let found = run(folder.path(), &format!("fid {} d.npz --json -q", stats.display())).ok().json();
    let value = found["value"].as_f64().ok_or("no number")?;
    assert!((value - theirs).abs() < 1e-6 * theirs, "{value} {theirs}");
    assert_eq!((&found["a"]["kind"], &found["b"]["kind"]), (&"statistics".into(), &"features".into()));
    let said = run(folder.path(), &format!("fid {} d.npz", stats.display())).ok();
    assert!(said.stdout.contains("an extractor that is not known"), "{}", said.stdout);
    Ok(())
}

#[test]
fn what_is_wrong_is_named_with_a_remedy() -> Outcome {
    let folder = tempdir()?;
    let here = folder.path();
    digits(here, "a", 6, 0)?;
    digits(here, "b", 6, 3)?;
    let rgb = Images { count: 2, height: 8, width: 8, channels: 3, samples: vec![3; 384] };
    write(&here.join("rgb"), &rgb, 0)?;
    write(&here.join("one"), &Images { count: 1, samples: vec![3; 192], ..rgb.clone() }, 0)?;
    std::fs::create_dir(here.join("broken"))?;
    std::fs::copy(here.join("a/00001.png"), here.join("broken/1.png"))?;
    std::fs::write(here.join("broken/2.png"), "no picture")?;
    let stats = fixture("eval/stats-b.npz").display().to_string();
    let array = |name: &str, shape: &[u64], values: &[f64]| -> Outcome<Vec<u8>> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(shape.iter().product::<u64>(), values.len() as u64, "{name}");
        Ok(bytes)
    };
    let save = |file: &str, mu: &[f64], sigma: &[f64], shape: &[u64]| -> Outcome {
        let (mu_bytes, sigma_bytes) = (array("mu", &[mu.len() as u64], mu)?, array("sigma", shape, sigma)?);
        let dtype = DType::F64;
        let arrays = [
            Array { name: "mu", dtype, shape: &[mu.len() as u64], bytes: &mu_bytes },
            Array { name: "sigma", dtype, shape, bytes: &sigma_bytes },
        ];
        Ok(write_npz(&here.join(file), &arrays, &[])?)
    };
    save("nan.npz", &[0.0, 0.0], &[1.0, f64::NAN, 0.0, 1.0], &[2, 2])?;
    save("uneven.npz", &[0.0, 0.0], &[1.0, 3.0, 0.0, 1.0], &[2, 2])?;
    save("small.npz", &[0.0, 0.0], &[1.0, 0.0, 0.0, 1.0], &[2, 2])?;
    save("wrong.npz", &[0.0, 0.0, 0.0], &[1.0, 0.0, 0.0, 1.0], &[2, 2])?;
    let zeros = vec![0; 3 * 20_000 * 4];
    let array = |name, shape| Array { name, dtype: DType::F32, shape, bytes: &zeros };
    write_npz(&here.join("wide.npz"), &[array("arr_0", &[3, 20_000])], &[])?;
    write_npz(&here.join("two.npz"), &[array("x", &[20_000, 3]), array("y", &[3_000, 20])], &[])?;
    write_npz(&here.join("labels.npz"), &[array("labels", &[60_000])], &[])?;
    let before = snapshot(here);
    let cases: &[(&str, i32, &[&str])] = &[
        ("a b", 2, &["--features", "inception:PATH"]),
        ("a", 2, &["<B>"]),
        ("a b --features inception", 2, &["inception:PATH"]),
        ("a broken --features digits", 1, &["broken/2.png", "cannot be decoded", "move it away"]),
        ("a rgb --features pixels", 1, &["rgb/00000.png", "8×8 RGB", "8×8 grey", "convert"]),
        ("rgb a --features digits", 1, &["rgb/00000.png", "takes grey"]),
        ("a one --features digits", 2, &["one has 1 of the two"]),
        ("one rgb --features pixels", 2, &["one has 1 of the two"]),
        ("small.npz nan.npz", 1, &["nan.npz", "`sigma` has NaN", "again"]),
        ("small.npz uneven.npz", 1, &["uneven.npz", "not symmetric"]),
        ("small.npz wrong.npz", 1, &["wrong.npz", "3 numbers"]),
        ("a small.npz --features digits", 2, &["a has features of 64 numbers", "small.npz of 2"]),
        ("small.npz wide.npz", 2, &["wide.npz", "features of 20000 numbers"]),
        ("small.npz two.npz", 1, &["two.npz", "several arrays of features (`x`, `y`, …)", "`arr_0`"]),
        ("small.npz labels.npz", 1, &["labels.npz", "holds neither images"]),
        ("small.npz a --features digits --kid", 1, &["small.npz", "--kid", "give the images"]),
        ("a missing --features digits", 1, &["missing"]),
        ("a a/00000.png --features digits", 1, &["single image"]),
        ("a b --features digits --save-stats out.txt", 2, &[".npz"]),
        ("a b --features digits --save-stats none/out.npz", 1, &["does not exist"]),
        ("small.npz a --features digits --save-stats small.npz", 1, &["one of the inputs"]),
        ("a b --features digits --batch 0", 2, &["--batch"]),
        ("a b --features digits --resize lanczos", 2, &["pytorch", "clean"]),
    ];
    for (arguments, code, says) in cases {
        run(here, &format!("fid {arguments}")).fails(*code, says);
    }
    for repeated in ["repeated.pt", "repeated-stats.pt", "repeated-images.pt"] {
        let path = fixture("eval").join(repeated);
        run(here, &format!("fid small.npz {}", path.display())).fails(1, &[repeated, "repeats its elements"]);
    }
    run(here, &format!("fid small.npz {stats}")).fails(2, &["small.npz", "stats-b.npz", "48"]);
    assert_eq!(snapshot(here), before, "{:?}", names_in(here));
    Ok(())
}
