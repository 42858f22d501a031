// SPDX-License-Identifier: Apache-2.0
// The data, the choices made so far, and what both say in numbers and colours.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const length = data.tokens.length;
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const weights = bytes(data.weights);
const scale = new Float32Array(bytes(data.scale).buffer);
const columns = data.columns ? new (length <= 256 ? Uint8Array : Uint16Array)(bytes(data.columns).buffer) : null;
const MEAN = null;
const state = {
  layer: data.start.layer === null ? MEAN : data.layers.indexOf(data.start.layer),  // a position in data.layers
  head: data.start.head, direction: "from", words: true, special: false,
  token: data.start.token, hover: null,
};
let view = null;  // {groups: [[token, ...], ...], size, matrix: (size, size), max}

// Adds the stored weights of one head, times factor, to sum (length, length).
function addHead(sum, layer, head, factor) {
  const first = (layer * data.heads + head) * length;
  for (let i = 0; i < length; i++) {
    const step = scale[first + i] * factor, from = (first + i) * data.perRow;
    for (let k = 0; k < data.perRow; k++) {
      sum[i * length + (columns ? columns[from + k] : k)] += weights[from + k] * step;
    }
  }
}

// (length, length) weights of a layer and a head, each a number or MEAN.
function selected(layer, head) {
  const layers = layer === MEAN ? data.layers.map((_, l) => l) : [layer];
  const heads = head === MEAN ? Array.from({length: data.heads}, (_, h) => h) : [head];
  const sum = new Float32Array(length * length);
  for (const l of layers) for (const h of heads) addHead(sum, l, h, 1 / (layers.length * heads.length));
  return sum;
}

// The tokens that are shown as one unit, in order.
function groups() {
  const found = [];
  for (let i = 0; i < length; i++) {
    const word = data.words[i];
    if (word === null && !state.special) continue;
    const last = found[found.length - 1];
    if (state.words && word !== null && last && last[last.length - 1] === i - 1 && data.words[i - 1] === word) last.push(i);
    else found.push([i]);
  }
  return found;
}

// Attention to a word is the sum over its pieces, attention from a word the mean over them.
function merged(base, units) {
  const size = units.length, out = new Float32Array(size * size);
  units.forEach((rows, a) => units.forEach((cols, b) => {
    let sum = 0;
    for (const i of rows) for (const j of cols) sum += base[i * length + j];
    out[a * size + b] = sum / rows.length;
  }));
  return out;
}

const largest = (values) => { let max = 0; for (const v of values) if (v > max) max = v; return max; };
const label = (unit) => unit.map((i) => data.tokens[i]).join("");
const percent = (v) => (100 * v).toFixed(v < 0.0995 ? 1 : 0) + " %";
const unitOf = (token) => view.groups.findIndex((unit) => unit.includes(token));
// The weights between the picked unit and every other, in the chosen direction.
const line = (unit) => Array.from({length: view.size}, (_, other) =>
  state.direction === "from" ? view.matrix[unit * view.size + other] : view.matrix[other * view.size + unit]);

// ---- Colours ----

let ramp = [];  // 256 [r, g, b]
function readRamp() {
  const stops = getComputedStyle(document.documentElement).getPropertyValue("--ramp").trim().split(/\s+/)
    .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  ramp = Array.from({length: 256}, (_, n) => {
    const at = n / 255 * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((v, c) => Math.round(v + (stops[low + 1][c] - v) * (at - low)));
  });
}
// The square root lets small weights show; the legend is drawn with the same law.
const shade = (v, max, power = 0.5) => ramp[Math.min(255, Math.round(255 * (v / (max || 1)) ** power))];
const css = (rgb) => `rgb(${rgb.join(",")})`;
const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#10151c" : "#ffffff");
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
