// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Exact test vectors in JavaScript: `node consumer.js FOLDER [candidate.json]` reads FOLDER/vectors.json and its weights, calls
// `encode` below for each case, prints the candidate, and ends with exit code 1 where an answer is not equal bit for bit.
// Fill in `encode`: as it stands it does the formula of most formats, slowly. `python -m oracle vectors --folder DIR` writes the folders.
"use strict";
const fs = require("fs");
const path = require("path");

/** Your port: the features that fire, [index, activation], activation descending, then index. */
function encode(vectors, weights, residual) {
  const { gate, encoder_input: input } = vectors;
  if (!["relu", "jumprelu", "topk"].includes(gate.kind) || !["identity", "minus_b_dec"].includes(input.kind) || gate.times_decoder_norms) {
    throw new Error(`fill in encode: gate ${gate.kind}, input ${input.kind}`);
  }
  const n = vectors.n_features;
  const x = Float32Array.from(residual);
  if (input.kind === "minus_b_dec") x.forEach((value, i) => (x[i] = value - weights.b_dec.values[i]));
  const { values: w, shape } = weights.W_enc;
  const byFeature = vectors.tensors.W_enc.axes[0] === "n_features";
  if (shape[byFeature ? 0 : shape.length - 1] !== n) throw new Error("W_enc has another shape than its axes say");
  const pre = new Float32Array(n);
  for (let j = 0; j < n; j++) {
    let sum = weights.b_enc.values[j];
    for (let i = 0; i < x.length; i++) sum = Math.fround(sum + Math.fround(x[i] * w[byFeature ? j * x.length + i : i * n + j]));
    pre[j] = sum;
  }
  const level = weights.threshold ? weights.threshold.values : new Float32Array(n);
  const order = (a, b) => pre[b] - pre[a] || a - b;
  let active = [...pre.keys()];
  if (gate.kind === "topk") active = active.sort(order).slice(0, gate.k).filter((j) => (gate.relu ? pre[j] > 0 : pre[j] !== 0));
  else active = active.filter((j) => pre[j] > Math.max(level[level.length === 1 ? 0 : j], 0));
  return active.sort(order).map((j) => [j, pre[j]]);
}

/** The tensors of a .safetensors file in float32, or of an .npz of stored members, by their names. */
function read(file) {
  const bytes = fs.readFileSync(file);
  const tensors = {};
  const floats = (at, n) => new Float32Array(bytes.buffer.slice(bytes.byteOffset + at, bytes.byteOffset + at + 4 * n));
  if (file.endsWith(".safetensors")) {
    const start = 8 + Number(bytes.readBigUInt64LE(0));
    for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(JSON.parse(bytes.subarray(8, start)))) {
      if (name === "__metadata__") continue;
      const values = dtype === "F32" ? floats(start + from, (to - from) / 4) : widened(bytes.subarray(start + from, start + to), dtype);
      tensors[name] = { shape, values };
    }
    return tensors;
  }
  if (!file.endsWith(".npz")) throw new Error(`${file}: .safetensors and .npz are read; your port has a reader of its own`);
  for (let at = 0; bytes.readUInt32LE(at) === 0x04034b50; ) {
    const [size, nameLength, extraLength] = [bytes.readUInt32LE(at + 18), bytes.readUInt16LE(at + 26), bytes.readUInt16LE(at + 28)];
    const name = bytes.toString("utf8", at + 30, at + 30 + nameLength).replace(/\.npy$/, "");
    const npy = at + 30 + nameLength + extraLength;
    const data = npy + 10 + bytes.readUInt16LE(npy + 8);
    const shape = /'shape': \(([^)]*)\)/.exec(bytes.toString("latin1", npy + 10, data))[1].split(",").filter((part) => part.trim()).map(Number);
    tensors[name] = { shape, values: floats(data, shape.reduce((a, b) => a * b, 1)) };
    at = npy + size;
  }
  return tensors;
}

/** bfloat16 as float32: the upper half of it. */
function widened(bytes, dtype) {
  if (dtype !== "BF16") throw new Error(`${dtype} is not read here`);
  const bits = new Uint32Array(bytes.length / 2);
  bits.forEach((_, i) => (bits[i] = bytes.readUInt16LE(2 * i) * 65536));
  return new Float32Array(bits.buffer);
}

/** A layer's tensors by what they are for. */
function layerWeights(folder, vectors, layer) {
  const stored = read(path.join(folder, vectors.layers.find((record) => record.layer === layer).path));
  const named = Object.entries(vectors.tensors).map(([part, { name }]) => [part, stored[name.replace("{layer}", layer)]]);
  return Object.fromEntries(named.filter(([, tensor]) => tensor));
}

function main() {
  const [folder, output] = process.argv.slice(2);
  const vectors = JSON.parse(fs.readFileSync(path.join(folder, "vectors.json"), "utf8"));
  const failed = new Map();
  const answers = vectors.test_cases.map(({ case: number, layer, flags, residual, n_active, active }) => {
    const answer = encode(vectors, layerWeights(folder, vectors, layer), residual);
    const same = answer.length === n_active && active.every(({ index, activation }, place) => answer[place][0] === index && answer[place][1] === Math.fround(activation));
    if (!same) flags.forEach((flag) => failed.set(flag, [...(failed.get(flag) || []), number]));
    return { case: number, n_active: answer.length, active: answer.map(([index, activation]) => ({ index, activation })) };
  });
  const text = JSON.stringify({ test_cases: answers });
  if (output) fs.writeFileSync(output, text);
  else console.log(text);
  for (const [flag, cases] of failed) console.error(`${flag}: cases ${cases.join(", ")} fail: ${vectors.notes[flag].catches}`);
  process.exitCode = failed.size ? 1 : 0;
}

main();
