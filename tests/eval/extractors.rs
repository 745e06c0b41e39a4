//! Extractors: against the networks in torch that they are.

use super::{batches, difference, golden, pictures};
use crate::model::{Model, Outcome, Random, fixture, write};
use ckptmerge::dtype::DType;
use ckptmerge::eval::{self, EXTRACTORS, Extractor, Resize, extractor};
use ckptmerge::images::{Image, Images, Set};
use ckptmerge::stream::Control;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn open(text: &str, resize: Option<Resize>) -> Outcome<Box<dyn Extractor>> {
    Ok(extractor(text, resize)?)
}

fn of(extractor: &dyn Extractor, images: &Images, batch: usize) -> Outcome<Vec<f32>> {
    Ok(eval::features(extractor, batches(images, batch), "images", Control::none())?.values)
}

/// The random weights that the golden features were made with.
fn inception_weights(folder: &Path) -> Outcome<PathBuf> {
    let fnv = |name: &str| {
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    };
    let shapes = std::fs::read_to_string(fixture("eval/inception.json"))?;
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&shapes)?;
    assert_eq!(shapes.len(), 94 * 5);
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in &shapes {
        let scale = (6.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt();
        let start = data.len();
        let mut random = Random(fnv(name));
        for _ in 0..shape.iter().product() {
            let u = random.uniform();
            let value = match name.as_str() {
                name if name.ends_with("running_var") => 1.0 + 0.5 * u,
                name if name.ends_with("bn.weight") => 1.0 + 0.2 * u,
                _ if shape.len() > 1 => u * scale,
                _ => 0.1 * u,
            };
            data.extend_from_slice(&(value as f32).to_le_bytes());
        }
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let path = folder.join("inception.safetensors");
    write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())?;
    Ok(path)
}

#[test]
fn inception_is_pytorch_fids() -> Outcome {
    let folder = tempdir()?;
    let weights = inception_weights(folder.path())?;
    let expected = golden("inception.safetensors")?;
    let set = Set::of_folder(&fixture("eval/images"))?;
    assert_eq!(set.len(), 4);
    let inception = open(&format!("inception:{}", weights.display()), None)?;
    assert!(!inception.is_fid() && !eval::is_fid(&inception.id()), "random weights give no FID");
    let found = eval::features(&*inception, set.batches(3), "images", Control::none())?;
    assert_eq!((found.dimension, found.count()), (2048, 4));
    let theirs = expected.values("pytorch");
    let off = difference(&found.values, &theirs);
    assert!(off <= 1e-3, "features are off by {off}");
    // Images are told apart by more than that.
    assert!(difference(&theirs[..2048], &theirs[2048..4096]) > 0.1);

    let clean = open(&format!("inception:{}", weights.display()), Some(Resize::Clean))?;
    let first: Vec<Image> = set.batches(1).next().ok_or("no images")??;
    let (one, two) = (clean.features(&first)?, inception.features(&first)?);
    let off = difference(&one, &expected.values("clean"));
    assert!(off <= 1e-3, "features are off by {off}");
    assert_eq!(two, found.values[..2048], "alone and among others an image has the same features");
    assert!(difference(&one, &two) > 1e-3);
    assert_ne!(clean.id(), inception.id());
    Ok(())
}

#[test]
fn fid_is_known_by_the_hash_of_the_weights() {
    let known = "inception of weights 6726825d0af5f729, resized as ";
    assert!(eval::is_fid(&format!("{known}pytorch")) && eval::is_fid(&format!("{known}clean")));
    assert!(!eval::is_fid("inception of weights 6726825d0af5f728, resized as pytorch") && !eval::is_fid("digits"));
}

#[test]
fn digits_are_the_network_that_was_trained() -> Outcome {
    let contents = golden("digits.safetensors")?;
    let digits = pictures(&contents, "images")?;
    let classifier = open("digits", None)?;
    let found = of(&*classifier, &digits, 5)?;
    assert_eq!(found.len(), 12 * 64);
    let off = difference(&found, &contents.values("features"));
    assert!(off < 2e-5, "features are off by {off}");
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let alone = one.install(|| of(&*classifier, &digits, 1).map_err(|error| error.to_string()))?;
    assert_eq!(alone, found, "neither threads nor batches change a bit");
    Ok(())
}

#[test]
fn classifiers_are_what_their_description_says() -> Outcome {
    let contents = golden("net-features.safetensors")?;
    let path = fixture("eval/net.safetensors");
    for name in [path.display().to_string(), format!("classifier:{}", path.display())] {
        let classifier = open(&name, None)?;
        let found = of(&*classifier, &pictures(&contents, "images")?, 2)?;
        let off = difference(&found, &contents.values("features"));
        assert!(off < 1e-5, "features are off by {off}");
    }
    Ok(())
}

