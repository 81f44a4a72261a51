// What the ranking pages ask of /label/api.

import { api } from "../common/dom.js";

const batch = new URL(location.href).searchParams.get("batch");
const query = (more = {}) => {
  const found = new URLSearchParams({ ...(batch ? { batch } : {}), ...more }).toString();
  return found ? `?${found}` : "";
};

/** {batch: {name, guidelines, items}, batches: [name], progress, sampling: {done, total, error} | null}. */
export const state = () => api(`/label/api/state${query()}`);

/** {item: {id, prompt: [{role, content}], answers: [{id, text}]} | null, progress, sampling}. */
export const next = () => api(`/label/api/next${query()}`);

/** What one has said, newest first: {judgements: [{item, kind, at}]}. */
export const history = () => api(`/label/api/history${query()}`);

/** An item that one has judged, with `mine`: {kind, groups, flags, comment, seconds}. */
export const judged = (id) => api(`/label/api/items/${id}`);

export const record = (judgement) => api("/label/api/judgements", judgement);

export const demonstrate = (body) => api("/label/api/demonstrations", body);

export const report = () => api(`/label/api/report${query()}`);

export const inBatch = (path) => `${path}${query()}`;
