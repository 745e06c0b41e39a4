//! What a merge does with tensors: the contract of every method, types that are copied, all that can fail to fit.

use crate::model::{Contents, Model, Outcome, Random, Tensor, precision, read, snapshot};
use ckptmerge::dtype::DType;
use ckptmerge::merge::Base;
use ckptmerge::recipe::{Missing, Models, Plan, Prediction, Recipe, Target};
use ckptmerge::stream::{Control, Settings};
use ckptmerge::{Error, IoMode, Mismatch};
use regex::Regex;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// Two threads, and no waiting for the disk.
pub(crate) fn settings() -> Settings {
    Settings { threads: NonZeroUsize::new(2), sync: false, ..Settings::default() }
}

/// Merges models by the library.
pub(crate) fn merge(
    recipe: &Recipe,
    models: &[PathBuf],
    base: Option<&Path>,
    out: &Path,
) -> ckptmerge::Result<Prediction> {
    let models = Models::open(models, base, &IoMode::Auto.into())?;
    let plan = Plan::new(recipe, &models, &settings(), Control::none())?;
    plan.emit(&Target { path: out.to_owned(), shard_size: None, format: None }, &settings(), Control::none())
}

/// A folder with models in it, to be merged.
struct Bench {
    folder: tempfile::TempDir,
    models: Vec<PathBuf>,
    base: Option<PathBuf>,
}

impl Bench {
    /// Models `m0.st`, `m1.st`, … and perhaps `base.st`.
    fn new(models: &[Model], base: Option<&Model>) -> Outcome<Self> {
        let folder = tempdir()?;
        let path = |name: String| folder.path().join(name);
        let written = models.iter().enumerate().map(|(i, model)| model.write(path(format!("m{i}.st"))));
        let models = written.collect::<Outcome<Vec<_>>>()?;
        let base = base.map(|base| base.write(path("base.st".to_owned()))).transpose()?;
        Ok(Self { folder, models, base })
    }

    /// The merged tensors.
    fn merge(&self, recipe: &Recipe) -> Outcome<Contents> {
        let out = self.folder.path().join("out.safetensors");
        merge(recipe, &self.models, self.base.as_deref(), &out)?;
        read(&out)
    }

    /// The error of a merge that must fail, and leave everything as it was.
    fn error(&self, recipe: &Recipe) -> Error {
        let out = self.folder.path().join("out.safetensors");
        let before = snapshot(self.folder.path());
        let error = merge(recipe, &self.models, self.base.as_deref(), &out).expect_err("this cannot be merged");
        assert!(snapshot(self.folder.path()) == before, "a refused merge changed something");
        error
    }

    /// What does not fit.
    fn mismatches(&self, recipe: &Recipe) -> Vec<Mismatch> {
        match self.error(recipe) {
            Error::Mismatch(all) => all,
            other => panic!("not a mismatch: {other}"),
        }
    }
}

fn linear(weights: &[f64]) -> Recipe {
    Recipe::new("linear").expect("the method is there").weights(weights)
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is written here")
}

