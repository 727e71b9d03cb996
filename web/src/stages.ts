// The panel with the time of each stage: p50 and p95 in a table, p95 as curves.

import { Chart } from "./charts";
import { element } from "./dom";
import type { Figures, Stage } from "./figures";
import type { Point } from "./history";
import { duration } from "./numbers";
import { swatch } from "./panel";

const NAMES: [Stage, string][] = [
  ["queue", "Queue"],
  ["tokenize", "Tokenize"],
  ["inference", "Inference, one batch"],
  ["prefilter", "First stage"],
];

export class Stages {
  readonly box: HTMLElement;
  private readonly rows: { box: HTMLElement; p50: HTMLElement; p95: HTMLElement }[];
  private readonly chart: Chart;

  constructor() {
    const swatches = NAMES.map((_, index) => swatch(index));
    this.rows = NAMES.map(([, name], index) => {
      const [p50, p95] = [element("td"), element("td")];
      return { p50, p95, box: element("tr", {}, element("th", { scope: "row" }, swatches[index]!, name), p50, p95) };
    });
    const head = element("tr", {}, ...["Stage", "p50", "p95"].map((name) => element("th", { scope: "col" }, name)));
    const canvas = element("div", { class: "chart", role: "img", "aria-label": "p95 of each stage, last five minutes" });
    this.box = element(
      "section",
      { class: "card panel", "aria-label": "Stages" },
      element("h2", {}, "Stages", element("small", {}, "time of each; curves of p95")),
      element("table", { class: "figures-table" }, element("thead", {}, head), element("tbody", {}, ...this.rows.map(({ box }) => box))),
      canvas,
    );
    const lines = NAMES.map(([, label], index) => ({ label, swatch: swatches[index]! }));
    this.chart = new Chart(canvas, lines, { format: duration });
  }

  show(points: Point[]): void {
    const now = points.at(-1)?.figures;
    const values = NAMES.map(([stage]) => points.map(({ figures }) => figures[`${stage}95`]));
    NAMES.forEach(([stage], index) => {
      const row = this.rows[index]!;
      row.p50.textContent = duration(figure(now, `${stage}50`));
      row.p95.textContent = duration(figure(now, `${stage}95`));
      // Few services use the first stage.
      row.box.hidden = stage === "prefilter" && values[index]!.every((value) => value === null);
    });
    this.chart.show(points.map(({ time }) => time), values);
  }

  redraw(): void {
    this.chart.draw();
  }
}

function figure(figures: Figures | undefined, name: keyof Figures): number | null {
  return figures?.[name] ?? null;
}
