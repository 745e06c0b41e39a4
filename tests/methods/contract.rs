//! What every method of the table promises, and the lists of those that do not, each with its reason.

use super::{Setup, evaluate_in, set, setups};
use crate::model::{Outcome, Random};
use ckptmerge::merge::Terms;
use std::collections::BTreeSet;

/// Methods of which models that are all the same do not give that model.
const CHANGE_EQUALS: [(&str, &str); 7] = [
    ("nearswap", "moves by t toward the model, and is it only where it is near"),
    ("arcee-fusion", "takes the model's values only where they matter"),
    ("add-difference", "adds what the second changed to the first, which has it already"),
    ("smooth-add", "adds what the second changed to the first, which has it already"),
    ("sum-twice", "what others have for a base is its third model"),
    ("triple-sum", "what others have for a base is its third model"),
    ("sigmoid", "its weights do not add up to 1"),
];

/// Methods of which models that are the base are it only but for rounding.
const ROUNDED: [(&str, &str); 3] = [
    ("nearswap", "moves a share of the way by a product"),
    ("sum-twice", "sums three models by weights, as the base is one"),
    ("triple-sum", "sums three models by weights, as the base is one"),
];

/// Methods in which the order of models has a meaning, parameters being at their defaults.
const ORDERED: [(&str, &str); 9] = [
    ("train-difference", "the first is added to, the second's change is added"),
    ("smooth-add", "the first is added to, the second's change is added"),
    ("perpendicular", "the first is added to, the second's change is added"),
    ("weighted-subtraction", "the second is taken away from the first"),
    ("sigmoid", "the first counts less than the second"),
    ("tensor-sum", "the window is the second's"),
    ("cosine-a", "what is alike is the first's"),
    ("cosine-b", "what is alike is the first's"),
    ("rotate", "the first is turned toward the second"),
];

/// Methods by which one element that is not finite makes all of the tensor so: it is in the inner products or norms that
/// everything is multiplied with. In others it stays where it is.
const SPREADING: [&str; 11] = [
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model-stock",
    "sce",
    "euclidean-add-difference",
    "perpendicular",
    "geometric-median",
    "cosine-a",
    "cosine-b",
];

/// Methods that refuse what is not finite, except where parameters make them weighted sums.
const REFUSING: [(&str, &str); 1] = [("rotate", "of such numbers there are no singular vectors")];

/// Methods whose choices are random, where they leave any.
const RANDOM: [&str; 4] = ["dare-ties", "dare-linear", "della", "della-linear"];

/// Shapes without elements, with one, and others at which loops go wrong.
const SHAPES: [&[u64]; 14] = [
    &[],
    &[0],
    &[3, 0],
    &[0, 3],
    &[1],
    &[1, 1],
    &[1, 7],
    &[7, 1],
    &[2, 1, 3],
    &[3, 4, 2],
    &[17],
    &[2, 3, 3, 3],
    &[1030],
    &[3, 1030],
];

fn count(shape: &[u64]) -> usize {
    shape.iter().product::<u64>() as usize
}

fn is_in(list: &[(&str, &str)], setup: &Setup) -> bool {
    list.iter().any(|(name, why)| *name == setup.name() && !why.is_empty())
}

/// Terms in all the ways in which a method's switches can stand: each parameter that is 0 or 1 by default as the other.
pub(super) fn variants(setup: &Setup, shape: &[u64]) -> Vec<Terms> {
    let plain = setup.terms(shape);
    let mut all = vec![plain.clone()];
    for parameter in setup.method.about().parameters {
        if ![0.0, 1.0].contains(&parameter.default) {
            continue;
        }
        let mut other = plain.clone();
        set(&mut other, parameter.name, 1.0 - parameter.default);
        all.push(other);
    }
    // Vectors along the first dimension are looked at only if tensors are not flattened.
    let mut rows = plain;
    if set(&mut rows, "nuslerp_flatten", 0.0) && set(&mut rows, "nuslerp_row_wise", 1.0) {
        all.push(rows);
    }
    all.retain(|terms| setup.method.check(terms).is_ok());
    assert!(!all.is_empty(), "{} refuses its own defaults", setup.name());
    all
}