const FLOATS: [DType; 6] = [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

/// Shapes at which loops and tables go wrong, and how many elements each has.
const SHAPES: [(&[u64], usize); 8] =
    [(&[], 1), (&[0], 0), (&[3, 0], 0), (&[1], 1), (&[7], 7), (&[2, 3, 5], 30), (&[1, 1, 257], 257), (&[4099], 4099)];

/// A model with a tensor of each float type and shape.
fn zoo(random: &mut Random) -> Model {
    let mut model = Model::new();
    for dtype in FLOATS {
        for (shape, elements) in SHAPES {
            model = model.with(&format!("{dtype}{shape:?}"), dtype, shape, &random.values(elements));
        }
    }
    model
}

/// The methods that are weighted sums, with what they need: the base they are to have, if any.
fn each_sum(mut test: impl FnMut(Recipe, Option<&Model>) -> Outcome) -> Outcome {
    let base = zoo(&mut Random(99));
    for name in ["linear", "task-arithmetic"] {
        let recipe = Recipe::new(name)?;
        let needs_base = recipe.method.about().base == Base::Required;
        test(recipe, needs_base.then_some(&base)).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// That two tensors hold the same numbers but for `steps` roundings to their type of numbers up to 4.
#[track_caller]
fn assert_close(name: &str, a: &Tensor, b: &Tensor, steps: f64) {
    assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape), "{name}");
    let (bits, lowest) = precision(a.dtype);
    let tolerance = steps * 4.0 * 2f64.powi(-bits.min(24)).max(2f64.powi(lowest - bits));
    for (i, (a, b)) in a.values().into_iter().zip(b.values()).enumerate() {
        assert!((a - b).abs() <= tolerance, "{name}[{i}]: {a} against {b}");
    }
}

#[test]
fn equal_models_merge_to_themselves() -> Outcome {
    let model = zoo(&mut Random(1));
    each_sum(|recipe, base| {
        // These weights add up to 1 without rounding.
        for weights in [&[1.0][..], &[0.5, 0.5], &[0.25, 0.25, 0.25, 0.25]] {
            let models = vec![model.clone(); weights.len()];
            let bench = Bench::new(&models, base)?;
            let merged = bench.merge(&recipe.clone().weights(weights))?;
            let original = read(&bench.models[0])?;
            assert_eq!(merged.names(), original.names());
            for (name, tensor) in &original.tensors {
                match base {
                    None => assert_eq!(&merged.tensors[name], tensor, "{name} by {weights:?}"),
                    Some(_) => assert_close(name, &merged.tensors[name], tensor, 2.0),
                }
            }
        }
        Ok(())
    })
}

#[test]
fn models_that_are_the_base_change_nothing() -> Outcome {
    each_sum(|recipe, base| {
        let Some(base) = base else { return Ok(()) };
        let bench = Bench::new(&[base.clone(), base.clone()], Some(base))?;
        let merged = bench.merge(&recipe.weights(&[0.37, -1.9]))?;
        assert_eq!(merged.tensors, read(&bench.models[0])?.tensors);
        Ok(())
    })
}

#[test]
fn the_order_of_models_does_not_matter() -> Outcome {
    let mut random = Random(2);
    let models: Vec<Model> = (0..5).map(|_| zoo(&mut random)).collect();
    let weights = [0.3, -0.2, 0.5, 0.1, 0.25];
    each_sum(|recipe, base| {
        let merged = Bench::new(&models, base)?.merge(&recipe.clone().weights(&weights))?;
        let order = [3, 0, 4, 2, 1];
        let shuffled = Bench::new(&order.map(|i| models[i].clone()), base)?
            .merge(&recipe.weights(&order.map(|i: usize| weights[i])))?;
        for (name, tensor) in &merged.tensors {
            assert_close(name, tensor, &shuffled.tensors[name], 8.0);
        }
        assert_eq!(merged.tensors.len(), FLOATS.len() * SHAPES.len());
        Ok(())
    })
}

#[test]
fn what_is_not_finite_shows_in_the_output() -> Outcome {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    // Element by element: NaN alone, infinities alone, opposed infinities, and a number between.
    let first = [nan, 1.0, inf, 1.0, inf, -inf, 0.5, 1.0];
    let second = [1.0, nan, 1.0, inf, -inf, -inf, 0.25, nan];
    each_sum(|recipe, base| {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let model = |values: &[f64]| Model::new().with("x", dtype, &[8], values);
            let base = base.map(|_| model(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, nan]));
            let bench = Bench::new(&[model(&first), model(&second)], base.as_ref())?;
            let merged = bench.merge(&recipe.clone().weights(&[0.5, 0.5]))?.values("x");
            let expected = [nan, nan, inf, inf, nan, -inf, 0.375, nan];
            assert_eq!(format!("{merged:?}"), format!("{expected:?}"), "{dtype}");
        }
        Ok(())
    })
}

#[test]
fn one_model_at_weight_one_is_a_copy() -> Outcome {
    let mut random = Random(3);
    let mut model = Model::new().with("empty", DType::F16, &[0, 4], &[]);
    for dtype in FLOATS {
        // Any bytes: among them signalling NaN and negative ones, which arithmetic would change.
        let bytes: Vec<u8> = (0..4000).map(|_| random.next() as u8).collect();
        let width = dtype.block_bytes();
        model = model.raw(&dtype.to_string(), dtype, &[4000 / width], bytes);
    }
    model = model.raw("F32nan", DType::F32, &[2], [0x7fa0_1234_u32, 0xffc0_0001].map(u32::to_le_bytes).concat());
    let bench = Bench::new(&[model], None)?;
    for recipe in [linear(&[1.0]), Recipe::new("linear")?] {
        assert_eq!(bench.merge(&recipe)?.tensors, read(&bench.models[0])?.tensors);
    }
    Ok(())
}

