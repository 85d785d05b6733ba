// The object page: one epoch is current, and everything on the page is about it.

import { apiUrl, byId, className, classVariable, fixed, getJson, h, KINDS, onTheme, plural, report, segments, withError } from "./lib.js";
import { Axis, LEFT } from "./timeline.js";
import { Film } from "./film.js";
import { ClassPanel, Influence, LightCurve } from "./rows.js";
import { Images } from "./images.js";
import { Steering } from "./steering.js";
import { EpochCard } from "./epoch.js";
import { WhatIf } from "./whatif.js";
import { fillHead, fillModels, fillMore } from "./about.js";

const PLAY_MS = 350;
const NARROW = 560;
const LOOK_EVERY = 6; // times that the state of the servers is told, which is every ten seconds

class ObjectPage {
  constructor(data) {
    this.data = data;
    this.images = new Images(data, () => this.update());
    this.source = "published"; // or "recomputed": which probabilities the class panels show
    this.recomputed = new Map(); // model -> steps
    this.off = new Set();
  }

  get n() {
    return this.data.epochs.mjd.length;
  }

  start() {
    fillHead(this.data);
    if (!this.data.epochs?.mjd.length) {
      this.withoutEpochs();
      return;
    }
    this.axis = new Axis(this.data.epochs.mjd, this.data.photometry?.mjd ?? []);
    this.selected = this.pinned();
    this.rows();
    this.bars();
    this.epochCard = new EpochCard(this);
    this.whatIf = new WhatIf(this);
    fillModels(this.data);
    fillMore(this.data, this);
    new Steering(this);
    new ResizeObserver(() => this.resize()).observe(byId("film"));
    this.resize();
    this.images.load(this.images.kind);
    byId("panel").setAttribute("aria-busy", "false");
    let heard = 0;
    document.addEventListener("state", ({ detail }) => detail.redis.ok && (heard += 1) % LOOK_EVERY === 0 && this.lookForNewer());
  }

  /** Says that there is more than is shown: what a reader looks at does not change by itself. */
  async lookForNewer() {
    if (byId("newer")) return;
    const found = await getJson(apiUrl(this.data.path)).catch(() => null);
    if (!found?.epochs || byId("newer")) return;
    const more = found.epochs.mjd.length - this.n;
    const made = ({ latest }) => Object.values(latest).map((record) => record?.classification_id).join();
    const news = more > 0 ? `${plural(more, "more epoch")} since` : made(found) !== made(this.data) ? "newly classified since" : "";
    if (news) byId("now").append(h("button", { type: "button", id: "newer", onclick: () => location.reload() }, `${news}: show`));
  }

  withoutEpochs() {
    for (const id of ["panel", "epoch", "whatif", "more"]) byId(id).hidden = true;
    const message = this.data.notice || "Redis does not answer, so epochs and stamps cannot be shown now. What was published is below.";
    report({ title: "No stamps.", message });
    // it recovers by itself when Redis does
    if (this.data.waits_for_redis) document.addEventListener("state", ({ detail }) => detail.redis.ok && location.reload());
    fillModels(this.data);
  }

  withoutImages() {
    const text = "The images of this object are no longer kept; its fluxes and what was published are.";
    byId("film").append(h("div", { class: "note" }, text));
  }

  // --- rows -----------------------------------------------------------------------------------------------------

  rows() {
    this.light = new LightCurve(byId("light"), this.axis, this.data);
    this.film = new Film(byId("film"), this.axis, this.data.epochs.band, (epoch) => this.images.of(this.images.kind, epoch));
    if (!KINDS.some((kind) => this.images.has(kind))) this.withoutImages();
    this.influence = new Influence(byId("influence"), this.axis);
    const box = byId("classes");
    box.replaceChildren();
    this.panels = this.data.models.map((model) => {
      const plot = h("div", { class: "plot" });
      const said = h("span", {});
      const note = h("div", { class: "note" });
      const values = h("div", { class: "values" });
      const label = h("div", { class: "label" }, h("b", {}, model.name || "Class"), said, values);
      box.append(h("div", { class: "row classes", "data-model": model.name }, label, plot));
      const panel = new ClassPanel(plot, this.axis, model, values);
      plot.append(note);
      return Object.assign(panel, { said, note });
    });
    this.axis.listeners.push(() => this.redraw());
    this.showSource();
    onTheme(() => {
      this.redraw();
      this.epochCard.show(this.shown);
    });
  }

