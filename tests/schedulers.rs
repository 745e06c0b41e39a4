//! The schedulers against diffusers': timesteps, trajectories, and what is refused.

use crate::model::{Outcome, fixture};
use candle_core::{DType, Device, Tensor};
use ckptmerge::diffusion::schedulers::{Config, SCHEDULERS, Scheduler, by_name};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

const ELEMENTS: usize = 96;

fn json(name: &str) -> Outcome<Vec<Value>> {
    let text = std::fs::read_to_string(fixture(&format!("schedulers/{name}")))?;
    Ok(serde_json::from_str(&text)?)
}

fn config(values: &Value) -> Outcome<Config> {
    Ok(Config::parse(&values.to_string(), Path::new("scheduler_config.json"))?)
}

fn build(name: &str, values: &Value, steps: usize) -> Outcome<Box<dyn Scheduler>> {
    Ok((by_name(name)?.build)(&config(values)?, steps)?)
}

/// The function that the fixture's script ran the schedulers on.
fn model(x: &Tensor, t: f32) -> candle_core::Result<Tensor> {
    let t = f64::from(t);
    let of = |(k, x): (usize, &f32)| {
        let x = f64::from(*x);
        (0.6 * (x + 0.003 * t + 0.2 * k as f64).sin() + 0.3 * (0.01 * t).cos() + 0.1 * x.tanh()) as f32
    };
    let out: Vec<f32> = x.flatten_all()?.to_vec1::<f32>()?.iter().enumerate().map(of).collect();
    Tensor::from_vec(out, x.dims(), x.device())
}

