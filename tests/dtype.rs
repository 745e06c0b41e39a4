//! Conversions and weighted sums: against torch, against `half`, against exact arithmetic, and every instruction set
//! against the portable loops.

use ckptmerge::dtype::*;

const SMALL_FLOATS: [DType; 4] = [DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
const FLOATS: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::F64];
const INTEGERS: [DType; 9] =
    [DType::Bool, DType::I8, DType::U8, DType::I16, DType::U16, DType::I32, DType::U32, DType::I64, DType::U64];

fn width(dtype: DType) -> usize {
    dtype.bytes().expect("these tests use whole-byte types")
}

fn encoded(simd: Simd, dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; values.len() * width(dtype)];
    encode(simd, dtype, values, &mut out);
    out
}

fn encoded_f64(dtype: DType, values: &[f64]) -> Vec<u8> {
    let mut out = vec![0; values.len() * width(dtype)];
    encode_f64(dtype, values, &mut out);
    out
}

fn decoded(simd: Simd, dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / width(dtype)];
    decode(simd, dtype, bytes, &mut out);
    out
}

fn decoded_f64(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    let mut out = vec![0.0; bytes.len() / width(dtype)];
    decode_f64(dtype, bytes, &mut out);
    out
}

/// The little-endian unsigned integers of `width` bytes that `bytes` consist of.
fn codes(dtype: DType, bytes: &[u8]) -> Vec<u64> {
    let code = |element: &[u8]| element.iter().rev().fold(0, |code, byte| code << 8 | u64::from(*byte));
    bytes.chunks_exact(width(dtype)).map(code).collect()
}

