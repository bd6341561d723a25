// SPDX-License-Identifier: MIT OR Apache-2.0

//! One feature step by step, printed as `python -m oracle inspect` prints it: the first line that differs is where a
//! port leaves the right numbers. What is exact is left out: sums that stand to the right of these, and what becomes of the last.

use crate::residual::fingerprint;

const FIRST: usize = 8;

fn in_32(value: f32) -> String {
    format!("{:08x} {value:14.9}", value.to_bits())
}

fn in_64(value: f64) -> String {
    format!("{:016x} {value:21.17}", value.to_bits())
}

/// The generator's pairs up to its first eight values, each with all that it is made of.
pub fn show_generator(seed: u64, stream: u64) {
    let increment = (stream << 1) | 1;
    let step = |state: u64| state.wrapping_mul(6364136223846793005).wrapping_add(increment);
    let mut state = step(step(0).wrapping_add(seed));
    let (mut count, mut number) = (0, 0);
    while count < FIRST {
        let mut draw = || {
            let x = ((((state >> 18) ^ state) >> 27) as u32).rotate_right((state >> 59) as u32);
            state = step(state);
            (x, (2.0 * f64::from(x) + 1.0) / 4294967296.0 - 1.0)
        };
        let ((x, u), (y, v)) = (draw(), draw());
        number += 1;
        println!("pair {number:3}");
        println!("  x       {x:08x}{:34}{y:08x}", "");
        println!("  w       {}    {}", in_64(u), in_64(v));
        let s = u * u + v * v;
        if s >= 1.0 {
            println!("  s       {}    dropped: it is 1 or more", in_64(s));
            continue;
        }
        let ln_s = ln(s);
        let f = ((-2.0 * ln_s) / s).sqrt();
        println!("  s       {}", in_64(s));
        println!("  ln(s)   {}", in_64(ln_s));
        println!("  f       {}", in_64(f));
        println!("  value   {}{:19}{}", in_32((u * f) as f32), "", in_32((v * f) as f32));
        count += 2;
    }
}

/// ln(s) of the contract: s = m * 2^e with m in [sqrt(1/2), sqrt(2)), then 2 artanh((m - 1) / (m + 1)).
fn ln(s: f64) -> f64 {
    let (mut m, mut e) = (s, 0.0);
    while m < 0.7071067811865476 {
        m *= 2.0;
        e -= 1.0;
    }
    let t = (m - 1.0) / (m + 1.0);
    let q = t * t;
    let mut p = 1.0 / 21.0;
    for k in (1..=19).rev().step_by(2) {
        p = p * q + 1.0 / f64::from(k);
    }
    e * 0.6931471805599453 + (2.0 * t) * p
}

/// Inputs and weights, the sums of the first 1, 2, 4, ... products in f32, and what becomes of the last.
pub fn show_feature(residual: &[f32], column: &[f32], b_enc: f32, threshold: f32) {
    println!("residual: {} values, fingerprint {}", residual.len(), fingerprint(residual));
    for (place, (r, w)) in residual.iter().zip(column).take(FIRST).enumerate() {
        println!("{place:10}  {}    {}", in_32(*r), in_32(*w));
    }
    let (mut sum, mut shown) = (0.0_f32, 1);
    for (place, (r, w)) in residual.iter().zip(column).enumerate() {
        sum += r * w;
        if place + 1 == shown || place + 1 == residual.len() {
            println!("{:10}  {}", place + 1, in_32(sum));
            shown *= 2;
        }
    }
    println!("product     {}", in_32(sum));
    println!("b_enc       {}", in_32(b_enc));
    println!("pre         {}", in_32(sum + b_enc));
    println!("against     {}    max(threshold, 0)", in_32(threshold.max(0.0)));
}
