// The ranking page: fetches an item, lets a person put its answers into order, and hands the judgement in.

import { $, ApiError, announce, el, prose, say, show, token } from "./common/dom.js";
import { onLanguage, register, t } from "./common/i18n.js";
import { bar, signIn, signOut } from "./common/shell.js";
import { render } from "./chat/markdown.js";
import { Board } from "./label/board.js";
import { Clock, clockWords, draftOf, dropDraft, keepDraft } from "./label/keeping.js";
import { help, listen } from "./label/keys.js";
import { complete, filled, move, remove, start, tie, unplaced } from "./label/ranking.js";
import { ideal, remarks } from "./label/remarks.js";
import * as server from "./label/server.js";
import * as words from "./label/words.js";

register(words);
const WAIT_MS = 2500; // between looks for new answers while they are being sampled
const REPORT = server.inBatch("/label/report");

const main = $("main");
const foot = el("footer", { class: "submitting" });
const clock = new Clock();
const board = new Board((ranking) => {
  work.ranking = ranking;
  changed();
});
const status = el("p", { class: "number", id: "progress" });
const meter = el("progress", { "aria-labelledby": "progress" });
const ticking = el("span", { class: "muted small number", id: "clock", role: "timer", "aria-live": "off" });
const problem = el("p", { class: "error-text", role: "alert" });
const aside = { guide: el("div", { class: "guide" }), extra: el("div", { class: "extra" }) };

let person = null;
let about = null; // the server's state: batch, batches, progress, sampling
let work = null; // the item being judged: {item, mine, ranking, allBad, flags, comment, ideal, token, back}
let earlier = []; // items judged before, newest first; work.back is a place in it, -1 for a new item
let busy = false;
let waiting = 0;

const links = () => ({ label: server.inBatch("/label"), report: REPORT, ...(about?.chat ? { chat: "/chat" } : {}) });

/** What a person said is kept in the browser until it is handed in. */
function changed() {
  const { ranking, allBad, flags, comment, ideal: own } = work;
  const draft = { groups: ranking.groups, allBad, flags, comment, ideal: own, seconds: clock.seconds };
  keepDraft(person.id, work.item.id, draft);
  work.token = null; // another judgement, another submission
  show(problem);
  drawFoot();
}

function open(item, back = -1) {
  const { mine } = item;
  const kept = draftOf(person.id, item.id) ?? {
    groups: mine?.groups ?? [], allBad: mine?.kind === "all_bad", flags: mine?.flags ?? [], comment: mine?.comment ?? "", seconds: 0,
  };
  const order = item.answers.map((answer) => answer.id);
  work = {
    item, mine, back, token: null, allBad: kept.allBad, flags: kept.flags, comment: kept.comment, ideal: kept.ideal ?? null,
    ranking: start(order, kept.groups),
  };
  clock.restart(kept.seconds);
  tick();
  draw();
  scrollTo({ top: 0 });
  $("#prompt").focus({ preventScroll: true });
}

async function openNext() {
  clearTimeout(waiting);
  const found = await server.next();
  Object.assign(about, { progress: found.progress, sampling: found.sampling });
  if (found.item) return open(found.item);
  work = null;
  draw();
  if (found.sampling && !found.sampling.ended) waiting = setTimeout(() => guarded(openNext), WAIT_MS);
}

async function openEarlier(step) {
  const at = (work?.back ?? -1) + step;
  if (at < 0) return openNext();
  if (at === 0 || !earlier.length) earlier = (await server.history()).judgements.map((judgement) => judgement.item);
  if (at < earlier.length) open(await server.judged(earlier[at]), at);
}

function submit() {
  if (!work || busy) return;
  board.set(filled(work.ranking));
  if (ready()) return guarded(() => handIn(work.allBad ? "all_bad" : "ranking"));
  show(problem, t("left", unplaced(work.ranking).length), " ", work.allBad && t("left.bad"));
}

async function handIn(kind) {
  const { item, ranking, flags, comment, mine } = work;
  const skipping = kind === "skip";
  work.token ??= token();
  await server.record({
    item: item.id, person: person.id, token: work.token, seconds: Math.round(clock.seconds * 10) / 10,
    kind, groups: skipping ? [] : ranking.groups, flags, comment,
  });
  dropDraft(person.id, item.id);
  say(t(mine ? "changed" : skipping ? "skipped" : "saved"), 2);
  await openNext();
}

function toggleBad() {
  if (!work) return;
  work.allBad = !work.allBad;
  changed();
  announce(t(work.allBad ? "allBad.on" : "allBad.off"));
}

/** Run an action; what the server says against it is shown, and nothing is lost. */
async function guarded(action) {
  if (busy) return;
  busy = true;
  show(problem);
  drawFoot();
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) return location.reload();
    show(problem, error.status ? t("failed", `${error.message}. `) : t("offline"));
  } finally {
    busy = false;
    drawFoot();
  }
}

const act = {
  submit,
  skip: () => work && guarded(() => handIn("skip")),
  back: () => guarded(() => openEarlier(1)),
  forward: () => guarded(() => openEarlier(-work.back - 1)),
};

