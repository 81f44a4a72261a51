// The chat page: what stands where, and which action each control calls.

import { el, say } from "./common/dom.js";
import { onLanguage, picker, register, t } from "./common/i18n.js";
import { themePicker } from "./common/shell.js";
import { chooser, roundView } from "./chat/compare.js";
import { asJson, asMarkdown, copy, download, fileName, fromJson } from "./chat/exporting.js";
import { icon } from "./chat/icons.js";
import { listView } from "./chat/list.js";
import { tokenCard } from "./chat/logprobs.js";
import { askWho, offer } from "./chat/people.js";
import { enter } from "./chat/server.js";
import { Session } from "./chat/session.js";
import { keepApiKey, panel } from "./chat/settings.js";
import { assistantMessage, iconButton, userMessage } from "./chat/view.js";
import * as words from "./chat/words.js";

register(words);
const session = new Session(redraw);
const side = el("nav", { id: "list", class: "side" });
const bar = el("header", { class: "bar" });
const log = el("div", { id: "messages", class: "messages", role: "log", tabindex: "-1" });
const form = el("form", { class: "composer" });
const input = el("textarea", { id: "ask", rows: 1, dir: "auto", enterkeyhint: "send" });
const main = el("main", {}, bar, log, form);
const veil = el("div", { class: "veil", hidden: true });
let settingsOpen = false;
let views = new Map(); // id of a message or round -> its view
let waiting = false;

function redraw(what) {
  if (what === "answer") {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      keepingTheEnd(() => views.forEach((view) => view.update()));
    });
    return;
  }
  drawList();
  if (what === "list") return;
  document.title = `${session.conversation.title || t("chat.title")} · tutelage`;
  drawBar();
  drawMessages();
  drawComposer();
  drawSettings();
}

// While one reads the end, the end stays in sight; while one reads further up, nothing moves.
function keepingTheEnd(work) {
  const atEnd = session.conversation.kind === "chat" && log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  work();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function drawList() {
  const conversations = await session.library.list();
  const actions = {
    open: (id) => closing(() => session.open(id)),
    chat: () => closing(() => session.start("chat")),
    compare: () => closing(() => session.start("compare")),
    rename: (id, title) => session.rename(id, title),
    remove: async (id) => {
      const { title, back } = await session.remove(id);
      offer(t("chat.deleted", title || t("chat.untitled")), { words: t("chat.undo"), run: back });
    },
    load: loadFile,
  };
  const links = [el("div", { class: "actions" }, picker(), themePicker())];
  const pages = session.server.store ? [el("a", { href: "/label" }, t("nav.label"))] : [];
  const kept = session.library.kept;
  const current = session.conversation.id;
  side.setAttribute("aria-label", t("chat.list"));
  side.replaceChildren(...listView({ conversations, current, running: session.running, kept, actions, pages, links }));
}

function closing(act) {
  document.body.classList.remove("list-open");
  veil.hidden = true;
  act();
  input.focus();
}

async function loadFile(file) {
  try {
    await session.take(fromJson(await file.text()));
  } catch {
    say(t("chat.import.bad", file.name));
  }
}

function modelPicker() {
  const pick = el("select", { id: "model", "aria-label": t("chat.model") });
  for (const id of session.models) {
    const base = session.info(id).talks ? "" : ` · ${t("chat.base")}`;
    pick.append(el("option", { value: id }, `${id}${base}`));
  }
  pick.value = session.settings.model ?? "";
  pick.addEventListener("change", () => {
    session.settings.model = pick.value;
    session.keepSettings();
    redraw("all");
  });
  return pick;
}

function exporter() {
  const items = {
    "chat.export.copy": () => copied(asMarkdown(session.conversation)),
    "chat.export.markdown": () =>
      download(fileName(session.conversation, "md"), asMarkdown(session.conversation), "text/markdown"),
    "chat.export.json": () =>
      download(fileName(session.conversation, "json"), asJson(session.conversation), "application/json"),
  };
  const menu = el("details", { class: "menu" });
  const buttons = Object.entries(items).map(([key, run]) => {
    const act = () => {
      menu.open = false;
      run();
    };
    return el("button", { type: "button", onclick: act }, t(key));
  });
  const named = { "aria-label": t("chat.export"), title: t("chat.export") };
  const summary = el("summary", { class: "icon-button", ...named }, icon("out"));
  menu.append(summary, el("div", { class: "items" }, ...buttons));
  menu.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
  });
  return menu;
}

