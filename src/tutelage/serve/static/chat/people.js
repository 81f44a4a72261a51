// Notices at the page's edge, and the question of who is asking (votes and ideal answers carry a pseudonym).

import { $, dialog, el, say, show } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { signIn } from "../common/shell.js";

// Show `words` with a button `act` {words, run} for some seconds.
export function offer(words, act) {
  say("", 0);
  $(".offer")?.remove();
  const made = el("div", { class: "toast offer", role: "status" }, el("span", { dir: "auto" }, words));
  const run = () => {
    made.remove();
    act.run();
  };
  made.append(el("button", { type: "button", onclick: run }, act.words));
  document.body.append(made);
  setTimeout(() => made.remove(), 8000);
}

// Resolves to a person, or null when the question was dismissed.
export async function askWho() {
  const place = el("div", {});
  const box = dialog(t("chat.who"), t("close"), el("p", { class: "muted small" }, t("chat.who.help")), place);
  box.classList.add("who");
  const dismissed = new Promise((resolve) => box.addEventListener("close", () => resolve(null)));
  const person = await Promise.race([signIn(place), dismissed]);
  box.close();
  show(place);
  return person;
}
