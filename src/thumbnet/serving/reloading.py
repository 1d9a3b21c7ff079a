"""Load the served network again when the service is asked to, and put it in place if it has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from prometheus_client import CollectorRegistry

from thumbnet.serving.background import described, in_daemon_thread
from thumbnet.serving.identity import Identity
from thumbnet.serving.metrics import count_outcomes
from thumbnet.serving.network import Network, Source, check_replaces

OUTCOMES = ("replaced", "unchanged", "failed")


class Reloads:
    """Loads the network again, once for each time that it was asked for before a load began.

    Args:
        source: where the network comes from; None if it cannot be replaced.
        served: returns the identity of the network that is served now.
        put_in_place: serves another network from then on, or raises a ThumbnetError and keeps the old one.
        warn, tell: called with one line when a reload failed or succeeded.
        registry: counts the reloads by outcome.
    """

    def __init__(
        self,
        source: Source | None,
        served: Callable[[], Identity],
        put_in_place: Callable[[Network], Awaitable[None]],
        warn: Callable[[str], None],
        tell: Callable[[str], None],
        registry: CollectorRegistry,
    ) -> None:
        self._source, self._served, self._put_in_place = source, served, put_in_place
        self._warn, self._tell = warn, tell
        description = "Times that the service was asked to load its network again."
        self._reloads = count_outcomes("thumbnet_reloads", description, OUTCOMES, registry)
        self._asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def ask(self) -> None:
        """Have the network loaded again soon. Any thread and any signal handler may call this.

        If it is being loaded now, it is loaded once more afterwards: its file may have changed since.
        """
        if self._loop is None:
            self._asked.set()
        else:
            with suppress(RuntimeError):  # the service has stopped
                self._loop.call_soon_threadsafe(self._asked.set)

    def attach(self) -> None:
        """Let :meth:`ask` wake the running event loop. Call this before :meth:`run`."""
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Reload whenever it is asked for, until this task is cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if self._source is None:
                continue
            try:
                outcome, text = await self._reload(self._source)
            except Exception as error:  # whatever fails, the old network is as good as before
                outcome = "failed"
                text = f"cannot replace the network, and still serving the old one: {described(error)}"
            self._reloads.labels(outcome).inc()
            with suppress(OSError):  # nobody reads the output any more
                (self._warn if outcome == "failed" else self._tell)(text)

    async def _reload(self, source: Source) -> tuple[str, str]:
        """Load the network again; if it has changed, put it in place.

        Returns:
            ``replaced`` or ``unchanged``, and a line that says so.

        Raises:
            ThumbnetError: the new network cannot be loaded or does not fit into memory, or clients of the old
                one would not understand its answers.
        """
        start = time.perf_counter()
        old = self._served()
        new = await in_daemon_thread(partial(source.load_unless, old.digest))
        if new is None:
            return "unchanged", f"{source.path} has not changed; still serving {_shown(old)}"
        check_replaces(new.identity.info, old.info)
        identity = replace(new.identity, started=old.started)
        await self._put_in_place(replace(new, identity=identity))
        seconds = time.perf_counter() - start
        return "replaced", f"now serving {source.path} ({_shown(identity)}), loaded in {seconds:.1f} s"


def _shown(identity: Identity) -> str:
    return "digest not known" if identity.digest is None else f"sha256:{identity.digest}"
