//! Learning rate by step.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// How the learning rate runs over training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Schedule {
    /// Linear warm-up, then half a cosine over the remaining steps, a new value every step.
    Cosine(Rates),
    /// The reference's `linear_warmup_cosine_lr`: warm-up within the first epoch, then a cosine
    /// that changes once an epoch. An epoch shorter than the warm-up ends it with a jump.
    EpochCosine(Rates),
}

/// The corner values of a [`Schedule`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Highest rate, reached at the end of the warm-up.
    pub init_lr: f64,
    /// Rate that the cosine falls to.
    pub min_lr: f64,
    /// Rate of step 0, if there is a warm-up.
    pub warmup_lr: f64,
    /// Length of the warm-up, steps. 0 begins at `init_lr`.
    pub warmup_steps: u64,
}

impl Default for Schedule {
    /// The paper's rates over a per-step cosine.
    fn default() -> Schedule {
        Schedule::Cosine(Rates {
            init_lr: 1e-4,
            min_lr: 1e-5,
            warmup_lr: 1e-6,
            warmup_steps: 2000,
        })
    }
}

impl Schedule {
    /// Checks the rates.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] for a rate that is negative, infinite or above the highest.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (Schedule::Cosine(rates) | Schedule::EpochCosine(rates)) = self;
        for (setting, rate) in [
            ("schedule.init_lr", rates.init_lr),
            ("schedule.min_lr", rates.min_lr),
            ("schedule.warmup_lr", rates.warmup_lr),
        ] {
            if !(rate.is_finite() && rate >= 0.0 && rate <= rates.init_lr) {
                return Err(ConfigError::Setting {
                    setting,
                    message: format!("{rate} is out of range; take 0 to init_lr"),
                });
            }
        }
        Ok(())
    }

    /// The rate of `step` (from 0) in a run of `total_steps`, of which `steps_per_epoch` make an
    /// epoch. Steps beyond the run get `min_lr`.
    pub fn lr(&self, step: u64, total_steps: u64, steps_per_epoch: u64) -> f64 {
        match self {
            Schedule::Cosine(rates) => {
                if step < rates.warmup_steps {
                    return rates.warmup(step);
                }
                let length = total_steps.saturating_sub(rates.warmup_steps);
                rates.cosine(step - rates.warmup_steps, length)
            }
            Schedule::EpochCosine(rates) => {
                let steps_per_epoch = steps_per_epoch.max(1);
                match step / steps_per_epoch {
                    0 => rates.warmup(step).min(rates.init_lr),
                    epoch => rates.cosine(epoch, total_steps.div_ceil(steps_per_epoch)),
                }
            }
        }
    }
}

impl Rates {
    fn warmup(&self, step: u64) -> f64 {
        if step >= self.warmup_steps {
            return self.init_lr;
        }
        let share = step as f64 / self.warmup_steps as f64;
        self.warmup_lr + (self.init_lr - self.warmup_lr) * share
    }

    fn cosine(&self, at: u64, length: u64) -> f64 {
        if at >= length {
            return self.min_lr;
        }
        let angle = std::f64::consts::PI * at as f64 / length as f64;
        self.min_lr + 0.5 * (self.init_lr - self.min_lr) * (1.0 + angle.cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(warmup_steps: u64) -> Rates {
        Rates {
            init_lr: 1.0,
            min_lr: 0.2,
            warmup_lr: 0.1,
            warmup_steps,
        }
    }

    fn check(schedule: &Schedule, total: u64, per_epoch: u64, expected: &[(u64, f64)]) {
        for &(step, expected) in expected {
            let got = schedule.lr(step, total, per_epoch);
            assert!(
                (got - expected).abs() < 1e-12,
                "step {step}: {got} {expected}"
            );
        }
    }

    #[test]
    fn cosine_by_step() {
        let expected = [
            (0, 0.1),
            (1, 0.4),
            (2, 0.7),
            (3, 1.0),
            (8, 0.6),
            (13, 0.2),
            (99, 0.2),
        ];
        check(&Schedule::Cosine(rates(3)), 13, 5, &expected);
        check(
            &Schedule::Cosine(rates(0)),
            10,
            5,
            &[(0, 1.0), (5, 0.6), (10, 0.2)],
        );
        // A run that ends within its warm-up, or has no steps at all.
        check(&Schedule::Cosine(rates(3)), 2, 5, &[(1, 0.4), (3, 0.2)]);
        check(&Schedule::Cosine(rates(0)), 0, 0, &[(0, 0.2)]);
    }

    #[test]
    fn cosine_by_epoch() {
        // 4 epochs of 5 steps: cos(π e / 4) from the second on.
        let at = |epoch: f64| 0.2 + 0.4 * (1.0 + (std::f64::consts::PI * epoch / 4.0).cos());
        let expected = [
            (0, 0.1),
            (1, 0.4),
            (3, 1.0),
            (4, 1.0),
            (5, at(1.0)),
            (9, at(1.0)),
            (10, at(2.0)),
            (19, at(3.0)),
            (20, 0.2),
        ];
        check(&Schedule::EpochCosine(rates(3)), 20, 5, &expected);
        // Warm-up longer than the epoch: a jump.
        check(
            &Schedule::EpochCosine(rates(9)),
            20,
            5,
            &[(4, 0.5), (5, at(1.0))],
        );
        check(&Schedule::EpochCosine(rates(0)), 20, 5, &[(0, 1.0)]);
    }

    #[test]
    fn settings() {
        let text = toml::to_string(&Schedule::default()).unwrap();
        assert_eq!(
            toml::from_str::<Schedule>(&text).unwrap(),
            Schedule::default()
        );
        assert!(toml::from_str::<Schedule>(&text.replace("min_lr", "low_lr")).is_err());
        Schedule::default().validate().unwrap();
        let bad = |min_lr| Schedule::Cosine(Rates { min_lr, ..rates(0) }).validate();
        assert!(bad(2.0).is_err() && bad(-0.1).is_err() && bad(f64::NAN).is_err());
    }
}
