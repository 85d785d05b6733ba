// Small charts as SVG, of the page's own elements: bars by time, lines with a range, a calibration plot.

import { fixed, h, svg } from "./lib.js";

const [WIDE, TALL, LEFT, BOTTOM, TOP] = [600, 170, 44, 22, 8];

/** Round numbers that divide [low, high] in a few steps. */
function ticks(low, high, wanted = 3) {
  const raw = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) found.push(Number(value.toPrecision(6)));
  return found;
}

const short = (value) => (Math.abs(value) >= 1e6 ? `${value / 1e6}M` : Math.abs(value) >= 1e4 ? `${value / 1e3}k` : String(value).replace("-", "−"));

function frame(label, low, high, xs, xText, wide, room = 0) {
  const x = (value) => LEFT + ((value - xs[0]) / (xs.at(-1) - xs[0] || 1)) * (wide - LEFT - 8 - room);
  const y = (value) => TALL - BOTTOM - ((value - low) / (high - low || 1)) * (TALL - BOTTOM - TOP);
  const lines = ticks(low, high).map((value) => [svg("line", { x1: LEFT, x2: wide - 8 - room, y1: y(value), y2: y(value), class: "axis" }), svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, short(value))]);
  const [first, middle, last] = [xs[0], xs[Math.floor(xs.length / 2)], xs.at(-1)];
  // the middle one only where it does not touch the others
  const shown = Math.min(x(middle) - x(first), x(last) - x(middle)) > 100 ? [first, middle, last] : [first, last];
  const texts = [...new Set(shown)].map((value, n, all) => svg("text", { x: x(value), y: TALL - 6, "text-anchor": all.length < 2 ? "start" : ["start", "middle", "end"][n * (all.length === 2 ? 2 : 1)] }, xText(value)));
  return { x, y, root: svg("svg", { viewBox: `0 0 ${wide} ${TALL}`, class: "chart", role: "img", "aria-label": label, style: { maxWidth: `${wide * 1.1}px` } }, lines, texts) };
}

/** Stacked bars, one next to the other: `rows` of {at, parts: [[name, value]]}; `paint(name)` gives a fill. */
export function stackedBars(label, rows, paint, xText, wide = 1200) {
  const most = Math.max(...rows.map((row) => row.parts.reduce((sum, [, value]) => sum + value, 0)), 1);
  const text = (n) => { // the end of the axis has the label of the last bar
    const row = rows[n === rows.length ? n - 1 : n];
    return row ? xText(row.at) : "";
  };
  const { x, y, root } = frame(label, 0, most, rows.length > 2 ? [0, Math.floor(rows.length / 2), rows.length] : [0, Math.max(6, rows.length)], text, wide);
  const width = Math.min(40, (x(1) - x(0)) * 0.8);
  rows.forEach((row, n) => {
    let base = 0;
    for (const [name, value] of row.parts) {
      root.append(svg("rect", { x: x(n), width, y: y(base + value), height: Math.max(0, y(base) - y(base + value)), style: { fill: paint(name), fillOpacity: name === "declined" ? 0.35 : 0.85 } }, svg("title", {}, `${xText(row.at)}: ${name} ${value}`)));
      base += value;
    }
  });
  return root;
}

const MARGIN = 54; // px at the right, for the training data

/** Lines of {name, points: [{at, value, low, high}]} over time; `reference`, [{name, value, low, high}], is drawn to their right. */
export function lines(label, series, paint, xText, { reference = [], wide = 400, floor = null } = {}) {
  const all = series.flatMap((one) => one.points).filter((p) => Number.isFinite(p.value));
  if (!all.length) return h("p", { class: "muted small" }, "nothing yet");
  const xs = [...new Set(all.map((p) => p.at))].sort((a, b) => a - b);
  const values = [...all, ...reference].flatMap((p) => [p.low ?? p.value, p.high ?? p.value]);
  const room = reference.length ? MARGIN : 0;
  const { x, y, root } = frame(label, floor ?? Math.min(...values), Math.max(...values), xs, xText, wide, room);
  for (const { name, points } of series) {
    const good = points.filter((p) => Number.isFinite(p.value));
    root.append(svg("polyline", { points: good.map((p) => `${x(p.at).toFixed(1)},${y(p.value).toFixed(1)}`).join(" "), style: { fill: "none", stroke: paint(name), strokeWidth: 1.5 } }));
    for (const p of good) spread(root, x(p.at), y, p, paint(name), `${xText(p.at)}, ${name}`);
  }
  if (room) trained(root, reference, wide, y, paint);
  return root;
}

/** A value with its range. */
function spread(root, at, y, { value, low, high }, tint, text, wide = 1.5) {
  if (low !== undefined) root.append(svg("line", { x1: at, x2: at, y1: y(low), y2: y(high), style: { stroke: tint, strokeOpacity: 0.4, strokeWidth: wide } }));
  root.append(svg("circle", { cx: at, cy: y(value), r: 2, style: { fill: tint } }, svg("title", {}, `${text}: ${fixed(value, 2)}`)));
}

/** What the model was trained on, to the right of the last night. */
function trained(root, reference, wide, y, paint) {
  const first = wide - MARGIN + 6;
  root.append(svg("line", { x1: first - 4, x2: first - 4, y1: TOP, y2: TALL - BOTTOM, class: "ideal" }), svg("text", { x: wide, y: TALL - 6, "text-anchor": "end" }, "training"));
  reference.forEach((one, n) => spread(root, first + (n + 0.5) * ((MARGIN - 8) / reference.length), y, one, paint(one.name), `training, ${one.name}`, 4));
}

/** Accuracy against confidence: points of [confidence, accuracy, objects], on the line where the model is calibrated. */
export function reliability(label, bins) {
  const [side, left] = [240, 34];
  const x = (p) => left + p * (side - left - 8);
  const y = (p) => side - 24 - p * (side - 32);
  const texts = [0, 0.5, 1].map((p) => [svg("text", { x: x(p), y: side - 8, "text-anchor": "middle" }, String(p)), svg("text", { x: left - 6, y: y(p) + 4, "text-anchor": "end" }, String(p)), svg("line", { x1: x(0), x2: x(1), y1: y(p), y2: y(p), class: "axis" })]);
  const most = Math.max(...bins.map((bin) => bin[2]));
  const points = bins.map(([confidence, accuracy, n]) => svg("circle", { cx: x(confidence), cy: y(accuracy), r: 2 + 3 * Math.sqrt(n / most), style: { fill: "var(--focus)", fillOpacity: 0.8 } }, svg("title", {}, `p ${fixed(confidence)}: right ${fixed(accuracy)} of ${n} objects`)));
  return svg("svg", { viewBox: `0 0 ${side} ${side}`, class: "chart", role: "img", "aria-label": label, style: { maxWidth: `${side * 1.1}px` } }, texts, svg("path", { d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}`, class: "ideal" }), points);
}
