//! How far from the reference an output is, and how far it may be.

/// An element may be off by so many times the tolerance, in units of the reference's root mean square or its own size.
const OUTLIER: f64 = 16.0;

/// ‖out − reference‖ / ‖reference‖, or what is wrong: another length, a number that is none, the norm past `tolerance`,
/// or a single element far off (which a norm over many would hide). A tolerance of 0 means equal.
pub(crate) fn within(out: &[f64], reference: &[f64], tolerance: f64) -> Result<f64, String> {
    if out.len() != reference.len() {
        return Err(format!("{} elements, not {}", out.len(), reference.len()));
    }
    let rms = (reference.iter().filter(|r| r.is_finite()).map(|r| r * r).sum::<f64>()
        / out.len().max(1) as f64)
        .sqrt();
    let mut squares = 0.0;
    for (i, (&o, &r)) in out.iter().zip(reference).enumerate() {
        if o == r {
            continue; // infinities among them
        }
        let off = (o - r).abs();
        let bound = OUTLIER * tolerance * (r.abs() + rms);
        if off.is_nan() || off > bound {
            return Err(format!("element {i} is {o}, not {r}"));
        }
        squares += off * off;
    }
    let error = if squares == 0.0 { 0.0 } else { (squares / out.len() as f64).sqrt() / rms };
    if error <= tolerance {
        Ok(error)
    } else {
        Err(format!("relative error {error:.2e}, over {tolerance:.0e}"))
    }
}

/// Whether two outputs are the same bits.
pub(crate) fn same(one: &[f64], other: &[f64]) -> Result<(), String> {
    if one.len() != other.len() {
        return Err(format!("{} elements, not {}", one.len(), other.len()));
    }
    let differ = |(a, b): (&f64, &f64)| a.to_bits() != b.to_bits();
    match one.iter().zip(other).position(differ) {
        Some(i) => Err(format!("element {i} is {} and {}", one[i], other[i])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_element_among_many_is_found() {
        let reference = vec![1.0; 1 << 20];
        let mut out = reference.clone();
        out[777] = 0.5;
        assert!(within(&out, &reference, 4e-3).unwrap_err().contains("element 777"));
    }

    #[test]
    fn nan_never_passes() {
        assert!(within(&[f64::NAN], &[1.0], 1.0).is_err());
        assert!(within(&[1.0], &[f64::NAN], 1.0).is_err());
    }

    #[test]
    fn rounding_passes_and_noise_does_not() {
        let reference: Vec<f64> = (1..1000).map(f64::from).collect();
        let off = |by: f64| reference.iter().map(|r| r * (1.0 + by)).collect::<Vec<_>>();
        assert!(within(&off(1e-3), &reference, 2e-3).is_ok());
        assert!(within(&off(4e-3), &reference, 2e-3).is_err());
    }

    #[test]
    fn equal_means_equal() {
        assert_eq!(within(&[1.0, f64::NEG_INFINITY], &[1.0, f64::NEG_INFINITY], 0.0), Ok(0.0));
        assert!(within(&[1.0 + 1e-12], &[1.0], 0.0).is_err());
    }
}
