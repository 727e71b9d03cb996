// `rerank` of the AI SDK, with its Cohere provider. Arguments: URL, key, query, documents. Prints [index, score] pairs.
import { createCohere } from "@ai-sdk/cohere";
import { rerank } from "ai";

const [url, apiKey, query, ...documents] = process.argv.slice(2);
const cohere = createCohere({ baseURL: `${url}/v2`, apiKey });
const { ranking } = await rerank({ model: cohere.reranking("reranker"), query, documents, topN: 2, maxRetries: 0 });
console.log(JSON.stringify(ranking.map((item) => [item.originalIndex, item.score])));
