// The page of agreement: how far people who ranked the same answers agree, over all, by person and over time.

import { $, ApiError, el, show } from "./common/dom.js";
import { onLanguage, register, t } from "./common/i18n.js";
import { bar, signIn, signOut } from "./common/shell.js";
import { overTime, percent, when } from "./label/chart.js";
import * as server from "./label/server.js";
import * as words from "./label/words.js";

register(words);
const main = $("main");
let person = null;
let found = null;

const links = () => ({
  label: server.inBatch("/label"), report: server.inBatch("/label/report"), ...(found?.chat ? { chat: "/chat" } : {}),
});

const decimal = (value) => value === null || value === undefined ? t("report.unknown") : value.toFixed(2).replace("-", "−");

function interval(values, name, words) {
  const [low, high] = [values[`${name}_low`], values[`${name}_high`]];
  return low === null || low === undefined ? "" : `${words(low)} … ${words(high)}`;
}

function tile(name, title, hint, words) {
  const values = found.agreement;
  return el("section", { class: "card tile", dataset: { measure: name } },
    el("h2", { class: "label" }, title),
    el("p", { class: "value" }, words(values[name])),
    el("p", { class: "number small" }, interval(values, name, words)),
    el("p", { class: "muted small" }, hint));
}

function cell(value) {
  return el("td", { class: "number" }, value ?? t("report.unknown"));
}

function byPerson() {
  const agreed = new Map(found.agreement.per_annotator.map((line) => [line.number, line]));
  const rows = found.agreement.people.map((line) => {
    const own = agreed.get(line.number) ?? {};
    const name = line.you ? `${person.name} (${t("report.you")})` : `${t("report.person")} ${line.number ?? ""}`;
    const share = own.agreement ?? null;
    return el("tr", { class: line.you && "you" },
      el("td", {}, el("bdi", {}, name)),
      el("td", { class: "bar-cell" },
        share !== null && el("progress", { max: 1, value: share, "aria-hidden": "true" }),
        el("span", { class: "number small" }, percent(share), " ", el("span", { class: "muted" }, interval(own, "agreement", percent)))),
      cell(decimal(own.kendall_tau)), cell(line.judged), cell(line.skipped), cell(line.all_bad), cell(line.flags),
      cell(line.seconds === null ? null : line.seconds.toFixed(0)));
  });
  return el("section", { class: "card stack" }, el("h2", {}, t("report.by")),
    el("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": t("report.by") },
      el("table", { id: "people" },
        el("thead", {}, el("tr", {},
          el("th", { scope: "col" }, t("report.person")),
          el("th", { scope: "col" }, t("report.pairs")),
          el("th", { scope: "col", class: "number" }, "τ"),
          ["report.judged", "report.skipped", "allBad", "report.flags", "report.seconds"].map((key) =>
            el("th", { scope: "col", class: "number" }, t(key))))),
        el("tbody", {}, rows))));
}

function time() {
  const rows = found.agreement.over_time.filter((row) => row.agreement !== null);
  if (!rows.length) return null;
  return el("section", { class: "card stack" }, el("h2", {}, t("report.over")),
    el("p", { class: "muted small" }, t("report.over.hint")),
    el("div", { class: "table-scroll", tabindex: "0" }, overTime(rows)),
    el("details", {}, el("summary", { class: "small muted" }, t("report.table")),
      el("table", {}, el("thead", {}, el("tr", {},
        ["report.from", "report.to", "report.rankings", "report.pairs", "report.tau"].map((key) => el("th", { scope: "col" }, t(key))))),
      el("tbody", {}, rows.map((row) => el("tr", {},
        el("td", {}, when(row.start)), el("td", {}, when(row.end)), el("td", {}, row.rankings),
        el("td", {}, percent(row.agreement), " ", interval(row, "agreement", percent)), el("td", {}, decimal(row.kendall_tau))))))));
}

function chooser() {
  if (found.batches.length < 2) return null;
  const go = (event) => (location.search = new URLSearchParams({ batch: event.target.value }));
  return el("label", { class: "inline small" }, t("batch"), el("select", { onchange: go },
    found.batches.map((name) => el("option", { value: name, selected: name === found.batch }, name))));
}

function draw() {
  if (!found) return;
  document.title = `${t("report.title")} · tutelage`;
  const { agreement, progress } = found;
  const chip = (key, value) => el("span", { class: "chip" }, t(key), el("b", { class: "number" }, value));
  show(main,
    el("div", { class: "head" },
      el("h1", {}, t("report.title")), chooser(), el("span", { class: "push" }),
      el("button", { type: "button", onclick: load }, t("report.again"))),
    el("p", { class: "muted" }, t("report.intro")),
    el("div", { class: "counts" },
      chip("report.rankings", agreement.rankings), chip("report.people", agreement.people.length),
      chip("report.items", agreement.overlap_items), chip("report.compared", agreement.comparisons),
      el("span", { class: "chip" }, t("progress.batch", progress.done, progress.total))),
    agreement.comparisons
      ? el("div", { class: "tiles" },
        tile("agreement", t("report.pairs"), t("report.pairs.hint"), percent),
        tile("alpha_pairs", t("report.alpha"), t("report.alpha.hint"), decimal),
        tile("kendall_tau", t("report.tau"), t("report.tau.hint"), decimal),
        tile("agreement_majority", t("report.majority"), t("report.majority.hint"), percent))
      : el("p", { class: "note" }, t("report.none")),
    agreement.people.length > 0 && byPerson(),
    agreement.comparisons > 0 && time());
}

async function load() {
  found = await server.report();
  draw();
}

async function begin() {
  const drawBar = bar("report", links, () => person && el("button", {
    type: "button", class: "quiet small who", title: t("sign.out"), onclick: signOut,
  }, el("bdi", {}, person.name)));
  onLanguage(draw);
  person = await signIn(main);
  await load();
  drawBar();
}

begin().catch((error) => {
  if (!(error instanceof ApiError)) throw error;
  show(main, el("div", { class: "note error" }, el("p", { role: "alert" }, error.status ? error.message : t("offline"))));
});
