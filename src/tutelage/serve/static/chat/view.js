// One message as it shows: its text, what came with it, and what can be done with it.

import { el } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { tokenCount, tokensPerSecond } from "./answers.js";
import { icon } from "./icons.js";
import { legend, renderTokens } from "./logprobs.js";
import { render } from "./markdown.js";

export function iconButton(name, words, onclick, props = {}) {
  return el(
    "button",
    { type: "button", class: "icon-button", "aria-label": words, title: words, onclick, ...props },
    icon(name),
  );
}

// The text of an answer: coloured tokens where wanted and known, Markdown of a chat model, a base model's as it is.
export function showAnswer(box, node, { talks, showTokens }) {
  const mode = showTokens && node.tokens.length ? "tokens" : talks ? "markdown" : "plain";
  if (box.mode !== mode) {
    box.replaceChildren();
    box.className = `answer ${mode}`;
    Object.assign(box, { mode, sources: [], pieceCount: 0 });
  }
  if (mode === "tokens") renderTokens(box, node.tokens);
  else if (mode === "markdown") render(box, node.content);
  else box.textContent = node.content;
}

// How an answer ended and what it took, as short texts.
export function facts(node) {
  if (node.state === "running") return [];
  const count = tokenCount(node);
  const speed = tokensPerSecond(node);
  const said = [];
  if (node.state === "stopped") said.push(t("chat.stopped"));
  if (node.finish === "length") said.push(t("chat.cut", count));
  else if (count) said.push(t("chat.tokens", count));
  if (speed) said.push(t("chat.speed", speed < 10 ? speed.toFixed(1) : Math.round(speed)));
  if (node.first_ms !== null) said.push(t("chat.first", Math.round(node.first_ms)));
  return said;
}

export function rewardBadges(node) {
  const all = Object.entries(node.rewards ?? {});
  return all.map(([name, score]) => {
    const words = all.length > 1 ? `${name} ${score.toFixed(2)}` : t("chat.reward", score.toFixed(2));
    return el("span", { class: "badge reward", title: t("chat.reward.help", name) }, words);
  });
}

export function errorBox(error, retry) {
  const { message, status, after } = error;
  let words = t("chat.failed", message);
  if (status === 0) words = t("chat.offline", message);
  else if (status === 429) words = t("chat.busy", message, after ?? 1);
  const again = retry ? el("button", { type: "button", onclick: retry }, t("retry")) : "";
  return el("div", { class: "note error", role: "alert" }, el("span", { dir: "auto" }, words), again);
}

function versions(place, go) {
  if (place.count < 2) return "";
  return el(
    "span",
    { class: "versions" },
    iconButton("before", t("chat.before"), () => go(-1), { disabled: place.index === 0 }),
    el("span", { title: t("chat.version", place.index + 1, place.count) }, `${place.index + 1}/${place.count}`),
    iconButton("after", t("chat.after"), () => go(1), { disabled: place.index === place.count - 1 }),
  );
}

// An editor in a message's place; done(text | null).
export function editor(text, { save, help, done }) {
  const box = el("textarea", { dir: "auto", class: "editing", "aria-label": save });
  box.value = text;
  const form = el(
    "form",
    { class: "editor" },
    help ? el("p", { class: "muted small" }, help) : "",
    box,
    el(
      "div",
      { class: "actions" },
      el("button", { type: "submit", class: "primary" }, save),
      el("button", { type: "button", onclick: () => done(null) }, t("cancel")),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    done(box.value);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") done(null);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  queueMicrotask(() => {
    box.style.height = `${Math.min(box.scrollHeight + 4, window.innerHeight / 2)}px`;
    box.focus();
  });
  return form;
}

export function userMessage(node, { place, actions }) {
  const bubble = el("div", { class: "bubble", dir: "auto" }, node.content);
  const tools = el(
    "div",
    { class: "tools" },
    versions(place, (by) => actions.choose(node, by)),
    iconButton("copy", t("copy"), () => actions.copy(node.content)),
    iconButton("edit", t("chat.edit"), () => {
      const form = editor(node.content, { save: t("chat.save.send"), done: (text) => actions.edited(node, text) });
      made.replaceChildren(form);
    }),
  );
  const made = el("article", { class: "message user", "aria-label": t("chat.you") }, bubble, tools);
  return { element: made, update: () => {} };
}

function assistantTools(node, { place, actions, store }, replace) {
  const ideal = () => {
    const done = (text) => actions.ideal(node, text);
    replace(editor(node.content, { save: t("chat.ideal.save"), help: t("chat.ideal.help"), done }));
  };
  return [
    versions(place, (by) => actions.choose(node, by)),
    iconButton("copy", t("copy"), () => actions.copy(node.content)),
    iconButton("again", t("chat.again"), () => actions.again(node)),
    store && node.content ? iconButton("star", t("chat.ideal"), ideal) : "",
  ];
}

// What stands in place of a text that is not there (yet).
export function silence(node) {
  if (node.content.trim() !== "") return "";
  if (node.state === "done") return el("em", { class: "muted small" }, t("chat.empty.answer"));
  if (node.state !== "running") return "";
  const dots = [1, 2, 3].map(() => el("i", {}));
  return el("span", { class: "waiting", role: "status", "aria-label": t("chat.waiting") }, ...dots);
}

// An answer; update() shows what has come since, and the tools once it is finished.
export function assistantMessage(node, context) {
  const box = el("div", { class: "answer" });
  const head = el("div", { class: "name" }, node.model ?? "");
  const note = el("div", {});
  const foot = el("div", { class: "foot" });
  const made = el("article", { class: "message assistant", "aria-label": node.model ?? "" }, head, note, box, foot);
  let drawn = null;

  function update() {
    showAnswer(box, node, context);
    const running = node.state === "running";
    box.classList.toggle("running", running && node.content !== "");
    const now = `${node.state} ${node.content === ""} ${JSON.stringify(node.rewards)} ${node.dropped} ${node.ideal}`;
    if (drawn === now) return;
    drawn = now;
    const dropped = node.dropped ? t("chat.dropped", node.dropped, context.contextLength) : "";
    note.replaceChildren(dropped ? el("p", { class: "muted small" }, dropped) : "", silence(node));
    foot.replaceChildren();
    if (running) return;
    if (node.error) foot.append(errorBox(node.error, () => context.actions.again(node)));
    if (node.ideal) foot.append(el("span", { class: "badge ideal" }, icon("star"), t("chat.ideal.saved")));
    const tools = assistantTools(node, context, (form) => made.replaceChildren(head, form));
    foot.append(el("div", { class: "tools" }, ...tools));
    const said = node.ideal ? "" : facts(node).join(" · ");
    foot.append(el("span", { class: "facts" }, ...rewardBadges(node), said));
    if (context.showTokens && node.tokens.length) foot.append(legend());
  }

  update();
  return { element: made, update };
}
