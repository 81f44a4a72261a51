// What the page asks of /chat/api. Every path is this server's own; nothing else is ever called.

import { api } from "../common/dom.js";
import { apiKey, keepApiKey } from "./settings.js";

function ask(path, body) {
  const key = apiKey();
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  return api(path, body, { headers });
}

// {models: {id: {talks, context}}, rewards: [name], store: bool, person: {name} | null}
export function state() {
  return ask("/chat/api/state");
}

// Model ids of /v1/models, in the server's order.
export async function models() {
  const found = await ask("/v1/models");
  return found.data.map((one) => one.id);
}

export function fit(model, messages, maxTokens) {
  return ask("/chat/api/fit", { model, messages, max_tokens: maxTokens });
}

export function reward(messages, answers) {
  return ask("/chat/api/reward", { prompt: messages, answers });
}

export function keepPrompt(messages) {
  return ask("/chat/api/prompt", { prompt: messages, consent: true });
}

export function demonstrate(messages, answer, origin, editedFrom) {
  return ask("/chat/api/demonstration", { prompt: messages, answer, origin, edited_from: editedFrom });
}

// `ballot`: {prompt, answers, kind, winner, shown, seconds, token}
export function vote(ballot) {
  return ask("/chat/api/vote", ballot);
}

// Be known by a person's key, which the server keeps in a cookie, or else ask with it as an API key from this tab.
export async function enter(key) {
  try {
    await api("/session", { key });
    keepApiKey(""); // the cookie speaks for the person from now on
  } catch {
    keepApiKey(key);
  }
}
