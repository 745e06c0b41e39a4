//! What only some devices have: the same numbers with it as without.

use super::{Call, FEATURES, device, elements, encoded, ranks, spread, sums};
use crate::model::Outcome as Test;
use ckptmerge::dtype::DType;
use ckptmerge::gpu::{Compute, Features, HEADER, Inputs, Job, Lost, Outcome, Pass, kernel, text};
use std::sync::Arc;

/// Everything that the device of tests has, and each of it alone.
fn variants() -> Vec<Features> {
    let all = device().offered();
    let mut variants = vec![all, Features { f16: false, ..all }, Features { subgroup: 0, ..all }];
    variants.retain(|features| *features != Features::default());
    variants.dedup();
    variants
}

/// A test.
type Run = fn() -> Test;

/// What a test returns with some features.
fn with<T>(features: Features, test: impl FnOnce() -> T) -> T {
    FEATURES.set(features);
    let result = test();
    FEATURES.set(Features::default());
    result
}

#[test]
fn numbers_are_right_with_all_features() -> Test {
    let tests: [(&str, Run); 16] = [
        ("codes are decoded", elements::every_code_is_decoded_as_on_the_cpu),
        ("what is strange", elements::what_is_not_ordinary_is_strange),
        ("numbers are rounded", elements::numbers_are_rounded_as_on_the_cpu),
        ("any number of elements", elements::any_number_of_elements_goes_through),
        ("inputs side by side", elements::inputs_lie_side_by_side),
        ("powers", elements::powers_are_those_of_f64),
        ("sums", sums::sums_are_exact),
        ("the beginning of a tile", sums::a_sum_is_the_same_wherever_its_tile_begins),
        ("what rounding takes", sums::what_rounding_takes_is_kept),
        ("inner products", sums::inner_products_are_exact),
        ("shorter units", sums::the_last_unit_may_be_shorter),
        ("columns", sums::columns_are_summed_by_strips),
        ("magnitudes", sums::magnitudes_are_counted),
        ("rounds", sums::what_takes_too_many_rounds_is_strange),
        ("ranks", ranks::rows_may_be_apart),
        ("factors", ranks::factors_go_from_pass_to_pass),
    ];
    for features in variants() {
        for (what, test) in tests {
            with(features, test).map_err(|error| format!("{what} with {features:?}: {error}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_blend_has_the_same_bytes_with_any_features() -> Test {
    let count = 100_003;
    let leaves: Vec<_> = [DType::F16, DType::F16, DType::F8E5M2]
        .into_iter()
        .zip(1..)
        .map(|(dtype, seed)| (dtype, encoded(dtype, &spread(seed, count))))
        .collect();
    // Products that are so small that F16 has few digits, or none.
    let body = "fn value(l: Leaves, at: Place, k: u32) -> f32 {
            return (l[0] * 0.3 + l[1] * 0.7 - l[2] * 0.11) * select(1.0, 0.00001, at.local % 3u == 0u);
        }";
    for output in [DType::F16, DType::BF16, DType::F32, DType::F8E4M3] {
        let bytes = count * output.bytes().ok_or("it has whole bytes")?;
        let (groups, output) = (count.div_ceil(2048), Some(output));
        let call = Call { body, leaves: &leaves, output, count, groups, bytes, ..Call::default() };
        let expected = call.run()?.ok_or("it is not strange")?;
        for features in variants() {
            assert!(with(features, || call.run())?.as_ref() == Some(&expected), "{features:?} to {output:?}");
        }
    }
    Ok(())
}

/// Whether a check of a feature finds nothing.
fn holds(shader: Arc<str>) -> Result<bool, Lost> {
    let pass = Pass { shader, groups: 256 };
    let inputs = Inputs::Bytes(&[]);
    let job = Job { passes: &[pass], params: &[0; HEADER], inputs, output: 0, scratch: 0, zeros: false };
    Ok(device().run(&job, &mut [])? == Outcome::Done)
}

#[test]
fn a_feature_is_used_where_its_numbers_are_right() {
    let offered = device().offered();
    assert_eq!(device().checked(), Ok(offered));
    let check = |name: &str| text(kernel(name), &[], None, "", offered);
    let conversions = [
        // The digits of subnormal numbers, half of the last digit, a middle that goes to the even side, infinity.
        (
            "bitcast<u32>(unpack2x16float(code & 0xffffu).x)",
            "bitcast<u32>(unpack2x16float(select(code, code & 0x8000u, (code & 0x7c00u) == 0u)).x)",
        ),
        ("bitcast<f32>(bits ^ params[11])", "bitcast<f32>(bits & 0xffffe000u)"),
        ("bitcast<f32>(bits ^ params[11])", "bitcast<f32>(bits ^ select(0u, 1u, (bits & 0x7fffffffu) == 0x3f801000u))"),
        ("vec2(f32(rounded), 0.0)", "vec2(min(f32(rounded), 65504.0), 0.0)"),
    ];
    if offered.f16 {
        let right = check("check_f16");
        assert_eq!(holds(Arc::clone(&right)), Ok(true));
        for (conversion, wrong) in conversions {
            assert!(right.contains(conversion), "{conversion}");
            assert_eq!(holds(right.replace(conversion, wrong).into()), Ok(false), "{wrong}");
        }
    }
    if offered.subgroup > 1 {
        let right = check("check_subgroup");
        assert_eq!(holds(Arc::clone(&right)), Ok(true));
        let size = format!("SUBGROUP: u32 = {}u", offered.subgroup);
        let double = format!("SUBGROUP: u32 = {}u", 2 * offered.subgroup);
        assert!(right.contains(&size));
        assert_eq!(holds(right.replace(&size, &double).into()), Ok(false));
        assert_eq!(holds(right.replace("ShuffleXor(x, apart)", "ShuffleXor(x, 1u)").into()), Ok(false));
    }
}
