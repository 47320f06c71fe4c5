"""Alembic's migrations of the hub's database, run by :class:`autoglm.hub.database.Database`."""
