//! Samples without replacement that are functions of a seed, a name and a number.

use crate::merge::Key;

/// The first `taken` of 0..n in an order that is drawn at random (Durstenfeld 1964), for the `draw`th time.
pub(crate) fn sample(seed: u64, name: &str, draw: usize, n: usize, taken: usize) -> Vec<usize> {
    let taken = taken.min(n);
    let mut words = vec![0; 2 * taken];
    Key::new(seed, name, draw).fill(0, &mut words);
    let mut order: Vec<usize> = (0..n).collect();
    for (index, words) in words.chunks_exact(2).enumerate() {
        // 64 random bits over n, so that no number is more likely than another by more than n/2⁶⁴.
        let bits = words.iter().fold(0u128, |bits, &word| bits << 32 | u128::from(word));
        let chosen = index + ((bits * (n - index) as u128) >> 64) as usize;
        order.swap(index, chosen);
    }
    order.truncate(taken);
    order
}

#[cfg(test)]
mod tests {
    use super::sample;

    #[test]
    fn samples_have_no_number_twice_and_all_alike() {
        let (n, draws) = (10, 20_000);
        let mut counts = vec![vec![0usize; n]; n];
        for draw in 0..draws {
            let order = sample(1, "test", draw, n, n);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..n), "{order:?}");
            order.iter().enumerate().for_each(|(place, &number)| counts[place][number] += 1);
        }
        // Five standard deviations of a binomial count.
        let expected = draws as f64 / n as f64;
        let bound = 5.0 * (expected * (1.0 - 1.0 / n as f64)).sqrt();
        assert!(counts.iter().flatten().all(|&count| (count as f64 - expected).abs() < bound), "{counts:?}");
        assert_eq!(sample(1, "test", 0, n, 3), sample(1, "test", 0, n, n)[..3]);
        assert_ne!(sample(2, "test", 0, n, n), sample(1, "test", 0, n, n));
    }
}