async function copied(text) {
  await copy(text);
  say(t("copied"));
}

function drawBar() {
  const comparing = session.conversation.kind === "compare";
  const showList = () => {
    document.body.classList.toggle("list-open");
    veil.hidden = !document.body.classList.contains("list-open");
  };
  bar.replaceChildren(
    iconButton("menu", t("chat.open.list"), showList, { class: "icon-button only-narrow" }),
    comparing ? el("h1", {}, t("chat.compare")) : modelPicker(),
    el("span", { class: "space" }),
    iconButton("tokens", t("chat.show.tokens"), toggleTokens, { "aria-pressed": String(session.settings.showTokens) }),
    session.isEmpty(session.conversation) ? "" : exporter(),
    iconButton("settings", t("chat.settings"), toggleSettings, { "aria-expanded": String(settingsOpen) }),
  );
}

function toggleTokens() {
  session.settings.showTokens = !session.settings.showTokens;
  session.keepSettings();
  redraw("all");
}

function toggleSettings() {
  settingsOpen = !settingsOpen;
  redraw("all");
}

function drawSettings() {
  document.getElementById("settings")?.remove();
  document.body.classList.toggle("settings-open", settingsOpen);
  if (!settingsOpen) return;
  const { settings, conversation, server } = session;
  document.body.append(panel({ settings, conversation, server, changed: settingChanged, close: toggleSettings }));
}

async function settingChanged(what) {
  if (what === "consent" && session.settings.consent && !(await somebody())) session.settings.consent = false;
  session.keepSettings();
  if (what === "system") await session.keep();
  if (what === "key") await session.look();
  if (what === "reset" || what === "key") redraw("all");
  if (what === "tokens") {
    drawBar();
    drawMessages();
  }
}

// The person, asked for when a vote, an ideal answer or a prompt is to be kept; null: they would rather not say.
async function somebody() {
  session.server.person ??= await askWho();
  return session.server.person;
}

// Where the server asks for a key first: a person's or one of the API's.
function keyForm() {
  const field = el("input", { type: "password", autocomplete: "off", required: true, "aria-label": t("sign.key") });
  const send = async (event) => {
    event.preventDefault();
    await enter(field.value.trim());
    await told(() => session.look());
    if (session.locked) {
      keepApiKey("");
      say(t("chat.key.wrong"));
    }
    redraw("all");
  };
  return el("form", { class: "welcome stack", onsubmit: send },
    el("h2", {}, t("chat.locked")), el("p", { class: "muted small" }, t("sign.keyOnly")), field,
    el("div", { class: "actions" }, el("button", { class: "primary" }, t("sign.enter"))));
}

function welcome() {
  if (session.locked) return keyForm();
  const { kind } = session.conversation;
  const model = session.settings.model;
  if (!session.models.length) return el("div", { class: "welcome" }, el("h2", {}, t("chat.none")));
  const base = model && !session.info(model).talks;
  const more = kind === "compare" ? t("chat.compare.more") : t(base ? "chat.hello.base" : "chat.hello.more", model);
  const head = t(kind === "compare" ? "chat.compare.hello" : "chat.hello");
  return el("div", { class: "welcome" }, el("h2", {}, head), el("p", { class: "muted small" }, more));
}

function viewOf(node) {
  const { settings, server } = session;
  const info = session.info(node.model);
  const context = {
    place: session.place(node), actions: messageActions, showTokens: settings.showTokens,
    talks: info.talks, contextLength: info.context, store: server.store,
  };
  return node.role === "user" ? userMessage(node, context) : assistantMessage(node, context);
}

