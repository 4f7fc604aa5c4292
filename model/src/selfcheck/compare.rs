//! How far numbers may be from those that they should be.

use tch::{Device, Kind, Tensor};

use super::check::{Fault, ADVICE};

/// What is tolerated. The first three are shares of what is expected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tolerance {
    /// A loss.
    pub(super) loss: f64,
    /// The largest difference of an output, as a share of its largest number.
    pub(super) output: f64,
    /// The 2-norm of a gradient's difference, as a share of the gradient's.
    pub(super) gradient: f64,
    /// A loss after steps that each began where the one before it ended: errors add up.
    pub(super) trajectory: f64,
    /// The largest number of a gradient that is zero in exact arithmetic, as a share of the norm of
    /// all gradients together.
    pub(super) zero: f64,
}

/// 32 bits, TF32 off: the tolerances of the goldens. Measured on a CPU: 2e-7, 1.5e-6, 1.7e-6, 3e-6, 2e-10.
pub(super) const F32: Tolerance = Tolerance {
    loss: 1e-5,
    output: 1e-5,
    gradient: 1e-4,
    trajectory: 1e-4,
    zero: 1e-6,
};

/// Products in bfloat16, which has 8 bits of mantissa: three to four times what a CPU's bfloat16 differs by
/// from 64 bits on these networks (3e-3, 2.5e-2, 3e-2, 1e-2, 8e-6). A GPU adds in another order, and
/// rounds the probabilities of attention elsewhere. What is wrong in the program, a scale or a mask say,
/// shows in 32 bits, or is far larger.
pub(super) const BF16: Tolerance = Tolerance {
    loss: 1e-2,
    output: 8e-2,
    gradient: 1e-1,
    trajectory: 3e-2,
    zero: 3e-5,
};

/// Collects the worst of each kind and the first that is beyond its tolerance.
#[derive(Debug)]
pub(super) struct Comparison {
    tolerance: Tolerance,
    pub(super) worst_loss: f64,
    pub(super) worst_output: f64,
    pub(super) worst_gradient: f64,
    pub(super) worst_zero: f64,
    pub(super) worst_trajectory: f64,
    pub(super) compared: u64,
    fault: Option<Fault>,
}

impl Comparison {
    pub(super) fn new(tolerance: Tolerance) -> Comparison {
        Comparison {
            tolerance,
            worst_loss: 0.0,
            worst_output: 0.0,
            worst_gradient: 0.0,
            worst_zero: 0.0,
            worst_trajectory: 0.0,
            compared: 0,
            fault: None,
        }
    }

    /// Notes one error; a NaN is one too.
    fn judge(&mut self, what: &str, measure: &str, error: f64, tolerance: f64) {
        self.compared += 1;
        if (error.is_nan() || error > tolerance) && self.fault.is_none() {
            self.fault = Some(Fault {
                what: what.to_string(),
                got: format!("{measure} {error:.2e}"),
                expected: format!("at most {tolerance:.0e}"),
                advice: ADVICE.into(),
            });
        }
    }

