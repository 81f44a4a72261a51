// What the page asks of /chat/api. Every path is this server's own; nothing else is ever called.

import { api } from "../common/dom.js";

// {models: {id: {talks, context}}, rewards: [name], store: bool, person: {name} | null, keys: bool, join: bool}
export function state() {
  return api("/chat/api/state");
}

// Model ids of /v1/models, in the server's order. A key is needed where the server asks for one.
export async function models(key) {
  const response = await fetch("/v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!response.ok) return { ids: [], status: response.status };
  const found = await response.json();
  return { ids: found.data.map((one) => one.id), status: response.status };
}

export function fit(model, messages, maxTokens) {
  return api("/chat/api/fit", { model, messages, max_tokens: maxTokens });
}

export function reward(messages, answers) {
  return api("/chat/api/reward", { prompt: messages, answers });
}

export function keepPrompt(messages) {
  return api("/chat/api/prompt", { prompt: messages, consent: true });
}

export function demonstrate(messages, answer, origin, editedFrom) {
  return api("/chat/api/demonstration", { prompt: messages, answer, origin, edited_from: editedFrom });
}

export function vote(messages, answers, choice, shown, seconds) {
  return api("/chat/api/vote", { prompt: messages, answers, ...choice, shown, seconds });
}
