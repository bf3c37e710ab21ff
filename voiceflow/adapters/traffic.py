"""`stages.rollout.Traffic` on real servers: a split says who gets what, Prometheus says what came of it."""

import json
import logging
import time
from collections.abc import Callable

from pydantic import ValidationError

from voiceflow.adapters.prometheus import Prometheus
from voiceflow.adapters.registry import MODEL_NAME, MlflowRegistry, is_dead, process_name
from voiceflow.adapters.splits import Notes, read_split, write_split
from voiceflow.config import RolloutConfig
from voiceflow.errors import ConfigError, PlatformError
from voiceflow.split import Served, Split
from voiceflow.stages.promote import Deployment, Registry, log_entry, settle
from voiceflow.stages.rollout import Rollout, Seen, Window

logger = logging.getLogger("voiceflow.rollout")
BLIND_S = 60.0
"""So long nothing can be seen before the challenger gets no more streams."""
LOAD_S = 120.0
"""So long servers have to load the challenger."""
NOTHING = Window(Seen(0.0, 0.0, 0.0, 0.0), Seen(0.0, 0.0, 0.0, 0.0))


class NotesJournal:
    """`stages.rollout.Journal` beside the split, of one controller at a time.

    Args:
        notes: Where the split is.
        stale_s: So long after it was last heard of another controller counts as gone.
    """

    def __init__(self, notes: Notes, *, stale_s: float) -> None:
        self._notes = notes
        self._stale_s = stale_s

    @property
    def other(self) -> str:
        """The controller that is at it, if it is not this one; else nothing."""
        text = self._notes.get("lease")
        lease = {} if text is None else json.loads(text)
        name, age_s = lease.get("owner", ""), time.time() - lease.get("at", 0.0)
        return "" if name in ("", process_name()) or age_s > self._stale_s or is_dead(name) else name

    def claim(self) -> None:
        """Be the one that writes, or go on being it.

        Raises:
            PlatformError: Another controller is.
        """
        if other := self.other:
            raise PlatformError(f"a rollout is under way ({other}); there can be one at a time")
        self._notes.put("lease", json.dumps({"owner": process_name(), "at": time.time()}))

    def release(self) -> None:
        """Another may."""
        if not self.other:
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
        """See `Journal`.

        Raises:
            PlatformError: Another controller took over.
        """
        self.claim()
        self._notes.put("journal", rollout.model_dump_json(indent=2) + "\n")

    def call_off(self, challenger: str, why: str) -> None:
        """Tell the controller that is at it to take all streams of a challenger back."""
        self._notes.put("call-off", json.dumps({"challenger": challenger, "why": why, "at": time.time()}))

    def called_off(self, challenger: str, *, since_s: float) -> str:
        """Why somebody called it off since a moment by `time.time`; else nothing."""
        text = self._notes.get("call-off")
        wish = {} if text is None else json.loads(text)
        is_meant = wish.get("challenger") == challenger and wish.get("at", 0.0) >= since_s
        return str(wish["why"]) if is_meant else ""


