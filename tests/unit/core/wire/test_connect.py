from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ztunnel.core.model.address import Address, HostPort
from ztunnel.core.model.workload import Locality, Workload
from ztunnel.core.wire.connect import (
    MAX_BAGGAGE,
    MAX_FORWARDED,
    Baggage,
    ConnectRequest,
    Forwarded,
    RequestForm,
    TraceParent,
    WireError,
    baggage,
    check_request,
    forwarded,
    parse_baggage,
    parse_forwarded,
    parse_traceparent,
    request_headers,
    traceparent,
)
from ztunnel.core.wire.frames import decode_plain, encode_header, encode_headers

Headers = list[tuple[bytes, bytes]]
CONNECT: Headers = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.7:8080")]
TARGET = Address("10.0.0.7", 8080)
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"

fuzz_one_input = runpy.run_path(str(Path(__file__).parents[4] / "fuzz" / "fuzz_connect.py"))["fuzz_one_input"]


def told(request: ConnectRequest) -> tuple[object, ...]:
    """Everything that a request says."""
    return request.target, request.forwarded, request.baggage, request.trace, request.network


NOTHING_MORE = told(ConnectRequest(TARGET))


def workload(**fields: object) -> Workload:
    return Workload(uid="u", name="pod", **fields)  # type: ignore[arg-type]


PRODUCT_PAGE = workload(
    cluster_id="Kubernetes",
    namespace="default",
    workload_type="deployment",
    workload_name="productpage-v1",
    canonical_name="productpage",
    canonical_revision="v1",
    locality=Locality("eu", "eu-a"),
)
ITS_BAGGAGE = (
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=productpage-v1,"
    "service.name=productpage,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-a"
)


