// Tokens coloured by probability; a token that is pointed at, tapped or focused shows its alternatives.

import { el } from "../common/dom.js";
import { t } from "../common/i18n.js";

const BYTE_TOKEN = /^bytes:((?:\\x[0-9a-f]{2})+)$/i; // how OpenAI writes a token that is part of a character

// A token's bytes. Servers that give none give the text.
function bytesOf(token) {
  if (token.bytes) return Uint8Array.from(token.bytes);
  const escaped = BYTE_TOKEN.exec(token.text);
  if (escaped) return Uint8Array.from(escaped[1].match(/[0-9a-f]{2}/gi).map((pair) => Number.parseInt(pair, 16)));
  return new TextEncoder().encode(token.text);
}

// Tokens as [{text, parts}]: those that share one character stand together, since halves of a character show nothing.
export function pieces(tokens) {
  const out = [];
  let waiting = [];
  let held = [];
  for (const token of tokens) {
    waiting.push(token);
    held.push(...bytesOf(token));
    const bytes = Uint8Array.from(held);
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
    // what may still become a character is held back by a decoder that expects more
    const certain = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes, { stream: true });
    if (certain !== text && token !== tokens.at(-1)) continue;
    out.push({ text, parts: waiting });
    waiting = [];
    held = [];
  }
  return out;
}

export function probability(logprob) {
  return logprob === null || logprob === undefined ? null : Math.min(Math.exp(logprob), 1);
}

export function percent(p) {
  if (p === null) return "–";
  if (p >= 0.9995) return "100%";
  return p >= 0.1 ? `${(100 * p).toFixed(1)}%` : p >= 0.0001 ? `${(100 * p).toFixed(2)}%` : "<0.01%";
}

const STEPS = [0.9, 0.6, 0.3, 0.1]; // p0: likely ... p4: unlikely

export function step(p) {
  if (p === null) return "none";
  const found = STEPS.findIndex((edge) => p >= edge);
  return `p${found < 0 ? STEPS.length : found}`;
}

// Tokens that are parts of characters all read as \ufffd: their bytes tell them apart.
function same(a, b) {
  return a.text === b.text && String(a.bytes) === String(b.bytes);
}

// How a token stands in the list of alternatives: blanks seen, parts of characters as their bytes.
export function shown({ text, bytes }) {
  if (text.includes("\ufffd") && bytes) return bytes.map((one) => `\\x${one.toString(16).padStart(2, "0")}`).join("");
  return text === "" ? "∅" : text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

function piece({ text, parts }) {
  const known = parts.map((one) => probability(one.logprob));
  const p = known.includes(null) ? null : known.reduce((product, one) => product * one, 1);
  const made = el("span", { class: `token ${step(p)}`, tabindex: "-1" }, text);
  made.parts = parts;
  return made;
}

// Show tokens in `box` (only what came since the last call is made); the first token takes the keyboard's focus.
export function renderTokens(box, tokens) {
  const wanted = pieces(tokens);
  const kept = Math.max(0, (box.pieceCount ?? 0) - 1); // the last one may have been half a character
  while (box.childNodes.length > kept) box.lastChild.remove();
  for (const one of wanted.slice(box.childNodes.length)) box.append(piece(one));
  box.pieceCount = wanted.length;
  if (box.firstChild && !box.querySelector("[tabindex='0']")) box.firstChild.tabIndex = 0;
}

function details(part) {
  const p = probability(part.logprob);
  const others = part.top.some((one) => same(one, part)) ? part.top : [part, ...part.top];
  const rows = others.map((one) => {
    const its = probability(one.logprob);
    const bar = el("meter", { min: "0", max: "1", value: String(its ?? 0), "aria-hidden": "true" });
    const mine = same(one, part) ? "alternative chosen" : "alternative";
    return el("li", { class: mine }, el("code", {}, shown(one)), bar, el("span", {}, percent(its)));
  });
  const head = el("p", {}, el("code", {}, shown(part)), ` ${percent(p)} `);
  if (part.logprob !== null) head.append(el("small", {}, `log p = ${part.logprob.toFixed(3)}`));
  return [head, el("ol", {}, ...rows)];
}

// One card for the page: follows the token that is pointed at.
export function tokenCard(root) {
  const card = el("div", { class: "token-card", role: "status", hidden: true });
  document.body.append(card);
  let at = null;

  function close() {
    at?.classList.remove("open");
    at = null;
    card.hidden = true;
  }

  function open(token) {
    if (token === at) return;
    close();
    at = token;
    token.classList.add("open");
    card.setAttribute("aria-label", t("chat.token.card"));
    card.replaceChildren(...token.parts.flatMap(details));
    card.hidden = false;
    const spot = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const size = card.getBoundingClientRect();
    const room = document.documentElement.clientWidth - size.width - 8;
    const below = spot.bottom + 6 + size.height < window.innerHeight;
    card.style.left = `${Math.max(8, Math.min(spot.left, room))}px`;
    card.style.top = `${below ? spot.bottom + 6 : Math.max(8, spot.top - size.height - 6)}px`;
  }

  const tokenOf = (event) => (event.target instanceof Element ? event.target.closest(".token") : null);
  root.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token) open(token);
    else if (event.pointerType === "mouse") close();
  });
  root.addEventListener("pointerleave", close);
  root.addEventListener("click", (event) => (tokenOf(event) ? open(tokenOf(event)) : close()));
  root.addEventListener("focusin", (event) => (tokenOf(event) ? open(tokenOf(event)) : close()));
  root.addEventListener("focusout", (event) => !tokenOf({ target: event.relatedTarget }) && close());
  root.addEventListener("keydown", (event) => {
    const token = tokenOf(event);
    if (!token) return;
    const next = { ArrowRight: "nextSibling", ArrowLeft: "previousSibling" }[event.key];
    if (event.key === "Escape") close();
    if (!next || !token[next]) return;
    token.tabIndex = -1;
    token[next].tabIndex = 0;
    token[next].focus();
    event.preventDefault();
  });
  document.addEventListener("scroll", close, { capture: true, passive: true });
}

// What the colours mean.
export function legend() {
  const edges = [">90%", "60–90%", "30–60%", "10–30%", "<10%"];
  const keys = edges.map((words, i) => el("span", { class: `token p${i}` }, words));
  return el("p", { class: "legend" }, t("chat.token.legend"), " ", ...keys);
}
