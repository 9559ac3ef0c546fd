"""Importers, a module for each kind of file; those of one array and of caches are in :mod:`storage.readers`."""
