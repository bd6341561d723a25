// SPDX-License-Identifier: MIT OR Apache-2.0

//! A port of the encoder as a user of the reference would write it, who knows the README and the JSON alone.
//!
//!     consumer REFERENCE.json CACHE_DIR CANDIDATE.json
//!     consumer REFERENCE.json CACHE_DIR LAYER SEED FEATURE
//!
//! The second form prints what `python -m oracle inspect --residual` prints of one feature, as far as float32 goes.
//! It makes each test case's residual again, encodes it with the weights in the Hub cache at CACHE_DIR, and writes
//! a candidate to hold against the reference, whose answers it does not look at. With MISTAKE in the environment
//! it goes wrong in one of the ways that ports go wrong in, which a comparison has to notice.
//!
//! Put what `python -m oracle residual --rust` prints beside this file as residual.rs, then
//! `rustc --edition 2021 -O main.rs -o consumer`. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod json;
mod npz;
mod residual;
mod steps;

use json::Json;
use npz::{Array, Npz};
use std::path::Path;
use std::process::ExitCode;

#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    None,
    Relu,           // the gate at 0 instead of the feature's threshold
    NoBEnc,         // the encoder's bias left out
    BDecSubtracted, // the decoder's bias taken off the residual first, as some autoencoders want and these do not
    Reshaped,       // W_enc's buffer taken for [n_features, d_model]: a reshape where a transpose was meant
    Bf16Weights,    // W_enc loaded as bfloat16
    IndexFromOne,   // features counted from 1
}

impl Mistake {
    fn from_name(name: &str) -> Result<Mistake, String> {
        Ok(match name {
            "" => Mistake::None,
            "relu" => Mistake::Relu,
            "no_b_enc" => Mistake::NoBEnc,
            "b_dec_subtracted" => Mistake::BDecSubtracted,
            "reshaped" => Mistake::Reshaped,
            "bf16_weights" => Mistake::Bf16Weights,
            "index_from_one" => Mistake::IndexFromOne,
            _ => return Err(format!("unknown MISTAKE: {name}")),
        })
    }
}

/// One layer's transcoder, as far as encoding goes.
struct Transcoder {
    w_enc: Vec<f32>,     // [d_model, n_features], row-major
    b_enc: Vec<f32>,     // [n_features]
    threshold: Vec<f32>, // [n_features]
    b_dec: Vec<f32>,     // [d_model]; only a mistake has a use for it
}

struct Feature {
    index: usize,
    activation: f32,
}

impl Transcoder {
    fn load(path: &Path, d_model: usize) -> Result<Transcoder, String> {
        let mut npz = Npz::open(path)?;
        let Array { shape, values: w_enc } = npz.array("W_enc")?;
        let n_features = match shape[..] {
            [rows, columns] if rows == d_model && columns > 0 => columns,
            _ => return Err(format!("W_enc: shape {shape:?}, not [{d_model}, n_features]")),
        };
        let mut load = |name: &str, shape: &[usize]| match npz.array(name)? {
            array if array.shape == shape => Ok(array.values),
            array => Err(format!("{name}: shape {:?}, not {shape:?}", array.shape)),
        };
        // Nothing is decoded here. A W_dec that fits says that W_enc has its axes the way we think.
        load("W_dec", &[n_features, d_model])?;
        let (b_enc, b_dec) = (load("b_enc", &[n_features])?, load("b_dec", &[d_model])?);
        Ok(Transcoder { w_enc, b_enc, threshold: load("threshold", &[n_features])?, b_dec })
    }

    /// Puts a mistake into the weights, if it is one that comes down to wrong weights. `encode` itself stays right.
    fn spoil(&mut self, mistake: Mistake) {
        let (d_model, n_features) = (self.b_dec.len(), self.b_enc.len());
        match mistake {
            Mistake::Relu => self.threshold.fill(0.0),
            Mistake::NoBEnc => self.b_enc.fill(0.0),
            Mistake::Bf16Weights => self.w_enc.iter_mut().for_each(|weight| *weight = round_to_bf16(*weight)),
            Mistake::Reshaped => {
                // [d_model, n_features] again, but with element [i, j] from where [n_features, d_model] has [j, i].
                let at = |k: usize| self.w_enc[(k % n_features) * d_model + k / n_features];
                self.w_enc = (0..d_model * n_features).map(at).collect();
            }
            Mistake::None | Mistake::BDecSubtracted | Mistake::IndexFromOne => {}
        }
    }

