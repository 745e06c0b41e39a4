//! Distances between sets of features whose distances are known.

use super::{expected, features, statistics};
use crate::model::{Outcome, Random, fixture, names_in};
use ckptmerge::Checkpoint;
use ckptmerge::eval::{Accumulator, Features, Reference, Statistics, infinity, kid, precision_recall};
use ckptmerge::stream::Control;
use tempfile::tempdir;

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> Outcome<T> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(work))
}

/// The first rows.
fn first(features: &Features, count: usize) -> Features {
    let values = features.values[..count * features.dimension].to_vec();
    Features { values, ..features.clone() }
}

/// Of features in both forms, of statistics with and without their number of images, and of pytorch-fid's files.
#[test]
fn frechet_distances_are_pytorch_fids() -> Outcome {
    let expected = expected()?;
    let pairs = expected["pairs"].as_object().ok_or("no pairs")?;
    assert_eq!(pairs.len(), 10);
    for (pair, values) in pairs {
        let (a, b) = pair.split_at(1);
        let reference = Reference::new(statistics(a)?);
        let nameless = Reference::new(Statistics { count: None, ..statistics(a)? });
        let found = [
            reference.distance(&statistics(b)?)?,
            reference.distance_of(&features(b)?)?,
            nameless.distance_of(&features(b)?)?,
            nameless.distance(&Statistics { count: None, ..statistics(b)? })?,
        ];
        for library in ["frechet", "singular_values"] {
            let value = values[library].as_f64().ok_or("no number")?;
            for (way, found) in found.iter().enumerate() {
                // Of equal sets the distance is the rounding of all that was added.
                let bound = 1e-6 * value.max(1.0);
                assert!((found - value).abs() <= bound, "{pair}, way {way}: {found}, but {library} says {value}");
            }
        }
    }
    Ok(())
}

#[test]
fn statistics_are_pytorch_fids() -> Outcome {
    let folder = tempdir()?;
    for name in ["b", "c"] {
        let theirs = Statistics::read(&Checkpoint::open(fixture(&format!("eval/stats-{name}.npz")))?)?;
        let ours = Statistics { extractor: Some("pixels".to_owned()), ..statistics(name)? };
        assert!(super::difference(&ours.mean, &theirs.mean) < 1e-14);
        assert!(super::difference(&ours.covariance, &theirs.covariance) < 1e-14);
        assert_eq!([theirs.count, ours.count], [None, Some(if name == "b" { 150 } else { 20 })]);
        // Written and read again they are the same bits.
        let path = folder.path().join("stats.npz");
        ours.write(&path)?;
        let again = Statistics::read(&Checkpoint::open(&path)?)?;
        assert_eq!(again.mean, ours.mean);
        assert_eq!(again.covariance, ours.covariance);
        assert_eq!((again.count, again.extractor), (ours.count, ours.extractor));
    }
    assert_eq!(names_in(folder.path()), ["stats.npz"]);
    Ok(())
}

/// Moments of 1500 rows, which are several blocks, far from zero: against two passes in f64.
#[test]
fn covariances_are_right_far_from_zero_and_however_rows_come() -> Outcome {
    const D: usize = 5;
    let mut random = Random(3);
    let values: Vec<f32> = (0..1500 * D).map(|_| (1e4 + random.uniform()) as f32).collect();
    let pushed = |parts: &[usize], threads: usize| {
        on_threads(threads, || {
            let mut accumulator = Accumulator::new(D);
            let mut rest = &values[..];
            for part in parts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(part * D));
                accumulator.push(now);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            accumulator.finish("rows")
        })
    };
    let all = pushed(&[1500], 1)??;
    for (parts, threads) in [(&[1][..], 1), (&[7, 600, 64], 3), (&[512], 2)] {
        let other = pushed(parts, threads)??;
        assert_eq!((&other.mean, &other.covariance), (&all.mean, &all.covariance), "{parts:?}");
    }
    let column = |i: usize| values.iter().skip(i).step_by(D).map(|&value| f64::from(value));
    let mean: Vec<f64> = (0..D).map(|i| column(i).map(|x| x - 1e4).sum::<f64>() / 1500.0 + 1e4).collect();
    for i in 0..D {
        assert!((all.mean[i] - mean[i]).abs() < 1e-11);
        for j in 0..D {
            let sum: f64 = column(i).zip(column(j)).map(|(x, y)| (x - mean[i]) * (y - mean[j])).sum();
            assert!((all.covariance[i * D + j] - sum / 1499.0).abs() < 1e-12);
        }
    }
    Ok(())
}

#[test]
fn kernel_distances_are_clean_fids() -> Outcome {
    let expected = expected()?;
    let (a, b) = (features("a")?, features("b")?);
    let all = kid(&first(&a, 150), &b, 0, Control::none())?;
    let theirs = expected["kid_of_150_a_and_b"].as_f64().ok_or("no number")?;
    // Subsets of all rows differ in their order alone.
    assert!((all.mean - theirs).abs() < 1e-9 * theirs.abs() && all.deviation < 1e-12, "{all:?} {theirs}");
    assert_eq!((all.subsets, all.size), (100, 150));
    let same = kid(&a, &a, 0, Control::none())?;
    let theirs = expected["pairs"]["aa"]["kid"].as_f64().ok_or("no number")?;
    assert!((same.mean - theirs).abs() < 1e-9 * theirs.abs().max(1e-3), "{same:?} {theirs}");
    // Real subsets: near the value of all rows, the same by one seed, others by another.
    let some = kid(&a, &b, 1, Control::none())?;
    assert!((some.mean - all.mean).abs() < 3.0 * some.deviation.max(1e-3), "{some:?} {all:?}");
    assert!(some.deviation > 0.0);
    let again = on_threads(3, || kid(&a, &b, 1, Control::none()))??;
    assert_eq!((again.mean.to_bits(), again.deviation.to_bits()), (some.mean.to_bits(), some.deviation.to_bits()));
    assert_ne!(kid(&a, &b, 2, Control::none())?.mean, some.mean);
    Ok(())
}