/// Every code of a type of one or two bytes, in order.
fn every_code(dtype: DType) -> Vec<u8> {
    match width(dtype) {
        1 => (0..=u8::MAX).collect(),
        2 => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
        wider => panic!("{dtype} takes {wider} bytes: too many codes"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The paths to be compared with the portable one.
fn others() -> Vec<Simd> {
    let available = Simd::available();
    assert_eq!((available[0], available.last()), (Simd::Portable, Some(&Simd::detect())));
    available[1..].to_vec()
}

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in −1..1.
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Any bits: a tenth of the small floats among them are NaN or infinite.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// Every upper half of an f32, with the lower halves at which some rounding turns.
fn sweep() -> Vec<f32> {
    const LOW: [u32; 9] = [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff];
    (0..=0xffff_u32).flat_map(|high| LOW.map(|low| f32::from_bits(high << 16 | low))).collect()
}

#[test]
fn decoding_is_the_same_on_every_path() {
    for dtype in [DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8, DType::U8, DType::Bool] {
        let bytes = every_code(dtype);
        let expected = bits(&decoded(Simd::Portable, dtype, &bytes));
        for simd in others() {
            assert!(bits(&decoded(simd, dtype, &bytes)) == expected, "{dtype} by {simd:?}");
        }
    }
    let bytes = Random(1).bytes(8 * 20_000);
    for dtype in FLOATS.into_iter().chain(INTEGERS) {
        let expected = bits(&decoded(Simd::Portable, dtype, &bytes));
        for simd in others() {
            assert!(bits(&decoded(simd, dtype, &bytes)) == expected, "{dtype} by {simd:?}");
        }
    }
}

#[test]
fn encoding_is_the_same_on_every_path() {
    let mut values = sweep();
    let mut random = Random(2);
    values.extend((0..1 << 20).map(|_| f32::from_bits(random.next() as u32)));
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2] {
        let expected = encoded(Simd::Portable, dtype, &values);
        for simd in others() {
            assert!(encoded(simd, dtype, &values) == expected, "{dtype} by {simd:?}");
        }
    }
    let values = &values[..200_000];
    for dtype in INTEGERS.into_iter().chain([DType::F64]) {
        let expected = encoded(Simd::Portable, dtype, values);
        for simd in others() {
            assert!(encoded(simd, dtype, values) == expected, "{dtype} by {simd:?}");
        }
    }
}

#[test]
fn any_address_and_any_length() {
    let bytes = Random(3).bytes(8 * 132);
    let finite: Vec<f32> = (0..131).map(|i| i as f32 - 65.5).collect();
    for dtype in FLOATS {
        let all = bits(&decoded(Simd::Portable, dtype, &bytes[1..][..130 * width(dtype)]));
        let all_encoded = encoded(Simd::Portable, dtype, &finite);
        for simd in Simd::available() {
            for len in 0..=130 {
                let size = len * width(dtype);
                assert_eq!(bits(&decoded(simd, dtype, &bytes[1..][..size])), all[..len], "{dtype} by {simd:?}: {len}");
                let mut out = vec![0xa5; size + 65];
                encode(simd, dtype, &finite[..len], &mut out[1..=size]);
                assert_eq!(out[1..=size], all_encoded[..size], "{dtype} by {simd:?}: {len}");
                assert!(out[size + 1..].iter().chain(&out[..1]).all(|byte| *byte == 0xa5), "written beyond the end");
            }
        }
    }
}

#[test]
fn sixteen_bit_floats_agree_with_half() {
    let sweep = sweep();
    for simd in Simd::available() {
        for code in 0..=u16::MAX {
            let (f16, bf16) = (half::f16::from_bits(code), half::bf16::from_bits(code));
            for (dtype, expected) in [(DType::F16, f16.to_f32()), (DType::BF16, bf16.to_f32())] {
                let mut out = [0.0];
                decode(simd, dtype, &code.to_le_bytes(), &mut out);
                assert!(out[0].to_bits() == expected.to_bits() || out[0].is_nan() && expected.is_nan(), "{code:#x}");
            }
        }
        let (f16, bf16) = (encoded(simd, DType::F16, &sweep), encoded(simd, DType::BF16, &sweep));
        for (i, value) in sweep.iter().enumerate() {
            let (mut to_f16, mut to_bf16) =
                (half::f16::from_f32(*value).to_bits(), half::bf16::from_f32(*value).to_bits());
            if value.is_nan() {
                (to_f16, to_bf16) = (0x7e00, 0x7fc0);
            }
            assert_eq!(f16[2 * i..][..2], to_f16.to_le_bytes(), "{value:e} to F16 by {simd:?}");
            assert_eq!(bf16[2 * i..][..2], to_bf16.to_le_bytes(), "{value:e} to BF16 by {simd:?}");
        }
    }
}

#[test]
fn every_number_of_a_small_float_survives_a_round_trip() {
    for dtype in SMALL_FLOATS {
        let bytes = every_code(dtype);
        let wide = decoded_f64(dtype, &bytes);
        for simd in Simd::available() {
            let numbers = decoded(simd, dtype, &bytes);
            let back = encoded(simd, dtype, &numbers);
            for (i, code) in bytes.chunks_exact(width(dtype)).enumerate() {
                assert_eq!(numbers[i].is_nan(), wide[i].is_nan(), "{dtype} {code:x?}");
                if !numbers[i].is_nan() {
                    assert_eq!(f64::from(numbers[i]).to_bits(), wide[i].to_bits(), "{dtype} {code:x?}");
                    assert_eq!(back[i * width(dtype)..][..width(dtype)], *code, "{dtype} by {simd:?}");
                }
            }
        }
        for (code, (back, number)) in
            codes(dtype, &bytes).into_iter().zip(codes(dtype, &encoded_f64(dtype, &wide)).into_iter().zip(&wide))
        {
            assert!(number.is_nan() || code == back, "{dtype} {code:#x} through f64");
        }
    }
}

/// Between two neighbouring codes, f64 has a middle that goes to the even one and numbers a hair off it that do not.
#[test]
fn f64_is_rounded_once() {
    for dtype in SMALL_FLOATS {
        let sign_bit = 1 << (8 * width(dtype) - 1);
        let bytes = every_code(dtype);
        let numbers = decoded_f64(dtype, &bytes);
        let (mut values, mut expected) = (Vec::new(), Vec::new());
        for code in 0..sign_bit - 1 {
            let (low, high) = (numbers[code], numbers[code + 1]);
            if low.is_finite() && high.is_finite() {
                let middle = (low + high) / 2.0;
                let even = code + code % 2;
                for (value, code) in [(middle.next_down(), code), (middle, even), (middle.next_up(), code + 1)] {
                    values.extend([value, -value]);
                    expected.extend([code as u64, (code | sign_bit) as u64]);
                }
            }
        }
        assert_eq!(codes(dtype, &encoded_f64(dtype, &values)), expected, "{dtype}");

        let through_f32: Vec<f32> = values.iter().map(|value| *value as f32).collect();
        let twice = codes(dtype, &encoded(Simd::Portable, dtype, &through_f32));
        let wrong = twice.iter().zip(&expected).filter(|(a, b)| a != b).count();
        assert!(wrong > values.len() / 4, "{dtype}: the values do not tell one rounding from two");
    }
    let mut random = Random(4);
    for _ in 0..20_000 {
        let low = random.next() as u32 & 0x7fff_ffff;
        let (a, b) = (f64::from(f32::from_bits(low)), f64::from(f32::from_bits(low + 1)));
        if a.is_finite() && b.is_finite() {
            let middle = (a + b) / 2.0;
            let out = encoded_f64(DType::F32, &[middle.next_down(), middle, middle.next_up()]);
            let wanted = [low, low + low % 2, low + 1].map(u64::from);
            assert_eq!(codes(DType::F32, &out), wanted, "{middle:e}");
        }
    }
}

/// The table of rules: what is too large, and what is not a number.
#[test]
fn limits_and_nans() {
    let inf = f64::INFINITY;
    let cases: &[(DType, f64, u64)] = &[
        (DType::F16, 65519.99, 0x7bff),
        (DType::F16, 65520.0, 0x7c00),
        (DType::F16, -1e300, 0xfc00),
        (DType::F16, 2f64.powi(-25), 0),
        (DType::F16, 2f64.powi(-25).next_up(), 1),
        (DType::BF16, f64::from(f32::MAX), 0x7f80),
        (DType::BF16, -inf, 0xff80),
        (DType::BF16, 2f64.powi(-133), 1),
        (DType::F8E5M2, 61439.99, 0x7b),
        (DType::F8E5M2, 61440.0, 0x7c),
        (DType::F8E5M2, -inf, 0xfc),
        (DType::F8E4M3, 448.0, 0x7e),
        (DType::F8E4M3, 479.0, 0x7e),
        (DType::F8E4M3, -480.0, 0xfe),
        (DType::F8E4M3, inf, 0x7e),
        (DType::F32, 1e300, 0x7f80_0000),
        (DType::F32, -0.0, 0x8000_0000),
        (DType::I8, 127.9, 0x7f),
        (DType::I8, -1e9, 0x80),
        (DType::I8, -1.9, 0xff),
        (DType::U8, -3.0, 0),
        (DType::U8, inf, 0xff),
        (DType::I16, 1e9, 0x7fff),
        (DType::U16, 65535.5, 0xffff),
        (DType::I32, inf, 0x7fff_ffff),
        (DType::U32, 1e10, 0xffff_ffff),
        (DType::I64, -inf, 1 << 63),
        (DType::U64, inf, u64::MAX),
        (DType::Bool, 1e-300, 1),
        (DType::Bool, -0.0, 0),
        (DType::Bool, f64::NAN, 1),
    ];
    for &(dtype, value, code) in cases {
        assert_eq!(codes(dtype, &encoded_f64(dtype, &[value])), [code], "{value:e} to {dtype}");
        let narrow = value as f32;
        for simd in Simd::available().into_iter().filter(|_| value.is_nan() || f64::from(narrow) == value) {
            assert_eq!(codes(dtype, &encoded(simd, dtype, &[narrow; 70])), [code; 70], "{value:e} to {dtype} {simd:?}");
        }
    }
    let nans = [0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xffff_ffff].map(f32::from_bits);
    let canonical = [0x7fc0_0000, 0x7e00, 0x7fc0, 0x7f, 0x7f, 0x7ff8_0000_0000_0000];
    for (dtype, code) in FLOATS.into_iter().zip(canonical) {
        for simd in Simd::available() {
            assert_eq!(codes(dtype, &encoded(simd, dtype, &nans)), [code; 4], "{dtype} by {simd:?}");
        }
        assert_eq!(codes(dtype, &encoded_f64(dtype, &nans.map(f64::from))), [code; 4], "{dtype} from f64");
    }
    for dtype in &INTEGERS[1..] {
        assert_eq!(codes(*dtype, &encoded(Simd::detect(), *dtype, &nans)), [0; 4], "{dtype}");
    }
}

#[test]
fn integers_are_read_as_the_nearest_number() {
    let long = (1_u64 << 24) + 1;
    for simd in Simd::available() {
        assert_eq!(decoded(simd, DType::U64, &long.to_le_bytes()), [(1 << 24) as f32], "a tie goes to the even one");
        assert_eq!(decoded(simd, DType::U64, &(long + 2).to_le_bytes()), [((1 << 24) + 4) as f32]);
        assert_eq!(decoded(simd, DType::I64, &i64::MIN.to_le_bytes()), [-(2f32.powi(63))]);
        assert_eq!(decoded(simd, DType::I16, &(-2_i16).to_le_bytes()), [-2.0]);
        assert_eq!(decoded(simd, DType::Bool, &[0, 1, 2, 255]), [0.0, 1.0, 1.0, 1.0]);
    }
    assert_eq!(decoded_f64(DType::U64, &long.to_le_bytes()), [long as f64], "f64 holds it");
    let longest = (1_u64 << 53) + 1;
    assert_eq!(decoded_f64(DType::U64, &longest.to_le_bytes()), [(1_u64 << 53) as f64]);
    assert_eq!(decoded_f64(DType::I64, &(-7_i64).to_le_bytes()), [-7.0]);
    // f64 holds all the narrower ones, so rounding them to f32 by way of it is rounding once.
    let bytes = Random(9).bytes(4 * 1000);
    for dtype in &INTEGERS[..7] {
        let narrowed: Vec<f32> = decoded_f64(*dtype, &bytes).into_iter().map(|number| number as f32).collect();
        assert_eq!(decoded(Simd::detect(), *dtype, &bytes), narrowed, "{dtype}");
    }
}

#[test]
fn casts_agree_with_torch() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/dtype/torch.safetensors");
    let file = std::fs::read(path).expect("the fixture is committed");
    let goldens = safetensors::SafeTensors::deserialize(&file).expect("make.py wrote a safetensors file");
    let tensor = |name: &str| goldens.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}")).data();
    let mut compared = 0;
    for dtype in SMALL_FLOATS.into_iter().chain(INTEGERS) {
        let own = format!("{dtype}.values");
        let values = if goldens.names().contains(&own.as_str()) { tensor(&own) } else { tensor("values") };
        let values = decoded(Simd::Portable, DType::F32, values);
        for simd in Simd::available() {
            let ours = codes(dtype, &encoded(simd, dtype, &values));
            let torch = codes(dtype, tensor(dtype.name()));
            assert_eq!(ours.len(), torch.len());
            for ((value, ours), torch) in values.iter().zip(ours).zip(torch) {
                // torch's NaNs depend on the instruction set; ours are pinned by another test.
                if value.is_nan() && dtype.kind() == Kind::Float {
                    let torch = &torch.to_le_bytes()[..width(dtype)];
                    assert!(decoded(simd, dtype, torch)[0].is_nan());
                } else {
                    assert_eq!(ours, torch, "{value:e} to {dtype} by {simd:?}: {ours:#x}, torch {torch:#x}");
                }
                compared += 1;
            }
            if width(dtype) == 1 && dtype.kind() == Kind::Float {
                let torch = decoded(simd, DType::F32, tensor(&format!("{dtype}.decoded")));
                for (code, (ours, torch)) in decoded(simd, dtype, &every_code(dtype)).iter().zip(torch).enumerate() {
                    assert!(ours.to_bits() == torch.to_bits() || ours.is_nan() && torch.is_nan(), "{dtype} {code:#x}");
                }
            }
        }
    }
    assert!(compared > 1000, "only {compared} values in the fixture");
}

