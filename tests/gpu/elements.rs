//! What happens to an element: decoding, encoding, random numbers, powers; all against the CPU.

use super::{Call, decoded, encoded, random, spread};
use crate::model::Outcome as Test;
use ckptmerge::dtype::DType;
use ckptmerge::gpu::{power_table, power_words};
use ckptmerge::merge::Key;

const PACKED: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
const SMALL: [DType; 4] = [DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
const IDENTITY: &str = "fn value(l: Leaves, at: Place, k: u32) -> f32 { return l[0]; }";

fn width(dtype: DType) -> usize {
    dtype.bytes().expect("it has whole bytes")
}

/// Every code of a type of one or two bytes.
fn codes(dtype: DType) -> Vec<u8> {
    match width(dtype) {
        1 => (0..=u8::MAX).collect(),
        _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
    }
}

/// Whether kernels compute with a number.
fn is_usable(x: f32) -> bool {
    x == 0.0 || (x.is_finite() && x.abs() >= 2f32.powi(-80))
}

/// A blend of one input.
fn blend(from: DType, bytes: Vec<u8>, to: DType, body: &str) -> Test<Option<Vec<u8>>> {
    let count = bytes.len() / width(from);
    Call {
        body,
        leaves: &[(from, bytes)],
        output: Some(to),
        count,
        groups: count.div_ceil(2048),
        bytes: count * width(to),
        ..Call::default()
    }
    .run()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    decoded(DType::F32, bytes)
}

#[test]
pub(super) fn every_code_is_decoded_as_on_the_cpu() -> Test {
    for dtype in SMALL {
        let all = codes(dtype);
        let ordinary: Vec<u8> = all
            .chunks_exact(width(dtype))
            .filter(|code| is_usable(decoded(dtype, code)[0]))
            .flatten()
            .copied()
            .collect();
        let out = blend(dtype, ordinary.clone(), DType::F32, IDENTITY)?.ok_or("ordinary numbers are strange")?;
        assert!(out.len() > 4 * 200, "{dtype}");
        let (out, expected) = (floats(&out), decoded(dtype, &ordinary));
        for (index, (x, expected)) in out.iter().zip(&expected).enumerate() {
            assert_eq!(x.to_bits(), expected.to_bits(), "{dtype}: number {index}, {expected}");
        }
    }
    Ok(())
}

/// Each element eight times, so that a thread has nothing else.
#[test]
pub(super) fn what_is_not_ordinary_is_strange() -> Test {
    let of_eight = "var<private> flag: bool;
        fn value(l: Leaves, at: Place, k: u32) -> f32 {
            if (at.local % 8u == 0u) { flag = strange; }
            strange = false;
            return select(0.0, 1.0, flag);
        }";
    let of_one = "fn value(l: Leaves, at: Place, k: u32) -> f32 {
            strange = false;
            let x = load_one(at.local);
            let flag = strange;
            strange = false;
            return select(0.0, 1.0, flag);
        }";
    let borders = [0u32, 1, 0x7fffff, 0x800000, 0x177fffff, 0x17800000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fc00000];
    let borders: Vec<u8> = borders.iter().flat_map(|bits| [*bits, bits | 1 << 31]).flat_map(u32::to_le_bytes).collect();
    for dtype in PACKED {
        let all = if dtype == DType::F32 { borders.clone() } else { codes(dtype) };
        let repeated: Vec<u8> = all.chunks_exact(width(dtype)).flat_map(|code| code.repeat(8)).collect();
        let expected: Vec<bool> = decoded(dtype, &repeated).into_iter().map(|x| !is_usable(x)).collect();
        assert!(expected.contains(&true) && expected.contains(&false), "{dtype}");
        for body in [of_eight, of_one] {
            let out = blend(dtype, repeated.clone(), DType::F32, body)?.ok_or("the flag was not taken back")?;
            let strange: Vec<bool> = floats(&out).into_iter().map(|x| x == 1.0).collect();
            let wrong = strange.iter().zip(&expected).position(|(strange, expected)| strange != expected);
            assert_eq!(wrong, None, "{dtype}");
        }
    }
    for bits in [0x7fc00000u32, 0xff800000, 1, 0x177fffff] {
        for place in [0, 7, 100, 5000] {
            let mut bytes = vec![0; 4 * 5001];
            bytes[4 * place..4 * place + 4].copy_from_slice(&bits.to_le_bytes());
            assert_eq!(blend(DType::F32, bytes, DType::F32, IDENTITY)?, None, "{bits:x} at {place}");
        }
    }
    let overflow = "fn value(l: Leaves, at: Place, k: u32) -> f32 { return l[0] * l[0]; }";
    assert_eq!(blend(DType::F32, encoded(DType::F32, &[1.0, 3e20]), DType::F16, overflow)?, None);
    Ok(())
}

