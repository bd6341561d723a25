// SPDX-License-Identifier: MIT OR Apache-2.0

//! The same dot product in float32, in orders in which ports and their libraries add.

type Dot = fn(&[f32], &[f32]) -> f32;

pub const ORDERS: [(&str, Dot); 8] = [
    ("in order", in_order),
    ("reversed", reversed),
    ("4 lanes", in_lanes::<4>),
    ("8 lanes", in_lanes::<8>),
    ("16 lanes", in_lanes::<16>),
    ("blocks of 64", in_blocks),
    ("pairwise", pairwise),
    ("fused", fused),
];

fn in_order(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |sum, (x, w)| sum + x * w)
}

fn reversed(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).rev().fold(0.0, |sum, (x, w)| sum + x * w)
}

/// As SIMD does it: `N` sums side by side, added up at the end.
fn in_lanes<const N: usize>(x: &[f32], w: &[f32]) -> f32 {
    let mut sums = [0.0_f32; N];
    for (place, (x, w)) in x.iter().zip(w).enumerate() {
        sums[place % N] += x * w;
    }
    sums.iter().sum()
}

fn in_blocks(x: &[f32], w: &[f32]) -> f32 {
    x.chunks(64).zip(w.chunks(64)).map(|(x, w)| in_order(x, w)).sum()
}

fn pairwise(x: &[f32], w: &[f32]) -> f32 {
    if x.len() < 2 {
        return in_order(x, w);
    }
    let half = x.len() / 2;
    pairwise(&x[..half], &w[..half]) + pairwise(&x[half..], &w[half..])
}

fn fused(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).fold(0.0, |sum: f32, (x, w)| x.mul_add(*w, sum))
}