#[test]
fn opaque_and_integer_tensors_are_copied_when_equal() -> Outcome {
    let extra = |seed: u64| {
        Model::new()
            .f32("w", &[seed as f64])
            .raw("position", DType::I64, &[3], [5i64, -1, i64::MAX].map(i64::to_le_bytes).concat())
            .raw("mask", DType::Bool, &[3], vec![1, 0, 1])
            .raw("f4", DType::F4, &[2, 3], vec![0x12, 0x34, 0x56])
            .raw("c64", DType::C64, &[1], vec![1, 2, 3, 4, 5, 6, 7, 8])
            .raw("e8m0", DType::F8E8M0, &[2], vec![127, 255])
            .raw("none", DType::I32, &[0], vec![])
    };
    let bench = Bench::new(&[extra(1), extra(3)], None)?;
    let merged = bench.merge(&linear(&[0.5, 0.5]))?;
    let original = read(&bench.models[0])?;
    assert_eq!(merged.values("w"), [2.0]);
    for name in ["position", "mask", "f4", "c64", "e8m0", "none"] {
        assert_eq!(merged.tensors[name], original.tensors[name], "{name}");
    }
    // A type for the floats is none for them.
    let merged = bench.merge(&Recipe { dtype: Some(DType::BF16), ..linear(&[0.5, 0.5]) })?;
    assert_eq!(merged.tensors["w"].dtype, DType::BF16);
    assert_eq!(merged.tensors["position"], original.tensors["position"]);
    Ok(())
}

#[test]
fn opaque_and_integer_tensors_that_differ_are_refused() -> Outcome {
    let cases = [
        (DType::I64, 8, "I64"),
        (DType::Bool, 1, "BOOL"),
        (DType::F4, 1, "F4"),
        (DType::C64, 8, "C64"),
        (DType::F8E8M0, 1, "F8_E8M0"),
    ];
    for (dtype, bytes, name) in cases {
        let elements = bytes / dtype.block_bytes() * dtype.block_elements();
        let with = |last: u8| {
            let mut data = vec![1; bytes as usize - 1];
            data.push(last);
            Model::new().raw("odd.one", dtype, &[elements], data).f32("w", &[f64::from(last)])
        };
        // In the first and second they agree: the third is the culprit.
        let bench = Bench::new(&[with(0), with(0), with(1)], None)?;
        let recipe = linear(&[1.0, 1.0, 1.0]);
        let [mismatch] = &bench.mismatches(&recipe)[..] else { panic!("one tensor differs") };
        assert_eq!(mismatch.tensor, "odd.one");
        for part in [name, "m0.st", "m2.st"] {
            assert!(mismatch.problem.contains(part), "{part} is not in {:?}", mismatch.problem);
        }
        assert!(!mismatch.problem.contains("m1.st"), "m1.st is not at fault: {:?}", mismatch.problem);

        let excluded = Recipe { exclude: vec![regex("odd")], ..recipe };
        let merged = bench.merge(&excluded)?;
        assert_eq!(merged.tensors["odd.one"], read(&bench.models[0])?.tensors["odd.one"]);
        assert_eq!(merged.values("w"), [1.0]);
        let bench = Bench::new(&[with(0)], Some(&with(1)))?;
        let recipe = Recipe { exclude: vec![regex("odd")], ..Recipe::new("task-arithmetic")? };
        let merged = bench.merge(&recipe)?.tensors["odd.one"].clone();
        assert_eq!(merged, read(bench.base.as_deref().ok_or("it has one")?)?.tensors["odd.one"]);
    }
    Ok(())
}

