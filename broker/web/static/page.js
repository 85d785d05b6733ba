// Entry: what every page has (theme, search key, lamp), then the page's own module.

import { byId, embedded, getJson, lamp, report, themeChanged, typing } from "./lib.js";

const PAGES = { live: "./live.js", objects: "./objects.js", object: "./object.js", sky: "./sky.js", status: "./status.js", api: "./api.js" };
const STATE_EVERY_MS = 10_000;

function theme() {
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // storage is switched off: the choice holds for this page
    }
    themeChanged();
  });
}

function searchKey() {
  const field = byId("q");
  field.value = new URLSearchParams(location.search).get("q") ?? "";
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || typing(event)) return;
    event.preventDefault();
    field.focus();
  });
}

/** The state of the servers, for the lamp and for pages that wait for one of them. */
function told(state) {
  lamp(state);
  document.dispatchEvent(new CustomEvent("state", { detail: state }));
}

async function watchState() {
  if (!document.hidden) await getJson("/api/v1/state").then(told, () => lamp(null));
  setTimeout(watchState, STATE_EVERY_MS);
}

theme();
searchKey();
watchState();
const name = document.body.dataset.page;
if (PAGES[name]) {
  try {
    const page = await import(PAGES[name]);
    await page.start(embedded());
  } catch (error) {
    report(error);
    console.error(error);
  }
}
document.body.dataset.ready = "true";
