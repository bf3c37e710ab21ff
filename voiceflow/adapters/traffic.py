"""`stages.rollout.Traffic` on real servers: a split says who gets what, Prometheus says what came of it."""

import json
import logging
import time
from collections.abc import Callable

from pydantic import ValidationError

from voiceflow.adapters.prometheus import Prometheus
from voiceflow.adapters.registry import MODEL_NAME, is_dead, process_name
from voiceflow.adapters.splits import Notes, read_split, write_split
from voiceflow.config import RolloutConfig
from voiceflow.errors import ConfigError, PlatformError
from voiceflow.split import Served, Split
from voiceflow.stages.promote import Deployment, Registry, log_entry, settle
from voiceflow.stages.rollout import Rollout, Window

logger = logging.getLogger("voiceflow.rollout")
BLIND_S = 60.0
"""So long nothing can be seen before the challenger gets no more streams."""
LOAD_S = 120.0
"""So long servers have to load the challenger."""
LEASE_LOOKS = 6.0
"""A controller that has not written for so many looks is gone."""


class NotesJournal:
    """`stages.rollout.Journal` beside the split, of one controller at a time.

    Args:
        notes: Where the split is.
        stale_s: So long after it last wrote another controller counts as gone.
    """

    def __init__(self, notes: Notes, *, stale_s: float) -> None:
        self._notes = notes
        self._stale_s = stale_s

    def claim(self) -> None:
        """Be the one that writes.

        Raises:
            PlatformError: Another controller is.
        """
        text = self._notes.get("lease")
        lease = {} if text is None else json.loads(text)
        other, age_s = lease.get("owner", ""), time.time() - lease.get("at", 0.0)
        if other not in ("", process_name()) and age_s < self._stale_s and not is_dead(other):
            raise PlatformError(f"a rollout is under way ({other}, {age_s:.0f} s ago); there can be one at a time")
        self._renew()

    def release(self) -> None:
        """Another may."""
        self._notes.put("lease", "{}")

    def read(self) -> Rollout | None:
        """See `Journal`.

        Raises:
            ConfigError: What is there was written by another version.
        """
        text = self._notes.get("journal")
        if text is None:
            return None
        try:
            return Rollout.model_validate_json(text)
        except ValidationError as err:
            raise ConfigError(f"{self._notes.address}: expected a journal of `voiceflow rollout`: {err}") from err

    def write(self, rollout: Rollout) -> None:
        """See `Journal`."""
        self._notes.put("journal", rollout.model_dump_json(indent=2) + "\n")
        self._renew()

    def _renew(self) -> None:
        self._notes.put("lease", json.dumps({"owner": process_name(), "at": time.time()}))


class LiveTraffic:
    """Servers that read a split.

    Args:
        notes: Where the split is.
        prometheus: Scrapes the servers.
        registry: Whose aliases tell who is champion.
        config: Times and margins.
        champion: What serves now.
        challenger: What is to.
        by: Who rolls out.
        deployment: Where it is written down what runs; None for nowhere.
    """

    def __init__(
        self,
        notes: Notes,
        prometheus: Prometheus,
        registry: Registry,
        config: RolloutConfig,
        *,
        champion: Served,
        challenger: Served,
        by: str,
        deployment: Deployment | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._notes = notes
        self._prometheus = prometheus
        self._registry = registry
        self._config = config
        self._champion = champion
        self._challenger = challenger
        self._by = by
        self._deployment = deployment
        self._sleep = sleep
        self._was_loaded = False

    def give(self, weight: float) -> None:
        """See `Traffic`."""
        self._write(
            Split(champion=self._champion, challenger=self._challenger, weight=weight, shadow=self._config.shadow)
        )

    def _write(self, split: Split) -> None:
        if read_split(self._notes) != split:
            write_split(self._notes, split)

    def see(self) -> Window:
        """See `Traffic`.

        Raises:
            PlatformError: No server loads the challenger, or Prometheus scrapes too rarely.
        """
        blind_since_s: float | None = None
        waiting_since_s = time.monotonic()
        while True:
            self._sleep(self._config.look_s)
            try:
                window = self._prometheus.window(self._config.look_s, late_ms=self._config.late_ms)
            except PlatformError as err:
                now_s = time.monotonic()
                blind_since_s = blind_since_s or now_s
                logger.warning("%s", err)
                if self._was_loaded and now_s - blind_since_s > BLIND_S:
                    self.give(0.0)
                if not self._was_loaded and now_s - blind_since_s > BLIND_S:
                    raise
                continue
            if window is not None:
                self._was_loaded = True
                return window
            if time.monotonic() - waiting_since_s > LOAD_S:
                raise PlatformError(
                    f"no server has loaded version {self._challenger.version} in {LOAD_S:.0f} s: are they started with "
                    f"--split {self._notes.address}, and does {self._prometheus.url} scrape them?"
                )

    def end(self, rollout: Rollout) -> None:
        """See `Traffic`: servers first, then aliases and the log."""
        version = rollout.challenger
        if rollout.status == "promoted":
            # Written down before servers act, for a promotion can be refused.
            settle(self._registry, version, rollout.champion, rollout.why, by=self._by, deployment=self._deployment)
            self._write(Split(champion=self._challenger))
            return
        self._write(Split(champion=self._champion, withdrawn=[self._challenger.key]))
        if self._registry.version_of("challenger") == version:
            self._registry.record(log_entry("rollout rolled back", version, rollout.champion, rollout.why, by=self._by))
            self._registry.set_alias("challenger", None)


def point_split(notes: Notes, registry: Registry, version: str, *, withdrawn: str | None = None) -> None:
    """Let servers that read a split answer new streams with a version, and no others.

    Args:
        notes: Where the split is.
        registry: Knows the digests.
        version: The champion.
        withdrawn: A version whose open streams it takes over.
    """
    keys = [] if withdrawn is None else [served_version(registry, withdrawn).key]
    write_split(notes, Split(champion=served_version(registry, version), withdrawn=keys))


def served_version(registry: Registry, version: str, *, uri: str | None = None) -> Served:
    """A registered version as servers find it: from MLflow, or where `uri` says."""
    digest = registry.tags_of(version).get("digest", "")
    return Served(uri=uri or f"models:/{MODEL_NAME}/{version}", digest=digest, version=version)