class TestRequest:
    def test_a_plain_connect_is_enough(self) -> None:
        request = check_request(CONNECT)
        assert told(request) == NOTHING_MORE == (TARGET, Forwarded(), Baggage(), None, "")
        assert (request.authority, request.forwarded_host, request.network) == ("10.0.0.7:8080", "", "")

    def test_the_informing_headers_are_read(self) -> None:
        request = check_request(
            [
                *CONNECT,
                (b"baggage", ITS_BAGGAGE.encode()),
                (b"forwarded", b'for="10.0.0.3:4711";host=web.default.svc'),
                (b"traceparent", TRACE.encode()),
                (b"x-forwarded-network", b"network-1"),
                (b"user-agent", b"\xff\x00"),
            ]
        )
        assert request.baggage.workload == "productpage-v1"
        assert request.forwarded == Forwarded("10.0.0.3:4711", "web.default.svc")
        assert request.trace == TraceParent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
        assert request.network == "network-1"

    @pytest.mark.parametrize(
        ("headers", "why"),
        [
            ([], "method '' instead of CONNECT"),
            ([(b":method", b"GET"), CONNECT[1]], "method 'GET' instead"),
            ([(b":method", b"connect"), CONNECT[1]], "method 'connect' instead"),
            (CONNECT[:1], "without :authority"),
            (CONNECT[1:], "instead of CONNECT"),
            ([*CONNECT, CONNECT[0]], "more than one ':method'"),
            ([*CONNECT, (b":authority", b"10.0.0.8:80")], "more than one ':authority'"),
            ([*CONNECT, (b":protocol", b"websocket")], "':protocol' has no place"),
            ([*CONNECT, (b":status", b"200")], "':status' has no place"),
            ([CONNECT[0], (b"host", b"x"), CONNECT[1]], "':authority' after other headers"),
            ([CONNECT[0], (b":authority", b"")], "no place in it"),
            ([CONNECT[0], (b":authority", b"10.0.0.7:80\r\nx: y")], "no place in it"),
            ([CONNECT[0], (b":authority", b" 10.0.0.7:80")], "no place in it"),
            ([CONNECT[0], (b":authority", b"\xff:80")], "no place in it"),
            ([CONNECT[0], (b":authority", b"x" * 1000)], "1000 bytes, more than 300"),
            ([CONNECT[0], (b":authority", b"::::")], "'::::'"),
        ],
    )
    def test_a_wrong_request_is_refused_with_its_reason(self, headers: Headers, why: str) -> None:
        with pytest.raises(WireError) as caught:
            check_request(headers)
        assert why in str(caught.value)

    def test_scheme_and_path_of_old_libraries_are_ignored(self) -> None:
        assert check_request([*CONNECT, (b":scheme", b"https"), (b":path", b"/")]).target == TARGET

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            (b"baggage", b"service.name=a%0Ab"),
            (b"baggage", b"service.name=\xff"),
            (b"baggage", b"service.name=" + b"a" * MAX_BAGGAGE),
            (b"forwarded", b"for"),
            (b"forwarded", b"for=a;for=b"),
            (b"forwarded", b'host="a\\\x07b"'),
            (b"forwarded", b"host=" + b"a" * MAX_FORWARDED),
            (b"traceparent", b"00-00-00-00"),
            (b"traceparent", TRACE.encode() + b"0"),
            (b"x-forwarded-network", b"a" * 254),
            (b"x-forwarded-network", b"a\nb"),
            (b"x-forwarded-network", b"a\tb"),
            (b"forwarded", b'host="a\tb"'),
        ],
    )
    def test_a_broken_informing_header_counts_as_absent(self, name: bytes, value: bytes) -> None:
        assert told(check_request([*CONNECT, (name, value)])) == NOTHING_MORE

    def test_lists_may_be_split_and_single_values_may_not(self) -> None:
        request = check_request(
            [
                *CONNECT,
                (b"baggage", b"service.name=web"),
                (b"baggage", b"service.version=v2"),
                (b"forwarded", b"for=10.0.0.3"),
                (b"forwarded", b"for=10.0.0.4"),
                (b"traceparent", TRACE.encode()),
                (b"traceparent", TRACE.encode()),
                *[(b"x-forwarded-network", b"n")] * 3,
            ]
        )
        assert request.baggage == Baggage(service="web", revision="v2")
        assert request.forwarded.client == Address("10.0.0.3", 0)
        assert (request.trace, request.network) == (None, "")

    def test_a_refusal_is_harmless_in_a_log(self) -> None:
        for headers in ([(b":method", b"\x1b[2J\n" * 100)], [*CONNECT, (b":\n" + b"x" * 999, b"")]):
            with pytest.raises(WireError) as caught:
                check_request(headers)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 400

    @given(st.lists(st.tuples(st.sampled_from([b":method", b":authority", b"baggage", b"forwarded"]), st.binary())))
    def test_any_headers_give_a_request_or_wire_error(self, headers: Headers) -> None:
        for whole in (headers, CONNECT + headers):
            try:
                target = check_request(whole).target
            except WireError:
                continue
            assert 0 < target.port < 65536


class TestBaggage:
    def test_keys_order_and_values_are_ztunnels(self) -> None:
        assert baggage(PRODUCT_PAGE) == ITS_BAGGAGE

    def test_what_is_built_is_read_again(self) -> None:
        assert parse_baggage(ITS_BAGGAGE) == Baggage(
            "Kubernetes", "default", "productpage-v1", "deployment", "productpage", "v1", "eu", "eu-a"
        )

    def test_empty_values_and_unknown_types_are_left_out(self) -> None:
        assert baggage(workload(cluster_id="")) == ""
        assert baggage(workload(cluster_id="", workload_type="x,y=z", workload_name="w")) == ""
        assert baggage(workload(cluster_id="c", workload_type="CronJob", workload_name="w")) == (
            "k8s.cluster.name=c,k8s.cronjob.name=w"
        )

    def test_a_value_cannot_pass_for_another_key(self) -> None:
        text = baggage(workload(cluster_id="", canonical_name="a,k8s.namespace.name=kube-system;x", namespace="b"))
        assert parse_baggage(text) == Baggage(namespace="b", service="a,k8s.namespace.name=kube-system;x")

    @given(st.text(max_size=40))
    @example('100% é,;="\\ ')
    @example("\ud800")
    def test_any_text_survives_or_is_refused_and_the_header_is_always_clean(self, text: str) -> None:
        header = baggage(workload(cluster_id="c", canonical_name=text, namespace="n"))
        assert header.isascii()
        assert all(" " < character < "\x7f" for character in header)
        try:
            read = parse_baggage(header)
        except WireError:
            assert not text.isprintable()
        else:
            assert read == Baggage(cluster="c", namespace="n", service=text.encode(errors="replace").decode())

    @pytest.mark.parametrize(
        ("text", "read"),
        [
            ("", Baggage()),
            (",,=,a=b,service.name", Baggage()),
            (" service.name = web ; secret=1 , service.version=v1", Baggage(service="web", revision="v1")),
            ("service.name=a=b", Baggage(service="a=b")),
            ("service.name=first,service.name=second", Baggage(service="first")),
            ("k8s.job.name=j,k8s.pod.name=p", Baggage(workload="j", workload_type="job")),
            ("k8s.secret.name=x,K8S.POD.NAME=y", Baggage()),
            ("service.name=50%,service.version=%zz", Baggage(service="50%", revision="%zz")),
            ("service.name=%ff", Baggage(service="\ufffd")),
        ],
    )
    def test_foreign_baggage_is_read_liberally(self, text: str, read: Baggage) -> None:
        assert parse_baggage(text) == read


