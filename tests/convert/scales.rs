//! Conversions that compute: quantized types, and 8-bit floats with scales.

use super::{convert, open};
use crate::model::{Model, Outcome, Random, names_in, precision, read};
use ckptmerge::dtype::DType;
use std::path::Path;
use tempfile::tempdir;

/// The element of a float type that is nearest to a number, rounded once, to even.
fn rounded_once(value: f64, dtype: DType) -> f64 {
    let (bits, lowest) = precision(dtype);
    let exponent = ((value.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(lowest);
    let quantum = 2f64.powi(exponent - bits + 1);
    (value / quantum).round_ties_even() * quantum
}

#[test]
fn quantized_rows_stay_near_and_vectors_stay_whole() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let numbers = Random(9).values(4 * 512);
    let model = Model::new()
        .with("w", DType::F32, &[4, 512], &numbers)
        .with("odd", DType::F32, &[2, 40], &[0.25; 80])
        .with("norm", DType::BF16, &[512], &numbers[..512]);
    let original = read(&model.write(path.join("m.st"))?)?;
    for (dtype, block) in [("q8_0", 32), ("q4_k", 256)] {
        let ran = convert(path, &format!("m.st {dtype}.gguf --dtype {dtype}")).ok();
        assert!(ran.stderr.contains("becomes F32") && ran.stderr.contains(": norm"), "{}", ran.stderr);
        assert!(ran.stderr.contains("stays F32") && ran.stderr.contains(": odd"), "{}", ran.stderr);
        let out = open(&path.join(format!("{dtype}.gguf")))?;
        assert_eq!(Some(out.tensors["w"].dtype), DType::parse(dtype));
        assert_eq!((out.tensors["norm"].dtype, out.values("norm")), (DType::F32, original.values("norm")));
        assert_eq!(out.tensors["odd"], original.tensors["odd"]);

        convert(path, &format!("{dtype}.gguf back.st --dtype f32")).ok();
        let back = read(&path.join("back.st"))?.values("w");
        let pairs: Vec<(f64, f64)> = original.values("w").into_iter().zip(back).collect();
        for pairs in pairs.chunks(block) {
            let largest = pairs.iter().map(|pair| pair.0.abs()).fold(0.0, f64::max);
            let spread = pairs.iter().map(|pair| pair.0.max(0.0)).fold(0.0, f64::max)
                - pairs.iter().map(|pair| pair.0.min(0.0)).fold(0.0, f64::min);
            // A side has 127 steps of Q8_0, and the step is rounded to a half: half a step and 127 · 2⁻¹¹ more. All of
            // Q4_K has 15, which ggml places where the squares are least: the outermost may be off by more than half.
            let (step, share) = if block == 32 { (largest / 127.0, 0.57) } else { (spread / 15.0, 1.0) };
            let farthest = pairs.iter().map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            assert!(farthest <= step * share, "{dtype}: {farthest} is more than {share} of {step}");
            let squares: f64 = pairs.iter().map(|(x, y)| (x - y).powi(2)).sum();
            let mean = (squares / pairs.len() as f64).sqrt();
            assert!(mean <= step / 12f64.sqrt() * 1.3, "{dtype}: {mean} is much for a step of {step}");
            assert!(farthest > 0.0);
        }
    }
    let ran = convert(path, "m.st plain.gguf --dtype f16").ok();
    assert!(!ran.stderr.contains("F32 and not"), "{}", ran.stderr);
    Ok(())
}

/// A matrix of 8-bit floats, none of them NaN, and scales of such a shape.
fn scaled(name: &str, rows: u64, columns: u64, suffix: &str, grid: &[u64]) -> Model {
    let mut random = Random(rows * columns + grid.len() as u64);
    let codes = (0..rows * columns).map(|_| (random.next() as u8).min(0xfe) & 0xf7).collect();
    let scales: Vec<f64> = (0..grid.iter().product()).map(|_| 0.01 + random.uniform().abs()).collect();
    Model::new()
        .raw(name, DType::F8E4M3, &[rows, columns], codes)
        .with(&format!("{name}{suffix}"), DType::F32, grid, &scales)
        .f32("norm", &[1.0])
}

#[test]
fn scales_are_multiplied_in() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    /// Which scale an element has, by its row and column.
    type Place = fn(usize, usize) -> usize;
    let cases: [(&str, &[u64], Place); 7] = [
        ("_scale_inv", &[2, 3], |row, column| row / 128 * 3 + column / 128),
        ("_scale", &[], |_, _| 0),
        ("_scale", &[1], |_, _| 0),
        ("_scale", &[1, 1], |_, _| 0),
        ("_scale", &[130], |row, _| row),
        ("_scale", &[130, 1], |row, _| row),
        (".scale", &[], |_, _| 0),
    ];
    for (suffix, grid, place) in cases {
        let model = scaled("a.weight", 130, 257, suffix, grid).write(path.join("m.st"))?;
        let model = read(&model)?;
        let scales = model.values(&format!("a.weight{suffix}"));
        let exact: Vec<f64> =
            (0..).zip(model.values("a.weight")).map(|(i, x)| x * scales[place(i / 257, i % 257)]).collect();
        for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16), ("f16", DType::F16)] {
            convert(path, &format!("m.st o.st --dtype {name}")).ok();
            let out = read(&path.join("o.st"))?;
            assert_eq!(out.names(), ["a.weight", "norm"], "a scale that was multiplied in is gone");
            assert_eq!(out.tensors["a.weight"].dtype, dtype);
            for (i, (found, exact)) in out.values("a.weight").into_iter().zip(&exact).enumerate() {
                let expected = rounded_once(*exact, dtype);
                assert_eq!(found, expected, "{suffix} {grid:?} {name}: row {}, column {}", i / 257, i % 257);
            }
        }
        // As it is, with its scales.
        convert(path, "m.st o.pt").ok();
        assert_eq!(open(&path.join("o.pt"))?.tensors, model.tensors);
    }
    Ok(())
}

