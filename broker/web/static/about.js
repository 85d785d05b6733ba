// What surrounds the rows of an object: its head, its models, its downloads, its epochs as a table.

import { BANDS, apiUrl, byId, chip, className, clock, copyButton, curlToken, duration, fixed, h, objectUrl, plural, priorOf, pythonImports, pythonToken, report, withError } from "./lib.js";

export function fillHead(data) {
  const degrees = `${fixed(data.ra, 5)} ${fixed(data.dec, 5)}`.replaceAll("−", "-");
  const sexagesimal = `${data.sexagesimal?.ra} ${data.sexagesimal?.dec}`;
  const position = (text, what) => h("span", { class: "mono nowrap" }, text, copyButton(text, what));
  byId("position").replaceChildren(position(sexagesimal, "position, sexagesimal"), position(degrees, "position in degrees"), h("span", {}, "ICRS"));
  const links = data.links.map(({ name, url }) => h("a", { href: url, rel: "noreferrer noopener", target: "_blank" }, name));
  byId("links").replaceChildren(...links, aladinLink());
  const chips = data.models.map((model) => latestChip(model, recordOf(data, model.name))).filter(Boolean);
  byId("now").replaceChildren(...chips, h("span", { class: "muted" }, summary(data)));
  if (data.notice) report({ title: "Note.", message: data.notice });
}

function aladinLink() {
  const title = "Loads Aladin Lite and sky images from CDS, Strasbourg: the only thing here that leaves this server";
  return h("a", { href: "?aladin=1", title }, "Aladin Lite (loads from CDS)");
}

const probabilities = (record) => (Array.isArray(record.probabilities) ? Object.fromEntries(record.probabilities.map((c) => [c.name, c.probability])) : record.probabilities);

/** The latest classification; from the index, which has less of it, while Redis is unavailable. */
const recordOf = (data, model) => data.latest[model] ?? (data.source === "index" ? data.rows.find((row) => row.model === model) : null);

function latestChip(model, record) {
  if (!record) return null;
  const name = h("span", { class: "muted" }, model.name || "class");
  if (record.status !== "CLASSIFIED") return h("span", { class: "chip declined" }, name, `declined: ${record.reason_text ?? record.reason}`);
  const made = chip(record.top_class, record.top_probability, model.classes);
  made.prepend(name);
  return made;
}

function summary(data) {
  const { epochs } = data;
  const record = recordOf(data, data.models[0]?.name);
  const parts = [];
  if (epochs?.mjd.length) {
    const counts = [...BANDS].map((band) => [band, epochs.band.filter((b) => b === band).length]).filter(([, n]) => n);
    parts.push(plural(epochs.mjd.length, "epoch"), `${fixed(epochs.mjd.at(-1) - epochs.mjd[0], 0)} d`, counts.map(([band, n]) => `${band} ${n}`).join("  "));
    const flags = [...new Set(epochs.flags.flat())];
    if (flags.length) parts.push(`flags: ${flags.join(", ")}`);
    if (data.images_missing) parts.push(`images of ${plural(data.images_missing, "epoch")} are not kept any more`);
  }
  if (record?.classified_ms && record.kafka_ms) parts.push(`classified ${duration((record.classified_ms - record.kafka_ms) / 1000)} after the alert`);
  return parts.join(" · ");
}

export function fillModels(data) {
  const body = byId("models-body");
  if (!data.models.length) {
    body.append(h("p", { class: "muted" }, "No model has classified this object yet. The status page shows what is due."));
    return;
  }
  const head = h("thead", {}, h("tr", {}, ["model", "class", "p", "epochs"].map((text, n) => h("th", { scope: "col", class: n < 2 ? "l" : null }, text))));
  const rows = data.models.map((model) => {
    const record = recordOf(data, model.name);
    const what = record?.status === "CLASSIFIED" ? className(record.top_class) : record ? `declined: ${record.reason_text ?? record.reason}` : "nothing yet";
    return h("tr", {}, h("th", { scope: "row" }, model.name), h("td", { class: "l" }, what), h("td", {}, fixed(record?.top_probability)), h("td", {}, record?.n_stamps ?? "–"));
  });
  body.append(h("table", {}, head, h("tbody", {}, rows)), ...data.models.map((model) => provenance(model, data)));
}

