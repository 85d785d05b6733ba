// Rows of the live page and of lists.

import { className, classColour, clock, dateOf, fixed, h, objectUrl, shares } from "./lib.js";

const COLUMNS = [
  ["object", "id"], ["last stamps"], ["class", "class"], ["p", "probability"], ["probabilities"], ["change"], ["epochs", "epochs"], ["bands"], ["days", "days"], ["last night", "night"], ["classified", "newest"], ["model"],
];
const LEFT_COLUMNS = new Set(["object", "class", "last stamps", "probabilities", "bands", "model"]);

const LESS = new Set(["probabilities", "bands", "last night", "classified", "model", "days"]); // left out on a phone
const LEAST = new Set(["last night", "classified", "model"]); // left out on a small screen

/** The head of the table; `sort` is {by, onsort} where columns can be sorted by. */
export function head(sort = null) {
  const cells = COLUMNS.map(([text, key]) => {
    const attributes = { scope: "col", class: `${LEFT_COLUMNS.has(text) ? "l" : ""} ${LESS.has(text) ? "less" : ""} ${LEAST.has(text) ? "least" : ""}`.trim() || null };
    if (!sort || !key || key === "class") return h("th", attributes, text);
    const [by, down] = [sort.by.replace(/^-/, ""), sort.by.startsWith("-")];
    const state = by === key ? (down === (key !== "id") ? "ascending" : "descending") : null; // ids begin with a, all else with the most
    const mark = state === "ascending" ? " ▲" : state ? " ▼" : "";
    return h("th", { ...attributes, "aria-sort": state }, h("button", { type: "button", onclick: () => sort.onsort(by === key && !down ? `-${key}` : key) }, text + mark));
  });
  return h("thead", {}, h("tr", {}, cells));
}

export function rowOf(row, classes) {
  const declined = row.status !== "CLASSIFIED";
  const name = declined ? h("span", { class: "muted" }, `declined: ${String(row.reason ?? "").replaceAll("_", " ")}`) : h("span", { class: "nowrap" }, h("i", { class: "dot", style: { background: classColour(row.top_class, classes) } }), " ", className(row.top_class));
  const bands = Object.entries(row.stamps_per_band ?? {}).map(([band, n]) => [h("span", { class: `band-${band}` }, band), `${n} `]);
  return h("tr", {},
    h("th", { scope: "row", class: "l name" }, h("a", { href: objectUrl(row.path), title: row.object_id }, row.object_id)),
    h("td", { class: "l strip" }, row.strip ? h("img", { src: row.strip, alt: "", loading: "lazy", decoding: "async", width: 204, height: 34, onerror: (event) => event.target.remove() }) : null),
    h("td", { class: "l class" }, name), h("td", { class: "p" }, fixed(row.top_probability)), h("td", { class: "l less" }, shares(row.probabilities, classes)),
    h("td", { class: "change" }, change(row)), h("td", { class: "epochs" }, row.n_stamps), h("td", { class: "l less" }, bands), h("td", { class: "less" }, fixed(row.days, 1)), h("td", { class: "less least" }, dateOf(Math.floor(row.last_mjd))), h("td", { class: "less least", title: clock(row.classified_ms) }, clock(row.classified_ms).slice(5, 16)), h("td", { class: "l less least" }, row.model));
}

/** What changed since the classification before: of the top class, or that it is another one. */
function change(row) {
  if (row.status !== "CLASSIFIED") return "";
  if (row.change === null || row.change === undefined) return h("span", { class: "muted", title: "first classification with probabilities" }, "first");
  if (row.previous_class && row.previous_class !== row.top_class) return h("span", { title: `was ${className(row.previous_class)}` }, `⇄ was ${className(row.previous_class)}`);
  const sign = row.change > 0.005 ? "▲" : row.change < -0.005 ? "▼" : "=";
  return h("span", { class: "nowrap", title: "change of its probability since the previous classification" }, `${sign} ${fixed(Math.abs(row.change))}`);
}
