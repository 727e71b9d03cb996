// src/dom.ts
function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`The page has no element #${id}`);
  return found;
}
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  assign(made, attributes);
  made.append(...children.filter((child) => child !== null && child !== false));
  return made;
}
function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  assign(made, attributes);
  made.append(...children);
  return made;
}
function assign(target, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) target.setAttribute(name, value === true ? "" : String(value));
  }
}
function say(text) {
  byId("spoken").textContent = text;
}
var toastTimer = 0;
function toast(text) {
  const box = byId("toast");
  box.textContent = text;
  box.hidden = false;
  say(text);
  window.clearTimeout(toastTimer);
  toastTimer = window.setTimeout(() => box.hidden = true, 2500);
}
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", { class: "hidden", "aria-hidden": "true", tabindex: -1 });
    const focused = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.value = text;
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}

// src/histogram.ts
function between(before, after) {
  const known = new Map(before);
  return after.map(([bound, value]) => [bound, value - (known.get(bound) ?? 0)]);
}
function quantile(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const wanted = total * share;
  let lower = 0;
  let below = 0;
  for (const [bound, cumulated] of buckets) {
    if (cumulated >= wanted) {
      if (!Number.isFinite(bound)) return lower;
      const inside = cumulated - below;
      return inside > 0 ? lower + (bound - lower) * (wanted - below) / inside : bound;
    }
    lower = bound;
    below = cumulated;
  }
  return lower;
}

// src/figures.ts
var STAGES = ["request", "queue", "prefilter", "tokenize", "inference"];
function figures(before, now) {
  const { metrics } = now;
  const seconds = before ? now.time - before.time : 0;
  const gained = (name, label) => {
    if (!before) return /* @__PURE__ */ new Map();
    const earlier = before.metrics.by(name, label);
    return new Map([...metrics.by(name, label)].map(([key, value]) => [key, value - (earlier.get(key) ?? 0)]));
  };
  const gain = (name) => before ? (metrics.value(name) ?? 0) - (before.metrics.value(name) ?? 0) : 0;
  const rate = (amount) => seconds > 0 ? amount / seconds : null;
  const byStatus = gained("reranker_requests_total", "status");
  const documents = gained("reranker_documents_total", "source");
  const tokens = gained("reranker_tokens_total", "kind");
  const [model, cache] = [documents.get("model") ?? 0, documents.get("cache") ?? 0];
  const room = gain("reranker_batch_tokens_count") * (metrics.value("reranker_batch_token_budget") ?? 0);
  const made = {
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
    gpuMemory: metrics.value("reranker_gpu_memory_used_bytes")
  };
  for (const stage of STAGES) {
    const name = `reranker_${stage}_seconds`;
    const counted2 = before ? between(before.metrics.buckets(name), metrics.buckets(name)) : [];
    made[`${stage}50`] = quantile(counted2, 0.5);
    made[`${stage}95`] = quantile(counted2, 0.95);
  }
  return made;
}
function sum(values) {
  return [...values].reduce((total, value) => total + value, 0);
}
function ratio(part, whole2) {
  return whole2 > 0 ? part / whole2 : null;
}

// src/history.ts
var SECONDS = 300;
var SPAN = 10;
var History = class {
  scrapes = [];
  points = [];
  get latest() {
    return this.scrapes.at(-1) ?? null;
  }
  /** The oldest scrape, for totals of the last minutes. */
  get first() {
    return this.scrapes[0] ?? null;
  }
  add(scrape) {
    const before = this.scrapes.find((each) => each.time >= scrape.time - SPAN - 1) ?? null;
    this.points.push({ time: scrape.time, figures: figures(before, scrape) });
    this.scrapes.push(scrape);
    const oldest = scrape.time - SECONDS;
    while (this.scrapes[0].time < oldest) this.scrapes.shift();
    while (this.points[0].time < oldest) this.points.shift();
  }
};
var Replicas = class {
  histories = /* @__PURE__ */ new Map();
  /** The replica that answered last. */
  latest = "";
  get names() {
    return [...this.histories.keys()];
  }
  add(name, scrape) {
    this.latest = name;
    const history = this.histories.get(name) ?? new History();
    this.histories.set(name, history);
    history.add(scrape);
    for (const [each, { latest }] of this.histories) {
      if (latest && latest.time < scrape.time - SECONDS) this.histories.delete(each);
    }
  }
  of(name) {
    return this.histories.get(name) ?? null;
  }
};

// src/charts.ts
var uPlot = null;
async function loadCharts() {
  if (uPlot) return true;
  try {
    const address = new URL("./vendor/uPlot.esm.js", import.meta.url).href;
    const css = new URL("./vendor/uPlot.min.css", import.meta.url).href;
    const loaded = await import(address);
    document.head.append(element("link", { rel: "stylesheet", href: css }));
    uPlot = loaded.default;
    return true;
  } catch {
    return false;
  }
}
var Chart = class {
  constructor(target, lines2, axis) {
    this.target = target;
    this.lines = lines2;
    this.axis = axis;
    new ResizeObserver(() => {
      if (this.plot && target.clientWidth) this.plot.setSize(this.size());
    }).observe(target);
  }
  target;
  lines;
  axis;
  plot = null;
  data = [[]];
  show(times2, values) {
    this.data = [times2, ...values];
    if (this.plot) this.plot.setData(this.data);
    else this.draw();
  }
  /** Draw again, after the colours have changed. */
  draw() {
    this.plot?.destroy();
    this.plot = null;
    if (!uPlot || !this.target.clientWidth) return;
    this.plot = new uPlot(this.options(), this.data, this.target);
  }
  size() {
    return { width: this.target.clientWidth, height: this.target.clientHeight };
  }
  options() {
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
        y: { range: (_, __, high) => [0, top ?? ((high ?? 0) * 1.15 || 1)] }
      },
      axes: [
        { ...axis, size: 22, gap: 4, grid: { show: false }, splits, values: ago },
        {
          ...axis,
          size: 58,
          gap: 6,
          space: 34,
          grid: { stroke: grid, width: 1 },
          ...isBinary ? { incrs: Array.from({ length: 50 }, (_, power) => 2 ** power) } : {},
          ...isWhole ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3] } : {},
          values: (_, values) => values.map((value) => brief(format(value)))
        }
      ],
      series: [{}, ...this.lines.map((line, index) => this.series(line, index === 0))]
    };
  }
  /** The time that the chart covers. It grows to five minutes, so that the first curves are not squeezed. */
  span() {
    const now = this.data[0].at(-1) ?? Date.now() / 1e3;
    return [now - Math.min(SECONDS, Math.max(60, now - (this.data[0][0] ?? now))), now];
  }
  series({ swatch: swatch2, label }, isFirst) {
    const stroke = getComputedStyle(swatch2).backgroundColor;
    const fill2 = stroke.replace(/^rgb\((.*)\)$/, "rgba($1, 0.1)");
    return { label, stroke, width: 2, points: { show: false }, spanGaps: false, ...isFirst ? { fill: fill2 } : {} };
  }
};
function splits(_, __, low, high) {
  const span = high - low;
  const step = span <= 90 ? 15 : span <= 180 ? 30 : 60;
  const number = Math.floor(span * 0.93 / step);
  return Array.from({ length: number + 1 }, (_each, index) => high - (number - index) * step);
}
function ago(_, places) {
  const now = places.at(-1) ?? 0;
  return places.map((place) => {
    const back = Math.round(now - place);
    return back === 0 ? "now" : back % 60 ? `−${back} s` : `−${back / 60} min`;
  });
}
function brief(text) {
  const short2 = text.replace(/(\.\d*?)0+(?!\d)/, "$1").replace(/\.(?!\d)/, "");
  return short2.startsWith("0 ") ? "0" : short2;
}
function meter(share) {
  const box = element("span", { class: "meter", "aria-hidden": "true" }, element("i"));
  const bar = box.firstElementChild;
  bar.style.width = `${Math.min(1, Math.max(0, share ?? 0)) * 100}%`;
  bar.classList.toggle("full", (share ?? 0) >= 0.9);
  return box;
}

// src/exposition.ts
var Exposition = class {
  samples = /* @__PURE__ */ new Map();
  constructor(text) {
    for (const line of text.split("\n")) {
      if (line === "" || line.startsWith("#")) continue;
      const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/.exec(line);
      if (!match) continue;
      const [, name, labels, value] = match;
      const family = this.samples.get(name) ?? [];
      family.push({ labels: parseLabels(labels ?? ""), value: parseValue(value) });
      this.samples.set(name, family);
    }
  }
  /** The value of a sample without labels; null if it is missing or not a number. */
  value(name) {
    const found = this.samples.get(name)?.[0]?.value;
    return found === void 0 || Number.isNaN(found) ? null : found;
  }
  /** The labels of the first sample. */
  labels(name) {
    return this.samples.get(name)?.[0]?.labels ?? {};
  }
  /** Values by one label. */
  by(name, label) {
    return new Map((this.samples.get(name) ?? []).map((sample) => [sample.labels[label] ?? "", sample.value]));
  }
  /** Cumulated counts by upper bound, lowest first. */
  buckets(name) {
    return [...this.by(`${name}_bucket`, "le")].map(([bound, value]) => [parseValue(bound), value]).sort(([a], [b]) => a - b);
  }
};
function parseLabels(text) {
  const labels = {};
  for (const [, name, value] of text.matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
    labels[name] = value.replace(/\\(.)/g, (_, char) => char === "n" ? "\n" : char);
  }
  return labels;
}
function parseValue(text) {
  if (text === "+Inf") return Infinity;
  if (text === "-Inf") return -Infinity;
  return Number(text);
}