#[test]
pub(super) fn numbers_are_rounded_as_on_the_cpu() -> Test {
    for dtype in SMALL {
        let mut bits: Vec<u32> = random(1, 50_000);
        let values = decoded(dtype, &codes(dtype));
        let half = values.len() / 2;
        for pair in values[..half].windows(2).filter(|pair| is_usable(pair[0]) && is_usable(pair[1])) {
            let (low, high) = (pair[0], pair[1]);
            let middle = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
            for x in [low, middle, high].map(f32::to_bits) {
                bits.extend([x.saturating_sub(1), x, x + 1]);
            }
        }
        let limits =
            [65504.0, 65519.99, 65520.0, 65536.0, 57344.0, 61440.0, 448.0, 464.0, 479.9, 480.0, 1e30, f32::MAX];
        bits.extend(limits.map(f32::to_bits));
        let values: Vec<f32> = bits
            .into_iter()
            .flat_map(|bits| [bits, bits ^ 1 << 31])
            .map(f32::from_bits)
            .filter(|x| is_usable(*x))
            .collect();
        assert!(values.len() > 10_000, "{dtype}: {}", values.len());
        let expected = encoded(dtype, &values);
        let out = blend(DType::F32, encoded(DType::F32, &values), dtype, IDENTITY)?.ok_or("they are not strange")?;
        for (index, x) in values.iter().enumerate() {
            let at = index * width(dtype)..(index + 1) * width(dtype);
            assert_eq!(out[at.clone()], expected[at], "{dtype}: {x}, {:x}", x.to_bits());
        }
    }
    Ok(())
}

#[test]
pub(super) fn any_number_of_elements_goes_through() -> Test {
    for from in PACKED {
        for to in PACKED {
            for count in (1..20).chain([2047, 2048, 2049, 5003]) {
                let bytes = encoded(from, &spread(count as u64, count));
                let expected = encoded(to, &decoded(from, &bytes));
                assert_eq!(blend(from, bytes, to, IDENTITY)?, Some(expected), "{count} of {from} to {to}");
            }
        }
    }
    Ok(())
}

#[test]
pub(super) fn inputs_lie_side_by_side() -> Test {
    let count = 1003;
    let leaves: Vec<_> =
        PACKED.iter().zip(0..).map(|(dtype, seed)| (*dtype, encoded(*dtype, &spread(seed, count)))).collect();
    let columns: Vec<_> = leaves.iter().map(|(dtype, bytes)| decoded(*dtype, bytes)).collect();
    for (leaf, expected) in columns.iter().enumerate() {
        for load in ["l", "load_one(at.local)"] {
            let body = format!("fn value(l: Leaves, at: Place, k: u32) -> f32 {{ return {load}[{leaf}]; }}");
            let bytes = 4 * count;
            let call = Call { body: &body, leaves: &leaves, output: Some(DType::F32), count, bytes, ..Call::default() };
            assert_eq!(call.numbers()?, *expected, "{load}[{leaf}]");
        }
    }
    Ok(())
}

#[test]
fn random_numbers_are_those_of_the_cpu() -> Test {
    let body = "fn value(l: Leaves, at: Place, k: u32) -> f32 {
            return f32((random(at, word(0u), word(1u)) >> word(2u)) & 0xffffu);
        }";
    let count = 4001;
    let key = Key::new(5, "layer.weight", 3);
    let [low, high] = key.words();
    for start in [0, 123_457, (1 << 32) - 2000, 1 << 32, (7 << 32) + 99, (1 << 40) - 1] {
        let mut expected = vec![0; count];
        key.fill(start, &mut expected);
        for shift in [0, 16] {
            let words = &[low, high, shift];
            let (output, bytes) = (Some(DType::F32), 4 * count);
            let call = Call { body, output, count, start, words, groups: 2, bytes, ..Call::default() };
            let expected: Vec<f32> = expected.iter().map(|number| (number >> shift & 0xffff) as f32).collect();
            assert_eq!(call.numbers()?, expected, "from {start} on");
        }
    }
    Ok(())
}

/// The magnitudes' powers, from f64.
fn power(a: f32, b: f32, p: f64, q: f64, factor: f64) -> f64 {
    f64::from(a.abs()).powf(p) * f64::from(b.abs()).powf(q) * factor
}

