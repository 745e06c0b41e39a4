//! `finetune`: a training is the same however it is cut, and writes what other commands read.

use crate::model::{Outcome, binary, root, run, write};
use ckptmerge::diffusion::unet::{Config, NAMED};
use ckptmerge::train::{Memory, Network, Source};
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A network that trains in moments.
fn small() -> String {
    json!({
        "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
        "block_out_channels": [4, 8], "norm_num_groups": 2, "attention_head_dim": null,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    })
    .to_string()
}

/// A folder with a configuration, and a base that is hardly trained.
fn with_base() -> Outcome<TempDir> {
    let folder = TempDir::new()?;
    write(&folder.path().join("small.json"), small())?;
    let command = format!("finetune --from-scratch small.json {} --steps 2 --batch 4 -o base", data());
    run(folder.path(), &command).ok();
    Ok(folder)
}

fn data() -> String {
    format!("--data {}", root().join("fixtures/digits/images.npy").display())
}

const MODEL: &str = "diffusion_pytorch_model.safetensors";

#[test]
fn a_training_that_goes_on_ends_at_the_same_bits() -> Outcome {
    let folder = with_base()?;
    let at = folder.path();
    let common = format!(
        "finetune base {} --timesteps 0..250 --batch 3 --accumulate 2 --antithetic --crop random --flip --channel-projection --lr 1e-3 --save-every 2",
        data()
    );
    run(at, &format!("{common} --steps 5 -o whole -j 1")).ok();
    run(at, &format!("{common} --steps 3 -o cut -j 2")).ok();
    run(at, &format!("{common} --steps 5 -o cut")).fails(1, &["cut", "--resume"]);
    run(at, &format!("{common} --steps 5 -o cut --resume --seed 1")).fails(1, &["another seed: 0, not 1"]);
    run(at, &format!("{common} --steps 2 -o cut --resume")).fails(1, &["3 steps are done"]);
    let mut other = std::fs::read(root().join("fixtures/digits/images.npy"))?;
    if let Some(last) = other.last_mut() {
        *last ^= 1;
    }
    write(&at.join("other.npy"), other)?;
    run(at, &format!("{} --steps 5 -o cut --resume", common.replace(&data(), "--data other.npy")))
        .fails(1, &["another images"]);
    run(at, &format!("{common} --steps 5 -o cut --resume -j 2")).ok();
    for file in [MODEL, "training-state.safetensors", "log.csv", "config.json", "scheduler_config.json"] {
        let [whole, cut] = ["whole", "cut"].map(|run| std::fs::read(at.join(run).join(file)));
        assert!(whole? == cut?, "{file} differs");
    }
    let log = std::fs::read_to_string(at.join("whole/log.csv"))?;
    assert_eq!(log.lines().next(), Some("step,loss,denoising,consistency,gradient_norm,learning_rate"));
    assert_eq!(log.lines().count(), 6);
    Ok(())
}