const messageActions = {
  copy: copied,
  choose: (node, by) => session.choose(node, by),
  again: (node) => session.busy || session.again(node),
  edited: (node, text) => {
    if (text === null || text.trim() === "" || session.busy) redraw("all");
    else session.say(text.trim(), node.parent);
  },
  ideal: async (node, text) => {
    if (text === null) redraw("all");
    else if (text.trim() === node.content.trim()) say(t("chat.ideal.same"));
    else if (await somebody()) await told(() => session.ideal(node, text.trim()));
  },
};

// What fails is said, and the page stays as it was.
async function told(work) {
  try {
    await work();
  } catch (problem) {
    say(t("chat.failed", problem.message));
  }
}

async function cast(round, choice) {
  if (!session.server.store || (await somebody())) await told(() => session.castVote(round, choice));
}

function drawMessages() {
  const comparing = session.conversation.kind === "compare";
  const context = {
    infoOf: session.info, showTokens: session.settings.showTokens, store: session.server.store, copy: copied,
    vote: cast,
  };
  const made = comparing
    ? session.conversation.rounds.map((round) => [round.id, roundView(round, context)])
    : session.shown().map((node) => [node.id, viewOf(node)]);
  const fresh = made.some(([id]) => !views.has(id));
  views = new Map(made);
  const above = log.scrollTop;
  log.replaceChildren(...(made.length ? made.map(([, view]) => view.element) : [welcome()]));
  if (!fresh) log.scrollTop = above;
  else if (comparing && made.length) log.scrollTop = made.at(-1)[1].element.offsetTop - log.offsetTop - 12;
  else log.scrollTop = log.scrollHeight;
}

function drawComposer() {
  const comparing = session.conversation.kind === "compare";
  const base = !comparing && session.settings.model && !session.info(session.settings.model).talks;
  input.placeholder = t(base ? "chat.ask.base" : "chat.ask");
  input.setAttribute("aria-label", input.placeholder);
  const word = t(session.busy ? "chat.stop" : "chat.send");
  const named = { class: "round-button", "aria-label": word, title: word };
  const send = session.busy
    ? el("button", { type: "button", id: "stop", ...named, onclick: () => session.stop() }, icon("stop"))
    : el("button", { type: "submit", id: "send", ...named, disabled: !session.models.length }, icon("send"));
  const { models, info, settings } = session;
  const choosing = { models, infoOf: info, settings, changed: () => session.keepSettings() };
  const had = document.activeElement === input;
  form.replaceChildren(
    comparing ? chooser(choosing) : "",
    el("div", { class: "ask" }, input, send),
    el("small", { class: "muted small only-wide" }, t("chat.keys")),
  );
  if (had) input.focus();
}

function ask() {
  const text = input.value.trim();
  if (!text || session.busy || !session.models.length) return;
  const comparing = session.conversation.kind === "compare";
  if (comparing && session.settings.compared.length < 2) {
    say(t("chat.compare.few"));
    return;
  }
  input.value = "";
  fitInput();
  if (comparing) session.compare(text);
  else session.say(text);
}

function fitInput() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
}

function listen() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  input.addEventListener("input", fitInput);
  input.addEventListener("keydown", (event) => {
    // isComposing: Enter that ends a Chinese or Japanese input method's word sends nothing
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask();
    }
  });
  const closeMenus = (except) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(except)) menu.open = false;
  };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    closeMenus(null);
    if (session.busy && event.target === input) session.stop();
  });
  document.addEventListener("click", (event) => closeMenus(event.target));
  veil.addEventListener("click", () => closing(() => {}));
  window.addEventListener("hashchange", () => location.hash.slice(1) && session.open(location.hash.slice(1)));
  onLanguage(() => redraw("all"));
}

document.body.append(side, main, veil);
tokenCard(log);
await session.begin().catch((problem) => say(t("chat.offline", problem.message)));
listen();
redraw("all");
input.focus();
