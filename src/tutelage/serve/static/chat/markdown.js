// A small part of Markdown as DOM nodes: every character of the text ends in a text node, never in markup.

import { el } from "../common/dom.js";

const INLINE = /(`+)(.+?)\1|\*\*(?=\S)([^*]+?)\*\*|(?<![\w*])\*(?=\S)([^*\n]+?)\*(?![\w*])/gs;

function inline(text) {
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    if (found.index > at) nodes.push(text.slice(at, found.index));
    if (found[2] !== undefined) nodes.push(el("code", { dir: "ltr" }, found[2]));
    else if (found[3] !== undefined) nodes.push(el("strong", {}, found[3]));
    else nodes.push(el("em", {}, found[4]));
    at = found.index + found[0].length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,4}[.)])\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;

// The text as blocks {kind, source, ...}; the source alone decides how a block looks.
export function blocks(text) {
  const out = [];
  const lines = text.split("\n");
  for (let i = 0; i < lines.length; ) {
    const fence = FENCE.exec(lines[i]);
    const start = i;
    if (lines[i].trim() === "") {
      i += 1;
      continue;
    }
    if (fence) {
      i += 1;
      while (i < lines.length && !lines[i].trim().startsWith(fence[1])) i += 1;
      const body = lines.slice(start + 1, i).join("\n");
      i += 1;
      out.push({ kind: "code", language: fence[2], source: lines.slice(start, i).join("\n"), body });
      continue;
    }
    const kind = kindOf(lines[i]);
    i += 1;
    while (kind !== "heading" && i < lines.length && continues(kind, lines[i])) i += 1;
    out.push({ kind, source: lines.slice(start, i).join("\n") });
  }
  return out;
}

function kindOf(line) {
  if (HEADING.test(line)) return "heading";
  const item = ITEM.exec(line);
  if (item) return /\d/.test(item[2]) ? "ordered" : "list";
  return line.startsWith(">") ? "quote" : "paragraph";
}

function continues(kind, line) {
  if (line.trim() === "" || FENCE.test(line)) return false;
  const next = kindOf(line);
  if (kind === "ordered" || kind === "list") return next === kind || /^\s{2,}/.test(line);
  return next === kind;
}

function rendered(block) {
  if (block.kind === "code") {
    return el("pre", { dir: "ltr", class: "code", tabindex: "0" }, el("code", {}, block.body));
  }
  if (block.kind === "heading") {
    const [, marks, words] = HEADING.exec(block.source);
    return el(`h${Math.min(marks.length + 2, 6)}`, { dir: "auto" }, ...inline(words));
  }
  if (block.kind === "quote") {
    return el("blockquote", { dir: "auto" }, ...inline(block.source.replace(/^> ?/gm, "")));
  }
  if (block.kind === "paragraph") return el("p", { dir: "auto" }, ...inline(block.source));
  const items = [];
  for (const line of block.source.split("\n")) {
    const item = ITEM.exec(line);
    if (item) items.push({ depth: Math.min(Math.floor(item[1].length / 2), 3), mark: item[2], words: item[3] });
    else if (items.length) items.at(-1).words += `\n${line.trim()}`;
  }
  const props = { dir: "auto" };
  if (block.kind === "ordered") props.start = String(Number.parseInt(items[0].mark, 10));
  const made = items.map((one) => el("li", { dir: "auto", class: `depth${one.depth}` }, ...inline(one.words)));
  return el(block.kind === "ordered" ? "ol" : "ul", props, ...made);
}

// Show `text` in `box`, making anew only the blocks from the first changed one on (an answer grows at its end).
export function render(box, text) {
  const wanted = blocks(text);
  const had = box.sources ?? [];
  let same = 0;
  while (same < wanted.length && same < had.length && wanted[same].source === had[same]) same += 1;
  while (box.childNodes.length > same) box.lastChild.remove();
  for (const block of wanted.slice(same)) box.append(rendered(block));
  box.sources = wanted.map((block) => block.source);
}
