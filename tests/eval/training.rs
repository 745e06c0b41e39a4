//! The training of the digits' classifier: against torch, and what came of it.

use super::{golden, pictures};
use crate::model::{Outcome, root};
use candle_core::{Device, Tensor, Var};
use std::collections::BTreeMap;

#[path = "../../fixtures/digits/classifier.rs"]
#[expect(dead_code, reason = "`main` is the example's")]
mod classifier;

/// By how much a loss or a weight may be off, for the largest of its tensor.
const OF_THE_LARGEST: f64 = 1e-5;

/// Weights by their tensors' names.
type Weights = BTreeMap<String, Vec<f64>>;

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(f64::abs).fold(0.0, f64::max)
}

/// Trains five steps as the golden network was trained. Returns the losses and the weights by name.
fn train() -> Outcome<(Vec<f64>, Weights)> {
    let contents = golden("training.safetensors")?;
    let labels = contents.values("labels");
    let batch: Vec<(_, u32)> =
        pictures(&contents, "images")?.iter().zip(labels).map(|(image, label)| (image, label as u32)).collect();
    assert_eq!(batch.len(), 16);
    let mut weights = Vec::new();
    for (name, tensor) in &contents.tensors {
        if let Some(name) = name.strip_prefix("first.") {
            let shape: Vec<usize> = tensor.shape.iter().map(|&n| n as usize).collect();
            let values: Vec<f32> = tensor.values().into_iter().map(|value| value as f32).collect();
            weights.push((name.to_owned(), Var::from_vec(values, shape, &Device::Cpu)?));
        }
    }
    assert_eq!(weights.len(), 8);
    let mut training = classifier::Training::new(weights)?;
    let losses = (0..5).map(|_| Ok(training.step(&batch, 5)?.into())).collect::<Outcome<_>>()?;
    let numbers = |values: &[f32]| values.iter().map(|&value| value.into()).collect();
    Ok((losses, training.parameters.kept().map(|kept| (kept.name.to_owned(), numbers(kept.weights))).collect()))
}

#[test]
fn steps_are_torchs() -> Outcome {
    let contents = golden("training.safetensors")?;
    let (losses, weights) = train()?;
    for (found, expected) in losses.iter().zip(contents.values("losses")) {
        assert!((found - expected).abs() < OF_THE_LARGEST * expected, "a loss of {found} instead of {expected}");
    }
    for (name, found) in weights {
        let [first, last] = ["first", "last"].map(|when| contents.values(&format!("{when}.{name}")));
        let size = largest(last.iter().copied());
        let off = largest(found.iter().zip(&last).map(|(a, b)| a - b));
        assert!(off < OF_THE_LARGEST * size, "{name} is off by {off}");
        assert!(largest(first.iter().zip(&last).map(|(a, b)| a - b)) > 100.0 * OF_THE_LARGEST * size, "{name} stayed");
    }
    Ok(())
}

#[test]
fn steps_have_the_same_bits_on_any_number_of_threads() -> Outcome {
    let (held_out, train) = classifier::split(classifier::digits()?);
    let steps = |threads: usize| -> Outcome<Vec<Vec<u32>>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let run = || -> Outcome<Vec<Vec<u32>>> {
            let mut training = classifier::Training::begin()?;
            for step in 0..2 {
                training.step(&classifier::batch(&train, step), 2)?;
            }
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
            Ok(training.parameters.kept().map(|kept| bits(kept.weights)).collect())
        };
        Ok(pool.install(|| run().map_err(|error| error.to_string()))?)
    };
    assert_eq!(steps(1)?, steps(3)?);
    assert_eq!([held_out.len(), train.len()], [360, 1437]);
    Ok(())
}

/// A digit is moved by up to a pixel, never more, and differently from batch to batch.
#[test]
fn digits_of_a_batch_are_moved() -> Outcome {
    let (_, train) = classifier::split(classifier::digits()?);
    let batches = [0, 1].map(|step| classifier::batch(&train, step));
    assert_ne!(batches[0], batches[1]);
    let mut moves = std::collections::BTreeSet::new();
    for (image, label) in batches.iter().flatten() {
        let sample = |samples: &[u8], y: i64, x: i64| match (0..8).contains(&y) && (0..8).contains(&x) {
            true => samples[(y * 8 + x) as usize],
            false => 0,
        };
        let places = || (-1..2).flat_map(|down| (-1..2).map(move |right| (down, right)));
        let is_it = |samples: &[u8], (down, right): (i64, i64)| {
            (0..8).all(|y| (0..8).all(|x| sample(&image.samples, y, x) == sample(samples, y + down, x + right)))
        };
        let of = train.iter().filter(|(_, other)| other == label);
        let found = of.flat_map(|(other, _)| places().filter(|place| is_it(&other.samples, *place))).next();
        moves.insert(found.ok_or_else(|| format!("an image of a {label} is none of the digits"))?);
    }
    assert_eq!(moves.len(), 9);
    Ok(())
}

#[test]
fn the_trained_network_tells_digits_that_it_has_not_seen() -> Outcome {
    let weights = root().join("src/eval/extractors/digits/digits.safetensors");
    let weights: Vec<(String, Tensor)> = candle_core::safetensors::load(weights, &Device::Cpu)?.into_iter().collect();
    let network = classifier::network(weights.into_iter())?;
    let (held_out, _) = classifier::split(classifier::digits()?);
    let told = classifier::told(&network, &held_out)?;
    assert!(told * 100 >= 97 * held_out.len(), "it tells {told} of {}", held_out.len());
    Ok(())
}
