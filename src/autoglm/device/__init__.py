"""The device SDK: keeps a model on a device up to date, and never leaves it broken.

    >>> from autoglm.device import Agent, Updater                                          # doctest: +SKIP
    >>> updater = Updater("/var/lib/autoglm", hub_url=URL, model="autoglm-phone-9b")       # doctest: +SKIP
    >>> engine = Engine.load(updater.active)                                               # doctest: +SKIP
    >>> Agent(updater, engine, every="6h").start()                                         # doctest: +SKIP

It needs the standard library, urllib3, zstd and the patch codec's C core, and nothing else.
"""

from autoglm.device.agent import Agent
from autoglm.device.enrolment import FileTokenStore, TokenStore, enrol
from autoglm.device.http import HttpTransport
from autoglm.device.runtime import FileRuntime, Runtime, SelfTestReport
from autoglm.device.settings import Conditions, Gate, Progress, UpdateSettings, parse_every
from autoglm.device.states import State
from autoglm.device.status import Status, UpdateResult, read_status
from autoglm.device.transport import Body, LocalTransport, Transport
from autoglm.device.updater import Updater

__all__ = [
    "Agent",
    "Body",
    "Conditions",
    "FileRuntime",
    "FileTokenStore",
    "Gate",
    "HttpTransport",
    "LocalTransport",
    "Progress",
    "Runtime",
    "SelfTestReport",
    "State",
    "Status",
    "TokenStore",
    "Transport",
    "UpdateResult",
    "UpdateSettings",
    "Updater",
    "enrol",
    "parse_every",
    "read_status",
]
