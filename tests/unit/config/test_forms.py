import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.config import forms
from ztunnel.config.describe import duration
from ztunnel.config.forms import BindText
from ztunnel.config.settings import WorkloadInfo


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("24h", 86400.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2d", 172800.0),
        ("100us", 0.0001),
        ("30", 30.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_seconds(text, seconds):
    assert forms.duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10 s", "s", "10x", "-1s", "1h30", "10s!", "1e3s", "\u0661s"])
def test_what_is_no_duration_says_so(text):
    with pytest.raises(ValueError, match="is not a duration such as 10s"):
        forms.duration_seconds(text)


@pytest.mark.parametrize("text", ["36501d", "9" * 400, "9" * 400 + "h"])
def test_a_duration_ends_before_a_clock_does(text):
    with pytest.raises(ValueError, match="longer than a century"):
        forms.duration_seconds(text)


@pytest.mark.parametrize("text", ["0.5s", "32768", "10h"])
def test_a_period_has_a_range(text):
    assert forms.period(1, 32767).parse("9h") == 32400
    with pytest.raises(ValueError, match="must be between 1s and 32767s"):
        forms.period(1, 32767).parse(text)


@pytest.mark.parametrize("text", ["a/b", "a b", "ünïcode", "a" * 256, "a\n"])
def test_a_trust_domain_has_the_letters_of_spiffe(text):
    assert forms.TRUST_DOMAIN.parse("old_mesh-1.example.org") == "old_mesh-1.example.org"
    with pytest.raises(ValueError, match="is no trust domain"):
        forms.TRUST_DOMAIN.parse(text)


@given(st.integers(0, 10**6).map(float))
def test_a_duration_reads_back_as_it_is_written(seconds):
    assert forms.duration_seconds(duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["True", "yes", "1", "on", "TRUE", " true"])
def test_a_boolean_is_exactly_true_or_false(text):
    with pytest.raises(ValueError, match="exactly true or false"):
        forms.BOOLEAN.parse(text)


@pytest.mark.parametrize("text", ["0", "0s"])
def test_a_time_limit_is_longer_than_nothing(text):
    with pytest.raises(ValueError, match="longer than nothing"):
        forms.LIMIT.parse(text)


def test_a_mark_may_be_hexadecimal():
    assert forms.integer(1, 2**32 - 1).parse("0x539") == 1337


@pytest.mark.parametrize(("text", "why"), [("x", "whole number"), ("1.0", "whole number"), ("9", "between 1 and 5")])
def test_numbers_have_a_range(text, why):
    with pytest.raises(ValueError, match=why):
        forms.integer(1, 5).parse(text)


def test_lists_forgive_blanks_and_repetition():
    assert forms.PORTS.parse("80, 443,80,") == (80, 443)
    assert forms.CIDRS.parse("10.1.2.3/8, fd00::1") == ("10.0.0.0/8", "fd00::1/128")


@pytest.mark.parametrize(
    ("form", "text"), [(forms.PORTS, "80,http"), (forms.PORTS, "0"), (forms.CIDRS, "10.0.0.0/33"), (forms.CIDRS, "x")]
)
def test_one_bad_item_spoils_a_list(form, text):
    with pytest.raises(ValueError, match="commas between"):
        form.parse(text)


def test_workload_info_has_three_parts():
    assert forms.WORKLOAD.parse("ns/pod/sa") == WorkloadInfo("ns", "pod", "sa")
    for text in ("ns/pod", "ns/pod/sa/x", "ns//sa", ""):
        with pytest.raises(ValueError, match="namespace/name/serviceaccount"):
            forms.WORKLOAD.parse(text)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("15100", BindText("", 15100)),
        ("localhost:1", BindText("localhost", 1)),
        ("*:1", BindText("*", 1)),
        ("127.0.0.9:1", BindText("127.0.0.9", 1)),
        ("[::1]:1", BindText("::1", 1)),
    ],
)
def test_listen_addresses(text, bind):
    assert forms.BIND.parse(text) == bind


@pytest.mark.parametrize("text", ["host:1", "127.0.0.1", "127.0.0.1:", "1.2.3.4:99999", "0"])
def test_what_is_no_listen_address_says_so(text):
    with pytest.raises(ValueError, match="must be a port, localhost:port"):
        forms.BIND.parse(text)


@pytest.mark.parametrize("text", ["info", "error,access=info", "ztunnel::proxy=trace, warn", "OFF"])
def test_log_filters(text):
    assert forms.LOG_FILTER.parse(text) == text


@pytest.mark.parametrize("text", ["loud", "access=", "access", "info,x=y"])
def test_a_log_filter_without_level_is_refused(text):
    with pytest.raises(ValueError, match="has no level"):
        forms.LOG_FILTER.parse(text)
