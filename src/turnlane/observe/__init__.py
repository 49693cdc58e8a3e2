"""The wing of the eyes: metrics and log lines, made from the values of `core/observations.py` and from statuses."""

from __future__ import annotations

from ..core.observations import AccessDenied as AccessDenied
from ..core.observations import ActorFell as ActorFell
from ..core.observations import AgentFailed as AgentFailed
from ..core.observations import AuthorityFell as AuthorityFell
from ..core.observations import ConnectionFailed as ConnectionFailed
from ..core.observations import GroupCommitted as GroupCommitted
from ..core.observations import HttpServed as HttpServed
from ..core.observations import LegacyWriteRefused as LegacyWriteRefused
from ..core.observations import NodeDisowned as NodeDisowned
from ..core.observations import ProjectionDrifted as ProjectionDrifted
from ..core.observations import ProjectionFailed as ProjectionFailed
from ..core.observations import ProjectionRebuilt as ProjectionRebuilt
from ..core.observations import ServingFailed as ServingFailed
from ..core.observations import TurnEnded as TurnEnded
from ..core.observations import TurnFenced as TurnFenced
from ..core.observations import TurnUnwound as TurnUnwound
from ..core.ports import Observer


class Observers:
    """Several observers as one. What one raises keeps the others from nothing; the first error is raised at the end."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def observe(self, value: object) -> None:
        first: Exception | None = None
        for observer in self._observers:
            try:
                observer.observe(value)
            except Exception as error:
                first = first or error
        if first is not None:
            raise first
