"""Implementations by name: those of this package, and those of other packages and of notebooks.

One registration makes a metric, a null, a filter, a matching method, a dictionary format or an importer known
everywhere: to the functions, the command line, the experiment file and the messages about unknown names. It is a
decorator or, for an installed package, an entry point, which is read when a name is first asked for.

>>> SHAPES = Registry[str]("shape", "subspace.shapes")
>>> SHAPES.add("circle", "○")
'○'
>>> SHAPES["circel"]
Traceback (most recent call last):
storage.errors.InputError: there is no shape 'circel'; did you mean 'circle'? There are circle
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import pkgutil
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from storage.errors import InputError

if TYPE_CHECKING:
    from storage.readers import Importer

Item = TypeVar("Item")
Registered = TypeVar("Registered", bound=Any)


class Registry(Mapping[str, Item], Generic[Item]):
    """Everything of one kind, by name: first what this package has, then what was added.

    Parameters
    ----------
    kind
        What messages call an item, such as ``metric``.
    group
        Group of the entry points by which other packages name theirs: ``NAME = "module"``, which adds NAME.
    builtin
        The module, or the package of modules, that adds the items of this package; imported when it is first needed.
    """

    def __init__(self, kind: str, group: str, builtin: str | None = None) -> None:
        self.kind, self.group = kind, group
        self._builtin, self._home = builtin, f"{(builtin or '').partition('.')[0]}."
        self._items: dict[str, Item] = {}
        self._importing = threading.RLock()

    def add(self, name: str, item: Item) -> Item:
        """Add an item and return it; the same definition may be run again, as a cell of a notebook is.

        InputError if something else has this name.
        """
        if name in self._items and _origin(self._items[name]) != _origin(item):
            raise InputError(f"there is a {self.kind} {name!r} already; give yours another name")
        self._items[name] = item
        return item

    def register(self, item: Registered) -> Registered:
        """Add a class or a function, by its ``name`` or by what it is called; to be used as a decorator."""
        self.add(getattr(item, "name", None) or item.__name__, item)
        return item

    def __getitem__(self, name: str) -> Item:
        """Return the item of a name, importing its package if need be; an InputError lists all names."""
        self._import_builtin()
        if name not in self._items and name in self._entry_points:
            self._import_entry_point(self._entry_points[name])
        if name in self._items:
            return self._items[name]
        near = difflib.get_close_matches(str(name), self, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise InputError(f"there is no {self.kind} {name!r}; {hint} are {', '.join(self)}")

    def __contains__(self, name: object) -> bool:
        """Return whether there is an item of this name, without importing it."""
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        """Yield all names, those of this package first, whatever was imported before what; nothing else is imported."""
        self._import_builtin()
        modules = {name: _origin(item)[0] for name, item in self._items.items()}
        ordered = sorted(modules, key=lambda name: (not modules[name].startswith(self._home), modules[name]))
        return iter(list(dict.fromkeys([*ordered, *self._entry_points])))

    def __len__(self) -> int:
        """Return how many names there are."""
        return sum(1 for _ in self)

    @functools.cached_property
    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {entry.name: entry for entry in _all_entry_points().select(group=self.group)}

    def _import_entry_point(self, entry: importlib.metadata.EntryPoint) -> None:
        try:
            entry.load()
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"the {self.kind} {entry.name!r} cannot be imported from {entry.value}: {error}"
            ) from error
        if entry.name not in self._items:
            raise InputError(f"{entry.value} registers no {self.kind} {entry.name!r}; its entry point says so")

    def _import_builtin(self) -> None:
        """Import what adds the items of this package; once, also where that looks at this registry itself."""
        with self._importing:
            name, self._builtin = self._builtin, None
            if name is not None:
                module = importlib.import_module(name)
                for submodule in pkgutil.iter_modules(getattr(module, "__path__", [])):
                    importlib.import_module(f"{name}.{submodule.name}")


@functools.cache
def _all_entry_points() -> Any:
    """Return the entry points of all installed packages: some milliseconds, once."""
    return importlib.metadata.entry_points()


def _origin(item: Any) -> tuple[str, str]:
    """Return where an item is defined; of a record around a function, where that is."""
    definition = getattr(item, "function", item)
    return getattr(definition, "__module__", ""), getattr(definition, "__qualname__", repr(definition))


#: Formats that `subspace import` reads; here, since to list their names takes none of the libraries that read them.
IMPORTERS: Registry[Importer] = Registry("importer", "subspace.importers", "storage.importers")
