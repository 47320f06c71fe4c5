"""The HTTP service: OpenAI's API in front of the engine, the hub's wire in front of the hub.

Only here is FastAPI imported. :mod:`~autoglm.service.serve` wires the parts and runs them,
:mod:`~autoglm.service.app` is the application alone, :mod:`~autoglm.service.settings` reads ``config.yaml``.
"""
