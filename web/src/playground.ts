// The first tab: send the request, and show what comes back.

import { codeDialog } from "./code";
import { comparison } from "./comparison";
import { byId, copy, element, say, toast } from "./dom";
import { EXAMPLES } from "./examples";
import { current, fill, form, other, toShare } from "./form";
import { counted } from "./numbers";
import type { Passage } from "./passages";
import { NO_OPTIONS, type RerankBody } from "./request";
import { empty, failure, figures, list, loading, spoken } from "./results";
import { Problem, type Ranked, Service, serviceUrl } from "./service";
import { link, restore } from "./share";

const UNAUTHORIZED = 401;

export class Playground {
  private readonly answer = byId("answer");
  private readonly send = byId<HTMLButtonElement>("send");
  private running: AbortController | null = null;

  /** `askKey` opens the dialog for the key. */
  constructor(
    private readonly service: Service,
    private readonly askKey: () => void,
  ) {
    form((message) => this.show(failure(new Problem(message))));
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
      this.attempt(() => openCode(service.url, current().request, service.key !== ""));
    });
    byId("share").addEventListener("click", () => void this.share());
  }

  /** Fill the form from the fragment of the URL, if it has a request. */
  async restore(): Promise<void> {
    try {
      const shared = await restore(window.location.hash);
      if (!shared) return;
      fill(shared);
      byId("query").focus();
    } catch (error) {
      this.show(failure(new Problem((error as Error).message)));
    }
  }

  private examples(): void {
    for (const example of EXAMPLES) {
      const button = element("button", { type: "button", class: "chip" }, example.name);
      button.addEventListener("click", () => {
        const options = { ...NO_OPTIONS, ...example.options };
        fill({ query: example.query, passages: example.passages.join("\n"), options, other: other() ?? "" });
        if (!this.running) void this.rank();
      });
      byId("examples").append(button);
    }
  }

  private async rank(): Promise<void> {
    let asked: { request: RerankBody; passages: Passage[] };
    let second: Service | null = null;
    try {
      asked = current();
      const typed = other();
      if (typed !== null) {
        second = new Service(serviceUrl(typed));
        second.key = byId<HTMLInputElement>("other-key").value.trim();
      }
    } catch (error) {
      const problem = error instanceof Problem ? error : new Problem((error as Error).message);
      this.show(failure(problem));
      return;
    }
    this.running = new AbortController();
    this.busy(true, asked.passages.length);
    try {
      const { signal } = this.running;
      const calls = [this.service, second].flatMap((each) => (each ? [outcome(each, asked.request, signal)] : []));
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

  private present(passages: Passage[], own: Ranked | Problem, second: Service | null, theirs?: Ranked | Problem): void {
    if (second && theirs) {
      const left = { name: "This service", outcome: own };
      const right = { name: second.url.replace(/^https?:\/\//, ""), outcome: theirs };
      this.show(comparison(passages, left, right));
      say("Both rankings are here");
    } else if (own instanceof Problem) {
      this.show(failure(own, own.status === UNAUTHORIZED ? this.keyButton() : null));
    } else {
      const { results, meta } = own.answer;
      const left = meta.documents - results.length;
      const rest = left > 0 ? element("p", { class: "hint rest" }, `${counted(left, "passage")} not returned`) : "";
      const title = element("h2", { class: "hidden" }, "Ranking");
      this.show(element("div", { class: "card" }, title, figures(own), list(passages, results), rest));
      say(spoken(passages, own));
    }
  }

  private keyButton(): HTMLElement {
    const button = element("button", { type: "button", class: "primary" }, "Enter a key");
    button.addEventListener("click", this.askKey);
    return button;
  }

  private async share(): Promise<void> {
    const url = await link(toShare());
    window.history.replaceState(null, "", url);
    const copied = await copy(url);
    toast(copied ? "Link copied. It holds the request, and no key" : "The link is in the address bar");
  }

  private attempt(action: () => void): void {
    try {
      action();
    } catch (error) {
      this.show(failure(new Problem((error as Error).message)));
    }
  }

  private busy(isBusy: boolean, passages = 0): void {
    this.answer.setAttribute("aria-busy", String(isBusy));
    this.send.textContent = isBusy ? "Cancel" : "Rank";
    this.send.classList.toggle("running", isBusy);
    if (!isBusy) return;
    say(`Ranking ${counted(passages, "passage")}`);
    const hasList = this.answer.querySelector("ol") !== null;
    this.answer.classList.toggle("stale", hasList);
    if (!hasList) this.show(loading(passages));
  }

  private show(content: HTMLElement): void {
    this.answer.classList.remove("stale");
    this.answer.replaceChildren(content);
    // On a narrow screen the answer is below the form, perhaps out of sight.
    const isBelow = this.answer.getBoundingClientRect().top > window.innerHeight * 0.7;
    if (isBelow && content.matches(":not(.empty)")) this.answer.scrollIntoView({ block: "start" });
  }
}

/** The answer, or the Problem. Rejects only if it was cancelled. */
async function outcome(service: Service, request: RerankBody, signal: AbortSignal): Promise<Ranked | Problem> {
  try {
    return await service.rank(request, signal);
  } catch (error) {
    if (error instanceof Problem) return error;
    throw error;
  }
}
