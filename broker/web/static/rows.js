// What is painted in the rows: the light curve, class probabilities over time, the influence of each stamp.

import { className, classColour, classVariable, colour, fixed, h } from "./lib.js";
import { FONT, LEFT, marker, Plot, prepare, RIGHT } from "./timeline.js";

const ZERO_POINT = 31.4; // AB magnitude of 1 nJy
const POGSON = 2.5 / Math.LN10;
const SAME_D = 1.5e-4; // days (13 s): exposures of a band are further apart, rounded times of one are not
const TOLD = 4; // classes whose probabilities are shown next to a panel

/** Points of the light curve in the chosen unit: {x, band, value, error, kind, epoch}; kind "limit" for upper limits. */
export function points(data, axis, unit) {
  const epochs = data.epochs.mjd.map((_, epoch) => ({
    x: axis.of(epoch), band: data.epochs.band[epoch], flux: data.epochs.flux[epoch], error: data.epochs.flux_error[epoch], kind: "stamp", epoch,
  }));
  const more = (data.photometry?.mjd ?? []).map((mjd, n) => ({
    mjd, x: axis.at(mjd), band: data.photometry.band[n], flux: data.photometry.flux[n], error: data.photometry.flux_error[n], kind: data.photometry.kind[n],
  }));
  // a later packet tells of an epoch's detection again
  const again = (p) => epochs.some(({ epoch, band }) => band === p.band && Math.abs(data.epochs.mjd[epoch] - p.mjd) < SAME_D);
  const others = more.filter((p) => p.kind === "upper_limit" || !again(p));
  return [...others, ...epochs].map((p) => inUnit(p, unit)).filter((p) => Number.isFinite(p.value));
}

function inUnit(point, unit) {
  const { flux, error } = point;
  const limit = point.kind === "upper_limit";
  if (unit.name !== "mag") {
    const value = limit ? 5 * error : flux;
    return { ...point, kind: limit ? "limit" : point.kind, value: value === null ? NaN : value / unit.njy, error: (error ?? 0) / unit.njy };
  }
  // a flux within 1 sigma of nothing has no magnitude: its 5-sigma limit is shown
  if (limit || !(flux > error)) return { ...point, kind: "limit", value: ZERO_POINT - 2.5 * Math.log10(5 * error), error: 0 };
  return { ...point, value: ZERO_POINT - 2.5 * Math.log10(flux), error: (POGSON * error) / flux };
}

/** nJy or µJy, whichever gives shorter numbers, or AB magnitudes. */
export function unitOf(name, fluxes) {
  if (name === "mag") return { name, text: "mag (AB)" };
  const most = Math.max(...fluxes.filter((f) => f !== null).map(Math.abs), 0);
  return most >= 5e3 ? { name, text: "µJy", njy: 1000 } : { name, text: "nJy", njy: 1 };
}

function span(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - room, high + room];
}

export class LightCurve {
  constructor(box, axis, data) {
    Object.assign(this, { axis, data, unit: unitOf("flux", data.epochs.flux), off: new Set(), current: 0 });
    this.points = points(data, axis, this.unit);
    this.plot = new Plot(box, axis, {
      height: 216, yRange: () => this.range(), falls: () => this.unit.name === "mag", yText: (y) => this.text(y), draw: (context, x, y) => this.draw(context, x, y),
    });
  }

  setUnit(name) {
    this.unit = unitOf(name, this.data.epochs.flux);
    this.refresh();
  }

  refresh() {
    this.points = points(this.data, this.axis, this.unit);
    this.plot.refresh();
  }

  range() {
    if (!this.points.length) return [0, 1];
    // errors of single points must not squeeze all others: they may leave the plot
    const [low, high] = span(this.points.map((p) => p.value));
    return this.unit.name === "mag" ? [low, high] : [Math.min(low, -0.06 * high), high];
  }

  text(value) {
    return Math.abs(value) >= 10000 ? `${fixed(value / 1000, value % 1000 ? 1 : 0)}k` : `${Number(value.toPrecision(4))}`.replace("-", "−");
  }

  draw(context, x, y) {
    for (const point of this.points) this.drawPoint(context, point, x(point.x), y(point.value), y);
    const own = this.points.find((p) => p.epoch === this.current);
    if (!own) return;
    marker(context, own.band, x(own.x), y(own.value), 7);
    context.strokeStyle = colour("--ink");
    context.lineWidth = 2;
    context.stroke();
  }

