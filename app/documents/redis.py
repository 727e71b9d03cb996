"""Documents in Redis, which replicas share."""

import asyncio
import logging
import struct
import time
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError, ResponseError

from app.documents.store import OVERHEAD_BYTES, Entry, Written, check_size
from app.errors import StartupError, Unavailable

log = logging.getLogger(__name__)

# In braces: all keys are in one slot of a cluster. A hash for each space; `used` and `ends` are sorted sets of all
# documents by their last use and their end; `bytes` is a number.
PREFIX = b"{reranker:documents}:"
# In front of each document: when it ends, in seconds since the epoch.
END = struct.Struct("<d")
NEVER = float("inf")
# How long one command may take, and the first connection.
SECONDS = 2.0
CONNECT_SECONDS = 1.0
# How long Redis is left alone after it did not answer: requests fail at once.
REST_SECONDS = 5.0
RETRY_AFTER = 5
CONNECTIONS = 16
# Documents per command: few enough that Redis serves others in between.
PART = 500
TOO_LARGE = -1

HEAD = f"""
local prefix, space, now = KEYS[1], ARGV[1], ARGV[2]
local used, ends, total = prefix .. 'used', prefix .. 'ends', prefix .. 'bytes'
local function remove(member)
  local key, id = prefix .. string.sub(member, 1, 32), string.sub(member, 34)
  local size = redis.call('HSTRLEN', key, id)
  redis.call('ZREM', used, member)
  redis.call('ZREM', ends, member)
  if size == 0 then return 0 end
  redis.call('HDEL', key, id)
  redis.call('DECRBY', total, size + #id + {OVERHEAD_BYTES})
  return 1
end
local function bytes() return tonumber(redis.call('GET', total) or '0') end
"""
# Arguments: space, time, end ('' for none), bytes of all documents, then ids and documents in turn.
PUT = f"""{HEAD}
-- Fails if the memory is full. Redis checks that only before the first write of a script.
redis.call('INCRBY', total, 0)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 1000)) do remove(member) end
local replaced, evicted = 0, 0
for place = 5, #ARGV, 2 do
  local id, body = ARGV[place], ARGV[place + 1]
  local member = space .. ':' .. id
  replaced = replaced + remove(member)
  redis.call('HSET', prefix .. space, id, body)
  redis.call('ZADD', used, now, member)
  if ARGV[3] ~= '' then redis.call('ZADD', ends, ARGV[3], member) end
  redis.call('INCRBY', total, #body + #id + {OVERHEAD_BYTES})
end
while bytes() > tonumber(ARGV[4]) do
  local oldest = redis.call('ZPOPMIN', used)
  if #oldest == 0 then break end
  evicted = evicted + remove(oldest[1])
end
return {{replaced, evicted, bytes()}}
"""
# Arguments: space, time, bytes that the answer may have, then ids.
GET = f"""{HEAD}
local found, size = {{}}, 0
for place = 4, #ARGV do
  local body = redis.call('HGET', prefix .. space, ARGV[place])
  if body then
    size = size + #body
    if size > tonumber(ARGV[3]) then return {TOO_LARGE} end
    redis.call('ZADD', used, 'XX', now, space .. ':' .. ARGV[place])
  end
  found[#found + 1] = body
end
return found
"""
# Arguments: space, time, then ids.
DELETE = f"""{HEAD}
local removed = 0
for place = 3, #ARGV do removed = removed + remove(space .. ':' .. ARGV[place]) end
return {{removed, bytes()}}
"""
# Arguments: space, time, number. Removes about that many; the answer is 0 after the last.
CLEAR = f"""{HEAD}
local removed, fields = 0, redis.call('HSCAN', prefix .. space, 0, 'COUNT', ARGV[3])[2]
for place = 1, #fields, 2 do removed = removed + remove(space .. ':' .. fields[place]) end
return {{removed, bytes()}}
"""

Answer = TypeVar("Answer")


