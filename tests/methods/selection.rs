//! Order statistics by passes over data, against sorting.

use super::{evaluate, method, node, set, settings};
use crate::model::{Outcome, Random};
use ckptmerge::merge::{Block, Shader, Terms, select};
use ckptmerge::stream::Control;
use proptest::prelude::*;

/// The magnitudes at `ranks` of each input, by the library.
fn selected(inputs: &[Vec<f32>], ranks: &[Vec<u64>]) -> Outcome<Vec<Vec<u32>>> {
    let method = method("linear");
    let terms = Terms::new(method.about(), "w", &[inputs[0].len() as u64], inputs.len(), false);
    let data = [node(method, &terms, inputs)];
    let data = data.each_ref().map(|node| node.data(&settings(), Control::none()));
    let data = data.into_iter().collect::<ckptmerge::Result<Vec<_>>>()?;
    let numbers = || Shader::each((0..inputs.len()).map(|i| format!("x[{i}]")));
    let found = select(&data, ranks, numbers, |_: &mut Block<'_>| {})?;
    Ok(found.iter().map(|found| found.iter().map(|x| x.to_bits()).collect()).collect())
}

/// The same by sorting.
fn sorted(inputs: &[Vec<f32>], ranks: &[Vec<u64>]) -> Vec<Vec<u32>> {
    let of = |(values, ranks): (&Vec<f32>, &Vec<u64>)| {
        let mut bits: Vec<u32> = values.iter().map(|x| x.to_bits() & 0x7fff_ffff).collect();
        bits.sort_unstable();
        ranks.iter().map(|rank| bits[*rank as usize]).collect()
    };
    inputs.iter().zip(ranks).map(of).collect()
}

/// The first, the last, the middle, and some at random.
fn ranks(random: &mut Random, n: u64) -> Vec<u64> {
    let mut ranks = vec![0, n - 1, n / 2, n / 10];
    ranks.extend((0..3).map(|_| random.below(n)));
    ranks
}

/// Numbers of some kind.
fn numbers(kind: usize, random: &mut Random, n: usize) -> Vec<f32> {
    let mut next = |_| {
        let bits = random.next();
        match kind {
            0 => random.uniform() as f32,
            1 => (bits % 3) as f32 - 1.0,
            2 => 0.25,
            3 => 0.0,
            4 => f32::from_bits(bits as u32),
            5 => f32::from_bits(bits as u32 % 5000),
            6 if bits.is_multiple_of(3) => f32::NAN,
            6 if bits % 3 == 1 => f32::NEG_INFINITY,
            7 => (random.uniform() * random.uniform() * random.uniform()).powi(9) as f32,
            8 if bits % 100 < 99 => 0.0,
            _ => random.uniform() as f32,
        }
    };
    (0..n).map(&mut next).collect()
}
const KINDS: usize = 9;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_selected_is_what_sorting_finds(
        n in prop_oneof![1usize..40, 1000usize..1100, 2000usize..5000],
        kinds in prop::collection::vec(0..KINDS, 1..4),
        seed: u64,
    ) {
        let mut random = Random(seed);
        let inputs: Vec<Vec<f32>> = kinds.iter().map(|kind| numbers(*kind, &mut random, n)).collect();
        let ranks: Vec<Vec<u64>> = inputs.iter().map(|_| ranks(&mut random, n as u64)).collect();
        prop_assert_eq!(selected(&inputs, &ranks).expect("memory can be read"), sorted(&inputs, &ranks));
    }

    #[test]
    fn any_bits_are_sorted(values in prop::collection::vec(any::<u32>(), 1..200), seed: u64) {
        let inputs = [values.into_iter().map(f32::from_bits).collect::<Vec<f32>>()];
        let ranks = [ranks(&mut Random(seed), inputs[0].len() as u64)];
        prop_assert_eq!(selected(&inputs, &ranks).expect("memory can be read"), sorted(&inputs, &ranks));
    }
}

