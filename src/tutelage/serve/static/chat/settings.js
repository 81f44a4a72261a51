// Sampling controls, the system prompt and the switches; kept in this browser.

import { el } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { icon } from "./icons.js";

const KEPT = "tutelage.chat.settings";
const KEY = "tutelage.chat.key";

export const DEFAULTS = Object.freeze({
  temperature: 0.7, top_p: 1, top_k: 0, max_tokens: 256, seed: null, stop: [],
  showTokens: false, consent: false, blind: true, model: null, compared: [],
});

export function load() {
  try {
    const found = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    const right = Object.entries(found).filter(([name]) => name in DEFAULTS);
    return { ...DEFAULTS, ...Object.fromEntries(right) };
  } catch {
    return { ...DEFAULTS };
  }
}

export function save(settings) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(settings));
  } catch {
    // a private window: the settings last as long as the page
  }
}

export function apiKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keepApiKey(key) {
  sessionStorage.setItem(KEY, key);
}

// The part of the settings that an answer is made with.
export function sampled({ temperature, top_p, top_k, max_tokens, seed, stop }) {
  return { temperature, top_p, top_k, max_tokens, seed, stop: Array.isArray(stop) ? [...stop] : [] };
}

function field(name, input, help, shown = null) {
  const id = `set-${name}`;
  input.id = id;
  const said = el("small", { id: `${id}-help` }, help ?? "");
  if (help) input.setAttribute("aria-describedby", said.id);
  const head = el("span", { class: "field-head" }, el("label", { for: id }, t(`chat.${name}`)), shown ?? "");
  return el("div", { class: "field" }, head, input, help ? said : "");
}

// A slider and a number that follow each other; the number takes more than the slider's range.
function range(settings, name, [least, most, step, limit], changed) {
  const slide = el("input", { type: "range", min: least, max: most, step, value: settings[name] });
  const number = el("input", {
    type: "number", min: least, max: limit, step, value: settings[name], class: "number",
    "aria-label": t(`chat.${name}`),
  });
  const take = (from, to) => () => {
    const value = from.valueAsNumber;
    if (!Number.isFinite(value) || value < least || value > limit) return;
    settings[name] = value;
    to.value = String(value);
    changed();
  };
  slide.addEventListener("input", take(slide, number));
  number.addEventListener("input", take(number, slide));
  return field(name, slide, t(`chat.${name}.help`), number);
}

function whole(settings, name, least, changed) {
  const input = el("input", { type: "number", min: least, step: 1, inputmode: "numeric" });
  input.value = settings[name] ?? "";
  input.addEventListener("input", () => {
    const value = input.value === "" ? (name === "seed" ? null : DEFAULTS[name]) : Number(input.value);
    if (value !== null && !(Number.isSafeInteger(value) && value >= least)) return;
    settings[name] = value;
    changed();
  });
  return field(name, input, null);
}

function toggle(settings, name, words, help, changed, disabled = false) {
  const input = el("input", { type: "checkbox", role: "switch", id: `set-${name}` });
  input.checked = settings[name] && !disabled;
  input.disabled = disabled;
  input.addEventListener("change", async () => {
    settings[name] = input.checked;
    await changed();
    input.checked = settings[name]; // it may have been declined
  });
  const label = el("label", { class: "switch", for: input.id }, input, el("span", {}, words));
  return el("div", { class: "field" }, label, el("small", {}, help));
}

function systemField(conversation, changed) {
  const input = el("textarea", { rows: 3, dir: "auto" });
  input.value = conversation.system;
  input.addEventListener("input", () => {
    conversation.system = input.value.trim();
    changed();
  });
  return field("system", input, t("chat.system.help"));
}

function stopField(settings, changed) {
  const input = el("textarea", { rows: 2, dir: "auto", spellcheck: "false" });
  input.value = settings.stop.join("\n");
  input.addEventListener("input", () => {
    settings.stop = input.value.split("\n").filter((line) => line !== "").slice(0, 4); // OpenAI's most
    changed();
  });
  return field("stop.strings", input, t("chat.stop.help"));
}

function keyField(changed) {
  const input = el("input", { type: "password", autocomplete: "off", value: apiKey() });
  input.addEventListener("change", () => {
    keepApiKey(input.value.trim());
    changed();
  });
  return field("key", input, t("chat.key.help"));
}

// The panel. changed(what): "system", "sampling", "tokens", "consent" or "key"; "consent" may be a promise.
export function panel({ settings, conversation, server, changed, close }) {
  const redo = () => {
    Object.assign(settings, sampled(DEFAULTS));
    changed("reset");
  };
  const sampling = () => changed("sampling");
  const noStore = !server.store;
  return el(
    "aside",
    { class: "panel", id: "settings", "aria-label": t("chat.settings") },
    el(
      "header",
      {},
      el("h2", {}, t("chat.settings")),
      el("button", { type: "button", class: "quiet", onclick: redo }, t("chat.reset")),
      el("button", { type: "button", class: "icon-button", "aria-label": t("close"), onclick: close }, icon("close")),
    ),
    systemField(conversation, () => changed("system")),
    range(settings, "temperature", [0, 2, 0.05, 100], sampling),
    range(settings, "top_p", [0.05, 1, 0.05, 1], sampling),
    el("div", { class: "field" },
      el("div", { class: "trio" },
        whole(settings, "max_tokens", 1, sampling), whole(settings, "top_k", 0, sampling),
        whole(settings, "seed", 0, sampling)),
      el("small", {}, t("chat.numbers.help"))),
    stopField(settings, sampling),
    toggle(settings, "showTokens", t("chat.show.tokens"), t("chat.show.tokens.help"), () => changed("tokens")),
    toggle(settings, "consent", t("chat.consent"), noStore ? t("chat.consent.none") : t("chat.consent.help"),
      () => changed("consent"), noStore),
    apiKey() ? keyField(() => changed("key")) : "",
  );
}
