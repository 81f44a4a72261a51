// What stands around every page: the bar with its links, the choice of language and colours, and who one is.

import { $, ApiError, api, dialog, el, show } from "./dom.js";
import { LANGUAGES, language, onLanguage, setLanguage, t } from "./i18n.js";

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

function choice(label, value, options, change) {
  return el("select", { "aria-label": label, title: label, onchange: (event) => change(event.target.value) },
    Object.entries(options).map(([key, name]) => el("option", { value: key, selected: key === value }, name)));
}

/** Draw the bar into <header class="bar">, and again when the language changes. `page`: the link that is here
 * ("label", "report", "chat"); `links`: those to show, {page: path}; `extra()`: further elements at its end. */
export function bar(page, links, extra = () => []) {
  const draw = () => show($("header.bar"),
    el("a", { class: "skip-link", href: "#main" }, t("nav.skip")),
    el("a", { class: "brand", href: "/" }, "tutelage"),
    el("nav", { "aria-label": t("nav.main") }, Object.entries(links).map(([name, path]) =>
      el("a", { href: path, "aria-current": name === page && "page" }, t(`nav.${name}`)))),
    el("span", { class: "push" }),
    extra(),
    choice(t("language"), language(), LANGUAGES, setLanguage),
    choice(t("theme"), theme(), Object.fromEntries(THEMES.map((name) => [name, t(`theme.${name}`)])), setTheme));
  onLanguage(draw);
  draw();
  return draw;
}

/** Who one is, asked where the server does not know: gives {name, ...} of GET `me`. A ?key=... in the address is handed
 * over and taken out of the address (and so of the history). `paths`: {me, enter, join}. */
export async function signIn(paths, main) {
  const address = new URL(location.href);
  const key = address.searchParams.get("key");
  if (key) {
    address.searchParams.delete("key");
    history.replaceState(null, "", address);
    try {
      await api(paths.enter, { key });
    } catch (error) {
      if (error.status !== 403) throw error;
      return ask(paths, main, error.message);
    }
  }
  const me = await api(paths.me);
  return me.person ? me : ask(paths, main, "", me.may_join);
}

function ask(paths, main, problem = "", mayJoin = false) {
  return new Promise((resolve) => {
    const draw = (joining, words = "") => {
      const field = el("input", { name: "who", required: true, maxlength: joining ? 60 : 200, dir: "auto",
        autocomplete: joining ? "username" : "off", spellcheck: "false" });
      const wrong = el("p", { class: "error-text", role: "alert" }, words);
      const send = async (event) => {
        event.preventDefault();
        try {
          const found = await api(joining ? paths.join : paths.enter, { [joining ? "name" : "key"]: field.value.trim() });
          if (joining) await showKey(found.key);
          resolve(await api(paths.me));
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
          mayJoin && el("button", { type: "button", class: "quiet", onclick: () => draw(!joining) },
            t(joining ? "sign.haveKey" : "sign.noKey")))));
      field.focus();
    };
    draw(mayJoin && !problem, problem);
    onLanguage(() => main.querySelector(".sign-in") && draw(mayJoin && !problem, problem));
  });
}

function showKey(key) {
  return new Promise((resolve) => {
    const box = dialog(t("sign.title"), t("close"),
      el("div", { class: "stack" },
        el("p", {}, t("sign.yourKey")),
        el("p", {}, el("code", { class: "key" }, key)),
        el("div", { class: "actions" },
          el("button", { class: "primary", onclick: () => box.close() }, t("sign.kept")),
          el("button", { onclick: () => navigator.clipboard?.writeText(key) }, t("copy")))));
    box.addEventListener("close", resolve);
  });
}
