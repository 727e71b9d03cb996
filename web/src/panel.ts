// A panel of the dashboard: a title, figures in large type, and a curve for each figure.

import { Chart } from "./charts";
import { element } from "./dom";
import type { Figures } from "./figures";
import type { Point } from "./history";

export interface Curve {
  label: string;
  figure: keyof Figures;
  /** The format of a figure that has no curve, because its unit differs. */
  only?: (value: number | null) => string;
}

export interface Plan {
  title: string;
  /** What the figures are, in a few words. */
  about: string;
  curves: Curve[];
  format: (value: number | null) => string;
  /** The top of the axis if it is fixed. */
  top?: number;
  isBinary?: boolean;
  isWhole?: boolean;
  /** More below the figures. */
  extra?: HTMLElement;
}

/** A small square in the colour of a curve. */
export function swatch(index: number): HTMLElement {
  return element("i", { class: `swatch c${index + 1}`, "aria-hidden": "true" });
}

export class Panel {
  readonly box: HTMLElement;
  private readonly drawn: Curve[];
  private readonly values: HTMLElement[];
  private readonly chart: Chart;
  private readonly canvas: HTMLElement;

  constructor(private readonly plan: Plan) {
    this.drawn = plan.curves.filter(({ only }) => !only);
    const swatches = this.drawn.map((_, index) => swatch(index));
    this.values = plan.curves.map(() => element("dd", {}, plan.format(null)));
    const figures = plan.curves.map((curve, index) =>
      element("div", {}, element("dt", {}, swatches[this.drawn.indexOf(curve)] ?? null, curve.label), this.values[index]!),
    );
    this.canvas = element("div", { class: "chart", role: "img", "aria-label": `${plan.title}: no figures yet` });
    this.box = element(
      "section",
      { class: "card panel", "aria-label": plan.title },
      element("h2", {}, plan.title, element("small", {}, plan.about)),
      element("dl", { class: "big" }, ...figures),
      plan.extra ?? null,
      this.canvas,
    );
    const lines = this.drawn.map(({ label }, index) => ({ label, swatch: swatches[index]! }));
    this.chart = new Chart(this.canvas, lines, plan);
  }

  show(points: Point[]): void {
    const latest = points.at(-1)?.figures;
    const texts = this.plan.curves.map(({ figure, only }) => (only ?? this.plan.format)(latest?.[figure] ?? null));
    texts.forEach((text, index) => (this.values[index]!.textContent = text));
    const spoken = this.plan.curves.map(({ label }, index) => `${label} ${texts[index]}`).join(", ");
    this.canvas.setAttribute("aria-label", `${this.plan.title}, last five minutes. Now: ${spoken}`);
    this.chart.show(
      points.map(({ time }) => time),
      this.drawn.map(({ figure }) => points.map(({ figures }) => figures[figure])),
    );
  }

  redraw(): void {
    this.chart.draw();
  }
}
