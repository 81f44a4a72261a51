// Compare mode: one prompt, two to four models side by side, names hidden if wanted, and a vote.

import { el, token } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { judge, newAnswer, run } from "./answers.js";
import { touch } from "./conversations.js";
import { errorBox, facts, iconButton, rewardBadges, showAnswer, silence } from "./view.js";

export const MOST = 4;
const LETTERS = "ABCD";

// An order of 0..count-1, each as likely as any other (blind: the place must say nothing about the model).
export function shuffled(count) {
  const order = [...Array(count).keys()];
  for (let i = count - 1; i > 0; i -= 1) {
    const j = crypto.getRandomValues(new Uint32Array(1))[0] % (i + 1); // the bias of % is below 1e-9 here
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

export function newRound(prompt, models, settings, system) {
  const answers = models.map((model) => newAnswer(model, settings));
  const order = settings.blind ? shuffled(models.length) : [...models.keys()];
  return { id: token(), prompt, system, answers, order, blind: settings.blind, vote: null, created: Date.now() };
}

export function messagesOfRound(round) {
  const asked = { role: "user", content: round.prompt };
  return round.system ? [{ role: "system", content: round.system }, asked] : [asked];
}

// All models answer together; the scores come once all are there. Never throws.
export async function runRound(round, { infoOf, signal, key, changed, judged }) {
  const messages = messagesOfRound(round);
  const each = round.answers.map((node) => run(node, { messages, info: infoOf(node.model), signal, key, changed }));
  await Promise.all(each);
  round.finished = Date.now();
  if (judged) await judge(messages, round.answers);
  changed();
}

function nameOf(round, index) {
  const letter = t("chat.answer", LETTERS[round.order.indexOf(index)]);
  return round.blind && !round.vote ? letter : round.answers[index].model;
}

function column(round, index, context) {
  const node = round.answers[index];
  const box = el("div", { class: "answer" });
  const letter = el("span", { class: "letter" }, LETTERS[round.order.indexOf(index)]);
  const name = el("span", { class: "model-name" });
  const crown = el("span", { class: "crown" });
  const note = el("div", {});
  const foot = el("div", { class: "foot" });
  const copy = iconButton("copy", t("copy"), () => context.copy(node.content));
  const head = el("header", {}, letter, name, crown, copy);
  const made = el("section", { class: "column" }, head, note, box, foot);
  const talks = context.infoOf(node.model).talks;

  function update() {
    const named = nameOf(round, index);
    made.setAttribute("aria-label", named);
    name.textContent = round.blind && !round.vote ? "" : named;
    const won = round.vote?.kind === "winner" && round.vote.winner === index;
    made.classList.toggle("won", won);
    crown.textContent = won ? "★" : "";
    showAnswer(box, node, { talks, showTokens: context.showTokens });
    box.classList.toggle("running", node.state === "running" && node.content !== "");
    note.replaceChildren(silence(node));
    // speed and score would give a hidden model away
    const open = !round.blind || round.vote;
    const said = open ? [...rewardBadges(node), facts(node).join(" · ")] : [];
    foot.replaceChildren(node.error ? errorBox(node.error, null) : "", el("span", { class: "facts" }, ...said));
  }

  update();
  return { element: made, update };
}

function votedWords(vote, round) {
  if (vote.kind === "winner") return t("chat.voted.winner", round.answers[vote.winner].model);
  return t(vote.kind === "tie" ? "chat.voted.tie" : "chat.voted.bad");
}

function ballot(round, context) {
  if (round.vote) {
    const stored = round.vote.stored ? ` ${t("chat.voted.stored")}` : "";
    return [el("p", { role: "status" }, el("strong", {}, votedWords(round.vote, round)), stored)];
  }
  if (round.answers.some((node) => node.state === "running")) {
    return [el("p", { class: "muted small" }, t("chat.vote.later"))];
  }
  // an empty answer is an answer, and a bad one; what failed or was stopped at once is none
  if (round.answers.some((node) => node.state === "failed" || (node.state === "stopped" && node.content === ""))) {
    return [];
  }
  const cast = (choice) => () => context.vote(round, choice);
  const best = round.order.map((index, place) =>
    el(
      "button",
      { type: "button", class: "primary", onclick: cast({ kind: "winner", winner: index }) },
      t("chat.vote.best", round.blind ? LETTERS[place] : `${LETTERS[place]} · ${round.answers[index].model}`),
    ),
  );
  return [
    el("h3", {}, t("chat.vote")),
    el(
      "div",
      { class: "actions" },
      ...best,
      el("button", { type: "button", onclick: cast({ kind: "tie", winner: null }) }, t("chat.vote.tie")),
      el("button", { type: "button", onclick: cast({ kind: "all_bad", winner: null }) }, t("chat.vote.bad")),
    ),
    el("p", { class: "muted small" }, t(context.store ? "chat.vote.stores" : "chat.vote.none")),
  ];
}

// A round as it shows. context: {infoOf, showTokens, store, copy, vote}.
export function roundView(round, context) {
  const columns = round.order.map((index) => column(round, index, context));
  const voting = el("div", { class: "ballot" });
  const made = el(
    "article",
    { class: "round" },
    el("div", { class: "message user" }, el("div", { class: "bubble", dir: "auto" }, round.prompt)),
    el("div", { class: `columns of${columns.length}` }, ...columns.map((one) => one.element)),
    voting,
  );
  let drawn = null;

  function update() {
    for (const one of columns) one.update();
    const now = JSON.stringify([round.vote, round.answers.map((node) => node.state)]);
    if (now !== drawn) voting.replaceChildren(...ballot(round, context));
    drawn = now;
  }

  update();
  return { element: made, update };
}

// What the store gets of a vote: the prompt, the answers with where they came from, the choice, and how they were
// shown. The round's id names the submission: sent twice, it counts once.
export function ballotOf(round, choice) {
  const answers = round.answers.map(({ model, content, settings }) => ({
    text: content,
    origin: { model, params: settings },
  }));
  const seconds = Math.max(0, (Date.now() - (round.finished ?? Date.now())) / 1000);
  const prompt = messagesOfRound(round);
  return { prompt, answers, ...choice, shown: round.order, seconds: Math.min(seconds, 86_400), token: round.id };
}

// The models to compare as chips, and the switch that hides their names.
export function chooser({ models, infoOf, settings, changed }) {
  const chips = models.map((id) => {
    const input = el("input", { type: "checkbox", value: id });
    input.checked = settings.compared.includes(id);
    input.addEventListener("change", () => {
      const rest = settings.compared.filter((one) => one !== id);
      settings.compared = input.checked ? [...rest, id].slice(-MOST) : rest;
      changed();
    });
    const note = infoOf(id).talks ? "" : el("small", {}, ` ${t("chat.base")}`);
    return el("label", { class: "pick" }, input, el("span", {}, id, note));
  });
  const blind = el("input", { type: "checkbox", role: "switch" });
  blind.checked = settings.blind;
  blind.addEventListener("change", () => {
    settings.blind = blind.checked;
    changed();
  });
  return el(
    "fieldset",
    { class: "chooser" },
    el("legend", {}, t("chat.compare.models")),
    ...chips,
    el("label", { class: "switch" }, blind, el("span", {}, t("chat.compare.blind"))),
  );
}

export function addRound(conversation, round) {
  conversation.rounds.push(round);
  touch(conversation);
}
