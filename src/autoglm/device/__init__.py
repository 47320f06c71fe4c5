"""The device SDK: keeps a model on a device up to date, and never leaves it broken.

    >>> from autoglm.device import Agent, Updater                                          # doctest: +SKIP
    >>> updater = Updater("/var/lib/autoglm", hub_url=URL, model="autoglm-phone-9b")       # doctest: +SKIP
    >>> engine = Engine.load(updater.active)                                               # doctest: +SKIP
    >>> Agent(updater, engine, every="6h").start()                                         # doctest: +SKIP

It needs the standard library, urllib3, zstd and the patch codec's C core, and nothing else.
"""

from autoglm.device.agent import Agent
from autoglm.device.control import Control
from autoglm.device.enrolment import FileTokenStore, TokenStore, enrol
from autoglm.device.environment import Environment, LinuxEnvironment, Reading, SettableEnvironment
from autoglm.device.http import HttpTransport
from autoglm.device.runtime import ExclusiveRuntime, FileRuntime, Runtime, SelfTestReport
from autoglm.device.settings import Gate, Progress, UpdateSettings, parse_every
from autoglm.device.states import Change, State
from autoglm.device.status import Status, UpdateResult, read_status
from autoglm.device.transport import Body, LocalTransport, Transport
from autoglm.device.updater import Updater

__all__ = [
    "Agent",
    "Body",
    "Change",
    "Control",
    "Environment",
    "ExclusiveRuntime",
    "FileRuntime",
    "FileTokenStore",
    "Gate",
    "HttpTransport",
    "LinuxEnvironment",
    "LocalTransport",
    "Progress",
    "Reading",
    "Runtime",
    "SelfTestReport",
    "SettableEnvironment",
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
