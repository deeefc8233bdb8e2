from types import SimpleNamespace

import pytest
from torch import nn

from shoal.replace.kv_cache import is_kv_cache, without_kv_cache


class Inner(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config


class Outer(Inner):
    def __init__(self, config, inner):
        super().__init__(config)
        self.inner = Inner(inner)


def test_every_configuration_of_a_network_is_switched_off_and_comes_back():
    on, off, other = SimpleNamespace(use_cache=True), SimpleNamespace(use_cache=False), SimpleNamespace(size=3)
    model = nn.ModuleList([Outer(on, on), Outer(off, other), nn.Linear(2, 2)])
    with without_kv_cache(model) as same:
        assert same is model
        assert (on.use_cache, off.use_cache) == (False, False)
        assert vars(other) == {"size": 3}
    assert (on.use_cache, off.use_cache) == (True, False)


def test_it_comes_back_where_something_raises():
    config = SimpleNamespace(use_cache=True)
    with pytest.raises(ZeroDivisionError), without_kv_cache(Outer(config, config)):
        1 / 0  # noqa: B018
    assert config.use_cache is True


def test_caches_of_transformers_are_known_and_nothing_else_is_one():
    transformers = pytest.importorskip("transformers")
    assert is_kv_cache(transformers.DynamicCache())
    assert not any(is_kv_cache(one) for one in ({}, set(), None, 3, "update", nn.Linear(2, 2)))
