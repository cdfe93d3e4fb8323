import msgspec

from benches.report import Report, Sample, number, rows, spread, write_json
from benches.stats import Summary


def report(*samples):
    return Report(facts={"kernel": "6"}, designs={"ours": "1", "envoy": "2"}, samples=list(samples), failures=[])


def test_rows_hold_our_ratio_and_whether_the_target_is_met():
    (row,) = rows(
        report(
            Sample("up1", "gbps", "ours", 1, 4.0),
            Sample("up1", "gbps", "ours", 2, 6.0),
            Sample("up1", "gbps", "envoy", 1, 10.0),
        )
    )
    assert row.summaries["ours"] == Summary(5.0, 4.0, 6.0, 2)
    assert (row.ratio, row.target, row.met) == (0.5, ">= 0.9", False)


def test_a_design_that_gave_no_number_leaves_the_verdict_open():
    (row,) = rows(report(Sample("cps1", "per_s", "envoy", 1, 900.0)))
    assert (row.ratio, row.met) == (None, None)
    assert spread(row.summaries.get("ours")) == "-"


def test_rows_follow_the_order_of_the_lines_not_of_the_samples():
    found = rows(report(Sample("memory", "idle_rss_mib", "ours", 1, 60.0), Sample("up1", "gbps", "ours", 1, 4.0)))
    assert [row.line for row in found] == ["up1", "memory"]


def test_numbers_have_three_significant_digits_and_no_exponent():
    assert [number(x) for x in (0.01234, 1.2345, 12.345, 123.45, 12345.6)] == ["0.0123", "1.23", "12.3", "123", "12346"]


def test_the_json_holds_every_sample_and_the_rows(tmp_path):
    sample = Sample("up1", "gbps", "ours", 1, 4.0)
    write_json(report(sample), tmp_path / "new" / "bench.json")
    document = msgspec.json.decode((tmp_path / "new" / "bench.json").read_bytes())
    assert document["report"]["samples"] == [msgspec.to_builtins(sample)]
    assert [row["metric"] for row in document["rows"]] == ["gbps"]