// src/service.ts
var Problem = class extends Error {
  constructor(message2, advice = "", status = 0) {
    super(message2);
    this.message = message2;
    this.advice = advice;
    this.status = status;
  }
  message;
  advice;
  status;
};
var patience = () => AbortSignal.timeout(1e4);
var Service = class {
  constructor(url) {
    this.url = url;
  }
  url;
  /** Only in the memory of the page. */
  key = "";
  /** Rank. Rejects with a Problem, or with an AbortError. */
  async rank(body2, signal) {
    const started = performance.now();
    const response = await this.call("rerank/query", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body2),
      signal
    });
    const answer = await response.json().catch(() => null);
    if (!answer?.results || !answer.meta) {
      throw new Problem(`${this.url} does not answer like a reranker.`, "Check the URL.", response.status);
    }
    const roundTrip = performance.now() - started;
    return { answer, roundTrip, warning: response.headers.get("x-reranker-warning") };
  }
  /** Call a route. Rejects with a Problem if the answer is an error, except for the statuses in `accepted`. */
  async call(path, options3 = {}, accepted = []) {
    const headers = new Headers(options3.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    let response;
    try {
      response = await fetch(`${this.url}/${path}`, { ...options3, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw await this.unreachable();
    }
    if (!response.ok && !accepted.includes(response.status)) throw await refusal(response);
    return response;
  }
  /** Why nothing came back: the browser tells a page only that it failed. */
  async unreachable() {
    const here = window.location.origin;
    if (new URL(this.url).origin === here) {
      return new Problem("The service cannot be reached.", "It may have stopped, or the network is down. Try again.");
    }
    if (window.location.protocol === "https:" && this.url.startsWith("http:")) {
      return new Problem(
        `This page came by https, so the browser does not let it call ${this.url}.`,
        "Open this page by http, or give the other service a certificate."
      );
    }
    try {
      await fetch(`${this.url}/health/live`, { mode: "no-cors", credentials: "omit", cache: "no-store" });
    } catch {
      return new Problem(`${this.url} cannot be reached.`, "Check the URL, and whether that service runs.");
    }
    return new Problem(
      `${this.url} runs, but it does not allow this page to call it.`,
      `Start it with RERANKER_CORS_ORIGINS=${here}`
    );
  }
};
function serviceUrl(typed) {
  const text = typed.trim();
  try {
    const url = new URL(/^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `http://${text}`);
    if (text && /^https?:$/.test(url.protocol)) return (url.origin + url.pathname).replace(/\/+$/, "");
  } catch {
  }
  throw new Problem(
    text ? `${text} is not the URL of a service.` : "Enter the URL of the other service.",
    "A URL looks like http://127.0.0.1:8001"
  );
}
async function refusal(response) {
  const { status } = response;
  const text = await message(response);
  const wait = Number(response.headers.get("Retry-After")) || 0;
  const later = wait ? `Try again in ${wait === 1 ? "a second" : `${wait} seconds`}.` : "Try again soon.";
  if (status === 401) return new Problem(text || "The service needs an API key.", "Enter the key and send again.", status);
  if (status === 429 || status === 503) return new Problem(text || "The service is busy.", later, status);
  if (status === 504) return new Problem(text || "The deadline has passed.", later, status);
  if (status >= 500) return new Problem(text || "The service failed.", "Its log has the details.", status);
  return new Problem(text || `The service answered with status ${status}.`, "Change the request and send again.", status);
}
async function message(response) {
  try {
    const content = await response.json();
    const found = [content.message, content.error].find((each) => typeof each === "string");
    return typeof found === "string" ? found.replace(/[^.!?]$/, "$&.") : "";
  } catch {
    return "";
  }
}

// src/health.ts
async function health(service2) {
  try {
    const response = await service2.call("health", { signal: patience() }, [503]);
    const found = await response.json();
    if (typeof found.status !== "string") throw new Problem("The service has no /health.");
    show(found.status === "ok" ? "good" : "warn", found.status === "ok" ? found.model ?? "ready" : found.reason ?? found.status);
    return found;
  } catch (error) {
    show("bad", "not reachable");
    throw error instanceof Problem ? error : new Problem("The service has no /health.", "Something else answered.");
  }
}
async function watchHealth(service2) {
  let isReady = false;
  if (!document.hidden) isReady = await health(service2).then(({ status }) => status === "ok", () => false);
  window.setTimeout(() => void watchHealth(service2), isReady ? 3e4 : 3e3);
}
async function takesInstruction(service2) {
  try {
    const info = await (await service2.call("info")).json();
    return typeof info.instruction === "string";
  } catch {
    return null;
  }
}
function show(kind, text) {
  byId("state").className = `state ${kind}`;
  byId("state-text").textContent = text;
  byId("state").title = text;
}

// src/numbers.ts
var whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
var NONE = "–";
function count(value) {
  return whole.format(value);
}
function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}
function short(value) {
  if (value === null || !Number.isFinite(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 100 || value === 0) return count(value);
  return value.toFixed(size >= 10 ? 1 : 2);
}
function duration(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return NONE;
  if (seconds >= 1) return `${short(seconds)} s`;
  const ms = seconds * 1e3;
  return `${ms >= 10 ? Math.round(ms) : ms >= 1 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}
function percent(share) {
  if (share === null || !Number.isFinite(share)) return NONE;
  return `${(share * 100).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
}
function bytes(value) {
  if (value === null || !Number.isFinite(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${short(value / 2 ** (10 * power))} ${units[power]}`;
}
function age(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  return parts.slice(first, first + (first < 2 ? 2 : 1)).map(([size, unit], index) => `${Math.floor((index ? seconds % parts[first][0] : seconds) / size)} ${unit}`).join(" ");
}

// src/panel.ts
function swatch(index) {
  return element("i", { class: `swatch c${index + 1}`, "aria-hidden": "true" });
}
var Panel = class {
  constructor(plan) {
    this.plan = plan;
    this.drawn = plan.curves.filter(({ only }) => !only);
    const swatches = this.drawn.map((_, index) => swatch(index));
    this.values = plan.curves.map(() => element("dd", {}, plan.format(null)));
    const figures3 = plan.curves.map(
      (curve, index) => element("div", {}, element("dt", {}, swatches[this.drawn.indexOf(curve)] ?? null, curve.label), this.values[index])
    );
    this.canvas = element("div", { class: "chart", role: "img", "aria-label": `${plan.title}: no figures yet` });
    this.box = element(
      "section",
      { class: "card panel", "aria-label": plan.title },
      element("h2", {}, plan.title, element("small", {}, plan.about)),
      element("dl", { class: "big" }, ...figures3),
      plan.extra ?? null,
      this.canvas
    );
    const lines2 = this.drawn.map(({ label }, index) => ({ label, swatch: swatches[index] }));
    this.chart = new Chart(this.canvas, lines2, plan);
  }
  plan;
  box;
  drawn;
  values;
  chart;
  canvas;
  show(points) {
    const latest = points.at(-1)?.figures;
    const texts = this.plan.curves.map(({ figure: figure2, only }) => (only ?? this.plan.format)(latest?.[figure2] ?? null));
    texts.forEach((text, index) => this.values[index].textContent = text);
    const spoken2 = this.plan.curves.map(({ label }, index) => `${label} ${texts[index]}`).join(", ");
    this.canvas.setAttribute("aria-label", `${this.plan.title}, last five minutes. Now: ${spoken2}`);
    this.chart.show(
      points.map(({ time }) => time),
      this.drawn.map(({ figure: figure2 }) => points.map(({ figures: figures3 }) => figures3[figure2]))
    );
  }
  redraw() {
    this.chart.draw();
  }
};

// src/stages.ts
var NAMES = [
  ["queue", "Queue"],
  ["tokenize", "Tokenize"],
  ["inference", "Inference, one batch"],
  ["prefilter", "First stage"]
];
var Stages = class {
  box;
  rows;
  chart;
  constructor() {
    const swatches = NAMES.map((_, index) => swatch(index));
    this.rows = NAMES.map(([, name], index) => {
      const [p50, p95] = [element("td"), element("td")];
      return { p50, p95, box: element("tr", {}, element("th", { scope: "row" }, swatches[index], name), p50, p95) };
    });
    const head = element("tr", {}, ...["Stage", "p50", "p95"].map((name) => element("th", { scope: "col" }, name)));
    const canvas = element("div", { class: "chart", role: "img", "aria-label": "p95 of each stage, last five minutes" });
    this.box = element(
      "section",
      { class: "card panel", "aria-label": "Stages" },
      element("h2", {}, "Stages", element("small", {}, "time of each; curves of p95")),
      element("table", { class: "figures-table" }, element("thead", {}, head), element("tbody", {}, ...this.rows.map(({ box }) => box))),
      canvas
    );
    const lines2 = NAMES.map(([, label], index) => ({ label, swatch: swatches[index] }));
    this.chart = new Chart(canvas, lines2, { format: duration });
  }
  show(points) {
    const now = points.at(-1)?.figures;
    const values = NAMES.map(([stage]) => points.map(({ figures: figures3 }) => figures3[`${stage}95`]));
    NAMES.forEach(([stage], index) => {
      const row = this.rows[index];
      row.p50.textContent = duration(figure(now, `${stage}50`));
      row.p95.textContent = duration(figure(now, `${stage}95`));
      row.box.hidden = stage === "prefilter" && values[index].every((value) => value === null);
    });
    this.chart.show(points.map(({ time }) => time), values);
  }
  redraw() {
    this.chart.draw();
  }
};
function figure(figures3, name) {
  return figures3?.[name] ?? null;
}

// src/panels.ts
var REASONS = {
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
  failed: "model failed"
};
var LONG_DOCUMENTS = { truncate: "cut", chunk_max: "best window", refuse: "refused" };
var Panels = class {
  about = element("dl", { class: "facts" });
  load = element("div", { class: "meters" });
  stages = new Stages();
  memory = element("div", { class: "meters" });
  refused = element("div", { class: "reasons" });
  gpu;
  panels;
  boxes;
  constructor() {
    const load = new Panel({
      title: "Load",
      about: "requests now",
      curves: [{ label: "Active", figure: "active" }, { label: "Waiting", figure: "waiting" }],
      format: (value) => value === null ? NONE : count(value),
      isWhole: true,
      extra: this.load
    });
    const memory = new Panel({
      title: "Memory",
      about: "of the process",
      curves: [{ label: "Resident", figure: "memory" }],
      format: bytes,
      isBinary: true,
      extra: this.memory
    });
    this.gpu = new Panel({
      title: "GPU",
      about: "the whole card",
      curves: [{ label: "Busy", figure: "gpu" }],
      format: percent,
      top: 1
    });
    this.gpu.box.hidden = true;
    const [requests, documents, latency, batches] = plain();
    this.panels = [requests, documents, latency, load, batches, memory, this.gpu];
    this.boxes = [
      element("section", { class: "card panel", "aria-label": "Service" }, element("h2", {}, "Service"), this.about),
      requests.box,
      documents.box,
      latency.box,
      this.stages.box,
      load.box,
      batches.box,
      memory.box,
      this.gpu.box,
      element("section", { class: "card panel", "aria-label": "Rejections" }, element("h2", {}, "Rejections", element("small", {}, "by reason")), this.refused)
    ];
  }
  /** What `/health` says. */
  showHealth(health2) {
    const test = health2.self_test;
    const long = LONG_DOCUMENTS[health2.long_documents ?? ""] ?? health2.long_documents;
    const facts = [
      ["Model", health2.model],
      ["Revision", health2.revision],
      ["Engine", health2.backend && `${health2.backend} on ${health2.device}`],
      ["Precision", health2.precision],
      ["Self-test", test ? `${test.passed ? "passed" : "FAILED"}: error ${short(test.error)}, limit ${short(test.bound)}` : "not run"],
      ["Window", health2.max_length ? `${count(health2.max_length)} tokens; longer: ${long}` : null],
      ["Speed", health2.tokens_per_second ? `${count(health2.tokens_per_second)} tokens/s` : null],
      ["Up", `${age(health2.uptime_seconds)}, version ${health2.version}`],
      ["Replica", health2.instance]
    ];
    this.about.replaceChildren(
      ...facts.filter(([, value]) => value).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { title: value }, value)))
    );
    this.load.replaceChildren(
      limit("Slots", health2.active, health2.max_parallel, count),
      limit("Queue", health2.waiting, health2.max_queue, count)
    );
    if (health2.gpu) this.gpu.box.querySelector("small").textContent = health2.gpu.name;
  }
  /** The history of a replica. */
  show(history) {
    const now = history.points.at(-1)?.figures;
    const metrics = history.latest?.metrics;
    if (!now || !metrics) return;
    this.gpu.box.hidden = now.gpu === null && now.gpuMemory === null;
    for (const panel of this.panels) panel.show(history.points);
    this.stages.show(history.points);
    const value = (name) => metrics.value(name) ?? void 0;
    this.load.replaceChildren(
      limit("Slots", value("reranker_active_requests"), value("reranker_max_parallel"), count),
      limit("Queue", value("reranker_waiting_requests"), value("reranker_max_queue"), count)
    );
    this.memory.replaceChildren(limit("Limit", now.memory ?? void 0, value("reranker_memory_limit_bytes"), bytes));
    this.showRejections(history);
  }
  redraw() {
    for (const panel of this.panels) panel.redraw();
    this.stages.redraw();
  }
  showRejections(history) {
    const total = history.latest.metrics.by("reranker_rejections_total", "reason");
    const before = history.first.metrics.by("reranker_rejections_total", "reason");
    const rows = [...total].sort(([, a], [, b]) => b - a);
    if (!rows.length) {
      this.refused.replaceChildren(element("p", { class: "calm" }, element("strong", {}, "None"), "No request was rejected since the start."));
      return;
    }
    const head = element("tr", {}, ...["Reason", "5 min", "since start"].map((name) => element("th", { scope: "col" }, name)));
    const body2 = rows.map(
      ([reason2, number]) => element(
        "tr",
        {},
        element("th", { scope: "row" }, REASONS[reason2] ?? reason2),
        element("td", {}, count(number - (before.get(reason2) ?? 0))),
        element("td", {}, count(number))
      )
    );
    this.refused.replaceChildren(element("table", { class: "figures-table" }, element("thead", {}, head), element("tbody", {}, ...body2)));
  }
};
function plain() {
  return [
    new Panel({
      title: "Requests",
      about: "per second",
      curves: [{ label: "All", figure: "requests" }, { label: "Rejected or failed", figure: "failed" }],
      format: short
    }),
    new Panel({
      title: "Documents",
      about: "per second",
      curves: [{ label: "Scored", figure: "model" }, { label: "From the cache", figure: "cache" }, { label: "Cache hits", figure: "hits", only: percent }],
      format: short
    }),
    new Panel({
      title: "Latency",
      about: "of a ranked request",
      curves: [{ label: "p95", figure: "request95" }, { label: "p50", figure: "request50" }],
      format: duration
    }),
    new Panel({
      title: "Batches",
      about: "of the token budget",
      curves: [{ label: "Fill", figure: "fill" }, { label: "Padding", figure: "padding" }],
      format: percent,
      top: 1
    })
  ];
}
function limit(name, used, most, format) {
  if (used === void 0 || most === void 0) return element("p", { class: "hint" }, `${name}: ${NONE}`);
  return element(
    "div",
    { class: "limit" },
    element("span", {}, name),
    meter(most ? used / most : 0),
    element("span", {}, `${format(used)} of ${format(most)}`)
  );
}

// src/excerpt.ts
var AROUND = 160;
var SHORT = 420;
function excerpt(text, window2) {
  const chars = Array.from(text);
  const isPart = window2 !== void 0 && (window2.start > 0 || window2.end < chars.length);
  if (!isPart && chars.length <= SHORT) return element("p", { class: "text" }, text);
  const box = element("div", { class: "text long" });
  const shown = isPart ? [marked(chars, window2, false)] : [element("p", {}, chars.slice(0, SHORT).join("").replace(/\s\S*$/, " …"))];
  const whole2 = isPart ? marked(chars, window2, true) : element("p", {}, text);
  whole2.hidden = true;
  const toggle = element("button", { type: "button", class: "link", "aria-expanded": "false" }, "Show all");
  toggle.addEventListener("click", () => {
    const opened = whole2.hidden;
    whole2.hidden = !opened;
    shown.forEach((part) => part.hidden = opened);
    toggle.textContent = opened ? "Show less" : "Show all";
    toggle.setAttribute("aria-expanded", String(opened));
  });
  const about = isPart ? `Best window: characters ${count(window2.start + 1)} to ${count(window2.end)} of ${count(chars.length)}` : `${count(chars.length)} characters`;
  const isAllShown = isPart && window2.start <= AROUND && window2.end + AROUND >= chars.length;
  box.append(...shown, element("p", { class: "about" }, about, ...isAllShown ? [] : [" · ", toggle]));
  if (!isAllShown) box.insertBefore(whole2, box.lastChild);
  return box;
}
function spans(text, found) {
  const chars = Array.from(text);
  const parts = [];
  let place = 0;
  for (const { start, end, score: score2 } of [...found].sort((one, other2) => one.start - other2.start)) {
    parts.push(chars.slice(place, start).join(""));
    parts.push(element("mark", { title: `Score ${short(score2)}` }, chars.slice(start, end).join("")));
    place = end;
  }
  const scores = found.map(({ score: score2 }) => short(score2)).join(", ");
  return element(
    "div",
    { class: "text" },
    element("p", {}, ...parts, chars.slice(place).join("")),
    element("p", { class: "about" }, `Best passages, scores: ${scores}`)
  );
}
function marked(chars, { start, end }, isWhole) {
  const before = chars.slice(isWhole ? 0 : Math.max(0, start - AROUND), start).join("");
  const after = chars.slice(end, isWhole ? chars.length : end + AROUND).join("");
  const isCutBefore = !isWhole && start > AROUND;
  const isCutAfter = !isWhole && end + AROUND < chars.length;
  return element(
    "p",
    {},
    isCutBefore ? before.replace(/^\S*\s/, "… ") : before,
    element("mark", {}, chars.slice(start, end).join("")),
    isCutAfter ? after.replace(/\s\S*$/, " …") : after
  );
}

// src/movement.ts
function movement(from, to) {
  const moved = from - to;
  const [kind, sign] = moved > 0 ? ["up", "▲"] : moved < 0 ? ["down", "▼"] : ["same", "＝"];
  const places = Math.abs(moved) === 1 ? "place" : "places";
  const words = moved ? `${moved > 0 ? "up" : "down"} ${Math.abs(moved)} ${places} from ${from}` : `still at ${from}`;
  return element(
    "span",
    { class: `move ${kind}`, title: words },
    element("span", { "aria-hidden": "true" }, moved ? `${sign} ${Math.abs(moved)}` : "–"),
    element("span", { class: "hidden" }, words)
  );
}

// src/csv.ts
function table(text, separator = guess(text)) {
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  for (let index = 0; index < text.length; index++) {
    const char = text[index];
    if (quoted) {
      if (char !== '"') cell += char;
      else if (text[index + 1] === '"') cell += text[++index];
      else quoted = false;
    } else if (char === '"' && cell === "") {
      quoted = true;
    } else if (char === separator) {
      row.push(cell);
      cell = "";
    } else if (char === "\n") {
      rows.push([...row, cell.replace(/\r$/, "")]);
      row = [];
      cell = "";
    } else {
      cell += char;
    }
  }
  if (cell || row.length) rows.push([...row, cell]);
  return rows;
}
function guess(text) {
  const header = text.split("\n", 1)[0] ?? "";
  const found = [",", ";", "	"].map((char) => [header.split(char).length, char]);
  return found.reduce((best, each) => each[0] > best[0] ? each : best)[1];
}

// src/passages.ts
var TEXT_NAMES = ["text", "content", "page_content", "pageContent", "passage", "document", "body", "abstract"];
var LIST_NAMES = ["documents", "passages", "texts"];
var LOOKS_LIKE_JSON = /^\s*(\[\s*["{[]|\{\s*")/;
function textOf(passage2) {
  if (typeof passage2 === "string") return passage2;
  for (const name of TEXT_NAMES.slice(0, 4)) {
    const value = passage2[name];
    if (typeof value === "string") return value;
  }
  return JSON.stringify(passage2);
}
function read(text) {
  if (LOOKS_LIKE_JSON.test(text)) return readJson(text);
  const passages2 = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  return { passages: passages2, kind: "lines" };
}
function readFile(name, text) {
  text = text.replace(/^\uFEFF/, "");
  const reading = /\.(csv|tsv)$/i.test(name) ? readTable(text, /\.tsv$/i.test(name) ? "	" : void 0) : read(text);
  if (!reading.passages.length) throw new Error(`${name} has no passages.`);
  return reading;
}
function write(passages2) {
  const plain2 = passages2.every(
    (passage2) => typeof passage2 === "string" && passage2.trim() === passage2 && passage2 && !/[\r\n]/.test(passage2)
  );
  const text = passages2.join("\n");
  if (plain2 && !LOOKS_LIKE_JSON.test(text)) return text;
  return `[
${passages2.map((passage2) => `  ${JSON.stringify(passage2)}`).join(",\n")}
]`;
}
function readJson(text) {
  let parsed;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    return readLines(text, error);
  }
  if (Array.isArray(parsed)) return { passages: parsed.map(passage), kind: "JSON" };
  const fields2 = parsed;
  const name = LIST_NAMES.find((each) => Array.isArray(fields2[each]));
  if (!name) return { passages: [passage(fields2, 0)], kind: "JSON" };
  const reading = { passages: fields2[name].map(passage), kind: "JSON" };
  if (typeof fields2["query"] === "string") reading.query = fields2["query"];
  return reading;
}
function readLines(text, whole2) {
  const lines2 = text.split(/\r?\n/).filter((line) => line.trim());
  const parsed = [];
  for (const [index, line] of lines2.entries()) {
    try {
      parsed.push(passage(JSON.parse(line), index));
    } catch (error) {
      if (error instanceof TypeError) throw error;
      const where = index ? `line ${index + 1}: ${reason(error)}` : reason(whole2);
      throw new TypeError(`The passages look like JSON, but they are not: ${where}`);
    }
  }
  return { passages: parsed, kind: "JSON lines" };
}
function reason(error) {
  return error instanceof Error ? error.message : String(error);
}
function passage(value, index) {
  if (typeof value === "string" || typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value;
  }
  throw new TypeError(`Passage ${index + 1} is neither a text nor an object: ${JSON.stringify(value).slice(0, 60)}`);
}
function readTable(text, separator) {
  const rows = table(text, separator).filter((row) => row.some((cell) => cell.trim()));
  const header = rows.shift()?.map((name) => name.trim()) ?? [];
  const lower = header.map((name) => name.toLowerCase());
  const named = TEXT_NAMES.map((name) => lower.indexOf(name.toLowerCase())).find((index) => index >= 0);
  const sizes = header.map((_, column3) => rows.reduce((sum2, row) => sum2 + (row[column3]?.length ?? 0), 0));
  const column2 = named ?? sizes.indexOf(Math.max(...sizes));
  const id = lower.indexOf("id");
  const passages2 = rows.map((row) => ({ id: row[id], text: row[column2]?.trim() ?? "" })).filter((row) => row.text).map((row) => row.id ? { id: row.id, text: row.text } : row.text);
  return { passages: passages2, kind: "CSV" };
}

// src/results.ts
var STAGES2 = [
  ["queue", "Queue"],
  ["prefilter", "First stage"],
  ["tokenize", "Tokenize"],
  ["inference", "Inference"]
];
var DEGRADED = {
  queue_full: "the queue was full",
  queue_timeout: "no slot became free in time",
  deadline_exceeded: "the deadline had passed",
  scoring_failed: "the model failed"
};
function list(passages2, results) {
  const width = barWidth(results);
  return element("ol", { class: "results" }, ...results.map((result, rank) => item(passages2, result, rank + 1, width(result))));
}
function figures2({ answer, roundTrip, warning }) {
  const { meta } = answer;
  return element(
    "div",
    { class: "figures" },
    times(answer, roundTrip),
    marks(answer),
    meta.degraded ? element(
      "p",
      { class: "alert warn" },
      `The model did not score everything: ${DEGRADED[meta.degraded] ?? meta.degraded}. The rest is in order of shared words.`
    ) : null,
    warning ? element("p", { class: "alert warn" }, `The service says: ${warning}`) : null
  );
}
function empty() {
  const bars = [92, 74, 58, 33, 18].map((width) => {
    const bar = element("i");
    bar.style.width = `${width}%`;
    return bar;
  });
  return element(
    "div",
    { class: "card empty" },
    element("div", { class: "ghost", "aria-hidden": "true" }, ...bars),
    element("h2", {}, "The ranking appears here"),
    element("p", {}, "Choose one of the examples, or enter a question and passages of your own. The model reads each passage together with the question and gives it a score.")
  );
}
function loading(passages2) {
  const rows = Array.from({ length: Math.min(passages2, 6) }, () => element("i"));
  return element("div", { class: "card skeleton" }, element("p", { class: "hint" }, `Reading ${counted(passages2, "passage")} …`), ...rows);
}
function failure(problem, action = null) {
  return element(
    "div",
    { class: "alert bad", role: "alert" },
    element("p", {}, element("strong", {}, problem.message)),
    problem.advice ? element("p", {}, problem.advice) : null,
    action
  );
}
function item(passages2, result, rank, width) {
  const passage2 = passages2[result.index] ?? "";
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
  bar.firstElementChild.style.width = `${width}%`;
  const id = result.id ?? (typeof passage2 === "string" ? void 0 : passage2.id);
  const aside = [
    id !== void 0 ? element("span", { class: "tag" }, String(id)) : null,
    result.prefiltered ? element("span", { class: "tag", title: "The first stage left it out, so the model did not read it" }, "not read: first stage") : null,
    result.unscored && !result.prefiltered ? element("span", { class: "tag", title: "The model did not score it in time" }, "not scored") : null
  ].filter((each) => each !== null);
  return element(
    "li",
    { class: result.unscored ? "result unscored" : "result", "data-index": result.index },
    element("span", { class: "rank", "aria-hidden": "true" }, String(rank)),
    element(
      "div",
      { class: "what" },
      result.spans?.length ? spans(textOf(passage2), result.spans) : excerpt(textOf(passage2), result.window),
      aside.length ? element("p", { class: "tags" }, ...aside) : null
    ),
    element(
      "div",
      { class: "score" },
      element("span", { class: "number" }, element("span", { class: "hidden" }, "Score "), score(result.relevance_score)),
      bar,
      movement(result.index + 1, rank)
    )
  );
}
function score(value) {
  return Math.abs(value) < 1e-3 && value ? value.toExponential(0) : value.toFixed(3);
}
function barWidth(results) {
  const scores = results.filter((result) => !result.unscored).map((result) => result.relevance_score);
  const low = Math.min(...scores);
  const high = Math.max(...scores);
  const isShare = low >= 0 && high <= 1;
  return (result) => {
    if (result.unscored) return 0;
    const share = isShare ? result.relevance_score : high > low ? (result.relevance_score - low) / (high - low) : 1;
    return Math.max(1, Math.round(share * 1e3) / 10);
  };
}
function times(answer, roundTrip) {
  const timings = answer.meta.timings_ms;
  const parts = STAGES2.filter(([name]) => name !== "prefilter" || timings.prefilter > 0);
  const sum2 = parts.reduce((total, [name]) => total + timings[name], 0);
  const bar = element("div", { class: "times", "aria-hidden": "true", hidden: sum2 < 0.01 });
  const legend = element("dl", { class: "legend" });
  for (const [name, label] of parts) {
    const part = element("i", { class: name });
    part.style.flexGrow = String(sum2 ? timings[name] / sum2 * 1e3 : 0);
    bar.append(part);
    legend.append(element("div", { class: name }, element("dt", {}, label), element("dd", {}, duration(timings[name] / 1e3))));
  }
  return element(
    "div",
    { class: "timing" },
    element(
      "p",
      { class: "total" },
      element("strong", {}, duration(timings.total / 1e3)),
      ` in the service · ${duration(roundTrip / 1e3)} as seen here · ${count(answer.usage.total_tokens)} tokens`
    ),
    bar,
    legend
  );
}
function marks(answer) {
  const { meta } = answer;
  const shown = [
    [meta.cached, "cached", "Their scores were in the cache"],
    [meta.prefiltered, "left out by the first stage", "The model did not read them"],
    [meta.truncated, "truncated", "They were longer than the model's window"],
    [meta.repaired ?? 0, "repaired", "Broken characters were replaced"]
  ];
  const made = shown.filter(([number]) => number > 0).map(([number, words, why]) => element("li", { class: "tag", title: why }, `${count(number)} ${words}`));
  if (meta.degraded) made.push(element("li", { class: "tag bad" }, "degraded"));
  if (meta.fusion && meta.fusion !== "off") made.push(element("li", { class: "tag" }, `fusion: ${meta.fusion}`));
  return made.length ? element("ul", { class: "tags", "aria-label": "Marks" }, ...made) : null;
}
function spoken(passages2, { answer }) {
  const best = answer.results[0];
  const first = best ? ` First: ${textOf(passages2[best.index] ?? "").slice(0, 120)}, score ${short(best.relevance_score)}.` : "";
  return `${counted(answer.results.length, "passage")} ranked.${first}`;
}

// src/dashboard.ts
var PERIOD = 2e3;
var UNAUTHORIZED = 401;
var NOT_FOUND = 404;
var Dashboard = class {
  /** `askKey` opens the dialog for the key. */
  constructor(service2, askKey2) {
    this.service = service2;
    this.askKey = askKey2;
    byId("panels").append(...this.panels.boxes);
    this.choice.addEventListener("change", () => this.show());
  }
  service;
  askKey;
  panels = new Panels();
  replicas = new Replicas();
  notices = byId("notices");
  choice = element("select", { "aria-label": "Replica" });
  isStarted = false;
  isVisible = false;
  hasCharts = true;
  /** Why there are no metrics; they are not asked for again, because each try counts as a rejection. */
  refusal = null;
  /** Call when the tab is shown or left. The history goes on in the background. */
  async visible(isVisible) {
    this.isVisible = isVisible;
    if (!isVisible) return;
    if (!this.isStarted) {
      this.isStarted = true;
      this.hasCharts = await loadCharts();
      byId("dashboard").classList.toggle("plain", !this.hasCharts);
      await this.loop();
    }
    this.redraw();
  }
  /** Call after the key has changed. */
  retry() {
    this.refusal = null;
    if (this.isStarted) void this.read();
  }
  redraw() {
    if (this.isVisible) this.panels.redraw();
  }
  async loop() {
    if (!document.hidden) await this.read();
    window.setTimeout(() => void this.loop(), PERIOD);
  }
  async read() {
    const [state, scraped] = await Promise.allSettled([health(this.service), this.refusal ? null : this.scrape()]);
    if (state.status === "fulfilled") this.panels.showHealth(state.value);
    const reason2 = [state, scraped].find((each) => each.status === "rejected")?.reason;
    const problem = reason2 instanceof Problem ? reason2 : null;
    if (problem && [UNAUTHORIZED, NOT_FOUND].includes(problem.status)) this.refusal = problem;
    this.show();
    this.notify(this.refusal ?? problem);
  }
  async scrape() {
    const response = await this.service.call("metrics", { headers: { Accept: "text/plain" }, signal: patience() });
    const metrics = new Exposition(await response.text());
    const name = response.headers.get("x-reranker-instance") ?? "the service";
    this.replicas.add(name, { time: Date.now() / 1e3, metrics });
  }
  show() {
    const { names: names2, latest } = this.replicas;
    const listed = [...this.choice.options].map((option) => option.value).join();
    if (listed !== names2.join()) {
      const chosen = this.choice.value;
      this.choice.replaceChildren(...names2.map((name) => element("option", { value: name }, name)));
      this.choice.value = names2.includes(chosen) ? chosen : latest;
    }
    const history = this.replicas.of(this.choice.value);
    if (history && this.isVisible) this.panels.show(history);
  }
  notify(problem) {
    const shown = [];
    if (problem?.status === UNAUTHORIZED) {
      const button = element("button", { type: "button", class: "primary" }, "Enter a key");
      button.addEventListener("click", this.askKey);
      const message2 = this.service.key ? problem.message : "The metrics of this service need an API key.";
      shown.push(failure({ message: message2, advice: "RERANKER_PROTECT_METRICS is on." }, button));
    } else if (problem?.status === NOT_FOUND) {
      shown.push(failure({ message: problem.message, advice: "Open the page of a replica to see its curves." }));
    } else if (problem) {
      shown.push(failure(problem));
    }
    if (!this.hasCharts) {
      shown.push(element("p", { class: "alert" }, "Figures only: for curves, run scripts/ui vendor where the service is installed, and restart it."));
    }
    if (this.replicas.names.length > 1) {
      const now = element("span", { class: "hint" }, `${this.replicas.latest} answered last`);
      shown.push(element("p", { class: "replicas" }, "Curves of replica ", this.choice, " ", now));
    }
    const key = shown.map((each) => each.textContent).join("|");
    if (this.notices.dataset["key"] === key) return;
    this.notices.dataset["key"] = key;
    this.notices.replaceChildren(...shown);
  }
};

// src/key.ts
function keyDialog(service2, changed) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  const button = byId("key-open");
  const use = (key) => {
    service2.key = key.trim();
    button.textContent = service2.key ? "Key ✓" : "Key";
    button.setAttribute("aria-label", service2.key ? "API key: set" : "API key: none");
    changed();
  };
  const open = () => {
    field.value = service2.key;
    dialog.showModal();
    field.focus();
  };
  button.addEventListener("click", open);
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
    use(field.value);
    if (service2.key) toast("The page sends this key until you reload");
  });
  byId("key-forget").addEventListener("click", () => {
    dialog.close();
    use("");
  });
  return open;
}

// src/snippets.ts
var SNIPPETS = [
  { name: "curl", note: "", code: curl },
  { name: "Python", note: "Needs reranker_client, from the repository of the service.", code: python },
  { name: "TypeScript", note: "", code: typescript },
  { name: "LangChain", note: "Needs langchain-core and reranker_client.", code: langchain }
];
function curl(url, body2, hasKey) {
  const key = hasKey ? ` \\
  -H "Authorization: Bearer $RERANKER_API_KEY"` : "";
  return `curl -s ${url}/rerank/query -H 'Content-Type: application/json'${key} \\
  --data-binary @- <<'JSON'
${JSON.stringify(body2, null, 2)}
JSON`;
}
function python(url, body2, hasKey) {
  return `${hasKey ? "import os\n\n" : ""}from reranker_client import Client

documents = ${literal(body2.documents, "")}

with ${client(url, hasKey)} as client:
    ranking = client.rerank(
        ${literal(body2.query, "")},
        documents,${options(body2, "        ")}
    )
    for result in ranking:
        print(f"{result.relevance_score:.4f}", documents[result.index])`;
}
function langchain(url, body2, hasKey) {
  const documents = body2.documents.map((each) => {
    const metadata = typeof each !== "string" && each.id !== void 0 ? `, metadata=${literal({ id: each.id }, "")}` : "";
    return `    Document(page_content=${literal(textOf(each), "")}${metadata}),`;
  }).join("\n");
  return `${hasKey ? "import os\n" : ""}from collections.abc import Sequence
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from reranker_client import Client

client = ${client(url, hasKey)}


class Reranker(BaseDocumentCompressor):
    """Goes into a ContextualCompressionRetriever, as its base_compressor."""

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> list[Document]:
        ranking = client.rerank(
            query,
            [document.page_content for document in documents],${options(body2, "            ")}
        )
        return [documents[result.index] for result in ranking]


documents = [
${documents}
]
for document in Reranker().compress_documents(documents, ${literal(body2.query, "")}):
    print(document.page_content)`;
}
function typescript(url, body2, hasKey) {
  const key = hasKey ? `
    Authorization: \`Bearer \${process.env.RERANKER_API_KEY}\`,` : "";
  return `const body = ${JSON.stringify(body2, null, 2)};

const response = await fetch(${JSON.stringify(`${url}/rerank/query`)}, {
  method: "POST",
  headers: {
    "Content-Type": "application/json",${key}
  },
  body: JSON.stringify(body),
});
if (!response.ok) throw new Error((await response.json()).message);

const { results }: { results: { index: number; relevance_score: number }[] } = await response.json();
for (const { index, relevance_score } of results) {
  console.log(relevance_score.toFixed(4), body.documents[index]);
}`;
}
function client(url, hasKey) {
  return `Client(${literal(url, "")}${hasKey ? `, api_key=os.environ["RERANKER_API_KEY"]` : ""})`;
}
function options(body2, indent) {
  return Object.entries(body2).filter(([name]) => name !== "query" && name !== "documents").map(([name, value]) => `
${indent}${name}=${literal(value, indent)},`).join("");
}
function literal(value, indent) {
  if (value === null || value === void 0) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    return value.length ? `[
${value.map((each) => `${indent}    ${literal(each, `${indent}    `)},
`).join("")}${indent}]` : "[]";
  }
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, indent)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

// src/tabs.ts
function tabs(buttons, chosen) {
  const select2 = (index) => {
    buttons.forEach((button, each) => {
      button.setAttribute("aria-selected", String(each === index));
      button.tabIndex = each === index ? 0 : -1;
    });
    chosen(index);
  };
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => select2(index));
    button.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 };
      const next = steps[event.key];
      if (next === void 0) return;
      event.preventDefault();
      const target = (next + buttons.length) % buttons.length;
      select2(target);
      buttons[target].focus();
    });
  });
  return select2;
}

