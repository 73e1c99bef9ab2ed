"""Settings: precedence, conversion, refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from everfold.runtime import dynamic
from everfold.runtime.broker.configuration import Ports, server_properties
from everfold.runtime.config import OPTIONS, Settings, load
from everfold.runtime.settings import SettingError

MIB = 1024 * 1024


def test_a_flag_beats_the_environment_and_the_environment_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "everfold.toml"
    file.write_text("[frontend]\nport = 1\nip = '0.0.0.0'\ngateway = 'grpcio'\n")
    env = {"EVERFOLD_FRONTEND_PORT": "2", "EVERFOLD_FRONTEND_IP": "::1"}
    loaded = load({"frontend.port": "3"}, env, file)
    assert (loaded.settings.frontend.port, loaded.sources["frontend.port"]) == (3, "--port")
    assert (loaded.settings.frontend.ip, loaded.sources["frontend.ip"]) == ("::1", "EVERFOLD_FRONTEND_IP")
    assert (loaded.settings.frontend.gateway, loaded.sources["frontend.gateway"]) == ("grpcio", str(file))
    assert loaded.sources["log.level"] == "default"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "everfold.toml"
    file.write_text("[metrics]\nport = 9\n")
    assert load({}, {"EVERFOLD_CONFIG": str(file)}).settings.metrics.port == 9


def test_without_any_source_the_settings_are_the_declared_defaults() -> None:
    assert load({}, {}).settings == Settings()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("EVERFOLD_HISTORY_RUN_CACHE_BYTES", "64MiB", 64 * MIB),
        ("EVERFOLD_HISTORY_RUN_CACHE_BYTES", "1.5gib", 1536 * MIB),
        ("EVERFOLD_HISTORY_RUN_CACHE_BYTES", "2000000", 2_000_000),
        ("EVERFOLD_KAFKA_SESSION_TIMEOUT_S", "6500ms", 6.5),
        ("EVERFOLD_KAFKA_SESSION_TIMEOUT_S", "1m", 60.0),
        ("EVERFOLD_NODE_EPHEMERAL", "yes", True),
        ("EVERFOLD_SETUP_NAMESPACE", "a, b", ("a", "b")),
        (
            "EVERFOLD_KAFKA_PROPERTIES",
            "security.protocol=SSL,ssl.ca.location=/ca",
            {"security.protocol": "SSL", "ssl.ca.location": "/ca"},
        ),
    ],
)
def test_text_becomes_a_typed_value(name: str, text: str, value: object) -> None:
    settings = load({}, {name: text}).settings
    option = next(option for option in OPTIONS.values() if option.env == name)
    assert getattr(getattr(settings, option.section), option.name) == value


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        ({"EVERFOLD_FRONTEND_PORT": "seven"}, "(from EVERFOLD_FRONTEND_PORT) is not a whole number"),
        ({"EVERFOLD_FRONTEND_PORT": "70000"}, "above the most, 65535"),
        ({"EVERFOLD_KAFKA_SESSION_TIMEOUT_S": "5.9"}, "below the least, 6"),
        ({"EVERFOLD_FRONTEND_GATEWAY": "rest"}, "is none of http2, grpcio"),
        ({"EVERFOLD_FRONTEND_TLS_CERT_PATH": "/c"}, "given without frontend.tls_key_path"),
        ({"EVERFOLD_FRONTEND_TLS_KEY_PATH": "/k"}, "given without frontend.tls_cert_path"),
        ({"EVERFOLD_FRONTEND_TLS_CLIENT_CA_PATH": "/a"}, "only TLS knows certificates"),
        ({"EVERFOLD_HISTORY_SHARDS": "6"}, "power of two"),
        ({"EVERFOLD_NODE_EPHEMERAL": "maybe"}, "expected yes or no"),
        ({"EVERFOLD_NODE_EPHEMERAL": "1", "EVERFOLD_NODE_DATA_DIR": "/x"}, "Drop one"),
        ({"EVERFOLD_KAFKA_BOOTSTRAP": "a:1", "EVERFOLD_BROKER_PORT": "9"}, "no embedded broker"),
        ({"EVERFOLD_METRICS_PORT": "7233"}, "frontend.port and metrics.port are both 7233"),
        ({"EVERFOLD_KAFKA_PROPERTIES": "acks=1"}, "kafka.properties sets acks"),
        ({"EVERFOLD_SETUP_SEARCH_ATTRIBUTE": "Age=Number"}, "the type must be one of Bool"),
        ({"EVERFOLD_DYNAMIC_VALUE": "limit.historyCount.error=many"}, "error=many: expected a whole"),
    ],
)
def test_a_bad_value_or_a_contradiction_is_refused_by_name(env: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingError) as refused:
        load({}, env)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[frontend]\nprot = 1\n", "did you mean frontend.port?"),
        ("port = 1\n", "expected tables"),
        ("[frontend\n", "is not TOML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "everfold.toml"
    file.write_text(content)
    with pytest.raises(SettingError) as refused:
        load({}, {}, file)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("gateway", ["http2", "grpcio"])
def test_tls_goes_with_every_gateway(gateway: str) -> None:
    load({"frontend.tls_cert_path": "/c", "frontend.tls_key_path": "/k"}, {"EVERFOLD_FRONTEND_GATEWAY": gateway})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        load({}, {}, tmp_path / "none.toml")


def test_a_mistyped_variable_is_a_warning_with_the_nearest_name() -> None:
    (warning,) = load({}, {"EVERFOLD_FRONTEND_PROT": "1", "EVERFOLD_CACHE_DIR": "/x"}).warnings
    assert "did you mean EVERFOLD_FRONTEND_PORT?" in warning


def test_no_two_settings_share_a_flag_or_a_variable() -> None:
    options = list(OPTIONS.values())
    assert len({option.flag for option in options}) == len(options)
    assert len({option.env for option in options}) == len(options)
    assert all(option.help.endswith((".", "repeated.")) for option in options)


def test_every_default_satisfies_its_own_bounds() -> None:
    for option in OPTIONS.values():
        assert option.convert(option.default, "default") == option.default


def test_the_least_session_timeout_is_the_least_that_the_embedded_broker_takes() -> None:
    properties = server_properties(Path("/x"), Ports(1, 2))
    taken_ms = dict(line.split("=", 1) for line in properties.splitlines())["group.min.session.timeout.ms"]
    assert OPTIONS["kafka.session_timeout_s"].minimum == int(taken_ms) / 1000


def test_dynamic_names_reach_the_fold_and_the_services() -> None:
    values = (
        "limit.historyCount.suggestContinueAsNew=50",
        "LIMIT.BLOBSIZE.ERROR=1000",
        "matching.longPollExpirationInterval=1m30s",
        'history.defaultWorkflowTaskTimeout="5s"',
        "system.enableEagerWorkflowStart=false",
    )
    limits = load({"dynamic.value": values}, {}).settings.limits
    assert limits.folded == {
        "limit.historyCount.suggestContinueAsNew": 50,
        "limit.blobSize.error": 1000,
        "history.defaultWorkflowTaskTimeout": 5_000_000_000,
        "system.enableEagerWorkflowStart": 0,
    }
    assert limits.service.poll_ns == 90_000_000_000
    assert limits.service.history_page_events_max == 256


def test_an_unknown_dynamic_name_is_a_warning() -> None:
    loaded = load({"dynamic.value": ("history.enableChasm=true",)}, {})
    assert loaded.warnings == (
        "dynamic configuration history.enableChasm is not known to this server and has no effect",
    )
    assert loaded.settings.limits.folded == {}


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("10s", 10**10),
        ("1m30s", 9 * 10**10),
        ("250ms", 25 * 10**7),
        ("0s", 0),
        ("3", 3 * 10**9),
        ("1.5h", 5400 * 10**9),
    ],
)
def test_durations_are_read_in_gos_notation(text: str, ns: int) -> None:
    assert dynamic.duration_ns(text) == ns


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s x", "10 parsecs"])
def test_nonsense_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        dynamic.duration_ns(text)


def test_every_limit_of_the_fold_has_a_name_or_is_not_for_users() -> None:
    from everfold.kernel.limits import DEFAULTS

    internal = {"history.maxWorkflowTaskTimeout", "history.rateLimit.requestIds", "matching.partitions"}
    assert {known.key for known in dynamic.FOLDED} == set(DEFAULTS) - internal