    /// The active features, the strongest first and of equals the one with the lower index.
    fn encode(&self, residual: &[f32]) -> Vec<Feature> {
        let n_features = self.b_enc.len();
        let mut pre = vec![0.0_f32; n_features];
        // W_enc row by row, so that memory is read in the order in which it lies.
        for (&r, row) in residual.iter().zip(self.w_enc.chunks_exact(n_features)) {
            for (sum, &weight) in pre.iter_mut().zip(row) {
                *sum += r * weight; // pre[j] += residual[i] * W_enc[i, j]
            }
        }
        let mut active = Vec::new();
        for (index, sum) in pre.into_iter().enumerate() {
            // The activation is pre itself, not pre - threshold, and a negative one never fires.
            let activation = sum + self.b_enc[index];
            if activation > self.threshold[index].max(0.0) {
                active.push(Feature { index, activation });
            }
        }
        active.sort_by(|a, b| b.activation.total_cmp(&a.activation).then(a.index.cmp(&b.index)));
        active
    }
}

/// To the nearest bfloat16, ties to even: the upper 16 bits of a float32.
fn round_to_bf16(x: f32) -> f32 {
    if x.is_nan() {
        return x; // the carry could make a number of it
    }
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// One case encoded, as an entry of the candidate's `test_cases`.
fn run_case(case: &Json, transcoder: &Transcoder, top_k: usize, mistake: Mistake) -> Result<String, String> {
    let (layer, seed) = (case.integer("layer")?, case.integer("seed")?);
    let mut residual = residual::residual(seed, case.integer("stream")?, transcoder.b_dec.len()); // [d_model]
    let (found, expected) = (residual::fingerprint(&residual), case.string("residual_fingerprint")?);
    if found != expected {
        // What the encoder makes of another residual would say nothing.
        return Err(format!("the residual's fingerprint is {found}, the reference has {expected}"));
    }
    if mistake == Mistake::BDecSubtracted {
        residual.iter_mut().zip(&transcoder.b_dec).for_each(|(r, b)| *r -= b);
    }
    let active = transcoder.encode(&residual);
    // In f64: in f32 thousands of features would add up to rounding of their own.
    let values = || active.iter().map(|feature| f64::from(feature.activation));
    let (sum, squares): (f64, f64) = (values().sum(), values().map(|value| value * value).sum());
    let first_index = if mistake == Mistake::IndexFromOne { 1 } else { 0 };
    let mut top = Vec::new();
    for feature in active.iter().take(top_k) {
        // As f64, which it widens to exactly: whoever parses that and narrows it has the same f32.
        let (index, activation) = (feature.index + first_index, f64::from(feature.activation));
        if !activation.is_finite() {
            return Err(format!("feature {index} is infinite, and JSON cannot say so"));
        }
        top.push(format!(r#"{{"index": {index}, "activation": {activation:?}}}"#));
    }
    let (n_active, top) = (active.len(), top.join(", "));
    Ok(format!(
        r#"{{"layer": {layer}, "seed": {seed}, "residual_fingerprint": "{found}", "n_active": {n_active},
    "activation_sum": {sum:?}, "activation_sum_of_squares": {squares:?}, "top_{top_k}": [{top}]}}"#
    ))
}

/// A layer's weights, from the file that the reference names.
fn load_layer(reference: &Json, cache: &Path, entry: &Json) -> Result<Transcoder, String> {
    // A layer has a repo and a revision of its own where they are not those of all.
    let own_or_shared = |own: &str, shared: &str| match entry.get(own) {
        Some(_) => entry.string(own),
        None => reference.string(shared),
    };
    let folder = format!("models--{}", own_or_shared("repo", "weights_repo")?.replace('/', "--"));
    let snapshot = cache.join(folder).join("snapshots").join(own_or_shared("revision", "weights_revision")?);
    let path = snapshot.join(entry.string("path")?);
    let transcoder = Transcoder::load(&path, reference.integer("d_model")? as usize);
    transcoder.map_err(|error| format!("{}: {error}", path.display()))
}

/// One feature step by step.
fn show(reference: &Json, cache: &Path, layer: u64, seed: u64, feature: usize) -> Result<(), String> {
    for entry in reference.array("layers")? {
        if entry.integer("layer")? == layer {
            let transcoder = load_layer(reference, cache, entry)?;
            let n_features = transcoder.b_enc.len();
            let residual = residual::residual(seed, layer, transcoder.b_dec.len());
            let column: Vec<f32> = transcoder.w_enc.chunks_exact(n_features).map(|row| row[feature]).collect();
            steps::show_generator(seed, layer);
            steps::show_feature(&residual, &column, transcoder.b_enc[feature], transcoder.threshold[feature]);
        }
    }
    Ok(())
}

/// The whole candidate.
fn run(reference: &Json, cache: &Path, mistake: Mistake) -> Result<String, String> {
    let top_k = reference.integer("top_k")? as usize;
    let cases = reference.array("test_cases")?;
    let mut results = Vec::new();
    for entry in reference.array("layers")? {
        let layer = entry.integer("layer")?;
        // One layer in memory at a time: real ones have hundreds of megabytes.
        let mut transcoder = load_layer(reference, cache, entry)?;
        transcoder.spoil(mistake);
        for (number, case) in cases.iter().enumerate() {
            if case.integer("layer")? == layer {
                let result = run_case(case, &transcoder, top_k, mistake);
                results.push(result.map_err(|error| format!("test case {number} (layer {layer}): {error}"))?);
            }
        }
    }
    if results.len() != cases.len() {
        return Err(format!("{} test cases, of which `layers` covers {}", cases.len(), results.len()));
    }
    Ok(format!("{{\"test_cases\": [\n  {}\n]}}\n", results.join(",\n  ")))
}

fn read_reference(reference: &str) -> Result<Json, String> {
    let text = std::fs::read_to_string(reference).map_err(|error| format!("{reference}: {error}"))?;
    Json::parse(&text).map_err(|error| format!("{reference}: {error}"))
}

fn show_files(reference: &str, cache: &str, numbers: &[String]) -> Result<(), String> {
    let number = |text: &String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let (layer, seed, feature) = (number(&numbers[0])?, number(&numbers[1])?, number(&numbers[2])?);
    show(&read_reference(reference)?, Path::new(cache), layer, seed, feature as usize)
}

fn run_files(reference: &str, cache: &str, candidate: &str, mistake: Mistake) -> Result<(), String> {
    let json = read_reference(reference)?;
    let output = run(&json, Path::new(cache), mistake)?;
    std::fs::write(candidate, output).map_err(|error| format!("{candidate}: {error}"))
}

fn main() -> ExitCode {
    // Lossily, since args() and var() panic or fail where something is not Unicode.
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|text| text.to_string_lossy().into()).collect();
    if let [reference, cache, numbers @ ..] = &arguments[..] {
        if numbers.len() == 3 {
            return match show_files(reference, cache, numbers) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("consumer: {error}");
                    ExitCode::from(1)
                }
            };
        }
    }
    let [reference, cache, candidate] = &arguments[..] else {
        eprintln!("usage: consumer REFERENCE.json CACHE_DIR CANDIDATE.json");
        return ExitCode::from(2);
    };
    let mistake = std::env::var_os("MISTAKE").unwrap_or_default();
    let outcome = Mistake::from_name(&mistake.to_string_lossy())
        .map_err(|error| (2, error))
        .and_then(|mistake| run_files(reference, cache, candidate, mistake).map_err(|error| (1, error)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            eprintln!("consumer: {error}");
            ExitCode::from(code)
        }
    }
}
