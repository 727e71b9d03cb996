// What the dashboard shows.

import { meter } from "./charts";
import { element } from "./dom";
import type { Health } from "./health";
import type { History } from "./history";
import { age, bytes, count, duration, NONE, percent, short } from "./numbers";
import { Panel } from "./panel";
import { Stages } from "./stages";

const REASONS: Record<string, string> = {
  invalid: "invalid request",
  unauthorized: "no valid key",
  too_large: "too large",
  body_timeout: "body came too slowly",
  rate_limited: "key over its rate",
  queue_full: "queue full",
  queue_timeout: "waited too long",
  buffer_full: "too many bodies",
  unavailable: "not ready",
  deadline: "deadline passed",
  failed: "model failed",
};
const LONG_DOCUMENTS: Record<string, string> = { truncate: "cut", chunk_max: "best window", refuse: "refused" };

export class Panels {
  private readonly about = element("dl", { class: "facts" });
  private readonly load = element("div", { class: "meters" });
  private readonly stages = new Stages();
  private readonly memory = element("div", { class: "meters" });
  private readonly refused = element("div", { class: "reasons" });
  private readonly gpu: Panel;
  private readonly panels: Panel[];
  readonly boxes: HTMLElement[];

  constructor() {
    const load = new Panel({
      title: "Load",
      about: "requests now",
      curves: [{ label: "Active", figure: "active" }, { label: "Waiting", figure: "waiting" }],
      format: (value) => (value === null ? NONE : count(value)),
      isWhole: true,
      extra: this.load,
    });
    const memory = new Panel({
      title: "Memory",
      about: "of the process",
      curves: [{ label: "Resident", figure: "memory" }],
      format: bytes,
      isBinary: true,
      extra: this.memory,
    });
    this.gpu = new Panel({
      title: "GPU",
      about: "the whole card",
      curves: [{ label: "Busy", figure: "gpu" }],
      format: percent,
      top: 1,
    });
    this.gpu.box.hidden = true;
    const [requests, documents, latency, batches] = plain();
    this.panels = [requests!, documents!, latency!, load, batches!, memory, this.gpu];
    this.boxes = [
      element("section", { class: "card panel", "aria-label": "Service" }, element("h2", {}, "Service"), this.about),
      requests!.box,
      documents!.box,
      latency!.box,
      this.stages.box,
      load.box,
      batches!.box,
      memory.box,
      this.gpu.box,
      element("section", { class: "card panel", "aria-label": "Rejections" }, element("h2", {}, "Rejections", element("small", {}, "by reason")), this.refused),
    ];
  }

  /** What `/health` says. */
  showHealth(health: Health): void {
    const test = health.self_test;
    const long = LONG_DOCUMENTS[health.long_documents ?? ""] ?? health.long_documents;
    const facts: [string, string | undefined | null][] = [
      ["Model", health.model],
      ["Revision", health.revision],
      ["Engine", health.backend && `${health.backend} on ${health.device}`],
      ["Precision", health.precision],
      ["Self-test", test ? `${test.passed ? "passed" : "FAILED"}: error ${short(test.error)}, limit ${short(test.bound)}` : "not run"],
      ["Window", health.max_length ? `${count(health.max_length)} tokens; longer: ${long}` : null],
      ["Speed", health.tokens_per_second ? `${count(health.tokens_per_second)} tokens/s` : null],
      ["Up", `${age(health.uptime_seconds)}, version ${health.version}`],
      ["Replica", health.instance],
    ];
    this.about.replaceChildren(
      ...facts
        .filter(([, value]) => value)
        .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { title: value! }, value!))),
    );
    this.load.replaceChildren(
      limit("Slots", health.active, health.max_parallel, count),
      limit("Queue", health.waiting, health.max_queue, count),
    );
    if (health.gpu) this.gpu.box.querySelector("small")!.textContent = health.gpu.name;
  }

  /** The history of a replica. */
  show(history: History): void {
    const now = history.points.at(-1)?.figures;
    const metrics = history.latest?.metrics;
    if (!now || !metrics) return;
    this.gpu.box.hidden = now.gpu === null && now.gpuMemory === null;
    for (const panel of this.panels) panel.show(history.points);
    this.stages.show(history.points);
    const value = (name: string): number | undefined => metrics.value(name) ?? undefined;
    this.load.replaceChildren(
      limit("Slots", value("reranker_active_requests"), value("reranker_max_parallel"), count),
      limit("Queue", value("reranker_waiting_requests"), value("reranker_max_queue"), count),
    );
    this.memory.replaceChildren(limit("Limit", now.memory ?? undefined, value("reranker_memory_limit_bytes"), bytes));
    this.showRejections(history);
  }

  redraw(): void {
    for (const panel of this.panels) panel.redraw();
    this.stages.redraw();
  }

  private showRejections(history: History): void {
    const total = history.latest!.metrics.by("reranker_rejections_total", "reason");
    const before = history.first!.metrics.by("reranker_rejections_total", "reason");
    const rows = [...total].sort(([, a], [, b]) => b - a);
    if (!rows.length) {
      this.refused.replaceChildren(element("p", { class: "calm" }, element("strong", {}, "None"), "No request was rejected since the start."));
      return;
    }
    const head = element("tr", {}, ...["Reason", "5 min", "since start"].map((name) => element("th", { scope: "col" }, name)));
    const body = rows.map(([reason, number]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, REASONS[reason] ?? reason),
        element("td", {}, count(number - (before.get(reason) ?? 0))),
        element("td", {}, count(number)),
      ),
    );
    this.refused.replaceChildren(element("table", { class: "figures-table" }, element("thead", {}, head), element("tbody", {}, ...body)));
  }
}

function plain(): Panel[] {
  return [
    new Panel({
      title: "Requests",
      about: "per second",
      curves: [{ label: "All", figure: "requests" }, { label: "Rejected or failed", figure: "failed" }],
      format: short,
    }),
    new Panel({
      title: "Documents",
      about: "per second",
      curves: [{ label: "Scored", figure: "model" }, { label: "From the cache", figure: "cache" }, { label: "Cache hits", figure: "hits", only: percent }],
      format: short,
    }),
    new Panel({
      title: "Latency",
      about: "of a ranked request",
      curves: [{ label: "p95", figure: "request95" }, { label: "p50", figure: "request50" }],
      format: duration,
    }),
    new Panel({
      title: "Batches",
      about: "of the token budget",
      curves: [{ label: "Fill", figure: "fill" }, { label: "Padding", figure: "padding" }],
      format: percent,
      top: 1,
    }),
  ];
}

function limit(name: string, used: number | undefined, most: number | undefined, format: (value: number) => string): HTMLElement {
  if (used === undefined || most === undefined) return element("p", { class: "hint" }, `${name}: ${NONE}`);
  return element(
    "div",
    { class: "limit" },
    element("span", {}, name),
    meter(most ? used / most : 0),
    element("span", {}, `${format(used)} of ${format(most)}`),
  );
}
