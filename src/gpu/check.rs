//! Whether a device computes as all kernels need it, by one dispatch of `shaders/check.wgsl`; and whether what it need not
//! have gives the same numbers, by one each of `shaders/check_f16.wgsl` and `shaders/check_subgroup.wgsl`.

use super::{Compute, Device, Features, HEADER, Inputs, Job, Lost, Outcome, Pass, WORKGROUP, kernel, text};
use std::sync::Arc;

/// Pairs: two workgroups and a part of a third.
const PAIRS: usize = 600;
/// Words of output for each.
const WORDS: usize = 9;
/// Those of them that are f32.
const NUMBERS: usize = 5;
/// What they are.
const NAMES: [&str; WORDS] = [
    "x + y",
    "x - y",
    "x · y",
    "the error of x + y",
    "the error of x · y",
    "an integer product",
    "a shift",
    "a signed shift",
    "a count",
];

/// What is wrong with it.
pub(super) fn check(device: &Device) -> Result<(), String> {
    let pairs = pairs();
    let input: Vec<u8> = pairs.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
    let mut output = vec![0; 4 * (WORDS * PAIRS + 1)];
    let pass = Pass { shader: Arc::from(kernel("check").source()), groups: PAIRS.div_ceil(WORKGROUP as usize) as u64 };
    let mut params = [0; HEADER];
    params[0] = PAIRS as u32;
    let job = Job {
        passes: &[pass],
        params: &params,
        inputs: Inputs::Bytes(&[&input]),
        output: output.len() as u64,
        scratch: 0,
        zeros: true,
    };
    match device.run(&job, &mut output) {
        Ok(Outcome::Done) => {}
        Ok(Outcome::Strange) => return Err("its memory is not zero where it should be".to_owned()),
        Err(Lost) => return Err(device.failure().unwrap_or_default()),
    }
    let (words, _) = output.as_chunks();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let (results, rest) = words.as_chunks::<WORDS>();
    for (index, ([x, y], result)) in pairs.iter().zip(results).enumerate() {
        let expected = expected(index, *x, *y);
        for (at, ((name, computed), right)) in NAMES.iter().zip(result).zip(expected).enumerate() {
            // A number that is 0 may have either sign.
            let is_zero = at < NUMBERS && (*computed | right) << 1 == 0;
            if *computed != right && !is_zero {
                return Err(format!(
                    "of the words {x:08x} and {y:08x} it computes {name} as {computed:08x}, which is {right:08x}"
                ));
            }
        }
    }
    let total = pairs.iter().fold(0, |sum: u32, [x, _]| sum.wrapping_add(*x));
    if rest == [total] { Ok(()) } else { Err("its atomic operations lose numbers".to_owned()) }
}

/// Which of the features give the numbers that they should.
pub(super) fn features(device: &Device, offered: Features) -> Result<Features, Lost> {
    let is_right = |name: &str| {
        let codes = u64::from(u16::MAX) + 1;
        let pass = Pass { shader: text(kernel(name), &[], None, "", offered), groups: codes / u64::from(WORKGROUP) };
        let inputs = Inputs::Bytes(&[]);
        let job = Job { passes: &[pass], params: &[0; HEADER], inputs, output: 0, scratch: 0, zeros: false };
        device.run(&job, &mut []).map(|outcome| outcome == Outcome::Done)
    };
    Ok(Features {
        f16: offered.f16 && is_right("check_f16")?,
        subgroup: if offered.subgroup > 1 && is_right("check_subgroup")? { offered.subgroup } else { 0 },
    })
}

/// Words that are ordinary f32 numbers, as are their sums, differences and products.
fn pairs() -> Vec<[u32; 2]> {
    let chosen = [
        [1.0, f32::EPSILON / 128.0],
        [1.0, -f32::EPSILON / 128.0],
        [16_777_216.0, 1.0],
        [3.0, 1.0 / 3.0],
        [1.0 + f32::EPSILON, 1.0 - f32::EPSILON],
        [-0.1, 0.3],
    ];
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        // Any sign and fraction, and exponents from -16 to 15.
        (state & 0x807f_ffff) | ((111 + (state >> 23 & 31)) << 23)
    };
    let rest = std::iter::repeat_with(|| [next(), next()]);
    chosen.iter().map(|pair| pair.map(f32::to_bits)).chain(rest).take(PAIRS).collect()
}

fn expected(index: usize, first: u32, second: u32) -> [u32; WORDS] {
    let [x, y] = [first, second].map(f32::from_bits);
    let sum = x + y;
    let part = sum - x;
    let error = (x - (sum - part)) + (y - part);
    let rounded = x * y;
    // A product of two f32 is exact in f64.
    let lost = (f64::from(x) * f64::from(y) - f64::from(rounded)) as f32;
    let group = index / WORKGROUP as usize * WORKGROUP as usize;
    [
        sum.to_bits(),
        (x - y).to_bits(),
        rounded.to_bits(),
        error.to_bits(),
        lost.to_bits(),
        first.wrapping_mul(second),
        first >> (second & 31),
        (first.cast_signed() >> (second & 31)).cast_unsigned(),
        (PAIRS - group).min(WORKGROUP as usize) as u32,
    ]
}