/// The weighted sum as its definition says it, one element at a time.
fn by_definition(base: Option<(DType, &[u8])>, terms: &[Term<'_>], dtype: DType, elements: usize) -> Vec<u8> {
    let base = base.map(|(dtype, bytes)| decoded(Simd::Portable, dtype, bytes));
    let inputs: Vec<Vec<f32>> = terms.iter().map(|term| decoded(Simd::Portable, term.dtype, term.bytes)).collect();
    let sum = |i: usize| {
        let b = base.as_ref().map(|base| base[i]);
        let product = |(x, term): (&Vec<f32>, &Term<'_>)| term.weight * b.map_or(x[i], |b| x[i] - b);
        match (inputs.iter().zip(terms).map(product).reduce(|sum, product| sum + product), b) {
            (Some(sum), Some(b)) => b + sum,
            (Some(sum), None) => sum,
            (None, b) => b.unwrap_or(0.0),
        }
    };
    encoded(Simd::Portable, dtype, &(0..elements).map(sum).collect::<Vec<_>>())
}

#[test]
fn weighted_sums_are_their_definition_on_every_path() {
    use DType::{BF16, F8E4M3, F8E5M2, F16, F32, F64, I16, U8};
    let mixtures: [&[DType]; 8] =
        [&[F32], &[F16], &[BF16], &[F8E4M3], &[F32, BF16], &[BF16, F16, F8E5M2], &[F16, F64], &[U8, I16, F32]];
    let mut random = Random(5);
    let bytes: Vec<Vec<u8>> = (0..18).map(|_| random.bytes(8 * 200)).collect();
    for mixture in mixtures {
        for n in 0..=17 {
            // Around 130 elements: two blocks of the widest kernel and a rest, or one tile.
            let elements = 96 + 5 * n;
            let input = |i: usize| {
                let dtype = mixture[i % mixture.len()];
                (dtype, &bytes[i][1..][..elements * width(dtype)])
            };
            let terms: Vec<Term<'_>> = (0..n)
                .map(|i| (input(i), random.uniform()))
                .map(|((dtype, bytes), weight)| Term { dtype, bytes, weight })
                .collect();
            for base in [None, Some(input(17))] {
                for dtype in FLOATS.into_iter().chain(INTEGERS) {
                    let expected = by_definition(base, &terms, dtype, elements);
                    for simd in Simd::available() {
                        let mut out = vec![0xa5; expected.len() + 1];
                        weighted_sum(simd, base, &terms, dtype, &mut out[1..]);
                        let based = base.is_some();
                        assert!(out[1..] == expected, "{n} of {mixture:?} to {dtype} by {simd:?}, base: {based}");
                    }
                }
            }
        }
    }
}

#[test]
fn weighted_sums_of_any_length() {
    let mut random = Random(6);
    let bytes: Vec<Vec<u8>> = (0..4).map(|_| random.bytes(4 * 5000 + 1)).collect();
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::F8E5M2] {
        for elements in (0..=130).chain([2047, 2048, 2049, 4999]) {
            let input = |i: usize| &bytes[i][1..][..elements * width(dtype)];
            let terms = [0, 1, 2].map(|i| Term { dtype, bytes: input(i), weight: 0.25 + i as f32 });
            for base in [None, Some((dtype, input(3)))] {
                let expected = by_definition(base, &terms, dtype, elements);
                for simd in Simd::available() {
                    let mut out = vec![0xa5; expected.len() + 65];
                    weighted_sum(simd, base, &terms, dtype, &mut out[1..=expected.len()]);
                    assert!(out[1..=expected.len()] == expected, "{elements} {dtype} by {simd:?}");
                    assert!(out[expected.len() + 1..].iter().all(|byte| *byte == 0xa5), "written beyond the end");
                }
            }
        }
    }
}

#[test]
fn a_negative_zero_stays_one() {
    let dtype = DType::BF16;
    let bytes = encoded(Simd::Portable, dtype, &[-0.0; 70]);
    let term = Term { dtype, bytes: &bytes, weight: 1.0 };
    let term_f64 = Term64 { dtype, bytes: &bytes, weight: 1.0 };
    let mut out = vec![0; bytes.len()];
    for simd in Simd::available() {
        weighted_sum(simd, None, &[term], dtype, &mut out);
        assert_eq!(out, bytes, "{simd:?}");
        out.fill(0);
        weighted_sum(simd, Some((dtype, &bytes)), &[], dtype, &mut out);
        assert_eq!(out, bytes, "{simd:?}, the base alone");
        out.fill(0);
    }
    weighted_sum_f64(None, &[term_f64], dtype, &mut out);
    assert_eq!(out, bytes, "in f64");
    out.fill(0);
    weighted_sum_f64(Some((dtype, &bytes)), &[], dtype, &mut out);
    assert_eq!(out, bytes, "in f64, the base alone");
}

/// Half of the last place of `dtype` at `value`.
fn half_an_ulp(dtype: DType, value: f64) -> f64 {
    let (mantissa_bits, least_exponent) = match dtype {
        DType::F32 => (23, -126),
        DType::F16 => (10, -14),
        DType::BF16 => (7, -126),
        DType::F8E4M3 => (3, -6),
        DType::F8E5M2 => (2, -14),
        other => panic!("{other} has no last place here"),
    };
    let exponent = if value == 0.0 { least_exponent } else { (value.log2().floor() as i32).max(least_exponent) };
    2f64.powi(exponent - mantissa_bits - 1)
}

#[test]
fn weighted_sums_are_near_the_exact_ones() {
    const ELEMENTS: usize = 70;
    let mut random = Random(7);
    for dtype in &FLOATS[..5] {
        for n in 2..=16 {
            let mut input = |_: usize| {
                let values: Vec<f32> =
                    (0..ELEMENTS).map(|_| random.uniform() * 2f32.powi(-((random.next() % 10) as i32))).collect();
                encoded(Simd::Portable, *dtype, &values)
            };
            let inputs: Vec<Vec<u8>> = (0..=n).map(&mut input).collect();
            let numbers: Vec<Vec<f64>> = inputs.iter().map(|bytes| decoded_f64(*dtype, bytes)).collect();
            let terms: Vec<Term<'_>> =
                inputs[1..].iter().map(|bytes| Term { dtype: *dtype, bytes, weight: random.uniform() }).collect();
            for based in [false, true] {
                for to in &FLOATS[..5] {
                    let mut out = vec![0; ELEMENTS * width(*to)];
                    let base = based.then_some((*dtype, &inputs[0][..]));
                    weighted_sum(Simd::detect(), base, &terms, *to, &mut out);
                    for (i, got) in decoded_f64(*to, &out).into_iter().enumerate() {
                        let b = if based { numbers[0][i] } else { 0.0 };
                        let products =
                            || terms.iter().zip(&numbers[1..]).map(|(term, x)| f64::from(term.weight) * (x[i] - b));
                        let exact = b + products().sum::<f64>();
                        let magnitude = b.abs() + products().map(f64::abs).sum::<f64>();
                        let roundings = (n + usize::from(based)) as f64;
                        let arithmetic = roundings * 2f64.powi(-24) * magnitude;
                        let bound = half_an_ulp(*to, got.abs().max(exact.abs())) + arithmetic;
                        assert!((got - exact).abs() <= bound, "{n} {dtype} to {to}: {got:e}, exactly {exact:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn weighted_sums_in_f64_are_their_definition() {
    const ELEMENTS: usize = 1500;
    let mut random = Random(8);
    let dtypes = [DType::F64, DType::F16, DType::F64, DType::I64, DType::BF16];
    let inputs: Vec<(DType, Vec<u8>)> =
        dtypes.into_iter().map(|dtype| (dtype, random.bytes(ELEMENTS * width(dtype)))).collect();
    let numbers: Vec<Vec<f64>> = inputs.iter().map(|(dtype, bytes)| decoded_f64(*dtype, bytes)).collect();
    for n in 0..inputs.len() {
        let terms: Vec<Term64<'_>> = inputs[1..=n]
            .iter()
            .map(|(dtype, bytes)| Term64 { dtype: *dtype, bytes, weight: f64::from(random.uniform()) / 3.0 })
            .collect();
        for based in [false, true] {
            let sum = |i: usize| {
                let b = numbers[0][i];
                let product = |(term, x): (&Term64<'_>, &Vec<f64>)| term.weight * if based { x[i] - b } else { x[i] };
                let sum = terms.iter().zip(&numbers[1..]).map(product).reduce(|sum, product| sum + product);
                if based { sum.map_or(b, |sum| b + sum) } else { sum.unwrap_or(0.0) }
            };
            let exact: Vec<f64> = (0..ELEMENTS).map(sum).collect();
            for dtype in FLOATS.into_iter().chain(INTEGERS) {
                let mut out = vec![0xa5; ELEMENTS * width(dtype)];
                let base = based.then_some((inputs[0].0, &inputs[0].1[..]));
                weighted_sum_f64(base, &terms, dtype, &mut out);
                assert!(out == encoded_f64(dtype, &exact), "{n} to {dtype}, base: {based}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "3 BF16 elements take 6 bytes, not 5")]
fn lengths_must_agree() {
    decode(Simd::detect(), DType::BF16, &[0; 5], &mut [0.0; 3]);
}

#[test]
#[should_panic(expected = "2 F16 elements take 4 bytes, not 6")]
fn every_term_must_be_as_long_as_the_output() {
    let term = Term { dtype: DType::F16, bytes: &[0; 6], weight: 1.0 };
    weighted_sum(Simd::detect(), None, &[term], DType::BF16, &mut [0; 4]);
}

#[test]
#[should_panic(expected = "F8_E8M0 elements are copied, never computed with")]
fn opaque_types_are_refused() {
    encode(Simd::detect(), DType::F8E8M0, &[1.0], &mut [0]);
}
