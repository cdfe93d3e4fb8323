import pytest
from click.testing import CliRunner

from benches.document import DIFFER, TEMPLATE, document, main
from benches.report import Report, Sample, write_json

PEERS = {"ours": "1", "envoy": "2"}


def campaign(ours, envoy=10.0, *, kernel="6", profile="default", failures=()):
    samples = [Sample("up1", "gbps", "ours", 1, ours), Sample("up1", "gbps", "envoy", 1, envoy)]
    return Report(profile=profile, facts={"kernel": kernel}, designs=PEERS, samples=samples, failures=list(failures))


def lines(text):
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]


def test_each_goal_stands_beside_the_ratios_of_both_campaigns():
    table = lines(document("{{default-goals}}", [campaign(12.0), campaign(12.5)]))
    assert table[0] == ["line", "number", "goal", "campaign 1", "campaign 2", "verdict"]
    assert table[2] == ["bulk up, 1 connection", "Gb/s", ">= 1.1x", "1.2x", "1.25x", "met"]


def test_campaigns_that_differ_are_marked_and_decide_nothing_between_them():
    table = lines(document("{{default-goals}}", [campaign(12.0), campaign(10.0)]))
    assert table[2][-1] == f"undecided, {DIFFER}"


def test_campaigns_may_differ_and_still_both_meet_the_goal():
    table = lines(document("{{default-goals}}", [campaign(12.0), campaign(20.0)]))
    assert table[2][-1] == f"met, {DIFFER}"


def test_the_numbers_hold_every_design_and_mark_ties():
    table = lines(document("{{default-numbers}}", [campaign(12.0), campaign(10.5)]))
    assert table[0] == ["line", "number", "ours", "envoy", "ours / better peer"]
    assert table[2][2:] == ["12<br>10.5", "10<br>10", f"1.20x envoy<br>1.05x envoy, tie<br>{DIFFER}"]


def test_facts_that_differ_say_in_which_campaign():
    text = document("{{machine}}", [campaign(1.0, kernel="6"), campaign(1.0, kernel="7")])
    assert "| kernel | 6 (default 1)<br>7 (default 2) |" in text
    assert "| designs | ours 1, envoy 2 |" in text


def test_what_was_not_measured_says_how():
    assert "./dev bench --profile node" in document("{{node-goals}}", [campaign(1.0)])


def test_failures_are_told_by_their_first_line():
    text = document("{{failures}}", [campaign(1.0, failures=["up1, ours: 3 of 8 failed\nagent a: log"])])
    assert text == "- default: up1, ours: 3 of 8 failed"


def test_a_place_that_nothing_fills_is_refused():
    with pytest.raises(ValueError, match="nothing fills: defualt-goals"):
        document("{{defualt-goals}}", [])


def test_the_template_shows_every_profile():
    text = document(TEMPLATE.read_text(), [campaign(12.0)])
    assert "{{" not in text
    assert ">= 1.1x" in text
    assert "--profile control" in text


def test_results_in_the_document_out(tmp_path):
    write_json(campaign(12.0), tmp_path / "one.json")
    output = tmp_path / "performance.md"
    done = CliRunner().invoke(main, [str(tmp_path / "one.json"), "--output", str(output)])
    assert done.exit_code == 0
    assert "1.2x" in output.read_text()


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    done = CliRunner().invoke(main, [str(tmp_path / "other.json")])
    assert done.exit_code == 1
    assert "other.json is no result of this bench" in done.output
