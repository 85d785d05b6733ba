// The API page: every path of the OpenAPI document, with an example for curl and Python.

import { byId, copyButton, getJson, h, plural, report } from "./lib.js";

const METHODS = ["get", "post"];

function filled(path, example) {
  const values = { path: example || "PATH", kind: "science", night: "59000" };
  return path.replaceAll(/\{(\w+)(:path)?\}/g, (_, name) => values[name] ?? name.toUpperCase());
}

function examples(method, path, example) {
  const url = location.origin + filled(path, example);
  const body = path.endsWith("what-if") ? { off: { bands: ["g"] } } : {};
  const curl = method === "get" ? `curl -s '${url}'` : `curl -s -X POST '${url}' -H 'content-type: application/json' -d '${JSON.stringify(body)}'`;
  const call = method === "get" ? `requests.get("${url}", timeout=30)` : `requests.post("${url}", json=${JSON.stringify(body)}, timeout=30)`;
  return { curl, python: `import requests\n\nanswer = ${call}\nanswer.raise_for_status()` };
}

function operation(method, path, spec, example) {
  const { curl, python } = examples(method, path, example);
  const parameters = (spec.parameters ?? []).map((one) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, one.name)), h("td", { class: "l" }, one.in), h("td", { class: "l" }, one.description ?? "")));
  return h("details", {},
    h("summary", {}, h("code", {}, `${method.toUpperCase()} ${path}`), " ", h("span", { class: "muted" }, spec.summary ?? "")),
    spec.description ? h("p", {}, spec.description) : null,
    parameters.length ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Parameters of ${path}` }, h("table", {}, h("thead", {}, h("tr", {}, ["parameter", "in", "meaning"].map((text) => h("th", { scope: "col", class: "l" }, text)))), h("tbody", {}, parameters))) : null,
    h("h3", {}, "curl"), h("pre", { tabindex: 0 }, curl), copyButton(curl, "the curl command"),
    h("h3", {}, "Python"), h("pre", { tabindex: 0 }, python), copyButton(python, "the Python code"));
}

export async function start(data) {
  try {
    const document_ = await getJson(data.openapi);
    const found = Object.entries(document_.paths).filter(([path]) => path.startsWith("/api/") || path.startsWith("/alerts")).flatMap(([path, methods]) => METHODS.filter((m) => methods[m]).map((m) => operation(m, path, methods[m], data.example)));
    byId("summary").replaceChildren(`${plural(found.length, "operation")}; ids are strings, times MJD TAI in days or Unix ms UTC, fluxes nJy. Errors are problem details (RFC 9457). `, h("a", { href: data.openapi }, "OpenAPI"));
    byId("cards").replaceChildren(h("section", { class: "card stack", "aria-label": "Operations" }, found));
  } catch (error) {
    report(error);
  }
}
