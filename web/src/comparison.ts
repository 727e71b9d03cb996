// Two rankings of the same request, side by side, with lines between the places of each passage.

import { element, shape } from "./dom";
import { counted, duration } from "./numbers";
import { type Passage, textOf } from "./passages";
import { failure } from "./results";
import type { Problem, Ranked, Result } from "./service";

export interface Side {
  name: string;
  outcome: Ranked | Problem;
}

const GUTTER = 56;
const ROW = 64;

/** Both rankings. If one service did not answer, its reason is in its place. */
export function comparison(passages: Passage[], left: Side, right: Side): HTMLElement {
  const ranked = [left, right].map(({ outcome }) => ("answer" in outcome ? outcome.answer.results : null));
  const [mine, other] = ranked;
  const box = element("div", { class: "versus" });
  box.append(
    column(passages, left, mine ?? null, other ?? null),
    mine && other ? lines(mine, other) : element("div", { class: "gutter" }),
    column(passages, right, other ?? null, mine ?? null),
  );
  return element("div", { class: "card comparison" }, mine && other ? verdict(mine, other) : null, box);
}

/** What a person wants to know first. */
export function verdict(mine: Result[], other: Result[]): HTMLElement {
  const places = new Map(other.map((result, rank) => [result.index, rank]));
  const moves = mine.map((result, rank) => {
    const place = places.get(result.index);
    return place === undefined ? null : Math.abs(place - rank);
  });
  const same = moves.filter((move) => move === 0).length;
  const largest = Math.max(0, ...moves.map((move) => move ?? 0));
  const isSameFirst = mine[0]?.index === other[0]?.index;
  const text =
    same === mine.length && mine.length === other.length
      ? "Both services agree on every place."
      : `${isSameFirst ? "The same passage is first." : "Another passage is first."} ${same} of ${counted(mine.length, "passage")} in the same place; the largest move is ${counted(largest, "place")}.`;
  return element("p", { class: "verdict" }, text);
}

function column(passages: Passage[], side: Side, own: Result[] | null, theirs: Result[] | null): HTMLElement {
  const { outcome } = side;
  const head = element("div", { class: "head" }, element("h2", {}, side.name));
  if (!("answer" in outcome) || !own) {
    return element("section", { class: "column", "aria-label": side.name }, head, failure(outcome as Problem));
  }
  const { meta, model } = outcome.answer;
  head.append(element("p", { class: "hint" }, `${model} · ${duration(meta.timings_ms.total / 1000)}`));
  const rows = own.map((result, rank) => {
    const there = theirs?.findIndex((each) => each.index === result.index) ?? -1;
    const change = theirs ? describe(rank, there) : "";
    return element(
      "li",
      { "data-index": result.index, title: textOf(passages[result.index] ?? "").slice(0, 600) },
      element("span", { class: "rank", "aria-hidden": "true" }, String(rank + 1)),
      element("span", { class: "line" }, textOf(passages[result.index] ?? "")),
      element("span", { class: "number" }, result.relevance_score.toFixed(3)),
      element("span", { class: "hidden" }, change),
    );
  });
  return element("section", { class: "column", "aria-label": side.name }, head, element("ol", {}, ...rows));
}

function describe(rank: number, there: number): string {
  if (there < 0) return "missing in the other ranking";
  return there === rank ? "the same place in the other ranking" : `place ${there + 1} in the other ranking`;
}

/** Lines from each place on the left to the place of the same passage on the right. */
function lines(mine: Result[], other: Result[]): HTMLElement {
  const height = Math.max(mine.length, other.length) * ROW;
  const middle = (rank: number): number => rank * ROW + ROW / 2;
  const drawn = mine.flatMap((result, rank) => {
    const there = other.findIndex((each) => each.index === result.index);
    if (there < 0) return [];
    const kind = there === rank ? "same" : there < rank ? "up" : "down";
    const [from, to] = [middle(rank), middle(there)];
    return [
      shape("path", {
        class: kind,
        d: `M2 ${from} C ${GUTTER / 2} ${from}, ${GUTTER / 2} ${to}, ${GUTTER - 2} ${to}`,
      }),
    ];
  });
  const drawing = shape(
    "svg",
    { viewBox: `0 0 ${GUTTER} ${height}`, width: GUTTER, height, "aria-hidden": "true" },
    ...drawn,
  );
  return element("div", { class: "gutter" }, drawing as unknown as HTMLElement);
}
