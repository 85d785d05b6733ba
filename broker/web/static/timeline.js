// One axis for all rows: where an epoch stands, what part is shown, and the plots that follow it.

import { colour, h } from "./lib.js";

export const LEFT = 46; // px inside each plot, for the labels of the vertical axis
export const RIGHT = 18;
export const FONT = "11px Inter, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', sans-serif";
const STAMP = 36; // px that a stamp takes in its lane

/** Positions of epochs on the axis, by time (days since the first) or evenly (number of the epoch), and the part shown. */
export class Axis {
  constructor(mjd, extra = []) {
    this.mjd = mjd;
    this.extra = extra;
    this.mode = "time";
    this.width = 600;
    this.listeners = [];
    this.follow = false;
    this.reset();
  }

  get first() {
    return this.mjd[0];
  }

  /** The position of a time; between epochs of an even axis it is interpolated. */
  at(mjd) {
    if (this.mode === "time") return mjd - this.first;
    const times = this.mjd;
    const next = times.findIndex((t) => t >= mjd);
    if (next === 0) return -Math.min(1, (times[0] - mjd) / 30);
    if (next < 0) return times.length - 1 + Math.min(1, (mjd - times.at(-1)) / 30);
    return next - 1 + (mjd - times[next - 1]) / (times[next] - times[next - 1] || 1);
  }

  of(epoch) {
    return this.mode === "time" ? this.mjd[epoch] - this.first : epoch;
  }

  get positions() {
    return this.mjd.map((_, epoch) => this.of(epoch));
  }

  whole() {
    const all = [...this.positions, ...this.extra.map((mjd) => this.at(mjd))];
    const [low, high] = [Math.min(...all), Math.max(...all)];
    // half a stamp of room at each end
    const room = ((high - low || 1) * (STAMP / 2 + 2)) / Math.max(100, this.width - LEFT - RIGHT - STAMP);
    return [low - room, high + room];
  }

  reset() {
    this.range = this.whole();
    this.zoomed = false;
    this.changed();
  }

  show(low, high) {
    if (!(high - low > 1e-4)) return;
    this.range = [low, high];
    this.zoomed = true;
    this.changed();
  }

  zoom(factor, centre = (this.range[0] + this.range[1]) / 2) {
    this.show(centre - (centre - this.range[0]) * factor, centre + (this.range[1] - centre) * factor);
  }

  /** Scrolls an epoch into view, or under the fixed cursor where the axis follows it. */
  reveal(epoch) {
    const [low, high] = this.range;
    const x = this.of(epoch);
    const half = (high - low) / 2;
    if (this.follow || x < low || x > high) this.show(x - half, x + half);
  }

  /** On a narrow screen: so much of the axis that the stamps of a lane fit next to each other on average. */
  narrow(mostInLane, epoch) {
    this.follow = true;
    const all = this.positions;
    const span = ((all.at(-1) - all[0] || 1) / Math.max(1, mostInLane - 1)) * ((this.width - LEFT - RIGHT) / STAMP);
    const x = this.of(epoch);
    this.show(x - span / 2, x + span / 2);
  }

  px(x) {
    return LEFT + ((x - this.range[0]) / (this.range[1] - this.range[0])) * (this.width - LEFT - RIGHT);
  }

  value(px) {
    return this.range[0] + ((px - LEFT) / (this.width - LEFT - RIGHT)) * (this.range[1] - this.range[0]);
  }

  /** The epoch nearest to a place, of some epochs or all. */
  nearest(px, among = this.mjd.keys()) {
    let best = -1;
    let least = Infinity;
    for (const epoch of among) {
      const distance = Math.abs(this.px(this.of(epoch)) - px);
      if (distance < least) [best, least] = [epoch, distance];
    }
    return best;
  }

  changed() {
    for (const listener of this.listeners) listener();
  }
}

/** A canvas that fills its plot at the screen's own resolution; returns the context in CSS pixels. */
export function prepare(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.imageSmoothingEnabled = false;
  return context;
}

