// SPDX-License-Identifier: Apache-2.0
// What ties the parts together: choosing, drawing, keys.

function choose() {
  const units = groups(), matrix = merged(selected(state.layer, state.head), units);
  view = {groups: units, size: units.length, matrix, max: largest(matrix)};
  if (state.token === null || unitOf(state.token) < 0) state.token = units[telling(units, matrix)][0];
}

// The unit with the strongest attention to another one.
function telling(units, matrix) {
  let best = 0, value = -1;
  for (let i = 0; i < units.length; i++) for (let j = 0; j < units.length; j++) {
    if (i !== j && matrix[i * units.length + j] > value) { best = i; value = matrix[i * units.length + j]; }
  }
  return best;
}

function drawAll() {
  state.hover = null;
  choose();
  $("chosen").textContent = title(state.layer, state.head);
  $("legend").firstChild.style.background =
    `linear-gradient(90deg, ${Array.from({length: 9}, (_, n) => css(shade(n / 8, 1))).join(",")})`;
  $("legend").lastChild.textContent = "0 to " + percent(view.max);
  $("value").textContent = "Rows attend, columns are attended to.";
  for (const [id, value] of [["direction", state.direction], ["merge", state.words ? "words" : "pieces"]]) {
    for (const button of $(id).children) button.setAttribute("aria-pressed", button.dataset.value === value);
  }
  drawSentence();
  paintCells();
  drawMatrix();
  markHead();
}

function rebuild() {
  readRamp();
  choose();
  buildWords();
  buildHeads();
  drawAll();
}

// Arrow keys inside of a row or grid of buttons: moves by the step, clicks, and keeps the focus.
function arrows(box, steps, click) {
  box.addEventListener("keydown", (event) => {
    const step = steps[event.key], buttons = [...box.querySelectorAll("button")];
    if (step === undefined) return;
    event.preventDefault();
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) { next.click(); next.focus(); }
  });
}

function connect() {
  const special = $("special").querySelector("input"), pieces = data.words.some((w, i) => w !== null && i && w === data.words[i - 1]);
  $("merge").hidden = !pieces;
  $("special").hidden = !data.words.includes(null);
  if (data.words.every((word) => word === null) || (state.token !== null && data.words[state.token] === null)) state.special = true;
  special.checked = state.special;
  special.onchange = () => { state.special = special.checked; rebuild(); };
  $("merge").onclick = ({target}) => { if (target.dataset.value) { state.words = target.dataset.value === "words"; rebuild(); } };
  $("direction").onclick = ({target}) => { if (target.dataset.value) { state.direction = target.dataset.value; drawAll(); } };
  const matrix = $("matrix");
  matrix.onmousemove = (event) => hover(cellAt(event));
  matrix.onmouseleave = () => hover(null);
  matrix.onclick = (event) => {
    const cell = cellAt(event);
    if (cell) { state.token = view.groups[cell[state.direction === "from" ? 0 : 1]][0]; drawAll(); hover(cell); }
  };
  matrix.onkeydown = (event) => {
    const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!move) return;
    event.preventDefault();
    const [row, column] = state.hover || pair(unitOf(state.token)), clamp = (n) => Math.max(0, Math.min(view.size - 1, n));
    hover([clamp(row + move[0]), clamp(column + move[1])]);
  };
  arrows($("words"), {ArrowLeft: -1, ArrowRight: 1});
  arrows($("heads"), {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -data.heads - 1, ArrowDown: data.heads + 1});
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = (name) => { document.documentElement.dataset.theme = name; rebuild(); };
  $("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  dark.onchange = () => theme(dark.matches ? "dark" : "light");
  let wait = 0, width = document.body.clientWidth;
  addEventListener("resize", () => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    clearTimeout(wait);
    wait = setTimeout(rebuild, 120);
  });
  theme(dark.matches ? "dark" : "light");
}

function notes() {
  const parts = ["Layers and heads are counted from 0; each small picture has its own scale. Weights are stored in 8 bits each, within 0.2 % of the largest of their row."];
  if (columns) parts.push(`Of each row the ${data.perRow} largest of ${length} weights are kept, ${percent(data.coverage)} of all attention; the others show as 0.`);
  if (data.layers.length < data.allLayers) parts.push(`Shown are ${data.layers.length} of ${data.allLayers} layers.`);
  parts.push("Choose a word, a head or a cell with the mouse, or with Tab and the arrow keys.");
  $("note").textContent = parts.join(" ");
}

$("title").textContent = data.title;
notes();
connect();
