// What the panels share. An event of the same name says what has changed: "model", "images", "image" or "code".

export const state = {
  model: null, // what /api/describe says
  data: null, // name of the data set, or null
  context: null, // label or attributes of a conditional model
  image: null, // the chosen image, base64
  code: [], // the code that is shown
  start: [], // the code of the chosen image
  drawn: true,
  seed: 0, // of the pixels' noise
};

const bus = new EventTarget();

export const on = (name, listener) => bus.addEventListener(name, (event) => listener(event.detail));
export const tell = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));

/** The fields that nearly every request has. */
export const asked = (more = {}) => ({ model: state.model.name, context: state.context, ...more });

/** Whether a model has been changed since; answers for another one are dropped. */
export const during = () => {
  const model = state.model;
  return () => state.model === model;
};