    pub(super) fn loss(&mut self, what: &str, got: f64, expected: f64) {
        let error = (got - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
        self.worst_loss = larger(self.worst_loss, error);
        let measure = format!("{got:.7} is off {expected:.7} by a share of");
        self.judge(what, &measure, error, self.tolerance.loss);
    }

    /// A loss after steps that each began where the one before it ended: errors add up.
    pub(super) fn trajectory(&mut self, what: &str, got: f64, expected: f64) {
        let error = (got - expected).abs() / expected.abs().max(f64::MIN_POSITIVE);
        self.worst_trajectory = larger(self.worst_trajectory, error);
        let measure = format!("{got:.7} is off {expected:.7} by a share of");
        self.judge(what, &measure, error, self.tolerance.trajectory);
    }

    pub(super) fn output(
        &mut self,
        what: &str,
        got: &Tensor,
        expected: &Tensor,
    ) -> Result<(), Fault> {
        let (got, expected) = (on_host(got)?, on_host(expected)?);
        if got.size() != expected.size() {
            return Err(shapes_differ(what, &got, &expected));
        }
        let error = largest(&got.f_sub(&expected)?)? / largest(&expected)?.max(f64::MIN_POSITIVE);
        self.worst_output = larger(self.worst_output, error);
        let measure = "largest difference over largest value is";
        self.judge(what, measure, error, self.tolerance.output);
        Ok(())
    }

    /// `total` is the norm of all gradients together; `is_zero` for one that is zero in exact
    /// arithmetic, so that only rounding is left of it.
    pub(super) fn gradient(
        &mut self,
        what: &str,
        got: &Tensor,
        expected: &Tensor,
        is_zero: bool,
        total: f64,
    ) -> Result<(), Fault> {
        let (got, expected) = (on_host(got)?, on_host(expected)?);
        if got.size() != expected.size() {
            return Err(shapes_differ(what, &got, &expected));
        }
        let what = format!("gradient of {what}");
        if is_zero {
            let error = largest(&got.f_sub(&expected)?)? / total;
            self.worst_zero = larger(self.worst_zero, error);
            let measure = "its largest number, over the norm of all gradients, is";
            self.judge(&what, measure, error, self.tolerance.zero);
            return Ok(());
        }
        let error = norm(&got.f_sub(&expected)?)? / norm(&expected)?.max(f64::MIN_POSITIVE);
        self.worst_gradient = larger(self.worst_gradient, error);
        let measure = "the norm of the difference over its norm is";
        self.judge(&what, measure, error, self.tolerance.gradient);
        Ok(())
    }

    /// The first number that was beyond its tolerance.
    pub(super) fn end(self) -> Result<(), Fault> {
        self.fault.map_or(Ok(()), Err)
    }
}

/// The larger of two errors; NaN stays.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

fn shapes_differ(what: &str, got: &Tensor, expected: &Tensor) -> Fault {
    Fault {
        what: what.to_string(),
        got: format!("shape {:?}", got.size()),
        expected: format!("{:?}", expected.size()),
        advice: ADVICE.into(),
    }
}

/// A copy in 64 bits on the host.
pub(super) fn on_host(tensor: &Tensor) -> Result<Tensor, Fault> {
    let host = tensor.f_detach()?.f_to_device(Device::Cpu)?;
    Ok(host.f_to_kind(Kind::Double)?)
}

pub(super) fn largest(tensor: &Tensor) -> Result<f64, Fault> {
    Ok(tensor.f_abs()?.f_max()?.f_double_value(&[])?)
}

pub(super) fn norm(tensor: &Tensor) -> Result<f64, Fault> {
    let square = tensor.f_mul(tensor)?.f_sum(Kind::Double)?;
    Ok(square.f_double_value(&[])?.sqrt())
}

/// Compares bits: equal numbers, shapes and element types. NaN differs from everything.
pub(super) fn same_bits(what: &str, got: &Tensor, expected: &Tensor) -> Result<(), Fault> {
    let got = got.f_detach()?.f_to_device(Device::Cpu)?;
    let expected = expected.f_detach()?.f_to_device(Device::Cpu)?;
    let fault = |got: String, expected: String| Fault {
        what: what.to_string(),
        got,
        expected,
        advice: ADVICE.into(),
    };
    if got.size() != expected.size() {
        return Err(shapes_differ(what, &got, &expected));
    }
    if got.f_kind()? != expected.f_kind()? {
        let (got, expected) = (got.f_kind()?, expected.f_kind()?);
        return Err(fault(format!("{got:?}"), format!("{expected:?}")));
    }
    let differ = got.f_ne_tensor(&expected)?.f_sum(Kind::Int64)?;
    match differ.f_int64_value(&[])? {
        0 => Ok(()),
        differ => Err(fault(
            format!("{differ} of {} numbers differ", got.numel()),
            "the same bits".into(),
        )),
    }
}