/// From 262,144 elements on a sample guesses where to look; it may guess wrong, and must then look elsewhere.
#[test]
fn large_tensors_are_sampled_and_still_exact() -> Outcome {
    let mut random = Random(5);
    for n in [262_143, 262_144, 262_145, 300_001] {
        for kind in [0, 2, 4, 8] {
            let inputs = [numbers(kind, &mut random, n)];
            let ranks = [ranks(&mut random, n as u64)];
            assert_eq!(selected(&inputs, &ranks)?, sorted(&inputs, &ranks), "{n} numbers of kind {kind}");
        }
    }
    // In order, so that blocks are all unlike each other; in steps, so that a sample of blocks sees only some of them.
    let n = 400_000u64;
    let rising: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let steps: Vec<f32> = (0..n).map(|i| if i / 1024 % 7 == 3 { 1e30 } else { (i % 1024) as f32 }).collect();
    let mut falling = rising.clone();
    falling.reverse();
    // The sample is 64 evenly spaced blocks of 1024: where they alone are large, or small, it misleads.
    let blocks = n.div_ceil(1024);
    let sampled = |i: u64| (0..64).any(|index| index * blocks / 64 == i / 1024);
    let high: Vec<f32> = (0..n).map(|i| if sampled(i) { 1e9 + i as f32 } else { i as f32 }).collect();
    let low: Vec<f32> = (0..n).map(|i| if sampled(i) { i as f32 } else { 1e9 + i as f32 }).collect();
    let inputs = [rising, steps, falling, high, low];
    let ranks: Vec<Vec<u64>> = (0..5).map(|_| (0..=8).map(|i| (n - 1) * i / 8).collect()).collect();
    assert_eq!(selected(&inputs, &ranks)?, sorted(&inputs, &ranks));
    Ok(())
}

/// A number as BF16 has it.
fn narrow(x: f64) -> f32 {
    f32::from_bits((x as f32).to_bits().wrapping_add(0x8000) & 0xffff_0000)
}

/// Where a sample has one magnitude many times, that one is guessed: it may be the answer, next to it, or far from it.
#[test]
fn common_magnitudes_are_guessed_and_still_exact() -> Outcome {
    let mut random = Random(9);
    let n = 300_001u64;
    let mut make = |value: &mut dyn FnMut(&mut Random, u64) -> f32| (0..n).map(|i| value(&mut random, i)).collect();
    // Differences of 16-bit floats: few magnitudes, and more of them the smaller the numbers.
    let bf16: Vec<f32> = make(&mut |random, _| {
        let base = random.uniform();
        narrow(base + 0.01 * random.uniform()) - narrow(base)
    });
    // A few common ones with rare ones between, below and above.
    let rare: Vec<f32> = make(&mut |random, _| match random.below(100) {
        0 => random.uniform() as f32 * 4.0,
        other => (other % 3) as f32 - 1.0,
    });
    // Common in the 64 evenly spaced blocks of 1024 that are sampled, and nowhere else: all others are below, or above.
    let blocks = n.div_ceil(1024);
    let sampled = |i: u64| (0..64).any(|index| index * blocks / 64 == i / 1024);
    let low: Vec<f32> = make(&mut |_, i| if sampled(i) { 5.0 + (i % 3) as f32 } else { i as f32 * 1e-6 });
    let high: Vec<f32> = make(&mut |_, i| if sampled(i) { -5.0 - (i % 3) as f32 } else { 10.0 + i as f32 });
    // The least and the greatest magnitudes that there are.
    let ends: Vec<f32> = make(&mut |random, _| if random.below(2) == 0 { -0.0 } else { f32::NAN });
    let inputs = [bf16, rare, low, high, ends];
    for input in &inputs {
        let mut bits: Vec<u32> = input.iter().map(|x| x.to_bits() & 0x7fff_ffff).collect();
        bits.sort_unstable();
        let most = bits.chunk_by(|a, b| a == b).map(<[u32]>::len).max();
        assert!(most > Some(n as usize / 100), "a magnitude is common");
    }
    let mut all: Vec<u64> = (0..=20).map(|i| (n - 1) * i / 20).collect();
    all.extend((0..20).map(|_| random.below(n)));
    // Where one magnitude ends and the next begins.
    let edges = |input: &Vec<f32>| -> Vec<u64> {
        let mut bits: Vec<u32> = input.iter().map(|x| x.to_bits() & 0x7fff_ffff).collect();
        bits.sort_unstable();
        let long = bits.chunk_by(|a, b| a == b).scan(0, |end, run| {
            *end += run.len() as u64;
            Some((*end, run.len()))
        });
        let ends = long.filter(|(_, length)| *length > n as usize / 100).take(8).map(|(end, _)| end);
        ends.flat_map(|end| [end - 1, end.min(n - 1)]).collect()
    };
    let ranks: Vec<Vec<u64>> = inputs.iter().map(|input| [all.clone(), edges(input)].concat()).collect();
    assert_eq!(selected(&inputs, &ranks)?, sorted(&inputs, &ranks));
    Ok(())
}

