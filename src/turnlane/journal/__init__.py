"""The journal: event logs on disk or in memory, and what hangs on them. Synchronous; threads are the runtime's affair.

`layout` is the page to read first. `LmdbStore` and `MemoryStore` implement `EventStore`, `LmdbLeases`,
`StoreLeases` and `MemoryLeases` implement `LeaseStore`, `StoreCursors` implements `Cursors`, `LmdbProjections` and
`StoreProjections` implement `Projections`; `care` looks after a store as a whole.
"""

from .care import DoctorReport, Fault, backup, compact, doctor
from .cursor import StoreCursors
from .lease import Leases, LmdbLeases, MemoryLeases, StoreLeases, raise_fence
from .memory import MemoryStore
from .projections import Fit, LmdbProjections, StoreProjections, verify
from .store import LmdbStore

__all__ = [
    "DoctorReport",
    "Fault",
    "Fit",
    "Leases",
    "LmdbLeases",
    "LmdbProjections",
    "LmdbStore",
    "MemoryLeases",
    "MemoryStore",
    "StoreCursors",
    "StoreLeases",
    "StoreProjections",
    "backup",
    "compact",
    "doctor",
    "raise_fence",
    "verify",
]
