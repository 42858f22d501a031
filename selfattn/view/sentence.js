// SPDX-License-Identifier: Apache-2.0
// The sentence: its words as buttons, shaded by how much they have to do with the picked one, and arcs between them.

function buildWords() {
  const box = $("words");
  box.replaceChildren(...view.groups.map((unit, n) => {
    const word = document.createElement("button");
    word.type = "button";
    word.className = data.words[unit[0]] === null ? "word special" : "word";
    word.textContent = label(unit);
    word.onclick = () => { state.token = unit[0]; drawAll(); };
    word.onmouseenter = () => hover(pair(n));
    word.onmouseleave = () => hover(null);
    return word;
  }));
  box.style.fontSize = (view.size <= 16 ? 23 : view.size <= 48 ? 18 : 14) + "px";
}

// The matrix cell between the picked unit and another: [row, column].
function pair(other) {
  const unit = unitOf(state.token);
  return state.direction === "from" ? [unit, other] : [other, unit];
}

function drawSentence() {
  const picked = unitOf(state.token), values = line(picked), max = largest(values);
  [...$("words").children].forEach((word, n) => {
    const colour = shade(values[n], max, 0.75), strong = values[n] >= 0.3 * max && max > 0;
    word.style.background = css(colour);
    word.style.color = inkOn(colour);
    word.dataset.percent = view.size < 60 ? (100 * values[n]).toFixed(values[n] < 0.0995 ? 1 : 0) : strong ? Math.round(100 * values[n]) : "";
    word.classList.toggle("picked", n === picked);
    word.classList.toggle("strong", strong);
    word.tabIndex = n === picked ? 0 : -1;
    word.setAttribute("aria-pressed", n === picked);
    word.setAttribute("aria-label", `${word.textContent}, ${percent(values[n])}`);
  });
  drawArcs(picked, values, max || 1);
  const word = $("words").children[picked], box = $("sentence");
  if (word.offsetTop < box.scrollTop || word.offsetTop + 40 > box.scrollTop + box.clientHeight) box.scrollTop = word.offsetTop - box.clientHeight / 2;
  summarise(picked, values);
}

function drawArcs(picked, values, max) {
  const words = [...$("words").children], box = $("words"), svg = $("arcs");
  const top = (n) => [words[n].offsetLeft + words[n].offsetWidth / 2, words[n].offsetTop];
  const [left, first] = top(0), [right, last] = top(words.length - 1), oneLine = Math.abs(first - last) < 12;
  const height = (distance) => (oneLine ? Math.min(84, 16 + 0.2 * distance) : 26);
  // Room above the first line for the tallest arc, whichever word is picked: the page does not jump.
  box.style.paddingTop = 8 + 0.75 * height(right - left) + "px";
  box.style.rowGap = oneLine ? 0 : "10px";
  svg.setAttribute("width", box.offsetWidth);
  svg.setAttribute("height", box.offsetHeight);
  const [x, y] = top(picked), others = values.map((v, n) => ({strength: v / max, n}))
    .filter(({strength, n}) => n !== picked && strength > 0.03).sort((a, b) => a.strength - b.strength);
  svg.replaceChildren(...others.map(({strength, n}) => arc([x, y - 2], [top(n)[0], top(n)[1] - 2], height(Math.abs(top(n)[0] - x)), strength)));
}

function arc([x, y], [u, v], height, strength) {
  const path = document.createElementNS(document.getElementById("arcs").namespaceURI, "path");
  path.setAttribute("d", `M${x},${y} C${x},${y - height} ${u},${v - height} ${u},${v}`);
  path.setAttribute("stroke", css(ramp[Math.round(110 + 110 * strength)]));
  path.setAttribute("stroke-width", (1 + 4 * strength).toFixed(2));
  path.setAttribute("opacity", (0.25 + 0.7 * strength).toFixed(2));
  return path;
}

// "it attends to pizza 70 %, good 8 %, tasted 5 %; 12 % of its attention goes to special tokens".
function summarise(picked, values) {
  const best = values.map((v, n) => ({v, n})).sort((a, b) => b.v - a.v).slice(0, 3).filter(({v}) => v > 0);
  const strong = (text, kind = "") => Object.assign(document.createElement("b"), {textContent: text, className: kind});
  const parts = [strong(label(view.groups[picked]), "from"),
    state.direction === "from" ? " attends most to " : " is attended to most by "];
  best.forEach(({v, n}, at) => parts.push(at ? ", " : "", strong(label(view.groups[n])), " " + percent(v)));
  const rest = 1 - values.reduce((a, b) => a + b, 0);
  const hidden = !columns && !state.special && data.words.includes(null);
  if (state.direction === "from" && hidden && rest > 0.005) parts.push(`; ${percent(rest)} goes to the hidden special tokens`);
  $("summary").replaceChildren(...parts);
}