/// The same, through a method: what is as large as the smallest that is kept is kept.
#[test]
fn thresholds_of_common_magnitudes_are_exact() -> Outcome {
    let mut random = Random(10);
    let n = 300_000;
    let base: Vec<f32> = (0..n).map(|_| narrow(random.uniform())).collect();
    let model: Vec<f32> = base.iter().map(|b| narrow(f64::from(*b) + 0.01 * random.uniform())).collect();
    let change: Vec<f32> = model.iter().zip(&base).map(|(x, b)| x - b).collect();
    let mut sizes: Vec<f32> = change.iter().map(|x| x.abs()).collect();
    sizes.sort_unstable_by(f32::total_cmp);
    for (name, gamma) in [("ties", 0.0), ("breadcrumbs", 0.01), ("breadcrumbs-ties", 0.2)] {
        for density in [0.01, 0.1, 0.3, 0.5, 0.7] {
            let mut terms = Terms::new(method(name).about(), "w", &[300, 1000], 1, true);
            assert!(set(&mut terms, "density", density) && (set(&mut terms, "gamma", gamma) || name == "ties"));
            let found = evaluate(method(name), &terms, &[model.clone(), base.clone()])?;
            let (kept, top) = ((density * n as f64) as usize, (gamma * n as f64) as usize);
            let first = (n - kept).saturating_sub(top);
            let range = sizes[first]..=sizes[first + kept - 1];
            for (i, found) in found.iter().enumerate() {
                let expected = base[i] + if range.contains(&change[i].abs()) { change[i] } else { 0.0 };
                assert_eq!(*found, expected, "{name} at {density}: [{i}] with a change of {}", change[i]);
            }
        }
    }
    Ok(())
}

#[test]
fn ranks_that_do_not_exist_end_the_search_too() -> Outcome {
    let inputs = [vec![3.0, -1.0, 2.0]];
    assert_eq!(selected(&inputs, &[vec![3, u64::MAX]])?, [[3f32.to_bits(); 2]]);
    let empty = [Vec::new()];
    let found = selected(&empty, &[vec![0]])?;
    assert!(f32::from_bits(found[0][0]).is_nan());
    assert_eq!(selected(&inputs, &[Vec::new()])?, [[0u32; 0]]);
    Ok(())
}

#[test]
fn several_tensors_are_selected_from_as_one() -> Outcome {
    let mut random = Random(8);
    let method = method("linear");
    let parts: Vec<Vec<f32>> = [5000, 0, 1, 300_000, 77].map(|n| numbers(0, &mut random, n)).into();
    let nodes: Vec<_> = parts
        .iter()
        .map(|part| {
            let terms = Terms::new(method.about(), "w", &[part.len() as u64], 1, false);
            node(method, &terms, std::slice::from_ref(part))
        })
        .collect();
    let data = nodes.iter().map(|node| node.data(&settings(), Control::none()));
    let data = data.collect::<ckptmerge::Result<Vec<_>>>()?;
    let all = [parts.concat()];
    let ranks = [ranks(&mut random, all[0].len() as u64)];
    let found = select(&data, &ranks, || Shader::of("x[0]"), |_| {})?;
    let found: Vec<Vec<u32>> = found.iter().map(|found| found.iter().map(|x| x.to_bits()).collect()).collect();
    assert_eq!(found, sorted(&all, &ranks));
    Ok(())
}