#[cfg(unix)]
#[test]
fn a_training_that_is_interrupted_can_be_gone_on_with() -> Outcome {
    let folder = with_base()?;
    let at = folder.path();
    let arguments = |steps: u32, output: &str| {
        let text = format!(
            "finetune base {} --ranges 2 --batch 2 --save-every 1 --steps {steps} -o {output} --resume",
            data()
        );
        text.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let mut child =
        binary().current_dir(at).args(arguments(100_000, "cut")).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begun = Instant::now();
    let saved = |output: &str, range: u32| at.join(format!("{output}/range-{range}/training-state.safetensors"));
    while !(saved("cut", 0).is_file() && saved("cut", 1).is_file()) && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status()?;
    assert_eq!(child.wait()?.code(), Some(130));
    assert!(!at.join("cut/range-0").join(MODEL).exists());
    run(at, "sample cut/range-0 -n 1 --steps 2 -o early.png").fails(1, &["cut/range-0", "training", "--resume"]);
    let done = |range: u32| -> Outcome<u64> {
        let state = ckptmerge::Checkpoint::open(saved("cut", range))?;
        Ok(state.metadata()["steps"].parse()?)
    };
    let steps = done(0)?.max(done(1)?) + 2;
    for output in ["cut", "whole"] {
        run(at, &arguments(steps as u32, output).join(" ")).ok();
    }
    for range in 0..2 {
        let [cut, whole] = ["cut", "whole"].map(|run| std::fs::read(at.join(format!("{run}/range-{range}/{MODEL}"))));
        assert!(cut? == whole?, "range {range} differs");
    }
    Ok(())
}

/// Another range, option or seed gives other weights; a copy that goes nowhere is its base.
#[test]
fn options_change_what_is_trained() -> Outcome {
    let folder = with_base()?;
    let at = folder.path();
    let mut models = Vec::new();
    for (index, option) in [
        "",
        "--p 0 --timesteps 750..1000",
        "--consistency 0",
        "--antithetic",
        "--weighting min-snr",
        "--weighting p2 --gamma 0.5",
        "--ema 0",
        "--clip 0.01",
        "--lr-schedule cosine",
        "--warmup 2",
        "--seed 3",
        "--flip",
        "--weight-decay 0.5",
        "--beta1 0.5",
        "--channel-projection",
        "--p-by-batch --timesteps 0..10 --p 0.5",
        "--accumulate 2",
    ]
    .iter()
    .enumerate()
    {
        run(at, &format!("finetune base {} --steps 2 --batch 4 --lr 1e-2 {option} -o {index}", data())).ok();
        models.push((option, std::fs::read(at.join(index.to_string()).join(MODEL))?));
    }
    let tensors = |bytes: &[u8]| -> Outcome<Vec<u8>> {
        let model = safetensors::SafeTensors::deserialize(bytes)?;
        Ok(model.tensor("conv_in.weight")?.data().to_vec())
    };
    for (index, (option, model)) in models.iter().enumerate() {
        for (other, before) in &models[..index] {
            assert!(tensors(model)? != tensors(before)?, "`{option}` is as `{other}`");
        }
    }
    run(at, &format!("finetune base {} --steps 2 --batch 4 --lr 0 -o still", data())).ok();
    run(at, "diff base still").ok();
    Ok(())
}

#[test]
fn copies_are_models_to_sample_and_merge() -> Outcome {
    let folder = with_base()?;
    let at = folder.path();
    let report =
        run(at, &format!("finetune base {} --ranges 2 --steps 2 --batch 4 -o copies --json", data())).ok().json();
    assert_eq!(report["copies"][1]["timesteps"], json!([500, 1000]));
    // A copy of several is what it would be alone, with the seed behind the one before.
    run(at, &format!("finetune base {} --timesteps 500..1000 --seed 1 --steps 2 --batch 4 -o alone", data())).ok();
    assert!(std::fs::read(at.join("copies/range-1").join(MODEL))? == std::fs::read(at.join("alone").join(MODEL))?);
    run(at, "sample copies/range-0 copies/range-1 --ensemble -n 2 --steps 3 -o out.png").ok();
    run(at, "merge copies/range-0 copies/range-1 --base base --weights 0.5,0.5 -o merged").ok();
    run(at, "sample merged -n 2 --steps 3 -o merged.png").ok();
    Ok(())
}

#[test]
fn what_cannot_be_trained_is_said() -> Outcome {
    let folder = with_base()?;
    let at = folder.path();
    let data = data();
    run(at, &format!("finetune base {data} --timesteps 900..1001 -o x")).fails(2, &["900..1001", "0..1000"]);
    run(at, &format!("finetune base {data} --timesteps 9..9 -o x")).fails(2, &["--timesteps"]);
    run(at, &format!("finetune base {data} --gamma 2 -o x")).fails(2, &["--gamma", "none"]);
    run(at, &format!("finetune base {data} --weighting min-snr --gamma 0 -o x")).fails(2, &["--gamma", "more than 0"]);
    write(&at.join("waves.json"), small().replace("\"in_channels\"", "\"freq_shift\":2,\"in_channels\""))?;
    run(at, &format!("finetune --from-scratch waves.json {data} -o x")).fails(1, &["waves.json", "freq_shift = 2"]);
    run(at, &format!("finetune base {data} --size 7 -o x")).fails(2, &["multiples of 2"]);
    let large = format!("finetune base {data} --size 64 --batch 64 --memory 200M -o x");
    run(at, &large).fails(2, &["for a batch of 64", "64×64", "200 MB may be taken", "--batch", "--accumulate"]);
    assert!(!at.join("x").exists());
    run(at, &format!("finetune base {data} --size 1024 --batch 1 --memory 200M -o x")).fails(2, &["--size"]);
    run(at, &format!("finetune base {data} -o base")).fails(1, &["base", "--resume"]);
    run(at, &format!("finetune base {data} --lr 1e30 --clip 0 --steps 9 -o x")).fails(1, &["--lr"]);
    run(at, "finetune base --data small.json -o y").fails(1, &["small.json"]);
    write(&at.join("mine/notes.txt"), "mine")?;
    run(at, &format!("finetune base {data} --resume -o mine")).fails(1, &["mine", "another folder"]);
    run(at, &format!("finetune --from-scratch small.json --consistency 1 {data} -o y")).fails(2, &["--consistency"]);
    assert!(!Path::new(&at.join("y")).exists());
    Ok(())
}

#[test]
fn a_configuration_is_written_as_it_is_read() -> Outcome {
    let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(root().join("fixtures/unet/cases.json"))?)?;
    let cases = cases["cases"].as_object().ok_or("no cases")?;
    let configs =
        cases.values().map(|case| Config::parse(case.to_string().as_bytes())).collect::<Result<Vec<_>, _>>()?;
    assert!(configs.len() > 5);
    for config in configs.into_iter().chain(NAMED.iter().map(|(_, config)| config())) {
        assert_eq!(Config::parse(config.to_json().to_string().as_bytes())?, config);
    }
    Ok(())
}

