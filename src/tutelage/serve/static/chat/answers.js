// One answer on its way: text and tokens as they come, how long it took, and what the reward model says of it.

import { answer } from "./stream.js";
import { fit, reward } from "./server.js";

export function newAnswer(model, settings) {
  return {
    role: "assistant", model, content: "", tokens: [], state: "running", finish: null, usage: null, error: null,
    dropped: 0, first_ms: null, ms: null, rewards: null, settings,
  };
}

// Bytes bound a byte-level tokenizer's tokens; 16 a message are more than any template's marks.
function surelyFits(messages, room) {
  const encoder = new TextEncoder();
  return messages.reduce((sum, one) => sum + encoder.encode(one.content).length + 16, 0) <= room;
}

// Fill `node` (of newAnswer); `changed` is called as it grows. Never throws: what went wrong is in node.error.
export async function run(node, { messages, info, signal, key, changed }) {
  const began = performance.now();
  try {
    let sent = messages;
    if (info.talks && info.context && !surelyFits(messages, info.context - node.settings.max_tokens)) {
      const found = await fit(node.model, messages, node.settings.max_tokens);
      [sent, node.dropped] = [found.messages, found.dropped];
    }
    const asked = { model: node.model, talks: info.talks, messages: sent, settings: node.settings };
    for await (const piece of answer(asked, { signal, key })) {
      if (piece.text && node.first_ms === null) node.first_ms = performance.now() - began;
      node.content += piece.text;
      node.tokens.push(...piece.tokens);
      node.finish = piece.finish ?? node.finish;
      node.usage = piece.usage ?? node.usage;
      changed();
    }
    node.state = "done";
  } catch (problem) {
    node.state = problem.name === "AbortError" || signal.aborted ? "stopped" : "failed";
    if (node.state === "failed") {
      node.error = { message: problem.message, status: problem.status ?? null, after: problem.retryAfter ?? null };
    }
  }
  node.ms = performance.now() - began;
  changed();
}

// Scores of finished answers to one prompt, written into their `rewards`: {reward model: score}.
export async function judge(messages, nodes) {
  const done = nodes.filter((node) => node.content !== "" && node.state === "done");
  if (!done.length) return;
  try {
    const { scores } = await reward(messages, done.map((node) => node.content));
    for (const [i, node] of done.entries()) {
      node.rewards = Object.fromEntries(Object.entries(scores).map(([name, all]) => [name, all[i]]));
    }
  } catch {
    // a score is an extra: the answer stands without it
  }
}

export function tokenCount(node) {
  return node.usage?.completion_tokens ?? node.tokens.length;
}

// Of the whole wait: what one row takes is said by no single step, as the server sends steps together.
export function tokensPerSecond(node) {
  const count = tokenCount(node);
  return count > 1 && node.ms > 0 ? (1000 * count) / node.ms : null;
}