  /** The steps of every class panel, published or recomputed, never both. */
  async showSource() {
    byId("panel").dataset.source = this.source;
    const text = this.source === "published" ? "as published" : "recomputed now";
    for (const panel of this.panels) {
      panel.said.textContent = text;
      panel.note.textContent = "";
    }
    await Promise.all(this.panels.map((panel) => (this.source === "published" ? this.published(panel) : this.recompute(panel))));
    this.update();
  }

  published(panel) {
    const steps = this.data.published[panel.model.name] ?? [];
    panel.setSteps(steps);
    if (!steps.length) panel.note.textContent = "This model has published nothing for this object yet.";
  }

  async recompute(panel) {
    const { name } = panel.model;
    if (!this.recomputed.has(name)) {
      panel.setSteps([]);
      panel.note.textContent = `Recomputing after each of ${plural(this.n, "epoch")} …`;
      try {
        const found = await getJson(apiUrl(this.data.path, `/prefixes?model=${encodeURIComponent(name)}`));
        this.recomputed.set(name, found);
      } catch (error) {
        if (this.source === "recomputed") panel.note.textContent = error.message;
        return;
      }
    }
    if (this.source !== "recomputed") return;
    panel.note.textContent = "";
    panel.setSteps(this.recomputed.get(name).prefixes);
    this.whatIf.sayRecomputed(name, this.recomputed.get(name));
  }

  // --- controls -------------------------------------------------------------------------------------------------

  bars() {
    const kinds = KINDS.map((kind) => ({ value: kind, text: kind, disabled: !this.images.has(kind), title: this.images.has(kind) ? null : `There is no ${kind} image here` }));
    this.counter = h("output", { class: "count" });
    this.playButton = h("button", { type: "button", "aria-pressed": "false", "aria-keyshortcuts": "Space", onclick: () => this.play() }, "▶ play");
    const step = (by, text, label) => h("button", { type: "button", "aria-label": label, onclick: () => this.step(by) }, text);
    byId("bar").replaceChildren(
      segments("Kind of stamp", kinds, this.images.kind, (kind) => this.images.choose(kind)),
      segments("Probabilities", [{ value: "published", text: "as published" }, { value: "recomputed", text: "recomputed now" }], this.source, (source) => {
        this.source = source;
        this.showSource();
      }),
      h("span", { class: "right" }, step(-1, "◂", "Epoch before"), this.counter, step(1, "▸", "Next epoch"), this.playButton, h("span", { class: "keys" }, h("kbd", {}, "←"), " ", h("kbd", {}, "→"), " ", h("kbd", {}, "space"))),
    );
    byId("view").replaceChildren(...this.viewControls());
  }

  viewControls() {
    const select = (label, options, value, onchange) => {
      const box = h("select", { onchange: (event) => onchange(event.target.value) }, options.map(([one, text]) => h("option", { value: one }, text)));
      box.value = value;
      return h("label", {}, label, box);
    };
    const cutsOf = [["0-100", "0–100 %"], ["0.5-99.9", "0.5–99.9 %"], ["1-99.7", "1–99.7 %"], ["5-98", "5–98 %"]];
    const button = (text, label, onclick) => h("button", { type: "button", "aria-label": label, onclick }, text);
    return [
      segments("Unit of the light curve", [{ value: "flux", text: this.light.unit.text }, { value: "mag", text: "mag" }], "flux", (unit) => this.setUnit(unit)),
      segments("Axis", [{ value: "time", text: "by time" }, { value: "even", text: "by epoch" }], "time", (mode) => this.setAxis(mode)),
      select("stretch", ["linear", "sqrt", "asinh", "log"].map((s) => [s, s]), this.images.view.stretch, (stretch) => this.images.setView({ stretch })),
      select("cuts", cutsOf, "1-99.7", (text) => {
        const [low, high] = text.split("-").map(Number);
        this.images.setView({ low, high });
      }),
      h("span", { class: "right" }, h("span", { class: "keys" }, "drag to zoom"), button("−", "Zoom out", () => this.axis.zoom(1.5, this.axis.of(this.shown))), button("+", "Zoom in", () => this.axis.zoom(1 / 1.5, this.axis.of(this.shown))), button("whole", "Show the whole axis", () => this.whole())),
    ];
  }

  /** As if the switch of kinds had been used. */
  chooseKind(kind) {
    byId("bar").querySelector(`input[value="${kind}"]`).click();
  }

  setUnit(unit) {
    this.light.setUnit(unit);
    byId("light-label").replaceChildren(h("b", {}, unit === "mag" ? "Magnitude" : "Flux"), h("span", {}, this.light.unit.text));
    this.update();
  }

