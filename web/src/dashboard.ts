// The second tab: reads the metrics every two seconds.

import { loadCharts } from "./charts";
import { byId, element } from "./dom";
import { Exposition } from "./exposition";
import { health } from "./health";
import { Replicas } from "./history";
import { Panels } from "./panels";
import { failure } from "./results";
import { patience, Problem, type Service } from "./service";

const PERIOD = 2_000;
const UNAUTHORIZED = 401;
const NOT_FOUND = 404;

export class Dashboard {
  private readonly panels = new Panels();
  private readonly replicas = new Replicas();
  private readonly notices = byId("notices");
  private readonly choice = element("select", { "aria-label": "Replica" });
  private isStarted = false;
  private isVisible = false;
  private hasCharts = true;
  /** Why there are no metrics; they are not asked for again, because each try counts as a rejection. */
  private refusal: Problem | null = null;

  /** `askKey` opens the dialog for the key. */
  constructor(
    private readonly service: Service,
    private readonly askKey: () => void,
  ) {
    byId("panels").append(...this.panels.boxes);
    this.choice.addEventListener("change", () => this.show());
  }

  /** Call when the tab is shown or left. The history goes on in the background. */
  async visible(isVisible: boolean): Promise<void> {
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
  retry(): void {
    this.refusal = null;
    if (this.isStarted) void this.read();
  }

  redraw(): void {
    if (this.isVisible) this.panels.redraw();
  }

  private async loop(): Promise<void> {
    // A hidden page is not looked at, and browsers slow its timers down.
    if (!document.hidden) await this.read();
    window.setTimeout(() => void this.loop(), PERIOD);
  }

  private async read(): Promise<void> {
    const [state, scraped] = await Promise.allSettled([health(this.service), this.refusal ? null : this.scrape()]);
    if (state.status === "fulfilled") this.panels.showHealth(state.value);
    const reason: unknown = [state, scraped].find((each) => each.status === "rejected")?.reason;
    const problem = reason instanceof Problem ? reason : null;
    if (problem && [UNAUTHORIZED, NOT_FOUND].includes(problem.status)) this.refusal = problem;
    this.show();
    this.notify(this.refusal ?? problem);
  }

  private async scrape(): Promise<void> {
    const response = await this.service.call("metrics", { headers: { Accept: "text/plain" }, signal: patience() });
    const metrics = new Exposition(await response.text());
    const name = response.headers.get("x-reranker-instance") ?? "the service";
    this.replicas.add(name, { time: Date.now() / 1000, metrics });
  }

  private show(): void {
    const { names, latest } = this.replicas;
    const listed = [...this.choice.options].map((option) => option.value).join();
    if (listed !== names.join()) {
      const chosen = this.choice.value;
      this.choice.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
      this.choice.value = names.includes(chosen) ? chosen : latest;
    }
    const history = this.replicas.of(this.choice.value);
    if (history && this.isVisible) this.panels.show(history);
  }

  private notify(problem: Problem | null): void {
    const shown: HTMLElement[] = [];
    if (problem?.status === UNAUTHORIZED) {
      const button = element("button", { type: "button", class: "primary" }, "Enter a key");
      button.addEventListener("click", this.askKey);
      const message = this.service.key ? problem.message : "The metrics of this service need an API key.";
      shown.push(failure({ message, advice: "RERANKER_PROTECT_METRICS is on." }, button));
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
    // Focus and announcements stay where they are while nothing changes.
    const key = shown.map((each) => each.textContent).join("|");
    if (this.notices.dataset["key"] === key) return;
    this.notices.dataset["key"] = key;
    this.notices.replaceChildren(...shown);
  }
}
