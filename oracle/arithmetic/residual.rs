// SPDX-License-Identifier: MIT OR Apache-2.0

//! The residual generator `pcg32-polar-f32`, version 1, as `python -m oracle` records it.
//!
//! Paste this file into your tests (as `tests/residual/mod.rs`, say, with `mod residual;` in the test): it needs
//! no crate. Every step is an integer operation modulo 2^64, or one IEEE-754 binary64 operation, or `sqrt`, which
//! IEEE-754 rounds correctly, so the values have the same bits as the oracle's. Do not reorder the arithmetic and
//! do not use `mul_add`. Check a residual with `fingerprint` before you encode it.

#![allow(clippy::approx_constant, clippy::excessive_precision)] // the digits are the contract's

/// PCG32 (O'Neill 2014, XSH-RR 64/32).
struct Pcg32 {
    state: u64,
    increment: u64,
}

impl Pcg32 {
    fn new(seed: u64, stream: u64) -> Self {
        let mut generator = Pcg32 { state: 0, increment: (stream << 1) | 1 };
        generator.step();
        generator.state = generator.state.wrapping_add(seed);
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(self.increment);
    }

    fn next_u32(&mut self) -> u32 {
        let state = self.state;
        self.step();
        ((((state >> 18) ^ state) >> 27) as u32).rotate_right((state >> 59) as u32)
    }

    /// Uniform in the open interval (-1, 1).
    fn next_uniform(&mut self) -> f64 {
        (2.0 * f64::from(self.next_u32()) + 1.0) * (1.0 / 4294967296.0) - 1.0
    }
}

/// s = m * 2^e with m in [1/2, 1), for a positive normal s.
fn frexp(s: f64) -> (f64, i32) {
    let bits = s.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32 - 1022;
    (f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3fe0_0000_0000_0000), exponent)
}

/// Natural logarithm by 2 artanh((m - 1) / (m + 1)), spelt out because libm's differs between machines.
fn ln(s: f64) -> f64 {
    let (mut m, mut e) = frexp(s);
    if m < 0.7071067811865476 {
        m *= 2.0;
        e -= 1;
    }
    let t = (m - 1.0) / (m + 1.0);
    let q = t * t;
    let mut p = 1.0 / 21.0;
    for k in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * q + 1.0 / k;
    }
    f64::from(e) * 0.6931471805599453 + (2.0 * t) * p
}

/// The first `n` values for `seed` and `stream`: standard normal, by Marsaglia's polar method.
pub fn residual(seed: u64, stream: u64, n: usize) -> Vec<f32> {
    let mut generator = Pcg32::new(seed, stream);
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let u = generator.next_uniform();
        let v = generator.next_uniform();
        let s = u * u + v * v;
        if s >= 1.0 {
            continue;
        }
        let f = ((-2.0 * ln(s)) / s).sqrt();
        values.push((u * f) as f32);
        values.push((v * f) as f32);
    }
    values.truncate(n);
    values
}

/// FNV-1a, 64 bits, over the little-endian bytes: the reference's `residual_fingerprint`.
#[allow(dead_code)]
pub fn fingerprint(values: &[f32]) -> String {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in values.iter().flat_map(|value| value.to_le_bytes()) {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("0x{state:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pcg32_gives_its_published_numbers() {
        let mut generator = Pcg32::new(42, 54);
        let outputs: Vec<u32> = (0..6).map(|_| generator.next_u32()).collect();
        assert_eq!(
            outputs,
            [0xa15c02b7, 0x7b47f409, 0xba1d3330, 0x83d2f293, 0xbfa4784b, 0xcbed606e]
        );
    }

    #[test]
    fn residuals_have_the_known_bits_and_fingerprints() {
        let known: [(u64, u64, [u32; 4], &str); 4] = [
            (0, 0, [0x3e92fab2, 0xbe533308, 0xbfbd5dc5, 0xbfa918f5], "0xe388372113f21ef1"),
            (100, 0, [0xbf8589c0, 0x3f9f8b64, 0xbfdb5bee, 0x3fc056f7], "0x0e6748ea24ecf161"),
            (12, 12, [0xbe72bfc9, 0x3f0d4f6a, 0x3fa78086, 0xbff0d103], "0x7d7124b5a1eb3f6c"),
            (125, 25, [0x3e8c85f1, 0x3d20d344, 0xbfaaf740, 0x3ec0489d], "0xb0ee66e58081d676"),
        ];
        for (seed, stream, first, print) in known {
            let values = residual(seed, stream, 2304);
            let bits: Vec<u32> = values[..4].iter().map(|value| value.to_bits()).collect();
            assert_eq!(bits, first, "seed {seed} stream {stream}");
            assert_eq!(fingerprint(&values), print, "seed {seed} stream {stream}");
        }
    }

    #[test]
    fn odd_lengths_are_prefixes() {
        assert!(residual(7, 3, 0).is_empty());
        assert_eq!(residual(7, 3, 5), residual(7, 3, 6)[..5]);
    }
}