#[test]
fn a_product_is_rounded_once() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    // 1.125 times this is just above the middle of 1 and the next BF16, and as an F32 the middle itself.
    let scale = 14_971_336.0 / f64::from(1 << 24);
    let model = Model::new().with("w", DType::F8E4M3, &[1, 1], &[1.125]).with("w_scale", DType::F32, &[1], &[scale]);
    model.write(path.join("m.st"))?;
    convert(path, "m.st o.st --dtype bf16").ok();
    assert_eq!(read(&path.join("o.st"))?.values("w"), [rounded_once(1.125 * scale, DType::BF16)]);
    Ok(())
}

#[test]
fn scales_are_quantized_with_what_they_scale() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    // Blocks of both kinds at once: a row of scales is 128 elements, and one of Q8_0 is 32.
    scaled("a.weight", 130, 288, "_scale_inv", &[2, 3]).write(path.join("m.st"))?;
    let ran = convert(path, "m.st q.gguf --dtype q8_0").ok();
    assert!(ran.stderr.contains("1 tensor of fewer") && !ran.stderr.contains("scale"), "{}", ran.stderr);
    convert(path, "m.st f.st --dtype f32").ok();
    convert(path, "f.st two.gguf --dtype q8_0").ok();
    let (one, two) = (open(&path.join("q.gguf"))?, open(&path.join("two.gguf"))?);
    assert_eq!(one.tensors["a.weight"].dtype, DType::Q8_0);
    assert_eq!(one.tensors, two.tensors);
    Ok(())
}

#[test]
fn scales_of_what_stays_stay() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let model = read(&scaled("a.weight", 130, 257, "_scale_inv", &[2, 3]).write(path.join("m.st"))?)?;
    for options in ["--dtype f8_e4m3", "--dtype bf16 --dtype-for ^a.weight$=f8_e4m3"] {
        convert(path, &format!("m.st o.st {options}")).ok();
        let out = read(&path.join("o.st"))?;
        for name in ["a.weight", "a.weight_scale_inv"] {
            assert!(out.tensors[name] == model.tensors[name], "{name} is not as it was with {options}");
        }
    }
    Ok(())
}

#[test]
fn a_weight_is_not_kept_without_its_scale() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    scaled("a.weight", 130, 257, "_scale_inv", &[2, 3]).write(path.join("m.st"))?;
    convert(path, "m.st o.st --exclude scale").fails(1, &["`a.weight`", "its scale `a.weight_scale_inv` is not"]);
    Ok(())
}

#[test]
fn scales_without_a_meaning_are_refused() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    for grid in [&[3][..], &[257], &[1, 257], &[2, 2], &[3, 2], &[65, 129], &[130, 257], &[130, 1, 1], &[0]] {
        scaled("a.weight", 130, 257, "_scale_inv", grid).write(path.join("m.st"))?;
        let shape = format!("the shape {grid:?} of its scales has no known meaning");
        convert(path, "m.st o.st --dtype bf16").fails(1, &["`a.weight`", &shape]);
    }
    let model = Model::new().with("w", DType::F8E4M3, &[2, 2], &[1.0; 4]).raw("w_scale", DType::F8E8M0, &[1], vec![7]);
    model.write(path.join("m.st"))?;
    convert(path, "m.st o.st --dtype bf16").fails(1, &["`w`", "scales of type F8_E8M0"]);
    assert_eq!(names_in(path), ["m.st"]);
    Ok(())
}

/// Writes `t.st`, where two matrices are tied and so are their scales, and says what they stand for.
fn tied_and_scaled(path: &Path) -> Outcome<Vec<f64>> {
    let model = scaled("embed.weight", 4, 8, "_scale", &[4]);
    let exact: Vec<f64> = {
        let model = read(&model.write(path.join("m.st"))?)?;
        let scales = model.values("embed.weight_scale");
        (0..).zip(model.values("embed.weight")).map(|(i, x)| x * scales[i / 8]).collect()
    };
    model
        .text("head.weight", "embed.weight")
        .text("head.weight_scale", "embed.weight_scale")
        .write(path.join("t.st"))?;
    Ok(exact.iter().map(|x| rounded_once(*x, DType::F32)).collect())
}

#[test]
fn tied_matrices_are_scaled_and_both_scales_gone() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let expected = tied_and_scaled(path)?;
    convert(path, "t.st both.npz --dtype f32").ok();
    let both = open(&path.join("both.npz"))?;
    assert_eq!(both.names(), ["embed.weight", "head.weight", "norm"], "a scale that was multiplied in is gone");
    assert_eq!((both.values("embed.weight"), both.values("head.weight")), (expected.clone(), expected));
    Ok(())
}

#[test]
fn a_tie_that_is_cut_is_scaled() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let expected = tied_and_scaled(path)?;
    convert(path, "t.st head.st --dtype f32 --exclude ^embed").ok();
    let head = read(&path.join("head.st"))?;
    assert_eq!(head.values("head.weight"), expected);
    assert_eq!(head.names(), ["head.weight", "norm"], "a scale that was multiplied in is gone");
    Ok(())
}
