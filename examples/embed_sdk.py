"""The device SDK inside an app: a live model that keeps itself up to date.

    python examples/embed_sdk.py http://localhost:8000 ./phone data/trust/root.json

Asks the same question every few seconds; publish an update meanwhile and watch the version change,
in this very process.
"""

import sys
import time

from autoglm.device import Agent, Updater
from autoglm.engine import Engine, GenerationRequest
from autoglm.model.prompt import Message

hub_url, directory, root = sys.argv[1:4]
question = GenerationRequest([Message("user", "v1.3 有什么新功能?")])

# Recovers first, whatever the crash; installs nothing that the root's owner has not signed.
updater = Updater(directory, hub_url=hub_url, model="autoglm-phone-9b", trust_root=root)
if updater.active is None:
    updater.update()  # a new phone: install the release that everyone is on
engine = Engine.load(updater.active)
agent = Agent(updater, engine, every="10s")
agent.start()
try:
    while True:
        answer = engine.submit(question).result()
        print(f"[{answer.finished.release}] {answer.answer}", flush=True)
        time.sleep(3)
except KeyboardInterrupt:
    pass
finally:
    agent.stop()
    engine.close()
    updater.close()
