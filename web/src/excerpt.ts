// The text of a result: the best window of a long document is marked, and what is far from it is hidden.

import { element } from "./dom";
import { count, short } from "./numbers";
import type { Result, Span } from "./service";

const AROUND = 160;
const SHORT = 420;

/** The text with its window marked. Offsets are code points, as the service counts them. */
export function excerpt(text: string, window: Span | undefined): HTMLElement {
  const chars = Array.from(text);
  const isPart = window !== undefined && (window.start > 0 || window.end < chars.length);
  if (!isPart && chars.length <= SHORT) return element("p", { class: "text" }, text);
  const box = element("div", { class: "text long" });
  const shown = isPart ? [marked(chars, window, false)] : [element("p", {}, chars.slice(0, SHORT).join("").replace(/\s\S*$/, " …"))];
  const whole = isPart ? marked(chars, window, true) : element("p", {}, text);
  whole.hidden = true;
  const toggle = element("button", { type: "button", class: "link", "aria-expanded": "false" }, "Show all");
  toggle.addEventListener("click", () => {
    const opened = whole.hidden;
    whole.hidden = !opened;
    shown.forEach((part) => (part.hidden = opened));
    toggle.textContent = opened ? "Show less" : "Show all";
    toggle.setAttribute("aria-expanded", String(opened));
  });
  const about = isPart
    ? `Best window: characters ${count(window.start + 1)} to ${count(window.end)} of ${count(chars.length)}`
    : `${count(chars.length)} characters`;
  const isAllShown = isPart && window.start <= AROUND && window.end + AROUND >= chars.length;
  box.append(...shown, element("p", { class: "about" }, about, ...(isAllShown ? [] : [" · ", toggle])));
  if (!isAllShown) box.insertBefore(whole, box.lastChild);
  return box;
}

/** The text with its best passages marked; each mark shows its score. */
export function spans(text: string, found: NonNullable<Result["spans"]>): HTMLElement {
  const chars = Array.from(text);
  const parts: (string | HTMLElement)[] = [];
  let place = 0;
  for (const { start, end, score } of [...found].sort((one, other) => one.start - other.start)) {
    parts.push(chars.slice(place, start).join(""));
    parts.push(element("mark", { title: `Score ${short(score)}` }, chars.slice(start, end).join("")));
    place = end;
  }
  const scores = found.map(({ score }) => short(score)).join(", ");
  return element(
    "div",
    { class: "text" },
    element("p", {}, ...parts, chars.slice(place).join("")),
    element("p", { class: "about" }, `Best passages, scores: ${scores}`),
  );
}

function marked(chars: string[], { start, end }: Span, isWhole: boolean): HTMLElement {
  const before = chars.slice(isWhole ? 0 : Math.max(0, start - AROUND), start).join("");
  const after = chars.slice(end, isWhole ? chars.length : end + AROUND).join("");
  const isCutBefore = !isWhole && start > AROUND;
  const isCutAfter = !isWhole && end + AROUND < chars.length;
  return element(
    "p",
    {},
    isCutBefore ? before.replace(/^\S*\s/, "… ") : before,
    element("mark", {}, chars.slice(start, end).join("")),
    isCutAfter ? after.replace(/\s\S*$/, " …") : after,
  );
}
