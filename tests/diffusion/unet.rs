//! `UNet2DModel` against diffusers'.

use super::{farthest, goldens, numbers, relative, tensor};
use crate::model::{Outcome, root};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use ckptmerge::diffusion::unet::{Config, NAMED, UNet2D};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Weights that follow from their names, as in `fixtures/unet/make.py`, made when they are asked for.
#[derive(Clone, Default)]
struct Named {
    /// What stands before the names that they follow from.
    prefix: String,
    made: Arc<Mutex<HashMap<String, Var>>>,
}

impl SimpleBackend for Named {
    fn get(
        &self,
        shape: candle_core::Shape,
        name: &str,
        _: candle_nn::Init,
        _: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut values = numbers(&format!("{}{name}", self.prefix), shape.elem_count());
        match shape.dims() {
            [_, inner @ ..] if !inner.is_empty() => {
                let scale = (3.0 / inner.iter().product::<usize>() as f64).sqrt() as f32;
                values.iter_mut().for_each(|value| *value *= scale);
            }
            _ if name.contains("norm") && name.ends_with("weight") => {
                values.iter_mut().for_each(|value| *value = 1.0 + *value * 0.25);
            }
            _ => values.iter_mut().for_each(|value| *value *= 0.25),
        }
        let var = Var::from_vec(values, shape, device)?;
        let tensor = var.as_tensor().clone();
        self.made.lock().expect("no test panics within").insert(name.to_owned(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !name.contains("adapter_list") && !name.ends_with("query.weight")
    }
}

fn cases() -> Outcome<Value> {
    Ok(serde_json::from_slice(&std::fs::read(root().join("fixtures/unet/cases.json"))?)?)
}

fn config(value: &Value) -> Outcome<Config> {
    Ok(Config::parse(value.to_string().as_bytes())?)
}

/// The weights of a network as tensors.
pub(super) fn weights_of(entries: &Value, prefix: &str) -> Outcome<HashMap<String, Tensor>> {
    let weights = Named { prefix: prefix.to_owned(), ..Named::default() };
    let builder = VarBuilder::from_backend(Box::new(weights.clone()), DType::F32, Device::Cpu);
    UNet2D::new(&config(entries)?, &builder)?;
    let made = weights.made.lock().map_err(|_| "a test panicked")?;
    Ok(made.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect())
}

fn network(config: &Config) -> Outcome<(UNet2D, Named)> {
    let weights = Named::default();
    let builder = VarBuilder::from_backend(Box::new(weights.clone()), DType::F32, Device::Cpu);
    Ok((UNet2D::new(config, &builder)?, weights))
}

fn images(config: &Config) -> Outcome<Tensor> {
    let (rows, columns) = config.sample_size.ok_or("no size")?;
    tensor("images", &[2, config.in_channels, rows, columns])
}

#[test]
fn networks_of_every_kind_of_block_are_diffusers() -> Outcome {
    let (cases, goldens) = (cases()?, goldens("unet/expected.safetensors")?);
    let timesteps: Vec<f32> = serde_json::from_value(cases["timesteps"].clone())?;
    let timesteps = Tensor::new(timesteps, &Device::Cpu)?;
    let configurations = cases["cases"].as_object().ok_or("no cases")?;
    assert_eq!(configurations.len(), 9);
    for (case, entries) in configurations {
        let config = config(entries)?;
        let (network, _) = network(&config)?;
        let off = farthest(&network.forward(&images(&config)?, &timesteps)?, &goldens[&format!("{case}.out")])?;
        assert!(off < 1e-5, "{case} is off by {off}");
    }
    Ok(())
}

#[test]
fn gradients_of_a_network_are_torchs() -> Outcome {
    let (cases, goldens) = (cases()?, goldens("unet/expected.safetensors")?);
    let timesteps: Vec<f32> = serde_json::from_value(cases["timesteps"].clone())?;
    let config = config(&cases["cases"]["gradients"])?;
    let (network, weights) = network(&config)?;
    let images = Var::from_tensor(&images(&config)?)?;
    let out = network.forward(&images, &Tensor::new(timesteps, &Device::Cpu)?)?;
    let gradients = (&out * tensor("of out", out.dims())?)?.sum_all()?.backward()?;
    let made = weights.made.lock().map_err(|_| "a test panicked")?;
    assert!(made.len() > 50);
    for (name, var) in made.iter() {
        let (found, expected) = (gradients.get(var).ok_or("no gradient")?, &goldens[&format!("gradients.of.{name}")]);
        // Of what is the same for all keys the gradient is 0, and all there is of it rounding.
        if name.ends_with("to_k.bias") {
            assert!(farthest(found, expected)? < 1e-4, "{name}");
        } else {
            let off = relative(found, expected)?;
            assert!(off < 1e-4, "{name}: off by {off}");
        }
    }
    let off = relative(gradients.get(&images).ok_or("no gradient")?, &goldens["gradients.images"])?;
    assert!(off < 1e-4, "the images: off by {off}");
    Ok(())
}

/// Identities change nothing; anything else changes the main path, and what it is projected by is as large as the
/// block's output.
#[test]
fn projections_are_applied_behind_every_block() -> Outcome {
    let config = config(&cases()?["cases"]["gradients"])?;
    let (plain, weights) = network(&config)?;
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for (name, var) in weights.made.lock().map_err(|_| "a test panicked")?.iter() {
        tensors.insert(name.clone(), var.as_detached_tensor());
    }
    for (index, channels) in [8, 16, 16, 16, 8].into_iter().enumerate() {
        let identity = Tensor::eye(channels, DType::F32, &Device::Cpu)?.reshape((channels, channels, 1, 1))?;
        tensors.insert(format!("adapter_list.{index}.weight"), identity);
    }
    let build = |tensors: &HashMap<String, Tensor>| {
        UNet2D::new(&config, &VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu))
    };
    let (images, timesteps) = (images(&config)?, Tensor::new(&[3.0f32, 500.0], &Device::Cpu)?);
    let before = plain.forward(&images, &timesteps)?;
    assert!(farthest(&build(&tensors)?.forward(&images, &timesteps)?, &before)? < 1e-6);
    for index in 0..5 {
        let name = format!("adapter_list.{index}.weight");
        let mut changed = tensors.clone();
        let identity = &tensors[&name];
        changed.insert(name.clone(), (identity + (tensor(&name, identity.dims())? * 0.1)?)?);
        let after = build(&changed)?.forward(&images, &timesteps)?;
        assert!(farthest(&after, &before)? > 1e-3, "projection {index} changes nothing");
    }
    // One that is absent is the identity.
    tensors.remove("adapter_list.3.weight");
    assert!(farthest(&build(&tensors)?.forward(&images, &timesteps)?, &before)? < 1e-6);
    Ok(())
}

#[test]
fn published_configurations_have_the_published_sizes() -> Outcome {
    let parameters = |config: &Config| -> Outcome<usize> {
        let (_, weights) = network(config)?;
        let made = weights.made.lock().map_err(|_| "a test panicked")?;
        Ok(made.values().map(|var| var.elem_count()).sum())
    };
    let named = |name: &str| NAMED.iter().find(|(known, _)| *known == name).map(|(_, config)| config());
    let cifar10 = named("cifar10").ok_or("no cifar10")?;
    assert_eq!(cifar10, config(&cases()?["cases"]["cifar10"])?);
    assert_eq!(parameters(&cifar10)?, 35_746_307);
    let church = named("church").ok_or("no church")?;
    assert_eq!(parameters(&church)?, 113_673_219);
    assert_eq!(named("bedroom"), Some(church));
    Ok(())
}

#[test]
fn configurations_that_are_not_supported_say_why() -> Outcome {
    for (entries, says) in [
        (json!({"_class_name": "UNet2DConditionModel"}), "UNet2DConditionModel"),
        (json!({"time_embedding_type": "fourier"}), "fourier"),
        (json!({"down_block_types": ["SkipDownBlock2D"]}), "SkipDownBlock2D"),
        (json!({"num_class_embeds": 10}), "num_class_embeds"),
        (json!({"act_fn": "mish"}), "mish"),
        (json!({"resnet_time_scale_shift": "spatial"}), "spatial"),
        (json!({"flow": true}), "flow"),
        (json!({"norm_num_groups": 0}), "norm_num_groups"),
        (json!({"norm_num_groups": 100}), "224 channels"),
        (json!({"attention_head_dim": 7, "block_out_channels": [32, 32, 32, 32]}), "attention_head_dim = 7"),
        (json!({"block_out_channels": [32]}), "levels"),
        (json!({"in_channels": -1}), "in_channels"),
        (json!({"in_channels": 1e30}), "in_channels"),
        (json!({"sample_size": [1, 2, 3]}), "sample_size"),
        (json!({"norm_eps": "small"}), "norm_eps"),
        (json!([]), "object"),
    ] {
        let error = Config::parse(entries.to_string().as_bytes()).expect_err(says);
        assert!(error.contains(says), "{entries}: {error}");
    }
    let with_leftovers = json!({"power": 0.75, "dropout": 0.1, "_name_or_path": "x", "class_embed_type": null});
    Config::parse(with_leftovers.to_string().as_bytes())?;
    Ok(())
}