class LiveTraffic:
    """Servers that read a split.

    Args:
        notes: Where the split is.
        journal: Renewed while this waits.
        prometheus: Scrapes the servers.
        registry: Whose aliases tell who is champion.
        config: Times and margins.
        champion: What serves now.
        challenger: What is to.
        by: Who rolls out.
        deployment: Where it is written down what runs; None for nowhere.
        hand_on: Pushes and applies what was written down.
    """

    def __init__(
        self,
        notes: Notes,
        journal: NotesJournal,
        prometheus: Prometheus,
        registry: MlflowRegistry,
        config: RolloutConfig,
        *,
        champion: Served,
        challenger: Served,
        by: str,
        deployment: Deployment | None = None,
        hand_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._notes = notes
        self._journal = journal
        self._prometheus = prometheus
        self._registry = registry
        self._config = config
        self._champion = champion
        self._challenger = challenger
        self._by = by
        self._deployment = deployment
        self._hand_on = hand_on
        self._began_s = time.time()

    def give(self, weight: float) -> None:
        """See `Traffic`."""
        self._write(
            Split(champion=self._champion, challenger=self._challenger, weight=weight, shadow=self._config.shadow)
        )

    def _write(self, split: Split) -> None:
        if read_split(self._notes) != split:
            write_split(self._notes, split)

    def see(self) -> Window:
        """See `Traffic`; while nothing can be seen, the challenger gets no more streams.

        Raises:
            PlatformError: No server loads the challenger.
            ConfigError: Answers are not counted by `late_ms`.
        """
        began_s = seen_s = time.monotonic()
        while True:
            time.sleep(self._config.look_s)
            self._journal.claim()
            if self.called_off():
                return NOTHING
            now_s = time.monotonic()
            try:
                window = self._prometheus.window(self._config.look_s, late_ms=self._config.late_ms)
            except PlatformError as err:
                logger.warning("%s", err)
                if now_s - seen_s > BLIND_S:
                    self.give(0.0)
                continue
            except ConfigError:
                self.give(0.0)
                raise
            seen_s = now_s
            if window is not None:
                return window
            if now_s - began_s > max(LOAD_S, 3.0 * self._config.look_s):
                self.give(0.0)
                raise PlatformError(
                    f"no server has loaded version {self._challenger.version} in {now_s - began_s:.0f} s: are they "
                    f"started with --split {self._notes.address}, and does {self._prometheus.url} scrape them?"
                )

    def called_off(self) -> str:
        """See `Traffic`."""
        try:
            champion = self._registry.version_of("champion")
        except PlatformError as err:  # it is asked again at the next look, and needed at the end
            logger.warning("%s", err)
            champion = self._champion.version
        if champion != self._champion.version:
            return f"version {champion} became champion meanwhile"
        return self._journal.called_off(self._challenger.version, since_s=self._began_s)

    def end(self, rollout: Rollout) -> None:
        """See `Traffic`."""
        version = rollout.challenger
        self._registry.recover()
        if rollout.status == "promoted":
            # Aliases first, for a promotion can be refused.
            settle(self._registry, version, rollout.champion, rollout.why, by=self._by, deployment=self._deployment)
            self._write(Split(champion=self._challenger))
            self._hand_on()
            return
        # Servers first: people are waiting.
        champion = self._registry.version_of("champion")
        served = self._champion
        if champion not in (None, self._champion.version):
            served = served_version(self._registry, str(champion))
        withdrawn = [] if served.key == self._challenger.key else [self._challenger.key]
        self._write(Split(champion=served, withdrawn=withdrawn))
        if self._registry.version_of("challenger") == version:
            self._registry.set_alias("challenger", None)
        entry = log_entry("rollout rolled back", version, served.version, rollout.why, by=self._by)
        log = self._registry.audit_log()
        if not log or any(log[-1].get(name) != entry[name] for name in ("action", "from", "why")):
            self._registry.record(entry)


def point_split(notes: Notes, registry: Registry, version: str, *, withdrawn: str | None = None) -> None:
    """Let servers that read a split answer new streams with a version, and no others.

    Args:
        notes: Where the split is.
        registry: Knows the digests.
        version: The champion.
        withdrawn: A version whose open streams it takes over.
    """
    champion = served_version(registry, version)
    keys = [] if withdrawn is None else [served_version(registry, withdrawn).key]
    write_split(notes, Split(champion=champion, withdrawn=[key for key in keys if key != champion.key]))


def served_version(registry: Registry, version: str, uri: str | None = None) -> Served:
    """A registered version as servers find it: from MLflow, or where `uri` says."""
    digest = registry.tags_of(version).get("digest", "")
    return Served(uri=uri or f"models:/{MODEL_NAME}/{version}", digest=digest, version=version)
