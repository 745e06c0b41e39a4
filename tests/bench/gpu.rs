//! What a graphics processor does: `gpu [MEGABYTES [NAME]]`.
//!
//! Writes five models of random F16 numbers, of so many megabytes each (default 512), to the folder for temporary files, and
//! prints
//!
//! - the adapter, with its driver;
//! - the bytes in a second that a plain copy kernel reads and writes on it, over buffers of a model's size;
//! - the same of `b + Σ cᵢ·(xᵢ − b)` of four models around the fifth, all resident, and the ratio of the two;
//! - the time of merging the files by several methods, on the CPU and on the device in turns, medians of three.

use ckptmerge::checkpoint::{Checkpoint, TensorView};
use ckptmerge::dtype::DType;
use ckptmerge::gpu::{Choice, Compute, Inputs, Job, Pass, WORKGROUP, kernel, open};
use ckptmerge::merge::Resident;
use ckptmerge::recipe::{Models, Plan, Recipe, Target};
use ckptmerge::stream::{Control, Offloading, Settings};
use ckptmerge::{Error, IoMode, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const MODELS: usize = 5;
const COLUMNS: u64 = 4096;
const TENSORS: u64 = 16;
const ROUNDS: usize = 3;
const METHODS: [&str; 5] = ["linear", "task-arithmetic", "ties", "dare-linear", "della"];

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let megabytes: u64 = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let choice = arguments.next().map_or(Choice::Best, Choice::Named);
    let folder = std::env::temp_dir().join(format!("ckptmerge-gpu-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = measure(&folder, megabytes * 1_000_000, &choice);
    std::fs::remove_dir_all(&folder)?;
    Ok(result?)
}

fn measure(folder: &Path, bytes: u64, choice: &Choice) -> Result<()> {
    let device = Arc::new(open(choice, None)?);
    let adapter = device.adapter();
    println!("{}, {} by {}: {}", adapter.name, adapter.kind.name(), adapter.backend, adapter.driver);
    let paths: Vec<PathBuf> = (0..MODELS).map(|index| model(folder, index, bytes)).collect::<Result<_>>()?;

    let copy = copy_rate(&*device, bytes).ok_or_else(|| lost(&*device))?;
    println!("copy kernel: {:.1} GB/s read and written", copy / 1e9);
    let offloading = Offloading::new(Arc::<ckptmerge::gpu::Device>::clone(&device));
    let models = paths.iter().map(Checkpoint::open).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let all: Vec<Vec<TensorView<'_>>> = models.iter().map(views).collect();
    let resident = Resident::new(&offloading, all, true, DType::F16)?;
    let held = resident.elements() * 2 * MODELS as u64;
    println!("upload of {:.2} GB: {:.2} s", held as f64 / 1e9, start.elapsed().as_secs_f64());
    let time = resident.time(&[0.4, 0.3, 0.2, 0.1], DType::F16, 8)?.as_secs_f64();
    let moved = (resident.elements() * 2 * (MODELS as u64 + 1)) as f64;
    println!("resident blend: {:.1} GB/s, {:.0} % of the copy", moved / time / 1e9, 100.0 * moved / time / copy);
    drop(resident);

    for method in METHODS {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (device, times) in [None, Some(offloading.clone())].into_iter().zip(&mut times) {
                times.push(merge(&paths, method, &folder.join("out.safetensors"), device)?);
            }
        }
        let [cpu, gpu] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        println!("merge by {method}: {cpu:.2} s on the CPU, {gpu:.2} s on the device: {:.2} ×", cpu / gpu);
    }
    device.failure().map_or(Ok(()), |_| Err(lost(&*device)))
}

/// A model's tensors.
fn views(model: &Checkpoint) -> Vec<TensorView<'_>> {
    model.tensors().iter().map(|tensor| model.view(tensor)).collect()
}

fn lost(device: &dyn Compute) -> Error {
    Error::Gpu(format!("{}: {}", device.name(), device.failure().unwrap_or_default()))
}

/// Bytes that a plain copy reads and writes in a second.
fn copy_rate(device: &dyn Compute, bytes: u64) -> Option<f64> {
    let size = bytes.min(device.limits().binding) / 4096 * 4096;
    let data = vec![0x3c; size as usize];
    let held = device.hold(&[&data]).ok()?;
    let vectors = size / 16;
    let passes = [Pass { shader: kernel("copy").source().into(), groups: vectors.div_ceil(u64::from(WORKGROUP)) }];
    let params = [vectors as u32];
    let job = Job { passes: &passes, params: &params, inputs: Inputs::Held(&held), output: 0, scratch: size, zeros: false };
    Some(2.0 * size as f64 / device.time(&job, 8).ok()?.as_secs_f64())
}

/// A model of random numbers between 2⁻⁸ and 1, of either sign.
fn model(folder: &Path, index: usize, bytes: u64) -> Result<PathBuf> {
    let rows = bytes / TENSORS / 2 / COLUMNS;
    let size = rows * COLUMNS * 2;
    let entries = (0..TENSORS).map(|tensor| {
        let (start, end) = (tensor * size, (tensor + 1) * size);
        format!("\"layers.{tensor}.weight\":{{\"dtype\":\"F16\",\"shape\":[{rows},{COLUMNS}],\"data_offsets\":[{start},{end}]}}")
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let mut state = index as u64 * 0x9e37_79b9 + 1;
    for _ in 0..TENSORS * rows * COLUMNS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let random = (state >> 40) as u16;
        file.extend(((random & 0x8000) | (0x1c00 + random % 0x2000)).to_le_bytes());
    }
    let path = folder.join(format!("{index}.safetensors"));
    std::fs::write(&path, file).map_err(|source| Error::Io { action: "write", path: path.clone(), source })?;
    Ok(path)
}

fn merge(paths: &[PathBuf], method: &str, out: &Path, device: Option<Offloading>) -> Result<f64> {
    let mut recipe = Recipe::new(method)?;
    if ["ties", "dare-linear", "della"].contains(&method) {
        recipe = recipe.parameter("density", 0.5);
    }
    let settings = Settings { sync: false, device, ..Settings::default() };
    let (base, tuned) = paths.split_last().expect("there are models");
    let has_base = recipe.method.about().needs_base();
    let (models, base) = if has_base { (tuned, Some(base.as_path())) } else { (paths, None) };
    let start = Instant::now();
    let models = Models::open(models, base, &IoMode::Auto.into())?;
    let plan = Plan::new(&recipe, &models, &settings, Control::none())?;
    plan.emit(&Target::new(out), &settings, Control::none())?;
    Ok(start.elapsed().as_secs_f64())
}
