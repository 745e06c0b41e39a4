//! Candidates from models that stay on a device.

use crate::model::{Model, Outcome as Test, Random};
use ckptmerge::checkpoint::{Checkpoint, TensorView};
use ckptmerge::dtype::{DType, Simd};
use ckptmerge::gpu::{Choice, Compute, Device, Limits, open};
use ckptmerge::merge::{Blend, BlendKernel, Resident};
use ckptmerge::stream::{Kernel, Offloading};
use std::sync::Arc;
use tempfile::tempdir;

const SHAPES: [&[u64]; 4] = [&[30, 100], &[17], &[3, 3, 3], &[5000]];

/// Files of models in these types, the base last.
fn files(folder: &std::path::Path, types: &[DType], mut number: impl FnMut(f64) -> f64) -> Test<Vec<Checkpoint>> {
    let mut random = Random(31);
    let mut models = Vec::new();
    for (index, dtype) in types.iter().enumerate() {
        let model = SHAPES.iter().fold(Model::new(), |model, shape| {
            let values = random.values(shape.iter().product::<u64>() as usize);
            let values: Vec<f64> = values.into_iter().map(&mut number).collect();
            model.with(&format!("{shape:?}"), *dtype, shape, &values)
        });
        models.push(Checkpoint::open(model.write(folder.join(format!("{index}.safetensors")))?)?);
    }
    Ok(models)
}

fn views(models: &[Checkpoint]) -> Vec<Vec<TensorView<'_>>> {
    models.iter().map(|model| model.tensors().iter().map(|tensor| model.view(tensor)).collect()).collect()
}

