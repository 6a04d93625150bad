// The frame: which model and which data.

import { ask, latest, shown } from "./api.js";
import { begin } from "./choosing.js";
import "./sliders.js";
import "./cost.js";
import "./interpolation.js";
import "./completion.js";
import { state, tell } from "./state.js";

const models = document.querySelector("#model");
const sets = document.querySelector("#data");

/** Makes a model the one that all panels show. */
async function chooseModel(name) {
  const model = await ask("describe", { model: name });
  Object.assign(state, { model, image: null, code: [], start: [], seed: 0 });
  const options = model.sets.map((set) => {
    const option = new Option(set.reason ? `${set.name} (not there)` : set.name, set.name);
    Object.assign(option, { disabled: Boolean(set.reason), title: set.reason ?? "" });
    return option;
  });
  sets.replaceChildren(...options);
  state.data = model.sets.find(({ reason }) => !reason)?.name ?? null;
  sets.value = state.data ?? "";
  const parts = [model.kind, `${model.parameters.toLocaleString("en")} parameters`, `images ${model.shape.join("×")}`];
  if (model.latent) parts.push(`${model.latent} latent numbers`);
  const trained = model.protocol ? `; trained on ${model.protocol}` : "";
  const [own] = model.sets;
  const missing = own?.reason ? ` ${own.name} is not shown: ${own.reason}.` : "";
  document.querySelector("#about").textContent = `${parts.join(", ")}${trained}.${missing}`;
  tell("model");
}

// One after the other, so that the panels never see a mixture of two models; the last choice wins.
const change = latest(async ({ model, data }) => {
  document.body.dataset.ready = "false";
  if (model) await chooseModel(model);
  else state.data = data;
  await begin();
  document.body.dataset.ready = "true";
});

models.addEventListener("change", () => change({ model: models.value }));
sets.addEventListener("change", () => change({ data: sets.value }));

shown(async () => {
  const offer = await ask("offer");
  state.maxUpload = offer.max_upload;
  models.replaceChildren(...offer.models.map((name) => new Option(name)));
  change({ model: models.value });
})();
