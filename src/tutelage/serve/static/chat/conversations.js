// Conversations: trees of messages, kept in this browser's IndexedDB and nowhere else.
//
// A conversation is {id, kind: "chat" | "compare", title, named, created, updated, system, model, nodes, leaf, rounds}.
// nodes: id -> {id, parent, role, content, ...}. Editing or answering again adds a sibling; leaf: which branch shows.
// rounds (compare): [{id, prompt, answers, order, blind, vote}].

import { token } from "../common/dom.js";

const NAME = "tutelage-chat";
const SHELF = "conversations";

function asked(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// Where conversations are kept. Without IndexedDB (some private windows) they last as long as the page: kept = false.
export class Library {
  constructor(database) {
    this.database = database;
    this.memory = new Map();
  }

  get kept() {
    return this.database !== null;
  }

  static async open() {
    try {
      const request = indexedDB.open(NAME, 1);
      request.onupgradeneeded = () => request.result.createObjectStore(SHELF, { keyPath: "id" });
      const database = await asked(request);
      database.onversionchange = () => database.close(); // another tab has a newer page
      return new Library(database);
    } catch {
      return new Library(null);
    }
  }

  shelf(mode) {
    return this.database.transaction(SHELF, mode).objectStore(SHELF);
  }

  // All, the last changed first.
  async list() {
    const all = this.kept ? await asked(this.shelf("readonly").getAll()) : [...this.memory.values()];
    return all.sort((a, b) => b.updated - a.updated);
  }

  async get(id) {
    return (this.kept ? await asked(this.shelf("readonly").get(id)) : this.memory.get(id)) ?? null;
  }

  async put(conversation) {
    if (this.kept) await asked(this.shelf("readwrite").put(structuredClone(conversation)));
    else this.memory.set(conversation.id, conversation);
  }

  async remove(id) {
    if (this.kept) await asked(this.shelf("readwrite").delete(id));
    else this.memory.delete(id);
  }
}


export function newConversation(kind, system = "") {
  const now = Date.now();
  return {
    id: token(), kind, title: "", named: false, created: now, updated: now, system, model: null,
    nodes: {}, leaf: null, rounds: [],
  };
}

// The branch that shows, first message first.
export function branch(conversation, leaf = conversation.leaf) {
  const out = [];
  for (let node = conversation.nodes[leaf]; node; node = conversation.nodes[node.parent]) out.unshift(node);
  return out;
}

export function siblings(conversation, node) {
  return Object.values(conversation.nodes)
    .filter((one) => one.parent === node.parent && one.role === node.role)
    .sort((a, b) => a.created - b.created || a.number - b.number);
}

// Add a message below `parent` (null: the first one) and show its branch.
export function addNode(conversation, parent, fields) {
  const number = Object.keys(conversation.nodes).length;
  const node = { id: token(), parent, number, created: Date.now(), ...fields };
  conversation.nodes[node.id] = node;
  show(conversation, node);
  touch(conversation);
  return node;
}

// Make the branch that ends in `leaf` the one that shows; each message of it remembers how it went on.
function show(conversation, leaf) {
  conversation.leaf = leaf.id;
  for (const node of branch(conversation)) if (node.parent) conversation.nodes[node.parent].next = node.id;
}

// Show the branch through `node`, as it showed last.
export function choose(conversation, node) {
  let at = node;
  while (conversation.nodes[at.next]) at = conversation.nodes[at.next];
  show(conversation, at);
}

// Take `node` and everything below it out.
export function cut(conversation, node) {
  for (const one of Object.values(conversation.nodes)) if (one.parent === node.id) cut(conversation, one);
  delete conversation.nodes[node.id];
}

export function touch(conversation) {
  conversation.updated = Date.now();
  if (conversation.named) return;
  const first = conversation.kind === "compare" ? conversation.rounds[0]?.prompt : branch(conversation)[0]?.content;
  const words = (first ?? "").trim().replace(/\s+/g, " ");
  conversation.title = words.length > 60 ? `${words.slice(0, 57)}...` : words;
}

// What is sent to a model: the system message and the branch, without answers that failed.
export function messagesOf(conversation, leaf = conversation.leaf) {
  const said = branch(conversation, leaf).filter((node) => node.role === "user" || node.content !== "");
  const messages = said.map(({ role, content }) => ({ role, content }));
  return conversation.system ? [{ role: "system", content: conversation.system }, ...messages] : messages;
}
