// The state of the service, in the head of the page.

import { byId } from "./dom";
import { patience, Problem, type Service } from "./service";

export interface Health {
  status: string;
  reason: string | null;
  version: string;
  instance?: string;
  uptime_seconds: number;
  model?: string;
  revision?: string | null;
  device?: string;
  backend?: string;
  precision?: string;
  configuration?: string;
  threads?: number;
  max_length?: number;
  long_documents?: string;
  active?: number;
  waiting?: number;
  max_parallel?: number;
  max_queue?: number;
  pending_pairs?: number;
  cache_entries?: number;
  tokens_per_second?: number;
  self_test?: { passed: boolean; deviation: number; bound: number; error: number; pairs: number } | null;
  gpu?: { name: string; memory_used_bytes: number; memory_total_bytes: number; utilization: number | null };
}

/** Read the health and show it in the head of the page. Rejects with a Problem. */
export async function health(service: Service): Promise<Health> {
  try {
    const response = await service.call("health", { signal: patience() }, [503]);
    const found = (await response.json()) as Health;
    if (typeof found.status !== "string") throw new Problem("The service has no /health.");
    show(found.status === "ok" ? "good" : "warn", found.status === "ok" ? (found.model ?? "ready") : (found.reason ?? found.status));
    return found;
  } catch (error) {
    show("bad", "not reachable");
    throw error instanceof Problem ? error : new Problem("The service has no /health.", "Something else answered.");
  }
}

/** Show the state now and then: soon while the service is not ready, seldom while it is. */
export async function watchHealth(service: Service): Promise<void> {
  let isReady = false;
  if (!document.hidden) isReady = await health(service).then(({ status }) => status === "ok", () => false);
  window.setTimeout(() => void watchHealth(service), isReady ? 30_000 : 3_000);
}

/** Whether the model takes an instruction; null if the service does not say, because it needs a key. */
export async function takesInstruction(service: Service): Promise<boolean | null> {
  try {
    const info = (await (await service.call("info")).json()) as { instruction?: string | null };
    return typeof info.instruction === "string";
  } catch {
    return null;
  }
}

function show(kind: "good" | "warn" | "bad", text: string): void {
  byId("state").className = `state ${kind}`;
  byId("state-text").textContent = text;
  byId("state").title = text;
}
