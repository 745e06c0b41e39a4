//! Steps of training against diffusers and torch.

use super::unet::weights_of;
use super::{goldens, tensor};
use crate::model::{Outcome, root};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use ckptmerge::Checkpoint;
use ckptmerge::diffusion::Weights;
use ckptmerge::diffusion::schedulers::{Config as SchedulerConfig, Noising};
use ckptmerge::diffusion::unet::{Config, UNet2D};
use ckptmerge::train::{AdamW, Batch, Losses, Method, MovingAverage, Network, Objective, Source, Trainer, Weighting};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};

/// By how much a loss or a norm may be off, for its size.
const OF_A_LOSS: f64 = 1e-5;
/// By how much a tensor may be off, for the length of the way that training took it. torch's own weights are up to 6e-5 of their way
/// off what it computes in 64 bits, as Adam makes gradients that are nearly 0 as large as others.
const OF_THE_WAY: f64 = 2e-4;

/// The cases, each with the options that it does not change.
fn cases() -> Outcome<(Value, BTreeMap<String, Value>)> {
    let document: Value = serde_json::from_slice(&std::fs::read(root().join("fixtures/train/cases.json"))?)?;
    let defaults = document["defaults"].as_object().ok_or("no defaults")?;
    let whole = |(name, changes): (&String, &Value)| {
        let mut options: Map<String, Value> = defaults.clone();
        options.extend(changes.as_object().cloned().unwrap_or_default());
        (name.clone(), Value::Object(options))
    };
    let cases = document["cases"].as_object().ok_or("no cases")?.iter().map(whole).collect();
    Ok((document, cases))
}

/// The weights that a case begins with.
fn first_weights(network: &Value, with_projections: bool) -> Outcome<HashMap<String, Tensor>> {
    let mut weights = weights_of(network, "")?;
    if with_projections {
        for index in 0..5 {
            let name = format!("adapter_list.{index}.weight");
            let near = (tensor(&name, &[4, 4, 1, 1])? * f64::from(0.1f32))?;
            let identity = Tensor::eye(4, DType::F32, &Device::Cpu)?.reshape((4, 4, 1, 1))?;
            weights.insert(name, (identity + near)?);
        }
    }
    Ok(weights)
}

fn average(options: &Value) -> Outcome<Option<MovingAverage>> {
    let number = |key: &str| options[key].as_f64().ok_or_else(|| format!("no {key} in {options}"));
    Ok(match options["kind"].as_str() {
        None => None,
        // No warm-up: behind the first update the decay has grown to its end.
        Some("constant") => Some(MovingAverage { decay: number("decay")?, inverse_gamma: 1.0, power: f64::INFINITY }),
        Some(_) => Some(MovingAverage {
            decay: number("decay")?,
            inverse_gamma: number("inv_gamma")?,
            power: number("power")?,
        }),
    })
}

fn trainer(network: &Value, options: &Value, first: &HashMap<String, Tensor>) -> Outcome<Trainer> {
    let config = Config::parse(network.to_string().as_bytes())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("first.safetensors");
    candle_core::safetensors::save(first, &path)?;
    let source = Source::Checkpoint(Weights::new(Checkpoint::open(&path)?, ""));
    let teacher = weights_of(network, "teacher.")?;
    let teacher = UNet2D::new(&config, &VarBuilder::from_tensors(teacher, DType::F32, &Device::Cpu))?;
    let prediction = options["prediction_type"].as_str().ok_or("no prediction type")?;
    let noising = Noising::new(&SchedulerConfig::ddpm().with("prediction_type", prediction))?;
    let weighting = Weighting::by_name(options["weighting"].as_str().unwrap_or("none"))?;
    let consistency = options["consistency"].as_f64().ok_or("no consistency")?;
    let method = Method {
        objective: Objective { weighting, gamma: weighting.gamma.unwrap_or_default(), consistency },
        optimizer: AdamW { decay: options["weight_decay"].as_f64().ok_or("no decay")?, ..AdamW::default() },
        clip: options["clip"].as_f64(),
        average: average(&options["ema"])?,
    };
    let network = Network::new(&config, &source, false)?;
    Ok(Trainer::new(network, Some(teacher.into()), noising, method)?)
}

