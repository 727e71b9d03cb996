// Numbers as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const NONE = "–";

/** A count with separators. */
export function count(value: number): string {
  return whole.format(value);
}

/** "1 passage", "3 passages". */
export function counted(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** Three significant digits, without exponents. */
export function short(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 100 || value === 0) return count(value);
  return value.toFixed(size >= 10 ? 1 : 2);
}

/** Milliseconds or seconds, by size. */
export function duration(seconds: number | null): string {
  if (seconds === null || !Number.isFinite(seconds)) return NONE;
  if (seconds >= 1) return `${short(seconds)} s`;
  const ms = seconds * 1000;
  return `${ms >= 10 ? Math.round(ms) : ms >= 1 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

/** A share from 0 to 1 in percent. */
export function percent(share: number | null): string {
  if (share === null || !Number.isFinite(share)) return NONE;
  return `${(share * 100).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
}

/** Bytes in the unit that fits. */
export function bytes(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${short(value / 2 ** (10 * power))} ${units[power]}`;
}

/** "3 d 4 h", "5 min", "12 s". */
export function age(seconds: number): string {
  const parts: [number, string][] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + (first < 2 ? 2 : 1))
    .map(([size, unit], index) => `${Math.floor((index ? seconds % parts[first]![0] : seconds) / size)} ${unit}`)
    .join(" ");
}
