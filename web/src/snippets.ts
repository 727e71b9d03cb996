// The exact request as code.

import { textOf } from "./passages";
import type { RerankBody } from "./request";

export interface Snippet {
  name: string;
  note: string;
  code: (url: string, body: RerankBody, hasKey: boolean) => string;
}

export const SNIPPETS: Snippet[] = [
  { name: "curl", note: "", code: curl },
  { name: "Python", note: "Needs reranker_client, from the repository of the service.", code: python },
  { name: "TypeScript", note: "", code: typescript },
  { name: "LangChain", note: "Needs langchain-core and reranker_client.", code: langchain },
];

function curl(url: string, body: RerankBody, hasKey: boolean): string {
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $RERANKER_API_KEY"` : "";
  return `curl -s ${url}/rerank/query -H 'Content-Type: application/json'${key} \\
  --data-binary @- <<'JSON'
${JSON.stringify(body, null, 2)}
JSON`;
}

function python(url: string, body: RerankBody, hasKey: boolean): string {
  return `${hasKey ? "import os\n\n" : ""}from reranker_client import Client

documents = ${literal(body.documents, "")}

with ${client(url, hasKey)} as client:
    ranking = client.rerank(
        ${literal(body.query, "")},
        documents,${options(body, "        ")}
    )
    for result in ranking:
        print(f"{result.relevance_score:.4f}", documents[result.index])`;
}

function langchain(url: string, body: RerankBody, hasKey: boolean): string {
  const documents = body.documents
    .map((each) => {
      const metadata = typeof each !== "string" && each.id !== undefined ? `, metadata=${literal({ id: each.id }, "")}` : "";
      return `    Document(page_content=${literal(textOf(each), "")}${metadata}),`;
    })
    .join("\n");
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
            [document.page_content for document in documents],${options(body, "            ")}
        )
        return [documents[result.index] for result in ranking]


documents = [
${documents}
]
for document in Reranker().compress_documents(documents, ${literal(body.query, "")}):
    print(document.page_content)`;
}

function typescript(url: string, body: RerankBody, hasKey: boolean): string {
  const key = hasKey ? `\n    Authorization: \`Bearer \${process.env.RERANKER_API_KEY}\`,` : "";
  return `const body = ${JSON.stringify(body, null, 2)};

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

function client(url: string, hasKey: boolean): string {
  return `Client(${literal(url, "")}${hasKey ? `, api_key=os.environ["RERANKER_API_KEY"]` : ""})`;
}

/** The fields of the body besides query and documents, as keyword arguments. */
function options(body: RerankBody, indent: string): string {
  return Object.entries(body)
    .filter(([name]) => name !== "query" && name !== "documents")
    .map(([name, value]) => `\n${indent}${name}=${literal(value, indent)},`)
    .join("");
}

/** A value as Python, in which JSON's strings mean the same. */
function literal(value: unknown, indent: string): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((each) => `${indent}    ${literal(each, `${indent}    `)},\n`).join("")}${indent}]` : "[]";
  }
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, indent)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
