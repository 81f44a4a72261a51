// The answers on the page: those with a place in groups, best first, and those without one below.

import { announce, el, prose, show } from "../common/dom.js";
import { t } from "../common/i18n.js";
import { dragging } from "./drag.js";
import { choose, complete, insert, join, move, pick, rankOf, remove, tie, unplaced } from "./ranking.js";

const MOVE_MS = 170;

export class Board {
  /** `changed(ranking)` is called with every new ranking. */
  constructor(changed) {
    this.changed = changed;
    this.list = el("ol", { class: "ranking" });
    this.pool = el("div", { class: "pool" });
    this.headings = [el("h2", { class: "label" }), el("h2", { class: "label" })];
    this.root = el("div", { class: "board" },
      el("section", { class: "ranked" }, this.headings[0], this.list),
      el("section", { class: "unranked" }, this.headings[1], this.pool));
    this.cards = new Map();
  }

  /** Begin with an item's answers, in the order given. */
  open(answers, ranking) {
    this.cards = new Map(answers.map((answer, i) => [answer.id, this.#card(answer, i + 1)]));
    this.ranking = ranking;
    this.#draw();
  }

  /** Show another ranking; `words` is read out to those who do not see it. */
  set(ranking, words = this.#told(ranking)) {
    if (ranking === this.ranking) return;
    const was = document.activeElement;
    const focused = this.root.contains(was);
    const before = new Map([...this.cards.values()].map((card) => [card, card.getBoundingClientRect()]));
    const moved = ranking.groups !== this.ranking.groups;
    this.ranking = ranking;
    if (moved) {
      this.#draw();
      this.#glide(before);
      if (focused) this.#refocus(was);
    } else {
      this.#labels(); // nothing is put anew: a selection of text, or a press that has begun, goes on
    }
    if (words) announce(words);
    this.changed(ranking);
  }

  number(id) {
    return this.ranking.order.indexOf(id) + 1;
  }

  /** What keys do: the answer of this number is placed next, or chosen. */
  press(number) {
    const id = this.ranking.order[number - 1];
    if (id === undefined) return;
    this.set(pick(this.ranking, id));
    this.cards.get(id).focus({ preventScroll: true });
    this.#reveal(id);
  }

  /** Apply `how` (move, tie, remove ...) to the chosen answer. */
  apply(how, ...more) {
    const { chosen } = this.ranking;
    if (chosen === null) return;
    this.set(how(this.ranking, chosen, ...more));
    this.#reveal(chosen);
  }

  #reveal(id) {
    const box = this.cards.get(id).getBoundingClientRect();
    const bottom = innerHeight - 90; // the bar with the buttons
    if (box.top < 10) scrollBy({ top: box.top - 10 });
    else if (box.bottom > bottom && box.height < bottom) scrollBy({ top: box.bottom - bottom });
  }

  #told(ranking) {
    const id = ranking.chosen;
    if (id === null) return "";
    const rank = rankOf(ranking, id);
    return rank < 0 ? t("taken", this.number(id)) : t("placed", this.number(id), rank + 1, ranking.groups.length);
  }

  #refocus(was) {
    // a button that is gone or cannot be pressed any more leaves the focus to its card
    const card = this.cards.get(this.ranking.chosen);
    if (was.isConnected && !was.disabled && was.offsetParent !== null) was.focus({ preventScroll: true });
    else card?.focus({ preventScroll: true });
  }

