"""Keeps a stage's process from writing once its run may no longer hold the lease of the stage's folder.

The run ends its stage itself when it cannot renew the lease. The guard is for a run that cannot: one that was stopped
or hangs, or one on another host. It is a process of its own, as the stage's may be busy for minutes in code that lets
no other thread of Python run, and shares nothing with it but a pipe, whose end says that the stage's process has ended.

A result is published by renaming manifest.json into its place, after a look at the lease. Between the two the process
may be stopped, for as long as it takes until another host has the lease. That host's stage deletes all files that are
not finished before it begins, which by then it sees (see VISIBILITY_S), so that there is nothing left to be renamed.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from qwen_align.align.pipeline.process_lifetime import die_with_parent
from qwen_align.align.store.lease_record import EXPIRY_S, FENCE_S, LeaseLost
from qwen_align.align.store.lease_view import LeaseView

RUN_LEASE = "lease"  # in stage.json: that of the run in the stage's folder
LOOK_S = 1.0  # between two looks at the lease
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # ask a stage to stop; its guard goes on until it has ended


def guard_lease(described: Mapping[str, Any]) -> LeaseView:
    """Starts a process that ends this one once the lease of its run is lost, and returns a view of the lease.

    On another host than the run's it first waits for a sign of life of the run. Raises LeaseLost where the lease is
    lost already. `described`: what the run has written of its lease. It forks: to be called before threads are started.
    """
    view = LeaseView(described)
    _wait_for_sign_of_life(view)
    read, write = os.pipe()  # not inherited by programs that this process starts
    stage = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # none ends the guard before it ignores them
    try:
        if os.fork() == 0:
            os.close(write)
            _watch_lease(described, stage, read)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(read)
    return view


def _wait_for_sign_of_life(view: LeaseView) -> None:
    """Waits until the holder of a lease was seen alive: on its own machine at once, on others at its next heartbeat."""
    waited = 0.0
    while view.measure_silence() is None and waited < EXPIRY_S:
        select.select([], [], [], LOOK_S)
        waited += LOOK_S
    view.require_held()


def _watch_lease(described: Mapping[str, Any], stage: int, pipe: int) -> NoReturn:
    """Looks at a lease until the stage's process ends, or ends it. Never returns."""
    try:
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN)  # the stage saves what it has, and is to be watched meanwhile
        die_with_parent()
        looker = _Looker(LeaseView(described))
        looker.start()
        while not select.select([pipe], [], [], LOOK_S)[0]:
            if reason := looker.find_loss():
                os.kill(stage, signal.SIGKILL)
                os.write(2, f"{reason}\n".encode())
                break
    finally:
        os._exit(0)


class _Looker(threading.Thread):
    """Looks at a lease in a thread, which hangs where the file system does."""

    def __init__(self, view: LeaseView) -> None:
        super().__init__(daemon=True)
        self._view = view
        self._lost = ""

    def run(self) -> None:
        """Looks at the lease until it is lost."""
        try:
            while True:
                self._view.measure_silence()
                time.sleep(LOOK_S)
        except LeaseLost as error:
            self._lost = str(error)

    def find_loss(self) -> str:
        """Returns why the lease counts as lost, "" while it is held. Looks at no file."""
        silence = self._view.silence
        if not self._lost and silence > FENCE_S:
            return f"the run has not renewed its lease for {silence:.0f} s: the stage is ended"
        return self._lost
