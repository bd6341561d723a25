// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exact test vectors as a test for cargo: copy this file to `tests/vectors.rs` and fill in `encode`. It needs no crate.
//!
//! `ORACLE_VECTORS=DIR/GemmaScopeNpz cargo test --test vectors` reads that folder, as `python -m oracle vectors --folder DIR`
//! writes it, prints the candidate (`--nocapture`), or writes it where `ORACLE_CANDIDATE` says, and fails with the flags of the
//! answers that are not equal bit for bit. As it stands `encode` does the formula of most formats, slowly.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

type Failure = Box<dyn std::error::Error>;

/// Your port: the features that fire, activation descending, then index.
fn encode(
    vectors: &Json,
    weights: &BTreeMap<String, Tensor>,
    residual: &[f32],
) -> Result<Vec<(usize, f32)>, Failure> {
    let gate = vectors.get("gate")?;
    let (kind, input) = (
        gate.get("kind")?.text()?,
        vectors.get("encoder_input")?.get("kind")?.text()?,
    );
    let known = ["relu", "jumprelu", "topk"].contains(&kind)
        && ["identity", "minus_b_dec"].contains(&input);
    if !known || gate.get("times_decoder_norms").is_ok() {
        return Err(format!("fill in encode: gate {kind}, input {input}").into());
    }
    let tensor = |part: &str| {
        weights
            .get(part)
            .ok_or_else(|| format!("no tensor is {part}"))
    };
    let mut x = residual.to_vec();
    if input == "minus_b_dec" {
        for (value, b_dec) in x.iter_mut().zip(&tensor("b_dec")?.values) {
            *value -= b_dec;
        }
    }
    let (w_enc, mut pre) = (&tensor("W_enc")?.values, tensor("b_enc")?.values.clone());
    let n_features = pre.len();
    let axes = vectors.get("tensors")?.get("W_enc")?.get("axes")?.list()?;
    if axes.first().ok_or("no axes")?.text()? == "n_features" {
        for (sum, row) in pre.iter_mut().zip(w_enc.chunks_exact(x.len())) {
            for (weight, value) in row.iter().zip(&x) {
                *sum += weight * value;
            }
        }
    } else {
        for (value, row) in x.iter().zip(w_enc.chunks_exact(n_features)) {
            for (sum, weight) in pre.iter_mut().zip(row) {
                *sum += weight * value;
            }
        }
    }
    let level = weights
        .get("threshold")
        .map_or_else(Vec::new, |threshold| threshold.values.clone());
    let only = level.first().copied().unwrap_or(0.0); // of all features, where there is one
    let levels = level.iter().copied().chain(std::iter::repeat(only));
    let mut active: Vec<(usize, f32)> = pre
        .into_iter()
        .zip(levels)
        .enumerate()
        .filter(|(_, (value, level))| kind == "topk" || *value > level.max(0.0))
        .map(|(index, (value, _))| (index, value))
        .collect();
    active.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if kind == "topk" {
        let has_relu = matches!(gate.get("relu"), Ok(Json::Bool(true)));
        active.truncate(gate.get("k")?.whole()?);
        active.retain(|(_, value)| *value > 0.0 || (!has_relu && *value < 0.0));
    }
    Ok(active)
}

