// What is open and what is running: the conversation that shows, answers on their way, and what is saved when.

import { judge, newAnswer, run } from "./answers.js";
import { addRound, ballotOf, messagesOfRound, newRound, runRound } from "./compare.js";
import {
  addNode, branch, choose, cut, Library, messagesOf, newConversation, siblings, touch,
} from "./conversations.js";
import { demonstrate, keepPrompt, models, state, vote } from "./server.js";
import { apiKey, load, sampled, save } from "./settings.js";

const SAVE_EVERY = 1000; // milliseconds, while an answer grows

export class Session {
  // draw(what): "all", "list" or "answer"
  constructor(draw) {
    this.draw = draw;
    this.settings = load();
    this.live = new Map(); // id -> conversation whose answers are on their way
    this.running = new Map(); // id -> AbortController
    this.saved = new Map(); // id -> when
    this.models = [];
    this.server = { models: {}, rewards: [], store: false, person: null };
    this.locked = false;
  }

  async begin() {
    this.library = await Library.open();
    const wanted = location.hash.slice(1);
    const found = wanted ? await this.library.get(wanted) : null;
    this.conversation = found ? mended(found) : this.blank("chat");
    window.addEventListener("pagehide", () => this.live.forEach((one) => this.library.put(one)));
    await this.look();
  }

  // Ask the server what it serves. Where it wants a key first, `locked` says so.
  async look() {
    try {
      [this.models, this.server] = await Promise.all([models(), state()]);
      this.locked = false;
    } catch (problem) {
      if (problem.status !== 401) throw problem;
      this.locked = true;
    }
    if (!this.models.includes(this.settings.model)) this.settings.model = this.best();
    this.settings.compared = this.settings.compared.filter((id) => this.models.includes(id));
    if (this.settings.compared.length < 2) this.settings.compared = this.models.slice(-4);
  }

  // The model that talks best: the last stage of a run, else the first one that talks at all.
  best() {
    const talking = this.models.filter((id) => this.info(id).talks);
    return talking.find((id) => /rlhf|ppo/.test(id)) ?? talking[0] ?? this.models[0] ?? null;
  }

  info = (id) => this.server.models[id] ?? { talks: true, context: null };

  blank(kind) {
    return newConversation(kind, this.conversation?.kind === kind ? this.conversation.system : "");
  }

  keepSettings() {
    save(this.settings);
  }

  get busy() {
    return this.running.has(this.conversation.id);
  }

  stop() {
    this.running.get(this.conversation.id)?.abort();
  }

  async open(id) {
    const found = this.live.get(id) ?? (await this.library.get(id));
    if (found) this.conversation = this.live.has(id) ? found : mended(found);
    this.show();
  }

  show() {
    history.replaceState(null, "", `#${this.isEmpty(this.conversation) ? "" : this.conversation.id}`);
    this.draw("all");
  }

  isEmpty(conversation) {
    return conversation.leaf === null && !conversation.rounds.length;
  }

  start(kind) {
    this.conversation = this.blank(kind);
    this.show();
  }

  async keep(conversation = this.conversation) {
    if (this.isEmpty(conversation)) return;
    this.saved.set(conversation.id, Date.now());
    await this.library.put(conversation);
  }

  async grown(conversation) {
    if (conversation === this.conversation) this.draw("answer");
    if (Date.now() - (this.saved.get(conversation.id) ?? 0) > SAVE_EVERY) await this.keep(conversation);
  }

  // Run `work(signal)` as the conversation's one task.
  async task(conversation, work) {
    const controller = new AbortController();
    this.running.set(conversation.id, controller);
    this.live.set(conversation.id, conversation);
    this.show();
    try {
      await work(controller.signal);
    } finally {
      this.running.delete(conversation.id);
      this.live.delete(conversation.id);
      await this.keep(conversation);
      this.draw(conversation === this.conversation ? "all" : "list");
    }
  }

