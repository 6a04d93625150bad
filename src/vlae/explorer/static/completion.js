// A drawing at the model's resolution, whose lower part the model draws.

import { ask, shown } from "./api.js";
import { decodePixels, encodePixels, paintPixels, painted } from "./picture.js";
import { asked, during, on, state } from "./state.js";

const COUNT = 4;
const canvas = document.querySelector("#sketch");
const rows = document.querySelector("#rows");
const button = document.querySelector("#complete");
const results = document.querySelector("#completions");
let pixels = new Uint8Array();
let pen = null; // where the pointer was last, in pixels
let cursor = [0, 0]; // of the keyboard
let seed = 0;

/** Ink along the line between two points, [x, y] in pixels; soft at its edge where the model knows grey. */
function stroke(from, to) {
  const [channels, height, width] = state.model.shape;
  const radius = (1.1 * Math.max(width, height)) / 28;
  const erasing = document.querySelector('[name="tool"]:checked').value === "eraser";
  const ink = document.querySelector("#ink").value;
  const colour = [1, 3, 5].map((at) => (erasing ? 0 : parseInt(ink.slice(at, at + 2), 16)));
  const reach = erasing ? 1.6 * radius : radius;
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = dx * dx + dy * dy;
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const [px, py] = [x + 0.5 - from[0], y + 0.5 - from[1]];
      const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      const cover = Math.min(1, Math.max(0, reach + 0.5 - Math.hypot(px - t * dx, py - t * dy)));
      const share = state.model.levels === 2 ? Number(cover >= 0.5) : cover;
      for (let c = 0; c < channels; c += 1) {
        const at = (c * height + y) * width + x;
        const wanted = colour[channels >= 3 ? c : 0];
        pixels[at] = erasing
          ? pixels[at] * (1 - share)
          : channels >= 3
            ? pixels[at] + (wanted - pixels[at]) * share
            : Math.max(pixels[at], wanted * share);
      }
    }
  }
  paintPixels(canvas, pixels);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const [, height, width] = state.model.shape;
  return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
}

function showRows() {
  const [, height] = state.model.shape;
  document.querySelector("#rows-shown").textContent = `${rows.value} of ${height}`;
  document.querySelector("#unknown").style.height = `${100 * (1 - rows.value / height)}%`;
}

function clear() {
  const [channels, height, width] = state.model.shape;
  pixels = new Uint8Array(channels * height * width);
  paintPixels(canvas, pixels);
}

/** Arrow keys move a pen that is shown as an inverted pixel; space puts a dot. */
function key(event) {
  const [, height, width] = state.model.shape;
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
  const dot = event.key === " " || event.key === "Enter";
  if (!dx && !dy && !dot) return;
  event.preventDefault();
  cursor = [Math.min(width - 1, Math.max(0, cursor[0] + dx)), Math.min(height - 1, Math.max(0, cursor[1] + dy))];
  const here = [cursor[0] + 0.5, cursor[1] + 0.5];
  if (dot) stroke(here, here);
  else paintPixels(canvas, pixels);
  const context = canvas.getContext("2d");
  context.fillStyle = "#d9822b";
  context.fillRect(cursor[0], cursor[1], 1, 1);
}

const complete = shown(async () => {
  const current = during();
  seed += 1;
  const candidates = state.model.latent ? Number(document.querySelector("#candidates").value) : 1;
  const fields = { image: encodePixels(pixels), rows: Number(rows.value), count: COUNT, candidates, seed };
  button.disabled = true;
  results.classList.add("busy");
  try {
    const answer = await ask("complete", asked(fields));
    if (!current()) return;
    const figures = answer.images.map((image, index) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      if (state.model.latent) caption.textContent = `${answer.effective[index].toFixed(1)} of ${candidates} codes had a say`;
      figure.append(painted(image, `completion ${index + 1}`), caption);
      return figure;
    });
    results.replaceChildren(...figures);
  } finally {
    button.disabled = false;
    results.classList.remove("busy");
  }
});

on("model", () => {
  const missing = state.model.missing.completion;
  document.querySelector("#completion .missing").textContent = missing ?? "";
  document.querySelector("#completion .panel").hidden = Boolean(missing);
  document.querySelector("#ink-label").hidden = state.model.shape[0] < 3;
  for (const element of document.querySelectorAll("#tries, #tried")) element.hidden = !state.model.latent;
  const [, height, width] = state.model.shape;
  Object.assign(rows, { max: height, value: Math.ceil(height / 2) });
  cursor = [Math.floor(width / 2), Math.floor(height / 4)];
  results.replaceChildren();
  clear();
  showRows();
});
canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  pen = place(event);
  stroke(pen, pen);
});
canvas.addEventListener("pointermove", (event) => {
  if (!pen) return;
  const steps = event.getCoalescedEvents?.() ?? [];
  for (const step of steps.length ? steps : [event]) {
    const to = place(step);
    stroke(pen, to);
    pen = to;
  }
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { pen = null; });
canvas.addEventListener("keydown", key);
canvas.addEventListener("blur", () => paintPixels(canvas, pixels));
rows.addEventListener("input", showRows);
button.addEventListener("click", complete);
document.querySelector("#clear").addEventListener("click", clear);
document.querySelector("#copy").addEventListener("click", () => {
  if (!state.image) return;
  pixels = decodePixels(state.image);
  paintPixels(canvas, pixels);
});
