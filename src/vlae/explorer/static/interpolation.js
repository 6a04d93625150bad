// A path between two codes: a strip, and a slider along it.

import { ask, latest } from "./api.js";
import { blank, paint, painted } from "./picture.js";
import { asked, during, on, state } from "./state.js";

const STEPS = 17;
const along = document.querySelector("#along");
const strip = document.querySelector("#path");
const between = document.querySelector("#between");
const ends = { first: null, second: null };
let frames = [];

const walk = latest(async () => {
  if (!ends.first || !ends.second) return;
  const current = during();
  const path = document.querySelector('[name="path"]:checked').value;
  const fields = { first: ends.first, second: ends.second, path, steps: STEPS, drawn: state.drawn, seed: state.seed };
  const answer = await ask("interpolate", asked(fields));
  if (!current()) return;
  frames = answer.images;
  paint(document.querySelector("#first"), frames[0]);
  paint(document.querySelector("#second"), frames.at(-1));
  strip.replaceChildren(...frames.filter((_, index) => index % 2 === 0).map((frame) => painted(frame)));
  show();
});

function show() {
  if (!frames.length) return;
  paint(between, frames[Number(along.value)]);
  along.setAttribute("aria-valuetext", `${Math.round((100 * along.value) / (STEPS - 1))} % of the way`);
}

function take(which) {
  ends[which] = [...state.code];
  walk();
}

on("model", () => {
  const missing = state.model.missing.interpolation;
  document.querySelector("#interpolation .missing").textContent = missing ?? "";
  document.querySelector("#interpolation .panel").hidden = Boolean(missing);
  Object.assign(ends, { first: null, second: null });
  frames = [];
  strip.replaceChildren();
  for (const canvas of document.querySelectorAll("#interpolation canvas")) blank(canvas);
});
on("images", async () => {
  if (state.model.missing.interpolation) return;
  // To begin with: from the chosen image to a draw from the prior.
  const current = during();
  const other = await ask("draw", asked({ seed: 7 })).catch(() => null);
  if (!current() || !other || ends.first || ends.second) return;
  Object.assign(ends, { first: [...state.code], second: other.code });
  walk();
});
on("code", walk);
along.addEventListener("input", show);
document.querySelector("#set-first").addEventListener("click", () => take("first"));
document.querySelector("#set-second").addEventListener("click", () => take("second"));
for (const radio of document.querySelectorAll('[name="path"]')) radio.addEventListener("change", walk);
