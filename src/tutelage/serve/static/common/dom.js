// Elements, requests and announcements for all pages. Text reaches the page as text nodes alone, never as HTML: what a
// model or a person wrote cannot become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.setAttribute("class", Array.isArray(value) ? value.filter(Boolean).join(" ") : value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (["value", "checked", "disabled", "open"].includes(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children) {
    if (child === undefined || child === null || child === false) continue;
    if (Array.isArray(child)) append(node, child);
    else node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** An element: el("button", {class: "primary", onclick: save}, "Save"). Props are attributes, `on…` are listeners,
 * `class` may be a list, null and false leave a prop or child out. Strings become text nodes. */
export function el(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** Replace everything in `node` by `children`. */
export function show(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

export const $ = (selector, root = document) => root.querySelector(selector);

/** What a person or model wrote, in its own direction and with its own line breaks. */
export function prose(text, props = {}) {
  return el("div", { dir: "auto", ...props, class: ["text", props.class] }, text);
}

/** An answer of the server that is not 2xx: `message` for people, `status` for code (0: not reached). */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** GET `path`, or POST `body` as JSON to it; gives the decoded JSON. Raises ApiError with the server's own words. */
export async function api(path, body, options = {}) {
  const request = body === undefined
    ? { method: "GET" }
    : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...request, ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(String(error.message ?? error), 0);
  }
  const found = await answer.json().catch(() => null);
  if (!answer.ok) throw new ApiError(found?.error?.message ?? `${answer.status} ${answer.statusText}`, answer.status);
  return found;
}

let hide;

/** Say a short thing to everyone: shown for a while, and read out by screen readers. */
export function say(text, seconds = 4) {
  let toast = $(".toast");
  if (!toast) document.body.append((toast = el("div", { class: "toast", role: "status", "aria-live": "polite" })));
  clearTimeout(hide);
  show(toast, text);
  hide = setTimeout(() => show(toast), seconds * 1000);
}

/** Read out by screen readers alone. */
export function announce(text) {
  let live = $("#live");
  if (!live) document.body.append((live = el("div", { id: "live", class: "visually-hidden", "aria-live": "polite" })));
  show(live, text);
}

/** A modal dialog, opened at once; Escape and the button close it. Gives the <dialog>. */
export function dialog(title, close, ...children) {
  const box = el("dialog", { "aria-labelledby": "dialog-title" },
    el("header", {},
      el("h2", { id: "dialog-title" }, title),
      el("button", { type: "button", class: "quiet icon", "aria-label": close, onclick: () => box.close() }, "✕")),
    ...children);
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close()); // the backdrop
  document.body.append(box);
  box.showModal();
  return box;
}

/** A labelled <select>: `options` {value: words}; `change(value)` when another one is chosen. */
export function choice(label, value, options, change) {
  return el("select", { "aria-label": label, title: label, onchange: (event) => change(event.target.value) },
    Object.entries(options).map(([key, name]) => el("option", { value: key, selected: key === value }, name)));
}

/** Whether a key press belongs to a field that is being written in. */
export function typing(event) {
  return Boolean(event.target.closest?.("input, textarea, select, [contenteditable]"));
}

/** A random id: the client's own name of a submission, so that one sent twice is recorded once. */
export function token() {
  if (crypto.randomUUID) return crypto.randomUUID(); // absent on plain http beyond localhost
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
