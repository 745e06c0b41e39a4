//! Mean, spread, skewness and kurtosis in one pass, without cancellation.
//!
//! A block's central moments are taken about its own mean, and those of two sets of numbers put together as Chan, Golub
//! and LeVeque (1979) do for the variance and Pébay (2008, <https://doi.org/10.2172/1028931>) for the third and fourth:
//! with δ the difference of the means, n and m the sizes and N = n + m,
//!
//! ```text
//! M₂ = M₂ᵃ + M₂ᵇ + δ²·nm/N
//! M₃ = M₃ᵃ + M₃ᵇ + δ³·nm(n − m)/N² + 3δ·(n·M₂ᵇ − m·M₂ᵃ)/N
//! M₄ = M₄ᵃ + M₄ᵇ + δ⁴·nm(n² − nm + m²)/N³ + 6δ²·(n²·M₂ᵇ + m²·M₂ᵃ)/N² + 4δ·(n·M₃ᵇ − m·M₃ᵃ)/N
//! ```

use crate::dtype::vector::{self, Loop};

/// Partial sums kept side by side, whatever the registers' width, so that bits do not depend on the machine.
const LANES: usize = 16;

/// What is known of the size and the form of a set of numbers. Those that are not finite are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// How many there are.
    pub count: u64,
    /// How many of them are zero.
    pub zeros: u64,
    /// How many more were not finite.
    pub not_finite: u64,
    /// The least; infinity if there is none.
    pub min: f64,
    /// The most; minus infinity if there is none.
    pub max: f64,
    mean: f64,
    /// Σ(x − mean)ᵏ for k = 2, 3, 4.
    central: [f64; 3],
}

impl Default for Moments {
    fn default() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { count: 0, zeros: 0, not_finite: 0, min, max, mean: 0.0, central: [0.0; 3] }
    }
}

impl Moments {
    /// Of some numbers. Those that are finite are moved to the front, and their count is given as well.
    pub(super) fn of(values: &mut [f64]) -> (Self, usize) {
        let mut first = vector::run(Sums(values));
        let mut finite = values.len();
        // A number that is not finite makes the sum so.
        if !first.sum.is_finite() {
            finite = 0;
            for index in 0..values.len() {
                if values[index].is_finite() {
                    values[finite] = values[index];
                    finite += 1;
                }
            }
            first = vector::run(Sums(&values[..finite]));
        }
        let count = finite as u64;
        let mut moments = Self {
            count,
            zeros: first.zeros,
            not_finite: (values.len() - finite) as u64,
            min: first.min,
            max: first.max,
            mean: 0.0,
            central: [0.0; 3],
        };
        if first.min == first.max {
            moments.mean = first.min;
        } else if count > 0 {
            moments.mean = first.sum / count as f64;
            moments.central = vector::run(Central(&values[..finite], moments.mean));
        }
        (moments, finite)
    }

    /// Of both sets of numbers.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let not_finite = self.not_finite + other.not_finite;
        if self.count == 0 || other.count == 0 {
            let some = if self.count == 0 { other } else { self };
            return Self { not_finite, ..*some };
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let all = n + m;
        // The shares, not the sizes, so that no product is beyond what f64 holds exactly enough.
        let (a, b) = (n / all, m / all);
        let step = other.mean - self.mean;
        let [second, third, fourth] = self.central;
        let [second_of_other, third_of_other, fourth_of_other] = other.central;
        let square = step * step;
        let both = n * b;
        Self {
            count: self.count + other.count,
            zeros: self.zeros + other.zeros,
            not_finite,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            mean: self.mean + step * b,
            central: [
                second + second_of_other + square * both,
                third
                    + third_of_other
                    + square * step * both * (a - b)
                    + 3.0 * step * (a * second_of_other - b * second),
                fourth
                    + fourth_of_other
                    + square * square * both * (a * a - a * b + b * b)
                    + 6.0 * square * (a * a * second_of_other + b * b * second)
                    + 4.0 * step * (a * third_of_other - b * third),
            ],
        }
    }

    /// The Euclidean norm √Σx², where Σx² = M₂ + n·mean².
    #[must_use]
    pub fn norm(&self) -> f64 {
        (self.central[0] + self.mean * self.mean * self.count as f64).sqrt()
    }

    /// The mean; none of no numbers.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean).filter(|mean| mean.is_finite())
    }

    /// The population's standard deviation √(M₂/n); none of no numbers.
    #[must_use]
    pub fn std(&self) -> Option<f64> {
        (self.count > 0).then(|| (self.central[0] / self.count as f64).sqrt()).filter(|std| std.is_finite())
    }

    /// The skewness √n·M₃/M₂^1.5, without correction for small samples; none if all numbers are equal.
    #[must_use]
    pub fn skewness(&self) -> Option<f64> {
        let [second, third, _] = self.central;
        let variance = second / self.count as f64;
        let skewness = third / self.count as f64 / (variance * variance.sqrt());
        Some(skewness).filter(|skewness| skewness.is_finite() && self.min < self.max)
    }

    /// The excess kurtosis n·M₄/M₂² − 3, without correction for small samples: 0 for a normal distribution, more with
    /// heavier tails; none if all numbers are equal.
    #[must_use]
    pub fn excess_kurtosis(&self) -> Option<f64> {
        let [second, _, fourth] = self.central;
        let variance = second / self.count as f64;
        let kurtosis = fourth / self.count as f64 / (variance * variance) - 3.0;
        Some(kurtosis).filter(|kurtosis| kurtosis.is_finite() && self.min < self.max)
    }

    /// The share of numbers that are zero; none of no numbers.
    #[must_use]
    pub fn sparsity(&self) -> Option<f64> {
        (self.count > 0).then(|| self.zeros as f64 / self.count as f64)
    }
}