class RedisStore:
    """Owns the connections. A Redis that does not answer is a 503, never a wait."""

    used_bytes = 0

    def __init__(self, url: str, max_bytes: int) -> None:
        self._url = url
        self.max_bytes = max_bytes
        self._redis: Redis | None = None
        self._resting_until = 0.0

    async def open(self) -> None:
        """Connect. Raises `StartupError` if the URL is not valid. Logs a warning if Redis does not answer."""
        try:
            pool = BlockingConnectionPool.from_url(
                self._url,
                max_connections=CONNECTIONS,
                timeout=SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=SECONDS,
            )
        except ValueError:  # its text may contain a part of the password
            raise StartupError(
                "RERANKER_DOCUMENTS is not valid: use redis://, rediss:// or unix://, and percent-encode special "
                "characters in the password"
            ) from None
        self._redis = Redis.from_pool(pool)
        try:
            await self._ask(cast(Awaitable[Any], self._redis.ping()))
        except Unavailable as error:
            log.warning("%s", error)

    async def put(self, space: bytes, entries: Sequence[Entry], ttl: float | None) -> Written:
        """Each part of `PART` documents is stored as a whole."""
        ends = NEVER if ttl is None else time.time() + ttl
        end = "" if ttl is None else repr(ends)
        replaced = evicted = 0
        for start in range(0, len(entries), PART):
            fields = [
                field
                for entry in entries[start : start + PART]
                for field in (entry.id.encode(), END.pack(ends) + entry.body)
            ]
            answer = await self._run(PUT, space, end, self.max_bytes, *fields)
            replaced, evicted, self.used_bytes = replaced + answer[0], evicted + answer[1], answer[2]
        return Written(len(entries) - replaced, replaced, evicted)

    async def get(self, space: bytes, ids: Sequence[str], most: int) -> dict[str, bytes]:
        """The documents that have not expired."""
        found: dict[str, bytes] = {}
        size, now, unique = 0, time.time(), list(dict.fromkeys(ids))
        for start in range(0, len(unique), PART):
            part = unique[start : start + PART]
            answer = await self._run(GET, space, most - size + END.size * len(part), *(name.encode() for name in part))
            check_size(most + 1 if answer == TOO_LARGE else size, most)
            for name, value in zip(part, answer, strict=True):
                if value is not None and END.unpack_from(value)[0] > now:
                    found[name] = value[END.size :]
                    size += len(found[name])
        return found

    async def delete(self, space: bytes, ids: Sequence[str]) -> int:
        """Remove these documents."""
        removed, self.used_bytes = await self._run(DELETE, space, *(name.encode() for name in ids))
        return int(removed)

    async def clear(self, space: bytes) -> int:
        """Remove all documents of the space, in steps."""
        count = 0
        while True:
            removed, self.used_bytes = await self._run(CLEAR, space, PART)
            count += int(removed)
            if not removed:
                return count

    async def close(self) -> None:
        """Close the connections."""
        if self._redis:
            await self._redis.aclose()

    async def _run(self, script: str, space: bytes, *arguments: bytes | str | int) -> Any:
        if self._redis is None:
            raise Unavailable("The document store is not open yet")
        if time.monotonic() < self._resting_until:
            raise _unavailable("it did not answer a moment ago")
        call = self._redis.eval(script, 1, PREFIX, space.hex(), repr(time.time()), *arguments)
        return await self._ask(call)

    async def _ask(self, question: Awaitable[Answer]) -> Answer:
        """The answer. Raises `Unavailable`."""
        try:
            async with asyncio.timeout(SECONDS):
                return await question
        except ResponseError as error:  # it answers, and cannot store more, for example
            reason = str(error).split(" script:")[0]
            raise Unavailable(f"The document store failed (Redis of RERANKER_DOCUMENTS): {reason}") from None
        except (RedisError, OSError, TimeoutError) as error:
            self._resting_until = time.monotonic() + REST_SECONDS
            raise _unavailable(str(error) or type(error).__name__) from None


def _unavailable(reason: str) -> Unavailable:
    return Unavailable(
        f"The document store does not answer (Redis of RERANKER_DOCUMENTS): {reason}. Send the texts instead of ids, "
        "or try again",
        RETRY_AFTER,
    )
