"""The run that goes on, kept line by line: a host that is killed loses nothing it was given.

A run goes into the store when it ends.  Until then each of the agent's lines is appended to one
file, whose first line says whose they are.  What a killed process left there is stored by the next
one, as an interrupted run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.recorder import RunRecorder
from profiles.errors import AgentError, StaleFence
from profiles.records import Run
from profiles.store import Store


class Spool:
    """One file for the one run that can be going on in a workspace.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, numbers: Mapping[str, int], fence: int, readings: Mapping[str, Any]) -> None:
        """A run begins.

        Args:
            numbers: of the run, by the trial's key.
            fence: of the lease it is made under.
            readings: the device's state before it.
        """
        header = {"numbers": dict(numbers), "fence": fence, "readings": dict(readings)}
        # Unbuffered: what was given to the kernel outlives this process.
        self._stream = self._path.open("wb", buffering=0)
        self.line(json.dumps(header))

    def line(self, text: str) -> None:
        """The agent has said something."""
        self._stream.write(text.encode(errors="surrogateescape") + b"\n")

    def end(self) -> None:
        """The run is in the store, or means nothing."""
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def recover(self, store: Store) -> None:
        """Store what a killed process left, once.

        Raises:
            StoreError: the store cannot be written; what was left stays for the next time.
        """
        if not self._path.exists():
            return
        header, *lines = self._path.read_text(errors="surrogateescape").split("\n")
        try:
            whose = json.loads(header)
        except ValueError:  # killed before it had written the first line
            whose = {"numbers": {}}
        _store(whose, lines, store)
        self._path.unlink()


def _store(header: Mapping[str, Any], lines: list[str], store: Store) -> None:
    numbers: Mapping[str, int] = header["numbers"]
    recorder = RunRecorder(list(numbers))
    with contextlib.suppress(AgentError):  # the last line may be cut off
        for text in lines:
            recorder.line(text)
    trials = {trial.key: trial for trial in store.trials(list(numbers))}
    for key, number in numbers.items():
        recording = recorder.recordings[key]
        trial = trials.get(key)
        # It may have been killed after it had stored the run.
        stored = trial is None or trial.status != "open" or number < len(trial.runs)
        if not stored and (recording.warmup or recording.samples):
            run = make_run(number, False, recorder, key, header["readings"])
            with contextlib.suppress(StaleFence):  # the device has had another holder
                store.add_run(key, run, fence=header["fence"])


def make_run(
    number: int,
    complete: bool,
    recorder: RunRecorder,
    job: str,
    readings: Mapping[str, Any],
) -> Run:
    """One job's part of what an agent has delivered, as a run of its trial.

    ``readings`` were taken before the process began: the device's state, and the limits it is to
    keep.
    """
    recording = recorder.recordings[job]
    return Run(
        number=number,
        complete=complete,
        warmup_ns=recording.warmup_ns(),
        samples_ns=recording.samples_ns(),
        load_ns=recording.load_ns,
        first_ns=recording.first_ns,
        environment={
            **recorder.environment,
            "preflight": dict(readings),
            "delegates": list(recording.delegates),
            "threads": recording.threads,
            "runtime_version": recorder.version,
            "runtime_build": recorder.build,
        },
        details=recorder.details(job),
    )
