"""Trust: who may say what a device installs (The Update Framework, TUF).

The signing side is :mod:`~autoglm.trust.authority` with the offline keys and :mod:`~autoglm.trust.repository`
on the hub; the verifying side is :mod:`~autoglm.trust.client` on the device. They share roles and targets.
Import from the modules: a device must not load what signs.
"""
