// The form of the playground: its fields, files that are dropped on it, and what it says.

import { byId, say } from "./dom";
import { count, counted } from "./numbers";
import { type Passage, type Reading, read, readFile, textOf, write } from "./passages";
import { body, type Options, type RerankBody, summary } from "./request";
import type { Shared } from "./share";

const MAX_FILE_BYTES = 8 * 1024 * 1024;

const query = byId<HTMLInputElement>("query");
const passages = byId<HTMLTextAreaElement>("passages");
const fields = {
  topK: byId<HTMLInputElement>("top-k"),
  maxSpans: byId<HTMLInputElement>("max-spans"),
  longDocuments: byId<HTMLSelectElement>("long-documents"),
  windowTokens: byId<HTMLInputElement>("window-tokens"),
  prefilter: byId<HTMLSelectElement>("prefilter"),
  prefilterTopK: byId<HTMLInputElement>("prefilter-top-k"),
  instruction: byId<HTMLInputElement>("instruction"),
};
const rawScores = byId<HTMLInputElement>("raw-scores");
const compare = byId<HTMLInputElement>("compare");
const otherUrl = byId<HTMLInputElement>("other-url");

/** Set the fields up. `failed` shows why a file could not be read. */
export function form(failed: (message: string) => void): void {
  byId("ask").addEventListener("input", refresh);
  byId("ask").addEventListener("change", refresh);
  passages.addEventListener("paste", () => window.setTimeout(takeQuery));
  const file = byId<HTMLInputElement>("file");
  byId("browse").addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files?.[0]) void take(file.files[0], failed);
    file.value = "";
  });
  drops(failed);
  refresh();
}

/** The request, or an error that says what is missing. */
export function current(): { request: RerankBody; passages: Passage[] } {
  const reading = read(passages.value);
  return { request: body(query.value, reading.passages, options()), passages: reading.passages };
}

/** The URL of the service to compare with as typed; null if that is off. */
export function other(): string | null {
  return compare.checked ? otherUrl.value : null;
}

export function toShare(): Shared {
  return { query: query.value, passages: passages.value, options: options(), other: other() ?? "" };
}

export function fill(shared: Shared): void {
  query.value = shared.query;
  passages.value = shared.passages;
  for (const [name, field] of Object.entries(fields)) field.value = String(shared.options[name as keyof typeof fields] ?? "");
  rawScores.checked = shared.options.rawScores === true;
  compare.checked = shared.other !== "";
  otherUrl.value = shared.other || otherUrl.value;
  byId<HTMLDetailsElement>("options").open ||= compare.checked;
  refresh();
}

function options(): Options {
  return {
    topK: fields.topK.value,
    maxSpans: fields.maxSpans.value,
    rawScores: rawScores.checked,
    longDocuments: fields.longDocuments.value,
    windowTokens: fields.windowTokens.value,
    prefilter: fields.prefilter.value,
    prefilterTopK: fields.prefilterTopK.value,
    instruction: fields.instruction.value,
  };
}

function refresh(): void {
  byId("other").hidden = !compare.checked;
  byId("options-summary").textContent = [summary(options()), compare.checked && "compare"].filter(Boolean).join(" · ");
  const line = byId("count");
  line.classList.remove("bad");
  try {
    const reading = read(passages.value);
    const chars = reading.passages.reduce((sum, each) => sum + textOf(each).length, 0);
    const kind = reading.kind === "lines" ? "" : ` · read as ${reading.kind}`;
    line.textContent = reading.passages.length
      ? `${counted(reading.passages.length, "passage")} · ${count(chars)} characters${kind}`
      : "One on each line, in the order of your search";
  } catch (error) {
    line.classList.add("bad");
    line.textContent = (error as Error).message;
  }
}

/** A pasted request also has a question: move it into its field. */
function takeQuery(): void {
  try {
    const reading = read(passages.value);
    if (reading.query !== undefined) accept(reading);
  } catch {
    // the line below the box says what is wrong
  }
}

function accept(reading: Reading): void {
  if (reading.query !== undefined) query.value = reading.query;
  passages.value = write(reading.passages);
  refresh();
}

async function take(file: File, failed: (message: string) => void): Promise<void> {
  try {
    if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} is larger than 8 MiB.`);
    const reading = readFile(file.name, await file.text());
    accept(reading);
    say(`${counted(reading.passages.length, "passage")} from ${file.name}`);
  } catch (error) {
    failed((error as Error).message);
  }
}

function drops(failed: (message: string) => void): void {
  const zone = byId("drop");
  const hasFile = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
  // A file that misses the box must not replace the page.
  for (const name of ["dragover", "drop"] as const) {
    window.addEventListener(name, (event) => {
      if (hasFile(event)) event.preventDefault();
    });
  }
  zone.addEventListener("dragenter", (event) => zone.classList.toggle("over", hasFile(event)));
  zone.addEventListener("dragleave", (event) => {
    if (!zone.contains(event.relatedTarget as Node | null)) zone.classList.remove("over");
  });
  zone.addEventListener("drop", (event) => {
    zone.classList.remove("over");
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    void take(file, failed);
  });
}
