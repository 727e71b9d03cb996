// Curves, drawn by uPlot. scripts/ui copies it to vendor/; without it there are figures only.

import { byId, element } from "./dom";
import { SECONDS } from "./history";

type Values = (number | null)[];

/** The part of uPlot that is used here. */
interface Plot {
  setData(data: [number[], ...Values[]]): void;
  setSize(size: { width: number; height: number }): void;
  destroy(): void;
}
type PlotClass = new (options: object, data: [number[], ...Values[]], target: HTMLElement) => Plot;

export interface Line {
  /** The element with the line's colour. */
  swatch: HTMLElement;
  label: string;
}

let uPlot: PlotClass | null = null;

/** Load uPlot, once. Resolves to whether it is there. */
export async function loadCharts(): Promise<boolean> {
  if (uPlot) return true;
  try {
    const address = new URL("./vendor/uPlot.esm.js", import.meta.url).href;
    const css = new URL("./vendor/uPlot.min.css", import.meta.url).href;
    const loaded = (await import(address)) as { default: PlotClass };
    document.head.append(element("link", { rel: "stylesheet", href: css }));
    uPlot = loaded.default;
    return true;
  } catch {
    return false;
  }
}

export interface Axis {
  format: (value: number) => string;
  /** The top if it is fixed, such as 1 for shares. */
  top?: number;
  /** Whether the labels are powers of two, as for bytes. */
  isBinary?: boolean;
  /** Whether the values are counts. */
  isWhole?: boolean;
}

/** One chart over the last five minutes. */
export class Chart {
  private plot: Plot | null = null;
  private data: [number[], ...Values[]] = [[]];

  constructor(
    private readonly target: HTMLElement,
    private readonly lines: Line[],
    private readonly axis: Axis,
  ) {
    new ResizeObserver(() => {
      if (this.plot && target.clientWidth) this.plot.setSize(this.size());
    }).observe(target);
  }

  show(times: number[], values: Values[]): void {
    this.data = [times, ...values];
    if (this.plot) this.plot.setData(this.data);
    else this.draw();
  }

  /** Draw again, after the colours have changed. */
  draw(): void {
    this.plot?.destroy();
    this.plot = null;
    if (!uPlot || !this.target.clientWidth) return;
    this.plot = new uPlot(this.options(), this.data, this.target);
  }

  private size(): { width: number; height: number } {
    return { width: this.target.clientWidth, height: this.target.clientHeight };
  }

  private options(): object {
    const { color, fontFamily } = getComputedStyle(byId("state"));
    const grid = getComputedStyle(this.target).borderTopColor;
    const axis = { stroke: color, font: `11px ${fontFamily}`, ticks: { show: false } };
    const { top, format, isBinary, isWhole } = this.axis;
    return {
      ...this.size(),
      padding: [8, 18, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      scales: {
        x: { range: () => this.span() },
        y: { range: (_: unknown, __: number, high: number | null) => [0, top ?? ((high ?? 0) * 1.15 || 1)] },
      },
      axes: [
        { ...axis, size: 22, gap: 4, grid: { show: false }, splits, values: ago },
        {
          ...axis,
          size: 58,
          gap: 6,
          space: 34,
          grid: { stroke: grid, width: 1 },
          ...(isBinary ? { incrs: Array.from({ length: 50 }, (_, power) => 2 ** power) } : {}),
          ...(isWhole ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] } : {}),
          values: (_: unknown, values: number[]) => values.map((value) => brief(format(value))),
        },
      ],
      series: [{}, ...this.lines.map((line, index) => this.series(line, index === 0))],
    };
  }

  /** The time that the chart covers. It grows to five minutes, so that the first curves are not squeezed. */
  private span(): [number, number] {
    const now = this.data[0].at(-1) ?? Date.now() / 1000;
    return [now - Math.min(SECONDS, Math.max(60, now - (this.data[0][0] ?? now))), now];
  }

  private series({ swatch, label }: Line, isFirst: boolean): object {
    const stroke = getComputedStyle(swatch).backgroundColor;
    const fill = stroke.replace(/^rgb\((.*)\)$/, "rgba($1, 0.1)");
    return { label, stroke, width: 2, points: { show: false }, spanGaps: false, ...(isFirst ? { fill } : {}) };
  }
}

/** A place on the axis for each quarter of a minute, half minute or minute before now. */
function splits(_: unknown, __: number, low: number, high: number): number[] {
  const span = high - low;
  const step = span <= 90 ? 15 : span <= 180 ? 30 : 60;
  const number = Math.floor((span * 0.93) / step);
  return Array.from({ length: number + 1 }, (_each, index) => high - (number - index) * step);
}

function ago(_: unknown, places: number[]): string[] {
  const now = places.at(-1) ?? 0;
  return places.map((place) => {
    const back = Math.round(now - place);
    return back === 0 ? "now" : back % 60 ? `−${back} s` : `−${back / 60} min`;
  });
}

/** A label without zeros that say nothing: "4.00 s" becomes "4 s", and "0.00 ms" becomes "0". */
function brief(text: string): string {
  const short = text.replace(/(\.\d*?)0+(?!\d)/, "$1").replace(/\.(?!\d)/, "");
  return short.startsWith("0 ") ? "0" : short;
}

/** A horizontal meter: how much of a limit is used. */
export function meter(share: number | null): HTMLElement {
  const box = element("span", { class: "meter", "aria-hidden": "true" }, element("i"));
  const bar = box.firstElementChild as HTMLElement;
  bar.style.width = `${Math.min(1, Math.max(0, share ?? 0)) * 100}%`;
  bar.classList.toggle("full", (share ?? 0) >= 0.9);
  return box;
}