/// A candidate by the CPU, tensor by tensor.
fn expected(models: &[Vec<TensorView<'_>>], coefficients: &[f64], has_base: bool, output: DType) -> Test<Vec<u8>> {
    let mut out = Vec::new();
    for tensor in 0..models[0].len() {
        let of_tensor: Vec<TensorView<'_>> = models.iter().map(|model| model[tensor]).collect();
        let mut buffers = vec![Vec::new(); of_tensor.len()];
        let read = of_tensor.iter().zip(&mut buffers).map(|(view, buffer)| view.read(0..view.tensor.bytes, buffer));
        let inputs = read.collect::<ckptmerge::Result<Vec<_>>>()?;
        let blend = Blend { from_base: has_base, coefficients: coefficients.to_vec() };
        let inputs_types = of_tensor.iter().map(|view| view.tensor.dtype).collect();
        let kernel = BlendKernel { blend, inputs: inputs_types, output, simd: Simd::Portable };
        let mut part = vec![0; (of_tensor[0].tensor.elements * output.block_bytes()) as usize];
        kernel.run(0, &inputs, &mut part)?;
        out.extend(part);
    }
    Ok(out)
}

fn offloading(device: Arc<Device>) -> Offloading {
    Offloading::of_all(device)
}

#[test]
fn candidates_are_those_of_the_cpu() -> Test {
    let folder = tempdir()?;
    let types = [DType::F16, DType::BF16, DType::F32, DType::F16];
    let models = files(folder.path(), &types, |x| x)?;
    // Tiles of all elements, and of a few.
    for limits in [None, Some(Limits { binding: 64 << 10, memory: 64 << 20, groups: 64 })] {
        let device = Arc::new(open(&Choice::Best, limits)?);
        for (has_base, count) in [(true, 3), (false, 4)] {
            for output in [DType::F16, DType::F32] {
                let resident = Resident::new(&offloading(Arc::clone(&device)), views(&models), has_base, output)?;
                assert_eq!(resident.elements(), 30 * 100 + 17 + 27 + 5000);
                for seed in 0..3 {
                    let coefficients = Random(seed).values(count);
                    let mut out = vec![0; (resident.elements() * output.block_bytes()) as usize];
                    resident.candidate(&coefficients, output, &mut out)?;
                    let expected = expected(&views(&models), &coefficients, has_base, output)?;
                    let width = output.block_bytes() as usize;
                    let pairs = out.chunks(width).zip(expected.chunks(width));
                    let same = pairs.filter(|(x, y)| x == y).count() as f64 * width as f64 / out.len() as f64;
                    assert!(same >= 0.995, "{output}, {has_base}: {same} of the elements are the same");
                }
                assert!(resident.time(&vec![0.5; count], output, 2)?.as_nanos() > 0);
            }
        }
        assert!(device.failure().is_none());
    }
    Ok(())
}

/// Numbers that a tensor has, as f64.
fn numbers(model: &Checkpoint) -> Test<Vec<f64>> {
    let mut all = Vec::new();
    for tensor in model.tensors() {
        let view = model.view(tensor);
        let mut buffer = Vec::new();
        all.extend(crate::model::decode(tensor.dtype, view.read(0..tensor.bytes, &mut buffer)?));
    }
    Ok(all)
}

#[test]
fn inner_products_are_those_of_f64() -> Test {
    let folder = tempdir()?;
    let models = files(folder.path(), &[DType::F16, DType::BF16, DType::F32, DType::F32], |x| x)?;
    let values = models.iter().map(numbers).collect::<Test<Vec<_>>>()?;
    for limits in [None, Some(Limits { binding: 64 << 10, memory: 64 << 20, groups: 64 })] {
        let device = Arc::new(open(&Choice::Best, limits)?);
        for (has_base, size) in [(true, 3), (false, 4)] {
            let resident = Resident::new(&offloading(Arc::clone(&device)), views(&models), has_base, DType::F16)?;
            let vector = |i: usize, k: usize| if has_base { values[i][k] - values[3][k] } else { values[i][k] };
            for is_lost in [false, limits.is_some() && !has_base] {
                if is_lost {
                    device.lose();
                }
                let gram = resident.gram()?;
                for i in 0..size {
                    for j in 0..size {
                        let products = (0..values[0].len()).map(|k| vector(i, k) * vector(j, k));
                        let (expected, most) =
                            products.fold((0.0, 0.0), |(sum, most): (f64, f64), x| (sum + x, most + x.abs()));
                        let apart = (gram.product(i, j) - expected).abs();
                        assert!(apart <= 1e-6 * most, "{has_base}, {i}, {j}: {apart} of {most}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_cpu_makes_candidates_where_the_device_cannot() -> Test {
    let folder = tempdir()?;
    let mut index = 0;
    let models = files(folder.path(), &[DType::F32; 3], |x| {
        index += 1;
        if index % 3001 == 0 { f64::NAN } else { x }
    })?;
    let device = Arc::new(open(&Choice::Best, None)?);
    let resident = Resident::new(&offloading(Arc::clone(&device)), views(&models), true, DType::F32)?;
    let coefficients = [0.25, -0.75];
    let expected = expected(&views(&models), &coefficients, true, DType::F32)?;
    for is_lost in [false, true] {
        if is_lost {
            device.lose();
        }
        let mut out = vec![0; expected.len()];
        resident.candidate(&coefficients, DType::F32, &mut out)?;
        assert!(out == expected, "lost: {is_lost}");
    }
    let error = resident.time(&coefficients, DType::F32, 1).expect_err("the device is lost").to_string();
    assert!(error.contains("was lost"), "{error}");
    Ok(())
}

#[test]
fn models_that_cannot_be_held_are_named() -> Test {
    let folder = tempdir()?;
    let models = files(folder.path(), &[DType::F64, DType::F16], |x| x)?;
    let device = Arc::new(open(&Choice::Best, None)?);
    let message = |models: Vec<Vec<TensorView<'_>>>| {
        let result = Resident::new(&offloading(Arc::clone(&device)), models, false, DType::F16);
        result.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let all = views(&models);
    assert!(message(all.clone()).contains("F64, which devices do not read"), "{}", message(all.clone()));
    let shorter = vec![all[1].clone(), all[1][1..].to_vec()];
    assert!(message(shorter).contains("different shapes"));
    assert!(message(Vec::new()).contains("no models"));
    Ok(())
}
