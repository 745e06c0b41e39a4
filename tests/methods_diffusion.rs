//! The merge methods of the Stable Diffusion tools: against what the tools compute, and at their edges.

use crate::merge::settings;
use crate::model::{Model, Outcome, Random, Tensor, fixture, read};
use ckptmerge::dtype::DType;
use ckptmerge::merge::{Base, METHODS, Terms};
use ckptmerge::recipe::{Models, Operation, Plan, Recipe, Target};
use ckptmerge::stream::{Control, Settings};
use ckptmerge::{Error, IoMode};
use regex::Regex;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// Cases of methods that are not here, by the start of their names, and why.
const WITHOUT_COUNTERPART: [(&str, &str); 11] = [
    ("mecha_slerp_", "interpolates norms beside directions, where slerp here is mergekit's on the tensors themselves"),
    ("mecha_top_k_tensor_sum_", "needs the rank of every element of two tensors in each other"),
    ("meh_top_k_tensor_sum_", "needs the rank of every element of two tensors in each other"),
    ("meh_distribution_crossover_", "a filter over the sorted elements of the tensor"),
    ("mecha_truncate_rank_", "of one model: no merge"),
    ("mecha_add_difference_ties_1", "keeps one element more than ties here and in mergekit"),
    ("mecha_add_difference_ties_2", "keeps one element more than ties here and in mergekit"),
    ("mecha_add_difference_ties_3", "a vote of one against one is 0 there, plus here and in mergekit"),
    ("mecha_add_difference_ties_extended_", "as ties, and with model stock's factor where it is not asked for"),
    ("meh_ties_add_difference_", "as sd-mecha's ties"),
    ("supermerger_tensor_sum_2_", "takes rows of the second dimension by the length of the first"),
];