#[test]
fn everything_that_does_not_fit_is_said_at_once() -> Outcome {
    let first = Model::new()
        .f32("fits", &[1.0])
        .f32("shape", &[1.0, 2.0])
        .f32("broadcast", &[1.0])
        .with("rank", DType::F32, &[2, 2], &[0.0; 4])
        .f32("only.first", &[1.0])
        .f32("dtype", &[1.0])
        .with("integers", DType::I64, &[1], &[1.0]);
    let second = Model::new()
        .f32("fits", &[1.0])
        .f32("shape", &[1.0, 2.0, 3.0])
        .f32("broadcast", &[1.0, 2.0, 3.0, 4.0])
        .with("rank", DType::F32, &[4], &[0.0; 4])
        .with("dtype", DType::I64, &[1], &[1.0])
        .with("integers", DType::U8, &[1], &[1.0])
        .f32("only.second", &[1.0]);
    let bench = Bench::new(&[first, second], None)?;
    let recipe = linear(&[0.5, 0.5]);
    let mut found = bench.mismatches(&recipe);
    found.sort_by(|a, b| a.tensor.cmp(&b.tensor));
    let expected: [(&str, &[&str]); 7] = [
        ("broadcast", &["[1] in m0.st", "[4] in m1.st"]),
        ("dtype", &["F32 in m0.st", "I64 in m1.st"]),
        ("integers", &["I64 in m0.st", "U8 in m1.st"]),
        ("only.first", &["missing in m1.st"]),
        ("only.second", &["missing in m0.st"]),
        ("rank", &["[2, 2] in m0.st", "[4] in m1.st"]),
        ("shape", &["[2] in m0.st", "[3] in m1.st"]),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    let message = bench.error(&recipe).to_string();
    for (mismatch, (tensor, parts)) in found.iter().zip(expected) {
        assert_eq!(mismatch.tensor, tensor);
        assert!(message.contains(&format!("`{tensor}`")), "{message}");
        for part in parts {
            assert!(mismatch.problem.contains(part), "{part:?} is not in {:?}", mismatch.problem);
        }
    }
    Ok(())
}

#[test]
fn missing_tensors_by_each_rule() -> Outcome {
    let first = Model::new().f32("both", &[1.0]).f32("first", &[7.0]).with("count", DType::I64, &[1], &[3.0]);
    let second = Model::new().f32("both", &[3.0]).f32("second", &[9.0]);
    let base = Model::new().f32("both", &[0.0]).f32("second", &[5.0]).f32("base", &[4.0]);
    let missing = |missing, recipe| Recipe { missing, ..recipe };

    let bench = Bench::new(&[first.clone(), second.clone()], None)?;
    let merged = bench.merge(&missing(Missing::Skip, linear(&[0.5, 0.5])))?;
    assert_eq!(merged.names(), ["both"]);
    assert_eq!(merged.values("both"), [2.0]);
    let merged = bench.merge(&missing(Missing::Base, linear(&[0.5, 0.5])))?;
    assert_eq!(merged.names(), ["both", "count", "first"]);
    assert_eq!(merged.values("first"), [7.0]);
    // What is copied for want of others is still a float of the output.
    let recipe = Recipe { dtype: Some(DType::F16), ..missing(Missing::Base, linear(&[0.5, 0.5])) };
    let merged = bench.merge(&recipe)?;
    assert_eq!((merged.tensors["first"].dtype, merged.values("first")), (DType::F16, vec![7.0]));
    assert_eq!(merged.tensors["count"].dtype, DType::I64);

    let bench = Bench::new(&[first, second], Some(&base))?;
    let task = Recipe::new("task-arithmetic")?.weights(&[1.0, 1.0]);
    let merged = bench.merge(&missing(Missing::Base, task.clone()))?;
    assert_eq!(merged.names(), ["base", "both", "second"]);
    assert_eq!((merged.values("second"), merged.values("both")), (vec![5.0], vec![4.0]));
    assert_eq!(bench.merge(&missing(Missing::Skip, task.clone()))?.names(), ["both"]);
    assert_eq!(bench.mismatches(&task).len(), 4);

    let apart = Bench::new(&[Model::new().f32("a", &[1.0]), Model::new().f32("b", &[1.0])], None)?;
    let error = apart.error(&missing(Missing::Skip, linear(&[0.5, 0.5])));
    assert!(matches!(&error, Error::Recipe(message) if message.contains("nothing is left")), "{error}");
    Ok(())
}

#[test]
fn eight_bit_floats_with_a_scale_are_refused() -> Outcome {
    for (dtype, scale) in [
        (DType::F8E4M3, "layer.weight_scale_inv"),
        (DType::F8E5M2, "layer.weight_scale"),
        (DType::F8E4M3, "layer.scale_weight"),
    ] {
        let scaled = Model::new().with("layer.weight", dtype, &[2], &[1.0, 2.0]).f32(scale, &[0.5]);
        let bench = Bench::new(&[scaled.clone(), scaled], None)?;
        let recipe = linear(&[0.5, 0.5]);
        let mismatches = bench.mismatches(&recipe);
        assert_eq!(mismatches.len(), 1);
        assert_eq!(mismatches[0].tensor, "layer.weight");
        assert!(mismatches[0].problem.contains(scale), "{:?}", mismatches[0].problem);
        // Without one, or left alone, they are numbers like others.
        let copied = bench.merge(&Recipe { exclude: vec![regex("layer")], ..recipe })?;
        assert_eq!(copied.values("layer.weight"), [1.0, 2.0]);
    }
    let plain = |value| Model::new().with("layer.weight", DType::F8E4M3, &[1], &[value]);
    let merged = Bench::new(&[plain(1.0), plain(2.0)], None)?.merge(&linear(&[0.5, 0.5]))?;
    assert_eq!(merged.values("layer.weight"), [1.5]);
    Ok(())
}

#[test]
fn the_first_pattern_that_matches_gives_the_weights() -> Outcome {
    let model = |value: f64| {
        ["layers.0.attn.w", "layers.1.attn.w", "layers.1.mlp.w", "head"]
            .iter()
            .fold(Model::new(), |model, name| model.f32(name, &[value]))
    };
    let bench = Bench::new(&[model(1.0), model(10.0)], None)?;
    let recipe = Recipe {
        weights_for: vec![
            (regex(r"attn"), vec![2.0, 3.0]),
            (regex(r"^layers\.1\."), vec![-1.0, 0.0]),
            (regex(r"attn|head$"), vec![0.0, 0.5]),
        ],
        ..linear(&[1.0, 1.0])
    };
    let merged = bench.merge(&recipe)?;
    assert_eq!(merged.values("layers.0.attn.w"), [32.0]);
    assert_eq!(merged.values("layers.1.attn.w"), [32.0]);
    assert_eq!(merged.values("layers.1.mlp.w"), [-1.0]);
    assert_eq!(merged.values("head"), [5.0]);
    Ok(())
}

#[test]
fn only_included_tensors_that_are_not_excluded_are_merged() -> Outcome {
    let model =
        |value: f64| ["a.x", "a.y", "b.x", "b.y"].iter().fold(Model::new(), |model, name| model.f32(name, &[value]));
    let bench = Bench::new(&[model(1.0), model(3.0)], None)?;
    let merged_by = |include: &[&str], exclude: &[&str]| -> Outcome<Vec<String>> {
        let all = |patterns: &[&str]| patterns.iter().map(|pattern| regex(pattern)).collect();
        let merged = bench.merge(&Recipe { include: all(include), exclude: all(exclude), ..linear(&[0.5, 0.5]) })?;
        assert_eq!(merged.names(), ["a.x", "a.y", "b.x", "b.y"]);
        let of = |name: &&str| merged.values(name) == [2.0];
        assert!(merged.names().iter().all(|name| of(name) || merged.values(name) == [1.0]));
        Ok(merged.names().into_iter().filter(of).map(str::to_owned).collect())
    };
    assert_eq!(merged_by(&[], &[])?, ["a.x", "a.y", "b.x", "b.y"]);
    assert_eq!(merged_by(&["^a"], &[])?, ["a.x", "a.y"]);
    assert_eq!(merged_by(&["^a", r"b\.y"], &["x$"])?, ["a.y", "b.y"]);
    assert_eq!(merged_by(&[], &["a"])?, ["b.x", "b.y"]);
    Ok(())
}

#[test]
fn normalizing_divides_by_the_sum() -> Outcome {
    let model = |value: f64| Model::new().f32("x", &[value]).f32("special", &[value]);
    let bench = Bench::new(&[model(1.0), model(5.0)], None)?;
    let recipe =
        Recipe { normalize: Some(true), weights_for: vec![(regex("special"), vec![-1.0, 3.0])], ..linear(&[3.0, 1.0]) };
    let merged = bench.merge(&recipe)?;
    assert_eq!(merged.values("x"), [2.0]);
    assert_eq!(merged.values("special"), [7.0], "the special weights are divided by their own sum");

    let base = Bench::new(&[model(3.0), model(5.0)], Some(&model(1.0)))?;
    let mut task = Recipe { normalize: Some(true), ..Recipe::new("task_arithmetic")?.weights(&[3.0, 1.0]) };
    assert_eq!(base.merge(&task)?.values("x"), [1.0 + (3.0 * 2.0 + 4.0) / 4.0]);
    task = task.parameter("lambda", 2.0);
    assert_eq!(base.merge(&task)?.values("x"), [1.0 + 2.0 * (3.0 * 2.0 + 4.0) / 4.0]);

    let opposed = Recipe { weights: Some(vec![1.0, -1.0]), ..task };
    assert_eq!(
        base.merge(&opposed)?.values("x"),
        [1.0 + 2.0 * (2.0 - 4.0)],
        "as mergekit, changes are not divided by 0"
    );
    let normalized = Recipe { normalize: Some(true), ..linear(&[0.5, -0.5]) };
    let Err(error) = bench.merge(&normalized) else { panic!("weights that add up to 0 were normalized") };
    assert!(error.to_string().contains("add up to 0"), "{error}");
    Ok(())
}

#[test]
fn weights_that_are_not_given_are_the_methods_own() -> Outcome {
    let model = |value: f64| Model::new().f32("x", &[value]);
    let models = [model(1.0), model(2.0), model(4.0), model(9.0)];
    assert_eq!(Bench::new(&models, None)?.merge(&Recipe::new("linear")?)?.values("x"), [4.0]);
    let task = Recipe::new("task-arithmetic")?;
    assert_eq!(Bench::new(&models, Some(&model(1.0)))?.merge(&task)?.values("x"), [1.0 + 1.0 + 3.0 + 8.0]);
    Ok(())
}

#[test]
fn recipes_that_contradict_themselves_are_refused() -> Outcome {
    let model = Model::new().f32("x", &[1.0]);
    let plain = Bench::new(&[model.clone(), model.clone()], None)?;
    let based = Bench::new(&[model.clone(), model.clone()], Some(&model))?;
    let task = Recipe::new("task-arithmetic")?;
    let with_parameter = |name: &str, value: f64| task.clone().parameter(name, value);
    let special = |weights: Vec<f64>| Recipe { weights_for: vec![(regex("x"), weights)], ..linear(&[0.5, 0.5]) };
    let cases: [(&Bench, Recipe, &str); 9] = [
        (&plain, task.clone(), "needs a base"),
        (&based, linear(&[0.5, 0.5]), "takes no base"),
        (&plain, linear(&[1.0]), "1 weights, but there are 2 models"),
        (&plain, special(vec![1.0; 3]), "3 weights, but there are 2 models"),
        (&plain, linear(&[f64::NAN, 1.0]), "not a finite number"),
        (&plain, special(vec![1e300, 1.0]), "not a finite number"),
        (&plain, Recipe { dtype: Some(DType::I64), ..linear(&[0.5, 0.5]) }, "cannot be merged to I64"),
        (&based, with_parameter("lamda", 1.0), "the nearest is `lambda`"),
        (&based, with_parameter("lambda", f64::INFINITY), "a finite number of 32 bits, not inf"),
    ];
    for (bench, recipe, says) in cases {
        let error = bench.error(&recipe);
        assert!(matches!(error, Error::Recipe(_) | Error::Unknown { .. }), "{error:?}");
        assert!(error.to_string().contains(says), "{says:?} is not in {error}");
    }
    let Err(unknown) = Recipe::new("liner") else { panic!("there is no such method") };
    assert_eq!(unknown.to_string(), "there is no merge method `liner`; the nearest is `linear`");
    assert!(matches!(Models::open(&[], None, &IoMode::Auto.into()), Err(Error::Recipe(_))));
    Ok(())
}
