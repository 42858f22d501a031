// SPDX-License-Identifier: Apache-2.0
// The grid of small matrices, one for each layer and head, to choose from.

// At most 40 x 40 dots; a dot is the largest of the weights it stands for.
function thumbnail(canvas, layer, head) {
  const matrix = merged(selected(layer, head), view.groups), size = view.size, dots = Math.min(size, 40);
  const small = new Float32Array(dots * dots);
  for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) {
    const at = Math.floor(i * dots / size) * dots + Math.floor(j * dots / size);
    small[at] = Math.max(small[at], matrix[i * size + j]);
  }
  canvas.width = canvas.height = dots;
  canvas.getContext("2d").putImageData(image(small, dots, largest(small)), 0, 0);
}

function buildHeads() {
  const grid = $("heads"), heads = [MEAN, ...Array(data.heads).keys()], layers = [MEAN, ...data.layers.keys()];
  const side = Math.max(20, Math.min(46, Math.floor((grid.parentElement.clientWidth - 64) / heads.length) - 3));
  grid.style.gridTemplateColumns = `max-content ${side + 6}px repeat(${data.heads}, ${side}px)`;
  const text = (content, kind) => Object.assign(document.createElement("span"), {textContent: content, className: kind});
  const cells = [text("", "row"), ...heads.map((h) => text(h === MEAN ? "mean" : h, h === MEAN ? "mean-column" : ""))];
  for (const layer of layers) {
    cells.push(text(layer === MEAN ? "mean" : data.layers[layer], layer === MEAN ? "row mean-row" : "row"));
    for (const head of heads) cells.push(headButton(layer, head, side));
  }
  grid.replaceChildren(...cells);
}

const title = (layer, head) => {
  const first = layer === MEAN ? `mean of ${data.layers.length} layers` : `layer ${data.layers[layer]}`;
  return `${first}, ${head === MEAN ? `mean of ${data.heads} heads` : `head ${head}`}`;
};

function headButton(layer, head, side) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = title(layer, head);
  button.setAttribute("aria-label", button.title);
  button.className = [layer === MEAN ? "mean-row" : "", head === MEAN ? "mean-column" : ""].join(" ");
  button.style.width = button.style.height = side + "px";
  const canvas = document.createElement("canvas");
  thumbnail(canvas, layer, head);
  button.append(canvas);
  button.onclick = () => { Object.assign(state, {layer, head}); drawAll(); };
  return button;
}

function markHead() {
  const at = (state.layer === MEAN ? 0 : state.layer + 1) * (data.heads + 1) + (state.head === MEAN ? 0 : state.head + 1);
  $("heads").querySelectorAll("button").forEach((button, n) => {
    button.setAttribute("aria-pressed", n === at);
    button.tabIndex = n === at ? 0 : -1;
  });
}
