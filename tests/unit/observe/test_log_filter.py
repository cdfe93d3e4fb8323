"""A log filter reads as RUST_LOG does, and refuses what it cannot read."""

from __future__ import annotations

import pytest

from ztunnel.observe.log_filter import LogFilter, level_name, parse_filter


@pytest.mark.parametrize(
    ("spec", "meaning"),
    [
        ("", LogFilter("info", {})),
        ("debug", LogFilter("debug", {})),
        ("error,access=info", LogFilter("error", {"access": "info"})),
        ("access=info", LogFilter("error", {"access": "info"})),
        ("info,ztunnel::proxy=debug", LogFilter("info", {"ztunnel.proxy": "debug"})),
        ("access:debug,info", LogFilter("info", {"access": "debug"})),
        ("info,ztunnel::proxy:trace", LogFilter("info", {"ztunnel.proxy": "trace"})),
        (" INFO , access=OFF ", LogFilter("info", {"access": "off"})),
        ("info,debug,access=info,access=warn", LogFilter("debug", {"access": "warn"})),
    ],
)
def test_specs_mean_what_rust_log_means(spec: str, meaning: LogFilter) -> None:
    assert parse_filter(spec) == meaning


@pytest.mark.parametrize(
    "spec", ["loud", "access", "access=loud", "=info", "a b=info", "access=info=info", "ztunnel::"]
)
def test_what_is_no_directive_is_refused_by_name(spec: str) -> None:
    with pytest.raises(ValueError, match=r"neither a level|not the name"):
        parse_filter(spec)


def test_text_of_a_filter_is_a_filter_again() -> None:
    wanted = parse_filter("warn,b=debug,a=info")
    assert str(wanted) == "warn,a=info,b=debug"
    assert parse_filter(str(wanted)) == wanted


def test_a_filter_cannot_grow_without_bound() -> None:
    wanted = parse_filter("info")
    with pytest.raises(ValueError, match="characters"):
        wanted.adding("info," * 4000)
    for start in range(0, 250, 50):
        wanted = wanted.adding(",".join(f"t{n}=info" for n in range(start, start + 50)))
    with pytest.raises(ValueError, match="256 targets"):
        wanted.adding(",".join(f"u{n}=info" for n in range(20)))


@pytest.mark.parametrize(
    ("number", "name"), [(50, "error"), (40, "error"), (30, "warn"), (25, "info"), (10, "debug"), (5, "trace")]
)
def test_levels_have_ztunnels_names(number: int, name: str) -> None:
    assert level_name(number) == name
