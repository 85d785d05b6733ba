// The API page: every operation of the OpenAPI document, with an example for curl and Python that runs as it stands.

import { byId, copyButton, curlToken, getJson, h, plural, pythonImports, pythonToken, report } from "./lib.js";

const METHODS = ["get", "post"];
const BODY = { off: { bands: ["g"] } }; // of a what-if, the only operation that takes one

/** The operation's address, with what the server gave as an example in all places that must be filled. */
function address(path, spec, example) {
  const needed = (spec.parameters ?? []).filter((one) => one.required);
  const value = ({ name, schema }) => example[name] ?? schema?.enum?.[0] ?? name.toUpperCase();
  const filled = needed.filter((one) => one.in === "path").reduce((text, one) => text.replace(`{${one.name}}`, value(one)), path);
  const query = new URLSearchParams(needed.filter((one) => one.in === "query").map((one) => [one.name, value(one)]));
  return location.origin + filled + (query.size ? `?${query}` : "");
}

/** What an operation returns: JSON, a file, or a stream that does not end. */
function formOf(spec) {
  const types = Object.keys(spec.responses?.[200]?.content ?? {});
  if (types.includes("text/event-stream")) return "stream";
  return types.length === 1 && types[0] === "application/json" ? "json" : "file";
}

function fileName(url) {
  const last = new URL(url).pathname.split("/").at(-1);
  return last.includes(".") ? last : `${last}.bin`;
}

function curlOf(method, url, form) {
  const words = [`curl -sS${curlToken()}`, form === "stream" && "-N", form === "file" && `-o ${fileName(url)}`, `'${url}'`];
  if (method === "post") words.push("-H 'content-type: application/json'", `-d '${JSON.stringify(BODY)}'`);
  return words.filter(Boolean).join(" ");
}

function pythonOf(method, url, form) {
  const given = [`"${url}"`, method === "post" && `json=${JSON.stringify(BODY)}`, form === "stream" && "stream=True", "timeout=60"];
  const imports = pythonImports();
  const call = `requests.${method}(${given.filter(Boolean).join(", ")}${pythonToken()})`;
  if (form === "stream") return `${imports}\n\nwith ${call} as answer:\n    answer.raise_for_status()\n    for line in answer.iter_lines(decode_unicode=True):\n        print(line)`;
  const use = form === "json" ? "print(answer.json())" : `with open("${fileName(url)}", "wb") as file:\n    file.write(answer.content)`;
  return `${imports}\n\nanswer = ${call}\nanswer.raise_for_status()\n${use}`;
}

function operation(method, path, spec, { example }) {
  const [url, form] = [address(path, spec, example), formOf(spec)];
  const [curl, python] = [curlOf(method, url, form), pythonOf(method, url, form)];
  const parameters = (spec.parameters ?? []).map((one) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, one.name)), h("td", { class: "l" }, one.in), h("td", { class: "l" }, one.description ?? "")));
  const code = (title, text, what) => [h("h3", {}, title), h("pre", { tabindex: 0, "data-language": title.toLowerCase() }, text), copyButton(text, what)];
  return h("details", { "data-operation": `${method} ${path}` },
    h("summary", {}, h("code", {}, `${method.toUpperCase()} ${path}`), " ", h("span", { class: "muted" }, spec.summary ?? "")),
    spec.description ? h("p", {}, spec.description) : null,
    parameters.length ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Parameters of ${path}` }, h("table", {}, h("thead", {}, h("tr", {}, ["parameter", "in", "meaning"].map((text) => h("th", { scope: "col", class: "l" }, text)))), h("tbody", {}, parameters))) : null,
    code("curl", curl, "the curl command"), code("Python", python, "the Python code"));
}

export async function start(data) {
  try {
    const { paths } = await getJson(data.openapi);
    const found = Object.entries(paths).flatMap(([path, methods]) => METHODS.filter((m) => methods[m]).map((m) => operation(m, path, methods[m], data)));
    byId("summary").replaceChildren(`${plural(found.length, "operation")}; ids are strings, times MJD TAI in days or Unix ms UTC, fluxes nJy. Errors are problem details (RFC 9457). `, h("a", { href: data.openapi }, "OpenAPI"));
    byId("cards").replaceChildren(h("section", { class: "card stack", "aria-label": "Operations" }, found));
  } catch (error) {
    report(error);
  }
}
