// The answer: a ranked list, with its figures.

import { element } from "./dom";
import { excerpt, spans } from "./excerpt";
import { movement } from "./movement";
import { count, counted, duration, short } from "./numbers";
import { type Passage, textOf } from "./passages";
import type { Answer, Problem, Ranked, Result } from "./service";

const STAGES = [
  ["queue", "Queue"],
  ["prefilter", "First stage"],
  ["tokenize", "Tokenize"],
  ["inference", "Inference"],
] as const;

const DEGRADED: Record<string, string> = {
  queue_full: "the queue was full",
  queue_timeout: "no slot became free in time",
  deadline_exceeded: "the deadline had passed",
  scoring_failed: "the model failed",
};

/** The list, best first. */
export function list(passages: Passage[], results: Result[]): HTMLOListElement {
  const width = barWidth(results);
  return element("ol", { class: "results" }, ...results.map((result, rank) => item(passages, result, rank + 1, width(result))));
}

/** What the answer says about itself: marks, timings, warnings. */
export function figures({ answer, roundTrip, warning }: Ranked): HTMLElement {
  const { meta } = answer;
  return element(
    "div",
    { class: "figures" },
    times(answer, roundTrip),
    marks(answer),
    meta.degraded
      ? element(
          "p",
          { class: "alert warn" },
          `The model did not score everything: ${DEGRADED[meta.degraded] ?? meta.degraded}. The rest is in order of shared words.`,
        )
      : null,
    warning ? element("p", { class: "alert warn" }, `The service says: ${warning}`) : null,
  );
}

/** The state before the first request. */
export function empty(): HTMLElement {
  const bars = [92, 74, 58, 33, 18].map((width) => {
    const bar = element("i");
    bar.style.width = `${width}%`;
    return bar;
  });
  return element(
    "div",
    { class: "card empty" },
    element("div", { class: "ghost", "aria-hidden": "true" }, ...bars),
    element("h2", {}, "The ranking appears here"),
    element("p", {}, "Choose one of the examples, or enter a question and passages of your own. The model reads each passage together with the question and gives it a score."),
  );
}

/** The state while the service works. */
export function loading(passages: number): HTMLElement {
  const rows = Array.from({ length: Math.min(passages, 6) }, () => element("i"));
  return element("div", { class: "card skeleton" }, element("p", { class: "hint" }, `Reading ${counted(passages, "passage")} …`), ...rows);
}

/** A failure in words. */
export function failure(problem: Pick<Problem, "message" | "advice">, action: HTMLElement | null = null): HTMLElement {
  return element(
    "div",
    { class: "alert bad", role: "alert" },
    element("p", {}, element("strong", {}, problem.message)),
    problem.advice ? element("p", {}, problem.advice) : null,
    action,
  );
}

function item(passages: Passage[], result: Result, rank: number, width: number): HTMLLIElement {
  const passage = passages[result.index] ?? "";
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
  (bar.firstElementChild as HTMLElement).style.width = `${width}%`;
  const id = result.id ?? (typeof passage === "string" ? undefined : passage.id);
  const aside = [
    id !== undefined ? element("span", { class: "tag" }, String(id)) : null,
    result.prefiltered ? element("span", { class: "tag", title: "The first stage left it out, so the model did not read it" }, "not read: first stage") : null,
    result.unscored && !result.prefiltered ? element("span", { class: "tag", title: "The model did not score it in time" }, "not scored") : null,
  ].filter((each) => each !== null);
  return element(
    "li",
    { class: result.unscored ? "result unscored" : "result", "data-index": result.index },
    element("span", { class: "rank", "aria-hidden": "true" }, String(rank)),
    element(
      "div",
      { class: "what" },
      result.spans?.length ? spans(textOf(passage), result.spans) : excerpt(textOf(passage), result.window),
      aside.length ? element("p", { class: "tags" }, ...aside) : null,
    ),
    element(
      "div",
      { class: "score" },
      element("span", { class: "number" }, element("span", { class: "hidden" }, "Score "), score(result.relevance_score)),
      bar,
      movement(result.index + 1, rank),
    ),
  );
}

function score(value: number): string {
  return Math.abs(value) < 0.001 && value ? value.toExponential(0) : value.toFixed(3);
}

/** Scores from 0 to 1 are shares of the bar. Logits go from the lowest to the highest of the answer. */
function barWidth(results: Result[]): (result: Result) => number {
  const scores = results.filter((result) => !result.unscored).map((result) => result.relevance_score);
  const low = Math.min(...scores);
  const high = Math.max(...scores);
  const isShare = low >= 0 && high <= 1;
  return (result) => {
    if (result.unscored) return 0;
    const share = isShare ? result.relevance_score : high > low ? (result.relevance_score - low) / (high - low) : 1;
    return Math.max(1, Math.round(share * 1000) / 10);
  };
}

function times(answer: Answer, roundTrip: number): HTMLElement {
  const timings = answer.meta.timings_ms;
  const parts = STAGES.filter(([name]) => name !== "prefilter" || timings.prefilter > 0);
  const sum = parts.reduce((total, [name]) => total + timings[name], 0);
  const bar = element("div", { class: "times", "aria-hidden": "true", hidden: sum < 0.01 });
  const legend = element("dl", { class: "legend" });
  for (const [name, label] of parts) {
    const part = element("i", { class: name });
    part.style.flexGrow = String(sum ? (timings[name] / sum) * 1000 : 0);
    bar.append(part);
    legend.append(element("div", { class: name }, element("dt", {}, label), element("dd", {}, duration(timings[name] / 1000))));
  }
  return element(
    "div",
    { class: "timing" },
    element(
      "p",
      { class: "total" },
      element("strong", {}, duration(timings.total / 1000)),
      ` in the service · ${duration(roundTrip / 1000)} as seen here · ${count(answer.usage.total_tokens)} tokens`,
    ),
    bar,
    legend,
  );
}

function marks(answer: Answer): HTMLElement | null {
  const { meta } = answer;
  const shown: [number, string, string][] = [
    [meta.cached, "cached", "Their scores were in the cache"],
    [meta.prefiltered, "left out by the first stage", "The model did not read them"],
    [meta.truncated, "truncated", "They were longer than the model's window"],
    [meta.repaired ?? 0, "repaired", "Broken characters were replaced"],
  ];
  const made = shown
    .filter(([number]) => number > 0)
    .map(([number, words, why]) => element("li", { class: "tag", title: why }, `${count(number)} ${words}`));
  if (meta.degraded) made.push(element("li", { class: "tag bad" }, "degraded"));
  if (meta.fusion && meta.fusion !== "off") made.push(element("li", { class: "tag" }, `fusion: ${meta.fusion}`));
  return made.length ? element("ul", { class: "tags", "aria-label": "Marks" }, ...made) : null;
}

/** One line for a screen reader. */
export function spoken(passages: Passage[], { answer }: Ranked): string {
  const best = answer.results[0];
  const first = best ? ` First: ${textOf(passages[best.index] ?? "").slice(0, 120)}, score ${short(best.relevance_score)}.` : "";
  return `${counted(answer.results.length, "passage")} ranked.${first}`;
}
