// What is asked of the server, and how its errors are shown.

const alertLine = document.querySelector("#error");

/** Shows one plain line, or none. */
export function say(text = "") {
  alertLine.textContent = text;
}

let pending = 0;

/** Keeps `data-busy` of the page true while anything is asked, and what follows from an answer is not asked yet. */
function busy(change) {
  pending += change;
  if (pending) document.body.dataset.busy = "true";
  else setTimeout(() => { document.body.dataset.busy = String(pending > 0); }, 5);
}

/** POSTs to /api/<verb>: an object as JSON, or a file with the verb's query as it is. Throws an Error with one line. */
export async function ask(verb, body) {
  busy(1);
  try {
    return await answerOf(verb, body);
  } finally {
    busy(-1);
  }
}

async function answerOf(verb, body) {
  const file = body instanceof Blob;
  let response;
  try {
    response = await fetch(`/api/${verb}`, {
      method: body === undefined ? "GET" : "POST",
      headers: file || body === undefined ? {} : { "Content-Type": "application/json" },
      body: file ? body : JSON.stringify(body),
    });
  } catch {
    throw new Error("the explorer does not answer: is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `the explorer answered ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// The next thing that is clicked or changed takes the line away; what merely goes on behind it does not.
for (const name of ["click", "change"]) document.addEventListener(name, () => say(), { capture: true });

/** A handler that shows what goes wrong in `work`. */
export function shown(work) {
  return async (...given) => {
    try {
      return await work(...given);
    } catch (error) {
      say(error.message);
      return undefined;
    }
  };
}

/** Runs `work` on the latest value only: one at a time, and what comes meanwhile replaces what waits. */
export function latest(work) {
  let running = false;
  let waiting = null;
  const safely = shown(work);
  return async (value) => {
    waiting = { value };
    if (running) return;
    running = true;
    while (waiting) {
      const next = waiting;
      waiting = null;
      await safely(next.value);
    }
    running = false;
  };
}