  setAxis(mode) {
    this.axis.mode = mode === "time" ? "time" : "even";
    this.axis.follow = false;
    this.axis.reset();
    this.fit();
  }

  whole() {
    this.axis.follow = false;
    this.axis.reset();
  }

  // --- the current epoch ----------------------------------------------------------------------------------------

  get shown() {
    return this.hovered ?? this.selected;
  }

  /** The epoch that the URL names by its source id; else the newest. */
  pinned() {
    const found = this.data.epochs.source_id.indexOf(new URLSearchParams(location.search).get("epoch"));
    return found < 0 ? this.n - 1 : found;
  }

  pin(epoch) {
    this.selected = Math.min(this.n - 1, Math.max(0, epoch));
    this.hovered = undefined;
    const url = new URL(location.href);
    url.searchParams.set("epoch", this.data.epochs.source_id[this.selected]);
    history.replaceState(null, "", url);
    this.axis.reveal(this.selected);
    this.update();
  }

  step(by) {
    this.pin(this.selected + by);
  }

  hover(epoch) {
    if (epoch === this.hovered) return;
    this.hovered = epoch;
    this.update();
  }

  play(on = !this.timer) {
    clearInterval(this.timer);
    this.timer = null;
    if (on) {
      if (this.selected === this.n - 1) this.pin(0);
      this.timer = setInterval(() => (this.selected < this.n - 1 ? this.step(1) : this.play(false)), PLAY_MS);
    }
    this.playButton.setAttribute("aria-pressed", String(on));
    this.playButton.textContent = on ? "❚❚ pause" : "▶ play";
  }

  setOff(epochs) {
    this.off = epochs;
    this.light.off = epochs;
    this.redraw();
  }

  // --- drawing --------------------------------------------------------------------------------------------------

  update() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const epoch = this.shown;
    this.light.current = epoch;
    this.light.plot.plot.redraw(false);
    this.film.draw(epoch, this.off);
    this.influence.draw(epoch);
    for (const plot of [this.light.plot, ...this.panels.map((panel) => panel.plot)]) plot.moveCursor(this.axis.of(epoch));
    for (const panel of this.panels) panel.tell(this.data.epochs.mjd[epoch]);
    this.counter.textContent = `${epoch + 1} / ${this.n}`;
    this.epochCard.show(epoch);
    const slider = byId("film");
    slider.setAttribute("aria-valuenow", epoch + 1);
    slider.setAttribute("aria-valuetext", this.sentence(epoch));
  }

  redraw() {
    this.light.refresh();
    for (const panel of this.panels) panel.plot.refresh();
    this.update();
  }

  /** An epoch in words, for a screen reader. */
  sentence(epoch) {
    const { epochs } = this.data;
    const said = this.panels.map((panel) => {
      const step = panel.at(epochs.mjd[epoch]);
      const top = Object.entries(step?.probabilities ?? {}).sort((a, b) => b[1] - a[1])[0];
      return `${panel.model.name}: ${top ? `${className(top[0])} ${fixed(top[1])}` : (step?.reason_text ?? "nothing yet")}`;
    });
    return `Epoch ${epoch + 1} of ${this.n}, band ${epochs.band[epoch]}, day ${fixed(epochs.mjd[epoch] - epochs.mjd[0], 1)}, flux ${withError(epochs.flux[epoch], epochs.flux_error[epoch])} nJy. ${said.join(". ")}.`;
  }

  resize() {
    const width = byId("film").clientWidth;
    if (!width || width === this.axis.width) return;
    this.axis.width = width;
    if (this.axis.zoomed) this.axis.changed();
    else this.axis.reset();
    this.fit();
  }

  fit() {
    const fits = this.film.mostInLane * 36 < this.axis.width - LEFT;
    if (this.axis.width < NARROW && !fits) this.axis.narrow(this.film.mostInLane, this.selected);
  }

  /** Bars of what each stamp does for a class, from the server; null hides them. */
  setInfluence(name, values, model) {
    byId("influence-row").hidden = !values;
    this.influence.values = values;
    if (values) {
      this.influence.variable = classVariable(name, model.classes);
      byId("influence-label").textContent = `on ${className(name)}, ${model.name}`;
    }
    this.update();
  }
}

export async function start(data) {
  const page = new ObjectPage(data);
  page.start();
  if (new URLSearchParams(location.search).get("aladin")) (await import("./aladin.js")).show(data);
}
