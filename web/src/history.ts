// The last five minutes of each replica.

import { type Figures, figures, type Scrape } from "./figures";

export const SECONDS = 300;
// Rates and quantiles cover this time, so that they are calm and still follow the load.
const SPAN = 10;

export interface Point {
  time: number;
  figures: Figures;
}

export class History {
  private readonly scrapes: Scrape[] = [];
  readonly points: Point[] = [];

  get latest(): Scrape | null {
    return this.scrapes.at(-1) ?? null;
  }

  /** The oldest scrape, for totals of the last minutes. */
  get first(): Scrape | null {
    return this.scrapes[0] ?? null;
  }

  add(scrape: Scrape): void {
    const before = this.scrapes.find((each) => each.time >= scrape.time - SPAN - 1) ?? null;
    this.points.push({ time: scrape.time, figures: figures(before, scrape) });
    this.scrapes.push(scrape);
    const oldest = scrape.time - SECONDS;
    while (this.scrapes[0]!.time < oldest) this.scrapes.shift();
    while (this.points[0]!.time < oldest) this.points.shift();
  }
}

/** Histories by replica. A replica that starts again is a new one: its counters begin at zero. */
export class Replicas {
  private readonly histories = new Map<string, History>();
  /** The replica that answered last. */
  latest = "";

  get names(): string[] {
    return [...this.histories.keys()];
  }

  add(name: string, scrape: Scrape): void {
    this.latest = name;
    const history = this.histories.get(name) ?? new History();
    this.histories.set(name, history);
    history.add(scrape);
    for (const [each, { latest }] of this.histories) {
      if (latest && latest.time < scrape.time - SECONDS) this.histories.delete(each);
    }
  }

  of(name: string): History | null {
    return this.histories.get(name) ?? null;
  }
}
