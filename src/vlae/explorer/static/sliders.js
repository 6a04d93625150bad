// Sliders over the most informative dimensions of the code, and the image that follows them.

import { ask, latest, shown } from "./api.js";
import { blank, paint } from "./picture.js";
import { asked, during, on, state, tell } from "./state.js";

const AT_FIRST = 8;
const place = document.querySelector("#sliders");
const more = document.querySelector("#more");
const latency = document.querySelector("#latency");
const decoded = document.querySelector("#decoded");
let ranking = { order: [], bits: [] };
let count = AT_FIRST;
let times = [];

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
};

/** The image of the code; where a slider's move began at `moved`, how long it took until it was painted. */
const follow = latest(async ({ moved }) => {
  if (state.image === null) return;
  const current = during();
  const answer = await ask("decode", asked({ code: state.code, drawn: state.drawn, seed: state.seed }));
  if (!current()) return;
  paint(decoded, answer.image);
  if (moved === undefined) return;
  const took = performance.now() - moved;
  times = [...times.slice(-199), took];
  Object.assign(latency.dataset, { moves: Number(latency.dataset.moves) + 1, last: took, median: median(times) });
  latency.textContent =
    `Move to picture: ${took.toFixed(0)} ms, median ${median(times).toFixed(0)} ms of ${times.length} ` +
    `(the model alone: ${(1000 * answer.seconds).toFixed(0)} ms).`;
});

function makeSliders() {
  place.replaceChildren();
  const end = state.model.range;
  ranking.order.slice(0, count).forEach((dimension, rank) => {
    const label = document.createElement("label");
    const line = document.createElement("span");
    const output = document.createElement("output");
    const bits = document.createElement("em");
    const input = document.createElement("input");
    const value = state.code[dimension];
    Object.assign(input, { type: "range", step: "any", min: Math.min(-end, value), max: Math.max(end, value), value });
    input.dataset.dimension = dimension;
    label.htmlFor = input.id = `z-${dimension}`; // said, since an output in a label would else be what it labels
    bits.textContent = ranking.bits.length ? `${ranking.bits[rank].toFixed(1)} bits` : "";
    line.append(`z ${dimension}`, bits, output);
    label.append(line, input);
    input.addEventListener("input", () => {
      const moved = performance.now();
      state.code[dimension] = Number(input.value);
      write(input, output);
      follow({ moved });
    });
    write(input, output);
    place.append(label);
  });
  more.hidden = count >= ranking.order.length;
}

function write(input, output) {
  output.textContent = Number(input.value).toFixed(2);
  input.setAttribute("aria-valuetext", `${output.textContent} standard deviations of the prior`);
}

const rank = shown(async () => {
  const current = during();
  const answer = await ask("dimensions", asked({ data: state.data }));
  if (!current()) return;
  ranking = answer;
  document.querySelector("#order").textContent = answer.bits.length
    ? `By rate, the mean over ${answer.on}. Each slider is the prior's noise of its dimension, in standard deviations, from the 0.5 % to the 99.5 % quantile.`
    : "This model has no rate, so the order is that of z.";
  makeSliders();
});

on("model", () => {
  const missing = state.model.missing.latents;
  document.querySelector("#latents .missing").textContent = missing ?? "";
  for (const element of document.querySelectorAll("#reset, #order, #latency, #more, #sliders")) element.hidden = Boolean(missing);
  document.querySelector("#made").textContent = state.model.latent ? "of the code" : "drawn by the model";
  document.querySelector("#best").textContent = state.model.autoregressive ? "greedy" : "mean";
  document.querySelector(`[name="how"][value="${state.model.autoregressive ? "drawn" : "best"}"]`).checked = true;
  state.drawn = state.model.autoregressive;
  Object.assign(latency.dataset, { moves: 0 });
  latency.textContent = "Move a slider to see how fast it is.";
  times = [];
  ranking = { order: [], bits: [] };
  count = AT_FIRST;
  place.replaceChildren();
  blank(decoded);
  blank(document.querySelector("#original"));
});
on("images", () => state.model.missing.latents || rank());
on("image", ({ origin }) => {
  paint(document.querySelector("#original"), state.image);
  document.querySelector("#origin").textContent = origin;
  makeSliders();
  follow({});
});
on("code", () => follow({}));
document.querySelector("#reset").addEventListener("click", () => {
  state.code = [...state.start];
  makeSliders();
  follow({});
});
document.querySelector("#noise").addEventListener("click", () => {
  state.seed += 1;
  tell("code", { why: "noise" });
});
for (const radio of document.querySelectorAll('[name="how"]')) {
  radio.addEventListener("change", () => {
    state.drawn = radio.value === "drawn";
    tell("code", { why: "how" });
  });
}
more.addEventListener("click", () => {
  count += AT_FIRST;
  makeSliders();
});
