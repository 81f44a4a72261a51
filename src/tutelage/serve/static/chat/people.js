// Notices at the page's edge, and the question of who is asking (votes and ideal answers carry a pseudonym).

import { api, el } from "../common/dom.js";
import { t } from "../common/i18n.js";

// Show `words` for some seconds; `act` {words, run} is a button in it.
export function notice(words, act = null) {
  document.querySelector(".notice")?.remove();
  const made = el("div", { class: "notice", role: "status" }, el("span", { dir: "auto" }, words));
  if (act) {
    const run = () => {
      made.remove();
      act.run();
    };
    made.append(el("button", { type: "button", onclick: run }, act.words));
  }
  document.body.append(made);
  setTimeout(() => made.remove(), act ? 8000 : 3000);
}

// Resolves to a person, or null when the question was dismissed. `join`: a new name may be chosen (on one's own machine).
export function askWho(join) {
  return new Promise((resolve) => {
    const name = el("input", { type: "text", autocomplete: "nickname", dir: "auto", maxlength: 60, id: "who-name" });
    const key = el("input", { type: "password", autocomplete: "off", id: "who-key" });
    const wrong = el("p", { class: "error", role: "alert", hidden: true });
    const form = el(
      "form",
      { method: "dialog" },
      el("h2", {}, t("chat.who")),
      el("p", { class: "help" }, t("chat.who.help")),
      join ? el("div", { class: "field" }, el("label", { for: name.id }, t("chat.who.name")), name) : "",
      el("div", { class: "field" }, el("label", { for: key.id }, t("chat.who.key")), key),
      wrong,
      el(
        "div",
        { class: "row" },
        el("button", { type: "submit", class: "primary" }, t("chat.who.ok")),
        el("button", { type: "button", onclick: () => dialog.close() }, t("chat.cancel")),
      ),
    );
    const dialog = el("dialog", { class: "who" }, form);
    let person = null;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        person = await enter(name.value.trim(), key.value.trim());
        dialog.close();
      } catch (problem) {
        wrong.textContent = problem.message;
        wrong.hidden = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(person);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

function enter(name, key) {
  return api("/session", key ? { key } : { name });
}
