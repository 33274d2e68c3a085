//! Which session comes next. Pure and repeatable.

use crate::load::Random;

/// How requests spread over the sessions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Popularity {
    Uniform,
    /// Session `k` (from 1) is asked for with a probability proportional to `k^-exponent`.
    Zipf {
        exponent: f64,
    },
    /// The first session gets `share` of all requests, the others the rest evenly.
    OneHot {
        share: f64,
    },
}

impl Popularity {
    pub fn name(&self) -> &'static str {
        match self {
            Popularity::Uniform => "uniform",
            Popularity::Zipf { .. } => "zipf",
            Popularity::OneHot { .. } => "one-hot",
        }
    }
}

/// Chooses among a fixed number of sessions.
pub(super) enum SessionChoice {
    Uniform { sessions: usize },
    Zipf(Zipf),
    OneHot { sessions: usize, share: f64 },
}

impl SessionChoice {
    /// `sessions`: 1 to 2^32.
    pub(super) fn new(popularity: Popularity, sessions: usize) -> SessionChoice {
        match popularity {
            Popularity::Uniform => SessionChoice::Uniform { sessions },
            Popularity::Zipf { exponent } => SessionChoice::Zipf(Zipf::new(sessions, exponent)),
            Popularity::OneHot { share } => SessionChoice::OneHot { sessions, share },
        }
    }

    /// The index of the next session.
    pub(super) fn next(&self, random: &mut Random) -> usize {
        match self {
            SessionChoice::Uniform { sessions } => random.below(*sessions),
            SessionChoice::Zipf(zipf) => zipf.next(random),
            SessionChoice::OneHot { sessions: 1, .. } => 0,
            SessionChoice::OneHot { sessions, share } => {
                if random.unit() < *share {
                    0
                } else {
                    1 + random.below(*sessions - 1)
                }
            }
        }
    }
}

/// Zipf's law over `1..=count` without a table. Cost: 1 to 2 rounds of a logarithm and an exponential.
/// Source: Hoermann and Derflinger, "Rejection-inversion to generate variates from monotone discrete distributions", TOMACS 1996.
pub(super) struct Zipf {
    count: f64,
    exponent: f64,
    /// Integrals of the hat over the range that is drawn from.
    integral_from: f64,
    integral_to: f64,
    /// How near to a whole number needs no second look.
    accepted: f64,
}

impl Zipf {
    fn new(count: usize, exponent: f64) -> Zipf {
        let count = count as f64;
        let mut zipf = Zipf { count, exponent, integral_from: 0.0, integral_to: 0.0, accepted: 0.0 };
        zipf.integral_from = zipf.integral(1.5) - 1.0;
        zipf.integral_to = zipf.integral(count + 0.5);
        zipf.accepted = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    /// Index in `0..count`; 0 is the most popular.
    fn next(&self, random: &mut Random) -> usize {
        loop {
            let u = self.integral_to + random.unit() * (self.integral_from - self.integral_to);
            let x = self.inverse(u);
            let k = x.round().clamp(1.0, self.count);
            if k - x <= self.accepted || u >= self.integral(k + 0.5) - self.weight(k) {
                return k as usize - 1;
            }
        }
    }

    fn weight(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// Of the weight, from 1 to x: `(x^(1-s) - 1) / (1-s)`, which is `ln x` for s = 1.
    fn integral(&self, x: f64) -> f64 {
        let ln = x.ln();
        exp_m1_by(ln * (1.0 - self.exponent)) * ln
    }

    fn inverse(&self, y: f64) -> f64 {
        // Rounding may leave the range where the logarithm is known.
        let t = (y * (1.0 - self.exponent)).max(-1.0);
        (ln_1p_by(t) * y).exp()
    }
}

/// `(e^x - 1) / x`, and its limit at 0.
fn exp_m1_by(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

/// `ln(1 + x) / x`, and its limit at 0.
fn ln_1p_by(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 200_000;

    fn counts(popularity: Popularity, sessions: usize) -> Vec<u64> {
        let (choice, mut random) = (SessionChoice::new(popularity, sessions), Random::new(11));
        let mut counts = vec![0; sessions];
        (0..DRAWS).for_each(|_| counts[choice.next(&mut random)] += 1);
        counts
    }

    /// Pearson's sum of squares over the degrees of freedom: near 1 where the counts follow `weights`.
    fn chi_square(counts: &[u64], weights: &[f64]) -> f64 {
        let all: f64 = weights.iter().sum();
        let of = |(count, weight): (&u64, &f64)| {
            let expected = weight / all * DRAWS as f64;
            (*count as f64 - expected).powi(2) / expected
        };
        counts.iter().zip(weights).map(of).sum::<f64>() / (counts.len() - 1) as f64
    }

    #[test]
    fn uniform_asks_for_all_alike() {
        assert!(chi_square(&counts(Popularity::Uniform, 100), &[1.0; 100]) < 1.5);
    }

    #[test]
    fn zipf_follows_its_law_for_exponents_below_at_and_above_one() {
        for exponent in [0.5, 0.99, 1.0, 1.2, 2.0] {
            let weights: Vec<f64> = (1..=50).map(|k| f64::from(k).powf(-exponent)).collect();
            let chi = chi_square(&counts(Popularity::Zipf { exponent }, 50), &weights);
            assert!(chi < 1.6, "exponent {exponent}: {chi}");
        }
    }

    #[test]
    fn another_law_is_told_apart_by_the_same_test() {
        let weights: Vec<f64> = (1..=50).map(|k| f64::from(k).powf(-1.1)).collect();
        assert!(chi_square(&counts(Popularity::Zipf { exponent: 1.0 }, 50), &weights) > 5.0);
    }

    #[test]
    fn one_hot_session_gets_its_share_and_the_others_the_rest_evenly() {
        let weights: Vec<f64> = std::iter::once(0.9).chain([0.1 / 19.0; 19]).collect();
        assert!(chi_square(&counts(Popularity::OneHot { share: 0.9 }, 20), &weights) < 1.8);
        assert_eq!(counts(Popularity::OneHot { share: 1.0 }, 3), [DRAWS as u64, 0, 0]);
    }

    #[test]
    fn one_session_is_always_the_first() {
        for popularity in [Popularity::Uniform, Popularity::Zipf { exponent: 1.0 }, Popularity::OneHot { share: 0.5 }] {
            assert_eq!(counts(popularity, 1), [DRAWS as u64]);
        }
    }
}