// src/code.ts
function codeDialog() {
  const dialog = byId("code-dialog");
  let current2 = null;
  const buttons = SNIPPETS.map(
    ({ name }) => element("button", { type: "button", role: "tab", id: `code-${name.toLowerCase()}`, "aria-controls": "code" }, name)
  );
  byId("code-tabs").append(...buttons);
  const show2 = tabs(buttons, (index) => {
    const snippet = SNIPPETS[index];
    if (current2) byId("code").textContent = snippet.code(...current2);
    const key = current2?.[2] ? "Reads the key from RERANKER_API_KEY." : "";
    byId("code-note").textContent = [snippet.note, key].filter(Boolean).join(" ");
    byId("code").setAttribute("aria-label", `The request in ${snippet.name}`);
  });
  byId("code-copy").addEventListener("click", async () => {
    const copied = await copy(byId("code").textContent ?? "");
    toast(copied ? "Copied" : "The browser does not allow copying: select the code instead");
  });
  byId("code-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  return (...request) => {
    current2 = request;
    show2(Math.max(0, buttons.findIndex((button) => button.getAttribute("aria-selected") === "true")));
    dialog.showModal();
  };
}

// src/comparison.ts
var GUTTER = 56;
var ROW = 64;
function comparison(passages2, left, right) {
  const ranked = [left, right].map(({ outcome: outcome2 }) => "answer" in outcome2 ? outcome2.answer.results : null);
  const [mine, other2] = ranked;
  const box = element("div", { class: "versus" });
  box.append(
    column(passages2, left, mine ?? null, other2 ?? null),
    mine && other2 ? lines(mine, other2) : element("div", { class: "gutter" }),
    column(passages2, right, other2 ?? null, mine ?? null)
  );
  return element("div", { class: "card comparison" }, mine && other2 ? verdict(mine, other2) : null, box);
}
function verdict(mine, other2) {
  const places = new Map(other2.map((result, rank) => [result.index, rank]));
  const moves = mine.map((result, rank) => {
    const place = places.get(result.index);
    return place === void 0 ? null : Math.abs(place - rank);
  });
  const same = moves.filter((move) => move === 0).length;
  const largest = Math.max(0, ...moves.map((move) => move ?? 0));
  const isSameFirst = mine[0]?.index === other2[0]?.index;
  const text = same === mine.length && mine.length === other2.length ? "Both services agree on every place." : `${isSameFirst ? "The same passage is first." : "Another passage is first."} ${same} of ${counted(mine.length, "passage")} in the same place; the largest move is ${counted(largest, "place")}.`;
  return element("p", { class: "verdict" }, text);
}
function column(passages2, side, own, theirs) {
  const { outcome: outcome2 } = side;
  const head = element("div", { class: "head" }, element("h2", {}, side.name));
  if (!("answer" in outcome2) || !own) {
    return element("section", { class: "column", "aria-label": side.name }, head, failure(outcome2));
  }
  const { meta, model } = outcome2.answer;
  head.append(element("p", { class: "hint" }, `${model} · ${duration(meta.timings_ms.total / 1e3)}`));
  const rows = own.map((result, rank) => {
    const there = theirs?.findIndex((each) => each.index === result.index) ?? -1;
    const change = theirs ? describe(rank, there) : "";
    return element(
      "li",
      { "data-index": result.index, title: textOf(passages2[result.index] ?? "").slice(0, 600) },
      element("span", { class: "rank", "aria-hidden": "true" }, String(rank + 1)),
      element("span", { class: "line" }, textOf(passages2[result.index] ?? "")),
      element("span", { class: "number" }, result.relevance_score.toFixed(3)),
      element("span", { class: "hidden" }, change)
    );
  });
  return element("section", { class: "column", "aria-label": side.name }, head, element("ol", {}, ...rows));
}
function describe(rank, there) {
  if (there < 0) return "missing in the other ranking";
  return there === rank ? "the same place in the other ranking" : `place ${there + 1} in the other ranking`;
}
function lines(mine, other2) {
  const height = Math.max(mine.length, other2.length) * ROW;
  const middle = (rank) => rank * ROW + ROW / 2;
  const drawn = mine.flatMap((result, rank) => {
    const there = other2.findIndex((each) => each.index === result.index);
    if (there < 0) return [];
    const kind = there === rank ? "same" : there < rank ? "up" : "down";
    const [from, to] = [middle(rank), middle(there)];
    return [
      shape("path", {
        class: kind,
        d: `M2 ${from} C ${GUTTER / 2} ${from}, ${GUTTER / 2} ${to}, ${GUTTER - 2} ${to}`
      })
    ];
  });
  const drawing = shape(
    "svg",
    { viewBox: `0 0 ${GUTTER} ${height}`, width: GUTTER, height, "aria-hidden": "true" },
    ...drawn
  );
  return element("div", { class: "gutter" }, drawing);
}