class TestForwarded:
    @pytest.mark.parametrize(
        ("client", "host", "text"),
        [
            (Address("10.0.0.3", 4711), "", 'for="10.0.0.3:4711"'),
            (Address("10.0.0.3", 4711), "web.default.svc", 'for="10.0.0.3:4711";host=web.default.svc'),
            (Address("fd00::3", 1), "web:80", 'for="[fd00::3]:1";host="web:80"'),
            (Address("10.0.0.3", 1), 'a"b\\c;,d', 'for="10.0.0.3:1";host="a\\"b\\\\c;,d"'),
        ],
    )
    def test_what_is_built_is_read_again(self, client: Address, host: str, text: str) -> None:
        assert forwarded(client, host) == text
        read = parse_forwarded(text)
        assert (read.client, read.host) == (client, host)

    @pytest.mark.parametrize("host", ["a\r\nb", "wéb", " web"])
    def test_a_host_that_cannot_be_written_is_refused(self, host: str) -> None:
        with pytest.raises(WireError, match="cannot hold the host"):
            forwarded(Address("10.0.0.3", 1), host)

    @pytest.mark.parametrize(
        ("text", "client", "host"),
        [
            ("", None, ""),
            ("For=10.0.0.3", Address("10.0.0.3", 0), ""),
            ('for="[FD00::3]"', Address("fd00::3", 0), ""),
            ("for=unknown;host=WEB", None, "web"),
            ("for=_hidden, for=10.0.0.3", None, ""),
            ("by=10.0.0.9;proto=http ; for=10.0.0.3;", Address("10.0.0.3", 0), ""),
            ("for=10.0.0.3,not even close", Address("10.0.0.3", 0), ""),
        ],
    )
    def test_other_forms_of_the_rfc_are_read(self, text: str, client: Address | None, host: str) -> None:
        read = parse_forwarded(text)
        assert (read.client, read.host) == (client, host)

    @pytest.mark.parametrize(
        "text", ["for", "for=", 'for="', 'for="a"b', "=x", "for=a;for=b", 'host="a\tb\\\x01"', ";"]
    )
    def test_broken_ones_are_refused(self, text: str) -> None:
        with pytest.raises(WireError, match="forwarded"):
            parse_forwarded(text)


class TestTraceParent:
    @given(st.integers(1, (1 << 128) - 1), st.integers(1, (1 << 64) - 1))
    def test_what_is_built_is_read_again(self, trace: int, parent: int) -> None:
        text = traceparent(trace, parent)
        assert len(text) == 55
        assert parse_traceparent(text) == TraceParent(trace, parent)

    def test_the_form_is_that_of_the_standard(self) -> None:
        assert traceparent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331) == TRACE

    def test_zero_is_no_id_and_too_large_numbers_are_cut(self) -> None:
        assert parse_traceparent(traceparent(0, 0)) == TraceParent(1, 1)
        assert parse_traceparent(traceparent((1 << 128) + 5, (1 << 64) + 6)) == TraceParent(5, 6)

    @pytest.mark.parametrize(
        "text",
        ["", TRACE.upper(), TRACE[:-1], TRACE + "0", "ff" + TRACE[2:], f"00-{'0' * 32}-{'1' * 16}-00",
         f"00-{'1' * 32}-{'0' * 16}-00", TRACE.replace("-", "_"), TRACE[:-1] + "\n"],
    )  # fmt: skip
    def test_everything_else_is_refused(self, text: str) -> None:
        with pytest.raises(WireError, match="traceparent"):
            parse_traceparent(text)


