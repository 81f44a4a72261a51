// The list of conversations: open, find, rename, delete (with a way back), save and open files.

import { el } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { icon } from "./icons.js";
import { iconButton } from "./view.js";

function entry(conversation, { current, running, actions }) {
  const title = conversation.title || t("chat.untitled");
  const here = conversation.id === current;
  const open = el(
    "button",
    {
      type: "button", class: "open", dir: "auto", "aria-current": here ? "page" : "false",
      onclick: () => actions.open(conversation.id),
    },
    conversation.kind === "compare" ? icon("columns") : "",
    el("span", { class: "title" }, title),
    running.has(conversation.id) ? el("span", { class: "dot", "aria-hidden": "true" }) : "",
  );
  const made = el("li", { class: here ? "here" : "" });
  const rename = () => {
    const box = el("input", { type: "text", dir: "auto", "aria-label": t("chat.rename") });
    box.value = conversation.title;
    let over = false;
    const end = (keep) => {
      if (over) return;
      over = true;
      actions.rename(conversation.id, keep ? box.value.trim() : conversation.title);
    };
    box.addEventListener("blur", () => end(true));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    });
    made.replaceChildren(box);
    box.select();
    box.focus();
  };
  const tools = el(
    "span",
    { class: "tools" },
    iconButton("edit", t("chat.rename"), rename),
    iconButton("trash", t("chat.delete"), () => actions.remove(conversation.id)),
  );
  made.append(open, tools);
  return made;
}

// Days as headings would crowd a short list: the order alone says what is new.
export function listView({ conversations, current, running, kept, actions, pages, links }) {
  const list = el("ul", { class: "conversations" });
  const word = t("chat.search");
  const find = el("input", { type: "search", placeholder: word, "aria-label": word, dir: "auto" });
  const draw = () => {
    const words = find.value.trim().toLocaleLowerCase();
    const found = conversations.filter((one) => textOf(one).includes(words));
    list.replaceChildren(...found.map((one) => entry(one, { current, running, actions })));
  };
  find.addEventListener("input", draw);
  draw();
  const file = el("input", {
    type: "file", accept: ".json,application/json", class: "visually-hidden", tabindex: "-1", "aria-hidden": "true",
  });
  file.addEventListener("change", () => file.files[0] && actions.load(file.files[0]));
  const note = kept ? (conversations.length ? "" : t("chat.list.empty")) : t("chat.list.lost");
  return [
    el("div", { class: "brand-row" }, el("a", { class: "brand", href: "/" }, "tutelage"), ...pages),
    el(
      "div",
      { class: "new" },
      el("button", { type: "button", class: "wide", onclick: actions.chat }, icon("plus"), t("chat.new")),
      el("button", { type: "button", class: "wide", onclick: actions.compare }, icon("columns"), t("chat.compare.new")),
    ),
    conversations.length > 5 ? find : "",
    note ? el("p", { class: "muted small" }, note) : "",
    list,
    el(
      "div",
      { class: "bottom" },
      el("button", { type: "button", class: "quiet", onclick: () => file.click() }, icon("inn"), t("chat.import")),
      file,
      ...links,
    ),
  ];
}

function textOf(conversation) {
  const said = Object.values(conversation.nodes).map((node) => node.content);
  const asked = conversation.rounds.map((round) => round.prompt);
  return [conversation.title, ...said, ...asked].join("\n").toLocaleLowerCase();
}