// src/examples.ts
var BREAD = {
  name: "A question",
  query: "Why does bread go stale faster in the fridge?",
  passages: [
    "A fridge should be set to four degrees Celsius. Milk, meat and leftovers spoil quickly above that.",
    "To make a loaf rise faster, put the dough in a warm place and cover it with a damp towel.",
    "Stale bread makes good croutons: cut it into cubes, add oil and salt, and bake it for ten minutes.",
    "Rye bread contains less gluten than wheat bread and stays moist for longer.",
    "Frozen bread keeps for three months. Slice it first, so that you can toast single pieces.",
    "Mould grows on a loaf within days at room temperature, because it is warm and damp there.",
    "Bread goes stale because its starch crystallises and loses water. This happens most quickly just above freezing, so a loaf in the fridge turns dry sooner than one on the counter.",
    "A bread bin lets a little air in and keeps the crust from getting soft.",
    "Cold bread turns stale sooner than warm bread. Toasting makes it soft again for a while."
  ]
};
var SUPPORT = {
  name: "Support articles",
  query: "I was charged twice for one order. How do I get my money back?",
  passages: [
    "How to place an order: choose a product, put it into the cart, and pay by card or bank transfer.",
    "Delivery is charged once for each order, even if it is sent in several parcels.",
    "The sale ends twice a year, in January and in July.",
    "Gift cards cannot be exchanged for money. They are valid for three years.",
    "To change or cancel an order, open it in your account within one hour.",
    "Your invoice is sent by e-mail as soon as the order has left our warehouse.",
    "Refunds for returned goods: send the parcel back within 30 days, and we pay the money back when it has arrived.",
    "A payment fails if the address of the card and of the order differ.",
    "If you were charged two times, the second payment is usually a reservation that your bank releases within three days. Otherwise send us the order number, and we refund the duplicate payment."
  ]
};
var POLICY = {
  name: "Long documents",
  query: "When may heavy vehicles use the bridge?",
  options: { longDocuments: "chunk_max", windowTokens: "80" },
  passages: [
    "The harbour bridge was opened in 1931. It replaced a ferry that had crossed the river every twenty minutes since the days of the salt trade, and it was for some years the longest bridge of its kind in the country. Its architect had planned four towers; two were built, because the money for the others went into the foundations, which had to be sunk through eighteen metres of mud. The bridge was painted green at first, then grey during the war, and got its red coat in 1958 after a vote among the readers of the local newspaper. On the day of the opening forty thousand people walked across. A small museum in the northern tower shows photographs of the work, the diving bell that the masons used, and the speech of the mayor, who lost his hat to the wind in the middle of it. The museum is open from Wednesday to Sunday, and from the roof of the tower one can see the lighthouse on a clear day.",
    "Rules for traffic in the harbour. One: the speed limit is 30 kilometres per hour on all quays and 20 between the warehouses. Two: parking is only allowed in the marked areas. Trailers without a vehicle are removed after one day, and the owner pays for it. Three: the railway has the right of way at all crossings. Drivers stop at the white line even if no signal is shown, because shunting engines are quiet. Four: cyclists use the path along the water. It is closed while ships are being loaded at quay seven, and a sign shows the way around. Five: vehicles with dangerous goods register at the gate house and follow the yellow signs. Six: vehicles of more than 7.5 tonnes use the bridge only between nine in the evening and six in the morning, and on Sundays not at all; at other times they take the tunnel. Buses and the fire brigade are exempt. Seven: in fog the harbour master may close single quays. The closure is shown on the boards at the gates. Eight: who causes damage reports it to the gate house before leaving. The number of the gate house is on the back of each entry permit. Entry permits are issued for a day, a month or a year. They are valid for one vehicle and cannot be transferred. Lost permits are replaced for a fee.",
    "Lorries are washed at the depot behind the harbour. The wash is open on weekdays from seven to five and on Saturdays until noon. A wash takes about twenty minutes for a lorry and forty with a trailer. Book it at the counter or by telephone; drivers who come without an appointment wait until there is a gap. The depot also checks tyres and lights, and sells oil, bulbs and straps. The canteen next door serves breakfast from six.",
    "The new bridge for pedestrians connects the park and the old town. Dogs are kept on a lead, and bicycles are pushed."
  ]
};
var EXAMPLES = [BREAD, SUPPORT, POLICY];

