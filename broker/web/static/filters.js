// The filters of lists and of the live page: their state is the URL's query and nothing else.

import { className, h } from "./lib.js";

const NUMBERS = [["min_probability", "p at least", { min: 0, max: 1, step: 0.05 }], ["min_epochs", "epochs, from", { min: 1 }], ["max_epochs", "to", { min: 1 }], ["min_days", "days, from", { min: 0 }], ["max_days", "to", { min: 0 }]];
const TYPED_MS = 350;

export class Filters {
  /** `changed` is called when the query has changed; `fields` are further ones, [name, label, attributes] of an input. */
  constructor(form, { models, classes, bands }, changed, { fields = [], everyModel = false } = {}) {
    Object.assign(this, { form, changed });
    const named = models.filter(Boolean).map((name) => [name, name]);
    form.append(
      ...fields.map(([name, label, attributes]) => this.input(name, label, attributes, "wide")),
      this.select("class", "class", [["", "all"], ...classes.map((name) => [name, className(name)])]),
      h("button", { type: "button", class: "more", "aria-expanded": "false", onclick: (event) => this.more(event.currentTarget) }, "more filters"),
      ...NUMBERS.map(([name, label, attributes]) => this.input(name, label, { type: "number", inputmode: "decimal", ...attributes })),
      this.input("bands", "bands, all of", { size: 4, maxlength: 6, pattern: "[ugrizy]*", placeholder: [...bands].join("") }),
      this.select("declined", "declined", [["", "with"], ["no", "without"], ["yes", "only"]]),
      this.select("model", "model", everyModel ? [["", "all"], ...named] : [["", `first: ${models[0] ?? "none yet"}`], ...named, ["*", "all"]]),
      this.input("cone", "cone: ra, dec, radius″", { placeholder: "150.1, 2.2, 600", maxlength: 80, pattern: "[-+0-9.eE,\\s]*" }),
      h("button", { type: "button", onclick: () => this.clear() }, "clear"),
    );
    this.read();
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => this.typed(event.target.matches("select") ? 0 : TYPED_MS));
  }

  input(name, label, attributes = {}, kind = "") {
    return h("label", { class: kind }, label, h("input", { name, type: "text", autocomplete: "off", ...attributes }));
  }

  select(name, label, options) {
    return h("label", {}, label, h("select", { name }, options.map(([value, text]) => h("option", { value }, text))));
  }

  get fields() {
    return [...this.form.elements].filter((field) => field.name);
  }

  /** On a narrow screen all but the first fields are folded away. */
  more(button) {
    const open = this.form.classList.toggle("open");
    button.setAttribute("aria-expanded", String(open));
  }

  /** The fields from the URL. */
  read() {
    const query = new URLSearchParams(location.search);
    for (const field of this.fields) field.value = query.get(field.name) ?? "";
  }

  /** The query: what the fields say, without empty ones; a field that is not valid yet is left out. */
  get query() {
    const filled = this.fields.filter((field) => field.value.trim() && field.checkValidity());
    return new URLSearchParams(filled.map((field) => [field.name, field.value.replace(/,\s+/g, ",").trim()])).toString();
  }

  get any() {
    return this.query !== "";
  }

  typed(wait) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      for (const field of this.fields) field.setAttribute("aria-invalid", String(!field.checkValidity()));
      const query = this.query;
      history.pushState(null, "", query ? `?${query}` : location.pathname);
      this.changed();
    }, wait);
  }

  clear() {
    for (const field of this.fields) field.value = "";
    this.typed(0);
  }
}