function provenance(model, data) {
  const record = recordOf(data, model.name);
  const prior = priorOf(model);
  const lines = [
    `${model.title || model.name} ${model.version ?? ""}`.trim(), model.digest && `weights ${String(model.digest).slice(0, 8)}`, model.preprocessing, prior && `prior ${prior}`,
    record?.classified_ms && `classified ${clock(record.classified_ms)}`,
  ];
  const other = model.same_as_published === false ? h("b", {}, " The model on this server is not the one that published this: recomputed results are from the server's model.") : null;
  const estimates = Object.entries(record?.estimates ?? {}).map(([name, e]) => `${e.name ?? name} ${withError(e.value, e.error)}`);
  return h("p", { class: "muted small" }, lines.filter(Boolean).join(" · "), estimates.length ? h("br") : null, estimates.join(" · "), other, " ", h("a", { href: "/status#models" }, "card"));
}

export function fillMore(data, page) {
  byId("more-body").append(downloads(data), ...code(data), ...neighbours(data), ...context(data), epochTable(data, page));
}

function downloads(data) {
  const file = (rest, text) => h("a", { href: apiUrl(data.path, rest), download: "" }, text);
  const kinds = Object.keys(data.images ?? {});
  return h("p", { class: "links" },
    file("", "JSON"), file("/light-curve.csv", "light curve (CSV)"), file("/stamps.npz", "stamps (NPZ)"),
    kinds.length ? file("/stamps.fits", "stamps (FITS cubes)") : null,
    kinds.map((kind) => [file(`/stamps.gif?kind=${kind}&scale=4`, `${kind} film (GIF)`), file(`/strip.png?kind=${kind}&last=12&scale=3`, `${kind} strip (PNG)`)]));
}

function code(data) {
  const url = `${location.origin}${apiUrl(data.path)}`;
  const python = `${pythonImports()}\n\nobject = requests.get(${JSON.stringify(url)}, timeout=30${pythonToken()}).json()\nfor model, records in object["published"].items():\n    print(model, records[-1]["probabilities"])`;
  return [h("details", {}, h("summary", {}, "Code"), h("pre", { tabindex: 0 }, python), copyButton(python, "Python code"), h("pre", { tabindex: 0 }, `curl -sS${curlToken()} '${url}'`))];
}

function neighbours(data) {
  if (!data.neighbours?.length) return [];
  return [h("p", {}, "Within 2″, perhaps the same object split by the survey: ", data.neighbours.map((one) => [h("a", { href: objectUrl(one.path) }, one.object_id), ` (${fixed(one.separation, 2)}″) `]))];
}

function context(data) {
  if (!data.context?.length) return [];
  const rows = data.context.map((one) => h("tr", {}, h("th", { scope: "row" }, one.meaning || one.name), h("td", {}, fixed(one.value, 2)), h("td", { class: "l" }, one.unit)));
  return [h("details", {}, h("summary", {}, "Surroundings, from the newest packet"), h("table", {}, h("tbody", {}, rows)))];
}

function epochTable(data, page) {
  const { epochs } = data;
  const body = h("tbody", {});
  const details = h("details", { id: "epochs" }, h("summary", {}, `All ${plural(epochs.mjd.length, "epoch")} as a table`), h("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Epochs" }, h("table", {}, h("thead", {}, h("tr", {}, ["epoch", "band", "day", "MJD (TAI)", "flux (nJy)", "magnitude (AB)", "flags", "source", "kept"].map((text) => h("th", { scope: "col" }, text)))), body)));
  details.addEventListener("toggle", () => details.open && body.replaceChildren(...epochs.mjd.map((_, n) => epochRow(n, epochs, page))));
  return details;
}

function epochRow(n, epochs, page) {
  const kept = h("input", { type: "checkbox", "aria-label": `keep epoch ${n + 1} in the what-if`, onchange: () => page.whatIf.toggle(n), disabled: !page.whatIf.model });
  kept.checked = !page.off.has(n);
  return h("tr", {},
    h("th", { scope: "row" }, h("button", { type: "button", class: "quiet", onclick: () => page.pin(n) }, String(n + 1))),
    h("td", {}, h("span", { class: `band-${epochs.band[n]}` }, epochs.band[n])), h("td", {}, fixed(epochs.mjd[n] - epochs.mjd[0], 2)), h("td", {}, fixed(epochs.mjd[n], 5)),
    h("td", {}, withError(epochs.flux[n], epochs.flux_error[n])), h("td", {}, epochs.mag[n] === null ? "–" : withError(epochs.mag[n], epochs.mag_error[n])),
    h("td", {}, epochs.flags[n].join(", ")), h("td", { class: "mono" }, epochs.source_id[n]), h("td", {}, kept));
}
