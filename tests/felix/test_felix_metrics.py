"""Felix's figures: under Calico's names, from what felix knows, and only where somebody asked for them."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.felix.objects import policy, workload
from tests.felix.process_lab import NODE, FelixProcess
from tests.felix.test_felix_config import config
from tests.netns_lab import eventually
from tortie.core import exposition, serving
from tortie.core.errors import ConfigError
from tortie.core.tasks import cancel
from tortie.datastore.keys import ResourceKey
from tortie.datastore.syncer import Batch, SyncStatus, Update
from tortie.felix import metrics
from tortie.felix.calc.graph import State
from tortie.felix.metrics import Meter, Port
from tortie.linux.iptables import Hooked, Own, RuleText
from tortie.linux.process import Ran

ASKED = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


def shown(meter: Meter) -> dict[str, float]:
    """Sample -> value."""
    lines = exposition.text(meter.metrics(State())).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}


@pytest.mark.unit
def test_nobody_is_told_anything_unless_it_is_enabled() -> None:
    assert config().metrics_port is None
    assert config(PROMETHEUSMETRICSENABLED="true").metrics_port == Port(9091)
    found = config(
        PROMETHEUSMETRICSENABLED="true", PROMETHEUSMETRICSHOST="127.0.0.1", PROMETHEUSMETRICSPORT="1234",
        PROMETHEUSPROCESSMETRICSENABLED="false",
    ).metrics_port  # fmt: skip
    assert found == Port(1234, "127.0.0.1", process=False)


@pytest.mark.unit
def test_the_cluster_is_counted_as_it_comes_and_goes() -> None:
    meter = Meter()
    assert shown(meter)["felix_resync_state"] == 1
    (wep, endpoint), (gone, value) = workload("a"), policy("p")
    here = ResourceKey("Node", "n1")
    both = [Update("new", wep, endpoint), Update("new", gone, value), Update("new", here, object())]
    meter.batch(Batch(both, SyncStatus.RESYNC_IN_PROGRESS), 0.25)
    later = [Update("updated", wep, endpoint), Update("deleted", gone, None)]
    meter.batch(Batch(later, SyncStatus.IN_SYNC), 0.5)
    found = shown(meter)
    assert found["felix_resync_state"] == 3 and found["felix_resyncs_started"] == 1
    assert found["felix_cluster_num_workload_endpoints"] == found["felix_cluster_num_hosts"] == 1
    assert found["felix_cluster_num_policies"] == 0
    assert found['felix_calc_graph_updates_processed{type="NetworkPolicy"}'] == 2
    assert found["felix_calc_graph_update_time_seconds_sum"] == 0.75
    assert found["felix_calc_graph_update_time_seconds_count"] == 2


@pytest.mark.unit
def test_the_first_pass_is_told_apart_and_failures_are_counted() -> None:
    meter = Meter()
    meter.applied(9.0, False, first=True)
    meter.applied(2.0, True, first=True)
    meter.applied(0.5, True, first=False)
    meter.applied(0.25, False, first=False)
    found = shown(meter)
    assert found["felix_int_dataplane_initial_resync_time_seconds"] == 2
    assert found["felix_int_dataplane_failures"] == 2
    assert found["felix_int_dataplane_apply_time_seconds_sum"] == 0.75
    assert found["felix_int_dataplane_apply_time_seconds_count"] == 2


@pytest.mark.unit
@pytest.mark.parametrize("nftables", [False, True])
def test_chains_rules_and_sets_are_named_by_what_enforces(nftables: bool) -> None:
    rule = RuleText("h", "x")
    chains = {
        ("filter", "cali-INPUT"): Own((rule, rule)),
        ("filter", "INPUT"): Hooked((rule,), (rule,)),
        ("nat", "cali-x"): Own(),
    }
    text = exposition.text(metrics.dataplane({4: (chains, {"a": 1})}, 7, nftables=nftables))
    wanted = {
        False: [
            'felix_iptables_rules{ip_version="4",table="filter"} 4',
            'felix_iptables_chains{ip_version="4",table="nat"} 1',
            'felix_ipsets_calico{ip_version="4"} 1',
        ],
        True: [
            'felix_nft_rules{ip_version="4"} 4',
            'felix_nft_chains{ip_version="4"} 3',
            'felix_nft_sets{ip_version="4"} 1',
        ],
    }[nftables]
    assert set(wanted) <= set(text.splitlines())
    assert 'felix_route_table_num_routes{table="254"} 7' in text


@pytest.mark.unit
def test_programs_are_counted_by_what_they_were_run_for() -> None:
    ran = {
        ("iptables-nft-restore", "--noflush"): Ran(3, 1, 0.5),
        ("ip6tables-legacy-restore", "--noflush", "--wait"): Ran(2, 0, 0.25),
        ("iptables-nft-save",): Ran(4, 0, 0.0),
        ("nft", "-f", "-"): Ran(5, 2, 0.0),
        ("nft", "-j", "-t", "list"): Ran(2, 0, 0.0),
        ("nft", "-j", "list", "sets"): Ran(4, 0, 0.0),
        ("nft", "-c", "-f"): Ran(1, 1, 0.0),
        ("ipset", "save"): Ran(1, 0, 0.0),
        ("ipset", "restore"): Ran(7, 1, 0.25),
    }
    found = [line for line in exposition.text(metrics.commands(ran)).splitlines() if line[0] != "#"]
    assert found == [
        "felix_iptables_restore_calls 5",
        "felix_iptables_restore_errors 1",
        "felix_iptables_save_calls 4",
        "felix_iptables_save_errors 0",
        "felix_ipset_calls 8",
        "felix_ipset_errors 1",
        "felix_nft_calls 5",
        "felix_nft_errors 2",
        "felix_nft_list_calls 6",
        "felix_nft_list_errors 0",
        "felix_exec_time_micros_sum 1000000",
        "felix_exec_time_micros_count 29",
    ]


@pytest.mark.unit
def test_only_one_path_is_answered_and_the_process_only_if_wanted() -> None:
    plain, whole = metrics.answers(Port(1, process=False), list), metrics.answers(Port(1), list)
    assert plain("/metrics") == (True, "") and plain("/") is None
    told = whole("/metrics")
    assert told is not None and "process_resident_memory_bytes " in told[1]


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """For 127.0.0.1, signed by itself: server's and client's."""
    folder = tmp_path_factory.mktemp("tls")
    files = f"{folder}/cert", f"{folder}/key"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    words += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    words += ["-out", files[0], "-keyout", files[1]]
    subprocess.run(words, check=True, capture_output=True)
    return files


@pytest.mark.unit
def test_with_certificates_only_who_has_one_is_answered(
    certificate: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may come late: a Secret that is not mounted yet ends nothing."""
    cert, key = certificate
    late = f"{tmp_path}/cert"
    wanted = Port(0, "127.0.0.1", (cert, late, key), "RequireAndVerifyClientCert")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    answer = metrics.answers(wanted, list)

    async def ask(context: ssl.SSLContext) -> bytes:
        async with asyncio.timeout(60):
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", number, ssl=context)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)
                    continue
                try:
                    writer.write(ASKED)
                    return await reader.read()
                finally:
                    writer.close()

    async def scenario() -> None:
        stranger = ssl.create_default_context(cafile=cert)
        known = ssl.create_default_context(cafile=cert)
        known.load_cert_chain(cert, key)
        serves = serving.serve(number, "metrics", answer, wanted.host, partial(metrics.tls, wanted))
        running = asyncio.create_task(serves)
        try:
            while "prometheusMetricsCertFile" not in caplog.text:
                await asyncio.sleep(0.01)
            shutil.copyfile(cert, late)
            assert b"process_open_fds" in await ask(known)
            with pytest.raises(OSError):
                assert await ask(stranger) == b"", "told without a certificate"
                raise ConnectionResetError("closed without a word")
        finally:
            await cancel([running])

    asyncio.run(scenario())