#[test]
fn trajectories_are_those_of_diffusers() -> Outcome {
    let cases = json("trajectories.json")?;
    let goldens = candle_core::safetensors::load(fixture("schedulers/trajectories.safetensors"), &Device::Cpu)?;
    let noise = &goldens["noise"];
    let all_timesteps: Vec<f32> = goldens["timesteps"].to_vec1()?;
    let all_points: Vec<Vec<f32>> = goldens["points"].to_vec2()?;
    assert_eq!(cases.len(), all_points.len());
    let (mut at, mut counts, mut furthest) = (0, BTreeMap::<&str, usize>::new(), BTreeMap::<&str, f32>::new());
    let (mut wrong, mut unstable) = (Vec::new(), 0);
    for (case, golden) in cases.iter().zip(&all_points) {
        let name = case["scheduler"].as_str().ok_or("a case has a scheduler")?;
        let steps = case["steps"].as_u64().ok_or("a case has steps")? as usize;
        let calls = case["calls"].as_u64().ok_or("a case has calls")? as usize;
        let config = config(&case["config"])?.with_eta(case["eta"].as_f64().ok_or("a case has an eta")?);
        let mut scheduler = (by_name(name)?.build)(&config, steps).map_err(|error| format!("{case}: {error}"))?;
        let timesteps = scheduler.timesteps().to_vec();
        let expected = &all_timesteps[at..at + calls];
        at += calls;
        let same = timesteps.len() == calls && timesteps.iter().zip(expected).all(|(a, b)| (a - b).abs() <= b * 1e-6);
        assert!(same, "{case}: {timesteps:?} instead of {expected:?}");

        let mut x = (noise.get(0)? * scheduler.initial_scale())?;
        let mut points: Vec<f32> = Vec::new();
        for (call, &t) in timesteps.iter().enumerate() {
            let output = model(&scheduler.scale_input(call, &x)?, t)?;
            let fresh = if scheduler.needs_noise(call) { Some(noise.get(call + 1)?) } else { None };
            x = scheduler.step(call, &output, &x, fresh.as_ref())?;
            let few: Vec<f32> = x.flatten_all()?.to_vec1::<f32>()?.into_iter().step_by(12).collect();
            if call == 0 || call == calls / 2 {
                points.extend(&few);
            }
            if calls == 1 {
                points.extend(&few);
            }
        }
        points.extend(x.flatten_all()?.to_vec1::<f32>()?);
        assert_eq!(points.len(), golden.len(), "{case}");
        let bound = case["moves"].as_f64().map_or(1e-5, |moves| 2.0 * moves as f32);
        unstable += usize::from(case["moves"].is_f64());
        for (ours, theirs) in [(0, 8), (8, 16), (16, 16 + ELEMENTS)].map(|(a, b)| (&points[a..b], &golden[a..b])) {
            let scale = theirs.iter().fold(1f32, |most, x| most.max(x.abs()));
            let difference = ours.iter().zip(theirs).fold(0f32, |most, (a, b)| {
                let off = (a - b).abs() / scale;
                if off.is_nan() { f32::INFINITY } else { most.max(off) }
            });
            if case["moves"].is_null() {
                let most = furthest.entry(name).or_default();
                *most = most.max(difference);
            }
            if difference > bound {
                wrong.push(format!("{difference:e} {case}"));
            }
        }
        *counts.entry(name).or_default() += 1;
    }
    println!("{furthest:?}");
    assert!(unstable < 20, "{unstable} cases cannot be told apart");
    assert!(wrong.is_empty(), "{} points are off:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(at, all_timesteps.len());
    for entry in SCHEDULERS {
        let count = counts.remove(entry.name).unwrap_or_default();
        assert!(count >= 30, "{} has only {count} trajectories", entry.name);
    }
    assert!(counts.is_empty(), "{counts:?} are in no table");
    Ok(())
}

#[test]
fn timesteps_are_those_of_diffusers() -> Outcome {
    let (mut seen, mut refused) = (BTreeMap::<String, usize>::new(), 0);
    for row in json("timesteps.json")? {
        let name = row[0].as_str().ok_or("a row has a scheduler")?;
        let values = json!({ "timestep_spacing": row[1], "steps_offset": row[2], "skip_prk_steps": true });
        let steps = row[3].as_u64().ok_or("a row has steps")? as usize;
        let built = build(name, &values, steps);
        *seen.entry(name.to_owned()).or_default() += 1;
        if row[4].is_null() {
            refused += 1;
            assert!(built.is_err(), "{row}: {:?}", built.map(|scheduler| scheduler.timesteps().to_vec()));
            continue;
        }
        let scheduler = built.map_err(|error| format!("{row}: {error}"))?;
        let timesteps: Vec<f64> = scheduler.timesteps().iter().map(|&t| f64::from(t)).collect();
        let sum: f64 = timesteps.iter().enumerate().map(|(i, t)| (i + 1) as f64 * t).sum();
        let ours = json!([timesteps.len(), timesteps.first(), timesteps.last(), sum]);
        assert_eq!(ours, row[4], "{row}");
    }
    assert_eq!(seen.len(), SCHEDULERS.len());
    assert!(seen.values().all(|&count| count >= 100), "{seen:?}");
    assert!(refused >= 10, "{refused}");
    Ok(())
}

#[test]
fn every_scheduler_takes_steps_in_order_and_only_so() -> Outcome {
    let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
    for entry in SCHEDULERS {
        let mut scheduler = (entry.build)(&Config::ddpm(), 4)?;
        let calls = scheduler.timesteps().len();
        assert!(scheduler.step(1, &x, &x, Some(&x)).is_err(), "{}", entry.name);
        assert!(scheduler.step(calls, &x, &x, Some(&x)).is_err(), "{}", entry.name);
        let other = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
        let error = (entry.build)(&Config::ddpm(), 4)?.step(0, &other, &x, Some(&x)).expect_err(entry.name);
        assert!(error.to_string().contains("variance"), "{error}");
        for call in 0..calls {
            assert!(scheduler.step(call, &x, &x, Some(&x))?.sum_all()?.to_scalar::<f32>()?.is_finite());
        }
        assert!(scheduler.step(calls, &x, &x, Some(&x)).is_err(), "{}", entry.name);
        // In whatever type the model answers, a sample keeps its own.
        let output = x.to_dtype(DType::BF16)?;
        assert_eq!((entry.build)(&Config::ddpm(), 4)?.step(0, &output, &x, Some(&x))?.dtype(), DType::F32);
    }
    let missing = (by_name("ddpm")?.build)(&Config::ddpm(), 4)?.step(0, &x, &x, None).expect_err("no noise");
    assert!(missing.to_string().contains("noise"), "{missing}");
    Ok(())
}

#[test]
fn configurations_choose_their_scheduler() -> Outcome {
    assert_eq!(Config::ddpm().entry()?.name, "ddpm");
    assert_eq!(Config::stable_diffusion().entry()?.name, "pndm");
    assert_eq!(Config::stable_diffusion().build(None, 50)?.timesteps()[..4], [981.0, 961.0, 961.0, 941.0]);
    assert_eq!(Config::ddpm().build(Some(by_name("ddim")?), 50)?.timesteps()[0], 980.0);
    for entry in SCHEDULERS {
        assert_eq!(config(&json!({ "_class_name": entry.class }))?.entry()?.name, entry.name);
        assert!(!entry.about.is_empty());
    }
    for (values, says) in [
        (json!({}), "does not say which scheduler"),
        (json!({ "_class_name": "LMSDiscreteScheduler" }), "`LMSDiscreteScheduler`, which is not implemented"),
    ] {
        let error = config(&values)?.entry().expect_err("there is none").to_string();
        assert!(error.contains(says) && error.contains("scheduler_config.json") && error.contains("ddim"), "{error}");
    }
    let flow = config(&json!({ "_class_name": "FlowMatchEulerDiscreteScheduler" })).expect_err("no betas").to_string();
    assert!(flow.contains("`_class_name`") && flow.contains("FlowMatchEuler"), "{flow}");
    assert_eq!(
        by_name("dimm").err().ok_or("unknown")?.to_string(),
        "there is no scheduler `dimm`; the nearest is `ddim`"
    );
    Ok(())
}

/// Each value that a scheduler does not implement is refused by its key.
#[test]
fn what_is_not_implemented_is_named() -> Outcome {
    let all: Vec<&str> = SCHEDULERS.iter().map(|entry| entry.name).collect();
    let cases: &[(&[&str], Value, &str)] = &[
        (&all, json!({ "beta_schedule": "sigmoid" }), "beta_schedule"),
        (&all, json!({ "beta_schedule": 3 }), "beta_schedule"),
        (&all, json!({ "beta_end": 1.5 }), "beta_end"),
        (&all, json!({ "beta_start": "low" }), "beta_start"),
        (&all, json!({ "trained_betas": [0.1, 0.2] }), "trained_betas"),
        (&all, json!({ "trained_betas": "all" }), "trained_betas"),
        (&all, json!({ "num_train_timesteps": 0 }), "num_train_timesteps"),
        (&all, json!({ "num_train_timesteps": 1e12 }), "num_train_timesteps"),
        (&all, json!({ "num_train_timesteps": 1_000_000_000_000_u64 }), "num_train_timesteps"),
        (&all, json!({ "num_train_timesteps": null }), "num_train_timesteps"),
        (&all, json!({ "timestep_spacing": "karras" }), "timestep_spacing"),
        (&all, json!({ "steps_offset": -1 }), "steps_offset"),
        (&all, json!({ "prediction_type": "flow_prediction" }), "prediction_type"),
        (&all, json!({ "prediction_type": null }), "prediction_type"),
        (&all, json!({ "predict_epsilon": false }), "predict_epsilon"),
        (&all, json!({ "shift": 3.0 }), "shift"),
        (&["pndm"], json!({ "prediction_type": "sample" }), "prediction_type"),
        (&["ddpm"], json!({ "variance_type": "learned_range" }), "variance_type"),
        (&["ddpm"], json!({ "variance_type": "fixed_large_log" }), "variance_type"),
        (&["ddpm", "ddim"], json!({ "clip_sample": "yes" }), "clip_sample"),
        (&["ddpm", "ddim"], json!({ "clip_sample_range": 0 }), "clip_sample_range"),
        (&["ddpm", "ddim"], json!({ "thresholding": true, "sample_max_value": 0.5 }), "sample_max_value"),
        (
            &["ddpm", "ddim", "dpm++", "unipc"],
            json!({ "thresholding": true, "dynamic_thresholding_ratio": 99.5 }),
            "dynamic_thresholding_ratio",
        ),
        (
            &["ddpm", "ddim"],
            json!({ "rescale_betas_zero_snr": true, "timestep_spacing": "trailing" }),
            "rescale_betas_zero_snr",
        ),
        (&["dpm++", "unipc"], json!({ "solver_order": 3 }), "solver_order"),
        (&["dpm++", "unipc"], json!({ "solver_type": "rk4" }), "solver_type"),
        (&["dpm++", "unipc"], json!({ "use_flow_sigmas": true }), "use_flow_sigmas"),
        (&["dpm++"], json!({ "algorithm_type": "sde-dpmsolver++" }), "algorithm_type"),
        (&["dpm++"], json!({ "use_lu_lambdas": true }), "use_lu_lambdas"),
        (&["dpm++"], json!({ "variance_type": "learned_range" }), "variance_type"),
        (&["dpm++"], json!({ "lambda_min_clipped": "low" }), "lambda_min_clipped"),
        (&["dpm++", "unipc", "euler"], json!({ "final_sigmas_type": "one" }), "final_sigmas_type"),
        (&["dpm++", "unipc", "euler", "heun"], json!({ "use_exponential_sigmas": true }), "use_exponential_sigmas"),
        (&["dpm++", "unipc", "euler", "heun"], json!({ "use_beta_sigmas": true }), "use_beta_sigmas"),
        (&["dpm++", "unipc", "euler", "heun"], json!({ "sigma_min": 0 }), "sigma_min"),
        (&["euler"], json!({ "interpolation_type": "log_linear" }), "interpolation_type"),
        (&["euler"], json!({ "timestep_type": "continuous" }), "timestep_type"),
        (&["unipc"], json!({ "predict_x0": false }), "final_sigmas_type"),
        (&["unipc"], json!({ "lower_order_final": false }), "final_sigmas_type"),
        (&["unipc"], json!({ "predict_x0": false, "thresholding": true }), "thresholding"),
        (&["unipc"], json!({ "solver_p": {} }), "solver_p"),
        (&["unipc"], json!({ "disable_corrector": [-1] }), "disable_corrector"),
    ];
    for (names, values, key) in cases {
        for name in *names {
            let error = build(name, values, 10).err().ok_or_else(|| format!("{name} takes {values}"))?.to_string();
            let names_it = error.contains(&format!("`{key}`")) && error.contains(&format!("`{name}`"));
            assert!(names_it, "{name} {values}: {error}");
        }
    }
    // What only other schedulers know, and what tells of the library, changes nothing.
    for entry in SCHEDULERS {
        let values = json!({
            "_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "predict_epsilon": true,
            "timestep_values": null, "tensor_format": "pt", "trained_betas": null, "lambda_min_clipped": "-Infinity",
        });
        build(entry.name, &values, 10).map_err(|error| format!("{}: {error}", entry.name))?;
    }
    build("ddim", &json!({ "variance_type": "learned", "skip_prk_steps": 7 }), 10)?;
    let python = r#"{"lambda_min_clipped": -Infinity}"#;
    (by_name("dpm++")?.build)(&Config::parse(python, Path::new("x"))?, 10)?;
    for text in ["", "[]", "{", "7"] {
        assert!(Config::parse(text, Path::new("x")).is_err(), "{text}");
    }
    Ok(())
}

#[test]
fn numbers_of_steps_and_shares_of_noise_are_checked() -> Outcome {
    for entry in SCHEDULERS {
        for steps in [0, 1001, usize::MAX] {
            let error = (entry.build)(&Config::ddpm(), steps).err().ok_or(entry.name)?.to_string();
            assert!(error.contains("1 to 1000"), "{error}");
        }
        let eta = (entry.build)(&Config::ddpm().with_eta(0.5), 10);
        assert_eq!(eta.is_ok(), entry.name == "ddim", "{}", entry.name);
    }
    for eta in [-0.1, 1.1, f64::NAN] {
        assert!((by_name("ddim")?.build)(&Config::ddpm().with_eta(eta), 10).is_err(), "{eta}");
    }
    let few = build("pndm", &json!({}), 3).err().ok_or("too few")?.to_string();
    assert!(few.contains("4 or more"), "{few}");
    Ok(())
}
