// What all pages share: elements, requests, numbers with units, colours.

/** An element; text is always set as text, never as markup, because ids and labels come from strangers. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) set(element, key, value);
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (key === "style") Object.assign(element.style, value); else element.setAttribute(key, value);
  element.append(...children.flat(Infinity));
  return element;
}

function set(element, key, value) {
  if (value === null || value === undefined || value === false) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "style") Object.assign(element.style, value);
  else if (key === "class") element.className = value;
  else element.setAttribute(key, value === true ? "" : value);
}

export const BANDS = "ugrizy"; // in the order of wavelength

export const byId = (id) => document.getElementById(id);

/** What the server put into the page. */
export const embedded = () => JSON.parse(byId("data")?.textContent ?? "null");

/** An error whose message is the sentence that the server gave. */
export class Problem extends Error {
  constructor(title, detail, status) {
    super(detail || title);
    this.title = title;
    this.status = status;
  }
}

async function answer(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("No connection", "The server does not answer. The page keeps what it has; try again later.", 0);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem(problem.title || `Error ${response.status}`, problem.detail || response.statusText, response.status);
}

export const getJson = async (url, signal) => (await answer(url, { signal })).json();
export const getBytes = async (url, signal) => (await answer(url, { signal })).arrayBuffer();
export const postJson = async (url, body, signal) =>
  (await answer(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal })).json();

/** Shows an error in the page's message box, or hides the box. */
export function report(error) {
  const box = byId("message");
  if (!box) return;
  box.hidden = !error;
  if (error) box.replaceChildren(h("b", {}, error.title || "Internal error"), " ", error.message);
}

/** Code for whoever asks this server; where it wants a token, from the environment variable TOKEN. */
const wantsToken = () => "token" in document.body.dataset;
export const curlToken = () => (wantsToken() ? ` -H "Authorization: Bearer $TOKEN"` : "");
export const pythonToken = () => (wantsToken() ? `, headers={"Authorization": "Bearer " + os.environ["TOKEN"]}` : "");
export const pythonImports = () => (wantsToken() ? "import os\n\nimport requests" : "import requests");

export const objectUrl = (path) => `/object/${path}`;
export const apiUrl = (path, rest = "") => `/api/v1/objects/${path}${rest}`;

// --- numbers ------------------------------------------------------------------------------------------------------

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
export const fixed = (value, digits = 2) => (known(value) ? value.toFixed(digits).replace("-", "−") : "–");
export const count = (value) => (known(value) ? value.toLocaleString("en").replaceAll(",", "\u2009") : "–");
export const signed = (value, digits = 2) => (known(value) ? (value > 0 ? "+" : "") + fixed(value, digits) : "–");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** Rounded so that the error has two digits at most: 235 ± 5. */
export function withError(value, error) {
  if (!known(value)) return "unknown";
  const digits = known(error) && error > 0 ? Math.min(4, Math.max(0, 1 - Math.floor(Math.log10(error)))) : 2;
  return known(error) ? `${fixed(value, digits)} ± ${fixed(error, digits)}` : fixed(value, digits);
}

