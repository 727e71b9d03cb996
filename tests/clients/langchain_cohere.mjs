// CohereRerank of LangChain. Arguments: URL, key, query, documents. Prints [index, score] pairs.
import { CohereRerank } from "@langchain/cohere";
import { CohereClient } from "cohere-ai";

const [environment, token, query, ...documents] = process.argv.slice(2);
const reranker = new CohereRerank({ client: new CohereClient({ token, environment }), model: "reranker" });
const ranking = await reranker.rerank(documents, query, { topN: 2 });
console.log(JSON.stringify(ranking.map((item) => [item.index, item.relevanceScore])));