#[test]
fn vectors() -> Result<(), Failure> {
    let folder =
        std::env::var("ORACLE_VECTORS").unwrap_or_else(|_| "vectors/GemmaScopeNpz".to_owned());
    let folder = Path::new(&folder);
    let vectors = Json::parse(&fs::read_to_string(folder.join("vectors.json"))?)?;
    let mut failed: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut answers = Vec::new();
    for case in vectors.get("test_cases")?.list()? {
        let number = case.get("case")?.whole()?;
        let residual = case
            .get("residual")?
            .list()?
            .iter()
            .map(Json::float)
            .collect::<Result<Vec<f32>, Failure>>()?;
        let active = encode(
            &vectors,
            &layer_weights(folder, &vectors, case.get("layer")?.whole()?)?,
            &residual,
        )?;
        let mut expected = Vec::new();
        for entry in case.get("active")?.list()? {
            expected.push((
                entry.get("index")?.whole()?,
                entry.get("activation")?.float()?.to_bits(),
            ));
        }
        let found: Vec<(usize, u32)> = active
            .iter()
            .map(|(index, value)| (*index, value.to_bits()))
            .collect();
        if expected != found {
            for flag in case.get("flags")?.list()? {
                failed.entry(flag.text()?).or_default().push(number);
            }
        }
        let entries: Vec<String> = active
            .iter()
            .map(|(index, value)| {
                format!(
                    r#"{{"index": {index}, "activation": {:?}}}"#,
                    f64::from(*value)
                )
            })
            .collect();
        answers.push(format!(
            r#"{{"case": {number}, "n_active": {}, "active": [{}]}}"#,
            active.len(),
            entries.join(", ")
        ));
    }
    let candidate = format!("{{\"test_cases\": [{}]}}\n", answers.join(",\n"));
    match std::env::var("ORACLE_CANDIDATE") {
        Ok(path) => fs::write(path, candidate)?,
        Err(_) => print!("{candidate}"),
    }
    let mut lines = Vec::new();
    for (flag, cases) in &failed {
        lines.push(format!(
            "{flag}: cases {cases:?} fail: {}",
            vectors.get("notes")?.get(flag)?.get("catches")?.text()?
        ));
    }
    assert!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

/// Values in C order, whatever a file's dtype is.
struct Tensor {
    values: Vec<f32>,
}

/// A layer's tensors by what they are for.
fn layer_weights(
    folder: &Path,
    vectors: &Json,
    layer: usize,
) -> Result<BTreeMap<String, Tensor>, Failure> {
    let mut path = None;
    for record in vectors.get("layers")?.list()? {
        if record.get("layer")?.whole()? == layer {
            path = Some(folder.join(record.get("path")?.text()?));
        }
    }
    let path = path.ok_or("no such layer")?;
    let bytes = fs::read(&path)?;
    let mut stored = match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("safetensors") => safetensors(&bytes)?,
        Some("npz") => npz(&bytes)?,
        _ => {
            return Err(format!(
                "{}: .safetensors and .npz are read; your port has a reader of its own",
                path.display()
            )
            .into());
        }
    };
    let mut weights = BTreeMap::new();
    for (part, spec) in vectors.get("tensors")?.members()? {
        if let Some(tensor) = stored.remove(
            &spec
                .get("name")?
                .text()?
                .replace(concat!("{", "layer}"), &layer.to_string()),
        ) {
            weights.insert(part.clone(), tensor);
        }
    }
    Ok(weights)
}

fn safetensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, Failure> {
    let end = 8 + usize::try_from(little_endian(bytes, 0, 8)?)?;
    let (header, data) = (
        bytes.get(8..end).ok_or("too short")?,
        bytes.get(end..).ok_or("too short")?,
    );
    let mut tensors = BTreeMap::new();
    for (name, spec) in Json::parse(std::str::from_utf8(header)?)?
        .members()?
        .iter()
        .filter(|(name, _)| name != "__metadata__")
    {
        let ends = spec
            .get("data_offsets")?
            .list()?
            .iter()
            .map(Json::whole)
            .collect::<Result<Vec<usize>, Failure>>()?;
        let &[from, to] = ends.as_slice() else {
            return Err("no offsets".into());
        };
        let content = data.get(from..to).ok_or("offsets past the end")?;
        let values = match spec.get("dtype")?.text()? {
            "F32" => floats(content),
            "BF16" => content
                .chunks_exact(2)
                .map(|half| {
                    f32::from_le_bytes([
                        0,
                        0,
                        half.first().copied().unwrap_or(0),
                        half.last().copied().unwrap_or(0),
                    ])
                })
                .collect(),
            other => return Err(format!("{other} is not read here").into()),
        };
        tensors.insert(name.clone(), Tensor { values });
    }
    Ok(tensors)
}

