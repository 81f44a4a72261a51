// Agreement over time as a small chart: a line with its intervals, and a table of the same numbers for those who cannot
// see it.

import { svg } from "../common/dom.js";
import { language, t } from "../common/i18n.js";

const [WIDTH, HEIGHT] = [720, 220];
const [LEFT, RIGHT, TOP, BOTTOM] = [44, 16, 12, 30];

export const percent = (share) => share === null || share === undefined ? t("report.unknown") : `${(100 * share).toFixed(1)}%`;

export const when = (seconds) => new Date(seconds * 1000).toLocaleString(language() === "zh" ? "zh-CN" : "en-GB",
  { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

/** `rows`: {start, end, agreement, agreement_low, agreement_high}, those without an agreement left out. */
export function overTime(rows) {
  const shown = rows.filter((row) => row.agreement !== null);
  const low = Math.max(0, Math.floor(10 * Math.min(0.5, ...shown.map((row) => row.agreement_low ?? row.agreement))) / 10);
  // stretches hold equally many rankings, so they stand side by side, whatever time they took
  const x = (i) => LEFT + ((i + 0.5) * (WIDTH - LEFT - RIGHT)) / shown.length;
  const y = (share) => TOP + ((1 - share) / (1 - low)) * (HEIGHT - TOP - BOTTOM);
  const ticks = [];
  for (let share = low; share <= 1.001; share += low < 0.3 ? 0.2 : 0.1) ticks.push(share);
  const points = shown.map((row, i) => `${x(i)},${y(row.agreement)}`).join(" ");
  return svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": t("report.over") },
    ticks.map((share) => [
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(share), y2: y(share) }),
      svg("text", { x: LEFT - 8, y: y(share) + 4, "text-anchor": "end" }, `${Math.round(100 * share)}%`),
    ]),
    svg("line", { class: "chance", x1: LEFT, x2: WIDTH - RIGHT, y1: y(0.5), y2: y(0.5) }),
    shown.map((row, i) => row.agreement_low !== null && svg("line", {
      class: "whisker", x1: x(i), x2: x(i), y1: y(row.agreement_low), y2: y(row.agreement_high),
    })),
    shown.length > 1 && svg("polyline", { class: "line", points }),
    shown.map((row, i) => svg("circle", { class: "dot", cx: x(i), cy: y(row.agreement), r: 4.5 },
      svg("title", {}, `${when(row.start)}: ${percent(row.agreement)}`))),
    shown.map((row, i) => svg("text", { x: x(i), y: HEIGHT - 8, "text-anchor": "middle" }, when(row.start))));
}