  #glide(before) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    for (const [card, old] of before) {
      const now = card.getBoundingClientRect();
      const [x, y] = [old.left - now.left, old.top - now.top];
      if (!old.height || (!x && !y)) continue;
      card.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], { duration: MOVE_MS, easing: "ease-out" });
    }
  }

  #draw() {
    const { groups } = this.ranking;
    const whole = complete(this.ranking);
    const left = unplaced(this.ranking);
    const [ranked, pool] = this.headings;
    show(ranked, t("ranking"));
    show(pool, t("pool"));
    show(this.list, groups.map((group, i) => this.#group(group, i, whole)),
      !groups.length && el("li", { class: "hollow muted" }, t("ranking.empty")));
    show(this.pool, left.map((id) => this.cards.get(id)),
      !left.length && el("p", { class: "hollow muted" }, t("pool.drop")));
    this.pool.parentElement.classList.toggle("nothing", !left.length);
    this.#labels();
  }

  #labels() {
    for (const [id, card] of this.cards) this.#label(card, id);
  }

  #group(group, i, whole) {
    const last = whole && i > 0 && i === this.ranking.groups.length - 1;
    return el("li", { class: ["group", group.length > 1 && "tied"], dataset: { at: i } },
      el("div", { class: "rank" },
        el("span", { class: "place number" }, i + 1),
        i === 0 && el("span", { class: "end" }, t("best")),
        last && el("span", { class: "end" }, t("worst")),
        group.length > 1 && el("span", { class: "end" }, t("tied"))),
      el("div", { class: "same" }, group.map((id) => this.cards.get(id))));
  }

  #label(card, id) {
    const { groups, chosen } = this.ranking;
    const rank = rankOf(this.ranking, id);
    const number = this.number(id);
    const tied = rank >= 0 && groups[rank].length > 1;
    card.classList.toggle("chosen", id === chosen);
    card.classList.toggle("placed", rank >= 0);
    card.setAttribute("aria-label", t("answer.place", number, rank + 1));
    const words = {
      pick: t(rank < 0 ? "pick" : "choose", number), up: t("up"), down: t("down"), tie: t(tied ? "untie" : "tie"), out: t("out"),
    };
    const useless = { up: rank === 0 && !tied, down: rank === groups.length - 1 && !tied, tie: rank === 0 && !tied };
    for (const button of card.querySelectorAll("button[data-do]")) {
      const name = button.dataset.do;
      button.title = words[name];
      button.setAttribute("aria-label", name === "pick" ? words[name] : `${words[name]} (${t("answer", number)})`);
      button.disabled = Boolean(useless[name]);
      if (name === "tie") button.setAttribute("aria-pressed", String(tied));
    }
  }

  #card({ id, text }, number) {
    const act = (how, ...more) => () => this.set(how(choose(this.ranking, id), id, ...more));
    const button = (name, sign, onclick) =>
      el("button", { type: "button", class: "quiet icon", dataset: { do: name }, onclick }, sign);
    const handle = el("div", { class: "rail" },
      el("button", { type: "button", class: "pick number", dataset: { do: "pick" }, onclick: act(pick) }, number),
      el("span", { class: "grip", "aria-hidden": "true" }));
    const card = el("div", { class: "answer", tabindex: "-1", role: "group", dataset: { id } },
      handle,
      text.trim() ? prose(text, { class: "said" }) : el("p", { class: "said muted" }, t("answer.empty")),
      el("div", { class: "moves" },
        button("up", "↑", act(move, -1)), button("down", "↓", act(move, 1)),
        button("tie", "=", act(tie)), button("out", "✕", act(remove))));
    card.addEventListener("focus", () => this.set(choose(this.ranking, id), ""));
    dragging(handle, card, {
      target: (y) => this.#target(id, y),
      hint: (target) => this.#hint(target),
      drop: (target) => this.#drop(id, target),
    });
    return card;
  }

  // Where a card would go if it were let go at this height: {into: group}, {before: group}, {out: true}.
  #target(id, y) {
    const box = this.pool.parentElement.getBoundingClientRect();
    if (y > box.top && this.ranking.groups.length) return { out: true };
    const groups = [...this.list.querySelectorAll(".group")];
    for (const [i, group] of groups.entries()) {
      const { top, bottom, height } = group.getBoundingClientRect();
      if (y < top) return { before: i };
      if (y > bottom) continue;
      const own = this.ranking.groups[i].length === 1 && this.ranking.groups[i][0] === id;
      const part = (y - top) / height;
      if (own || part < 0.3) return { before: i };
      return part > 0.7 ? { before: i + 1 } : { into: i };
    }
    return { before: groups.length };
  }

  #hint(target) {
    const groups = [...this.list.querySelectorAll(".group")];
    for (const [i, group] of groups.entries()) {
      group.classList.toggle("drop-into", target?.into === i);
      group.classList.toggle("drop-before", target?.before === i);
      group.classList.toggle("drop-after", target?.before === groups.length && i === groups.length - 1);
    }
    this.list.classList.toggle("drop-first", !groups.length && target?.before === 0);
    this.pool.classList.toggle("drop-out", Boolean(target?.out));
  }

  #drop(id, target) {
    const ranking = choose(this.ranking, id);
    if (target.out) this.set(remove(ranking, id));
    else if (target.into !== undefined) this.set(join(ranking, id, target.into));
    else this.set(insert(ranking, id, target.before));
  }
}
