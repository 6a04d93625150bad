// The strip of test images, draws from the prior, and uploads.

import { ask, shown } from "./api.js";
import { painted } from "./picture.js";
import { asked, during, on, state, tell } from "./state.js";

const SHOWN = 20;
const strip = document.querySelector("#strip");
const note = document.querySelector("#note");
const others = document.querySelector("#others");
let start = 0;
let draws = 0;

/** Loads test images from `start` on; returns what came. */
async function load() {
  strip.replaceChildren();
  note.textContent = "";
  others.disabled = true;
  if (!state.data) return null;
  const current = during();
  const answer = await ask("images", asked({ data: state.data, start, count: SHOWN }));
  if (!current()) return null;
  answer.images.forEach((image, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.index = index;
    button.setAttribute("aria-pressed", "false");
    const label = answer.labels.length ? `, label ${answer.labels[index]}` : "";
    button.title = `test image ${start + index}${label}`;
    button.append(painted(image, button.title));
    button.addEventListener("click", shown(() => choose(image, button.title, answer.contexts[index], button)));
    strip.append(button);
  });
  note.textContent = answer.note;
  others.disabled = answer.total <= SHOWN;
  start = start + SHOWN >= answer.total ? 0 : start + SHOWN;
  return answer;
}

/** Makes an image the chosen one: its code and what it costs. */
export async function choose(image, origin, context, button) {
  const current = during();
  if (context !== undefined) setContext(context);
  const answer = await ask("choose", asked({ image }));
  if (!current()) return;
  press(button);
  Object.assign(state, { image, code: [...answer.code], start: answer.code });
  tell("image", { origin, cost: answer });
}

/** Draws an image from the prior and chooses it, with the code that it was drawn from. */
export async function drawPrior() {
  const current = during();
  draws += 1;
  const answer = await ask("draw", asked({ seed: draws, pixels_seed: state.seed }));
  const cost = await ask("choose", asked({ image: answer.image }));
  if (!current()) return;
  press(null);
  Object.assign(state, { image: answer.image, code: [...answer.code], start: answer.code });
  tell("image", { origin: "drawn from the prior", cost });
}

async function upload(event) {
  const [file] = event.target.files;
  event.target.value = ""; // the same file may be chosen again
  if (!file) return;
  if (file.size > state.maxUpload) {
    throw new Error(`the file has ${(file.size / 1e6).toFixed(1)} MB; at most ${state.maxUpload / 1e6} MB: send a smaller one`);
  }
  const invert = document.querySelector("#invert").value;
  const query = new URLSearchParams({ model: state.model.name, invert });
  const answer = await ask(`upload?${query}`, file);
  await choose(answer.image, "your picture");
  note.textContent = `Your picture: ${answer.note}.`;
}

function press(button) {
  for (const other of strip.children) other.setAttribute("aria-pressed", String(other === button));
}

/** The chooser of a conditional model's label or attributes, set to a value. */
export function setContext(value) {
  state.context = value;
  const fields = document.querySelectorAll("#context select, #context input");
  fields.forEach((field, index) => {
    field.value = Array.isArray(value) ? value[index] : value;
  });
}

function makeContext() {
  const place = document.querySelector("#context");
  place.replaceChildren();
  const told = state.model.context;
  state.context = told ? (told.attributes ?? 0) : null;
  if (!told) return;
  const changed = () => {
    const values = [...place.querySelectorAll("select, input")].map((field) => Number(field.value));
    state.context = told.attributes ? values : values[0];
    tell("code", { why: "context" });
  };
  const field = (name, element) => {
    const label = document.createElement("label");
    label.append(name, " ", element);
    element.addEventListener("change", changed);
    place.append(label, " ");
  };
  if (told.classes) {
    const select = document.createElement("select");
    for (let label = 0; label < told.classes; label += 1) select.append(new Option(label));
    field("Label", select);
    return;
  }
  told.attributes.forEach((value, index) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "number", step: "any", value });
    field(`Attribute ${index}`, input);
  });
}

/** Fills the strip, and chooses an image to begin with: the first of the model's own, else a draw from the prior. */
export async function begin() {
  start = 0;
  const answer = await load();
  const own = state.model.sets[0]?.name === state.data;
  if (answer && own) await choose(answer.images[0], strip.children[0].title, answer.contexts[0], strip.children[0]);
  else await drawPrior();
  tell("images");
}

on("model", makeContext);
on("model", () => {
  const grey = state.model.shape[0] === 1; // only those are inverted by themselves
  const invert = document.querySelector("#invert");
  invert.options[0].disabled = !grey;
  invert.value = grey ? "auto" : "no";
});
document.querySelector("#prior").addEventListener("click", shown(drawPrior));
others.addEventListener("click", shown(load));
document.querySelector("#upload").addEventListener("change", shown(upload));