#[track_caller]
fn assert_near(setup: &Setup, found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len(), "{}", setup.name());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let distance = (found - expected).abs();
        assert!(distance <= bound, "{} of {}: [{i}] is {found}, not {expected}", setup.name(), setup.models);
    }
}

#[test]
fn equal_models_merge_to_that_model() -> Outcome {
    let mut random = Random(1);
    for setup in setups().iter().filter(|setup| !is_in(&CHANGE_EQUALS, setup)) {
        for shape in SHAPES {
            let mut inputs = setup.numbers(&mut random, count(shape));
            let model = inputs[0].clone();
            inputs[..setup.models].fill(model.clone());
            let found = setup.run(&setup.terms(shape), &inputs)?;
            assert_near(setup, &found, &model, 2e-6);
        }
    }
    Ok(())
}

#[test]
fn models_that_are_the_base_merge_to_it() -> Outcome {
    let mut random = Random(2);
    for setup in setups().iter().filter(|setup| setup.has_base) {
        for shape in SHAPES {
            let base: Vec<f32> = random.values(count(shape)).iter().map(|x| *x as f32).collect();
            for terms in variants(setup, shape) {
                let found = setup.run(&terms, &vec![base.clone(); setup.inputs()])?;
                assert_near(setup, &found, &base, if is_in(&ROUNDED, setup) { 1e-6 } else { 0.0 });
            }
        }
    }
    Ok(())
}

#[test]
fn the_order_of_models_does_not_matter() -> Outcome {
    let mut random = Random(3);
    for setup in setups().iter().filter(|setup| setup.models > 1 && !is_in(&ORDERED, setup)) {
        // Two directions of a single element can be opposite, between which the first model decides.
        for shape in SHAPES.iter().filter(|shape| count(shape) != 1) {
            let inputs = setup.numbers(&mut random, count(shape));
            let mut terms = setup.terms(shape);
            terms.weights = [0.5, 0.3, 0.2][..setup.models].to_vec();
            // That method's add up to 1.
            terms.normalize |= setup.name() == "lcsc";
            let found = setup.run(&terms, &inputs)?;
            let mut turned = inputs.clone();
            turned[..setup.models].rotate_left(1);
            let companions = &mut turned[setup.models..][..setup.companions()];
            companions.rotate_left(companions.len().min(1));
            terms.weights.rotate_left(1);
            assert_near(setup, &found, &setup.run(&terms, &turned)?, 1e-5);
        }
    }
    Ok(())
}

#[test]
fn zeros_stay_zeros() -> Outcome {
    for setup in setups() {
        for shape in SHAPES {
            for terms in variants(&setup, shape) {
                let found = setup.run(&terms, &vec![vec![0.0; count(shape)]; setup.inputs()])?;
                assert_near(&setup, &found, &vec![0.0; count(shape)], 0.0);
            }
        }
    }
    Ok(())
}

#[test]
fn numbers_come_out_as_numbers() -> Outcome {
    let mut random = Random(4);
    for setup in setups() {
        for shape in SHAPES {
            let inputs = setup.numbers(&mut random, count(shape));
            for terms in variants(&setup, shape) {
                let found = setup.run(&terms, &inputs)?;
                assert_eq!(found.len(), count(shape));
                assert!(found.iter().all(|x| x.is_finite()), "{} {shape:?}: {found:?}", setup.name());
            }
        }
    }
    Ok(())
}