  drawPoint(context, point, x, y, toY) {
    const tint = colour(`--band-${point.band}`);
    context.strokeStyle = context.fillStyle = tint;
    context.lineWidth = 1.3;
    context.globalAlpha = this.off.has(point.epoch) ? 0.2 : point.kind === "stamp" ? 1 : 0.75;
    if (point.kind === "limit") limit(context, x, y);
    else {
      bar(context, x, toY(point.value - point.error), toY(point.value + point.error));
      marker(context, point.band, x, y, point.kind === "stamp" ? 4 : 3);
      if (point.kind === "stamp") context.fill();
      else hollow(context);
    }
    context.globalAlpha = 1;
  }
}

function bar(context, x, y0, y1) {
  context.beginPath();
  context.moveTo(x, y0);
  context.lineTo(x, y1);
  context.stroke();
}

function hollow(context) {
  context.fillStyle = colour("--card");
  context.fill();
  context.stroke();
}

function limit(context, x, y) {
  context.beginPath();
  context.moveTo(x - 4, y);
  context.lineTo(x + 4, y);
  context.moveTo(x, y);
  context.lineTo(x, y + 7);
  context.moveTo(x - 2.5, y + 4.5);
  context.lineTo(x, y + 7);
  context.lineTo(x + 2.5, y + 4.5);
  context.stroke();
}

/** Class probabilities as stacked steps, each from its epoch to the next; what was declined is a dashed frame. */
export class ClassPanel {
  /** `values` is where the probabilities of the current epoch are written out. */
  constructor(box, axis, model, values) {
    Object.assign(this, { box, axis, model, values, steps: [] });
    const total = Object.fromEntries(model.classes.map((name) => [name, 0]));
    this.total = total;
    this.plot = new Plot(box, axis, {
      height: 136, bottom: false, yRange: () => [0, 1], ySplits: () => [0, 0.5, 1], yText: (p) => String(p),
      draw: (context, x, y) => this.draw(context, x, y),
    });
  }

  /** `steps`: {mjd, status, reason_text, probabilities} in the order of time. */
  setSteps(steps) {
    this.steps = steps;
    this.told = undefined;
    this.values.replaceChildren(); // empty until these steps are known: never those of another object
    for (const name of this.model.classes) this.total[name] = steps.reduce((sum, s) => sum + (s.probabilities[name] ?? 0), 0);
    this.plot.refresh();
  }

  get order() {
    return [...this.model.classes].sort((a, b) => this.total[b] - this.total[a]);
  }

  draw(context, x, y) {
    const { steps } = this;
    if (!steps.length) return;
    // whole pixels: between two rectangles that end within a pixel a seam would show
    const starts = steps.map((step) => Math.round(x(this.axis.at(step.mjd))));
    const ends = [...starts.slice(1), Math.round(x(this.axis.range[1] + 1))];
    const base = steps.map(() => 0);
    for (const name of this.order) {
      context.fillStyle = colour(classVariable(name, this.model.classes));
      context.globalAlpha = 0.82;
      steps.forEach((step, n) => {
        const p = step.probabilities[name] ?? 0;
        if (p && ends[n] > starts[n]) context.fillRect(starts[n], y(base[n] + p), ends[n] - starts[n], y(base[n]) - y(base[n] + p));
      });
      context.globalAlpha = 1;
      this.write(context, name, base, starts, ends, y);
      steps.forEach((step, n) => (base[n] += step.probabilities[name] ?? 0));
    }
    this.drawDeclined(context, starts, ends, y);
    this.drawBefore(context, starts[0], y);
  }

  /** The class's name on its area, where it fits best; nowhere if it does not fit. */
  write(context, name, base, starts, ends, y) {
    const [least, most] = [LEFT, this.axis.width - RIGHT];
    const tall = this.steps.map((step) => step.probabilities[name] ?? 0).map((p, n) => y(base[n]) - y(base[n] + p));
    const inside = tall.map((one, n) => one >= 20 && Math.min(ends[n], most) > Math.max(starts[n], least));
    const found = runs(inside).map(([first, last]) => [Math.max(starts[first], least), Math.min(ends[last], most)]);
    const [left, right] = found.sort((a, b) => b[1] - b[0] - a[1] + a[0])[0] ?? [0, 0];
    context.font = `600 ${FONT}`;
    const half = context.measureText(className(name)).width / 2 + 6;
    if (right - left < 2 * half + 4) return;
    const x = (left + right) / 2;
    const n = starts.findLastIndex((start) => start <= x);
    const middle = y(base[n]) - tall[n] / 2;
    if (tall[n] < 20) return;
    context.fillStyle = colour("--card");
    context.globalAlpha = 0.9;
    context.beginPath();
    context.roundRect(x - half, middle - 9, 2 * half, 18, 9);
    context.fill();
    context.globalAlpha = 1;
    context.fillStyle = colour("--ink");
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(className(name), x, middle + 0.5);
  }

