// Images: base64 of uint8 [C, H, W], drawn pixel by pixel.

import { state } from "./state.js";

export const decodePixels = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

export function encodePixels(pixels) {
  let text = "";
  for (const value of pixels) text += String.fromCharCode(value);
  return btoa(text);
}

/** Draws pixels uint8 [C, H, W] onto a canvas, which takes their size. */
export function paintPixels(canvas, pixels) {
  const [channels, height, width] = state.model.shape;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  const size = width * height;
  for (let i = 0; i < size; i += 1) {
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = pixels[(channels >= 3 ? c * size : 0) + i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

export const paint = (canvas, text) => paintPixels(canvas, decodePixels(text));

/** A new canvas with an image, and a name for those who can't see it. */
export function painted(text, name) {
  const canvas = document.createElement("canvas");
  if (name) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name);
  }
  paint(canvas, text);
  return canvas;
}

/** An empty picture. */
export function blank(canvas) {
  const [channels, height, width] = state.model.shape;
  paintPixels(canvas, new Uint8Array(channels * height * width));
}