/// Whether an element that is not finite makes another so, of a tensor with rows of `row` elements.
fn reaches(setup: &Setup, terms: &Terms, row: usize, from: usize, to: usize) -> bool {
    // Of these, only sce weighs a model that is alone.
    let spreads = SPREADING.contains(&setup.name()) && (setup.models > 1 || setup.name() == "sce");
    let (same_row, same_column) = (from / row == to / row, from % row == to % row);
    if from == to || !spreads {
        return from == to;
    }
    match setup.name() {
        "model-stock" if terms.is_on("filter_wise") => same_row,
        "nuslerp" if terms.is_on("nuslerp_flatten") => true,
        "nuslerp" if terms.is_on("nuslerp_row_wise") => same_column,
        "nuslerp" => same_row,
        // Not rescaled, it hangs on the columns' cosines alone.
        "cosine-a" if !terms.is_on("rescale") => same_column,
        _ => true,
    }
}

/// Whether the element that is not finite is of an input that the method does not look at there.
fn is_unused(setup: &Setup, index: usize) -> bool {
    match setup.name() {
        // One model is returned as it is, whatever the base.
        "multislerp" => setup.models == 1 && index == 1,
        // Rows are copied from one model, the first half from the second.
        "tensor-sum" => index == 0,
        _ => false,
    }
}

