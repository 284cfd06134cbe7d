// Loads the model and answers, away from the page's own thread.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { tokenizer } from "./tokens.js";

const WARM = ["a text of a length as people write them, to be read before one is typed", "warm up"];
const WARM_UP = 6000, WARM_RUNS = 150; // milliseconds and runs at most
let about, read, session, waiting = 0;

// A file's bytes; gzipped ones opened, unless the server said what they are and the browser did.
async function bytes(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} did not come: ${answer.status} ${answer.statusText}`);
  const content = new Uint8Array(await answer.arrayBuffer());
  if (!name.endsWith(".gz") || content[0] !== 0x1f || content[1] !== 0x8b) return content;
  const opened = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(opened).arrayBuffer());
}

const parsed = (content) => JSON.parse(new TextDecoder().decode(content));
const same = (a, b) => a.length === b.length && a.every((id, i) => id === b[i]);

async function load() {
  about = await fetch("about.json").then((answer) => answer.json());
  const names = Object.fromEntries(
    Object.entries(about.files).map(([part, files]) => [part, Object.keys(files)]));
  const wasm = names.runtime.find((name) => name.endsWith(".wasm.gz"));
  const files = [wasm, names.model[0], names.tokenizer[0]].map(bytes);
  ort.env.wasm.numThreads = 1; // sentences are short: several threads wait for each other
  ort.env.logLevel = "error";
  const making = Promise.all(files.slice(0, 2)).then(([runtime, model]) => {
    ort.env.wasm.wasmBinary = runtime.buffer;
    return ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  });
  [session, read] = await Promise.all([
    making, files[2].then((content) => tokenizer(parsed(content), about))]);
  const odd = about.probes.find(({ text, pair, ids }) => !same(read(text, pair).ids, ids));
  return { about, odd: odd?.text, bytes: transferred() };
}

// Browsers compile fast first and well later, once code has run often: it does, while none waits.
async function warmUp() {
  const end = performance.now() + WARM_UP;
  for (let run = 0; run < WARM_RUNS && performance.now() < end; run++) {
    await new Promise((resolve) => setTimeout(resolve));
    if (!waiting) await (turn = turn.then(() => waiting || classify(...WARM)).catch(() => {}));
  }
}

// What came over the wire of each part; what the browser does not say is taken as it is stored.
function transferred() {
  const sizes = Object.entries(about.files).map(([part, files]) => {
    const each = Object.entries(files).map(([name, size]) =>
      performance.getEntriesByName(new URL(name, self.location).href)[0]?.encodedBodySize || size);
    return [part, each.reduce((a, b) => a + b, 0)];
  });
  return Object.fromEntries(sizes);
}

const probabilities = {
  classes(logits) {
    const top = Math.max(...logits), weights = logits.map((x) => Math.exp(x - top));
    const total = weights.reduce((a, b) => a + b, 0);
    return weights.map((weight) => weight / total);
  },
  labels: (logits) => logits.map((x) => 1 / (1 + Math.exp(-x))),
  number: () => [],
};

// One text at a time: with one scale for a whole tensor, an answer would depend on its neighbours.
async function classify(text, second) {
  const pair = about.pair ? second ?? "" : null;
  const start = performance.now();
  const { ids, types } = read(text, pair);
  const given = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types };
  const feeds = Object.fromEntries(about.inputs.map((name) => [
    name, new ort.Tensor("int64", BigInt64Array.from(given[name], BigInt), [1, ids.length])]));
  const output = await session.run(feeds);
  const logits = Array.from(output.logits.data);
  const milliseconds = performance.now() - start;
  const chances = probabilities[about.kind](logits);
  const label = {
    classes: () => about.labels[logits.indexOf(Math.max(...logits))],
    labels: () => about.labels.filter((_, i) => logits[i] > 0),
    number: () => logits[0],
  }[about.kind]();
  return { label, probabilities: chances, logits, tokens: ids.length, milliseconds };
}

const ready = load();
const answers = {
  ready: () => ready,
  ids: (text, pair) => read(text, pair ?? null).ids,
  classify,
};
let turn = ready.then(() => {}, () => {}); // a session runs one text at a time
self.onmessage = ({ data: { id, what, given } }) => {
  waiting++;
  turn = turn.then(async () => {
    try {
      await ready;
      self.postMessage({ id, found: await answers[what](...given) });
    } catch (error) {
      self.postMessage({ id, error: error?.message ?? String(error) });
    }
    waiting--;
  });
};
ready.then(warmUp, () => {});