#[test]
fn precision_and_recall_follow_their_definition() -> Outcome {
    let expected = expected()?;
    for (pair, values) in expected["pairs"].as_object().ok_or("no pairs")? {
        let (a, b) = pair.split_at(1);
        let (a, b) = (features(a)?, features(b)?);
        for threads in [1, 2] {
            let found = on_threads(threads, || precision_recall(&a, &b, Control::none()))??;
            let [precision, recall] = [0, 1].map(|index| values["precision_recall"][index].as_f64());
            assert_eq!([Some(found.precision), Some(found.recall)], [precision, recall], "{pair}");
        }
    }
    Ok(())
}

/// Far from zero the product form's error is larger than the distances.
#[test]
fn precision_and_recall_hold_far_from_zero() -> Outcome {
    let (a, e) = (features("a")?, features("e")?);
    let exact = |features: &Features| {
        // Multiples of 2⁻¹⁰ near 2¹², so that the shift is exact.
        let values = features.values.iter().map(|x| (x * 1024.0).round() / 1024.0).collect();
        Features { values, ..features.clone() }
    };
    let shifted = |features: &Features| {
        let values = features.values.iter().map(|x| x + 4096.0).collect();
        Features { values, ..features.clone() }
    };
    let (a, e) = (exact(&a), exact(&e));
    let near = precision_recall(&a, &e, Control::none())?;
    assert_eq!(precision_recall(&shifted(&a), &shifted(&e), Control::none())?, near);
    Ok(())
}

/// From features of the reference's own distribution, of which the distance is 0 and its bias known to be c/N.
#[test]
fn infinitely_many_images_have_no_bias() -> Outcome {
    const D: usize = 8;
    let mut random = Random(11);
    // Sums of twelve uniform numbers, of variance 1/3 each.
    let values: Vec<f32> = (0..3000 * D).map(|_| (random.values(12).iter().sum::<f64>() / 2.0) as f32).collect();
    let features = Features { origin: "drawn".to_owned(), dimension: D, extractor: None, values };
    let covariance = (0..D * D).map(|i| if i % (D + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let normal = Statistics {
        origin: "normal".to_owned(),
        dimension: D,
        count: None,
        extractor: None,
        mean: vec![0.0; D],
        covariance,
    };
    let reference = Reference::new(normal);
    let found = infinity(&reference, &features, 0, Control::none())?;
    assert_eq!(found.points.len(), 15);
    assert_eq!((found.points[0].0, found.points[14].0), (300, 3000));
    for (n, distance) in [found.points[0], found.points[14]] {
        assert!(distance > 0.0 && distance < 3.0 * found.slope / n as f64, "{found:?}");
    }
    let all = reference.distance_of(&features)?;
    assert!((found.points[14].1 - all).abs() < 1e-9 * all, "the last point is all images in another order");
    // To first order c is d of the means and d(d + 1)/4 of the covariances.
    let c = (D + D * (D + 1) / 4) as f64;
    assert!((found.slope - c).abs() < 0.3 * c, "{found:?}");
    assert!(found.value.abs() < 0.25 * found.points[0].1, "{found:?}");
    let again = on_threads(3, || infinity(&reference, &features, 0, Control::none()))??;
    assert_eq!(again, found);
    Ok(())
}

#[test]
fn what_cannot_be_compared_is_refused() -> Outcome {
    let (a, b) = (features("a")?, features("b")?);
    let narrow = Features { dimension: 24, origin: "narrow.npz".to_owned(), ..b.clone() };
    let other = Features { extractor: Some("digits".to_owned()), ..b.clone() };
    let own = Features { extractor: Some("pixels".to_owned()), ..a.clone() };
    let with_nan = Features { values: vec![f32::NAN; b.values.len()], ..b.clone() };
    let one = Features { origin: "one.npz".to_owned(), ..first(&b, 1) };
    let reference = Reference::new(Statistics::of(&own)?);
    let none = Control::none;
    let says = |result: ckptmerge::Result<()>, parts: &[&str]| {
        let said = result.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(!said.is_empty() && parts.iter().all(|part| said.contains(part)), "{said:?} lacks {parts:?}");
    };
    says(reference.distance_of(&narrow).map(drop), &["48 numbers", "narrow.npz of 24"]);
    says(reference.distance_of(&other).map(drop), &["pixels", "digits", "--features"]);
    says(reference.distance_of(&one).map(drop), &["one.npz has 1 of the two"]);
    says(reference.distance_of(&with_nan).map(drop), &["not finite"]);
    says(reference.distance_of(&first(&with_nan, 5)).map(drop), &["not finite"]);
    says(kid(&a, &narrow, 0, none()).map(drop), &["narrow.npz"]);
    says(kid(&a, &one, 0, none()).map(drop), &["one.npz"]);
    says(kid(&a, &with_nan, 0, none()).map(drop), &["not finite"]);
    says(precision_recall(&a, &first(&b, 3), none()).map(drop), &["4 at least"]);
    says(infinity(&reference, &first(&a, 29), 0, none()).map(drop), &["29 images, too few"]);
    // A covariance with a large negative eigenvalue is none.
    let mut wrong = Statistics { count: None, ..statistics("a")? };
    wrong.covariance[1] = 50.0;
    wrong.covariance[48] = 50.0;
    says(Reference::new(wrong).distance(&statistics("b")?).map(drop), &["negative eigenvalues"]);
    Ok(())
}
