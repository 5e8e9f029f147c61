"""Asks running vLLM servers over HTTP: for completions of token ids, log-probs of a text, and new weights.

Answers are checked against what was asked, and never guessed: ids, finite log-probs, why a completion ended.
"""

import http.client
import json
import math
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from itertools import cycle
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from qwen_align.align.errors import StageError
from qwen_align.align.settings.sampling import Sampling

MODEL_NAME = "policy"  # under which a server has the model
MAX_REQUESTS = 256  # in flight, over all servers; our choice: a thread each, and as many as vLLM batches by default
ANSWER_S = 30.0  # for what a server answers at once; our choice
_UNKNOWN_LOGP = -9999.0  # what vLLM 0.32 writes in the place of minus infinity


class Prompt(NamedTuple):
    """A prompt with the number of its completions and the seed of the first; those of others count on from it."""

    ids: list[int]
    n: int
    seed: int
    sampling: Sampling


class Answer(NamedTuple):
    """One completion: its ids, the stop token included, and the log-probs of the distribution it was drawn from."""

    ids: list[int]
    logps: list[float]
    finish_reason: Literal["stop", "length"]


class VllmClient:
    """A client of one or more vLLM servers that have the same model."""

    def __init__(self, urls: Sequence[str], *, stop_ids: Collection[int], vocab_size: int) -> None:
        self.urls = list(urls)
        self.stop_ids, self.vocab_size = frozenset(stop_ids), vocab_size
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def complete(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields the completions of each prompt, with the prompt's number, as soon as all of them are there.

        All prompts are sent at once, as far as MAX_REQUESTS goes, to the servers in turn. Raises StageError where a
        server answers with anything but what was asked for.
        """
        pool = ThreadPoolExecutor(max_workers=min(MAX_REQUESTS, max(1, len(prompts))))
        asked: dict[Future[list[Answer]], int] = {}
        try:
            for number, (prompt, url) in enumerate(zip(prompts, cycle(self.urls), strict=False)):
                asked[pool.submit(self._complete_prompt, url, prompt)] = number
            for answered in as_completed(asked):
                yield asked[answered], answered.result()
        finally:
            for waiting in asked:
                waiting.cancel()
            self._hang_up()
            pool.shutdown(wait=True, cancel_futures=True)

    def score(self, ids: Sequence[int]) -> list[list[float]]:
        """Returns for each server the log-probs of a text's tokens but the first, at temperature 1."""
        body = {
            "model": MODEL_NAME,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": 0,
            "add_special_tokens": False,
        }
        return [self._read_scores(url, self._ask(url, "/v1/completions", body, None), ids) for url in self.urls]

    def read_version(self) -> list[str]:
        """Returns the version of each server."""
        return [str(self._ask(url, "/version", None, ANSWER_S)["version"]) for url in self.urls]

    def call_workers(self, method: str, *arguments: str) -> list[dict[str, Any]]:
        """Calls a method of every server's workers, all servers at once, and returns what each worker answers."""
        body = {"method": method, "args": list(arguments)}
        with ThreadPoolExecutor(max_workers=len(self.urls)) as pool:
            answers = list(pool.map(lambda url: self._ask(url, "/collective_rpc", body, None), self.urls))
        return [result for answer in answers for result in answer["results"]]

    def reset_prefix_cache(self) -> None:
        """Makes every server forget the keys and values of prompts. Raises StageError where one does not."""
        for url in self.urls:
            if self._ask(url, "/reset_prefix_cache", {}, None) != {"success": True}:
                raise StageError(
                    f"{url}: the engine did not reset its prefix cache; completions would be of both weights"
                )

    def sleep(self) -> None:
        """Makes every server free its memory but for a copy of the weights on the host."""
        for url in self.urls:
            self._ask(url, "/sleep?level=1", {}, None)

    def wake_up(self) -> None:
        """Makes every server take its memory again."""
        for url in self.urls:
            self._ask(url, "/wake_up", {}, None)

    def _complete_prompt(self, url: str, prompt: Prompt) -> list[Answer]:
        """Asks a server for the completions of one prompt and returns them in order."""
        sampling = prompt.sampling
        if sampling.is_greedy and prompt.n > 1:  # all the same, and vLLM refuses to say so
            return self._complete_prompt(url, prompt._replace(n=1)) * prompt.n
        body = {
            "model": MODEL_NAME,
            "prompt": prompt.ids,
            "n": prompt.n,
            "seed": prompt.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "max_tokens": sampling.max_tokens,
            "stop_token_ids": sorted(self.stop_ids),
            "ignore_eos": True,  # stop ids are ours, not those of the server's files
            "logprobs": 0,  # of the token drawn alone
            "return_token_ids": True,
            "add_special_tokens": False,
            "skip_special_tokens": False,
        }
        return self._read_completions(url, self._ask(url, "/v1/completions", body, None), prompt)

    def _read_completions(self, url: str, answer: dict[str, Any], prompt: Prompt) -> list[Answer]:
        """Reads a server's completions of a prompt. Raises StageError where they are not what was asked for."""
        choices = sorted(answer.get("choices", []), key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(prompt.n)):
            raise StageError(f"{url}: the engine gave {len(choices)} completions of a prompt, not {prompt.n}")
        return [self._read_choice(url, choice, prompt) for choice in choices]

    def _read_choice(self, url: str, choice: dict[str, Any], prompt: Prompt) -> Answer:
        """Reads one completion. Raises StageError where it is not what was asked for."""
        ids: Any = choice.get("token_ids")
        reason = choice.get("finish_reason")
        logps: Any = (choice.get("logprobs") or {}).get("token_logprobs")
        if choice.get("prompt_token_ids") != prompt.ids:
            raise StageError(f"{url}: the engine read another prompt than it was sent")
        if not _are_ids(ids, self.vocab_size) or len(ids) > prompt.sampling.max_tokens:
            raise StageError(
                f"{url}: the engine gave no completion of 1 to {prompt.sampling.max_tokens} token ids: {ids}"
            )
        if not _are_logps(logps) or len(logps) != len(ids):
            raise StageError(
                f"{url}: the engine gave {len(ids)} tokens, and no log-prob for some; a server needs "
                "--logprobs-mode processed_logprobs"
            )
        last_stops = ids[-1] in self.stop_ids
        is_whole = reason == "stop" if last_stops else reason == "length" and len(ids) == prompt.sampling.max_tokens
        if not is_whole or self.stop_ids.intersection(ids[:-1]):
            raise StageError(
                f"{url}: the engine ended a completion of {len(ids)} tokens with '{reason}' at token {ids[-1]}; it "
                f"ends at the first of {sorted(self.stop_ids)}, or after {prompt.sampling.max_tokens}"
            )
        return Answer(ids, [float(logp) for logp in logps], "stop" if last_stops else "length")

    def _read_scores(self, url: str, answer: dict[str, Any], ids: Sequence[int]) -> list[float]:
        """Reads the log-probs of a text's tokens but the first. Raises StageError where one is missing."""
        places = (answer.get("choices") or [{}])[0].get("prompt_logprobs")
        found = [
            (place or {}).get(str(token), {}).get("logprob") for place, token in zip(places or [], ids, strict=False)
        ]
        if len(found) != len(ids) or not _are_logps(found[1:]):
            raise StageError(f"{url}: the engine gave no log-probs for a text of {len(ids)} tokens")
        return [float(logp) for logp in found[1:]]

    def _ask(self, url: str, path: str, body: dict[str, Any] | None, time_limit_s: float | None) -> dict[str, Any]:
        """Returns the JSON object that a server answers with; GET without a body.

        Raises StageError where the server is gone or refuses.
        """
        place = urlsplit(url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        connection = kind(place.hostname or "", place.port, timeout=time_limit_s or ANSWER_S)
        try:
            connection.connect()
            with self._lock:
                self._open.add(connection)
            _watch_for_death(connection.sock)
            connection.sock.settimeout(time_limit_s)
            sent = None if body is None else json.dumps(body)
            connection.request(
                "GET" if sent is None else "POST",
                place.path.rstrip("/") + path,
                sent,
                {"Content-Type": "application/json", "Connection": "close"},
            )
            reply = connection.getresponse()
            text = reply.read().decode("utf-8", errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise StageError(f"{url}{path}: the engine does not answer: {type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if reply.status != 200:
            raise StageError(f"{url}{path}: the engine answered {reply.status}: {text.strip():.500}")
        return _parse_object(f"{url}{path}", text)

    def _hang_up(self) -> None:
        """Ends the requests that are still in flight, whose completions a server then gives up."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    if connection.sock is not None:
                        connection.sock.shutdown(socket.SHUT_RDWR)


def _parse_object(where: str, text: str) -> dict[str, Any]:
    """Parses an answer, which is empty or a JSON object. Raises StageError for anything else."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StageError(f"{where}: the engine answered with no JSON object: {text:.200}")
    return value


def _are_ids(ids: Any, vocab_size: int) -> bool:
    """Returns whether a value is a list of token ids, one at least."""
    return isinstance(ids, list) and bool(ids) and all(type(token) is int and 0 <= token < vocab_size for token in ids)


def _are_logps(logps: Any) -> bool:
    """Returns whether a value is a list of finite log-probs. Rounding may leave one a little above 0."""
    return isinstance(logps, list) and all(
        type(logp) in (int, float) and math.isfinite(logp) and _UNKNOWN_LOGP < logp < 1e-3 for logp in logps
    )


def _watch_for_death(connected: socket.socket) -> None:
    """Has the kernel look whether the other machine is still there: a completion may take hours, a death none."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):  # gone after 3 minutes
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