@pytest.mark.unit
def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no certificate")
    with pytest.raises(ConfigError, match="prometheusMetricsCertFile"):
        metrics.tls(Port(1, files=("", f"{tmp_path}/x", f"{tmp_path}/x")))
    assert metrics.tls(Port(1)) is None


# --- the process ------------------------------------------------------------------------------------


def scrape(felix: FelixProcess, port: int) -> str:
    """'' while nobody answers to the end."""
    try:
        with felix.node.ns.call(socket.create_connection, ("127.0.0.1", port), 60.0) as link:
            link.sendall(ASKED)
            parts = iter(lambda: link.recv(65536), b"")
            return b"".join(parts).decode()
    except ConnectionError:
        return ""


@pytest.mark.kernel
def test_a_running_felix_tells_what_it_does_once_it_is_enabled(felix: FelixProcess) -> None:
    pod = felix.node.pod("a")
    felix.endpoint(pod.name, "open")
    felix.started()
    assert scrape(felix, 9091) == ""
    felix.kill()
    felix.started(PROMETHEUSMETRICSENABLED="true")
    wanted = ["felix_resync_state 3", "felix_active_local_endpoints 1", "felix_iptables_chains{ip_version"]
    wanted += [
        "felix_iptables_restore_errors 0",
        "process_cpu_seconds_total",
        "felix_cluster_num_workload_endpoints 1",
    ]
    eventually(lambda: all(word in scrape(felix, 9091) for word in wanted), 60)
    assert NODE not in scrape(felix, 9091)
