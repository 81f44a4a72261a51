// The keyboard: which key does what, and the help that says so.

import { $, dialog, el, typing } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { keysOn, setKeys } from "./keeping.js";

const SHOWN = [
  ["pick", "1", "…", "9"], ["move", "↑", "↓"], ["tie", "="], ["out", "⌫"], ["submit", "Enter"], ["bad", "B"], ["skip", "S"],
  ["back", "U"], ["comment", "C"], ["flags", "F"], ["ideal", "I"], ["guidelines", "G"], ["help", "?"], ["leave", "Esc"],
];
const LETTERS = { b: "bad", s: "skip", u: "back", c: "comment", f: "flags", i: "ideal", g: "guidelines", "?": "help", "=": "tie" };

/** Call `actions` {pick(number), move(step), tie, out, submit, bad, skip, back, comment, flags, ideal, guidelines}. */
export function listen(actions) {
  document.addEventListener("keydown", (event) => {
    if ($("dialog[open]") || event.defaultPrevented) return;
    if (event.key === "Escape") return document.activeElement?.blur?.();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return done(event, actions.submit);
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event)) return;
    const button = event.target.closest?.("button, a, summary");
    if (event.key === "Enter") return button ? undefined : done(event, actions.submit);
    if (event.key === "?") return done(event, () => help());
    if (!keysOn()) return;
    if (/^[1-9]$/.test(event.key)) return done(event, () => actions.pick(Number(event.key)));
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      return done(event, () => actions.move(event.key === "ArrowUp" ? -1 : 1));
    }
    if (event.key === "Backspace" || event.key === "Delete") return done(event, actions.out);
    const name = LETTERS[event.key.toLowerCase()];
    if (name && !event.repeat) done(event, actions[name]);
  });
}

function done(event, act) {
  event.preventDefault();
  act();
}

/** The help overlay. */
export function help() {
  const single = el("input", { type: "checkbox", checked: keysOn(), onchange: () => setKeys(single.checked) });
  dialog(t("help.title"), t("close"),
    el("div", { class: "stack" },
      el("p", {}, t("help.intro")),
      el("table", { class: "keys" }, el("tbody", {}, SHOWN.map(([name, ...keys]) =>
        el("tr", {},
          el("td", { class: "keycaps" }, keys.map((key) => key === "…" ? " … " : el("kbd", {}, key))),
          el("td", {}, t(`key.${name}`)))))),
      el("label", { class: "check" }, single, t("help.shortcuts"))));
}