fn powers(a: &[f32], b: &[f32], p: f64, q: f64, factor: f64) -> Test<Option<Vec<f32>>> {
    let body = "fn value(l: Leaves, at: Place, k: u32) -> f32 { return power_product(l[0], l[1], 0u, 6u); }";
    let mut words = power_words(p, q, factor).ok_or("the exponents are too large")?.to_vec();
    words.extend(power_table());
    let leaves = [(DType::F32, encoded(DType::F32, a)), (DType::F32, encoded(DType::F32, b))];
    let (output, count) = (Some(DType::F32), a.len());
    let (groups, bytes) = (count.div_ceil(2048), 4 * count);
    let call = Call { body, leaves: &leaves, output, count, words: &words, groups, bytes, ..Call::default() };
    Ok(call.run()?.map(|out| floats(&out)))
}

#[test]
pub(super) fn powers_are_those_of_f64() -> Test {
    let count = 20_000;
    // Of many magnitudes, and bits of a mantissa as few as those of BF16.
    let numbers = |seed: u64| -> Vec<f32> {
        random(seed, count)
            .into_iter()
            .map(|bits| f32::from_bits((bits & 0x807f_ffff) | ((107 + (bits >> 8 & 31)) << 23)))
            .zip(0..)
            .map(|(x, index)| if index % 3 == 0 { f32::from_bits(x.to_bits() & 0xffff_0000) } else { x })
            .collect()
    };
    let (a, b) = (numbers(1), numbers(2));
    let exponents =
        [(0.5, 0.5), (0.7, 0.3), (1.0 - 0.1, 0.1), (1.0, 0.0), (0.0, 1.0), (1.3, -0.3), (-0.75, 1.75), (3.0, 2.0)];
    for (p, q) in exponents {
        for factor in [1.0, -1.0, (std::f64::consts::PI * q).cos()] {
            if power_words(p, q, factor).is_none() {
                continue;
            }
            let out = powers(&a, &b, p, q, factor)?.ok_or("they are not strange")?;
            let mut different = 0;
            for ((a, b), x) in a.iter().zip(&b).zip(&out) {
                let expected = power(*a, *b, p, q, factor.abs());
                let error = (f64::from(*x) - expected).abs() / expected;
                assert!(error <= 2f64.powi(-24) * 1.001, "|{a}|^{p} |{b}|^{q} {factor} = {expected:e}, not {x:e}");
                different += usize::from(*x != expected as f32);
            }
            let most = (count as f64 * (p.abs() + q.abs() + 2.0) * 2f64.powi(-11)) as usize;
            assert!(different <= most, "{different} of {count} differ: {p}, {q}, {factor}");
        }
    }
    Ok(())
}

#[test]
fn powers_of_zero_and_of_too_much() -> Test {
    let all = |a: f32, b: f32, p: f64, q: f64| powers(&[a], &[b], p, q, 1.0).map(|out| out.map(|out| out[0]));
    assert_eq!(all(0.0, 3.0, 0.5, 0.5)?, Some(0.0));
    assert_eq!(all(-0.0, 3.0, 0.5, 0.5)?, Some(0.0));
    assert_eq!(all(3.0, 0.0, 0.5, 0.5)?, Some(0.0));
    assert_eq!(all(0.0, 0.25, 0.0, 0.5)?, Some(0.5));
    assert_eq!(all(0.0, 0.0, 0.0, 0.0)?, Some(1.0));
    assert_eq!(all(2.0, 0.0, 1.0, 0.0)?, Some(2.0));
    assert_eq!(all(0.0, 2.0, -0.5, 1.5)?, None, "infinity");
    assert_eq!(all(2.0, 0.0, 1.5, -0.5)?, None);
    assert_eq!(all(4.0, 16.0, -0.5, 0.5)?, Some(2.0), "nothing is strange behind the last element");
    assert_eq!(all(1e30, 1e30, 1.0, 1.0)?, None);
    assert_eq!(all(1e-20, 1e-20, 1.0, 1.0)?, None, "below 2^-126");
    assert_eq!(all(-2.0, -8.0, 0.5, 0.5)?, Some(4.0));
    assert_eq!(all(f32::MAX, 1.0, 1.0, 1.0)?, Some(f32::MAX));
    for (p, q, factor) in
        [(16.0, 0.0, 1.0), (0.0, -16.0, 1.0), (f64::NAN, 0.0, 1.0), (1.0, 0.0, 0.0), (1.0, 0.0, f64::NAN)]
    {
        assert_eq!(power_words(p, q, factor), None, "{p}, {q}, {factor}");
    }
    Ok(())
}
