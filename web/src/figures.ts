// Figures of the service at one moment, from two scrapes of its metrics.

import type { Exposition } from "./exposition";
import { between, quantile } from "./histogram";

export interface Scrape {
  /** Seconds since 1970. */
  time: number;
  metrics: Exposition;
}

export const STAGES = ["request", "queue", "prefilter", "tokenize", "inference"] as const;
export type Stage = (typeof STAGES)[number];

export type Figures = Record<
  | "requests"
  | "failed"
  | "model"
  | "cache"
  | "active"
  | "waiting"
  | "fill"
  | "padding"
  | "hits"
  | "memory"
  | "gpu"
  | "gpuMemory"
  | `${Stage}50`
  | `${Stage}95`,
  number | null
>;

/** The figures between two scrapes; those that need a difference are null without the earlier one. */
export function figures(before: Scrape | null, now: Scrape): Figures {
  const { metrics } = now;
  const seconds = before ? now.time - before.time : 0;
  const gained = (name: string, label: string): Map<string, number> => {
    if (!before) return new Map();
    const earlier = before.metrics.by(name, label);
    return new Map([...metrics.by(name, label)].map(([key, value]) => [key, value - (earlier.get(key) ?? 0)]));
  };
  const gain = (name: string): number => (before ? (metrics.value(name) ?? 0) - (before.metrics.value(name) ?? 0) : 0);
  const rate = (amount: number): number | null => (seconds > 0 ? amount / seconds : null);

  const byStatus = gained("reranker_requests_total", "status");
  const documents = gained("reranker_documents_total", "source");
  const tokens = gained("reranker_tokens_total", "kind");
  const [model, cache] = [documents.get("model") ?? 0, documents.get("cache") ?? 0];
  const room = gain("reranker_batch_tokens_count") * (metrics.value("reranker_batch_token_budget") ?? 0);
  const made: Partial<Figures> = {
    requests: rate(sum(byStatus.values())),
    failed: rate(sum([...byStatus].filter(([status]) => !status.startsWith("2")).map(([, value]) => value))),
    model: rate(model),
    cache: rate(cache),
    active: metrics.value("reranker_active_requests"),
    waiting: metrics.value("reranker_waiting_requests"),
    fill: ratio(gain("reranker_batch_tokens_sum"), room),
    padding: ratio(tokens.get("padding") ?? 0, sum(tokens.values())),
    hits: ratio(cache, model + cache),
    memory: metrics.value("process_resident_memory_bytes"),
    gpu: metrics.value("reranker_gpu_utilization"),
    gpuMemory: metrics.value("reranker_gpu_memory_used_bytes"),
  };
  for (const stage of STAGES) {
    const name = `reranker_${stage}_seconds`;
    const counted = before ? between(before.metrics.buckets(name), metrics.buckets(name)) : [];
    made[`${stage}50`] = quantile(counted, 0.5);
    made[`${stage}95`] = quantile(counted, 0.95);
  }
  return made as Figures;
}

function sum(values: Iterable<number>): number {
  return [...values].reduce((total, value) => total + value, 0);
}

function ratio(part: number, whole: number): number | null {
  return whole > 0 ? part / whole : null;
}
