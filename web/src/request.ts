// The request: what the form says, as the body that is sent.

import type { Passage } from "./passages";

/** The body of POST /rerank/query. Fields at their default are left out. */
export interface RerankBody {
  query: string;
  documents: Passage[];
  top_k?: number;
  max_spans?: number;
  raw_scores?: true;
  long_documents?: string;
  max_tokens_per_doc?: number;
  prefilter?: string;
  prefilter_top_k?: number;
  instruction?: string;
}

export interface Options {
  topK: string;
  maxSpans: string;
  rawScores: boolean;
  longDocuments: string;
  windowTokens: string;
  prefilter: string;
  prefilterTopK: string;
  instruction: string;
}

export const NO_OPTIONS: Options = {
  topK: "",
  maxSpans: "",
  rawScores: false,
  longDocuments: "",
  windowTokens: "",
  prefilter: "",
  prefilterTopK: "",
  instruction: "",
};

/** The body. Throws an error that says what is missing. */
export function body(query: string, passages: Passage[], options: Options): RerankBody {
  if (!query.trim()) throw new Error("Enter a question.");
  if (!passages.length) throw new Error("Enter at least one passage: one on each line.");
  const made: RerankBody = { query: query.trim(), documents: passages };
  const windowTokens = positive(options.windowTokens, "Tokens per window");
  const topK = positive(options.topK, "Results to return");
  const maxSpans = positive(options.maxSpans, "Best passages to mark");
  const kept = positive(options.prefilterTopK, "Passages it keeps");
  if (topK) made.top_k = topK;
  if (maxSpans) made.max_spans = maxSpans;
  if (options.rawScores) made.raw_scores = true;
  if (options.longDocuments) made.long_documents = options.longDocuments;
  if (windowTokens) made.max_tokens_per_doc = windowTokens;
  if (options.prefilter) made.prefilter = options.prefilter;
  if (kept) made.prefilter_top_k = kept;
  if (options.instruction.trim()) made.instruction = options.instruction.trim();
  return made;
}

/** What differs from the defaults, in words. */
export function summary(options: Options): string {
  const parts = [
    options.topK && `top ${options.topK}`,
    options.maxSpans && `best passages: ${options.maxSpans}`,
    options.rawScores && "raw scores",
    options.longDocuments && `long documents: ${options.longDocuments}`,
    options.windowTokens && `${options.windowTokens} tokens`,
    options.prefilter && `first stage: ${options.prefilter}`,
    options.prefilterTopK && `keeps ${options.prefilterTopK}`,
    options.instruction.trim() && "instruction",
  ];
  return parts.filter(Boolean).join(" · ");
}

function positive(value: string, name: string): number | undefined {
  if (!value.trim()) return undefined;
  const number = Number(value);
  if (!Number.isInteger(number) || number < 1) throw new Error(`${name}: ${value} is not a whole number above 0.`);
  return number;
}
