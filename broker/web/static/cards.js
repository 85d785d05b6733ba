// A model's card: its needs, its training data, its scores and its calibration.

import { className, fixed, h, plural, priorOf } from "./lib.js";
import { lines, reliability } from "./charts.js";

export function modelCard(model) {
  const metrics = model.card?.metrics ?? {};
  return h("article", { class: "modelcard", "aria-label": `Model ${model.name}` },
    h("h3", {}, `${model.title || model.name} ${model.version ?? ""} `, h("span", { class: "muted" }, model.name)),
    h("div", { class: "cardgrid" }, facts(model), scores(metrics), calibration(metrics)),
    h("details", {}, h("summary", { class: "small" }, "The whole card"), h("pre", { tabindex: 0 }, JSON.stringify(model.card ?? {}, null, 1))));
}

function facts(model) {
  const [needs, card] = [model.needs ?? {}, model.card ?? {}]; // null of a model that is not on this server
  const needed = [...(needs.images ?? []).map((kind) => `${kind} stamps`), needs.photometry && "photometry", needs.context && "surroundings"].filter(Boolean);
  const prior = priorOf(model);
  const trained = card.training ?? {};
  const rows = [
    ["family", model.family], ["weights", String(model.digest ?? "").slice(0, 16)], ["preprocessing", model.preprocessing], ["classes", model.classes.map(className).join(", ")], ["bands", model.bands], ["surveys", (model.surveys ?? []).join(", ")],
    ["needs", needed.join(", ")], ["epochs", needs.fewest ? `${needs.fewest} to ${needs.most}` : null], ["class prior", prior],
    ["trained on", trained.objects ? plural(trained.objects, "object") : null], ["archive", trained.archive?.command], ["runs here", model.recompute ? "yes" : "no: known only from what it has published"],
  ];
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function scores(metrics) {
  const rows = Object.entries(metrics.per_class ?? {}).map(([name, s]) => h("tr", {}, h("th", { scope: "row" }, className(name)), [s.precision, s.recall, s.f1].map((value) => h("td", {}, fixed(value))), h("td", {}, s.objects)));
  if (!rows.length) return h("p", { class: "muted" }, "The card has no scores.");
  const end = metrics.at_the_end ?? {};
  return h("div", {},
    h("p", { class: "muted small" }, `On ${metrics.data ?? "its test objects"}: accuracy ${fixed(end.accuracy)}, macro-F1 ${fixed(end.macro_f1)}, log loss ${fixed(end.log_loss)}.`),
    h("table", {}, h("thead", {}, h("tr", {}, ["class", "precision", "recall", "F1", "objects"].map((text, n) => h("th", { scope: "col", class: n ? null : "l" }, text)))), h("tbody", {}, rows)));
}

function calibration(metrics) {
  const bins = metrics.calibration;
  if (bins?.length) return h("div", {}, reliability("Calibration: fraction correct against top probability", bins), h("p", { class: "muted small" }, "Fraction correct against top probability; dashed: perfectly calibrated."));
  const after = Object.entries(metrics.after_stamps ?? {}).map(([n, s]) => ({ at: Math.log2(Number(n)), n, ...s })).filter((s) => Number.isFinite(s.at) && Number.isFinite(s.ece));
  if (!after.length) return h("p", { class: "muted" }, "The card has no calibration.");
  const series = [{ name: "measured", points: after.map((s) => ({ at: s.at, value: s.ece })) }, { name: "chance", points: after.map((s) => ({ at: s.at, value: s.ece_expected })) }];
  const paint = (name) => (name === "measured" ? "var(--focus)" : "var(--edge)");
  return h("div", {},
    lines("Calibration error by number of stamps", series, paint, (at) => String(Math.round(2 ** at)), { wide: 290, floor: 0 }),
    h("p", { class: "muted small" }, "Calibration error by number of stamps. Blue: measured; grey: expected by chance for so few objects."));
}