#[test]
fn descriptions_that_are_wrong_say_where() -> Outcome {
    let folder = tempdir()?;
    let weights = folder.path().join("net.safetensors");
    std::fs::copy(fixture("eval/net.safetensors"), &weights)?;
    let right: Value = serde_json::from_str(&std::fs::read_to_string(fixture("eval/net.json"))?)?;
    let said = |description: &str| -> Outcome<String> {
        write(&folder.path().join("net.json"), description)?;
        Ok(extractor(&weights.display().to_string(), None).err().map(|error| error.to_string()).unwrap_or_default())
    };
    assert_eq!(said(&right.to_string())?, "");
    assert!(said("{")?.contains("not JSON"));
    assert!(said("{}")?.contains("no list `layers`"));
    let changes: [(&str, Value, &str); 14] = [
        ("/input/height", json!(3), "do not fit together: a kernel of 2×2 does not fit into 1×4"),
        ("/layers/0/padding", json!(65), "from 0 to 64"),
        ("/layers/0/type", json!("dense"), "is of no type that there is"),
        ("/layers/0/stride", json!(0), "`stride`"),
        ("/layers/0/padding", json!(-1), "`padding`"),
        ("/layers/0/padding", json!(1e9), "`padding`"),
        ("/layers/0/name", json!("missing"), "missing.weight"),
        ("/layers/0/name", json!("last"), "4 dimensions"),
        ("/layers/2/size", json!(4000), "do not fit together"),
        ("/features", json!("nothing"), "`nothing`"),
        ("/input/channels", json!(2), "1 or 3"),
        ("/input/height", json!(null), "`height`"),
        ("/input/std", json!([0, 1, 1]), "`std`"),
        ("/input/mean", json!([0.5]), "list of 3"),
    ];
    for (place, value, says) in changes {
        let mut wrong = right.clone();
        *wrong.pointer_mut(place).unwrap_or(&mut Value::Null) = value.clone();
        if wrong == right {
            wrong["layers"][0][place.rsplit('/').next().unwrap_or_default()] = value;
        }
        let error = said(&wrong.to_string())?;
        assert!(error.contains(says) && error.contains("net"), "{place}: {error}");
    }
    std::fs::remove_file(folder.path().join("net.json"))?;
    let odd = Model::new()
        .with("first.weight", DType::F32, &[4, 3, 3, 3], &[0.5; 108])
        .with("first.bias", DType::F32, &[1], &[0.5])
        .write(folder.path().join("odd.safetensors"))?;
    let layers = json!([{"type": "conv", "name": "first"}]);
    let description = json!({"input": right["input"], "layers": layers, "features": "first"});
    write(&folder.path().join("odd.json"), description.to_string())?;
    let error = extractor(&odd.display().to_string(), None).err().map(|error| error.to_string());
    assert!(error.unwrap_or_default().contains("not one number for each output"));
    let error = extractor(&weights.display().to_string(), None).err().map(|error| error.to_string());
    assert!(error.unwrap_or_default().contains("net.json should say"));
    Ok(())
}

#[test]
fn images_that_an_extractor_does_not_take_are_named() -> Outcome {
    let grey = Images { count: 2, height: 4, width: 4, channels: 1, samples: vec![7; 32] };
    let rgb = Images { count: 2, height: 4, width: 4, channels: 3, samples: vec![7; 96] };
    let flat = Images { count: 2, height: 2, width: 8, channels: 1, samples: vec![7; 32] };
    let error = |extractor: &dyn Extractor, images: &Images| {
        of(extractor, images, 1).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let digits = open("digits", None)?;
    assert!(error(&*digits, &grey).contains("is 4×4 grey, but digits takes 8×8; --resize"));
    assert!(error(&*digits, &rgb).contains("is 4×4 RGB, but digits takes grey"));
    assert_eq!(of(&*open("digits", Some(Resize::Pytorch))?, &grey, 1)?.len(), 128);
    let pixels = open("pixels", None)?;
    let values = of(&*pixels, &grey, 1)?;
    assert_eq!(values, [7.0 / 255.0; 32]);
    assert!(error(&*pixels, &flat).contains("is 8×2 grey, but image 0 is 4×4 grey"));
    assert!(error(&*pixels, &rgb).contains("4×4 RGB"));
    let large = Images { count: 1, height: 1, width: 16_385, channels: 1, samples: vec![0; 16_385] };
    assert!(error(&*open("pixels", None)?, &large).contains("at most 16384"));
    Ok(())
}

#[test]
fn names_of_extractors_are_checked() {
    let said = |text: &str, resize| extractor(text, resize).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(said("inception", None).contains("inception:PATH"));
    assert!(said("digits:x", None).contains("leave `:x` out"));
    assert!(said("pixel", None).contains("the nearest is `pixels`"));
    assert!(said("inception:/nowhere", None).contains("/nowhere"));
    assert!(said("pixels", Some(Resize::Clean)).contains("--resize"));
    let wrong = fixture("eval/net.safetensors");
    assert!(said(&format!("inception:{}", wrong.display()), None).contains("Conv2d_1a_3x3.conv.weight"));
    assert!(EXTRACTORS.iter().all(|kind| !kind.about.is_empty()));
}
