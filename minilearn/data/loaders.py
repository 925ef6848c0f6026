"""DataLoaders: the loaders of a task, each with the adapter of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..arguments import instances, text, unless_none
from ..notebook import Shows, loader_text
from .adapters import Adapter, adapter_of
from .adapters.adapter import short
from .adapters.continued import Continued
from .adapters.iterables import StreamAdapter
from .augment import Normalize, normalize
from .fingerprint import data_settings


class HasLoaders(Protocol):
    """Another library's loaders: whatever has a train and a valid one."""

    @property
    def train(self) -> Any:
        """The loader to train on."""

    @property
    def valid(self) -> Any:
        """The loader to validate on."""


_NAMES = ("train", "valid", "test")
_TAKEN = ("train", "valid", "test", "iterate")  # by other rows, or other loaders


class _Loader:
    """Hold an attribute of DataLoaders, the user's own loader; setting it makes its adapter."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, dls: DataLoaders | None, owner: type) -> Any:
        if dls is None:
            return self
        adapter = dls.adapters.get(self.name)
        return None if adapter is None else adapter.loader

    def __set__(self, dls: DataLoaders, loader: Any) -> None:
        is_sets = self.name == "valid" and isinstance(loader, Mapping)
        sets = _checked_sets(loader) if is_sets else {} if loader is None else {"eval": loader}
        found, settings = {}, {}
        for i, (name, one) in enumerate(sets.items()):
            said = f"dls {self.name}" + (f"[{name!r}]" if is_sets else "")
            key = f"{self.name}/{name}" if i else self.name
            found[key] = _read_again(dls, one, said)
            found[key].serve(key)
            settings[key] = data_settings(one)
        for key in [key for key in dls.adapters if key.partition("/")[0] == self.name]:
            dls.adapters.pop(key)
        dls.adapters |= found
        dls.first_settings |= settings
        if self.name == "valid":
            dls.set_names = tuple(sets)


def _read_again(dls: DataLoaders, loader: Any, name: str) -> Adapter:
    """Return the adapter of a loader that is read in each epoch."""
    adapter = dls.adapter_of(loader, name)
    if isinstance(adapter, StreamAdapter):
        raise TypeError(
            f"{name} is a {type(loader).__name__}, which can be read only once: "
            "expected an iterable that starts again each epoch; make it a list, or a class with __iter__"
        )
    return adapter


def _checked_sets(sets: Mapping[str, Any]) -> dict[str, Any]:
    """Return named validation sets. Raises: TypeError or ValueError, with the name that is wrong."""
    if not sets:
        raise ValueError("dls valid={}: expected one validation set or more, or None")
    for name, loader in sets.items():
        if not isinstance(name, str) or not name.strip() or "/" in name or name in _TAKEN:
            raise ValueError(
                f"dls valid has the name {name!r}: expected names for rows of history, without '/', other "
                f"than {', '.join(map(repr, _TAKEN))}"
            )
        if loader is None:
            raise ValueError(f"dls valid[{name!r}] is None: expected a loader")
    return dict(sets)


class _Adapters(dict[str, Adapter]):
    """Adapters by the names of their loaders."""

    def __missing__(self, name: str) -> Adapter:
        if name != "train":
            raise KeyError(name)
        raise ValueError(
            "this learner has no data to train on: expected Learner(model, DataLoaders(train, valid)), or "
            "learn.dls = DataLoaders(train, valid)"
        )


class DataLoaders(Shows):
    """Hold the loaders of a task: any iterables of batches (inputs, target).

    Args:
        train, valid, test: each is read once per epoch, so it must give the batches again each time.
            valid=None: there is no validation. Available as attributes or by name: dls["train"],
            dls["eval"] (or "valid"), dls["test"]. valid may be a dict of several, {"clean": a, "shifted": b}:
            each is validated in each epoch and has a row of its name; dls.valid is then the first one.
        classes: the names of the classes, in the order of the targets, where there are any.
        source: where the data came from, for reports.
        transform: the Normalize that made inputs of the pixels of images, for `learn.export`. An ImageLoader
            has its own.

    Attributes:
        adapters: the adapter of each loader, under "train", "valid" and "test", and "valid/NAME" for each
            further validation set; see `minilearn.data.Adapter`.
        first_settings: numbers and text of each data set as it was given, which shows what reading changes.
        set_names: the names of the validation sets, ("eval",) for a loader without a name.

    Raises: ValueError without train; TypeError for what is not iterable, or can be read only once.
    """

    train, valid, test = _Loader(), _Loader(), _Loader()

    def __init__(
        self,
        train: Any,
        valid: Any = None,
        test: Any = None,
        classes: Sequence[str] | None = None,
        source: str = "",
        transform: Normalize | None = None,
    ) -> None:
        if train is None:
            raise ValueError(
                "dls has no train (train=None): expected DataLoaders(train, valid), train an iterable of "
                "batches"
            )
        self.adapters: dict[str, Adapter] = _Adapters()
        self.first_settings: dict[str, dict[str, Any]] = {}
        self.set_names: tuple[str, ...] = ()
        self.train, self.valid, self.test = train, valid, test
        self.classes = unless_none(instances, "classes", classes, str, "names of classes")
        self.source = text("source", source) if source != "" else ""
        self.transform: Normalize | None = unless_none(normalize, "transform", transform)

    def _facts(self) -> dict[str, Any]:
        names = {key: key for key in self.adapters} | dict(zip(self.valid_keys, self.set_names, strict=True))
        names |= {"valid": "valid"} if self.set_names == ("eval",) else {}
        facts: dict[str, Any] = {names[key]: loader_text(one.loader) for key, one in self.adapters.items()}
        if self.classes is not None:
            facts["classes"] = f"{len(self.classes)} names"
        return facts | ({"source": self.source} if self.source else {})

    def __repr__(self) -> str:
        try:
            lines = [f"  {name}: {text}" for name, text in self._facts().items()]
        except Exception:  # an attribute is missing, or of another kind
            return "DataLoaders(...)"
        return "\n".join(["DataLoaders", *lines]) if lines else "DataLoaders without a loader"

    def __getitem__(self, name: str) -> Any:
        if name in self.set_names:
            return self.sets[name]
        attribute = "valid" if name == "eval" else name
        if attribute not in _NAMES:
            raise KeyError(f"dls[{name!r}]: expected 'train', 'eval' (or 'valid') or 'test'")
        if (loader := getattr(self, attribute)) is None:
            raise KeyError(f"dls[{name!r}]: these DataLoaders were made without it")
        return loader

    @property
    def valid_keys(self) -> tuple[str, ...]:
        """Return the keys of the validation sets in `adapters`, in their order."""
        return tuple(f"valid/{name}" if i else "valid" for i, name in enumerate(self.set_names))

    @property
    def sets(self) -> dict[str, Any]:
        """Return the validation sets by name: {"eval": valid} for a loader without a name."""
        loaders = [self.adapters[key].loader for key in self.valid_keys]
        return dict(zip(self.set_names, loaders, strict=True))

    @property
    def epoch_batches(self) -> list[int]:
        """Return how many batches each epoch of a fit in steps has; nothing if its epochs are passes."""
        adapter = self.adapters.get("train")
        return list(adapter.place.lengths) if isinstance(adapter, Continued) else []

    def adapter_of(self, loader: Any, name: str = "the loader") -> Adapter:
        """Return the adapter of a loader: the kept one, if the loader is one of these, or a new one.

        Raises: TypeError, with the name, for what gives no batches.
        """
        for adapter in self.adapters.values():
            if loader is adapter.loader or loader is adapter:
                return adapter
        return adapter_of(loader, name)

    def with_valid(self, loader: Any, set_name: str = "eval") -> DataLoaders:
        """Return DataLoaders like these, with another validation loader; it may be readable only once."""
        dls = self._without_train()
        dls.classes, dls.source, dls.transform = self.classes, self.source, self.transform
        # The first, because the loader of a training that continues over passes is read here in one pass.
        adapter = self.adapter_of(loader, "dls valid")
        adapter.serve("valid")
        dls.adapters["valid"] = adapter.one_pass()
        dls.adapters |= {name: adapter for name, adapter in self.adapters.items() if name == "train"}
        dls.set_names = (set_name,)
        return dls

    @classmethod
    def _without_train(cls) -> DataLoaders:
        dls = DataLoaders.__new__(DataLoaders)
        dls.adapters, dls.classes, dls.source, dls.transform = _Adapters(), None, "", None
        dls.first_settings = {}
        dls.set_names = ()
        return dls

    @classmethod
    def of(cls, dls: Any) -> DataLoaders:
        """Return `dls` as DataLoaders; it may be a mapping with "train" and perhaps "eval" and "test".

        None gives some without a loader, of a learner that is not trained.
        """
        if dls is None:
            return cls._without_train()
        if isinstance(dls, DataLoaders):
            return dls
        if isinstance(dls, Mapping):
            if unknown := dls.keys() - {"train", "eval", "valid", "test"}:
                raise ValueError(
                    f"dls has {sorted(unknown)}: expected the keys 'train', 'eval' (or 'valid'), 'test'"
                )
            if "eval" in dls and "valid" in dls:
                raise ValueError(
                    "dls has both 'eval' and 'valid', two names for the same loader: expected one"
                )
            return cls(dls.get("train"), dls.get("eval", dls.get("valid")), dls.get("test"))
        if all(hasattr(dls, name) for name in ("train", "valid")):
            return cls(dls.train, dls.valid, getattr(dls, "test", None))
        raise TypeError(
            f"dls={short(dls)}: expected DataLoaders(train, valid), or a dict with 'train' and 'eval'"
        )
