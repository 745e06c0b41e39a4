//! Sums, inner products and counts, against f64.

use super::{Call, decoded, encoded, random, spread};
use crate::model::Outcome as Test;
use ckptmerge::dtype::DType;
use ckptmerge::gpu::GRAM_SCALE;

type Leaves = Vec<(DType, Vec<u8>)>;

/// Two inputs, and their numbers.
fn inputs(count: usize, dtypes: [DType; 2]) -> (Leaves, [Vec<f32>; 2]) {
    let values = [spread(1, count), spread(2, count)];
    let leaves = [0, 1].map(|i| (dtypes[i], encoded(dtypes[i], &values[i])));
    let values = [0, 1].map(|i| decoded(dtypes[i], &leaves[i].1));
    (leaves.to_vec(), values)
}

const THREE: &str = "const VALUES: u32 = 3u;
    fn value(l: Leaves, at: Place, k: u32) -> f32 {
        switch k {
            case 0u: { return l[0] - l[1]; }
            case 1u: { return l[0] * l[1]; }
            default: { return abs(l[0]); }
        }
    }";

fn three(a: f32, b: f32) -> [f32; 3] {
    [a - b, a * b, a.abs()]
}

/// The segments of whole units, in order.
fn segments(count: usize, unit: usize, length: usize) -> Vec<std::ops::Range<usize>> {
    (0..count / unit)
        .flat_map(|at| (0..unit).step_by(length).map(move |from| (at, from)))
        .map(|(at, from)| at * unit + from..at * unit + (from + length).min(unit))
        .collect()
}

/// Tiles: how many elements, in units and segments of how many.
const TILES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [7, 7, 100],
    [300, 1, 1],
    [999, 3, 2],
    [640, 8, 8],
    [640, 64, 16],
    [1300, 130, 40],
    [5003, 5003, 5003],
    [5003, 5003, 1000],
    [6144, 2048, 512],
    [8192, 8192, 8192],
    [12288, 4096, 4096],
    [9009, 3003, 3003],
    [100_000, 100_000, 65_536],
];
const TYPES: [[DType; 2]; 3] = [[DType::F32, DType::F16], [DType::BF16, DType::BF16], [DType::F8E4M3, DType::F32]];

#[test]
pub(super) fn sums_are_exact() -> Test {
    for (tile, dtypes) in TILES.into_iter().zip(TYPES.iter().cycle()) {
        let [count, unit, length] = tile;
        let (leaves, [a, b]) = inputs(count, *dtypes);
        let segments = segments(count, unit, length);
        let call = Call {
            kernel: "sums",
            body: THREE,
            leaves: &leaves,
            count,
            own: &[unit as u32, length as u32],
            groups: segments.len(),
            bytes: segments.len() * 3 * 8,
            ..Call::default()
        };
        let out = call.pairs()?;
        for (segment, sums) in segments.into_iter().zip(out.chunks_exact(3)) {
            for (k, sum) in sums.iter().enumerate() {
                let values = || segment.clone().map(|i| f64::from(three(a[i], b[i])[k]));
                let (expected, size): (f64, f64) = (values().sum(), values().map(f64::abs).sum());
                let error = (sum - expected).abs();
                assert!(error <= size * 2f64.powi(-42), "{tile:?}, {segment:?}, {k}: {expected}, not {sum}");
            }
        }
    }
    Ok(())
}

#[test]
pub(super) fn a_sum_is_the_same_wherever_its_tile_begins() -> Test {
    for (unit, length) in [(1003, 300), (1024, 256)] {
        let (count, tail) = (5 * unit, 2 * unit);
        let (leaves, _) = inputs(count, [DType::F32, DType::BF16]);
        let of = |leaves: &[(DType, Vec<u8>)], count: usize| -> Test<Vec<u32>> {
            let segments = count / unit * unit.div_ceil(length);
            let own = &[unit as u32, length as u32];
            let bytes = segments * 24;
            Call { kernel: "sums", body: THREE, leaves, count, own, groups: segments, bytes, ..Call::default() }.words()
        };
        let whole = of(&leaves, count)?;
        let rest: Vec<_> =
            leaves.iter().map(|(dtype, bytes)| (*dtype, bytes[bytes.len() / count * tail..].to_vec())).collect();
        let rest = of(&rest, count - tail)?;
        assert_eq!(whole[whole.len() - rest.len()..], rest);
    }
    Ok(())
}

