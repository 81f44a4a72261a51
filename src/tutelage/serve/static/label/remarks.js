// Beside the ranking: what is wrong with an item, a comment, and the ideal answer that a person would give.

import { ApiError, el, say, show } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { demonstrate } from "./server.js";

export const FLAGS = ["harmful", "hate", "sexual", "personal", "unclear", "language", "broken", "expert", "other"];

/** Flags and comment of `work` {flags, comment}; `changed()` after each change. */
export function remarks(work, changed) {
  const flag = (name) => el("button", {
    type: "button", class: "flag", "aria-pressed": String(work.flags.includes(name)), dataset: { flag: name },
    onclick: ({ currentTarget }) => {
      const on = !work.flags.includes(name);
      work.flags = on ? [...work.flags, name] : work.flags.filter((other) => other !== name);
      currentTarget.setAttribute("aria-pressed", String(on));
      changed();
    },
  }, t(`flag.${name}`));
  const comment = el("textarea", {
    id: "comment", rows: "2", dir: "auto", maxlength: "20000", value: work.comment, placeholder: t("comment.hint"),
    oninput: () => {
      work.comment = comment.value;
      changed();
    },
  });
  return el("section", { class: "card stack remarks", "aria-label": t("remarks") },
    el("div", { class: "stack tight", role: "group", "aria-labelledby": "flags-label" },
      el("h2", { class: "label", id: "flags-label" }, t("flags")),
      el("div", { class: "flags", id: "flags" }, FLAGS.map(flag))),
    el("div", { class: "stack tight" },
      el("label", { class: "label", for: "comment" }, t("comment")),
      comment));
}

/** The box for an ideal answer to `work.item`; what was written stays in `work.ideal` {from, text}. */
export function ideal(work, changed) {
  const numbered = work.item.answers.map((answer, i) => [String(answer.id), t("answer", i + 1)]);
  const text = el("textarea", {
    id: "ideal", rows: "5", dir: "auto", maxlength: "100000", "aria-label": t("ideal.text"), value: work.ideal?.text ?? "",
    oninput: () => keep(),
  });
  const from = el("select", { id: "ideal-from", onchange: () => begin() },
    el("option", { value: "" }, t("ideal.blank")),
    numbered.map(([id, words]) => el("option", { value: id, selected: id === work.ideal?.from }, words)));
  const wrong = el("p", { class: "error-text", role: "alert" });
  const source = () => work.item.answers.find((answer) => String(answer.id) === from.value)?.text;

  function keep() {
    work.ideal = { from: from.value, text: text.value };
    changed();
  }

  function begin() {
    const untouched = !text.value.trim() || work.item.answers.some((answer) => answer.text === text.value);
    if (untouched) text.value = source() ?? ""; // what somebody wrote is not thrown away for a choice in a list
    keep();
    text.focus();
  }

  async function save() {
    if (!text.value.trim()) return text.focus();
    if (text.value === source()) return show(wrong, t("ideal.same"));
    try {
      await demonstrate({ item: work.item.id, answer: text.value, edited_from: from.value ? Number(from.value) : null });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      return show(wrong, error.status ? error.message : t("offline"));
    }
    work.ideal = null;
    changed();
    say(t("ideal.saved"));
    box.replaceWith(ideal(work, changed));
  }

  const box = el("details", { class: "card ideal", open: Boolean(work.ideal) },
    el("summary", {}, el("h2", {}, t("ideal"))),
    el("div", { class: "stack tight" },
      el("p", { class: "muted small" }, t("ideal.hint")),
      el("label", { class: "inline small", for: "ideal-from" }, t("ideal.from"), from),
      text, wrong,
      el("div", { class: "actions" }, el("button", { type: "button", onclick: save }, t("ideal.save")))));
  return box;
}
