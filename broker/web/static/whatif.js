// What if: switch stamps, nights, bands and kinds off and see the classification move; which stamps matter.

import { BANDS, apiUrl, byId, className, classColour, dateOf, fixed, getJson, h, plural, postJson, signed } from "./lib.js";

const WAIT_MS = 150;

export class WhatIf {
  constructor(page) {
    this.page = page;
    this.off = { sources: new Set(), nights: new Set(), bands: new Set(), kinds: new Set() };
    this.models = page.data.models.filter((model) => model.recompute);
    this.model = this.models[0] ?? null;
    this.influenceClass = "";
    const body = byId("whatif-body");
    if (!this.model) {
      body.append(h("p", { class: "muted" }, this.missing()));
      return;
    }
    this.choices = h("div", {});
    this.result = h("div", { role: "status", "aria-live": "polite" });
    this.influenceBox = h("div", {});
    body.append(this.choices, this.result, this.influenceBox);
    this.fill();
    this.showWhole();
  }

  missing() {
    const sentence = this.page.data.state?.recompute?.sentence || document.body.dataset.torchMissing;
    return sentence || "No model can be run here. What was published is shown; to recompute, install the extra `classifier` on the server.";
  }

  fill() {
    const { epochs } = this.page.data;
    const bands = [...BANDS].filter((band) => epochs.band.includes(band));
    const nights = [...new Set(epochs.night)];
    // every epoch has its science stamp: without it there is no epoch
    const kinds = [...this.model.needs.images.filter((kind) => kind !== "science"), this.model.needs.photometry && "photometry", this.model.needs.context && "context"].filter(Boolean);
    this.choices.replaceChildren(
      ...(this.models.length > 1 ? [this.modelChoice()] : []),
      this.group("bands", "bands", bands.map((band) => [band, h("span", { class: `band-${band}` }, band)])),
      ...(kinds.length ? [this.group("kinds", "input", kinds.map((kind) => [kind, kind === "context" ? "surroundings" : kind]))] : []),
      h("details", {}, h("summary", { class: "small" }, plural(nights.length, "night")), h("div", { class: "tall", tabindex: 0, role: "region", "aria-label": "Nights" }, this.group("nights", "", nights.map((night) => [night, dateOf(night)])))),
      h("p", { class: "muted small" }, "Single stamps: shift-click one in the strip, or press ", h("kbd", {}, "x"), " on the current epoch."),
    );
    this.fillInfluence();
  }

  modelChoice() {
    const select = h("select", { onchange: () => this.setModel(select.value) }, this.models.map((m) => h("option", { value: m.name }, m.name)));
    select.value = this.model.name;
    return h("p", { class: "choices" }, h("label", {}, "model", select));
  }

  setModel(name) {
    this.model = this.models.find((one) => one.name === name);
    this.off.kinds.clear();
    this.page.setInfluence("", null);
    this.influenceClass = "";
    this.fill();
    this.changed();
  }

  group(what, legend, options) {
    return h("fieldset", { class: "choices", "aria-label": `${legend || what} that the model sees` }, legend && h("legend", {}, legend), options.map(([value, text]) => {
      const box = h("input", { type: "checkbox", name: `${what}-${value}`, onchange: () => this.switch(what, value, !box.checked) });
      box.checked = !this.off[what].has(value);
      return h("label", {}, box, text);
    }));
  }

  switch(what, value, off) {
    this.off[what][off ? "add" : "delete"](value);
    this.changed();
  }

  /** Leaves one stamp out, or takes it in again. */
  toggle(epoch) {
    if (!this.model) return;
    const id = this.page.data.epochs.source_id[epoch];
    this.switch("sources", id, !this.off.sources.has(id));
  }

  clear() {
    for (const set of Object.values(this.off)) set.clear();
    this.fill();
    this.changed();
  }

  get any() {
    return Object.values(this.off).some((set) => set.size > 0);
  }

  offEpochs() {
    const { epochs } = this.page.data;
    const { sources, nights, bands } = this.off;
    return new Set([...epochs.mjd.keys()].filter((n) => sources.has(epochs.source_id[n]) || nights.has(epochs.night[n]) || bands.has(epochs.band[n])));
  }

  changed() {
    this.page.setOff(this.offEpochs());
    clearTimeout(this.timer);
    this.request?.abort();
    if (!this.any) this.showWhole();
    else this.timer = setTimeout(() => this.compute(), WAIT_MS);
  }

  async compute() {
    this.request = new AbortController();
    const off = Object.fromEntries(Object.entries(this.off).map(([what, set]) => [what, [...set]]));
    try {
      const found = await postJson(apiUrl(this.page.data.path, "/what-if"), { model: this.model.name, off }, this.request.signal);
      this.show(found);
    } catch (error) {
      if (error.name !== "AbortError") this.result.replaceChildren(h("p", { class: "notice" }, error.message), this.again());
    }
  }

  again() {
    return h("button", { type: "button", onclick: () => this.clear() }, "switch everything on");
  }

