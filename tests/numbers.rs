//! What a merge computes: against mergekit, against exact sums, against a classifier's score, and byte for byte
//! however it is run.

use crate::merge::{merge, settings};
use crate::model::{Contents, Model, Outcome, Random, decode, encode, fixture, names_in, precision, read, run};
use ckptmerge::dtype::DType;
use ckptmerge::recipe::Recipe;
use ckptmerge::{Checkpoint, IoMode};
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// A golden, the recipe that its `.yml` describes and what of that file's text says so.
struct Golden {
    name: &'static str,
    recipe: Recipe,
    says: &'static [&'static str],
}

fn goldens() -> Vec<Golden> {
    let recipe = |method: &str, weights: [f64; 2], normalize: bool, dtype: DType| {
        let recipe = Recipe::new(method).expect("the method is there").weights(&weights);
        Recipe { normalize: Some(normalize), dtype: Some(dtype), ..recipe }
    };
    let regex = |pattern: &str| Regex::new(pattern).expect("the pattern is written here");
    let linear = |weights, normalize| recipe("linear", weights, normalize, DType::F32);
    let task = |weights, lambda: f64, normalize| {
        recipe("task_arithmetic", weights, normalize, DType::F32).parameter("lambda", lambda)
    };
    let filter = Recipe {
        weights_for: vec![(regex("self_attn"), vec![0.2, 0.8]), (regex(r"layers\.1\."), vec![0.9, 0.6])],
        ..linear([0.5, 0.5], true)
    };
    vec![
        Golden {
            name: "linear",
            recipe: linear([0.6, 0.4], true),
            says: &["linear", "weight: 0.6", "weight: 0.4", "normalize: true", "float32"],
        },
        Golden {
            name: "linear-raw",
            recipe: linear([0.7, 0.5], false),
            says: &["linear", "weight: 0.7", "weight: 0.5", "normalize: false", "float32"],
        },
        Golden {
            name: "linear-bf16",
            recipe: recipe("linear", [0.7, 0.5], true, DType::BF16),
            says: &["linear", "weight: 0.7", "weight: 0.5", "normalize: true", "bfloat16"],
        },
        Golden {
            name: "linear-filter",
            recipe: filter,
            says: &["linear", "value: 0.2", "value: 0.8", "value: 0.9", "value: 0.6", "value: 0.5", "normalize: true"],
        },
        Golden {
            name: "task_arithmetic",
            recipe: task([0.3, 0.8], 1.0, false),
            says: &["task_arithmetic", "weight: 0.3", "weight: 0.8", "lambda: 1.0", "normalize: false"],
        },
        Golden {
            name: "task_arithmetic-lambda",
            recipe: task([1.0, 1.0], 0.5, false),
            says: &["task_arithmetic", "weight: 1.0", "lambda: 0.5", "normalize: false"],
        },
        Golden {
            name: "task_arithmetic-normalize",
            recipe: task([0.3, 0.8], 1.0, true),
            says: &["task_arithmetic", "weight: 0.3", "weight: 0.8", "lambda: 1.0", "normalize: true"],
        },
    ]
}

