//! Images, what extractors see in them, and distances: against pytorch-fid, clean-fid, torch, Pillow and scikit-learn.

mod distances;
mod extractors;
mod fid;
mod images;
mod training;

use crate::model::{Contents, Outcome, fixture, read};
use ckptmerge::Checkpoint;
use ckptmerge::eval::{Features, Statistics};
use ckptmerge::images::{Image, Images};
use serde_json::Value;

/// The tensors of a golden file.
fn golden(name: &str) -> Outcome<Contents> {
    read(&fixture(&format!("eval/{name}")))
}

/// Images of bytes, N×height×width×channels, of a golden file.
fn pictures(contents: &Contents, name: &str) -> Outcome<Images> {
    let tensor = contents.tensors.get(name).ok_or(name.to_owned())?;
    let shape: Vec<usize> = tensor.shape.iter().map(|&n| n as usize).collect();
    let [count, height, width, channels] = match shape[..] {
        [height, width, channels] => [1, height, width, channels],
        [count, height, width, channels] => [count, height, width, channels],
        _ => return Err(format!("{name} has shape {shape:?}").into()),
    };
    Ok(Images { count, height, width, channels, samples: tensor.bytes.clone() })
}

/// A set of features of the golden ones.
fn features(name: &str) -> Outcome<Features> {
    Ok(Features::read(&Checkpoint::open(fixture("eval/features.npz"))?, name)?)
}

fn statistics(name: &str) -> Outcome<Statistics> {
    Ok(Statistics::of(&features(name)?)?)
}

/// What the libraries say of the golden features.
fn expected() -> Outcome<Value> {
    Ok(serde_json::from_str(&std::fs::read_to_string(fixture("eval/distances.json"))?)?)
}

/// Batches of images, so many at a time.
fn batches(images: &Images, size: usize) -> impl Iterator<Item = ckptmerge::Result<Vec<Image>>> {
    let all: Vec<Image> = images.iter().collect();
    all.chunks(size).map(|batch| Ok(batch.to_vec())).collect::<Vec<_>>().into_iter()
}

/// The largest difference.
fn difference<A: Into<f64> + Copy, B: Into<f64> + Copy>(a: &[A], b: &[B]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b).map(|(&a, &b)| (a.into() - b.into()).abs());
    pairs.fold(0.0, |most, each| if each.is_nan() { f64::NAN } else { most.max(each) })
}