#[track_caller]
fn assert_near(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap_or(f64::NAN);
    let off = (found - expected).abs();
    assert!(off <= OF_A_LOSS * expected.abs(), "{what}: {found} instead of {expected}");
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// Which share of the way from `first` to `expected` lies between the tensors found and those expected, for the tensor where it is the
/// most. Tensors are in the order of their names, as in `expected`.
fn off_the_way(
    found: &BTreeMap<String, Vec<f32>>,
    expected: &Tensor,
    first: &HashMap<String, Tensor>,
) -> Outcome<(f64, String)> {
    let expected = expected.to_vec1::<f32>()?;
    let (mut at, mut worst) = (0, (0.0, String::new()));
    for (name, found) in found {
        let expected = expected.get(at..at + found.len()).ok_or("fewer numbers than weights")?;
        at += found.len();
        let first = first.get(name).ok_or("an unknown tensor")?.flatten_all()?.to_vec1::<f32>()?;
        let way = norm(expected.iter().zip(&first).map(|(a, b)| a - b));
        let off = norm(expected.iter().zip(found).map(|(a, b)| a - b)) / way;
        // Of what is the same for all keys the gradient is 0, and all there is of it rounding, of which Adam makes steps like any other.
        if !name.ends_with("to_k.bias") && off.total_cmp(&worst.0).is_gt() {
            worst = (off, name.clone());
        }
    }
    assert_eq!(at, expected.len(), "more numbers than weights");
    Ok(worst)
}

#[test]
fn steps_of_training_are_torchs() -> Outcome {
    let (document, cases) = cases()?;
    let (network, goldens) = (&document["network"], goldens("train/expected.safetensors")?);
    let timesteps: Vec<Vec<usize>> = serde_json::from_value(document["timesteps"].clone())?;
    assert_eq!(cases.len(), 19);
    for (case, options) in &cases {
        let first = first_weights(network, options["projection"] == true)?;
        let mut trainer = trainer(network, options, &first)?;
        let mut batches = 0;
        let steps = options["expected"].as_array().ok_or("no steps")?;
        assert_eq!(steps.len(), 2);
        for (step, expected) in steps.iter().enumerate() {
            let parts = expected["micro_batches"].as_array().ok_or("no batches")?;
            assert_eq!(parts.len() as u64, options["micro_batches"].as_u64().ok_or("no number of them")?);
            for part in parts {
                let batch = Batch {
                    images: tensor(&format!("images {batches}"), &[4, 1, 8, 8])?,
                    noise: (tensor(&format!("noise {batches}"), &[4, 1, 8, 8])? * 1.5)?,
                    timesteps: timesteps[batches].clone(),
                };
                batches += 1;
                let Losses { denoising, consistency, total } = trainer.accumulate(&batch)?;
                for (found, key) in [(denoising, "denoising"), (consistency, "consistency"), (total, "loss")] {
                    assert_near(found, &part[key], &format!("{case}: {key} of step {step}"));
                }
            }
            let rate = options["learning_rate"].as_f64().ok_or("no rate")?;
            assert_near(trainer.step(rate)?, &expected["gradient_norm"], &format!("{case}: norm of step {step}"));
        }
        let is_average = !options["ema"].is_null();
        let mut weights = BTreeMap::new();
        let mut averages = BTreeMap::new();
        for kept in trainer.kept() {
            weights.insert(kept.name.to_owned(), kept.weights.to_vec());
            averages.extend(kept.average.map(|average| (kept.name.to_owned(), average.to_vec())));
        }
        // Options that leave the weights as they are have those of the plain case.
        let expected = goldens.get(case).unwrap_or(&goldens["plain"]);
        let (off, name) = off_the_way(&weights, expected, &first)?;
        assert!(off < OF_THE_WAY, "{case}: {name} is {off} of its way off");
        assert_eq!(averages.len(), if is_average { weights.len() } else { 0 });
        if is_average {
            let (off, name) = off_the_way(&averages, &goldens[&format!("{case}.ema")], &first)?;
            assert!(off < OF_THE_WAY, "{case}: the average of {name} is {off} of its way off");
            assert!(off_the_way(&weights, &goldens[&format!("{case}.ema")], &first)?.0 > 10.0 * OF_THE_WAY);
        }
    }
    Ok(())
}

/// The weights of a file's row, by the names that a network begins with.
fn by_name(row: &Tensor, first: &HashMap<String, Tensor>) -> Outcome<BTreeMap<String, Vec<f32>>> {
    let (row, mut at) = (row.to_vec1::<f32>()?, 0);
    let names: BTreeMap<&String, usize> = first.iter().map(|(name, tensor)| (name, tensor.elem_count())).collect();
    let mut part = |(name, count): (&String, usize)| {
        at += count;
        Ok((name.clone(), row.get(at - count..at).ok_or("too few weights")?.to_vec()))
    };
    names.into_iter().map(&mut part).collect()
}

/// That no option would go unnoticed: what each makes of the weights is farther from what is made without it than the bound allows.
#[test]
fn every_option_of_training_is_seen_in_the_weights() -> Outcome {
    let (document, cases) = cases()?;
    let goldens = goldens("train/expected.safetensors")?;
    let first = first_weights(&document["network"], false)?;
    let mut seen = 0;
    for (case, options) in cases.iter().filter(|(case, _)| *case != "plain") {
        let Some(expected) = goldens.get(case).filter(|_| options["projection"] == false) else { continue };
        let without = if case == "clip" { "snr+1" } else { "plain" };
        let (off, _) = off_the_way(&by_name(&goldens[without], &first)?, expected, &first)?;
        assert!(off > 10.0 * OF_THE_WAY, "{case} is {off} from the {without} case");
        seen += 1;
    }
    assert_eq!(seen, 12);
    Ok(())
}
