// The text format of Prometheus.

/** Samples of one scrape. */
export class Exposition {
  private readonly samples = new Map<string, { labels: Record<string, string>; value: number }[]>();

  constructor(text: string) {
    for (const line of text.split("\n")) {
      if (line === "" || line.startsWith("#")) continue;
      const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
      if (!match) continue;
      const [, name, labels, value] = match as unknown as [string, string, string | undefined, string];
      const family = this.samples.get(name) ?? [];
      family.push({ labels: parseLabels(labels ?? ""), value: parseValue(value) });
      this.samples.set(name, family);
    }
  }

  /** The value of a sample without labels; null if it is missing or not a number. */
  value(name: string): number | null {
    const found = this.samples.get(name)?.[0]?.value;
    return found === undefined || Number.isNaN(found) ? null : found;
  }

  /** The labels of the first sample. */
  labels(name: string): Record<string, string> {
    return this.samples.get(name)?.[0]?.labels ?? {};
  }

  /** Values by one label. */
  by(name: string, label: string): Map<string, number> {
    return new Map((this.samples.get(name) ?? []).map((sample) => [sample.labels[label] ?? "", sample.value]));
  }

  /** Cumulated counts by upper bound, lowest first. */
  buckets(name: string): [number, number][] {
    return [...this.by(`${name}_bucket`, "le")]
      .map(([bound, value]): [number, number] => [parseValue(bound), value])
      .sort(([a], [b]) => a - b);
  }
}

function parseLabels(text: string): Record<string, string> {
  const labels: Record<string, string> = {};
  for (const [, name, value] of text.matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
    labels[name!] = value!.replace(/\\(.)/g, (_, char: string) => (char === "n" ? "\n" : char));
  }
  return labels;
}

function parseValue(text: string): number {
  if (text === "+Inf") return Infinity;
  if (text === "-Inf") return -Infinity;
  return Number(text);
}