/// A case of diffusion.json, as a merge of ours.
struct Case {
    recipe: Recipe,
    models: Vec<PathBuf>,
    base: Option<PathBuf>,
    /// Tensors of which nothing is said.
    unstable: BTreeSet<String>,
    /// Tensors with elements that are no numbers there.
    nonfinite: BTreeSet<String>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn names(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// The method and parameters here of a tool's method with its parameters.
fn counterpart(case: &Value) -> (&'static str, Vec<(&'static str, f64)>) {
    let get = |name: &str| {
        let value = &case["parameters"][name];
        value.as_f64().or(value.as_bool().map(|on| f64::from(u8::from(on))))
    };
    let of_mecha = text(&case["origin"]).starts_with("sd-mecha");
    let named = |names: &[&'static str]| names.iter().filter_map(|name| Some((*name, get(name)?))).collect::<Vec<_>>();
    let both = || named(&["alpha", "beta"]);
    match text(&case["method"]).as_str() {
        "weighted_sum" | "n_average" => ("linear", Vec::new()),
        "add_difference" => {
            let clamp = get("clamp_to_ab").or(get("weights_clip")).unwrap_or(0.0);
            ("add-difference", [both(), vec![("clamp_to_ab", clamp)]].concat())
        }
        "tensor_sum" if of_mecha => {
            let place = |name| get(name).expect("the tool's parameters");
            ("tensor-sum", vec![("alpha", place("width")), ("beta", place("offset")), ("round", 1.0)])
        }
        "tensor_sum" => ("tensor-sum", both()),
        "train_difference" => ("train-difference", both()),
        "add_cosine_a" => ("cosine-a", [both(), vec![("rescale", 0.0)]].concat()),
        "add_cosine_b" => ("cosine-b", [both(), vec![("rescale", 0.0)]].concat()),
        "cosine_a" => ("cosine-a", both()),
        "cosine_b" => ("cosine-b", both()),
        "geometric_sum" | "geometric" => ("geometric", both()),
        "add_perpendicular" => ("perpendicular", both()),
        "rotate" => ("rotate", named(&["alignment", "alpha", "centralization"])),
        "geometric_median" => ("geometric-median", named(&["eps", "maxiter", "ftol"])),
        "add_difference_ties" => (
            "ties",
            vec![("lambda", get("alpha").unwrap_or(1.0)), ("density", get("k").unwrap_or(1.0)), ("elect", 2.0)],
        ),
        "n_model_stock" => ("model-stock", vec![("filter_wise", 1.0), ("neighbours", 1.0)]),
        "weighted_subtraction" => ("weighted-subtraction", both()),
        "sum_twice" => ("sum-twice", both()),
        "triple_sum" => ("triple-sum", both()),
        "euclidean_add_difference" => ("euclidean-add-difference", both()),
        "multiply_difference" => ("multiply-difference", both()),
        "similarity_add_difference" => ("similarity-add-difference", both()),
        "smooth_add" => ("smooth-add", both()),
        "sigmoid" => ("sigmoid", both()),
        "max" => ("max", both()),
        other => panic!("{other} is neither here nor among those without counterpart"),
    }
}

impl Case {
    fn new(case: &Value) -> Outcome<Self> {
        let (method, parameters) = counterpart(case);
        let mut recipe = Recipe::new(method)?;
        for (name, value) in parameters {
            recipe = recipe.parameter(name, value);
        }
        recipe.include = vec![Regex::new("^(matrix|vector|odd|conv|column)$")?];
        let inputs = &case["inputs"];
        let path = |name: &Value| fixture("methods/inputs").join(format!("{}.safetensors", text(name)));
        let roles = ["a", "b", "c"].iter().map(|role| &inputs[*role]);
        let listed = inputs["models"].as_array().into_iter().flatten();
        let mut models: Vec<PathBuf> = roles.chain(listed).filter(|name| name.is_string()).map(path).collect();
        let mut base = inputs["base"].is_string().then(|| path(&inputs["base"]));
        if inputs["c"].is_string() && recipe.method.about().base == Base::Optional {
            base = models.pop();
        }
        if text(&case["method"]) == "weighted_sum" {
            let alpha = case["parameters"]["alpha"].as_f64().ok_or("a weighted sum has an alpha")?;
            recipe = recipe.weights(&[1.0 - alpha, alpha]);
        }
        Ok(Self { recipe, models, base, unstable: names(&case["unstable"]), nonfinite: names(&case["nonfinite"]) })
    }
}

/// Merges by the library, in so many threads.
fn merge(
    recipe: &Recipe,
    models: &[PathBuf],
    base: Option<&Path>,
    threads: usize,
) -> Outcome<BTreeMap<String, Tensor>> {
    let folder = tempdir()?;
    let out = folder.path().join("out.safetensors");
    let settings = Settings { threads: NonZeroUsize::new(threads), ..settings() };
    let models = Models::open(models, base, &IoMode::Auto.into())?;
    let mut plan = Plan::new(recipe, &models, &settings, Control::none())?;
    survey(&mut plan, &settings)?;
    plan.emit(&Target::new(&out), &settings, Control::none())?;
    Ok(read(&out)?.tensors)
}

/// Gives each merge what its method measures of all of them.
fn survey(plan: &mut Plan<'_>, settings: &Settings) -> Outcome {
    let mut nodes: Vec<_> = plan
        .tensors
        .iter_mut()
        .filter_map(|planned| match &mut planned.operation {
            Operation::Merge(node) => Some(node),
            _ => None,
        })
        .collect();
    let Some(method) = nodes.first().map(|node| node.method) else { return Ok(()) };
    let terms: Vec<Terms> = nodes.iter().map(|node| node.terms.clone()).collect();
    let data = nodes.iter().map(|node| node.data(settings, Control::none())).collect::<Result<Vec<_>, _>>()?;
    let found = method.survey(&terms, &data)?;
    drop(data);
    nodes.iter_mut().for_each(|node| node.terms.survey.clone_from(&found));
    Ok(())
}

#[test]
fn methods_compute_what_the_tools_do() -> Outcome {
    let document: Value = serde_json::from_slice(&std::fs::read(fixture("methods/diffusion.json"))?)?;
    let expected = read(&fixture("methods/diffusion.safetensors"))?.tensors;
    let cases = document["cases"].as_array().ok_or("there are cases")?;
    assert!(cases.len() > 70, "only {} cases were found", cases.len());
    let (mut compared, mut wrong) = (0, Vec::new());
    let mut unused: BTreeSet<&str> = WITHOUT_COUNTERPART.iter().map(|(start, _)| *start).collect();
    for case in cases {
        let name = text(&case["name"]);
        if let Some((start, _)) = WITHOUT_COUNTERPART.iter().find(|(start, _)| name.starts_with(start)) {
            unused.remove(start);
            continue;
        }
        let case = Case::new(case).map_err(|error| format!("{name}: {error}"))?;
        let merged = merge(&case.recipe, &case.models, case.base.as_deref(), 2).map_err(|e| format!("{name}: {e}"))?;
        if case.recipe.method.about().base == Base::Last {
            let [models @ .., base] = &case.models[..] else { return Err("there is a last model".into()) };
            let again = merge(&case.recipe, models, Some(base), 1)?;
            for tensor in ["matrix", "vector", "odd", "conv", "column"] {
                assert_eq!(again[tensor], merged[tensor], "{name}: --base is the last model");
            }
        }
        let inputs = case.models.iter().chain(&case.base).map(|path| Ok(read(path)?.tensors));
        let inputs = inputs.collect::<Outcome<Vec<_>>>()?;
        for tensor in ["matrix", "vector", "odd", "conv", "column"] {
            let Some(wanted) = expected.get(&format!("{name}/{tensor}")) else {
                assert!(case.unstable.contains(tensor), "{name} has no result for {tensor}");
                continue;
            };
            let (wanted, got) = (wanted.values(), merged[tensor].values());
            assert_eq!(wanted.len(), got.len(), "{name}/{tensor}");
            let inputs: Vec<Vec<f64>> = inputs.iter().map(|input| input[tensor].values()).collect();
            let off = |i: usize| {
                let largest = inputs.iter().map(|input| input[i].abs()).fold(0.0, f64::max);
                (wanted[i] - got[i]).abs() / (1e-6 * largest)
            };
            // What is no number in a tool is one here, or the tool's infinity.
            assert!(case.nonfinite.contains(tensor) || wanted.iter().all(|value| value.is_finite()), "{name}/{tensor}");
            let numbers: Vec<usize> = (0..wanted.len()).filter(|i| wanted[*i].is_finite()).collect();
            let worst = numbers.iter().map(|i| off(*i)).fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
            compared += numbers.len();
            if worst.is_nan() || worst > 1.0 {
                wrong.push(format!("{name}/{tensor} is {worst:.2} times as far off as it may be"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(unused.is_empty(), "no such cases: {unused:?}");
    assert!(compared > 38_000, "only {compared} numbers were compared");
    Ok(())
}

/// The methods that these tests are about, and how many models they are given here.
const TOOLS: [(&str, usize); 19] = [
    ("add-difference", 3),
    ("train-difference", 3),
    ("similarity-add-difference", 3),
    ("multiply-difference", 3),
    ("euclidean-add-difference", 3),
    ("smooth-add", 3),
    ("perpendicular", 3),
    ("sum-twice", 3),
    ("triple-sum", 3),
    ("weighted-subtraction", 2),
    ("sigmoid", 2),
    ("tensor-sum", 2),
    ("cosine-a", 2),
    ("cosine-b", 2),
    ("rotate", 2),
    ("geometric", 2),
    ("geometric-median", 3),
    ("max", 3),
    ("lcsc", 3),
];

const SHAPES: [&[u64]; 12] =
    [&[], &[0], &[3, 0], &[0, 3], &[1], &[7], &[5, 1], &[1, 257], &[2, 3, 5], &[4, 3, 3, 3], &[4, 3, 1, 1], &[70, 90]];

/// A model with a tensor of each shape.
fn shapes(mut value: impl FnMut() -> f64, dtype: DType) -> Model {
    SHAPES.iter().fold(Model::new(), |model, shape| {
        let count = shape.iter().product::<u64>() as usize;
        let values: Vec<f64> = (0..count).map(|_| value()).collect();
        model.with(&format!("{shape:?}"), dtype, shape, &values)
    })
}

/// Models written to a folder.
struct Written {
    _folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

impl Written {
    fn new(models: &[Model]) -> Outcome<Self> {
        let folder = tempdir()?;
        let write = |(index, model): (usize, &Model)| model.write(folder.path().join(format!("m{index}.st")));
        let paths = models.iter().enumerate().map(write).collect::<Outcome<_>>()?;
        Ok(Self { _folder: folder, paths })
    }

    /// As many of the models as are wanted, merged.
    fn merge(&self, count: usize, recipe: &Recipe, threads: usize) -> Outcome<BTreeMap<String, Tensor>> {
        merge(recipe, &self.paths[..count], None, threads)
    }
}

/// A recipe with parameters as on the command line: `name a=1 b=2`.
fn recipe(text: &str) -> Outcome<Recipe> {
    let mut words = text.split(' ');
    let mut recipe = Recipe::new(words.next().unwrap_or_default())?;
    for word in words {
        let (name, value) = word.split_once('=').ok_or("a parameter has a value")?;
        recipe.set(name, value)?;
    }
    Ok(recipe)
}

fn uniform(seed: u64, dtype: DType) -> Model {
    let mut random = Random(seed);
    shapes(move || random.uniform(), dtype)
}

/// That tensors hold nearly the same numbers.
#[track_caller]
fn assert_near(what: &str, got: &BTreeMap<String, Tensor>, wanted: &BTreeMap<String, Tensor>) {
    assert_eq!(got.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{what}");
    for (name, wanted) in wanted {
        for (i, (got, wanted)) in got[name].values().iter().zip(wanted.values()).enumerate() {
            assert!((got - wanted).abs() <= 1e-6, "{what}: {name}[{i}] is {got} and not {wanted}");
        }
    }
}

#[test]
fn every_shape_merges_the_same_in_any_number_of_threads() -> Outcome {
    for (dtype, seed) in [(DType::F32, 10), (DType::BF16, 20), (DType::F16, 30)] {
        let written = Written::new(&[uniform(seed, dtype), uniform(seed + 1, dtype), uniform(seed + 2, dtype)])?;
        for (method, count) in TOOLS {
            let one = written.merge(count, &recipe(method)?, 1).map_err(|error| format!("{method}: {error}"))?;
            assert_eq!(one.len(), SHAPES.len(), "{method}");
            assert_eq!(written.merge(count, &recipe(method)?, 5)?, one, "{method}");
            for (name, tensor) in &one {
                assert!(tensor.values().iter().all(|value| value.is_finite()), "{method} of {dtype} {name}");
            }
        }
    }
    Ok(())
}

#[test]
fn large_tensors_merge_the_same_in_any_number_of_threads() -> Outcome {
    let model = |seed: u64| {
        let mut random = Random(seed);
        Model::new().with("wide", DType::BF16, &[3, 90_001], &random.values(270_003)).with(
            "tall",
            DType::BF16,
            &[90_001, 3],
            &random.values(270_003),
        )
    };
    let written = Written::new(&[model(1), model(2), model(3)])?;
    for (method, count) in TOOLS {
        let one = written.merge(count, &recipe(method)?, 1).map_err(|error| format!("{method}: {error}"))?;
        assert_eq!(written.merge(count, &recipe(method)?, 7)?, one, "{method}");
    }
    Ok(())
}

#[test]
fn models_that_are_equal_or_zero_stay_so() -> Outcome {
    let same = uniform(1, DType::F32);
    let equal = Written::new(&[same.clone(), same.clone(), same])?;
    let zero = || shapes(|| 0.0, DType::F32);
    let zeros = Written::new(&[zero(), zero(), zero()])?;
    let wanted = read(&equal.paths[0])?.tensors;
    for (method, count) in TOOLS.iter().chain(&[("cosine-a rescale=0", 2), ("cosine-b rescale=0", 2)]) {
        let merged = zeros.merge(*count, &recipe(method)?, 2)?;
        assert!(merged.values().all(|tensor| tensor.values().iter().all(|value| *value == 0.0)), "{method} of zeros");
        // That one is no mean of models.
        if *method != "sigmoid" {
            assert_near(method, &equal.merge(*count, &recipe(method)?, 2)?, &wanted);
        }
    }
    Ok(())
}

#[test]
fn parameters_at_their_ends_give_a_model_back() -> Outcome {
    let written = Written::new(&[uniform(1, DType::F32), uniform(2, DType::F32), uniform(3, DType::F32)])?;
    let models = written.paths.iter().map(|path| Ok(read(path)?.tensors)).collect::<Outcome<Vec<_>>>()?;
    let ends: [(&str, usize); 33] = [
        ("add-difference alpha=0", 0),
        ("add-difference alpha=0 clamp_to_ab=1", 0),
        ("train-difference alpha=0", 0),
        ("similarity-add-difference alpha=0", 0),
        ("multiply-difference alpha=0 beta=0", 0),
        ("multiply-difference alpha=1 beta=1", 1),
        ("euclidean-add-difference alpha=0", 0),
        ("euclidean-add-difference alpha=1", 1),
        ("smooth-add alpha=0", 0),
        ("perpendicular alpha=0", 0),
        ("sum-twice alpha=0 beta=0", 0),
        ("sum-twice alpha=1 beta=0", 1),
        ("sum-twice alpha=0.3 beta=1", 2),
        ("triple-sum alpha=0 beta=0", 0),
        ("triple-sum alpha=1 beta=0", 1),
        ("triple-sum alpha=0 beta=1", 2),
        ("weighted-subtraction alpha=0 beta=1", 0),
        ("weighted-subtraction alpha=1 beta=0", 0),
        ("tensor-sum alpha=0 beta=0.4", 0),
        ("tensor-sum alpha=1 beta=0", 1),
        ("tensor-sum alpha=1.5 beta=0.4 round=1", 1),
        ("tensor-sum alpha=-1 beta=7", 1),
        ("cosine-a alpha=9", 1),
        ("cosine-b alpha=9", 1),
        ("cosine-b alpha=-9", 0),
        ("cosine-a alpha=1.1 rescale=0", 1),
        ("cosine-a alpha=-2.1 rescale=0", 0),
        ("cosine-b alpha=-2.1 rescale=0", 0),
        ("rotate alignment=0 alpha=0", 0),
        ("rotate alignment=1 alpha=1", 1),
        ("geometric alpha=0", 0),
        ("geometric alpha=1", 1),
        ("geometric-median maxiter=0", 3),
    ];
    for (method, index) in ends {
        let name = method.split(' ').next().unwrap_or_default();
        let count = TOOLS.iter().find(|(tool, _)| *tool == name).ok_or("a tool's method")?.1;
        let merged = written.merge(count, &recipe(method)?, 2)?;
        match models.get(index) {
            Some(model) => assert_near(method, &merged, model),
            None => assert_near(method, &merged, &written.merge(3, &Recipe::new("linear")?, 2)?),
        }
    }
    Ok(())
}

fn vectors(models: &[&[f64]]) -> Outcome<Written> {
    Written::new(&models.iter().map(|values| Model::new().f32("x", values)).collect::<Vec<_>>())
}

#[test]
fn methods_do_what_they_say_on_numbers_done_by_hand() -> Outcome {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let (a, b, c) = (&[1.0, -0.5, 0.0, nan][..], &[3.0, 0.1, -1.0, 2.0][..], &[2.0, 0.3, -1.0, 1.0][..]);
    let written = vectors(&[a, b, c])?;
    let value = |method: &str, count: usize| -> Outcome<Vec<f64>> {
        Ok(written.merge(count, &recipe(method)?, 1)?["x"].values().iter().map(|x| (x * 1e5).round() / 1e5).collect())
    };
    let same = |got: Vec<f64>, wanted: &[f64]| assert_eq!(format!("{got:?}"), format!("{wanted:?}"));
    same(value("add-difference alpha=2", 3)?, &[3.0, -0.9, 0.0, nan]);
    same(value("add-difference alpha=5 clamp_to_ab=1", 3)?, &[3.0, -0.5, 0.0, nan]);
    same(value("max", 3)?, &[3.0, 0.3, 0.0, nan]);
    same(value("tensor-sum alpha=0.5 beta=0.25", 2)?, &[1.0, 0.1, -1.0, nan]);
    same(value("tensor-sum alpha=0.5 beta=0.75", 2)?, &[3.0, -0.5, 0.0, 2.0]);
    same(value("tensor-sum alpha=0.4 beta=0", 2)?, &[3.0, -0.5, 0.0, nan]);
    same(value("tensor-sum alpha=0.4 beta=0 round=1", 2)?, &[3.0, 0.1, 0.0, nan]);
    same(value("sum-twice alpha=0.25 beta=0.5", 3)?, &[1.75, -0.025, -0.625, nan]);
    same(value("smooth-add alpha=0.5", 3)?[3..].to_vec(), &[nan]);

    // The second model's change is (1, 1), the first's (1, 0): what is at right angles is (0, 1).
    let written = vectors(&[&[3.0, 1.0], &[3.0, 2.0], &[2.0, 1.0]])?;
    assert_eq!(written.merge(3, &recipe("perpendicular alpha=0.5")?, 1)?["x"].values(), [3.0, 1.5]);
    // Of a triangle's corners and a point within it, that point.
    let written = vectors(&[&[0.0, 0.0], &[1.0, 1.0], &[3.0, 0.0], &[0.0, 3.0]])?;
    let median = written.merge(4, &recipe("geometric-median")?, 1)?["x"].values();
    assert!((median[0] - 1.0).abs() < 0.05 && (median[1] - 1.0).abs() < 0.05, "{median:?}");
    // Where a difference is not finite, smoothing does not hide it.
    let written = vectors(&[&[1.0; 5], &[1.0, 1.0, inf, 1.0, 1.0], &[1.0; 5]])?;
    let smoothed = written.merge(3, &recipe("smooth-add")?, 1)?["x"].values();
    assert_eq!(format!("{smoothed:?}"), format!("{:?}", [1.0, 1.0, nan, 1.0, 1.0]));
    Ok(())
}

#[test]
fn lcsc_takes_weights_of_any_sign_that_add_up_to_one() -> Outcome {
    let written = vectors(&[&[1.0, 2.0], &[1.5, 2.0], &[2.0, -1.0]])?;
    let weighted = |weights: &[f64]| Ok::<_, Error>(Recipe::new("lcsc")?.weights(weights));
    assert_eq!(written.merge(3, &weighted(&[-20.0, 24.5, -3.5])?, 1)?["x"].values(), [9.75, 12.5]);
    assert_eq!(written.merge(3, &weighted(&[0.0, 0.0, 1.0])?, 1)?["x"].values(), [2.0, -1.0]);
    assert_near("equal weights", &written.merge(3, &recipe("lcsc")?, 1)?, &written.merge(3, &recipe("linear")?, 1)?);
    let normalized = Recipe { normalize: Some(true), ..weighted(&[1.0, 1.0, 2.0])? };
    assert_eq!(written.merge(3, &normalized, 1)?["x"].values(), [1.625, 0.5]);
    let error = written.merge(3, &weighted(&[1.0, 1.0, 2.0])?, 1).expect_err("these add up to 4").to_string();
    assert!(error.contains("add up to 1, not 4") && error.contains("--normalize"), "{error}");
    // What the checkpoints have in common does not cost precision: 1 + 2⁻²³ at large weights that cancel.
    let step = 2f64.powi(-23);
    let written = vectors(&[&[1.0], &[1.0 + step], &[1.0]])?;
    let merged = written.merge(3, &weighted(&[-1000.0, 1000.0, 1.0])?, 1)?["x"].values();
    assert_eq!(merged, [1.0 + 1000.0 * step]);
    Ok(())
}

#[test]
fn what_a_method_cannot_do_is_refused() -> Outcome {
    let written = Written::new(&[uniform(1, DType::F32), uniform(2, DType::F32), uniform(3, DType::F32)])?;
    let refused = |count: usize, method: &str| -> Outcome<String> {
        match written.merge(count, &recipe(method)?, 1) {
            Ok(_) => Err(format!("{method} of {count} models was not refused").into()),
            Err(error) => Ok(error.to_string()),
        }
    };
    let message = refused(2, "add-difference")?;
    assert!(message.contains("2 models and a base, which is the last model where --base names none"), "{message}");
    let message = refused(2, "weighted-subtraction alpha=2 beta=0.5")?;
    assert!(message.contains("alpha 2 and beta 0.5"), "{message}");
    let message = refused(3, "euclidean-add-difference alpha=1.2")?;
    assert!(message.contains("from 0 to 1, not 1.2"), "{message}");
    let message = refused(2, "geometric-median eps=0")?;
    assert!(message.contains("above 0, not 0"), "{message}");
    let with_nan = Model::new().with("x", DType::F32, &[2, 2], &[1.0, f64::NAN, 0.0, 1.0]);
    let eye = Model::new().with("x", DType::F32, &[2, 2], &[1.0, 0.0, 0.0, 1.0]);
    let written = Written::new(&[with_nan, eye])?;
    let message = written.merge(2, &recipe("rotate")?, 1).expect_err("a NaN has no direction").to_string();
    assert!(message.contains("`x`") && message.contains("not finite"), "{message}");
    Ok(())
}

#[test]
fn the_tools_methods_are_all_here() {
    let listed: BTreeSet<&str> = METHODS.iter().map(|method| method.about().name).collect();
    assert!(TOOLS.iter().all(|(name, _)| listed.contains(name)));
    let last = METHODS.iter().filter(|method| method.about().base == Base::Last).map(|method| method.about().name);
    let three: BTreeSet<&str> = last.collect();
    assert!(three.iter().all(|name| TOOLS.contains(&(name, 3))), "a method with a base at the end is tested with it");
}