  // Say `text` below `parent` (null: at the beginning) and have it answered.
  async say(text, parent = this.conversation.leaf) {
    const asked = addNode(this.conversation, parent, { role: "user", content: text });
    this.offer(messagesOf(this.conversation));
    await this.reply(asked);
  }

  async reply(asked) {
    const conversation = this.conversation;
    const model = this.settings.model;
    const messages = messagesOf(conversation, asked.id);
    const node = addNode(conversation, asked.id, newAnswer(model, sampled(this.settings)));
    conversation.model = model;
    await this.task(conversation, async (signal) => {
      const changed = () => this.grown(conversation);
      await run(node, { messages, info: this.info(model), signal, key: apiKey(), changed });
      if (this.server.rewards.length && this.info(model).talks) await judge(messages, [node]);
    });
  }

  // Answer again: a failed answer is replaced, any other keeps its place as a version.
  async again(node) {
    const asked = this.conversation.nodes[node.parent];
    if (node.state === "failed") cut(this.conversation, node);
    await this.reply(asked);
  }

  choose(node, by) {
    const all = siblings(this.conversation, node);
    choose(this.conversation, all[all.indexOf(node) + by]);
    this.keep();
    this.draw("all");
  }

  place(node) {
    const all = siblings(this.conversation, node);
    return { index: all.indexOf(node), count: all.length };
  }

  shown() {
    return branch(this.conversation);
  }

  // Have a prompt kept, where the person allows it. Nothing is sent otherwise.
  async offer(messages) {
    if (!this.settings.consent || !this.server.store || !this.server.person) return;
    await keepPrompt(messages).catch(() => null);
  }

  // The ideal answer in place of `node`: stored as a demonstration, and what the conversation goes on from.
  async ideal(node, text) {
    const conversation = this.conversation;
    const messages = messagesOf(conversation, node.parent);
    await demonstrate(messages, text, { model: node.model, params: node.settings }, node.content);
    const fields = { ...newAnswer(node.model, node.settings), content: text, state: "done", ideal: true };
    addNode(conversation, node.parent, fields);
    await this.keep();
    this.draw("all");
  }

  async compare(prompt) {
    const conversation = this.conversation;
    const chosen = { ...sampled(this.settings), blind: this.settings.blind };
    const round = newRound(prompt, this.settings.compared, chosen, conversation.system);
    addRound(conversation, round);
    this.offer(messagesOfRound(round));
    await this.task(conversation, (signal) => {
      const changed = () => this.grown(conversation);
      const judged = this.server.rewards.length > 0;
      return runRound(round, { infoOf: this.info, signal, key: apiKey(), changed, judged });
    });
  }

  async castVote(round, choice) {
    if (this.server.store) await vote(ballotOf(round, choice));
    round.vote = { ...choice, stored: this.server.store };
    await this.keep();
    this.draw("all");
  }

  async rename(id, title) {
    const found = id === this.conversation.id ? this.conversation : await this.library.get(id);
    if (title && title !== found.title) Object.assign(found, { title, named: true });
    await this.library.put(found);
    this.draw("list");
  }

  // Take a conversation out of the list; gives the function that brings it back.
  async remove(id) {
    this.running.get(id)?.abort();
    const gone = this.live.get(id) ?? (await this.library.get(id));
    await this.library.remove(id);
    if (id === this.conversation.id) this.start(gone.kind);
    else this.draw("list");
    return { title: gone.title, back: () => this.take(gone) };
  }

  async take(conversation) {
    touch(conversation);
    await this.library.put(conversation);
    await this.open(conversation.id);
  }
}

// A page that was closed while an answer grew left it as it was.
function mended(conversation) {
  const rounds = conversation.rounds.flatMap((round) => round.answers);
  for (const node of [...Object.values(conversation.nodes), ...rounds]) {
    if (node.state === "running") node.state = "stopped";
  }
  return conversation;
}
