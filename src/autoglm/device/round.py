"""One check, and all that follows from its answer.

The order: carry on what a crash or a disk broke off, judge a trial whose time has come, ask, verify what is
signed, then download, apply, examine, commit and swap (:mod:`autoglm.device.cycle`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from autoglm.device import outcome
from autoglm.device.context import Device
from autoglm.device.cycle import Arrival, Cycle
from autoglm.device.install import require_newer
from autoglm.device.offer import Offer, signed_offer
from autoglm.device.recovery import settle
from autoglm.device.runtime import Runtime
from autoglm.device.settings import Gate
from autoglm.device.staging import Staging
from autoglm.device.states import E_QUARANTINED, E_STAGED, E_TRIAL, State
from autoglm.device.status import UpdateResult
from autoglm.device.transport import Transport
from autoglm.device.trial import Proving
from autoglm.releases import DeviceEnvironment, UpdateAnswer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """One round of a device.

    Attributes:
        device, transport, proving, staging: the device's own.
        runtime: what serves, if anything does.
        environment: told to the hub.
        gate: asked at every step whether to go on.
    """

    device: Device
    transport: Transport
    proving: Proving
    staging: Staging
    runtime: Runtime | None
    environment: DeviceEnvironment | None
    gate: Gate

    def run(self) -> UpdateResult:
        """Do all of it.

        Raises:
            GiveUpError, HeldError: as :meth:`~autoglm.device.cycle.Cycle.run`.
            AutoGLMError: it does not go on now.
        """
        found = self._find()
        if isinstance(found, UpdateResult):
            return found
        offer, answer = found
        if self.staging.holds(offer):
            message = f"{offer.version} is staged and waits to be committed to"
            return UpdateResult("held", to_version=offer.version, code=E_STAGED, message=message)
        return self._arrived(self._cycle.run(offer), answer)

    def stage(self) -> UpdateResult:
        """Do all but the commit, and let the release wait for that; ``staged`` when it is there.

        Raises:
            GiveUpError, HeldError: as :meth:`~autoglm.device.cycle.Cycle.prepare`.
            AutoGLMError: it does not go on now.
        """
        found = self._find()
        if isinstance(found, UpdateResult):
            return found
        offer, answer = found
        if not self.staging.holds(offer):
            self.staging.keep(self._cycle.prepare(offer))
        return UpdateResult("staged", to_version=offer.version, retry_after_s=answer.retry_after_s)

    @property
    def _cycle(self) -> Cycle:
        return Cycle(self.device, self.transport, self.runtime, self.gate)

    def _find(self) -> tuple[Offer, UpdateAnswer] | UpdateResult:
        """Return what is to be installed, or what came of the round where nothing is."""
        device = self.device
        settle(device)
        self._catch_up()
        self.proving.judge(self.runtime, device.clock.monotonic())
        if (held := self._held_by_trial()) is not None:
            return held
        answer = self.ask()
        offer = signed_offer(device, self.transport, answer)
        self.staging.keep_only(offer)
        if offer is None:
            outcome.withdraw(device)
            return UpdateResult("none", retry_after_s=answer.retry_after_s)
        if device.slots.is_quarantined(offer.manifest_sha256):
            message = f"{offer.version} failed on this device before; it is not installed again"
            return UpdateResult("held", to_version=offer.version, code=E_QUARANTINED, message=message)
        if self._is_rotten and device.is_current(offer.manifest_sha256):
            return self._mended(offer, answer)
        require_newer(device, offer)
        if device.machine.state is State.TRIAL:
            outcome.make_way(device)
            self.proving.begin()
        return offer, answer

    def ask(self) -> UpdateAnswer:
        """Ask the hub; a device whose release has rotted asks as one that has none."""
        self.device.progress("check", 0, 0)
        request = self.device.request(self.environment, as_new=self._is_rotten)
        try:
            return self.transport.check(request)
        finally:
            self.device.count_wire_bytes()

    @property
    def _is_rotten(self) -> bool:
        return self.device.slots.is_rotten(self.device.slots.now.current)

    def _catch_up(self) -> None:
        """Let the runtime serve what ``current.json`` names, where an earlier try broke off."""
        live, current = self.device.live.slot, self.device.slots.now.current
        if self.runtime is not None and None not in (live, current) and live != current:
            self.proving.go_back(self.runtime)
            self.proving.begin()

    def _held_by_trial(self) -> UpdateResult | None:
        """One unproven release at a time: there must be a proven one to go back to."""
        now = self.device.slots.now
        if now.confirmed or now.previous is None:
            return None
        seconds = self.proving.seconds_left(self.device.clock.monotonic()) or 0.0
        return UpdateResult(
            "held", code=E_TRIAL, message="a release is on trial", retry_after_s=int(seconds) + 1
        )

    def _mended(self, offer: Offer, answer: UpdateAnswer) -> UpdateResult:
        self._cycle.mend(offer)
        _log.warning("%s is whole again", offer.version)
        return UpdateResult("none", retry_after_s=answer.retry_after_s)

    def _arrived(self, arrival: Arrival, answer: UpdateAnswer) -> UpdateResult:
        self.proving.begin()
        version = arrival.manifest.version
        _log.info("updated to %s", version)
        return UpdateResult(
            "updated", to_version=version, pause_s=arrival.pause_s, retry_after_s=answer.retry_after_s
        )
