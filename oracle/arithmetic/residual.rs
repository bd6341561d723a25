// SPDX-License-Identifier: MIT OR Apache-2.0

//! The residual generator `pcg32-polar-f32`, version 1, as `python -m oracle` records it.
//!
//! Paste this file into your tests (as `tests/residual/mod.rs`, say, with `mod residual;` in the test): it needs
//! no crate. Every step is an integer operation modulo 2^64, or one IEEE-754 binary64 operation, or `sqrt`, which
//! IEEE-754 rounds correctly, so the values have the same bits as the oracle's. Do not reorder the arithmetic and
//! do not use `mul_add`. Check a residual with `fingerprint` before you encode it.

// The digits, the names and the single steps are the contract's: a fused multiply-add gives other bits.
#![allow(
    clippy::approx_constant,
    clippy::excessive_precision,
    clippy::many_single_char_names,
    clippy::missing_const_for_fn, // older compilers have fewer of them
    clippy::suboptimal_flops
)]

/// PCG32 (O'Neill 2014, XSH-RR 64/32).
struct Pcg32 {
    state: u64,
    increment: u64,
}

impl Pcg32 {
    fn new(seed: u64, stream: u64) -> Self {
        let mut generator = Self {
            state: 0,
            increment: (stream << 1) | 1,
        };
        generator.step();
        generator.state = generator.state.wrapping_add(seed);
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(self.increment);
    }

    fn next_u32(&mut self) -> u32 {
        let state = self.state;
        self.step();
        low_half(((state >> 18) ^ state) >> 27).rotate_right(low_half(state >> 59))
    }

    /// Uniform in the open interval (-1, 1).
    fn next_uniform(&mut self) -> f64 {
        (2.0 * f64::from(self.next_u32()) + 1.0) * (1.0 / 4_294_967_296.0) - 1.0
    }
}

/// The lower 32 bits.
fn low_half(bits: u64) -> u32 {
    let [a, b, c, d, ..] = bits.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Rounded once, to the nearest float32, ties to even.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation)] // no other conversion rounds
fn to_f32(value: f64) -> f32 {
    value as f32
}

/// s = m * 2^e with m in [1/2, 1), for a positive normal s.
fn frexp(s: f64) -> (f64, i32) {
    let bits = s.to_bits();
    let [first, second, ..] = bits.to_be_bytes();
    let exponent = i32::from((u16::from_be_bytes([first, second]) >> 4) & 0x7ff) - 1022;
    (
        f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3fe0_0000_0000_0000),
        exponent,
    )
}

/// Natural logarithm by 2 artanh((m - 1) / (m + 1)), spelt out because libm's differs between machines.
fn ln(s: f64) -> f64 {
    let (mut m, mut e) = frexp(s);
    if m < 0.707_106_781_186_547_6 {
        m *= 2.0;
        e -= 1;
    }
    let t = (m - 1.0) / (m + 1.0);
    let q = t * t;
    let mut p = 1.0 / 21.0;
    for k in [19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = p * q + 1.0 / k;
    }
    f64::from(e) * 0.693_147_180_559_945_3 + (2.0 * t) * p
}

/// The first `n` values for `seed` and `stream`: standard normal, by Marsaglia's polar method.
#[must_use]
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
        values.push(to_f32(u * f));
        values.push(to_f32(v * f));
    }
    values.truncate(n);
    values
}

/// FNV-1a, 64 bits, over the little-endian bytes: the reference's `residual_fingerprint`.
#[allow(dead_code)]
#[must_use]
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
            [
                0xa15c_02b7,
                0x7b47_f409,
                0xba1d_3330,
                0x83d2_f293,
                0xbfa4_784b,
                0xcbed_606e
            ]
        );
    }

    #[test]
    fn residuals_have_the_known_bits_and_fingerprints() {
        let known: [(u64, u64, [u32; 4], &str); 4] = [
            (
                0,
                0,
                [0x3e92_fab2, 0xbe53_3308, 0xbfbd_5dc5, 0xbfa9_18f5],
                "0xe388372113f21ef1",
            ),
            (
                100,
                0,
                [0xbf85_89c0, 0x3f9f_8b64, 0xbfdb_5bee, 0x3fc0_56f7],
                "0x0e6748ea24ecf161",
            ),
            (
                12,
                12,
                [0xbe72_bfc9, 0x3f0d_4f6a, 0x3fa7_8086, 0xbff0_d103],
                "0x7d7124b5a1eb3f6c",
            ),
            (
                125,
                25,
                [0x3e8c_85f1, 0x3d20_d344, 0xbfaa_f740, 0x3ec0_489d],
                "0xb0ee66e58081d676",
            ),
        ];
        for (seed, stream, first, print) in known {
            let values = residual(seed, stream, 2304);
            let bits: Vec<u32> = values.iter().take(4).map(|value| value.to_bits()).collect();
            assert_eq!(bits, first, "seed {seed} stream {stream}");
            assert_eq!(fingerprint(&values), print, "seed {seed} stream {stream}");
        }
    }

    #[test]
    fn odd_lengths_are_prefixes() {
        assert!(residual(7, 3, 0).is_empty());
        assert!(residual(7, 3, 6).starts_with(&residual(7, 3, 5)));
    }
}
