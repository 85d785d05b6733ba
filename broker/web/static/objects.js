// Lists and search: the answer of the server, sorted, in pages by cursor, with downloads of what is listed.

import { byId, count, getJson, h, plural, report } from "./lib.js";
import { Filters } from "./filters.js";
import { head, rowOf } from "./list.js";

class Objects {
  constructor(data) {
    this.data = data;
    this.sort = data.query?.sort ?? "newest";
    this.trail = []; // cursors of the pages before this one
    this.cursor = data.query?.cursor ?? "";
  }

  start() {
    const search = ["q", "id or position", { type: "search", maxlength: 200, placeholder: "ZTF18…, 150.1 2.2 60, 10:00:24 +02:12:00" }];
    this.filters = new Filters(byId("filters"), this.data, () => this.again(), { fields: [search] });
    addEventListener("popstate", () => location.reload());
    this.show(this.data);
  }

  get query() {
    const query = new URLSearchParams(this.filters.query);
    if (this.sort !== "newest") query.set("sort", this.sort);
    return query;
  }

  async again() {
    this.trail = [];
    this.cursor = "";
    await this.load();
  }

  async load() {
    const query = this.query;
    if (this.cursor) query.set("cursor", this.cursor);
    history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
    byId("rows").setAttribute("aria-busy", "true");
    try {
      this.show(await getJson(`/api/v1/objects?${query}`));
      report(null);
    } catch (error) {
      report(error);
    }
    byId("rows").setAttribute("aria-busy", "false");
  }

  show(found) {
    if (found.problem) report({ title: found.problem.title, message: found.problem.detail });
    const rows = found.rows ?? [];
    const sort = { by: this.sort, onsort: (by) => this.sortBy(by) };
    byId("rows").replaceChildren(head(sort), h("tbody", {}, rows.map((row) => rowOf(row, this.data.classes))));
    byId("rows").hidden = !rows.length;
    byId("empty").hidden = rows.length > 0;
    byId("empty").textContent = this.nothing(found);
    byId("summary").textContent = summary(found);
    this.exports();
    this.pages(found, rows);
  }

  nothing(found) {
    const searched = found.understood && found.understood.as !== "all";
    if (searched) return "Nothing found. Ids are the survey's own, and a part of one is enough. A position is right ascension and declination, in degrees or as 10:00:24 +02:12:00; a radius in arcseconds may follow.";
    return this.filters.any ? "No object matches these filters: clear some of them." : "The index is empty. Objects appear as soon as a worker has published classifications; the status page shows what is due.";
  }

  sortBy(by) {
    this.sort = by;
    this.again().then(() => byId("rows").querySelector("th[aria-sort] button")?.focus());
  }

  exports() {
    const link = (kind, url) => h("a", { href: url, download: "" }, kind);
    byId("exports").replaceChildren("this list as", link("CSV", `/api/v1/objects.csv?${this.query}`), link("JSON", `/api/v1/objects.json?${this.query}`), link("Parquet", `/api/v1/objects.parquet?${this.query}`));
  }

  pages(found, rows) {
    const turn = (text, cursor, disabled, before) => h("button", { type: "button", disabled, onclick: () => this.turn(cursor, before) }, text);
    const first = this.trail.length === 0 && !this.cursor;
    byId("pages").hidden = first && !found.next;
    byId("pages").replaceChildren(
      turn("◂ previous", this.trail.at(-1) ?? "", first, true), h("span", { class: "muted" }, `page ${this.trail.length + 1} · ${plural(rows.length, "row")}`), turn("next ▸", found.next, !found.next, false),
    );
  }

  async turn(cursor, before) {
    if (before) this.trail.pop();
    else this.trail.push(this.cursor);
    this.cursor = cursor;
    await this.load();
    scrollTo({ top: 0 });
  }
}

/** How the search was understood, and how many there are. */
function summary({ understood, count: n, count_capped: capped, took_ms: took }) {
  const sentence = understood && understood.as !== "all" ? `${understood.sentence}: ` : "";
  return n === undefined ? "" : `${sentence}${capped ? "more than " : ""}${plural(n, "object")}${took === undefined ? "" : ` in ${count(took)} ms`}`;
}

export function start(data) {
  new Objects(data).start();
}
