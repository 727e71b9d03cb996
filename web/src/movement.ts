// How far a passage moved from its place in the search.

import { element } from "./dom";

/** A marker: up, down or unmoved. `from` and `to` are positions that start at 1. */
export function movement(from: number, to: number): HTMLElement {
  const moved = from - to;
  const [kind, sign] = moved > 0 ? ["up", "▲"] : moved < 0 ? ["down", "▼"] : ["same", "＝"];
  const places = Math.abs(moved) === 1 ? "place" : "places";
  const words = moved
    ? `${moved > 0 ? "up" : "down"} ${Math.abs(moved)} ${places} from ${from}`
    : `still at ${from}`;
  return element(
    "span",
    { class: `move ${kind}`, title: words },
    element("span", { "aria-hidden": "true" }, moved ? `${sign} ${Math.abs(moved)}` : "–"),
    element("span", { class: "hidden" }, words),
  );
}