export function duration(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${fixed(seconds, 1)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export const bytes = (n) => (!known(n) ? "–" : n < 1e3 ? `${n} B` : n < 1e6 ? `${fixed(n / 1e3, 1)} kB` : `${fixed(n / 1e6, 1)} MB`);
export const clock = (ms) => (known(ms) ? `${new Date(ms).toISOString().slice(0, 19).replace("T", " ")} UTC` : "–");
/** The calendar date on which the night of an integer MJD begins, UTC. */
export const dateOf = (mjd) => new Date((mjd - 40587) * 86400000).toISOString().slice(0, 10);

/** A class name as people write it. */
export const className = (name) => ({ SNIa: "SN Ia", SNOther: "SN other" })[name] ?? name;
/** The class prior in words; some cards give ratios: shown so that they sum to 1. */
export function priorOf(model) {
  const given = Object.entries(model.prior ?? {});
  const sum = given.reduce((all, [, p]) => all + p, 0) || 1;
  return given.map(([name, p]) => `${className(name)} ${fixed(p / sum)}`).join(", ");
}

export const KINDS = ["science", "difference", "template"];

// --- colours ------------------------------------------------------------------------------------------------------

const NAMED = new Set(["SNIa", "SNOther", "AGN", "Variable"]);

/** The CSS variable of a class: the well-known ones have their own, others the free ones in turn. */
export function classVariable(name, classes = []) {
  if (NAMED.has(name)) return `--class-${name.toLowerCase()}`;
  if (name === "SN") return "--class-snia";
  const others = classes.filter((one) => !NAMED.has(one) && one !== "SN");
  return `--class-${5 + (Math.max(0, others.indexOf(name)) % 4)}`;
}
export const classColour = (name, classes) => `var(${classVariable(name, classes)})`;

const probe = h("i", { hidden: true });
let resolved = new Map();

/** A variable's colour as a canvas wants it, of the theme that is shown. */
export function colour(variable) {
  if (!resolved.has(variable)) {
    if (!probe.isConnected) document.body.append(probe);
    probe.style.color = `var(${variable})`;
    resolved.set(variable, getComputedStyle(probe).color);
  }
  return resolved.get(variable);
}

const themed = new Set();
export const onTheme = (draw) => themed.add(draw);
export function themeChanged() {
  resolved = new Map();
  for (const draw of themed) draw();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themeChanged);

// --- small pieces -------------------------------------------------------------------------------------------------

/** The probabilities as a bar of parts; its text says them. */
export function shares(probabilities, classes, extra = "") {
  const parts = Object.entries(probabilities ?? {}).sort((a, b) => b[1] - a[1]);
  const text = parts.map(([name, p]) => `${className(name)} ${fixed(p)}`).join(", ") || "declined";
  const bar = h("span", { class: `shares ${parts.length ? "" : "declined"} ${extra}`, role: "img", "aria-label": text, title: text });
  for (const [name, p] of parts) bar.append(h("i", { style: { width: `${p * 100}%`, background: classColour(name, classes) } }));
  return bar;
}

/** Radio buttons that look like one switch. */
export function segments(label, options, value, onchange) {
  const name = `seg-${label.replace(/\W/g, "-")}`;
  const group = h("fieldset", { class: "seg", "aria-label": label });
  for (const { value: one, text, title, disabled } of options) {
    const input = h("input", { type: "radio", name, value: one, disabled, onchange: () => onchange(one) });
    input.checked = one === value;
    group.append(h("label", { title }, input, text));
  }
  return group;
}

export function copyButton(text, what) {
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Copy ${what}` }, "copy");
  button.addEventListener("click", async () => {
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    button.textContent = done ? "copied" : "cannot copy";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
  return button;
}

export function chip(name, p, classes) {
  const dot = h("i", { class: "dot", style: { background: classColour(name, classes) } });
  return h("span", { class: "chip" }, dot, className(name), " ", h("b", {}, fixed(p)));
}

/** Whether a key belongs to a field or to the browser, and not to the page. */
export const typing = (event) =>
  event.target.closest("input:not([type=radio]):not([type=checkbox]), select, textarea") || event.ctrlKey || event.metaKey || event.altKey;

/** The lamp says whether what is shown is still fed, in words as well as in colour. */
export function lamp(state) {
  const parts = state ? [state.kafka, state.redis].filter((part) => part && !part.ok) : [];
  const bad = !state || parts.length > 0;
  const names = state ? [state.kafka?.ok === false && "Kafka", state.redis?.ok === false && "Redis"].filter(Boolean) : [];
  const element = byId("lamp");
  element.dataset.state = bad ? "bad" : "ok";
  element.title = state ? (parts.map((part) => part.sentence).join(" ") || state.index?.sentence || "") : "The server does not answer; the page keeps what it has.";
  const text = !state ? "no server" : names.length ? `${names.join(", ")} unavailable` : "up to date";
  const label = element.querySelector("span");
  if (label.textContent !== text) label.textContent = text;
}