/** A uPlot that shares the axis; `draw(context, x, y)` paints its data in CSS pixels. */
export class Plot {
  constructor(box, axis, { height, yRange, ySplits, yText, falls = () => false, bottom = true, draw }) {
    this.box = box;
    this.axis = axis;
    this.spec = { height, yRange, ySplits, yText, falls, bottom, draw };
    this.cursor = h("div", { class: "cursor" });
    this.make();
  }

  make() {
    const { height, yRange, ySplits, yText, bottom } = this.spec;
    const grid = { stroke: () => colour("--line"), width: 1 };
    const common = { stroke: () => colour("--soft"), font: FONT, ticks: { show: false } };
    const options = {
      width: Math.max(120, this.axis.width),
      height,
      padding: [8, RIGHT, bottom ? 0 : 8, 0],
      legend: { show: false },
      cursor: { show: true, points: { show: false }, drag: { x: true, y: false, setScale: false } },
      scales: { x: { time: false, range: () => this.axis.range }, y: { range: () => yRange() } },
      axes: [
        { ...common, grid: { ...grid, show: false }, show: bottom, size: 24, gap: 2, values: (_, splits) => splits.map((x) => this.xText(x)) },
        { ...common, grid, size: LEFT, gap: 6, splits: ySplits && (() => ySplits()), values: (_, splits) => splits.map((y) => yText(y)) },
      ],
      series: [{}, { paths: () => null, points: { show: false } }],
      hooks: { draw: [(u) => this.paint(u)], setSelect: [(u) => this.select(u)] },
    };
    this.plot = new window.uPlot(options, [[0, 1], [0, 1]], this.box);
    this.plot.over.append(this.cursor);
  }

  xText(x) {
    if (this.axis.mode === "time") return `${Number(x.toFixed(2))}${x === 0 ? " d" : ""}`.replace("-", "−");
    return Number.isInteger(x) && x >= 0 && x < this.axis.mjd.length ? String(x + 1) : "";
  }

  paint(u) {
    const ratio = devicePixelRatio || 1;
    const { ctx } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, 0, u.bbox.width, u.bbox.top + u.bbox.height);
    ctx.clip();
    ctx.scale(ratio, ratio);
    this.spec.draw(ctx, (x) => u.valToPos(x, "x", true) / ratio, (y) => u.valToPos(y, "y", true) / ratio);
    ctx.restore();
  }

  select(u) {
    const { left, width } = u.select;
    if (width > 4) {
      this.box.dataset.dragged = "true";
      this.axis.show(u.posToVal(left, "x"), u.posToVal(left + width, "x"));
    }
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  }

  refresh() {
    const { plot, axis, spec } = this;
    if (plot.width !== axis.width || plot.height !== spec.height) plot.setSize({ width: axis.width, height: spec.height });
    plot.scales.y.dir = spec.falls() ? -1 : 1; // magnitudes grow downwards
    // the scales are functions: setting the data again calls them again
    plot.setData([[axis.range[0], axis.range[1]], [0, 1]], true);
  }

  moveCursor(x) {
    this.cursor.style.transform = `translateX(${this.axis.px(x) - LEFT}px)`;
  }

  destroy() {
    this.plot.destroy();
  }
}

/** The marker of a band: the shape says it as well as the colour. */
export function marker(context, band, x, y, r) {
  const shapes = {
    u: [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]],
    r: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
    i: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
    z: [[0, 1.2], [1.1, -0.9], [-1.1, -0.9]],
    y: [[-0.6, -1.1], [0.6, -1.1], [1.2, 0], [0.6, 1.1], [-0.6, 1.1], [-1.2, 0]],
  };
  context.beginPath();
  if (!shapes[band]) context.arc(x, y, r, 0, 7);
  else shapes[band].forEach(([dx, dy], n) => context[n ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
  context.closePath();
}
