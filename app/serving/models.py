"""The models of a process, and the choice of one by its name."""

from collections import Counter
from collections.abc import Iterator, Sequence

from app.errors import UnknownModel
from app.serving.cascade import NAME as CASCADE
from app.serving.cascade import Cascade
from app.serving.lifecycle import Lifecycle, Phase
from app.serving.model import Model
from app.serving.turns import Turns


class Models:
    """Owns the models; the first one is the default. With a single model, every name is accepted."""

    cascade: Cascade | None = None
    """Two of the models in a row: the default, if there is one."""

    def __init__(self, names: Sequence[str], lifecycle: Lifecycle) -> None:
        """`names`: empty for a single model. `lifecycle`: of the process, and of a single model."""
        turns = Turns()
        self.are_several = bool(names)
        """Whether clients choose a model by its name. There may be only one to choose from."""
        self._models = [Model(name, Lifecycle(), turns.join()) for name in names] or [
            Model("", lifecycle, turns.join())
        ]
        self.first = self._models[0]
        short = Counter(_short(name) for name in names)
        self._by_name = {_short(model.name): model for model in self._models if short[_short(model.name)] == 1}
        self._by_name |= {model.name.lower(): model for model in self._models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    @property
    def default(self) -> Model | Cascade:
        """What ranks if a request names no model."""
        return self.cascade or self.first

    @property
    def observed(self) -> Model:
        """The model with the scores of the default: its rankings count for the quality."""
        return self.cascade.large if self.cascade else self.first

    @property
    def names(self) -> list[str]:
        """What clients may choose."""
        return [model.name for model in self._models] + ([CASCADE] if self.cascade else [])

    def choose(self, name: str | None) -> Model | Cascade:
        """What ranks a request. Raises `UnknownModel`."""
        if not self.are_several or not name:
            return self.default
        return self.cascade if self.cascade and name.lower() == CASCADE else self.named(name)

    def named(self, name: str) -> Model:
        """The model of this name, which may be without its organization. Raises `UnknownModel`."""
        known = self._by_name
        if not self.are_several:
            known = dict.fromkeys((self.first.name.lower(), _short(self.first.name)), self.first)
        if (model := known.get(name.lower())) is None:
            raise UnknownModel(name, self.names)
        return model

    @property
    def problem(self) -> str | None:
        """Why the cascade, or else every model, cannot be used; None if it can be."""
        if self.cascade:
            return self.cascade.problem
        problems = [model.problem for model in self._models]
        return problems[0] if all(problems) else None

    @property
    def are_idle(self) -> bool:
        """Whether no request waits, for a slot, a batch or a load."""
        rerankers = [model.reranker for model in self._models if model.reranker]
        waiting = rerankers[0].admission.waiting if rerankers else 0
        return not waiting + sum(reranker.batcher.pending for reranker in rerankers)

    def close(self) -> None:
        """Answer all requests."""
        for model in self._models:
            model.close()

    def were_loaded(self) -> bool:
        """Whether each model was loaded, or has failed."""
        return all(model.lifecycle.phase is not Phase.LOADING for model in self._models)

    def has_other(self, model: Model) -> bool:
        """Whether another model has not failed."""
        return any(other.lifecycle.phase is not Phase.FAILED for other in self._models if other is not model)


def _short(name: str) -> str:
    """The name without its organization."""
    return name.lower().rsplit("/", 1)[-1]