function drawFoot() {
  foot.hidden = !work && !earlier.length && !about?.progress.mine;
  const button = (name, sign, props, words) => el("button", { type: "button", dataset: { act: name }, disabled: busy, ...props },
    words, sign && el("kbd", {}, sign));
  const had = document.activeElement?.dataset?.act;
  show(foot,
    el("div", { class: "inner" },
      problem,
      el("div", { class: "actions" },
        button("back", "U", { class: "quiet", onclick: act.back, disabled: busy || !canGoBack() }, t("back")),
        work?.back >= 0 && button("forward", "", { class: "quiet", onclick: act.forward }, t("forward")),
        el("span", { class: "push" }),
        work && button("skip", "S", { class: "quiet", onclick: act.skip }, t("skip")),
        work && button("bad", "B", { class: "danger", "aria-pressed": String(work.allBad), onclick: toggleBad }, t("allBad")),
        work && button("submit", "Enter", {
          class: ["primary", !ready() && "unready"], onclick: act.submit,
        }, t(work.mine ? "submit.change" : "submit")))));
  if (had) $(`[data-act="${had}"]`, foot)?.focus({ preventScroll: true });
}

const canGoBack = () => work && work.back >= 0 ? work.back + 1 < earlier.length : Boolean(about?.progress.mine);
const ready = () => complete(filled(work.ranking)) || (work.allBad && !work.ranking.groups.length);

function tick() {
  show(ticking, work ? clockWords(clock.seconds) : "");
  ticking.title = t("time");
}

function drawStatus() {
  const { mine, left_for_me: left, done, total } = about.progress;
  show(status, t("progress", mine, left));
  status.title = t("progress.batch", done, total);
  meter.max = Math.max(1, mine + left);
  meter.value = mine;
}

function promptCard() {
  const [only] = work.item.prompt;
  const turns = work.item.prompt.length === 1 && only.role === "user"
    ? prose(only.content, { class: "turn" })
    : work.item.prompt.map(({ role, content }) =>
      el("div", { class: ["turn", `from-${role}`] }, el("span", { class: "label" }, t(`role.${role}`)), prose(content)));
  return el("article", { class: "card prompt", id: "prompt", tabindex: "-1", "aria-labelledby": "prompt-label" },
    el("h1", { class: "label", id: "prompt-label" }, t("prompt")), turns);
}

function nothingLeft() {
  const sampling = about.sampling && !about.sampling.ended;
  return el("section", { class: "card stack nothing-left" },
    el("h1", {}, t("none.title")),
    el("p", {}, t(sampling ? "none.wait" : "none.text")),
    el("div", { class: "actions" },
      el("a", { class: "button primary", href: REPORT }, t("none.report")),
      about.progress.mine > 0 && el("button", { type: "button", onclick: act.back }, t("none.change"))));
}

function notes() {
  const { sampling } = about;
  return [
    work?.mine && el("p", { class: "note small" }, t("changing"), work.mine.kind === "skip" && ` ${t("changing.was")}`),
    sampling && !sampling.ended && el("p", { class: "muted small sampling" }, t("sampling", sampling.done, sampling.total)),
    sampling?.error && el("p", { class: "note warn small" }, t("sampling.failed", sampling.error)),
  ];
}

function batches() {
  if (about.batches.length < 2) return null;
  const go = (event) => (location.search = new URLSearchParams({ batch: event.target.value }));
  return el("label", { class: "inline small" }, t("batch"), el("select", { onchange: go, id: "batch" },
    about.batches.map((name) => el("option", { value: name, selected: name === about.batch.name }, name))));
}

function guide() {
  const body = el("div", { class: "markdown small" });
  render(body, about.batch.guidelines || t("guidelines.none"));
  const wide = matchMedia("(min-width: 900px)").matches;
  return el("details", { class: "card", id: "guidelines", open: wide }, el("summary", {}, el("h2", {}, t("guidelines"))), body);
}

function draw() {
  document.title = `${t("title")} · tutelage`;
  drawStatus();
  if (work) board.open(work.item.answers, work.ranking);
  show(aside.extra, work && ideal(work, changed));
  show(main,
    el("div", { class: "status" },
      status, meter, ticking, batches(),
      el("button", { type: "button", class: "quiet", onclick: help, id: "help" }, t("help"), el("kbd", {}, "?"))),
    aside.guide,
    el("div", { class: "task stack" }, notes(),
      work ? [promptCard(), board.root, remarks(work, changed)] : nothingLeft()),
    aside.extra);
  drawFoot();
}

function redraw() {
  if (!about) return;
  show(aside.guide, guide());
  draw();
}

function keyboard() {
  const inWork = (action) => () => work && action();
  listen({
    pick: (number) => work && board.press(number),
    move: (step) => work && board.apply(move, step),
    tie: inWork(() => board.apply(tie)),
    out: inWork(() => board.apply(remove)),
    submit: act.submit, skip: act.skip, back: act.back, bad: toggleBad,
    comment: inWork(() => $("#comment").focus()),
    flags: inWork(() => $("#flags button").focus()),
    ideal: inWork(() => {
      $(".ideal").open = true;
      $("#ideal").focus();
    }),
    guidelines: () => {
      const box = $("#guidelines");
      box.open = !box.open;
      if (box.open) box.scrollIntoView({ block: "nearest" });
    },
  });
}

async function begin() {
  const drawBar = bar("label", links, () => person && el("button", {
    type: "button", class: "quiet small who", title: t("sign.out"), onclick: signOut,
  }, el("bdi", {}, person.name)));
  onLanguage(redraw);
  person = await signIn(main);
  about = await server.state();
  drawBar();
  document.body.append(foot);
  show(aside.guide, guide());
  keyboard();
  setInterval(tick, 1000);
  await openNext();
}

begin().catch((error) => {
  if (!(error instanceof ApiError)) throw error;
  show(main, el("div", { class: "note error stack" }, el("p", { role: "alert" }, error.status ? error.message : t("offline")),
    el("div", { class: "actions" }, el("button", { onclick: () => location.reload() }, t("retry")))));
});