/// Sums in f32 would lose the small numbers.
#[test]
pub(super) fn what_rounding_takes_is_kept() -> Test {
    let body = "const VALUES: u32 = 1u; fn value(l: Leaves, at: Place, k: u32) -> f32 { return l[0]; }";
    let count = 24_000;
    let mut values: Vec<f32> = vec![1e-5; count];
    (values[3], values[20_000]) = (1e6, -1e6);
    let leaves = [(DType::F32, encoded(DType::F32, &values))];
    let (own, bytes) = (&[count as u32, count as u32], 8);
    let out = Call { kernel: "sums", body, leaves: &leaves, count, own, bytes, ..Call::default() }.pairs()?;
    let expected = f64::from(1e-5f32) * (count - 2) as f64;
    assert!((out[0] - expected).abs() < 1e-8, "{} is not {expected}", out[0]);
    let own = &[1, count as u32];
    let out = Call { kernel: "columns", body, leaves: &leaves, count, own, bytes, ..Call::default() }.pairs()?;
    assert!((out[0] - expected).abs() < 1e-4, "{} is not {expected}", out[0]);
    Ok(())
}

#[test]
pub(super) fn inner_products_are_exact() -> Test {
    for (index, (tile, dtypes)) in TILES.into_iter().zip(TYPES.iter().cycle()).enumerate() {
        let [count, unit, length] = tile;
        let vectors = [1, 2, 4, 5, 9][index % 5];
        let (leaves, [a, b]) = inputs(count, *dtypes);
        // Differences of the two, shifted by powers of two, so that they are exact.
        let body = format!(
            "const VALUES: u32 = {vectors}u;
            fn value(l: Leaves, at: Place, k: u32) -> f32 {{
                return select(l[0], l[1], k % 2u == 1u) * f32(1u << k) * 9.094947017729282e-13;
            }}"
        );
        let value = |i: usize, k: usize| f64::from([a[i], b[i]][k % 2]) * (1u32 << k) as f64 * 2f64.powi(-40);
        let segments = segments(count, unit, length);
        let blocks = usize::div_ceil(vectors, 4);
        let pairs = vectors * (vectors + 1) / 2;
        let call = Call {
            kernel: "gram",
            body: &body,
            leaves: &leaves,
            count,
            own: &[unit as u32, length as u32],
            groups: segments.len() * blocks * (blocks + 1) / 2,
            bytes: segments.len() * pairs * 8,
            ..Call::default()
        };
        let out = call.pairs()?;
        for (segment, products) in segments.into_iter().zip(out.chunks_exact(pairs)) {
            let mut products = products.iter();
            for i in 0..vectors {
                for j in i..vectors {
                    let terms = || segment.clone().map(|at| value(at, i) * value(at, j));
                    let (expected, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                    let product = products.next().ok_or("there are too few")? / GRAM_SCALE;
                    let error = (product - expected).abs();
                    assert!(error <= size * 2f64.powi(-42), "{tile:?}: {i}, {j}: {expected}, not {product}");
                }
            }
        }
    }
    Ok(())
}

#[test]
pub(super) fn the_last_unit_may_be_shorter() -> Test {
    for [count, unit, length] in
        [[5003, 4096, 1024], [5003, 1000, 300], [10_007, 4096, 4096], [13, 8, 8], [4097, 4096, 512]]
    {
        let (leaves, [a, b]) = inputs(count, [DType::BF16, DType::F32]);
        let mut segments = segments(count, unit, length);
        let whole = count / unit * unit;
        segments.extend((whole..count).step_by(length).map(|from| from..(from + length).min(count)));
        let own = &[unit as u32, length as u32];
        let groups = segments.len();
        let call = Call { leaves: &leaves, count, own, groups, ..Call::default() };
        let sums = Call { kernel: "sums", body: THREE, bytes: groups * 24, ..call };
        let gram = Call { kernel: "gram", bytes: groups * 48, ..sums };
        for (segment, (sums, products)) in
            segments.into_iter().zip(sums.pairs()?.chunks_exact(3).zip(gram.pairs()?.chunks_exact(6)))
        {
            let rows: Vec<[f64; 3]> = segment.clone().map(|i| three(a[i], b[i]).map(f64::from)).collect();
            let pairs = (0..3).flat_map(|i| (i..3).map(move |j| (i, j)));
            for ((i, j), product) in pairs.zip(products) {
                let expected: f64 = rows.iter().map(|row| row[i] * row[j]).sum();
                let error = (product / GRAM_SCALE - expected).abs();
                assert!(error < 1e-9, "{unit}, {length}, {segment:?}: {i}, {j}: {expected}");
            }
            for (k, sum) in sums.iter().enumerate() {
                let expected: f64 = rows.iter().map(|row| row[k]).sum();
                assert!((sum - expected).abs() < 1e-9, "{unit}, {length}, {segment:?}: {k}: {expected}, not {sum}");
            }
        }
    }
    Ok(())
}

#[test]
pub(super) fn columns_are_summed_by_strips() -> Test {
    for (rows, columns, strip) in [(1, 1, 1), (100, 1, 7), (1, 1000, 5), (37, 53, 10), (64, 300, 64), (500, 17, 100)] {
        let count = rows * columns;
        let (leaves, [a, b]) = inputs(count, [DType::BF16, DType::F8E5M2]);
        let strips = usize::div_ceil(rows, strip);
        let call = Call {
            kernel: "columns",
            body: THREE,
            leaves: &leaves,
            count,
            own: &[columns as u32, strip as u32],
            groups: (strips * columns).div_ceil(256) + 1,
            bytes: strips * columns * 24,
            ..Call::default()
        };
        let out = call.pairs()?;
        for (index, sums) in out.chunks_exact(3).enumerate() {
            let (first, column) = (index / columns * strip, index % columns);
            for (k, sum) in sums.iter().enumerate() {
                let along = first..(first + strip).min(rows);
                let expected: f64 =
                    along.map(|row| row * columns + column).map(|i| f64::from(three(a[i], b[i])[k])).sum();
                assert!((sum - expected).abs() < 1e-10, "{rows} x {columns}, {index}: {expected}, not {sum}");
            }
        }
    }
    Ok(())
}

#[test]
pub(super) fn magnitudes_are_counted() -> Test {
    let magnitude = |x: f32| x.to_bits() & 0x7fff_ffff;
    for (count, groups) in [(1, 1), (13, 3), (5003, 1), (70_001, 3), (70_001, 500)] {
        let (leaves, [a, b]) = inputs(count, [DType::BF16, DType::BF16]);
        // More than are counted at once, of each quantity; whole, and where the bounds leave numbers out on both sides.
        let searches = [
            [0, 0, 0x7fff_ffff, 21],
            [1, 0x3c00_0000, 0x3f80_0000, 16],
            [2, 0x3e80_0000, 0x3e80_03ff, 0],
            [0, 0x3f00_0000, 0x3f7f_ffff, 13],
            [2, 1, 0x3f7f_ffff, 20],
        ];
        let words: Vec<u32> = [77; 3].into_iter().chain(searches.into_iter().flatten()).collect();
        let call = Call {
            kernel: "histogram",
            body: THREE,
            leaves: &leaves,
            count,
            own: &[searches.len() as u32, 3],
            words: &words,
            groups,
            bytes: searches.len() * 1025 * 4,
            ..Call::default()
        };
        let out = call.words()?;
        for (search, counts) in searches.iter().zip(out.chunks_exact(1025)) {
            let [k, low, high, shift] = *search;
            let mut expected = vec![0; 1025];
            for (a, b) in a.iter().zip(&b) {
                match magnitude(three(*a, *b)[k as usize]) {
                    m if m < low => expected[0] += 1,
                    m if m <= high => expected[1 + ((m - low) >> shift) as usize] += 1,
                    _ => {}
                }
            }
            assert_eq!(counts, expected, "{count} elements, {search:x?}");
        }
    }
    Ok(())
}

#[test]
fn equal_numbers_are_counted() -> Test {
    let body = "const VALUES: u32 = 1u; fn value(l: Leaves, at: Place, k: u32) -> f32 { return l[0]; }";
    let count = 100_003;
    let values: Vec<f32> = random(3, count).into_iter().map(|bits| [0.0, 0.5, 0.5, 1.0][bits as usize % 4]).collect();
    let leaves = [(DType::F8E4M3, encoded(DType::F8E4M3, &values))];
    let (own, words) = (&[1, 0], &[0, 1, 0x3f80_0000, 20]);
    let call = Call {
        kernel: "histogram",
        body,
        leaves: &leaves,
        count,
        own,
        words,
        groups: 7,
        bytes: 4100,
        ..Call::default()
    };
    let out = call.words()?;
    let of = |x: f32| values.iter().filter(|other| **other == x).count() as u32;
    assert_eq!([out[0], out[1 + 0x3ef], out[1 + 0x3f7]], [of(0.0), of(0.5), of(1.0)]);
    assert_eq!(out.iter().sum::<u32>(), count as u32);
    Ok(())
}

/// A device may end loops that take too long, so that these are the CPU's.
#[test]
pub(super) fn what_takes_too_many_rounds_is_strange() -> Test {
    let count = 1 << 16;
    let leaves = [(DType::F8E4M3, vec![0x38; count])];
    let body = "const VALUES: u32 = 3u; fn value(l: Leaves, at: Place, k: u32) -> f32 { return l[0]; }";
    for (kernel, own, is_strange) in [
        ("columns", [1, 20_000], true),
        ("columns", [1, 12_000], false),
        ("sums", [count as u32, count as u32], false),
        ("gram", [count as u32, count as u32], false),
    ] {
        let bytes = 6 * 8;
        let out =
            Call { kernel, body, leaves: &leaves, count, own: &own, groups: 1, bytes, ..Call::default() }.run()?;
        assert_eq!(out.is_none(), is_strange, "{kernel} {own:?}");
    }
    let words: Vec<u32> = [0, 0, 0x3fff_ffff, 20].repeat(2000);
    let (own, bytes) = (&[2000, 0], 2000 * 4100);
    let call = Call { kernel: "histogram", body, leaves: &leaves, count, own, words: &words, bytes, ..Call::default() };
    assert_eq!(call.run()?, None);
    Ok(())
}