class TestHeaders:
    def test_the_list_is_in_order_and_leaves_out_what_is_empty(self) -> None:
        assert request_headers(TARGET) == [(":method", "CONNECT"), (":authority", "10.0.0.7:8080")]
        whole = request_headers("web:80", baggage="a=b", forwarded="for=x", traceparent=TRACE, network="n")
        assert [name for name, _ in whole] == [
            ":method", ":authority", "baggage", "forwarded", "traceparent", "x-forwarded-network",
        ]  # fmt: skip

    def test_what_is_built_is_accepted(self) -> None:
        headers = request_headers(
            HostPort("web.default.svc", 80),
            baggage=baggage(PRODUCT_PAGE),
            forwarded=forwarded(TARGET, "web.default.svc"),
            traceparent=TRACE,
            network="network-1",
        )
        request = check_request([(name.encode(), value.encode()) for name, value in headers])
        assert request.target == HostPort("web.default.svc", 80)
        assert request.baggage == parse_baggage(ITS_BAGGAGE)
        assert (request.forwarded.client, request.forwarded_host) == (TARGET, "web.default.svc")
        assert request.network == "network-1"
        assert request.trace == parse_traceparent(TRACE)

    @pytest.mark.parametrize("host", ["", "web.default.svc", 'odd"host,\\', "h" * 200])
    @pytest.mark.parametrize("client", [TARGET, Address("fd00::1", 1)])
    @pytest.mark.parametrize("ids", [(0, 0), (1, 2), (2**128 - 1, 2**64 - 1)])
    def test_a_form_is_filled_with_what_the_header_list_says(
        self, host: str, client: Address, ids: tuple[int, int]
    ) -> None:
        headers = request_headers(
            TARGET, baggage=ITS_BAGGAGE, forwarded=forwarded(client, host), traceparent=traceparent(*ids)
        )
        form = RequestForm(str(TARGET), ITS_BAGGAGE, host)
        assert form.fill(client, *ids) == encode_headers(headers)
        offered = decode_plain(form.fill(client, *ids, encode_header("x-offer", "token")))
        assert offered is not None
        assert offered[3] == (b"x-offer", b"token")

    def test_a_form_refuses_a_host_that_cannot_be_written(self) -> None:
        with pytest.raises(WireError, match="host"):
            RequestForm(str(TARGET), "", "a b")

    @pytest.mark.parametrize("value", ["a\r\nb: c", "a\x00", "é", " a", "a "])
    def test_a_value_that_would_break_the_header_block_is_refused(self, value: str) -> None:
        with pytest.raises(WireError, match="baggage cannot be"):
            request_headers(TARGET, baggage=value)
        with pytest.raises(WireError, match=":authority cannot be"):
            request_headers(value)


ELEMENT = st.one_of(
    st.sampled_from(
        ["for=", 'for="', '"', ";host=", ';host="', "\\", ",", " ", "10.0.0.1:80", "[fd00::1]:80", "Web.demo"]
    ),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=3),
)


@given(st.lists(ELEMENT, max_size=8).map("".join))
@example('for="10.0.0.1:80";host=Web.demo')
@example('for="10.0.0.1:80"')
@example('for="";host=a,for=b')
@example("for=" + '"x"' * 3)
def test_the_usual_forwarded_header_is_read_as_any_other(text: str) -> None:
    request = ConnectRequest(TARGET, {b"forwarded": text.encode("latin-1")})
    assert request.forwarded_host == request.forwarded.host


@given(st.binary(max_size=300))
@example(b"m\na10.0.0.7:80\nbservice.name=web\nffor=10.0.0.3\nt" + TRACE.encode() + b"\nnnet")
@example(b"m\na[::]:1\ns\np/\nx=y")
def test_the_fuzz_target_holds(data: bytes) -> None:
    fuzz_one_input(data)