  showWhole() {
    const record = this.page.data.latest[this.model.name];
    const p = record?.probabilities ?? {};
    this.result.replaceChildren(
      h("p", { class: "muted" }, record?.status === "CLASSIFIED" ? "All on: the latest classification, as published." : "All on. Nothing has been published with probabilities yet; switch something off to recompute."),
      this.table(Array.isArray(p) ? Object.fromEntries(p.map((c) => [c.name, c.probability])) : p, null, null),
    );
  }

  show({ whole, reduced, epochs, off, change, seconds }) {
    const left = `Recomputed now without ${plural(off, "stamp")}, from ${plural(epochs, "epoch")}`;
    const said = reduced.status === "CLASSIFIED"
      ? `${left}: ${className(reduced.top_class)} ${fixed(reduced.top_probability)} (with everything ${whole.top_class ? `${className(whole.top_class)} ${fixed(whole.top_probability)}` : "declined"}).`
      : `${left}: declined, ${reduced.reason_text ?? reduced.reason}.`;
    this.result.replaceChildren(
      h("p", { id: "whatif-said" }, said),
      this.table(reduced.probabilities, whole.probabilities, change),
      h("p", { class: "muted small" }, `Mark: with everything. Last column: change of the log-odds. ${fixed(seconds, 2)} s.`),
      this.again(),
    );
  }

  table(p, whole, change) {
    const rows = this.model.classes.map((name) => [
      h("span", { class: "name" }, className(name)),
      h("div", { class: "track" }, h("i", { style: { width: `${(p[name] ?? 0) * 100}%`, background: classColour(name, this.model.classes) } }), whole && whole[name] !== undefined && h("b", { style: { left: `${whole[name] * 100}%` } })),
      h("span", {}, fixed(p[name])),
      h("span", { class: "muted" }, change ? signed(change[name]) : ""),
    ]);
    return h("div", { class: "compare" }, rows.flat());
  }

  // --- which stamps matter ----------------------------------------------------------------------------------------

  fillInfluence() {
    const select = h("select", {}, h("option", { value: "" }, "top class"), this.model.classes.map((name) => h("option", { value: name }, className(name))));
    select.value = this.influenceClass;
    select.addEventListener("change", () => {
      this.influenceClass = select.value;
      if (this.influenceShown) this.influence();
    });
    this.influenceSaid = h("p", { class: "muted", role: "status" });
    this.turnedSaid = h("p", { class: "muted" });
    this.influenceBox.replaceChildren(
      h("h3", {}, "Which stamps matter for the classification"),
      h("p", { class: "choices" }, h("label", {}, "for", select), h("button", { type: "button", onclick: () => this.influence() }, "show the influence of each stamp")),
      this.influenceSaid,
      this.turnedSaid,
    );
    this.sayTurned(this.page.data.turned?.[this.model.name]);
  }

  async influence() {
    const query = new URLSearchParams({ model: this.model.name, ...(this.influenceClass ? { class: this.influenceClass } : {}) });
    this.influenceSaid.textContent = "Leaving out one stamp at a time …";
    try {
      const found = await getJson(apiUrl(this.page.data.path, `/influence?${query}`));
      const values = this.page.data.epochs.source_id.map((id) => found.influence.find((one) => one.source_id === id)?.log_odds ?? null);
      this.influenceShown = true;
      this.page.setInfluence(found.class, values, this.model);
      this.sayInfluence(found, values);
    } catch (error) {
      this.influenceSaid.textContent = error.message;
    }
  }

  sayInfluence(found, values) {
    const known = values.map((v, n) => [v, n]).filter(([v]) => v !== null);
    const strongest = known.sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]))[0];
    const text = "Bars below the strip: how much the log-odds fall when a stamp is left out; upward: the stamp is evidence for the class. Recomputed now. ";
    this.influenceSaid.replaceChildren(text, ...(strongest ? ["Strongest: ", this.epochLink(strongest[1]), ` (${signed(strongest[0])}).`] : [`The model gives no probabilities for ${className(found.class)}.`]));
  }

  /** Which stamp turned it: since when the top class, as published, has not changed. */
  sayTurned(turned) {
    if (!turned) return;
    const epoch = this.page.data.epochs.mjd.findIndex((mjd) => Math.abs(mjd - turned.mjd) < 1e-6);
    this.turnedSaid.replaceChildren(`As published, the top class has been ${className(turned.class)} since `, epoch < 0 ? `there were ${turned.n_stamps} stamps` : this.epochLink(epoch), ".");
  }

  /** The same of the prefixes under today's model. */
  sayRecomputed(name, { turned, sure, notice }) {
    if (name !== this.model?.name || !turned) return;
    const parts = [`Recomputed now, it has been ${className(turned.class)} since `, this.epochLink(turned.epochs - 1)];
    if (sure) parts.push(`, with p above 0.8 for the first time after ${plural(sure.epochs, "epoch")} (day ${fixed(sure.days, 1)})`);
    this.turnedSaid.replaceChildren(...parts, ".", notice ? ` Note: ${notice}.` : "");
  }

  epochLink(epoch) {
    return h("button", { type: "button", class: "inline", onclick: () => this.page.pin(epoch) }, `epoch ${epoch + 1}`);
  }
}
