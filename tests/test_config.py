"""Configurations: names and types are checked, the nearest known key is suggested, nothing is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from speakerkit.config import NamedConfig, apply_overrides, parse, read_config, read_yaml, to_dict, write_yaml
from speakerkit.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: float = 1e-3
    pair: tuple[float, float] = (0.9, 0.99)
    sizes: list[int] = field(default_factory=list)
    kind: Literal["one", "two"] = "one"


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    model: NamedConfig = field(default_factory=lambda: NamedConfig("net"))
    limit: int | None = None
    flag: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def test_defaults_and_values() -> None:
    assert parse(Outer, {"name": "x"}) == Outer("x")
    read = parse(Outer, {"name": "x", "limit": 3, "inner": {"rate": 2, "sizes": [1, 2], "pair": [1, 2]}})
    assert read == Outer("x", Inner(2.0, (1.0, 2.0), [1, 2]), limit=3)
    assert isinstance(read.inner.rate, float)
    assert isinstance(read.inner.pair, tuple)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "x"}, "nam: is an unknown key; did you mean 'name'?"),
        ({"name": "x", "inner": {"rat": 1}}, r"inner\.rat: is an unknown key; did you mean 'rate'?"),
        ({"name": "x", "zzzzzz": 1}, "zzzzzz: is an unknown key; known keys: name, inner"),
        ({}, "name: is missing"),
        ({"name": 3}, "name: is 3; a value of type str"),
        ({"name": "x", "limit": "many"}, "limit: is 'many'; a value of type int"),
        ({"name": "x", "limit": True}, "limit: is True"),
        ({"name": "x", "limit": 3.5}, r"limit: is 3\.5"),
        ({"name": "x", "flag": 1}, "flag: is 1; a value of type bool"),
        ({"name": "x", "flag": None}, "flag: is None"),
        ({"name": "x", "inner": []}, "inner: must be a mapping"),
        ({"name": "x", "inner": {"rate": "fast"}}, r"inner\.rate: is 'fast'; a finite number"),
        ({"name": "x", "inner": {"rate": float("inf")}}, "inner.rate: is inf; a finite number"),
        ({"name": "x", "inner": {"rate": 10**400}}, "a finite number"),
        ({"name": "x", "inner": {"rate": True}}, r"inner\.rate: is True"),
        ({"name": "x", "inner": {"pair": [1]}}, r"inner\.pair: has 1 values; 2 are expected"),
        ({"name": "x", "inner": {"sizes": [1, "b"]}}, r"inner\.sizes\[1\]: is 'b'"),
        ({"name": "x", "inner": {"sizes": 3}}, r"inner\.sizes: is 3"),
        ({"name": "x", "inner": {"kind": "three"}}, r"inner\.kind: is 'three'; choose from one, two"),
        ({"name": "x", "extra": 3}, "extra: is 3"),
        ({1: 2}, "1: is an unknown key"),
        ([], "configuration: must be a mapping"),
    ],
)
def test_wrong_values_are_named(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Outer, values)


def test_numbers_that_yaml_reads_as_text(tmp_path: Path) -> None:
    """``1e-4`` has no dot, so YAML 1.1 says it is text."""
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ninner: {rate: 1e-4}\n")
    assert read_yaml(path)["inner"]["rate"] == "1e-4"
    assert read_config(Outer, path).inner.rate == 1e-4


def test_overrides() -> None:
    values = {"name": "x", "inner": {"rate": 1}}
    changed = apply_overrides(values, ["inner.rate=0.5", "inner.sizes=[1, 2]", "model.args.depth=3", "limit=null"])
    assert changed["inner"] == {"rate": 0.5, "sizes": [1, 2]}
    assert changed["model"] == {"args": {"depth": 3}}
    assert changed["limit"] is None
    assert values == {"name": "x", "inner": {"rate": 1}}
    assert apply_overrides({}, ["a=b=c"]) == {"a": "b=c"}
    for override, message in (
        ("inner", "not of the form"),
        ("=3", "not of the form"),
        ("name.x=3", "'name' has no keys"),
        ("a=[1", "not YAML"),
        ("a=!!python/object/apply:os.getcwd []", "not YAML"),
    ):
        with pytest.raises(ConfigError, match=message):
            apply_overrides(values, [override])


def test_round_trip(tmp_path: Path) -> None:
    config = Outer("ünï", Inner(1e-4, (0.1, 0.2), [3]), NamedConfig("net", {"a": [1, {"b": None}]}), 5, True)
    assert parse(Outer, to_dict(config)) == config
    write_yaml(tmp_path / "c.yaml", to_dict(config))
    assert read_config(Outer, tmp_path / "c.yaml") == config


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("nme: x\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: nme is an unknown key; did you mean 'name'"):
        read_config(Outer, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not plain YAML"),
        ("a: !!python/name:os.system", "not plain YAML"),
        ("a: 2020-13-45", "not plain YAML"),
        ("a: 1\nb: 2\na: 3", "key 'a' twice"),
        ("a: {b: 1, b: 2}", "key 'b' twice"),
        ("- 1", "not a YAML mapping"),
        ("", "not a YAML mapping"),
        ("a: &a [*a]", "more than 100000"),
        ("a: " + 5000 * "[", "nested too deeply|not plain"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert caught.value.subject == str(path)


def test_merge_keys_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("base: &base {x: 1, y: 2}\nmine: {<<: *base, x: 3}\n")
    assert read_yaml(path)["mine"] == {"x": 3, "y": 2}
