// A service: its URL, its key, and calls to it. What goes wrong becomes a Problem in words.

import type { RerankBody } from "./request";

/** A part of a text: half-open, in code points, as Python counts them. */
export interface Span {
  start: number;
  end: number;
}

export interface Result {
  index: number;
  relevance_score: number;
  fused_score?: number;
  id?: string | number;
  unscored?: true;
  prefiltered?: true;
  window?: Span;
  /** The best passages inside, best first. */
  spans?: (Span & { score: number })[];
}

export interface Timings {
  queue: number;
  prefilter: number;
  tokenize: number;
  inference: number;
  total: number;
}

export interface Answer {
  model: string;
  results: Result[];
  usage: { total_tokens: number };
  meta: {
    documents: number;
    scored: number;
    cached: number;
    prefiltered: number;
    truncated: number;
    repaired?: number;
    degraded: false | string;
    fusion?: string;
    timings_ms: Timings;
  };
}

export interface Ranked {
  answer: Answer;
  /** Milliseconds as seen from the browser. */
  roundTrip: number;
  warning: string | null;
}

/** A failure in words: what happened, and what to do. */
export class Problem extends Error {
  constructor(
    override readonly message: string,
    readonly advice = "",
    readonly status = 0,
  ) {
    super(message);
  }
}

/** A signal for calls that nobody can cancel. */
export const patience = (): AbortSignal => AbortSignal.timeout(10_000);

export class Service {
  /** Only in the memory of the page. */
  key = "";

  constructor(readonly url: string) {}

  /** Rank. Rejects with a Problem, or with an AbortError. */
  async rank(body: RerankBody, signal: AbortSignal): Promise<Ranked> {
    const started = performance.now();
    const response = await this.call("rerank/query", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    const answer = (await response.json().catch(() => null)) as Answer | null;
    if (!answer?.results || !answer.meta) {
      throw new Problem(`${this.url} does not answer like a reranker.`, "Check the URL.", response.status);
    }
    const roundTrip = performance.now() - started;
    return { answer, roundTrip, warning: response.headers.get("x-reranker-warning") };
  }

  /** Call a route. Rejects with a Problem if the answer is an error, except for the statuses in `accepted`. */
  async call(path: string, options: RequestInit = {}, accepted: number[] = []): Promise<Response> {
    const headers = new Headers(options.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    let response: Response;
    try {
      response = await fetch(`${this.url}/${path}`, { ...options, headers, credentials: "omit", cache: "no-store" });
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw await this.unreachable();
    }
    if (!response.ok && !accepted.includes(response.status)) throw await refusal(response);
    return response;
  }

  /** Why nothing came back: the browser tells a page only that it failed. */
  private async unreachable(): Promise<Problem> {
    const here = window.location.origin;
    if (new URL(this.url).origin === here) {
      return new Problem("The service cannot be reached.", "It may have stopped, or the network is down. Try again.");
    }
    if (window.location.protocol === "https:" && this.url.startsWith("http:")) {
      return new Problem(
        `This page came by https, so the browser does not let it call ${this.url}.`,
        "Open this page by http, or give the other service a certificate.",
      );
    }
    try {
      await fetch(`${this.url}/health/live`, { mode: "no-cors", credentials: "omit", cache: "no-store" });
    } catch {
      return new Problem(`${this.url} cannot be reached.`, "Check the URL, and whether that service runs.");
    }
    return new Problem(
      `${this.url} runs, but it does not allow this page to call it.`,
      `Start it with RERANKER_CORS_ORIGINS=${here}`,
    );
  }
}

/** The URL of a service as typed, without a slash at the end. Throws a Problem. */
export function serviceUrl(typed: string): string {
  const text = typed.trim();
  try {
    const url = new URL(/^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `http://${text}`);
    if (text && /^https?:$/.test(url.protocol)) return (url.origin + url.pathname).replace(/\/+$/, "");
  } catch {
    // not a URL: below
  }
  throw new Problem(
    text ? `${text} is not the URL of a service.` : "Enter the URL of the other service.",
    "A URL looks like http://127.0.0.1:8001",
  );
}

async function refusal(response: Response): Promise<Problem> {
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

/** The service's own message; empty if something else answered. */
async function message(response: Response): Promise<string> {
  try {
    const content = (await response.json()) as { message?: unknown; error?: unknown };
    const found = [content.message, content.error].find((each) => typeof each === "string");
    return typeof found === "string" ? found.replace(/[^.!?]$/, "$&.") : "";
  } catch {
    return "";
  }
}
