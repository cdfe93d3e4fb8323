import msgspec

from benches.profiles import PROFILES
from benches.report import Report, Sample, named, number, read_json, rows, share, spread, write_json
from benches.stats import Ratio, Summary

DESIGNS = {"ours": "1", "envoy": "2", "ztunnel": "3"}


def report(*samples, profile="default"):
    return Report(profile=profile, facts={"kernel": "6"}, designs=DESIGNS, samples=list(samples), failures=[])


def test_rows_hold_our_ratio_to_the_better_peer_and_whether_the_goals_are_met():
    (row,) = rows(
        report(
            Sample("up1", "gbps", "ours", 1, 4.0),
            Sample("up1", "gbps", "ours", 2, 6.0),
            Sample("up1", "gbps", "envoy", 1, 5.0),
            Sample("up1", "gbps", "ztunnel", 1, 10.0),
        )
    )
    assert row.summaries["ours"] == Summary(5.0, 4.0, 6.0, 2)
    assert row.ratios == {"ours": Ratio(0.5, "ztunnel")}
    assert [(found.goal, found.value, found.met) for found in row.verdicts] == [
        (">= 1.1x", 0.5, False),
        (">= 0.9x envoy's", 1.0, True),
    ]


def test_a_goal_for_the_value_itself_needs_no_peer():
    (row,) = rows(report(Sample("agent", "agent_pss_mb", "ours", 1, 44.0)))
    assert [(found.value, found.met) for found in row.verdicts] == [(44.0, True)]


def test_a_design_that_gave_no_number_leaves_the_verdict_open():
    (row,) = rows(report(Sample("cps1", "per_s", "ours", 1, 900.0), Sample("cps1", "per_s", "ztunnel", 1, 900.0)))
    assert [found.met for found in row.verdicts] == [False, None]
    assert spread(row.summaries.get("envoy")) == "-"


def test_each_variant_of_ours_has_its_ratio_but_goals_bind_only_the_judged():
    (row,) = rows(
        report(
            Sample("pp1", "p50_us", "ours-join", 1, 60.0),
            Sample("pp1", "p50_us", "ours-nojoin", 1, 120.0),
            Sample("pp1", "p50_us", "ztunnel", 1, 100.0),
            profile="node",
        )
    )
    assert row.ratios == {"ours-join": Ratio(0.6, "ztunnel"), "ours-nojoin": Ratio(1.2, "ztunnel")}
    assert [(found.design, found.met) for found in row.verdicts] == [("ours-join", True)]


def test_rows_follow_the_order_of_the_lines_not_of_the_samples():
    found = rows(report(Sample("memory", "idle_rss_mib", "ours", 1, 60.0), Sample("up1", "gbps", "ours", 1, 4.0)))
    assert [row.line for row in found] == ["up1", "memory"]


def test_a_tie_is_marked_as_one():
    assert share(Ratio(1.05, "envoy")) == "1.05x envoy, tie"
    assert share(Ratio(1.25, "envoy")) == "1.25x envoy"


def test_a_variant_is_named_only_where_there_are_several():
    assert named("ours", "2x", PROFILES["default"]) == "2x"
    assert named("ours-join", "2x", PROFILES["node"]) == "join 2x"


def test_numbers_have_three_significant_digits_and_no_exponent():
    assert [number(x) for x in (0.01234, 1.2345, 12.345, 123.45, 12345.6)] == ["0.0123", "1.23", "12.3", "123", "12346"]


def test_the_json_holds_every_sample_and_the_rows(tmp_path):
    made = report(Sample("up1", "gbps", "ours", 1, 4.0))
    path = tmp_path / "new" / "bench.json"
    write_json(made, path)
    assert [row["metric"] for row in msgspec.json.decode(path.read_bytes())["rows"]] == ["gbps"]
    assert read_json(path) == made
