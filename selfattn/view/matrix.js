// SPDX-License-Identifier: Apache-2.0
// The matrix of the chosen layer and head, on a canvas.

const plot = {cell: 0, left: 0, top: 0, slant: 0};
let cells = null;  // a canvas with one pixel for each weight

function paintCells() {
  cells = document.createElement("canvas");
  cells.width = cells.height = view.size;
  cells.getContext("2d").putImageData(image(view.matrix, view.size, view.max), 0, 0);
}

function image(values, size, max) {
  const pixels = new ImageData(size, size);
  values.forEach((v, n) => pixels.data.set([...shade(v, max), 255], 4 * n));
  return pixels;
}

const font = (px, weight = "") => `${weight} ${px}px ${getComputedStyle(document.body).fontFamily}`;

// Chooses the size of a cell and the room for the labels; labels smaller than 8 pixels are left out.
function arrange(context, names, width) {
  context.font = font(12.5);
  const longest = Math.min(110, Math.max(...names.map((name) => context.measureText(name).width)));
  const upright = (width - longest - 14) / view.size, slanted = (width - longest * 1.7 - 14) / view.size;
  plot.slant = slanted >= 20 ? Math.PI / 4 : Math.PI / 2;
  const fit = slanted >= 20 ? slanted : upright, labelled = fit >= 8;
  const whole = Math.floor(width / view.size);
  plot.cell = labelled ? Math.min(38, Math.floor(fit)) : whole || width / view.size;
  plot.left = labelled ? Math.ceil(longest) + 12 : 0;
  plot.top = labelled ? Math.ceil(longest * Math.sin(plot.slant)) + 16 : 0;
  return labelled ? longest : 0;
}

function drawMatrix() {
  const canvas = $("matrix"), context = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
  const width = canvas.parentElement.clientWidth, names = view.groups.map(label), longest = arrange(context, names, width);
  const {cell, left, top} = plot, side = cell * view.size;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round((top + side + 3) * ratio);
  canvas.style.height = top + side + 3 + "px";
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingEnabled = cell < 1;
  context.drawImage(cells, left, top, side, side);
  if (cell > 10) {
    context.fillStyle = variable("--paper");
    for (let n = 1; n <= view.size; n++) {
      context.fillRect(left + n * cell - 1, top, 1, side);
      context.fillRect(left, top + n * cell - 1, side, 1);
    }
  }
  if (cell >= 27) drawNumbers(context);
  if (longest) drawLabels(context, names, longest);
  outline(context);
  $("matrixHead").style.maxWidth = Math.max(left + side, 420) + "px";
  canvas.setAttribute("aria-label", `Matrix of ${view.size} by ${view.size} weights, ${$("chosen").textContent}. Arrow keys move over it.`);
}

function drawNumbers(context) {
  context.font = font(11);
  context.textAlign = "center";
  view.matrix.forEach((v, n) => {
    const row = Math.floor(n / view.size), column = n % view.size;
    context.fillStyle = inkOn(shade(v, view.max));
    context.fillText(Math.round(100 * v), plot.left + (column + 0.5) * plot.cell - 0.5, plot.top + (row + 0.5) * plot.cell + 3.5);
  });
}

function drawLabels(context, names, longest) {
  const picked = unitOf(state.token), px = Math.min(12.5, plot.cell - 1);
  const [row, column] = state.hover || (state.direction === "from" ? [picked, -1] : [-1, picked]);
  names.forEach((name, n) => {
    context.font = font(px);
    const text = clip(context, name, longest), tilt = plot.slant < 1.5 ? [2, -6] : [px * 0.34, -6];
    const style = (on) => {
      context.fillStyle = variable(n === picked && on ? "--pick" : on ? "--ink" : "--quiet");
      context.font = font(px, on ? "600" : "");
    };
    style(n === row);
    context.textAlign = "right";
    context.fillText(text, plot.left - 7, plot.top + (n + 0.5) * plot.cell + px * 0.34);
    style(n === column);
    context.save();
    context.translate(plot.left + (n + 0.5) * plot.cell + tilt[0], plot.top + tilt[1]);
    context.rotate(-plot.slant);
    context.textAlign = "left";
    context.fillText(text, 0, 0);
    context.restore();
  });
}

function clip(context, text, width) {
  if (context.measureText(text).width <= width + 1) return text;
  while (text.length > 1 && context.measureText(text + "…").width > width) text = text.slice(0, -1);
  return text + "…";
}

// Frames the picked word's row or column, and the cell under the pointer.
function outline(context) {
  const unit = unitOf(state.token), all = view.size * plot.cell, {left, top, cell} = plot;
  context.strokeStyle = variable("--pick");
  context.lineWidth = 2;
  if (state.direction === "from") context.strokeRect(left - 1, top + unit * cell - 1, all + 1, cell + 1);
  else context.strokeRect(left + unit * cell - 1, top - 1, cell + 1, all + 1);
  if (!state.hover) return;
  context.strokeStyle = variable("--ink");
  context.lineWidth = 1.5;
  context.strokeRect(left + state.hover[1] * cell - 0.5, top + state.hover[0] * cell - 0.5, Math.max(cell, 4), Math.max(cell, 4));
}

function cellAt(event) {
  const box = $("matrix").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - plot.left) / plot.cell);
  const row = Math.floor((event.clientY - box.top - plot.top) / plot.cell);
  const inside = (n) => n >= 0 && n < view.size;
  return inside(row) && inside(column) ? [row, column] : null;
}

function hover(cell) {
  if (String(cell) === String(state.hover)) return;
  state.hover = cell;
  drawMatrix();
  const [row, column] = cell || [];
  $("value").textContent = cell
    ? `${label(view.groups[row])} → ${label(view.groups[column])}   ${(100 * view.matrix[row * view.size + column]).toFixed(1)} %`
    : "Rows attend, columns are attended to.";
}
