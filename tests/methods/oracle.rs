//! Large tensors, of several tiles and blocks, against the definitions written down plainly in f64, with sorting.

use super::{evaluate, method, set};
use crate::model::{Outcome, Random};
use ckptmerge::merge::Terms;

const N: usize = 300_000;

/// Multiples of 2⁻¹⁶, of which differences are exact.
fn numbers(random: &mut Random, size: f64) -> Vec<f32> {
    (0..N).map(|_| ((random.uniform() * size * 65536.0).round() / 65536.0) as f32).collect()
}

/// Two or three models near a base, and the base.
fn inputs(seed: u64, models: usize) -> Vec<Vec<f32>> {
    let mut random = Random(seed);
    let base = numbers(&mut random, 1.0);
    let mut inputs: Vec<Vec<f32>> = (0..models)
        .map(|_| base.iter().zip(numbers(&mut random, 0.3)).map(|(base, change)| base + change).collect())
        .collect();
    inputs.push(base);
    inputs
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(*x)).collect()
}

/// What each model changed in the base, which is last.
fn changes(inputs: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let (base, models) = inputs.split_last().expect("there is a base");
    let change = |model: &Vec<f32>| model.iter().zip(base).map(|(x, b)| f64::from(*x) - f64::from(*b)).collect();
    models.iter().map(change).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn combine(vectors: &[Vec<f64>], coefficients: &[f64]) -> Vec<f64> {
    let element = |i: usize| vectors.iter().zip(coefficients).map(|(vector, c)| c * vector[i]).sum();
    (0..vectors.first().map_or(0, Vec::len)).map(element).collect()
}

/// The magnitude of rank `rank` in ascending order.
fn sorted(values: impl Iterator<Item = f64>, rank: usize) -> f64 {
    let mut all: Vec<f64> = values.map(f64::abs).collect();
    all.sort_by(f64::total_cmp);
    all[rank]
}

/// Compares all elements but those where a choice hangs on rounding: at most `open` of them.
#[track_caller]
fn assert_near(label: &str, found: &[f32], expected: &[f64], open: usize) {
    assert_eq!(found.len(), expected.len());
    let apart =
        |(found, expected): &(&f32, &f64)| (f64::from(**found) - **expected).abs() > 2e-6 * expected.abs().max(1.0);
    let wrong: Vec<_> = found.iter().zip(expected).enumerate().filter(|(_, pair)| apart(pair)).collect();
    assert!(wrong.len() <= open, "{label}: {} elements are wrong, the first {:?}", wrong.len(), wrong[0]);
    assert!(found.iter().all(|x| x.is_finite()), "{label}");
}

fn terms(
    name: &str,
    shape: &[u64],
    models: usize,
    weights: &[f64],
    parameters: &[(&str, f64)],
    has_base: bool,
) -> Terms {
    let mut terms = Terms::new(method(name).about(), "w", shape, models, has_base);
    terms.weights = weights.to_vec();
    for (name, value) in parameters {
        assert!(set(&mut terms, name, *value), "{name}");
    }
    terms
}

const SHAPES: [&[u64]; 3] = [&[300_000], &[300, 1000], &[6, 50_000]];

#[test]
pub(super) fn trimmed_changes_are_those_that_sorting_keeps() -> Outcome {
    let inputs = inputs(1, 3);
    let changes = changes(&inputs);
    let base = wide(&inputs[3]);
    let weights = [1.0, 0.7, -0.4];
    for (name, gamma, normalize) in
        [("ties", 0.0, true), ("breadcrumbs", 0.05, false), ("breadcrumbs-ties", 0.05, false)]
    {
        let density = 0.2;
        let kept: Vec<Vec<f64>> = changes
            .iter()
            .zip(weights)
            .map(|(change, weight)| {
                let (target, top) = ((density * N as f64) as usize, (gamma * N as f64) as usize);
                let low = sorted(change.iter().copied(), N - target - top);
                let high = sorted(change.iter().copied(), N - 1 - top);
                change.iter().map(|x| if x.abs() < low || x.abs() > high { 0.0 } else { weight * x }).collect()
            })
            .collect();
        let expected: Vec<f64> = (0..N)
            .map(|i| {
                let votes: f64 = kept.iter().map(|kept| kept[i]).sum();
                let sign = if votes >= 0.0 { 1.0 } else { -1.0 };
                let agrees = |kept: &&(usize, f64)| name == "breadcrumbs" || kept.1 * sign > 0.0;
                let all: Vec<(usize, f64)> = kept.iter().map(|kept| kept[i]).enumerate().collect();
                let sum: f64 = all.iter().filter(agrees).map(|(_, x)| x).sum();
                let divisor: f64 = all.iter().filter(agrees).map(|(model, _)| weights[*model]).sum();
                base[i] + if normalize && divisor != 0.0 { sum / divisor } else { sum }
            })
            .collect();
        let mut parameters = vec![("density", density)];
        if name != "ties" {
            parameters.push(("gamma", gamma));
        }
        for shape in &SHAPES[..2] {
            let terms = terms(name, shape, 3, &weights, &parameters, true);
            let found = evaluate(method(name), &terms, &inputs)?;
            // Votes that cancel to within rounding.
            assert_near(name, &found, &expected, 3);
        }
    }
    Ok(())
}

#[test]
pub(super) fn means_on_the_sphere_are_those_of_vectors() -> Outcome {
    let inputs = inputs(2, 2);
    let all: Vec<Vec<f64>> = inputs.iter().map(|input| wide(input)).collect();
    let norms: Vec<f64> = all.iter().map(|x| dot(x, x).sqrt()).collect();
    let scale = |vector: &[f64], by: f64| vector.iter().map(|x| x * by).collect::<Vec<_>>();

    // By vectors, a step at a time.
    let units: Vec<Vec<f64>> = all.iter().zip(&norms).map(|(x, norm)| scale(x, 1.0 / norm)).collect();
    let normalized = |vector: Vec<f64>| scale(&vector, 1.0 / dot(&vector, &vector).sqrt());
    let mut point = normalized(combine(&units, &[1.0; 3]));
    for _ in 0..10 {
        let factors: Vec<f64> =
            units.iter().map(|unit| dot(unit, &point).acos()).map(|angle| angle / angle.sin() / 3.0).collect();
        let along: f64 = units.iter().zip(&factors).map(|(unit, factor)| factor * dot(unit, &point)).sum();
        let tangent: Vec<f64> = combine(&units, &factors).iter().zip(&point).map(|(t, u)| t - along * u).collect();
        let step = dot(&tangent, &tangent).sqrt();
        if step < 1e-5 {
            break;
        }
        point = normalized(point.iter().zip(&tangent).map(|(u, t)| step.cos() * u + step.sin() / step * t).collect());
    }
    let karcher = scale(&point, norms.iter().sum::<f64>() / 3.0);

    let weights = [0.5, 0.3, 0.2];
    let mean = normalized(combine(&units, &weights));
    let multislerp = scale(&mean, norms.iter().zip(weights).map(|(norm, weight)| norm * weight).sum());
    for shape in SHAPES {
        let found = evaluate(method("karcher"), &terms("karcher", shape, 3, &weights, &[], false), &inputs)?;
        assert_near("karcher", &found, &karcher, 0);
        let found = evaluate(method("multislerp"), &terms("multislerp", shape, 3, &weights, &[], false), &inputs)?;
        assert_near("multislerp", &found, &multislerp, 0);
    }
    Ok(())
}

/// The arc between two vectors.
fn arc(t: f64, a: &[f64], b: &[f64]) -> Vec<f64> {
    let angle = (dot(a, b) / dot(a, a).sqrt() / dot(b, b).sqrt()).acos();
    let (p, q) = (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin());
    a.iter().zip(b).map(|(a, b)| p * a + q * b).collect()
}

#[test]
pub(super) fn arcs_are_those_of_their_vectors() -> Outcome {
    let inputs = inputs(3, 2);
    let base = wide(&inputs[2]);
    let [a, b] = &changes(&inputs)[..] else { return Err("two models".into()) };
    let weights = [0.3, 0.7];
    let plus_base = |vector: Vec<f64>| vector.iter().zip(&base).map(|(x, b)| x + b).collect::<Vec<_>>();
    let run = |shape: &[u64], flatten: f64, row_wise: f64| {
        let parameters = [("nuslerp_flatten", flatten), ("nuslerp_row_wise", row_wise)];
        evaluate(method("nuslerp"), &terms("nuslerp", shape, 2, &weights, &parameters, true), &inputs)
    };
    let whole = plus_base(arc(0.7, a, b));
    for shape in SHAPES {
        assert_near("flattened", &run(shape, 1.0, 0.0)?, &whole, 0);
    }
    assert_near("a vector", &run(&[N as u64], 0.0, 1.0)?, &whole, 0);
    for (shape, row) in [(&[300, 1000][..], 1000), (&[6, 50_000], 50_000), (&[100, 60, 50], 50), (&[2, 50_000, 3], 3)] {
        let rows: Vec<f64> = a.chunks(row).zip(b.chunks(row)).flat_map(|(a, b)| arc(0.7, a, b)).collect();
        assert_near("rows", &run(shape, 0.0, 0.0)?, &plus_base(rows), 0);
    }
    for shape in [&[300, 1000][..], &[6, 50_000], &[100_000, 3], &[30, 100, 100]] {
        let columns = N / shape[0] as usize;
        let mut expected = vec![0.0; N];
        for column in 0..columns {
            let of = |x: &[f64]| x[column..].iter().step_by(columns).copied().collect::<Vec<_>>();
            let values = arc(0.7, &of(a), &of(b));
            expected[column..].iter_mut().step_by(columns).zip(values).for_each(|(out, value)| *out = value);
        }
        assert_near("columns", &run(shape, 0.0, 1.0)?, &plus_base(expected), 0);
    }
    Ok(())
}

#[test]
pub(super) fn model_stock_goes_as_far_as_the_angle_says() -> Outcome {
    let inputs = inputs(4, 3);
    let changes = changes(&inputs);
    let base = wide(&inputs[3]);
    let stock = |changes: &[&[f64]]| {
        let cosine = |i: usize, j: usize| {
            let (a, b) = (changes[i], changes[j]);
            dot(a, b) / dot(a, a).sqrt() / dot(b, b).sqrt()
        };
        let mean = (cosine(0, 1) + cosine(0, 2) + cosine(1, 2)) / 3.0;
        let t = 3.0 * mean / (1.0 + 2.0 * mean);
        (0..changes[0].len()).map(|i| t * (changes[0][i] + changes[1][i] + changes[2][i]) / 3.0).collect::<Vec<_>>()
    };
    for (row, filter_wise) in [(N, 0.0), (1000, 1.0), (50_000, 1.0)] {
        let mut expected = Vec::new();
        for start in (0..N).step_by(row) {
            let rows: Vec<&[f64]> = changes.iter().map(|change| &change[start..start + row]).collect();
            expected.extend(stock(&rows).iter().zip(&base[start..]).map(|(x, b)| x + b));
        }
        let shape = [(N / row) as u64, row as u64];
        let terms = terms("model-stock", &shape, 3, &[1.0; 3], &[("filter_wise", filter_wise)], true);
        assert_near("model-stock", &evaluate(method("model-stock"), &terms, &inputs)?, &expected, 0);
    }
    Ok(())
}

#[test]
pub(super) fn what_differs_most_is_selected() -> Outcome {
    let inputs = inputs(5, 3);
    let changes = changes(&inputs);
    let base = wide(&inputs[3]);
    let variance: Vec<f64> = (0..N)
        .map(|i| {
            let mean = changes.iter().map(|change| change[i]).sum::<f64>() / 3.0;
            changes.iter().map(|change| (change[i] - mean).powi(2)).sum::<f64>() / 3.0
        })
        .collect();
    for topk in [0.1, 1.0] {
        let differing = variance.iter().filter(|x| **x > 1e-20).count();
        let count = ((differing as f64 * topk) as usize).min(N);
        let least = if topk < 1.0 { sorted(variance.iter().copied(), N - count) } else { 0.0 };
        let kept: Vec<Vec<f64>> = changes
            .iter()
            .map(|change| change.iter().zip(&variance).map(|(x, v)| if *v < least { 0.0 } else { *x }).collect())
            .collect();
        let squares: Vec<f64> = kept.iter().map(|kept| dot(kept, kept)).collect();
        let weight = |model: usize| squares[model] / squares.iter().sum::<f64>();
        let expected: Vec<f64> = (0..N)
            .map(|i| {
                let votes: f64 = kept.iter().map(|kept| kept[i]).sum();
                let agreeing = (0..3).filter(|&m| if votes >= 0.0 { kept[m][i] > 0.0 } else { kept[m][i] < 0.0 });
                let (sum, divisor) =
                    agreeing.fold((0.0, 0.0), |(sum, divisor), m| (sum + weight(m) * kept[m][i], divisor + weight(m)));
                base[i] + sum / divisor.max(1e-6)
            })
            .collect();
        let terms = terms("sce", &[300, 1000], 3, &[1.0; 3], &[("select_topk", topk)], true);
        // Variances that are the least one but for rounding.
        assert_near("sce", &evaluate(method("sce"), &terms, &inputs)?, &expected, 8);
    }
    Ok(())
}

#[test]
pub(super) fn fusion_takes_what_scores_high() -> Outcome {
    let mut inputs = inputs(6, 1);
    // Few changes are large.
    let (models, base) = inputs.split_at_mut(1);
    models[0].iter_mut().zip(&base[0]).for_each(|(x, b)| *x = b + 30.0 * (*x - b).powi(3));
    let (x, b) = (wide(&inputs[0]), wide(&inputs[1]));
    for row in [1000, 50, N] {
        let softmax = |values: &[f64]| {
            let sum: f64 = values.iter().map(|x| x.exp()).sum();
            values.iter().map(|x| x.exp() / sum + 1e-8).collect::<Vec<_>>()
        };
        let mut scores = Vec::new();
        for (x, b) in x.chunks(row).zip(b.chunks(row)) {
            let divergence: f64 = softmax(x).iter().zip(softmax(b)).map(|(p, q)| p * (p / q).ln()).sum();
            scores.extend(x.iter().zip(b).map(|(x, b)| (x - b).abs() * divergence));
        }
        let quantile = |q: f64| sorted(scores.iter().copied(), (q * (N - 1) as f64) as usize);
        let threshold = quantile(0.5) + 1.5 * (quantile(0.75) - quantile(0.25));
        let expected: Vec<f64> = (0..N).map(|i| if scores[i] >= threshold { x[i] } else { b[i] }).collect();
        assert!(expected.iter().zip(&x).filter(|(out, x)| out == x).count() > N / 100, "something is taken");
        let terms = terms("arcee-fusion", &[(N / row) as u64, row as u64], 1, &[1.0], &[], true);
        // Scores that are the threshold but for rounding.
        assert_near("arcee-fusion", &evaluate(method("arcee-fusion"), &terms, &inputs)?, &expected, 30);
    }
    Ok(())
}

#[test]
pub(super) fn elementwise_methods_do_as_their_formulas() -> Outcome {
    let inputs = inputs(7, 3);
    let changes = changes(&inputs);
    let base = wide(&inputs[3]);
    let epsilon = 0.1f32;
    let active = |i: usize| -> Vec<usize> { (0..3).filter(|&m| changes[m][i].abs() > f64::from(epsilon)).collect() };
    let ram: Vec<f64> = (0..N)
        .map(|i| base[i] + active(i).iter().map(|&m| changes[m][i]).sum::<f64>() / active(i).len().max(1) as f64)
        .collect();
    let parameters = [("epsilon", f64::from(epsilon))];
    let found = evaluate(method("ram"), &terms("ram", &[300, 1000], 3, &[1.0; 3], &parameters, true), &inputs)?;
    assert_near("ram", &found, &ram, 0);

    let mut counts = [[0.0f64; 2]; 3];
    for i in 0..N {
        let active = active(i);
        active.iter().for_each(|&m| counts[m][usize::from(active.len() == 1)] += 1.0);
    }
    let factors = counts.map(|[shared, alone]| 1.0 + 0.5 * (shared / alone).min(3.0));
    let plus: Vec<f64> = (0..N)
        .map(|i| match active(i)[..] {
            [m] => base[i] + factors[m] * changes[m][i],
            _ => ram[i],
        })
        .collect();
    let parameters = [("epsilon", f64::from(epsilon)), ("r", 0.5), ("alpha", 3.0)];
    let found =
        evaluate(method("ramplus-tl"), &terms("ramplus-tl", &[N as u64], 3, &[1.0; 3], &parameters, true), &inputs)?;
    assert_near("ramplus-tl", &found, &plus, 0);

    let near: Vec<f64> = (0..N).map(|i| base[i] + (0.02 / changes[0][i].abs()).min(1.0) * changes[0][i]).collect();
    let near: Vec<f64> = near.iter().zip(&base).map(|(x, b)| if x.is_nan() { *b } else { *x }).collect();
    let pair = [inputs[0].clone(), inputs[3].clone()];
    let found = evaluate(method("nearswap"), &terms("nearswap", &[N as u64], 1, &[1.0], &[("t", 0.02)], true), &pair)?;
    assert_near("nearswap", &found, &near, 0);

    let weights = [1.0, -0.5, 0.25];
    let task: Vec<f64> = combine(&changes, &weights).iter().zip(&base).map(|(x, b)| b + 0.7 * x).collect();
    let found = evaluate(
        method("task-arithmetic"),
        &terms("task-arithmetic", &[N as u64], 3, &weights, &[("lambda", 0.7)], true),
        &inputs,
    )?;
    assert_near("task-arithmetic", &found, &task, 0);
    Ok(())
}
