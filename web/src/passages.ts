// Passages: from what people paste or drop to the documents of a request, and back.

import { table } from "./csv";

export type Passage = string | ({ text?: string; id?: string | number } & Record<string, unknown>);

export interface Reading {
  passages: Passage[];
  /** How the text was read, for the line below the box. */
  kind: "lines" | "JSON" | "JSON lines" | "CSV";
  /** A pasted request also has a question. */
  query?: string;
}

const TEXT_NAMES = ["text", "content", "page_content", "pageContent", "passage", "document", "body", "abstract"];
const LIST_NAMES = ["documents", "passages", "texts"];
const LOOKS_LIKE_JSON = /^\s*(\[\s*["{[]|\{\s*")/;

/** What the service reads of a passage. */
export function textOf(passage: Passage): string {
  if (typeof passage === "string") return passage;
  for (const name of TEXT_NAMES.slice(0, 4)) {
    const value = passage[name];
    if (typeof value === "string") return value;
  }
  return JSON.stringify(passage);
}

/** The content of the box. Throws an error that says what is wrong. */
export function read(text: string): Reading {
  if (LOOKS_LIKE_JSON.test(text)) return readJson(text);
  const passages = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  return { passages, kind: "lines" };
}

/** The content of a file, by its name. Throws an error that says what is wrong. */
export function readFile(name: string, text: string): Reading {
  text = text.replace(/^\uFEFF/, "");
  const reading = /\.(csv|tsv)$/i.test(name) ? readTable(text, /\.tsv$/i.test(name) ? "\t" : undefined) : read(text);
  if (!reading.passages.length) throw new Error(`${name} has no passages.`);
  return reading;
}

/** The passages as the content of the box: one a line if they fit, else one JSON value a line. */
export function write(passages: Passage[]): string {
  const plain = passages.every(
    (passage) => typeof passage === "string" && passage.trim() === passage && passage && !/[\r\n]/.test(passage),
  );
  const text = passages.join("\n");
  if (plain && !LOOKS_LIKE_JSON.test(text)) return text;
  return `[\n${passages.map((passage) => `  ${JSON.stringify(passage)}`).join(",\n")}\n]`;
}

function readJson(text: string): Reading {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    return readLines(text, error);
  }
  if (Array.isArray(parsed)) return { passages: parsed.map(passage), kind: "JSON" };
  const fields = parsed as Record<string, unknown>;
  const name = LIST_NAMES.find((each) => Array.isArray(fields[each]));
  if (!name) return { passages: [passage(fields, 0)], kind: "JSON" };
  const reading: Reading = { passages: (fields[name] as unknown[]).map(passage), kind: "JSON" };
  if (typeof fields["query"] === "string") reading.query = fields["query"];
  return reading;
}

function readLines(text: string, whole: unknown): Reading {
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  const parsed: Passage[] = [];
  for (const [index, line] of lines.entries()) {
    try {
      parsed.push(passage(JSON.parse(line), index));
    } catch (error) {
      if (error instanceof TypeError) throw error;
      const where = index ? `line ${index + 1}: ${reason(error)}` : reason(whole);
      throw new TypeError(`The passages look like JSON, but they are not: ${where}`);
    }
  }
  return { passages: parsed, kind: "JSON lines" };
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function passage(value: unknown, index: number): Passage {
  if (typeof value === "string" || (typeof value === "object" && value !== null && !Array.isArray(value))) {
    return value as Passage;
  }
  throw new TypeError(`Passage ${index + 1} is neither a text nor an object: ${JSON.stringify(value).slice(0, 60)}`);
}

/** A table with a header. Its text is the column of that name, or the one with the longest texts. */
function readTable(text: string, separator?: string): Reading {
  const rows = table(text, separator).filter((row) => row.some((cell) => cell.trim()));
  const header = rows.shift()?.map((name) => name.trim()) ?? [];
  const lower = header.map((name) => name.toLowerCase());
  const named = TEXT_NAMES.map((name) => lower.indexOf(name.toLowerCase())).find((index) => index >= 0);
  const sizes = header.map((_, column) => rows.reduce((sum, row) => sum + (row[column]?.length ?? 0), 0));
  const column = named ?? sizes.indexOf(Math.max(...sizes));
  const id = lower.indexOf("id");
  const passages = rows
    .map((row) => ({ id: row[id], text: row[column]?.trim() ?? "" }))
    .filter((row) => row.text)
    .map((row): Passage => (row.id ? { id: row.id, text: row.text } : row.text));
  return { passages, kind: "CSV" };
}
