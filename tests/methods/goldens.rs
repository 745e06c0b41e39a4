//! Every case that mergekit was run on: the same numbers, the same refusals, and a list of what differs and why.

use crate::merge::settings;
use crate::model::{Contents, Outcome, fixture, read};
use ckptmerge::IoMode;
use ckptmerge::merge::Base;
use ckptmerge::recipe::{Models, Plan, Recipe, Setting, Target};
use ckptmerge::stream::Control;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::tempdir;

/// Cases in which we do otherwise, and why.
const DEVIATIONS: [(&str, Ours, &str); 12] = [
    ("linear_zero_sum", Ours::Refuses, "weights that add up to 0 cannot be normalized; mergekit divides by 0"),
    ("multislerp_zero_sum", Ours::Refuses, "weights that add up to 0 cannot be normalized; mergekit divides by 0"),
    ("ties_1.5", Ours::Refuses, "a share is not above 1; mergekit takes it for 1"),
    ("ties_negative_density", Ours::Refuses, "a share is not below 0; mergekit takes it for 0"),
    ("nearswap_negative", Ours::Refuses, "a distance is not below 0; mergekit gives the base"),
    ("task_arithmetic_only_base", Ours::Refuses, "a merge of no models is a slip"),
    ("linear_base_without_weight", Ours::Merges, "weights have defaults"),
    ("linear_no_weight", Ours::Merges, "weights have defaults"),
    ("task_arithmetic_no_weight", Ours::Merges, "weights have defaults"),
    ("slerp_no_t", Ours::Merges, "t has a default"),
    ("nearswap_no_t", Ours::Merges, "t has a default"),
    ("slerp_no_base", Ours::Merges, "without a base, the first model is where t is 0"),
];

#[derive(Clone, Copy, PartialEq)]
enum Ours {
    Refuses,
    Merges,
}

/// How many cases of the file came to what.
#[derive(Debug, Default, PartialEq)]
struct Count {
    compared: usize,
    refused: usize,
    deviations: usize,
    tensors: usize,
}

/// Parameters that our recipe holds elsewhere.
const ELSEWHERE: [&str; 3] = ["weight", "normalize", "normalize_weights"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| f64::from(u8::from(value.as_bool().expect("a number or a switch"))))
}

/// Runs a case as its configuration is to be read.
fn run(case: &Value) -> Outcome<Contents> {
    let path = |name: &str| fixture(&format!("methods/inputs/{}.safetensors", name.trim_end_matches("_again")));
    let mut recipe = Recipe::new(case["method"].as_str().ok_or("a case has a method")?)?;
    let about = recipe.method.about();
    let shared = case["parameters"].as_object().ok_or("parameters are a table")?;
    let named: Vec<&str> = case["models"].as_array().ok_or("a list")?.iter().flat_map(Value::as_str).collect();
    let mut models: Vec<(&str, &Value)> =
        named.into_iter().zip(case["per_model"].as_array().ok_or("a list")?).collect();
    let mut base = case["base"].as_str();
    let nothing = Value::Object(serde_json::Map::new());
    if about.base == Base::None {
        // A base is one more model, unless it is among them.
        let more = base.take().filter(|base| models.iter().all(|(name, _)| name != base));
        models.extend(more.map(|base| (base, &nothing)));
    } else {
        models.retain(|(name, _)| Some(*name) != base);
    }

    let weights: Vec<Option<f64>> =
        models.iter().map(|(_, own)| own.get("weight").or(shared.get("weight")).map(number)).collect();
    recipe.weights = weights.into_iter().collect();
    // mergekit's linear divides by the sum unless it is told not to.
    recipe.normalize = (about.name == "linear").then_some(true);
    for name in ["normalize", "normalize_weights"] {
        recipe.normalize = shared.get(name).map(|value| number(value) != 0.0).or(recipe.normalize);
    }
    // Task arithmetic lets the others' parameters pass.
    let knows = |name: &str| about.name != "task-arithmetic" || about.parameters.iter().any(|known| known.name == name);
    for (name, value) in shared.iter().filter(|(name, _)| !ELSEWHERE.contains(&name.as_str()) && knows(name)) {
        recipe.parameters.insert(name.clone(), vec![Setting::constant(number(value))]);
    }
    let mut each: BTreeMap<&str, Vec<Setting>> = BTreeMap::new();
    for (_, own) in &models {
        for (name, value) in own.as_object().ok_or("parameters are a table")? {
            if !ELSEWHERE.contains(&name.as_str()) && knows(name) {
                each.entry(name).or_default().push(Setting::constant(number(value)));
            }
        }
    }
    recipe.parameters.extend(each.into_iter().map(|(name, settings)| (name.to_owned(), settings)));

    let paths: Vec<PathBuf> = models.iter().map(|(name, _)| path(name)).collect();
    let models = Models::open(&paths, base.map(path).as_deref(), &IoMode::Auto.into())?;
    let folder = tempdir()?;
    let out = folder.path().join("out.safetensors");
    Plan::new(&recipe, &models, &settings(), Control::none())?.emit(
        &Target::new(&out),
        &settings(),
        Control::none(),
    )?;
    read(&out)
}

