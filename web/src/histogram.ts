// Quantiles of what a histogram counted between two scrapes.

type Buckets = [number, number][];

/** What was counted between two scrapes. */
export function between(before: Buckets, after: Buckets): Buckets {
  const known = new Map(before);
  return after.map(([bound, value]) => [bound, value - (known.get(bound) ?? 0)]);
}

/** The quantile, interpolated inside its bucket; null if nothing was counted. In the last bucket, its lower bound. */
export function quantile(buckets: Buckets, share: number): number | null {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const wanted = total * share;
  let lower = 0;
  let below = 0;
  for (const [bound, cumulated] of buckets) {
    if (cumulated >= wanted) {
      if (!Number.isFinite(bound)) return lower;
      const inside = cumulated - below;
      return inside > 0 ? lower + ((bound - lower) * (wanted - below)) / inside : bound;
    }
    lower = bound;
    below = cumulated;
  }
  return lower;
}
