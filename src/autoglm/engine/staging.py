"""Loading and examining a release while the live one answers: in pieces, between two of its steps.

What it guarantees: the release answers nobody; the live one keeps its pace; whatever a release does in its
self-test is found in the report and nowhere else. Where memory holds one release only, see
:mod:`autoglm.engine.exclusive`.
"""

from __future__ import annotations

import math
from pathlib import Path

from autoglm.engine.aside import run_aside
from autoglm.engine.pace import Pace
from autoglm.engine.release import Placement, Release, Resident, load_resident
from autoglm.engine.reports import Staged
from autoglm.engine.selftest import SelfTestReport, examine_resident
from autoglm.engine.supervision import SupervisedWorker


class StagingArea:
    """Where a release is from its loading until it is swapped in or discarded.

    Args:
        placement: where releases go.
        worker: the live release's, between whose steps the work is done.
    """

    def __init__(self, placement: Placement, worker: SupervisedWorker) -> None:
        self._placement, self._worker = placement, worker

    def load(self, directory: Path, beside: Release) -> Staged:
        """Load a release and check it; tensors that it shares with ``beside`` take no memory.

        Raises:
            TrustError: a file differs from the manifest.
            FormatError: a file does not parse.
            EngineError: there is no room, or the weights are not finite.
        """

        def load() -> Resident:
            with self._pace() as pace:
                return load_resident(directory, self._placement, beside=beside, pace=pace)

        resident = run_aside(load, "stage")
        return Staged(resident.release.version, resident)

    def examine(self, resident: Resident, budget_s: float) -> SelfTestReport:
        """Run a release's health prompts; one that hangs is abandoned and fails, and nothing is raised.

        Args:
            resident: the release.
            budget_s: for all prompts together, in seconds.
        """
        try:
            # The prompts stop themselves at the budget; only a step that never returns outlasts the double.
            return run_aside(
                lambda: self._examine(resident, budget_s),
                "self-test",
                timeout_s=2 * budget_s,
            )
        except Exception as error:  # noqa: BLE001 - whatever a release does in its test is its failure
            return SelfTestReport(False, 0.0, 0.0, 0.0, 0, (f"the self-test broke off: {error}",))

    def _examine(self, resident: Resident, budget_s: float) -> SelfTestReport:
        with self._pace(most_s=budget_s / 2) as pace:
            return examine_resident(resident, budget_s=budget_s, pace=pace)

    def _pace(self, most_s: float = math.inf) -> Pace:
        """Return what the calling thread is to work beside the live release by."""
        worker = self._worker
        return Pace(lambda: worker.num_running > 0, lambda: worker.counters.steps, worker.post, most_s=most_s)