// src/request.ts
var NO_OPTIONS = {
  topK: "",
  maxSpans: "",
  rawScores: false,
  longDocuments: "",
  windowTokens: "",
  prefilter: "",
  prefilterTopK: "",
  instruction: ""
};
function body(query2, passages2, options3) {
  if (!query2.trim()) throw new Error("Enter a question.");
  if (!passages2.length) throw new Error("Enter at least one passage: one on each line.");
  const made = { query: query2.trim(), documents: passages2 };
  const windowTokens = positive(options3.windowTokens, "Tokens per window");
  const topK = positive(options3.topK, "Results to return");
  const maxSpans = positive(options3.maxSpans, "Best passages to mark");
  const kept = positive(options3.prefilterTopK, "Passages it keeps");
  if (topK) made.top_k = topK;
  if (maxSpans) made.max_spans = maxSpans;
  if (options3.rawScores) made.raw_scores = true;
  if (options3.longDocuments) made.long_documents = options3.longDocuments;
  if (windowTokens) made.max_tokens_per_doc = windowTokens;
  if (options3.prefilter) made.prefilter = options3.prefilter;
  if (kept) made.prefilter_top_k = kept;
  if (options3.instruction.trim()) made.instruction = options3.instruction.trim();
  return made;
}
function summary(options3) {
  const parts = [
    options3.topK && `top ${options3.topK}`,
    options3.maxSpans && `best passages: ${options3.maxSpans}`,
    options3.rawScores && "raw scores",
    options3.longDocuments && `long documents: ${options3.longDocuments}`,
    options3.windowTokens && `${options3.windowTokens} tokens`,
    options3.prefilter && `first stage: ${options3.prefilter}`,
    options3.prefilterTopK && `keeps ${options3.prefilterTopK}`,
    options3.instruction.trim() && "instruction"
  ];
  return parts.filter(Boolean).join(" · ");
}
function positive(value, name) {
  if (!value.trim()) return void 0;
  const number = Number(value);
  if (!Number.isInteger(number) || number < 1) throw new Error(`${name}: ${value} is not a whole number above 0.`);
  return number;
}

