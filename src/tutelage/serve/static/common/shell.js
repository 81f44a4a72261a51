// What stands around every page: the bar with its links, the choice of language and colours, and who one is.

import { $, ApiError, api, choice, dialog, el, show } from "./dom.js";
import { onLanguage, picker, t } from "./i18n.js";

const THEME = "tutelage.theme";
const THEMES = ["auto", "light", "dark"];

function theme() {
  try { return localStorage.getItem(THEME) ?? "auto"; } catch { return "auto"; }
}

function setTheme(name) {
  try { localStorage.setItem(THEME, name); } catch { /* then only for this page */ }
  document.documentElement.dataset.theme = name;
}

document.documentElement.dataset.theme = theme();

/** The choice of colours. */
export function themePicker() {
  return choice(t("theme"), theme(), Object.fromEntries(THEMES.map((name) => [name, t(`theme.${name}`)])), setTheme);
}

/** Draw the bar into <header class="topbar">, and again when the language changes. `page`: the link that is here
 * ("label", "report", "chat"); `links()`: those to show, {page: path}; `extra()`: further elements at its end. */
export function bar(page, links, extra = () => []) {
  const draw = () => show($("header.topbar"),
    el("a", { class: "skip-link", href: "#main" }, t("nav.skip")),
    el("a", { class: "brand", href: "/" }, "tutelage"),
    el("nav", { "aria-label": t("nav.main") }, Object.entries(links()).map(([name, path]) =>
      el("a", { href: path, "aria-current": name === page && "page" }, t(`nav.${name}`)))),
    el("span", { class: "push" }),
    extra(),
    picker(),
    themePicker());
  onLanguage(draw);
  draw();
  return draw;
}

/** Who one is: gives {name, ...} of GET /session, asked in `main` where the server does not know. A ?key=... in the
 * address (by which the server knew, if the key was good) is taken out of it, and so out of the history. */
export async function signIn(main) {
  const address = new URL(location.href);
  const key = address.searchParams.get("key");
  if (key) {
    address.searchParams.delete("key");
    history.replaceState(null, "", address);
  }
  const me = await api("/session");
  return me.person ?? ask(main, me.join, key ? t("sign.wrong") : "");
}

/** Forget who one is in this browser, and load the page again. */
export async function signOut() {
  await api("/session", undefined, { method: "DELETE" });
  location.reload();
}

function ask(main, join, problem) {
  return new Promise((resolve) => {
    const draw = (joining, words = "") => {
      const field = el("input", { name: "who", required: true, maxlength: joining ? 60 : 200, dir: "auto",
        autocomplete: joining ? "username" : "off", spellcheck: "false" });
      const wrong = el("p", { class: "error-text", role: "alert" }, words);
      const send = async (event) => {
        event.preventDefault();
        try {
          const found = await api("/session", { [joining ? "name" : "key"]: field.value.trim() });
          if (joining) await showKey(found.key);
          resolve(found.person);
        } catch (error) {
          if (!(error instanceof ApiError)) throw error;
          show(wrong, error.status ? error.message : t("offline"));
        }
      };
      show(main, el("form", { class: "card stack sign-in", onsubmit: send },
        el("h1", {}, t("sign.title")),
        el("p", { class: "muted" }, t(joining ? "sign.pick" : "sign.keyOnly")),
        el("label", { class: "field" }, t(joining ? "sign.name" : "sign.key"), field),
        wrong,
        el("div", { class: "actions" },
          el("button", { class: "primary" }, t(joining ? "sign.start" : "sign.enter")),
          join && el("button", { type: "button", class: "quiet", onclick: () => draw(!joining) },
            t(joining ? "sign.haveKey" : "sign.noKey")))));
      field.focus();
    };
    draw(join && !problem, problem);
    onLanguage(() => main.querySelector(".sign-in") && draw(join && !problem, problem));
  });
}

function showKey(key) {
  return new Promise((resolve) => {
    const box = dialog(t("sign.keyTitle"), t("close"),
      el("div", { class: "stack" },
        el("p", {}, t("sign.yourKey")),
        el("p", {}, el("code", { class: "key" }, key)),
        el("div", { class: "actions" },
          el("button", { class: "primary", onclick: () => box.close() }, t("sign.kept")),
          el("button", { onclick: () => navigator.clipboard?.writeText(key) }, t("copy")))));
    box.addEventListener("close", resolve);
  });
}