  /** What the empty part in front of the first step means. */
  drawBefore(context, start, y) {
    const text = this.steps[0].mjd > this.axis.first + 1e-6 ? "nothing published before" : "before the first stamp";
    this.caption(context, text, LEFT, start, y);
  }

  /** A text in the middle of a part of the panel, where there is room for it. */
  caption(context, text, left, right, y) {
    context.font = FONT;
    const [x, middle, half] = [(left + right) / 2, (y(0) + y(1)) / 2, context.measureText(text).width / 2 + 6];
    if (2 * half > right - left) return;
    context.fillStyle = colour("--card");
    context.fillRect(x - half, middle - 8, 2 * half, 16);
    context.fillStyle = colour("--soft");
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(text, x, middle);
  }

  drawDeclined(context, starts, ends, y) {
    context.setLineDash([3, 3]);
    context.strokeStyle = colour("--edge");
    context.lineWidth = 1;
    for (const [first, last] of runs(this.steps.map((step) => step.status !== "CLASSIFIED"))) {
      const wide = Math.max(6, ends[last] - starts[first]);
      context.strokeRect(starts[first] + 0.5, y(1) + 0.5, wide - 1, y(0) - y(1) - 1);
      const text = this.steps[last].reason_text ?? this.steps[last].reason ?? "declined";
      this.caption(context, text, starts[first], starts[first] + wide, y);
    }
    context.setLineDash([]);
  }

  /** What the model said at a time: the last step before it. */
  at(mjd) {
    return this.steps.findLast((step) => step.mjd <= mjd + 1e-6) ?? null;
  }

  /** Says it in words, next to the panel. */
  tell(mjd) {
    const step = this.at(mjd);
    if (step === this.told) return;
    this.told = step;
    const parts = Object.entries(step?.probabilities ?? {}).sort((a, b) => b[1] - a[1]).slice(0, TOLD);
    const dot = (name) => h("i", { class: "dot", style: { background: classColour(name, this.model.classes) } });
    const declined = step && !parts.length ? `declined: ${step.reason_text ?? step.reason ?? "no reason given"}` : "";
    this.values.replaceChildren(...parts.map(([name, p]) => h("div", {}, dot(name), className(name), h("b", {}, fixed(p)))), declined);
  }
}

/** [first, last] of every run of true. */
function runs(flags) {
  const found = [];
  flags.forEach((flag, n) => {
    if (flag && flags[n - 1]) found.at(-1)[1] = n;
    else if (flag) found.push([n, n]);
  });
  return found;
}

/** Bars below the stamps: the change of log-odds of a class when a stamp is left out. */
export class Influence {
  constructor(box, axis) {
    this.axis = axis;
    this.canvas = document.createElement("canvas");
    box.append(this.canvas);
    this.values = null;
  }

  draw(current) {
    const height = 60;
    const context = prepare(this.canvas, this.axis.width, height);
    if (!this.values) return;
    const most = Math.max(...this.values.filter((v) => v !== null).map(Math.abs), 0.05);
    const middle = height / 2;
    context.fillStyle = colour("--line");
    context.fillRect(LEFT, middle - 0.5, this.axis.width - LEFT - RIGHT, 1);
    this.values.forEach((value, epoch) => {
      const x = this.axis.px(this.axis.of(epoch));
      if (x < LEFT || x > this.axis.width - RIGHT) return;
      const tall = value === null ? 0 : (value / most) * (middle - 5);
      context.fillStyle = colour(value > 0 ? this.variable : "--edge");
      context.fillRect(x - 3, Math.min(middle, middle - tall), 6, Math.max(1.5, Math.abs(tall)));
      if (epoch !== current) return;
      context.strokeStyle = colour("--focus");
      context.lineWidth = 1.5;
      context.strokeRect(x - 5, 3, 10, height - 6);
    });
    context.fillStyle = colour("--soft");
    context.font = FONT;
    context.textAlign = "right";
    context.fillText(`+${fixed(most, 1)}`, 40, 13);
    context.fillText(`−${fixed(most, 1)}`, 40, height - 5);
  }
}
