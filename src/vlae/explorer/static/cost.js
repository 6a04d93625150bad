// What the chosen image costs: nats and bits, bits per dimension, and a file.

import { ask, latest } from "./api.js";
import { asked, during, on, state } from "./state.js";

const MOST_BARS = 32;
const NATS = Math.log(2); // in a bit
const file = document.querySelector("#file");

function number(name, nats, explained) {
  const term = document.createElement("dt");
  const value = document.createElement("dd");
  const small = document.createElement("small");
  term.textContent = name;
  small.textContent = `${(nats / NATS).toFixed(1)} bits${explained}`;
  value.append(`${nats.toFixed(1)} nats`, small);
  const pair = document.createElement("div");
  pair.append(term, value);
  return pair;
}

function showNumbers(cost) {
  const place = document.querySelector("#numbers");
  const values = state.model.shape.reduce((a, b) => a * b);
  if (cost.rate === null) {
    place.replaceChildren(number("distortion", cost.distortion, ""));
    return;
  }
  const total = cost.distortion + cost.rate;
  place.replaceChildren(
    number("distortion, −log p(x|z)", cost.distortion, ""),
    number("rate, KL(q(z|x) || p(z))", cost.rate, ""),
    number("−ELBO, their sum", total, `, ${(total / NATS / values).toFixed(3)} per value`),
  );
}

function showBars(bits) {
  const order = bits.map((_, index) => index).sort((a, b) => bits[b] - bits[a]).slice(0, MOST_BARS);
  const most = Math.max(...order.map((index) => bits[index]), 1e-9);
  const bars = order.map((index) => {
    const item = document.createElement("li");
    const bar = document.createElement("i");
    item.title = `z ${index}: ${bits[index].toFixed(2)} bits`;
    item.setAttribute("aria-label", item.title);
    bar.style.height = `${Math.max(0, (6.8 * bits[index]) / most)}rem`;
    item.append(bar, String(index));
    return item;
  });
  document.querySelector("#bars").replaceChildren(...bars);
  const few = bits.length > MOST_BARS ? ` The ${MOST_BARS} largest of ${bits.length}.` : "";
  document.querySelector("#bars-note").textContent = bits.length
    ? `Bits per dimension of z for this image; the largest is ${most.toFixed(1)} bits.${few}`
    : "";
}

const size = latest(async (cost) => {
  const current = during();
  const { image } = state;
  const png = (answer) => (answer.png === null ? "" : ` As a PNG file it takes ${answer.png} bytes.`);
  const density = state.model.levels === null;
  const bytes = cost.rate === null || density ? null : (cost.distortion + cost.rate) / NATS / 8;
  file.textContent = "Writing the file …";
  const answer = await ask("file", asked({ image })).catch((error) => {
    file.textContent = "";
    throw error;
  });
  if (!current() || state.image !== image) return;
  if (answer.bytes !== null) {
    file.textContent =
      `As a .vlae file with this image alone: ${answer.bytes} bytes, really written and read back. One of many would cost about ` +
      `its −ELBO, ${bytes.toFixed(1)} bytes; alone it also pays for the header and for the first bits.${png(answer)}`;
  } else if (bytes === null) {
    file.textContent = `No size in bytes: ${answer.why}.${png(answer)}`;
  } else {
    file.textContent = `In a file of many it would take about its −ELBO, ${bytes.toFixed(1)} bytes: an estimate, since ${answer.why}.${png(answer)}`;
  }
});

on("model", () => {
  document.querySelector("#numbers").replaceChildren();
  showBars([]);
  file.textContent = "";
});
on("image", ({ cost }) => {
  showNumbers(cost);
  showBars(cost.bits);
  size(cost);
});
