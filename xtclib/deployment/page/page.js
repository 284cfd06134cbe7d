// What is seen: texts in, answers and figures out; the model is in worker.js.
//
// window.xtc: ready → what was loaded; ids(text, pair) → token ids as Python's; classify(texts,
// pairs) → for each {label, probabilities, logits, tokens, milliseconds}; about, once it is ready.
"use strict";

const at = (id) => document.getElementById(id);
const LAST = 50; // the runs that the median is of
const PAUSE = 120; // milliseconds of quiet before texts are read
// A module with one SIMD instruction.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65,
  0, 253, 15, 253, 98, 11];

function lacking() {
  if (location.protocol === "file:") {
    return "Browsers run this page from a server alone: python -m http.server, in its folder, " +
      "then open http://localhost:8000.";
  }
  const old = (what) => `This browser has no ${what}, by which the model is computed: ` +
    "update it (Chrome 91, Firefox 114, Safari 16.4 or newer).";
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    return old("WebAssembly SIMD");
  }
  if (typeof DecompressionStream !== "function") return old("DecompressionStream");
  return typeof Worker === "function" ? "" : old("Web Workers");
}

function told(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = false;
  at("state").textContent = "";
}

const xtc = (window.xtc = (() => {
  const problem = lacking();
  if (problem) {
    const none = () => Promise.reject(new Error(problem));
    return { ready: none(), ids: none, classify: none, about: null };
  }
  const worker = new Worker("worker.js", { type: "module" });
  const waiting = new Map();
  let last = 0;
  const ask = (what, ...given) => new Promise((resolve, reject) => {
    waiting.set(++last, { resolve, reject });
    worker.postMessage({ id: last, what, given });
  });
  worker.onmessage = ({ data: { id, found, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(found);
    else reject(new Error(error));
  };
  worker.onerror = (event) => {
    const error = new Error(event.message || "a file of this page did not come: copy it again");
    for (const { reject } of waiting.values()) reject(error);
  };
  const classify = (texts, pairs = null) =>
    Promise.all(texts.map((text, i) => ask("classify", text, pairs?.[i] ?? null)));
  return { ready: ask("ready"), ids: (text, pair = null) => ask("ids", text, pair), classify,
    about: null };
})());

const megabytes = (bytes) => (bytes < 1e5 ? `${(bytes / 1e3).toFixed(1)} kB`
  : `${(bytes / 1e6).toFixed(2)} MB`);
const duration = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms`
  : `${(ms / 1000).toFixed(2)} s`);
const times = [];

function timed(milliseconds) {
  times.push(milliseconds);
  if (times.length > LAST) times.shift();
  const sorted = [...times].sort((a, b) => a - b), half = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  at("latest").textContent = duration(milliseconds);
  at("median").textContent = duration(median);
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function bar(name, share, chosen) {
  const row = element("div", chosen ? "bar chosen" : "bar");
  const track = element("dd", "track"), fill = element("div", "fill");
  fill.style.width = `${100 * share}%`;
  track.append(fill);
  track.setAttribute("aria-hidden", "true");
  const label = element("dt", "", name);
  label.title = name;
  row.append(label, track, element("dd", "share", `${(100 * share).toFixed(1)} %`));
  return row;
}

function card([text, pair], answer) {
  const item = document.createElement("li");
  const { kind, labels } = xtc.about;
  const shown = element("p", "text", pair === null ? text : `${text} · ${pair}`);
  shown.title = shown.textContent;
  shown.dir = "auto";
  const words = { classes: () => answer.label, number: () => answer.label.toFixed(2),
    labels: () => answer.label.join(", ") || "none" }[kind]();
  const bars = element("dl", "bars");
  answer.probabilities.forEach((share, i) => {
    const chosen = kind === "labels" ? share > 0.5 : labels[i] === answer.label;
    bars.append(bar(labels[i], share, chosen));
  });
  item.append(shown, element("p", "label", words), bars);
  return item;
}

function rows() {
  const [first, second] = ["texts", "pairs"].map((id) => at(id).value.split("\n"));
  const paired = xtc.about.pair;
  return first.map((text, i) => [text.trim(), paired ? (second[i] ?? "").trim() : null])
    .filter(([text, pair]) => text || pair);
}

let asked = 0;

async function answer() {
  const mine = ++asked, given = rows(), list = at("answers");
  if (!given.length) {
    list.replaceChildren();
    at("state").textContent = "Ready: type a sentence.";
  }
  for (const [i, row] of given.entries()) {
    const [found] = await xtc.classify([row[0]], [row[1]]);
    timed(found.milliseconds);
    if (mine !== asked) return; // something newer was typed
    const made = card(row, found);
    if (list.children[i]) list.children[i].replaceWith(made);
    else list.append(made);
    while (i === given.length - 1 && list.children.length > given.length) list.lastChild.remove();
    at("state").textContent = given.length === 1 ? `1 text, ${found.tokens} tokens`
      : `${i + 1} of ${given.length} texts`;
  }
}

const fail = (error) => told(`It stopped: ${error.message}`);

xtc.ready.then(({ about, odd, bytes }) => {
  xtc.about = about;
  at("load").textContent = duration(performance.now());
  for (const [part, size] of Object.entries(bytes)) {
    at(`bytes-${part}`).textContent = megabytes(size);
  }
  if (about.task) {
    const name = about.task[0].toUpperCase() + about.task.slice(1);
    document.title = at("title").textContent = `${name} in the browser`;
  }
  at("second").hidden = !about.pair;
  const heads = { classes: `${about.labels.length} classes`, number: "a number",
    labels: `any of ${about.labels.length} labels` }[about.kind];
  at("about").textContent = `${about.name ? `${about.name}: ` : ""}${heads}, up to ` +
    `${about.max_length} tokens, on one thread. ` +
    `Bytes as they came over the wire; the median is of the last ${LAST} texts.`;
  if (odd !== undefined) {
    told(`This browser reads ${JSON.stringify(odd.slice(0, 40))} otherwise than the model learned ` +
      "it: answers to such texts may differ.");
  }
  let pause;
  const soon = () => {
    clearTimeout(pause);
    pause = setTimeout(() => answer().catch(fail), PAUSE);
  };
  at("form").addEventListener("input", soon);
  at("form").addEventListener("submit", (event) => event.preventDefault());
  return answer();
}).catch((error) => {
  if (!lacking()) return fail(error);
  at("form").inert = true;
  return told(error.message);
});