#[test]
fn what_is_not_finite_shows() -> Outcome {
    let mut random = Random(5);
    let (shape, row, at) = ([4, 12], 12, 17);
    for setup in setups() {
        let clean = setup.numbers(&mut random, 48);
        for terms in variants(&setup, &shape) {
            // A model of which nothing is kept shows nothing.
            if terms.get("density") == 0.0 || terms.get("select_topk") == 0.0 {
                continue;
            }
            for index in (0..setup.inputs()).filter(|index| !is_unused(&setup, *index)) {
                for (value, density) in [(f32::NAN, 1.0), (f32::INFINITY, 1.0), (f32::NAN, 0.5), (f32::INFINITY, 0.5)] {
                    let mut terms = terms.clone();
                    if density != 1.0 && !set(&mut terms, "density", density) {
                        continue;
                    }
                    let mut inputs = clean.clone();
                    inputs[index][at] = value;
                    let label = format!("{} with {value} in input {index}, by {terms:?}", setup.name());
                    let found = match setup.run(&terms, &inputs) {
                        Err(error) if is_in(&REFUSING, &setup) => {
                            let says = error.to_string();
                            assert!(says.contains("not finite") && says.contains(&terms.tensor), "{label}: {says}");
                            continue;
                        }
                        found => found?,
                    };
                    assert!(!value.is_nan() || found[at].is_nan(), "{label}: {found:?}");
                    for (i, x) in found.iter().enumerate() {
                        let is_finite = !reaches(&setup, &terms, row, at, i);
                        assert_eq!(x.is_finite(), is_finite, "{label}: [{i}] of {found:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_cut_of_the_work_changes_nothing() -> Outcome {
    let mut random = Random(6);
    for setup in setups() {
        for shape in [&[5000][..], &[50, 100], &[10, 20, 5, 5]] {
            let inputs = setup.numbers(&mut random, 5000);
            let mut terms = setup.terms(shape);
            set(&mut terms, "density", 0.5);
            let whole = setup.run(&terms, &inputs)?;
            for pieces in [2, 3, 50] {
                let cut = evaluate_in(pieces, setup.method, &terms, &inputs)?;
                let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&whole), bits(&cut), "{} in {pieces} pieces", setup.name());
            }
        }
    }
    Ok(())
}

#[test]
fn densities_keep_exactly_their_share() -> Outcome {
    let mut checked = 0;
    for setup in setups().into_iter().filter(|setup| setup.models == 1) {
        if !setup.method.about().parameters.iter().any(|parameter| parameter.name == "density") {
            continue;
        }
        checked += 1;
        let name = setup.name();
        for n in 1..=20u64 {
            let change: Vec<f32> =
                (0..n).map(|i| (i as f32 * 7.0 % 23.0 + 1.0) * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
            for tenths in 0..=10 {
                let density = f64::from(tenths) / 10.0;
                let mut terms = setup.terms(&[n]);
                set(&mut terms, "density", density);
                set(&mut terms, "epsilon", 0.05);
                set(&mut terms, "rescale", 0.0);
                let found = setup.run(&terms, &[change.clone(), vec![0.0; n as usize]])?;
                let kept: Vec<f32> = found.iter().copied().filter(|x| *x != 0.0).collect();
                assert!(found.iter().zip(&change).all(|(x, change)| *x == 0.0 || x == change), "{name}");
                let share = (density * n as f64) as usize;
                let wanted = match tenths {
                    0 => 0..=0,
                    10 => n as usize..=n as usize,
                    _ if RANDOM.contains(&name) => 0..=n as usize,
                    _ if name == "ties" => share.max(1)..=share.max(1),
                    _ => share..=share,
                };
                assert!(wanted.contains(&kept.len()), "{name} keeps {} of {n} at {density}", kept.len());
                if name == "ties" {
                    let least = kept.iter().map(|x| x.abs()).fold(f32::INFINITY, f32::min);
                    let dropped = change.iter().filter(|x| !kept.contains(x));
                    assert!(dropped.into_iter().all(|x| x.abs() < least), "{name} dropped a larger change");
                }
            }
        }
    }
    assert!(checked >= 7, "only {checked} methods have a density");
    Ok(())
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    let refused = [
        ("dare-linear", "density", -0.1),
        ("dare-ties", "density", -0.1),
        ("breadcrumbs", "gamma", -0.1),
        ("ties", "rescale", 3.0),
        ("ties", "elect", 0.5),
        ("ties", "global", -1.0),
        ("multislerp", "eps", -1.0),
        ("karcher", "max_iter", -1.0),
        ("karcher", "max_iter", 1.5),
        ("karcher", "max_iter", 1_000_000_000.0),
        ("geometric-median", "maxiter", 1_000_000_000.0),
        ("karcher", "tol", -1.0),
        ("fisher", "epsilon", -1.0),
        ("della", "density", 0.9),
        ("della", "density", 0.1),
    ];
    for (name, parameter, value) in refused {
        let setup = setups().into_iter().find(|setup| setup.name() == name).expect("the table has it");
        let mut terms = setup.terms(&[4]);
        assert!(setup.method.check(&terms).is_ok());
        assert!(set(&mut terms, parameter, value));
        let about = setup.method.about();
        let known = about.parameters.iter().find(|known| known.name == parameter).expect("it is in the table");
        assert!(known.check(about, known.default).is_ok(), "{name}: the default of {parameter}");
        let checked = known.check(about, value).and_then(|()| setup.method.check(&terms));
        let message = checked.expect_err("it is refused");
        assert!(message.contains(name) && message.contains(&value.to_string()), "{message}");
    }
}

#[test]
fn the_lists_of_exceptions_are_of_methods_that_are_there() {
    let setups = setups();
    let with_reasons = CHANGE_EQUALS.iter().chain(&ORDERED).chain(&ROUNDED).chain(&REFUSING);
    let listed = with_reasons.map(|(name, _)| *name).chain(SPREADING).chain(RANDOM);
    for name in listed {
        assert!(setups.iter().any(|setup| setup.name() == name), "there is no {name}");
    }
}

/// Those that are of no need hide what they are made for.
#[test]
fn exceptions_are_needed() -> Outcome {
    let mut random = Random(7);
    let (mut changing, mut ordered) = (BTreeSet::new(), BTreeSet::new());
    for setup in setups() {
        let mut inputs = setup.numbers(&mut random, 96);
        let terms = setup.terms(&[8, 12]);
        let differs = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3);
        if setup.models > 1 {
            let found = setup.run(&terms, &inputs)?;
            inputs[..setup.models].rotate_left(1);
            if is_in(&ORDERED, &setup) && differs(&found, &setup.run(&terms, &inputs)?) {
                ordered.insert(setup.name());
            }
        }
        let model = inputs[0].clone();
        inputs[..setup.models].fill(model.clone());
        if differs(&setup.run(&terms, &inputs)?, &model) {
            changing.insert(setup.name());
        }
    }
    assert_eq!(changing, CHANGE_EQUALS.map(|(name, _)| name).into());
    assert_eq!(ordered, ORDERED.map(|(name, _)| name).into());
    Ok(())
}

#[test]
fn directions_that_cancel_are_refused_or_joined_by_a_line() -> Outcome {
    let setups = setups();
    let multislerp = |models| {
        let wanted = |setup: &&Setup| setup.name() == "multislerp" && setup.models == models && !setup.has_base;
        *setups.iter().find(wanted).expect("the table has it")
    };
    let (a, b) = (vec![1.0, -2.0, 0.5], vec![-1.0, 2.0, -0.5]);
    let two = multislerp(2);
    assert_eq!(two.run(&two.terms(&[3]), &[a.clone(), b.clone()])?, [0.0; 3]);
    let three = multislerp(3);
    let mut terms = three.terms(&[3]);
    terms.weights = vec![0.5, 0.5, 0.0];
    let Err(error) = three.run(&terms, &[a.clone(), b.clone(), a.clone()]) else { panic!("directions cancel out") };
    assert!(error.to_string().contains("layers.0.weight") && error.to_string().contains("cancel"), "{error}");

    // mergekit's arc between opposite vectors hangs on rounding; here it is a line.
    let nuslerp = *setups.iter().find(|setup| setup.name() == "nuslerp" && !setup.has_base).expect("the table has it");
    let mut terms = nuslerp.terms(&[3]);
    terms.weights = vec![0.25, 0.75];
    assert_eq!(nuslerp.run(&terms, &[a.clone(), b.clone()])?, [-0.5, 1.0, -0.25]);
    // Nor has a direction a tangent toward its opposite.
    for setup in setups.iter().filter(|setup| setup.name() == "karcher" && setup.models > 1) {
        let mut inputs = vec![a.clone(); setup.inputs()];
        inputs[1] = b.clone();
        let found = setup.run(&setup.terms(&[3]), &inputs)?;
        assert!(found.iter().all(|x| x.is_finite()), "{found:?}");
    }
    Ok(())
}

#[test]
fn fisher_weighs_by_what_models_are_sure_of() -> Outcome {
    let setup = *setups().iter().find(|setup| setup.name() == "fisher" && setup.models == 2).expect("the table has it");
    let mut terms = setup.terms(&[4]);
    terms.weights = vec![1.0, 3.0];
    let models = [vec![1.0, 1.0, 1.0, 1.0], vec![2.0, 2.0, 2.0, 2.0]];
    let mut inputs = [models[0].clone(), models[1].clone(), vec![3.0, 0.0, 0.0, 1e-30], vec![1.0, 0.5, 0.0, 0.0]];
    // The third is sure of nothing, the fourth of less than counts.
    assert_eq!(setup.run(&terms, &inputs)?, [1.5, 2.0, 1.75, 1.75]);
    set(&mut terms, "epsilon", 1e-35);
    assert_eq!(setup.run(&terms, &inputs)?, [1.5, 2.0, 1.75, 1.0]);
    inputs[3][2] = -1e-9;
    let Err(error) = setup.run(&terms, &inputs) else { panic!("a mean of squares is not negative") };
    let says = error.to_string();
    assert!(says.contains("1 negative elements in companion 2") && says.contains("layers.0.weight"), "{says}");
    terms.weights = vec![1.0, -1.0];
    assert!(setup.method.check(&terms).is_err());
    Ok(())
}

#[test]
fn distances_of_nothing_count_as_something() -> Outcome {
    let setup = *setups().iter().find(|setup| setup.name() == "nearswap").expect("the table has it");
    let mut terms = setup.terms(&[1]);
    set(&mut terms, "t", 1e-7);
    let found = setup.run(&terms, &[vec![1e-9], vec![0.0]])?;
    assert_near(&setup, &found, &[1e-10], 1e-15);
    Ok(())
}