fn names(case: &Value, key: &str) -> Vec<String> {
    case[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Compares a tensor with what mergekit gave.
fn assert_close(label: &str, ours: &[f64], theirs: &[f64], largest: &[f64], gap: f64) {
    assert_eq!(ours.len(), theirs.len(), "{label}");
    for (i, ((ours, theirs), largest)) in ours.iter().zip(theirs).zip(largest).enumerate() {
        let distance = (ours - theirs).abs();
        assert!(distance <= 1e-6 * largest + gap, "{label}[{i}]: {ours}, mergekit {theirs}: {distance:e} apart");
    }
}

#[test]
fn every_case_of_mergekit_comes_out_the_same() -> Outcome {
    let cases: Value = serde_json::from_slice(&std::fs::read(fixture("methods/cases.json"))?)?;
    let cases = cases["cases"].as_array().ok_or("cases are a list")?;
    let expected = read(&fixture("methods/expected.safetensors"))?;
    let mut count = Count::default();
    for case in cases {
        let name = case["name"].as_str().ok_or("a case has a name")?;
        let result = run(case);
        let deviation = DEVIATIONS.iter().find(|(of, ..)| *of == name).map(|(_, ours, _)| *ours);
        count.deviations += usize::from(deviation.is_some());
        let fails = case["error"].as_bool() == Some(true);
        match deviation {
            Some(Ours::Refuses) => {
                assert!(result.is_err(), "{name} is merged, but should be refused");
                // What is not compared is counted.
                count.tensors += expected.tensors.keys().filter(|key| key.starts_with(&format!("{name}/"))).count();
                continue;
            }
            Some(Ours::Merges) => {
                assert!(fails, "{name} is no deviation");
                result.map_err(|error| format!("{name}: {error}"))?;
                continue;
            }
            _ if fails => {
                assert!(result.is_err(), "{name} is merged, but mergekit fails: {}", case["message"]);
                count.refused += 1;
                continue;
            }
            _ => {}
        }
        let merged = result.map_err(|error| format!("{name}: {error}"))?;
        let mut inputs = names(case, "models");
        inputs.extend(case["base"].as_str().map(str::to_owned));
        let inputs = inputs
            .iter()
            .map(|name| read(&fixture(&format!("methods/inputs/{}.safetensors", name.trim_end_matches("_again")))))
            .collect::<Outcome<Vec<_>>>()?;
        let gap = case["gap"].as_f64().unwrap_or(0.0);
        let nonfinite = names(case, "nonfinite");
        assert!(names(case, "unstable").is_empty(), "{name} is said to be unstable, for which there is no rule");
        assert!(names(case, "error_tensors").is_empty(), "{name} fails in part, for which there is no rule");
        for (tensor, ours) in &merged.tensors {
            let ours = ours.values();
            assert!(nonfinite.is_empty(), "{name} divides by 0 in mergekit, for which there is no rule");
            assert!(ours.iter().all(|x| x.is_finite()), "{name}/{tensor} is not finite");
            let label = format!("{name}/{tensor}");
            let theirs = expected.values(&label);
            let all: Vec<Vec<f64>> = inputs.iter().map(|input| input.values(tensor)).collect();
            let largest: Vec<f64> =
                (0..theirs.len()).map(|i| all.iter().map(|values| values[i].abs()).fold(0.0, f64::max)).collect();
            assert_close(&label, &ours, &theirs, &largest, gap);
            count.tensors += 1;
        }
        count.compared += 1;
    }
    assert_eq!(count.tensors, expected.tensors.len(), "a result of mergekit was compared with nothing: {count:?}");
    assert_eq!((cases.len(), count.deviations), (159, DEVIATIONS.len()), "a deviation is of no case: {count:?}");
    assert_eq!(count.compared + count.refused + DEVIATIONS.len(), cases.len(), "{count:?}");
    assert!(DEVIATIONS.iter().all(|(.., why)| !why.is_empty()));
    Ok(())
}
