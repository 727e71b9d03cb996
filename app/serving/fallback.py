"""Rankings by shared words, for requests that cannot be scored. They take no threads from requests that can be."""

from concurrent.futures import Executor

from app.errors import RerankerError
from app.first_stage.lexical import lexical_scores
from app.machine.threads import on_thread
from app.serving.progress import Progress

# Requests that wait for the thread. More of them would wait longer than clients do.
MOST = 32


async def compare_words(progress: Progress, threads: Executor) -> None:
    """Compute the BM25 score of each document."""
    query = progress.query
    queries = [query.query] * len(query.documents) if isinstance(query.query, str) else query.query
    progress.words = await on_thread(threads, lexical_scores, queries, query.documents)


class Fallback:
    """Owns the number of requests that use the thread or wait for it. Event loop only."""

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._requests = 0

    async def compare_words(self, progress: Progress, error: RerankerError) -> None:
        """Compute the BM25 score of each document. Raises `error` if too many requests wait."""
        if self._requests >= MOST:
            raise error
        self._requests += 1
        try:
            await compare_words(progress, self._thread)
        finally:
            self._requests -= 1