// src/form.ts
var MAX_FILE_BYTES = 8 * 1024 * 1024;
var query = byId("query");
var passages = byId("passages");
var fields = {
  topK: byId("top-k"),
  maxSpans: byId("max-spans"),
  longDocuments: byId("long-documents"),
  windowTokens: byId("window-tokens"),
  prefilter: byId("prefilter"),
  prefilterTopK: byId("prefilter-top-k"),
  instruction: byId("instruction")
};
var rawScores = byId("raw-scores");
var compare = byId("compare");
var otherUrl = byId("other-url");
function form(failed) {
  byId("ask").addEventListener("input", refresh);
  byId("ask").addEventListener("change", refresh);
  passages.addEventListener("paste", () => window.setTimeout(takeQuery));
  const file = byId("file");
  byId("browse").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files?.[0]) void take(file.files[0], failed);
    file.value = "";
  });
  drops(failed);
  refresh();
}
function current() {
  const reading = read(passages.value);
  return { request: body(query.value, reading.passages, options2()), passages: reading.passages };
}
function other() {
  return compare.checked ? otherUrl.value : null;
}
function toShare() {
  return { query: query.value, passages: passages.value, options: options2(), other: other() ?? "" };
}
function fill(shared) {
  query.value = shared.query;
  passages.value = shared.passages;
  for (const [name, field] of Object.entries(fields)) field.value = String(shared.options[name] ?? "");
  rawScores.checked = shared.options.rawScores === true;
  compare.checked = shared.other !== "";
  otherUrl.value = shared.other || otherUrl.value;
  byId("options").open ||= compare.checked;
  refresh();
}
function options2() {
  return {
    topK: fields.topK.value,
    maxSpans: fields.maxSpans.value,
    rawScores: rawScores.checked,
    longDocuments: fields.longDocuments.value,
    windowTokens: fields.windowTokens.value,
    prefilter: fields.prefilter.value,
    prefilterTopK: fields.prefilterTopK.value,
    instruction: fields.instruction.value
  };
}
function refresh() {
  byId("other").hidden = !compare.checked;
  byId("options-summary").textContent = [summary(options2()), compare.checked && "compare"].filter(Boolean).join(" · ");
  const line = byId("count");
  line.classList.remove("bad");
  try {
    const reading = read(passages.value);
    const chars = reading.passages.reduce((sum2, each) => sum2 + textOf(each).length, 0);
    const kind = reading.kind === "lines" ? "" : ` · read as ${reading.kind}`;
    line.textContent = reading.passages.length ? `${counted(reading.passages.length, "passage")} · ${count(chars)} characters${kind}` : "One on each line, in the order of your search";
  } catch (error) {
    line.classList.add("bad");
    line.textContent = error.message;
  }
}
function takeQuery() {
  try {
    const reading = read(passages.value);
    if (reading.query !== void 0) accept(reading);
  } catch {
  }
}
function accept(reading) {
  if (reading.query !== void 0) query.value = reading.query;
  passages.value = write(reading.passages);
  refresh();
}
async function take(file, failed) {
  try {
    if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} is larger than 8 MiB.`);
    const reading = readFile(file.name, await file.text());
    accept(reading);
    say(`${counted(reading.passages.length, "passage")} from ${file.name}`);
  } catch (error) {
    failed(error.message);
  }
}
function drops(failed) {
  const zone = byId("drop");
  const hasFile = (event) => event.dataTransfer?.types.includes("Files") ?? false;
  for (const name of ["dragover", "drop"]) {
    window.addEventListener(name, (event) => {
      if (hasFile(event)) event.preventDefault();
    });
  }
  zone.addEventListener("dragenter", (event) => zone.classList.toggle("over", hasFile(event)));
  zone.addEventListener("dragleave", (event) => {
    if (!zone.contains(event.relatedTarget)) zone.classList.remove("over");
  });
  zone.addEventListener("drop", (event) => {
    zone.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    void take(file, failed);
  });
}

// src/share.ts
var PREFIX = "#r=";
async function link(shared) {
  const bytes2 = new TextEncoder().encode(JSON.stringify(shared));
  const packed = await through(bytes2, new CompressionStream("deflate-raw"));
  const text = btoa(Array.from(packed, (byte) => String.fromCharCode(byte)).join(""));
  const page = window.location.href.split("#", 1)[0];
  return page + PREFIX + text.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}
async function restore(fragment) {
  if (!fragment.startsWith(PREFIX)) return null;
  try {
    const text = atob(fragment.slice(PREFIX.length).replace(/-/g, "+").replace(/_/g, "/"));
    const bytes2 = Uint8Array.from(text, (char) => char.charCodeAt(0));
    const found = JSON.parse(
      new TextDecoder().decode(await through(bytes2, new DecompressionStream("deflate-raw")))
    );
    return {
      query: String(found.query ?? ""),
      passages: String(found.passages ?? ""),
      options: { ...NO_OPTIONS, ...found.options },
      other: String(found.other ?? "")
    };
  } catch {
    throw new Error("The link is damaged: part of it may be missing.");
  }
}
async function through(bytes2, stream) {
  const piped = new Blob([bytes2]).stream().pipeThrough(stream);
  return new Uint8Array(await new Response(piped).arrayBuffer());
}

// src/playground.ts
var UNAUTHORIZED2 = 401;
var Playground = class {
  /** `askKey` opens the dialog for the key. */
  constructor(service2, askKey2) {
    this.service = service2;
    this.askKey = askKey2;
    form((message2) => this.show(failure(new Problem(message2))));
    this.show(empty());
    this.examples();
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else void this.rank();
    });
    byId("ask").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || this.running) return;
      event.preventDefault();
      void this.rank();
    });
    const openCode = codeDialog();
    byId("copy-as").addEventListener("click", () => {
      this.attempt(() => openCode(service2.url, current().request, service2.key !== ""));
    });
    byId("share").addEventListener("click", () => void this.share());
  }
  service;
  askKey;
  answer = byId("answer");
  send = byId("send");
  running = null;
  /** Fill the form from the fragment of the URL, if it has a request. */
  async restore() {
    try {
      const shared = await restore(window.location.hash);
      if (!shared) return;
      fill(shared);
      byId("query").focus();
    } catch (error) {
      this.show(failure(new Problem(error.message)));
    }
  }
  examples() {
    for (const example of EXAMPLES) {
      const button = element("button", { type: "button", class: "chip" }, example.name);
      button.addEventListener("click", () => {
        const options3 = { ...NO_OPTIONS, ...example.options };
        fill({ query: example.query, passages: example.passages.join("\n"), options: options3, other: other() ?? "" });
        if (!this.running) void this.rank();
      });
      byId("examples").append(button);
    }
  }
  async rank() {
    let asked;
    let second = null;
    try {
      asked = current();
      const typed = other();
      if (typed !== null) {
        second = new Service(serviceUrl(typed));
        second.key = byId("other-key").value.trim();
      }
    } catch (error) {
      const problem = error instanceof Problem ? error : new Problem(error.message);
      this.show(failure(problem));
      return;
    }
    this.running = new AbortController();
    this.busy(true, asked.passages.length);
    try {
      const { signal } = this.running;
      const calls = [this.service, second].flatMap((each) => each ? [outcome(each, asked.request, signal)] : []);
      const [own, theirs] = await Promise.all(calls);
      if (own) this.present(asked.passages, own, second, theirs);
    } catch {
      this.show(empty());
      say("Cancelled");
    } finally {
      this.running = null;
      this.busy(false);
    }
  }
  present(passages2, own, second, theirs) {
    if (second && theirs) {
      const left = { name: "This service", outcome: own };
      const right = { name: second.url.replace(/^https?:\/\//, ""), outcome: theirs };
      this.show(comparison(passages2, left, right));
      say("Both rankings are here");
    } else if (own instanceof Problem) {
      this.show(failure(own, own.status === UNAUTHORIZED2 ? this.keyButton() : null));
    } else {
      const { results, meta } = own.answer;
      const left = meta.documents - results.length;
      const rest = left > 0 ? element("p", { class: "hint rest" }, `${counted(left, "passage")} not returned`) : "";
      const title = element("h2", { class: "hidden" }, "Ranking");
      this.show(element("div", { class: "card" }, title, figures2(own), list(passages2, results), rest));
      say(spoken(passages2, own));
    }
  }
  keyButton() {
    const button = element("button", { type: "button", class: "primary" }, "Enter a key");
    button.addEventListener("click", this.askKey);
    return button;
  }
  async share() {
    const url = await link(toShare());
    window.history.replaceState(null, "", url);
    const copied = await copy(url);
    toast(copied ? "Link copied. It holds the request, and no key" : "The link is in the address bar");
  }
  attempt(action) {
    try {
      action();
    } catch (error) {
      this.show(failure(new Problem(error.message)));
    }
  }
  busy(isBusy, passages2 = 0) {
    this.answer.setAttribute("aria-busy", String(isBusy));
    this.send.textContent = isBusy ? "Cancel" : "Rank";
    this.send.classList.toggle("running", isBusy);
    if (!isBusy) return;
    say(`Ranking ${counted(passages2, "passage")}`);
    const hasList = this.answer.querySelector("ol") !== null;
    this.answer.classList.toggle("stale", hasList);
    if (!hasList) this.show(loading(passages2));
  }
  show(content) {
    this.answer.classList.remove("stale");
    this.answer.replaceChildren(content);
    const isBelow = this.answer.getBoundingClientRect().top > window.innerHeight * 0.7;
    if (isBelow && content.matches(":not(.empty)")) this.answer.scrollIntoView({ block: "start" });
  }
};
async function outcome(service2, request, signal) {
  try {
    return await service2.rank(request, signal);
  } catch (error) {
    if (error instanceof Problem) return error;
    throw error;
  }
}

// src/theme.ts
var CHOICES = ["system", "light", "dark"];
var NAMES2 = { system: "as the system", light: "light", dark: "dark" };
var PATHS = {
  system: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6 19 19M5 19l1.4-1.4M17.6 6.4 19 5",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z"
};
var STORED = "reranker-theme";
function theme(changed) {
  const button = byId("theme");
  let choice = CHOICES.find((each) => each === stored()) ?? "system";
  const apply = () => {
    if (choice === "system") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = choice;
    button.setAttribute("aria-label", `Colours: ${NAMES2[choice]}`);
    button.title = `Colours: ${NAMES2[choice]}`;
    button.replaceChildren(shape("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, shape("path", { d: PATHS[choice] })));
    changed();
  };
  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    store(choice);
    apply();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  apply();
}
function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}
function store(choice) {
  try {
    localStorage.setItem(STORED, choice);
  } catch {
  }
}

// src/main.ts
var DASHBOARD = "#dashboard";
var names = ["playground", "dashboard"];
var service = new Service(new URL(".", document.baseURI).href.replace(/\/$/, ""));
var askKey = keyDialog(service, () => {
  void showInstruction();
  dashboard.retry();
});
var playground = new Playground(service, askKey);
var dashboard = new Dashboard(service, askKey);
var select = tabs(
  names.map((name) => byId(`tab-${name}`)),
  (index) => {
    names.forEach((name, each) => byId(name).hidden = each !== index);
    void dashboard.visible(index === 1);
    const page = window.location.href.split("#", 1)[0];
    if (index === 1) window.history.replaceState(null, "", page + DASHBOARD);
    else if (window.location.hash === DASHBOARD) window.history.replaceState(null, "", page);
  }
);
async function showInstruction() {
  const takes = await takesInstruction(service);
  byId("instruction-field").hidden = takes !== true;
}
async function follow() {
  if (window.location.hash === DASHBOARD) select(1);
  else {
    await playground.restore();
    if (window.location.hash) select(0);
  }
}
theme(() => dashboard.redraw());
void watchHealth(service);
void showInstruction();
void follow();
window.addEventListener("hashchange", () => void follow());