/// An .npz of stored members, float32.
fn npz(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, Failure> {
    let mut tensors = BTreeMap::new();
    let mut rest = bytes;
    while let Some(member) = rest.strip_prefix(b"PK\x03\x04") {
        let size = usize::try_from(little_endian(member, 14, 4)?)?;
        let name_length = usize::try_from(little_endian(member, 22, 2)?)?;
        let extra = usize::try_from(little_endian(member, 24, 2)?)?;
        let name = std::str::from_utf8(member.get(26..26 + name_length).ok_or("too short")?)?
            .trim_end_matches(".npy")
            .to_owned();
        let start = 26 + name_length + extra;
        let npy = member.get(start..start + size).ok_or("too short")?;
        let header = usize::try_from(little_endian(npy, 8, 2)?)?;
        tensors.insert(
            name,
            Tensor {
                values: floats(npy.get(10 + header..).ok_or("too short")?),
            },
        );
        rest = member.get(start + size..).ok_or("too short")?;
    }
    Ok(tensors)
}

fn little_endian(bytes: &[u8], at: usize, count: usize) -> Result<u64, Failure> {
    let digits = bytes.get(at..at + count).ok_or("too short")?;
    Ok(digits
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .filter_map(|chunk| chunk.try_into().ok().map(f32::from_le_bytes))
        .collect()
}

/// As much JSON as vectors need.
enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

impl Json {
    fn parse(text: &str) -> Result<Self, Failure> {
        let mut rest = text.trim_start();
        let value = Self::value(&mut rest)?;
        if rest.trim().is_empty() {
            Ok(value)
        } else {
            Err("something behind the document".into())
        }
    }

    fn value(rest: &mut &str) -> Result<Self, Failure> {
        *rest = rest.trim_start();
        for (word, value) in [
            ("null", Self::Null),
            ("true", Self::Bool(true)),
            ("false", Self::Bool(false)),
        ] {
            if let Some(after) = rest.strip_prefix(word) {
                *rest = after;
                return Ok(value);
            }
        }
        if let Some(after) = rest.strip_prefix('"') {
            // The vectors' own texts have no escapes.
            let (text, after) = after.split_once('"').ok_or("a text without an end")?;
            *rest = after;
            return Ok(Self::Text(text.to_owned()));
        }
        if rest.starts_with('[') {
            let mut items = Vec::new();
            Self::sequence(rest, ']', |rest| {
                items.push(Self::value(rest)?);
                Ok(())
            })?;
            return Ok(Self::List(items));
        }
        if rest.starts_with('{') {
            let mut members = Vec::new();
            Self::sequence(rest, '}', |rest| {
                let name = Self::value(rest)?.text()?.to_owned();
                *rest = rest
                    .trim_start()
                    .strip_prefix(':')
                    .ok_or("a key without a value")?;
                members.push((name, Self::value(rest)?));
                Ok(())
            })?;
            return Ok(Self::Map(members));
        }
        let end = rest
            .find(|c: char| !(c.is_ascii_digit() || "+-.eE".contains(c)))
            .unwrap_or(rest.len());
        let (digits, after) = rest.split_at(end);
        *rest = after;
        Ok(Self::Number(digits.to_owned()))
    }

    /// What stands between a bracket and its end, items with commas between them.
    fn sequence(
        rest: &mut &str,
        end: char,
        mut item: impl FnMut(&mut &str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut inner = rest.get(1..).unwrap_or_default().trim_start();
        while !inner.starts_with(end) {
            item(&mut inner)?;
            inner = inner.trim_start();
            inner = inner.strip_prefix(',').unwrap_or(inner).trim_start();
            if inner.is_empty() {
                return Err("a list without an end".into());
            }
        }
        *rest = inner.get(1..).unwrap_or_default();
        Ok(())
    }

    fn get(&self, key: &str) -> Result<&Self, Failure> {
        self.members()?
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value)
            .ok_or_else(|| format!("no key {key}").into())
    }

    fn members(&self) -> Result<&[(String, Self)], Failure> {
        if let Self::Map(members) = self {
            Ok(members)
        } else {
            Err("no object".into())
        }
    }

    fn list(&self) -> Result<&[Self], Failure> {
        if let Self::List(items) = self {
            Ok(items)
        } else {
            Err("no list".into())
        }
    }

    /// A text, or the digits of a number.
    fn text(&self) -> Result<&str, Failure> {
        if let Self::Text(text) | Self::Number(text) = self {
            Ok(text)
        } else {
            Err("no text".into())
        }
    }

    fn whole(&self) -> Result<usize, Failure> {
        Ok(self.text()?.parse()?)
    }

    fn float(&self) -> Result<f32, Failure> {
        Ok(self.text()?.parse()?)
    }
}