#[derive(Default)]
struct First {
    sum: f64,
    min: f64,
    max: f64,
    zeros: u64,
}

/// What a first look at numbers tells.
struct Sums<'a>(&'a [f64]);

impl Loop for Sums<'_> {
    type Output = First;

    #[inline(always)]
    fn run(self) -> First {
        let (mut sum, mut zeros) = ([0.0f64; LANES], [0u64; LANES]);
        let (mut min, mut max) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        let mut add = |lane: usize, x: f64| {
            sum[lane] += x;
            min[lane] = if x < min[lane] { x } else { min[lane] };
            max[lane] = if x > max[lane] { x } else { max[lane] };
            zeros[lane] += u64::from(x == 0.0);
        };
        for chunk in chunks {
            for (lane, x) in chunk.iter().enumerate() {
                add(lane, *x);
            }
        }
        for (lane, x) in rest.iter().enumerate() {
            add(lane, *x);
        }
        First {
            sum: sum.iter().sum(),
            // 0 is added, as no lane is to decide between 0 and −0.
            min: min.iter().copied().fold(f64::INFINITY, f64::min) + 0.0,
            max: max.iter().copied().fold(f64::NEG_INFINITY, f64::max) + 0.0,
            zeros: zeros.iter().sum(),
        }
    }
}

/// Σx² of the numbers that are finite.
pub(super) fn energy(values: &[f64]) -> f64 {
    let energy = vector::run(Squares(values));
    if energy.is_finite() { energy } else { values.iter().filter(|x| x.is_finite()).map(|x| x * x).sum() }
}

struct Squares<'a>(&'a [f64]);

impl Loop for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sums = [0.0f64; LANES];
        let (chunks, rest) = self.0.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                sums[lane] += chunk[lane] * chunk[lane];
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *sum += x * x;
        }
        sums.iter().sum()
    }
}

/// `Σ(x − mean)ᵏ` for k = 2, 3, 4.
struct Central<'a>(&'a [f64], f64);

impl Loop for Central<'_> {
    type Output = [f64; 3];

    #[inline(always)]
    fn run(self) -> [f64; 3] {
        let Self(values, mean) = self;
        let (mut second, mut third, mut fourth) = ([0.0f64; LANES], [0.0f64; LANES], [0.0f64; LANES]);
        let (chunks, rest) = values.as_chunks::<LANES>();
        let mut add = |lane: usize, x: f64| {
            let deviation = x - mean;
            let square = deviation * deviation;
            second[lane] += square;
            third[lane] += square * deviation;
            fourth[lane] += square * square;
        };
        for chunk in chunks {
            for (lane, x) in chunk.iter().enumerate() {
                add(lane, *x);
            }
        }
        for (lane, x) in rest.iter().enumerate() {
            add(lane, *x);
        }
        [second, third, fourth].map(|lanes| lanes.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::Moments;

    fn of(values: &[f64]) -> Moments {
        values
            .chunks(7)
            .map(|part| Moments::of(&mut part.to_vec()).0)
            .fold(Moments::default(), |all, part| all.and(&part))
    }

    #[test]
    fn a_large_mean_takes_nothing_from_the_moments() {
        // 0, 0, 0, 1: skewness 2/√3, kurtosis 7/3; the same beside 10⁶, but for what f64 rounds there.
        for (shift, rounding) in [(0.0, 1e-14), (1e6, 1e-9), (-1e6, 1e-9)] {
            let values: Vec<f64> = (0..400).map(|i| shift + f64::from(u8::from(i % 4 == 3))).collect();
            let moments = of(&values);
            let close = |found: Option<f64>, wanted: f64| {
                assert!((found.unwrap_or(f64::NAN) - wanted).abs() < rounding, "{shift}: {found:?} is not {wanted}");
            };
            close(moments.mean(), shift + 0.25);
            close(moments.std(), 0.1875f64.sqrt());
            close(moments.skewness(), 2.0 / 3f64.sqrt());
            close(moments.excess_kurtosis(), 7.0 / 3.0 - 3.0);
        }
    }

    #[test]
    fn what_is_not_finite_is_left_out_and_counted() {
        let moments = of(&[f64::NAN, 1.0, f64::INFINITY, 3.0, f64::NEG_INFINITY, 0.0, -0.0, 4.0, f64::NAN, f64::NAN]);
        assert_eq!((moments.count, moments.not_finite, moments.zeros), (5, 5, 2));
        assert_eq!((moments.min, moments.max, moments.mean()), (0.0, 4.0, Some(1.6)));
        assert_eq!(moments.norm(), 26f64.sqrt());
        assert_eq!(of(&[0.1; 100]).std(), Some(0.0));
        assert_eq!(of(&[0.1; 100]).excess_kurtosis(), None);
        assert_eq!((of(&[]).mean(), of(&[]).std(), of(&[f64::NAN]).sparsity()), (None, None, None));
    }
}