/// The tensors of a folder's shards together.
fn read_folder(folder: &Path) -> Outcome<Contents> {
    let mut all = Contents { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
    for name in names_in(folder).iter().filter(|name| name.ends_with(".safetensors")) {
        all.tensors.extend(read(&folder.join(name))?.tensors);
    }
    Ok(all)
}

/// A bf16 as a number that grows by one from each to the next.
fn bf16_step(value: f64) -> i32 {
    let bits = i32::from(half::bf16::from_f32(value as f32).to_bits() as i16);
    if bits < 0 { -(bits & 0x7fff) } else { bits }
}

#[test]
fn mergekit_merges_the_same() -> Outcome {
    let folder = tempdir()?;
    let inputs = ["a", "b", "base"].map(|name| read_folder(&fixture("llama").join(name)));
    let [a, b, base] = inputs.map(|input| input.expect("the fixtures can be read"));
    let mut tested = Vec::new();
    for Golden { name, recipe, says } in goldens() {
        let yaml = std::fs::read_to_string(fixture("llama/golden").join(format!("{name}.yml")))?;
        let lacking: Vec<_> = says.iter().filter(|part| !yaml.contains(**part)).collect();
        assert!(lacking.is_empty(), "{name}.yml does not say {lacking:?}, so the recipe here is not its own");

        let with_base = recipe.method.about().needs_base().then(|| fixture("llama/base"));
        let out = folder.path().join(format!("{name}.safetensors"));
        merge(&recipe, &[fixture("llama/a"), fixture("llama/b")], with_base.as_deref(), &out)?;
        let (merged, golden) = (read(&out)?, read(&fixture("llama/golden").join(format!("{name}.safetensors")))?);
        assert_eq!(merged.names(), golden.names(), "{name}");
        let (mut differing, mut total) = (0, 0);
        for (tensor, expected) in &golden.tensors {
            let got = &merged.tensors[tensor];
            assert_eq!((got.dtype, &got.shape), (expected.dtype, &expected.shape), "{name}: {tensor}");
            let (a, b, base) = (a.values(tensor), b.values(tensor), base.values(tensor));
            for (i, (got, expected)) in got.values().into_iter().zip(expected.values()).enumerate() {
                total += 1;
                differing += usize::from(got != expected);
                let largest = a[i].abs().max(b[i].abs()).max(base[i].abs());
                let close = if recipe.dtype == Some(DType::BF16) {
                    (bf16_step(got) - bf16_step(expected)).abs() <= 1
                } else {
                    (got - expected).abs() <= 1e-6 * largest
                };
                assert!(close, "{name}: {tensor}[{i}] is {got}, but mergekit has {expected}");
            }
        }
        assert!(total > 19_000, "{name} has only {total} elements");
        eprintln!("{name}: {differing} of {total} elements differ from mergekit's, none by more than is allowed");
        tested.push(format!("{name}.safetensors"));
    }
    tested.sort();
    let mut there = names_in(&fixture("llama/golden"));
    there.retain(|name| name.ends_with(".safetensors"));
    assert_eq!(tested, there, "a golden is not tested");
    Ok(())
}

/// The correct answers of a 64-64-64-10 ReLU network on rows of 64 pixels from 0 to 16.
fn correct_answers(model: &Contents, images: &[f64], labels: &[f64]) -> u64 {
    let layer = |number: usize, input: &[f64]| -> Vec<f64> {
        let (weight, bias) = (model.values(&format!("fc{number}.weight")), model.values(&format!("fc{number}.bias")));
        let row = |(row, bias): (&[f64], &f64)| row.iter().zip(input).map(|(w, x)| w * x).sum::<f64>() + bias;
        weight.chunks(input.len()).zip(&bias).map(row).collect()
    };
    let relu = |values: Vec<f64>| values.into_iter().map(|value| value.max(0.0)).collect::<Vec<_>>();
    let answer = |image: &[f64]| {
        let pixels: Vec<f64> = image.iter().map(|pixel| pixel / 16.0).collect();
        let logits = layer(3, &relu(layer(2, &relu(layer(1, &pixels)))));
        (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("there are ten logits")
    };
    images.chunks(64).zip(labels).filter(|(image, label)| answer(image) as f64 == **label).count() as u64
}

#[test]
fn the_merged_classifier_knows_all_digits() -> Outcome {
    let file = |name: &str| fixture("digits-classifier").join(name);
    let report: Value = serde_json::from_slice(&std::fs::read(file("accuracy.json"))?)?;
    let test = read(&file("test.safetensors"))?;
    let (images, labels) = (test.values("images"), test.values("labels"));
    assert_eq!((Some(labels.len() as u64), images.len()), (report["rows"].as_u64(), 64 * labels.len()));
    let expected = |name: &str| report["models"][name]["correct"].as_u64();

    for name in ["base", "low", "high"] {
        let model = read(&file(&format!("{name}.safetensors")))?;
        assert_eq!(Some(correct_answers(&model, &images, &labels)), expected(name), "{name}");
    }
    let folder = tempdir()?;
    let tuned = [file("low.safetensors"), file("high.safetensors")];
    for (name, method, weight) in [("linear", "linear", 0.5), ("task_arithmetic", "task-arithmetic", 0.7)] {
        assert_eq!(report["models"][name]["weights"]["low"].as_f64(), Some(weight));
        let out = folder.path().join(format!("{name}.safetensors"));
        let recipe = Recipe::new(method)?.weights(&[weight, weight]);
        let base = recipe.method.about().needs_base().then(|| file("base.safetensors"));
        merge(&recipe, &tuned, base.as_deref(), &out)?;
        assert_eq!(Some(correct_answers(&read(&out)?, &images, &labels)), expected(name), "{name}");
    }
    Ok(())
}

/// A number as an unevaluated sum of two: about 106 bits.
#[derive(Clone, Copy, Default)]
struct Twofold {
    high: f64,
    low: f64,
}

impl Twofold {
    /// Adds `a·b`, which is exact as a rounded product and what an fma says it lacks.
    fn add_product(&mut self, a: f64, b: f64) {
        let product = a * b;
        self.add(product);
        self.low += a.mul_add(b, -product);
    }

    /// Knuth's two-sum.
    fn add(&mut self, value: f64) {
        let sum = self.high + value;
        let part = sum - self.high;
        self.low += (self.high - (sum - part)) + (value - part);
        self.high = sum;
    }
}

/// Half of the distance between a float type's numbers around `value`.
fn half_ulp(dtype: DType, value: f64) -> f64 {
    let (bits, lowest) = precision(dtype);
    // The exponent field of a number is exact where a logarithm is not.
    let exponent = ((value.abs().to_bits() >> 52) as i32 - 1023).max(lowest);
    2f64.powi(exponent - bits)
}

/// Numbers as models have them: of many sizes, with zeros and numbers too small to be normal among them.
fn numbers(random: &mut Random, dtype: DType, count: usize) -> Vec<f64> {
    let (bits, lowest) = precision(dtype);
    (0..count)
        .map(|_| match random.below(20) {
            0 => 0.0,
            1 => random.uniform() * 2f64.powi(lowest.max(-200) - bits / 2),
            _ => random.uniform() * 2f64.powi(3 - random.below(18) as i32),
        })
        .collect()
}

const COUNT: usize = 131;
const FLOATS: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
/// The types of a tensor in the models, by turns, and the smallest that holds all of them.
const MIXTURES: [(&str, &[DType], DType); 10] = [
    ("F64", &[DType::F64], DType::F64),
    ("F32", &[DType::F32], DType::F32),
    ("F16", &[DType::F16], DType::F16),
    ("BF16", &[DType::BF16], DType::BF16),
    ("E4M3", &[DType::F8E4M3], DType::F8E4M3),
    ("E5M2", &[DType::F8E5M2], DType::F8E5M2),
    ("halves", &[DType::F16, DType::BF16], DType::F32),
    ("eights", &[DType::F8E4M3, DType::F8E5M2], DType::F16),
    ("narrow", &[DType::BF16, DType::F8E4M3], DType::BF16),
    ("wide", &[DType::BF16, DType::F64], DType::F64),
];

/// Merges `models` models, of which the last is the base if there is one, and compares every element with the exact sum.
fn compare_with_exact_sums(models: usize, method: &str, output: Option<DType>, folder: &Path) -> Outcome {
    let mut random = Random(models as u64 * 100 + output.map_or(0, |dtype| 8 * dtype.block_bytes()));
    let mut files = vec![Model::new(); models];
    let mut inputs: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
    for (name, dtypes, _) in MIXTURES {
        for (i, file) in files.iter_mut().enumerate() {
            let dtype = dtypes[i % dtypes.len()];
            let values = numbers(&mut random, dtype, COUNT);
            let bytes: Vec<u8> = values.iter().flat_map(|value| encode(dtype, *value)).collect();
            inputs.entry(name).or_default().push(decode(dtype, &bytes));
            *file = file.clone().raw(name, dtype, &[COUNT as u64], bytes);
        }
    }
    let written = files.iter().enumerate().map(|(i, file)| file.write(folder.join(format!("{i}.st"))));
    let mut paths = written.collect::<Outcome<Vec<PathBuf>>>()?;
    let recipe = Recipe { dtype: output, ..Recipe::new(method)? };
    let base = if recipe.method.about().needs_base() { paths.pop() } else { None };
    let weights: Vec<f64> = paths.iter().map(|_| f64::from((1.5 * random.uniform()) as f32)).collect();
    let out = folder.join("out.safetensors");
    merge(&recipe.weights(&weights), &paths, base.as_deref(), &out)?;
    let merged = read(&out)?;

    for (name, dtypes, promoted) in MIXTURES {
        let written = output.unwrap_or(promoted);
        assert_eq!(merged.tensors[name].dtype, written, "{name}");
        let unit = if written == DType::F64 || dtypes.contains(&DType::F64) { 2f64.powi(-53) } else { 2f64.powi(-24) };
        let roundings = if base.is_some() { weights.len() + 2 } else { weights.len() } as f64;
        // What products and differences of numbers too small to be normal can lose.
        let underflow = 2.0 * roundings * unit * if unit < 1e-10 { 2f64.powi(-1022) } else { 2f64.powi(-126) };
        for (i, &got) in merged.values(name).iter().enumerate() {
            let column: Vec<f64> = inputs[name].iter().map(|values| values[i]).collect();
            let b = if base.is_some() { column[models - 1] } else { 0.0 };
            let mut exact = Twofold::default();
            exact.add(b);
            for (weight, x) in weights.iter().zip(&column) {
                exact.add_product(*weight, *x);
                exact.add_product(-*weight, b);
            }
            let sizes = weights.iter().zip(&column).map(|(weight, x)| weight.abs() * (x.abs() + b.abs()));
            let sizes = sizes.sum::<f64>() + b.abs();
            let off = ((got - exact.high) - exact.low).abs();
            let half = half_ulp(written, got).max(half_ulp(written, exact.high));
            let allowed = half + roundings * unit * sizes + underflow;
            assert!(
                off <= allowed,
                "{method} of {models}, {name} → {written}, element {i}: {got:e} is {off:e} from {:e}; {allowed:e} is allowed",
                exact.high
            );
        }
    }
    Ok(())
}

#[test]
fn every_element_is_as_near_to_the_exact_sum_as_its_type_allows() -> Outcome {
    let folder = tempdir()?;
    for method in ["linear", "task-arithmetic"] {
        for models in 2..=16 {
            compare_with_exact_sums(models, method, None, folder.path())?;
            let output = FLOATS[models % FLOATS.len()];
            compare_with_exact_sums(models, method, Some(output), folder.path())?;
        }
        for output in FLOATS {
            compare_with_exact_sums(3, method, Some(output), folder.path())?;
        }
    }
    Ok(())
}

/// About sixty tensors of every type and awkward size, one of them too large for a single unit of work.
fn varied(seed: u64) -> Model {
    let mut random = Random(seed);
    let mut same = Random(7);
    let mut model = Model::new();
    let shapes: [&[u64]; 9] = [&[], &[0], &[3, 0], &[1], &[7, 5], &[33], &[2, 3, 4], &[1023], &[129, 65]];
    for (i, dtype) in FLOATS.into_iter().enumerate() {
        for (j, shape) in shapes.into_iter().enumerate() {
            let count = shape.iter().product::<u64>() as usize;
            model = model.with(&format!("block.{j}.{i}"), dtype, shape, &random.values(count));
        }
        model = match i {
            1 => model.with("large", DType::F32, &[1001, 801], &random.values(1001 * 801)),
            2 => model.with("middle", DType::BF16, &[300_001], &random.values(300_001)),
            3 => model.with("position", DType::I64, &[77], &(0..77).map(f64::from).collect::<Vec<_>>()),
            4 => model.raw("mask", DType::Bool, &[1, 1001], (0..1001).map(|_| same.below(2) as u8).collect()),
            _ => model,
        };
    }
    model
}

#[test]
fn bytes_do_not_depend_on_threads_or_on_how_they_are_read() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let (a, b) = (varied(1), varied(2));
    a.clone().unaligned().write(path.join("a.st"))?;
    b.write(path.join("b.st"))?;
    varied(3).write(path.join("base.st"))?;
    for recipe in ["a.st b.st --weights 0.6,0.4", "--base base.st a.st b.st --weights 0.3,-0.8 --dtype bf16"] {
        run(path, &format!("merge {recipe} -o first.st -j 1 --io mmap")).ok();
        let first = std::fs::read(path.join("first.st"))?;
        for how in [
            "-j 1 --io pread",
            "-j 2",
            "-j 7 --io mmap",
            "-j 7 --io pread",
            "-j 2 --memory 64M",
            "-j 7 --memory 32MiB --io mmap",
            "-j 3 --no-sync",
        ] {
            run(path, &format!("merge {recipe} -o other.st {how}")).ok();
            assert!(std::fs::read(path.join("other.st"))? == first, "{recipe} {how}");
        }
    }

    // And they are the right ones, where units meet as well: in F32, a product and a sum round apart.
    run(path, "merge a.st b.st --weights 0.6,0.4 -o first.st").ok();
    let (a, b, merged) = (read(&path.join("a.st"))?, read(&path.join("b.st"))?, read(&path.join("first.st"))?);
    assert_eq!(merged.names(), a.names());
    let sum = |(a, b): (f64, f64)| f64::from(0.6f32 * a as f32 + 0.4f32 * b as f32);
    for name in ["large", "block.8.1"] {
        let expected: Vec<f64> = a.values(name).into_iter().zip(b.values(name)).map(sum).collect();
        assert!(merged.values(name) == expected, "{name}");
    }
    let expected = a.values("middle").into_iter().zip(b.values("middle")).map(sum);
    let expected: Vec<u8> = expected.flat_map(|value| encode(DType::BF16, value)).collect();
    assert!(merged.tensors["middle"].bytes == expected, "middle");
    assert_eq!(merged.tensors["mask"], b.tensors["mask"]);
    Ok(())
}

#[test]
fn the_library_reads_files_whose_data_is_not_aligned() -> Outcome {
    let folder = tempdir()?;
    let path = varied(4).unaligned().write(folder.path().join("odd.st"))?;
    let length = std::fs::read(&path)?.first_chunk::<8>().copied().map_or(0, u64::from_le_bytes);
    assert_eq!(length % 2, 1, "the data starts at an even byte");
    for mode in [IoMode::Mmap, IoMode::Pread] {
        let model = Checkpoint::open_with(&path, &mode.into())?;
        let views: Vec<_> = model.tensors().iter().map(|tensor| model.view(tensor)).collect();
        let stats = ckptmerge::analysis::stats(&views, &settings(), ckptmerge::stream::Control::none())?;
        let contents = read(&path)?;
        for (view, stats) in views.iter().zip(stats) {
            let values = contents.values(&view.tensor.name);
            let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(stats.map(|stats| stats.max), Some(largest), "{}", view.tensor.name);
        }
    }
    Ok(())
}
