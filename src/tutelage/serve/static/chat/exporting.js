// A conversation as a file or on the clipboard: JSON with everything, Markdown to read, JSONL row shape for training.

import { el, token } from "../common/dom.js";
import { newAnswer } from "./answers.js";
import { addNode, branch, messagesOf, newConversation } from "./conversations.js";
import { DEFAULTS, sampled } from "./settings.js";

const VERSION = 1;

export function asJson(conversation) {
  const { kind, title, created, updated, system } = conversation;
  const times = { created: new Date(created).toISOString(), updated: new Date(updated).toISOString() };
  if (kind === "compare") {
    return JSON.stringify({ tutelage: VERSION, kind, title, ...times, system, rounds: conversation.rounds }, null, 2);
  }
  const turns = branch(conversation).map(({ role, content, model, settings, finish, usage, tokens, rewards }) =>
    role === "user" ? { role, content } : { role, content, model, settings, finish, usage, rewards, tokens },
  );
  const messages = messagesOf(conversation);
  return JSON.stringify({ tutelage: VERSION, kind, title, ...times, messages, turns }, null, 2);
}

// A fence longer than any run of backticks inside, so that an answer that holds code stays one block.
function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}text\n${text}\n${fence}`;
}

export function asMarkdown(conversation) {
  const out = [`# ${conversation.title || "tutelage"}`, ""];
  if (conversation.system) out.push("**system**", "", conversation.system, "");
  if (conversation.kind === "compare") {
    for (const round of conversation.rounds) {
      out.push("## user", "", round.prompt, "");
      for (const [i, answer] of round.answers.entries()) {
        const won = round.vote?.kind === "winner" && round.vote.winner === i ? " (won)" : "";
        out.push(`### ${answer.model}${won}`, "", fenced(answer.content), "");
      }
      if (round.vote && round.vote.kind !== "winner") out.push(`*${round.vote.kind}*`, "");
    }
    return out.join("\n");
  }
  for (const node of branch(conversation)) {
    const who = node.role === "assistant" && node.model ? `assistant (${node.model})` : node.role;
    out.push(`## ${who}`, "", node.content, "");
  }
  return out.join("\n");
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // over plain http there is no clipboard object: the old way
    const box = el("textarea", { class: "visually-hidden", readonly: true });
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
}

export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export function fileName(conversation, ending) {
  const words = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "");
  return `${words.slice(0, 40) || "chat"}.${ending}`;
}

// Read what asJson wrote; throws Error for anything else. The branch that was shown comes back. Whatever the file says,
// only what the page knows is taken from it, in the types that it expects: a file may come from anybody.
export function fromJson(text) {
  const found = JSON.parse(text);
  if (found?.tutelage !== VERSION || !["chat", "compare"].includes(found.kind)) throw new Error("not our file");
  const system = found.system ?? found.messages?.find((one) => one.role === "system")?.content;
  const made = newConversation(found.kind, String(system ?? ""));
  for (const turn of listed(found.turns)) {
    if (turn.role === "user") addNode(made, made.leaf, { role: "user", content: words(turn.content) });
    else addNode(made, made.leaf, answerOf(turn));
  }
  made.rounds = listed(found.rounds).map((round) => roundOf(round, made.system));
  made.title = String(found.title ?? "");
  made.named = true;
  return made;
}

const listed = (value) => (Array.isArray(value) ? value : []);
const number = (value) => (Number.isFinite(value) ? value : null);

function words(value) {
  if (typeof value !== "string") throw new Error("a text is missing");
  return value;
}

function answerOf(turn) {
  const tokenOf = ({ text, bytes, logprob }) => ({
    text: words(text),
    bytes: Array.isArray(bytes) ? bytes : null,
    logprob: number(logprob),
  });
  const made = newAnswer(words(turn.model ?? ""), sampled({ ...DEFAULTS, ...turn.settings }));
  const rewards = Object.entries(turn.rewards ?? {}).filter(([, score]) => Number.isFinite(score));
  return {
    ...made,
    content: words(turn.content),
    state: "done",
    finish: turn.finish === "length" ? "length" : "stop",
    tokens: listed(turn.tokens).map((one) => ({ ...tokenOf(one), top: listed(one.top).map(tokenOf) })),
    rewards: Object.fromEntries(rewards),
  };
}

function roundOf(round, system) {
  const answers = listed(round.answers).map(answerOf);
  const { kind, winner, stored } = round.vote ?? {};
  const won = kind === "winner" && Number.isInteger(winner) && winner in answers;
  const fine = won || ["tie", "all_bad"].includes(kind);
  const vote = fine ? { kind, winner: won ? winner : null, stored: stored === true } : null;
  const order = [...answers.keys()].slice(0, 4);
  return { id: token(), prompt: words(round.prompt), system, answers, order, blind: false, vote, created: Date.now() };
}