/// What is told grows with the batch, and with the square of the pixels where attention looks at all of them.
#[test]
fn memory_is_told_before_training() -> Outcome {
    let network = |middle: bool| {
        let mut config = Config::parse(small().as_bytes())?;
        config.has_middle = middle;
        config.down_block_types = config.down_block_types.iter().map(|_| config.down_block_types[0]).collect();
        config.up_block_types = config.up_block_types.iter().map(|_| config.up_block_types[1]).collect();
        Network::new(&config, &Source::Seed(0), false).map_err(|error| error.to_string())
    };
    let (plain, with_attention) = (network(false)?, network(true)?);
    let of = |network: &Network, batch: usize, side: usize| Memory::of(network, true, batch, (1, side, side));
    let parameters: usize = plain.weights.iter().map(|(_, var)| var.elem_count()).sum();
    assert_eq!(of(&plain, 1, 8)?.weights, 28 * parameters as u64);
    let ratio = |network: &Network, batch: usize, side: usize| -> Outcome<f64> {
        Ok(of(network, batch, side)?.batch as f64 / of(network, 1, 64)?.batch as f64)
    };
    assert!((ratio(&plain, 8, 64)? - 8.0).abs() < 1e-6);
    assert!((ratio(&plain, 1, 256)? - 16.0).abs() < 0.1, "{}", ratio(&plain, 1, 256)?);
    assert!(ratio(&with_attention, 1, 256)? > 100.0, "{}", ratio(&with_attention, 1, 256)?);
    Ok(())
}

/// Two runs do not train into one folder; a run that was stopped before it saved anything can be begun again, and what is not its own is
/// kept.
#[cfg(unix)]
#[test]
fn a_folder_is_one_trainings() -> Outcome {
    let folder = with_base()?;
    let at = folder.path();
    let command = format!("finetune base {} --batch 2 --steps 100000 --save-every 100000 -o one", data());
    let arguments = command.split(' ');
    let mut child = binary().current_dir(at).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let begun = Instant::now();
    while !at.join("one/scheduler_config.json").is_file() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let short = format!("finetune base {} --batch 2 --steps 1 -o one", data());
    run(at, &short).fails(1, &["one", "another run"]);
    run(at, &format!("{short} --resume")).fails(1, &["one", "another run"]);
    child.kill()?;
    child.wait()?;
    assert!(at.join("one/config.json").is_file() && !at.join("one/training-state.safetensors").exists());
    run(at, "sample one -n 1 --steps 2 -o early.png").fails(1, &["one"]);
    run(at, &format!("finetune base {} --batch 2 --steps 1 --size 8 -o one", data())).ok();
    write(&at.join("mine/config.json"), small())?;
    run(at, &short.replace("-o one", "-o mine")).fails(1, &["mine", "not empty"]);
    assert_eq!(std::fs::read_to_string(at.join("mine/config.json"))?, small());
    Ok(())
}
