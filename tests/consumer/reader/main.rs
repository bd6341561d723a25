// SPDX-License-Identifier: MIT OR Apache-2.0

//! A reader of references on serde_json: what candle-mi's three encoder tests ask of a reference and of an encoder, in words of our own.
//!
//!     reader REFERENCE.json SCHEMA WEIGHTS
//!
//! WEIGHTS is a folder of plain little-endian float32 arrays, W_enc_L [n_features, d_model], b_enc_L and threshold_L [n_features], where L is
//! a layer; without a threshold the gate is ReLU. Every case is encoded in float32 in eight orders of summation. Exit code 0 and a line if
//! all agrees, 1 and what does not.

mod orders;

use orders::ORDERS;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

const CLOSE: f32 = 1e-4;
/// The keys that name repos, by the schema that goes with them.
const REPOS: [(&str, &[&str]); 4] = [
    ("GemmaScopeNpz", &["weights_repo", "curation_repo"]),
    ("PltBundle", &["plt_repo"]),
    ("CltSplit", &["clt_repo"]),
    ("CltSplitJumpReLU", &["clt_repo"]),
];

/// One layer's encoder.
struct Encoder {
    w_enc: Vec<f32>, // [n_features, d_model]
    b_enc: Vec<f32>,
    threshold: Vec<f32>,
}

impl Encoder {
    fn load(folder: &Path, layer: usize, d_model: usize, n_features: usize) -> Result<Encoder, String> {
        let floats = |part: &str, length: usize| {
            let path = folder.join(format!("{part}_{layer}"));
            let bytes = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let values: Vec<f32> = bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
            ensure(values.len() == length, || format!("{part}_{layer} has {} values, not {length}", values.len()))?;
            Ok::<_, String>(values)
        };
        let has_threshold = folder.join(format!("threshold_{layer}")).exists();
        Ok(Encoder {
            w_enc: floats("W_enc", n_features * d_model)?,
            b_enc: floats("b_enc", n_features)?,
            threshold: if has_threshold { floats("threshold", n_features)? } else { vec![0.0; n_features] },
        })
    }

    /// The features that fire, strongest first.
    fn encode(&self, residual: &[f32], dot: fn(&[f32], &[f32]) -> f32) -> Vec<(usize, f32)> {
        let rows = self.w_enc.chunks_exact(residual.len()).enumerate();
        let pre = rows.map(|(feature, row)| (feature, dot(residual, row) + self.b_enc[feature]));
        let mut active: Vec<(usize, f32)> = pre.filter(|&(feature, value)| value > self.threshold[feature].max(0.0)).collect();
        active.sort_by(|a, b| b.1.total_cmp(&a.1));
        active
    }
}

fn ensure(holds: bool, problem: impl FnOnce() -> String) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(problem())
    }
}

fn whole(value: &Value, key: &str) -> Result<usize, String> {
    value[key].as_u64().map(|number| number as usize).ok_or_else(|| format!("{key} is no whole number"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>, String> {
    value[key].as_array().ok_or_else(|| format!("{key} is no list"))
}

/// As serde_json has every number, a binary64, narrowed.
fn float(value: &Value) -> Result<f32, String> {
    value.as_f64().map(|number| number as f32).ok_or_else(|| format!("{value} is no number"))
}

/// One case against an encoder. Returns the largest difference of an activation.
fn check_case(case: &Value, encoder: &Encoder, d_model: usize) -> Result<f32, String> {
    let residual = list(case, "residual")?.iter().map(float).collect::<Result<Vec<f32>, String>>()?;
    ensure(residual.len() == d_model, || format!("the residual has {} values, d_model is {d_model}", residual.len()))?;
    let (n_active, top) = (whole(case, "n_active")?, list(case, "top_10")?);
    ensure(top.len() == n_active.min(10), || format!("top_10 has {} entries, {n_active} features fire", top.len()))?;
    let mut largest = 0.0_f32;
    for (order, dot) in ORDERS {
        let active = encoder.encode(&residual, dot);
        ensure(active.len() == n_active, || format!("{} features fire, n_active is {n_active} ({order})", active.len()))?;
        for (place, (entry, &(feature, value))) in top.iter().zip(&active).enumerate() {
            let (index, activation) = (whole(entry, "index")?, float(&entry["activation"])?);
            ensure(index == feature, || format!("place {place} is feature {feature}, the reference has {index} ({order})"))?;
            let difference = (value - activation).abs();
            ensure(difference < CLOSE, || format!("feature {index} is {value}, the reference has {activation} ({order})"))?;
            largest = largest.max(difference);
        }
    }
    Ok(largest)
}

/// The whole reference. Returns what was held against it.
fn check(reference: &str, schema: &str, weights: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(reference).map_err(|error| format!("{reference}: {error}"))?;
    let document: Value = serde_json::from_str(&text).map_err(|error| format!("{reference}: {error}"))?;
    let written = document["schema"].as_str().unwrap_or_default();
    ensure(written == schema, || format!("schema is {written:?}, not {schema:?}"))?;
    let (_, keys) = REPOS.iter().find(|(name, _)| *name == schema).ok_or_else(|| format!("{schema} is not known here"))?;
    for key in *keys {
        ensure(document[key].as_str().map_or(false, |repo| repo.contains('/')), || format!("{key} names no repo"))?;
    }
    let (d_model, n_features) = (whole(&document, "d_model")?, whole(&document, "n_features_per_layer")?);
    let mut encoders = BTreeMap::new();
    let (mut n_cases, mut largest) = (0, 0.0_f32);
    for case in list(&document, "test_cases")? {
        let (layer, seed) = (whole(case, "layer")?, whole(case, "seed")?);
        if !encoders.contains_key(&layer) {
            encoders.insert(layer, Encoder::load(weights, layer, d_model, n_features)?);
        }
        let difference = check_case(case, &encoders[&layer], d_model).map_err(|problem| format!("layer {layer}, seed {seed}: {problem}"))?;
        largest = largest.max(difference);
        n_cases += 1;
    }
    ensure(n_cases > 0, || "there are no test cases".to_owned())?;
    Ok(format!("{n_cases} cases in {} orders, largest difference {largest:e}", ORDERS.len()))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [reference, schema, weights] = &arguments[..] else {
        eprintln!("usage: reader REFERENCE.json SCHEMA WEIGHTS");
        return ExitCode::from(2);
    };
    match check(reference, schema, Path::new(weights)) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(1)
        }
    }
}
